//! Durations and limits of the rules: the provider's to change, within bounds. The defaults are the design's.

use std::{cmp::Ordering, fmt};

use serde::{Deserialize, Serialize};

use crate::time::Span;

/// The rules' figures. Stored with every decision, so that it can be replayed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// After so long without anything but quiet windows an episode ends, ms.
    pub episode_quiet_ms: Span,
    /// Evidence older than this says nothing about now, ms.
    pub evidence_fresh_ms: Span,
    /// An account engaged longer ago is long-standing, ms.
    pub long_standing_ms: Span,
    /// How long an unlock holds automation off, ms.
    pub hold_ms: Span,
    /// Facts that change (payments, run rate, flags, vouching, inventory) are stale after this, ms.
    pub facts_fresh_ms: Span,
    /// Facts must be at most so old when an action is released, ms.
    pub release_facts_fresh_ms: Span,
    /// Droplets created within so long are a burst, ms.
    pub burst_within_ms: Span,
    /// A throttle ends by itself after this, ms.
    pub throttle_ms: Span,
    /// A person's first answer is due after this, ms.
    pub first_answer_ms: Span,
    /// An unanswered lock or power-down goes back to a throttle this long after the customer spoke, ms.
    pub step_back_ms: Span,
    /// Run rate up to so many times the last invoice is good standing.
    pub run_rate_times: u64,
    /// Automated actions within an hour, over all accounts.
    pub budget_per_hour: u64,
    /// Share of the fleet's droplets that may be under automated actions at one time, per mille.
    pub budget_fleet_per_mille: u64,
    /// An automated plan that was not released within this is void, ms.
    pub plan_fresh_ms: Span,
    /// The control plane is to refuse what reaches it later than this after its release; after twice as long without an answer a
    /// release is in doubt, ms.
    pub delivery_ms: Span,
    /// While an episode lasts, facts are fetched anew after this, ms.
    pub facts_refresh_ms: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            episode_quiet_ms: Span::hours(24),
            evidence_fresh_ms: Span::minutes(5),
            long_standing_ms: Span::days(90),
            hold_ms: Span::days(30),
            facts_fresh_ms: Span::hours(24),
            release_facts_fresh_ms: Span::seconds(60),
            burst_within_ms: Span::minutes(30),
            throttle_ms: Span::hours(24),
            first_answer_ms: Span::minutes(15),
            step_back_ms: Span::hours(2),
            run_rate_times: 3,
            budget_per_hour: 20,
            budget_fleet_per_mille: 10,
            plan_fresh_ms: Span::minutes(10),
            delivery_ms: Span::seconds(30),
            facts_refresh_ms: Span::hours(1),
        }
    }
}

/// A setting out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}, but must be {least} to {most}")]
pub struct SettingsError {
    name: &'static str,
    value: u64,
    least: u64,
    most: u64,
}

impl Settings {
    /// Of a `settings.toml`; what it does not name is as by default.
    ///
    /// # Errors
    /// In a sentence: no TOML, a key that is none, a value out of its range.
    pub fn of_toml(text: &str) -> Result<Self, String> {
        let settings: Self =
            toml::from_str(text).map_err(|error| error.message().replace('\n', " "))?;
        settings.check().map_err(|error| error.to_string())?;
        Ok(settings)
    }

