//! A watched thread's way through the kernel half: born or found, entering, leaving, dead.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns};
use davy_abi::{
    Cpu, FLAG_ENDED, FLAG_LIVE, FLAG_RENAMED, FLAG_VCPU, NEVER_NS, Slot, SlotIndex, TENANT_GONE,
    TenantIndex,
};

use crate::{maps, offsets::setting, sensor, task::Task};

/// The thread `prev` leaves its CPU.
#[inline(always)]
pub fn leave(prev: Task, cpu: &mut Cpu) {
    let index = match cpu.current {
        // Nobody saw it come: it was already running when it became watched. It is met at its next entry,
        // unless there will be none.
        0 if prev.is_dead() => maps::slot_of(prev.tid()),
        other => other,
    };
    if index == 0 {
        return;
    }
    let Some(slot) = maps::slot(index) else {
        return;
    };
    // SAFETY: points into the slot table; this CPU is the slot's only writer while the thread is on it.
    let slot = unsafe { &mut *slot };
    // Its id may have changed while it ran (`de_thread`, fs/exec.c); its process has not.
    if slot.tgid != prev.tgid() || slot.flags & FLAG_LIVE == 0 {
        return;
    }
    if let Some(waits) = maps::waits(index) {
        // SAFETY: as with the slot.
        sensor::waits::leave(unsafe { &mut *waits }, slot, prev, cpu);
    }
    sensor::cpu::leave(slot, prev, cpu);
    if prev.is_dead() || slot.tenant == TENANT_GONE {
        maps::forget(slot.tid);
        slot.flags = (slot.flags & !FLAG_LIVE) | FLAG_ENDED;
    }
}

/// The thread `next` enters this CPU. Gives its slot, 0 if it is not watched.
#[inline(always)]
pub fn enter(next: Task, cpu: &mut Cpu) -> SlotIndex {
    let tid = next.tid();
    if tid == 0 {
        return 0;
    }
    let mut index = maps::slot_of(tid);
    if index == 0 {
        index = find_vcpu(next, tid);
    }
    if index == 0 {
        return 0;
    }
    let Some(slot) = maps::slot(index) else {
        return 0;
    };
    // SAFETY: as in `leave`.
    let slot = unsafe { &mut *slot };
    if slot.tid != tid {
        return 0;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as above.
    let cpu_number = unsafe { bpf_get_smp_processor_id() };
    sensor::cpu::enter(slot, next, now_ns, cpu_number, cpu);
    sensor::kvm_exits::enter(slot, index, next, now_ns);
    if setting!(sample_interval_ns) != NEVER_NS && now_ns >= slot.next_sample_ns {
        let pace_ns = maps::pace_ns();
        if pace_ns == NEVER_NS {
            return index;
        }
        slot.next_sample_ns = now_ns + pace_ns.max(setting!(sample_interval_ns));
        sensor::look(slot, next);
    }
    index
}

/// The thread that runs on this CPU and its slot, if it is watched and was seen coming.
#[inline(always)]
pub fn running() -> Option<(&'static Slot, SlotIndex)> {
    // SAFETY: points into this CPU's own element.
    let index = unsafe { (*maps::cpu()?).current };
    if index == 0 {
        return None;
    }
    let slot = maps::slot(index)?;
    // SAFETY: points into the slot table; this CPU is the slot's only writer while the thread is on it.
    let slot = unsafe { &*slot };
    // The lower half is the thread's id (bpf-helpers(7)).
    let tid = bpf_get_current_pid_tgid() as u32;
    (slot.tid == tid && slot.flags & FLAG_LIVE != 0).then_some((slot, index))
}

/// A child of a watched thread is watched from birth, in its parent's tenant.
#[inline(always)]
pub fn born(parent: Task, child: Task) {
    let index = maps::slot_of(parent.tid());
    if index == 0 {
        return;
    }
    let Some(slot) = maps::slot(index) else {
        return;
    };
    // SAFETY: points into the slot table; a plain load.
    let tenant = unsafe { (*slot).tenant };
    // A VMM whose vCPU was found a moment ago has no tenant yet; the agent meets its other threads by itself.
    if tenant == 0 || tenant == TENANT_GONE {
        return;
    }
    watch(child, child.tid(), tenant, 0);
}

/// The thread that runs now has execed and may have taken over the id of its group's leader.
#[inline(always)]
pub fn renamed(task: Task, old_tid: u32) {
    let tid = task.tid();
    if tid == old_tid {
        return;
    }
    let index = maps::slot_of(old_tid);
    maps::forget(old_tid);
    // The old leader has ended; if its last switch came after the ids were exchanged it was not known by then.
    if let Some(leader) = maps::slot(maps::slot_of(tid)) {
        // SAFETY: points into the slot table; the leader does not run any more.
        unsafe {
            if (*leader).tid == tid && (*leader).flags & FLAG_LIVE != 0 {
                (*leader).flags = ((*leader).flags & !FLAG_LIVE) | FLAG_ENDED;
            }
        }
    }
    if index == 0 {
        maps::forget(tid);
        return;
    }
    let (Some(slot), Some(cpu)) = (maps::slot(index), maps::cpu()) else {
        return;
    };
    maps::rename(tid, index);
    // SAFETY: points into the slot table; the thread runs on this CPU, its slot's only writer. It may have come
    // here under its new id, unknown until now.
    unsafe {
        (*slot).tid = tid;
        (*slot).flags |= FLAG_RENAMED;
        // By the run queue's clock it came at its arrival; that clock is told from the slot's at its next leaving.
        (*slot).running_since_ns = match (*cpu).ahead_ns {
            0 => bpf_ktime_get_ns(),
            ahead_ns => task.last_arrival_ns().wrapping_sub(ahead_ns),
        };
        (*cpu).current = index;
        (*cpu).entered_run_delay_ns = task.run_delay_ns();
    }
}

/// A vCPU thread nobody announced: the kernel keeps a guest's registers for it.
#[inline(always)]
fn find_vcpu(task: Task, tid: u32) -> SlotIndex {
    if setting!(find_vcpus) == 0 || !task.has_preempt_notifier() || task.is_kernel_thread() {
        return 0;
    }
    match task.fpstate().and_then(crate::task::Fpstate::flags) {
        Some((true, _)) => watch(task, tid, 0, FLAG_VCPU),
        _ => 0,
    }
}

#[inline(always)]
fn watch(task: Task, tid: u32, tenant: TenantIndex, flags: u32) -> SlotIndex {
    maps::give_slot(tid, |slot| {
        // SAFETY: points into the slot table; nobody else knows a slot just taken from the free ones.
        let slot: &mut Slot = unsafe { &mut *slot };
        slot.tid = tid;
        slot.tgid = task.tgid();
        slot.tenant = tenant;
        slot.start_boottime_ns = task.start_boottime_ns();
        slot.running_since_ns = 0;
        slot.cpu = 0;
        slot.switch_ins = 0;
        sensor::cpu::begin(slot, task);
        sensor::forget(slot);
        slot.flags = FLAG_LIVE | flags;
    })
}
