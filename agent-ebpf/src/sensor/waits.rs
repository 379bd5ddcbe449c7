//! `waits`: who ran on a CPU while a watched thread waited for it.
//!
//! Hook: `tp_btf/sched_switch`. Each CPU remembers its last [`STINTS`] stints, whoever's: one began when the one before
//! it ended, so its begin (`sched_info.last_arrival`) is all there is to keep. When a watched
//! thread leaves, the kernel has booked the wait that its stint began with; by the same clock, the run queue's, that wait
//! ended at its own arrival. What other stints overlap with the wait is booked to their processes, and never more
//! than the wait itself. Idling is a stint as well ([`IDLE`]): a thread waits beside an idle CPU while that wakes up, and
//! while its control group has used up its quota. The kernel does not say when it began, so the clock is read there.
//!
//! Not booked to anybody, so that it shows as a rest: waits shorter than [`BRIEF_NS`]; the part of a wait spent on another
//! CPU's run queue before the thread was moved here (the kernel books it at the move, `sched_info_dequeue`,
//! kernel/sched/stats.h, and it is not in this wait); what lies before the last [`STINTS`] stints. Interrupts count for
//! whoever they interrupt.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use davy_abi::{BEHIND, Behind, Cpu, IDLE, STINTS, Slot, Waits};

use crate::task::Task;

/// Shorter waits are not booked to anybody, ns: the switch itself takes about that long.
const BRIEF_NS: u64 = 2_000;

/// Greatest weight, about µs: one second.
const WEIGHT_MAX: u64 = 1 << 20;

/// The thread `prev` leaves for `next`: it has had a stint.
#[inline(always)]
pub fn note(cpu: &mut Cpu, prev: Task, next: Task) {
    // The idle task's stint was noted as it came.
    if prev.tid() != 0 {
        push(cpu, prev.tgid(), prev.last_arrival_ns());
    }
    if next.tid() != 0 {
        return;
    }
    if cpu.ahead_ns == 0 {
        // No watched thread has left this CPU yet, and nobody can tell the run queue's clock.
        cpu.pushed = 0;
        return;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    push(cpu, IDLE, now_ns.wrapping_add(cpu.ahead_ns));
}

#[inline(always)]
fn push(cpu: &mut Cpu, tgid: u32, arrived_ns: u64) {
    let stint = &mut cpu.stints[place(cpu.pushed)];
    stint.arrived_ns = arrived_ns;
    stint.tgid = tgid;
    cpu.pushed += 1;
}

/// The watched thread `task` leaves; `slot` is as it was while it ran, and its stint is not noted yet.
#[inline(always)]
pub fn leave(waits: &mut Waits, slot: &Slot, task: Task, cpu: &Cpu) {
    waits.waited_ns = task.run_delay_ns();
    let arrived_ns = task.last_arrival_ns();
    let before_ns = core::mem::replace(&mut waits.arrived_ns, arrived_ns);
    // Else nobody saw it come, and what it waited before that is not known.
    if slot.running_since_ns == 0 {
        return;
    }
    let wait_ns = waits.waited_ns.wrapping_sub(cpu.entered_run_delay_ns);
    if wait_ns < BRIEF_NS || wait_ns > arrived_ns {
        return;
    }
    explain(waits, cpu, arrived_ns - wait_ns, arrived_ns, before_ns);
}

/// Books the wait from `queued_ns` to `arrived_ns` to those who ran meanwhile, the last first. The thread's own stint before, which began at
/// `own_ns`, is not one of them: it may be queued anew a moment before it leaves.
#[inline(always)]
fn explain(waits: &mut Waits, cpu: &Cpu, queued_ns: u64, arrived_ns: u64, own_ns: u64) {
    let mut until_ns = arrived_ns;
    for back in 1..=STINTS as u64 {
        if back > cpu.pushed || until_ns <= queued_ns {
            break;
        }
        let stint = &cpu.stints[place(cpu.pushed - back)];
        let since_ns = stint.arrived_ns.max(queued_ns);
        if since_ns < until_ns {
            if stint.arrived_ns != own_ns {
                book(waits, stint.tgid, until_ns - since_ns);
            }
            until_ns = since_ns;
        }
    }
}

/// Books `ns` to a process. Who is not in the table wears every weight down by its own, and takes the place of the one
/// that weighs least if that is no more than it (as in Misra and Gries, "Finding repeated elements", 1982): brief
/// strangers drive nobody out, and what was long ago, and weighs no more than [`WEIGHT_MAX`], gives way.
///
/// A function of its own, for its own 512 bytes of stack.
#[inline(never)]
fn book(waits: &mut Waits, tgid: u32, ns: u64) {
    waits.named_ns += ns;
    let weight = (ns >> 10).min(WEIGHT_MAX) as u32;
    for behind in &mut waits.behind {
        if behind.tgid == tgid {
            behind.ns += ns;
            behind.weight = (behind.weight + weight).min(WEIGHT_MAX as u32);
            return;
        }
    }
    let mut least = u32::MAX;
    let mut at = 0;
    for index in 0..BEHIND {
        let behind = &mut waits.behind[index];
        if behind.weight < least {
            least = behind.weight;
            at = index;
        }
        behind.weight = behind.weight.saturating_sub(weight);
    }
    if least <= weight {
        waits.behind[at % BEHIND] = Behind { tgid, weight, ns };
    }
}

/// Where the stint of that number is kept.
#[inline(always)]
fn place(number: u64) -> usize {
    number as usize % STINTS
}
