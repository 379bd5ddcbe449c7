//! Conversions between wire and domain types: evidence, sensor states, levels, families and verdicts.
//!
//! From the domain to the wire nothing can fail. From the wire everything is checked, because whatever speaks gRPC can
//! send it: absent parts, unspecified or unknown enumerators, figures that are no numbers, texts without end. An
//! error names the field by its path in the `.proto` files. What depends on more than the message itself (whether CPU time fits the
//! window's span, say) is the receiver's to check.

use davy_evidence::{
    Family, FpRounding, Level, Pmu, RegisterRandomness, SensorState, TenantEvidence, Verdict,
};

use crate::v1;

/// Greatest value of a test's cumulative sum on the wire, nats. Far above the tests' own ceiling, so that agents
/// of another version are still understood.
pub const LLR_NATS_MAX: f64 = 1_000.0;
/// Greatest duty, in CPUs: the kernel's largest `CONFIG_NR_CPUS` on x86 (arch/x86/Kconfig, `NR_CPUS_RANGE_END`).
pub const DUTY_CPUS_MAX: f64 = 8_192.0;
/// Most reasons of a verdict.
pub const REASONS_MAX: usize = 32;
/// Longest reason, characters.
pub const REASON_CHARS_MAX: usize = 500;
/// Most families of a verdict.
pub const FAMILIES_MAX: usize = 8;

/// Why a wire message has no domain value. Each names the field.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConvertError {
    /// A part that must be there is absent, or an enumerator is unspecified.
    #[error("{field} is missing")]
    Missing {
        /// Path of the field.
        field: &'static str,
    },
    /// An enumerator this version does not know.
    #[error("{field} has the unknown value {value}")]
    UnknownValue {
        /// Path of the field.
        field: &'static str,
        /// As received.
        value: i32,
    },
    /// A name this version does not know.
    #[error("{field} has the unknown name {name:?}")]
    UnknownName {
        /// Path of the field.
        field: &'static str,
        /// As received, at most 64 characters of it.
        name: String,
    },
    /// A number that is NaN, infinite, or out of its range.
    #[error("{field} is {value}, which is not within 0 to {max}")]
    OutOfRange {
        /// Path of the field.
        field: &'static str,
        /// As received.
        value: f64,
        /// Greatest value allowed.
        max: f64,
    },
    /// A list of the wrong length.
    #[error("{field} has {len} entries; {expected} are allowed")]
    WrongLength {
        /// Path of the field.
        field: &'static str,
        /// As received.
        len: usize,
        /// Lengths allowed, in words.
        expected: &'static str,
    },
    /// A text that is empty, too long, or has control characters (which could steer a terminal or a log).
    #[error("{field} must have 1 to {chars_max} characters and no control characters")]
    BadText {
        /// Path of the field.
        field: &'static str,
        /// Most characters allowed.
        chars_max: usize,
    },
}

impl From<SensorState> for v1::SensorState {
    fn from(state: SensorState) -> Self {
        match state {
            SensorState::Live => Self::Live,
            SensorState::Stalled => Self::Stalled,
            SensorState::NeverRan => Self::NeverRan,
            SensorState::Unsupported => Self::Unsupported,
        }
    }
}

impl TryFrom<v1::SensorState> for SensorState {
    type Error = ConvertError;

    fn try_from(state: v1::SensorState) -> Result<Self, ConvertError> {
        sensor_state("state", state.into())
    }
}

/// A sensor state from its number on the wire; `field` is its path, for the error.
///
/// # Errors
/// [`ConvertError::Missing`] if unspecified, [`ConvertError::UnknownValue`] if unknown.
pub fn sensor_state(field: &'static str, value: i32) -> Result<SensorState, ConvertError> {
    match v1::SensorState::try_from(value) {
        Ok(v1::SensorState::Unspecified) => Err(ConvertError::Missing { field }),
        Ok(v1::SensorState::Live) => Ok(SensorState::Live),
        Ok(v1::SensorState::Stalled) => Ok(SensorState::Stalled),
        Ok(v1::SensorState::NeverRan) => Ok(SensorState::NeverRan),
        Ok(v1::SensorState::Unsupported) => Ok(SensorState::Unsupported),
        Err(_) => Err(ConvertError::UnknownValue { field, value }),
    }
}

impl From<Level> for v1::VerdictLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Quiet => Self::Quiet,
            Level::Suspect => Self::Suspect,
            Level::Mining => Self::Mining,
        }
    }
}

impl TryFrom<v1::VerdictLevel> for Level {
    type Error = ConvertError;

    fn try_from(level: v1::VerdictLevel) -> Result<Self, ConvertError> {
        verdict_level("level", level.into())
    }
}

