//! Performance counters in a trial: what its document says of them, the sum over its windows, and their part of the trace.

use davy_abi::TenantIndex;
use davy_evidence::{FpOps, HashRate, Pmu as Evidence, SensorState};
use serde::{Deserialize, Serialize};

use super::{
    course::state,
    document::{Document, PARTS_MAX},
};
use crate::{
    evidence::{InAllModes, Mixing},
    sensor::pmu::mixes::{Mixes, Turn},
    window::ThreadKey,
};

/// What `pmu` counted. Counts are of user space, over all threads; `null` is "not counted", never a zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pmu {
    /// Live if it counted at any time.
    pub state: SensorState,
    /// Why it is unsupported, or what was not counted.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    /// Live if a mix of floating-point operations was tested at any time.
    pub mix_state: SensorState,
    /// CPU cycles.
    pub cycles: Option<u64>,
    /// Instructions retired.
    pub instructions: Option<u64>,
    /// Cache misses.
    pub cache_misses: Option<u64>,
    /// Mispredicted branches.
    pub branch_misses: Option<u64>,
    /// Floating-point operations by kind; FLOPs where `div_sqrt` is there.
    pub fp: FpOps,
    /// Traps because a control word was mispredicted.
    pub control_word_traps: Option<u64>,
    /// Cycles in which a divider was busy.
    pub divider_cycles: Option<u64>,
    /// AES operations.
    pub aes: Option<u64>,
    /// SHA operations.
    pub sha: Option<u64>,
    /// Time for which counting was asked for while the threads ran, ns.
    pub time_enabled_ns: u64,
    /// Time for which cycles and instructions were counted, ns.
    pub time_running_ns: u64,
    /// Complete mixes.
    pub turns: u64,
    /// Those that matched `RandomX`'s.
    pub matches: u64,
    /// The mix's test, of the thread nearest to a conclusion, nats.
    pub mix_llr: f64,
    /// Mixes that thread has given to its test.
    pub mix_turns: u64,
    /// Whether it stands concluded at the end.
    pub mix_concluded: bool,
    /// What the divisions amounted to while it stood concluded, at last; null if it never did.
    pub hash_rate: Option<HashRate>,
    /// The mixes in the order in which the tests were told.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub trace: Vec<TracedTurn>,
}

/// One mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedTurn {
    /// In which of the trial's windows, from 0.
    pub window: usize,
    /// Which thread, numbered as in the feature trace.
    pub thread: u32,
    /// Whether it matched.
    pub matched: bool,
}

/// The document's part.
#[must_use]
pub fn document(evidence: &Evidence, reason: String, trace: Vec<TracedTurn>) -> Pmu {
    let Evidence {
        state,
        mix_state,
        cycles,
        instructions,
        cache_misses,
        branch_misses,
        fp,
        control_word_traps,
        divider_cycles,
        aes,
        sha,
        time_enabled_ns,
        time_running_ns,
        turns,
        matches,
        mix_llr,
        mix_turns,
        mix_concluded,
        hash_rate,
    } = *evidence;
    let counted = |count| match state {
        SensorState::Live | SensorState::Stalled => Some(count),
        SensorState::NeverRan | SensorState::Unsupported => None,
    };
    Pmu {
        state,
        reason,
        mix_state,
        cycles: counted(cycles),
        instructions: counted(instructions),
        cache_misses,
        branch_misses,
        fp,
        control_word_traps,
        divider_cycles,
        aes,
        sha,
        time_enabled_ns,
        time_running_ns,
        turns,
        matches,
        mix_llr,
        mix_turns,
        mix_concluded,
        hash_rate,
        trace,
    }
}

/// The windows so far and one more, as one window: counts add up, the test stands where it stands now. What was not counted in one
/// of the two (events take turns, and a trial's windows are short) went on there as in the other.
#[must_use]
pub fn sum(before: Option<Evidence>, now: Option<Evidence>) -> Option<Evidence> {
    let (Some(before), Some(now)) = (before, now) else {
        return now.or(before);
    };
    let times = (before.time_enabled_ns, now.time_enabled_ns);
    let known = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (Some(a), None) => Some(went_on(a, times.0, times.1)),
        (None, Some(b)) => Some(went_on(b, times.1, times.0)),
        (None, None) => None,
    };
    let (f, g) = (before.fp, now.fp);
    Some(Evidence {
        state: state(before.state, now.state),
        mix_state: state(before.mix_state, now.mix_state),
        cycles: before.cycles.saturating_add(now.cycles),
        instructions: before.instructions.saturating_add(now.instructions),
        cache_misses: known(before.cache_misses, now.cache_misses),
        branch_misses: known(before.branch_misses, now.branch_misses),
        fp: FpOps {
            add: known(f.add, g.add),
            sub: known(f.sub, g.sub),
            add_sub: known(f.add_sub, g.add_sub),
            mul: known(f.mul, g.mul),
            div: known(f.div, g.div),
            sqrt: known(f.sqrt, g.sqrt),
            div_sqrt: known(f.div_sqrt, g.div_sqrt),
            packed_double: known(f.packed_double, g.packed_double),
        },
        control_word_traps: known(before.control_word_traps, now.control_word_traps),
        divider_cycles: known(before.divider_cycles, now.divider_cycles),
        aes: known(before.aes, now.aes),
        sha: known(before.sha, now.sha),
        time_enabled_ns: before.time_enabled_ns.saturating_add(now.time_enabled_ns),
        time_running_ns: before.time_running_ns.saturating_add(now.time_running_ns),
        turns: before.turns.saturating_add(now.turns),
        matches: before.matches.saturating_add(now.matches),
        mix_llr: now.mix_llr,
        mix_turns: now.mix_turns,
        mix_concluded: now.mix_concluded,
        hash_rate: now.hash_rate.or(before.hash_rate),
    })
}

