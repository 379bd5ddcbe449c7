//! A case and an account, as reviewers see them: everything that speaks for the customer and against, each with its time.
//!
//! Who is to review an appeal sees the record as it was before another's review ([`Dossier::seen_by`]), as JSON too.

use davy_decision::{
    account::Facts,
    action::{Action, By, Letter, Recipient, State},
    case::{Case, Message, Opinion, Person, Speaker},
    dossier::Dossier,
    episode::{Classes, DropletEvidence, Episode},
    review,
    safety::Looked,
    time::Time,
};
use davy_proto::v1;
use tonic::Status;

use super::{GUIDELINE, failed, json, name_of, past, summary};
use crate::desk::Desk;
use crate::store::{
    Store,
    ledger::{Decision, StoredCase},
};

/// Most decisions that are looked through and shown, the last ones.
const DECISIONS_MAX: u64 = 100;

/// For whom a case is shown, and from what.
pub(super) struct Shown<'a> {
    pub(super) desk: &'a Desk,
    pub(super) store: &'a dyn Store,
    pub(super) reader: &'a Person,
}

/// Safeties for the wire.
pub(crate) fn safeties(looked: Vec<Looked>) -> Vec<v1::SafetyLooked> {
    let shown = looked.into_iter().map(|looked| v1::SafetyLooked {
        name: looked.safety.name().to_owned(),
        in_force: looked.in_force,
        why: looked.why,
    });
    shown.collect()
}

fn facts(facts: &Facts) -> Vec<v1::Fact> {
    let told = review::tell(facts).into_iter().map(|told| v1::Fact {
        name: told.name.to_owned(),
        value: told.value,
        as_of_unix_ms: told.as_of.map(Time::unix_ms),
    });
    told.collect()
}

fn links(facts: &Facts) -> Vec<v1::Link> {
    let links = review::links(facts).iter().map(|link| v1::Link {
        account: link.account.to_string(),
        by: link.by.clone(),
        note: link.note.clone(),
    });
    links.collect()
}

async fn safeties_now(
    desk: &Desk,
    dossier: &Dossier,
    at: Time,
) -> Result<Vec<v1::SafetyLooked>, Status> {
    let fleet = desk.ledger.fleet().await.map_err(|error| failed(&error))?;
    let settings = &desk.settings;
    let targets = (dossier.episode.as_ref())
        .map(|episode| episode.summary(at, settings).targets)
        .unwrap_or_default();
    let fresh = settings.facts_fresh_ms;
    Ok(safeties(
        dossier.safeties(&fleet, settings, fresh, &targets, at),
    ))
}

/// An account.
pub(super) async fn account(
    desk: &Desk,
    dossier: &Dossier,
    reader: &Person,
) -> Result<v1::GetAccountResponse, Status> {
    let as_of = (dossier.case.as_ref()).and_then(|case| case.shown_as_of(reader));
    let dossier = &dossier.seen_by(reader);
    let at = desk.now();
    let case = dossier.case.as_ref();
    Ok(v1::GetAccountResponse {
        account: dossier.account.to_string(),
        at_unix_ms: at.unix_ms(),
        facts: facts(&dossier.facts),
        links: links(&dossier.facts),
        safeties: safeties_now(desk, dossier, at).await?,
        fetched_at_unix_ms: dossier.fetched_at.map(Time::unix_ms),
        fetch_failed: dossier.fetch_failed.clone(),
        case: case.map(|case| summary(case, dossier.is_locked(), as_of, &desk.settings)),
        record_json: json(&dossier.facts)?,
    })
}

