//! The product's own releases, raced by everything that is to keep them back: what speaks for the customer, the budget, and the kill switch.
//!
//! The log has the order in which all of it was committed. On PostgreSQL through two stores, as two detectors.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use davy_decision::{
    account::{AccountId, Cents, Droplet, Facts, Known, Payments, Vouch},
    action::{Action, Key, Outcome, Parcel, State},
    audit::{Actor, Entry},
    case::Person,
    dossier::{Dossier, Event},
    fleet::{Fleet, Stop},
    policy::{Policies, Step},
    settings::Settings,
    time::{Span, Time},
};
use davy_detector::account::directory::Directory;
use davy_detector::store::Memory;
use davy_detector::store::ledger::{
    Change, Changed, Decision, FleetChange, Ledger, LedgerError, Reach,
};
use tokio::task::JoinSet;

use crate::place::{LIMITS, Place};
use crate::races::at_once;
use crate::replica::{Replica, mines};
use crate::support::*;

pub(crate) async fn sized<L: Ledger + ?Sized>(ledger: &Arc<L>) {
    let sized = Arc::new(|fleet: &mut Fleet| {
        fleet.droplets = 1_000_000;
        Vec::new()
    });
    ledger
        .change_fleet(Actor::Automation, T0, sized)
        .await
        .unwrap();
}

/// What speaks against a throttle that is about to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Customer,
    Unlock,
    Allow,
    /// Facts that the provider pushes.
    Vouched,
    Flag,
    /// Holds that come with lifting a throttle, and with taking back what automation did.
    Unthrottle,
    TakeBack,
    Stop,
}

impl Speaks {
    const ALL: [Self; 8] = [
        Self::Customer,
        Self::Unlock,
        Self::Allow,
        Self::Vouched,
        Self::Flag,
        Self::Unthrottle,
        Self::TakeBack,
        Self::Stop,
    ];
}

/// The throttle of the account `name`.
fn throttle_of(name: &str) -> Parcel {
    Parcel::Action(Key {
        account: account(name),
        episode: 1,
        step: Step::Throttle,
        turn: 0,
        undo: false,
    })
}

/// A budget that ends nothing here.
fn generous() -> Settings {
    Settings {
        budget_per_hour: 1_000_000,
        budget_fleet_per_mille: 1_000,
        ..Settings::default()
    }
}

/// An account of yesterday that has paid nothing, with these droplets, as of `at`.
pub(crate) fn new_account(own: &[&str], at: Time) -> Facts {
    fn known<T>(value: T, as_of: Time) -> Option<Known<T>> {
        Some(Known { value, as_of })
    }
    let since = at.before(Span::days(1));
    let droplets = own.iter().map(|name| {
        let created_at = since;
        (
            droplet(name),
            Droplet {
                created_at,
                vcpus: 2,
            },
        )
    });
    Facts {
        created_at: known(since, at),
        first_payment_at: known(None, at),
        first_droplet_at: known(Some(since), at),
        payments: known(Payments::default(), at),
        run_rate: known(Cents(5_000), at),
        credit: known(None, at),
        high_cpu_allowed: known(false, at),
        vouched: known(None, at),
        links: known(Vec::new(), at),
        droplets: known(droplets.collect(), at),
    }
}

/// Far more often than it is released until something speaks against it.
const RELEASES_MAX: u64 = 2_000;

/// When all of it happens.
const RACES_AT: Time = T0.after(Span::minutes(20));

static SHIPPED: LazyLock<Policies> = LazyLock::new(|| Policies::shipped().unwrap());

/// Releases a parcel as the engine does, with facts fetched just now.
fn release_of(parcel: Parcel) -> Change {
    Arc::new(move |dossier, fleet| {
        let facts = Some(Ok(new_account(&["d1"], RACES_AT)));
        let known = (&mut *fleet, &*SHIPPED);
        let events = dossier.release(&parcel, facts, known, &generous(), RACES_AT)?;
        Ok(Changed {
            events,
            ..Changed::default()
        })
    })
}

/// The control plane says what became of a parcel's release.
fn learnt(parcel: Parcel, outcomes: &'static [Outcome]) -> Change {
    events(move |dossier| {
        let mut all = Vec::new();
        for outcome in outcomes {
            all.extend(dossier.learn(
                &parcel,
                RACES_AT,
                outcome.clone(),
                (&Fleet::default(), &generous()),
                RACES_AT,
            )?);
        }
        Ok(all)
    })
}

