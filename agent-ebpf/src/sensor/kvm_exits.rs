//! `kvm_exits`: what KVM counted of a vCPU thread: halts, I/O, interrupts, all exits, and halt-polling.
//!
//! Two sources; the agent says in the map `KVM` which is in use:
//! - **KVM's own counters** (`kvm_vcpu.stat`), read at `tp_btf/sched_switch` when a vCPU thread enters its CPU, at most
//!   twice a second for each. The way there needs no further hook: while a thread has its vCPU loaded, its
//!   `task_struct.preempt_notifiers.first` points at `kvm_vcpu.preempt_notifier.link` (`vcpu_load`,
//!   virt/kvm/kvm_main.c). A thread outside `KVM_RUN` has none, and keeps its last reading.
//! - **The tracepoint `kvm:kvm_exit`**, where the kernel does not tell the layout of `kvm_vcpu`: each exit is counted by
//!   the class of its reason. Attached only then, and only while there are guests.
//!
//! Threads that are no vCPU pay one test of a flag.

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel},
    programs::TracePointContext,
};
use davy_abi::{
    Counter, EXIT_REASONS_MAX, ExitClass, FLAG_VCPU, ISA_SVM, ISA_VMX, KvmOffsets, NOT_COUNTED,
    REASONS, RECORD_BYTES_MAX, SOURCE_KVM, SOURCE_TRACEPOINT, Slot, SlotIndex, Vcpu,
};

use crate::{maps, task::Task, thread};

/// Least time between two readings of KVM's counters, ns: a window as short as a second still has one.
const READ_INTERVAL_NS: u64 = 500_000_000;
/// More than the greatest `vcpu_id` (`KVM_MAX_VCPU_IDS`, arch/x86/include/asm/kvm_host.h, is at most 16,384).
const VCPU_IDS_MAX: u32 = 65_536;

/// A thread enters its CPU: if it is a vCPU, KVM's counters are read, unless they were a moment ago.
#[inline(always)]
pub fn enter(slot: &Slot, index: SlotIndex, task: Task, now_ns: u64) {
    if slot.flags & FLAG_VCPU == 0 {
        return;
    }
    let (Some(vcpu), Some(kvm)) = (record(slot, index), maps::kvm()) else {
        return;
    };
    if now_ns < vcpu.next_read_ns {
        return;
    }
    match field(&kvm.source) {
        SOURCE_KVM => read(vcpu, kvm, task, now_ns),
        SOURCE_TRACEPOINT if vcpu.source == SOURCE_TRACEPOINT => {
            // Counted until now, also if there was no exit.
            set(&mut vcpu.read_ns, now_ns);
            set(&mut vcpu.next_read_ns, now_ns + READ_INTERVAL_NS);
        }
        _ => {}
    }
}

/// The record of the thread in that slot, emptied if it was another thread's.
#[inline(always)]
pub fn record(slot: &Slot, index: SlotIndex) -> Option<&'static mut Vcpu> {
    let vcpu = maps::vcpu(index)?;
    // SAFETY: points into the table; this CPU is the record's only writer while the thread is on it.
    let vcpu = unsafe { &mut *vcpu };
    if vcpu.start_boottime_ns != slot.start_boottime_ns || vcpu.tid != slot.tid {
        begin_write(vcpu);
        set(&mut vcpu.start_boottime_ns, slot.start_boottime_ns);
        set(&mut vcpu.tid, slot.tid);
        set(&mut vcpu.next_read_ns, 0);
        set(&mut vcpu.msr_events, 0);
        set(&mut vcpu.prefetcher_writes_amd, 0);
        set(&mut vcpu.prefetcher_writes_intel, 0);
        start(vcpu, 0);
        end_write(vcpu);
    }
    Some(vcpu)
}

