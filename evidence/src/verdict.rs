//! The rule from evidence to a verdict, written once, and its reasons in words and numbers.
//!
//! - `mining`: `fp_rounding` concluded **and** (`register_randomness` concluded outside rounding mode 0 **or** the mix of
//!   floating-point operations that `pmu` counts concluded) **and** the threads concluded used at least [`MINING_DUTY`] of one
//!   vCPU. Two classes of evidence, never one alone.
//! - `suspect`: anything concluded, but not all of that. RandomX below the duty (a node that verifies), and hashing
//!   that is not RandomX at whatever speed, in vector or in scalar instructions, end here: only a person can tell.
//! - `kvm_exits` and `msr_writes` are no classes of evidence: they add a reason in words and numbers, and never decide.
//! - `quiet`: nothing concluded. The reasons say whether that means "looked and found nothing" or "could not tell".

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

mod beside;

use crate::{
    FpOps, FpRounding, HashRate, Pmu, RegisterRandomness, SensorState, TenantEvidence, fp_rounding,
    pmu, register_randomness, sequential::THRESHOLD_NATS,
};

/// Least share of one vCPU, averaged over a minute, that the concluded threads use in a `mining`.
pub const MINING_DUTY: f64 = 0.25;

/// How the evidence is judged, in rising order.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing concluded.
    #[default]
    Quiet,
    /// Something concluded; not enough for `mining`.
    Suspect,
    /// RandomX, by two classes of evidence, at a miner's duty.
    Mining,
}

/// What is computed, where that can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// RandomX: all four rounding modes, with random registers outside mode 0.
    RandomX,
    /// Vectorised hashing in rounding mode 0. What general registers alone show has no name: public-key cryptography shows it too.
    #[serde(rename = "other hashing")]
    OtherHashing,
}

/// A text that names no level, or no family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of {expected}")]
pub struct ParseNameError {
    expected: &'static str,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Quiet => "quiet",
            Self::Suspect => "suspect",
            Self::Mining => "mining",
        })
    }
}

impl FromStr for Level {
    type Err = ParseNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Quiet, Self::Suspect, Self::Mining]
            .into_iter()
            .find(|level| level.to_string() == name)
            .ok_or(ParseNameError {
                expected: "quiet, suspect, mining",
            })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RandomX => "RandomX",
            Self::OtherHashing => "other hashing",
        })
    }
}

impl FromStr for Family {
    type Err = ParseNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::RandomX, Self::OtherHashing]
            .into_iter()
            .find(|family| family.to_string() == name)
            .ok_or(ParseNameError {
                expected: "RandomX, other hashing",
            })
    }
}

/// A level with its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// The level.
    pub level: Level,
    /// In words and numbers a reviewer can check. The first sums up, the others state each test's figures. Each is at
    /// most 500 characters, and there are at most 32.
    pub reasons: Vec<String>,
    /// What is computed; empty if that cannot be told.
    pub families: Vec<Family>,
}

/// Judges a tenant's evidence. See the module's documentation for the rule.
#[must_use]
pub fn verdict(evidence: &TenantEvidence) -> Verdict {
    let TenantEvidence {
        fp_rounding: fp,
        register_randomness: rr,
        kvm_exits,
        msr_writes,
        pmu,
    } = evidence;
    let mix = pmu.is_some_and(|pmu| pmu.mix_concluded);
    let randomx = fp.concluded && (rr.directed_concluded || mix);
    let level = if randomx && fp.duty >= MINING_DUTY {
        Level::Mining
    } else if fp.concluded || rr.directed_concluded || hashes(rr) || mix {
        Level::Suspect
    } else {
        Level::Quiet
    };
    let families = if randomx {
        vec![Family::RandomX]
    } else if rr.any_concluded && !fp.concluded && !rr.directed_concluded && !mix && has_told(fp) {
        vec![Family::OtherHashing]
    } else {
        Vec::new()
    };
    let mut reasons = vec![
        summary(level, fp, rr, mix),
        fp_rounding_reason(fp),
        any_reason(rr),
        directed_reason(rr),
        general_reason(rr),
    ];
    if let Some(pmu) = pmu {
        reasons.push(mix_reason(pmu));
        reasons.extend(pmu_figures(pmu));
    }
    if fp.concluded {
        reasons.push(duty_reason(fp));
    }
    reasons.extend(kvm_exits.as_ref().map(beside::kvm_exits));
    reasons.extend(msr_writes.as_ref().map(beside::msr_writes));
    Verdict {
        level,
        reasons,
        families,
    }
}

