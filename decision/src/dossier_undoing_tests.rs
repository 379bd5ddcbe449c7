//! What was done, or is about to be, against what speaks for the customer since: safeties, their word, people's word, and the truth
//! about whose droplets they are.

use super::rulings_tests::{
    FOUR, ONE, THREE, by_people, carry_out, denies, locked, person, says, undo_of,
};
use super::tests::{World, ann, facts, known, mining, minute};
use super::*;
use crate::{
    action::{Outcome, Parcel, Recipient},
    case::Speaker,
    policy::Policies,
    text::Reason,
};

fn look(world: &World, at: u64) -> Option<Time> {
    world.dossier.due(&world.fleet, &world.settings, minute(at))
}

fn allowed(at: u64) -> Facts {
    Facts {
        high_cpu_allowed: known(true, minute(at)),
        ..facts(minute(at))
    }
}

fn never_seen(world: &mut World, key: &Key, at: u64) {
    world.learn(key, Outcome::Doubtful, at);
    world.learn(key, Outcome::NeverSeen, at + 2);
}

fn sighted(droplet: &str, from: u64, to: u64) -> Sighting {
    Sighting {
        droplet: droplet.try_into().unwrap(),
        ..mining(from, to)
    }
}

#[test]
fn time_on_a_droplet_that_never_was_the_accounts_speaks_for_it_to_the_end_of_the_episode() {
    let mut world = World::new();
    let settings = world.settings.clone();
    world.dossier.observe(sighted("x1", 0, 60), &settings);
    // Long after that one was seen last, one window of the account's own.
    world.dossier.observe(sighted("d1", 200, 201), &settings);
    world
        .dossier
        .inform(facts(minute(201)), minute(201))
        .unwrap();
    let events = world.decide(201);
    let planned = |event: &Event| matches!(event, Event::ActionPlanned { .. });
    assert!(!events.iter().any(planned), "{events:?}");
    assert!(world.dossier.case.is_some(), "people see it");
    let looked = world.dossier.safeties(
        &world.fleet,
        &settings,
        settings.facts_fresh_ms,
        &["d1".try_into().unwrap()],
        minute(201),
    );
    let unknown = looked
        .iter()
        .find(|held| held.safety == Safety::UnknownStanding);
    let why = &unknown.unwrap().why;
    assert!(why.contains("droplet x1 showed evidence"), "{why}");
}

#[test]
fn time_on_a_droplet_of_the_accounts_that_is_deleted_since_counts() {
    let mut world = World::new();
    let settings = world.settings.clone();
    let mut both = facts(minute(1));
    let inventory = &mut both.droplets.as_mut().unwrap().value;
    let droplet = *inventory.values().next().unwrap();
    inventory.insert("d0".try_into().unwrap(), droplet);
    world.dossier.observe(sighted("d0", 0, 60), &settings);
    world.dossier.inform(both, minute(61)).unwrap();
    world
        .dossier
        .inform(facts(minute(200)), minute(200))
        .unwrap();
    world.dossier.observe(sighted("d1", 200, 201), &settings);
    let events = world.decide(201);
    let planned = |event: &&Event| matches!(event, Event::ActionPlanned { .. });
    assert_eq!(events.iter().filter(planned).count(), 2, "{events:?}");
}

#[test]
fn what_automation_did_ends_with_a_safety_though_the_episode_has_ended() {
    let (mut world, throttle) = World::throttled();
    // It lasts, by a person's word; the droplet is quiet for a day.
    let day = 24 * 60;
    let settings = world.settings.clone();
    let reason = Reason::try_from(ONE.to_owned()).unwrap();
    (world.dossier.renew(&ann(), &reason, &settings, minute(day))).unwrap();
    for letter in &mut world.dossier.letters {
        letter.state = State::Done { at: minute(day) };
    }
    world.tick(day + 30);
    assert!(world.dossier.episode.is_none());
    // Facts are asked for while it is felt.
    let at = day + 40;
    assert!(world.dossier.wants_facts(&settings, minute(at)));
    world.dossier.inform(facts(minute(at)), minute(at)).unwrap();
    assert!(look(&world, at) > Some(minute(at)));
    // The provider sets the flag: that is looked at at once, though it was pushed.
    world
        .dossier
        .inform(allowed(at + 1), minute(at + 1))
        .unwrap();
    assert_eq!(look(&world, at + 1), Some(minute(at + 1)));
    world.tick(at + 1);
    let undo = undo_of(&throttle);
    let held = world.dossier.actions.iter().find(|held| held.key == undo);
    let text = &held.unwrap().statement;
    assert!(
        text.contains("since then, your account was allowed to use much CPU"),
        "{text}"
    );
    carry_out(&mut world, &undo, at + 2);
    assert!(!world.dossier.wants_facts(&settings, minute(at + 200)));
    assert_eq!(
        look(&world, at + 200),
        Some(minute(at + 200)),
        "the budget is given back"
    );
}

