//! The `Cases` service.
//!
//! An operation names a case; only an account's last case can be worked on. What is checked, is checked in the transaction that
//! changes the record. Whether a reason was copied is looked at before it as well: reasons given before stay as they are, and in the
//! transaction the ledger compares with the last ones alone.

use std::sync::Arc;

use davy_decision::{
    account::AccountId,
    audit::Actor,
    case::{CaseError, CaseId, Finding, Opinion, Person},
    dossier::{Dossier, Event, Refusal},
    policy::Step,
    settings::Settings,
    text::Reason,
    time::Time,
    words,
};
use davy_proto::v1::{self, cases_server::Cases};
use tonic::{Request, Response, Status};

use super::{failed, json, show, status, summary};
use crate::account::directory::{Directory, DirectoryError};
use crate::desk::Desk;
use crate::people::{Caller, Gate};
use crate::store::{Store, ledger::StoredCase};

/// Most cases in a list.
const CASES_MAX: usize = 5_000;
/// Most reasons that a new one is compared with, the last ones.
const REASONS_MAX: u64 = 10_000;

/// See the module.
#[derive(Clone)]
pub struct CasesService {
    /// The records.
    pub desk: Desk,
    /// Telemetry, for what was usual.
    pub store: Arc<dyn Store>,
    /// Asked for an account of which nothing was seen yet.
    pub directory: Arc<dyn Directory>,
    /// Who calls.
    pub gate: Arc<Gate>,
}

/// An account's id from the wire.
pub(crate) fn account_id(text: String) -> Result<AccountId, Status> {
    AccountId::try_from(text).map_err(|error| Status::invalid_argument(format!("account: {error}")))
}

/// A case's account, and its number if it is not just the last one.
fn named(case: Option<v1::CaseName>) -> Result<(AccountId, Option<u64>), Status> {
    let Some(v1::CaseName { account, number }) = case else {
        return Err(Status::invalid_argument(
            "say which case: its account and number",
        ));
    };
    Ok((account_id(account)?, (number > 0).then_some(number)))
}

