//! What one change keeps: all it brings, or nothing.

use std::sync::Arc;

use davy_decision::{
    case::CaseId, dossier::Event, fleet::Stop, policy::Step, settings::Settings, time::Time,
};
use davy_detector::store::ledger::{Changed, LedgerError, Reach};

use crate::place::Place;
use crate::support::*;

pub(crate) const WORDS: &str =
    "this account runs a miner on every one of its droplets since it was made";

pub(crate) async fn a_change_keeps_all_it_brings_also_when_opened_again(place: Place) {
    let memory = place.open().await;
    let facts = inventory(&["d1", "d2"]);
    let informed = change(move |dossier, fleet| {
        dossier.facts = facts.clone();
        // Every text comes back as it was.
        dossier.fetch_failed = Some("\0 \u{1f512} \\u0000 \" ' \u{2028} $1 ?1".to_owned());
        fleet.droplets = 10_000;
    });
    make(&memory, "a", Reach::Fleet, informed).await.unwrap();
    let brought = make(&memory, "a", Reach::Account, decided()).await.unwrap();
    make(&memory, "a", Reach::Account, speak("k", minute(25)))
        .await
        .unwrap();
    make(&memory, "a", Reach::Account, denies("ann", WORDS))
        .await
        .unwrap();
    let look = async |memory: &Arc<dyn davy_detector::store::Memory>| {
        let case = CaseId {
            account: account("a"),
            number: 1,
        };
        (
            record_of(memory, "a").await.unwrap(),
            memory.fleet().await.unwrap(),
            memory.decisions(None, None, 10).await.unwrap(),
            memory.case(case).await.unwrap().unwrap(),
            memory.reasons(10).await.unwrap(),
            memory.owner(droplet("d2")).await.unwrap(),
            log(memory).await,
        )
    };
    let before = look(&memory).await;
    let (dossier, fleet, decisions, case, reasons, owner, log) = &before;
    assert_eq!(
        dossier.fetch_failed.as_deref(),
        Some("\0 \u{1f512} \\u0000 \" ' \u{2028} $1 ?1")
    );
    assert_eq!(fleet.droplets, 10_000);
    assert_eq!(decisions.as_slice(), brought.decision.as_slice());
    assert_eq!(decisions.len(), 1);
    assert_eq!(Some(&case.case), dossier.case.as_ref());
    assert!(!case.locked);
    assert_eq!(reasons[0].reason.as_str(), WORDS);
    assert_eq!(*owner, Some(account("a")));
    let told = serde_json::to_value(Event::Decided {
        decision: 1,
        step: decisions[0].plan.step,
    });
    assert!(
        log.iter()
            .any(|entry| Ok(&entry.note.event) == told.as_ref().map_err(drop))
    );
    assert!(log.iter().all(|entry| entry.note.actor == person("ann")
        && entry.note.at == T0
        && entry.note.account == Some(account("a"))));
    drop(memory);
    let again = place.open().await;
    assert_eq!(look(&again).await, before);
    assert!(followed(&again).await >= 4);
}

pub(crate) async fn a_refused_change_keeps_nothing(place: Place) {
    let memory = place.open().await;
    let refuse = |dossier: &mut davy_decision::dossier::Dossier,
                  fleet: &mut davy_decision::fleet::Fleet| {
        dossier.letters_written = 99;
        fleet.droplets = 99;
        Err(refused())
    };
    for reach in [Reach::Account, Reach::Fleet] {
        let made = make(&memory, "a", reach, Arc::new(refuse)).await;
        assert!(
            matches!(&made, Err(LedgerError::Refused(refusal)) if *refusal == refused()),
            "{made:?}"
        );
    }
    assert_eq!(record_of(&memory, "a").await, None);
    assert_eq!(memory.accounts(None, 10).await.unwrap(), []);
    assert_eq!(memory.fleet().await.unwrap().droplets, 0);
    make(&memory, "a", Reach::Account, count_one())
        .await
        .unwrap();
    let refuse = Arc::new(refuse);
    assert!(make(&memory, "a", Reach::Fleet, refuse).await.is_err());
    assert_eq!(record_of(&memory, "a").await.unwrap().letters_written, 1);
    assert_eq!(followed(&memory).await, 1);
}

pub(crate) async fn a_change_that_cannot_be_kept_whole_is_not_kept_at_all(place: Place) {
    let memory = place.open().await;
    make(&memory, "a", Reach::Account, decided()).await.unwrap();
    let before = record_of(&memory, "a").await.unwrap();
    // The same number once more: the decision's row refuses it, after the record was written.
    let twice = Arc::new(
        |dossier: &mut davy_decision::dossier::Dossier, fleet: &mut davy_decision::fleet::Fleet| {
            dossier.decisions = 0;
            fleet.droplets = 7;
            let brought = decided()(dossier, fleet)?;
            dossier.letters_written = 99;
            Ok(brought)
        },
    );
    let made = make(&memory, "a", Reach::Fleet, twice).await;
    assert!(matches!(made, Err(LedgerError::Store(_))), "{made:?}");
    assert_eq!(record_of(&memory, "a").await.unwrap(), before);
    assert_eq!(memory.fleet().await.unwrap().droplets, 0);
    let entries = followed(&memory).await;
    make(&memory, "a", Reach::Account, count_one())
        .await
        .unwrap();
    assert_eq!(followed(&memory).await, entries + 1);
}

