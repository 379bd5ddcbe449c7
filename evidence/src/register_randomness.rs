//! `register_randomness`: does a thread compute on uniformly random bits, as hashing does?
//!
//! A sample is random if at least 8 of its 16 vector registers look uniformly random *and* changed since the thread's previous
//! sample. Two cumulative sums ([`sequential`]), each a test of its own with the same threshold and hysteresis:
//!
//! | test | samples | null: share random at most | alternative: at least | concludes for |
//! |---|---|---|---|---|
//! | `any` | all | 25 % | 60 % | any vectorised hashing: miners, password KDFs, deduplication alike |
//! | `directed` | those outside rounding mode 0 | 30 % | 70 % | RandomX: nothing else computes there with registers full of random bits |
//!
//! What programs show is in the corpus (docs/detection.md): hashing in vector registers mostly 80 to 100 %, RandomX 85 % outside
//! mode 0, codecs, compilers and numeric code below 1 %. Not every honest program stays below the null: AES-256-GCM has shown 70 %
//! on one CPU, and ends at `suspect`; and hashing in scalar registers shows nothing. The error rate of each test is that of [`sequential`]: at most 0.16 false conclusions per
//! million VM-days at 64 threads of 200 samples/s each, if samples are independent. For `any` a *true* conclusion is not
//! yet mining: a login server hashes too.

use crate::sequential::{self, Cusum, ResumeError, Shares};

pub use crate::sequential::THRESHOLD_NATS;

pub(crate) const ANY: Shares = Shares {
    null: 0.25,
    alternative: 0.60,
};

pub(crate) const DIRECTED: Shares = Shares {
    null: 0.30,
    alternative: 0.70,
};

/// With fewer samples than this a test that has not concluded says nothing: a hash with 89 % random samples concludes at about
/// 52 (`any`) or 56 (`directed`) samples on average.
pub const SAMPLES_TO_TELL: u64 = 100;

/// The two sequential tests of one thread. See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Test {
    any: Cusum,
    any_concluded: bool,
    directed: Cusum,
    directed_concluded: bool,
}

impl Test {
    /// Tests that have seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tests with the state others had. They go on exactly as those would have.
    ///
    /// # Errors
    /// If a sum is NaN or not within 0 to twice [`THRESHOLD_NATS`], or contradicts its conclusion.
    pub fn resume(
        any_llr: f64,
        any_concluded: bool,
        directed_llr: f64,
        directed_concluded: bool,
    ) -> Result<Self, ResumeError> {
        let any = Cusum::resume("any", any_llr)?;
        let directed = Cusum::resume("directed", directed_llr)?;
        sequential::check_consistent("any", any_concluded, &[any])?;
        sequential::check_consistent("directed", directed_concluded, &[directed])?;
        Ok(Self {
            any,
            any_concluded,
            directed,
            directed_concluded,
        })
    }

    /// Adds new samples: all of them by rounding mode, and those with random registers by rounding mode. A count of random ones above
    /// that of all (the two are read at different moments) counts as all.
    pub fn add(&mut self, modes: [u64; 4], random: [u64; 4]) {
        let (mut hits, mut misses) = (0u64, 0u64);
        let (mut directed_hits, mut directed_misses) = (0u64, 0u64);
        for (mode, (&all, &random)) in modes.iter().zip(&random).enumerate() {
            let random = random.min(all);
            hits = hits.saturating_add(random);
            misses = misses.saturating_add(all - random);
            if mode != 0 {
                directed_hits = directed_hits.saturating_add(random);
                directed_misses = directed_misses.saturating_add(all - random);
            }
        }
        self.any.add(ANY, hits, misses);
        self.any_concluded = sequential::concluded(self.any_concluded, &[self.any]);
        self.directed.add(DIRECTED, directed_hits, directed_misses);
        self.directed_concluded = sequential::concluded(self.directed_concluded, &[self.directed]);
    }

    /// The cumulative sum over all samples, nats, within 0 to twice [`THRESHOLD_NATS`].
    #[must_use]
    pub fn any_llr(&self) -> f64 {
        self.any.nats()
    }

    /// Whether the thread hashes, by whatever algorithm.
    #[must_use]
    pub fn any_concluded(&self) -> bool {
        self.any_concluded
    }

    /// The cumulative sum over samples outside rounding mode 0, nats, within 0 to twice [`THRESHOLD_NATS`].
    #[must_use]
    pub fn directed_llr(&self) -> f64 {
        self.directed.nats()
    }

    /// Whether the thread computes on random bits outside rounding mode 0.
    #[must_use]
    pub fn directed_concluded(&self) -> bool {
        self.directed_concluded
    }
}
