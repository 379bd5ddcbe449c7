//! What happens to a dossier, for the audit log and the outbox; and why something does not.

use serde::{Deserialize, Serialize};

use crate::{
    account::{AccountId, FactsError},
    action::{Key, Parcel, Recipient, State, TransitionError},
    case::{CaseError, CaseId, Finding, Person, Ruling},
    policy::Step,
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
    /// A decision was made.
    Decided {
        /// Its number within the account.
        decision: u64,
        /// Its highest step.
        step: Step,
    },
    /// A person took a case up.
    CaseClaimed {
        /// Which.
        case: CaseId,
        /// Who.
        by: Person,
    },
    /// A person gave a case back.
    CaseGivenBack {
        /// Which.
        case: CaseId,
        /// Who.
        by: Person,
    },
    /// A case was closed.
    CaseClosed {
        /// Which.
        case: CaseId,
    },
    /// A person answered the customer.
    Answered {
        /// In which case.
        case: CaseId,
        /// Who.
        by: Person,
    },
    /// A person gave an opinion.
    OpinionGiven {
        /// On which case.
        case: CaseId,
        /// Who.
        by: Person,
        /// What they found.
        finding: Finding,
    },
    /// A person withdrew their opinion.
    OpinionWithdrawn {
        /// On which case.
        case: CaseId,
        /// Who.
        by: Person,
    },
    /// A person took a decision back.
    TakenBack {
        /// Of which case.
        case: CaseId,
        /// Which one.
        ruling: Ruling,
        /// Who.
        by: Person,
    },
    /// A throttle was renewed.
    ThrottleRenewed {
        /// Its new end.
        until: Time,
        /// By whom.
        by: Person,
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
    /// A parcel was given to the driver.
    Released {
        /// Which.
        parcel: Parcel,
    },
    /// An action was not released.
    ActionWithheld {
        /// Which.
        key: Key,
        /// Why.
        why: String,
    },
    /// A letter was not sent.
    LetterWithheld {
        /// Its number.
        number: u64,
        /// Why.
        why: String,
    },
    /// Something was learnt of a parcel.
    Learned {
        /// Which.
        parcel: Parcel,
        /// How far it is now.
        state: State,
    },
    /// A letter stands in the outbox.
    LetterWritten {
        /// Its number.
        number: u64,
        /// To whom.
        to: Recipient,
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
    /// A person's word that high CPU is allowed was withdrawn.
    HighCpuWithdrawn {
        /// By whom.
        by: Person,
    },
    /// The kill switch was turned on: no automated action leaves.
    Stopped {
        /// Why.
        why: String,
    },
    /// The kill switch was turned off.
    Resumed,
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
    /// A message that cannot be taken.
    #[error("a message has a key, so that one that is told twice counts once: give it")]
    Message,
    /// An answer that cannot be taken.
    #[error("an answer is a text of at most 64 KiB: write one, or several")]
    Answer,
    /// The customer waits.
    #[error("the customer of account {account} waits for a decision: decide first")]
    Waits {
        /// Whose.
        account: AccountId,
    },
    /// There is none.
    #[error("account {account} has no {what}")]
    Missing {
        /// Whose.
        account: AccountId,
        /// What.
        what: String,
    },
}
