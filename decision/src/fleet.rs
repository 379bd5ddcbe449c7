//! What is shared by all accounts: the kill switch and the budget of automated actions.

use serde::{Deserialize, Serialize};

use crate::{
    account::AccountId,
    policy::Step,
    settings::Settings,
    time::{Span, Time},
};

/// Over how long the rate of actions is counted.
const RATE_SPAN: Span = Span::hours(1);

/// Automation was stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// When.
    pub since: Time,
    /// By whom.
    pub by: String,
    /// Why.
    pub why: String,
}

/// An automated action that counts against the budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// When it was released.
    pub at: Time,
    /// On whom.
    pub account: AccountId,
    /// Which step.
    #[serde(default)]
    pub step: Step,
    /// Droplets that it acts on.
    pub droplets: u64,
    /// Whether it still holds: it was not undone, and did not end.
    pub holds: bool,
}

/// The one record that every release of an automated action locks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fleet {
    /// The kill switch.
    pub stop: Option<Stop>,
    /// Droplets of the fleet; 0: not known.
    pub droplets: u64,
    /// Automated actions of the last hour, and those that still hold.
    pub spent: Vec<Spent>,
}

impl Fleet {
    /// What stands for a record that its store has lost: nobody knows whether automation was stopped, so it is.
    #[must_use]
    pub fn lost() -> Self {
        Self {
            stop: Some(Stop {
                since: Time::default(),
                by: "davy".to_owned(),
                why: "the store has lost its record of the fleet, and with it whether automation was stopped; \
                      find out what else is lost before you start it"
                    .to_owned(),
            }),
            ..Self::default()
        }
    }

    /// Whether the kill switch is on, and who turned it.
    #[must_use]
    pub fn stopped(&self) -> (bool, String) {
        match &self.stop {
            Some(Stop { since, by, why }) => (
                true,
                format!("automation was stopped by {by} on {since}: {why}"),
            ),
            None => (false, "automation is not stopped".to_owned()),
        }
    }

    /// Automated actions within the hour before `at`.
    #[must_use]
    pub fn within_hour(&self, at: Time) -> u64 {
        let spent = self.spent.iter().filter(|spent| at - spent.at < RATE_SPAN);
        u64::try_from(spent.count()).unwrap_or(u64::MAX)
    }

    /// Whether the budget forbids one more action, on `targets` droplets.
    #[must_use]
    pub fn blast_radius(&self, at: Time, settings: &Settings, targets: u64) -> (bool, String) {
        let (hour, most) = (self.within_hour(at), settings.budget_per_hour);
        if hour >= most {
            return (
                true,
                format!("{hour} automated actions within the hour, of {most}"),
            );
        }
        if targets == 0 {
            return (
                true,
                "no droplet to act on: an empty selection counts as a budget used up".to_owned(),
            );
        }
        if self.droplets == 0 {
            return (
                true,
                "how many droplets the fleet has is not known".to_owned(),
            );
        }
        let held = (self.spent.iter().filter(|spent| spent.holds))
            .fold(0_u64, |sum, spent| sum.saturating_add(spent.droplets));
        let (after, share) = (
            held.saturating_add(targets),
            settings.budget_fleet_per_mille,
        );
        if targets > self.droplets
            || after.saturating_mul(1_000) > self.droplets.saturating_mul(share)
        {
            return (
                true,
                format!(
                    "{targets} droplets more make {after} of the fleet's {} under automated actions, above {share} per mille",
                    self.droplets
                ),
            );
        }
        (
            false,
            format!(
                "{hour} of {most} automated actions within the hour; {after} of {} droplets, up to {share} per mille",
                self.droplets
            ),
        )
    }

    /// Counts an action that is released at `at`, and forgets what counts no more. A step that is released again, because it never
    /// arrived, counts once. A notice acts on no droplet and holds nothing; what follows it on the same account takes its place.
    pub fn spend(&mut self, at: Time, account: &AccountId, step: Step, droplets: u64) {
        *self = self.without_notice(account);
        self.spent.retain(|spent| {
            let again = spent.account == *account && spent.step == step;
            !again && (spent.holds || at - spent.at < RATE_SPAN)
        });
        self.spent.push(Spent {
            at,
            account: account.clone(),
            step,
            droplets,
            holds: step != Step::Notify,
        });
    }

