//! What people deny is carried out as their own, whatever became of automation's step; and whoever wrote hears what came of it.

use super::rulings_tests::{
    FOUR, ONE, THREE, by_people, carry_out, denies, locked, person, says, undo_of,
};
use super::tests::{World, ann, facts, known, mining, minute};
use super::*;
use crate::{
    action::{Outcome, Recipient},
    text::Reason,
};

fn both_deny(world: &mut World, step: Step, at: u64) {
    denies(world, "ann", step, ONE, at).unwrap();
    denies(world, "ben", step, THREE, at).unwrap();
}

fn to_customer(world: &World) -> Vec<&str> {
    let letters = world.dossier.letters.iter();
    letters
        .filter(|letter| letter.to == Recipient::Customer)
        .map(|letter| letter.text.as_str())
        .collect()
}

fn action<'a>(world: &'a World, key: &Key) -> &'a Action {
    let mut actions = world.dossier.actions.iter();
    actions.find(|action| action.key == *key).unwrap()
}

/// The provider's flag, as the directory says it at `at`.
fn flagged(world: &mut World, at: u64) {
    let told = Facts {
        high_cpu_allowed: known(true, minute(at)),
        ..facts(minute(at))
    };
    world.dossier.inform(told, minute(at)).unwrap();
}

/// Automation's throttle has left, and nobody knows whether it arrived.
fn in_doubt() -> (World, Key) {
    let mut world = World::throttling();
    let throttle = world.key(Step::Throttle, false);
    world.release(&throttle, 21);
    world.learn(&throttle, Outcome::Doubtful, 21);
    (world, throttle)
}

#[test]
fn people_do_not_rest_on_a_step_that_may_never_have_arrived() {
    let (mut world, throttle) = in_doubt();
    both_deny(&mut world, Step::Throttle, 22);
    let own = by_people(&world, Step::Throttle);
    assert_eq!(world.state(&own), State::Planned);
    assert!(to_customer(&world).is_empty(), "the step itself tells it");
    carry_out(&mut world, &own, 22);
    // The other one had not arrived: theirs is enough.
    world.learn(&throttle, Outcome::NeverSeen, 23);
    let withheld = world.release(&throttle, 23);
    assert!(matches!(withheld, State::Withheld { .. }), "{withheld:?}");
    assert_eq!(world.dossier.in_effect(Step::Throttle).unwrap().key, own);
}

#[test]
fn what_people_hold_is_not_lifted_by_the_end_of_what_automation_did() {
    let (mut world, throttle) = in_doubt();
    both_deny(&mut world, Step::Throttle, 22);
    let own = by_people(&world, Step::Throttle);
    carry_out(&mut world, &own, 22);
    // A flag that comes up meanwhile speaks against automation, and the end of its throttle comes before theirs.
    flagged(&mut world, 23);
    world.learn(&throttle, Outcome::Done, 23);
    world.tick(21 + 1_440);
    let undoing = |world: &World| {
        let mut actions = world.dossier.actions.iter();
        actions.any(|held| held.key.undo && held.key.step == Step::Throttle)
    };
    assert!(!undoing(&world));
    let settings = world.settings.clone();
    (world.dossier).allow_high_cpu(&person("cid"), &settings, minute(21 + 1_440));
    assert!(!undoing(&world));
    // A person who lifts it lifts both.
    let settings = world.settings.clone();
    world
        .dossier
        .unthrottle(&person("cid"), &settings, minute(21 + 1_441))
        .unwrap();
    assert_eq!(world.state(&undo_of(&own)), State::Planned);
    assert_eq!(world.state(&undo_of(&throttle)), State::Planned);
}

#[test]
fn what_people_were_refused_holds_nothing_up() {
    let (mut world, throttle) = in_doubt();
    both_deny(&mut world, Step::Throttle, 22);
    let own = by_people(&world, Step::Throttle);
    world.release(&own, 22);
    flagged(&mut world, 23);
    world.learn(&throttle, Outcome::Done, 23);
    let why = "no such droplet".to_owned();
    world.learn(&own, Outcome::Refused { why }, 24);
    let page = world.dossier.letters.last().unwrap();
    assert_eq!(page.to, Recipient::OnCall);
    assert!(page.text.contains("refused what people decided"));
    world.tick(24);
    assert_eq!(world.state(&undo_of(&throttle)), State::Planned);
}