/// Empties the counters of exits: they come from `source` from now on.
#[inline(always)]
fn start(vcpu: &mut Vcpu, source: u32) {
    let absent = if source == SOURCE_TRACEPOINT {
        NOT_COUNTED
    } else {
        0
    };
    set(&mut vcpu.source, source);
    set(&mut vcpu.vcpu_id, 0);
    set(&mut vcpu.isa, 0);
    set(&mut vcpu.readings, 0);
    set(&mut vcpu.read_ns, 0);
    set(&mut vcpu.exits, 0);
    set(&mut vcpu.halts, 0);
    set(&mut vcpu.io, 0);
    set(&mut vcpu.mmio, 0);
    set(&mut vcpu.interrupts, 0);
    set(&mut vcpu.hypercalls, 0);
    set(&mut vcpu.msrs, 0);
    set(&mut vcpu.page_faults, 0);
    set(&mut vcpu.foreign, 0);
    set(&mut vcpu.halt_poll_success_ns, absent);
    set(&mut vcpu.halt_poll_fail_ns, absent);
    set(&mut vcpu.halt_wait_ns, absent);
    for count in &mut vcpu.reason_counts {
        set(count, 0);
    }
}

/// The address of the thread's `kvm_vcpu`; `None` outside `KVM_RUN`, where it handles an exit: the next entry may find it inside.
#[inline(always)]
fn kvm_vcpu(kvm: &KvmOffsets, task: Task) -> Option<u64> {
    let link = task.preempt_notifier();
    let address = link.wrapping_sub(u64::from(field(&kvm.vcpu_notifier_link)));
    // A kernel address has its top bit set; anything else means that the offset is wrong.
    (link != 0 && (address as i64) < 0).then_some(address)
}

/// The address of the guest's general registers, for [`crate::registers::general`]; `None` if it cannot be told now.
#[inline(always)]
pub fn guest_registers(task: Task) -> Option<u64> {
    let kvm = maps::kvm()?;
    let offset = field(&kvm.general_registers);
    if offset == 0 {
        return None;
    }
    Some(kvm_vcpu(kvm, task)? + u64::from(offset))
}

/// Copies KVM's counters. A function of its own: `sched_switch` has no room on its stack for it.
#[inline(never)]
fn read(vcpu: &mut Vcpu, kvm: &KvmOffsets, task: Task, now_ns: u64) {
    let Some(address) = kvm_vcpu(kvm, task) else {
        return;
    };
    set(&mut vcpu.next_read_ns, now_ns + READ_INTERVAL_NS);
    let id_at = (address as *const u8).wrapping_add(field(&kvm.vcpu_id) as usize);
    // SAFETY: the helper checks the address itself and fails instead of faulting.
    let id = match unsafe { bpf_probe_read_kernel(id_at.cast::<u32>()) } {
        Ok(id) if id < VCPU_IDS_MAX => id,
        _ => return maps::count(Counter::ReadFailed),
    };
    let exits = counter(address, field(&kvm.exits));
    if exits == NOT_COUNTED {
        return maps::count(Counter::ReadFailed);
    }
    begin_write(vcpu);
    set(&mut vcpu.source, SOURCE_KVM);
    set(&mut vcpu.vcpu_id, id);
    let readings = vcpu.readings.wrapping_add(1);
    set(&mut vcpu.readings, readings);
    set(&mut vcpu.read_ns, now_ns);
    set(&mut vcpu.exits, exits);
    set(&mut vcpu.halts, counter(address, field(&kvm.halts)));
    set(&mut vcpu.io, counter(address, field(&kvm.io)));
    set(&mut vcpu.mmio, counter(address, field(&kvm.mmio)));
    set(
        &mut vcpu.interrupts,
        counter(address, field(&kvm.interrupts)),
    );
    set(
        &mut vcpu.hypercalls,
        counter(address, field(&kvm.hypercalls)),
    );
    set(
        &mut vcpu.halt_poll_success_ns,
        counter(address, field(&kvm.halt_poll_success_ns)),
    );
    set(
        &mut vcpu.halt_poll_fail_ns,
        counter(address, field(&kvm.halt_poll_fail_ns)),
    );
    set(
        &mut vcpu.halt_wait_ns,
        counter(address, field(&kvm.halt_wait_ns)),
    );
    end_write(vcpu);
}

/// One of KVM's counters; [`NOT_COUNTED`] if this kernel has it not, or it cannot be read.
#[inline(always)]
fn counter(vcpu: u64, offset: u32) -> u64 {
    if offset == 0 {
        return NOT_COUNTED;
    }
    let at = (vcpu as *const u8).wrapping_add(offset as usize);
    // SAFETY: the helper checks the address itself and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(at.cast::<u64>()) }.unwrap_or(NOT_COUNTED)
}

