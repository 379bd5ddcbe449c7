//! The audit log: what happened, in order, each entry bound to the one before it by its hash.
//!
//! An entry's hash is SHA-256 over the hash of the entry before and the entry's own canonical line (its JSON without the hash, as
//! [`Entry::line`] writes it). Whoever changes, removes or swaps an entry changes every hash after it. What is cut off at the end is
//! found by comparing the last hash with one noted elsewhere.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{account::AccountId, time::Time};

/// The hash before the first entry.
pub const ORIGIN: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// Davy.
    Automation,
    /// The customer.
    Customer,
    /// A person of the provider's, by identity.
    Person(String),
    /// A program of the provider's, by name.
    Service(String),
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Automation => f.pad("davy"),
            Self::Customer => f.pad("customer"),
            Self::Person(name) => f.pad(name),
            Self::Service(name) => f.pad(name),
        }
    }
}

/// What is to be written into the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// When.
    pub at: Time,
    /// Whose account; absent: of the fleet.
    pub account: Option<AccountId>,
    /// Who.
    pub actor: Actor,
    /// What: an event as JSON.
    pub event: serde_json::Value,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its number, from 1, without gaps.
    pub number: u64,
    /// What happened.
    pub note: Note,
    /// Its hash, 64 hex digits.
    pub hash: String,
}

/// Where a log is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A number is missing, or out of order.
    #[error("entry {expected} is missing: {found} follows instead")]
    Number {
        /// The number that is due.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// A hash does not fit.
    #[error(
        "entry {number} was changed, or one before it: its hash is {found}, but must be {expected}"
    )]
    Hash {
        /// Which entry.
        number: u64,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
}

impl Entry {
    /// The entry that follows one with `hash_before`.
    #[must_use]
    pub fn after(hash_before: &str, number: u64, note: Note) -> Self {
        let hash = digest(hash_before, number, &note);
        Self { number, note, hash }
    }

    /// What is hashed, beside the hash before: one line of JSON.
    #[must_use]
    pub fn line(&self) -> String {
        line(self.number, &self.note)
    }
}

fn line(number: u64, note: &Note) -> String {
    let mut text = String::new();
    canonical(
        &serde_json::json!({ "number": number, "note": note }),
        &mut text,
    );
    text
}

/// JSON without spaces, the keys of every object sorted: whether `serde_json` keeps an object's order depends on how a program was built.
fn canonical(value: &serde_json::Value, text: &mut String) {
    use serde_json::Value;
    let between = |n: usize, text: &mut String| {
        if n > 0 {
            text.push(',');
        }
    };
    match value {
        Value::Object(fields) => {
            let sorted: std::collections::BTreeMap<_, _> = fields.iter().collect();
            text.push('{');
            for (n, (key, value)) in sorted.into_iter().enumerate() {
                between(n, text);
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (n, item) in items.iter().enumerate() {
                between(n, text);
                canonical(item, text);
            }
            text.push(']');
        }
        plain => text.push_str(&plain.to_string()),
    }
}

fn digest(hash_before: &str, number: u64, note: &Note) -> String {
    sha256([hash_before, "\n", &line(number, note)])
}

/// SHA-256 of the parts one after the other, in hex.
pub(crate) fn sha256<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
    }
    let bytes = hash.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Follows a log entry by entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Entries so far.
    pub entries: u64,
    /// The last one's hash.
    pub head: String,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            entries: 0,
            head: ORIGIN.to_owned(),
        }
    }
}

impl Chain {
    /// Appends a note.
    pub fn append(&mut self, note: Note) -> Entry {
        let entry = Entry::after(&self.head, self.entries + 1, note);
        (self.entries, self.head) = (entry.number, entry.hash.clone());
        entry
    }

    /// Checks the next entry.
    ///
    /// # Errors
    /// [`Broken`]: the first place where the log is not what it was.
    pub fn follow(&mut self, entry: &Entry) -> Result<(), Broken> {
        let due = self.entries + 1;
        if entry.number != due {
            return Err(Broken::Number {
                expected: due,
                found: entry.number,
            });
        }
        let expected = digest(&self.head, entry.number, &entry.note);
        if entry.hash != expected {
            return Err(Broken::Hash {
                number: entry.number,
                expected,
                found: entry.hash.clone(),
            });
        }
        (self.entries, self.head) = (entry.number, expected);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<Entry> {
        let mut chain = Chain::default();
        (0..4)
            .map(|n| {
                chain.append(Note {
                    at: Time::from_unix_ms(n),
                    account: None,
                    actor: Actor::Person("ann".to_owned()),
                    event: serde_json::json!({ "n": n }),
                })
            })
            .collect()
    }

    fn follow(log: &[Entry]) -> Result<(), Broken> {
        let mut chain = Chain::default();
        log.iter().try_for_each(|entry| chain.follow(entry))
    }

    #[test]
    fn a_log_as_written_holds_also_after_a_detour_through_json() {
        let text = serde_json::to_string(&log()).unwrap();
        let read: Vec<Entry> = serde_json::from_str(&text).unwrap();
        assert_eq!(follow(&read), Ok(()));
    }

    #[test]
    fn the_hashed_line_has_its_keys_sorted_whatever_order_they_came_in() {
        let mut note = log()[0].note.clone();
        note.event = serde_json::from_str(r#"{"b":[1,{"z":null,"a":"\""}],"a":2.5}"#).unwrap();
        let line = Chain::default().append(note).line();
        assert!(
            line.contains(r#""event":{"a":2.5,"b":[1,{"a":"\"","z":null}]}"#),
            "{line}"
        );
        assert!(line.starts_with(r#"{"note":{"account""#), "{line}");
    }

    #[test]
    fn changing_removing_or_swapping_an_entry_is_seen() {
        let mut changed = log();
        changed[1].note.event = serde_json::json!({ "n": 9 });
        assert!(matches!(
            follow(&changed),
            Err(Broken::Hash { number: 2, .. })
        ));
        let mut removed = log();
        removed.remove(2);
        assert!(matches!(
            follow(&removed),
            Err(Broken::Number {
                expected: 3,
                found: 4
            })
        ));
        let mut swapped = log();
        swapped.swap(0, 1);
        assert!(follow(&swapped).is_err());
    }

    #[test]
    fn an_entry_made_anew_with_its_own_hash_breaks_the_next_one() {
        let mut forged = log();
        let note = Note {
            actor: Actor::Automation,
            ..forged[1].note.clone()
        };
        forged[1] = Entry::after(&forged[0].hash, 2, note);
        assert!(matches!(
            follow(&forged),
            Err(Broken::Hash { number: 3, .. })
        ));
    }
}
