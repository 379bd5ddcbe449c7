//! What people decide against what automation did, and what becomes of what is not answered.

use super::tests::{World, ann, mining, minute};
use super::*;
use crate::{
    action::{Outcome, Parcel, Recipient},
    case::{Finding, Opinion, Person, Ruling},
};

pub(super) const ONE: &str =
    "Four droplets computed RandomX for a day and the card is reported stolen by its bank";
const TWO: &str =
    "I asked twice what runs there, the answers named a pool, and the payment bounced since";
pub(super) const THREE: &str =
    "The same pool address stands in all five droplets that were made since noon today";
pub(super) const FOUR: &str =
    "Nothing the customer wrote explains why a web shop would hash on every core at night";

pub(super) fn person(name: &str) -> Person {
    Person(name.to_owned())
}

pub(super) fn denies(
    world: &mut World,
    by: &str,
    step: Step,
    text: &str,
    at: u64,
) -> Result<Vec<Event>, Refusal> {
    let opinion = Opinion {
        by: person(by),
        at: minute(at),
        finding: Finding::Deny,
        measure: Some(step),
        reason: text.to_owned().try_into().unwrap(),
    };
    let settings = world.settings.clone();
    world.dossier.opine(opinion, [], &settings)
}

/// Releases an action of people's, or an undoing, and has it done.
pub(super) fn carry_out(world: &mut World, key: &Key, at: u64) {
    assert_eq!(world.release(key, at), State::Released { at: minute(at) });
    world.learn(key, Outcome::Done, at);
}

pub(super) fn by_people(world: &World, step: Step) -> Key {
    Key {
        turn: 1,
        ..world.key(step, false)
    }
}

pub(super) fn undo_of(key: &Key) -> Key {
    Key {
        undo: true,
        ..key.clone()
    }
}

/// Throttled by automation, then locked by ann and ben.
pub(super) fn locked() -> (World, Key) {
    let (mut world, _) = World::throttled();
    denies(&mut world, "ann", Step::Lock, ONE, 30).unwrap();
    denies(&mut world, "ben", Step::Lock, TWO, 31).unwrap();
    let lock = by_people(&world, Step::Lock);
    carry_out(&mut world, &lock, 32);
    (world, lock)
}

fn letters(world: &World, to: Recipient) -> Vec<&Letter> {
    let all = world.dossier.letters.iter();
    all.filter(|letter| letter.to == to).collect()
}

pub(super) fn says(world: &mut World, key: &str, at: u64) -> Vec<Event> {
    (world
        .dossier
        .hear(key, "ticket", "It is our build farm.", minute(at)))
    .unwrap()
}

#[test]
fn what_is_harsher_than_people_decide_ends_with_their_decision() {
    let (mut world, lock) = locked();
    says(&mut world, "m1", 40);
    denies(&mut world, "cid", Step::Throttle, THREE, 50).unwrap();
    denies(&mut world, "dot", Step::Lock, FOUR, 51).unwrap();
    assert_eq!(
        world.dossier.ruling,
        Some(Step::Throttle),
        "the milder of both"
    );
    assert_eq!(world.state(&undo_of(&lock)), State::Planned);
    assert!(
        world.dossier.in_effect(Step::Throttle).is_some(),
        "this stays"
    );
    assert!(!world.dossier.is_locked());
}

#[test]
fn a_denial_of_what_stands_already_is_told_with_its_reasons_and_lasts_from_now() {
    let (mut world, throttle) = World::throttled();
    denies(&mut world, "ann", Step::Throttle, ONE, 600).unwrap();
    denies(&mut world, "ben", Step::Throttle, TWO, 601).unwrap();
    let told = letters(&world, Recipient::Customer);
    assert_eq!(told.len(), 1);
    for words in [ONE, TWO, "answer this message", "acct-1/1"] {
        assert!(told[0].text.contains(words), "{words}: {}", told[0].text);
    }
    let held = world.dossier.in_effect(Step::Throttle).unwrap();
    assert_eq!(held.key, throttle, "no second one beside it");
    assert_eq!(held.ends_at, Some(minute(601 + 1_440)));
}

