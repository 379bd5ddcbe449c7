//! The 2019 incident with sensors that falsely say `mining`: nobody is locked or turned off by automation, whichever safety is missing.
//!
//! The incident's account is 7 days old and no payment of it failed: even without any safety the worst is a throttle. So it is
//! played once more by an account that a power-down is for (two days old, a payment failed): there it is the safeties alone
//! that keep it away, each of them.

use davy_decision::{
    decide::{Input, decide},
    fleet::Fleet,
    policy::{Policies, Step},
    safety::Safety,
    settings::Settings,
    time::Time,
};
use davy_detector::replay::{self, world::World};
use serde_json::{Value, json};

/// The incident's lines, with some more at its beginning that put safeties in force.
fn incident(in_force: &[Safety]) -> Vec<Value> {
    let all = crate::scenarios();
    let (_, text) = (all.iter())
        .find(|(name, _)| name == "incident-2019-falsely-mining")
        .unwrap();
    let mut lines: Vec<Value> = (text.lines().filter(|line| !line.starts_with('#')))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for safety in in_force {
        for mut line in speak(*safety) {
            line["at"] = "2019-05-29T16:00:00Z".into();
            lines.insert(2, line);
        }
    }
    lines
}

/// The same burst and the same sensors, of an account two days old whose payment failed.
fn overdue(in_force: &[Safety]) -> Vec<Value> {
    let mut lines = incident(in_force);
    let mut first = lines.iter_mut().filter(|line| line["event"] == "account");
    let account = first.find(|line| line["credit"].is_object()).unwrap();
    account["created_at"] = "2019-05-27T16:00:00Z".into();
    account["payments"] = json!({"settled": 0, "last_invoice":
        {"amount": 2_000, "due": "2019-05-28T12:00:00Z", "state": "failed"}});
    lines
}

/// What puts a safety in force for the incident's account, last event first.
fn speak(safety: Safety) -> Vec<Value> {
    let account = |fact: &str, value: Value| {
        let mut line = json!({"event": "account", "account": "raisup"});
        line[fact] = value;
        vec![line]
    };
    let customer =
        json!({"event": "customer", "account": "raisup", "text": "we start a batch at five"});
    match safety {
        Safety::HighCpuAllowed => account("high_cpu_allowed", true.into()),
        Safety::LongStanding => account("created_at", "2015-01-01T00:00:00Z".into()),
        Safety::GoodStanding => account("vouched", "contract".into()),
        Safety::UnknownStanding => account("unknown", json!(["credit"])),
        Safety::OpenConversation => vec![customer],
        // An unlock ends the conversation that opened its case.
        Safety::UnlockHold => vec![
            json!({"event": "unlock", "account": "raisup", "by": "zoe", "outcome": "unsure"}),
            customer,
        ],
        Safety::BlastRadius => vec![json!({"event": "settings", "change": {"budget_per_hour": 0}})],
        Safety::KillSwitch => vec![json!({"event": "stop", "by": "zoe", "why": "a drill"})],
    }
}

/// Plays to the end; `between` may change the records at every event and every minute of the first day.
fn play(lines: &[Value], between: &dyn Fn(&mut World)) -> World {
    let text: Vec<_> = lines.iter().map(Value::to_string).collect();
    let events = replay::parse("incident", text.join("\n").as_bytes()).unwrap();
    let start = events[0].1.at;
    let mut world = World::new(start, Policies::shipped().unwrap(), Settings::default());
    for ((_, event), line) in events.iter().zip(lines) {
        while world.at < event.at {
            let minute = Time::from_unix_ms(world.at.unix_ms() + 60_000);
            world.advance(minute.min(event.at));
            between(&mut world);
        }
        // What people do is refused where a safety left them nothing to do.
        if let Err(why) = world.happen(event) {
            let act = line["by"].is_string();
            assert!(act, "{why}: {line}");
        }
        between(&mut world);
    }
    world
}

/// Plays the incident's own account, which is never locked or turned off.
fn play_own(lines: &[Value], between: &dyn Fn(&mut World)) -> World {
    let world = play(lines, between);
    for verb in ["lock", "power_down"] {
        assert!(!did(&world, verb), "{verb} was released");
    }
    world
}

fn did(world: &World, verb: &str) -> bool {
    (world.released.iter()).any(|order| order.automated && order.verb.name() == verb)
}

fn throttled(world: &World) -> bool {
    did(world, "throttle")
}

/// A decision on what the sensors call mining for long enough names this safety, and no other, as in force.
fn stood_alone(world: &World, safety: Safety) -> bool {
    world.decisions.iter().any(|stored| {
        let evidence = &stored.plan.evidence;
        let long = evidence.mining.as_seconds() >= 600 && evidence.targets.len() == 10;
        let mut in_force = (stored.plan.safeties.iter()).filter(|looked| looked.in_force);
        long && in_force.next().is_some_and(|one| one.safety == safety) && in_force.next().is_none()
    })
}

