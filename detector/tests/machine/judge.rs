//! What must always be so, stated without the code it judges: the invariants of the design by their numbers, and the safeties by the
//! oracle of the scenarios.

use std::collections::{BTreeMap, BTreeSet};

use davy_decision::{
    action::{By, Outcome, State},
    decide::decide,
    order::{Order, Verb},
};
use serde_json::Value;

use crate::step::ACCOUNTS;
use crate::world::{World, account};

/// How often what was seen: a run in which nothing happened shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) steps: u64,
    pub(crate) automated: u64,
    pub(crate) undone: u64,
    pub(crate) by_people: u64,
    pub(crate) unlocks: u64,
    pub(crate) denials: u64,
    pub(crate) refusals: u64,
    pub(crate) deaths: u64,
    pub(crate) queries: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            steps,
            automated,
            undone,
            by_people,
            unlocks,
            denials,
            refusals,
            deaths,
            queries,
        } = other;
        self.steps += steps;
        self.automated += automated;
        self.undone += undone;
        self.by_people += by_people;
        self.unlocks += unlocks;
        self.denials += denials;
        self.refusals += refusals;
        self.deaths += deaths;
        self.queries += queries;
    }
}

/// An opinion that was taken.
#[derive(Clone, Debug)]
pub(crate) struct Opined {
    pub(crate) by: String,
    pub(crate) denies: bool,
    pub(crate) measure: Option<Verb>,
    pub(crate) text: String,
}

/// What arrived at the control plane, and what people said.
#[derive(Default)]
pub(crate) struct Book {
    pub(crate) seen: Seen,
    /// Content of each key.
    content: BTreeMap<String, String>,
    done: BTreeSet<String>,
    refused: BTreeMap<String, String>,
    /// Keys that were found never to have arrived since they were last sent, and all that were sent.
    never_seen: BTreeSet<String>,
    sent: BTreeSet<String>,
    /// By case.
    pub(crate) opinions: BTreeMap<String, Vec<Opined>>,
    /// What two people decided may be done again, by account.
    pub(crate) ruled: BTreeMap<String, Verb>,
    pub(crate) wrong: Vec<String>,
    /// Texts that people wrote.
    pub(crate) texts: u64,
}

impl Book {
    pub(crate) fn done(&mut self, order: &Order) {
        if !self.done.insert(order.key.clone()) {
            self.wrong
                .push(format!("invariant 7: {} was done twice", order.key));
        }
        if order.key.ends_with("/undo") {
            self.seen.undone += 1;
        } else if order.automated {
            self.seen.automated += 1;
        }
    }

    pub(crate) fn refused(&mut self, order: &Order) {
        let why = "not this one".to_owned();
        self.refused.insert(order.key.clone(), why);
    }

    pub(crate) fn became(&mut self, key: &str) -> Outcome {
        self.seen.queries += 1;
        if self.done.contains(key) {
            Outcome::Done
        } else if let Some(why) = self.refused.get(key) {
            Outcome::Refused { why: why.clone() }
        } else {
            self.never_seen.insert(key.to_owned());
            Outcome::NeverSeen
        }
    }

    fn sent(&mut self, order: &Order) {
        let Order {
            key,
            account,
            verb,
            droplets,
            case,
            text,
            automated,
            released_at: _,
            not_after: _,
        } = order;
        let content = format!("{account} {verb} {droplets:?} {case} {automated} {text}");
        let held = (self.content.entry(key.clone())).or_insert_with(|| content.clone());
        if *held != content {
            let wrong = format!("invariant 7: {key} was {held:?} and is {content:?}");
            self.wrong.push(wrong);
        }
        let again = !self.sent.insert(key.clone());
        let looked = self.never_seen.remove(key) || self.refused.contains_key(key);
        if again && !looked {
            let wrong = format!("invariant 7: {key} was sent again and not asked about");
            self.wrong.push(wrong);
        }
    }
}

/// Whether two texts are near-copies, by words alone: half of the rarer one's.
fn alike(one: &str, other: &str) -> bool {
    let words = |text: &str| -> BTreeSet<String> {
        text.split_whitespace().map(str::to_lowercase).collect()
    };
    let (one, other) = (words(one), words(other));
    one.intersection(&other).count() * 10 >= one.len().min(other.len()) * 9
}

