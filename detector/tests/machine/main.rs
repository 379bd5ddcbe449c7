//! The deciding half as a state machine: what happens in any order, on both stores, with two replicas, deaths, and an account directory
//! and a control plane that fail; after every step all invariants of the design hold, by their numbers, and SQLite and PostgreSQL hold
//! the same to the byte.
//!
//! | file | what |
//! |---|---|
//! | `step` | what can happen |
//! | `world` | one store, two engines, the provider, and what happens between two steps of an engine |
//! | `between` | what the engines see of it: records, directory, control plane |
//! | `people` | what people do |
//! | `judge` | what must always be so |
//!
//! The same cases each time; `MACHINE=n` makes more of them. Where there is no PostgreSQL its half is skipped, and says so.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod between;
mod judge;
#[expect(dead_code, reason = "shared with the tests of scenarios")]
#[path = "../scenarios/oracle.rs"]
mod oracle;
mod people;
#[expect(dead_code, reason = "shared with the tests of the store")]
#[path = "../store/place.rs"]
mod place;
mod step;
mod world;

use std::sync::{Arc, Mutex};

use davy_decision::{
    account::DropletId,
    case::Person,
    episode::{Classes, Sighting},
    settings::Settings,
    time::Time,
};
use davy_detector::account::attribute::Attribution;
use davy_evidence::Level;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};

use judge::Seen;
use place::Place;
use step::{ACCOUNTS, Act, PEOPLE, Says, Step, step};
use world::{WINDOW, World, account};

/// Cases, and most steps of each.
const CASES: u32 = 16;
const STEPS: usize = 45;

/// Accounts as they are at first: two new ones, two whose payment failed and whose droplets came in a burst, one as old as said.
async fn begin(world: &World, age_days: u64) {
    let days = |days: u64| Time::from_unix_ms(world::START - days * 86_400_000).to_string();
    let failed =
        json!({"settled": 0, "last_invoice": {"amount": 2_000, "due": days(1), "state": "failed"}});
    let none = json!({"settled": 0});
    for (number, created, payments, droplets) in [
        (0, 5, &none, 1),
        (1, 3, &failed, 5),
        (2, age_days, &none, 2),
        (3, 2, &none, 2),
        (4, 1, &failed, 5),
    ] {
        let name = ACCOUNTS[number];
        world.tell("account", json!({"account": name, "created_at": days(created), "run_rate": 5_000, "payments": payments}));
        create(world, number, droplets);
    }
    world.check().await;
}

fn create(world: &World, number: usize, count: u8) {
    let name = ACCOUNTS[number];
    let first = world.state().created[number];
    world.state().created[number] += u64::from(count);
    let droplets: Vec<_> = (first..first + u64::from(count))
        .map(|n| format!("{name}-{n}"))
        .collect();
    world.tell(
        "droplet_created",
        json!({"account": name, "droplets": droplets}),
    );
}

/// What sensors say in a window: its level and the number of classes.
const fn said(says: Says) -> (Level, u64) {
    match says {
        Says::Mining => (Level::Mining, 2),
        Says::OneClass => (Level::Mining, 1),
        Says::Suspect => (Level::Suspect, 1),
        Says::Load => (Level::Quiet, 0),
    }
}

const fn classes(count: u64) -> Classes {
    Classes {
        fp_rounding: count > 0,
        register_randomness: count > 1,
        pmu: false,
    }
}

/// Sensors say something of some accounts, window after window: one thing of each other droplet, and another of the rest.
async fn seen(world: &World, accounts: u8, says: [Says; 2], minutes: u64) {
    let begin = world.now();
    let mut droplets: [Vec<String>; 2] = Default::default();
    for number in (0..ACCOUNTS.len()).filter(|number| accounts & (1 << number) != 0) {
        for n in 0..world.state().created[number] {
            let part = usize::from(n % 2 == 1);
            droplets[part].push(format!("{}-{n}", ACCOUNTS[number]));
        }
    }
    let parts = || droplets.iter().zip(says);
    for (droplets, says) in parts() {
        let (level, count) = said(says);
        world.tell("evidence", json!({"droplets": droplets, "level": level, "classes": classes(count), "for_s": minutes * 60, "window_s": 60}));
    }
    for window in 0..minutes {
        let from = begin + window * WINDOW;
        world.pass_to(from + WINDOW);
        let sightings = parts().flat_map(|(droplets, says)| {
            let (level, count) = said(says);
            droplets.iter().map(move |droplet| Sighting {
                droplet: DropletId::try_from(droplet.as_str()).unwrap(),
                host: "host-1".to_owned(),
                from: Time::from_unix_ms(from),
                to: Time::from_unix_ms(from + WINDOW),
                level,
                classes: classes(count),
                cpu_percent: 400,
                neighbours_wait_percent: None,
                reasons: vec!["as the machine has it".to_owned()],
            })
        });
        let engine = world.replica(0);
        let attribution = Attribution::new(engine.desk.clone(), Arc::clone(&engine.directory));
        attribution.take(sightings.collect()).await.unwrap();
        drop((attribution, engine));
        world.attend().await;
    }
}

