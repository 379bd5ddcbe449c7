//! What a second reviewer of an appeal sees does not depend on what the first one found.

use super::rulings_tests::{FOUR, ONE, THREE, by_people, carry_out, denies, locked, person, says};
use super::tests::{World, mining, minute};
use super::*;
use crate::case::{CaseError, Finding, Opinion, Ruling};

/// A lock that people decided, appealed after 40 minutes.
fn appealed() -> World {
    let (mut world, lock) = locked();
    assert_eq!(lock, by_people(&world, Step::Lock));
    says(&mut world, "m1", 40);
    world
        .dossier
        .claim(&person("cid"), true, minute(41))
        .unwrap();
    world
}

fn unlocks(world: &mut World, by: &str, text: &str, at: u64) -> Vec<Event> {
    let reason = Some(text.to_owned().try_into().unwrap());
    let World {
        dossier, settings, ..
    } = world;
    let at = minute(at);
    (dossier.unlock(&person(by), true, reason, [], settings, at)).unwrap()
}

/// Everything that is to leave leaves, and is done.
fn all_leave(world: &mut World, at: u64) {
    while let Some(action) =
        (world.dossier.actions.iter()).find(|action| action.state == State::Planned)
    {
        let key = action.key.clone();
        carry_out(world, &key, at);
    }
}

/// What time brings meanwhile, and the customer's word; then the record as each of `readers` may see it.
fn later(mut world: World, readers: &[&str]) -> Vec<Dossier> {
    let mut seen = Vec::new();
    let settings = world.settings.clone();
    for at in [42, 60, 100, 170, 300] {
        world.dossier.observe(mining(at, at + 1), &settings);
        world.tick(at + 1);
        world.decide(at + 1);
        all_leave(&mut world, at + 1);
        if at == 100 {
            says(&mut world, "m2", 102);
        }
        seen.extend(
            readers
                .iter()
                .map(|reader| world.dossier.seen_by(&person(reader))),
        );
    }
    seen
}

#[test]
fn the_record_is_the_same_whatever_the_first_review_found() {
    let readers = ["dot", "ann", ""];
    let mut denied = appealed();
    denies(&mut denied, "cid", Step::Lock, THREE, 42).unwrap();
    let mut unlocked = appealed();
    unlocks(&mut unlocked, "cid", THREE, 42);
    assert!(denied.dossier.is_locked() && !unlocked.dossier.is_locked());
    let rank = |world: &World| {
        let case = world.dossier.case.as_ref().unwrap();
        let locked = case.seems_locked(&person("dot"), world.dossier.is_locked());
        case.seen_by(&person("dot")).rank(locked)
    };
    assert_eq!(rank(&denied), rank(&unlocked));

    let (denied, unlocked) = (later(denied, &readers), later(unlocked, &readers));
    assert_eq!(denied, unlocked);
    // And it is what is needed to judge: evidence and the customer's words as they are now.
    let last = denied.last().unwrap();
    assert!(last.is_locked() && last.episode.as_ref().unwrap().stirred == minute(301));
    let case = last.case.as_ref().unwrap();
    assert_eq!((case.messages.len(), case.opinions.len()), (2, 0));
    let json = serde_json::to_string(last).unwrap();
    assert!(!json.contains("sealed") && !json.contains(THREE), "{json}");
}

