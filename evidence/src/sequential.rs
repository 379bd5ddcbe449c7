//! The cumulative sum (CUSUM) all sequential tests here are made of, its threshold and its error rate.
//!
//! # The sum
//! Each sample either hits (it lies in a given rounding mode; its registers are random) or misses. Under the null
//! hypothesis the share of hits is at most `p0`, under the alternative at least `p1` > `p0`. A sample adds the
//! log-likelihood ratio `ln(p1/p0)` for a hit, `ln((1-p1)/(1-p0))` for a miss, in nats. The sum is never below 0 (E. S. Page,
//! "Continuous inspection schemes", Biometrika 41, 1954), so that an hour of honest work does not hide a miner
//! started after it, and never above [`CEILING_NATS`], so that a miner stopped is forgotten again.
//! A test concludes at [`THRESHOLD_NATS`]; its conclusion falls only when the sum is back at 0.
//!
//! # The error rate
//! For a share of hits of at most `p0` the likelihood ratio of one sample has a mean of at most 1, and the mean number of
//! samples until a sum without ceiling reaches `h` is at least `e^h` (G. Lorden, "Procedures for reacting to a change in
//! distribution", Annals of Mathematical Statistics 42, 1971, theorem 2). With `h` = 36.5 that is 7.1e15 samples between
//! two false conclusions. [`false_conclusions_per_million_vm_days`] gives the same as a rate: for a VM of 64 threads,
//! each giving 200 samples a second around the clock and each *at the very edge* of the null hypothesis, at most 0.16
//! false conclusions per million VM-days. Real honest programs are far from that edge.
//!
//! The figure assumes **independent samples**. Samples of one thread are 5 ms or more apart, but a program that works in
//! phases longer than that gives dependent ones, and then no such figure holds. Two things answer that: the null
//! hypotheses leave a wide margin above what honest programs show, and no single test makes a `mining`
//! ([`verdict`](crate::verdict())).
//!
//! # Batches
//! Counts come in batches, whose inner order is lost. A batch's sum is added first and clamped then. Against a sum clamped
//! sample by sample at 0 only, in whatever order, the result is never higher: that one's value after a batch is the
//! greatest of `sum + batch` and the sums of the batch's tails, hence at least `sum + batch`. So batching costs time to a
//! conclusion and never adds to the error rate, which is that of a sum without ceiling; and one batch can only move a
//! sum by what its samples are worth.
//!
//! Against a sum clamped sample by sample at the ceiling too it may be higher, where the ceiling would have clamped within
//! the batch: 20, then +100 and -90, is 30 as one batch, and the ceiling less 90, so 0, sample by sample. That one was far
//! above the threshold within the batch, so what differs is how long a conclusion stands, not whether one is reached.

/// A test concludes when its sum is at least this, in nats. `e^36.5` = 7.1e15 samples between false conclusions.
pub const THRESHOLD_NATS: f64 = 36.5;

/// No sum grows above this, in nats: what a conclusion gains in firmness after it was reached.
pub const CEILING_NATS: f64 = 2.0 * THRESHOLD_NATS;

/// Most samples per second a thread gives: the kernel half samples a thread at most every 5 ms.
pub const SAMPLES_PER_S_MAX: f64 = 200.0;

/// Upper bound of one test's false conclusions per million VM-days, for VMs of `threads` threads that each give
/// `samples_per_s` independent samples a second at the edge of the null hypothesis (see the module's documentation).
#[must_use]
pub fn false_conclusions_per_million_vm_days(threads: f64, samples_per_s: f64) -> f64 {
    const DAY_S: f64 = 86_400.0;
    const MILLION: f64 = 1e6;
    threads * samples_per_s * DAY_S * MILLION / THRESHOLD_NATS.exp()
}

