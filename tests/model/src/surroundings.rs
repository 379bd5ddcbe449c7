//! What surrounds accounts and replicas: facts, evidence, time, and the kill switch.

use davy_decision::{
    account::{
        AccountId, Cents, Droplet, DropletId, Facts, Invoice, InvoiceState, Known, Payments,
    },
    dossier::{Dossier, Refusal},
    episode::{Classes, Sighting},
    fleet::Stop,
    time::{Span, Time},
};
use davy_evidence::Level;

use crate::{
    Bend, Protocol, T0,
    world::{Fetched, Shows, World},
};

/// How the evidence changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Every droplet goes quiet.
    Quiet,
    /// The first droplet goes quiet.
    FirstQuiet,
    /// Every droplet shows one class alone.
    OneClass,
    /// No droplet is reported any more.
    Unseen,
}

/// Long ago enough that no fact is fresh.
pub(crate) const OLD: Span = Span::hours(2);

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

    /// Windows of an account's droplets from `from` to `to`, as they show.
    pub(crate) fn observe(
        &self,
        dossier: &mut Dossier,
        n: u8,
        shows: &[Shows],
        span: (Time, Time),
    ) {
        let (from, to) = span;
        for (droplet, (id, shows)) in self.droplets(n).into_iter().zip(shows).enumerate() {
            let two = *shows == Shows::TwoClasses
                || (*shows == Shows::OneClass && self.bent(Bend::OneClassTaken));
            let (level, classes) = match shows {
                Shows::Unseen => continue,
                Shows::Quiet => (Level::Quiet, (false, false)),
                Shows::OneClass | Shows::TwoClasses => (
                    Level::Mining,
                    (two || droplet % 2 == 0, two || droplet % 2 == 1),
                ),
            };
            let classes = Classes {
                fp_rounding: classes.0,
                register_randomness: classes.1,
                pmu: false,
            };
            let sighting = Sighting {
                droplet: id,
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

    pub(crate) fn advance(&self, world: &mut World) -> Option<()> {
        let before = self.time(world.now);
        world.now += 1;
        let at = self.time(world.now);
        let refresh = at - before >= Span::hours(1);
        // Over days there was quiet between: what is seen then is another episode.
        let from = match at - before > Span::days(2) {
            true => at.before(Span::minutes(40)),
            false => before,
        };
        for n in 0..self.config.accounts {
            let flag = *world.flags.get(usize::from(n))?;
            let shows = world.shows.get(usize::from(n))?.clone();
            let of = at.after(Span::ms(flag.into()));
            Self::change(world, n, |dossier, _| {
                self.observe(dossier, n, &shows, (from, at));
                if refresh {
                    dossier.inform(self.facts(n, flag, of), at)?;
                }
                Ok::<_, Refusal>(())
            })?;
            Self::note_evidence(world, n, at)?;
            if refresh {
                world.books.informed(n, Fetched::Good { flag, at: of });
            }
        }
        Some(())
    }

    fn note_evidence(world: &mut World, n: u8, at: Time) -> Option<()> {
        let book = world.books.accounts.get_mut(usize::from(n))?;
        let shows = world.shows.get(usize::from(n))?;
        for (until, shows) in book.mines_until_ms.iter_mut().zip(shows) {
            match shows {
                Shows::TwoClasses => *until = Some(at.unix_ms()),
                Shows::OneClass | Shows::Quiet => *until = None,
                Shows::Unseen => {}
            }
        }
        Some(())
    }

    pub(crate) fn evidence(&self, world: &mut World, n: u8, change: Change) -> Option<()> {
        world.left.evidence = world.left.evidence.checked_sub(1)?;
        let shows = world.shows.get_mut(usize::from(n))?;
        match change {
            Change::Quiet => shows.fill(Shows::Quiet),
            Change::FirstQuiet => *shows.first_mut()? = Shows::Quiet,
            Change::OneClass => shows.fill(Shows::OneClass),
            Change::Unseen => shows.fill(Shows::Unseen),
        }
        let (shows, at) = (shows.clone(), self.time(world.now));
        Self::change(world, n, |dossier, _| {
            self.observe(dossier, n, &shows, (at, at));
            Ok::<_, Refusal>(())
        })?;
        Self::note_evidence(world, n, at)
    }

    pub(crate) fn kill(&self, world: &mut World, on: bool) {
        world.left.kill_turns -= 1;
        let at = self.time(world.now);
        world.books.stopped_ms = on.then_some(at.unix_ms());
        world.fleet.stop = on.then(|| Stop {
            since: at,
            by: "olga".to_owned(),
            why: "drill".to_owned(),
        });
    }
}
