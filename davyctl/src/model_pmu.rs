//! What performance counters showed of a tenant, as `--json` prints it. `null` is "not counted", never a zero.

use davy_proto::v1;
use serde::Serialize;

use crate::model::state;

/// What `pmu` counted in a window; counts are scaled to all of it.
#[derive(Debug, Serialize)]
pub struct Pmu {
    /// `live`, `stalled`, `never_ran`, `unsupported`.
    pub state: &'static str,
    /// The same of the test of the mix of floating-point operations.
    pub mix_state: &'static str,
    /// CPU cycles.
    pub cycles: u64,
    /// Instructions retired.
    pub instructions: u64,
    /// Cache misses.
    pub cache_misses: Option<u64>,
    /// Mispredicted branches.
    pub branch_misses: Option<u64>,
    /// Floating-point operations; FLOPs where `div_sqrt` is there.
    pub fp: FpOps,
    /// Traps because a control word was mispredicted.
    pub control_word_traps: Option<u64>,
    /// Cycles in which a divider was busy.
    pub divider_cycles: Option<u64>,
    /// AES operations.
    pub aes: Option<u64>,
    /// SHA operations.
    pub sha: Option<u64>,
    /// Time for which counting was asked for while the threads ran.
    pub time_enabled_ns: u64,
    /// Time for which cycles and instructions were counted.
    pub time_running_ns: u64,
    /// Complete mixes.
    pub turns: u64,
    /// Those that matched RandomX's.
    pub matches: u64,
    /// The mix's test, nats.
    pub mix_llr: f64,
    /// Mixes given to it.
    pub mix_turns: u64,
    /// Whether it has concluded.
    pub mix_concluded: bool,
    /// What the divisions amount to, hashes per second, at least.
    pub hash_rate_low: Option<f64>,
    /// The same, at most.
    pub hash_rate_high: Option<f64>,
}

/// Floating-point operations by kind.
#[derive(Debug, Serialize)]
pub struct FpOps {
    /// Additions.
    pub add: Option<u64>,
    /// Subtractions.
    pub sub: Option<u64>,
    /// Both, where not counted apart.
    pub add_sub: Option<u64>,
    /// Multiplications.
    pub mul: Option<u64>,
    /// Divisions.
    pub div: Option<u64>,
    /// Square roots.
    pub sqrt: Option<u64>,
    /// Both, where not counted apart.
    pub div_sqrt: Option<u64>,
    /// Packed-double operations of all kinds.
    pub packed_double: Option<u64>,
}

impl From<v1::Pmu> for Pmu {
    fn from(wire: v1::Pmu) -> Self {
        let v1::Pmu {
            state: sensor,
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
        } = wire;
        Self {
            state: state(sensor),
            mix_state: state(mix_state),
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
            mix_llr,
            mix_turns,
            mix_concluded,
            hash_rate_low,
            hash_rate_high,
        }
    }
}

impl Pmu {
    /// The figures in one line.
    pub fn in_words(&self) -> String {
        if self.state != "live" || self.cycles == 0 {
            return self.state.replace('_', " ");
        }
        #[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
        let per_cycle = self.instructions as f64 / self.cycles as f64;
        let mut text = format!("{per_cycle:.2} instructions per cycle");
        if self.turns > 0 {
            text += &format!(
                "; mix of RandomX in {} of {} turns",
                self.matches, self.turns
            );
        }
        if let (Some(low), Some(high)) = (self.hash_rate_low, self.hash_rate_high) {
            text += &format!("; {low:.0} to {high:.0} H/s");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::Pmu {
        v1::Pmu {
            state: v1::SensorState::Live.into(),
            mix_state: v1::SensorState::Live.into(),
            cycles: 200,
            instructions: 300,
            turns: 4,
            matches: 3,
            hash_rate_low: Some(400.2),
            hash_rate_high: Some(600.3),
            ..v1::Pmu::default()
        }
    }

    #[test]
    fn figures_are_said_in_one_line() {
        assert_eq!(
            Pmu::from(wire()).in_words(),
            "1.50 instructions per cycle; mix of RandomX in 3 of 4 turns; 400 to 600 H/s"
        );
    }

    #[test]
    fn a_sensor_that_did_not_count_shows_its_state_and_no_figures() {
        let never = v1::Pmu {
            state: v1::SensorState::NeverRan.into(),
            ..wire()
        };
        assert_eq!(Pmu::from(never).in_words(), "never ran");
    }

    #[test]
    fn what_was_not_counted_is_null() {
        let json = serde_json::to_value(Pmu::from(wire())).unwrap();
        assert!(json["cache_misses"].is_null());
        assert!(json["fp"]["div"].is_null());
    }
}