#[test]
fn who_denied_does_not_review_the_appeal_in_a_later_case_either() {
    let (mut world, _) = locked();
    world.dossier.close(minute(40)).unwrap();
    says(&mut world, "m1", 50);
    let case = world.dossier.case.clone().unwrap();
    assert_eq!((case.id.number, case.appealed_at), (2, Some(minute(50))));
    let again = denies(&mut world, "ben", Step::Lock, THREE, 51).unwrap_err();
    assert!(
        again.to_string().contains("another person reviews it"),
        "{again}"
    );
    denies(&mut world, "cid", Step::Lock, THREE, 52).unwrap();
}

#[test]
fn a_case_whose_second_review_is_wanted_is_not_closed_by_a_new_episode() {
    let (mut world, _) = locked();
    says(&mut world, "m1", 40);
    let reason = Some(THREE.to_owned().try_into().unwrap());
    let World {
        dossier, settings, ..
    } = &mut world;
    dossier
        .unlock(&person("cid"), false, reason, [], settings, minute(41))
        .unwrap();
    assert!(dossier.case.as_ref().is_some_and(Case::wants_review));
    let day = 24 * 60 + 60;
    world.tick(day);
    world
        .dossier
        .observe(mining(day, day + 20), &world.settings.clone());
    world.decide(day + 20);
    let case = world.dossier.case.as_ref().unwrap();
    assert_eq!(
        (case.id.number, case.episode, case.opinions.len()),
        (1, 2, 1)
    );
    let throttle = Key {
        episode: 2,
        ..world.key(Step::Throttle, false)
    };
    assert!(
        world.dossier.action(&throttle).is_err(),
        "the hold is in force"
    );
    denies(&mut world, "dot", Step::Lock, FOUR, day + 30).unwrap();
    let case = world.dossier.case.as_ref().unwrap();
    let (ruling, at) = (Ruling::Unsure, minute(41));
    assert_eq!(
        case.state,
        case::State::Decided { ruling, at },
        "they differ"
    );
    assert!(!case.wants_review());
}

#[test]
fn a_second_review_that_finds_the_customer_in_the_right_sets_the_flag() {
    let (mut world, _) = locked();
    says(&mut world, "m1", 40);
    for (by, legitimate, text) in [("cid", false, THREE), ("dot", true, THREE)] {
        let reason = Some(text.to_owned().try_into().unwrap());
        let World {
            dossier, settings, ..
        } = &mut world;
        // A copied reason keeps no unlock back.
        dossier
            .unlock(&person(by), legitimate, reason, [], settings, minute(41))
            .unwrap();
    }
    assert_eq!(
        world.dossier.allowed.as_ref().map(|held| held.by.as_str()),
        Some("dot")
    );
}

#[test]
fn a_measure_on_droplets_of_which_none_shows_evidence_is_refused() {
    let mut world = World::new();
    says(&mut world, "m1", 400);
    for step in [Step::Throttle, Step::PowerDown] {
        let refused = denies(&mut world, "ann", step, ONE, 401).unwrap_err();
        assert!(
            refused.to_string().contains("would act on nothing"),
            "{refused}"
        );
    }
    // Nor is an account locked for what Davy has not seen.
    let refused = denies(&mut world, "ann", Step::Lock, ONE, 401).unwrap_err();
    assert!(refused.to_string().contains("of its own"), "{refused}");
    // Of what it has seen it may be, though those droplets are deleted since.
    world
        .dossier
        .observe(mining(401, 410), &world.settings.clone());
    let mut none = super::tests::facts(minute(411));
    none.droplets = super::tests::known(std::collections::BTreeMap::default(), minute(411));
    world.dossier.inform(none, minute(411)).unwrap();
    denies(&mut world, "ann", Step::Throttle, ONE, 412).unwrap_err();
    denies(&mut world, "ann", Step::Lock, ONE, 412).unwrap();
}

