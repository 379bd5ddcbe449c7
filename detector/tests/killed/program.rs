//! The program `davy-detector` under test, told where to die, and an agent that reports a miner to it for as long as it lives.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use davy_evidence::{SensorState, TenantEvidence};
use davy_proto::v1;
use davy_proto::v1::agent_message::Message as FromAgent;
use davy_proto::v1::detector_message::Message as ToAgent;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

use crate::provider::DROPLET;
use crate::support::*;

/// Long beyond anything that is waited for here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often the agent reports.
const WINDOW_INTERVAL: Duration = Duration::from_millis(300);
/// Droplets of nobody's that compute nothing: with them one miner is no great share of the fleet.
pub(crate) const QUIET: u64 = 3;

/// A running detector.
pub(crate) struct Program {
    child: Child,
    log: Arc<Mutex<String>>,
    pub(crate) channel: Channel,
    agent: Option<JoinHandle<()>>,
    windows: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Program {
    /// Started with `dir/davy.toml` on free ports, and listening. `fault`: where it is to die, see `engine::fault`.
    pub(crate) async fn start(dir: &Path, database: &str, fault: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_davy-detector"));
        command
            .args(["serve", "--config", "davy.toml", "--database", database])
            .args(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
            .current_dir(dir)
            .env("RUST_LOG", "info")
            .env_remove("DAVY_FAULT")
            .envs(fault.map(|fault| ("DAVY_FAULT", fault)))
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let keep = |log: &Mutex<String>, line: &str| {
            let mut log = log.lock().unwrap();
            log.push_str(line);
            log.push('\n');
        };
        let url = loop {
            let line = lines.next_line().await.unwrap();
            let line = line.unwrap_or_else(|| panic!("it did not start: {}", log.lock().unwrap()));
            keep(&log, &line);
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(' ').next().unwrap().to_owned();
            }
        };
        let kept = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                keep(&kept, &line);
            }
        });
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        Self {
            child,
            log,
            channel,
            agent: None,
            windows: Arc::default(),
            ended: Arc::default(),
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Reports one quiet window of a minute ago, as an agent that has just begun.
    pub(crate) async fn report_quiet(&self) {
        let mut agent = Agent::silent_on(self.channel.clone()).await;
        agent.greet(hello(INSTANCE, 1_000)).await;
        let mut sent = window(1, 60);
        sent.tenants = quiet_ones().collect();
        agent.acknowledged(sent).await;
    }

    /// From now on an agent reports the miner, over another stream if one breaks, until the detector ends.
    pub(crate) fn report_miner(&mut self) {
        let (channel, ended) = (self.channel.clone(), Arc::clone(&self.ended));
        let windows = Arc::clone(&self.windows);
        self.agent = Some(tokio::spawn(async move {
            // What was mined before it is reported is long enough for the policy.
            let mut start_unix_ns = now_ns() - 20 * SECOND_NS;
            while !ended.load(Ordering::SeqCst) {
                // Whether it ended, or the detector lost its database for a moment, the next turn tells.
                let _ = report(channel.clone(), &mut start_unix_ns, &windows).await;
                tokio::time::sleep(WINDOW_INTERVAL).await;
            }
        }));
    }

    /// Waits until the agent has reported so many windows more.
    pub(crate) async fn hear(&self, more: u64) {
        let enough = self.windows.load(Ordering::SeqCst) + more;
        until("the agent reports on", || async {
            self.windows.load(Ordering::SeqCst) >= enough
        })
        .await;
    }

    /// Waits until it has killed itself.
    pub(crate) async fn dies(mut self) {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let Ok(status) = ended else {
            panic!("the fault point was never passed: {}", self.log());
        };
        let status = status.unwrap();
        assert_eq!(status.signal(), Some(9), "{status}: {}", self.log());
        self.agent_ends().await;
    }

    /// It does nothing until it is resumed, and keeps what it holds.
    pub(crate) async fn pause(&self) {
        self.signal("STOP").await;
    }

    pub(crate) async fn resume(&self) {
        self.signal("CONT").await;
    }

    async fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.await.unwrap().success());
    }

    /// As a power cut would end it.
    pub(crate) async fn kill(mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
        self.agent_ends().await;
    }

    async fn agent_ends(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(agent) = self.agent.take() {
            agent.await.expect("every window is acknowledged");
        }
    }
}

/// Reports windows from `start_unix_ns` on over one stream, until it breaks.
async fn report(
    channel: Channel,
    start_unix_ns: &mut u64,
    windows: &AtomicU64,
) -> Result<(), Status> {
    let mut agent = Agent::try_silent_on(channel).await?;
    let mut sequence = agent.try_greet(hello(INSTANCE, 1_000)).await?.last_sequence;
    loop {
        sequence += 1;
        let mut sent = window(sequence, 0);
        sent.start_unix_ns = *start_unix_ns;
        let end_unix_ns = sent.end_unix_ns;
        sent.tenants = quiet_ones().collect();
        let mut miner = tenant("qemu:new", &mining());
        miner.droplet_id = DROPLET.to_owned();
        sent.tenants.push(miner);
        agent.send(FromAgent::Window(sent)).await;
        loop {
            match agent.receive().await? {
                ToAgent::Acknowledged(_) => break,
                ToAgent::CloserLook(_) => {}
                other => panic!("not Acknowledged but {other:?}"),
            }
        }
        *start_unix_ns = end_unix_ns;
        windows.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(WINDOW_INTERVAL).await;
    }
}

fn quiet_ones() -> impl Iterator<Item = v1::TenantWindow> {
    (0..QUIET).map(|number| tenant(&format!("qemu:quiet-{number}"), &quiet()))
}

/// A miner by both classes of evidence.
fn mining() -> TenantEvidence {
    let mut evidence = concluded();
    let found = &mut evidence.register_randomness;
    found.state = SensorState::Live;
    (found.samples, found.random) = (100, 99);
    (found.directed_samples, found.directed_random) = (70, 70);
    (found.any_llr, found.any_test_samples, found.any_concluded) = (40.0, 100, true);
    (found.directed_llr, found.directed_test_samples) = (40.0, 70);
    found.directed_concluded = true;
    evidence
}

/// Asks again until `holds`; the test fails if it does not within [`PATIENCE`].
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, holds: impl FnMut() -> F) {
    assert!(comes_true(holds).await, "{what}: not so in time");
}

/// Asks again until `holds`, at most for [`PATIENCE`]; says whether it does.
pub(crate) async fn comes_true<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) -> bool {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        if tokio::time::Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    true
}
