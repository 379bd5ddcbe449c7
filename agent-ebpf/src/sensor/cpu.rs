//! `cpu`: the scheduler's own books of a thread, copied when it leaves its CPU.
//!
//! Hook: `tp_btf/sched_switch`. At that point `update_curr` has run for the thread that leaves and
//! `__schedule` has counted its switch, so the figures are those that `/proc/<pid>/task/<tid>/schedstat`
//! and `status` show once the thread is off its CPU.
//!
//! The wait of the thread that enters ends now, but `sched_info_arrive` books it right after the tracepoint, from the
//! run queue's clock and `last_queued`. That clock cannot be read here; how far it is ahead of CLOCK_MONOTONIC is seen
//! on each CPU whenever a watched thread leaves: its `last_arrival` is the one clock at the moment the slot has the other
//! of. The wait reckoned so stands until the thread leaves and the book itself is copied.

use davy_abi::{Cpu, FLAG_INVOLUNTARY, Slot};

use crate::task::Task;

/// Watching begins: what the thread has used until now is its base.
#[inline(always)]
pub fn begin(slot: &mut Slot, task: Task) {
    book(slot, task);
    slot.base_on_cpu_ns = slot.on_cpu_ns;
    slot.base_guest_ns = slot.guest_ns;
    slot.base_run_queue_wait_ns = slot.run_queue_wait_ns;
    slot.base_voluntary_switches = slot.voluntary_switches;
    slot.base_involuntary_switches = slot.involuntary_switches;
}

/// The thread enters a CPU.
#[inline(always)]
pub fn enter(slot: &mut Slot, task: Task, now_ns: u64, cpu_number: u32, cpu: &mut Cpu) {
    if slot.switch_ins == 0 {
        // It may have run since watching began, without anybody seeing it come.
        book(slot, task);
    }
    cpu.entered_run_delay_ns = task.run_delay_ns();
    slot.run_queue_wait_ns = cpu.entered_run_delay_ns + wait_ns(task, now_ns, cpu.ahead_ns);
    slot.switch_ins = slot.switch_ins.wrapping_add(1);
    slot.cpu = cpu_number;
    slot.running_since_ns = now_ns;
}

/// The thread leaves its CPU.
#[inline(always)]
pub fn leave(slot: &mut Slot, task: Task, cpu: &mut Cpu) {
    let before = slot.involuntary_switches;
    book(slot, task);
    slot.flags &= !FLAG_INVOLUNTARY;
    if slot.involuntary_switches != before {
        slot.flags |= FLAG_INVOLUNTARY;
    }
    if slot.running_since_ns != 0 {
        cpu.ahead_ns = task.last_arrival_ns().wrapping_sub(slot.running_since_ns);
    }
    slot.running_since_ns = 0;
}

/// The wait that ends now and is not booked yet; 0 where it is booked, or the run queue's clock is not known.
#[inline(always)]
fn wait_ns(task: Task, now_ns: u64, ahead_ns: u64) -> u64 {
    /// More than this is no wait but a clock that jumped, ns (1 h).
    const WAIT_NS_MAX: u64 = 3_600_000_000_000;
    let queued_ns = task.last_queued_ns();
    if queued_ns == 0 || ahead_ns == 0 {
        return 0;
    }
    let wait_ns = now_ns.wrapping_add(ahead_ns).wrapping_sub(queued_ns);
    if wait_ns > WAIT_NS_MAX {
        return 0;
    }
    wait_ns
}

#[inline(always)]
fn book(slot: &mut Slot, task: Task) {
    slot.on_cpu_ns = task.sum_exec_runtime_ns();
    slot.guest_ns = task.gtime_ns();
    slot.run_queue_wait_ns = task.run_delay_ns();
    slot.voluntary_switches = task.voluntary_switches();
    slot.involuntary_switches = task.involuntary_switches();
}
