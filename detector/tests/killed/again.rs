//! Killed again and again on the way of one and the same action, also while it is found out what became of it.

use davy_proto::v1::ActionOutcome;

use crate::cases::every;
use crate::world::*;

/// Where each detector dies that goes on after the one before.
const DEATHS: [&str; 5] = [
    "released:2",
    "asked:1",
    "released:1",
    "delivered:1",
    "asked:1",
];

async fn dies_again_and_again(world: World, (): ()) {
    for fault in DEATHS {
        world.run(Some(fault)).await.dies().await;
    }
    let program = world.run(None).await;
    world.await_state(&program, THROTTLE, "done").await;
    world.end(program).await;
    let book = world.provider.book();
    assert_eq!(book.effects, [NOTIFY, THROTTLE]);
    assert_eq!(book.orders(THROTTLE).len(), 1);
    let (never, done) = (Some(ActionOutcome::NeverSeen), Some(ActionOutcome::Done));
    // What a detector was told and took to its grave is asked anew.
    assert_eq!(book.answers(THROTTLE), [never, never, never, done, done]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_an_action_arrives_once_however_often_it_dies() {
    every(Store::Sqlite, [()], dies_again_and_again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_an_action_arrives_once_however_often_it_dies() {
    every(Store::Postgres, [()], dies_again_and_again).await;
}
