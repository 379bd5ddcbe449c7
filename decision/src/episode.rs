//! An account's episode: its evidence added up over droplets, hosts and restarts, from the first verdict that is not quiet until a
//! day of quiet.
//!
//! Time adds up, not by droplet but by account: making droplets anew does not start afresh. Time in which several
//! droplets mine counts once. What is added is what a window covers, so "10 minutes of mining" never claims more than was seen.

use std::collections::BTreeMap;

use davy_evidence::Level;
use serde::{Deserialize, Serialize};

use crate::{
    account::DropletId,
    settings::Settings,
    time::{Span, Time},
};

/// Most droplets of an episode that are kept; those not seen for longest go first.
pub const DROPLETS_MAX: usize = 1_000;

/// Which classes of evidence stand concluded. CPU load is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Classes {
    /// All four rounding modes.
    pub fp_rounding: bool,
    /// Random registers.
    pub register_randomness: bool,
    /// The mix of floating-point operations.
    pub pmu: bool,
}

impl Classes {
    /// How many.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.fp_rounding as u64 + self.register_randomness as u64 + self.pmu as u64
    }
}

/// What a window said of a droplet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sighting {
    /// Which one.
    pub droplet: DropletId,
    /// Where.
    pub host: String,
    /// The window's begin.
    pub from: Time,
    /// Its end.
    pub to: Time,
    /// The verdict.
    pub level: Level,
    /// What it rests on.
    #[serde(default)]
    pub classes: Classes,
    /// CPU used, per cent of one CPU; no evidence.
    #[serde(default)]
    pub cpu_percent: u64,
    /// Time other droplets of the host waited for a CPU meanwhile, per cent of the window: harm done.
    #[serde(default)]
    pub neighbours_wait_percent: Option<u64>,
    /// The verdict's reasons.
    #[serde(default)]
    pub reasons: Vec<String>,
}

/// Time covered by windows, each moment once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Covered {
    /// How long together, ms.
    pub total_ms: Span,
    /// Up to where.
    pub until: Time,
}

impl Covered {
    fn add(&mut self, from: Time, to: Time) {
        let from = from.max(self.until);
        if to > from {
            self.total_ms = self.total_ms.plus(to - from);
            self.until = to;
        }
    }
}

/// A droplet within an episode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropletEvidence {
    /// What was seen last.
    pub last: Sighting,
    /// Time `mining`.
    pub mining: Covered,
    /// Time at least `suspect`.
    pub suspect: Covered,
    /// Whether it has been in the account's inventory during the episode, and did not compute on after it had left it.
    #[serde(default)]
    pub own: bool,
}

impl DropletEvidence {
    fn is_strange(&self) -> bool {
        !self.own && self.suspect.total_ms > Span::ZERO
    }
}

/// The account's evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Episode {
    /// Its number within the account, from 1.
    pub number: u64,
    /// When it began.
    pub since: Time,
    /// End of the last window that was not quiet.
    pub stirred: Time,
    /// Time in which any droplet was `mining`.
    pub mining: Covered,
    /// Time in which any droplet was at least `suspect`.
    pub suspect: Covered,
    /// Its droplets.
    pub droplets: BTreeMap<DropletId, DropletEvidence>,
}

impl Episode {
    /// Begins with a window that is not quiet.
    #[must_use]
    pub fn begin(number: u64, sighting: Sighting) -> Self {
        let mut episode = Self {
            number,
            since: sighting.from,
            stirred: sighting.to,
            mining: Covered::default(),
            suspect: Covered::default(),
            droplets: BTreeMap::new(),
        };
        episode.add(sighting);
        episode
    }

    /// Adds a window. One that ends before the droplet's last is too late and changes nothing. A `mining` that does not rest on two
    /// classes of evidence counts as `suspect`, whoever said it.
    pub fn add(&mut self, mut sighting: Sighting) {
        if sighting.level == Level::Mining && sighting.classes.count() < 2 {
            sighting.level = Level::Suspect;
        }
        let (from, to, level) = (sighting.from, sighting.to, sighting.level);
        let id = sighting.droplet.clone();
        if self.droplets.get(&id).is_some_and(|held| held.last.to > to) || from > to {
            return;
        }
        let droplet = self.droplets.entry(id).or_insert_with(|| DropletEvidence {
            last: sighting.clone(),
            mining: Covered::default(),
            suspect: Covered::default(),
            own: false,
        });
        droplet.last = sighting;
        if level >= Level::Suspect {
            droplet.suspect.add(from, to);
            self.suspect.add(from, to);
            self.stirred = self.stirred.max(to);
        }
        if level == Level::Mining {
            droplet.mining.add(from, to);
            self.mining.add(from, to);
        }
        while self.droplets.len() > DROPLETS_MAX {
            // Whose evidence may be another account's stays: it speaks for this one.
            let oldest = self
                .droplets
                .iter()
                .min_by_key(|(id, d)| (d.is_strange(), d.last.to, (*id).clone()));
            let Some(id) = oldest.map(|(id, _)| id.clone()) else {
                return;
            };
            self.droplets.remove(&id);
        }
    }