#[test]
fn what_stands_already_is_the_peoples_own_and_no_safety_lifts_it() {
    let (mut world, throttle) = World::throttled();
    both_deny(&mut world, Step::Throttle, 30);
    assert_eq!(world.dossier.actions.len(), 2, "notice and throttle");
    let person = "ann, ben".to_owned();
    assert_eq!(action(&world, &throttle).by, By::Person { person });
    assert_eq!(to_customer(&world).len(), 1);
    flagged(&mut world, 31);
    world.tick(31);
    assert_eq!(world.dossier.actions.len(), 2, "nothing is undone");
}

#[test]
fn a_denial_is_for_every_droplet_that_mined() {
    let mut told = facts(minute(22));
    let inventory = &mut told.droplets.as_mut().unwrap().value;
    let droplet = *inventory.values().next().unwrap();
    inventory.insert("d2".try_into().unwrap(), droplet);
    let second = Sighting {
        droplet: "d2".try_into().unwrap(),
        ..mining(22, 29)
    };
    for people in [2, 1] {
        let (mut world, throttle) = World::throttled();
        world.dossier.inform(told.clone(), minute(22)).unwrap();
        let settings = world.settings.clone();
        world.dossier.observe(second.clone(), &settings);
        if people == 2 {
            both_deny(&mut world, Step::Throttle, 30);
        } else {
            let reason = Reason::try_from(ONE.to_owned()).unwrap();
            (world
                .dossier
                .throttle(&ann(), &reason, &settings, minute(30)))
            .unwrap();
            (world
                .dossier
                .throttle(&ann(), &reason, &settings, minute(30)))
            .unwrap_err();
        }
        let own = by_people(&world, Step::Throttle);
        let names: Vec<_> = action(&world, &own)
            .targets
            .iter()
            .map(DropletId::as_str)
            .collect();
        assert_eq!(names, ["d1", "d2"]);
        assert!(action(&world, &own).statement.contains("d1, d2"));
        carry_out(&mut world, &own, 30);
        // Renewed, both last.
        world
            .dossier
            .renew(
                &ann(),
                &Reason::try_from(FOUR.to_owned()).unwrap(),
                &settings,
                minute(1_000),
            )
            .unwrap();
        for key in [&own, &throttle] {
            let ends_at = action(&world, key).ends_at;
            assert_eq!(ends_at, Some(minute(1_000 + 1_440)));
        }
    }
}

#[test]
fn whoever_wrote_hears_of_an_unlock_though_nothing_that_it_undoes_had_arrived() {
    for wrote in [false, true] {
        let (mut world, throttle) = in_doubt();
        if wrote {
            says(&mut world, "m1", 22);
        }
        world.unlock(true, 23);
        assert!(to_customer(&world).is_empty(), "the undoing tells it");
        world.learn(&throttle, Outcome::NeverSeen, 24);
        let undone = world.release(&undo_of(&throttle), 24);
        assert!(matches!(undone, State::Withheld { .. }), "{undone:?}");
        // The notice had arrived, and is taken back by a letter of its own.
        assert!(to_customer(&world).is_empty());
        let notice = undo_of(&world.key(Step::Notify, false));
        assert_eq!(world.state(&notice), State::Planned);
    }
    // Without a notice to take back it is a letter.
    let mut world = World::new();
    world.dossier.observe(mining(0, 20), &world.settings);
    flagged(&mut world, 20);
    world.decide(20);
    let settings = world.settings.clone();
    let reason = Reason::try_from(ONE.to_owned()).unwrap();
    (world
        .dossier
        .throttle(&ann(), &reason, &settings, minute(21)))
    .unwrap();
    let own = by_people(&world, Step::Throttle);
    world.release(&own, 21);
    says(&mut world, "m1", 22);
    world.learn(&own, Outcome::Doubtful, 23);
    world.unlock(true, 24);
    world.learn(&own, Outcome::NeverSeen, 25);
    assert!(to_customer(&world).is_empty());
    world.release(&undo_of(&own), 25);
    let told = to_customer(&world);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("A person looked at your case"), "{told:?}");
}