/// `count` of `of_ns`, and as many per time in `more_ns`.
fn went_on(count: u64, of_ns: u64, more_ns: u64) -> u64 {
    let whole_ns = u128::from(of_ns) + u128::from(more_ns);
    let scaled = (u128::from(count) * whole_ns).checked_div(u128::from(of_ns));
    scaled.map_or(count, |scaled| u64::try_from(scaled).unwrap_or(u64::MAX))
}

/// The trace of a trial that goes on.
#[derive(Debug, Default)]
pub struct Trace {
    turns: Vec<TracedTurn>,
    cut: bool,
}

impl Trace {
    /// Takes a mix.
    pub fn take(&mut self, window: usize, thread: u32, matched: bool) {
        if self.turns.len() >= PARTS_MAX {
            self.cut = true;
            return;
        }
        self.turns.push(TracedTurn {
            window,
            thread,
            matched,
        });
    }

    /// Whether mixes were left out.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// What was taken.
    #[must_use]
    pub fn into_turns(self) -> Vec<TracedTurn> {
        self.turns
    }
}

/// A thread of a trace, by its number there.
fn key(thread: u32) -> ThreadKey {
    ThreadKey {
        slot: thread,
        tgid: thread,
        start_boottime_ns: 0,
    }
}

/// Feeds a document's mixes to the tests again, window by window.
#[derive(Debug)]
pub struct Replay<'a> {
    document: Option<&'a Pmu>,
    tenant: TenantIndex,
    mixes: Mixes,
    window: usize,
}

impl<'a> Replay<'a> {
    /// Begins before the first window.
    #[must_use]
    pub fn new(document: &'a Document, tenant: TenantIndex) -> Self {
        Self {
            document: document.pmu.as_ref(),
            tenant,
            mixes: Mixes::default(),
            window: 0,
        }
    }

    /// Gives the next window's mixes to the tests.
    pub fn take(&mut self) {
        let turns = self.document.map_or(&[][..], |document| &document.trace);
        for traced in turns.iter().filter(|traced| traced.window == self.window) {
            self.mixes.add(&Turn {
                thread: key(traced.thread),
                tenant: self.tenant,
                matched: traced.matched,
            });
        }
    }

    /// Which threads have `RandomX`'s mix now.
    #[must_use]
    pub fn mixing(&self) -> Mixing {
        self.mixes.mixing(self.tenant)
    }

    /// That window's evidence; `ended`: threads whose last part was in it. Its counts are not in the trace.
    pub fn window(
        &mut self,
        span_ns: u64,
        all_modes: &InAllModes,
        ended: impl Iterator<Item = u32>,
    ) -> Option<Evidence> {
        let document = self.document?;
        for thread in ended {
            self.mixes.end(key(thread), self.tenant);
        }
        self.window += 1;
        let standing = self.mixes.close(self.tenant, span_ns, all_modes);
        Some(Evidence {
            state: document.state,
            mix_state: document.mix_state,
            turns: standing.turns,
            matches: standing.matches,
            mix_llr: standing.nearest.llr(),
            mix_turns: standing.nearest.turns(),
            mix_concluded: standing.nearest.concluded(),
            ..Evidence::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_what_is_unknown_stays_unknown() {
        let window = |cache_misses, turns, mix_llr| Evidence {
            state: SensorState::Live,
            cache_misses,
            turns,
            mix_llr,
            ..Evidence::default()
        };
        let first = sum(None, Some(window(Some(3), 1, 3.4))).unwrap();
        let whole = sum(Some(first), Some(window(None, 1, 6.8))).unwrap();
        assert_eq!((whole.cache_misses, whole.turns), (Some(3), 2));
        assert_eq!(whole.branch_misses, None);
        assert!((whole.mix_llr - 6.8).abs() < 1e-9);
        assert_eq!(sum(None, None), None);
    }

    #[test]
    fn what_was_counted_in_one_window_of_three_is_estimated_for_all() {
        let window = |cache_misses, time_enabled_ns| {
            Some(Evidence {
                cache_misses,
                time_enabled_ns,
                ..Evidence::default()
            })
        };
        let windows = [window(None, 10), window(Some(6), 20), window(None, 10)];
        let whole = windows.into_iter().fold(None, sum).unwrap();
        assert_eq!(whole.cache_misses, Some(12));
    }

    #[test]
    fn a_sensor_that_counted_once_counted_in_the_trial() {
        let stalled = Evidence {
            state: SensorState::Stalled,
            ..Evidence::default()
        };
        let live = Evidence {
            state: SensorState::Live,
            ..Evidence::default()
        };
        assert_eq!(
            sum(Some(live), Some(stalled)).unwrap().state,
            SensorState::Live
        );
    }
}
