//! From windows to a trial's verdict, and from its document back to the verdict. Pure.
//!
//! A trial is judged as one long window: its counts are those of all windows, its tests stand where they stand at
//! the end. The verdict at the end is the trial's, so a mere beginning (a verifying node's first second, say)
//! does not decide; a higher one on the way is said in the reasons.

use std::collections::HashMap;

use davy_evidence::{
    FpRounding, Level, RegisterRandomness, SensorState, TenantEvidence, Verdict, fp_rounding,
    register_randomness, verdict,
};

use super::{
    document::{Document, PARTS_MAX, Part, Window},
    pmu::{self, TracedTurn},
};
use crate::{
    evidence::{HostSensors, Tests},
    sensor::{
        cpu::CpuFigures,
        fp_rounding::{Involuntary, add},
        pmu::mixes::Turn,
        register_randomness::General,
    },
    window::{ThreadDelta, ThreadKey},
};

/// The trial as one window.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    whole: TenantEvidence,
    /// The `fp_rounding` test that had seen most, of those that did not conclude.
    most_samples: FpRounding,
    /// The test of `register_randomness` over all samples that had seen most.
    most_any: RegisterRandomness,
    /// That over general registers.
    most_general: RegisterRandomness,
}

/// What a trial amounts to so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The evidence, with the counts of the whole trial.
    pub evidence: TenantEvidence,
    /// The verdict on it.
    pub verdict: Verdict,
    /// Whether each test concluded or had enough samples to tell.
    pub enough_samples: bool,
}

impl Judge {
    /// Adds a window.
    pub fn add(&mut self, window: &TenantEvidence) {
        let (mut fp, mut rr) = (window.fp_rounding, window.register_randomness);
        if fp.test_samples > self.most_samples.test_samples {
            self.most_samples = fp;
        }
        if rr.any_test_samples > self.most_any.any_test_samples {
            self.most_any = rr;
        }
        if rr.general_test_samples > self.most_general.general_test_samples {
            self.most_general = rr;
        }
        let (fp_before, rr_before) = (&self.whole.fp_rounding, &self.whole.register_randomness);
        fp.state = state(fp_before.state, fp.state);
        add(&mut fp.modes, &fp_before.modes);
        fp.concluded_on_cpu_ns = fp
            .concluded_on_cpu_ns
            .saturating_add(fp_before.concluded_on_cpu_ns);
        rr.state = state(rr_before.state, rr.state);
        for (sum, before) in [
            (&mut rr.samples, rr_before.samples),
            (&mut rr.random, rr_before.random),
            (&mut rr.directed_samples, rr_before.directed_samples),
            (&mut rr.directed_random, rr_before.directed_random),
            (&mut rr.general_samples, rr_before.general_samples),
            (&mut rr.general_random, rr_before.general_random),
        ] {
            *sum = sum.saturating_add(before);
        }
        let kvm_exits = added(self.whole.kvm_exits, window.kvm_exits, |sum, now| {
            let state = state(sum.state, now.state);
            sum.add(now);
            sum.state = state;
        });
        let msr_writes = added(self.whole.msr_writes, window.msr_writes, |sum, now| {
            sum.state = state(sum.state, now.state);
            sum.prefetcher_writes = sum.prefetcher_writes.saturating_add(now.prefetcher_writes);
            sum.prefetcher_writes_watched = now.prefetcher_writes_watched;
        });
        self.whole = TenantEvidence {
            fp_rounding: fp,
            register_randomness: rr,
            kvm_exits,
            msr_writes,
            pmu: pmu::sum(self.whole.pmu, window.pmu),
        };
    }

    /// The verdict on what was added.
    #[must_use]
    pub fn judged(&self) -> Judged {
        let mut evidence = self.whole;
        let fp = &mut evidence.fp_rounding;
        // The thread that told enough may have ended before the last window; that it found nothing still holds.
        let nothing_forms = fp.llr.contains(&0.0) && !fp.concluded;
        if nothing_forms && fp.test_samples < fp_rounding::SAMPLES_TO_TELL {
            (fp.llr, fp.test_samples) = (self.most_samples.llr, self.most_samples.test_samples);
        }
        let rr = &mut evidence.register_randomness;
        if !rr.any_concluded
            && rr.any_llr == 0.0
            && rr.any_test_samples < register_randomness::SAMPLES_TO_TELL
        {
            (rr.any_llr, rr.any_test_samples) =
                (self.most_any.any_llr, self.most_any.any_test_samples);
        }
        if !rr.general_concluded
            && rr.general_llr == 0.0
            && rr.general_test_samples < register_randomness::SAMPLES_TO_TELL
        {
            (rr.general_llr, rr.general_test_samples) = (
                self.most_general.general_llr,
                self.most_general.general_test_samples,
            );
        }
        let mut verdict = verdict(&evidence);
        for reason in &mut verdict.reasons {
            *reason = reason.replace("in this window", "in this trial");
        }
        Judged {
            enough_samples: enough(&evidence),
            evidence,
            verdict,
        }
    }
}

