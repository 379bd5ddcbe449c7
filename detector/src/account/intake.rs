//! What comes without being asked: facts that the provider pushes, and what customers say.
//!
//! `AccountIntake` over gRPC for whoever has a token, and a signed webhook for customers' messages ([`webhook`]). Both end in
//! [`Intake::hear`], whose transaction sets `open_conversation`: from its return on, no automated action leaves.

use std::sync::Arc;

use davy_decision::account::AccountId;
use davy_decision::audit::Actor;
use davy_proto::v1;
use davy_proto::v1::account_intake_server::AccountIntake;
use tonic::{Request, Response, Status};

use super::directory::{Directory, DirectoryError};
use crate::desk::Desk;
use crate::people::Gate;
use crate::store::ledger::LedgerError;
use davy_proto::accounts as wire;

/// Most records in one request.
const RECORDS_MAX: usize = 10_000;

/// What became of a customer's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Whether it was not told before.
    pub is_new: bool,
    /// The case it belongs to.
    pub case: String,
}

/// Why a customer's message was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HearError {
    /// What was sent cannot be taken; the sentence says what to do.
    #[error("{0}")]
    Bad(String),
    /// Nobody knows the account.
    #[error("no account {0} is known: send the provider's own id of it")]
    Unknown(String),
    /// The storage failed: it is to be sent again under the same key.
    #[error("{0}; send it again under the same key")]
    Failed(String),
}

/// See the module.
#[derive(Clone)]
pub struct Intake {
    desk: Desk,
    directory: Arc<dyn Directory>,
    gate: Arc<Gate>,
}

impl Intake {
    /// Into the records of `desk`.
    #[must_use]
    pub fn new(desk: Desk, directory: Arc<dyn Directory>, gate: Arc<Gate>) -> Self {
        Self {
            desk,
            directory,
            gate,
        }
    }

    /// A customer said something.
    ///
    /// # Errors
    /// [`HearError`]: it was not taken.
    pub async fn hear(
        &self,
        key: String,
        account: &str,
        channel: String,
        text: String,
    ) -> Result<Heard, HearError> {
        let id = AccountId::try_from(account).map_err(|error| HearError::Bad(error.to_string()))?;
        self.is_known(&id).await?;
        let ledger = Arc::clone(&self.desk.ledger);
        let heard = self
            .desk
            .act(id.clone(), Actor::Customer, move |dossier, _, at| {
                dossier.hear(&key, &channel, &text, at)
            })
            .await;
        let events = heard.map_err(|error| match error {
            LedgerError::Refused(refusal) => HearError::Bad(refusal.to_string()),
            LedgerError::Store(error) => HearError::Failed(error.to_string()),
        })?;
        let dossier = ledger.dossier(id).await;
        let case = dossier
            .map_err(|error| HearError::Failed(error.to_string()))?
            .and_then(|dossier| dossier.case)
            .map_or_else(String::new, |case| case.id.to_string());
        Ok(Heard {
            is_new: !events.is_empty(),
            case,
        })
    }

    /// An account that the directory knows not, and of which there is no record, is none. Where the directory cannot be asked the
    /// customer is believed.
    async fn is_known(&self, id: &AccountId) -> Result<(), HearError> {
        let held = self.desk.ledger.dossier(id.clone()).await;
        if held
            .map_err(|error| HearError::Failed(error.to_string()))?
            .is_some()
        {
            return Ok(());
        }
        match self.directory.facts(id).await {
            Err(DirectoryError::Unknown { account }) => {
                Err(HearError::Unknown(account.to_string()))
            }
            _ => Ok(()),
        }
    }

    async fn push(&self, actor: Actor, record: v1::AccountRecord) -> Result<(), String> {
        let account = AccountId::try_from(record.account).map_err(|error| error.to_string())?;
        let facts =
            wire::facts(record.facts.unwrap_or_default()).map_err(|error| error.to_string())?;
        let taken = self
            .desk
            .act(account, actor, move |dossier, _, at| {
                dossier.told(facts.clone(), at)
            })
            .await;
        taken.map(drop).map_err(|error| error.to_string())
    }
}

#[tonic::async_trait]
impl AccountIntake for Intake {
    async fn push_facts(
        &self,
        request: Request<v1::PushFactsRequest>,
    ) -> Result<Response<v1::PushFactsResponse>, Status> {
        let actor = self.gate.caller(request.metadata())?.actor();
        let records = request.into_inner().records;
        if records.len() > RECORDS_MAX {
            return Err(Status::invalid_argument(format!(
                "{} records, more than {RECORDS_MAX}: send them in parts",
                records.len()
            )));
        }
        let mut answer = v1::PushFactsResponse::default();
        for (index, record) in records.into_iter().enumerate() {
            let account = record.account.clone();
            match self.push(actor.clone(), record).await {
                Ok(()) => answer.taken += 1,
                Err(reason) => answer.refused.push(v1::RefusedRecord {
                    index: u64::try_from(index).unwrap_or(u64::MAX),
                    account,
                    reason,
                }),
            }
        }
        Ok(Response::new(answer))
    }

    async fn record_customer_message(
        &self,
        request: Request<v1::RecordCustomerMessageRequest>,
    ) -> Result<Response<v1::RecordCustomerMessageResponse>, Status> {
        self.gate.caller(request.metadata())?;
        let v1::RecordCustomerMessageRequest {
            key,
            account,
            channel,
            text,
        } = request.into_inner();
        let heard = self.hear(key, &account, channel, text).await;
        match heard {
            Ok(Heard { is_new, case }) => Ok(Response::new(v1::RecordCustomerMessageResponse {
                is_new,
                case,
            })),
            Err(error @ HearError::Bad(_)) => Err(Status::invalid_argument(error.to_string())),
            Err(error @ HearError::Unknown(_)) => Err(Status::not_found(error.to_string())),
            Err(error @ HearError::Failed(_)) => Err(Status::unavailable(error.to_string())),
        }
    }
}