#[test]
fn what_a_second_reviewer_tries_besides_a_review_ends_the_same() {
    let mut denied = appealed();
    denies(&mut denied, "cid", Step::Lock, THREE, 42).unwrap();
    let mut unlocked = appealed();
    unlocks(&mut unlocked, "cid", THREE, 42);
    let tries = |world: &mut World| {
        let (dot, at) = (person("dot"), minute(43));
        let World {
            dossier, settings, ..
        } = world;
        let claimed = dossier.claim(&dot, false, at).unwrap();
        let without_reason = dossier
            .unlock(&dot, true, None, [], settings, at)
            .unwrap_err();
        let acts = dossier.may_act(&dot).unwrap_err();
        let answered = dossier.answer(&dot, "We look at it.", at).unwrap();
        let answered = dossier.events_seen_by(&dot, answered);
        let copied = Opinion {
            by: dot.clone(),
            at,
            finding: Finding::Deny,
            measure: Some(Step::Lock),
            reason: ONE.to_owned().try_into().unwrap(),
        };
        let copied = dossier.opine(copied, [], settings).unwrap_err();
        (
            claimed,
            without_reason,
            acts,
            answered,
            copied,
            dossier.seen_by(&dot),
        )
    };
    let told = tries(&mut denied);
    assert_eq!(told, tries(&mut unlocked));
    assert!(told.0.is_empty());
    assert!(matches!(
        told.2,
        Refusal::Case(CaseError::ReviewFirst { .. })
    ));
    // Who has given theirs, or is no reviewer of a case without an appeal, is not kept from anything.
    assert_eq!(denied.dossier.may_act(&person("cid")), Ok(()));
}

#[test]
fn once_the_second_review_is_in_everybody_sees_all() {
    for first_denies in [true, false] {
        let mut world = appealed();
        if first_denies {
            denies(&mut world, "cid", Step::Lock, THREE, 42).unwrap();
        } else {
            unlocks(&mut world, "cid", THREE, 42);
        }
        denies(&mut world, "dot", Step::Lock, FOUR, 43).unwrap();
        let Dossier { case, sealed, .. } = world.dossier.seen_by(&person("eve"));
        let case = case.unwrap();
        assert_eq!((case.opinions.len(), case.past.len()), (2, 2));
        assert!(sealed.is_none() && world.dossier.sealed.is_none() && case.sealed.is_none());
        // They differ: unlocked. They agree: denied.
        assert_eq!(case.is_denied(), first_denies);
    }
}

#[test]
fn a_denial_from_before_the_customers_last_word_is_no_review() {
    let mut world = appealed();
    denies(&mut world, "cid", Step::Lock, THREE, 42).unwrap();
    says(&mut world, "m2", 43);
    denies(&mut world, "dot", Step::Lock, FOUR, 44).unwrap();
    let case = world.dossier.case.clone().unwrap();
    assert!(case.is_open(), "one review alone denies nothing");
    // Who gave it did not know the customer's word, and gives it anew; the other's is kept from them.
    assert!(case.is_kept_from(&person("cid")));
    let seen = case.seen_by(&person("cid"));
    let texts: Vec<_> = (seen.past.iter().chain(&seen.opinions))
        .map(|held| held.reason.as_str())
        .collect();
    assert!(
        texts.contains(&THREE) && !texts.contains(&FOUR),
        "{texts:?}"
    );
    let anew = "What the customer wrote since names no service that computes like this at all";
    denies(&mut world, "cid", Step::Lock, anew, 45).unwrap();
    assert!(world.dossier.case.as_ref().unwrap().is_denied());
}

#[test]
fn an_opinion_that_waits_for_a_second_one_is_withdrawn_and_nothing_else_is_touched() {
    let mut world = World::throttling();
    let throttle = world.key(Step::Throttle, false);
    assert_eq!(
        world.release(&throttle, 21),
        State::Released { at: minute(21) }
    );
    world.learn(&throttle, crate::action::Outcome::Done, 21);
    denies(&mut world, "ann", Step::Lock, ONE, 22).unwrap();
    let settings = world.settings.clone();
    let events = (world.dossier)
        .take_back(&person("ann"), &settings, minute(23))
        .unwrap();
    assert!(
        matches!(events.as_slice(), [Event::OpinionWithdrawn { .. }]),
        "{events:?}"
    );
    assert!(world.dossier.holds.is_empty() && world.dossier.in_effect(Step::Throttle).is_some());
    // The same person may deny later, and counts once.
    denies(&mut world, "ben", Step::Lock, THREE, 24).unwrap();
    assert!(world.dossier.case.as_ref().unwrap().is_open());

    // Who undoes what was done does not leave half a denial standing.
    world
        .dossier
        .take_back(&person("cid"), &settings, minute(25))
        .unwrap();
    denies(&mut world, "dot", Step::Lock, FOUR, 26).unwrap();
    assert!(world.dossier.case.as_ref().unwrap().is_open());
}