impl World {
    /// An order that has just been released.
    pub(crate) async fn judge(&self, order: &Order, arrives: bool) {
        let now = self.now();
        let json = serde_json::to_value(order).unwrap();
        {
            let mut state = self.state();
            let late = now - order.released_at.unix_ms();
            if order.automated && late > 1_000 {
                let wrong = format!(
                    "invariant 8: {} left {late} ms after its release",
                    order.key
                );
                state.book.wrong.push(wrong);
            }
            state.book.sent(order);
            let ruled = state.book.ruled.get(order.account.as_str()).copied();
            let by_ruling = ruled.is_some_and(|ruled| order.verb <= ruled);
            let wrong = state.oracle.judge(&json, arrives);
            // What two people decided, automation may do again.
            let excused = |wrong: &String| {
                by_ruling && (wrong.contains("no automated lock") || wrong.contains("no burst"))
            };
            if let Some(wrong) = wrong.filter(|wrong| !excused(wrong)) {
                state
                    .book
                    .wrong
                    .push(format!("invariants 1 to 4 and 8: {wrong}"));
            }
        }
        let customer_facing = [Verb::Notify, Verb::Throttle, Verb::PowerDown, Verb::Lock];
        let acts = customer_facing.contains(&order.verb) && !order.key.ends_with("/undo");
        if order.automated
            && acts
            && let Some(wrong) = self.has_its_papers(order).await
        {
            let wrong = format!("invariant 6: {}: {wrong}", order.key);
            self.state().book.wrong.push(wrong);
        }
    }

    /// An automated action's case, statement and stored decision.
    async fn has_its_papers(&self, order: &Order) -> Option<String> {
        let ledger = self.desk().ledger;
        let held = self.dossier(&order.account).await?;
        let action = held
            .actions
            .iter()
            .find(|action| action.key.to_string() == order.key);
        let Some(action) = action else {
            return Some("the record has no such action".to_owned());
        };
        let By::Automation { decision } = action.by else {
            return Some("a person's, and said to be automated".to_owned());
        };
        let cases = ledger.cases(true, 1_000).await.unwrap();
        if !(cases.iter()).any(|held| held.case.id.to_string() == order.case) {
            return Some(format!("no case {}", order.case));
        }
        for word in ["automatically", "answer this message", order.case.as_str()] {
            if !order.text.contains(word) {
                return Some(format!("its statement does not say {word:?}"));
            }
        }
        let all = ledger
            .decisions(Some(order.account.clone()), None, 10_000)
            .await;
        let all = all.unwrap();
        let Some(stored) = all.iter().find(|held| held.number == decision) else {
            return Some(format!("decision {decision} was not stored"));
        };
        let again = decide(&self.replica(0).policies.now(), &stored.input);
        let text = |plan: &_| serde_json::to_string(plan).unwrap();
        (text(&again) != text(&stored.plan)).then(|| format!("decision {decision} is another one"))
    }

    /// After every step.
    pub(crate) async fn check(&self) -> Value {
        let records = self.records().await;
        for number in 0..ACCOUNTS.len() {
            let account = account(number);
            let Some(held) = self.dossier(&account).await else {
                continue;
            };
            let mut keys: Vec<_> = (held.actions.iter()).map(|a| a.key.to_string()).collect();
            keys.sort();
            let before = keys.len();
            keys.dedup();
            assert_eq!(before, keys.len(), "invariant 7: {keys:?}");
            for case in held.recent_cases() {
                let json = serde_json::to_value(case).unwrap();
                if json["state"].to_string().contains("denied") {
                    self.was_denied_by_two(&case.id.to_string());
                }
            }
        }
        let wrong = std::mem::take(&mut self.state().book.wrong);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        records
    }

    fn was_denied_by_two(&self, case: &str) {
        let state = self.state();
        let opinions = state.book.opinions.get(case).cloned().unwrap_or_default();
        let denials: Vec<_> = opinions.iter().filter(|opined| opined.denies).collect();
        let two = denials.iter().enumerate().any(|(at, one)| {
            (denials[..at].iter()).any(|other| one.by != other.by && !alike(&one.text, &other.text))
        });
        assert!(two, "invariant 5: {case} was denied by {opinions:?}");
    }

    /// When everything answers again for hours: nothing is left waiting, nothing that was done is forgotten.
    pub(crate) async fn settle(&self) {
        {
            let mut state = self.state();
            state.calm = true;
            state.while_facts.clear();
            state.orders.clear();
        }
        for _ in 0..30 {
            self.pass(10 * crate::oracle::MINUTE);
            self.attend().await;
            self.check().await;
        }
        let state = |held: &State| match held {
            State::Planned | State::Released { .. } | State::Doubtful { .. } => "waits",
            State::Done { .. } => "done",
            State::Refused { .. } | State::Withheld { .. } => "not done",
        };
        for number in 0..ACCOUNTS.len() {
            let Some(held) = self.dossier(&account(number)).await else {
                continue;
            };
            let letters = held.letters.iter().map(|letter| {
                let key = format!("{}/letter/{}", held.account, letter.number);
                (key, &letter.state, false)
            });
            let actions = held
                .actions
                .iter()
                .map(|action| (action.key.to_string(), &action.state, true));
            let guard = self.state();
            for (key, held, is_action) in actions.chain(letters) {
                let now = state(held);
                assert_ne!(now, "waits", "invariant 7: {key} is lost: {held:?}");
                if is_action {
                    let arrived = guard.book.done.contains(&key);
                    assert_eq!(now == "done", arrived, "invariant 7: {key}: {held:?}");
                }
            }
        }
    }
}
