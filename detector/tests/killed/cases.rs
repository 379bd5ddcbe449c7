//! Runs the cases of a test side by side, each in a world of its own.

use std::fmt::Debug;

use tokio::task::JoinSet;

use crate::world::{Store, World};

/// Plays `play` for each case; all of them must hold.
pub(crate) async fn every<C, F>(
    store: Store,
    cases: impl IntoIterator<Item = C>,
    play: impl Fn(World, C) -> F + Copy + Send + 'static,
) where
    C: Copy + Debug + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let mut all = JoinSet::new();
    for case in cases {
        all.spawn(async move {
            let played = tokio::spawn(async move {
                if let Some(world) = World::new(store).await {
                    play(world, case).await;
                }
            });
            (case, played.await)
        });
    }
    let mut failed = Vec::new();
    while let Some(joined) = all.join_next().await {
        let (case, played) = joined.unwrap();
        if played.is_err() {
            failed.push(format!("{case:?}"));
        }
    }
    failed.sort();
    assert!(failed.is_empty(), "failed, see above: {failed:#?}");
}
