//! The protocol, explored whole within bounds; and that the checker notices when it is broken on purpose.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use davy_decision::{policy::Step, settings::Settings, time::Span};
use davy_test_model::{Bend, Bounds, Config, Protocol, say};
use stateright::{Checker, Model};

/// Most states of one exploration: a bound that is reached is a failure, not a pass.
const STATES_MAX: usize = 20_000_000;

/// Each exploration has the machine to itself: it takes two threads.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

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
        deniers: 2,
        measures: vec![Step::Lock],
        copies: false,
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

/// One account; the customer writes while an order is in doubt, and the provider sets its flag.
fn in_doubt() -> Config {
    Config {
        replicas: 1,
        times: seconds(&[0, 90, 4_000]),
        bounds: Bounds {
            messages: 1,
            flags: 1,
            silences: 1,
            queries: 2,
            ..Bounds::default()
        },
        ..network()
    }
}

/// One account; the control plane refuses, a throttle or its undoing. What it refused to undo is asked for again after a while, and
/// when a person asks for it.
fn refusals() -> Config {
    Config {
        replicas: 1,
        times: seconds(&[0, 20, 1_000]),
        bounds: Bounds {
            unlocks: 1,
            take_backs: 1,
            silences: 1,
            queries: 1,
            refusals: 2,
            ..Bounds::default()
        },
        ..network()
    }
}

/// One account; notices go the way of any order.
fn notices() -> Config {
    Config {
        notices: true,
        replicas: 1,
        times: seconds(&[0, 90]),
        bounds: Bounds {
            messages: 1,
            silences: 1,
            queries: 1,
            ..Bounds::default()
        },
        ..network()
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
            evidence: 1,
            ..Bounds::default()
        },
        ..network()
    }
}

