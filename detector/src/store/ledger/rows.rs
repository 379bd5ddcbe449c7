//! What a change comes to in rows: the same for every store. Pure.

use std::collections::BTreeSet;

use davy_decision::{
    account::{AccountId, DropletId},
    audit::{Actor, Entry, Note},
    case::{Case, CaseError, CaseId, Finding, Opinion, Rank},
    dossier::{Dossier, Event, Refusal},
    fleet::Fleet,
    text::Reason,
    time::Time,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Changed, GivenReason, Reach};

/// The last reasons given, that a new one is compared with in its own transaction: more cannot have come since whoever gives it compared
/// it with all.
pub const LAST_REASONS: u64 = 100;

/// A record that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be read or written: {why}")]
pub struct BadRecord {
    what: &'static str,
    why: String,
}

/// As JSON.
pub fn write(what: &'static str, value: &impl Serialize) -> Result<String, BadRecord> {
    serde_json::to_string(value).map_err(|error| BadRecord {
        what,
        why: error.to_string(),
    })
}

/// From JSON.
pub fn read<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, BadRecord> {
    serde_json::from_str(text).map_err(|error| BadRecord {
        what,
        why: error.to_string(),
    })
}

/// An entry of the audit log from its row. The hash is over the note alone, so the account that the row is found by has to be the note's.
///
/// # Errors
/// If it is no note, or another account's.
pub fn entry(
    number: u64,
    account: Option<&str>,
    note: &str,
    hash: String,
) -> Result<Entry, BadRecord> {
    let note: Note = read("a note", note)?;
    if note.account.as_ref().map(AccountId::as_str) != account {
        let named = |account: Option<&str>| account.unwrap_or("no account").to_owned();
        return Err(BadRecord {
            what: "an entry of the audit log",
            why: format!(
                "entry {number} is kept under {}, and is about {}: the database was changed by other hands",
                named(account),
                named(note.account.as_ref().map(AccountId::as_str))
            ),
        });
    }
    Ok(Entry { number, note, hash })
}

/// Ms for a column: what a store's signed integers hold.
pub fn ms(time: Time) -> i64 {
    i64::try_from(time.unix_ms()).unwrap_or(i64::MAX)
}

/// A case's row.
#[derive(Debug)]
pub struct CaseRow {
    /// Its number within the account.
    pub number: u64,
    /// Whether it is closed.
    pub closed: bool,
    /// Whether it is decided, and no review is wanted.
    pub settled: bool,
    /// Whether a lock or power-down is in effect.
    pub locked: bool,
    /// Since when the customer waits, ms; the largest number if they do not.
    pub waiting_ms: i64,
    /// When it was opened, ms.
    pub opened_ms: i64,
    /// The case.
    pub body: String,
}

impl CaseRow {
    fn of(case: &Case, locked: bool) -> Result<Self, BadRecord> {
        let Rank {
            closed,
            settled,
            spared,
            waiting_since,
            opened_at,
        } = case.rank(locked);
        Ok(Self {
            number: case.id.number,
            closed,
            settled,
            locked: !spared,
            waiting_ms: ms(waiting_since),
            opened_ms: ms(opened_at),
            body: write("a case", case)?,
        })
    }
}

/// A decision's row.
#[derive(Debug)]
pub struct DecisionRow {
    /// Its number within the account.
    pub number: u64,
    /// The input.
    pub input: String,
    /// The plan.
    pub plan: String,
}

/// A reason's row.
#[derive(Debug)]
pub struct ReasonRow {
    /// In which case.
    pub case: CaseId,
    /// The reason.
    pub reason: Reason,
    /// Whether it must be no copy of another: it denies.
    pub own: bool,
}

impl ReasonRow {
    /// Refuses a copy of one of the `last` that were given in other cases.
    ///
    /// # Errors
    /// If it is one, and must not be.
    pub fn check(&self, last: &[GivenReason]) -> Result<(), Refusal> {
        if !self.own {
            return Ok(());
        }
        for given in last.iter().filter(|given| given.case != self.case) {
            let name = format!("case {}", given.case);
            let own = self.reason.is_own([(name.as_str(), &given.reason)]);
            own.map_err(CaseError::from)?;
        }
        Ok(())
    }
}

