//! The line to PostgreSQL breaks while commits are under way, again and again: the detector does not know whether they were kept
//! (`StoreError::Unknown`), goes by the records, and is killed on top of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::place::Place;
use crate::proxy::{Cut, Proxy};
use crate::world::*;

/// As it goes over the line, and as no other statement has it (`READ COMMITTED`).
const COMMIT: &str = "COMMIT\0";
/// A word that nobody says.
const NEVER: &str = "\0never\0";
/// Times between two cuts, ms: now commits one after the other break, now some work gets through.
const CUT_AFTER_MS: [u64; 7] = [20, 700, 60, 1_200, 150, 900, 400];

/// Cuts the line at a commit again and again, before and after the server has heard it.
async fn cut_forever(proxy: Arc<Proxy>, cuts: Arc<AtomicU64>) {
    let before = [true, false].into_iter().cycle();
    for (before, after_ms) in before.zip(CUT_AFTER_MS.into_iter().cycle()) {
        proxy.arm(match before {
            true => Cut::Before(COMMIT),
            false => Cut::After(COMMIT, COMMIT),
        });
        while !proxy.was_cut() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cuts.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_may_or_may_not_have_been_kept_lose_and_double_nothing() {
    let Some(place) = tokio::task::spawn_blocking(Place::postgres).await.unwrap() else {
        return;
    };
    let Place::Postgres { server, database } = &place else {
        panic!("PostgreSQL alone has a line to be cut");
    };
    let proxy = Arc::new(Proxy::start(server.socket()));
    let url = davy_test_postgres::url_at(proxy.directory(), database, "davy");
    let world = World::at(place, url).await;
    let cuts = Arc::new(AtomicU64::new(0));
    let cut = || tokio::spawn(cut_forever(Arc::clone(&proxy), Arc::clone(&cuts)));

    // Where a commit of its start is in doubt it says so and ends: the line is cut from when it runs.
    let mut program = world.counted(None).await;
    let cutting = cut();
    program.report_miner();
    world.await_state(&program, THROTTLE, "done").await;
    program.kill().await;
    cutting.abort();
    proxy.arm(Cut::Before(NEVER));

    let mut program = world.counted(None).await;
    let cutting = cut();
    program.report_miner();
    // Whether an unlock was kept is not known either: it is asked for until it is there.
    while matches!(
        state_now(&program, UNDO_THROTTLE).await,
        "absent" | "not told"
    ) {
        world.unlock(&program).await;
    }
    world.await_state(&program, UNDO_NOTIFY, "done").await;
    world.await_state(&program, UNDO_THROTTLE, "done").await;
    cutting.abort();
    proxy.arm(Cut::Before(NEVER));
    world.end(program).await;
    assert_eq!(world.provider.book().effects.len(), 4);
    let cuts = cuts.load(Ordering::SeqCst);
    // Each way at least once.
    assert!(cuts >= 2, "the line was cut {cuts} times only");
}
