//! Killed at each point of taking an action: on the way to telling the customer, and on the way to the throttle.

use davy_proto::v1::ActionOutcome;

use crate::cases::every;
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

/// What was asked about `key`: nothing that was known, and what was in doubt.
pub(crate) fn was_asked_about(world: &World, point: &str, key: &str) {
    let answers = world.provider.book().answers(key);
    match point {
        "released" => assert_eq!(answers, [Some(ActionOutcome::NeverSeen)], "{key}"),
        "delivered" => assert_eq!(answers, [Some(ActionOutcome::Done)], "{key}"),
        _ => assert!(answers.is_empty(), "{point} of {key}: {answers:?}"),
    }
}

async fn dies_and_goes_on(world: World, (point, passing, key): (&'static str, u8, &'static str)) {
    let fault = format!("{point}:{passing}");
    world.run(Some(&fault)).await.dies().await;
    lies_dead(&world, point, key).await;
    let program = world.run(None).await;
    world.await_state(&program, NOTIFY, "done").await;
    world.await_state(&program, THROTTLE, "done").await;
    world.end(program).await;
    assert_eq!(world.provider.book().effects.len(), 2);
    was_asked_about(&world, point, key);
}

fn deaths() -> Vec<(&'static str, u8, &'static str)> {
    let both = |point| [(point, 1, NOTIFY), (point, 2, THROTTLE)];
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