#[test]
fn an_overdue_account_is_turned_off_with_no_safety_in_force_and_with_any_one_not_even_throttled() {
    let without = play(&overdue(&[]), &|_| {});
    for verb in ["notify", "throttle", "power_down"] {
        assert!(
            did(&without, verb),
            "no {verb}: nothing is shown by the rest"
        );
    }
    assert!(!did(&without, "lock"));
    for safety in Safety::ALL {
        let world = play(&overdue(&[safety]), &|_| {});
        for verb in ["notify", "throttle", "power_down", "lock"] {
            assert!(!did(&world, verb), "{verb} with {safety} in force");
        }
        assert!(stood_alone(&world, safety), "{safety} did not stand alone");
    }
}

#[test]
fn with_nothing_to_speak_for_the_customer_the_worst_is_a_throttle_once() {
    let world = play_own(&incident(&[]), &|_| {});
    let throttles = (world.released.iter()).filter(|order| order.verb.name() == "throttle");
    assert_eq!(throttles.count(), 1, "and none after the unlock");
}

#[test]
fn each_safety_alone_keeps_even_the_throttle_away_before_the_customer_speaks() {
    for safety in Safety::ALL {
        let world = play_own(&incident(&[safety]), &|_| {});
        assert!(!throttled(&world), "{safety}");
        assert!(stood_alone(&world, safety), "{safety} did not stand alone");
    }
}

#[test]
fn with_each_safety_out_of_force_the_others_do() {
    for missing in Safety::ALL {
        let others: Vec<_> = (Safety::ALL.into_iter())
            .filter(|safety| *safety != missing)
            .collect();
        let world = play_own(&incident(&others), &|_| {});
        assert!(!throttled(&world), "without {missing}");
    }
}

/// Takes what puts a safety in force out of a decision's input, as if the safety did not exist.
fn take_out(safety: Safety, input: &mut Input) {
    match safety {
        Safety::HighCpuAllowed => {
            input.allowed = None;
            if let Some(known) = &mut input.facts.high_cpu_allowed {
                known.value = false;
            }
        }
        Safety::UnlockHold => input.holds.clear(),
        Safety::LongStanding => {
            let recent = Time::from_unix_ms(input.at.unix_ms() - 86_400_000);
            let times = [
                &mut input.facts.first_payment_at,
                &mut input.facts.first_droplet_at,
            ];
            for known in times.into_iter().flatten() {
                known.value = None;
            }
            if let Some(known) = &mut input.facts.created_at {
                known.value = recent;
            }
        }
        Safety::GoodStanding => {
            if let Some(known) = &mut input.facts.vouched {
                known.value = None;
            }
            if let Some(known) = &mut input.facts.payments {
                known.value.last_invoice = None;
            }
        }
        Safety::UnknownStanding => {
            input.fetch_failed = None;
            let at = input.at;
            let credit = davy_decision::account::Known {
                value: None,
                as_of: at,
            };
            input.facts.credit.get_or_insert(credit);
        }
        Safety::OpenConversation => input.conversation = None,
        Safety::BlastRadius => {
            input.fleet = Fleet {
                stop: input.fleet.stop.clone(),
                droplets: 1_000_000,
                spent: Vec::new(),
            };
            input.settings.budget_per_hour = 20;
        }
        Safety::KillSwitch => input.fleet.stop = None,
    }
}

#[test]
fn with_each_safety_taken_out_of_the_input_and_with_all_no_decision_locks_or_turns_off() {
    let policies = Policies::shipped().unwrap();
    let (mut count, mut freed) = (0, 0);
    for in_force in Safety::ALL
        .map(|safety| vec![safety])
        .into_iter()
        .chain([Safety::ALL.to_vec()])
    {
        for stored in play_own(&incident(&in_force), &|_| {}).decisions {
            for taken in Safety::ALL
                .map(|safety| vec![safety])
                .into_iter()
                .chain([Safety::ALL.to_vec()])
            {
                let mut input = stored.input.clone();
                for safety in &taken {
                    take_out(*safety, &mut input);
                }
                let plan = decide(&policies, &input);
                let acts = |step: &Step| matches!(step, Step::PowerDown | Step::Lock);
                assert!(!plan.steps.iter().any(acts), "{taken:?}: {:?}", plan.steps);
                freed += usize::from(plan.steps.contains(&Step::Throttle));
                count += 1;
            }
        }
    }
    println!("{count} decisions with a safety taken out; {freed} of them plan a throttle then");
    assert!(
        count > 100 && freed > 0,
        "taking a safety out changes something"
    );
}

#[test]
fn with_the_records_of_people_wiped_every_minute_nobody_is_locked_or_turned_off() {
    let wiped = play_own(&incident(&[]), &|world| {
        for dossier in world.dossiers.values_mut() {
            dossier.holds.clear();
            (dossier.conversation, dossier.allowed) = (None, None);
        }
    });
    assert!(throttled(&wiped));
}
