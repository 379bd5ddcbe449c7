//! Killed at each point of taking an action: when it is decided, on the way to telling the customer, and on the way to the throttle.

use davy_proto::v1::ActionOutcome;

use crate::cases::every;
use crate::provider::Came;
use crate::world::*;

/// What has to be so when it lies dead at a point of `key`'s way.
pub(crate) async fn lies_dead(world: &World, point: &str, key: &str) {
    let records = world.records().await;
    let state = state_of(&records.dossier, key);
    let came = world.provider.book().orders(key).len();
    let expected = match point {
        "before_release" => ("planned", 0),
        "released" => ("released", 0),
        "delivered" => ("released", 1),
        "learnt" => ("done", 1),
        other => panic!("no such point: {other}"),
    };
    assert_eq!((state, came), expected, "{point} of {key}");
}

/// What was asked about `key`, which arrived once in the end: nothing that was known, and what was in doubt.
pub(crate) fn was_asked_about(world: &World, point: &str, key: &str) {
    let book = world.provider.book();
    let about = book.about(key);
    assert_eq!(book.orders(key).len(), 1, "{point} of {key}: {about:?}");
    let asked = |came: &Came, says| matches!(came, Came::Query { answer: Some(answer), .. } if *answer == says);
    let holds = match (point, &about[..]) {
        // It had not left: it does so when the control plane has said that it never came.
        ("released", [first, ..]) => asked(first, ActionOutcome::NeverSeen),
        ("delivered", [Came::Order { .. }, .., last]) => asked(last, ActionOutcome::Done),
        ("learnt", [.., last]) => matches!(last, Came::Order { .. }),
        (_, about) => !about.is_empty(),
    };
    assert!(holds, "{point} of {key}: {about:?}");
}

async fn dies_and_goes_on(world: World, (point, key): (&'static str, &'static str)) {
    if key == THROTTLE {
        world.dies_on_throttle(point).await;
    } else {
        world.run(Some(&format!("{point}:1"))).await.dies().await;
    }
    lies_dead(&world, point, key).await;
    let program = world.run(None).await;
    world.await_state(&program, NOTIFY, "done").await;
    world.await_state(&program, THROTTLE, "done").await;
    world.end(program).await;
    assert_eq!(world.provider.book().sorted(), sorted([NOTIFY, THROTTLE]));
    was_asked_about(&world, point, key);
}

/// The decision is stored, and nothing of what it planned has left.
async fn dies_when_it_is_decided(world: World, (): ()) {
    // What the evidence's first moments amount to may be decided on its own.
    for _ in 0..TRIES_MAX {
        world.run(Some("decided:1")).await.dies().await;
        let records = world.records().await;
        if state_of(&records.dossier, THROTTLE) == "planned" {
            assert!(world.provider.book().came.is_empty());
            let program = world.run(None).await;
            world.await_state(&program, NOTIFY, "done").await;
            world.await_state(&program, THROTTLE, "done").await;
            world.end(program).await;
            assert_eq!(world.provider.book().sorted(), sorted([NOTIFY, THROTTLE]));
            return;
        }
    }
    panic!("no decision planned the throttle");
}

fn deaths() -> Vec<(&'static str, &'static str)> {
    let both = |point| [(point, NOTIFY), (point, THROTTLE)];
    POINTS.into_iter().flat_map(both).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_each_action_arrives_once_wherever_it_dies() {
    every(Store::Sqlite, deaths(), dies_and_goes_on).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_each_action_arrives_once_wherever_it_dies() {
    every(Store::Postgres, deaths(), dies_and_goes_on).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_what_was_decided_is_done_though_it_dies_then() {
    every(Store::Sqlite, [()], dies_when_it_is_decided).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_what_was_decided_is_done_though_it_dies_then() {
    every(Store::Postgres, [()], dies_when_it_is_decided).await;
}