#[test]
fn a_ruling_ends_with_an_unlock_and_when_it_is_taken_back_whatever_became_of_its_case() {
    let (mut world, _) = locked();
    says(&mut world, "m1", 40);
    let reason = Some(THREE.to_owned().try_into().unwrap());
    let World {
        dossier, settings, ..
    } = &mut world;
    dossier
        .unlock(&person("cid"), false, reason, [], settings, minute(41))
        .unwrap();
    assert_eq!(world.dossier.ruling, None);

    let (mut world, lock) = locked();
    world.dossier.close(minute(40)).unwrap();
    let holds = world.dossier.holds.len();
    let World {
        dossier, settings, ..
    } = &mut world;
    dossier.take_back(&ann(), settings, minute(41)).unwrap();
    assert_eq!(world.dossier.ruling, None);
    assert_eq!(
        world.dossier.holds.len(),
        holds + 1,
        "nothing automated before its end"
    );
    assert_eq!(world.state(&undo_of(&lock)), State::Planned);
    carry_out(&mut world, &undo_of(&lock), 42);
    for action in world.dossier.actions.clone() {
        if matches!(action.state, State::Planned) {
            carry_out(&mut world, &action.key, 43);
        }
    }
    let World {
        dossier, settings, ..
    } = &mut world;
    assert!(
        dossier.take_back(&ann(), settings, minute(44)).is_err(),
        "nothing is left"
    );
    dossier.ruling = Some(Step::Lock);
    dossier.take_back(&ann(), settings, minute(45)).unwrap();
    assert_eq!(dossier.ruling, None, "also when nothing is felt of it");
}

#[test]
fn a_denial_proposed_before_the_customer_spoke_is_no_half_of_one_after() {
    let (mut world, _) = World::throttled();
    denies(&mut world, "ann", Step::Lock, ONE, 30).unwrap();
    says(&mut world, "m1", 31);
    denies(&mut world, "ben", Step::Lock, TWO, 32).unwrap();
    assert!(world.dossier.conversation.is_some() && world.dossier.ruling.is_none());
    denies(&mut world, "ann", Step::Lock, THREE, 33).unwrap();
    assert_eq!(world.dossier.ruling, Some(Step::Lock));
}

#[test]
fn what_people_decided_does_not_leave_once_the_customer_has_spoken() {
    let (mut world, _) = World::throttled();
    denies(&mut world, "ann", Step::Lock, ONE, 30).unwrap();
    denies(&mut world, "ben", Step::Lock, TWO, 31).unwrap();
    says(&mut world, "m1", 32);
    let lock = by_people(&world, Step::Lock);
    assert!(matches!(world.state(&lock), State::Withheld { .. }));
    // It is appealed all the same: other people look at it.
    assert!(denies(&mut world, "ann", Step::Lock, THREE, 33).is_err());
    denies(&mut world, "cid", Step::Lock, THREE, 34).unwrap();
    denies(&mut world, "dot", Step::Lock, FOUR, 35).unwrap();
    let again = Key { turn: 2, ..lock };
    assert_eq!(world.state(&again), State::Planned);
}

#[test]
fn an_unlock_waits_for_nobodys_claim_and_takes_no_other_persons_word() {
    let (mut world, _) = World::throttled();
    let settings = world.settings.clone();
    world
        .dossier
        .allow_high_cpu(&person("ben"), &settings, minute(25));
    world
        .dossier
        .claim(&person("ben"), false, minute(26))
        .unwrap();
    world.unlock(true, 30);
    let allowed = world.dossier.allowed.as_ref().map(|held| held.by.as_str());
    assert_eq!(allowed, Some("ben"));
    let World {
        dossier, settings, ..
    } = &mut world;
    // What is to be undone is undone first; then the decision itself is taken back.
    for _ in 0..2 {
        let _ = dossier.take_back(&person("cid"), settings, minute(31));
    }
    assert!(
        dossier.allowed.is_some(),
        "ben gave it apart from the unlock"
    );
}

#[test]
fn somebody_is_paged_once_for_an_undoing_that_gets_no_answer() {
    let (mut world, key) = World::throttled();
    world.unlock(false, 30);
    let undo = undo_of(&key);
    world.release(&undo, 30);
    world.tick(39);
    assert!(letters(&world, Recipient::OnCall).is_empty());
    let due = world
        .dossier
        .due(&world.fleet, &world.settings, minute(39))
        .unwrap();
    assert!(due <= minute(40), "{due}");
    for at in [40, 41, 60] {
        world.tick(at);
        // The notice's withdrawing was not released either.
        let paged = letters(&world, Recipient::OnCall);
        assert_eq!(
            paged
                .iter()
                .filter(|letter| letter.text.contains("throttle/0/undo"))
                .count(),
            1
        );
    }
}

