//! `pmu`: does a thread's mix of floating-point operations look like `RandomX`'s, turn after turn?
//!
//! `RandomX` draws its instructions with fixed frequencies (specification, table 5.3 and `configuration.h`, out of 256): FADD_R 16 and
//! FADD_M 5, FSUB_R 16 and FSUB_M 5, FMUL_R 32, FDIV_M 4, FSQRT_R 6. Each compiles to one packed-double operation, so that over
//! many programs add : sub : mul : div : sqrt = 21 : 21 : 32 : 4 : 6, whatever the data. (FSWAP_R and FSCAL_R are shuffles and
//! logic; branches of a program repeat all kinds alike.) A program's own counts scatter; over the 160 programs of 20 hashes the
//! rarest kind is within 4 % (one standard deviation).
//!
//! A sample is one *turn*: every kind counted once, per instruction retired, since not all kinds can be counted at the same time.
//! It matches if the share of each kind is within [`TOLERANCE`] of `RandomX`'s.
//!
//! **Null hypothesis**: at most 2 % of a thread's turns match. **Alternative**: at least 60 %. One cumulative sum
//! ([`sequential`]); 11 matches in a row conclude. At the most turns a second there are ([`TURNS_PER_S_MAX`]) that is at most 0.0008
//! false conclusions per million VM-days of 64 threads, if turns are independent.
//!
//! Turns of one program are *not* independent: a program that happens to have this very mix matches all the time, and
//! no figure of this test covers that. With five kinds apart that takes five coincidences, among them as many additions as
//! subtractions and three square roots for two divisions; with three (add and subtract together, divide and square root together: AMD
//! Zen 1 to 3) only two independent ones, which an N-body simulation comes near to. So a mix alone is at most `suspect`
//! ([`verdict`](crate::verdict())); with all four rounding modes it is a second class of evidence.
//!
//! Limits: variants of `RandomX` with other frequencies have another mix; other floating-point work on the same vCPU shifts it.

use crate::sequential::{self, Cusum, ResumeError, Shares};

pub use crate::sequential::THRESHOLD_NATS;

pub(crate) const SHARES: Shares = Shares {
    null: 0.02,
    alternative: 0.60,
};

/// A share matches if it differs from `RandomX`'s by at most this part of that share. About four standard deviations of the rarest
/// kind in a turn that saw 20 hashes.
pub const TOLERANCE: f64 = 0.15;

/// With fewer turns than this a test that has not concluded says nothing: with nine turns of ten matching it concludes at
/// about 13 turns on average.
pub const TURNS_TO_TELL: u64 = 20;

/// Most turns per second a thread gives: counters change hands at most once a second.
pub const TURNS_PER_S_MAX: f64 = 1.0;

/// Divisions of one hash, `RandomX` v1: 8 programs × 2048 iterations × 4 FDIV_M in a program of 256 instructions (specification 4.5,
/// table 1.2). Branches that jump back repeat instructions; that is below 1 %.
pub const DIVISIONS_PER_HASH_V1: f64 = 65_536.0;

/// Divisions of one hash, `RandomX` v2: the same with programs of 384 instructions.
pub const DIVISIONS_PER_HASH_V2: f64 = 98_304.0;

/// Share of divisions among divisions and square roots in `RandomX`: 4 of 10.
pub const DIVISIONS_OF_DIV_SQRT: f64 = 0.4;

/// `RandomX`'s instructions of 256: add, sub, mul, div, sqrt.
const RANDOMX: [f64; 5] = [21.0, 21.0, 32.0, 4.0, 6.0];

/// How many operations of each kind a thread did, in any one unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mix {
    /// Each kind apart.
    Split {
        /// Additions.
        add: f64,
        /// Subtractions.
        sub: f64,
        /// Multiplications.
        mul: f64,
        /// Divisions.
        div: f64,
        /// Square roots.
        sqrt: f64,
    },
    /// As AMD Zen 1 to 3 count.
    Merged {
        /// Additions and subtractions.
        add_sub: f64,
        /// Multiplications.
        mul: f64,
        /// Divisions and square roots.
        div_sqrt: f64,
    },
}

impl Mix {
    /// Whether every share is `RandomX`'s within [`TOLERANCE`]. No operations at all match nothing.
    #[must_use]
    pub fn matches_randomx(&self) -> bool {
        let [r_add, r_sub, r_mul, r_div, r_sqrt] = RANDOMX;
        match *self {
            Self::Split {
                add,
                sub,
                mul,
                div,
                sqrt,
            } => shares_match([add, sub, mul, div, sqrt], RANDOMX),
            Self::Merged {
                add_sub,
                mul,
                div_sqrt,
            } => shares_match(
                [add_sub, mul, div_sqrt],
                [r_add + r_sub, r_mul, r_div + r_sqrt],
            ),
        }
    }
}

fn shares_match<const N: usize>(counts: [f64; N], weights: [f64; N]) -> bool {
    let (all, weight) = (counts.iter().sum::<f64>(), weights.iter().sum::<f64>());
    // Shares of nothing, and of what is no number, are NaN, which is within no bound.
    counts.iter().zip(weights).all(|(count, of)| {
        let (share, expected) = (count / all, of / weight);
        (share - expected).abs() <= TOLERANCE * expected
    })
}

/// Hashes per second that a rate of divisions amounts to, if all of them are `RandomX`'s: (as v2, as v1), the lower first.
#[must_use]
pub fn hash_rate(divisions_per_s: f64) -> (f64, f64) {
    (
        divisions_per_s / DIVISIONS_PER_HASH_V2,
        divisions_per_s / DIVISIONS_PER_HASH_V1,
    )
}

/// The sequential test of one thread. See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Test {
    sum: Cusum,
    turns: u64,
    concluded: bool,
}

impl Test {
    /// A test that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A test with the state another one had. It goes on exactly as that one would have.
    ///
    /// # Errors
    /// If the sum is NaN or not within 0 to twice [`THRESHOLD_NATS`], or contradicts `concluded`.
    pub fn resume(llr: f64, turns: u64, concluded: bool) -> Result<Self, ResumeError> {
        let sum = Cusum::resume("mix", llr)?;
        sequential::check_consistent("pmu mix", concluded, &[sum])?;
        Ok(Self {
            sum,
            turns,
            concluded,
        })
    }

    /// Adds turns: those that matched and those that did not.
    pub fn add(&mut self, matches: u64, misses: u64) {
        if matches == 0 && misses == 0 {
            return;
        }
        self.sum.add(SHARES, matches, misses);
        self.turns = self.turns.saturating_add(matches).saturating_add(misses);
        self.concluded = sequential::concluded(self.concluded, &[self.sum]);
    }

    /// The cumulative sum, nats, within 0 to twice [`THRESHOLD_NATS`].
    #[must_use]
    pub fn llr(&self) -> f64 {
        self.sum.nats()
    }

    /// Turns seen so far.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// Whether the thread's mix is `RandomX`'s.
    #[must_use]
    pub fn concluded(&self) -> bool {
        self.concluded
    }
}
