//! The `Automation` service: the kill switch, the audit log, and stored decisions with their policies.
//!
//! The kill switch is the fleet's record, which every release of an automated action locks: once `Stop` has returned none is
//! released any more.
//!
//! Who found what in an appeal is kept back from the audit log's readers until the reviews are in. The entry's number and hash
//! stand there all the same, so that the chain can be followed over it; it is checked in full once it is shown. Decisions of the account
//! made since are left out until then, too.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use davy_decision::{
    account::AccountId, audit::Actor, case::Person, dossier::Event, fleet::Stop, time::Time,
};
use davy_proto::v1::{self, automation_server::Automation};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::case::{
    failed, json,
    service::{account_id, reader},
};
use crate::desk::Desk;
use crate::people::Gate;
use crate::store::ledger::Decision;

/// Entries read at a time.
const ENTRIES: u64 = 500;
/// Decisions read at a time: each has its whole input.
const DECISIONS: u64 = 50;
/// Answers that wait for a slow reader.
const QUEUE: usize = 64;
/// Most cases that are looked through for reviews under way.
const CASES_MAX: u64 = 100_000;
/// Longest reason of a stop, bytes.
const WHY_BYTES_MAX: usize = 4 << 10;

/// See the module.
#[derive(Clone)]
pub struct AutomationService {
    /// The records.
    pub desk: Desk,
    /// Who calls.
    pub gate: Arc<Gate>,
}

impl AutomationService {
    async fn fleet(&self, changed: bool) -> Result<Response<v1::GetFleetResponse>, Status> {
        let fleet = self
            .desk
            .ledger
            .fleet()
            .await
            .map_err(|error| failed(&error))?;
        let settings = &self.desk.settings;
        let held = fleet.spent.iter().filter(|spent| spent.holds);
        let (since, by, why) = match &fleet.stop {
            Some(Stop { since, by, why }) => {
                (Some(since.unix_ms()), Some(by.clone()), Some(why.clone()))
            }
            None => (None, None, None),
        };
        Ok(Response::new(v1::GetFleetResponse {
            stopped: fleet.stop.is_some(),
            stopped_since_unix_ms: since,
            stopped_by: by,
            stopped_why: why,
            actions_within_hour: fleet.within_hour(self.desk.now()),
            actions_per_hour_max: settings.budget_per_hour,
            droplets_held: held.fold(0, |sum, spent| sum.saturating_add(spent.droplets)),
            droplets: (fleet.droplets > 0).then_some(fleet.droplets),
            fleet_per_mille_max: settings.budget_fleet_per_mille,
            changed,
        }))
    }

    /// Turns the kill switch; says whether it was the other way before.
    async fn turn(&self, actor: Actor, stop: Option<Stop>) -> Result<bool, Status> {
        let changed = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&changed);
        let change = move |fleet: &mut davy_decision::fleet::Fleet| {
            let turns = fleet.stop.is_some() != stop.is_some();
            seen.store(turns, Ordering::Relaxed);
            if !turns {
                return Vec::new();
            }
            fleet.stop.clone_from(&stop);
            vec![match &stop {
                Some(Stop { why, .. }) => Event::Stopped { why: why.clone() },
                None => Event::Resumed,
            }]
        };
        let turned = self.desk.change_fleet(actor, Arc::new(change)).await;
        turned.map_err(|error| crate::case::status(&error))?;
        Ok(changed.load(Ordering::Relaxed))
    }

    /// Accounts of which a review is kept back from `reader`, and since when.
    async fn under_review(&self, reader: &Person) -> Result<HashMap<AccountId, Time>, Status> {
        let cases = self.desk.ledger.cases(false, CASES_MAX).await;
        let cases = cases.map_err(|error| failed(&error))?;
        let hidden = cases.into_iter().filter_map(|held| {
            let since = held.case.hidden_since(reader)?;
            Some((held.case.id.account, since))
        });
        Ok(hidden.collect())
    }
}

/// From when on the log is kept from a reader, and of which account they are to review the appeal. Other accounts' entries too: the
/// numbers that lie between them would tell how many were hidden.
fn horizon(under_review: &HashMap<AccountId, Time>) -> Option<(&AccountId, Time)> {
    let all = under_review.iter().map(|(held, since)| (held, *since));
    all.min_by_key(|(held, since)| (*since, *held))
}

#[tonic::async_trait]
impl Automation for AutomationService {
    type ReadAuditStream = ReceiverStream<Result<v1::AuditEntry, Status>>;
    type ReadDecisionsStream = ReceiverStream<Result<v1::Decision, Status>>;

    async fn get_fleet(
        &self,
        request: Request<v1::GetFleetRequest>,
    ) -> Result<Response<v1::GetFleetResponse>, Status> {
        self.gate.caller(request.metadata())?;
        self.fleet(false).await
    }

    async fn stop(
        &self,
        request: Request<v1::StopRequest>,
    ) -> Result<Response<v1::GetFleetResponse>, Status> {
        // Whoever is let in may stop: it is the safe side.
        let caller = self.gate.caller(request.metadata())?;
        let why = request.into_inner().why;
        if why.trim().is_empty() || why.len() > WHY_BYTES_MAX {
            return Err(Status::invalid_argument(
                "say why automation is stopped, in up to 4 KiB",
            ));
        }
        let stop = Stop {
            since: self.desk.now(),
            by: caller.identity().to_owned(),
            why,
        };
        let changed = self.turn(caller.actor(), Some(stop)).await?;
        self.fleet(changed).await
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeRequest>,
    ) -> Result<Response<v1::GetFleetResponse>, Status> {
        let (_, actor) = self.gate.person(request.metadata())?;
        let changed = self.turn(actor, None).await?;
        self.fleet(changed).await
    }

