//! Which events are counted at one time, so that counters are left for others.
//!
//! A hardware thread has a few general counters (4 to 8), shared by everyone on it: the kernel's NMI watchdog (one), the virtual PMUs of
//! guests, anybody's `perf`, and this sensor. A guest loses nothing to it in any case, since its counters are pinned and these are not
//! ([`kernel::perf`](crate::kernel::perf)). `reserve` counters are left free all the same (default 1): so that a guest, or an operator, that
//! counts one thing disturbs nothing and is not disturbed. Greater values leave more; with AMD's six counters, a watchdog and a reserve of
//! 2 or more, Zen 1 to 3 have too few left for their floating-point events, which take two each.
//!
//! Events that do not fit at one time take turns, in *slices*, always beside cycles and instructions: [`plan`]. What is
//! left in fact is measured: where a group was on the counters less than [`RUNNING_SHARE_MIN`] of the time its thread ran,
//! somebody else needs counters, and the thread gives one up ([`plans`], [`Shedding`]): optional events first, the pair never.

use super::family::{Event, PAIR, What};

/// A group that was on the counters for less of its thread's time than this is short of counters.
pub const RUNNING_SHARE_MIN: f64 = 0.95;

/// So many slices without want, and one counter is tried again.
const SLICES_TO_RECOVER: u32 = 60;

/// The counters of a CPU, and who has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// General counters of one hardware thread.
    pub general: u32,
    /// Whether the kernel's NMI watchdog holds one (/proc/sys/kernel/nmi_watchdog).
    pub watchdog: bool,
    /// Counters to leave free.
    pub reserve: u32,
    /// Whether cycles and instructions have counters of their own. The watchdog, which counts cycles, then takes that one, and
    /// these need a general one: the sum is the same.
    pub has_fixed_counters: bool,
}

impl Budget {
    /// Counters for events beyond cycles and instructions; `None` if not even these fit.
    #[must_use]
    pub fn optional(&self) -> Option<u32> {
        let pair = if self.has_fixed_counters {
            0
        } else {
            PAIR.iter().map(|event| event.counters).sum()
        };
        self.general
            .checked_sub(u32::from(self.watchdog))?
            .checked_sub(self.reserve)?
            .checked_sub(pair)
    }
}

/// Slices, each a set of events beyond the pair that are counted together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// At least one; it may be empty (the pair alone).
    pub slices: Vec<Vec<Event>>,
    /// Events that need more counters than there are.
    pub left_out: Vec<Event>,
}

/// Puts `events` into as few slices of `optional` counters as their order gives.
#[must_use]
pub fn plan(events: &[Event], optional: u32) -> Plan {
    let mut plan = Plan::default();
    let mut free = 0;
    for event in events {
        if event.counters > optional {
            plan.left_out.push(*event);
            continue;
        }
        match plan.slices.last_mut() {
            Some(slice) if event.counters <= free => slice.push(*event),
            _ => {
                plan.slices.push(vec![*event]);
                free = optional;
            }
        }
        free -= event.counters;
    }
    if plan.slices.is_empty() {
        plan.slices.push(Vec::new());
    }
    plan
}

impl Plan {
    /// Whether `what` is counted in some slice.
    #[must_use]
    pub fn has(&self, what: What) -> bool {
        self.slices.iter().flatten().any(|event| event.what == what)
    }

    /// Descriptors that the largest slice takes, the pair's included.
    #[must_use]
    pub fn fds(&self) -> usize {
        let most = self.slices.iter().map(Vec::len).max().unwrap_or(0);
        most + PAIR.len()
    }
}

/// What a thread may count: all of `optional` counters first, then ever less, in the end the pair alone.
#[must_use]
pub fn plans(events: &[Event], optional: u32) -> Vec<Plan> {
    let mut plans: Vec<_> = (0..=optional)
        .rev()
        .map(|free| plan(events, free))
        .collect();
    // More counters than events: giving one up would change nothing.
    plans.dedup_by(|next, before| next.slices == before.slices);
    plans
}

/// How far a thread has gone down its list of plans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shedding {
    given_up: u32,
    slices_without_want: u32,
}

impl Shedding {
    /// Which plan it has.
    #[must_use]
    pub fn given_up(self) -> u32 {
        self.given_up
    }

    /// Goes one plan further, at most to the `last`; `false` if that is the one it has.
    pub fn give_up(&mut self, last: u32) -> bool {
        self.slices_without_want = 0;
        if self.given_up >= last {
            return false;
        }
        self.given_up += 1;
        true
    }

