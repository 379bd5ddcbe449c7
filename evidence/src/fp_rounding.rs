//! `fp_rounding`: does a thread compute in all four rounding modes?
//!
//! A sample is a thread's MXCSR.RC (bits 13 and 14: 0 nearest, 1 down, 2 up, 3 towards zero; Intel SDM vol. 1, 10.2.3)
//! at a switch, counted only if its registers changed since the thread's previous sample. RandomX sets the mode from data (CFROUND,
//! RandomX specification 5.4.1), 32/23/22/23 % of samples; ordinary programs stay in mode 0; interval arithmetic sits
//! in one directed mode or goes between two.
//!
//! **Null hypothesis**: at least one of the four modes has at most 0.1 % of the samples. **Alternative**: every mode has
//! at least 1 %, as on a vCPU of which RandomX has a twentieth and other programs the rest. One cumulative sum per mode ([`sequential`]) tests "this mode has at most 0.1 %"; the
//! test concludes when **all four** are at the threshold, and falls when any is back at 0. Under the null hypothesis at
//! least one of the four is at or below 0.1 %, and the test can conclude no sooner than the sum of that mode: the error rate is that of
//! one sum, with no correction for four (an intersection-union test; R. L. Berger, Technometrics 24, 1982).
//! That is [`THRESHOLD_NATS`] = 36.5: at least `e^36.5` = 7.1e15 samples between false conclusions, at most 0.16 per
//! million VM-days at 64 threads of 200 samples/s each, if samples are independent ([`sequential`] has the derivation).
//!
//! Limits: one test per thread; samples of different threads are not to be mixed, since four honest threads in
//! four modes would look like one that uses them all. A program that really goes through all four modes is found whatever its
//! purpose (a libm test suite, stochastic rounding): why `mining` needs a second class of evidence.

use crate::sequential::{self, Cusum, ResumeError, Shares};

pub use crate::sequential::THRESHOLD_NATS;

pub(crate) const SHARES: Shares = Shares {
    null: 0.001,
    alternative: 0.01,
};

/// With fewer samples than this a test that has not concluded says nothing: RandomX, whose rarest mode has 22 % of the samples,
/// concludes after 91 samples on average, and mostly after 300 with a third of them. With a twentieth it takes some 2,300.
pub const SAMPLES_TO_TELL: u64 = 300;

const NAMES: [&str; 4] = ["mode 0", "mode 1", "mode 2", "mode 3"];

/// The sequential test of one thread. See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Test {
    sums: [Cusum; 4],
    samples: u64,
    concluded: bool,
}

impl Test {
    /// A test that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A test with the state another one had: its [`llr`](Self::llr), [`samples`](Self::samples) and
    /// [`concluded`](Self::concluded). It goes on exactly as that one would have.
    ///
    /// # Errors
    /// If a sum is NaN or not within 0 to twice [`THRESHOLD_NATS`], or contradicts `concluded`.
    pub fn resume(llr: [f64; 4], samples: u64, concluded: bool) -> Result<Self, ResumeError> {
        let mut sums = [Cusum::default(); 4];
        for ((sum, name), nats) in sums.iter_mut().zip(NAMES).zip(llr) {
            *sum = Cusum::resume(name, nats)?;
        }
        sequential::check_consistent("fp_rounding", concluded, &sums)?;
        Ok(Self {
            sums,
            samples,
            concluded,
        })
    }

    /// Adds new samples, counted by rounding mode 0 to 3. No samples change nothing.
    pub fn add(&mut self, modes: [u64; 4]) {
        let total = modes.iter().fold(0u64, |sum, &n| sum.saturating_add(n));
        if total == 0 {
            return;
        }
        for (sum, hits) in self.sums.iter_mut().zip(modes) {
            sum.add(SHARES, hits, total - hits);
        }
        self.samples = self.samples.saturating_add(total);
        self.concluded = sequential::concluded(self.concluded, &self.sums);
    }

    /// The cumulative sum of each mode, nats, each within 0 to twice [`THRESHOLD_NATS`].
    #[must_use]
    pub fn llr(&self) -> [f64; 4] {
        self.sums.map(Cusum::nats)
    }

    /// Samples seen so far.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Whether the thread computes in all four modes.
    #[must_use]
    pub fn concluded(&self) -> bool {
        self.concluded
    }

    /// How near the test is to a conclusion: the least of the four sums, nats. Orders the threads of a tenant.
    #[must_use]
    pub fn least_llr(&self) -> f64 {
        self.llr().into_iter().fold(f64::INFINITY, f64::min)
    }
}
