//! The oracles' own account of what happened. It is kept from what the surroundings did, what they were told, and what the control
//! plane saw, and shares no function with the code that is judged: times are plain ms here, and what is not earlier is an error, not
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use davy_decision::policy::Step;

use crate::world::{Fetched, Name, Wire};

/// What was broken, once it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Broken {
    /// Released with a safety in force (invariant 1).
    Safety,
    /// Released on facts that were unknown or old (invariant 2).
    Unknown,
    /// Released against a droplet without evidence of two classes of its own, fresh (invariant 3).
    Evidence,
    /// Released before a hold ended (invariant 4).
    Hold,
    /// A person's step left that two people had not decided (invariant 5).
    Denial,
    /// A person's step left though the customer wrote after it was ruled, and nobody has answered that.
    Unheard,
    /// A text that was given before was taken for a denial (invariant 5).
    Copied,
    /// Released without an open case or a statement (invariant 6).
    Case,
    /// Released, and no decision is kept that asked for it (invariant 6).
    Undecided,
    /// Released once more without knowing that the last one never arrived (invariant 7).
    Twice,
    /// A plan older than its limit ran.
    StalePlan,
    /// Beyond the hour's budget (invariant 8).
    Budget,
    /// Released after the kill switch was turned (invariant 8).
    ReleasedStopped,
    /// Sent more than a second after the kill switch was turned (invariant 8).
    SentStopped,
}

/// What people made of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Word {
    /// The customer is in the right.
    Legitimate,
    /// Nobody can tell.
    Unsure,
    /// Two people denied.
    Denied,
}

/// A case, as people know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Case {
    /// Its number.
    pub number: u64,
    /// What was decided, if it was.
    pub decided: Option<Word>,
}

/// A text that a person gives as their reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Text {
    /// Written for this, by that person, with so many denials left.
    Own(u8, u8),
    /// The one that is copied.
    Stock,
}

/// Of one account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Account {
    /// The customer wrote, and nobody has decided since.
    pub waits: bool,
    /// A person's word allows high CPU.
    pub allowed: bool,
    /// The latest end of a hold, ms.
    pub held_until_ms: Option<u64>,
    /// The provider's flag was seen in facts that were taken.
    pub flag_seen: bool,
    /// Of when the newest facts are that were taken, ms; none after a fetch that failed.
    pub facts_of_ms: Option<u64>,
    /// What a failed fetch had before it.
    pub facts_before_ms: Option<u64>,
    /// Up to when each droplet mines, on two classes of evidence of its own, ms.
    pub mines_until_ms: Vec<Option<u64>>,
    /// The last case.
    pub case: Option<Case>,
    /// People who denied since the last ruling or word of the customer's, and with which measure.
    pub deniers: BTreeMap<u8, Step>,
    /// What two people ruled, until a person takes it back or unlocks.
    pub ruled: Option<Step>,
}

/// The books.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Books {
    /// Of each account.
    pub accounts: Vec<Account>,
    /// Since when the kill switch is on, ms.
    pub stopped_ms: Option<u64>,
    /// When automated actions that count were released, ms.
    pub spent_ms: Vec<u64>,
    /// When each action that waits in the outbox was first seen there, ms.
    pub planned_ms: BTreeMap<Name, u64>,
    /// How often each action was released, and how often the record was told that it never arrived.
    pub releases: BTreeMap<Name, (u8, u8)>,
    /// Automated actions of which nobody was told yet what became of them, by when they were released, ms.
    pub under_way: BTreeMap<Name, u64>,
    /// Those of them against which a safety of the customer's own appeared meanwhile.
    pub spoken_against: BTreeSet<Name>,
    /// Texts that were taken.
    pub texts: BTreeSet<Text>,
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
    /// Two people denied.
    DeniedByTwo,
    /// Something was withheld for the budget that another account used.
    WithheldForBudget,
    /// Withheld for the kill switch.
    WithheldForStop,
    /// Withheld because it does not mine on two classes of evidence any more.
    WithheldForEvidence,
    /// An order came too late and was refused.
    TooLate,
    /// The control plane refused a throttle.
    ThrottleRefused,
    /// The control plane refused an undoing.
    UndoingRefused,
    /// An undoing that was refused was asked for again.
    UndoingAskedAgain,
    /// A copied text was refused.
    CopyRefused,
}

