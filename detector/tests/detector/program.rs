//! The program `davy-detector`: its one line about where it listens, its end, and its errors.

use std::path::Path;
use std::process::{ExitStatus, Stdio};

use davy_detector::{Config, Server};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tonic::Code;

use crate::support::*;

fn serve(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_davy-detector"));
    command
        .arg("serve")
        .args(arguments)
        .current_dir(dir)
        .env_remove("RUST_LOG")
        .kill_on_drop(true);
    command
}

/// A running program and what it logs.
struct Running {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    grpc: String,
}

impl Running {
    /// Started in `dir` on free ports, and listening.
    async fn start(dir: &Path) -> Self {
        let free = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
        let mut child = serve(dir, &free).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let grpc = loop {
            let line = log
                .next_line()
                .await
                .unwrap()
                .expect("it ended before it listened");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(' ').next().unwrap().to_owned();
            }
        };
        Self { child, log, grpc }
    }

    async fn signal(mut self, signal: &str) -> (ExitStatus, String) {
        let pid = self.child.id().unwrap().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .await
                .unwrap()
                .success()
        );
        let mut log = String::new();
        while let Some(line) = self.log.next_line().await.unwrap() {
            log += &line;
            log.push('\n');
        }
        (self.child.wait().await.unwrap(), log)
    }
}

async fn channel(url: &str) -> tonic::transport::Channel {
    tonic::transport::Channel::from_shared(url.to_owned())
        .unwrap()
        .connect()
        .await
        .unwrap()
}

#[tokio::test]
async fn it_serves_without_configuration_and_ends_on_sigterm_with_agents_connected() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let mut agent = Agent::silent_on(channel(&running.grpc).await).await;
    agent.greet(hello(INSTANCE, 1_000)).await;
    agent.acknowledged(window(1, 0)).await;
    let (status, log) = running.signal("-TERM").await;
    assert!(status.success(), "{status}: {log}");
    assert!(log.contains("stopping"), "{log}");
    assert_eq!(agent.ended().await.code(), Code::Unavailable);
    assert!(dir.path().join("davy.db").exists());
}

#[tokio::test]
async fn what_was_acknowledged_survives_being_killed() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let mut agent = Agent::silent_on(channel(&running.grpc).await).await;
    agent.greet(hello(INSTANCE, 1_000)).await;
    agent.acknowledged(window(1, 10)).await;
    agent.acknowledged(window(2, 0)).await;
    let (status, _) = running.signal("-KILL").await;
    assert!(!status.success());

    let server = Server::start(config(dir.path())).await.unwrap();
    let detector = Detector { server, dir };
    let (_agent, welcome) = Agent::connect(&detector, hello(INSTANCE, 1_000)).await;
    assert_eq!((welcome.last_sequence, welcome.carried.len()), (2, 1));
    assert_eq!(detector.droplet("qemu:a").await.unwrap().history.len(), 2);
}

/// The one line with which it refuses to start.
async fn refusal(dir: &Path, arguments: &[&str]) -> String {
    let output = serve(dir, arguments).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[tokio::test]
async fn a_wrong_configuration_and_a_taken_port_are_one_clear_sentence() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("davy.toml"),
        "listen = \"127.0.0.1:0\"\nhistroy = 1\n",
    )
    .unwrap();
    let text = refusal(dir.path(), &["--config", "davy.toml"]).await;
    assert!(text.starts_with("davy-detector: the configuration davy.toml is not right: line 2: unknown field `histroy`"), "{text}");
    let text = refusal(dir.path(), &["--config", "absent.toml"]).await;
    assert!(
        text.contains("the configuration absent.toml cannot be read"),
        "{text}"
    );

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = refusal(dir.path(), &["--listen", &address]).await;
    assert!(
        text.starts_with(&format!("davy-detector: cannot listen on {address}: ")),
        "{text}"
    );
    assert!(text.contains("give another --listen"), "{text}");
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let Config {
        listen,
        metrics_listen,
        database,
        ..
    } = Config::default();
    assert_eq!(
        (listen.to_string(), metrics_listen.to_string()),
        ("127.0.0.1:7700".into(), "127.0.0.1:7701".into())
    );
    assert_eq!(database, "davy.db");
}