/// With so many samples of vector registers there are some of general registers, if those can be seen: one look in four is at them.
const GENERAL_DUE: u64 = 10 * register_randomness::SAMPLES_TO_TELL;

/// Whether a thread hashes, by whatever algorithm.
fn hashes(rr: &RegisterRandomness) -> bool {
    rr.any_concluded || rr.general_concluded
}

/// The first reason: which clause of the rule applied. `mix`: whether the mix of floating-point operations has concluded.
fn summary(level: Level, fp: &FpRounding, rr: &RegisterRandomness, mix: bool) -> String {
    let randomx = match (rr.directed_concluded, mix) {
        (true, false) => "computes in all four rounding modes on random registers, as RandomX does",
        (false, _) => {
            "computes in all four rounding modes with RandomX's mix of floating-point operations"
        }
        (true, true) => {
            "computes in all four rounding modes on random registers with RandomX's mix of floating-point operations"
        }
    };
    match level {
        Level::Mining => format!("mining: {randomx}, at or above the duty of a miner"),
        Level::Suspect => match (fp.concluded, rr.directed_concluded, mix) {
            (true, true, _) | (true, _, true) => {
                format!("suspect: {randomx}, but below the duty of a miner; a node that verifies does the same")
            }
            (true, false, false) => "suspect: computes in all four rounding modes; mining needs random registers outside mode 0 as well"
                .to_owned(),
            (false, true, _) => "suspect: random registers outside rounding mode 0; mining needs all four rounding modes as well"
                .to_owned(),
            (false, false, true) => "suspect: RandomX's mix of floating-point operations, which other programs may share; mining needs all \
                 four rounding modes as well"
                .to_owned(),
            (false, false, false) if rr.any_concluded && !has_told(fp) => {
                "suspect: hashes; whether with RandomX cannot be told yet, fp_rounding has not enough samples".to_owned()
            }
            (false, false, false) if rr.any_concluded => {
                "suspect: hashes, but not with RandomX; password servers, backups and VPNs do the same, so only a person can tell".to_owned()
            }
            (false, false, false) => "suspect: computes on random general registers, as hashing in scalar instructions does; public-key \
                 cryptography and password servers do the same, so only a person can tell"
                .to_owned(),
        },
        Level::Quiet => quiet_summary(fp, rr),
    }
}

/// Whether what `fp_rounding` did not find is not there.
fn has_told(fp: &FpRounding) -> bool {
    can_tell(fp.state) && fp.test_samples >= fp_rounding::SAMPLES_TO_TELL
}

/// Keeps "looked and found nothing" apart from "could not tell".
fn quiet_summary(fp: &FpRounding, rr: &RegisterRandomness) -> String {
    let rr_told = can_tell(rr.state) && rr.any_test_samples >= register_randomness::SAMPLES_TO_TELL;
    let stalled = |state| state == SensorState::Stalled;
    match (has_told(fp), rr_told) {
        (true, true) if stalled(fp.state) || stalled(rr.state) => {
            "quiet so far: the tests had enough samples and did not conclude, but nothing new was seen in this window".to_owned()
        }
        (true, true) if rr.general_test_samples == 0 && rr.any_test_samples >= GENERAL_DUE => {
            "quiet so far: fp_rounding and vector registers had enough samples and did not conclude; general registers, in which some \
             hashes compute, were never seen"
                .to_owned()
        }
        (true, true) if rr.general_test_samples >= register_randomness::SAMPLES_TO_TELL => {
            "quiet: all tests had enough samples, of the thread nearest to a conclusion, and none concluded".to_owned()
        }
        (true, true) => format!(
            "quiet so far: fp_rounding and vector registers had enough samples and did not conclude; general registers, in which some \
             hashes compute, cannot tell yet ({} of {} samples)",
            rr.general_test_samples,
            register_randomness::SAMPLES_TO_TELL
        ),
        (true, false) => {
            "quiet so far: fp_rounding had enough samples and did not conclude, register_randomness cannot tell yet".to_owned()
        }
        (false, true) => {
            "quiet so far: register_randomness had enough samples and did not conclude, fp_rounding cannot tell yet".to_owned()
        }
        (false, false) if !can_tell(fp.state) && !can_tell(rr.state) => {
            format!("quiet for want of evidence: nothing was measured (fp_rounding {}, register_randomness {})", fp.state, rr.state)
        }
        (false, false) => "quiet for want of evidence: not enough samples".to_owned(),
    }
}