/// What an oracle is told about a release that was committed.
#[derive(Clone, Debug)]
pub struct Release {
    /// The order.
    pub wire: Wire,
    /// Its droplets, by number.
    pub droplets: Vec<u8>,
    /// Whether facts were fetched for it.
    pub with_facts: bool,
    /// The case it names.
    pub case: String,
    /// Whether it has a statement.
    pub stated: bool,
    /// Whether a decision is kept that asked for it.
    pub decided: bool,
    /// The time, ms.
    pub at_ms: u64,
}

/// The design's limits, written anew: a slip in the settings must not blind the oracles.
const FACTS_FRESH_MS: u64 = 60_000;
const PLAN_FRESH_MS: u64 = 600_000;
const EVIDENCE_FRESH_MS: u64 = 300_000;
const HOUR_MS: u64 = 3_600_000;
const STOPS_WITHIN_MS: u64 = 1_000;

/// Whether it was at most `most` ms before `at`; what is of after `at` was not.
fn within(at_ms: u64, of_ms: u64, most_ms: u64) -> bool {
    at_ms.checked_sub(of_ms).is_some_and(|age| age <= most_ms)
}

impl Account {
    /// Whether a safety of the customer's own is in force.
    #[must_use]
    pub fn speaks(&self, at_ms: u64) -> bool {
        self.allowed || self.flag_seen || self.held_until_ms.is_some_and(|until| until > at_ms)
    }

    /// Whether the case is people's to decide.
    #[must_use]
    pub fn decides(&self) -> bool {
        self.case.is_some_and(|case| case.decided.is_none())
    }

    /// It was decided.
    pub fn decide(&mut self, word: Option<Word>) {
        if let Some(case) = &mut self.case {
            case.decided = word;
        }
        self.deniers.clear();
    }

    fn inform(&mut self, facts: Fetched) {
        match facts {
            Fetched::Good { flag, at } => {
                self.flag_seen |= flag;
                let of = Some(at.unix_ms());
                self.facts_of_ms = self.facts_of_ms.max(self.facts_before_ms).max(of);
                self.facts_before_ms = None;
            }
            Fetched::Old => {
                self.facts_of_ms = self.facts_of_ms.max(self.facts_before_ms);
                self.facts_before_ms = None;
            }
            Fetched::Failed => {
                self.facts_before_ms = self.facts_before_ms.max(self.facts_of_ms);
                self.facts_of_ms = None;
            }
        }
    }
}

impl Books {
    /// Facts were taken, or could not be fetched.
    pub fn informed(&mut self, n: u8, facts: Fetched) {
        if let Some(account) = self.accounts.get_mut(usize::from(n)) {
            account.inform(facts);
        }
        if matches!(facts, Fetched::Good { flag: true, .. }) {
            self.spoken(n);
        }
    }

    /// A safety of the customer's own appeared.
    pub fn spoken(&mut self, n: u8) {
        let of_account = self.under_way.keys().filter(|name| name.account == n);
        self.spoken_against.extend(of_account);
    }

    /// Two people decided against the customer: what they said before stands against nothing any more.
    pub fn ruled(&mut self, n: u8) {
        self.spoken_against.retain(|name| name.account != n);
    }

    /// A case is seen for the first time: nobody has said anything about it.
    pub fn sees_case(&mut self, n: u8, number: u64) {
        if let Some(account) = self.accounts.get_mut(usize::from(n))
            && account.case.map(|case| case.number) != Some(number)
        {
            let decided = None;
            account.case = Some(Case { number, decided });
            account.deniers.clear();
        }
    }

    /// What became of a release reached the record.
    pub fn answered(&mut self, name: Name, released_ms: u64, done: bool) {
        let of_this = self.under_way.get(&name) == Some(&released_ms);
        if done || of_this {
            self.under_way.remove(&name);
        }
        // Never done, there is nothing to undo.
        if !done && of_this {
            self.spoken_against.remove(&name);
        }
    }

