//! What may happen: replicas, network and control plane. Every change of a record is a production transition.

use std::sync::Arc;

use davy_decision::{
    account::Facts,
    action::{Action as Planned, Parcel, State},
    decide::Plan,
    dossier::{Dossier, Errand, Event, Refusal},
    fleet::Fleet,
    policy::Step,
    time::Time,
};

use crate::{
    Bend, Protocol,
    books::{Books, Release, Seen},
    people::Act,
    surroundings::{Change, OLD, account},
    world::{
        Answer, Fate, Fetched, Kept, Name, Record, Replica, Said, Snapshot, Wire, World, decided,
        print_fleet,
    },
};

/// Something that happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// An account's turn.
    Turn(u8),
    /// A replica fetches facts for a release.
    Fetch(Name, Fetched),
    /// A replica commits the release it fetched for.
    Commit(Replica),
    /// A replica commits a release that needs no facts.
    Release(Name),
    /// A replica sends the order it holds.
    Send(Wire),
    /// A replica is gone with the order it holds.
    Crash(Wire),
    /// An order reaches the control plane, which may refuse it.
    Deliver(Wire, bool),
    /// An answer reaches the record.
    Take(Answer),
    /// A driver gives up on an order.
    Silence(Answer),
    /// A query is made, and its answer sent.
    Query(Name),
    /// The account's part of the budget is given back.
    Free(u8),
    /// The provider sets its flag.
    Flag(u8),
    /// The kill switch is turned.
    Kill(bool),
    /// The evidence changes.
    Evidence(u8, Change),
    /// Somebody does something.
    Person(u8, Act),
    /// Time passes.
    Advance,
}

impl Protocol {
    pub(crate) fn turn(&self, world: &World, n: u8) -> Option<Record> {
        let record = world.accounts.get(usize::from(n))?;
        let key = (record.print, print_fleet(&world.fleet), world.now);
        if let Ok(turns) = self.turns.lock()
            && let Some(turned) = turns.get(&key)
        {
            return Some(turned.clone());
        }
        let mut dossier = Dossier::clone(&record.dossier);
        let at = self.time(world.now);
        let turn = dossier.turn(&world.fleet, &self.policies, &self.config.settings, at);
        let mut decisions = Arc::clone(&record.decisions);
        if let (Some((_, plan)), false) = (turn.decision, self.bent(Bend::DecisionNotKept)) {
            let Plan { steps, targets, .. } = plan;
            Arc::make_mut(&mut decisions).insert(dossier.decisions, Kept { steps, targets });
        }
        if self.bent(Bend::StatementLost) {
            for action in &mut dossier.actions {
                action.statement.clear();
            }
        }
        let turned = Record::new(dossier, decisions);
        if let Ok(mut turns) = self.turns.lock() {
            turns.insert(key, turned.clone());
        }
        Some(turned)
    }

    /// Changes an account's record, and does nothing if it refuses.
    pub(crate) fn change<R, E>(
        world: &mut World,
        n: u8,
        change: impl FnOnce(&mut Dossier, &mut Fleet) -> Result<R, E>,
    ) -> Option<R> {
        let record = world.accounts.get_mut(usize::from(n))?;
        let (mut dossier, mut fleet) = (Dossier::clone(&record.dossier), world.fleet.clone());
        let brought = change(&mut dossier, &mut fleet).ok()?;
        (*record, world.fleet) = (record.with(dossier), fleet);
        Some(brought)
    }

    pub(crate) fn replica(world: &mut World, from: Replica, to: Replica) -> Option<()> {
        let place = world.replicas.iter_mut().find(|held| **held == from)?;
        *place = to;
        world.replicas.sort_unstable();
        Some(())
    }

    pub(crate) fn fetch(&self, world: &mut World, name: Name, facts: Fetched) -> Option<()> {
        let mut seen = 0;
        if self.bent(Bend::StaleLook) || self.bent(Bend::LostUpdate) {
            seen = u8::try_from(world.snapshots.len()).ok()?;
            world.snapshots.push(Snapshot {
                record: world.accounts.get(usize::from(name.account))?.clone(),
                fleet: world.fleet.clone(),
            });
        }
        if !matches!(facts, Fetched::Good { .. }) {
            world.left.bad_facts -= 1;
        }
        Self::replica(world, Replica::Idle, Replica::Fetched { name, facts, seen })
    }