impl Shown<'_> {
    /// A case of `dossier`'s account.
    pub(super) async fn case(
        &self,
        dossier: &Dossier,
        held: &StoredCase,
    ) -> Result<v1::GetCaseResponse, Status> {
        let (at, settings) = (self.desk.now(), &self.desk.settings);
        let whole = dossier;
        let dossier = &dossier.seen_by(self.reader);
        let as_of = held.case.shown_as_of(self.reader);
        let case = held.case.seen_by(self.reader);
        // Of a former case too: decisions of the same episode rest on what a review brought.
        let last = whole.case.as_ref();
        let hidden = last.and_then(|case| case.hidden_since(self.reader));
        let mut decisions = self.decisions(dossier, &case).await?;
        decisions.retain(|decision| hidden.is_none_or(|hidden| decision.input.at < hidden));
        let present = (dossier.episode.as_ref()).filter(|held| held.number == case.episode);
        // Of an episode that has ended, the last decision on it tells.
        let last = decisions.first().map(|decision| &decision.input);
        let episode = present.or(last.map(|input| &input.episode));
        let of = present.map_or_else(|| last.map_or(at, |input| input.at), |_| at);
        let evidence = episode.map(|episode| episode.summary(of, settings));
        let past = match episode {
            Some(episode) => past::of_episode(self.store, episode).await,
            None => Ok(Vec::new()),
        };
        let comparisons = review::compare(&review::Ground {
            settings,
            facts: &dossier.facts,
            episode,
            past: &past.map_err(|error| failed(&error))?,
        });
        let is_last = (dossier.case.as_ref()).is_some_and(|last| last.id == case.id);
        let of_episode = |action: &&Action| action.key.episode == case.episode;
        Ok(v1::GetCaseResponse {
            case: Some(summary(
                &case,
                is_last && dossier.is_locked(),
                as_of,
                settings,
            )),
            at_unix_ms: at.unix_ms(),
            level: evidence.as_ref().map(|evidence| evidence.level.to_string()),
            evidence_ended: present.is_none(),
            episode_since_unix_ms: episode.map(|episode| episode.since.unix_ms()),
            mining_ms: evidence.as_ref().map(|evidence| evidence.mining.as_ms()),
            suspect_ms: evidence.as_ref().map(|evidence| evidence.suspect.as_ms()),
            droplets: episode.map(droplets).unwrap_or_default(),
            comparisons: comparisons.into_iter().map(comparison).collect(),
            facts: facts(&dossier.facts),
            links: links(&dossier.facts),
            safeties: safeties_now(self.desk, dossier, at).await?,
            decisions: decisions.iter().map(decision).collect(),
            actions: dossier
                .actions
                .iter()
                .filter(of_episode)
                .map(action)
                .collect(),
            messages: case.messages.iter().map(message).collect(),
            letters: (dossier.letters.iter())
                .filter(|letter| letter.case == case.id)
                .map(letter)
                .collect(),
            opinions: (case.past.iter().map(|held| opinion(held, true)))
                .chain(case.opinions.iter().map(|held| opinion(held, false)))
                .collect(),
            review_wanted: held.case.wants_review_of(self.reader),
            ticket: ticket(dossier, &case),
            step_back_due_unix_ms: (dossier.conversation.as_ref())
                .filter(|_| is_last && dossier.is_locked())
                .map(|conversation| conversation.since.after(settings.step_back_ms).unix_ms()),
            guideline: GUIDELINE.to_owned(),
            dossier_json: json(dossier)?,
        })
    }

    /// Decisions on the case's episode, the last first.
    async fn decisions(&self, dossier: &Dossier, case: &Case) -> Result<Vec<Decision>, Status> {
        let account = dossier.account.clone();
        let after = dossier.decisions.saturating_sub(DECISIONS_MAX);
        let held = (self.desk.ledger)
            .decisions(Some(account.clone()), Some((account, after)), DECISIONS_MAX)
            .await;
        let mut held = held.map_err(|error| failed(&error))?;
        held.retain(|decision| decision.input.episode.number == case.episode);
        held.reverse();
        Ok(held)
    }
}

fn droplets(episode: &Episode) -> Vec<v1::DropletReview> {
    let mut held: Vec<_> = episode.droplets.values().collect();
    // Those to look at first.
    held.sort_by_key(|droplet| {
        let DropletEvidence {
            last,
            mining,
            suspect,
            own: _,
        } = droplet;
        std::cmp::Reverse((last.level, mining.total_ms, suspect.total_ms))
    });
    held.into_iter().map(droplet).collect()
}

fn droplet(held: &DropletEvidence) -> v1::DropletReview {
    let DropletEvidence {
        last,
        mining,
        suspect,
        own,
    } = held;
    let strange = "not known to be this account's: it may be another one's doing".to_owned();
    let strange = Some(strange).filter(|_| !own);
    v1::DropletReview {
        droplet: last.droplet.to_string(),
        host: last.host.clone(),
        level: last.level.to_string(),
        classes: classes(last.classes),
        reasons: strange
            .into_iter()
            .chain(last.reasons.iter().cloned())
            .collect(),
        mining_ms: mining.total_ms.as_ms(),
        suspect_ms: suspect.total_ms.as_ms(),
        cpu_percent: last.cpu_percent,
        neighbours_wait_percent: last.neighbours_wait_percent,
        harm: review::harm(last.neighbours_wait_percent),
        from_unix_ms: last.from.unix_ms(),
        to_unix_ms: last.to.unix_ms(),
    }
}