    /// Notes which of its droplets are in the account's inventory. One that was there once is the account's, though it is deleted since.
    pub fn recognise<'a>(&mut self, inventory: impl IntoIterator<Item = &'a DropletId>) {
        for id in inventory {
            if let Some(droplet) = self.droplets.get_mut(id) {
                droplet.own = true;
            }
        }
    }

    /// Notes that a droplet is not in the account's inventory, and computes on.
    pub fn estrange(&mut self, id: &DropletId) {
        if let Some(droplet) = self.droplets.get_mut(id) {
            droplet.own = false;
        }
    }

    /// Droplets that showed evidence and were never in the account's inventory, or computed on after they had left it: what they did may
    /// be another account's doing.
    pub fn strangers(&self) -> impl Iterator<Item = &DropletId> {
        let strange = |(_, droplet): &(_, &DropletEvidence)| droplet.is_strange();
        self.droplets.iter().filter(strange).map(|(id, _)| id)
    }

    /// Whether it has ended at `at`: nothing but quiet for long enough.
    #[must_use]
    pub fn is_over(&self, at: Time, settings: &Settings) -> bool {
        at - self.stirred >= settings.episode_quiet_ms
    }

    /// What it amounts to at `at`.
    #[must_use]
    pub fn summary(&self, at: Time, settings: &Settings) -> Summary {
        let fresh = |d: &&DropletEvidence| at - d.last.to <= settings.evidence_fresh_ms;
        let now = || self.droplets.values().filter(fresh);
        let level = now().map(|d| d.last.level).max().unwrap_or_default();
        let classes = now()
            .filter(|d| d.last.level == level)
            .map(|d| d.last.classes)
            .max_by_key(|classes| classes.count())
            .unwrap_or_default();
        Summary {
            level,
            classes,
            mining: self.mining.total_ms,
            suspect: self.suspect.total_ms,
            targets: now()
                .filter(|d| d.last.level == Level::Mining)
                .map(|d| d.last.droplet.clone())
                .collect(),
        }
    }
}

/// What an episode amounts to at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// The highest level any droplet shows now.
    pub level: Level,
    /// The classes of evidence of the droplet at that level that has most: never those of two droplets together.
    pub classes: Classes,
    /// Time `mining` in the episode, ms.
    pub mining: Span,
    /// Time at least `suspect` in the episode, ms.
    pub suspect: Span,
    /// Droplets that mine now.
    pub targets: Vec<DropletId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Time = Time::from_unix_ms(1_559_148_180_000);

    fn minute(n: u64) -> Time {
        T0.after(Span::minutes(n))
    }

    fn window(droplet: &str, from: u64, to: u64, level: Level) -> Sighting {
        Sighting {
            droplet: droplet.try_into().unwrap(),
            host: "h1".to_owned(),
            from: minute(from),
            to: minute(to),
            level,
            classes: Classes {
                fp_rounding: level == Level::Mining,
                register_randomness: true,
                pmu: false,
            },
            cpu_percent: 100,
            neighbours_wait_percent: None,
            reasons: Vec::new(),
        }
    }

    fn settings() -> Settings {
        Settings::default()
    }

    #[test]
    fn time_adds_up_over_droplets_and_each_moment_counts_once() {
        let mut episode = Episode::begin(1, window("a", 0, 4, Level::Mining));
        episode.add(window("b", 2, 6, Level::Mining));
        // A pause, and another droplet on another host.
        episode.add(window("c", 60, 64, Level::Mining));
        let summary = episode.summary(minute(64), &settings());
        assert_eq!(summary.mining, Span::minutes(10));
        assert_eq!(summary.targets, ["c".try_into().unwrap()]);
    }

    #[test]
    fn what_is_old_says_nothing_about_now() {
        let episode = Episode::begin(1, window("a", 0, 20, Level::Mining));
        assert_eq!(
            episode.summary(minute(24), &settings()).level,
            Level::Mining
        );
        let later = episode.summary(minute(26), &settings());
        assert_eq!((later.level, later.targets.len()), (Level::Quiet, 0));
        assert_eq!(later.mining, Span::minutes(20));
    }

    #[test]
    fn classes_of_two_droplets_are_not_added_up() {
        let one = |droplet, fp_rounding| Sighting {
            classes: Classes {
                fp_rounding,
                register_randomness: !fp_rounding,
                pmu: false,
            },
            ..window(droplet, 0, 1, Level::Suspect)
        };
        let mut episode = Episode::begin(1, one("a", true));
        episode.add(one("b", false));
        assert_eq!(episode.summary(minute(1), &settings()).classes.count(), 1);
    }

    #[test]
    fn a_verdict_on_one_class_is_suspicion_beside_another_droplets_two() {
        let one_class = Sighting {
            classes: Classes {
                register_randomness: true,
                ..Classes::default()
            },
            ..window("a", 0, 9, Level::Mining)
        };
        let mut episode = Episode::begin(1, one_class);
        episode.add(window("b", 9, 10, Level::Mining));
        let summary = episode.summary(minute(10), &settings());
        assert_eq!(
            (summary.level, summary.mining),
            (Level::Mining, Span::minutes(1))
        );
        assert_eq!(summary.suspect, Span::minutes(10));
        assert_eq!(summary.targets, ["b".try_into().unwrap()]);
    }

    #[test]
    fn a_window_that_comes_late_changes_nothing() {
        let mut episode = Episode::begin(1, window("a", 5, 6, Level::Suspect));
        let before = episode.clone();
        episode.add(window("a", 0, 5, Level::Mining));
        assert_eq!(episode, before);
    }

    #[test]
    fn it_ends_after_a_day_of_quiet() {
        let mut episode = Episode::begin(1, window("a", 0, 1, Level::Suspect));
        episode.add(window("a", 1, 600, Level::Quiet));
        assert!(!episode.is_over(minute(24 * 60), &settings()));
        assert!(episode.is_over(minute(24 * 60 + 1), &settings()));
    }
}