    pub(crate) fn fetched(&self, name: Name, facts: Fetched, at: Time) -> Result<Facts, String> {
        match facts {
            Fetched::Old | Fetched::Failed if self.bent(Bend::OldFactsTaken) => {
                Ok(self.facts(name.account, false, at))
            }
            Fetched::Good { flag, at } => Ok(self.facts(name.account, flag, at)),
            Fetched::Old => Ok(self.facts(name.account, false, at.before(OLD))),
            Fetched::Failed => Err("no answer".to_owned()),
        }
    }

    /// Commits a release, and leaves the order with the replica if there is one.
    pub(crate) fn commit(
        &self,
        world: &mut World,
        from: Replica,
        name: Name,
        facts: Option<Fetched>,
    ) -> Option<()> {
        let at = self.time(world.now);
        let parcel = name.parcel(&account(name.account));
        let fresh = facts.map(|facts| self.fetched(name, facts, at));
        self.bend_before_commit(world, from, &parcel)?;
        let stopped = world.fleet.stop.clone();
        if self.bent(Bend::KillSwitchIgnored) {
            world.fleet.stop = None;
        }
        let settings = &self.config.settings;
        let events = Self::change(world, name.account, |dossier, fleet| {
            let known = (fleet, &*self.policies);
            let events = dossier.release(&parcel, fresh, known, settings, at)?;
            if self.bent(Bend::CaseLost) && name.step != Step::Notify {
                dossier.case = None;
            }
            Ok::<_, Refusal>(events)
        });
        world.fleet.stop = stopped;
        if self.bent(Bend::BudgetNotCounted) {
            world.fleet.spent.clear();
        }
        if let (Some(facts), Some(_)) = (facts, &events) {
            world.books.informed(name.account, facts);
        }
        let Some(wire) = self.wire(world, name) else {
            if let Some(events) = events {
                note_withheld(&mut world.books, &events);
            }
            return Self::replica(world, from, Replica::Idle);
        };
        // Refused: another replica released it.
        if events.is_none() {
            return Self::replica(world, from, Replica::Idle);
        }
        self.note_release(world, &parcel, wire, facts.is_some(), at)?;
        if self.config.prompt || self.is_posted(name) {
            self.deliver(world, wire, false)?;
            let own = |answer: &Answer| answer.name == name;
            let answers: Vec<_> = world.answers.iter().copied().filter(own).collect();
            for answer in answers {
                self.take(world, answer);
                world.answers.remove(&answer);
            }
            return Self::replica(world, from, Replica::Idle);
        }
        Self::replica(world, from, Replica::Holding(wire))
    }

    /// Whether an action is a notice that goes out as soon as it is planned.
    pub(crate) fn is_posted(&self, name: Name) -> bool {
        name.step == Step::Notify && !self.config.notices
    }

    /// Notices that go out as soon as they are planned. No replica is busy with them.
    pub(crate) fn post(&self, world: &mut World, n: u8) -> Option<()> {
        let planned =
            |held: &&Planned| held.key.step == Step::Notify && held.state == State::Planned;
        let dossier = &world.accounts.get(usize::from(n))?.dossier;
        let names: Vec<_> = (dossier.actions.iter().filter(planned))
            .map(|held| Name::of(n, &held.key))
            .filter(|name| self.is_posted(*name))
            .collect();
        for name in names {
            let (flag, at) = (*world.flags.get(usize::from(n))?, self.facts_time(world, n));
            let facts = (!name.undo).then_some(Fetched::Good { flag, at });
            let replicas = std::mem::take(&mut world.replicas);
            let posted = self.commit(world, Replica::Idle, name, facts);
            world.replicas = replicas;
            posted?;
        }
        Some(())
    }

    fn note_release(
        &self,
        world: &mut World,
        parcel: &Parcel,
        wire: Wire,
        with_facts: bool,
        at: Time,
    ) -> Option<()> {
        let record = world.accounts.get(usize::from(wire.name.account))?;
        let order = record.dossier.order(parcel, &self.config.settings)?;
        let droplets = self.droplets(wire.name.account);
        let numbers = (0_u8..).zip(&droplets);
        let release = Release {
            wire,
            droplets: numbers
                .filter(|(_, id)| order.droplets.contains(id))
                .map(|(number, _)| number)
                .collect(),
            with_facts,
            case: order.case,
            stated: !order.text.is_empty(),
            decided: decided(action_of(&record.dossier, parcel)?, &record.decisions),
            at_ms: at.unix_ms(),
        };
        let per_hour = self.config.settings.budget_per_hour;
        world.books.released(&release, per_hour);
        Some(())
    }