/// Plans a throttle against a new account that mines; its customer has been told.
async fn about_to_throttle(store: &Arc<dyn Memory>, name: &str) {
    let facts = events(|dossier| dossier.inform(new_account(&["d1"], RACES_AT), RACES_AT));
    make(store, name, Reach::Account, facts).await.unwrap();
    make(store, name, Reach::Account, decided()).await.unwrap();
    let Parcel::Action(key) = throttle_of(name) else {
        return;
    };
    let step = Step::Notify;
    let notice = Parcel::Action(Key { step, ..key });
    for change in [release_of(notice.clone()), learnt(notice, &[Outcome::Done])] {
        make(store, name, Reach::Fleet, change).await.unwrap();
    }
}

/// Releases the throttle again and again, found each time never to have arrived, until it is withheld.
async fn releases_until_withheld(
    store: Arc<dyn Memory>,
    name: &str,
    released: &tokio::sync::watch::Sender<u64>,
) {
    let throttle = throttle_of(name);
    // Withheld never, it would go on for ever.
    for _ in 0..RELEASES_MAX {
        let made = make(&store, name, Reach::Fleet, release_of(throttle.clone())).await;
        let is = |brought: &[Event], wanted: fn(&Event) -> bool| brought.iter().any(wanted);
        match made {
            Ok(made)
                if is(&made.events, |event| {
                    matches!(event, Event::Released { .. })
                }) =>
            {
                released.send_modify(|released| *released += 1);
            }
            Ok(made) => {
                let withheld = |event: &Event| matches!(event, Event::ActionWithheld { .. });
                assert!(is(&made.events, withheld), "{:?}", made.events);
                return;
            }
            // Another has released it, or it is withheld for good.
            Err(LedgerError::Refused(_)) => {
                let held = record_of(&store, name).await.unwrap();
                let state = |action: &&Action| Parcel::Action(action.key.clone()) == throttle;
                let held = held.actions.iter().find(state).unwrap();
                if matches!(held.state, State::Withheld { .. }) {
                    return;
                }
            }
            Err(other) => panic!("{other}"),
        }
        let never = learnt(throttle.clone(), &[Outcome::Doubtful, Outcome::NeverSeen]);
        // Somebody else has said so already.
        let _ = make(&store, name, Reach::Account, never).await;
    }
    panic!("{name}: whatever speaks against it, it is released");
}

/// How often somebody tries to lift a throttle that is released, found never to have arrived, and released again.
const TRIES_MAX: usize = 2_000;

/// The provider says so a moment later than it said otherwise.
fn pushed(facts: Facts) -> Change {
    let at = RACES_AT.after(Span::ms(1));
    events(move |dossier| dossier.inform(facts.clone(), at))
}

fn as_of_now<T>(value: T) -> Option<Known<T>> {
    let as_of = RACES_AT.after(Span::ms(1));
    Some(Known { value, as_of })
}

async fn speaks(store: &Arc<dyn Memory>, name: &str, what: Speaks) {
    let ann = Person("ann".to_owned());
    let change = match what {
        Speaks::Customer => speak("m1", RACES_AT),
        Speaks::Unlock => {
            events(move |dossier| dossier.unlock(&ann, false, None, [], &generous(), RACES_AT))
        }
        Speaks::Allow => {
            events(move |dossier| Ok(dossier.allow_high_cpu(&ann, &Settings::default(), RACES_AT)))
        }
        Speaks::Vouched => pushed(Facts {
            vouched: as_of_now(Some(Vouch::Contract)),
            ..Facts::default()
        }),
        Speaks::Flag => pushed(Facts {
            high_cpu_allowed: as_of_now(true),
            ..Facts::default()
        }),
        Speaks::Unthrottle => {
            events(move |dossier| dossier.unthrottle(&ann, &generous(), RACES_AT))
        }
        Speaks::TakeBack => events(move |dossier| dossier.take_back(&ann, &generous(), RACES_AT)),
        Speaks::Stop => {
            return store
                .change_fleet(person("ann"), RACES_AT, stop())
                .await
                .unwrap();
        }
    };
    for _ in 0..TRIES_MAX {
        match make(store, name, Reach::Account, Arc::clone(&change)).await {
            // At this moment it is not in effect.
            Err(LedgerError::Refused(_)) => {}
            made => {
                made.unwrap();
                return;
            }
        }
    }
    panic!("{name}: {what:?} was refused {TRIES_MAX} times");
}

