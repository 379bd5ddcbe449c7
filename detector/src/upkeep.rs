//! What the detector does by itself beside its services: changed policies are looked for, the fleet is counted, what is old is removed.

use std::sync::Arc;
use std::time::Duration;

use davy_decision::audit::Actor;
use tokio::sync::watch;

use crate::desk::Desk;
use crate::evidence::FRESH_NS;
use crate::metrics::Metrics;
use crate::policy::{Held, SETTINGS_FILE, warnings};
use crate::server::stopping;
use crate::store::{Evicted, Store, StoreError};
use crate::unix_now_ns;

/// How often changed policies are looked for; the second look takes what the first one found.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// How often the fleet's droplets are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(30);
/// How often what is old is removed.
const EVICT_INTERVAL: Duration = Duration::from_secs(60);

/// Keeps the text of the policies in force, so that what is decided under them can be replayed.
///
/// # Errors
/// A failure of the storage.
pub async fn keep_policies(desk: &Desk, policies: &Held) -> Result<(), StoreError> {
    let digest = policies.now().digest().to_owned();
    desk.ledger.keep_policies(digest, policies.files()).await
}

/// Warns of what is odd about the policies in force.
pub async fn warn_of_policies(policies: &Held) {
    let now = policies.now();
    // Thousands of situations are drawn.
    let warnings = tokio::task::spawn_blocking(move || warnings(&now)).await;
    for warning in warnings.unwrap_or_default() {
        tracing::warn!("policy: {warning}");
    }
}

/// Takes changed policies, their text kept first: under what is not kept nothing is decided.
async fn reload(desk: &Desk, policies: &Held, metrics: &Metrics) {
    if policies.settings_changed() {
        tracing::warn!(
            "{SETTINGS_FILE} was changed; the settings of the start stay in force: restart the detector to take it"
        );
    }
    let changed = match policies.changed() {
        Ok(None) => return,
        Ok(Some(changed)) => changed,
        Err(error) => {
            metrics.policy_reload_failed();
            tracing::error!(%error, "the changed policies do not hold; those in force stay");
            return;
        }
    };
    let (digest, files) = (changed.0.digest().to_owned(), changed.1.clone());
    if let Err(error) = desk.ledger.keep_policies(digest.clone(), files).await {
        metrics.policy_reload_failed();
        tracing::error!(%error, "the text of the changed policies could not be kept; those in force stay until it is");
        return;
    }
    policies.take(changed);
    tracing::info!(digest, "changed policies are in force");
    warn_of_policies(policies).await;
}

/// Calls `work` every `interval` until the server stops.
async fn every<F: Future<Output = ()>>(
    interval: Duration,
    stopped: watch::Receiver<bool>,
    mut work: impl FnMut() -> F,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let stopping = stopping(stopped);
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            () = &mut stopping => return,
            _ = ticks.tick() => work().await,
        }
    }
}

/// Takes changed policies, if all of them holds.
pub async fn reload_forever(
    desk: Desk,
    policies: Arc<Held>,
    metrics: Arc<Metrics>,
    stopped: watch::Receiver<bool>,
) {
    every(RELOAD_INTERVAL, stopped, || {
        reload(&desk, &policies, &metrics)
    })
    .await;
}

/// The fleet's size is what is seen of it: the share that automation may act on is a share of that.
pub async fn count_forever(desk: Desk, store: Arc<dyn Store>, stopped: watch::Receiver<bool>) {
    every(COUNT_INTERVAL, stopped, || async {
        let counted = store
            .tenants_by_level(unix_now_ns().saturating_sub(FRESH_NS))
            .await;
        let counted = match counted {
            Ok(counted) => counted.quiet + counted.suspect + counted.mining,
            Err(error) => {
                tracing::warn!(%error, "the fleet could not be counted");
                return;
            }
        };
        let change = move |fleet: &mut davy_decision::fleet::Fleet| {
            fleet.droplets = counted;
            Vec::new()
        };
        let held = desk.ledger.fleet().await.map(|fleet| fleet.droplets);
        if !held.is_ok_and(|held| held == counted)
            && let Err(error) = desk.change_fleet(Actor::Automation, Arc::new(change)).await
        {
            tracing::warn!(%error, "the fleet's size could not be kept");
        }
    })
    .await;
}

/// Removes what is old, in small steps.
pub async fn evict_forever(
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    stopped: watch::Receiver<bool>,
) {
    let mut ticks = tokio::time::interval(EVICT_INTERVAL);
    let stopping = stopping(stopped);
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            () = &mut stopping => return,
            _ = ticks.tick() => {}
        }
        // In small steps, between which windows are stored; until nothing is old.
        loop {
            match store.evict(unix_now_ns()).await {
                Ok(evicted) if evicted == Evicted::default() => break,
                Ok(evicted) => metrics.evicted(evicted),
                Err(error) => {
                    tracing::warn!(%error, "what is old could not be removed; trying again in a minute");
                    break;
                }
            }
        }
    }
}
