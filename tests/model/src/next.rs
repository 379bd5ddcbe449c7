//! The model as the checker sees it: where it begins, what may happen next, and what that does.

use std::sync::Arc;

use davy_decision::{
    action::{Action as Planned, Parcel, State},
    dossier::{Dossier, Errand},
    fleet::Fleet,
    policy::Step,
    time::{Span, Time},
};
use stateright::Model;

use crate::{
    Bend, Protocol, T0,
    books::{self, Books, Seen},
    shell::Action,
    surroundings::{Change, account},
    world::{Answer, Fetched, Name, Record, Replica, Said, Shows, Wire, World},
};

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let shows = vec![Shows::TwoClasses; usize::from(self.config.droplets)];
        let accounts = (0..self.config.accounts).map(|n| {
            let mut dossier = Dossier::new(account(n));
            let informed = dossier.inform(self.facts(n, false, T0), T0);
            debug_assert!(informed.is_ok());
            let span = (T0.before(Span::minutes(40)), T0);
            self.observe(&mut dossier, n, &shows, span);
            Record::new(dossier, Arc::default())
        });
        let book = books::Account {
            mines_until_ms: vec![Some(T0.unix_ms()); usize::from(self.config.droplets)],
            facts_of_ms: Some(T0.unix_ms()),
            ..books::Account::default()
        };
        let mut world = World {
            accounts: accounts.collect(),
            fleet: Fleet {
                droplets: self.config.fleet,
                ..Fleet::default()
            },
            now: 0,
            replicas: <[Replica; 2]>::default(),
            wire: std::collections::BTreeSet::new(),
            answers: std::collections::BTreeSet::new(),
            plane: std::collections::BTreeMap::new(),
            felt: std::collections::BTreeMap::new(),
            flags: vec![false; usize::from(self.config.accounts)],
            shows: vec![shows.clone(); usize::from(self.config.accounts)],
            texts: std::collections::BTreeSet::new(),
            left: self.config.bounds,
            books: Books {
                accounts: vec![book; usize::from(self.config.accounts)],
                ..Books::default()
            },
            snapshots: Vec::new(),
        };
        for n in 0..self.config.accounts {
            let turned = self.act(&mut world, &Action::Turn(n));
            debug_assert!(turned.is_some());
        }
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.replicas_may(world, actions);
        self.outside_may(world, actions);
        for n in 0..self.config.accounts {
            self.account_may(world, n, actions);
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        self.act(&mut world, &action)?;
        Some(world)
    }

    fn properties(&self) -> Vec<stateright::Property<Self>> {
        crate::properties::all()
    }
}

impl Protocol {
    fn replicas_may(&self, world: &World, actions: &mut Vec<Action>) {
        let at = self.time(world.now);
        let [one, two] = world.replicas;
        let both = [Some(one), (one != two).then_some(two)];
        for replica in both.into_iter().flatten() {
            match replica {
                Replica::Idle => {}
                Replica::Fetched { .. } => actions.push(Action::Commit(replica)),
                Replica::Holding(wire) => {
                    // What was not sent at once is not sent at all, but left to be queried.
                    let late = at - wire.released_at > Span::seconds(1);
                    if !late || self.bent(Bend::SentLate) {
                        actions.push(Action::Send(wire));
                    }
                    if late || world.left.crashes > 0 {
                        actions.push(Action::Crash(wire));
                    }
                }
            }
        }
        for wire in &world.wire {
            actions.push(Action::Deliver(*wire, false));
            if world.left.refusals > 0 {
                actions.push(Action::Deliver(*wire, true));
            }
        }
        actions.extend(world.answers.iter().map(|answer| Action::Take(*answer)));
    }

    fn outside_may(&self, world: &World, actions: &mut Vec<Action>) {
        if world.left.kill_turns > 0 {
            actions.push(Action::Kill(world.fleet.stop.is_none()));
        }
        if usize::from(world.now) + 1 < self.config.times.len() {
            actions.push(Action::Advance);
        }
    }

    fn account_may(&self, world: &World, n: u8, actions: &mut Vec<Action>) {
        let Some(record) = world.accounts.get(usize::from(n)) else {
            return;
        };
        let at = self.time(world.now);
        let turned = self.turn(world, n);
        if turned.is_some_and(|turned| turned.print != record.print) {
            actions.push(Action::Turn(n));
        }
        let free = world.replicas.iter().filter(|held| **held == Replica::Idle);
        let idle = free.count() + usize::from(self.config.replicas) > 2;
        for errand in record.dossier.errands(&world.fleet, at) {
            match errand {
                Errand::Release {
                    parcel: Parcel::Action(key),
                    with_facts,
                } if idle && !self.is_posted(Name::of(n, &key)) => {
                    let name = Name::of(n, &key);
                    if !with_facts {
                        actions.push(Action::Release(name));
                        continue;
                    }
                    let flag = world.flags.get(usize::from(n)).copied().unwrap_or_default();
                    let at = self.facts_time(world, n);
                    actions.push(Action::Fetch(name, Fetched::Good { flag, at }));
                    if world.left.bad_facts > 0 {
                        actions.push(Action::Fetch(name, Fetched::Old));
                        actions.push(Action::Fetch(name, Fetched::Failed));
                    }
                }
                Errand::Query {
                    parcel: Parcel::Action(key),
                    ..
                } if world.left.queries > 0 => actions.push(Action::Query(Name::of(n, &key))),
                Errand::FreeBudget => actions.push(Action::Free(n)),
                Errand::Release { .. } | Errand::Query { .. } => {}
            }
        }
        self.unasked(world, n, &record.dossier, actions);
        if world.left.flags > 0 && !world.flags.get(usize::from(n)).is_some_and(|flag| *flag) {
            actions.push(Action::Flag(n));
        }
        let first = world.shows.get(usize::from(n)).and_then(|all| all.first());
        if world.left.evidence > 0 && first == Some(&Shows::TwoClasses) {
            let several = self.config.droplets > 1;
            actions.extend(
                [Change::Quiet, Change::OneClass, Change::Unseen].map(|to| Action::Evidence(n, to)),
            );
            actions.extend(several.then_some(Action::Evidence(n, Change::FirstQuiet)));
        }
        self.people_may(world, n, actions);
    }