#[test]
fn what_was_refused_and_came_to_be_done_after_an_unlock_is_undone() {
    for unlocked in [false, true] {
        let (mut world, _) = World::throttled();
        both_deny(&mut world, Step::Lock, 30);
        let lock = by_people(&world, Step::Lock);
        world.release(&lock, 31);
        let why = "busy".to_owned();
        world.learn(&lock, Outcome::Refused { why }, 31);
        if unlocked {
            world.unlock(true, 32);
        }
        let parcel = crate::action::Parcel::Action(lock.clone());
        let (fleet, settings) = (world.fleet.clone(), world.settings.clone());
        let told = (&fleet, &settings);
        (world.dossier)
            .learn(&parcel, minute(31), Outcome::Done, told, minute(33))
            .unwrap();
        let undone = (world.dossier.actions.iter()).any(|held| held.key == undo_of(&lock));
        assert_eq!(undone, unlocked);
    }
}

#[test]
fn somebody_is_reminded_of_a_second_review_once() {
    let (mut world, _) = locked();
    says(&mut world, "m1", 40);
    world
        .dossier
        .answer(&person("dot"), "We look at it.", minute(41))
        .unwrap();
    denies(&mut world, "cid", Step::Lock, FOUR, 42).unwrap();
    let pages = |world: &World| {
        let letters = world.dossier.letters.iter();
        letters
            .filter(|letter| letter.text.contains("second review"))
            .count()
    };
    let due = minute(42 + 120);
    world.tick(42 + 119);
    assert_eq!(pages(&world), 0);
    let next = world
        .dossier
        .due(&world.fleet, &world.settings, minute(42 + 119));
    assert!(next.is_some_and(|at| at <= due));
    world.tick(42 + 120);
    world.tick(42 + 121);
    assert_eq!(pages(&world), 1);
}

#[test]
fn whoever_is_told_of_an_end_is_told_of_another_one() {
    let (mut world, throttle) = World::throttled();
    let settings = world.settings.clone();
    let reason = Reason::try_from(FOUR.to_owned()).unwrap();
    (world
        .dossier
        .renew(&ann(), &reason, &settings, minute(1_000)))
    .unwrap();
    let told = to_customer(&world);
    let end = minute(1_000 + 1_440).to_string();
    assert!(told[0].contains(&end) && told[0].contains(FOUR), "{told:?}");
    // One that is lifted before the letter leaves is not told of.
    world
        .dossier
        .unthrottle(&ann(), &settings, minute(1_001))
        .unwrap();
    let number = world.dossier.letters[0].number;
    let parcel = crate::action::Parcel::Letter {
        account: world.dossier.account.clone(),
        number,
    };
    let World {
        dossier,
        fleet,
        policies,
        settings,
    } = &mut world;
    (dossier.release(&parcel, None, (fleet, policies), settings, minute(1_001))).unwrap();
    assert!(matches!(
        world.dossier.letters[0].state,
        State::Withheld { .. }
    ));
    assert_eq!(world.state(&undo_of(&throttle)), State::Planned);
}

#[test]
fn an_end_that_could_not_be_asked_for_is_not_asked_for_after_a_renewal() {
    let (mut world, throttle) = World::throttled();
    world.tick(20 + 1_440);
    let undo = undo_of(&throttle);
    world.release(&undo, 20 + 1_440);
    let why = "busy".to_owned();
    world.learn(&undo, Outcome::Refused { why }, 20 + 1_440);
    let settings = world.settings.clone();
    let reason = Reason::try_from(FOUR.to_owned()).unwrap();
    (world
        .dossier
        .renew(&ann(), &reason, &settings, minute(20 + 1_441)))
    .unwrap();
    world.tick(20 + 1_480);
    assert!(matches!(world.state(&undo), State::Withheld { .. }));
    world.tick(20 + 1_441 + 1_440);
    assert_eq!(world.state(&undo), State::Planned);
}

