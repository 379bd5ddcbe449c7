//! A real detector and the uplinks of real agents on loopback, with windows written by the test.
//!
//! What is simulated is the fleet around one connection: detectors that go and come back, queues that run over,
//! windows that are refused. Nothing here needs privileges. Tests wait for states with a deadline; they never
//! assert on times.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use davy_agent::uplink::{Options, Snapshot, Uplink, queue::Limits};
use davy_detector::{Config, Server};
use davy_evidence::{SensorState, TenantEvidence, verdict};
use davy_proto::v1::{self, inventory_client::InventoryClient};
use tempfile::TempDir;
use tokio::net::TcpSocket;

/// How long a state may take to come about. Far more than it ever does: slow machines are no defect.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A detector that can go away and come back at its address, with its database.
pub struct Detector {
    directory: TempDir,
    address: SocketAddr,
    /// Bound and never listening: while the detector is away nobody else is given its port.
    _port: TcpSocket,
    server: Option<Server>,
}

impl Detector {
    /// Starts one at a free port, with an empty database.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        let port = TcpSocket::new_v4()?;
        port.set_reuseaddr(true)?;
        port.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let mut detector = Self {
            directory,
            address: port.local_addr()?,
            _port: port,
            server: None,
        };
        detector.come_back().await?;
        Ok(detector)
    }

    /// Stops it.
    pub async fn go_away(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
    }

    /// Starts it again where it was.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn come_back(&mut self) -> Result<()> {
        let server = Server::start(Config {
            listen: self.address,
            metrics_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            database: self.directory.path().join("davy.db").display().to_string(),
            ..Config::default()
        })
        .await?;
        self.server = Some(server);
        Ok(())
    }

    /// `http://HOST:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What the detector says about its agents.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status(&self) -> Result<v1::GetIngestStatusResponse> {
        let mut client = InventoryClient::connect(self.url()).await?;
        let request = v1::GetIngestStatusRequest {};
        Ok(client.get_ingest_status(request).await?.into_inner())
    }

    /// What the detector says about the agent of `host`.
    ///
    /// # Errors
    /// If it does not answer, or does not know the host.
    pub async fn host(&self, host: &str) -> Result<v1::HostStatus> {
        let status = self.status().await?;
        status
            .hosts
            .into_iter()
            .find(|status| status.host == host)
            .with_context(|| format!("the detector does not know {host}"))
    }

    /// Starts of the stored windows of the tenant every [`window`] has, oldest first, by their number.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn stored(&self, host: &str) -> Result<Vec<u64>> {
        let mut client = InventoryClient::connect(self.url()).await?;
        let request = v1::GetDropletRequest {
            host: host.to_owned(),
            tenant: TENANT.to_owned(),
            history_max: 1_000,
        };
        let history = client.get_droplet(request).await?.into_inner().history;
        let mut starts: Vec<_> = history
            .iter()
            .map(|entry| (entry.start_unix_ns % HOUR_NS) / WINDOW_NS)
            .collect();
        starts.sort_unstable();
        Ok(starts)
    }
}

/// The key of the tenant every [`window`] has.
pub const TENANT: &str = "qemu:sim";
const WINDOW_NS: u64 = 1_000_000_000;
const HOUR_NS: u64 = 3_600_000_000_000;

/// The begin of the last whole hour but one: windows numbered from there are in the past, and not too old.
fn epoch_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ns = since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0));
    (now_ns / HOUR_NS).saturating_sub(2) * HOUR_NS
}

/// A well-formed window of one quiet tenant, the `number`-th (below 3600) of its hour.
#[must_use]
pub fn window(number: u64) -> v1::Window {
    let mut evidence = TenantEvidence::default();
    evidence.fp_rounding.state = SensorState::Live;
    evidence.fp_rounding.modes = [20, 0, 0, 0];
    evidence.register_randomness.state = SensorState::Live;
    evidence.register_randomness.samples = 20;
    window_of(number, &evidence)
}

/// The same with the given evidence.
#[must_use]
pub fn window_of(number: u64, evidence: &TenantEvidence) -> v1::Window {
    let start_unix_ns = epoch_ns() + number * WINDOW_NS;
    v1::Window {
        start_unix_ns,
        end_unix_ns: start_unix_ns + WINDOW_NS,
        tenants: vec![v1::TenantWindow {
            key: TENANT.to_owned(),
            kind: v1::TenantKind::Droplet.into(),
            name: "sim".to_owned(),
            vmm: "qemu".to_owned(),
            vcpus: 1,
            cpu: Some(v1::Cpu {
                threads: 1,
                on_cpu_ns: WINDOW_NS / 2,
                ..v1::Cpu::default()
            }),
            evidence: Some(evidence.into()),
            verdict: Some((&verdict(evidence)).into()),
            ..v1::TenantWindow::default()
        }],
        ..v1::Window::default()
    }
}

/// The uplink of a newly started agent on `host`; `started` orders the agents of one host.
#[must_use]
pub fn agent(host: &str, started: u64, detector: String, windows_max: usize) -> Uplink {
    let hello = v1::Hello {
        host: host.to_owned(),
        instance: format!("00000000-0000-4000-8000-{started:012}"),
        agent_version: "sim".to_owned(),
        kernel_release: "sim".to_owned(),
        started_unix_ns: epoch_ns() + started,
    };
    let options = Options {
        detector,
        hello,
        limits: Limits {
            windows_max,
            bytes_max: 64 << 20,
        },
    };
    // The shortest pauses: tests need no jitter.
    Uplink::start(options, || 1.0)
}

/// Waits until the uplink's state is as wanted, and returns it.
///
/// # Errors
/// If it has not come about by the [`DEADLINE`].
pub async fn until(uplink: &Uplink, wanted: impl Fn(&Snapshot) -> bool) -> Result<Snapshot> {
    let begun = Instant::now();
    loop {
        let snapshot = uplink.snapshot();
        if wanted(&snapshot) {
            return Ok(snapshot);
        }
        if begun.elapsed() > DEADLINE {
            bail!("the uplink never came to the wanted state: {snapshot:?}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
