//! What is asked of the provider's control plane, and how far it is. Pure: transitions alone.
//!
//! ```text
//! planned ──release──▶ released ──done──▶ done ──▶ (an undo of its own)
//!    │                  │  ▲  └─refused─▶ refused
//!    └─withheld         │  └─never seen─┐
//!                       └─in doubt──▶ doubtful ──queried──▶ done | planned again
//! ```
//!
//! A release looks at everything again; what it finds decides. Delivery is at least once under one key, which names the
//! action for good: a receiver that honours it does it once. What is in doubt is queried and never sent again blindly.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    account::{AccountId, DropletId},
    policy::Step,
    time::Time,
};

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
        /// Since when.
        since: Time,
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
    /// How far it is.
    pub state: State,
}

/// A transition that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("action {key} is {state}: it cannot be {what}")]
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
        matches!(
            self.state,
            State::Planned | State::Released { .. } | State::Doubtful { .. }
        )
    }

    /// Whether the customer may feel it now.
    #[must_use]
    pub const fn may_be_felt(&self) -> bool {
        matches!(
            self.state,
            State::Released { .. } | State::Doubtful { .. } | State::Done { .. }
        )
    }

    fn cannot(&self, what: &'static str) -> TransitionError {
        TransitionError {
            key: self.key.to_string(),
            state: self.state.name(),
            what,
        }
    }

    /// Gives it to the driver.
    ///
    /// # Errors
    /// If it is not planned.
    pub fn release(&mut self, at: Time) -> Result<(), TransitionError> {
        match self.state {
            State::Planned => {
                self.state = State::Released { at };
                Ok(())
            }
            _ => Err(self.cannot("released")),
        }
    }

    /// Does not release it.
    ///
    /// # Errors
    /// If it is not planned: what was released is undone, not withheld.
    pub fn withhold(&mut self, at: Time, why: String) -> Result<(), TransitionError> {
        match self.state {
            State::Planned => {
                self.state = State::Withheld { at, why };
                Ok(())
            }
            _ => Err(self.cannot("withheld")),
        }
    }

    /// Takes what became of it. The same answer twice, or a late one, changes nothing.
    ///
    /// # Errors
    /// If it was never released.
    pub fn learn(&mut self, at: Time, outcome: Outcome) -> Result<(), TransitionError> {
        match (&self.state, outcome) {
            (State::Planned | State::Withheld { .. }, _) => Err(self.cannot("answered")),
            // An answer that something was done stands, whatever else is said.
            (State::Done { .. }, _) => Ok(()),
            (_, Outcome::Done) => {
                self.state = State::Done { at };
                Ok(())
            }
            (State::Refused { .. }, _) => Ok(()),
            (State::Released { .. } | State::Doubtful { .. }, Outcome::Refused { why }) => {
                self.state = State::Refused { at, why };
                Ok(())
            }
            (State::Released { .. }, Outcome::Doubtful) => {
                self.state = State::Doubtful { since: at };
                Ok(())
            }
            (State::Doubtful { .. }, Outcome::Doubtful) => Ok(()),
            // Only a query can say so, and a query is asked only in doubt.
            (State::Released { .. }, Outcome::NeverSeen) => Err(self.cannot("never seen")),
            (State::Doubtful { .. }, Outcome::NeverSeen) => {
                self.state = State::Planned;
                Ok(())
            }
        }
    }

    /// The detector starts anew: what was released and not answered is in doubt.
    pub fn doubt(&mut self, at: Time) {
        if matches!(self.state, State::Released { .. }) {
            self.state = State::Doubtful { since: at };
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
            state: State::Planned,
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
        let mut action = planned();
        action.release(T0).unwrap();
        let error = action.release(T0).unwrap_err().to_string();
        assert_eq!(
            error,
            "action acct-1/2/throttle/0 is released: it cannot be released"
        );
    }

    #[test]
    fn what_is_in_doubt_is_released_again_only_if_a_query_found_that_it_never_arrived() {
        let mut action = planned();
        action.release(T0).unwrap();
        assert!(action.learn(T0, Outcome::NeverSeen).is_err());
        action.doubt(T0);
        assert!(action.release(T0).is_err());
        action.learn(T0, Outcome::Doubtful).unwrap();
        assert!(action.release(T0).is_err());
        action.learn(T0, Outcome::NeverSeen).unwrap();
        assert_eq!(action.release(T0), Ok(()));
    }

    #[test]
    fn the_same_answer_twice_and_rubbish_after_it_change_nothing() {
        let mut action = planned();
        action.release(T0).unwrap();
        action.learn(T0, Outcome::Done).unwrap();
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
            action.learn(T0, late).unwrap();
            assert_eq!(action, done);
        }
    }

    #[test]
    fn what_was_released_cannot_be_withheld_any_more() {
        let mut action = planned();
        action.release(T0).unwrap();
        assert!(action.withhold(T0, "a hold".to_owned()).is_err());
        let mut action = planned();
        action.withhold(T0, "a hold".to_owned()).unwrap();
        assert!(action.release(T0).is_err());
        assert!(action.learn(T0, Outcome::Done).is_err());
    }
}