    /// Takes a slice in which the group was wanted for `enabled_ns` and counted for `running_ns`; `last` is the last plan. Whether
    /// the plan changed.
    pub fn slice(&mut self, enabled_ns: u64, running_ns: u64, last: u32) -> bool {
        // A thread that hardly ran says nothing about counters.
        const ENABLED_NS_MIN: u64 = 10_000_000;
        if enabled_ns < ENABLED_NS_MIN {
            return false;
        }
        if (running_ns as f64) < RUNNING_SHARE_MIN * enabled_ns as f64 {
            return self.give_up(last);
        }
        self.slices_without_want += 1;
        if self.slices_without_want < SLICES_TO_RECOVER || self.given_up == 0 {
            return false;
        }
        self.slices_without_want = 0;
        self.given_up -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::family::{Cpu, Vendor, family_of},
        *,
    };

    const SECOND_NS: u64 = 1_000_000_000;

    fn zen(family: u32, model: u32) -> &'static [Event] {
        let cpu = Cpu {
            vendor: Vendor::Amd,
            family,
            model,
            general_counters: 6,
            has_fixed_counters: false,
            is_hybrid: false,
        };
        family_of(&cpu).events
    }

    fn amd(reserve: u32) -> Budget {
        Budget {
            general: 6,
            watchdog: true,
            reserve,
            has_fixed_counters: false,
        }
    }

    #[test]
    fn what_is_left_is_what_others_do_not_have() {
        assert_eq!(amd(1).optional(), Some(2));
        assert_eq!(amd(3).optional(), Some(0));
        assert_eq!(amd(4).optional(), None);
        assert_eq!(amd(100).optional(), None);
        let intel = Budget {
            general: 4,
            watchdog: false,
            reserve: 1,
            has_fixed_counters: true,
        };
        assert_eq!(intel.optional(), Some(3));
    }

    #[test]
    fn no_slice_takes_more_than_there_is_and_nothing_is_lost() {
        for events in [zen(0x17, 1), zen(0x19, 1), zen(0x19, 0x11), zen(0x1a, 2)] {
            for optional in 0..8 {
                let plan = plan(events, optional);
                for slice in &plan.slices {
                    assert!(slice.iter().map(|event| event.counters).sum::<u32>() <= optional);
                }
                let counted: usize = plan.slices.iter().map(Vec::len).sum();
                assert_eq!(counted + plan.left_out.len(), events.len());
                assert!(!plan.slices.is_empty());
            }
        }
    }

    #[test]
    fn by_default_the_mix_is_counted_on_every_zen() {
        let zen_3 = plan(zen(0x19, 1), amd(1).optional().unwrap());
        assert_eq!(zen_3.slices.len(), 5);
        assert!(zen_3.has(What::FpDivSqrt) && zen_3.has(What::FpMul) && zen_3.has(What::FpAddSub));
        let zen_4 = plan(zen(0x19, 0x11), amd(1).optional().unwrap());
        assert_eq!(zen_4.slices.len(), 5);
        assert_eq!(zen_4.fds(), 4);
    }

    #[test]
    fn a_reserve_of_two_leaves_zen_3_without_its_mix() {
        let plan = plan(zen(0x19, 1), amd(2).optional().unwrap());
        assert!(!plan.has(What::FpDivSqrt) && plan.has(What::ControlWordTraps));
        assert_eq!(plan.left_out.len(), 3);
    }

    #[test]
    fn plans_end_with_the_pair_alone_and_differ() {
        let plans = plans(zen(0x19, 0x11), 12);
        assert_eq!(plans[0].slices.len(), 1);
        assert_eq!(plans.len(), 11);
        assert_eq!(plans.last().unwrap().slices, [vec![]]);
    }

    #[test]
    fn want_gives_up_a_counter_at_a_time_and_never_the_pair() {
        let mut shedding = Shedding::default();
        assert!(!shedding.slice(SECOND_NS, SECOND_NS, 2));
        assert!(shedding.slice(SECOND_NS, SECOND_NS / 2, 2));
        assert!(shedding.slice(SECOND_NS, 0, 2));
        assert!(!shedding.slice(SECOND_NS, 0, 2));
        assert_eq!(shedding.given_up(), 2);
    }

    #[test]
    fn a_minute_without_want_tries_a_counter_again() {
        let mut shedding = Shedding::default();
        shedding.slice(SECOND_NS, 0, 2);
        for _ in 1..SLICES_TO_RECOVER {
            assert!(!shedding.slice(SECOND_NS, SECOND_NS, 2));
        }
        assert!(shedding.slice(SECOND_NS, SECOND_NS, 2));
        assert_eq!(shedding.given_up(), 0);
    }

    #[test]
    fn a_thread_that_hardly_ran_says_nothing() {
        let mut shedding = Shedding::default();
        assert!(!shedding.slice(1_000_000, 0, 2));
    }
}
