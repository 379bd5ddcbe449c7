//! One tenant's evidence after a window: the domain's mirror of the wire's `Evidence`, field by field.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a sensor could do in a window. Never a zero that means "don't know".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SensorState {
    /// Has measured in this window.
    Live,
    /// Measured before, nothing new in this window.
    Stalled,
    /// Could measure, has not yet.
    #[default]
    NeverRan,
    /// Cannot measure here.
    Unsupported,
}

impl fmt::Display for SensorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Live => "live",
            Self::Stalled => "stalled",
            Self::NeverRan => "never ran",
            Self::Unsupported => "unsupported",
        })
    }
}

/// What `fp_rounding` found for a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct FpRounding {
    /// What the sensor could do.
    pub state: SensorState,
    /// Samples within the window by rounding mode (MXCSR.RC 0 to 3), all threads: registers that changed since the thread's previous sample.
    pub modes: [u64; 4],
    /// The test of the thread nearest to a conclusion: one cumulative sum per mode, nats.
    pub llr: [f64; 4],
    /// Samples that thread has given to its test.
    pub test_samples: u64,
    /// Whether any thread's test stands concluded.
    pub concluded: bool,
    /// CPU time within the window of the threads whose own test stands concluded, ns.
    pub concluded_on_cpu_ns: u64,
    /// Threads whose own test stands concluded.
    pub concluded_threads: u32,
    /// Share of one CPU those threads used, averaged over the last minute; 0 to the number of CPUs.
    pub duty: f64,
}

/// What `register_randomness` found for a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct RegisterRandomness {
    /// What the sensor could do.
    pub state: SensorState,
    /// Samples within the window, all threads.
    pub samples: u64,
    /// Those of them with enough uniformly random, changed registers.
    pub random: u64,
    /// Samples within the window outside rounding mode 0.
    pub directed_samples: u64,
    /// Those of them with enough uniformly random, changed registers.
    pub directed_random: u64,
    /// Cumulative sum over all samples (any hashing), nats, of the thread nearest to a conclusion.
    pub any_llr: f64,
    /// Whether any thread's test over all samples stands concluded.
    pub any_concluded: bool,
    /// Samples that thread has given to its test.
    pub any_test_samples: u64,
    /// Cumulative sum over samples outside rounding mode 0 (RandomX), nats, of the thread nearest to a conclusion.
    pub directed_llr: f64,
    /// Whether any thread's test over samples outside rounding mode 0 stands concluded.
    pub directed_concluded: bool,
    /// Samples that thread has given to its test.
    pub directed_test_samples: u64,
    /// Samples of general registers within the window, all threads.
    pub general_samples: u64,
    /// Those of them with enough uniformly random, changed registers.
    pub general_random: u64,
    /// Cumulative sum over samples of general registers (hashing in scalar instructions), nats, of the thread nearest to a
    /// conclusion.
    pub general_llr: f64,
    /// Whether any thread's test over samples of general registers stands concluded.
    pub general_concluded: bool,
    /// Samples that thread has given to its test.
    pub general_test_samples: u64,
}

/// What all sensors found for a tenant, and the states of their tests after the window.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct TenantEvidence {
    /// Rounding modes.
    pub fp_rounding: FpRounding,
    /// Random registers.
    pub register_randomness: RegisterRandomness,
}