/// A field of a tracepoint's record. Records are short, and the verifier wants a bound on the offset.
#[inline(always)]
pub fn of_record(ctx: &TracePointContext, offset: u32) -> Result<u32, i32> {
    // SAFETY: the helper checks the address itself and fails instead of faulting.
    unsafe { ctx.read_at::<u32>((offset & (RECORD_BYTES_MAX - 1)) as usize) }
}

/// `kvm:kvm_exit` (arch/x86/kvm/trace.h), fired on the vCPU's thread after each exit.
#[inline(always)]
pub fn count(ctx: &TracePointContext) {
    let (Some((slot, index)), Some(kvm)) = (thread::running(), maps::kvm()) else {
        return;
    };
    let Some(vcpu) = record(slot, index) else {
        return;
    };
    let reason = of_record(ctx, field(&kvm.exit_reason));
    let isa = of_record(ctx, field(&kvm.exit_isa));
    let (Ok(reason), Ok(isa)) = (reason, isa) else {
        return maps::count(Counter::ReadFailed);
    };
    begin_write(vcpu);
    if vcpu.source != SOURCE_TRACEPOINT {
        start(vcpu, SOURCE_TRACEPOINT);
    }
    // SAFETY: the helper has no preconditions.
    set(&mut vcpu.read_ns, unsafe { bpf_ktime_get_ns() });
    let readings = vcpu.readings.wrapping_add(1);
    set(&mut vcpu.readings, readings);
    set(&mut vcpu.isa, isa);
    add_one(&mut vcpu.exits);
    match isa {
        // Bits above the basic reason: SDM vol. 3, "Basic VM-exit information".
        ISA_VMX => by_reason(vcpu, 0, reason & 0xffff),
        ISA_SVM => by_reason(vcpu, EXIT_REASONS_MAX, reason),
        _ => add_one(&mut vcpu.foreign),
    }
    end_write(vcpu);
}

#[inline(always)]
fn by_reason(vcpu: &mut Vcpu, first: u32, reason: u32) {
    let class = if reason < EXIT_REASONS_MAX {
        maps::exit_class(first + reason)
    } else {
        ExitClass::Other as u32
    };
    const HALT: u32 = ExitClass::Halt as u32;
    const IO: u32 = ExitClass::Io as u32;
    const MMIO: u32 = ExitClass::Mmio as u32;
    const INTERRUPT: u32 = ExitClass::Interrupt as u32;
    const MSR: u32 = ExitClass::Msr as u32;
    const PAGE_FAULT: u32 = ExitClass::PageFault as u32;
    const HYPERCALL: u32 = ExitClass::Hypercall as u32;
    match class {
        HALT => add_one(&mut vcpu.halts),
        IO => add_one(&mut vcpu.io),
        MMIO => add_one(&mut vcpu.mmio),
        INTERRUPT => add_one(&mut vcpu.interrupts),
        MSR => add_one(&mut vcpu.msrs),
        PAGE_FAULT => add_one(&mut vcpu.page_faults),
        HYPERCALL => add_one(&mut vcpu.hypercalls),
        _ => {}
    }
    let codes: &mut [u32; REASONS] = &mut vcpu.reason_codes;
    for (code, count) in codes.iter_mut().zip(&mut vcpu.reason_counts) {
        if *count == 0 {
            set(code, reason);
        } else if *code != reason {
            continue;
        }
        let more = count.saturating_add(1);
        set(count, more);
        return;
    }
}

#[inline(always)]
pub fn begin_write(vcpu: &mut Vcpu) {
    let odd = vcpu.sequence | 1;
    set(&mut vcpu.sequence, odd);
}

#[inline(always)]
pub fn end_write(vcpu: &mut Vcpu) {
    let even = (vcpu.sequence | 1).wrapping_add(1);
    set(&mut vcpu.sequence, even);
}

#[inline(always)]
pub fn add_one(counter: &mut u64) {
    let more = counter.wrapping_add(1);
    set(counter, more);
}

/// Written in this order, as the reader of the mapping relies on.
#[inline(always)]
pub fn set<T: Copy>(field: &mut T, value: T) {
    // SAFETY: a reference is valid for writes.
    unsafe { core::ptr::write_volatile(field, value) }
}

/// The agent may write it at any time.
#[inline(always)]
pub fn field(field: &u32) -> u32 {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::read_volatile(field) }
}
