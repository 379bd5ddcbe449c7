//! What people do: the transitions that the services call, and what the oracle is told of those that were taken.

use davy_decision::{
    account::AccountId,
    audit::Actor,
    case::{Finding, Opinion, Person},
    dossier::{Dossier, Event, Refusal},
    order::Verb,
    policy::Step as Rung,
    settings::Settings,
    text::Reason,
    time::Time,
};
use davy_detector::store::ledger::LedgerError;
use serde_json::json;

use crate::judge::Opined;
use crate::step::Act;
use crate::world::World;

/// Words of reasons: no two of a dozen at random are near-copies.
const WORDS: [&str; 40] = [
    "host", "modes", "four", "pool", "address", "flow", "records", "droplet", "image", "night",
    "card", "name", "phone", "asked", "answer", "week", "disk", "cron", "binary", "shell", "owner",
    "lab", "paper", "render", "queue", "build", "log", "hash", "port", "seen", "hand", "twice",
    "morning", "vector", "quota", "mail", "ticket", "city", "invoice", "key",
];

/// A text of its own, by its number.
fn text(number: u64) -> String {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x94d0_49bb_1331_11eb;
    let mut words = Vec::new();
    for _ in 0..14 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let index = usize::try_from((state >> 33) % WORDS.len() as u64).unwrap();
        words.push(WORDS[index]);
    }
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
        Act::AllowHighCpu => Ok(dossier.allow_high_cpu(by, at)),
        Act::RevokeHighCpu => dossier.disallow_high_cpu(by),
        Act::Throttle => dossier.throttle(by, &said.reason, settings, at),
        Act::Renew => dossier.renew(by, settings, at),
        Act::Unthrottle => dossier.unthrottle(by, settings, at),
        Act::DenyAgain
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
                measure: measure(act).map(|(rung, _)| rung),
                reason: said.reason.clone(),
            };
            dossier.opine(opinion, earlier(), settings)
        }
        Act::TakeBack => dossier.take_back(by, settings, at),
        Act::Close => dossier.close(at),
    }
}

const fn measure(act: Act) -> Option<(Rung, Verb)> {
    match act {
        Act::DenyThrottle => Some((Rung::Throttle, Verb::Throttle)),
        Act::DenyPowerDown => Some((Rung::PowerDown, Verb::PowerDown)),
        Act::DenyLock | Act::DenyAgain => Some((Rung::Lock, Verb::Lock)),
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
        let number = {
            let mut state = self.state();
            // A copy has the number of the one before.
            state.book.texts += u64::from(act != Act::DenyAgain);
            state.book.texts
        };
        let words = text(number);
        let said = Said {
            reason: Reason::try_from(words.clone()).unwrap(),
            earlier: earlier.collect(),
        };
        let person = by.clone();
        let change = move |dossier: &mut Dossier, settings: &Settings, at| {
            try_act(dossier, &person, act, &said, settings, at)
        };
        let actor = Actor::Person(by.to_string());
        match desk.act(account.clone(), actor, change).await {
            Ok(_) => {}
            Err(LedgerError::Refused(_)) => {
                self.state().book.seen.refusals += 1;
                return false;
            }
            Err(error) => panic!("{error}"),
        }
        self.state().book.seen.by_people += 1;
        let opined = Opined {
            by: by.to_string(),
            denies: measure(act).is_some(),
            measure: measure(act).map(|(_, verb)| verb),
            text: words,
        };
        self.was_taken(account, act, &own, opined).await;
        true
    }

    /// Tells the oracle of an act that was taken, and of the ruling that came of it.
    async fn was_taken(&self, account: &AccountId, act: Act, case: &str, opined: Opined) {
        let name = account.as_str();
        let held = self.dossier(account).await.unwrap();
        let state = held
            .case
            .as_ref()
            .map(|case| serde_json::to_value(&case.state).unwrap());
        let ruling = state.as_ref().and_then(|state| {
            let ruling = state
                .get("decided")
                .and_then(|decided| decided.get("ruling"));
            ruling.and_then(serde_json::Value::as_str)
        });
        let unlocked = json!({"account": name, "outcome": "unsure"});
        match act {
            Act::UnlockLegitimate => {
                self.tell("unlock", json!({"account": name, "outcome": "legitimate"}));
                self.state().book.seen.unlocks += 1;
            }
            Act::UnlockUnsure => {
                self.tell("unlock", unlocked);
                self.state().book.seen.unlocks += 1;
            }
            Act::AllowHighCpu => self.tell("allow_high_cpu", json!({"account": name})),
            Act::RevokeHighCpu => {
                self.tell("allow_high_cpu", json!({"account": name, "revoke": true}));
            }
            Act::Unthrottle => self.tell("unthrottle", json!({"account": name})),
            _ if opined.denies || act == Act::FindUnlock => {
                let opinions = {
                    let mut state = self.state();
                    let opinions = state.book.opinions.entry(case.to_owned()).or_default();
                    opinions.push(opined);
                    opinions.clone()
                };
                match ruling {
                    Some("denied") => {
                        let measures = opinions.iter().filter_map(|opined| opined.measure);
                        let mut state = self.state();
                        state.book.seen.denials += 1;
                        if let Some(harshest) = measures.max() {
                            state.book.ruled.insert(name.to_owned(), harshest);
                        }
                    }
                    Some(_) => {
                        self.tell("unlock", unlocked);
                        self.state().book.seen.unlocks += 1;
                    }
                    None => {}
                }
            }
            _ => {}
        }
        if held.conversation.is_none() {
            self.tell("dealt_with", json!({"account": name}));
        }
        if act == Act::TakeBack && held.allowed.is_none() {
            self.tell("allow_high_cpu", json!({"account": name, "revoke": true}));
        }
    }
}
