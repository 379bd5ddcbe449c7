//! People's side of the deciding half: what reviewers see of a case, and what they do about it. For `davyctl` and the console alike: no
//! formatting for terminals here.
//!
//! - [`service`] — the `Cases` service: every operation is one change through the [`crate::desk`].
//! - [`show`] — a case and an account, as reviewers see them.
//! - [`past`] — what a droplet did before its episode, from the telemetry kept.

use davy_decision::case::{Case, CaseId, State};
use davy_decision::{settings::Settings, time::Time};
use davy_proto::v1;
use tonic::Status;

use crate::store::StoreError;
use crate::store::ledger::LedgerError;

pub mod past;
pub mod service;
pub mod show;

/// Where reviewers find how to judge.
pub const GUIDELINE: &str = "docs/review-guideline.md";

/// A refusal's sentence as a status.
pub(crate) fn status(error: &LedgerError) -> Status {
    match error {
        LedgerError::Refused(refusal) => Status::failed_precondition(refusal.to_string()),
        LedgerError::Store(error) => failed(error),
    }
}

/// A failure of the storage as a status.
pub(crate) fn failed(error: &StoreError) -> Status {
    Status::unavailable(error.to_string())
}

/// A record as JSON.
pub(crate) fn json(record: &impl serde::Serialize) -> Result<String, Status> {
    serde_json::to_string(record)
        .map_err(|error| Status::internal(format!("a record cannot be written: {error}")))
}

/// A name as serde writes it: `snake_case` of a variant without fields.
pub(crate) fn name_of(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// A case in a line, as a reader may see it. `locked`: a lock or power-down is in effect; `as_of`: as of when, if not now
/// ([`Case::shown_as_of`]).
#[must_use]
pub fn summary(
    case: &Case,
    locked: bool,
    as_of: Option<Time>,
    settings: &Settings,
) -> v1::CaseSummary {
    let (state, claimed_by, ruling, since) = match &case.state {
        State::Open => ("open", None, None, None),
        State::Claimed { by, at } => ("claimed", Some(by.to_string()), None, Some(*at)),
        State::Decided { ruling, at } => ("decided", None, Some(*ruling), Some(*at)),
        State::Closed { ruling, at } => ("closed", None, Some(*ruling), Some(*at)),
    };
    let CaseId { account, number } = &case.id;
    v1::CaseSummary {
        account: account.to_string(),
        number: *number,
        episode: case.episode,
        state: state.to_owned(),
        claimed_by,
        ruling: ruling.as_ref().map(name_of),
        opened_at_unix_ms: case.opened_at.unix_ms(),
        state_since_unix_ms: since.map(Time::unix_ms),
        locked,
        waiting_since_unix_ms: case.waiting_since.map(Time::unix_ms),
        first_answer_due_unix_ms: (case.waiting_since)
            .map(|since| since.after(settings.first_answer_ms).unix_ms()),
        paged: case.paged,
        appealed_at_unix_ms: case.appealed_at.map(Time::unix_ms),
        opinions: u32::try_from(case.opinions.len()).unwrap_or(u32::MAX),
        as_of_unix_ms: as_of.map(Time::unix_ms),
        undecided_since_unix_ms: case.talks_since.map(Time::unix_ms),
    }
}
