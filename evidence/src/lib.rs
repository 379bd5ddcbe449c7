//! What the sensors found for a tenant, how sure that is, and what it amounts to.
//!
//! - [`fp_rounding`], [`register_randomness`] and [`pmu`] are the sequential tests of the sensors of the same names;
//!   [`sequential`] holds what they share: the cumulative sum, its threshold and its error rate.
//! - [`TenantEvidence`] is one tenant's evidence after a window: the window's counts and the tests' states.
//! - [`verdict`] is the one rule that turns evidence into `quiet`, `suspect` or `mining`, with reasons.
//!
//! Everything here is pure: no I/O, no clock, no randomness. The same evidence gives the same verdict, for ever.

pub mod fp_rounding;
pub mod pmu;
pub mod register_randomness;
pub mod sequential;

mod evidence;
mod verdict;

pub use evidence::{
    FpOps, FpRounding, HashRate, Pmu, RegisterRandomness, SensorState, TenantEvidence,
};
pub use sequential::ResumeError;
pub use verdict::{Family, Level, MINING_DUTY, ParseNameError, Verdict, verdict};