#[test]
fn a_persons_word_that_was_refused_is_asked_for_again_though_people_ruled_before() {
    let mut world = World::planned();
    denies(&mut world, "ann", Step::Throttle, ONE, 30).unwrap();
    denies(&mut world, "ben", Step::Throttle, THREE, 31).unwrap();
    let throttle = by_people(&world, Step::Throttle);
    carry_out(&mut world, &throttle, 31);
    assert_eq!(world.dossier.ruled_at, minute(31));
    let settings = world.settings.clone();
    world
        .dossier
        .unthrottle(&person("cid"), &settings, minute(40))
        .unwrap();
    let undo = undo_of(&throttle);
    world.release(&undo, 40);
    let refused = || Outcome::Refused {
        why: "busy".to_owned(),
    };
    world.learn(&undo, refused(), 40);
    world.tick(60);
    assert_eq!(world.state(&undo), State::Planned);

    // What people rule after it stands against it.
    world.release(&undo, 60);
    world.learn(&undo, refused(), 60);
    denies(&mut world, "dot", Step::Throttle, FOUR, 61).unwrap_err();
    world.dossier.ruled_at = minute(61);
    world.tick(90);
    assert!(matches!(world.state(&undo), State::Refused { .. }));
}

#[test]
fn a_lock_that_never_arrived_does_not_leave_once_the_customer_has_written() {
    for wrote in [false, true] {
        let (mut world, _) = World::throttled();
        denies(&mut world, "ann", Step::Lock, ONE, 30).unwrap();
        denies(&mut world, "ben", Step::Lock, THREE, 31).unwrap();
        let lock = by_people(&world, Step::Lock);
        world.release(&lock, 31);
        if wrote {
            says(&mut world, "m1", 32);
        }
        never_seen(&mut world, &lock, 33);
        let state = world.state(&lock);
        let withheld = State::Withheld {
            at: minute(35),
            why: "the customer wrote before it left".to_owned(),
        };
        assert_eq!(state, if wrote { withheld } else { State::Planned });
    }
}

#[test]
fn what_people_decide_after_the_customers_word_leaves_though_it_was_in_doubt() {
    let (mut world, throttle) = World::throttled();
    world
        .dossier
        .unthrottle(&ann(), &world.settings.clone(), minute(30))
        .unwrap();
    carry_out(&mut world, &undo_of(&throttle), 30);
    says(&mut world, "m1", 31);
    let reason = Reason::try_from(ONE.to_owned()).unwrap();
    let settings = world.settings.clone();
    (world
        .dossier
        .throttle(&ann(), &reason, &settings, minute(40)))
    .unwrap();
    let key = by_people(&world, Step::Throttle);
    world.release(&key, 40);
    never_seen(&mut world, &key, 42);
    assert_eq!(world.state(&key), State::Planned);
}

#[test]
fn nobody_is_throttled_whose_notice_was_taken_back() {
    let mut world = World::throttling();
    let notice = world.key(Step::Notify, false);
    world
        .dossier
        .undo(&notice, "it was stopped", None, minute(20))
        .unwrap();
    carry_out(&mut world, &undo_of(&notice), 20);
    let throttle = world.key(Step::Throttle, false);
    let why = "the customer was not told".to_owned();
    let at = minute(21);
    assert_eq!(world.release(&throttle, 21), State::Withheld { at, why });
    // Nor is it planned again and again.
    let (fleet, policies) = (world.fleet.clone(), Policies::shipped().unwrap());
    for at in [40, 60] {
        world.dossier.inform(facts(minute(at)), minute(at)).unwrap();
        world
            .dossier
            .observe(mining(at - 1, at), &world.settings.clone());
        (world.dossier).turn(&fleet, &policies, &world.settings, minute(at));
        assert!(matches!(world.state(&throttle), State::Withheld { .. }));
    }
}

