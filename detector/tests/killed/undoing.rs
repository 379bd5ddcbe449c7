//! Killed at each point of undoing what automation did, after a person has unlocked the account.

use crate::cases::every;
use crate::taking::{lies_dead, was_asked_about};
use crate::world::*;

async fn dies_and_goes_on(world: World, (point, passing, key): (&'static str, u8, &'static str)) {
    let program = world.run(None).await;
    world.await_state(&program, THROTTLE, "done").await;
    program.kill().await;

    let fault = format!("{point}:{passing}");
    let program = world.run(Some(&fault)).await;
    world.unlock(&program).await;
    program.dies().await;
    lies_dead(&world, point, key).await;

    let program = world.run(None).await;
    world.await_state(&program, UNDO_NOTIFY, "done").await;
    world.await_state(&program, UNDO_THROTTLE, "done").await;
    let records = world.end(program).await;
    assert_eq!(world.provider.book().effects.len(), 4);
    assert_eq!(records.dossier.holds.len(), 1);
    was_asked_about(&world, point, key);
}

fn deaths() -> Vec<(&'static str, u8, &'static str)> {
    let both = |point| [(point, 1, UNDO_NOTIFY), (point, 2, UNDO_THROTTLE)];
    POINTS.into_iter().flat_map(both).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_what_is_undone_is_undone_once_wherever_it_dies() {
    every(Store::Sqlite, deaths(), dies_and_goes_on).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_what_is_undone_is_undone_once_wherever_it_dies() {
    every(Store::Postgres, deaths(), dies_and_goes_on).await;
}