fn reason(text: String) -> Result<Reason, Status> {
    Reason::try_from(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// As whom somebody reads. What a program reads may reach anybody: it sees nothing that is kept from one of them.
pub(crate) fn reader(caller: &Caller) -> Person {
    caller.person().unwrap_or(Person(String::new()))
}

/// What a denial amounts to.
fn measure(text: &str) -> Result<Step, Status> {
    let mut measures = Step::ALL.into_iter().filter(|step| step.is_measure());
    measures.find(|step| step.name() == text).ok_or_else(|| {
        Status::invalid_argument(format!(
            "{text:?} is no measure: a denial says what is to be done, throttle, power_down or lock"
        ))
    })
}

/// That something cannot be done to a case now, in the words of its errors.
fn wrong(case: &CaseId, state: &'static str, what: &'static str) -> Refusal {
    Refusal::Case(CaseError::State {
        case: case.to_string(),
        state,
        what,
    })
}

/// Refuses a case that is not the account's last one.
fn is_last(dossier: &Dossier, number: Option<u64>) -> Result<(), Refusal> {
    let Some(number) = number else {
        return Ok(());
    };
    let id = CaseId {
        account: dossier.account.clone(),
        number,
    };
    match &dossier.case {
        Some(case) if case.id.number == number => Ok(()),
        Some(case) if case.id.number > number => Err(wrong(
            &id,
            "not the account's last one",
            "only the last one can be worked on",
        )),
        _ => Err(Refusal::Missing {
            account: id.account,
            what: format!("case {number}"),
        }),
    }
}

/// What an operation does to a record.
trait Change:
    Fn(&mut Dossier, &Settings, Time) -> Result<Vec<Event>, Refusal> + Send + Sync + 'static
{
}

impl<F> Change for F where
    F: Fn(&mut Dossier, &Settings, Time) -> Result<Vec<Event>, Refusal> + Send + Sync + 'static
{
}

/// The queue as `reader` may see it, its order too: the place of a case whose first review is kept from them would tell of it.
fn as_seen(cases: &[StoredCase], reader: &Person) -> Vec<(StoredCase, Option<Time>)> {
    let mut seen: Vec<_> = (cases.iter())
        .map(|StoredCase { case, locked }| {
            let held = StoredCase {
                locked: case.seems_locked(reader, *locked),
                case: case.seen_by(reader),
            };
            (held, case.shown_as_of(reader))
        })
        .collect();
    seen.sort_by_key(|(held, _)| held.case.rank(held.locked));
    seen
}

impl CasesService {
    async fn dossier(&self, account: &AccountId) -> Result<Dossier, Status> {
        let held = self.desk.ledger.dossier(account.clone()).await;
        held.map_err(|error| failed(&error))?.ok_or_else(|| {
            Status::not_found(format!(
                "nothing was seen of an account {account} yet, so it has no case: check its id"
            ))
        })
    }

    /// An account without a record, as the directory has it; nothing is kept.
    async fn not_seen_yet(&self, account: AccountId) -> Result<Dossier, Status> {
        let mut dossier = Dossier::new(account.clone());
        match self.directory.facts(&account).await {
            Ok(facts) => match dossier.inform(facts, self.desk.now()) {
                Ok(_) => Ok(dossier),
                Err(refusal) => Err(Status::failed_precondition(refusal.to_string())),
            },
            Err(DirectoryError::Unknown { .. }) => Err(Status::not_found(format!(
                "neither Davy nor the account directory knows an account {account}: check its id"
            ))),
            Err(error) => Err(Status::unavailable(format!(
                "nothing was seen of account {account} yet, and {error}"
            ))),
        }
    }

    /// Makes a change on a known account, unless it waits for this person's own review first, and says what it did.
    async fn change(
        &self,
        account: AccountId,
        number: Option<u64>,
        who: (Person, Actor),
        change: impl Change,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let person = who.0.clone();
        let allowed = move |dossier: &mut Dossier, settings: &Settings, at| {
            dossier.may_act(&person)?;
            change(dossier, settings, at)
        };
        self.review(account, number, who, allowed).await
    }

    /// Makes a change on a known account, for reviewers of an appeal too, and says what it did as far as the person may see it.
    async fn review(
        &self,
        account: AccountId,
        number: Option<u64>,
        (person, actor): (Person, Actor),
        change: impl Change,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        self.dossier(&account).await?;
        let checked = move |dossier: &mut Dossier, settings: &Settings, at| {
            is_last(dossier, number)?;
            change(dossier, settings, at)
        };
        let events = self.desk.act(account.clone(), actor, checked).await;
        let events = events.map_err(|error| status(&error))?;
        let dossier = self.dossier(&account).await?;
        let events = dossier.events_seen_by(&person, events);
        let as_of = (dossier.case.as_ref()).and_then(|case| case.shown_as_of(&person));
        let dossier = dossier.seen_by(&person);
        let case = dossier.case.as_ref();
        Ok(Response::new(v1::ChangeResponse {
            account: account.to_string(),
            case: case.map(|case| summary(case, dossier.is_locked(), as_of, &self.desk.settings)),
            happened: events.iter().map(words::of).collect(),
            events_json: events.iter().map(json).collect::<Result<_, _>>()?,
        }))
    }

    /// Refuses a reason that is a copy of one given in another case.
    async fn is_own(&self, reason: &Reason, dossier: &Dossier) -> Result<(), Status> {
        let here = dossier.case.as_ref().map(|case| case.id.clone());
        let given = self.desk.ledger.reasons(REASONS_MAX).await;
        let given = given.map_err(|error| failed(&error))?;
        let reason = reason.clone();
        let compared = tokio::task::spawn_blocking(move || {
            let others = given
                .iter()
                .filter(|given| Some(&given.case) != here.as_ref());
            let named: Vec<_> = others
                .map(|given| (format!("case {}", given.case), &given.reason))
                .collect();
            reason.is_own(named.iter().map(|(name, reason)| (name.as_str(), *reason)))
        });
        let own = compared
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        own.map_err(|error| Status::failed_precondition(error.to_string()))
    }

    /// A person's opinion, with `may` to look at the case first.
    async fn opine(
        &self,
        case: Option<v1::CaseName>,
        who: (Person, Actor),
        (finding, measure, reason): (Finding, Option<Step>, Reason),
        may: fn(&davy_decision::case::Case) -> Result<(), Refusal>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let (account, number) = named(case)?;
        if finding == Finding::Deny {
            self.is_own(&reason, &self.dossier(&account).await?).await?;
        }
        let person = who.0.clone();
        let change = move |dossier: &mut Dossier, settings: &Settings, at| {
            if let Some(case) = &dossier.case {
                may(case)?;
            }
            let opinion = Opinion {
                by: person.clone(),
                at,
                finding,
                measure,
                reason: reason.clone(),
            };
            dossier.opine(opinion, [], settings)
        };
        self.review(account, number, who, change).await
    }
}

#[tonic::async_trait]
impl Cases for CasesService {
    async fn list_cases(
        &self,
        request: Request<v1::ListCasesRequest>,
    ) -> Result<Response<v1::ListCasesResponse>, Status> {
        let reader = reader(&self.gate.caller(request.metadata())?);
        let closed = request.into_inner().closed_too;
        let most = u64::try_from(CASES_MAX + 1).unwrap_or(u64::MAX);
        let cases = self.desk.ledger.cases(closed, most).await;
        let mut cases = cases.map_err(|error| failed(&error))?;
        let more = cases.len() > CASES_MAX;
        cases.truncate(CASES_MAX);
        let settings = &self.desk.settings;
        Ok(Response::new(v1::ListCasesResponse {
            cases: as_seen(&cases, &reader)
                .iter()
                .map(|(held, as_of)| summary(&held.case, held.locked, *as_of, settings))
                .collect(),
            more,
        }))
    }

    async fn get_case(
        &self,
        request: Request<v1::GetCaseRequest>,
    ) -> Result<Response<v1::GetCaseResponse>, Status> {
        let caller = self.gate.caller(request.metadata())?;
        let (account, number) = named(request.into_inner().case)?;
        let dossier = self.dossier(&account).await?;
        let last = dossier.case.as_ref().map(|case| case.id.number);
        let Some(number) = number.or(last) else {
            return Err(Status::not_found(format!("account {account} has no case")));
        };
        let id = CaseId { account, number };
        let held = self.desk.ledger.case(id.clone()).await;
        let Some(held) = held.map_err(|error| failed(&error))? else {
            return Err(Status::not_found(format!("there is no case {id}")));
        };
        let reader = reader(&caller);
        let shown = show::Shown {
            desk: &self.desk,
            store: self.store.as_ref(),
            reader: &reader,
        };
        Ok(Response::new(shown.case(&dossier, &held).await?))
    }

    async fn get_account(
        &self,
        request: Request<v1::GetAccountRequest>,
    ) -> Result<Response<v1::GetAccountResponse>, Status> {
        let reader = reader(&self.gate.caller(request.metadata())?);
        let account = account_id(request.into_inner().account)?;
        let held = self.desk.ledger.dossier(account.clone()).await;
        let dossier = match held.map_err(|error| failed(&error))? {
            Some(dossier) => dossier,
            None => self.not_seen_yet(account).await?,
        };
        let shown = show::account(&self.desk, &dossier, &reader).await?;
        Ok(Response::new(shown))
    }

    async fn claim(
        &self,
        request: Request<v1::ClaimRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let who = self.gate.person(request.metadata())?;
        let person = who.0.clone();
        let v1::ClaimRequest { case, take_over } = request.into_inner();
        let (account, number) = named(case)?;
        self.review(account, number, who, move |dossier, _, at| {
            dossier.claim(&person, take_over, at)
        })
        .await
    }

    async fn give_back(
        &self,
        request: Request<v1::GiveBackRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let who = self.gate.person(request.metadata())?;
        let person = who.0.clone();
        let (account, number) = named(request.into_inner().case)?;
        self.change(account, number, who, move |dossier, _, _| {
            dossier.give_back(&person)
        })
        .await
    }

    async fn answer(
        &self,
        request: Request<v1::AnswerRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let who = self.gate.person(request.metadata())?;
        let person = who.0.clone();
        let v1::AnswerRequest { case, text } = request.into_inner();
        let (account, number) = named(case)?;
        self.review(account, number, who, move |dossier, _, at| {
            dossier.answer(&person, &text, at)
        })
        .await
    }

    async fn unlock(
        &self,
        request: Request<v1::UnlockRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let who = self.gate.person(request.metadata())?;
        let person = who.0.clone();
        let v1::UnlockRequest {
            case,
            outcome,
            reason: text,
        } = request.into_inner();
        let legitimate = match v1::UnlockOutcome::try_from(outcome) {
            Ok(v1::UnlockOutcome::Legitimate) => true,
            Ok(v1::UnlockOutcome::Unsure) => false,
            Err(_) => {
                return Err(Status::invalid_argument(format!(
                    "{outcome} is no outcome of an unlock: legitimate or unsure"
                )));
            }
        };
        let (account, number) = named(case)?;
        // Nothing keeps an unlock back, a copied reason neither.
        let given = (!text.is_empty()).then(|| reason(text)).transpose()?;
        self.review(account, number, who, move |dossier, settings, at| {
            dossier.unlock(&person, legitimate, given.clone(), [], settings, at)
        })
        .await
    }

    async fn allow_high_cpu(
        &self,
        request: Request<v1::AllowHighCpuRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let who = self.gate.person(request.metadata())?;
        let person = who.0.clone();
        let v1::AllowHighCpuRequest { account, revoke } = request.into_inner();
        let account = account_id(account)?;
        self.change(account, None, who, move |dossier, settings, at| {
            if revoke {
                dossier.disallow_high_cpu(&person, at)
            } else {
                Ok(dossier.allow_high_cpu(&person, settings, at))
            }
        })
        .await
    }

    async fn throttle(
        &self,
        request: Request<v1::ThrottleRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let who = self.gate.person(request.metadata())?;
        let person = who.0.clone();
        let v1::ThrottleRequest { case, reason: text } = request.into_inner();
        let (account, number) = named(case)?;
        let reason = reason(text)?;
        self.change(account, number, who, move |dossier, settings, at| {
            dossier.throttle(&person, &reason, settings, at)
        })
        .await
    }

    async fn renew_throttle(
        &self,
        request: Request<v1::RenewThrottleRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let who = self.gate.person(request.metadata())?;
        let person = who.0.clone();
        let v1::RenewThrottleRequest { case, reason: text } = request.into_inner();
        let (account, number) = named(case)?;
        let reason = reason(text)?;
        self.change(account, number, who, move |dossier, settings, at| {
            dossier.renew(&person, &reason, settings, at)
        })
        .await
    }

    async fn unthrottle(
        &self,
        request: Request<v1::UnthrottleRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let who = self.gate.person(request.metadata())?;
        let person = who.0.clone();
        let (account, number) = named(request.into_inner().case)?;
        self.change(account, number, who, move |dossier, settings, at| {
            dossier.unthrottle(&person, settings, at)
        })
        .await
    }

    async fn propose_denial(
        &self,
        request: Request<v1::ProposeDenialRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let caller = self.gate.person(request.metadata())?;
        let v1::ProposeDenialRequest {
            case,
            reason: text,
            measure: text_measure,
        } = request.into_inner();
        let opinion = (Finding::Deny, Some(measure(&text_measure)?), reason(text)?);
        self.opine(case, caller, opinion, |case| {
            if case.opinions.is_empty() || case.appealed_at.is_some() {
                return Ok(());
            }
            let what = "somebody has given an opinion on it: give the second one instead";
            Err(wrong(&case.id, "proposed to be denied", what))
        })
        .await
    }

    async fn second_opinion(
        &self,
        request: Request<v1::SecondOpinionRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let caller = self.gate.person(request.metadata())?;
        let v1::SecondOpinionRequest {
            case,
            finding,
            reason: text,
            measure: text_measure,
        } = request.into_inner();
        let (finding, measure) = match v1::Finding::try_from(finding) {
            Ok(v1::Finding::Deny) => (Finding::Deny, Some(measure(&text_measure)?)),
            Ok(v1::Finding::Unlock) => (Finding::Unlock, None),
            Ok(v1::Finding::Unspecified) | Err(_) => {
                return Err(Status::invalid_argument(
                    "say what you found: deny or unlock",
                ));
            }
        };
        self.opine(case, caller, (finding, measure, reason(text)?), |case| {
            if !case.opinions.is_empty() || case.appealed_at.is_some() {
                return Ok(());
            }
            let what =
                "propose a denial, or unlock; a second opinion is on a proposal or an appeal";
            Err(wrong(
                &case.id,
                "neither proposed to be denied nor appealed",
                what,
            ))
        })
        .await
    }

    async fn undo(
        &self,
        request: Request<v1::UndoRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let who = self.gate.person(request.metadata())?;
        let person = who.0.clone();
        let (account, number) = named(request.into_inner().case)?;
        self.change(account, number, who, move |dossier, settings, at| {
            dossier.take_back(&person, settings, at)
        })
        .await
    }

    async fn close(
        &self,
        request: Request<v1::CloseRequest>,
    ) -> Result<Response<v1::ChangeResponse>, Status> {
        let who = self.gate.person(request.metadata())?;
        let (account, number) = named(request.into_inner().case)?;
        self.change(account, number, who, |dossier, _, at| dossier.close(at))
            .await
    }
}
