//! What is asked of the provider's control plane, and how far it is: actions, and letters to the customer or to on-call. Pure:
//! transitions alone. Both go the same way, the outbox of the account's record.
//!
//! ```text
//! planned ──release──▶ released ──done──▶ done ──▶ (an undo of its own)
//!    │                  │  ▲  └─refused─▶ refused
//!    └─withheld         │  └─never seen─┐
//!                       └─in doubt──▶ doubtful ──queried──▶ done | planned again
//! ```
//!
//! A release of an automated action looks at everything again; what it finds decides. Delivery is at least once under one key, which names the
//! action for good: a receiver that honours it does it once. What is in doubt is queried and never sent again blindly.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    account::{AccountId, DropletId},
    case::CaseId,
    policy::Step,
    time::{Span, Time},
};

/// Least and greatest time between two queries of something in doubt.
const QUERY_EVERY: (Span, Span) = (Span::seconds(5), Span::minutes(5));

/// Names an action for good, everywhere: account, episode, step, and whether it takes the step or undoes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Whose.
    pub account: AccountId,
    /// The episode's number.
    pub episode: u64,
    /// The step.
    pub step: Step,
    /// How often the step was taken in the episode by a person after it was undone: 0 for automation, which takes it once.
    pub turn: u32,
    /// Whether it undoes the step.
    pub undo: bool,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            account,
            episode,
            step,
            turn,
            undo,
        } = self;
        write!(f, "{account}/{episode}/{step}/{turn}")?;
        if *undo { f.write_str("/undo") } else { Ok(()) }
    }
}

/// Who asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Automation, by the decision of that number.
    Automation {
        /// The decision's number within the account.
        decision: u64,
    },
    /// A person.
    Person {
        /// Their identity.
        person: String,
    },
}

impl By {
    /// Whether a person asked for it.
    #[must_use]
    pub const fn is_person(&self) -> bool {
        matches!(self, Self::Person { .. })
    }
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// To be released.
    Planned,
    /// Given to the driver; what became of it is not known yet.
    Released {
        /// When.
        at: Time,
    },
    /// It may have arrived or not: to be queried.
    Doubtful {
        /// When it was released: names the release that answers are of.
        released_at: Time,
        /// Since when.
        since: Time,
        /// When it is to be queried next.
        query_at: Time,
    },
    /// Done.
    Done {
        /// When that was known.
        at: Time,
    },
    /// The control plane refused it.
    Refused {
        /// When.
        at: Time,
        /// Its words.
        why: String,
    },
    /// Not released: something spoke for the customer, or the plan was too old.
    Withheld {
        /// When.
        at: Time,
        /// What.
        why: String,
    },
}

/// What the driver says became of a request, or what a query found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is done, now or by an earlier delivery.
    Done,
    /// It will not be done.
    Refused {
        /// The control plane's words.
        why: String,
    },
    /// No answer, or one that is not understood.
    Doubtful,
    /// A query found that it never arrived.
    NeverSeen,
}

/// An action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// Its name.
    pub key: Key,
    /// On which droplets.
    pub targets: Vec<DropletId>,
    /// Who asked for it.
    pub by: By,
    /// When.
    pub planned_at: Time,
    /// When it ends by itself, if it does.
    pub ends_at: Option<Time>,
    /// The statement of reasons: for the customer, in words.
    pub statement: String,
    /// How far it is.
    pub state: State,
    /// Whether somebody was paged because it takes too long.
    #[serde(default)]
    pub paged: bool,
    /// The case that its statement names.
    #[serde(default)]
    pub case: Option<CaseId>,
    /// Whether it was released once: from then on its key names its content.
    #[serde(default)]
    pub sent: bool,
}

/// To whom a letter goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipient {
    /// The customer, in the case's ticket.
    Customer,
    /// Whoever is on call.
    OnCall,
}

/// A message to the customer, or a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Letter {
    /// Its number within the account, from 1: names it for good.
    pub number: u64,
    /// Its case.
    pub case: CaseId,
    /// To whom.
    pub to: Recipient,
    /// What it says.
    pub text: String,
    /// Who wrote it; absent: Davy.
    pub by: Option<String>,
    /// When.
    pub written_at: Time,
    /// How far it is.
    pub state: State,
    /// Whether somebody was paged because it takes too long.
    #[serde(default)]
    pub paged: bool,
    /// The action that it tells of: to the customer, that it holds; to on-call, of an undoing, that it is not done. Once that is not so
    /// the letter does not leave.
    #[serde(default)]
    pub about: Option<Key>,
}