#[test]
fn a_review_that_denies_is_withdrawn_without_the_lock() {
    let mut world = appealed();
    denies(&mut world, "cid", Step::Lock, THREE, 42).unwrap();
    world.dossier.may_act(&person("dot")).unwrap_err();
    let settings = world.settings.clone();
    world
        .dossier
        .take_back(&person("cid"), &settings, minute(43))
        .unwrap();
    assert!(world.dossier.is_locked());
    // No review is in any more that anybody would have to be kept from.
    world.dossier.may_act(&person("dot")).unwrap();
    assert_eq!(world.dossier.sealed, None);
    let case = world.dossier.case.clone().unwrap();
    assert_eq!(case.seen_by(&person("dot")).state, case.state);
    // What it was, the log keeps back still, also after another one is in.
    assert_eq!(case.hidden_since(&person("dot")), Some(minute(42)));
    denies(
        &mut world,
        "eve",
        Step::Lock,
        "Nobody could say why a mail server would hash so much all night, and it never paused",
        44,
    )
    .unwrap();
    let case = world.dossier.case.clone().unwrap();
    assert_eq!(case.hidden_since(&person("dot")), Some(minute(42)));
    assert!(case.is_kept_from(&person("dot")));
    assert!(
        world
            .dossier
            .take_back(&person("eve"), &settings, minute(44))
            .is_ok()
    );
    denies(&mut world, "dot", Step::Lock, FOUR, 44).unwrap();
    assert!(
        world.dossier.case.as_ref().unwrap().is_open(),
        "one review alone"
    );
}

#[test]
fn anybody_unlocks_a_denied_account_at_any_time_with_hold_and_flag() {
    for closed in [false, true] {
        let (mut world, lock) = locked();
        if closed {
            world.dossier.close(minute(50)).unwrap();
        }
        let World {
            dossier, settings, ..
        } = &mut world;
        let dot = person("dot");
        dossier
            .unlock(&dot, true, None, [], settings, minute(60))
            .unwrap();
        let case = dossier.case.as_ref().unwrap();
        let (ruling, at) = (Ruling::Legitimate, minute(60));
        assert_eq!(case.state, case::State::Decided { ruling, at });
        assert_eq!((dossier.holds.len(), dossier.ruling), (1, None));
        assert!(dossier.allowed.is_some() && !dossier.is_locked());
        let undo = (dossier.actions.iter())
            .find(|action| action.key.undo && action.key.step == lock.step)
            .unwrap();
        assert_eq!(
            undo.by,
            By::Person {
                person: "dot".to_owned()
            }
        );
        let again = dossier.unlock(&dot, true, None, [], settings, minute(61));
        assert!(again.is_err(), "there is nothing to unlock");
    }
    // Denied on appeal, too.
    let mut world = appealed();
    denies(&mut world, "cid", Step::Lock, THREE, 42).unwrap();
    denies(&mut world, "dot", Step::Lock, FOUR, 43).unwrap();
    let World {
        dossier, settings, ..
    } = &mut world;
    dossier
        .unlock(&person("eve"), false, None, [], settings, minute(60))
        .unwrap();
    assert!(!dossier.is_locked());
}

#[test]
fn budget_is_given_back_with_the_second_review_and_not_before() {
    let mut world = appealed();
    unlocks(&mut world, "cid", THREE, 42);
    all_leave(&mut world, 43);
    let free = |world: &World| {
        let errands = world.dossier.errands(&world.fleet, minute(44));
        errands.contains(&Errand::FreeBudget)
    };
    assert!(world.fleet.holds(&world.dossier.account) && !free(&world));
    unlocks(&mut world, "dot", FOUR, 44);
    assert!(free(&world));
}
