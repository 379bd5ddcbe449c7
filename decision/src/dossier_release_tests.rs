//! The last look before an action leaves: facts, rules, targets, the notice, and what came into force meanwhile.

use super::rulings_tests::{ONE, carry_out, undo_of};
use super::tests::{World, ann, facts, mining, minute};
use super::*;
use crate::{
    account::{Cents, Droplet, Invoice, InvoiceState, Known},
    action::{Outcome, Parcel},
};

const T0: Time = Time::from_unix_ms(1_559_148_180_000);

#[test]
fn a_step_is_released_only_while_the_rules_permit_it() {
    // Five droplets of a new account whose payment failed.
    let burst = |failed: bool, at: u64| {
        let mut known = facts(minute(at));
        let droplets = known.droplets.as_mut().unwrap();
        for n in 1..=5 {
            let droplet = Droplet {
                created_at: T0,
                vcpus: 2,
            };
            droplets
                .value
                .insert(format!("d{n}").try_into().unwrap(), droplet);
        }
        let payments = &mut known.payments.as_mut().unwrap().value;
        payments.settled = Cents(if failed { 0 } else { 5_000 });
        payments.last_invoice = Some(Invoice {
            amount: Cents(5_000),
            due: T0.before(crate::time::Span::hours(1)),
            state: if failed {
                InvoiceState::Failed
            } else {
                InvoiceState::Paid
            },
        });
        known.run_rate = Some(Known {
            value: Cents(1_000_000),
            as_of: minute(at),
        });
        known
    };
    for failed in [true, false] {
        let mut world = World::new();
        world.dossier.inform(burst(true, 1), minute(1)).unwrap();
        for n in 1..=5 {
            let sighting = Sighting {
                droplet: format!("d{n}").try_into().unwrap(),
                ..mining(0, 40)
            };
            world.dossier.observe(sighting, &world.settings.clone());
        }
        world.decide(40);
        for step in [Step::Notify, Step::Throttle] {
            let key = world.key(step, false);
            let state = world.release_with(&key, Some(Ok(burst(true, 41))), 41);
            assert_eq!(state, State::Released { at: minute(41) });
            world.learn(&key, Outcome::Done, 41);
        }
        world.decide(42);
        let key = world.key(Step::PowerDown, false);
        assert_eq!(world.state(&key), State::Planned);
        match world.release_with(&key, Some(Ok(burst(failed, 43))), 43) {
            State::Released { .. } if failed => {}
            State::Withheld { why, .. } if !failed => {
                assert_eq!(why, "no rule permits to power_down now");
            }
            state => panic!("{failed}: {state:?}"),
        }
    }
}

#[test]
fn what_the_directory_no_longer_knows_is_unknown_at_once() {
    let mut world = World::throttling();
    world.dossier.inform(facts(minute(21)), minute(21)).unwrap();
    let mut lacks = facts(minute(21));
    lacks.run_rate = None;
    let key = world.key(Step::Throttle, false);
    let state = world.release_with(&key, Some(Ok(lacks)), 21);
    assert!(
        matches!(&state, State::Withheld { why, .. } if why.contains("unknown_standing (run_rate")),
        "{state:?}"
    );
}

#[test]
fn a_step_on_a_droplet_that_no_longer_mines_is_withheld() {
    let mut world = World::throttling();
    let other = Sighting {
        droplet: "d2".try_into().unwrap(),
        ..mining(20, 21)
    };
    let quiet = Sighting {
        level: davy_evidence::Level::Quiet,
        ..mining(20, 21)
    };
    for sighting in [other, quiet] {
        world.dossier.observe(sighting, &world.settings.clone());
    }
    let mut both = facts(minute(21));
    let droplet = Droplet {
        created_at: T0,
        vcpus: 2,
    };
    (both.droplets.as_mut().unwrap().value).insert("d2".try_into().unwrap(), droplet);
    let key = world.key(Step::Throttle, false);
    let state = world.release_with(&key, Some(Ok(both)), 21);
    let why = "droplet d1 does not mine now".to_owned();
    assert_eq!(
        state,
        State::Withheld {
            at: minute(21),
            why
        }
    );
}