fn can_tell(state: SensorState) -> bool {
    match state {
        SensorState::Live | SensorState::Stalled => true,
        SensorState::NeverRan | SensorState::Unsupported => false,
    }
}

fn fp_rounding_reason(fp: &FpRounding) -> String {
    let [m0, m1, m2, m3] = fp.modes;
    let samples: u64 = fp.modes.iter().fold(0, |sum, &n| sum.saturating_add(n));
    let shares = if samples == 0 {
        "no samples in this window".to_owned()
    } else {
        format!(
            "rounding modes 0/1/2/3 in {}/{}/{}/{} of {samples} samples in this window",
            percent(m0, samples),
            percent(m1, samples),
            percent(m2, samples),
            percent(m3, samples)
        )
    };
    let least = fp.llr.into_iter().fold(f64::INFINITY, f64::min);
    let standing = standing(
        fp.concluded,
        fp.state,
        least,
        fp.test_samples,
        fp_rounding::SAMPLES_TO_TELL,
        "samples of the thread nearest to a conclusion",
    );
    format!("fp_rounding: {standing}; {shares}")
}

fn any_reason(rr: &RegisterRandomness) -> String {
    let standing = standing(
        rr.any_concluded,
        rr.state,
        rr.any_llr,
        rr.any_test_samples,
        register_randomness::SAMPLES_TO_TELL,
        "samples of the thread nearest to a conclusion",
    );
    format!(
        "register_randomness, all samples: {standing}; {} with random registers in this window",
        of(rr.random, rr.samples)
    )
}

fn directed_reason(rr: &RegisterRandomness) -> String {
    // With enough samples none of which lies outside mode 0, the answer is known: nothing computes there.
    let nothing_there = rr.state == SensorState::Live
        && !rr.directed_concluded
        && rr.directed_samples == 0
        && rr.directed_test_samples == 0
        && rr.any_test_samples >= register_randomness::SAMPLES_TO_TELL;
    if nothing_there {
        return format!(
            "register_randomness, outside rounding mode 0: not concluded, {}; none of {} samples in this window lay there",
            nats(rr.directed_llr),
            rr.samples
        );
    }
    let standing = standing(
        rr.directed_concluded,
        rr.state,
        rr.directed_llr,
        rr.directed_test_samples,
        register_randomness::SAMPLES_TO_TELL,
        "samples there of the thread nearest to a conclusion",
    );
    format!(
        "register_randomness, outside rounding mode 0: {standing}; {} with random registers in this window",
        of(rr.directed_random, rr.directed_samples)
    )
}

fn general_reason(rr: &RegisterRandomness) -> String {
    let standing = standing(
        rr.general_concluded,
        rr.state,
        rr.general_llr,
        rr.general_test_samples,
        register_randomness::SAMPLES_TO_TELL,
        "samples of the thread nearest to a conclusion",
    );
    format!(
        "register_randomness, general registers: {standing}; {} with random registers in this window",
        of(rr.general_random, rr.general_samples)
    )
}

fn mix_reason(p: &Pmu) -> String {
    if p.mix_state == SensorState::Unsupported
        && p.state != SensorState::Unsupported
        && !p.mix_concluded
    {
        return "pmu, mix of floating-point operations: this CPU or its free counters do not tell them apart, so it says nothing"
            .to_owned();
    }
    let standing = standing(
        p.mix_concluded,
        p.mix_state,
        p.mix_llr,
        p.mix_turns,
        pmu::TURNS_TO_TELL,
        "turns of the thread nearest to a conclusion",
    );
    let matched = if p.turns == 0 {
        "no turn complete in this window".to_owned()
    } else {
        format!("{} of {} turns in this window matched", p.matches, p.turns)
    };
    format!("pmu, mix of floating-point operations: {standing}; {matched}")
}