/// What both know, added; what only one knows.
fn added<T: Copy>(before: Option<T>, now: Option<T>, add: impl FnOnce(&mut T, &T)) -> Option<T> {
    let (Some(mut sum), Some(now)) = (before, now) else {
        return now.or(before);
    };
    add(&mut sum, &now);
    Some(sum)
}

/// A sensor that measured in any window measured in the trial.
pub(super) fn state(before: SensorState, now: SensorState) -> SensorState {
    match (before, now) {
        (SensorState::Live, SensorState::Live | SensorState::Stalled | SensorState::NeverRan) => {
            SensorState::Live
        }
        (_, now) => now,
    }
}

fn enough(evidence: &TenantEvidence) -> bool {
    let TenantEvidence {
        fp_rounding: fp,
        register_randomness: rr,
        kvm_exits: _,
        msr_writes: _,
        pmu: _,
    } = evidence;
    let measured = |state| matches!(state, SensorState::Live | SensorState::Stalled);
    let fp_told = measured(fp.state) && fp.test_samples >= fp_rounding::SAMPLES_TO_TELL;
    let rr_told = measured(rr.state)
        && rr.any_test_samples.min(rr.general_test_samples) >= register_randomness::SAMPLES_TO_TELL;
    let rr_concluded = rr.any_concluded || rr.directed_concluded || rr.general_concluded;
    (fp.concluded || fp_told) && (rr_concluded || rr_told)
}

/// The scheduler's books of a window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Books {
    /// Threads that were watched in it.
    pub threads: u32,
    /// Sums over them.
    pub cpu: CpuFigures,
}

/// Everything that was seen in a trial.
#[derive(Debug, Default)]
pub struct Course {
    judge: Judge,
    threads: HashMap<ThreadKey, u32>,
    parts: Vec<Part>,
    parts_kept: usize,
    trace_cut: bool,
    windows: Vec<Window>,
    mixes: pmu::Trace,
}

impl Course {
    /// Takes what the trial's threads did between two looks.
    pub fn take(&mut self, deltas: impl Iterator<Item = ThreadDelta>) {
        for delta in deltas {
            let next = u32::try_from(self.threads.len()).unwrap_or(u32::MAX);
            let thread = *self.threads.entry(delta.thread).or_insert(next);
            if delta.looks == 0 && delta.cpu.on_cpu_ns == 0 && !delta.ended {
                continue; // Tells the tests nothing.
            }
            if self.parts_kept >= PARTS_MAX {
                self.trace_cut = true;
                continue;
            }
            self.parts_kept += 1;
            self.parts.push(Part {
                thread,
                on_cpu_ns: delta.cpu.on_cpu_ns,
                looks: delta.looks,
                modes: delta.modes,
                random: delta.random,
                general_samples: delta.general.samples,
                general_random: delta.general.random,
                involuntary_looks: delta.involuntary.looks,
                involuntary_directed: delta.involuntary.directed,
                vcpu: delta.is_vcpu,
                confidential: delta.is_confidential,
                ended: delta.ended,
            });
        }
    }