    /// What the oracles see in the records for the first time: a case, an action that waits.
    pub(crate) fn look(&self, world: &mut World, n: u8) -> Option<()> {
        let dossier = &world.accounts.get(usize::from(n))?.dossier;
        let books = &mut world.books;
        if let Some(case) = &dossier.case {
            books.sees_case(n, case.id.number);
        }
        let now_ms = self.time(world.now).unix_ms();
        for held in &dossier.actions {
            let name = Name::of(n, &held.key);
            match held.state {
                State::Planned => {
                    books.planned_ms.entry(name).or_insert(now_ms);
                }
                // Planned once more, it is another plan.
                State::Withheld { .. } => {
                    books.planned_ms.remove(&name);
                }
                _ => {}
            }
        }
        Some(())
    }

    /// What a broken shell does before its transaction: it works on what it read when it began.
    pub(crate) fn bend_before_commit(
        &self,
        world: &mut World,
        from: Replica,
        parcel: &Parcel,
    ) -> Option<()> {
        let Replica::Fetched { name, facts, seen } = from else {
            return Some(());
        };
        if self.bent(Bend::StalePlanRuns) {
            let record = world.accounts.get_mut(usize::from(name.account))?;
            let mut dossier = Dossier::clone(&record.dossier);
            for held in &mut dossier.actions {
                held.planned_at = self.time(world.now);
            }
            *record = record.with(dossier);
        }
        if self.bent(Bend::LostUpdate) {
            let snapshot = world.snapshots.get(usize::from(seen))?.clone();
            *world.accounts.get_mut(usize::from(name.account))? = snapshot.record;
        }
        if self.bent(Bend::StaleLook) {
            let Snapshot { record, mut fleet } = world.snapshots.get(usize::from(seen))?.clone();
            let mut dossier = Dossier::clone(&record.dossier);
            let Fetched::Good { at, .. } = facts else {
                return Some(());
            };
            let fresh = Some(self.fetched(name, facts, at));
            let settings = &self.config.settings;
            let known = (&mut fleet, &*self.policies);
            let looked = dossier.release(parcel, fresh, known, settings, at);
            let held = action_of(&dossier, parcel)?;
            if looked.is_ok() && matches!(held.state, State::Released { .. }) {
                // It found nothing against it, and does not look again.
                let now = self.time(world.now);
                let record = world.accounts.get_mut(usize::from(name.account))?;
                let mut kept = Dossier::clone(&record.dossier);
                (kept.holds, kept.conversation, kept.fetch_failed) = (Vec::new(), None, None);
                (kept.facts, kept.allowed) = (self.facts(name.account, false, now), None);
                *record = record.with(kept);
            }
        }
        Some(())
    }

    /// The order of a released action.
    pub(crate) fn wire(&self, world: &World, name: Name) -> Option<Wire> {
        let dossier = &world.accounts.get(usize::from(name.account))?.dossier;
        let order = dossier.order(&name.parcel(&dossier.account), &self.config.settings)?;
        Some(Wire {
            name,
            automated: order.automated,
            released_at: order.released_at,
            not_after: order.not_after,
        })
    }

    pub(crate) fn deliver(&self, world: &mut World, wire: Wire, refuse: bool) -> Option<()> {
        let at = self.time(world.now);
        let fate = |done| Fate {
            done,
            automated: wire.automated,
        };
        let done = match world.plane.get(&wire.name) {
            Some(fate) => fate.done,
            None if at > wire.not_after => {
                world.books.seen.insert(Seen::TooLate);
                world.answers.insert(answer(wire, Said::Refused));
                return Some(());
            }
            None if refuse => {
                world.left.refusals = world.left.refusals.checked_sub(1)?;
                if wire.name.undo {
                    world.books.seen.insert(Seen::UndoingRefused);
                } else if wire.name.step == Step::Throttle {
                    world.books.seen.insert(Seen::ThrottleRefused);
                }
                world.plane.insert(wire.name, fate(false));
                false
            }
            None => {
                world.plane.insert(wire.name, fate(true));
                if wire.name.undo {
                    world.felt.remove(&wire.name.undone());
                } else {
                    world.felt.insert(wire.name, wire.automated);
                }
                true
            }
        };
        let said = if done { Said::Done } else { Said::Refused };
        world.answers.insert(answer(wire, said));
        Some(())
    }

