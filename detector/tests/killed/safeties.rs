//! Something speaks against the throttle by the time the detector is started again: what has not arrived never leaves, and what has
//! arrived is undone if the safety is the customer's own.

use crate::cases::every;
use crate::provider::Says;
use crate::world::*;

/// What came up while it was dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    /// The directory says that high CPU is allowed.
    Allowed,
    /// The directory cannot be asked.
    NoDirectory,
    /// The kill switch is on.
    Stopped,
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

const CASES: [(&str, Meanwhile, Ends); 9] = [
    ("before_release", Meanwhile::Allowed, Ends::Withheld),
    ("before_release", Meanwhile::NoDirectory, Ends::Withheld),
    ("before_release", Meanwhile::Stopped, Ends::Withheld),
    ("released", Meanwhile::Allowed, Ends::Withheld),
    ("released", Meanwhile::NoDirectory, Ends::Withheld),
    ("released", Meanwhile::Stopped, Ends::Withheld),
    ("delivered", Meanwhile::Allowed, Ends::Undone),
    ("delivered", Meanwhile::Stopped, Ends::Stands),
    ("learnt", Meanwhile::Allowed, Ends::Undone),
];

async fn is_heeded(world: World, (point, meanwhile, ends): (&'static str, Meanwhile, Ends)) {
    let fault = format!("{point}:2");
    world.run(Some(&fault)).await.dies().await;
    match meanwhile {
        Meanwhile::Allowed => world.provider.book().says = Says::Allowed,
        Meanwhile::NoDirectory => world.provider.book().says = Says::Down,
        Meanwhile::Stopped => world.stop_automation().await,
    }
    let program = world.run(None).await;
    let (key, state, effects) = match ends {
        Ends::Withheld => (THROTTLE, "withheld", vec![NOTIFY]),
        Ends::Undone => (UNDO_THROTTLE, "done", vec![NOTIFY, THROTTLE, UNDO_THROTTLE]),
        Ends::Stands => (THROTTLE, "done", vec![NOTIFY, THROTTLE]),
    };
    world.await_state(&program, key, state).await;
    world.end(program).await;
    let book = world.provider.book();
    assert_eq!(book.effects, effects);
    // Not even an order that the control plane would have refused.
    let sent = book.orders(THROTTLE).len();
    assert_eq!(sent, usize::from(ends != Ends::Withheld));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_a_safety_of_the_meantime_stops_or_undoes_what_is_in_doubt() {
    every(Store::Sqlite, CASES, is_heeded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_a_safety_of_the_meantime_stops_or_undoes_what_is_in_doubt() {
    every(Store::Postgres, CASES, is_heeded).await;
}
