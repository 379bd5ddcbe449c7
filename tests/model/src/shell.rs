//! What may happen: replicas, network, control plane, provider and time. Every change of a record is a production transition.

use davy_decision::{
    account::{
        AccountId, Cents, Droplet, DropletId, Facts, Invoice, InvoiceState, Known, Payments,
    },
    action::{Action as Planned, Parcel, State},
    case::Case,
    dossier::{Dossier, Errand, Event},
    episode::{Classes, Sighting},
    fleet::{Fleet, Stop},
    policy::Step,
    time::{Span, Time},
};
use davy_evidence::Level;

use crate::{
    Bend, Protocol, T0,
    books::{Books, Release, Seen},
    people::Act,
    world::{
        Answer, Fate, Fetched, Name, Record, Replica, Said, Snapshot, Wire, World, print_fleet,
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
    /// The evidence goes quiet.
    Quiet(u8),
    /// Somebody does something.
    Person(u8, Act),
    /// Time passes.
    Advance,
}

/// Long ago enough that no fact is fresh.
const OLD: Span = Span::hours(2);

fn id<T: for<'a> TryFrom<&'a str>>(text: &str) -> T {
    match T::try_from(text) {
        Ok(id) => id,
        Err(_) => unreachable!("ids of the model are ids"),
    }
}

/// The account of that number.
#[must_use]
pub fn account(n: u8) -> AccountId {
    id(&format!("a{n}"))
}

impl Protocol {
    pub(crate) fn droplets(&self, account: u8) -> Vec<DropletId> {
        (0..self.config.droplets)
            .map(|n| id(&format!("d{account}-{n}")))
            .collect()
    }

    /// Facts of a young account that owes, as of `at`.
    pub(crate) fn facts(&self, account: u8, flag: bool, at: Time) -> Facts {
        fn known<T>(value: T, as_of: Time) -> Option<Known<T>> {
            Some(Known { value, as_of })
        }
        let since = T0.before(Span::days(1));
        let inventory = self.droplets(account).into_iter().map(|id| {
            let droplet = Droplet {
                created_at: since,
                vcpus: 2,
            };
            (id, droplet)
        });
        let payments = Payments {
            last_invoice: Some(Invoice {
                amount: Cents(5_000),
                due: since,
                state: InvoiceState::Failed,
            }),
            ..Payments::default()
        };
        Facts {
            created_at: known(since, at),
            first_payment_at: known(None, at),
            first_droplet_at: known(Some(since), at),
            payments: known(payments, at),
            run_rate: known(Cents(5_000), at),
            credit: known(None, at),
            high_cpu_allowed: known(flag, at),
            vouched: known(None, at),
            links: known(Vec::new(), at),
            droplets: known(inventory.collect(), at),
        }
    }

    /// The time that facts read now are of: a flag set in a step is of after what was read before it.
    pub(crate) fn facts_time(&self, world: &World, account: u8) -> Time {
        let flag = world.flags.get(usize::from(account)).copied();
        self.time(world.now)
            .after(Span::ms(flag.unwrap_or_default().into()))
    }

    pub(crate) fn observe(&self, dossier: &mut Dossier, n: u8, from: Time, to: Time, level: Level) {
        for droplet in self.droplets(n) {
            let classes = Classes {
                fp_rounding: level == Level::Mining,
                register_randomness: level == Level::Mining,
                pmu: false,
            };
            let sighting = Sighting {
                droplet,
                host: "h1".to_owned(),
                from,
                to,
                level,
                classes,
                cpu_percent: 200,
                neighbours_wait_percent: None,
                reasons: Vec::new(),
            };
            dossier.observe(sighting, &self.config.settings);
        }
    }

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
        dossier.turn(&world.fleet, &self.policies, &self.config.settings, at);
        let turned = Record::new(dossier);
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
        (*record, world.fleet) = (Record::new(dossier), fleet);
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
            dossier.release(&parcel, fresh, fleet, settings, at)
        });
        world.fleet.stop = stopped;
        if let (Some(facts), Some(_)) = (facts, &events) {
            world
                .books
                .accounts
                .get_mut(usize::from(name.account))?
                .informed(facts);
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
        self.note_release(world, &parcel, wire, facts, at)?;
        if self.config.prompt {
            self.deliver(world, wire, false)?;
            let answers: Vec<_> = world.answers.iter().copied().collect();
            for answer in answers {
                self.take(world, answer);
            }
            world.answers.clear();
            return Self::replica(world, from, Replica::Idle);
        }
        Self::replica(world, from, Replica::Holding(wire))
    }

    pub(crate) fn note_release(
        &self,
        world: &mut World,
        parcel: &Parcel,
        wire: Wire,
        facts: Option<Fetched>,
        at: Time,
    ) -> Option<()> {
        let dossier = &world.accounts.get(usize::from(wire.name.account))?.dossier;
        let planned_at = action_of(dossier, parcel)?.planned_at;
        let order = dossier.order(parcel, &self.config.settings)?;
        let open = dossier.case.as_ref().is_some_and(Case::is_open);
        let release = Release {
            wire,
            facts,
            planned_at,
            told: open && !order.case.is_empty() && !order.text.is_empty(),
            at,
        };
        let counts = wire.name.step != Step::Notify;
        let per_hour = self.config.settings.budget_per_hour;
        let per_hour = if counts { per_hour } else { u64::MAX };
        world.books.released(&release, counts, per_hour);
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
            let looked = dossier.release(parcel, fresh, &mut fleet, settings, at);
            let held = action_of(&dossier, parcel)?;
            if looked.is_ok() && matches!(held.state, State::Released { .. }) {
                // It found nothing against it, and does not look again.
                let now = self.time(world.now);
                let kept = world.accounts.get(usize::from(name.account))?;
                let mut kept = Dossier::clone(&kept.dossier);
                (kept.holds, kept.conversation, kept.fetch_failed) = (Vec::new(), None, None);
                (kept.facts, kept.allowed) = (self.facts(name.account, false, now), None);
                *world.accounts.get_mut(usize::from(name.account))? = Record::new(kept);
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
        Self::change(world, name.account, |dossier, _| {
            dossier.learn(&parcel, of, said.outcome(), settings, at)
        })?;
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

    pub(crate) fn advance(&self, world: &mut World) -> Option<()> {
        let before = self.time(world.now);
        world.now += 1;
        let at = self.time(world.now);
        for n in 0..self.config.accounts {
            let flag = *world.flags.get(usize::from(n))?;
            let mines = world.books.accounts.get(usize::from(n))?.mines_until == Some(before);
            let refresh = at - before >= Span::hours(1);
            Self::change(world, n, |dossier, _| {
                if mines {
                    self.observe(dossier, n, before, at, Level::Mining);
                }
                if refresh {
                    let of = at.after(Span::ms(flag.into()));
                    dossier.inform(self.facts(n, flag, of), at)?;
                }
                Ok::<_, davy_decision::dossier::Refusal>(())
            })?;
            let book = world.books.accounts.get_mut(usize::from(n))?;
            if mines {
                book.mines_until = Some(at);
            }
            if refresh {
                let at = at.after(Span::ms(flag.into()));
                book.informed(Fetched::Good { flag, at });
            }
        }
        Some(())
    }

    pub(crate) fn go_quiet(&self, world: &mut World, n: u8) -> Option<()> {
        world.left.quiets -= 1;
        world.books.accounts.get_mut(usize::from(n))?.mines_until = None;
        let at = self.time(world.now);
        Self::change(world, n, |dossier, _| {
            self.observe(dossier, n, at, at, Level::Quiet);
            Ok::<_, ()>(())
        })
    }

    pub(crate) fn kill(&self, world: &mut World, on: bool) {
        world.left.kill_turns -= 1;
        let at = self.time(world.now);
        world.books.stopped = on.then_some(at);
        world.fleet.stop = on.then(|| Stop {
            since: at,
            by: "olga".to_owned(),
            why: "drill".to_owned(),
        });
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
        }
    }
}
