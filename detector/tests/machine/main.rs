//! The deciding half as a state machine: what happens in any order, on both stores, with two replicas, deaths, and an account directory
//! and a control plane that fail; after every step all invariants of the design hold, by their numbers, and SQLite and PostgreSQL hold
//! the same to the byte.
//!
//! | file | what |
//! |---|---|
//! | `step` | what can happen |
//! | `world` | one store, two engines, the provider's side, and what happens between two steps of an engine |
//! | `people` | what people do |
//! | `judge` | what must always be so |
//!
//! The same cases each time; `MACHINE=n` makes more of them. Where there is no PostgreSQL its half is skipped, and says so.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

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

/// Accounts as they are at first: a new one, one whose payment failed and whose droplets came in a burst, one a little older.
async fn begin(world: &World) {
    let days = |days: u64| Time::from_unix_ms(world::START - days * 86_400_000).to_string();
    let failed =
        json!({"settled": 0, "last_invoice": {"amount": 2_000, "due": days(1), "state": "failed"}});
    for (number, created, payments) in [
        (0, days(5), json!({"settled": 0})),
        (1, days(3), failed),
        (2, days(60), json!({"settled": 0})),
    ] {
        let name = ACCOUNTS[number];
        world.tell("account", json!({"account": name, "created_at": created, "run_rate": 5_000, "payments": payments}));
        let count = if number == 1 { 5 } else { 1 };
        create(world, number, count);
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

/// Sensors say something of some accounts, window after window.
async fn seen(world: &World, accounts: u8, says: Says, minutes: u64) {
    let begin = world.now();
    let mut droplets = Vec::new();
    for number in (0..ACCOUNTS.len()).filter(|number| accounts & (1 << number) != 0) {
        let count = world.state().created[number];
        droplets.extend((0..count).map(|n| format!("{}-{n}", ACCOUNTS[number])));
    }
    let (level, classes) = match says {
        Says::Mining => ("mining", 2),
        Says::OneClass => ("mining", 1),
        Says::Suspect => ("suspect", 1),
        Says::Load => ("quiet", 0),
    };
    let held = json!({"fp_rounding": classes > 0, "register_randomness": classes > 1});
    world.tell("evidence", json!({"droplets": droplets, "level": level, "classes": held, "for_s": minutes * 60, "window_s": 60}));
    for window in 0..minutes {
        let from = begin + window * WINDOW;
        world.pass_to(from + WINDOW);
        let sightings = droplets.iter().map(|droplet| Sighting {
            droplet: DropletId::try_from(droplet.as_str()).unwrap(),
            host: "host-1".to_owned(),
            from: Time::from_unix_ms(from),
            to: Time::from_unix_ms(from + WINDOW),
            level: match level {
                "mining" => Level::Mining,
                "suspect" => Level::Suspect,
                _ => Level::Quiet,
            },
            classes: Classes {
                fp_rounding: classes > 0,
                register_randomness: classes > 1,
                pmu: false,
            },
            cpu_percent: 400,
            neighbours_wait_percent: None,
            reasons: vec!["as the machine has it".to_owned()],
        });
        let engine = world.replica(0);
        let attribution = Attribution::new(engine.desk.clone(), Arc::clone(&engine.directory));
        attribution.take(sightings.collect()).await.unwrap();
        drop((attribution, engine));
        world.attend().await;
    }
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
            minutes,
        } => seen(world, *accounts, *says, *minutes).await,
        Step::Wait(minutes) => wait(world, *minutes).await,
        Step::Told { account, which } => {
            let now = Time::from_unix_ms(world.now()).to_string();
            let mut line = step::facts(*which, &now);
            line["account"] = ACCOUNTS[*account].into();
            world.tell("account", line);
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
            copied,
        } => {
            let (account, who) = (account(*number), |n: usize| Person(PEOPLE[n].to_owned()));
            let second = if *copied {
                Act::DenyAgain
            } else {
                Act::DenyLock
            };
            for (by, act) in [
                (*one, Act::TakeOver),
                (*one, Act::DenyPowerDown),
                (*other, second),
            ] {
                world.person(&account, &who(by), act).await;
            }
        }
        Step::Stop => world.stop(true).await,
        Step::Resume => world.stop(false).await,
        Step::Next {
            order,
            while_facts,
            while_order,
        } => {
            let mut state = world.state();
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
async fn case(steps: &[Step], fleet: u64, budget_per_hour: u64) -> Seen {
    let settings = Settings {
        budget_per_hour,
        ..Settings::default()
    };
    let places = [Some(Place::sqlite()), Place::postgres()];
    let mut worlds = Vec::new();
    for place in places.into_iter().flatten() {
        let world = World::new(place, settings.clone(), fleet).await;
        begin(&world).await;
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
    for world in &worlds {
        world.settle().await;
    }
    let mut all = Seen::default();
    for world in &worlds {
        all.add(&world.state().book.seen);
    }
    all
}

#[test]
fn the_invariants_hold_whatever_happens_in_whatever_order() {
    let cases = std::env::var("MACHINE").map_or(CASES, |count| count.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let total = Mutex::new(Seen::default());
    let given = (
        prop::collection::vec(step(), STEPS / 2..=STEPS),
        prop::sample::select(vec![200_u64, 2_000, 100_000]),
        prop::sample::select(vec![1_u64, 3, 20]),
    );
    let outcome = runner.run(&given, |(steps, fleet, budget)| {
        let played = runtime.block_on(async {
            let steps = steps.clone();
            tokio::spawn(async move { case(&steps, fleet, budget).await }).await
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
    let total = *total.lock().unwrap();
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
}