#[test]
fn what_was_thought_never_to_have_arrived_and_was_done_is_known_and_undone() {
    let mut world = World::throttling();
    let throttle = world.key(Step::Throttle, false);
    world.release(&throttle, 21);
    never_seen(&mut world, &throttle, 22);
    world.fleet.stop = Some(crate::fleet::Stop {
        since: minute(24),
        by: "ann".to_owned(),
        why: "a drill".to_owned(),
    });
    let withheld = world.release(&throttle, 24);
    assert!(matches!(withheld, State::Withheld { .. }), "{withheld:?}");
    // Nothing speaks against it any more; it was given up all the same.
    world.fleet.stop = None;
    let parcel = Parcel::Action(throttle.clone());
    let (fleet, settings) = (world.fleet.clone(), world.settings.clone());
    (world.dossier)
        .learn(
            &parcel,
            minute(21),
            Outcome::Done,
            (&fleet, &settings),
            minute(25),
        )
        .unwrap();
    assert_eq!(world.state(&throttle), State::Done { at: minute(25) });
    assert_eq!(world.state(&undo_of(&throttle)), State::Planned);
}

#[test]
fn people_may_throttle_what_only_a_person_can_tell() {
    let mut world = World::new();
    let suspect = Sighting {
        level: davy_evidence::Level::Suspect,
        ..mining(0, 400)
    };
    world.dossier.observe(suspect, &world.settings.clone());
    world.decide(400);
    let reason = Reason::try_from(ONE.to_owned()).unwrap();
    let settings = world.settings.clone();
    (world
        .dossier
        .throttle(&ann(), &reason, &settings, minute(401)))
    .unwrap();
    let key = by_people(&world, Step::Throttle);
    let held = world.dossier.actions.iter().find(|held| held.key == key);
    assert_eq!(held.unwrap().targets, ["d1".try_into().unwrap()]);
    let events = denies(&mut world, "ann", Step::PowerDown, ONE, 402);
    events.unwrap();
}

#[test]
fn mining_that_goes_on_after_the_hold_comes_back_to_people() {
    let mut world = World::planned();
    world.unlock(false, 30);
    let settings = world.settings.clone();
    let number = |world: &World| world.dossier.case.as_ref().unwrap().id.number;
    let day = 24 * 60;
    for days in 1..=31 {
        let at = days * day;
        let begin = world.dossier.episode.as_ref().unwrap().stirred;
        let minutes = (begin - minute(0)).as_ms() / 60_000;
        world.dossier.observe(mining(minutes, at), &settings);
        world.dossier.inform(facts(minute(at)), minute(at)).unwrap();
        let (fleet, policies) = (world.fleet.clone(), Policies::shipped().unwrap());
        world.dossier.turn(&fleet, &policies, &settings, minute(at));
        let expected = if days <= 30 { 1 } else { 2 };
        assert_eq!(number(&world), expected, "day {days}");
    }
    let case = world.dossier.case.as_ref().unwrap();
    assert!(case.is_open() && case.messages.is_empty());
}

#[test]
fn whoever_wrote_hears_of_the_unlock_though_nothing_is_to_be_undone() {
    let mut world = World::new();
    says(&mut world, "m1", 5);
    world.unlock(true, 10);
    let letters: Vec<_> = (world.dossier.letters.iter())
        .filter(|letter| letter.to == Recipient::Customer)
        .collect();
    assert_eq!(letters.len(), 1);
    assert!(
        letters[0]
            .text
            .contains("how your droplets compute is not held against")
    );
    // Where something is lifted, that says it.
    let (mut world, _) = locked();
    says(&mut world, "m1", 40);
    let settings = world.settings.clone();
    let reason = Reason::try_from(THREE.to_owned()).ok();
    (world
        .dossier
        .unlock(&person("cid"), false, reason, [], &settings, minute(50)))
    .unwrap();
    let to_customer = |letter: &&Letter| letter.to == Recipient::Customer;
    assert_eq!(world.dossier.letters.iter().filter(to_customer).count(), 0);
}