/// A level from its number on the wire; `field` is its path, for the error.
///
/// # Errors
/// [`ConvertError::Missing`] if unspecified, [`ConvertError::UnknownValue`] if unknown.
pub fn verdict_level(field: &'static str, value: i32) -> Result<Level, ConvertError> {
    match v1::VerdictLevel::try_from(value) {
        Ok(v1::VerdictLevel::Unspecified) => Err(ConvertError::Missing { field }),
        Ok(v1::VerdictLevel::Quiet) => Ok(Level::Quiet),
        Ok(v1::VerdictLevel::Suspect) => Ok(Level::Suspect),
        Ok(v1::VerdictLevel::Mining) => Ok(Level::Mining),
        Err(_) => Err(ConvertError::UnknownValue { field, value }),
    }
}

impl From<&Verdict> for v1::Verdict {
    fn from(verdict: &Verdict) -> Self {
        let Verdict {
            level,
            reasons,
            families,
        } = verdict;
        Self {
            level: v1::VerdictLevel::from(*level).into(),
            reasons: reasons.clone(),
            families: families.iter().map(Family::to_string).collect(),
        }
    }
}

impl From<Verdict> for v1::Verdict {
    fn from(verdict: Verdict) -> Self {
        Self::from(&verdict)
    }
}

impl TryFrom<&v1::Verdict> for Verdict {
    type Error = ConvertError;

