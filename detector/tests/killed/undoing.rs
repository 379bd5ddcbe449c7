//! Killed at each point of undoing what automation did and what two people ruled, after a person has unlocked the account.

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

/// Two people ruled a lock or a power-down, and one of them unlocks the account after all.
async fn dies_taking_a_ruling_back(world: World, (point, measure): (&'static str, &'static str)) {
    let (key, undo) = match measure {
        "lock" => ("new/1/lock/1", "new/1/lock/1/undo"),
        _ => ("new/1/power_down/1", "new/1/power_down/1/undo"),
    };
    let program = world.run(None).await;
    world.await_state(&program, THROTTLE, "done").await;
    world.proposes_denial(&program, measure).await;
    world.agrees(&program, measure).await;
    world.await_state(&program, key, "done").await;
    program.kill().await;

    // What automation did is undone before it.
    let program = world.run(Some(&format!("{point}:3"))).await;
    world.unlock(&program).await;
    program.dies().await;
    lies_dead(&world, point, undo).await;

    let program = world.run(None).await;
    for undo in [UNDO_NOTIFY, UNDO_THROTTLE, undo] {
        world.await_state(&program, undo, "done").await;
    }
    world.end(program).await;
    assert_eq!(world.provider.book().effects.len(), 6);
    was_asked_about(&world, point, undo);
}

fn rulings() -> Vec<(&'static str, &'static str)> {
    let both = |point| [(point, "lock"), (point, "power_down")];
    POINTS.into_iter().flat_map(both).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_a_ruling_that_is_taken_back_is_undone_once_wherever_it_dies() {
    every(Store::Sqlite, rulings(), dies_taking_a_ruling_back).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_a_ruling_that_is_taken_back_is_undone_once_wherever_it_dies() {
    every(Store::Postgres, rulings(), dies_taking_a_ruling_back).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_what_is_undone_is_undone_once_wherever_it_dies() {
    every(Store::Sqlite, deaths(), dies_and_goes_on).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_what_is_undone_is_undone_once_wherever_it_dies() {
    every(Store::Postgres, deaths(), dies_and_goes_on).await;
}
