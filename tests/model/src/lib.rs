//! The protocol of cases, plans and outbox, checked exhaustively within stated bounds.
//!
//! Two replicas share a store whose transactions are atomic. The accounts' records and the fleet's are the real ones, and every change
//! of them is the production transition; what surrounds them is modelled:
//!
//! - the network: an order or an answer that was sent may arrive never, late, or any number of times, in any order;
//! - the replicas: one fetches facts, and commits a release later with what it fetched; it may be gone between commit and
//!   delivery, or between delivery and answer;
//! - the control plane: it honours keys, refuses what comes after `not_after`, and may refuse anything else, for good;
//! - the surroundings: the customer, the provider's people and flag, the kill switch, evidence, and time in coarse steps;
//! - what the store keeps beside the records: decisions, and the reasons given over all cases.
//!
//! | file | what |
//! |---|---|
//! | [`world`] | the state, and what of it tells two states apart |
//! | [`shell`] | what may happen: each action, as a replica or somebody outside does it |
//! | [`surroundings`] | facts, evidence, time, the kill switch |
//! | [`next`] | where it begins, and which of these may happen next |
//! | [`people`] | what people do |
//! | [`books`] | the oracles' own account of what happened; no production function judges itself |
//! | [`properties`] | the invariants, and what must be reachable |
//!
//! [`Bend`] breaks the shell on purpose, so that a test can see that the checker notices.
//!
//! At rest ("in the end") is a state in which no replica has anything left to do, at the last of the times.
//!
//! Not modelled: how letters are delivered, the audit log, two clocks that differ, a store that loses what it confirmed.

pub mod books;
pub mod next;
pub mod people;
pub mod properties;
pub mod shell;
pub mod surroundings;
pub mod world;

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::{Arc, Mutex},
};

use davy_decision::{
    policy::{Policies, PolicyError, Step},
    settings::Settings,
    time::{Span, Time},
};

use crate::world::Record;

/// The begin of the model's time.
pub const T0: Time = Time::from_unix_ms(1_559_148_180_000);

/// How the shell is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bend {
    /// A release looks at the record and facts as they were when it began, not at those in the transaction.
    StaleLook,
    /// What is in doubt is sent again under a new key.
    NewKeyInDoubt,
    /// A release overwrites what another replica wrote meanwhile.
    LostUpdate,
    /// An unlock's hold is lost.
    ForgottenHold,
    /// A release does not see the kill switch.
    KillSwitchIgnored,
    /// What was released is sent however late.
    SentLate,
    /// An answer counts whichever release it is of.
    AnswersUntold,
    /// A query is made before the order's time has passed.
    EarlyQuery,
    /// The budget is given back while an action still holds.
    BudgetGivenBack,
    /// One person's two identities count as two.
    OnePersonTwice,
    /// A copied text is taken for one's own.
    CopiesTaken,
    /// Facts that are old, or could not be fetched, pass for those of now.
    OldFactsTaken,
    /// One class of evidence passes for two.
    OneClassTaken,
    /// A decision is not stored with what it planned.
    DecisionNotKept,
    /// The statement of reasons is lost.
    StatementLost,
    /// A plan passes for one of now, however old it is.
    StalePlanRuns,
    /// A release is not counted against the budget.
    BudgetNotCounted,
    /// What was done in spite of a safety that appeared meanwhile stands.
    NeverUndone,
    /// What people decided leaves, though the customer wrote before it did.
    WordUnheard,
    /// What people decided leaves again when it turns out that it never arrived, though the customer wrote meanwhile.
    DoubtUnheard,
    /// What is harsher than two people's ruling is not undone with it.
    HarsherStands,
    /// What two people rule rests on an automated step that may never have arrived.
    RestsOnDoubt,
    /// The case is lost, and with it what people could undo.
    CaseLost,
    /// Nobody is paged for an undoing that is refused.
    PageLost,
}

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// The customer writes.
    pub messages: u8,
    /// A person unlocks.
    pub unlocks: u8,
    /// A person gives an opinion for a denial.
    pub denials: u8,
    /// A person takes back.
    pub take_backs: u8,
    /// The provider sets its flag.
    pub flags: u8,
    /// Facts cannot be fetched, or are old.
    pub bad_facts: u8,
    /// The kill switch is turned.
    pub kill_turns: u8,
    /// The evidence changes, for good.
    pub evidence: u8,
    /// The control plane refuses.
    pub refusals: u8,
    /// A replica is gone after a commit.
    pub crashes: u8,
    /// A driver gives up without an answer.
    pub silences: u8,
    /// Queries.
    pub queries: u8,
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Config {
    /// Accounts, each with mining droplets.
    pub accounts: u8,
    /// Droplets of each; with five or more and payment trouble, power-down is permitted.
    pub droplets: u8,
    /// Droplets of the fleet.
    pub fleet: u64,
    /// Whether notices go the way of any order; if not, each is delivered and answered as soon as it is planned.
    pub notices: bool,
    /// Whether an order is delivered and answered at once, so that the bounds can go to people instead of the network.
    pub prompt: bool,
    /// Replicas at work, one or two.
    pub replicas: u8,
    /// People who may deny.
    pub deniers: u8,
    /// What they may ask for.
    pub measures: Vec<Step>,
    /// Whether they may copy a text.
    pub copies: bool,
    /// The times at which things happen, after the begin.
    pub times: Vec<Span>,
    /// Bounds.
    pub bounds: Bounds,
    /// Settings.
    pub settings: Settings,
    /// The way the shell is broken, if it is.
    pub bend: Option<Bend>,
}

/// Says something past the test harness's capturing: what was explored, and within which bounds, is part of every run.
pub fn say(line: &str) {
    // What cannot be written to stdout cannot be said elsewhere.
    let _ = writeln!(io::stdout(), "{line}");
}

/// A turn depends on the record, the fleet and the time alone, and evaluates policies: it is made once.
type Turns = Mutex<HashMap<(u64, u64, u8), Record>>;

/// The model.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// What is explored.
    pub config: Config,
    /// The policies that ship.
    pub policies: Arc<Policies>,
    turns: Arc<Turns>,
}

impl Protocol {
    /// Of a configuration.
    ///
    /// # Errors
    /// If the policies that ship are none.
    pub fn new(config: Config) -> Result<Self, PolicyError> {
        Ok(Self {
            config,
            policies: Arc::new(Policies::shipped()?),
            turns: Arc::default(),
        })
    }

    /// The time of a step.
    #[must_use]
    pub fn time(&self, now: u8) -> Time {
        let span = self.config.times.get(usize::from(now));
        T0.after(span.copied().unwrap_or_default())
    }

    fn bent(&self, bend: Bend) -> bool {
        self.config.bend == Some(bend)
    }
}
