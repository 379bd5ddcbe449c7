//! Something speaks against the throttle by the time the detector is started again: what has not arrived never leaves, and what was in
//! doubt and has arrived is undone, but for the budget, which it has used up itself. What was known to be done is undone if the safety is
//! the customer's own.

use crate::cases::every;
use crate::provider::Says;
use crate::world::*;

/// What came up while it was dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    /// The directory says that high CPU is allowed.
    Allowed,
    /// A person unlocked.
    Unlocked,
    /// The customer wrote.
    Wrote,
    /// The directory cannot be asked.
    NoDirectory,
    /// The kill switch is on.
    Stopped,
    /// The budget is used up.
    Budget,
}

/// How far the throttle comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// It never leaves.
    Withheld,
    /// It has arrived, and is taken back.
    Undone,
    /// It has arrived, and stands.
    Stands,
}

const MEANWHILES: [Meanwhile; 6] = [
    Meanwhile::Allowed,
    Meanwhile::Unlocked,
    Meanwhile::Wrote,
    Meanwhile::NoDirectory,
    Meanwhile::Stopped,
    Meanwhile::Budget,
];

fn ends(point: &str, meanwhile: Meanwhile) -> Ends {
    match (point, meanwhile) {
        ("before_release" | "released", _) => Ends::Withheld,
        (_, Meanwhile::Allowed | Meanwhile::Unlocked) => Ends::Undone,
        (_, Meanwhile::Budget) => Ends::Stands,
        // It was in doubt when they wrote; what is done and known, a person is to look at.
        ("delivered", _) => Ends::Undone,
        _ => Ends::Stands,
    }
}

async fn is_heeded(world: World, (point, meanwhile): (&'static str, Meanwhile)) {
    let ends = ends(point, meanwhile);
    world.dies_on_throttle(point).await;
    match meanwhile {
        Meanwhile::Allowed => world.provider.book().says = Says::Allowed,
        Meanwhile::NoDirectory => world.provider.book().says = Says::Down,
        Meanwhile::Stopped => world.stop_automation().await,
        Meanwhile::Budget => world.use_up_the_budget().await,
        Meanwhile::Wrote => world.customer_writes().await,
        Meanwhile::Unlocked => world.unlocked_elsewhere().await,
    }
    let program = world.run(None).await;
    let (key, state) = match ends {
        Ends::Withheld => (THROTTLE, "withheld"),
        Ends::Undone => (UNDO_THROTTLE, "done"),
        Ends::Stands => (THROTTLE, "done"),
    };
    world.await_state(&program, key, state).await;
    world.end(program).await;
    let book = world.provider.book();
    let wanted = [
        (THROTTLE, usize::from(ends != Ends::Withheld)),
        (UNDO_THROTTLE, usize::from(ends == Ends::Undone)),
        (NOTIFY, 1),
        // An unlock takes the notice back as well.
        (UNDO_NOTIFY, usize::from(meanwhile == Meanwhile::Unlocked)),
    ];
    for (key, times) in wanted {
        assert_eq!(book.took_effect(key), times, "{key}: {:?}", book.came);
    }
    // Not even an order that the control plane would have refused.
    let sent = book.orders(THROTTLE).len();
    assert_eq!(sent, usize::from(ends != Ends::Withheld));
}

fn all() -> Vec<(&'static str, Meanwhile)> {
    let each = |point| MEANWHILES.map(|meanwhile| (point, meanwhile));
    POINTS.into_iter().flat_map(each).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_a_safety_of_the_meantime_stops_or_undoes_what_is_in_doubt() {
    every(Store::Sqlite, all(), is_heeded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_a_safety_of_the_meantime_stops_or_undoes_what_is_in_doubt() {
    every(Store::Postgres, all(), is_heeded).await;
}