/// All rows of a change. Absent: unchanged.
#[derive(Debug)]
pub struct Rows {
    /// The account's record.
    pub dossier: Option<String>,
    /// When to look next, ms.
    pub due_ms: Option<i64>,
    /// Cases that changed.
    pub cases: Vec<CaseRow>,
    /// The decision.
    pub decision: Option<DecisionRow>,
    /// Reasons that were given.
    pub reasons: Vec<ReasonRow>,
    /// The whole inventory, where it changed.
    pub droplets: Option<BTreeSet<DropletId>>,
    /// The fleet's record.
    pub fleet: Option<String>,
    /// For the audit log.
    pub notes: Vec<Note>,
}

/// What a change from `before` to `after` comes to.
///
/// # Errors
/// If a record cannot be written as JSON.
pub fn rows(
    (before, after): (&Dossier, &Dossier),
    (fleet_before, fleet_after): (&Fleet, &Fleet),
    reach: Reach,
    changed: &Changed,
    actor: &Actor,
    at: Time,
) -> Result<Rows, BadRecord> {
    let changes = before != after;
    let mut cases = Vec::new();
    // A lock is of the last case: a new one takes it over from the one before it.
    let locked_case = |dossier: &Dossier| {
        let locked = dossier.case.as_ref().filter(|_| dossier.is_locked());
        locked.map(|case| case.id.clone())
    };
    let (was_locked, is_locked) = (locked_case(before), locked_case(after));
    for case in after.recent_cases() {
        let locked = is_locked.as_ref() == Some(&case.id);
        let same = before.recent_cases().any(|held| held == case)
            && locked == (was_locked.as_ref() == Some(&case.id));
        if !same {
            cases.push(CaseRow::of(case, locked)?);
        }
    }
    let decision = match &changed.decision {
        Some(decision) => Some(DecisionRow {
            number: decision.number,
            input: write("a decision's input", &decision.input)?,
            plan: write("a plan", &decision.plan)?,
        }),
        None => None,
    };
    let inventory = |dossier: &Dossier| {
        let droplets = dossier.facts.droplets.as_ref()?;
        Some(droplets.value.keys().cloned().collect::<BTreeSet<_>>())
    };
    let droplets = inventory(after).filter(|after| Some(after) != inventory(before).as_ref());
    let fleet = (reach == Reach::Fleet && fleet_before != fleet_after)
        .then(|| write("the fleet's record", fleet_after))
        .transpose()?;
    Ok(Rows {
        dossier: changes
            .then(|| write("an account's record", after))
            .transpose()?,
        due_ms: changed.due.map(ms),
        cases,
        decision,
        reasons: given(before, after),
        droplets,
        fleet,
        notes: notes(Some(after), &changed.events, actor, at)?,
    })
}

/// What happened, for the audit log.
///
/// # Errors
/// If an event cannot be written as JSON.
pub fn notes(
    dossier: Option<&Dossier>,
    events: &[Event],
    actor: &Actor,
    at: Time,
) -> Result<Vec<Note>, BadRecord> {
    (events.iter())
        .map(|event| {
            let event = serde_json::to_value(event).map_err(|error| BadRecord {
                what: "an event",
                why: error.to_string(),
            })?;
            Ok(Note {
                at,
                account: dossier.map(|dossier| dossier.account.clone()),
                actor: actor.clone(),
                event,
            })
        })
        .collect()
}

/// Reasons in cases of `after` that `before` does not have.
fn given(before: &Dossier, after: &Dossier) -> Vec<ReasonRow> {
    fn opinions(case: &Case) -> impl Iterator<Item = &Opinion> {
        case.past.iter().chain(&case.opinions)
    }
    let held: Vec<_> = before.recent_cases().flat_map(opinions).collect();
    let mut given = Vec::new();
    for case in after.recent_cases() {
        let new = opinions(case).filter(|opinion| !held.contains(opinion));
        given.extend(new.map(|opinion| ReasonRow {
            case: case.id.clone(),
            reason: opinion.reason.clone(),
            own: opinion.finding == Finding::Deny,
        }));
    }
    given
}

/// A stored reason.
///
/// # Errors
/// If it is none.
pub fn reason(text: String) -> Result<Reason, BadRecord> {
    text.try_into()
        .map_err(|error: davy_decision::text::ReasonError| BadRecord {
            what: "a reason",
            why: error.to_string(),
        })
}
