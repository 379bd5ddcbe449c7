//! Killed again and again on the way of one and the same action, also while it is found out what became of it.

use davy_proto::v1::ActionOutcome;

use crate::cases::every;
use crate::provider::Came;
use crate::world::*;

/// Where each detector dies that goes on after the one before: the throttle is planned then.
const DEATHS: [&str; 7] = [
    "released:1",
    "asked:1",
    "told:1",
    "released:1",
    "delivered:1",
    "asked:1",
    "told:1",
];

async fn dies_again_and_again(world: World, (): ()) {
    world.before_throttle().await;
    for fault in DEATHS {
        world.run(Some(fault)).await.dies().await;
    }
    let program = world.run(None).await;
    world.await_state(&program, THROTTLE, "done").await;
    world.end(program).await;
    let book = world.provider.book();
    assert_eq!(book.sorted(), sorted([NOTIFY, THROTTLE]));
    // What a detector was told and took to its grave is asked anew: once at each death at least, and never after it is known.
    let about = book.about(THROTTLE);
    let order = about
        .iter()
        .position(|came| matches!(came, Came::Order { .. }));
    let (before, after) = about.split_at(order.unwrap());
    let all = |came: &[&Came], says| {
        (came.iter())
            .all(|came| matches!(came, Came::Query { answer: Some(answer), .. } if *answer == says))
    };
    assert!(
        before.len() >= 3 && all(before, ActionOutcome::NeverSeen),
        "{about:?}"
    );
    assert!(
        after.len() >= 3 && all(&after[1..], ActionOutcome::Done),
        "{about:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_an_action_arrives_once_however_often_it_dies() {
    every(Store::Sqlite, [()], dies_again_and_again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_an_action_arrives_once_however_often_it_dies() {
    every(Store::Postgres, [()], dies_again_and_again).await;
}