/// Two droplets whose evidence changes between a look and a commit: quiet, of one class alone, or not reported any more.
fn evidence() -> Config {
    Config {
        droplets: 2,
        prompt: true,
        times: seconds(&[0, 70, 400]),
        bounds: Bounds {
            evidence: 1,
            bad_facts: 1,
            kill_turns: 1,
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
        measures: vec![Step::Throttle, Step::Lock],
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

/// An unlock, and episodes that begin while its hold lasts and after it.
fn unlocked() -> Config {
    const DAY: u64 = 86_400;
    Config {
        times: seconds(&[0, 10 * DAY, 32 * DAY]),
        bounds: Bounds {
            messages: 1,
            unlocks: 1,
            ..Bounds::default()
        },
        ..people()
    }
}

/// What people decide, the customer writes, and the network loses: an order of people's is in doubt.
fn ruled_in_doubt() -> Config {
    Config {
        replicas: 1,
        times: seconds(&[0, 90, 8_000]),
        bounds: Bounds {
            messages: 1,
            denials: 2,
            silences: 1,
            queries: 1,
            ..Bounds::default()
        },
        ..network()
    }
}

/// What people decide while an order of automation's is in doubt, and what speaks against that one alone.
fn ruled_over_doubt() -> Config {
    Config {
        replicas: 1,
        measures: vec![Step::Throttle],
        times: seconds(&[0, 90, 4_000]),
        bounds: Bounds {
            denials: 2,
            flags: 1,
            silences: 1,
            queries: 2,
            ..Bounds::default()
        },
        ..network()
    }
}

/// What people deny with, and that a text is copied.
fn copying() -> Config {
    Config {
        copies: true,
        measures: vec![Step::Lock],
        times: seconds(&[0, 8_000]),
        ..people()
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
    // One that failed leaves nothing behind.
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let begin = Instant::now();
    let (bounds, broken) = (format!("{config:?}"), config.bend);
    let protocol = Protocol::new(config).map_err(|error| error.to_string())?;
    let mut builder = protocol.checker().threads(2).target_state_count(STATES_MAX);
    if let Some(property) = until {
        builder = builder.finish_when(stateright::HasDiscoveries::AllOf([property].into()));
    }
    let checker = builder.spawn_bfs().join();
    say(&format!(
        "EXPLORED {name}: {} states, {} distinct, depth {}, {:.1} s; {bounds}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        begin.elapsed().as_secs_f64(),
    ));
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
    if checker.state_count() >= STATES_MAX {
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

macro_rules! holds {
    ($($name:ident: $config:ident, $reachable:expr;)*) => {$(
        #[test]
        fn $name() {
            assert_holds(stringify!($config), $config(), &$reachable);
        }
    )*};
}

holds! {
    whatever_the_network_and_crashes_do: network, [
        "throttled",
        "undone",
        "a doubt resolved as done",
        "released again",
        "refused for lateness",
        "done in doubt, and undone in the end",
    ];
    whatever_is_said_while_an_order_is_in_doubt: in_doubt, [
        "throttled",
        "a doubt resolved as done",
        "released again",
        "done in doubt, and undone in the end",
    ];
    whatever_the_control_plane_refuses: refusals, [
        "throttled",
        "undone",
        "a throttle refused",
        "an undoing refused",
        "a refused undoing asked for again",
    ];
    whatever_becomes_of_notices: notices, [
        "noticed",
        "throttled",
        "a doubt resolved as done",
        "undone",
    ];
    whatever_comes_between_a_look_and_a_release: looks, [
        "throttled",
        "undone",
        "withheld for the kill switch",
        "withheld for the evidence",
    ];
    whatever_becomes_of_the_evidence: evidence, ["throttled", "withheld for the evidence"];
    whatever_two_accounts_do_to_one_budget: budget, [
        "throttled",
        "withheld for another's budget",
        "withheld for the kill switch",
    ];
    whatever_people_decide: people, [
        "throttled",
        "powered down",
        "locked",
        "undone",
        "stepped back",
        "denied by two people",
        "ruled, and at rest",
    ];
    whatever_begins_while_a_hold_lasts: unlocked, ["throttled", "powered down", "undone"];
    whatever_is_said_while_a_ruling_is_in_doubt: ruled_in_doubt, [
        "locked",
        "denied by two people",
        "stepped back",
        "a doubt resolved as done",
        "released again",
    ];
    whatever_people_rule_over_an_order_in_doubt: ruled_over_doubt, [
        "throttled",
        "denied by two people",
        "ruled, and at rest",
        "a doubt resolved as done",
        "released again",
    ];
    whatever_is_copied: copying, ["locked", "denied by two people", "a copied text refused"];
    whatever_is_taken_back: taking_back, ["throttled", "undone", "locked", "denied by two people"];
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
    old_facts_that_pass_for_fresh_ones_are_noticed: OldFactsTaken, looks, "2: no release on unknown or old facts";
    one_class_that_passes_for_two_is_noticed: OneClassTaken, evidence, "3: no release without two fresh classes";
    a_hold_that_is_forgotten_is_noticed: ForgottenHold, unlocked, "4: no release before a hold ends";
    one_person_with_two_names_is_noticed: OnePersonTwice, people, "5: two people deny";
    a_copied_text_is_noticed: CopiesTaken, copying, "5: no copied text denies";
    a_statement_that_is_lost_is_noticed: StatementLost, looks, "6: an open case and a statement";
    a_decision_that_is_not_kept_is_noticed: DecisionNotKept, looks, "6: a decision that is kept";
    a_persons_step_over_an_unanswered_word_is_noticed: WordUnheard, people, "5: no step of people's over an unanswered word";
    a_ruling_in_doubt_over_an_unanswered_word_is_noticed: DoubtUnheard, ruled_in_doubt, "5: no step of people's over an unanswered word";
    what_is_harsher_than_a_ruling_is_noticed: HarsherStands, people, "5: nothing harsher than a ruling stands";
    a_ruling_that_rests_on_doubt_is_noticed: RestsOnDoubt, ruled_over_doubt, "5: what two people rule is carried out";
    a_case_that_is_lost_is_noticed: CaseLost, looks, "6: every automated action is undone in one step";
    a_page_that_is_lost_is_noticed: PageLost, refusals, "6: an undoing that is refused pages";
    a_new_key_in_doubt_is_noticed: NewKeyInDoubt, network, "7: one effect per step, account and episode";
    two_replicas_that_release_one_plan_are_noticed: LostUpdate, network, "7: no release twice";
    an_answer_of_an_earlier_release_is_noticed: AnswersUntold, network, "7: no effect is forgotten";
    a_query_before_the_order_is_void_is_noticed: EarlyQuery, network, "7: no effect is forgotten";
    what_is_not_undone_is_noticed: NeverUndone, in_doubt, "7: what a safety speaks against is undone in the end";
    a_stale_plan_that_runs_is_noticed: StalePlanRuns, budget, "a stale plan never runs";
    a_kill_switch_that_is_ignored_is_noticed: KillSwitchIgnored, looks, "8: no more releases after the stop";
    an_order_sent_late_is_noticed: SentLate, network, "8: nothing leaves a second after the stop";
    a_budget_given_back_too_early_is_noticed: BudgetGivenBack, budget, "8: no more droplets than the budget";
    a_release_that_is_not_counted_is_noticed: BudgetNotCounted, budget, "8: no more releases than the budget";
}
