//! The detector as a whole: binds, serves gRPC and `/metrics`, removes what is old, and stops without losing an
//! acknowledged window.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use davy_proto::v1::inventory_server::InventoryServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

use crate::config::{Config, ConfigError};
use crate::evidence::FRESH_NS;
use crate::ingest::Ingest;
use crate::ingest::live::Live;
use crate::ingest::service::TelemetryService;
use crate::inventory::InventoryService;
use crate::metrics::Metrics;
use crate::store::sqlite::Sqlite;
use crate::store::{Evicted, Store, StoreError};
use crate::unix_now_ns;

/// How often what is old is removed.
const EVICT_INTERVAL: Duration = Duration::from_secs(60);
/// How long a connection may be silent before it is asked whether it lives, and how long it may take to answer:
/// an agent whose host died must not keep its place.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long a shutdown waits for calls in work.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);

/// Why the detector cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store is not usable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}; stop what uses it or give another {option}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The command line's option for it.
        option: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// A running detector. Dropped without [`Server::shutdown`], it goes on until the runtime ends.
pub struct Server {
    /// Where gRPC is served; with the real port.
    pub grpc_addr: SocketAddr,
    /// Where `/metrics` is served; with the real port.
    pub metrics_addr: SocketAddr,
    live: Live,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    store: Arc<dyn Store>,
}

#[derive(Clone)]
struct Scrape {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    live: Live,
}

async fn listen(
    address: SocketAddr,
    option: &'static str,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen {
        address,
        option,
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

impl Server {
    /// Starts a detector; when this returns it listens.
    ///
    /// # Errors
    /// [`StartError`], one sentence that says what to do.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let limits = config.store_limits()?;
        // The addresses first: a second detector started by mistake then says so, whatever its database.
        let (grpc, grpc_addr) = listen(config.listen, "--listen").await?;
        let (http, metrics_addr) = listen(config.metrics_listen, "--metrics-listen").await?;
        let database = config.database.clone();
        let sqlite = tokio::task::spawn_blocking(move || Sqlite::open(&database, limits))
            .await
            .map_err(|error| StoreError::Failed {
                what: "opening the database",
                why: error.to_string(),
            })??;
        let store: Arc<dyn Store> = Arc::new(sqlite);
        let (metrics, live) = (Arc::new(Metrics::new()), Live::default());
        let (stop, stopped) = watch::channel(false);
        let tasks = vec![
            tokio::spawn(serve_grpc(
                grpc,
                Ingest::new(Arc::clone(&store), Arc::clone(&metrics), live.clone()),
                InventoryService::new(Arc::clone(&store), Arc::clone(&metrics), live.clone()),
                stopped.clone(),
            )),
            tokio::spawn(serve_metrics(
                http,
                Scrape {
                    store: Arc::clone(&store),
                    metrics: Arc::clone(&metrics),
                    live: live.clone(),
                },
                stopped.clone(),
            )),
            tokio::spawn(evict_forever(Arc::clone(&store), metrics, stopped)),
        ];
        tracing::info!(database = %config.database.display(), "listening on http://{grpc_addr}");
        tracing::info!("metrics on http://{metrics_addr}/metrics");
        Ok(Self {
            grpc_addr,
            metrics_addr,
            live,
            stop,
            tasks,
            store,
        })
    }

    /// Ends every stream (the agents are told to come back later), waits for what is in work, and closes the store.
    pub async fn shutdown(self) {
        let Self {
            live,
            stop,
            tasks,
            store,
            ..
        } = self;
        // Nobody may listen any more; then there is nothing to stop.
        let _ = stop.send(true);
        live.close();
        for mut task in tasks {
            if tokio::time::timeout(SHUTDOWN_MAX, &mut task).await.is_err() {
                task.abort();
                // Its end is awaited, so that its hold on the store is gone.
                let _ = task.await;
            }
        }
        // The store closes with its last holder; streams' tasks end within moments.
        let closed = tokio::task::spawn_blocking(move || {
            for _ in 0..100 {
                if Arc::strong_count(&store) == 1 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(store);
        });
        if closed.await.is_err() {
            tracing::error!("the store could not be closed");
        }
    }
}

async fn stopping(mut stopped: watch::Receiver<bool>) {
    // An error means the server was dropped without a shutdown: serve on.
    if stopped.wait_for(|stopped| *stopped).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn serve_grpc(
    listener: TcpListener,
    ingest: Ingest,
    inventory: InventoryService,
    stopped: watch::Receiver<bool>,
) {
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .tcp_nodelay(true)
        .add_service(TelemetryService::new(ingest))
        .add_service(InventoryServer::new(inventory))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopping(stopped))
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "serving gRPC ended");
    }
}

async fn serve_metrics(listener: TcpListener, scrape: Scrape, stopped: watch::Receiver<bool>) {
    let routes = axum::Router::new()
        .route("/metrics", axum::routing::get(metrics))
        .with_state(scrape);
    if let Err(error) = axum::serve(listener, routes)
        .with_graceful_shutdown(stopping(stopped))
        .await
    {
        tracing::error!(%error, "serving metrics ended");
    }
}

async fn metrics(
    State(Scrape {
        store,
        metrics,
        live,
    }): State<Scrape>,
) -> impl IntoResponse {
    let tenants = match store
        .tenants_by_level(unix_now_ns().saturating_sub(FRESH_NS))
        .await
    {
        Ok(tenants) => Some(tenants),
        Err(error) => {
            tracing::warn!(%error, "tenants could not be counted for a scrape");
            None
        }
    };
    let content = [(
        CONTENT_TYPE,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )];
    (content, metrics.render(live.hosts(), tenants))
}

async fn evict_forever(
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
