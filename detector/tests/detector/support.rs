//! A real detector on loopback with a real SQLite file, and a real agent's side of the stream.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use davy_detector::{Config, Server};
use davy_evidence::{SensorState, TenantEvidence};
use davy_proto::v1;
use davy_proto::v1::agent_message::Message as FromAgent;
use davy_proto::v1::detector_message::Message as ToAgent;
use davy_proto::v1::inventory_client::InventoryClient;
use davy_proto::v1::telemetry_client::TelemetryClient;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

pub(crate) const SECOND_NS: u64 = 1_000_000_000;
/// The agent that most tests use.
pub(crate) const INSTANCE: &str = "11111111-1111-4111-8111-111111111111";
/// Another agent of the same host.
pub(crate) const OTHER_INSTANCE: &str = "22222222-2222-4222-8222-222222222222";
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn now_ns() -> u64 {
    u64::try_from(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos(),
    )
    .unwrap()
}

/// A configuration on free ports, with its database in `dir`.
pub(crate) fn config(dir: &Path) -> Config {
    let mut config = Config {
        database: dir.join("davy.db").display().to_string(),
        ..Config::default()
    };
    config.listen.set_port(0);
    config.metrics_listen.set_port(0);
    config
}

pub(crate) struct Detector {
    pub(crate) server: Server,
    pub(crate) dir: TempDir,
}

impl Detector {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), |_| {}).await
    }

    pub(crate) async fn start_in(dir: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(dir.path());
        change(&mut config);
        let server = Server::start(config).await.unwrap();
        Self { server, dir }
    }

    /// Stops it and starts another on the same database.
    pub(crate) async fn restart(self) -> Self {
        let Self { server, dir } = self;
        server.shutdown().await;
        Self::start_in(dir, |_| {}).await
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.server.grpc_addr))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    pub(crate) async fn inventory(&self) -> InventoryClient<Channel> {
        InventoryClient::new(self.channel().await)
    }

    pub(crate) async fn droplet(&self, tenant: &str) -> Result<v1::GetDropletResponse, Status> {
        let request = v1::GetDropletRequest {
            tenant: tenant.into(),
            ..v1::GetDropletRequest::default()
        };
        self.inventory()
            .await
            .get_droplet(request)
            .await
            .map(tonic::Response::into_inner)
    }

    pub(crate) async fn status(&self) -> v1::GetIngestStatusResponse {
        self.inventory()
            .await
            .get_ingest_status(v1::GetIngestStatusRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn host(&self) -> v1::HostStatus {
        let hosts = self.status().await.hosts;
        assert_eq!(hosts.len(), 1, "{hosts:?}");
        hosts.into_iter().next().unwrap()
    }

    /// The answer of `/metrics`, with its head.
    pub(crate) async fn scrape(&self) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.server.metrics_addr)
            .await
            .unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: davy\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// A metric's value; the test fails if the line is absent.
    pub(crate) async fn metric(&self, name: &str) -> String {
        let text = self.scrape().await;
        let line = text
            .lines()
            .find(|line| line.starts_with(name) && line[name.len()..].starts_with(' '));
        line.unwrap_or_else(|| panic!("{name} is not in:\n{text}"))[name.len() + 1..].to_owned()
    }
}

pub(crate) fn hello(instance: &str, started_unix_ns: u64) -> v1::Hello {
    v1::Hello {
        host: "host-1".into(),
        instance: instance.into(),
        agent_version: "0.1.0".into(),
        kernel_release: "6.12.0".into(),
        started_unix_ns,
    }
}

/// The agent's side of a stream.
pub(crate) struct Agent {
    out: mpsc::Sender<v1::AgentMessage>,
    inbound: Streaming<v1::DetectorMessage>,
}

impl Agent {
    /// A stream on which nothing was said yet.
    pub(crate) async fn silent(detector: &Detector) -> Self {
        Self::silent_on(detector.channel().await).await
    }

    pub(crate) async fn silent_on(channel: Channel) -> Self {
        Self::try_silent_on(channel).await.unwrap()
    }

    pub(crate) async fn try_silent_on(channel: Channel) -> Result<Self, Status> {
        let (out, messages) = mpsc::channel(8);
        let inbound = TelemetryClient::new(channel)
            .report(ReceiverStream::new(messages))
            .await?
            .into_inner();
        Ok(Self { out, inbound })
    }

    /// Says `Hello` and wants to be welcome.
    pub(crate) async fn greet(&mut self, hello: v1::Hello) -> v1::Welcome {
        self.try_greet(hello).await.unwrap()
    }

    pub(crate) async fn try_greet(&mut self, hello: v1::Hello) -> Result<v1::Welcome, Status> {
        self.send(FromAgent::Hello(hello)).await;
        match self.receive().await? {
            ToAgent::Welcome(welcome) => Ok(welcome),
            other => panic!("not Welcome but {other:?}"),
        }
    }

