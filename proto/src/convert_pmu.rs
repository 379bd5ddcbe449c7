//! Conversions of what `pmu` counted. As in [`convert`](crate::convert): from the wire everything is checked.

use davy_evidence::{FpOps, HashRate, Pmu};

use crate::{
    convert::{ConvertError, LLR_NATS_MAX, number, sensor_state},
    v1,
};

/// Greatest hash rate, H/s: 100 kH/s for each of the most CPUs a host has, more than ten times what the fastest core does.
const HASH_RATE_MAX: f64 = 8_192.0 * 100_000.0;

impl From<&Pmu> for v1::Pmu {
    fn from(pmu: &Pmu) -> Self {
        let Pmu {
            state,
            mix_state,
            cycles,
            instructions,
            cache_misses,
            branch_misses,
            fp,
            control_word_traps,
            divider_cycles,
            aes,
            sha,
            time_enabled_ns,
            time_running_ns,
            turns,
            matches,
            mix_llr,
            mix_turns,
            mix_concluded,
            hash_rate,
        } = *pmu;
        let FpOps {
            add,
            sub,
            add_sub,
            mul,
            div,
            sqrt,
            div_sqrt,
            packed_double,
        } = fp;
        Self {
            state: v1::SensorState::from(state).into(),
            mix_state: v1::SensorState::from(mix_state).into(),
            cycles,
            instructions,
            cache_misses,
            branch_misses,
            fp_add: add,
            fp_sub: sub,
            fp_add_sub: add_sub,
            fp_mul: mul,
            fp_div: div,
            fp_sqrt: sqrt,
            fp_div_sqrt: div_sqrt,
            fp_packed_double: packed_double,
            control_word_traps,
            divider_cycles,
            aes,
            sha,
            time_enabled_ns,
            time_running_ns,
            turns,
            matches,
            mix_llr,
            mix_turns,
            mix_concluded,
            hash_rate_low: hash_rate.map(|rate| rate.low),
            hash_rate_high: hash_rate.map(|rate| rate.high),
        }
    }
}

impl TryFrom<&v1::Pmu> for Pmu {
    type Error = ConvertError;

    fn try_from(wire: &v1::Pmu) -> Result<Self, ConvertError> {
        let v1::Pmu {
            state,
            mix_state,
            cycles,
            instructions,
            cache_misses,
            branch_misses,
            fp_add,
            fp_sub,
            fp_add_sub,
            fp_mul,
            fp_div,
            fp_sqrt,
            fp_div_sqrt,
            fp_packed_double,
            control_word_traps,
            divider_cycles,
            aes,
            sha,
            time_enabled_ns,
            time_running_ns,
            turns,
            matches,
            mix_llr,
            mix_turns,
            mix_concluded,
            hash_rate_low,
            hash_rate_high,
        } = *wire;
        Ok(Self {
            state: sensor_state("evidence.pmu.state", state)?,
            mix_state: sensor_state("evidence.pmu.mix_state", mix_state)?,
            cycles,
            instructions,
            cache_misses,
            branch_misses,
            fp: FpOps {
                add: fp_add,
                sub: fp_sub,
                add_sub: fp_add_sub,
                mul: fp_mul,
                div: fp_div,
                sqrt: fp_sqrt,
                div_sqrt: fp_div_sqrt,
                packed_double: fp_packed_double,
            },
            control_word_traps,
            divider_cycles,
            aes,
            sha,
            time_enabled_ns,
            time_running_ns,
            turns,
            matches,
            mix_llr: number("evidence.pmu.mix_llr", mix_llr, LLR_NATS_MAX)?,
            mix_turns,
            mix_concluded,
            hash_rate: hash_rate(hash_rate_low, hash_rate_high)?,
        })
    }
}

fn hash_rate(low: Option<f64>, high: Option<f64>) -> Result<Option<HashRate>, ConvertError> {
    const LOW: &str = "evidence.pmu.hash_rate_low";
    const HIGH: &str = "evidence.pmu.hash_rate_high";
    match (low, high) {
        (None, None) => Ok(None),
        (Some(low), Some(high)) => {
            let high = number(HIGH, high, HASH_RATE_MAX)?;
            let low = number(LOW, low, high)?;
            Ok(Some(HashRate { low, high }))
        }
        (None, Some(_)) => Err(ConvertError::Missing { field: LOW }),
        (Some(_), None) => Err(ConvertError::Missing { field: HIGH }),
    }
}

#[cfg(test)]
mod tests {
    use davy_evidence::{SensorState, TenantEvidence};
    use prost::Message;

    use super::*;

    fn pmu() -> Pmu {
        Pmu {
            state: SensorState::Live,
            mix_state: SensorState::Stalled,
            cycles: 1,
            instructions: 2,
            cache_misses: Some(3),
            branch_misses: Some(0),
            fp: FpOps {
                add: Some(4),
                sub: Some(5),
                add_sub: Some(6),
                mul: Some(7),
                div: Some(8),
                sqrt: Some(9),
                div_sqrt: Some(10),
                packed_double: Some(11),
            },
            control_word_traps: Some(12),
            divider_cycles: Some(13),
            aes: Some(14),
            sha: Some(15),
            time_enabled_ns: 16,
            time_running_ns: 15,
            turns: 18,
            matches: 17,
            mix_llr: 19.5,
            mix_turns: 20,
            mix_concluded: true,
            hash_rate: Some(HashRate {
                low: 21.0,
                high: 22.0,
            }),
        }
    }

    fn refusal(change: impl FnOnce(&mut v1::Pmu)) -> String {
        let mut wire = v1::Pmu::from(&pmu());
        change(&mut wire);
        Pmu::try_from(&wire).unwrap_err().to_string()
    }

    #[test]
    fn every_figure_survives_the_wire_and_so_does_its_absence() {
        for pmu in [None, Some(Pmu::default()), Some(pmu())] {
            let evidence = TenantEvidence {
                pmu,
                ..TenantEvidence::default()
            };
            let bytes = v1::Evidence::from(&evidence).encode_to_vec();
            let wire = v1::Evidence::decode(bytes.as_slice()).unwrap();
            assert_eq!(TenantEvidence::try_from(&wire), Ok(evidence));
        }
    }

    #[test]
    fn bad_figures_are_refused_by_name() {
        assert_eq!(refusal(|p| p.state = 0), "evidence.pmu.state is missing");
        assert_eq!(
            refusal(|p| p.mix_state = 9),
            "evidence.pmu.mix_state has the unknown value 9"
        );
        assert_eq!(
            refusal(|p| p.mix_llr = f64::NAN),
            "evidence.pmu.mix_llr is NaN, which is not within 0 to 1000"
        );
        assert_eq!(
            refusal(|p| p.hash_rate_high = None),
            "evidence.pmu.hash_rate_high is missing"
        );
        assert_eq!(
            refusal(|p| p.hash_rate_low = Some(23.0)),
            "evidence.pmu.hash_rate_low is 23, which is not within 0 to 22"
        );
        assert!(
            refusal(|p| p.hash_rate_high = Some(f64::INFINITY)).contains("hash_rate_high is inf")
        );
    }
}