    /// As it was without the account's own notice.
    #[must_use]
    pub fn without_notice(&self, account: &AccountId) -> Self {
        let mut fleet = self.clone();
        (fleet.spent).retain(|spent| spent.step != Step::Notify || spent.account != *account);
        fleet
    }

    /// Whether any of the account's actions still counts against the budget.
    #[must_use]
    pub fn holds(&self, account: &AccountId) -> bool {
        (self.spent.iter()).any(|spent| spent.holds && spent.account == *account)
    }

    /// The account's actions hold no more: they were undone, or have ended.
    pub fn release(&mut self, account: &AccountId) {
        for spent in self
            .spent
            .iter_mut()
            .filter(|spent| spent.account == *account)
        {
            spent.holds = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Time = Time::from_unix_ms(1_559_148_180_000);

    fn fleet(droplets: u64) -> Fleet {
        Fleet {
            droplets,
            ..Fleet::default()
        }
    }

    fn account(n: u64) -> AccountId {
        format!("a{n}").try_into().unwrap()
    }

    #[test]
    fn an_empty_or_absurd_selection_is_a_budget_used_up() {
        let settings = Settings::default();
        assert!(fleet(100_000).blast_radius(T0, &settings, 0).0);
        assert!(fleet(0).blast_radius(T0, &settings, 1).0);
        assert!(fleet(10).blast_radius(T0, &settings, 11).0);
        assert!(!fleet(100_000).blast_radius(T0, &settings, 1).0);
    }

    #[test]
    fn no_more_within_an_hour_than_the_budget() {
        let settings = Settings {
            budget_per_hour: 2,
            ..Settings::default()
        };
        let mut fleet = fleet(100_000);
        for n in 0..2 {
            assert!(!fleet.blast_radius(T0, &settings, 1).0);
            fleet.spend(T0, &account(n), Step::Throttle, 1);
        }
        assert!(
            fleet
                .blast_radius(T0.after(Span::minutes(59)), &settings, 1)
                .0
        );
        assert!(
            !fleet
                .blast_radius(T0.after(Span::minutes(60)), &settings, 1)
                .0
        );
    }

    #[test]
    fn a_notice_counts_and_what_follows_it_takes_its_place() {
        let settings = Settings {
            budget_per_hour: 2,
            ..Settings::default()
        };
        let mut fleet = fleet(100_000);
        fleet.spend(T0, &account(1), Step::Notify, 0);
        assert_eq!(
            (fleet.within_hour(T0), fleet.holds(&account(1))),
            (1, false)
        );
        fleet.spend(T0, &account(2), Step::Notify, 0);
        assert!(fleet.blast_radius(T0, &settings, 1).0);
        // The account that was told may be throttled; a third one may not.
        let own = fleet.without_notice(&account(2));
        assert!(!own.blast_radius(T0, &settings, 1).0);
        assert!(
            fleet
                .without_notice(&account(3))
                .blast_radius(T0, &settings, 1)
                .0
        );
        for _ in 0..2 {
            // Once more, because it never arrived.
            fleet.spend(T0, &account(2), Step::Throttle, 3);
        }
        assert_eq!((fleet.within_hour(T0), fleet.holds(&account(2))), (2, true));
    }

    #[test]
    fn the_share_of_the_fleet_counts_what_still_holds() {
        let settings = Settings::default();
        let mut fleet = fleet(1_000);
        fleet.spend(T0, &account(1), Step::Throttle, 10);
        let later = T0.after(Span::days(1));
        assert!(fleet.blast_radius(later, &settings, 1).0);
        fleet.release(&account(1));
        assert!(!fleet.blast_radius(later, &settings, 1).0);
    }
}