#[test]
fn nobody_is_acted_on_who_was_not_told() {
    let leaves = |world: &World| {
        let errands = world.dossier.errands(&world.fleet, minute(21));
        let throttle = Parcel::Action(world.key(Step::Throttle, false));
        errands.contains(&Errand::Release {
            parcel: throttle,
            with_facts: true,
        })
    };
    let mut world = World::planned();
    assert!(!leaves(&world), "the notice goes first");
    let notice = world.key(Step::Notify, false);
    world.release(&notice, 21);
    assert!(!leaves(&world), "and is waited for");
    let why = "no such customer".to_owned();
    world.learn(&notice, Outcome::Refused { why }, 21);
    assert!(leaves(&world));
    let throttle = world.key(Step::Throttle, false);
    let state = world.release(&throttle, 21);
    let why = "the customer was not told".to_owned();
    assert_eq!(
        state,
        State::Withheld {
            at: minute(21),
            why
        }
    );
}

#[test]
fn each_episode_has_a_notice_of_its_own() {
    let (mut world, throttle) = World::throttled();
    let day = 24 * 60 + 60;
    world.tick(day);
    carry_out(&mut world, &undo_of(&throttle), day);
    let settings = world.settings.clone();
    (world.dossier)
        .inform(facts(minute(day)), minute(day))
        .unwrap();
    world.dossier.observe(mining(day, day + 20), &settings);
    world.decide(day + 20);
    for step in [Step::Notify, Step::Throttle] {
        let key = Key {
            episode: 2,
            ..world.key(step, false)
        };
        assert_eq!(world.state(&key), State::Planned, "{step}");
    }
}

#[test]
fn what_a_person_did_already_is_not_done_by_automation_too() {
    let mut world = World::throttling();
    let reason = ONE.to_owned().try_into().unwrap();
    let World {
        dossier, settings, ..
    } = &mut world;
    dossier
        .throttle(&ann(), &reason, settings, minute(21))
        .unwrap();
    let key = world.key(Step::Throttle, false);
    let state = world.release(&key, 21);
    assert!(
        matches!(&state, State::Withheld { why, .. } if why.contains("a person")),
        "{state:?}"
    );
}

#[test]
fn what_was_in_doubt_is_undone_if_any_safety_came_into_force_meanwhile() {
    type Change = fn(&mut World);
    let changes: [(&str, Change); 2] = [
        ("was stopped", |world| {
            world.fleet.stop = Some(crate::fleet::Stop {
                since: T0,
                by: "ann".to_owned(),
                why: "a drill".to_owned(),
            });
        }),
        ("not enough is known", |world| {
            world
                .dossier
                .fetch_failed("no answer".to_owned(), minute(22));
        }),
    ];
    for (words, change) in changes {
        let mut world = World::throttling();
        let key = world.key(Step::Throttle, false);
        world.release(&key, 21);
        change(&mut world);
        world.learn(&key, Outcome::Done, 23);
        let undo = world.dossier.action(&undo_of(&key)).unwrap();
        assert!(undo.statement.contains(words), "{}", undo.statement);
    }
    // Its own part of the budget is none.
    let mut world = World::throttling();
    world.settings.budget_per_hour = 1;
    let key = world.key(Step::Throttle, false);
    world.release(&key, 21);
    world.learn(&key, Outcome::Done, 23);
    assert!(world.dossier.action(&undo_of(&key)).is_err());
}

#[test]
fn what_a_clock_ahead_said_does_not_hide_what_is_said_after_it() {
    let mut world = World::new();
    let mut ahead = facts(minute(3));
    ahead.high_cpu_allowed = Some(Known {
        value: false,
        as_of: minute(3),
    });
    world.dossier.inform(ahead, minute(0)).unwrap();
    let mut right = facts(minute(1));
    right.high_cpu_allowed = Some(Known {
        value: true,
        as_of: minute(1),
    });
    world.dossier.inform(right, minute(1)).unwrap();
    assert!(
        world
            .dossier
            .facts
            .high_cpu_allowed
            .is_some_and(|known| known.value)
    );
}