fn classes(classes: Classes) -> Vec<String> {
    let Classes {
        fp_rounding,
        register_randomness,
        pmu,
    } = classes;
    let named = [
        (fp_rounding, "fp_rounding"),
        (register_randomness, "register_randomness"),
        (pmu, "pmu"),
    ];
    let held = named.into_iter().filter(|(concluded, _)| *concluded);
    held.map(|(_, name)| name.to_owned()).collect()
}

fn comparison(held: review::Comparison) -> v1::Comparison {
    let review::Comparison {
        what,
        usually,
        now,
        unusual,
    } = held;
    v1::Comparison {
        what,
        usually,
        now,
        unusual,
    }
}

fn decision(held: &Decision) -> v1::DecisionShown {
    let Decision {
        number,
        input,
        plan,
    } = held;
    v1::DecisionShown {
        number: *number,
        at_unix_ms: input.at.unix_ms(),
        steps: plan.steps.iter().map(ToString::to_string).collect(),
        policies: plan.deciding().into_iter().map(str::to_owned).collect(),
        reasons: (plan.reasons.iter().chain(&plan.overruled))
            .cloned()
            .collect(),
        policy: plan.policy.clone(),
    }
}

fn action(held: &Action) -> v1::ActionShown {
    let Action {
        key,
        targets,
        by,
        planned_at,
        ends_at,
        statement,
        state,
        paged: _,
        case: _,
        sent: _,
    } = held;
    let why = match state {
        State::Refused { why, .. } | State::Withheld { why, .. } => Some(why.clone()),
        State::Planned | State::Released { .. } | State::Doubtful { .. } | State::Done { .. } => {
            None
        }
    };
    v1::ActionShown {
        key: key.to_string(),
        step: key.step.to_string(),
        undo: key.undo,
        by: match by {
            By::Automation { decision } => format!("davy (decision {decision})"),
            By::Person { person } => person.clone(),
        },
        planned_at_unix_ms: planned_at.unix_ms(),
        ends_at_unix_ms: ends_at.map(Time::unix_ms),
        state: state.name().to_owned(),
        why,
        droplets: targets.iter().map(ToString::to_string).collect(),
        statement: statement.clone(),
    }
}

fn message(held: &Message) -> v1::MessageShown {
    let Message { at, from, text } = held;
    v1::MessageShown {
        at_unix_ms: at.unix_ms(),
        from: match from {
            Speaker::Customer { channel } if channel.is_empty() => "customer".to_owned(),
            Speaker::Customer { channel } => format!("customer ({channel})"),
            Speaker::Person { person } => person.to_string(),
            Speaker::Automation => "davy".to_owned(),
        },
        text: text.clone(),
    }
}

fn letter(held: &Letter) -> v1::LetterShown {
    let Letter {
        number,
        case: _,
        to,
        text,
        by,
        written_at,
        state,
        paged: _,
        about: _,
    } = held;
    v1::LetterShown {
        number: *number,
        to: match to {
            Recipient::Customer => "customer",
            Recipient::OnCall => "on_call",
        }
        .to_owned(),
        by: by.clone().unwrap_or_else(|| "davy".to_owned()),
        written_at_unix_ms: written_at.unix_ms(),
        state: state.name().to_owned(),
        text: text.clone(),
    }
}

fn opinion(held: &Opinion, past: bool) -> v1::OpinionShown {
    let Opinion {
        by,
        at,
        finding,
        measure,
        reason,
    } = held;
    v1::OpinionShown {
        by: by.to_string(),
        at_unix_ms: at.unix_ms(),
        finding: name_of(finding),
        measure: measure.map(|step| step.to_string()),
        reason: reason.as_str().to_owned(),
        past,
    }
}

/// What the customer was told first in this episode: the ticket.
fn ticket(dossier: &Dossier, case: &Case) -> Option<String> {
    let told = |action: &&Action| {
        action.key.episode == case.episode && !action.key.undo && action.may_be_felt()
    };
    let first = (dossier.actions.iter())
        .filter(told)
        .min_by_key(|action| action.key.step);
    first.map(|action| action.statement.clone())
}