    /// Each setting that is another one in `other`, by name, with both values.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<(String, String, String)> {
        let values = |settings| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(values)) => values,
            _ => serde_json::Map::new(),
        };
        let (ours, theirs) = (values(self), values(other));
        let both = ours.into_iter().zip(theirs);
        both.filter(|((_, ours), (_, theirs))| ours != theirs)
            .map(|((name, ours), (_, theirs))| (name, ours.to_string(), theirs.to_string()))
            .collect()
    }

    /// Figures that speak less for customers than the design's: allowed, to be said aloud. By name, with what they do.
    #[must_use]
    pub fn concerns(&self) -> Vec<(&'static str, String)> {
        fn weaker<T: Ord + fmt::Display>(
            (name, what): (&'static str, &str),
            side: Ordering,
            (ours, design): (T, T),
        ) -> Option<(&'static str, String)> {
            (ours.cmp(&design) == side)
                .then(|| (name, format!("{ours} instead of {design}: {what}")))
        }
        /// A setting, which side of the design's figure is weaker, and what that does.
        macro_rules! weaker {
            ($($name:ident, $side:ident, $what:literal;)*) => {{
                let design = Self::default();
                [$(weaker((stringify!($name), $what), Ordering::$side, (self.$name, design.$name)),)*]
            }};
        }
        let all = weaker! {
            hold_ms, Less, "after an unlock automation is held off for less";
            long_standing_ms, Greater, "customers are long-standing later";
            facts_fresh_ms, Greater, "older facts speak against a customer";
            evidence_fresh_ms, Greater, "older evidence speaks against a customer";
            burst_within_ms, Greater, "slower growth counts as a burst";
            episode_quiet_ms, Greater, "evidence adds up over longer pauses";
            first_answer_ms, Greater, "customers wait longer before somebody is paged";
            plan_fresh_ms, Greater, "older plans are carried out";
            delivery_ms, Greater, "an order may be carried out longer after its last look at the safeties";
            run_rate_times, Less, "good standing is lost at a lower run rate";
            budget_per_hour, Greater, "automation may act more often";
            budget_fleet_per_mille, Greater, "automation may act on more of the fleet at one time";
        };
        all.into_iter().flatten().collect()
    }

    /// Refuses settings that would take a safety away: no hold, nobody long-standing, no limit to a budget. What weakens one is told by
    /// [`Self::concerns`].
    ///
    /// # Errors
    /// The first setting out of its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let day = Span::days(1).as_ms();
        for (name, value, least, most) in [
            (
                "episode_quiet_ms",
                self.episode_quiet_ms.as_ms(),
                1_000,
                30 * day,
            ),
            (
                "evidence_fresh_ms",
                self.evidence_fresh_ms.as_ms(),
                1_000,
                day,
            ),
            (
                "long_standing_ms",
                self.long_standing_ms.as_ms(),
                1_000,
                3_650 * day,
            ),
            ("hold_ms", self.hold_ms.as_ms(), 1_000, 3_650 * day),
            (
                "facts_fresh_ms",
                self.facts_fresh_ms.as_ms(),
                1_000,
                7 * day,
            ),
            (
                "release_facts_fresh_ms",
                self.release_facts_fresh_ms.as_ms(),
                1,
                60_000,
            ),
            ("burst_within_ms", self.burst_within_ms.as_ms(), 1_000, day),
            ("throttle_ms", self.throttle_ms.as_ms(), 1_000, day),
            ("first_answer_ms", self.first_answer_ms.as_ms(), 1_000, day),
            (
                "step_back_ms",
                self.step_back_ms.as_ms(),
                1_000,
                2 * 3_600_000,
            ),
            ("run_rate_times", self.run_rate_times, 1, 100),
            ("budget_per_hour", self.budget_per_hour, 0, 10_000),
            (
                "budget_fleet_per_mille",
                self.budget_fleet_per_mille,
                0,
                500,
            ),
            (
                "plan_fresh_ms",
                self.plan_fresh_ms.as_ms(),
                1_000,
                3_600_000,
            ),
            ("delivery_ms", self.delivery_ms.as_ms(), 1_000, 300_000),
            (
                "facts_refresh_ms",
                self.facts_refresh_ms.as_ms(),
                1_000,
                day,
            ),
        ] {
            if !(least..=most).contains(&value) {
                return Err(SettingsError {
                    name,
                    value,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_speaks_less_for_customers_than_the_design_is_told_and_what_speaks_more_is_not() {
        assert_eq!(Settings::default().concerns(), []);
        let kinder = "hold_ms = 7776000000\nlong_standing_ms = 86400000\nbudget_per_hour = 1";
        assert_eq!(Settings::of_toml(kinder).unwrap().concerns(), []);
        let harsher = Settings::of_toml("hold_ms = 1000\nbudget_fleet_per_mille = 500").unwrap();
        let told = harsher.concerns();
        let names: Vec<_> = told.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["hold_ms", "budget_fleet_per_mille"]);
        assert!(told[0].1.starts_with("1 s instead of 30 d: "), "{told:?}");
    }

    #[test]
    fn the_defaults_are_in_range_and_no_hold_is_not() {
        assert_eq!(Settings::default().check(), Ok(()));
        let without = Settings {
            hold_ms: Span::ZERO,
            ..Settings::default()
        };
        assert!(without.check().unwrap_err().to_string().contains("hold_ms"));
    }

    #[test]
    fn a_file_is_read_and_what_is_wrong_with_it_said() {
        let read = Settings::of_toml("hold_ms = 86400000").unwrap();
        assert_eq!(read.hold_ms, Span::days(1));
        let (name, ours, theirs) = &Settings::default().differing(&read)[0];
        assert_eq!(
            (name.as_str(), ours.as_str(), theirs.as_str()),
            ("hold_ms", "2592000000", "86400000")
        );
        for (text, why) in [
            ("hold_ms = 0", "hold_ms is 0"),
            ("hold = 1", "unknown field"),
            ("hold_ms", "expected"),
        ] {
            let error = Settings::of_toml(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn facts_at_release_are_never_older_than_a_minute() {
        let lax = Settings {
            release_facts_fresh_ms: Span::seconds(61),
            ..Settings::default()
        };
        assert!(lax.check().is_err());
    }
}
