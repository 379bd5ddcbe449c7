//! `register_randomness`: does a thread compute on uniformly random bits, as hashing does?
//!
//! A sample of the vector registers is random if at least 8 of the 16 look uniformly random *and* changed since the thread's
//! previous sample; one of the general registers if at least 6 of 15 do (the stack pointer is not looked at). Three cumulative sums
//! ([`sequential`]), each a test of its own with the same threshold and hysteresis:
//!
//! | test | samples | null: share random at most | alternative: at least | concludes for |
//! |---|---|---|---|---|
//! | `any` | all of vector registers | 40 % | 75 % | any vectorised hashing: miners, password KDFs, deduplication alike |
//! | `directed` | those outside rounding mode 0 | 30 % | 70 % | RandomX: nothing else computes there with registers full of random bits |
//! | `general` | those of general registers | 40 % | 75 % | hashing in scalar instructions, and public-key cryptography |
//!
//! What programs show is in the corpus (docs/detection.md): hashing in vector registers mostly 80 to 100 %, RandomX 85 % outside
//! mode 0, codecs, compilers and numeric code below 1 %; hashing in scalar instructions mostly 70 to 96 % of general samples, where compressors
//! and compilers stay below 10 %, sorting and interpreters' numbers below 45 %. Not every honest program stays below the null: AES-256-GCM has shown 70 %
//! of vector samples on one CPU, RSA at full speed 86 % and elliptic curves 70 % of general ones, and all of them end at `suspect`. The error rate of each test is that of [`sequential`]: at most 0.16 false conclusions per
//! million VM-days at 64 threads of 200 samples/s each, if samples are independent. For `any` a *true* conclusion is not
//! yet mining: a login server hashes too.

use crate::sequential::{self, Cusum, ResumeError, Shares};

pub use crate::sequential::THRESHOLD_NATS;

/// The null is as high as an alternative allows that is below what hashing shows (82 % and more): programs that move encrypted or
/// compressed data through vector registers show up to half.
pub(crate) const ANY: Shares = Shares {
    null: 0.40,
    alternative: 0.75,
};

pub(crate) const DIRECTED: Shares = Shares {
    null: 0.30,
    alternative: 0.70,
};

pub(crate) const GENERAL: Shares = Shares {
    null: 0.40,
    alternative: 0.75,
};

/// With fewer samples than this a test that has not concluded says nothing: a hash with 89 % random samples concludes at about
/// 79 (`any`, `general`) or 56 (`directed`) samples on average.
pub const SAMPLES_TO_TELL: u64 = 100;

/// Where one test of one thread stands.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Standing {
    /// The cumulative sum, nats, within 0 to twice [`THRESHOLD_NATS`].
    pub llr: f64,
    /// Whether the test stands concluded.
    pub concluded: bool,
    /// Samples given to it.
    pub samples: u64,
}

/// One of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct One {
    sum: Cusum,
    concluded: bool,
    samples: u64,
}

impl One {
    fn resume(name: &'static str, standing: Standing) -> Result<Self, ResumeError> {
        let sum = Cusum::resume(name, standing.llr)?;
        sequential::check_consistent(name, standing.concluded, &[sum])?;
        Ok(Self {
            sum,
            concluded: standing.concluded,
            samples: standing.samples,
        })
    }

    fn add(&mut self, shares: Shares, hits: u64, misses: u64) {
        self.sum.add(shares, hits, misses);
        self.concluded = sequential::concluded(self.concluded, &[self.sum]);
        self.samples = self.samples.saturating_add(hits).saturating_add(misses);
    }

    fn standing(self) -> Standing {
        Standing {
            llr: self.sum.nats(),
            concluded: self.concluded,
            samples: self.samples,
        }
    }
}

/// Samples of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Samples {
    /// Of vector registers, by rounding mode.
    pub modes: [u64; 4],
    /// Of these the random ones.
    pub random: [u64; 4],
    /// Of general registers.
    pub general: u64,
    /// Of these the random ones.
    pub general_random: u64,
}

/// The sequential tests of one thread. See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Test {
    any: One,
    directed: One,
    general: One,
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
        any: Standing,
        directed: Standing,
        general: Standing,
    ) -> Result<Self, ResumeError> {
        Ok(Self {
            any: One::resume("any", any)?,
            directed: One::resume("directed", directed)?,
            general: One::resume("general", general)?,
        })
    }

    /// Adds new samples. A count of random ones above that of all (the two are read at different moments) counts as all.
    pub fn add(&mut self, samples: Samples) {
        let Samples {
            modes,
            random,
            general,
            general_random,
        } = samples;
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
        self.directed.add(DIRECTED, directed_hits, directed_misses);
        let general_random = general_random.min(general);
        self.general
            .add(GENERAL, general_random, general - general_random);
    }

    /// The test over all samples of vector registers: whether the thread hashes in vector instructions, by whatever algorithm.
    #[must_use]
    pub fn any(&self) -> Standing {
        self.any.standing()
    }

    /// The test over those outside rounding mode 0: whether the thread computes on random bits there.
    #[must_use]
    pub fn directed(&self) -> Standing {
        self.directed.standing()
    }

    /// The test over samples of general registers: whether the thread hashes in scalar instructions.
    #[must_use]
    pub fn general(&self) -> Standing {
        self.general.standing()
    }
}
