//! Two detectors on one PostgreSQL: one is killed, and the other, which has lived all the time, goes on.

use crate::cases::every;
use crate::program::{Program, until};
use crate::taking::{lies_dead, was_asked_about};
use crate::world::*;

/// Stops it between two transactions: what it held would be held until it goes on, or the server ends its session.
async fn rests(world: &World, program: &Program) {
    let begun = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                 AND xact_start IS NOT NULL";
    until("it holds no transaction", || async {
        program.pause().await;
        let held = world.place.sql(begun).unwrap();
        if held.trim() != "0" {
            program.resume().await;
        }
        held.trim() == "0"
    })
    .await;
}

/// The other one rests (SIGSTOP) until the first is dead, so that it is the first that dies on the way.
async fn takes_over(world: World, point: &'static str) {
    let mut other = world.counted(None).await;
    rests(&world, &other).await;
    world.dies_on_throttle(point).await;
    lies_dead(&world, point, THROTTLE).await;
    other.resume().await;
    other.report_miner();
    world.await_state(&other, NOTIFY, "done").await;
    world.await_state(&other, THROTTLE, "done").await;
    world.end(other).await;
    assert_eq!(world.provider.book().sorted(), sorted([NOTIFY, THROTTLE]));
    was_asked_about(&world, point, THROTTLE);
}

/// Both work, and one of them is killed when an action has arrived: whoever sent it.
async fn goes_on_beside(world: World, key: &'static str) {
    let mut other = world.counted(None).await;
    let first = world.run(None).await;
    until("it is asked for", || async {
        !world.provider.book().orders(key).is_empty()
    })
    .await;
    first.kill().await;
    other.report_miner();
    world.await_state(&other, NOTIFY, "done").await;
    world.await_state(&other, THROTTLE, "done").await;
    world.end(other).await;
    assert_eq!(world.provider.book().sorted(), sorted([NOTIFY, THROTTLE]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_that_lives_takes_over_wherever_the_first_dies() {
    every(Store::Postgres, POINTS, takes_over).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_work_at_once_do_it_once_though_one_dies() {
    every(Store::Postgres, [NOTIFY, THROTTLE], goes_on_beside).await;
}
