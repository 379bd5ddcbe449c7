//! The model as the checker sees it: where it begins, what may happen next, and what that does.

use std::sync::Arc;

use davy_decision::{
    action::{Action as Planned, Parcel, State},
    dossier::{Dossier, Errand},
    fleet::Fleet,
    policy::Step,
    time::Span,
};
use davy_evidence::Level;
use stateright::Model;

use crate::{
    Bend, Protocol, T0,
    books::{self, Books, Seen},
    shell::{Action, account},
    world::{Answer, Fetched, Name, Record, Replica, Said, Wire, World},
};

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let accounts = (0..self.config.accounts).map(|n| {
            let mut dossier = Dossier::new(account(n));
            let informed = dossier.inform(self.facts(n, false, T0), T0);
            debug_assert!(informed.is_ok());
            self.observe(
                &mut dossier,
                n,
                T0.before(Span::minutes(40)),
                T0,
                Level::Mining,
            );
            Record::new(dossier)
        });
        let book = books::Account {
            mines_until: Some(T0),
            facts_of: Some(T0),
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
            left: self.config.bounds,
            books: Books {
                accounts: vec![book; usize::from(self.config.accounts)],
                ..Books::default()
            },
            snapshots: Vec::new(),
        };
        for n in 0..self.config.accounts {
            if let (Some(turned), Some(record)) =
                (self.turn(&world, n), world.accounts.get_mut(usize::from(n)))
            {
                *record = turned;
            }
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
            actions.push(Action::Kill(world.books.stopped.is_none()));
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
                } if idle && (self.config.notices || key.step != Step::Notify) => {
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
        let mines = |book: &books::Account| book.mines_until.is_some();
        if world.left.quiets > 0 && world.books.accounts.get(usize::from(n)).is_some_and(mines) {
            actions.push(Action::Quiet(n));
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

    fn act(&self, world: &mut World, action: &Action) -> Option<()> {
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
                world.books.sent(&wire, self.time(world.now));
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
            Action::Quiet(n) => self.go_quiet(world, n)?,
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