pub(crate) fn stop() -> FleetChange {
    Arc::new(|fleet| {
        let why = "a drill".to_owned();
        fleet.stop = Some(Stop {
            since: RACES_AT,
            by: "ann".to_owned(),
            why: why.clone(),
        });
        vec![Event::Stopped { why }]
    })
}

/// The product's own release races each thing that speaks for the customer: when that is committed, no release commits any more.
/// The log has the order in which they did.
pub(crate) async fn after_a_safety_is_committed_no_release_is(place: Place) {
    let stores = place.two(LIMITS).await;
    sized(&stores[0]).await;
    // Each more than once: a race is not always won by the same.
    for (number, what) in (0_u64..).zip(Speaks::ALL.into_iter().cycle().take(2 * Speaks::ALL.len()))
    {
        if number > 0 {
            let resume = Arc::new(|fleet: &mut Fleet| {
                fleet.stop = None;
                fleet.spent.clear();
                vec![Event::Resumed]
            });
            let resumed = stores[0].change_fleet(person("ann"), RACES_AT, resume);
            resumed.await.unwrap();
        }
        let name = format!("a{number}");
        about_to_throttle(&stores[0], &name).await;
        let (released, mut enough) = tokio::sync::watch::channel(0);
        let speaker = async {
            // In the midst of it.
            enough.wait_for(|released| *released >= 3).await.unwrap();
            speaks(&stores[1], &name, what).await;
        };
        let releasers = at_once(&stores, 1, {
            let (released, name) = (released.clone(), name.clone());
            move |store, _, _| {
                let (released, name) = (released.clone(), name.clone());
                async move { releases_until_withheld(store, &name, &released).await }
            }
        });
        tokio::join!(speaker, releasers);
        none_was_released_after(&log(&stores[1]).await, &name, what);
    }
}

pub(crate) fn event(entry: &Entry) -> Event {
    serde_json::from_value(entry.note.event.clone()).unwrap()
}

fn none_was_released_after(log: &[Entry], name: &str, what: Speaks) {
    let throttle = throttle_of(name);
    let releases = |log: &[Entry]| {
        let released = |entry: &&Entry| matches!(event(entry), Event::Released { parcel } if parcel == throttle);
        log.iter().filter(released).count()
    };
    let spoke = |entry: &Entry| {
        let of_this = entry.note.account.as_ref() == Some(&account(name));
        match event(entry) {
            Event::CustomerSpoke { .. } => what == Speaks::Customer && of_this,
            Event::HoldSet { .. } => {
                of_this && matches!(what, Speaks::Unlock | Speaks::Unthrottle | Speaks::TakeBack)
            }
            // Before it there are those of the account's first facts.
            Event::FactsChanged => of_this && matches!(what, Speaks::Vouched | Speaks::Flag),
            Event::HighCpuAllowed { .. } => what == Speaks::Allow && of_this,
            Event::Stopped { .. } => what == Speaks::Stop,
            _ => false,
        }
    };
    let Some(at) = log.iter().rposition(spoke) else {
        panic!("{what:?}: the log does not say so: {log:#?}");
    };
    let (before, after) = log.split_at(at);
    assert!(releases(before) >= 3, "{what:?}: nothing raced");
    assert_eq!(
        releases(after),
        0,
        "{what:?}: released after it: {after:#?}"
    );
}

/// Accounts that are about to be acted on.
const PLANNED: usize = 24;

