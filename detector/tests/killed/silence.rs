//! Killed while the control plane says nothing, has lost the order, or takes its time.

use davy_proto::v1::ActionOutcome;

use crate::cases::every;
use crate::program::until;
use crate::provider::Manner;
use crate::world::*;

/// Waits for the throttle's order, kills the detector that waits for its answer, and starts another.
async fn killed_waiting(world: &World, manner: Manner) -> crate::program::Program {
    world.before_throttle().await;
    world.provider.book().manner = manner;
    let program = world.run(None).await;
    until("the throttle is asked for", || async {
        !world.provider.book().orders(THROTTLE).is_empty()
    })
    .await;
    if matches!(manner, Manner::Slow(_)) {
        world.await_state(&program, THROTTLE, "in doubt").await;
    }
    program.kill().await;
    let records = world.records().await;
    let state = state_of(&records.dossier, THROTTLE);
    assert!(["released", "in doubt"].contains(&state), "{state}");
    world.run(None).await
}

async fn goes_on(world: World, manner: Manner) {
    let program = killed_waiting(&world, manner).await;
    // It is asked about for as long as nothing is known.
    until("the throttle is asked about", || async {
        !world.provider.book().answers(THROTTLE).is_empty()
    })
    .await;
    let slow = matches!(manner, Manner::Slow(_));
    if !slow {
        world.provider.book().manner = Manner::Answers;
    }
    world.await_state(&program, THROTTLE, "done").await;
    world.end(program).await;
    let book = world.provider.book();
    let (never, under_way, done) = (
        Some(ActionOutcome::NeverSeen),
        Some(ActionOutcome::UnderWay),
        Some(ActionOutcome::Done),
    );
    // However often it was asked: until something was known the same, and then no more.
    let (orders, first, then) = match manner {
        Manner::Silent => (1, None, done),
        // Found to be lost, and sent again.
        Manner::Deaf => (2, None, never),
        Manner::Slow(_) => (1, under_way, done),
        Manner::Answers => panic!("it is not silent"),
    };
    assert_eq!(book.orders(THROTTLE).len(), orders, "{manner:?}");
    let answers = book.answers(THROTTLE);
    let early = answers
        .iter()
        .take_while(|answer| **answer == first)
        .count();
    assert!(
        early > 0 && answers[early..].iter().all(|answer| *answer == then),
        "{answers:?}"
    );
    assert_eq!(answers.last(), Some(&then), "{manner:?}: {answers:?}");
}

const MANNERS: [Manner; 3] = [Manner::Silent, Manner::Deaf, Manner::Slow(1)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_an_order_without_an_answer_is_asked_about_and_not_sent_blindly() {
    every(Store::Sqlite, MANNERS, goes_on).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_an_order_without_an_answer_is_asked_about_and_not_sent_blindly() {
    every(Store::Postgres, MANNERS, goes_on).await;
}
