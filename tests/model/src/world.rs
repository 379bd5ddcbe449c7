//! The state of the model, and what of it tells two states apart.
//!
//! Texts, letters and running numbers that nothing is decided by do not: two records that differ in these alone behave alike. Every
//! field is named here, so that a new one must be dealt with.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Arc,
};

use davy_decision::{
    account::{AccountId, DropletId, Facts},
    action::{Action, By, Key, Outcome, Parcel, Recipient, State},
    case::{Case, State as CaseState},
    dossier::Dossier,
    episode::Episode,
    fleet::{Fleet, Spent},
    policy::Step,
    safety::Allowed,
    time::Time,
};

use crate::{
    Bounds,
    books::{Books, Text},
};

/// An action's key, small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Whose.
    pub account: u8,
    /// The episode.
    pub episode: u64,
    /// The step.
    pub step: Step,
    /// The turn.
    pub turn: u32,
    /// Whether it undoes.
    pub undo: bool,
}

impl Name {
    /// Of a key.
    #[must_use]
    pub const fn of(account: u8, key: &Key) -> Self {
        Self {
            account,
            episode: key.episode,
            step: key.step,
            turn: key.turn,
            undo: key.undo,
        }
    }

    /// The parcel of that name.
    #[must_use]
    pub fn parcel(self, account: &AccountId) -> Parcel {
        let Self {
            account: _,
            episode,
            step,
            turn,
            undo,
        } = self;
        Parcel::Action(Key {
            account: account.clone(),
            episode,
            step,
            turn,
            undo,
        })
    }

    /// What it undoes.
    #[must_use]
    pub const fn undone(self) -> Self {
        Self {
            undo: false,
            ..self
        }
    }
}

/// An order under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wire {
    /// Its key.
    pub name: Name,
    /// No person asked for it.
    pub automated: bool,
    /// Released.
    pub released_at: Time,
    /// To be refused after this.
    pub not_after: Time,
}

/// An answer under way, to an order or a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Answer {
    /// To which.
    pub name: Name,
    /// The release it is of.
    pub released_at: Time,
    /// What it says.
    pub said: Said,
}

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Said {
    /// Done.
    Done,
    /// Refused.
    Refused,
    /// Nothing that is understood.
    Nothing,
    /// Never seen.
    NeverSeen,
}

impl Said {
    /// As the record takes it.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Done => Outcome::Done,
            Self::Refused => Outcome::Refused {
                why: "no".to_owned(),
            },
            Self::Nothing => Outcome::Doubtful,
            Self::NeverSeen => Outcome::NeverSeen,
        }
    }
}

/// Facts as a replica fetched them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fetched {
    /// As they are, at a time.
    Good {
        /// The provider's flag.
        flag: bool,
        /// When.
        at: Time,
    },
    /// An old copy.
    Old,
    /// The fetch failed.
    Failed,
}

/// What a replica holds outside of the store; lost when it is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Replica {
    /// Nothing.
    #[default]
    Idle,
    /// Facts fetched for a release that is not committed yet. `seen`: which snapshot of the records it began from (used only
    /// where the shell is broken).
    Fetched {
        /// For which action.
        name: Name,
        /// The facts.
        facts: Fetched,
        /// The snapshot.
        seen: u8,
    },
    /// An order whose release is committed, not sent.
    Holding(Wire),
}

/// What a droplet shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shows {
    /// A miner, on two classes of evidence.
    TwoClasses,
    /// A miner, on one class alone; neighbouring droplets on different ones.
    OneClass,
    /// Nothing.
    Quiet,
    /// It is not reported any more.
    Unseen,
}

/// What is kept of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The steps it asked for.
    pub steps: Vec<Step>,
    /// On which droplets.
    pub targets: Vec<DropletId>,
}

/// Decisions kept, by number.
pub type Decisions = BTreeMap<u64, Kept>;

/// A record with the decisions kept beside it, and its fingerprint.
#[derive(Clone, Debug)]
pub struct Record {
    /// It.
    pub dossier: Arc<Dossier>,
    /// Decisions that were stored.
    pub decisions: Arc<Decisions>,
    /// What tells it apart.
    pub print: u64,
}

