//! `SafetyService.Check`: the same safeties, for any other automation of the provider's that is about to act on an account.
//!
//! It answers "allowed" only if every safety was looked at, on facts that the directory gave at most a minute ago, none is in force, and
//! people have not decided on less: as Davy asks itself before a step leaves. Facts that were pushed do not stand in for the
//! directory's; where it cannot be asked the answer is no, by `unknown_standing`. It is a question: nothing is written. An account of
//! which neither Davy nor the directory knows, or a step that is none, is an error and never an answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use davy_decision::{
    account::{AccountId, DropletId, Facts},
    decide::beyond_ruling,
    dossier::Dossier,
    policy::Step,
    safety::doubtful,
    settings::Settings,
    time::Time,
};
use davy_proto::v1::{self, safety_service_server::SafetyService};
use tonic::{Request, Response, Status};

use crate::account::directory::{Directory, DirectoryError};
use crate::case::{failed, service::account_id, show};
use crate::desk::Desk;
use crate::people::Gate;

/// Most accounts whose facts are remembered for the minute they are good for; beyond, all are forgotten.
const REMEMBERED_MAX: usize = 10_000;
/// Most droplets in a question.
const DROPLETS_MAX: usize = 10_000;

/// See the module.
#[derive(Clone)]
pub struct Safeties {
    desk: Desk,
    directory: Arc<dyn Directory>,
    gate: Arc<Gate>,
    /// Facts fetched for an earlier question, and when.
    fetched: Arc<Mutex<HashMap<AccountId, (Facts, Time)>>>,
}

/// A step that reaches the customer.
fn step(name: &str) -> Result<Step, Status> {
    // With a hyphen, as people write it, too.
    let plain = name.replace('-', "_");
    let found = Step::ALL.into_iter().find(|step| step.name() == plain);
    match found {
        Some(step) if step.is_customer_facing() => Ok(step),
        Some(step) => Err(Status::invalid_argument(format!(
            "{step} reaches no customer, so no safety is asked for it"
        ))),
        None => Err(Status::invalid_argument(format!(
            "{name:?} is no action that can be checked: give notify, throttle, power_down or lock"
        ))),
    }
}

impl Safeties {
    /// Asks `directory` for facts.
    #[must_use]
    pub fn new(desk: Desk, directory: Arc<dyn Directory>, gate: Arc<Gate>) -> Self {
        Self {
            desk,
            directory,
            gate,
            fetched: Arc::default(),
        }
    }

    fn remembered(&self, account: &AccountId, at: Time, settings: &Settings) -> Option<Facts> {
        let fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        let (facts, of) = fetched.get(account)?;
        (at - *of < settings.release_facts_fresh_ms).then(|| facts.clone())
    }

    fn remember(&self, account: &AccountId, facts: &Facts, at: Time) {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        if fetched.len() >= REMEMBERED_MAX {
            fetched.clear();
        }
        fetched.insert(account.clone(), (facts.clone(), at));
    }

    /// Brings a copy of the record up to date, or says in it why that cannot be.
    async fn refresh(&self, dossier: &mut Dossier, known: bool) -> Result<(), Status> {
        let (at, settings) = (self.desk.now(), &self.desk.settings);
        let account = dossier.account.clone();
        if let Some(facts) = self.remembered(&account, at, settings)
            // What the answer lacks is not known, whatever was known before; nothing that was remembered can be of the future.
            && doubtful(&facts, at, settings.release_facts_fresh_ms).is_empty()
            && dossier.inform(facts, at).is_ok()
        {
            return Ok(());
        }
        let answer = self.directory.facts(&account).await;
        let at = self.desk.now();
        match answer {
            Ok(facts) => match dossier.inform(facts.clone(), at) {
                Ok(_) => {
                    // As at a release: what the answer lacks is not known now.
                    let lacking = doubtful(&facts, at, settings.release_facts_fresh_ms);
                    match lacking.into_iter().next() {
                        Some(lacking) => drop(dossier.fetch_failed(lacking, at)),
                        None => self.remember(&account, &facts, at),
                    }
                }
                Err(refusal) => drop(dossier.fetch_failed(refusal.to_string(), at)),
            },
            Err(DirectoryError::Unknown { .. }) if !known => {
                return Err(Status::not_found(format!(
                    "neither Davy nor the account directory knows an account {account}: check its id"
                )));
            }
            Err(error) => drop(dossier.fetch_failed(error.to_string(), at)),
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl SafetyService for Safeties {
    async fn check(
        &self,
        request: Request<v1::CheckRequest>,
    ) -> Result<Response<v1::CheckResponse>, Status> {
        let caller = self.gate.caller(request.metadata())?;
        let v1::CheckRequest {
            account,
            action,
            droplets,
        } = request.into_inner();
        let account = account_id(account)?;
        let step = step(&action)?;
        if droplets.len() > DROPLETS_MAX {
            return Err(Status::invalid_argument(format!(
                "{} droplets: at most {DROPLETS_MAX} in one question",
                droplets.len()
            )));
        }
        let given: Result<Vec<DropletId>, _> =
            droplets.into_iter().map(DropletId::try_from).collect();
        let given =
            given.map_err(|error| Status::invalid_argument(format!("droplets: {error}")))?;
        let held = self.desk.ledger.dossier(account.clone()).await;
        let held = held.map_err(|error| failed(&error))?;
        let known = held.is_some();
        let mut dossier = held.unwrap_or_else(|| Dossier::new(account));
        self.refresh(&mut dossier, known).await?;
        if let Some(person) = caller.person() {
            // Their appeal is open: the answer is no for that alone.
            dossier = dossier.seen_by(&person);
        }
        let fleet = self
            .desk
            .ledger
            .fleet()
            .await
            .map_err(|error| failed(&error))?;
        let (at, settings) = (self.desk.now(), &self.desk.settings);
        let targets = if given.is_empty() {
            let inventory = dossier.facts.droplets.as_ref();
            inventory
                .map(|held| held.value.keys().cloned().collect())
                .unwrap_or_default()
        } else {
            given
        };
        let fresh = settings.release_facts_fresh_ms;
        let looked = dossier.safeties(&fleet, settings, fresh, &targets, at);
        let beyond_ruling = beyond_ruling(step, dossier.ruling).unwrap_or_default();
        Ok(Response::new(v1::CheckResponse {
            allowed: beyond_ruling.is_empty() && !looked.iter().any(|looked| looked.in_force),
            beyond_ruling,
            safeties: show::safeties(looked),
            as_of_unix_ms: at.unix_ms(),
            facts_as_of_unix_ms: oldest(&dossier.facts).map(Time::unix_ms),
        }))
    }
}

/// The time of the oldest fact that a decision needs; none if one is missing.
fn oldest(facts: &Facts) -> Option<Time> {
    let Facts {
        created_at,
        first_payment_at,
        first_droplet_at,
        payments,
        run_rate,
        credit,
        high_cpu_allowed,
        vouched,
        // Context for people.
        links: _,
        droplets,
    } = facts;
    let times = [
        created_at.map(|known| known.as_of),
        first_payment_at.map(|known| known.as_of),
        first_droplet_at.map(|known| known.as_of),
        payments.as_ref().map(|known| known.as_of),
        run_rate.map(|known| known.as_of),
        credit.as_ref().map(|known| known.as_of),
        high_cpu_allowed.map(|known| known.as_of),
        vouched.map(|known| known.as_of),
        droplets.as_ref().map(|known| known.as_of),
    ];
    let all: Option<Vec<Time>> = times.into_iter().collect();
    all?.into_iter().min()
}
