//! The detector as a whole: binds, serves gRPC and `/metrics`, removes what is old, and stops without losing an
//! acknowledged window.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use davy_proto::v1::account_intake_server::AccountIntakeServer;
use davy_proto::v1::{
    automation_server::AutomationServer, cases_server::CasesServer,
    inventory_server::InventoryServer, safety_service_server::SafetyServiceServer,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;

use crate::account::attribute::Attribution;
use crate::account::directory::{Directory, NoDirectory};
use crate::account::intake::Intake;
use crate::account::webhook;
use crate::action::config::ProviderError;
use crate::action::driver::Driver;
use crate::action::dry_run::DryRun;
use crate::automation::AutomationService;
use crate::case::service::CasesService;
use crate::config::{Config, ConfigError};
use crate::desk::{Desk, system_clock};
use crate::engine::Engine;
use crate::evidence::FRESH_NS;
use crate::ingest::Ingest;
use crate::ingest::live::Live;
use crate::ingest::service::TelemetryService;
use crate::inventory::InventoryService;
use crate::metrics::Metrics;
use crate::people::{Gate, TokenConfig};
use crate::policy::{Held, PolicyDirError, read_settings};
use crate::safety_service::Safeties;
use crate::signature::{Secret, SecretError};
use crate::store::{self, Memory, Store, StoreError};
use crate::unix_now_ns;
use crate::upkeep::{
    count_forever, evict_forever, keep_policies, reload_forever, warn_of_policies,
};

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
    /// The policies do not hold.
    #[error(transparent)]
    Policy(#[from] PolicyDirError),
    /// The provider's side cannot be reached as configured.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The webhook's secret cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
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
    /// Where the webhook is served; none if it is not.
    pub webhook_addr: Option<SocketAddr>,
    live: Live,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// Where records are changed.
    pub desk: Desk,
    store: Arc<dyn Memory>,
}

/// The provider's side: where facts come from, and where actions go.
#[derive(Clone)]
pub struct Provider {
    /// Facts.
    pub directory: Arc<dyn Directory>,
    /// Actions.
    pub driver: Arc<dyn Driver>,
}

impl Default for Provider {
    /// No directory, and a dry run.
    fn default() -> Self {
        Self {
            directory: Arc::new(NoDirectory),
            driver: Arc::new(DryRun::default()),
        }
    }
}

#[derive(Clone)]
struct Scrape {
    store: Arc<dyn Memory>,
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
        let provider = Provider {
            directory: config.directory.open()?,
            driver: config.actions.open()?,
        };
        Self::start_with(config, provider).await
    }

    /// Starts a detector with another provider's side than the configuration's.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_with(config: Config, provider: Provider) -> Result<Self, StartError> {
        let limits = config.store_limits()?;
        let policies = Arc::new(Held::open(config.policy_dir.clone())?);
        let settings = match &config.policy_dir {
            Some(dir) => read_settings(dir, davy_decision::settings::Settings::default())?,
            None => davy_decision::settings::Settings::default(),
        };
        for (name, what) in settings.concerns() {
            tracing::warn!("setting {name} is {what}");
        }
        // The addresses first: a second detector started by mistake then says so, whatever its database.
        let (grpc, grpc_addr) = listen(config.listen, "--listen").await?;
        let (http, metrics_addr) = listen(config.metrics_listen, "--metrics-listen").await?;
        let hook = match &config.webhook {
            Some(hook) => {
                let (listener, address) = listen(hook.listen, "webhook.listen").await?;
                Some((listener, address, Secret::read(&hook.secret_file)?))
            }
            None => None,
        };
        let webhook_addr = hook.as_ref().map(|(_, address, _)| *address);
        let store = store::open(&config.database, limits).await?;
        let desk = Desk {
            ledger: Arc::clone(&store) as _,
            settings: Arc::new(settings),
            clock: system_clock(),
        };
        keep_policies(&desk, &policies).await?;
        tracing::info!(
            driver = provider.driver.name(),
            directory = config.directory.url.as_deref().unwrap_or("none"),
            policies = policies.now().digest(),
            "deciding"
        );
        if config.policy_dir.is_some() {
            let policies = Arc::clone(&policies);
            tokio::spawn(async move { warn_of_policies(&policies).await });
        }
        let (metrics, live) = (Arc::new(Metrics::new()), Live::default());
        let (stop, stopped) = watch::channel(false);
        let hook_stopped = stopped.clone();
        let engine = Arc::new(Engine {
            desk: desk.clone(),
            directory: Arc::clone(&provider.directory),
            driver: provider.driver,
            policies: Arc::clone(&policies),
            metrics: Arc::clone(&metrics),
        });
        let telemetry = Arc::clone(&store) as Arc<dyn Store>;
        let directory = Arc::clone(&provider.directory);
        let people = people(&desk, &telemetry, directory, &config.tokens)?;
        let gate = Arc::new(Gate::new(&config.tokens).map_err(ConfigError::from)?);
        let intake = Intake::new(desk.clone(), Arc::clone(&provider.directory), gate);
        let people = people.add_service(AccountIntakeServer::new(intake.clone()));
        let attribution = Attribution::new(desk.clone(), provider.directory);
        let mut tasks = vec![
            tokio::spawn(serve_grpc(
                grpc,
                Ingest::new(
                    Arc::clone(&telemetry),
                    attribution,
                    Arc::clone(&policies),
                    Arc::clone(&metrics),
                    live.clone(),
                ),
                InventoryService::new(Arc::clone(&telemetry), Arc::clone(&metrics), live.clone()),
                people,
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
            tokio::spawn(engine.run(stopped.clone())),
            tokio::spawn(reload_forever(
                desk.clone(),
                policies,
                Arc::clone(&metrics),
                stopped.clone(),
            )),
            tokio::spawn(count_forever(
                desk.clone(),
                Arc::clone(&telemetry),
                stopped.clone(),
            )),
            tokio::spawn(evict_forever(telemetry, metrics, stopped)),
        ];
        if let Some((listener, address, secret)) = hook {
            let routes = webhook::routes(intake, secret, desk.clock.clone());
            tasks.push(tokio::spawn(serve_http(
                "customers' messages",
                listener,
                routes,
                hook_stopped,
            )));
            tracing::info!("customers' messages on http://{address}/v1/customer-messages");
        }
        tracing::info!(
            database = store::shown(&config.database),
            "listening on http://{grpc_addr}"
        );
        tracing::info!("metrics on http://{metrics_addr}/metrics");
        Ok(Self {
            grpc_addr,
            metrics_addr,
            webhook_addr,
            live,
            stop,
            tasks,
            desk,
            store,
        })
    }

    /// Ends every stream (the agents are told to come back later), waits for what is in work, and closes the store.
    pub async fn shutdown(self) {
        let Self {
            live,
            stop,
            tasks,
            desk,
            store,
            ..
        } = self;
        drop(desk);
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

/// Ends when the server is to stop.
pub(crate) async fn stopping(mut stopped: watch::Receiver<bool>) {
    // An error means the server was dropped without a shutdown: serve on.
    if stopped.wait_for(|stopped| *stopped).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The services for people and for other automation of the provider's: with tokens only.
fn people(
    desk: &Desk,
    store: &Arc<dyn Store>,
    directory: Arc<dyn Directory>,
    tokens: &[TokenConfig],
) -> Result<Routes, ConfigError> {
    let gate = Arc::new(Gate::new(tokens)?);
    let cases = CasesService {
        desk: desk.clone(),
        store: Arc::clone(store),
        directory: Arc::clone(&directory),
        gate: Arc::clone(&gate),
    };
    let automation = AutomationService {
        desk: desk.clone(),
        gate: Arc::clone(&gate),
    };
    let safeties = Safeties::new(desk.clone(), directory, gate);
    Ok(Routes::new(CasesServer::new(cases))
        .add_service(AutomationServer::new(automation))
        .add_service(SafetyServiceServer::new(safeties)))
}

async fn serve_grpc(
    listener: TcpListener,
    ingest: Ingest,
    inventory: InventoryService,
    people: Routes,
    stopped: watch::Receiver<bool>,
) {
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .tcp_nodelay(true)
        .add_routes(people)
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
    serve_http("metrics", listener, routes, stopped).await;
}

async fn serve_http(
    what: &'static str,
    listener: TcpListener,
    routes: axum::Router,
    stopped: watch::Receiver<bool>,
) {
    if let Err(error) = axum::serve(listener, routes)
        .with_graceful_shutdown(stopping(stopped))
        .await
    {
        tracing::error!(%error, what, "serving ended");
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
