//! The protocol, explored whole within bounds; and that the checker notices when it is broken on purpose.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use davy_decision::{settings::Settings, time::Span};
use davy_test_model::{Bend, Bounds, Config, Protocol};
use stateright::{Checker, Model};

/// Most states of one exploration: a bound that is reached is a failure, not a pass.
const STATES_MAX: usize = 20_000_000;
/// Longest exploration; to be cut off is a failure as well.
const TIME_MAX: Duration = Duration::from_secs(600);

fn seconds(all: &[u64]) -> Vec<Span> {
    all.iter().copied().map(Span::seconds).collect()
}

/// One account; everything that a network and crashes can do, with a person who unlocks.
fn network() -> Config {
    Config {
        accounts: 1,
        droplets: 1,
        fleet: 1_000,
        notices: false,
        prompt: false,
        replicas: 2,
        times: seconds(&[0, 20, 90]),
        bounds: Bounds {
            unlocks: 1,
            crashes: 1,
            silences: 1,
            queries: 2,
            kill_turns: 1,
            ..Bounds::default()
        },
        settings: Settings::default(),
        bend: None,
    }
}

/// One account; what may speak for it between a replica's look and its commit. Orders are delivered at once.
fn looks() -> Config {
    Config {
        prompt: true,
        times: seconds(&[0, 70]),
        bounds: Bounds {
            messages: 1,
            unlocks: 1,
            flags: 1,
            bad_facts: 1,
            kill_turns: 1,
            quiets: 1,
            ..Bounds::default()
        },
        ..network()
    }
}

/// Two accounts that share a budget for one, and the kill switch.
fn budget() -> Config {
    Config {
        accounts: 2,
        fleet: 100,
        prompt: true,
        times: seconds(&[0, 61, 4_000]),
        bounds: Bounds {
            unlocks: 1,
            kill_turns: 1,
            ..Bounds::default()
        },
        settings: Settings {
            budget_per_hour: 1,
            ..Settings::default()
        },
        ..network()
    }
}

/// What people decide, over days; orders are delivered at once.
fn people() -> Config {
    const DAY: u64 = 86_400;
    Config {
        droplets: 5,
        prompt: true,
        replicas: 1,
        times: seconds(&[0, 8_000, 32 * DAY]),
        bounds: Bounds {
            messages: 1,
            unlocks: 1,
            denials: 2,
            ..Bounds::default()
        },
        ..network()
    }
}

/// A denial that is taken back; orders are delivered at once.
fn taking_back() -> Config {
    Config {
        times: seconds(&[0, 8_000]),
        bounds: Bounds {
            messages: 1,
            denials: 2,
            take_backs: 1,
            ..Bounds::default()
        },
        ..people()
    }
}

/// Explores; `until`: only until that property is found broken.
fn explore(
    name: &str,
    config: Config,
    until: Option<&'static str>,
) -> Result<BTreeSet<String>, String> {
    let begin = Instant::now();
    let bounds = format!("{:?} at {:?}", config.bounds, config.times);
    let broken = config.bend;
    let protocol = Protocol::new(config).map_err(|error| error.to_string())?;
    let mut builder = protocol.checker().threads(2).target_state_count(STATES_MAX);
    if let Some(property) = until {
        builder = builder.finish_when(stateright::HasDiscoveries::AllOf([property].into()));
    }
    let checker = builder.timeout(TIME_MAX).spawn_bfs().join();
    println!(
        "{name}: {} states, {} distinct, depth {}, {:.1} s; {bounds}; broken: {broken:?}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        begin.elapsed().as_secs_f64(),
    );
    let mut reached = BTreeSet::new();
    let mut failed = BTreeSet::new();
    for (property, path) in checker.discoveries() {
        if checker.discovery_classification(property).to_string() == "counterexample" {
            if broken.is_none() {
                println!("broken: {property}");
                for (_, action) in path.into_vec() {
                    println!("  {action:?}");
                }
            }
            failed.insert(property.to_owned());
        } else {
            reached.insert(property.to_owned());
        }
    }
    if broken.is_some() {
        return Ok(failed);
    }
    if checker.state_count() >= STATES_MAX || begin.elapsed() >= TIME_MAX {
        return Err(format!("{name}: not all states were explored"));
    }
    match failed.is_empty() {
        true => Ok(reached),
        false => Err(format!("{name}: {failed:?}")),
    }
}

fn assert_holds(name: &str, config: Config, reachable: &[&str]) {
    let reached = explore(name, config, None).unwrap();
    for property in reachable {
        assert!(
            reached.contains(*property),
            "{name}: {property}: {reached:?}"
        );
    }
}

#[test]
fn whatever_the_network_and_crashes_do() {
    assert_holds(
        "network",
        network(),
        &[
            "throttled",
            "undone",
            "a doubt resolved as done",
            "released again",
            "refused for lateness",
        ],
    );
}

#[test]
fn whatever_comes_between_a_look_and_a_release() {
    assert_holds(
        "looks",
        looks(),
        &["throttled", "undone", "withheld for the kill switch"],
    );
}

#[test]
fn whatever_two_accounts_do_to_one_budget() {
    assert_holds(
        "budget",
        budget(),
        &[
            "throttled",
            "withheld for another's budget",
            "withheld for the kill switch",
        ],
    );
}

#[test]
fn whatever_people_decide() {
    assert_holds(
        "people",
        people(),
        &[
            "throttled",
            "powered down",
            "undone",
            "stepped back",
            "locked by two people",
        ],
    );
}

#[test]
fn whatever_is_taken_back() {
    assert_holds(
        "taking back",
        taking_back(),
        &["throttled", "undone", "locked by two people"],
    );
}

/// Broken so, the checker must find that property broken.
fn assert_noticed(bend: Bend, config: Config, property: &'static str) {
    let bent = Config {
        bend: Some(bend),
        ..config
    };
    let failed = explore("broken on purpose", bent, Some(property)).unwrap();
    assert!(failed.contains(property), "{bend:?}: {failed:?}");
}

macro_rules! noticed {
    ($($name:ident: $bend:ident, $config:ident, $property:literal;)*) => {$(
        #[test]
        fn $name() {
            assert_noticed(Bend::$bend, $config(), $property);
        }
    )*};
}

noticed! {
    a_release_without_a_fresh_look_is_noticed: StaleLook, looks, "1: no release with a safety in force";
    a_new_key_in_doubt_is_noticed: NewKeyInDoubt, network, "7: one effect per step, account and episode";
    two_replicas_that_release_one_plan_are_noticed: LostUpdate, network, "7: no release twice";
    a_hold_that_is_forgotten_is_noticed: ForgottenHold, people, "4: no release before a hold ends";
    a_kill_switch_that_is_ignored_is_noticed: KillSwitchIgnored, looks, "8: the kill switch stops";
    an_order_sent_late_is_noticed: SentLate, network, "8: the kill switch stops";
    an_answer_of_an_earlier_release_is_noticed: AnswersUntold, network, "7: no effect is forgotten";
    a_query_before_the_order_is_void_is_noticed: EarlyQuery, network, "7: no effect is forgotten";
    a_budget_given_back_too_early_is_noticed: BudgetGivenBack, budget, "8: no more droplets than the budget";
    one_person_with_two_names_is_noticed: OnePersonTwice, people, "5: two people deny";
}