#[test]
fn whoever_writes_is_heard_without_a_text_and_under_a_long_name() {
    let mut world = World::new();
    let long = "k".repeat(300);
    for (n, (key, text)) in [("m1", " "), (&long, "hello"), (&long, "hello")]
        .into_iter()
        .enumerate()
    {
        let at = minute(5 + n as u64);
        world.dossier.hear(key, &long, text, at).unwrap();
    }
    // Another long name with the same beginning is another message.
    let other = format!("{long}2");
    world
        .dossier
        .hear(&other, "mail", "and another", minute(9))
        .unwrap();
    let case = world.dossier.case.as_ref().unwrap();
    let texts: Vec<_> = case
        .messages
        .iter()
        .map(|held| held.text.as_str())
        .collect();
    assert_eq!(
        texts,
        ["[The message has no text.]", "hello", "and another"]
    );
    let Speaker::Customer { channel } = &case.messages[0].from else {
        panic!("{case:?}");
    };
    assert_eq!(channel.len(), 256);
    assert!(world.dossier.hear(" ", "mail", "hello", minute(9)).is_err());
}

#[test]
fn stepping_back_is_told_once_though_the_control_plane_refuses() {
    let (mut world, lock) = locked();
    says(&mut world, "m1", 40);
    let stepped = |events: &[Event]| {
        let told = |event: &&Event| matches!(event, Event::SteppedBack { .. });
        events.iter().filter(told).count()
    };
    assert_eq!(stepped(&world.tick(160)), 1);
    let undo = undo_of(&lock);
    world.release(&undo, 160);
    let why = "busy".to_owned();
    world.learn(&undo, Outcome::Refused { why }, 160);
    for at in 161..=170 {
        assert_eq!(stepped(&world.tick(at)), 0, "minute {at}");
    }
}

#[test]
fn a_plan_of_a_case_that_is_over_does_not_leave_in_the_next_one() {
    let mut world = World::throttling();
    let case = world.dossier.case.as_mut().unwrap();
    case.id.number += 1;
    let throttle = world.key(Step::Throttle, false);
    let why = "the case in which people would see it is not open".to_owned();
    let at = minute(21);
    assert_eq!(world.release(&throttle, 21), State::Withheld { at, why });
}

#[test]
fn a_droplet_that_computes_on_after_it_has_left_the_inventory_is_a_strangers() {
    let mut world = World::new();
    let settings = world.settings.clone();
    let mut both = facts(minute(1));
    let inventory = &mut both.droplets.as_mut().unwrap().value;
    let droplet = *inventory.values().next().unwrap();
    inventory.insert("x1".try_into().unwrap(), droplet);
    world.dossier.inform(both, minute(1)).unwrap();
    world.dossier.observe(sighted("x1", 2, 12), &settings);
    let strange = |world: &World| world.dossier.episode.as_ref().unwrap().strangers().count();
    assert_eq!(strange(&world), 0);
    // Gone, and quiet since: deleted. Gone, and mining on: somebody else's.
    world.dossier.inform(facts(minute(13)), minute(13)).unwrap();
    assert_eq!(strange(&world), 0);
    world.dossier.observe(sighted("x1", 14, 40), &settings);
    assert_eq!(strange(&world), 1);
    // That is asked about soon.
    assert!(world.dossier.wants_facts(&settings, minute(40)));
    world.dossier.inform(facts(minute(41)), minute(41)).unwrap();
    assert!(!world.dossier.wants_facts(&settings, minute(50)));
}

#[test]
fn people_do_not_act_on_a_suspect_for_what_a_stranger_mined() {
    let mut world = World::new();
    let settings = world.settings.clone();
    world.dossier.observe(sighted("x1", 0, 60), &settings);
    let suspect = Sighting {
        level: davy_evidence::Level::Suspect,
        ..mining(60, 61)
    };
    world.dossier.observe(suspect, &settings);
    world.decide(61);
    let refused = denies(&mut world, "ann", Step::PowerDown, ONE, 62).unwrap_err();
    assert!(
        refused.to_string().contains("would act on nothing"),
        "{refused}"
    );
}

#[test]
fn a_letter_after_the_episode_does_not_say_that_nothing_was_seen() {
    let (mut world, _) = locked();
    world.dossier.episode = None;
    says(&mut world, "m1", 40);
    (world.dossier.answer(&ann(), "We look at it.", minute(41))).unwrap();
    let letter = world.dossier.letters.last().unwrap();
    assert!(
        letter.text.contains("stands in what we wrote"),
        "{}",
        letter.text
    );
}

fn throttles(world: &mut World, by: &str, at: u64) -> Result<Vec<Event>, Refusal> {
    let reason = Reason::try_from(ONE.to_owned()).unwrap();
    let settings = world.settings.clone();
    (world.dossier).throttle(&person(by), &reason, &settings, minute(at))
}