/// Why a test's state cannot be taken up again.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ResumeError {
    /// A sum is NaN, infinite, negative or above [`CEILING_NATS`].
    #[error("the cumulative sum `{sum}` is {nats} nats, which is not within 0 to {CEILING_NATS}")]
    OutOfRange {
        /// Which sum: a rounding mode's ("mode 0" to "mode 3"), "any", "directed", "general" or "mix".
        sum: &'static str,
        /// Its value, nats.
        nats: f64,
    },
    /// The test is said to have concluded though a sum is 0, or not to have though every sum is at the threshold.
    #[error("the test `{test}` cannot be {} with these cumulative sums", if *.concluded { "concluded" } else { "open" })]
    Inconsistent {
        /// "`fp_rounding`", "any", "directed", "general" or "pmu mix".
        test: &'static str,
        /// What the state said.
        concluded: bool,
    },
}

/// The two hypotheses about a share of hits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shares {
    /// Greatest share under the null hypothesis.
    pub(crate) null: f64,
    /// Least share under the alternative.
    pub(crate) alternative: f64,
}

/// One cumulative sum, nats, within 0..=[`CEILING_NATS`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Cusum(f64);

impl Cusum {
    pub(crate) fn resume(sum: &'static str, nats: f64) -> Result<Self, ResumeError> {
        // NaN is in no range.
        if (0.0..=CEILING_NATS).contains(&nats) {
            Ok(Self(nats))
        } else {
            Err(ResumeError::OutOfRange { sum, nats })
        }
    }

    /// Adds a batch: sum first, clamp then (see the module's documentation).
    pub(crate) fn add(&mut self, shares: Shares, hits: u64, misses: u64) {
        let hit = (shares.alternative / shares.null).ln();
        let miss = ((1.0 - shares.alternative) / (1.0 - shares.null)).ln();
        let batch = (hits as f64).mul_add(hit, misses as f64 * miss);
        self.0 = (self.0 + batch).clamp(0.0, CEILING_NATS);
    }

    pub(crate) fn nats(self) -> f64 {
        self.0
    }
}

/// Whether a test over `sums` (all of which must agree) stands concluded, having stood so or not before.
pub(crate) fn concluded(before: bool, sums: &[Cusum]) -> bool {
    if before {
        sums.iter().all(|s| s.0 > 0.0)
    } else {
        sums.iter().all(|s| s.0 >= THRESHOLD_NATS)
    }
}

/// Refuses a conclusion that its own sums contradict.
pub(crate) fn check_consistent(
    test: &'static str,
    said: bool,
    sums: &[Cusum],
) -> Result<(), ResumeError> {
    if concluded(said, sums) == said {
        Ok(())
    } else {
        Err(ResumeError::Inconsistent {
            test,
            concluded: said,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn false_conclusions_are_as_rare_as_documented() {
        assert!(THRESHOLD_NATS.exp() > 7.1e15);
        let rate = false_conclusions_per_million_vm_days(64.0, SAMPLES_PER_S_MAX);
        assert!((0.15..0.16).contains(&rate), "{rate}");
    }

    /// The mean likelihood ratio at any share within the null hypothesis is at most 1: what the error rate rests on.
    #[test]
    fn mean_likelihood_ratio_is_at_most_one_within_the_null() {
        for shares in [
            crate::fp_rounding::SHARES,
            crate::register_randomness::ANY,
            crate::register_randomness::DIRECTED,
            crate::register_randomness::GENERAL,
            crate::pmu::SHARES,
        ] {
            for step in 0..=100 {
                let p = shares.null * f64::from(step) / 100.0;
                let mean = p * shares.alternative / shares.null
                    + (1.0 - p) * (1.0 - shares.alternative) / (1.0 - shares.null);
                assert!(mean <= 1.0 + 1e-12, "{shares:?} at {p}: {mean}");
            }
        }
    }

    #[test]
    fn a_sum_outside_its_range_is_refused() {
        for nats in [f64::NAN, f64::INFINITY, -0.1, CEILING_NATS + 0.1] {
            assert!(Cusum::resume("any", nats).is_err(), "{nats}");
        }
        assert_eq!(
            Cusum::resume("any", CEILING_NATS).unwrap().nats(),
            CEILING_NATS
        );
    }
}
