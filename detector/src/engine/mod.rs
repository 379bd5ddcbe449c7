//! The engine: looks at accounts when they are due, decides, and carries what was decided to the control plane.
//!
//! It holds nothing that matters: what is to be done stands in the records, and every step is one change of them. Killed at any
//! moment and started anew, or run by several replicas at once, it goes on where the records are:
//!
//! ```text
//! due ─▶ facts fetched ─▶ turn: decision stored, actions planned ─▶ errands:
//!        release (facts fetched again, safeties and budget looked at in the transaction) ─▶ delivery ─▶ what became of it
//! ```
//!
//! What was released and never answered is in doubt after a while, whoever released it; then it is queried, and sent again only if
//! the control plane never saw it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use davy_decision::{
    account::{AccountId, Facts},
    action::{Outcome, Parcel},
    audit::Actor,
    dossier::{Errand, Event},
    time::{Span, Time},
};
use tokio::sync::{Semaphore, watch};

use crate::account::directory::Directory;
use crate::action::driver::{Answer, Driver};
use crate::desk::Desk;
use crate::metrics::Metrics;
use crate::policy::Held;
use crate::store::ledger::{Decision, LedgerError, Reach};

pub mod fault;

/// How often the records are asked who is due.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Accounts attended to at once.
const AT_ONCE: usize = 16;
/// Accounts asked for at a time.
const DUE_MAX: u64 = 256;
/// Errands run for an account before others have their turn.
const ERRANDS_MAX: usize = 16;
/// Of the time in which an automated step may leave ([`davy_decision::order::LEAVES_WITHIN`]) this is left to the driver, for connecting.
const CONNECTING: Span = Span::ms(500);
/// How long an account rests after the storage failed for it.
const REST: Duration = Duration::from_secs(1);

/// See the module.
pub struct Engine {
    /// The records.
    pub desk: Desk,
    /// Where facts come from.
    pub directory: Arc<dyn Directory>,
    /// Where actions go.
    pub driver: Arc<dyn Driver>,
    /// The policies in force.
    pub policies: Arc<Held>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// An account that is being attended to.
struct Busy {
    busy: Arc<Mutex<HashSet<AccountId>>>,
    account: AccountId,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.remove(&self.account);
    }
}

impl Engine {
    /// Runs until `stopped`. An account that is being attended to is finished with first.
    pub async fn run(self: Arc<Self>, stopped: watch::Receiver<bool>) {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let busy: Arc<Mutex<HashSet<AccountId>>> = Arc::default();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stopping = crate::server::stopping(stopped);
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => break,
                _ = looks.tick() => {}
            }
            let due = match self.desk.ledger.due(self.desk.now(), DUE_MAX).await {
                Ok(due) => due,
                Err(error) => {
                    tracing::error!(%error, "who is due cannot be read; nothing is decided meanwhile");
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            for account in due {
                let held = |busy: &Mutex<HashSet<AccountId>>, account: &AccountId| {
                    let mut busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
                    busy.insert(account.clone())
                };
                if !held(&busy, &account) {
                    continue;
                }
                let Ok(place) = Arc::clone(&room).acquire_owned().await else {
                    break;
                };
                let (engine, busy) = (Arc::clone(&self), Arc::clone(&busy));
                tokio::spawn(async move {
                    // Given back however this ends.
                    let busy = Busy { busy, account };
                    if let Err(error) = engine.attend(&busy.account).await {
                        tracing::error!(account = %busy.account, %error, "an account could not be attended to; tried again");
                        tokio::time::sleep(REST).await;
                    }
                    drop((busy, place));
                });
            }
        }
        // All places free: nobody is being attended to.
        if let Ok(all) = u32::try_from(AT_ONCE) {
            let _ = room.acquire_many(all).await;
        }
    }

    /// Attends to one account: facts if it wants them, its turn, its errands.
    ///
    /// # Errors
    /// If the storage fails: what was done stands in the records, what was not is done later.
    pub async fn attend(&self, account: &AccountId) -> Result<(), LedgerError> {
        let now = self.desk.now();
        let dossier = self.desk.ledger.dossier(account.clone()).await?;
        if (dossier.as_ref()).is_some_and(|held| held.wants_facts(&self.desk.settings, now)) {
            self.fetch(account).await?;
        }
        self.turn(account).await?;
        for _ in 0..ERRANDS_MAX {
            let Some(dossier) = self.desk.ledger.dossier(account.clone()).await? else {
                break;
            };
            let fleet = self.desk.ledger.fleet().await?;
            let Some(errand) = dossier.errands(&fleet, self.desk.now()).into_iter().next() else {
                break;
            };
            self.run_errand(account, errand).await?;
        }
        Ok(())
    }

    async fn facts(&self, account: &AccountId) -> Result<Facts, String> {
        let facts = self.directory.facts(account).await;
        facts.map_err(|error| error.to_string())
    }

    async fn fetch(&self, account: &AccountId) -> Result<(), LedgerError> {
        let fresh = self.facts(account).await;
        let change = move |dossier: &mut davy_decision::dossier::Dossier, _: &_, at| {
            Ok(match fresh.clone() {
                Ok(facts) => match dossier.inform(facts, at) {
                    Ok(events) => events,
                    Err(refusal) => dossier.fetch_failed(refusal.to_string(), at),
                },
                Err(why) => dossier.fetch_failed(why, at),
            })
        };
        let actor = Actor::Automation;
        self.desk.act(account.clone(), actor, change).await?;
        Ok(())
    }

