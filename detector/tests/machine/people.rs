//! What people do: the transitions that the services call, and what the oracle is told of those that were taken.

use davy_decision::{
    account::AccountId,
    audit::Actor,
    case::{Finding, Opinion, Person, Ruling},
    dossier::{Dossier, Event, Refusal},
    order::Verb,
    policy::Step as Rung,
    settings::Settings,
    text::Reason,
    time::Time,
};
use davy_detector::store::ledger::LedgerError;
use serde_json::{Value, json};

use crate::judge::{Book, alike};
use crate::step::Act;
use crate::world::World;

/// Words of reasons: no two of a dozen at random are near-copies.
const WORDS: [&str; 40] = [
    "host", "modes", "four", "pool", "address", "flow", "records", "droplet", "image", "night",
    "card", "name", "phone", "asked", "answer", "week", "disk", "cron", "binary", "shell", "owner",
    "lab", "paper", "render", "queue", "build", "log", "hash", "port", "seen", "hand", "twice",
    "morning", "vector", "quota", "mail", "ticket", "city", "invoice", "key",
];

/// Words of a reason.
const WORDS_OF_REASON: u64 = 60;

/// A text of its own, by its number.
fn text(number: u64) -> String {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x94d0_49bb_1331_11eb;
    let mut words = Vec::new();
    for _ in 0..WORDS_OF_REASON {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let index = usize::try_from((state >> 33) % WORDS.len() as u64).unwrap();
        words.push(WORDS[index]);
    }
    words.join(" ")
}

/// A text with one word exchanged, another one each time.
fn nearly(text: &str, number: u64) -> String {
    let mut words: Vec<_> = text.split(' ').collect();
    let at = usize::try_from(number % words.len() as u64).unwrap();
    words[at] = "otherwise";
    words.join(" ")
}

/// What an act says.
struct Said {
    reason: Reason,
    earlier: Vec<(String, Reason)>,
}

fn try_act(
    dossier: &mut Dossier,
    by: &Person,
    act: Act,
    said: &Said,
    settings: &Settings,
    at: Time,
) -> Result<Vec<Event>, Refusal> {
    let earlier = || (said.earlier.iter()).map(|(case, reason)| (case.as_str(), reason));
    let unlock = |dossier: &mut Dossier, legitimate| {
        let reason = Some(said.reason.clone());
        dossier.unlock(by, legitimate, reason, earlier(), settings, at)
    };
    match act {
        Act::Claim => dossier.claim(by, false, at),
        Act::TakeOver => dossier.claim(by, true, at),
        Act::GiveBack => dossier.give_back(by),
        Act::Answer => dossier.answer(by, "I look at it now.", at),
        Act::UnlockLegitimate => unlock(dossier, true),
        Act::UnlockUnsure => unlock(dossier, false),
        Act::AllowHighCpu => Ok(dossier.allow_high_cpu(by, settings, at)),
        Act::RevokeHighCpu => dossier.disallow_high_cpu(by, at),
        Act::Throttle => dossier.throttle(by, &said.reason, settings, at),
        Act::Renew => dossier.renew(by, &said.reason, settings, at),
        Act::Unthrottle => dossier.unthrottle(by, settings, at),
        Act::DenyAgain
        | Act::DenyNearly
        | Act::DenyThrottle
        | Act::DenyPowerDown
        | Act::DenyLock
        | Act::FindUnlock => {
            let opinion = Opinion {
                by: by.clone(),
                at,
                finding: match act {
                    Act::FindUnlock => Finding::Unlock,
                    _ => Finding::Deny,
                },
                measure: measure(act),
                reason: said.reason.clone(),
            };
            dossier.opine(opinion, earlier(), settings)
        }
        Act::TakeBack => dossier.take_back(by, settings, at),
        Act::Close => dossier.close(at),
    }
}

const fn measure(act: Act) -> Option<Rung> {
    match act {
        Act::DenyThrottle => Some(Rung::Throttle),
        Act::DenyPowerDown => Some(Rung::PowerDown),
        Act::DenyLock | Act::DenyAgain | Act::DenyNearly => Some(Rung::Lock),
        _ => None,
    }
}