#[test]
fn a_word_that_is_taken_back_is_told_and_the_hold_of_it_stays() {
    let (mut world, throttle) = World::throttled();
    let settings = world.settings.clone();
    (world.dossier).allow_high_cpu(&ann(), &settings, minute(30));
    carry_out(&mut world, &undo_of(&throttle), 30);
    (world.dossier)
        .disallow_high_cpu(&person("ben"), minute(40))
        .unwrap();
    let told = to_customer(&world);
    assert!(told[0].contains("took back that your account"), "{told:?}");
    let looked = world
        .dossier
        .safeties(&world.fleet, &settings, Span::days(1), &[], minute(41));
    let held = looked
        .iter()
        .find(|looked| looked.safety == Safety::UnlockHold);
    assert!(held.unwrap().in_force);
    // So of an unlock that is taken back.
    let (mut world, _) = World::throttled();
    world.unlock(true, 30);
    (world
        .dossier
        .take_back(&person("ben"), &settings, minute(31)))
    .unwrap();
    let told = to_customer(&world);
    assert!(told[0].contains("took back that your account"), "{told:?}");
}

#[test]
fn a_hold_set_by_a_clock_that_went_back_lasts_its_time_by_the_right_one() {
    let (mut world, _) = World::throttled();
    let day = 24 * 60;
    world.tick(100 * day);
    world.unlock(false, 30);
    let until = world.dossier.holds.last().unwrap().until;
    assert_eq!(until, minute(130 * day));
}

#[test]
fn automation_that_has_not_left_yet_is_taken_back_too() {
    let mut world = World::throttling();
    let throttle = world.key(Step::Throttle, false);
    let settings = world.settings.clone();
    (world
        .dossier
        .take_back(&person("ben"), &settings, minute(21)))
    .unwrap();
    assert!(matches!(world.state(&throttle), State::Withheld { .. }));
}

#[test]
fn what_is_on_nobodys_droplets_any_more_ends() {
    let (mut world, throttle) = World::throttled();
    let mut told = facts(minute(30));
    told.droplets = known(std::collections::BTreeMap::default(), minute(30));
    world.dossier.inform(told, minute(30)).unwrap();
    let due = world.dossier.due(&world.fleet, &world.settings, minute(30));
    assert_eq!(due, Some(minute(30)));
    world.tick(30);
    assert_eq!(world.state(&undo_of(&throttle)), State::Planned);
}

#[test]
fn a_customer_with_an_answer_and_no_decision_is_not_forgotten() {
    let (mut world, _) = World::throttled();
    says(&mut world, "m1", 40);
    (world.dossier)
        .answer(&person("cid"), "I look at it now.", minute(45))
        .unwrap();
    let pages = |world: &World| {
        let letters = world.dossier.letters.iter();
        letters
            .filter(|letter| letter.text.contains("has an answer, and no decision"))
            .count()
    };
    for day in 1..4 {
        world.tick(40 + day * 1_440 - 1);
        assert_eq!(pages(&world), usize::try_from(day).unwrap() - 1);
        world.tick(40 + day * 1_440);
        assert_eq!(pages(&world), usize::try_from(day).unwrap());
    }
    let rank = world.dossier.case.as_ref().unwrap().rank(false);
    assert_eq!(rank.waiting_since, minute(40));
    world.unlock(true, 5_000);
    world.tick(9_000);
    assert_eq!(pages(&world), 3);
}

#[test]
fn only_a_throttle_that_is_known_to_hold_is_a_milder_step_that_was_taken() {
    let (mut world, throttle) = in_doubt();
    let throttled = |world: &World| {
        let (fleet, settings) = (&world.fleet, &world.settings);
        let input = world.dossier.input(fleet, "p", settings, minute(22));
        input.unwrap().throttled
    };
    assert!(!throttled(&world));
    world.learn(&throttle, Outcome::Done, 22);
    assert!(throttled(&world));
}

#[test]
fn facts_that_were_pushed_do_not_stand_in_for_those_that_are_asked_for() {
    let mut world = World::new();
    world.dossier.observe(mining(0, 20), &world.settings);
    world
        .dossier
        .fetch_failed("it is down".to_owned(), minute(21));
    world.dossier.told(facts(minute(22)), minute(22)).unwrap();
    assert!(world.dossier.fetch_failed.is_some());
    assert!(world.dossier.wants_facts(&world.settings, minute(22)));
}
