//! The maps of the kernel half, and the only ways to reach them.
//!
//! | map | what |
//! |---|---|
//! | `SLOTS` | one [`Slot`] per watched thread; mapped by the agent, which reads it without a system call |
//! | `WAITS` | one [`Waits`] per slot: who ran while its thread waited; mapped likewise |
//! | `THREADS` | thread id → slot |
//! | `FREE` | slots that no thread has; the agent fills it and hands ended slots back |
//! | `CPU` | one [`Cpu`] per CPU: who runs there, and who ran before |
//! | `PACE` | least time between two looks at one thread's registers, ns, beyond the configured one; `NEVER_NS`: no looks |
//! | `COUNTERS` | per CPU: what went wrong, by [`Counter`] |
//! | `VCPUS` | one [`Vcpu`] per slot; only those of vCPU threads are used; mapped by the agent |
//! | `KVM` | one [`KvmOffsets`], written by the agent before it attaches what needs it |
//! | `EXIT_CLASSES` | exit reason → `ExitClass`, written by the agent |
//!
//! `max_entries` of the first four and of `VCPUS` are set by the agent at load. None has room for register contents.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, Queue},
};
use davy_abi::{
    COUNTERS as COUNTERS_LEN, Counter, Cpu, EXIT_REASONS_MAX, KvmOffsets, Slot, SlotIndex, Vcpu,
    Waits,
};

#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static WAITS: Array<Waits> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static THREADS: HashMap<u32, SlotIndex> = HashMap::with_max_entries(1, 0);

#[map]
static FREE: Queue<SlotIndex> = Queue::with_max_entries(1, 0);

#[map]
static CPU: PerCpuArray<Cpu> = PerCpuArray::with_max_entries(1, 0);

#[map]
static PACE: Array<u64> = Array::with_max_entries(1, 0);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS_LEN, 0);

#[map]
static VCPUS: Array<Vcpu> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static KVM: Array<KvmOffsets> = Array::with_max_entries(1, 0);

#[map]
static EXIT_CLASSES: Array<u32> = Array::with_max_entries(2 * EXIT_REASONS_MAX, 0);

/// The record of the vCPU thread in that slot; `None` past the table's end.
#[inline(always)]
pub fn vcpu(index: SlotIndex) -> Option<*mut Vcpu> {
    VCPUS.get_ptr_mut(index)
}

/// Offsets into KVM's structures.
#[inline(always)]
pub fn kvm() -> Option<&'static KvmOffsets> {
    KVM.get(0)
}

/// The class of an exit reason, as a number; 0 (other) past the table's end.
#[inline(always)]
pub fn exit_class(index: u32) -> u32 {
    EXIT_CLASSES.get(index).copied().unwrap_or(0)
}

/// This CPU's element of `CPU`.
#[inline(always)]
pub fn cpu() -> Option<*mut Cpu> {
    CPU.get_ptr_mut(0)
}

/// The waits of the thread in that slot; `None` past the table's end.
#[inline(always)]
pub fn waits(index: SlotIndex) -> Option<*mut Waits> {
    WAITS.get_ptr_mut(index)
}

/// The agent's say on the time between two looks.
#[inline(always)]
pub fn pace_ns() -> u64 {
    // SAFETY: a plain load; the agent stores whole values.
    PACE.get_ptr(0)
        .map_or(0, |pace| unsafe { core::ptr::read_volatile(pace) })
}

/// The slot of that index; `None` past the table's end.
#[inline(always)]
pub fn slot(index: SlotIndex) -> Option<*mut Slot> {
    SLOTS.get_ptr_mut(index)
}

/// The slot a thread has, 0 if it is not watched.
#[inline(always)]
pub fn slot_of(tid: u32) -> SlotIndex {
    // SAFETY: the value is a plain u32; a concurrent removal can at worst hand out a stale index, which
    // every user checks against the slot's `tid`.
    unsafe { THREADS.get(&tid) }.copied().unwrap_or(0)
}

/// Takes a free slot and enters the thread; 0 (and counted) if there is none or the table is full.
/// The slot must be filled by `fill` before it can be found.
#[inline(always)]
pub fn give_slot(tid: u32, fill: impl FnOnce(*mut Slot)) -> SlotIndex {
    let Ok(Some(index)) = FREE.pop() else {
        count(Counter::NoFreeSlot);
        return 0;
    };
    let Some(slot) = slot(index) else {
        return 0;
    };
    let Some(waits) = waits(index) else {
        return 0;
    };
    // SAFETY: points into the table; nobody else knows a slot just taken from the free ones.
    unsafe { *waits = Waits::default() };
    fill(slot);
    if THREADS
        .insert(&tid, &index, u64::from(BPF_NOEXIST))
        .is_err()
    {
        // Either the agent was faster, and the thread has a slot, or the table is full.
        // SAFETY: nobody else knows this slot.
        unsafe { (*slot).flags = 0 };
        let _ = FREE.push(&index, 0);
        let other = slot_of(tid);
        if other == 0 {
            count(Counter::TableFull);
        }
        return other;
    }
    index
}

/// Enters a thread that has a slot under another id, in place of whoever had that id.
#[inline(always)]
pub fn rename(tid: u32, index: SlotIndex) {
    if THREADS.insert(&tid, &index, 0).is_err() {
        count(Counter::TableFull);
    }
}

/// Forgets a thread. Its slot is handed back by the agent, once the last figures were read.
#[inline(always)]
pub fn forget(tid: u32) {
    let _ = THREADS.remove(&tid);
}

/// Adds one to a counter.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: points into this CPU's own element.
        unsafe { *value += 1 };
    }
}
