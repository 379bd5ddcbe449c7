//! What today's tests and today's rule make of the recordings. Pure.

use std::collections::BTreeMap;

use davy_agent::trial::{
    course::{Judged, replay, seconds},
    document::Document,
};
use davy_evidence::Level;

use crate::catalogue::{Entry, Label, Set};

/// A sensor's test, or the verdict they amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Detector {
    /// All four rounding modes.
    FpRounding,
    /// Random registers, over all samples.
    RandomAny,
    /// Random registers outside rounding mode 0.
    RandomDirected,
    /// Random general registers.
    RandomGeneral,
    /// At least `suspect`.
    Suspect,
    /// `mining`.
    Mining,
}

impl Detector {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::FpRounding,
        Self::RandomAny,
        Self::RandomDirected,
        Self::RandomGeneral,
        Self::Suspect,
        Self::Mining,
    ];

    /// For a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FpRounding => "`fp_rounding`",
            Self::RandomAny => "`register_randomness`, all samples",
            Self::RandomDirected => "`register_randomness`, outside mode 0",
            Self::RandomGeneral => "`register_randomness`, general registers",
            Self::Suspect => "combined: `suspect` or more",
            Self::Mining => "combined: `mining`",
        }
    }

    fn fires(self, judged: &Judged) -> bool {
        let rr = &judged.evidence.register_randomness;
        match self {
            Self::FpRounding => judged.evidence.fp_rounding.concluded,
            Self::RandomAny => rr.any_concluded,
            Self::RandomDirected => rr.directed_concluded,
            Self::RandomGeneral => rr.general_concluded,
            Self::Suspect => judged.verdict.level >= Level::Suspect,
            Self::Mining => judged.verdict.level == Level::Mining,
        }
    }
}

/// A recording, judged anew.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The verdict at its end.
    pub at_end: davy_evidence::Verdict,
    /// The highest verdict at any window's end.
    pub highest: Level,
    /// Whether that rests on enough samples.
    pub enough_samples: bool,
    /// The same if all threads had been one vCPU's: of [`as_one_vcpu`].
    pub highest_as_one_vcpu: Level,
    /// Whether that rests on enough samples.
    pub enough_as_one_vcpu: bool,
    /// After how long each detector first fired, s; absent if it never did.
    pub first_s: BTreeMap<Detector, f64>,
    /// Share of random samples; NaN of none.
    pub random_share: f64,
    /// Share of random samples of general registers; NaN of none.
    pub general_share: f64,
    /// Shares of the rounding modes; NaN of none.
    pub mode_shares: [f64; 4],
    /// How long it was watched, s.
    pub seconds: f64,
    /// Thread-seconds of CPU time, s.
    pub cpu_seconds: f64,
}

/// The document of the same load in a guest with one vCPU, as far as it can be told: all threads' samples are one thread's, and programs
/// that end leave their samples to those that follow. What short-lived processes never tell, each being watched alone, shows there.
#[must_use]
pub fn as_one_vcpu(document: &Document) -> Document {
    let mut one = document.clone();
    for window in &mut one.windows {
        for part in &mut window.by_thread {
            part.thread = 0;
            part.ended = false;
        }
    }
    one
}

/// Judges a trial's document, as if it had ended after each window in turn; as it is, and as one vCPU's.
#[must_use]
pub fn judge(document: &Document) -> Outcome {
    let one = judge_as_is(&as_one_vcpu(document));
    Outcome {
        highest_as_one_vcpu: one.highest,
        enough_as_one_vcpu: one.enough_samples,
        ..judge_as_is(document)
    }
}

fn judge_as_is(document: &Document) -> Outcome {
    let mut upto = Document {
        windows: Vec::new(),
        ..document.clone()
    };
    let mut judged = replay(&upto);
    let (mut highest, mut first_s) = (Level::Quiet, BTreeMap::new());
    let (mut span_ns, mut on_cpu_ns) = (0, 0);
    for window in &document.windows {
        span_ns += window.span_ns;
        on_cpu_ns += window.on_cpu_ns;
        upto.windows.push(window.clone());
        judged = replay(&upto);
        highest = highest.max(judged.verdict.level);
        for detector in Detector::ALL {
            if detector.fires(&judged) {
                first_s.entry(detector).or_insert(seconds(span_ns));
            }
        }
    }
    let rr = &judged.evidence.register_randomness;
    let modes = judged.evidence.fp_rounding.modes;
    let samples: u64 = modes.iter().sum();
    Outcome {
        random_share: rr.random as f64 / rr.samples as f64,
        general_share: rr.general_random as f64 / rr.general_samples as f64,
        mode_shares: modes.map(|n| n as f64 / samples as f64),
        at_end: judged.verdict,
        highest,
        enough_samples: judged.enough_samples,
        highest_as_one_vcpu: highest,
        enough_as_one_vcpu: judged.enough_samples,
        first_s,
        seconds: seconds(span_ns),
        cpu_seconds: seconds(on_cpu_ns),
    }
}

/// A judged recording with what it is of.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// What was recorded.
    pub entry: Entry,
    /// What comes out.
    pub outcome: Outcome,
}

impl Scored {
    /// Whether it is of `set` (none: of any) and `label`.
    #[must_use]
    pub fn is(&self, set: Option<Set>, label: Label) -> bool {
        set.is_none_or(|set| self.entry.set == set) && self.entry.label == label
    }

    /// Whether a detector fired at any time.
    #[must_use]
    pub fn fired(&self, detector: Detector) -> bool {
        self.outcome.first_s.contains_key(&detector)
    }
}

/// The 95 % confidence interval of a share of which `hits` of `all` were seen: Wilson's score interval (E. B. Wilson,
/// Journal of the American Statistical Association 22, 1927); of none or all seen, one-sided, the rule of three: 3 / `all`
/// (J. A. Hanley and A. Lippman-Hand, JAMA 249, 1983).
#[must_use]
pub fn interval(hits: usize, all: usize) -> (f64, f64) {
    const Z: f64 = 1.96;
    let (hits_n, n) = (hits as f64, all as f64);
    if all == 0 {
        return (0.0, 1.0);
    }
    let three = (3.0 / n).min(1.0);
    if hits == 0 {
        return (0.0, three);
    }
    if hits == all {
        return (1.0 - three, 1.0);
    }
    let share = hits_n / n;
    let denominator = 1.0 + Z * Z / n;
    let centre = (share + Z * Z / (2.0 * n)) / denominator;
    let half = Z / denominator * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_literature() {
        let near = |(a, b): (f64, f64), (c, d): (f64, f64)| {
            assert!(
                (a - c).abs() < 5e-4 && (b - d).abs() < 5e-4,
                "{a} {b} {c} {d}"
            );
        };
        // R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263, 15 of 148.
        near(interval(81, 263), (0.2553, 0.3662));
        near(interval(15, 148), (0.0624, 0.1605));
        near(interval(0, 60), (0.0, 0.05));
        near(interval(30, 30), (0.9, 1.0));
        near(interval(0, 0), (0.0, 1.0));
    }
}