    fn try_from(wire: &v1::Verdict) -> Result<Self, ConvertError> {
        const FAMILIES: &str = "verdict.families";
        let v1::Verdict {
            level,
            reasons,
            families,
        } = wire;
        if reasons.is_empty() || reasons.len() > REASONS_MAX {
            return Err(ConvertError::WrongLength {
                field: "verdict.reasons",
                len: reasons.len(),
                expected: "1 to 32",
            });
        }
        if families.len() > FAMILIES_MAX {
            return Err(ConvertError::WrongLength {
                field: FAMILIES,
                len: families.len(),
                expected: "at most 8",
            });
        }
        for reason in reasons {
            check_text("verdict.reasons", reason, REASON_CHARS_MAX)?;
        }
        let families = families.iter().map(|name| {
            name.parse().map_err(|_| ConvertError::UnknownName {
                field: FAMILIES,
                name: name.chars().take(64).collect(),
            })
        });
        Ok(Self {
            level: verdict_level("verdict.level", *level)?,
            reasons: reasons.clone(),
            families: families.collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<v1::Verdict> for Verdict {
    type Error = ConvertError;

    fn try_from(wire: v1::Verdict) -> Result<Self, ConvertError> {
        Self::try_from(&wire)
    }
}

impl From<&TenantEvidence> for v1::Evidence {
    fn from(evidence: &TenantEvidence) -> Self {
        let TenantEvidence {
            fp_rounding,
            register_randomness,
            kvm_exits,
            msr_writes,
            pmu,
        } = evidence;
        Self {
            fp_rounding: Some(fp_rounding.into()),
            register_randomness: Some(register_randomness.into()),
            kvm_exits: kvm_exits.as_ref().map(Into::into),
            msr_writes: msr_writes.as_ref().map(Into::into),
            pmu: pmu.as_ref().map(v1::Pmu::from),
        }
    }
}

impl From<TenantEvidence> for v1::Evidence {
    fn from(evidence: TenantEvidence) -> Self {
        Self::from(&evidence)
    }
}

impl TryFrom<&v1::Evidence> for TenantEvidence {
    type Error = ConvertError;

    fn try_from(wire: &v1::Evidence) -> Result<Self, ConvertError> {
        let v1::Evidence {
            fp_rounding,
            register_randomness,
            kvm_exits,
            msr_writes,
            pmu,
        } = wire;
        let missing = |field| ConvertError::Missing { field };
        Ok(Self {
            fp_rounding: fp_rounding
                .as_ref()
                .ok_or_else(|| missing("evidence.fp_rounding"))?
                .try_into()?,
            register_randomness: register_randomness
                .as_ref()
                .ok_or_else(|| missing("evidence.register_randomness"))?
                .try_into()?,
            kvm_exits: kvm_exits.as_ref().map(TryInto::try_into).transpose()?,
            msr_writes: msr_writes.as_ref().map(TryInto::try_into).transpose()?,
            pmu: pmu.as_ref().map(Pmu::try_from).transpose()?,
        })
    }
}

impl TryFrom<v1::Evidence> for TenantEvidence {
    type Error = ConvertError;

    fn try_from(wire: v1::Evidence) -> Result<Self, ConvertError> {
        Self::try_from(&wire)
    }
}

impl From<&FpRounding> for v1::FpRounding {
    fn from(fp: &FpRounding) -> Self {
        let FpRounding {
            state,
            modes,
            llr,
            test_samples,
            concluded,
            concluded_on_cpu_ns,
            concluded_threads,
            duty,
        } = *fp;
        Self {
            state: v1::SensorState::from(state).into(),
            modes: modes.to_vec(),
            llr: llr.to_vec(),
            test_samples,
            concluded,
            concluded_on_cpu_ns,
            concluded_threads,
            duty,
        }
    }
}

impl TryFrom<&v1::FpRounding> for FpRounding {
    type Error = ConvertError;

    fn try_from(wire: &v1::FpRounding) -> Result<Self, ConvertError> {
        const LLR: &str = "evidence.fp_rounding.llr";
        let v1::FpRounding {
            state,
            modes,
            llr,
            test_samples,
            concluded,
            concluded_on_cpu_ns,
            concluded_threads,
            duty,
        } = wire;
        for nats in llr {
            number(LLR, *nats, LLR_NATS_MAX)?;
        }
        Ok(Self {
            state: sensor_state("evidence.fp_rounding.state", *state)?,
            modes: four("evidence.fp_rounding.modes", modes)?,
            llr: four(LLR, llr)?,
            test_samples: *test_samples,
            concluded: *concluded,
            concluded_on_cpu_ns: *concluded_on_cpu_ns,
            concluded_threads: *concluded_threads,
            duty: number("evidence.fp_rounding.duty", *duty, DUTY_CPUS_MAX)?,
        })
    }
}

impl From<&RegisterRandomness> for v1::RegisterRandomness {
    fn from(rr: &RegisterRandomness) -> Self {
        let RegisterRandomness {
            state,
            samples,
            random,
            directed_samples,
            directed_random,
            any_llr,
            any_concluded,
            directed_llr,
            directed_concluded,
            any_test_samples,
            directed_test_samples,
            general_samples,
            general_random,
            general_llr,
            general_concluded,
            general_test_samples,
        } = *rr;
        Self {
            state: v1::SensorState::from(state).into(),
            samples,
            random,
            directed_samples,
            directed_random,
            any_llr,
            any_concluded,
            directed_llr,
            directed_concluded,
            any_test_samples,
            directed_test_samples,
            general_samples,
            general_random,
            general_llr,
            general_concluded,
            general_test_samples,
        }
    }
}

impl TryFrom<&v1::RegisterRandomness> for RegisterRandomness {
    type Error = ConvertError;

    fn try_from(wire: &v1::RegisterRandomness) -> Result<Self, ConvertError> {
        let v1::RegisterRandomness {
            state,
            samples,
            random,
            directed_samples,
            directed_random,
            any_llr,
            any_concluded,
            directed_llr,
            directed_concluded,
            any_test_samples,
            directed_test_samples,
            general_samples,
            general_random,
            general_llr,
            general_concluded,
            general_test_samples,
        } = *wire;
        Ok(Self {
            state: sensor_state("evidence.register_randomness.state", state)?,
            samples,
            random,
            directed_samples,
            directed_random,
            any_llr: number(
                "evidence.register_randomness.any_llr",
                any_llr,
                LLR_NATS_MAX,
            )?,
            any_concluded,
            directed_llr: number(
                "evidence.register_randomness.directed_llr",
                directed_llr,
                LLR_NATS_MAX,
            )?,
            directed_concluded,
            any_test_samples,
            directed_test_samples,
            general_samples,
            general_random,
            general_llr: number(
                "evidence.register_randomness.general_llr",
                general_llr,
                LLR_NATS_MAX,
            )?,
            general_concluded,
            general_test_samples,
        })
    }
}

mod guests;

fn four<T: Copy>(field: &'static str, list: &[T]) -> Result<[T; 4], ConvertError> {
    list.try_into().map_err(|_| ConvertError::WrongLength {
        field,
        len: list.len(),
        expected: "exactly 4",
    })
}

pub(crate) fn number(field: &'static str, value: f64, max: f64) -> Result<f64, ConvertError> {
    // NaN is in no range.
    if (0.0..=max).contains(&value) {
        Ok(value)
    } else {
        Err(ConvertError::OutOfRange { field, value, max })
    }
}

fn check_text(field: &'static str, text: &str, chars_max: usize) -> Result<(), ConvertError> {
    let chars = text.chars().take(chars_max + 1).count();
    if chars == 0 || chars > chars_max || text.chars().any(char::is_control) {
        return Err(ConvertError::BadText { field, chars_max });
    }
    Ok(())
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
