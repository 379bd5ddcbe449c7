//! What happens to a dossier, for the audit log and the outbox; and why something does not.

use serde::{Deserialize, Serialize};

use crate::{
    account::{AccountId, FactsError},
    action::{Key, State, TransitionError},
    case::{CaseError, CaseId, Person, Ruling},
    time::Time,
};

/// What happened, for the audit log and the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Facts changed.
    FactsChanged,
    /// Facts could not be fetched.
    FactsFailed {
        /// Why.
        why: String,
    },
    /// An episode began.
    EpisodeBegan {
        /// Its number.
        episode: u64,
    },
    /// An episode ended.
    EpisodeEnded {
        /// Its number.
        episode: u64,
    },
    /// The agents are asked for more samples.
    CloserLook,
    /// A case was opened.
    CaseOpened {
        /// Which.
        case: CaseId,
    },
    /// A case was decided.
    CaseDecided {
        /// Which.
        case: CaseId,
        /// How.
        ruling: Ruling,
        /// By whom.
        by: Person,
    },
    /// An action stands in the outbox.
    ActionPlanned {
        /// Which.
        key: Key,
    },
    /// An action was given to the driver.
    ActionReleased {
        /// Which.
        key: Key,
    },
    /// An action was not released.
    ActionWithheld {
        /// Which.
        key: Key,
        /// Why.
        why: String,
    },
    /// Something was learnt of an action.
    ActionLearned {
        /// Which.
        key: Key,
        /// How far it is now.
        state: State,
    },
    /// A hold was set.
    HoldSet {
        /// Its end.
        until: Time,
        /// By whom.
        by: Person,
    },
    /// High CPU was allowed.
    HighCpuAllowed {
        /// By whom.
        by: Person,
    },
    /// The customer said something.
    CustomerSpoke {
        /// The message's key.
        key: String,
    },
    /// Nobody decided in time: back to a throttle.
    SteppedBack {
        /// Of which case.
        case: CaseId,
    },
    /// The customer waits too long: somebody is paged.
    Paged {
        /// For which case.
        case: CaseId,
    },
}

/// Why something cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Facts that cannot be.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// Of a case.
    #[error(transparent)]
    Case(#[from] CaseError),
    /// Of an action.
    #[error(transparent)]
    Action(#[from] TransitionError),
    /// There is none.
    #[error("account {account} has no {what}")]
    Missing {
        /// Whose.
        account: AccountId,
        /// What.
        what: String,
    },
}
