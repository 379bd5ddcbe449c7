//! Killed at each point of what people asked for: a step that two of them ruled, a letter to the customer, a page to on-call.

use crate::cases::every;
use crate::taking::{lies_dead, was_asked_about};
use crate::world::*;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    /// Two people deny, with this measure.
    Ruling(&'static str),
    /// A person answers the customer.
    Letter,
    /// Nobody answers the customer in time.
    Page,
}

impl Asks {
    fn key(self) -> &'static str {
        match self {
            Self::Ruling("lock") => "new/1/lock/1",
            Self::Ruling(_) => "new/1/power_down/1",
            Self::Letter | Self::Page => "new/letter/1",
        }
    }

    const fn verb(self) -> &'static str {
        match self {
            Self::Ruling(measure) => measure,
            Self::Letter => "message",
            Self::Page => "page",
        }
    }
}

async fn dies_and_goes_on(world: World, (point, asks): (&'static str, Asks)) {
    let program = world.run(None).await;
    world.await_state(&program, NOTIFY, "done").await;
    world.await_state(&program, THROTTLE, "done").await;
    if let Asks::Ruling(measure) = asks {
        world.proposes_denial(&program, measure).await;
    }
    program.kill().await;
    if asks == Asks::Page {
        world.customer_writes().await;
    }

    let program = world.run(Some(&format!("{point}:1"))).await;
    match asks {
        Asks::Ruling(measure) => world.agrees(&program, measure).await,
        Asks::Letter => world.answers(&program).await,
        Asks::Page => {}
    }
    program.dies().await;
    lies_dead(&world, point, asks.key()).await;

    let program = world.run(None).await;
    world.await_state(&program, asks.key(), "done").await;
    world.end(program).await;
    was_asked_about(&world, point, asks.key());
    let book = world.provider.book();
    assert_eq!(book.orders(asks.key())[0].verb, asks.verb());
    for key in [NOTIFY, THROTTLE, asks.key()] {
        assert_eq!(book.took_effect(key), 1, "{key}: {:?}", book.effects);
    }
}

fn deaths() -> Vec<(&'static str, Asks)> {
    let all = |point| {
        [
            (point, Asks::Ruling("lock")),
            (point, Asks::Ruling("power_down")),
            (point, Asks::Letter),
            (point, Asks::Page),
        ]
    };
    POINTS.into_iter().flat_map(all).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_what_people_asked_for_arrives_once_wherever_it_dies() {
    every(Store::Sqlite, deaths(), dies_and_goes_on).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_what_people_asked_for_arrives_once_wherever_it_dies() {
    every(Store::Postgres, deaths(), dies_and_goes_on).await;
}