/// The counters' figures, if anything was counted in the window.
fn pmu_figures(p: &Pmu) -> Option<String> {
    if p.state != SensorState::Live || p.instructions == 0 {
        return None;
    }
    let mut parts = vec![format!(
        "{:.2} instructions per cycle",
        p.instructions as f64 / p.cycles.max(1) as f64
    )];
    let per_1000 = |count: u64| count as f64 * 1000.0 / p.instructions as f64;
    for (count, what) in [
        (p.cache_misses, "cache misses"),
        (p.branch_misses, "branch misses"),
        (p.control_word_traps, "control-word traps"),
        (p.aes, "AES operations"),
        (p.sha, "SHA operations"),
    ] {
        parts.extend(count.map(|count| format!("{:.3} {what}", per_1000(count))));
    }
    parts.extend(fp_mix(&p.fp));
    if let Some(HashRate { low, high }) = p.hash_rate {
        parts.push(format!(
            "divisions for {low:.0} to {high:.0} H/s of RandomX"
        ));
    }
    if p.time_running_ns < p.time_enabled_ns {
        parts.push(format!(
            "counted in {} of the time and scaled",
            percent(p.time_running_ns, p.time_enabled_ns)
        ));
    }
    let tail = if parts.len() > 1 {
        " (misses, traps and operations per 1000 instructions)"
    } else {
        ""
    };
    Some(format!("pmu: {}{tail}", parts.join(", ")))
}

/// Shares of the kinds of floating-point operations, in per cent, if they are counted by kind.
fn fp_mix(fp: &FpOps) -> Option<String> {
    let shares = |names: &str, counts: &[u64]| {
        let all = counts.iter().fold(0_u64, |sum, &n| sum.saturating_add(n));
        (all > 0).then(|| {
            let shares: Vec<_> = counts
                .iter()
                .map(|&n| format!("{:.1}", n as f64 * 100.0 / all as f64))
                .collect();
            format!("{names} {} %", shares.join(":"))
        })
    };
    match *fp {
        FpOps {
            add: Some(add),
            sub: Some(sub),
            mul: Some(mul),
            div: Some(div),
            sqrt: Some(sqrt),
            ..
        } => shares("add:sub:mul:div:sqrt", &[add, sub, mul, div, sqrt]),
        FpOps {
            add_sub: Some(add_sub),
            mul: Some(mul),
            div_sqrt: Some(div_sqrt),
            ..
        } => shares("add/sub:mul:div/sqrt", &[add_sub, mul, div_sqrt]),
        _ => None,
    }
}

fn duty_reason(fp: &FpRounding) -> String {
    // Rounded down, so that a figure below the limit never reads as the limit.
    let percent = |share: f64| (share * 1000.0).floor() / 10.0;
    format!(
        "duty: the threads concluded used {:.1} % of one CPU over the last minute, {} the {:.1} % that mining needs",
        percent(fp.duty),
        if fp.duty >= MINING_DUTY {
            "at or above"
        } else {
            "below"
        },
        percent(MINING_DUTY)
    )
}

/// Where a test stands: its conclusion or why there is none, the state it is in, and its sum against the threshold.
fn standing(
    concluded: bool,
    state: SensorState,
    sum: f64,
    samples: u64,
    samples_to_tell: u64,
    samples_of: &str,
) -> String {
    let sum = nats(sum);
    let earlier = match state {
        SensorState::Live => "",
        SensorState::Stalled => " in earlier windows, stalled now",
        SensorState::NeverRan => " before the agent's start, not measured since",
        SensorState::Unsupported => " earlier, unsupported now",
    };
    if concluded {
        return format!("concluded{earlier}, {sum}");
    }
    match state {
        SensorState::Unsupported => "unsupported here, so it says nothing".to_owned(),
        SensorState::NeverRan => "never ran, so it says nothing".to_owned(),
        SensorState::Live | SensorState::Stalled => {
            let stalled = if state == SensorState::Stalled {
                ", stalled (nothing new in this window)"
            } else {
                ""
            };
            if samples < samples_to_tell {
                format!(
                    "not enough samples to tell ({samples} {samples_of}, {samples_to_tell} needed){stalled}, {sum}"
                )
            } else {
                format!("not concluded after {samples} {samples_of}{stalled}, {sum}")
            }
        }
    }
}

fn nats(sum: f64) -> String {
    // Rounded down, so that a sum below the threshold never reads as the threshold.
    format!(
        "{:.1} nats of the {THRESHOLD_NATS} that conclude",
        (sum * 10.0).floor() / 10.0
    )
}

fn of(part: u64, whole: u64) -> String {
    if whole == 0 {
        "no samples".to_owned()
    } else {
        format!("{part} of {whole} samples ({})", percent(part, whole))
    }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}
