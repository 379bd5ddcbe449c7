//! `cpu`: the scheduler's own books of a thread, as figures that only grow.
//!
//! Kernel half: `agent-ebpf/src/sensor/cpu.rs`. A slot holds the books as of the last switch-out; a thread
//! that is running now has an open interval on top, which the reader adds. Not evidence: it says when to look.

use davy_abi::{FLAG_ENDED, Slot};

use crate::kernel::Reading;

/// Figures of one thread, or differences and sums of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFigures {
    /// On a CPU, ns.
    pub on_cpu_ns: u64,
    /// Inside a guest, ns; 0 for threads that are no vCPU.
    pub guest_ns: u64,
    /// Runnable but waiting for a CPU, ns.
    pub run_queue_wait_ns: u64,
    /// Switches the thread asked for.
    pub voluntary_switches: u64,
    /// Switches it did not.
    pub involuntary_switches: u64,
}

impl CpuFigures {
    /// The absolute figures of a thread at `now_ns`, the open interval included.
    #[must_use]
    pub fn absolute(reading: &Reading, now_ns: u64) -> Self {
        let slot = &reading.slot;
        Self {
            on_cpu_ns: if slot.flags & FLAG_ENDED != 0 {
                slot.on_cpu_ns
            } else {
                reading.on_cpu_ns_at(now_ns)
            },
            guest_ns: slot.guest_ns,
            run_queue_wait_ns: slot.run_queue_wait_ns,
            voluntary_switches: slot.voluntary_switches,
            involuntary_switches: slot.involuntary_switches,
        }
    }

    /// What the thread had used before it was watched: the first mark to measure from.
    #[must_use]
    pub fn base(slot: &Slot) -> Self {
        Self {
            on_cpu_ns: slot.base_on_cpu_ns,
            guest_ns: slot.base_guest_ns,
            run_queue_wait_ns: slot.base_run_queue_wait_ns,
            voluntary_switches: slot.base_voluntary_switches,
            involuntary_switches: slot.base_involuntary_switches,
        }
    }

    /// What came on top of `before`, and the new mark to measure from.
    ///
    /// The mark never falls: an open interval measured by the clock may run ahead of the scheduler's book by
    /// what interrupts took, and what was counted once is not counted again when the book catches up.
    #[must_use]
    pub fn advance(self, before: Self) -> (Self, Self) {
        let mark = Self {
            on_cpu_ns: self.on_cpu_ns.max(before.on_cpu_ns),
            guest_ns: self.guest_ns.max(before.guest_ns),
            run_queue_wait_ns: self.run_queue_wait_ns.max(before.run_queue_wait_ns),
            voluntary_switches: self.voluntary_switches.max(before.voluntary_switches),
            involuntary_switches: self.involuntary_switches.max(before.involuntary_switches),
        };
        let delta = Self {
            on_cpu_ns: mark.on_cpu_ns - before.on_cpu_ns,
            guest_ns: mark.guest_ns - before.guest_ns,
            run_queue_wait_ns: mark.run_queue_wait_ns - before.run_queue_wait_ns,
            voluntary_switches: mark.voluntary_switches - before.voluntary_switches,
            involuntary_switches: mark.involuntary_switches - before.involuntary_switches,
        };
        (delta, mark)
    }

    /// Adds `other`, saturating.
    pub fn add(&mut self, other: Self) {
        self.on_cpu_ns = self.on_cpu_ns.saturating_add(other.on_cpu_ns);
        self.guest_ns = self.guest_ns.saturating_add(other.guest_ns);
        self.run_queue_wait_ns = self
            .run_queue_wait_ns
            .saturating_add(other.run_queue_wait_ns);
        self.voluntary_switches = self
            .voluntary_switches
            .saturating_add(other.voluntary_switches);
        self.involuntary_switches = self
            .involuntary_switches
            .saturating_add(other.involuntary_switches);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(on_cpu_ns: u64, run_queue_wait_ns: u64) -> CpuFigures {
        CpuFigures {
            on_cpu_ns,
            run_queue_wait_ns,
            ..CpuFigures::default()
        }
    }

    #[test]
    fn an_interval_that_ran_ahead_of_the_book_is_not_counted_twice() {
        let (first, mark) = figures(150, 5).advance(figures(100, 5));
        assert_eq!(first.on_cpu_ns, 50);
        // The book says 140 at the switch-out: the open interval had counted 10 too many.
        let (second, mark) = figures(140, 6).advance(mark);
        assert_eq!((second.on_cpu_ns, second.run_queue_wait_ns), (0, 1));
        let (third, _) = figures(170, 6).advance(mark);
        assert_eq!(first.on_cpu_ns + third.on_cpu_ns, 70);
    }

    #[test]
    fn sums_saturate() {
        let mut sum = figures(u64::MAX, 1);
        sum.add(figures(5, 1));
        assert_eq!((sum.on_cpu_ns, sum.run_queue_wait_ns), (u64::MAX, 2));
    }
}