impl Record {
    /// Of a dossier and the decisions kept.
    #[must_use]
    pub fn new(dossier: Dossier, decisions: Arc<Decisions>) -> Self {
        let mut hasher = DefaultHasher::new();
        print_dossier(&dossier, &mut hasher);
        // Their numbers do not matter, but whether the one is there that an action names.
        for action in &dossier.actions {
            decided(action, &decisions).hash(&mut hasher);
        }
        Self {
            print: hasher.finish(),
            dossier: Arc::new(dossier),
            decisions,
        }
    }

    /// The same decisions, another dossier.
    #[must_use]
    pub fn with(&self, dossier: Dossier) -> Self {
        Self::new(dossier, Arc::clone(&self.decisions))
    }
}

/// Whether a decision is kept that asked for an action.
#[must_use]
pub fn decided(action: &Action, decisions: &Decisions) -> bool {
    let By::Automation { decision } = action.by else {
        return false;
    };
    (decisions.get(&decision)).is_some_and(|kept| {
        kept.steps.contains(&action.key.step)
            && (action.targets.iter()).all(|target| kept.targets.contains(target))
    })
}

/// What became of a key at the control plane, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fate {
    /// Done, or refused.
    pub done: bool,
    /// No person asked for it.
    pub automated: bool,
}

/// Records as a replica saw them when it began a release.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The account's.
    pub record: Record,
    /// The fleet's.
    pub fleet: Fleet,
}

/// The state.
#[derive(Clone, Debug)]
pub struct World {
    /// The accounts' records.
    pub accounts: Vec<Record>,
    /// The fleet's.
    pub fleet: Fleet,
    /// The step of time.
    pub now: u8,
    /// The replicas, sorted: they are alike.
    pub replicas: [Replica; 2],
    /// Orders that were sent.
    pub wire: BTreeSet<Wire>,
    /// Answers that were sent.
    pub answers: BTreeSet<Answer>,
    /// What the control plane has answered for good.
    pub plane: BTreeMap<Name, Fate>,
    /// What the customers feel: actions done and not undone, and whether automation's.
    pub felt: BTreeMap<Name, bool>,
    /// The provider's flags.
    pub flags: Vec<bool>,
    /// What each account's droplets show.
    pub shows: Vec<Vec<Shows>>,
    /// Reasons given, as the store keeps them over all cases.
    pub texts: BTreeSet<Text>,
    /// What may happen yet.
    pub left: Bounds,
    /// The oracles' books.
    pub books: Books,
    /// Old looks, where the shell is broken so.
    pub snapshots: Vec<Snapshot>,
}

/// What tells the fleet's record apart.
#[must_use]
pub fn print_fleet(fleet: &Fleet) -> u64 {
    let Fleet {
        stop,
        droplets,
        spent,
    } = fleet;
    let mut h = DefaultHasher::new();
    (stop.is_some(), droplets).hash(&mut h);
    for Spent {
        at,
        account,
        step,
        droplets,
        holds,
    } in spent
    {
        (at, account, step, droplets, holds).hash(&mut h);
    }
    h.finish()
}

impl Hash for World {
    fn hash<H: Hasher>(&self, h: &mut H) {
        let Self {
            accounts,
            fleet,
            now,
            replicas,
            wire,
            answers,
            plane,
            felt,
            flags,
            shows,
            texts,
            left,
            books,
            snapshots,
        } = self;
        for record in accounts {
            record.print.hash(h);
        }
        print_fleet(fleet).hash(h);
        (
            now, replicas, wire, answers, plane, felt, flags, shows, texts, left, books,
        )
            .hash(h);
        for snapshot in snapshots {
            (snapshot.record.print, print_fleet(&snapshot.fleet)).hash(h);
        }
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        let print = |world: &Self| {
            let mut h = DefaultHasher::new();
            world.hash(&mut h);
            h.finish()
        };
        print(self) == print(other)
    }
}