/// An account that mines, whose notice and throttle were decided on and did not leave: as after a turn of the engine, and before its
/// first errand.
pub(crate) async fn plans(replica: &Replica, name: &str) {
    let desk = &replica.engine.desk;
    mines(desk, name).await;
    let facts = replica.line.facts(&account(name)).await.unwrap();
    let inform = move |dossier: &mut Dossier, _: &Settings, at| dossier.inform(facts.clone(), at);
    let informed = desk.act(account(name), Actor::Automation, inform);
    informed.await.unwrap();
    let settings = Arc::clone(&desk.settings);
    let turn = move |dossier: &mut Dossier, fleet: &mut Fleet, at| {
        let turn = dossier.turn(fleet, &SHIPPED, &settings, at);
        let number = dossier.decisions;
        let decision = turn.decision.map(|(input, plan)| Decision {
            number,
            input,
            plan,
        });
        Ok((turn.events, decision))
    };
    let turned = desk.change(account(name), Reach::Account, Actor::Automation, turn);
    let plan = turned.await.unwrap().decision.unwrap().plan;
    assert_eq!(plan.step, Step::Throttle, "{plan:#?}");
}

/// Both detectors attend to all of these accounts at once.
fn attended(replicas: &[Replica; 2], names: &[String]) -> JoinSet<Result<(), LedgerError>> {
    let mut tasks = JoinSet::new();
    for (n, name) in names.iter().enumerate() {
        for replica in [n % 2, (n + 1) % 2].map(|which| &replicas[which]) {
            let (engine, name) = (Arc::clone(&replica.engine), account(name));
            tasks.spawn(async move { engine.attend(&name).await });
        }
    }
    tasks
}

/// Automated steps that were released, in the order in which they were.
pub(crate) fn steps_released(log: &[Entry]) -> Vec<(AccountId, Step)> {
    let released = log.iter().filter_map(|entry| match event(entry) {
        Event::Released {
            parcel: Parcel::Action(key),
        } if !key.undo => Some((key.account, key.step)),
        _ => None,
    });
    released.collect()
}

pub(crate) async fn releases_never_exceed_the_budget(place: Place) {
    let settings = Settings {
        budget_per_hour: 5,
        ..Settings::default()
    };
    let replicas = Replica::two(&place, &settings).await;
    let desk = replicas[1].engine.desk.clone();
    sized(&replicas[0].engine.desk.ledger).await;
    let names: Vec<_> = (0..PLANNED).map(|n| format!("a{n}")).collect();
    for name in &names {
        plans(&replicas[0], name).await;
    }
    for attended in attended(&replicas, &names).join_all().await {
        attended.unwrap();
    }
    let log = desk.ledger.audit(None, 0, 1_000_000).await.unwrap();
    let released = steps_released(&log);
    // A notice counts until its throttle takes its place: it is accounts that are counted.
    let accounts: BTreeSet<_> = released.iter().map(|(account, _)| account).collect();
    assert_eq!(accounts.len(), 5, "{released:?}");
    assert_eq!(
        desk.ledger.fleet().await.unwrap().within_hour(desk.now()),
        5
    );
    let arrived = replicas[0].line.arrived();
    let acted: BTreeSet<_> = (arrived.iter())
        .map(|key| key.split('/').next().unwrap())
        .collect();
    assert!(acted.len() <= 5, "{arrived:?}");
}

pub(crate) async fn nothing_is_released_after_the_stop(place: Place) {
    let replicas = Replica::two(&place, &generous()).await;
    let desk = replicas[1].engine.desk.clone();
    sized(&replicas[0].engine.desk.ledger).await;
    let names: Vec<_> = (0..PLANNED).map(|n| format!("a{n}")).collect();
    for name in &names {
        plans(&replicas[0], name).await;
    }
    let attended = attended(&replicas, &names);
    // While many release, and long before they are through.
    replicas[0].line.has_taken(4).await;
    desk.change_fleet(person("ann"), stop()).await.unwrap();
    for attended in attended.join_all().await {
        attended.unwrap();
    }
    let log = desk.ledger.audit(None, 0, 1_000_000).await.unwrap();
    let stopped = |entry: &Entry| matches!(event(entry), Event::Stopped { .. });
    let (before, after) = log.split_at(log.iter().position(stopped).unwrap());
    assert!(steps_released(before).len() >= 4, "nothing raced");
    assert_eq!(steps_released(after), [], "released after the stop");
    let withheld = |entry: &&Entry| match event(entry) {
        Event::ActionWithheld { why, .. } => why.contains("kill_switch"),
        _ => false,
    };
    let withheld = after.iter().filter(withheld).count();
    assert!(withheld > 0, "the switch kept nothing back: {after:#?}");
}