#[test]
fn a_letter_that_does_not_reach_the_customer_lets_their_clock_run_and_pages() {
    let (mut world, _) = World::throttled();
    says(&mut world, "m1", 30);
    world
        .dossier
        .answer(&ann(), "I look at it, final.", minute(31))
        .unwrap();
    let answer = letters(&world, Recipient::Customer)[0].clone();
    assert!(
        answer.text.contains("You can answer this message"),
        "{}",
        answer.text
    );
    let parcel = Parcel::Letter {
        account: world.dossier.account.clone(),
        number: answer.number,
    };
    assert_eq!(world.dossier.case.as_ref().unwrap().waiting_since, None);
    let World {
        dossier,
        settings,
        fleet,
        policies,
    } = &mut world;
    dossier
        .release(&parcel, None, (fleet, policies), settings, minute(31))
        .unwrap();
    let why = "no such ticket".to_owned();
    let refused = Outcome::Refused { why };
    (dossier.learn(
        &parcel,
        minute(31),
        refused.clone(),
        (fleet, settings),
        minute(32),
    ))
    .unwrap();
    assert_eq!(
        dossier.case.as_ref().unwrap().waiting_since,
        Some(minute(32))
    );
    // The page is refused, too: it is tried again.
    let page = letters(&world, Recipient::OnCall)[0].clone();
    assert!(page.text.contains("no such ticket"), "{}", page.text);
    let parcel = Parcel::Letter {
        account: world.dossier.account.clone(),
        number: page.number,
    };
    let World {
        dossier,
        settings,
        fleet,
        policies,
    } = &mut world;
    dossier
        .release(&parcel, None, (fleet, policies), settings, minute(33))
        .unwrap();
    dossier
        .learn(&parcel, minute(33), refused, (fleet, settings), minute(33))
        .unwrap();
    let state = |world: &World| letters(world, Recipient::OnCall)[0].state.clone();
    world.tick(47);
    assert!(matches!(state(&world), State::Refused { .. }));
    world.tick(48);
    assert_eq!(state(&world), State::Planned);
}

/// A control plane that refuses everything does not fill the outbox.
#[test]
fn what_is_refused_again_and_again_pages_once() {
    let (mut world, key) = World::throttled();
    world.unlock(false, 30);
    let undo = undo_of(&key);
    let refuse = |world: &mut World, at: u64| {
        for parcel in world.dossier.parcels() {
            let World {
                dossier,
                settings,
                fleet,
                policies,
            } = world;
            if dossier
                .release(&parcel, None, (fleet, policies), settings, minute(at))
                .is_ok()
            {
                let why = "out of order".to_owned();
                let refused = Outcome::Refused { why };
                (dossier.learn(&parcel, minute(at), refused, (fleet, settings), minute(at)))
                    .unwrap();
            }
        }
    };
    for at in (30..3_000).step_by(5) {
        refuse(&mut world, at);
        world.tick(at);
    }
    let paged = letters(&world, Recipient::OnCall);
    let about = |page: &&&Letter| page.text.contains("throttle/0/undo");
    assert_eq!(paged.iter().filter(about).count(), 1);
    assert_eq!(paged.len(), 2, "the notice's withdrawing is the other one");
    assert!(matches!(
        world.state(&undo),
        State::Planned | State::Refused { .. }
    ));
}

#[test]
fn a_clock_that_went_back_stops_automation_and_lets_no_customer_wait_longer() {
    let (mut world, lock) = locked();
    says(&mut world, "m1", 600);
    world.dossier.clock = minute(600);
    // It was ten hours ahead.
    let input = world
        .dossier
        .input(&world.fleet, "", &world.settings, minute(0))
        .unwrap();
    assert!(input.fetch_failed.unwrap().contains("the clock went back"));
    world.tick(0);
    assert_eq!(
        world.dossier.conversation.as_ref().map(|held| held.since),
        Some(minute(0))
    );
    let throttle = world.dossier.in_effect(Step::Throttle).unwrap();
    assert_eq!(throttle.ends_at, Some(minute(1_440)));
    world.tick(16);
    assert!(
        !letters(&world, Recipient::OnCall).is_empty(),
        "nobody was paged"
    );
    world.tick(120);
    assert_eq!(
        world.state(&undo_of(&lock)),
        State::Planned,
        "back to the throttle"
    );

    let mut world = World::throttling();
    world.dossier.clock = minute(600);
    let key = world.key(Step::Throttle, false);
    let state = world.release(&key, 21);
    assert!(
        matches!(&state, State::Withheld { why, .. } if why.contains("unknown_standing")),
        "{state:?}"
    );
}