    async fn read_audit(
        &self,
        request: Request<v1::ReadAuditRequest>,
    ) -> Result<Response<Self::ReadAuditStream>, Status> {
        let caller = self.gate.caller(request.metadata())?;
        let v1::ReadAuditRequest { account, mut after } = request.into_inner();
        let account = account.map(account_id).transpose()?;
        let reader = reader(&caller);
        let (service, (out, answers)) = (self.clone(), mpsc::channel(QUEUE));
        tokio::spawn(async move {
            loop {
                let entries = service.entries(account.clone(), after, &reader).await;
                let (entries, end) = match entries {
                    Ok(read) => read,
                    Err(error) => {
                        // A reader that has gone needs no error.
                        let _ = out.send(Err(error)).await;
                        return;
                    }
                };
                for entry in entries {
                    after = entry.number;
                    if out.send(Ok(entry)).await.is_err() {
                        return;
                    }
                }
                match end {
                    End::Open => {}
                    End::Reached => return,
                    End::Kept(status) => {
                        let _ = out.send(Err(status)).await;
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn read_decisions(
        &self,
        request: Request<v1::ReadDecisionsRequest>,
    ) -> Result<Response<Self::ReadDecisionsStream>, Status> {
        let reader = reader(&self.gate.caller(request.metadata())?);
        let account = self.known(request.into_inner().account).await?;
        let (service, (out, answers)) = (self.clone(), mpsc::channel(QUEUE));
        tokio::spawn(async move {
            let mut after = None;
            loop {
                let read = service
                    .decisions(account.clone(), after.clone(), &reader)
                    .await;
                let (decisions, hidden) = match read {
                    Ok((decisions, _)) if decisions.is_empty() => return,
                    Ok(read) => read,
                    Err(error) => {
                        let _ = out.send(Err(error)).await;
                        return;
                    }
                };
                for decision in decisions {
                    after = Some((decision.input.account.clone(), decision.number));
                    let since = hidden.get(&decision.input.account);
                    if since.is_some_and(|since| decision.input.at >= *since) {
                        continue;
                    }
                    if out.send(on_the_wire(&decision)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn get_policies(
        &self,
        request: Request<v1::GetPoliciesRequest>,
    ) -> Result<Response<v1::GetPoliciesResponse>, Status> {
        self.gate.caller(request.metadata())?;
        let digest = request.into_inner().digest;
        let held = self.desk.ledger.policies(digest.clone()).await;
        let files = held.map_err(|error| failed(&error))?.ok_or_else(|| {
            Status::not_found(format!("no policies with the digest {digest:?} are kept"))
        })?;
        Ok(Response::new(v1::GetPoliciesResponse {
            files: files.into_iter().collect(),
        }))
    }
}

impl AutomationService {
    /// The account that is asked for, if one is: of one that there is no record of nothing can be read.
    async fn known(&self, text: Option<String>) -> Result<Option<AccountId>, Status> {
        let Some(account) = text.map(account_id).transpose()? else {
            return Ok(None);
        };
        let held = self.desk.ledger.dossier(account.clone()).await;
        match held.map_err(|error| failed(&error))? {
            Some(_) => Ok(Some(account)),
            None => Err(Status::not_found(format!(
                "there is no record of an account {account}: check its id"
            ))),
        }
    }

    /// The next decisions, and from when on those of an account are kept from `reader`: they rest on what a review brought.
    async fn decisions(
        &self,
        account: Option<AccountId>,
        after: Option<(AccountId, u64)>,
        reader: &Person,
    ) -> Result<(Vec<Decision>, HashMap<AccountId, Time>), Status> {
        let held = self.desk.ledger.decisions(account, after, DECISIONS).await;
        let held = held.map_err(|error| failed(&error))?;
        Ok((held, self.under_review(reader).await?))
    }

    /// The next entries that `reader` may see, and whether there may be more.
    async fn entries(
        &self,
        account: Option<AccountId>,
        after: u64,
        reader: &Person,
    ) -> Result<(Vec<v1::AuditEntry>, End), Status> {
        let entries = self.desk.ledger.audit(account, after, ENTRIES).await;
        let mut entries = entries.map_err(|error| failed(&error))?;
        // After the entries: an opinion that came in between is known to be under review.
        let under_review = self.under_review(reader).await?;
        let horizon = horizon(&under_review);
        let read = entries.len();
        if let Some((_, since)) = horizon {
            let kept = entries.iter().position(|entry| entry.note.at >= since);
            entries.truncate(kept.unwrap_or(read));
        }
        // Said at the end whether or not there is more: that there is none would tell, too.
        let end = match horizon {
            Some((account, since)) if entries.len() < read || read == 0 => {
                End::Kept(Status::failed_precondition(format!(
                    "entries from {since} on are kept back until the appeal of account {account} has both its reviews, from a person who is to review it until \
                     theirs is in"
                )))
            }
            _ if read == 0 => End::Reached,
            _ => End::Open,
        };
        let shown = entries.into_iter().map(|entry| {
            Ok(v1::AuditEntry {
                number: entry.number,
                note_json: json(&entry.note)?,
                hash: entry.hash,
            })
        });
        Ok((shown.collect::<Result<_, Status>>()?, end))
    }
}

/// How a read of the audit log ends.
enum End {
    /// There may be more.
    Open,
    /// There is no more.
    Reached,
    /// The rest is kept from the reader.
    Kept(Status),
}

fn on_the_wire(decision: &Decision) -> Result<v1::Decision, Status> {
    Ok(v1::Decision {
        account: decision.input.account.to_string(),
        number: decision.number,
        input_json: json(&decision.input)?,
        plan_json: json(&decision.plan)?,
    })
}