    /// Takes the mixes that the trial's threads completed by the last look.
    pub fn take_turns<'a>(&mut self, turns: impl Iterator<Item = &'a Turn>) {
        for turn in turns {
            let next = u32::try_from(self.threads.len()).unwrap_or(u32::MAX);
            let thread = *self.threads.entry(turn.thread).or_insert(next);
            self.mixes.take(self.windows.len(), thread, turn.matched);
        }
    }

    /// Closes a window of `span_ns` with the evidence that the tests gave.
    pub fn close(&mut self, span_ns: u64, books: &Books, evidence: &TenantEvidence) {
        self.judge.add(evidence);
        self.windows.push(Window {
            span_ns,
            threads: books.threads,
            on_cpu_ns: books.cpu.on_cpu_ns,
            run_queue_wait_ns: books.cpu.run_queue_wait_ns,
            voluntary_switches: books.cpu.voluntary_switches,
            involuntary_switches: books.cpu.involuntary_switches,
            verdict: self.judge.judged().verdict.level,
            by_thread: std::mem::take(&mut self.parts),
        });
    }

    /// The verdict so far.
    #[must_use]
    pub fn judged(&self) -> Judged {
        self.judge.judged()
    }

    /// The verdict of the last window.
    #[must_use]
    pub fn level(&self) -> Level {
        self.windows
            .last()
            .map_or(Level::Quiet, |window| window.verdict)
    }

    /// Threads seen.
    #[must_use]
    pub fn threads(&self) -> u64 {
        u64::try_from(self.threads.len()).unwrap_or(u64::MAX)
    }

    /// CPU time of the closed windows, s.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        seconds(self.windows.iter().map(|window| window.on_cpu_ns).sum())
    }

    /// If a window ended with a higher verdict than the last: which, and how long after the begin, s.
    #[must_use]
    pub fn higher(&self) -> Option<(Level, f64)> {
        let highest = self.windows.iter().map(|window| window.verdict).max()?;
        if highest <= self.level() {
            return None;
        }
        let last = self.windows.iter().rposition(|w| w.verdict == highest)?;
        let until_ns = self.windows[..=last].iter().map(|w| w.span_ns).sum();
        Some((highest, seconds(until_ns)))
    }

    /// The trace, that of the mixes, and whether they are complete.
    #[must_use]
    pub fn into_trace(self) -> (Vec<Window>, Vec<TracedTurn>, bool) {
        let complete = !self.trace_cut && !self.mixes.is_cut();
        (self.windows, self.mixes.into_turns(), complete)
    }
}

/// `ns` as seconds.
#[must_use]
pub fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

/// Feeds a document's trace to the tests again: what today's tests and today's rule make of it.
#[must_use]
pub fn replay(document: &Document) -> Judged {
    const TENANT: u32 = 1;
    let host_state = |state| match state {
        SensorState::Unsupported => SensorState::Unsupported,
        SensorState::Live | SensorState::Stalled | SensorState::NeverRan => SensorState::Live,
    };
    let host = HostSensors {
        fp_rounding: host_state(document.fp_rounding.state),
        register_randomness: host_state(document.register_randomness.state),
    };
    let mut tests = Tests::default();
    let mut judge = Judge::default();
    let mut counters = pmu::Replay::new(document, TENANT);
    for window in &document.windows {
        let deltas: Vec<_> = window.by_thread.iter().map(|p| delta(TENANT, p)).collect();
        tests.update(&deltas, |_| false);
        let all_modes = tests.in_all_modes(TENANT);
        counters.take();
        let mixing = counters.mixing();
        let mut evidence = tests.close(TENANT, window.span_ns, host, &mixing);
        let ended = window.by_thread.iter().filter(|part| part.ended);
        let ended = ended.map(|part| part.thread);
        evidence.pmu = counters.window(window.span_ns, &all_modes, ended);
        judge.add(&evidence);
    }
    judge.judged()
}

fn delta(tenant: u32, part: &Part) -> ThreadDelta {
    let Part {
        thread,
        on_cpu_ns,
        looks,
        modes,
        random,
        general_samples,
        general_random,
        involuntary_looks,
        involuntary_directed,
        vcpu,
        confidential,
        ended,
    } = *part;
    ThreadDelta {
        thread: ThreadKey {
            slot: thread,
            tgid: thread,
            start_boottime_ns: 0,
        },
        tenant,
        is_vcpu: vcpu,
        is_confidential: confidential,
        ended,
        cpu_number: 0,
        cpu: CpuFigures {
            on_cpu_ns,
            ..CpuFigures::default()
        },
        looks,
        modes,
        random,
        general: General {
            samples: general_samples,
            random: general_random,
        },
        involuntary: Involuntary {
            looks: involuntary_looks,
            directed: involuntary_directed,
        },
    }
}

/// The trial's `RegisterRandomness` as shares (of all, directed, general samples); `None` of nothing.
#[must_use]
pub fn fractions(rr: &RegisterRandomness) -> (Option<f64>, Option<f64>, Option<f64>) {
    let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    (
        share(rr.random, rr.samples),
        share(rr.directed_random, rr.directed_samples),
        share(rr.general_random, rr.general_samples),
    )
}

#[cfg(test)]
#[path = "course_tests.rs"]
pub(crate) mod tests;
