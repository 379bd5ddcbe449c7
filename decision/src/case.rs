//! A case: what people see of an account's episode, and what they decide. Pure.
//!
//! ```text
//! open ──claim──▶ claimed ──unlock │ denial by two──▶ decided ──close──▶ closed
//!   ▲               │                                    │
//!   ├───give back───┘                                    │
//!   └────────────── the customer speaks ─────────────────┘
//! ```
//!
//! - The customer's clock runs from when they speak until a person answers.
//! - A denial takes two different people and a reason that each wrote for this case ([`crate::text`]).
//! - An appealed lock gets two independent reviews, by people who have not denied it: `appeal`.
//!
//! A person is an identity: two tokens of one person are one person.

mod appeal;

use std::fmt;

pub use appeal::Seal;
use serde::{Deserialize, Serialize};

use crate::{
    account::AccountId,
    policy::Step,
    text::{Reason, ReasonError},
    time::{Span, Time},
    words::plain,
};

/// Most messages of a case that are kept: beyond, each takes the place of the earliest.
pub const MESSAGES_MAX: usize = 1_000;

/// An identity, as the provider knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Person(pub String);

/// Longest identity, bytes.
pub const IDENTITY_BYTES_MAX: usize = 128;

impl Person {
    /// Whether a text names somebody: 1 to [`IDENTITY_BYTES_MAX`] printable characters without spaces.
    #[must_use]
    pub fn is_name(text: &str) -> bool {
        (1..=IDENTITY_BYTES_MAX).contains(&text.len())
            && !text.contains(char::is_whitespace)
            && plain(text) == text
    }
}

impl fmt::Display for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Names a case for good: the account, and its number there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseId {
    /// Whose.
    pub account: AccountId,
    /// Which one, from 1.
    pub number: u64,
}

impl fmt::Display for CaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.account, self.number)
    }
}

/// Where a case stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nobody has it.
    Open,
    /// A person works on it.
    Claimed {
        /// Who.
        by: Person,
        /// Since when.
        at: Time,
    },
    /// Decided, and the customer may still appeal.
    Decided {
        /// How.
        ruling: Ruling,
        /// When.
        at: Time,
    },
    /// Closed.
    Closed {
        /// How.
        ruling: Ruling,
        /// When.
        at: Time,
    },
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// The customer is in the right: flag and hold.
    Legitimate,
    /// Nobody can tell: a hold alone.
    Unsure,
    /// Abuse.
    Denied,
}

/// What one person found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// To be unlocked.
    Unlock,
    /// Abuse.
    Deny,
}

/// One person's finding, in their own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opinion {
    /// Who.
    pub by: Person,
    /// When.
    pub at: Time,
    /// What.
    pub finding: Finding,
    /// Of a denial: what is to be done about the account, `throttle`, `power_down` or `lock`.
    #[serde(default)]
    pub measure: Option<Step>,
    /// Why.
    pub reason: Reason,
}

/// Who said something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaker {
    /// The customer.
    Customer {
        /// By which way.
        channel: String,
    },
    /// A person of the provider's.
    Person {
        /// Who.
        person: Person,
    },
    /// Davy.
    Automation,
}

/// Something said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// When.
    pub at: Time,
    /// By whom.
    pub from: Speaker,
    /// What.
    pub text: String,
}

/// A case's place in the queue, least first: what wants a person before what is decided, acted on (locked) before others, then the
/// longest wait, then age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// It is closed.
    pub closed: bool,
    /// It is decided, and no review is wanted.
    pub settled: bool,
    /// No lock or power-down is in effect.
    pub spared: bool,
    /// Since when the customer waits for an answer, or a decision; the end of time if they do not.
    pub waiting_since: Time,
    /// When it was opened.
    pub opened_at: Time,
}