#[test]
fn a_throttle_whose_time_is_over_does_not_leave_and_one_that_stands_is_lifted() {
    let mut world = World::planned();
    throttles(&mut world, "ann", 30).unwrap();
    let key = by_people(&world, Step::Throttle);
    let why = "its time was over before it left".to_owned();
    let at = minute(30 + 1_440);
    let state = world.clone().release(&key, 30 + 1_440);
    assert_eq!(state, State::Withheld { at, why });
    // It left in time, and was known to be done long after its end; nothing else is on.
    world.release(&key, 31);
    let late = 31 + 3 * 1_440;
    world.learn(&key, Outcome::Done, late);
    world.dossier.episode = None;
    assert_eq!(look(&world, late), Some(minute(late)));
    world.tick(late);
    assert_eq!(world.state(&undo_of(&key)), State::Planned);
}

#[test]
fn what_a_person_takes_back_on_an_unlocked_case_sets_the_hold_too() {
    let mut world = World::planned();
    world.unlock(false, 30);
    throttles(&mut world, "ann", 40).unwrap();
    let key = by_people(&world, Step::Throttle);
    carry_out(&mut world, &key, 40);
    let settings = world.settings.clone();
    (world
        .dossier
        .take_back(&person("ben"), &settings, minute(50)))
    .unwrap();
    assert_eq!(world.state(&undo_of(&key)), State::Planned);
    let until = world.dossier.holds.iter().map(|hold| hold.until).max();
    assert_eq!(until, Some(minute(50).after(settings.hold_ms)));
}

#[test]
fn the_milder_of_two_measures_is_not_one_on_no_droplet() {
    let (mut world, _) = World::throttled();
    denies(&mut world, "ann", Step::PowerDown, ONE, 30).unwrap();
    let mut none = facts(minute(31));
    none.droplets.as_mut().unwrap().value.clear();
    world.dossier.inform(none, minute(31)).unwrap();
    let refused = denies(&mut world, "ben", Step::Lock, THREE, 32).unwrap_err();
    assert!(
        refused.to_string().contains("would act on nothing"),
        "{refused}"
    );
}

#[test]
fn a_throttle_that_is_about_to_leave_is_one_and_is_lifted_like_one() {
    let mut world = World::planned();
    throttles(&mut world, "ann", 30).unwrap();
    throttles(&mut world, "ben", 30).unwrap_err();
    let settings = world.settings.clone();
    (world
        .dossier
        .unthrottle(&person("ben"), &settings, minute(31)))
    .unwrap();
    let key = by_people(&world, Step::Throttle);
    assert!(matches!(world.state(&key), State::Withheld { .. }));
    assert_eq!(world.dossier.holds.len(), 1);
}

#[test]
fn what_was_sent_once_and_given_up_is_planned_anew_under_a_key_of_its_own() {
    let mut world = World::throttling();
    let key = world.key(Step::Throttle, false);
    world.release(&key, 21);
    let of = |world: &World, key: &Key| {
        let held = world.dossier.actions.iter().find(|held| held.key == *key);
        let held = held.unwrap();
        (held.statement.clone(), held.ends_at, held.planned_at)
    };
    let first = of(&world, &key);
    never_seen(&mut world, &key, 22);
    let missing = Some(Err("down".to_owned()));
    assert!(matches!(
        world.release_with(&key, missing, 24),
        State::Withheld { .. }
    ));
    world.dossier.inform(facts(minute(40)), minute(40)).unwrap();
    let settings = world.settings.clone();
    world.dossier.observe(mining(20, 40), &settings);
    world.decide(40);
    // What that key said stays what it says, and is as old as it is.
    assert_eq!(of(&world, &key), first);
    assert!(matches!(world.state(&key), State::Withheld { .. }));
    let anew = Key { turn: 1, ..key };
    assert_eq!(world.release(&anew, 40), State::Released { at: minute(40) });
    let (text, ends_at, _) = of(&world, &anew);
    assert!(text.contains("mining for 40 min"), "{text}");
    assert_eq!(ends_at, Some(minute(40 + 1_440)));
    // It is taken once.
    world.learn(&anew, Outcome::Done, 40);
    world.decide(41);
    let throttles = world.dossier.actions.iter();
    let throttles = throttles.filter(|held| held.key.step == Step::Throttle);
    assert_eq!(throttles.count(), 2);
}
