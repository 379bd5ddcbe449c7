//! What the sensors found for a tenant, how sure that is, and what it amounts to.
//!
//! - [`fp_rounding`], [`register_randomness`] and [`pmu`] are the sequential tests of the sensors of the same names;
//!   [`sequential`] holds what they share: the cumulative sum, its threshold and its error rate.
//! - [`kvm_exits`] names why guests leave their vCPUs; that and writes to model-specific registers ([`MsrWrites`]) are told with a
//!   verdict and never decide it.
//! - [`TenantEvidence`] is one tenant's evidence after a window: the window's counts and the tests' states.
//! - [`verdict`] is the one rule that turns evidence into `quiet`, `suspect` or `mining`, with reasons.
//!
//! Everything here is pure: no I/O, no clock, no randomness. The same evidence gives the same verdict, for ever.

pub mod fp_rounding;
pub mod kvm_exits;
pub mod pmu;
pub mod register_randomness;
pub mod sequential;

mod evidence;
mod verdict;

pub use evidence::{
    EXIT_REASONS_MAX, ExitReason, ExitSource, FpOps, FpRounding, HashRate, KvmExits, MsrWrites,
    Pmu, RegisterRandomness, SensorState, TenantEvidence, add_known, most_frequent,
};
pub use sequential::ResumeError;
pub use verdict::{Family, Level, MINING_DUTY, ParseNameError, Verdict, verdict};