pub(crate) async fn who_does_not_reach_the_fleet_does_not_change_it(place: Place) {
    let memory = place.open().await;
    let stop = Arc::new(|fleet: &mut davy_decision::fleet::Fleet| {
        fleet.stop = Some(Stop {
            since: T0,
            by: "ann".to_owned(),
            why: "a drill".to_owned(),
        });
        vec![Event::Stopped {
            why: "a drill".to_owned(),
        }]
    });
    memory.change_fleet(person("ann"), T0, stop).await.unwrap();
    let looked = change(|dossier, fleet| {
        dossier.letters_written = u64::from(fleet.stop.is_some());
        fleet.stop = None;
        fleet.droplets = 7;
    });
    make(&memory, "a", Reach::Account, looked).await.unwrap();
    let fleet = memory.fleet().await.unwrap();
    assert!(fleet.stop.is_some(), "{fleet:?}");
    assert_eq!(fleet.droplets, 0);
    // It saw the fleet all the same.
    assert_eq!(record_of(&memory, "a").await.unwrap().letters_written, 1);
    let log = log(&memory).await;
    assert_eq!(log.len(), 1);
    assert_eq!(log[0].note.account, None);
}

pub(crate) async fn a_case_is_locked_while_its_account_is(place: Place) {
    let memory = place.open().await;
    let locked = async || memory.cases(false, 10).await.unwrap()[0].locked;
    for (step, is_locked) in [
        (decided(), None),
        (speak("k", minute(25)), Some(false)),
        (denies("ann", WORDS), Some(false)),
        (
            denies(
                "ben",
                "I looked at the windows myself and every one shows four modes",
            ),
            Some(false),
        ),
        (released(), Some(true)),
        (
            events(|dossier| {
                let by = davy_decision::case::Person("ann".to_owned());
                dossier.take_back(&by, &Settings::default(), minute(40))
            }),
            Some(false),
        ),
    ] {
        make(&memory, "a", Reach::Fleet, step).await.unwrap();
        if let Some(is_locked) = is_locked {
            assert_eq!(locked().await, is_locked);
            let dossier = record_of(&memory, "a").await.unwrap();
            assert_eq!(dossier.is_locked(), is_locked);
            assert_eq!(dossier.in_effect(Step::Lock).is_some(), is_locked);
        }
    }
}

pub(crate) async fn a_reason_is_kept_once_in_every_character(place: Place) {
    let memory = place.open().await;
    let strange =
        "all eight droplets\0 computed \u{1f512} hashes \"day\" and 'night' \\ without any rest";
    make(&memory, "a", Reach::Account, decided()).await.unwrap();
    make(&memory, "a", Reach::Account, speak("k", minute(25)))
        .await
        .unwrap();
    for step in [denies("ann", strange), count_one(), denies("ben", WORDS)] {
        make(&memory, "a", Reach::Account, step).await.unwrap();
    }
    let reasons = memory.reasons(10).await.unwrap();
    let texts: Vec<_> = reasons.iter().map(|given| given.reason.as_str()).collect();
    assert_eq!(texts, [WORDS, strange]);
    assert!(
        reasons
            .iter()
            .all(|given| given.case.account == account("a") && given.case.number == 1)
    );
    assert_eq!(memory.reasons(1).await.unwrap().len(), 1);
}

pub(crate) async fn droplets_belong_to_whose_inventory_came_last(place: Place) {
    let memory = place.open().await;
    let owner = async |name: &str| {
        let owner = memory.owner(droplet(name)).await.unwrap();
        owner.map(String::from).unwrap_or_default()
    };
    make(&memory, "a", Reach::Account, owns(&["d1", "d2"]))
        .await
        .unwrap();
    make(&memory, "b", Reach::Account, owns(&["d2", "d3"]))
        .await
        .unwrap();
    assert_eq!(
        [owner("d1").await, owner("d2").await, owner("d3").await],
        ["a", "b", "b"]
    );
    // Unchanged, and gone from one that never had it: nothing moves.
    make(&memory, "a", Reach::Account, count_one())
        .await
        .unwrap();
    make(&memory, "a", Reach::Account, owns(&["d4"]))
        .await
        .unwrap();
    assert_eq!(
        [owner("d1").await, owner("d2").await, owner("d4").await],
        ["", "b", "a"]
    );
    make(&memory, "b", Reach::Account, owns(&[])).await.unwrap();
    assert_eq!([owner("d2").await, owner("d3").await], ["", ""]);
}

/// Is named by [`Changed::due`].
pub(crate) fn due(at: Option<Time>) -> davy_detector::store::ledger::Change {
    Arc::new(move |dossier, _| {
        dossier.letters_written += 1;
        Ok(Changed {
            due: at,
            ..Changed::default()
        })
    })
}
