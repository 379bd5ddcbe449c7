//! The oracles' own account of what happened. It is kept from what the surroundings did and what the control plane saw, and shares
//! no function with the code that is judged.

use std::collections::{BTreeMap, BTreeSet};

use davy_decision::time::{Span, Time};

use crate::world::{Fetched, Name, Wire};

/// What was broken, once it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Broken {
    /// Released with a safety in force (invariant 1).
    Safety,
    /// Released on facts that were unknown or old (invariant 2).
    Unknown,
    /// Released without evidence of two classes, fresh (invariant 3).
    Evidence,
    /// Released before a hold ended (invariant 4).
    Hold,
    /// Denied by fewer than two people (invariant 5).
    Denial,
    /// Released without an open case or a statement (invariant 6).
    Case,
    /// Released once more without knowing that the last one never arrived (invariant 7).
    Twice,
    /// A plan older than its limit ran.
    StalePlan,
    /// Beyond the hour's budget (invariant 8).
    Budget,
    /// Released, or sent more than a second, after the kill switch was turned (invariant 8).
    Stopped,
}

/// Of one account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Account {
    /// The customer wrote, and nobody has decided since.
    pub waits: bool,
    /// A person's word allows high CPU.
    pub allowed: bool,
    /// The latest end of a hold.
    pub held_until: Option<Time>,
    /// The provider's flag was seen in facts that were taken.
    pub flag_seen: bool,
    /// Of when the newest facts are that were taken; none after a fetch that failed.
    pub facts_of: Option<Time>,
    /// What a failed fetch had before it.
    pub facts_before: Option<Time>,
    /// Its droplets mine, on two classes of evidence, up to this time.
    pub mines_until: Option<Time>,
    /// People who denied since the last ruling or appeal.
    pub deniers: BTreeSet<u8>,
    /// People behind the denial in force.
    pub denied_by: Option<u8>,
}

/// The books.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Books {
    /// Of each account.
    pub accounts: Vec<Account>,
    /// Since when the kill switch is on.
    pub stopped: Option<Time>,
    /// When automated actions that count were released.
    pub spent: Vec<Time>,
    /// How often each action was released, and how often the record was told that it never arrived.
    pub releases: BTreeMap<Name, (u8, u8)>,
    /// What was broken.
    pub broken: BTreeSet<Broken>,
    /// Things that were seen to happen, for what must be reachable.
    pub seen: BTreeSet<Seen>,
}

/// Something worth reaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Seen {
    /// A query found that it was done.
    DoubtResolvedAsDone,
    /// A query found that it never arrived, and it was released again.
    ReleasedAgain,
    /// An unanswered lock stepped back.
    SteppedBack,
    /// Two people locked.
    LockedByTwo,
    /// Something was withheld for the budget that another account used.
    WithheldForBudget,
    /// Withheld for the kill switch.
    WithheldForStop,
    /// An order came too late and was refused.
    TooLate,
}

/// What an oracle is told about a release that was committed.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// The order.
    pub wire: Wire,
    /// The facts it was made with.
    pub facts: Option<Fetched>,
    /// When its plan was made.
    pub planned_at: Time,
    /// Whether a case is open, and the order has its name and a statement.
    pub told: bool,
    /// The time.
    pub at: Time,
}

/// The design's limits, written anew: a slip in the settings must not blind the oracles.
const FACTS_FRESH: Span = Span::seconds(60);
const PLAN_FRESH: Span = Span::minutes(10);
const EVIDENCE_FRESH: Span = Span::minutes(5);
const HOUR: Span = Span::hours(1);

impl Account {
    /// Facts were taken, or could not be fetched.
    pub fn informed(&mut self, facts: Fetched) {
        match facts {
            Fetched::Good { flag, at } => {
                self.flag_seen |= flag;
                self.facts_of = self.facts_of.max(self.facts_before).max(Some(at));
                self.facts_before = None;
            }
            Fetched::Old => {
                self.facts_of = self.facts_of.max(self.facts_before);
                self.facts_before = None;
            }
            Fetched::Failed => {
                self.facts_before = self.facts_before.max(self.facts_of);
                self.facts_of = None;
            }
        }
    }
}

impl Books {
    /// A release was committed.
    pub fn released(&mut self, release: &Release, counts: bool, per_hour: u64) {
        let Release {
            wire,
            facts,
            planned_at,
            told,
            at,
        } = *release;
        let (released, never) = self.releases.entry(wire.name).or_default();
        *released += 1;
        if *released > *never + 1 && !wire.name.undo {
            self.broken.insert(Broken::Twice);
        }
        if *never > 0 {
            self.seen.insert(Seen::ReleasedAgain);
        }
        if !wire.automated || wire.name.undo {
            return;
        }
        let Some(account) = self.accounts.get(usize::from(wire.name.account)) else {
            return;
        };
        // Facts that anybody brought within the minute are as good as one's own; a fetch that failed is not.
        let fresh = facts.is_some() && account.facts_of.is_some_and(|of| at - of <= FACTS_FRESH);
        let evidence = |until: Time| at - until <= EVIDENCE_FRESH;
        let hour = self.spent.iter().filter(|spent| at - **spent < HOUR);
        let full = u64::try_from(hour.count()).unwrap_or(u64::MAX) >= per_hour;
        for (is, what) in [
            (account.waits, Broken::Safety),
            (account.allowed, Broken::Safety),
            (account.flag_seen, Broken::Safety),
            (
                account.held_until.is_some_and(|until| until > at),
                Broken::Hold,
            ),
            (!fresh, Broken::Unknown),
            (!account.mines_until.is_some_and(evidence), Broken::Evidence),
            (at - planned_at > PLAN_FRESH, Broken::StalePlan),
            (!told, Broken::Case),
            (self.stopped.is_some(), Broken::Stopped),
            (full, Broken::Budget),
        ] {
            if is {
                self.broken.insert(what);
            }
        }
        if counts {
            self.spent.push(at);
        }
    }

    /// An order leaves for the control plane.
    pub fn sent(&mut self, wire: &Wire, at: Time) {
        let automated = wire.automated && !wire.name.undo;
        let over = |stopped: Time| at - stopped > Span::seconds(1);
        if automated && self.stopped.is_some_and(over) {
            self.broken.insert(Broken::Stopped);
        }
    }
}