fn told(world: &World, account: usize, which: usize) {
    let now = Time::from_unix_ms(world.now()).to_string();
    let mut line = step::facts(which, &now);
    line["account"] = ACCOUNTS[account].into();
    world.tell("account", line);
}

async fn wait(world: &World, minutes: u64) {
    let pieces = minutes.clamp(1, 20);
    for _ in 0..pieces {
        world.pass(minutes * 60_000 / pieces);
        world.attend().await;
    }
}

async fn play(world: &World, step: &Step) -> Value {
    match step {
        Step::Seen {
            accounts,
            says,
            of_the_rest,
            minutes,
        } => seen(world, *accounts, [*says, *of_the_rest], *minutes).await,
        Step::Talks {
            account: number,
            who,
            act,
        } => {
            let (account, by) = (account(*number), Person(PEOPLE[*who].to_owned()));
            world.speak(&account, false).await;
            for act in [Act::TakeOver, *act] {
                world.person(&account, &by, act).await;
            }
            seen(world, 1 << number, [Says::Mining; 2], 11).await;
        }
        Step::Wait(minutes) => wait(world, *minutes).await,
        Step::Told { account, which } => told(world, *account, *which),
        Step::ToldMeanwhile { account, which } => {
            for said in [false, true] {
                if said {
                    told(world, *account, *which);
                }
                seen(world, 1 << account, [Says::Mining; 2], 11).await;
            }
        }
        Step::Created { account, droplets } => create(world, *account, *droplets),
        Step::DirectoryDown(minutes) => {
            world.tell("outage", json!({"of": "directory", "for_s": minutes * 60}));
        }
        Step::Speaks {
            account: number,
            twice,
        } => world.speak(&account(*number), *twice).await,
        Step::Acts {
            account: number,
            who,
            act,
        } => {
            let by = Person(PEOPLE[*who].to_owned());
            world.person(&account(*number), &by, *act).await;
        }
        Step::Denied {
            account: number,
            one,
            other,
            second,
        } => {
            let (account, who) = (account(*number), |n: usize| Person(PEOPLE[n].to_owned()));
            for (by, act) in [
                (*one, Act::TakeOver),
                (*one, Act::DenyPowerDown),
                (*other, *second),
            ] {
                world.person(&account, &who(by), act).await;
            }
        }
        Step::Stop => world.stop(true).await,
        Step::Resume => world.stop(false).await,
        Step::Next {
            order,
            while_facts,
            when_released,
            while_order,
        } => {
            let mut state = world.state();
            state.when_released.push_back(*when_released);
            state.while_facts.push_back(*while_facts);
            state.orders.push_back((*order, *while_order));
        }
    }
    world.pass(1_000);
    world.attend().await;
    world.state().book.seen.steps += 1;
    world.check().await
}

/// The first place at which two documents differ, and what is there.
fn difference(place: &str, one: &Value, other: &Value) -> Option<String> {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) if one.len() == other.len() => {
            let mut fields = one.iter();
            fields.find_map(|(name, value)| {
                let other = other.get(name).unwrap_or(&Value::Null);
                difference(&format!("{place}/{name}"), value, other)
            })
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            let mut items = one.iter().zip(other).enumerate();
            items.find_map(|(at, (one, other))| difference(&format!("{place}/{at}"), one, other))
        }
        _ => (one != other).then(|| format!("{place}: {one} and {other}")),
    }
}

/// One case, on all stores there are.
async fn case(steps: &[Step], fleet: u64, budget_per_hour: u64, age_days: u64) -> Seen {
    let settings = Settings {
        budget_per_hour,
        ..Settings::default()
    };
    let places = [Some(Place::sqlite()), Place::postgres()];
    let mut worlds = Vec::new();
    for place in places.into_iter().flatten() {
        let world = World::new(place, settings.clone(), fleet).await;
        begin(&world, age_days).await;
        worlds.push(world);
    }
    for step in steps {
        let mut first = None;
        for world in &worlds {
            let records = play(world, step).await;
            let first = first.get_or_insert_with(|| records.clone());
            let apart = difference("", first, &records);
            assert!(
                apart.is_none(),
                "the stores differ after {step:?}: {apart:?}"
            );
        }
    }
    let mut decisions = Vec::new();
    for world in &worlds {
        decisions.push(world.settle().await);
    }
    for all in &decisions[1..] {
        assert_eq!(*all, decisions[0], "the stores' decisions differ");
    }
    let mut all = Seen::default();
    for world in &worlds {
        all.add(&world.state().book.seen);
    }
    all
}