fn print_dossier(dossier: &Dossier, h: &mut impl Hasher) {
    let Dossier {
        account,
        // Time only goes forward in the model.
        clock: _,
        facts,
        // They say when to look and to fetch: here that is at any time.
        looked_at: _,
        fetched_at: _,
        fetch_failed,
        episodes,
        episode,
        allowed,
        holds,
        conversation,
        ruling,
        ruled_at,
        // Numbers only.
        decisions: _,
        gist,
        cases,
        case,
        // Looked at by nobody here.
        former: _,
        actions,
        letters_written: _,
        letters,
        message_keys,
        // What reviewers see is not modelled; that budget is not given back meanwhile is.
        sealed,
    } = dossier;
    (account, fetch_failed, episodes, allowed.is_some(), cases).hash(h);
    (ruling, ruled_at, message_keys.len(), sealed.is_some()).hash(h);
    // How they are delivered is not modelled; that somebody was paged is looked at.
    let pages = letters
        .iter()
        .filter(|letter| letter.to == Recipient::OnCall);
    pages.count().hash(h);
    print_facts(facts, h);
    if let Some(episode) = episode {
        print_episode(episode, h);
    }
    for hold in holds {
        (hold.since, hold.until).hash(h);
    }
    conversation.as_ref().map(|open| open.since).hash(h);
    if let Some(gist) = gist {
        (gist.level as u8, &gist.in_force).hash(h);
    }
    if let Some(case) = case {
        print_case(case, h);
        // Whether the word is an unlock's, and goes with it.
        let of_unlock = |word: &Allowed| case.decided_at() == Some(word.since);
        allowed.as_ref().map(of_unlock).hash(h);
    }
    for action in actions {
        print_action(action, h);
    }
}

/// Facts in the model are alike but for their time and the flag.
fn print_facts(facts: &Facts, h: &mut impl Hasher) {
    let flag = facts
        .high_cpu_allowed
        .map(|known| (known.value, known.as_of));
    (flag, facts.run_rate.map(|known| known.as_of)).hash(h);
}

fn print_episode(episode: &Episode, h: &mut impl Hasher) {
    let Episode {
        number,
        since,
        stirred,
        mining,
        suspect,
        droplets,
    } = episode;
    (number, since, stirred, mining.total_ms, suspect.total_ms).hash(h);
    for (id, droplet) in droplets {
        let classes = droplet.last.classes;
        (id, droplet.last.to, droplet.last.level as u8).hash(h);
        (
            classes.fp_rounding,
            classes.register_randomness,
            classes.pmu,
        )
            .hash(h);
        (droplet.mining.total_ms, droplet.mining.until).hash(h);
    }
}

fn print_case(case: &Case, h: &mut impl Hasher) {
    let Case {
        id,
        episode,
        opened_at: _,
        state,
        waiting_since,
        paged,
        talks_since,
        reminded_at,
        appealed_at,
        opinions,
        past,
        // Only their number could matter, far above the model's bounds.
        messages: _,
        sealed,
    } = case;
    (id.number, episode, waiting_since, paged, appealed_at).hash(h);
    (talks_since, reminded_at).hash(h);
    match state {
        CaseState::Open => 0_u8.hash(h),
        CaseState::Claimed { by, .. } => (1_u8, by).hash(h),
        CaseState::Decided { ruling, .. } => (2_u8, ruling).hash(h),
        CaseState::Closed { ruling, .. } => (3_u8, ruling).hash(h),
    }
    for held in opinions.iter().chain(past) {
        (&held.by, held.finding, held.measure).hash(h);
    }
    opinions.len().hash(h);
    // What reviewers see is not modelled, but who may review is.
    let seal = sealed.as_ref();
    seal.map(|seal| (seal.past, seal.at, seal.reminded)).hash(h);
}

fn print_action(action: &Action, h: &mut impl Hasher) {
    let Action {
        key,
        targets,
        by,
        planned_at,
        ends_at,
        statement,
        state,
        paged,
        case,
        sent,
    } = action;
    (
        (case, sent),
        key,
        targets,
        planned_at,
        ends_at,
        statement.is_empty(),
        paged,
    )
        .hash(h);
    matches!(by, By::Automation { .. }).hash(h);
    print_state(state, h);
    // An undoing that was refused is asked for again only after a while.
    if let (State::Refused { at, .. }, true) = (state, key.undo) {
        at.hash(h);
    }
}

fn print_state(state: &State, h: &mut impl Hasher) {
    std::mem::discriminant(state).hash(h);
    match state {
        State::Planned => {}
        State::Released { at } | State::Withheld { at, .. } => at.hash(h),
        State::Doubtful {
            released_at,
            since,
            query_at,
        } => (released_at, since, query_at).hash(h),
        // When it was known says nothing any more, but for a refused undoing.
        State::Done { .. } | State::Refused { .. } => {}
    }
}