/// A case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name.
    pub id: CaseId,
    /// The episode's number.
    pub episode: u64,
    /// When it was opened.
    pub opened_at: Time,
    /// Where it stands.
    pub state: State,
    /// Since when the customer waits for a person; absent: they do not.
    pub waiting_since: Option<Time>,
    /// Whether somebody was paged for this wait.
    pub paged: bool,
    /// Since when the customer's word waits for a decision: an answer alone is none.
    #[serde(default)]
    pub talks_since: Option<Time>,
    /// When somebody was reminded of that last.
    #[serde(default)]
    pub reminded_at: Option<Time>,
    /// When a lock or power-down was appealed; absent: it was not.
    pub appealed_at: Option<Time>,
    /// The opinions since the case was opened, opened again, or appealed.
    pub opinions: Vec<Opinion>,
    /// Opinions from before: they stand for nothing any more, but who denied does not review the appeal.
    #[serde(default)]
    pub past: Vec<Opinion>,
    /// What was said.
    pub messages: Vec<Message>,
    /// How it stood before the first review of its appeal, until the second is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Seal>,
}

/// Why something cannot be done to a case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaseError {
    /// Not in this state.
    #[error("case {case} is {state}: {what}")]
    State {
        /// Which case.
        case: String,
        /// Where it stands.
        state: &'static str,
        /// What was tried, and what to do.
        what: &'static str,
    },
    /// Another person has it.
    #[error(
        "case {case} is claimed by {by} since {since}: leave it to them, or take it over (--take-over)"
    )]
    Claimed {
        /// Which case.
        case: String,
        /// By whom.
        by: Person,
        /// Since when.
        since: Time,
    },
    /// One person cannot be two.
    #[error("{by} has given an opinion on case {case}: the second one is another person's")]
    SamePerson {
        /// Which case.
        case: String,
        /// Who.
        by: Person,
    },
    /// Who denied does not review the appeal.
    #[error(
        "{by} denied before, and case {case} is appealed: another person reviews it (an unlock is welcome from anybody)"
    )]
    NotIndependent {
        /// Which case.
        case: String,
        /// Who.
        by: Person,
    },
    /// Who reviews an appeal does nothing else to it meanwhile.
    #[error(
        "case {case} is appealed and wants your own review first: read it, then unlock or second-opinion, with a reason"
    )]
    ReviewFirst {
        /// Which case.
        case: String,
    },
    /// The reason is none.
    #[error(transparent)]
    Reason(#[from] ReasonError),
    /// A denial that does not say what follows.
    #[error("a denial says what is to be done: throttle, power_down or lock")]
    Measure,
}

impl Case {
    /// Opens a case.
    #[must_use]
    pub const fn open(id: CaseId, episode: u64, at: Time) -> Self {
        Self {
            id,
            episode,
            opened_at: at,
            state: State::Open,
            waiting_since: None,
            paged: false,
            talks_since: None,
            reminded_at: None,
            appealed_at: None,
            opinions: Vec::new(),
            past: Vec::new(),
            messages: Vec::new(),
            sealed: None,
        }
    }