/// What a few random orders rarely bring about: a hold, and a long standing, with nothing else that speaks for the customer. Each with
/// the days since cedar was created.
fn directed() -> [(Vec<Step>, u64); 2] {
    let seen = |account: usize, says, minutes| Step::Seen {
        accounts: 1 << account,
        says,
        of_the_rest: says,
        minutes,
    };
    let unlocked = Step::Talks {
        account: 0,
        who: 0,
        act: Act::UnlockUnsure,
    };
    let mines = |account| seen(account, Says::Mining, 30);
    [
        (vec![mines(0), unlocked, mines(0)], 60),
        // The second time a case is open already, and nothing is new but the evidence.
        (vec![mines(2), seen(2, Says::Load, 11), mines(2)], 400),
    ]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// A lock by two, the customer's appeal, and its two reviews, by two others: what random orders of so few people seldom come to.
#[test]
fn an_appeal_is_denied_by_two_who_have_not_denied_and_have_read_the_customers_last_word() {
    let acts = |who, act| Step::Acts {
        account: 0,
        who,
        act,
    };
    let mines = Step::Seen {
        accounts: 1,
        says: Says::Mining,
        of_the_rest: Says::Mining,
        minutes: 32,
    };
    let speaks = Step::Speaks {
        account: 0,
        twice: false,
    };
    let locked = vec![
        mines.clone(),
        acts(0, Act::DenyLock),
        acts(1, Act::DenyLock),
        mines.clone(),
        speaks.clone(),
    ];
    let then = |more: &[Step]| [locked.as_slice(), more].concat();
    for (steps, denials) in [
        // Who denied does not review; one reviews once; two deny.
        (
            then(&[
                acts(0, Act::DenyLock),
                acts(2, Act::DenyLock),
                acts(2, Act::DenyLock),
                acts(3, Act::DenyLock),
                mines.clone(),
            ]),
            2,
        ),
        // The first review did not know the customer's last word.
        (
            then(&[
                acts(2, Act::DenyLock),
                speaks.clone(),
                acts(3, Act::DenyLock),
                mines.clone(),
            ]),
            1,
        ),
        (
            then(&[
                acts(2, Act::DenyLock),
                speaks.clone(),
                acts(3, Act::DenyLock),
                acts(2, Act::DenyLock),
                mines.clone(),
            ]),
            2,
        ),
        // Nor does one that was withdrawn count, or one beside which the account was released by hand.
        (
            then(&[
                acts(2, Act::DenyLock),
                acts(2, Act::TakeBack),
                acts(3, Act::DenyLock),
                mines.clone(),
            ]),
            1,
        ),
        // They differ.
        (
            then(&[
                acts(2, Act::DenyLock),
                acts(3, Act::UnlockUnsure),
                mines.clone(),
            ]),
            1,
        ),
        (
            then(&[
                acts(2, Act::UnlockUnsure),
                speaks,
                acts(3, Act::DenyLock),
                mines,
            ]),
            1,
        ),
    ] {
        let seen = runtime().block_on(case(&steps, 100_000, 20, 60));
        let stores = if Place::postgres().is_some() { 2 } else { 1 };
        assert_eq!(seen.denials, denials * stores, "{steps:?}");
    }
}

#[test]
fn the_invariants_hold_whatever_happens_in_whatever_order() {
    let cases = std::env::var("MACHINE").map_or(CASES, |count| count.parse().unwrap());
    let runtime = runtime();
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: Config::default().max_shrink_iters.min(200),
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let total = Mutex::new(Seen::default());
    for (steps, age) in directed() {
        total
            .lock()
            .unwrap()
            .add(&runtime.block_on(case(&steps, 100_000, 20, age)));
    }
    let given = (
        prop::collection::vec(step(), STEPS / 2..=STEPS),
        prop::sample::select(vec![200_u64, 2_000, 100_000]),
        prop::sample::select(vec![1_u64, 3, 20]),
        // Long-standing from the first, or after a while.
        prop::sample::select(vec![60_u64, 88, 400]),
    );
    let outcome = runner.run(&given, |(steps, fleet, budget, age)| {
        let played = runtime.block_on(async {
            let steps = steps.clone();
            tokio::spawn(async move { case(&steps, fleet, budget, age).await }).await
        });
        match played {
            Ok(seen) => {
                total.lock().unwrap().add(&seen);
                Ok(())
            }
            Err(panicked) => {
                let why = panicked.into_panic();
                let why = why.downcast_ref::<String>().cloned();
                Err(TestCaseError::fail(
                    why.unwrap_or_else(|| "it panicked, see above".to_owned()),
                ))
            }
        }
    });
    let total = total.lock().unwrap().clone();
    println!("{cases} cases: {total:?}");
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let enough = u64::from(cases) / 4;
    for (what, count) in [
        ("automated actions", total.automated),
        ("undone", total.undone),
        ("unlocks", total.unlocks),
        ("refusals", total.refusals),
        ("deaths", total.deaths),
        ("queries", total.queries),
    ] {
        assert!(count >= enough, "too few to say anything: {what}: {count}");
    }
    assert!(total.denials > 0, "nobody was denied");
    assert!(total.copies > 0, "no copy was refused");
    assert_eq!(
        total.alone.len(),
        8,
        "each safety alone kept something back: {:?}",
        total.alone
    );
}
