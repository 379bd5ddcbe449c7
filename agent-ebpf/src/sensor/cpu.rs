//! `cpu`: the scheduler's own books of a thread, copied when it leaves its CPU.
//!
//! Hook: `tp_btf/sched_switch`. At that point `update_curr` has run for the thread that leaves and
//! `__schedule` has counted its switch, so the figures are those that `/proc/<pid>/task/<tid>/schedstat`
//! and `status` show once the thread is off its CPU. The wait before a stint is booked when the stint ends.

use davy_abi::Slot;

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
pub fn enter(slot: &mut Slot, task: Task, now_ns: u64, cpu: u32) {
    if slot.switch_ins == 0 {
        // It may have run since watching began, without anybody seeing it come.
        book(slot, task);
    }
    slot.switch_ins = slot.switch_ins.wrapping_add(1);
    slot.cpu = cpu;
    slot.running_since_ns = now_ns;
}

/// The thread leaves its CPU.
#[inline(always)]
pub fn leave(slot: &mut Slot, task: Task) {
    book(slot, task);
    slot.running_since_ns = 0;
}

#[inline(always)]
fn book(slot: &mut Slot, task: Task) {
    slot.on_cpu_ns = task.sum_exec_runtime_ns();
    slot.guest_ns = task.gtime_ns();
    slot.run_queue_wait_ns = task.run_delay_ns();
    slot.voluntary_switches = task.voluntary_switches();
    slot.involuntary_switches = task.involuntary_switches();
}