/// Something in the outbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parcel {
    /// An action.
    Action(Key),
    /// The letter of that number.
    Letter {
        /// Whose.
        account: AccountId,
        /// Its number.
        number: u64,
    },
}

impl fmt::Display for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Action(key) => key.fmt(f),
            Self::Letter { account, number } => write!(f, "{account}/letter/{number}"),
        }
    }
}

/// A transition that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {state}: it cannot be {what}")]
pub struct TransitionError {
    /// Which one.
    pub key: String,
    /// How far it is.
    pub state: &'static str,
    /// What was tried.
    pub what: &'static str,
}

impl State {
    /// In a word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Released { .. } => "released",
            Self::Doubtful { .. } => "in doubt",
            Self::Done { .. } => "done",
            Self::Refused { .. } => "refused",
            Self::Withheld { .. } => "withheld",
        }
    }
}

impl Action {
    /// Whether the control plane may have it, or may still get it.
    #[must_use]
    pub const fn is_under_way(&self) -> bool {
        self.state.is_under_way()
    }

    /// Whether the customer may feel it now.
    #[must_use]
    pub const fn may_be_felt(&self) -> bool {
        matches!(
            self.state,
            State::Released { .. } | State::Doubtful { .. } | State::Done { .. }
        )
    }
}

/// Says which one a transition failed of.
fn of<K: fmt::Display>(key: K) -> impl FnOnce((&'static str, &'static str)) -> TransitionError {
    move |(state, what)| TransitionError {
        key: key.to_string(),
        state,
        what,
    }
}

impl State {
    /// Whether the control plane may have it, or may still get it.
    #[must_use]
    pub const fn is_under_way(&self) -> bool {
        matches!(
            self,
            Self::Planned | Self::Released { .. } | Self::Doubtful { .. }
        )
    }

    const fn cannot(&self, what: &'static str) -> (&'static str, &'static str) {
        (self.name(), what)
    }

    /// Gives it to the driver; `key` is for the error.
    ///
    /// # Errors
    /// If it is not planned.
    pub fn release(&mut self, key: impl fmt::Display, at: Time) -> Result<(), TransitionError> {
        match self {
            Self::Planned => {
                *self = Self::Released { at };
                Ok(())
            }
            _ => Err(of(key)(self.cannot("released"))),
        }
    }

    /// Does not release it.
    ///
    /// # Errors
    /// If it is not planned: what was released is undone, not withheld.
    pub fn withhold(
        &mut self,
        key: impl fmt::Display,
        at: Time,
        why: String,
    ) -> Result<(), TransitionError> {
        match self {
            Self::Planned => {
                *self = Self::Withheld { at, why };
                Ok(())
            }
            _ => Err(of(key)(self.cannot("withheld"))),
        }
    }

    /// The release that is under way, by its time; none if there is none.
    #[must_use]
    pub const fn released_at(&self) -> Option<Time> {
        match self {
            Self::Released { at }
            | Self::Doubtful {
                released_at: at, ..
            } => Some(*at),
            Self::Planned | Self::Done { .. } | Self::Refused { .. } | Self::Withheld { .. } => {
                None
            }
        }
    }

    /// Takes what became of the release of `released_at`. The same answer twice, or a late one, changes nothing: what an earlier
    /// release came to says nothing about this one, unless it was done.
    ///
    /// # Errors
    /// If it is not under way, and was not done either.
    pub fn learn(
        &mut self,
        key: impl fmt::Display,
        released_at: Time,
        at: Time,
        outcome: Outcome,
    ) -> Result<(), TransitionError> {
        let earlier = (self.released_at()).is_some_and(|this| this != released_at);
        if earlier && outcome != Outcome::Done {
            return Ok(());
        }
        let next = match (&*self, outcome) {
            // Another replica thought that it never arrived; the control plane knows better.
            (Self::Planned | Self::Withheld { .. }, Outcome::Done) => Self::Done { at },
            (Self::Planned | Self::Withheld { .. }, _) => {
                return Err(of(key)(self.cannot("answered")));
            }
            // An answer that something was done stands, whatever else is said.
            (Self::Done { .. }, _) => return Ok(()),
            (_, Outcome::Done) => Self::Done { at },
            (Self::Refused { .. }, _) => return Ok(()),
            (Self::Released { .. } | Self::Doubtful { .. }, Outcome::Refused { why }) => {
                Self::Refused { at, why }
            }
            (Self::Released { at: released_at }, Outcome::Doubtful) => {
                Self::doubtful(*released_at, at, at)
            }
            (
                Self::Doubtful {
                    released_at, since, ..
                },
                Outcome::Doubtful,
            ) => Self::doubtful(*released_at, *since, at),
            // Only a query can say so, and a query is asked only in doubt.
            (Self::Released { .. }, Outcome::NeverSeen) => {
                return Err(of(key)(self.cannot("never seen")));
            }
            (Self::Doubtful { .. }, Outcome::NeverSeen) => Self::Planned,
        };
        *self = next;
        Ok(())
    }