    /// A release was committed.
    pub fn released(&mut self, release: &Release, per_hour: u64) {
        let Release { wire, at_ms, .. } = *release;
        let (released, never) = self.releases.entry(wire.name).or_default();
        *released += 1;
        let (again, never) = (*released > *never + 1, *never);
        if never > 0 {
            self.seen.insert(Seen::ReleasedAgain);
        }
        if wire.name.undo {
            if again {
                self.seen.insert(Seen::UndoingAskedAgain);
            }
            return;
        }
        if again {
            self.broken.insert(Broken::Twice);
        }
        let found = match wire.automated {
            true => self.against(release, per_hour),
            false => self.against_people(&wire),
        };
        self.broken.extend(found);
        if wire.automated {
            self.under_way.insert(wire.name, at_ms);
            if wire.name.step != Step::Notify {
                self.spent_ms.push(at_ms);
            }
        }
    }

    /// What stands against a step of automation's.
    fn against(&self, release: &Release, per_hour: u64) -> Vec<Broken> {
        let Release {
            wire,
            ref droplets,
            with_facts,
            ref case,
            stated,
            decided,
            at_ms,
        } = *release;
        let Some(account) = self.accounts.get(usize::from(wire.name.account)) else {
            return Vec::new();
        };
        // Facts that anybody brought within the minute are as good as one's own; a fetch that failed is not.
        let facts_of = account.facts_of_ms.filter(|_| with_facts);
        let fresh = facts_of.is_some_and(|of| within(at_ms, of, FACTS_FRESH_MS));
        let mines = |droplet: &u8| {
            let until = account.mines_until_ms.get(usize::from(*droplet));
            until.is_some_and(|until| until.is_some_and(|of| within(at_ms, of, EVIDENCE_FRESH_MS)))
        };
        let all_mine = !droplets.is_empty() && droplets.iter().all(mines);
        let planned = self.planned_ms.get(&wire.name);
        let stale = !planned.is_some_and(|of| within(at_ms, *of, PLAN_FRESH_MS));
        let hour = (self.spent_ms.iter()).filter(|of| within(at_ms, **of, HOUR_MS - 1));
        let counts = wire.name.step != Step::Notify;
        let full = counts && u64::try_from(hour.count()).unwrap_or(u64::MAX) >= per_hour;
        let named = (account.case).is_some_and(|held| {
            held.decided.is_none() && *case == format!("a{}/{}", wire.name.account, held.number)
        });
        [
            (account.waits, Broken::Safety),
            (account.allowed, Broken::Safety),
            (account.flag_seen, Broken::Safety),
            (
                account.held_until_ms.is_some_and(|until| until > at_ms),
                Broken::Hold,
            ),
            (!fresh, Broken::Unknown),
            (!all_mine, Broken::Evidence),
            (stale, Broken::StalePlan),
            (!named || !stated, Broken::Case),
            (!decided, Broken::Undecided),
            (self.stopped_ms.is_some(), Broken::ReleasedStopped),
            (full, Broken::Budget),
        ]
        .into_iter()
        .filter_map(|(is, what)| is.then_some(what))
        .collect()
    }

    /// What stands against a step that is said to be people's: that no two of them ruled it, or that the customer wrote since.
    fn against_people(&self, wire: &Wire) -> Vec<Broken> {
        let account = self.accounts.get(usize::from(wire.name.account));
        let ruled = account.is_some_and(|account| account.ruled == Some(wire.name.step));
        let waits = account.is_some_and(|account| account.waits);
        [(!ruled, Broken::Denial), (waits, Broken::Unheard)]
            .into_iter()
            .filter_map(|(is, what)| is.then_some(what))
            .collect()
    }

    /// An order leaves for the control plane.
    pub fn sent(&mut self, wire: &Wire, at_ms: u64) {
        let automated = wire.automated && !wire.name.undo;
        let over = |stopped: u64| !within(at_ms, stopped, STOPS_WITHIN_MS);
        if automated && self.stopped_ms.is_some_and(over) {
            self.broken.insert(Broken::SentStopped);
        }
    }
}