    pub(crate) async fn connect(detector: &Detector, hello: v1::Hello) -> (Self, v1::Welcome) {
        let mut agent = Self::silent(detector).await;
        let welcome = agent.greet(hello).await;
        (agent, welcome)
    }

    pub(crate) async fn start(detector: &Detector) -> (Self, v1::Welcome) {
        Self::connect(detector, hello(INSTANCE, now_ns())).await
    }

    pub(crate) async fn send(&self, message: FromAgent) {
        // A stream that the detector has ended takes no more; what it said is what a test looks at.
        let _ = self
            .out
            .send(v1::AgentMessage {
                message: Some(message),
            })
            .await;
    }

    pub(crate) async fn send_empty(&self) {
        self.out
            .send(v1::AgentMessage { message: None })
            .await
            .unwrap();
    }

    /// The next answer, or the status that ended the stream.
    pub(crate) async fn receive(&mut self) -> Result<ToAgent, Status> {
        let message = tokio::time::timeout(PATIENCE, self.inbound.message())
            .await
            .expect("no answer in time")?;
        Ok(message
            .expect("the stream ended without a status")
            .message
            .unwrap())
    }

    /// The status with which the detector ended the stream.
    pub(crate) async fn ended(&mut self) -> Status {
        self.receive().await.expect_err("the stream goes on")
    }

    /// Sends a window; returns its answer. Requests for closer looks are no answers.
    pub(crate) async fn window(&mut self, window: v1::Window) -> ToAgent {
        self.send(FromAgent::Window(window)).await;
        loop {
            match self.receive().await.unwrap() {
                ToAgent::CloserLook(_) => {}
                answer => return answer,
            }
        }
    }

    /// Sends a window and wants it acknowledged; returns up to where.
    pub(crate) async fn acknowledged(&mut self, window: v1::Window) -> u64 {
        match self.window(window).await {
            ToAgent::Acknowledged(acknowledged) => acknowledged.sequence,
            other => panic!("not Acknowledged but {other:?}"),
        }
    }

    /// Sends a window and wants it rejected; returns why.
    pub(crate) async fn rejected(&mut self, window: v1::Window) -> String {
        let sent = window.sequence;
        match self.window(window).await {
            ToAgent::Rejected(v1::Rejected { sequence, reason }) => {
                assert_eq!(sequence, sent);
                reason
            }
            other => panic!("not Rejected but {other:?}"),
        }
    }
}

/// A tenant whose agent proposes what the evidence says.
pub(crate) fn tenant(key: &str, evidence: &TenantEvidence) -> v1::TenantWindow {
    v1::TenantWindow {
        key: key.into(),
        kind: v1::TenantKind::Droplet.into(),
        name: format!("name of {key}"),
        droplet_id: format!("id of {key}"),
        vmm: "qemu".into(),
        vcpus: 1,
        cpu: Some(v1::Cpu {
            threads: 3,
            on_cpu_ns: SECOND_NS,
            vcpu_on_cpu_ns: SECOND_NS,
            ..v1::Cpu::default()
        }),
        evidence: Some(evidence.into()),
        verdict: Some(davy_evidence::verdict(evidence).into()),
        waits: None,
    }
}

pub(crate) fn quiet() -> TenantEvidence {
    let mut evidence = TenantEvidence::default();
    evidence.fp_rounding.state = SensorState::Live;
    evidence.fp_rounding.modes = [50, 0, 0, 0];
    evidence
}

/// What a miner's `fp_rounding` shows.
pub(crate) fn concluded() -> TenantEvidence {
    let mut evidence = quiet();
    evidence.fp_rounding.modes = [32, 23, 22, 23];
    evidence.fp_rounding.llr = [40.0, 41.0, 42.0, 43.0];
    evidence.fp_rounding.test_samples = 100;
    evidence.fp_rounding.concluded = true;
    evidence.fp_rounding.concluded_on_cpu_ns = SECOND_NS;
    evidence.fp_rounding.duty = 1.0;
    evidence
}

/// A window of 10 s that ended `age_s` ago, with one quiet tenant.
pub(crate) fn window(sequence: u64, age_s: u64) -> v1::Window {
    let end_unix_ns = now_ns() - age_s * SECOND_NS;
    v1::Window {
        sequence,
        start_unix_ns: end_unix_ns - 10 * SECOND_NS,
        end_unix_ns,
        tenants: vec![tenant("qemu:a", &quiet())],
        lost_windows: 0,
        sensors: vec![v1::SensorStatus {
            sensor: "fp_rounding".into(),
            state: v1::SensorState::Live.into(),
            reason: String::new(),
        }],
    }
}

/// Asks again until `holds`, at most [`PATIENCE`].
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what}: not so in time"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
