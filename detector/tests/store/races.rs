//! Many at once: nothing is lost, no budget exceeded, nobody waits for ever. On PostgreSQL through two stores, as two detectors.

use std::sync::Arc;
use std::time::Duration;

use davy_decision::{dossier::Event, fleet::Fleet};
use davy_detector::store::Memory;
use davy_detector::store::ledger::Reach;
use tokio::task::JoinSet;

use crate::changes::WORDS;
use crate::place::{LIMITS, Place};
use crate::support::*;

pub(crate) const TASKS: u64 = 8;

/// `TASKS` tasks, each of which does `work(store, task, turn)` for every turn; all answers.
pub(crate) async fn at_once<T, F>(
    stores: &[Arc<dyn Memory>; 2],
    turns: u64,
    work: impl Fn(Arc<dyn Memory>, u64, u64) -> F + Send + Sync + Clone + 'static,
) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send,
{
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let store = Arc::clone(&stores[usize::try_from(task % 2).unwrap()]);
        let work = work.clone();
        tasks.spawn(async move {
            let mut answers = Vec::new();
            for turn in 0..turns {
                answers.push(work(Arc::clone(&store), task, turn).await);
            }
            answers
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

pub(crate) async fn no_change_of_one_account_is_lost(place: Place) {
    let stores = place.two(LIMITS).await;
    let made = at_once(&stores, 25, |store, _, turn| async move {
        let reach = [Reach::Account, Reach::Fleet][usize::try_from(turn % 2).unwrap()];
        make(&store, "a", reach, count_one()).await.is_ok()
    });
    assert!(made.await.into_iter().all(|made| made));
    let dossier = record_of(&stores[0], "a").await.unwrap();
    assert_eq!(dossier.letters_written, TASKS * 25);
    assert_eq!(followed(&stores[1]).await, TASKS * 25);
}

/// However many write the same reason at the same instant, it is one case's own.
pub(crate) async fn of_a_reason_given_at_once_in_many_cases_one_is_taken(place: Place) {
    let stores = place.two(LIMITS).await;
    for task in 0..TASKS {
        let name = format!("a{task}");
        make(&stores[0], &name, Reach::Account, decided())
            .await
            .unwrap();
    }
    let made = at_once(&stores, 1, |store, task, _| async move {
        let name = format!("a{task}");
        make(&store, &name, Reach::Account, denies("ann", WORDS)).await
    });
    let (taken, refused): (Vec<_>, Vec<_>) = made.await.into_iter().partition(Result::is_ok);
    assert_eq!(taken.len(), 1, "{refused:?}");
    for refusal in refused {
        let refusal = refusal.unwrap_err();
        assert!(refusal.to_string().contains("case a"), "{refusal}");
    }
    assert_eq!(stores[1].reasons(10).await.unwrap().len(), 1);
}

pub(crate) async fn the_audit_log_is_one_chain_whoever_writes(place: Place) {
    let stores = place.two(LIMITS).await;
    let made = at_once(&stores, 12, |store, task, turn| async move {
        if turn % 3 == 0 {
            let note = Arc::new(|_: &mut Fleet| vec![Event::Resumed, Event::Resumed]);
            store.change_fleet(person("ben"), T0, note).await.unwrap();
            2
        } else {
            let name = format!("a{}", task % 3);
            make(&store, &name, Reach::Account, count_one())
                .await
                .unwrap();
            1
        }
    });
    let written: u64 = made.await.into_iter().sum();
    assert_eq!(written, TASKS * 16);
    assert_eq!(followed(&stores[0]).await, written);
}

pub(crate) async fn accounts_that_swap_droplets_do_not_fail(place: Place) {
    let stores = place.two(LIMITS).await;
    let made = at_once(&stores, 10, |store, task, turn| async move {
        let own = [&["d1", "d2", "d3"][..], &["d3", "d4"], &["d4", "d1"]];
        let own = own[usize::try_from((task + turn) % 3).unwrap()];
        make(&store, &format!("a{}", task % 4), Reach::Account, owns(own)).await
    });
    for made in made.await {
        made.unwrap();
    }
}

pub(crate) async fn a_change_that_is_given_up_is_kept_whole_or_not_at_all(place: Place) {
    let stores = place.two(LIMITS).await;
    // More than there are connections: none of them may be lost with its caller.
    for n in 0..60 {
        let made = make(&stores[0], "a", Reach::Fleet, count_one());
        let given_up = tokio::time::timeout(Duration::from_micros(150 * (n % 20)), made);
        // Whether it was in time is not what this is about.
        let _ = given_up.await;
    }
    make(&stores[1], "a", Reach::Fleet, count_one())
        .await
        .unwrap();
    make(&stores[0], "a", Reach::Fleet, count_one())
        .await
        .unwrap();
    let dossier = record_of(&stores[0], "a").await.unwrap();
    assert_eq!(followed(&stores[1]).await, dossier.letters_written);
}

pub(crate) async fn two_that_are_opened_at_once_make_one_schema(place: Place) {
    if matches!(place, Place::Sqlite { .. }) {
        // The second is kept away by the first, and finds it whole afterwards.
        drop(place.open().await);
        place.open().await;
        return;
    }
    let (one, other) = tokio::join!(place.open(), place.open());
    make(&one, "a", Reach::Account, count_one()).await.unwrap();
    make(&other, "a", Reach::Account, count_one())
        .await
        .unwrap();
    assert_eq!(place.sql("SELECT count(*) FROM davy_schema").unwrap(), "1");
    assert_eq!(followed(&one).await, 2);
}