impl World {
    /// A person acts; whether it was taken.
    pub(crate) async fn person(&self, account: &AccountId, by: &Person, act: Act) -> bool {
        let desk = self.desk();
        let before = self.dossier(account).await;
        let case = before.as_ref().and_then(|held| held.case.as_ref());
        let own = case.map(|case| case.id.to_string()).unwrap_or_default();
        let given = desk.ledger.reasons(1_000).await.unwrap();
        let earlier = given.iter().filter(|given| given.case.to_string() != own);
        let earlier = earlier.map(|given| (given.case.to_string(), given.reason.clone()));
        let words = {
            let mut state = self.state();
            state.book.texts += 1;
            let (number, last) = (state.book.texts, state.book.given.last());
            match (act, last) {
                (Act::DenyAgain, Some(last)) => last.clone(),
                (Act::DenyNearly, Some(last)) => nearly(last, number),
                _ => text(number),
            }
        };
        let said = Said {
            reason: Reason::try_from(words.clone()).unwrap(),
            earlier: earlier.collect(),
        };
        let person = by.clone();
        let change = move |dossier: &mut Dossier, settings: &Settings, at| {
            try_act(dossier, &person, act, &said, settings, at)
        };
        let actor = Actor::Person(by.to_string());
        let copies = |book: &Book| book.given.iter().any(|given| alike(given, &words));
        match desk.act(account.clone(), actor, change).await {
            Ok(events) => {
                let opines = measure(act).is_some() || act == Act::FindUnlock;
                if opines && copies(&self.state().book) {
                    let wrong = format!("invariant 5: {by} gave a copy: {words}");
                    self.state().book.wrong.push(wrong);
                }
                self.was_taken(account, act, by, &own, &events);
                if opines || matches!(act, Act::UnlockLegitimate | Act::UnlockUnsure) {
                    self.state().book.given.push(words);
                }
                true
            }
            Err(LedgerError::Refused(_)) => {
                let mut state = self.state();
                let copied = u64::from(measure(act).is_some() && copies(&state.book));
                state.book.seen.copies += copied;
                state.book.seen.refusals += 1;
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Tells the oracle of an act that was taken. That it unlocked is taken from the answer: then everything that an unlock brings is
    /// asked for. That it denied is the oracle's to say.
    fn was_taken(&self, account: &AccountId, act: Act, by: &Person, case: &str, events: &[Event]) {
        let name = account.as_str();
        let decided = self.state().oracle.said(name).is_decided(case);
        let unlocks = events.iter().any(|event| match event {
            Event::CaseDecided { ruling, .. } => *ruling != Ruling::Denied,
            _ => false,
        });
        let taken_back = (events.iter()).any(|event| matches!(event, Event::TakenBack { .. }));
        let tell = |event: &str, mut more: Value| {
            (more["account"], more["case"]) = (name.into(), case.into());
            more["by"] = by.to_string().into();
            self.tell(event, more);
        };
        let unlock = |outcome: &str| {
            tell("unlock", json!({ "outcome": outcome }));
            self.state().book.seen.unlocks += 1;
        };
        match act {
            // A second review of what is unlocked changes nothing.
            Act::UnlockLegitimate | Act::UnlockUnsure if decided && !unlocks => {}
            Act::UnlockLegitimate => unlock("legitimate"),
            Act::UnlockUnsure => unlock("unsure"),
            Act::AllowHighCpu => self.tell("allow_high_cpu", json!({"account": name})),
            Act::RevokeHighCpu => {
                self.tell("allow_high_cpu", json!({"account": name, "revoke": true}));
            }
            Act::Unthrottle => self.tell("unthrottle", json!({"account": name})),
            _ if measure(act).is_some() || act == Act::FindUnlock => {
                let finding = if act == Act::FindUnlock {
                    "unlock"
                } else {
                    "deny"
                };
                let measure = measure(act).map(Rung::name);
                if unlocks {
                    unlock("unsure");
                } else {
                    tell("opinion", json!({"finding": finding, "measure": measure}));
                }
                let denied = self.state().oracle.said(name).was_denied(case);
                self.state().book.seen.denials += u64::from(denied && !decided);
                if denied && !decided {
                    let state = self.state();
                    let said = state.oracle.said(name);
                    let verbs = [Verb::Throttle, Verb::PowerDown, Verb::Lock].into_iter();
                    // What they decided on is the greatest that they let happen.
                    let ruled = verbs.rev().find(|verb| said.rules(&verb.to_string()));
                    drop(state);
                    self.is_peoples(name, &Vec::from_iter(ruled));
                }
            }
            // What an unlock was to undo is asked for again, and the unlock stands; as every release by hand it sets the hold.
            Act::TakeBack if decided && !taken_back => {
                self.tell("unthrottle", json!({"account": name}));
            }
            Act::TakeBack => tell("undo", json!({})),
            Act::Close => tell("close", json!({})),
            Act::Renew => {
                let now = self.now();
                let mut state = self.state();
                let throttles = (state.book.stands.values_mut())
                    .filter(|stands| stands.account == name && stands.verb == Verb::Throttle);
                throttles.for_each(|stands| stands.since = now);
            }
            Act::Throttle => self.is_peoples(name, &[Verb::Throttle]),
            Act::Claim | Act::TakeOver | Act::GiveBack | Act::Answer => {}
            other => panic!("{other:?}"),
        }
        if act == Act::Throttle || measure(act).is_some() {
            let now = self.now();
            self.state().book.measured.insert(name.to_owned(), now);
        }
        self.state().book.seen.by_people += 1;
    }

    /// What people decide on holds by their word from now on, whoever did it before.
    fn is_peoples(&self, name: &str, verbs: &[Verb]) {
        let now = self.now();
        for stands in self.state().book.stands.values_mut() {
            if stands.account == name && verbs.contains(&stands.verb) {
                (stands.since, stands.automated) = (now, false);
            }
        }
    }
}