    /// In doubt since `since`: asked again after as long as it has been, within bounds.
    fn doubtful(released_at: Time, since: Time, at: Time) -> Self {
        let (least, greatest) = QUERY_EVERY;
        Self::Doubtful {
            released_at,
            since,
            query_at: at.after((at - since).clamp(least, greatest)),
        }
    }

    /// Whoever released it has not said what became of it for too long, and may be gone: it is in doubt, to be queried at once.
    pub fn doubt(&mut self, at: Time) {
        if let Self::Released { at: released_at } = *self {
            *self = Self::Doubtful {
                released_at,
                since: at,
                query_at: at,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Time = Time::from_unix_ms(1_559_148_180_000);

    fn planned() -> Action {
        Action {
            key: Key {
                account: "acct-1".try_into().unwrap(),
                episode: 2,
                step: Step::Throttle,
                turn: 0,
                undo: false,
            },
            targets: Vec::new(),
            by: By::Automation { decision: 7 },
            planned_at: T0,
            ends_at: None,
            statement: String::new(),
            state: State::Planned,
            paged: false,
            case: None,
            sent: false,
        }
    }

    #[test]
    fn a_key_names_account_episode_and_step() {
        let mut key = planned().key;
        assert_eq!(key.to_string(), "acct-1/2/throttle/0");
        key.undo = true;
        assert_eq!(key.to_string(), "acct-1/2/throttle/0/undo");
    }

    #[test]
    fn nothing_is_released_twice() {
        let mut action = State::Planned;
        action.release(planned().key, T0).unwrap();
        let error = action.release(planned().key, T0).unwrap_err().to_string();
        assert_eq!(
            error,
            "acct-1/2/throttle/0 is released: it cannot be released"
        );
    }

    #[test]
    fn what_is_in_doubt_is_released_again_only_if_a_query_found_that_it_never_arrived() {
        let mut action = State::Planned;
        action.release(planned().key, T0).unwrap();
        assert!(action.learn("a", T0, T0, Outcome::NeverSeen).is_err());
        action.doubt(T0);
        assert!(action.release(planned().key, T0).is_err());
        action.learn("a", T0, T0, Outcome::Doubtful).unwrap();
        assert!(action.release(planned().key, T0).is_err());
        action.learn("a", T0, T0, Outcome::NeverSeen).unwrap();
        assert_eq!(action.release(planned().key, T0), Ok(()));
    }

    #[test]
    fn what_an_earlier_release_came_to_says_nothing_about_this_one_unless_it_was_done() {
        let later = T0.after(Span::minutes(2));
        let mut again = State::Planned;
        again.release(planned().key, later).unwrap();
        again.doubt(later.after(Span::minutes(1)));
        let doubtful = again.clone();
        let refused = Outcome::Refused {
            why: "late".to_owned(),
        };
        for stale in [refused, Outcome::Doubtful, Outcome::NeverSeen] {
            again.learn("a", T0, later, stale).unwrap();
            assert_eq!(again, doubtful);
        }
        again.learn("a", T0, later, Outcome::Done).unwrap();
        assert_eq!(again, State::Done { at: later });
    }

    #[test]
    fn the_same_answer_twice_and_rubbish_after_it_change_nothing() {
        let mut action = State::Planned;
        action.release(planned().key, T0).unwrap();
        action.learn("a", T0, T0, Outcome::Done).unwrap();
        let done = action.clone();
        let refused = Outcome::Refused {
            why: "no".to_owned(),
        };
        for late in [
            Outcome::Done,
            refused,
            Outcome::Doubtful,
            Outcome::NeverSeen,
        ] {
            action.learn("a", T0, T0, late).unwrap();
            assert_eq!(action, done);
        }
    }

    #[test]
    fn what_was_released_cannot_be_withheld_any_more() {
        let mut action = State::Planned;
        action.release(planned().key, T0).unwrap();
        assert!(action.withhold("a", T0, "a hold".to_owned()).is_err());
        let mut action = State::Planned;
        action.withhold("a", T0, "a hold".to_owned()).unwrap();
        assert!(action.release(planned().key, T0).is_err());
        // What was done all the same is known to be.
        assert!(action.learn("a", T0, T0, Outcome::NeverSeen).is_err());
        action.learn("a", T0, T0, Outcome::Done).unwrap();
        assert_eq!(action, State::Done { at: T0 });
    }
}
