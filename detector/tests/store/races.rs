//! Many at once: nothing is lost, no budget exceeded, nobody waits for ever. On PostgreSQL through two stores, as two detectors.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use davy_decision::{
    account::{Cents, Droplet, Facts, Known, Payments},
    action::{Action, Key, Outcome, Parcel, State},
    audit::{Actor, Entry},
    case::Person,
    dossier::{Event, Refusal},
    fleet::{Fleet, Stop},
    policy::{Policies, Step},
    settings::Settings,
    time::{Span, Time},
};
use davy_detector::store::Memory;
use davy_detector::store::ledger::{Change, Changed, LedgerError, Reach};
use tokio::task::JoinSet;

use crate::changes::WORDS;
use crate::place::{LIMITS, Place};
use crate::support::*;

const TASKS: u64 = 8;

/// `TASKS` tasks, each of which does `work(store, task, turn)` for every turn; all answers.
async fn at_once<T, F>(
    stores: &[Arc<dyn Memory>; 2],
    turns: u64,
    work: impl Fn(Arc<dyn Memory>, u64, u64) -> F + Send + Sync + Clone + 'static,
) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send,
{
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let store = Arc::clone(&stores[usize::try_from(task % 2).unwrap()]);
        let work = work.clone();
        tasks.spawn(async move {
            let mut answers = Vec::new();
            for turn in 0..turns {
                answers.push(work(Arc::clone(&store), task, turn).await);
            }
            answers
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

pub(crate) async fn no_change_of_one_account_is_lost(place: Place) {
    let stores = place.two(LIMITS).await;
    let made = at_once(&stores, 25, |store, _, turn| async move {
        let reach = [Reach::Account, Reach::Fleet][usize::try_from(turn % 2).unwrap()];
        make(&store, "a", reach, count_one()).await.is_ok()
    });
    assert!(made.await.into_iter().all(|made| made));
    let dossier = record_of(&stores[0], "a").await.unwrap();
    assert_eq!(dossier.letters_written, TASKS * 25);
    assert_eq!(followed(&stores[1]).await, TASKS * 25);
}

/// Releases one action on one droplet, if the fleet lets it.
fn release() -> Change {
    Arc::new(|dossier, fleet| {
        let settings = Settings::default();
        if fleet.stopped().0 || fleet.blast_radius(T0, &settings, 1).0 {
            return Err(refused());
        }
        fleet.spend(T0, &dossier.account, Step::Throttle, 1);
        Ok(Changed {
            events: vec![Event::FactsChanged],
            ..Changed::default()
        })
    })
}

async fn sized(store: &Arc<dyn Memory>) {
    let sized = Arc::new(|fleet: &mut Fleet| {
        fleet.droplets = 1_000_000;
        Vec::new()
    });
    store
        .change_fleet(Actor::Automation, T0, sized)
        .await
        .unwrap();
}

pub(crate) async fn releases_never_exceed_the_budget(place: Place) {
    let stores = place.two(LIMITS).await;
    sized(&stores[0]).await;
    let made = at_once(&stores, 8, |store, task, turn| async move {
        let made = make(&store, &format!("a{task}-{turn}"), Reach::Fleet, release()).await;
        match made {
            Ok(_) => true,
            Err(LedgerError::Refused(Refusal::Message)) => false,
            Err(other) => panic!("{other}"),
        }
    });
    let released = made.await.into_iter().filter(|made| *made).count();
    let budget = Settings::default().budget_per_hour;
    assert_eq!(u64::try_from(released).unwrap(), budget);
    let fleet = stores[1].fleet().await.unwrap();
    assert_eq!(fleet.within_hour(T0), budget);
    assert_eq!(followed(&stores[0]).await, budget);
}

pub(crate) async fn nothing_is_released_after_the_stop(place: Place) {
    let stores = place.two(LIMITS).await;
    sized(&stores[0]).await;
    make(&stores[1], "first", Reach::Fleet, release())
        .await
        .unwrap();
    let stopper = Arc::clone(&stores[1]);
    let (released, mut enough) = tokio::sync::watch::channel(0_u64);
    let stopped = tokio::spawn(async move {
        // While many release, and long before they are through.
        enough
            .wait_for(|released| *released >= TASKS)
            .await
            .unwrap();
        let stop = Arc::new(|fleet: &mut Fleet| {
            fleet.stop = Some(Stop {
                since: T0,
                by: "ann".to_owned(),
                why: "a drill".to_owned(),
            });
            vec![Event::Stopped {
                why: "a drill".to_owned(),
            }]
        });
        stopper.change_fleet(person("ann"), T0, stop).await
    });
    let released = Arc::new(released);
    let made = at_once(&stores, 1, move |store, task, _| {
        let released = Arc::clone(&released);
        async move { releases_until_refused(store, task, &released).await }
    });
    let made: u64 = made.await.into_iter().sum();
    stopped.await.unwrap().unwrap();
    let log = log(&stores[0]).await;
    let (last, before) = log.split_last().unwrap();
    assert_eq!(last.note.actor, person("ann"), "released after the stop");
    assert!(last.note.account.is_none(), "{last:?}");
    assert!(before.iter().all(|entry| entry.note.account.is_some()));
    assert_eq!(u64::try_from(before.len()).unwrap(), 1 + made);
}

/// Releases for one account after the other, until something refuses; how often.
async fn releases_until_refused(
    store: Arc<dyn Memory>,
    task: u64,
    released: &tokio::sync::watch::Sender<u64>,
) -> u64 {
    let endless: Change = Arc::new(|dossier, fleet| {
        let released = release()(dossier, fleet)?;
        // A budget without end: the stop alone ends it.
        fleet.release(&dossier.account);
        fleet.spent.clear();
        Ok(released)
    });
    for turn in 0.. {
        let name = format!("a{task}-{turn}");
        match make(&store, &name, Reach::Fleet, Arc::clone(&endless)).await {
            Ok(_) => released.send_modify(|released| *released += 1),
            Err(LedgerError::Refused(Refusal::Message)) => return turn,
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!("the stop refuses in the end")
}

/// However many write the same reason at the same instant, it is one case's own.
pub(crate) async fn of_a_reason_given_at_once_in_many_cases_one_is_taken(place: Place) {
    let stores = place.two(LIMITS).await;
    for task in 0..TASKS {
        let name = format!("a{task}");
        make(&stores[0], &name, Reach::Account, decided())
            .await
            .unwrap();
    }
    let made = at_once(&stores, 1, |store, task, _| async move {
        let name = format!("a{task}");
        make(&store, &name, Reach::Account, denies("ann", WORDS)).await
    });
    let (taken, refused): (Vec<_>, Vec<_>) = made.await.into_iter().partition(Result::is_ok);
    assert_eq!(taken.len(), 1, "{refused:?}");
    for refusal in refused {
        let refusal = refusal.unwrap_err();
        assert!(refusal.to_string().contains("case a"), "{refusal}");
    }
    assert_eq!(stores[1].reasons(10).await.unwrap().len(), 1);
}

pub(crate) async fn the_audit_log_is_one_chain_whoever_writes(place: Place) {
    let stores = place.two(LIMITS).await;
    let made = at_once(&stores, 12, |store, task, turn| async move {
        if turn % 3 == 0 {
            let note = Arc::new(|_: &mut Fleet| vec![Event::Resumed, Event::Resumed]);
            store.change_fleet(person("ben"), T0, note).await.unwrap();
            2
        } else {
            let name = format!("a{}", task % 3);
            make(&store, &name, Reach::Account, count_one())
                .await
                .unwrap();
            1
        }
    });
    let written: u64 = made.await.into_iter().sum();
    assert_eq!(written, TASKS * 16);
    assert_eq!(followed(&stores[0]).await, written);
}

pub(crate) async fn accounts_that_swap_droplets_do_not_fail(place: Place) {
    let stores = place.two(LIMITS).await;
    let made = at_once(&stores, 10, |store, task, turn| async move {
        let own = [&["d1", "d2", "d3"][..], &["d3", "d4"], &["d4", "d1"]];
        let own = own[usize::try_from((task + turn) % 3).unwrap()];
        make(&store, &format!("a{}", task % 4), Reach::Account, owns(own)).await
    });
    for made in made.await {
        made.unwrap();
    }
}

pub(crate) async fn a_change_that_is_given_up_is_kept_whole_or_not_at_all(place: Place) {
    let stores = place.two(LIMITS).await;
    // More than there are connections: none of them may be lost with its caller.
    for n in 0..60 {
        let made = make(&stores[0], "a", Reach::Fleet, count_one());
        let given_up = tokio::time::timeout(Duration::from_micros(150 * (n % 20)), made);
        // Whether it was in time is not what this is about.
        let _ = given_up.await;
    }
    make(&stores[1], "a", Reach::Fleet, count_one())
        .await
        .unwrap();
    make(&stores[0], "a", Reach::Fleet, count_one())
        .await
        .unwrap();
    let dossier = record_of(&stores[0], "a").await.unwrap();
    assert_eq!(followed(&stores[1]).await, dossier.letters_written);
}

pub(crate) async fn two_that_are_opened_at_once_make_one_schema(place: Place) {
    if matches!(place, Place::Sqlite { .. }) {
        // The second is kept away by the first, and finds it whole afterwards.
        drop(place.open().await);
        place.open().await;
        return;
    }
    let (one, other) = tokio::join!(place.open(), place.open());
    make(&one, "a", Reach::Account, count_one()).await.unwrap();
    make(&other, "a", Reach::Account, count_one())
        .await
        .unwrap();
    assert_eq!(place.sql("SELECT count(*) FROM davy_schema").unwrap(), "1");
    assert_eq!(followed(&one).await, 2);
}

/// What speaks against a throttle that is about to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Customer,
    Unlock,
    Allow,
    Stop,
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

async fn speaks(store: &Arc<dyn Memory>, name: &str, what: Speaks) {
    let change = match what {
        Speaks::Customer => speak("m1", RACES_AT),
        Speaks::Unlock => events(|dossier| {
            let ann = Person("ann".to_owned());
            dossier.unlock(&ann, false, None, [], &generous(), RACES_AT)
        }),
        Speaks::Allow => {
            events(|dossier| Ok(dossier.allow_high_cpu(&Person("ann".to_owned()), RACES_AT)))
        }
        Speaks::Stop => {
            let stop = Arc::new(|fleet: &mut Fleet| {
                let why = "a drill".to_owned();
                fleet.stop = Some(Stop {
                    since: RACES_AT,
                    by: "ann".to_owned(),
                    why: why.clone(),
                });
                vec![Event::Stopped { why }]
            });
            return store
                .change_fleet(person("ann"), RACES_AT, stop)
                .await
                .unwrap();
        }
    };
    make(store, name, Reach::Account, change).await.unwrap();
}

/// The product's own release races each thing that speaks for the customer: when that is committed, no release commits any more.
/// The log has the order in which they did.
pub(crate) async fn after_a_safety_is_committed_no_release_is(place: Place) {
    let stores = place.two(LIMITS).await;
    sized(&stores[0]).await;
    let all = [
        Speaks::Customer,
        Speaks::Unlock,
        Speaks::Allow,
        Speaks::Stop,
    ];
    for (number, what) in (0_u64..).zip(all.into_iter().cycle().take(11).chain([Speaks::Stop])) {
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

fn none_was_released_after(log: &[Entry], name: &str, what: Speaks) {
    let event = |entry: &Entry| serde_json::from_value(entry.note.event.clone()).unwrap();
    let throttle = throttle_of(name);
    let releases = |log: &[Entry]| {
        let released = |entry: &&Entry| matches!(event(entry), Event::Released { parcel } if parcel == throttle);
        log.iter().filter(released).count()
    };
    let spoke = |entry: &Entry| {
        let of_this = entry.note.account.as_ref() == Some(&account(name));
        match event(entry) {
            Event::CustomerSpoke { .. } => what == Speaks::Customer && of_this,
            Event::HoldSet { .. } => what == Speaks::Unlock && of_this,
            Event::HighCpuAllowed { .. } => what == Speaks::Allow && of_this,
            Event::Stopped { .. } => what == Speaks::Stop,
            _ => false,
        }
    };
    let at = log.iter().rposition(spoke).unwrap();
    let (before, after) = log.split_at(at);
    assert!(releases(before) >= 3, "{what:?}: nothing raced");
    assert_eq!(
        releases(after),
        0,
        "{what:?}: released after it: {after:#?}"
    );
}
