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

/// Floating-point operations by kind. `None`: not counted here, or not in this window.
///
/// Where divisions and square roots are counted together the unit is FLOPs (AMD Zen 1 to 3: two for a packed-double operation), else
/// operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FpOps {
    /// Additions.
    pub add: Option<u64>,
    /// Subtractions.
    pub sub: Option<u64>,
    /// Both, where they are not counted apart.
    pub add_sub: Option<u64>,
    /// Multiplications.
    pub mul: Option<u64>,
    /// Divisions.
    pub div: Option<u64>,
    /// Square roots.
    pub sqrt: Option<u64>,
    /// Both, where they are not counted apart.
    pub div_sqrt: Option<u64>,
    /// Packed-double operations of all kinds (Intel, which does not tell kinds apart).
    pub packed_double: Option<u64>,
}

/// Hashes per second, if all divisions of the threads concluded were `RandomX`'s.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct HashRate {
    /// If it is v2, H/s.
    pub low: f64,
    /// If it is v1, H/s.
    pub high: f64,
}

/// What `pmu` counted for a tenant: of a droplet in its guests alone, of another tenant in user space alone.
///
/// Counts are of the window, all threads, and estimates: what was counted in part of the time (counters taken in turns, or
/// short) is scaled to all of it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Pmu {
    /// What the sensor could do.
    pub state: SensorState,
    /// What the test of the mix could do: unsupported where the CPU does not count operations by kind.
    pub mix_state: SensorState,
    /// CPU cycles.
    pub cycles: u64,
    /// Instructions retired.
    pub instructions: u64,
    /// Cache misses, as the kernel's generic event of that name counts on this CPU; `None` if not counted in this window.
    pub cache_misses: Option<u64>,
    /// Mispredicted branches; `None` likewise.
    pub branch_misses: Option<u64>,
    /// Floating-point operations.
    pub fp: FpOps,
    /// Traps because a control word (rounding mode) was mispredicted; AMD Zen 1 to 4.
    pub control_word_traps: Option<u64>,
    /// Cycles in which a divider was busy; Intel.
    pub divider_cycles: Option<u64>,
    /// AES operations; AMD Zen 4 and newer.
    pub aes: Option<u64>,
    /// SHA operations; AMD Zen 4 and newer.
    pub sha: Option<u64>,
    /// Time for which counting was asked for while the threads ran, ns.
    pub time_enabled_ns: u64,
    /// Time for which cycles and instructions were in fact counted, ns: less if counters were short.
    pub time_running_ns: u64,
    /// Turns complete in this window: mixes given to a test.
    pub turns: u64,
    /// Those that matched.
    pub matches: u64,
    /// The sum of the thread nearest to a conclusion, nats.
    pub mix_llr: f64,
    /// Turns that thread has given to its test.
    pub mix_turns: u64,
    /// Whether any thread's test stands concluded.
    pub mix_concluded: bool,
    /// What the divisions of the threads concluded amount to; `None` if none has concluded or divisions were not counted.
    pub hash_rate: Option<HashRate>,
}

/// What all sensors found for a tenant, and the states of their tests after the window.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct TenantEvidence {
    /// Rounding modes.
    pub fp_rounding: FpRounding,
    /// Random registers.
    pub register_randomness: RegisterRandomness,
    /// Performance counters; `None` from an agent without that sensor.
    #[serde(default)]
    pub pmu: Option<Pmu>,
}
