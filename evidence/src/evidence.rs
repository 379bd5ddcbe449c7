//! One tenant's evidence after a window: the domain's mirror of the wire's `Evidence`, field by field.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::kvm_exits::Isa;

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

/// Most exit reasons that are named for a tenant.
pub const EXIT_REASONS_MAX: usize = 4;

/// From where `kvm_exits` has its figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitSource {
    /// KVM's own counters per vCPU.
    Counters,
    /// The tracepoint `kvm:kvm_exit`, where the counters cannot be read.
    Tracepoint,
}

/// One reason for exits; none if `count` is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExitReason {
    /// As the CPU numbers it.
    pub code: u32,
    /// Exits for it within the window.
    pub count: u64,
}

/// What `kvm_exits` found for a tenant's vCPUs within the window. `None` is "not known", never a zero.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct KvmExits {
    /// What the sensor could do.
    pub state: SensorState,
    /// Where the figures are from; `None` if there are none.
    pub source: Option<ExitSource>,
    /// Sum over the vCPUs of the time in which was counted, ns. KVM's counters are read when a vCPU is switched in, so this is
    /// not the window's span.
    pub observed_ns: u64,
    /// All VM exits.
    pub exits: u64,
    /// HLT. A guest that may halt without leaving (`cpu-pm=on`) has none.
    pub halts: Option<u64>,
    /// Port I/O.
    pub io: Option<u64>,
    /// Memory-mapped I/O.
    pub mmio: Option<u64>,
    /// Interrupts of the host.
    pub interrupts: Option<u64>,
    /// Hypercalls.
    pub hypercalls: Option<u64>,
    /// Whose `reasons`.
    pub isa: Option<Isa>,
    /// The most frequent reasons, as far as the source tells reasons (the tracepoint does).
    pub reasons: [ExitReason; EXIT_REASONS_MAX],
}

impl KvmExits {
    /// Adds another part of the same tenant's figures, saturating; the state is left to the caller. What only one of them
    /// knows is known of that part alone.
    pub fn add(&mut self, other: &Self) {
        let Self {
            state: _,
            source,
            observed_ns,
            exits,
            halts,
            io,
            mmio,
            interrupts,
            hypercalls,
            isa,
            reasons,
        } = other;
        self.source = source.or(self.source);
        self.observed_ns = self.observed_ns.saturating_add(*observed_ns);
        self.exits = self.exits.saturating_add(*exits);
        for (sum, more) in [
            (&mut self.halts, halts),
            (&mut self.io, io),
            (&mut self.mmio, mmio),
            (&mut self.interrupts, interrupts),
            (&mut self.hypercalls, hypercalls),
        ] {
            *sum = add_known(*sum, *more);
        }
        self.isa = isa.or(self.isa);
        let mut all: Vec<ExitReason> = self.reasons.to_vec();
        for reason in reasons.iter().filter(|reason| reason.count > 0) {
            match all
                .iter_mut()
                .find(|one| one.count > 0 && one.code == reason.code)
            {
                Some(one) => one.count = one.count.saturating_add(reason.count),
                None => all.push(*reason),
            }
        }
        self.reasons = most_frequent(all);
    }
}

/// The sum of what is known; `None` if nothing is.
#[must_use]
pub fn add_known(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (known, None) | (None, known) => known,
    }
}

/// The most frequent of the reasons, most frequent first.
#[must_use]
pub fn most_frequent(mut all: Vec<ExitReason>) -> [ExitReason; EXIT_REASONS_MAX] {
    all.retain(|reason| reason.count > 0);
    all.sort_by_key(|reason| (std::cmp::Reverse(reason.count), reason.code));
    all.resize(EXIT_REASONS_MAX, ExitReason::default());
    std::array::from_fn(|at| all.get(at).copied().unwrap_or_default())
}

/// What `msr_writes` found for a tenant's vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct MsrWrites {
    /// What the sensor could do.
    pub state: SensorState,
    /// Writes to the prefetcher's registers within the window.
    pub prefetcher_writes: u64,
    /// The same since the agent watches the tenant.
    pub prefetcher_writes_watched: u64,
}

/// What all sensors found for a tenant, and the states of their tests after the window.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct TenantEvidence {
    /// Rounding modes.
    pub fp_rounding: FpRounding,
    /// Random registers.
    pub register_randomness: RegisterRandomness,
    /// VM exits; `None`: not known (no vCPU, or an agent that does not measure it).
    #[serde(default)]
    pub kvm_exits: Option<KvmExits>,
    /// Writes to model-specific registers; `None`: likewise.
    #[serde(default)]
    pub msr_writes: Option<MsrWrites>,
    /// Performance counters; `None` from an agent without that sensor.
    #[serde(default)]
    pub pmu: Option<Pmu>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(code: u32, count: u64) -> ExitReason {
        ExitReason { code, count }
    }

    #[test]
    fn parts_add_up_and_what_nobody_knows_stays_unknown() {
        let part = |halts, reasons: &[ExitReason]| KvmExits {
            exits: 10,
            observed_ns: 5,
            halts,
            reasons: most_frequent(reasons.to_vec()),
            ..KvmExits::default()
        };
        let mut sum = part(None, &[reason(1, 3), reason(2, 2)]);
        sum.add(&part(Some(4), &[reason(2, 5)]));
        assert_eq!(
            (sum.exits, sum.observed_ns, sum.halts, sum.io),
            (20, 10, Some(4), None)
        );
        assert_eq!(sum.reasons[..3], [reason(2, 7), reason(1, 3), reason(0, 0)]);
    }

    #[test]
    fn only_the_most_frequent_reasons_are_kept() {
        let all = (0..9).map(|code| reason(code, u64::from(code))).collect();
        assert_eq!(most_frequent(all).map(|one| one.code), [8, 7, 6, 5]);
    }
}
