//! What is odd about policies that hold: permits that nothing can ever reach, and those that a provider may not have meant. Pure.
//!
//! A permit is asked alone, about situations made of the numbers in its own text and their neighbours, in every combination that a
//! fixed sequence of draws brings up. A step that reaches the customer counts only where the code behind the policies lets it
//! through: `mining`, on two classes of evidence (invariant 3). What is not reached in so many draws is reported; it is a warning,
//! since no search of this kind proves that there is no such situation.

use davy_evidence::Level;

use crate::{
    account::AccountId,
    policy::{Asked, Described, Policies, Situation, Step},
};

/// Situations drawn for each policy. With eleven fields of up to a dozen values and conditions on six of them, one draw in some
/// hundreds fits.
const DRAWS: u32 = 20_000;
/// Most different numbers of a policy's text that are tried.
const NUMBERS_MAX: usize = 16;

/// Draws numbers: the same ones for ever.
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    /// One of `all`, which is not empty.
    pub(crate) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        // Knuth's MMIX generator; its high bits are good.
        self.0 = (self.0)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let count = u64::try_from(all.len()).unwrap_or(1).max(1);
        let index = usize::try_from((self.0 >> 33) % count).unwrap_or(0);
        all[index]
    }
}

/// The numbers in a text, with those next to them.
fn numbers(text: &str) -> Vec<u64> {
    let mut all = vec![0, 1, 100, 1_000_000];
    let written = text.split(|c: char| !c.is_ascii_digit());
    for number in written
        .filter_map(|digits| digits.parse::<u64>().ok())
        .take(NUMBERS_MAX)
    {
        all.extend([number.saturating_sub(1), number, number.saturating_add(1)]);
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Something that a policy does, and may not be meant to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Concern {
    /// The policy.
    pub id: String,
    /// What it does.
    pub what: String,
}

/// A customer-facing step comes after so much mining at least, by the policy that ships, s.
const MINING_SECONDS_MIN: u64 = 600;

/// What the policies do in the situations drawn that a provider may not mean: customers reached sooner than by what ships, locks without
/// a person's word, and conditions that fail, after which nothing is permitted.
#[must_use]
pub fn concerns(policies: &Policies) -> Vec<Concern> {
    let Ok(account) = AccountId::try_from("account") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for policy in policies.describe() {
        let Some(alone) = policies.alone(&policy.id) else {
            continue;
        };
        let numbers = numbers(&policy.text);
        let (mut draws, mut odd) = (Draws(7), [None, None, None]);
        for _ in 0..DRAWS / 4 {
            let situation = draw(&mut draws, &account, &numbers);
            for asked in alone.ask(&situation) {
                note(&mut odd, &asked, &situation);
            }
        }
        let id = &policy.id;
        found.extend(odd.into_iter().flatten().map(|what| Concern {
            id: id.clone(),
            what,
        }));
    }
    found.sort_unstable();
    found
}

fn note(odd: &mut [Option<String>; 3], asked: &Asked, situation: &Situation<'_>) {
    let [soon, lock, fails] = odd;
    if let (Some(error), None) = (asked.errors.first(), &*fails) {
        let error = error.replace('\n', " ");
        *fails = Some(format!(
            "its condition can fail, and then nothing is permitted and no case is opened ({error})"
        ));
    }
    let mines = situation.level == Level::Mining && situation.classes >= 2;
    let step = asked.step;
    if !asked.permitted || !step.is_customer_facing() || !mines {
        return;
    }
    if situation.mining_seconds < MINING_SECONDS_MIN {
        soon.get_or_insert_with(|| {
            format!("permits to {step} before an account has mined for 10 min")
        });
    }
    if step == Step::Lock && situation.ruling != Some(Step::Lock) {
        lock.get_or_insert_with(|| {
            "permits to lock an account that no person has decided to lock".to_owned()
        });
    }
}

/// Permits that nothing was found to reach, by id.
#[must_use]
pub fn unreached(policies: &Policies) -> Vec<String> {
    let permits = policies
        .describe()
        .into_iter()
        .filter(|policy| policy.permits);
    let unreached = permits.filter(|policy| !is_reached(policies, policy));
    unreached.map(|policy| policy.id).collect()
}

fn is_reached(policies: &Policies, policy: &Described) -> bool {
    let (Some(alone), Ok(account)) = (policies.alone(&policy.id), AccountId::try_from("account"))
    else {
        return false;
    };
    let numbers = numbers(&policy.text);
    let (mut draws, mut found) = (Draws(7), false);
    for _ in 0..DRAWS {
        let situation = draw(&mut draws, &account, &numbers);
        let lets_through = situation.level == Level::Mining && situation.classes >= 2;
        let mut steps = policy.steps.iter();
        found = steps.any(|step: &Step| {
            (lets_through || !step.is_customer_facing()) && alone.permits(*step, &situation)
        });
        if found {
            break;
        }
    }
    found
}

pub(crate) fn draw<'a>(
    draws: &mut Draws,
    account: &'a AccountId,
    numbers: &[u64],
) -> Situation<'a> {
    let levels = [Level::Quiet, Level::Suspect, Level::Mining, Level::Mining];
    let rulings = [
        None,
        Some(Step::Throttle),
        Some(Step::PowerDown),
        Some(Step::Lock),
    ];
    let days = draws.of(numbers);
    let mining_seconds = draws.of(numbers);
    Situation {
        account,
        level: draws.of(&levels),
        mining_seconds,
        suspect_seconds: draws.of(numbers),
        classes: draws.of(&[0, 1, 2, 3]),
        engaged_days: draws.of(&[None, Some(days), Some(days)]),
        payment_trouble: draws.of(&[false, true]),
        burst_droplets: draws.of(numbers),
        burst_mining_percent: draws.of(numbers).min(100),
        // No droplet mines for longer than its account.
        burst_mining_seconds: draws.of(numbers).min(mining_seconds),
        throttled: draws.of(&[false, true]),
        ruling: draws.of(&rulings),
        // What a safety forbids is no fault of the permit's.
        safeties: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn of(text: &str) -> Vec<String> {
        let files = BTreeMap::from([("ours.cedar".to_owned(), text.to_owned())]);
        unreached(&Policies::new(&files).unwrap())
    }

    #[test]
    fn every_permit_that_ships_is_reached() {
        assert_eq!(
            unreached(&Policies::shipped().unwrap()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_misspelt_level_and_a_step_that_code_never_lets_through_are_found() {
        let text = r#"
            @id("typo") permit (principal, action == Davy::Action::"open_case", resource)
            when { context.level == "minning" };
            @id("on-suspicion") permit (principal, action == Davy::Action::"throttle", resource)
            when { context.level == "suspect" };
            @id("good") permit (principal, action == Davy::Action::"throttle", resource)
            when { context.level == "mining" && context.mining_seconds > 86400 };
            @id("never") permit (principal, action == Davy::Action::"open_case", resource)
            when { context.mining_seconds > 100 && context.mining_seconds < 50 };
        "#;
        assert_eq!(of(text), ["never", "on-suspicion", "typo"]);
    }

    #[test]
    fn what_ships_is_of_no_concern_and_what_may_not_be_meant_is_told() {
        assert_eq!(concerns(&Policies::shipped().unwrap()), Vec::new());
        let text = r#"
            @id("at-once") permit (principal, action == Davy::Action::"throttle", resource);
            @id("locks") permit (principal, action == Davy::Action::"lock", resource)
            when { context.level == "mining" && context.mining_seconds >= 600 };
            @id("overflows") forbid (principal, action, resource)
            when { context.mining_seconds * 9223372036854775807 > 3 };
            @id("patient") permit (principal, action == Davy::Action::"throttle", resource)
            when { context.level == "mining" && context.mining_seconds >= 600 };
        "#;
        let files = BTreeMap::from([("ours.cedar".to_owned(), text.to_owned())]);
        let found = concerns(&Policies::new(&files).unwrap());
        let all: Vec<_> = (found.iter())
            .map(|Concern { id, what }| (id.as_str(), what.as_str()))
            .collect();
        assert_eq!(
            all[0],
            (
                "at-once",
                "permits to throttle before an account has mined for 10 min"
            )
        );
        assert_eq!(
            all[1],
            (
                "locks",
                "permits to lock an account that no person has decided to lock"
            )
        );
        assert!(
            all[2].0 == "overflows" && all[2].1.contains("overflow"),
            "{all:?}"
        );
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn policies_are_described_with_the_steps_they_are_about() {
        let all = Policies::shipped().unwrap().describe();
        let steps = |id: &str| {
            let found = all.iter().find(|policy| policy.id == id).unwrap();
            (found.permits, found.steps.clone())
        };
        assert_eq!(
            steps("burst:throttle"),
            (true, vec![Step::Notify, Step::Throttle])
        );
        let (permits, facing) = steps("safety:kill_switch");
        assert!(!permits);
        assert_eq!(facing.len(), 4);
    }
}