    async fn turn(&self, account: &AccountId) -> Result<(), LedgerError> {
        let (policies, settings) = (self.policies.now(), Arc::clone(&self.desk.settings));
        let changed = self
            .desk
            .change(
                account.clone(),
                Reach::Account,
                Actor::Automation,
                move |dossier, fleet, at| {
                    let turn = dossier.turn(fleet, &policies, &settings, at);
                    let number = dossier.decisions;
                    let decision = turn.decision.map(|(input, plan)| Decision {
                        number,
                        input,
                        plan,
                    });
                    Ok((turn.events, decision))
                },
            )
            .await?;
        if let Some(Decision { plan, number, .. }) = &changed.decision {
            fault::point("decided");
            self.metrics.decided(plan.step);
            tracing::info!(%account, decision = number, step = %plan.step, reasons = plan.reasons.join("; "), "decided");
        }
        Ok(())
    }

    async fn run_errand(&self, account: &AccountId, errand: Errand) -> Result<(), LedgerError> {
        match errand {
            Errand::FreeBudget => self.free_budget(account).await,
            Errand::Query {
                parcel,
                released_at,
            } => {
                let answer = self.driver.query(&parcel.to_string()).await;
                fault::point("asked");
                self.learn(account, parcel, released_at, answer).await?;
                fault::point("told");
                Ok(())
            }
            Errand::Release { parcel, with_facts } => {
                let fresh = if with_facts {
                    Some(self.facts(account).await)
                } else {
                    None
                };
                fault::point("before_release");
                if !self.release(account, parcel.clone(), fresh).await? {
                    return Ok(());
                }
                fault::point("released");
                let dossier = self.desk.ledger.dossier(account.clone()).await?;
                let order = dossier.and_then(|held| held.order(&parcel, &self.desk.settings));
                // Another replica has learnt of it already, or doubts it.
                let Some(order) = order else {
                    return Ok(());
                };
                // Everything was looked at when it was released. If that is a while ago it is left to be queried, found never to
                // have arrived, and released anew, if nothing speaks against it by then. What lifts a step, or a person asked for,
                // has until the control plane would refuse it.
                if self.desk.now().after(CONNECTING) > order.leaves_by() {
                    tracing::warn!(key = order.key, "an order was held up, and is not sent");
                    return Ok(());
                }
                let answer = self.driver.perform(&order).await;
                fault::point("delivered");
                self.learn(account, parcel, order.released_at, answer)
                    .await?;
                fault::point("learnt");
                Ok(())
            }
        }
    }

    /// Whether it was released, by this call.
    async fn release(
        &self,
        account: &AccountId,
        parcel: Parcel,
        fresh: Option<Result<Facts, String>>,
    ) -> Result<bool, LedgerError> {
        let (policies, settings) = (self.policies.now(), Arc::clone(&self.desk.settings));
        let reach = if fresh.is_some() {
            Reach::Fleet
        } else {
            Reach::Account
        };
        let changed = self
            .desk
            .change(
                account.clone(),
                reach,
                Actor::Automation,
                move |dossier, fleet, at| {
                    let fresh = fresh.clone();
                    let events =
                        dossier.release(&parcel, fresh, (fleet, &policies), &settings, at)?;
                    Ok((events, None))
                },
            )
            .await;
        match changed {
            Ok(changed) => {
                for event in &changed.events {
                    if let Event::ActionWithheld { key, why } = event {
                        self.metrics.withheld();
                        tracing::info!(%key, why, "withheld");
                    }
                }
                Ok((changed.events.iter()).any(|event| matches!(event, Event::Released { .. })))
            }
            // Another replica was first.
            Err(LedgerError::Refused(refusal)) => {
                tracing::debug!(%account, %refusal, "not released");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn learn(
        &self,
        account: &AccountId,
        parcel: Parcel,
        released_at: Time,
        answer: Answer,
    ) -> Result<(), LedgerError> {
        let Answer { outcome, detail } = answer;
        self.metrics.answered(&outcome);
        if let Outcome::Refused { why } = &outcome {
            tracing::error!(%parcel, why, "the control plane refused");
        }
        let settings = Arc::clone(&self.desk.settings);
        tracing::info!(%parcel, driver = self.driver.name(), ?outcome, detail, "the control plane answered");
        let learnt = self
            .desk
            .change(
                account.clone(),
                Reach::Account,
                Actor::Automation,
                move |dossier, fleet, at| {
                    let known = (&*fleet, &*settings);
                    let outcome = outcome.clone();
                    let events = dossier.learn(&parcel, released_at, outcome, known, at)?;
                    Ok((events, None))
                },
            )
            .await;
        match learnt {
            // Another replica has learnt of it already: what it knows stands.
            Err(LedgerError::Refused(refusal)) => {
                tracing::warn!(%account, %refusal, "an answer changes nothing");
                Ok(())
            }
            other => other.map(drop),
        }
    }

    async fn free_budget(&self, account: &AccountId) -> Result<(), LedgerError> {
        self.desk
            .change(
                account.clone(),
                Reach::Fleet,
                Actor::Automation,
                |dossier, fleet, at| {
                    if dossier.errands(fleet, at).contains(&Errand::FreeBudget) {
                        fleet.release(&dossier.account);
                    }
                    Ok((Vec::new(), None))
                },
            )
            .await?;
        Ok(())
    }
}