    /// What a driver or a broken shell does without an errand.
    fn unasked(&self, world: &World, n: u8, dossier: &Dossier, actions: &mut Vec<Action>) {
        for held in &dossier.actions {
            let name = Name::of(n, &held.key);
            let State::Released { at } = held.state else {
                let doubtful = matches!(held.state, State::Doubtful { .. });
                if doubtful && self.bent(Bend::EarlyQuery) && world.left.queries > 0 {
                    actions.push(Action::Query(name));
                }
                continue;
            };
            let sent = |wire: &Wire| wire.name == name && wire.released_at == at;
            if world.left.silences > 0 && world.wire.iter().any(sent) {
                actions.push(Action::Silence(Answer {
                    name,
                    released_at: at,
                    said: Said::Nothing,
                }));
            }
        }
        if self.bent(Bend::BudgetGivenBack) && world.fleet.holds(&dossier.account) {
            actions.push(Action::Free(n));
        }
    }

    /// Something happens, and the oracles look at what it left behind.
    fn act(&self, world: &mut World, action: &Action) -> Option<()> {
        self.happen(world, action)?;
        for n in 0..self.config.accounts {
            if self.bent(Bend::NeverUndone) {
                Self::pass_for_undone(world, n, self.time(world.now));
            }
            self.look(world, n)?;
            self.post(world, n)?;
            self.look(world, n)?;
        }
        Some(())
    }

    /// What a broken shell does to an undoing: it says that it is done.
    fn pass_for_undone(world: &mut World, n: u8, at: Time) {
        Self::change(world, n, |dossier, _| {
            let undoing = |held: &&mut Planned| held.key.undo && held.state == State::Planned;
            for held in dossier.actions.iter_mut().filter(undoing) {
                held.state = State::Done { at };
            }
            Ok::<_, davy_decision::dossier::Refusal>(())
        });
    }

    fn happen(&self, world: &mut World, action: &Action) -> Option<()> {
        match *action {
            Action::Turn(n) => {
                let turned = self.turn(world, n)?;
                let before = world.accounts.get(usize::from(n))?;
                if stepped_back(&before.dossier, &turned.dossier) {
                    world.books.seen.insert(Seen::SteppedBack);
                }
                *world.accounts.get_mut(usize::from(n))? = turned;
            }
            Action::Fetch(name, facts) => self.fetch(world, name, facts)?,
            Action::Commit(replica) => {
                let Replica::Fetched { name, facts, .. } = replica else {
                    return None;
                };
                self.commit(world, replica, name, Some(facts))?;
            }
            Action::Release(name) => self.commit(world, Replica::Idle, name, None)?,
            Action::Send(wire) => {
                world.books.sent(&wire, self.time(world.now).unix_ms());
                world.wire.insert(wire);
                Self::replica(world, Replica::Holding(wire), Replica::Idle)?;
            }
            Action::Crash(wire) => {
                world.left.crashes = world.left.crashes.saturating_sub(1);
                Self::replica(world, Replica::Holding(wire), Replica::Idle)?;
            }
            Action::Deliver(wire, refuse) => self.deliver(world, wire, refuse)?,
            Action::Take(answer) => self.take(world, answer)?,
            Action::Silence(answer) => {
                world.left.silences -= 1;
                self.take(world, answer)?;
            }
            Action::Query(name) => self.query(world, name)?,
            Action::Free(n) => self.free(world, n)?,
            Action::Flag(n) => {
                world.left.flags -= 1;
                *world.flags.get_mut(usize::from(n))? = true;
            }
            Action::Kill(on) => self.kill(world, on),
            Action::Evidence(n, change) => self.evidence(world, n, change)?,
            Action::Person(n, act) => self.person(world, n, act)?,
            Action::Advance => self.advance(world)?,
        }
        Some(())
    }
}

fn stepped_back(before: &Arc<Dossier>, after: &Arc<Dossier>) -> bool {
    let undoes = |dossier: &Dossier| {
        let locks = |held: &&Planned| held.key.undo && held.key.step > Step::Throttle;
        dossier.actions.iter().filter(locks).count()
    };
    let waits = before.conversation.is_some() && before.holds.is_empty();
    waits && undoes(after) > undoes(before)
}