    /// Whether people still have something to do.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.state, State::Open | State::Claimed { .. })
    }

    /// Whether people denied it, and nobody has taken that back.
    #[must_use]
    pub const fn is_denied(&self) -> bool {
        match self.state {
            State::Decided { ruling, .. } | State::Closed { ruling, .. } => {
                matches!(ruling, Ruling::Denied)
            }
            State::Open | State::Claimed { .. } => false,
        }
    }

    /// When it was decided, if it is and is not closed.
    #[must_use]
    pub const fn decided_at(&self) -> Option<Time> {
        match self.state {
            State::Decided { at, .. } => Some(at),
            State::Open | State::Claimed { .. } | State::Closed { .. } => None,
        }
    }

    /// Denials given in it, each person's last: what those who gave them may not review.
    #[must_use]
    pub fn deniers(&self) -> Vec<Opinion> {
        let mut denials: Vec<Opinion> = Vec::new();
        let all = self.opinions.iter().rev().chain(self.past.iter().rev());
        for opinion in all.filter(|held| held.finding == Finding::Deny) {
            if !denials.iter().any(|held| held.by == opinion.by) {
                denials.push(opinion.clone());
            }
        }
        denials.reverse();
        denials
    }

    /// Whether it is closed for good.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }

    /// Its place in the queue; `locked`: a lock or power-down is in effect.
    #[must_use]
    pub fn rank(&self, locked: bool) -> Rank {
        Rank {
            closed: self.is_closed(),
            settled: !self.is_open() && !self.wants_review(),
            spared: !locked,
            waiting_since: (self.waiting_since.into_iter())
                .chain(self.talks_since)
                .min()
                .unwrap_or(Time::from_unix_ms(u64::MAX)),
            opened_at: self.opened_at,
        }
    }

    fn wrong(&self, what: &'static str) -> CaseError {
        CaseError::State {
            case: self.id.to_string(),
            state: match self.state {
                State::Open => "open",
                State::Claimed { .. } => "claimed",
                State::Decided { .. } => "decided",
                State::Closed { .. } => "closed",
            },
            what,
        }
    }

    /// A person takes it up. Who has it already keeps it; from another person it is taken only by `take_over`.
    ///
    /// # Errors
    /// If another person has it, or there is nothing left to do.
    pub fn claim(&mut self, by: &Person, take_over: bool, at: Time) -> Result<(), CaseError> {
        match &self.state {
            // The second review is one's own to give: nothing is to be claimed, and nothing told.
            _ if self.is_kept_from(by) => Ok(()),
            State::Claimed { by: holder, .. } if holder == by => Ok(()),
            State::Claimed { by, at } if !take_over => Err(CaseError::Claimed {
                case: self.id.to_string(),
                by: by.clone(),
                since: *at,
            }),
            State::Open | State::Claimed { .. } => {
                self.state = State::Claimed { by: by.clone(), at };
                Ok(())
            }
            State::Decided { .. } | State::Closed { .. } => {
                Err(self.wrong("there is nothing left to claim"))
            }
        }
    }

    /// The person who has it gives it back.
    ///
    /// # Errors
    /// If that person does not have it.
    pub fn give_back(&mut self, by: &Person) -> Result<(), CaseError> {
        match &self.state {
            State::Claimed { by: holder, .. } if holder == by => {
                self.state = State::Open;
                Ok(())
            }
            _ => Err(self.wrong("only who has claimed it can give it back")),
        }
    }

    /// Something is said. What the customer says starts their clock, and brings a decided case back; what a person answers ends it. `locked`: a lock or power-down
    /// is in effect, against which the customer's words are an appeal. However much was said: the first of [`MESSAGES_MAX`] messages
    /// makes way.
    pub fn say(&mut self, message: Message, locked: bool) {
        if self.messages.len() >= MESSAGES_MAX {
            self.messages.remove(0);
        }
        match &message.from {
            Speaker::Customer { .. } => {
                self.wait(message.at);
                if self.talks_since.is_none() {
                    (self.talks_since, self.reminded_at) = (Some(message.at), None);
                }
                if locked && self.appealed_at.is_none() {
                    self.appeal(message.at);
                }
                self.take_up_again();
                // Who denied had not read this. That a review unlocks stands: nothing more is needed for it.
                if self.is_open() {
                    self.void_denials();
                }
            }
            Speaker::Person { .. } => self.answered(),
            Speaker::Automation => {}
        }
        self.messages.push(message);
    }

    /// Denials that were given count for nothing any more; that somebody would unlock does.
    pub(crate) fn void_denials(&mut self) {
        let denies = |held: &mut Opinion| held.finding == Finding::Deny;
        self.past.extend(self.opinions.extract_if(.., denies));
    }

    /// A person's denial is withdrawn, if it waits for a second one. Says whether there was one. A review that unlocked did so.
    pub fn withdraw(&mut self, by: &Person) -> bool {
        let given = self.opinions.len();
        if self.is_open() {
            let own = |held: &Opinion| held.by == *by && held.finding == Finding::Deny;
            self.opinions.retain(|held| !own(held));
        }
        let withdrawn = self.opinions.len() < given;
        // Without a review there is nothing in it to keep from the others: nothing came of a denial that waited for a second one.
        if let Some(seal) = &mut self.sealed {
            seal.withdrawn |= withdrawn && self.opinions.is_empty() && self.past.len() <= seal.past;
        }
        withdrawn
    }

    /// The customer waits from `at` on, if they did not before.
    pub fn wait(&mut self, at: Time) {
        if self.waiting_since.is_none() {
            (self.waiting_since, self.paged) = (Some(at), false);
        }
    }

    fn answered(&mut self) {
        (self.waiting_since, self.paged) = (None, false);
    }

    /// What the customer said is dealt with.
    fn decided(&mut self, ruling: Ruling, at: Time) {
        self.answered();
        (self.talks_since, self.reminded_at) = (None, None);
        self.state = State::Decided { ruling, at };
    }

    /// Opinions from before an appeal do not count for it: both reviews are new.
    fn appeal(&mut self, at: Time) {
        self.appealed_at = Some(at);
        self.past.append(&mut self.opinions);
    }

    /// A customer who speaks of a decided case waits for a decision again: it goes back to the queue. What was decided with stands for
    /// nothing then, except a first review whose second is still wanted.
    fn take_up_again(&mut self) {
        if !matches!(self.state, State::Decided { .. }) {
            return;
        }
        if !self.wants_review() {
            self.past.append(&mut self.opinions);
        }
        self.state = State::Open;
    }

    /// Whether the customer has waited longer than `limit` and nobody was paged for it.
    #[must_use]
    pub fn page_due(&self, at: Time, limit: Span) -> bool {
        !self.paged && self.waiting_since.is_some_and(|since| at - since > limit)
    }

    /// A person unlocks where one word is enough: a case that is not appealed, or one that was denied, closed or not. On an appealed one
    /// it is a review: see [`Case::opine`].
    ///
    /// # Errors
    /// If it is appealed, or unlocked already.
    pub fn unlock(&mut self, by: &Person, ruling: Ruling, at: Time) -> Result<(), CaseError> {
        if self.takes_reviews() {
            return Err(CaseError::State {
                case: self.id.to_string(),
                state: "appealed",
                what: "give a reason with the unlock: it is a review",
            });
        }
        if !self.is_open() && !self.is_denied() {
            return Err(self.wrong(
                "it was unlocked; what a person did since then, `undo` and `un-throttle` take back",
            ));
        }
        if !self.is_denied() {
            // Nobody's claim keeps a customer locked.
            self.claim(by, true, at)?;
        }
        self.decided(ruling, at);
        Ok(())
    }

    /// Decided cases are taken up again by a person who takes the decision back. Its opinions stand for nothing any more.
    ///
    /// # Errors
    /// If it is not decided.
    pub fn reopen(&mut self, by: &Person, at: Time) -> Result<Ruling, CaseError> {
        match self.state {
            State::Decided { ruling, .. } => {
                self.past.append(&mut self.opinions);
                self.state = State::Claimed { by: by.clone(), at };
                Ok(ruling)
            }
            _ => Err(self.wrong("there is no decision to take back")),
        }
    }

    /// Closes a decided case.
    ///
    /// # Errors
    /// If it is not decided, or an appeal's second review is wanted.
    pub fn close(&mut self, at: Time) -> Result<(), CaseError> {
        match self.state {
            _ if self.wants_review() => {
                Err(self.wrong("an appeal gets two reviews, and the second is not in"))
            }
            State::Decided { ruling, .. } => {
                self.state = State::Closed { ruling, at };
                Ok(())
            }
            _ => Err(self.wrong("only a decided case can be closed")),
        }
    }
}

#[cfg(test)]
#[path = "case_tests.rs"]
mod tests;