    pub(crate) fn take(&self, world: &mut World, answer: Answer) -> Option<()> {
        let Answer {
            name,
            released_at,
            said,
        } = answer;
        let (at, settings) = (self.time(world.now), &self.config.settings);
        let parcel = name.parcel(&account(name.account));
        let before = self.state(world, name)?;
        // Broken, the answer counts for whatever release is under way.
        let of = match self.bent(Bend::AnswersUntold) {
            true => before.released_at().unwrap_or(released_at),
            false => released_at,
        };
        Self::change(world, name.account, |dossier, fleet| {
            let events = dossier.learn(&parcel, of, said.outcome(), (fleet, settings), at)?;
            if self.bent(Bend::PageLost) {
                dossier.letters.clear();
            }
            if self.bent(Bend::DoubtUnheard) && said == Said::NeverSeen && !name.undo {
                let own = |held: &&mut Planned| Parcel::Action(held.key.clone()) == parcel;
                for action in dossier.actions.iter_mut().filter(own) {
                    action.state = State::Planned;
                }
            }
            Ok::<_, Refusal>(events)
        })?;
        if said != Said::Nothing {
            let done = said == Said::Done;
            let released_ms = of.unix_ms();
            world.books.answered(name, released_ms, done);
        }
        let after = self.state(world, name)?;
        if matches!(before, State::Doubtful { .. }) {
            match (&after, said) {
                (State::Done { .. }, _) => {
                    world.books.seen.insert(Seen::DoubtResolvedAsDone);
                }
                (State::Planned | State::Withheld { .. }, Said::NeverSeen) => {
                    world.books.releases.entry(name).or_default().1 += 1;
                }
                _ => {}
            }
        }
        Some(())
    }

    /// How far an action is, in the record.
    pub(crate) fn state(&self, world: &World, name: Name) -> Option<State> {
        let dossier = &world.accounts.get(usize::from(name.account))?.dossier;
        let parcel = name.parcel(&dossier.account);
        Some(action_of(dossier, &parcel)?.state.clone())
    }

    pub(crate) fn query(&self, world: &mut World, name: Name) -> Option<()> {
        world.left.queries = world.left.queries.checked_sub(1)?;
        if self.bent(Bend::NewKeyInDoubt) {
            let parcel = name.parcel(&account(name.account));
            return Self::change(world, name.account, |dossier, _| {
                let mut again = action_of(dossier, &parcel).cloned().ok_or(())?;
                (again.key.turn, again.state) = (again.key.turn + 7, State::Planned);
                dossier.actions.push(again);
                Ok::<_, ()>(())
            });
        }
        let released_at = self.state(world, name)?.released_at()?;
        let said = match world.plane.get(&name) {
            Some(Fate { done: true, .. }) => Said::Done,
            Some(Fate { done: false, .. }) => Said::Refused,
            None => Said::NeverSeen,
        };
        world.answers.insert(Answer {
            name,
            released_at,
            said,
        });
        Some(())
    }

    pub(crate) fn free(&self, world: &mut World, n: u8) -> Option<()> {
        let (at, bent) = (self.time(world.now), self.bent(Bend::BudgetGivenBack));
        Self::change(world, n, |dossier, fleet| {
            // The shell looks again within its transaction.
            if bent || dossier.errands(fleet, at).contains(&Errand::FreeBudget) {
                fleet.release(&dossier.account);
            }
            Ok::<_, ()>(())
        })
    }
}

pub(crate) fn action_of<'a>(dossier: &'a Dossier, parcel: &Parcel) -> Option<&'a Planned> {
    let Parcel::Action(key) = parcel else {
        return None;
    };
    dossier.actions.iter().find(|action| action.key == *key)
}

const fn answer(wire: Wire, said: Said) -> Answer {
    Answer {
        name: wire.name,
        released_at: wire.released_at,
        said,
    }
}

fn note_withheld(books: &mut Books, events: &[Event]) {
    for event in events {
        if let Event::ActionWithheld { why, .. } = event {
            if why.contains("blast_radius") {
                books.seen.insert(Seen::WithheldForBudget);
            }
            if why.contains("kill_switch") {
                books.seen.insert(Seen::WithheldForStop);
            }
            if why.contains("evidence") {
                books.seen.insert(Seen::WithheldForEvidence);
            }
        }
    }
}
