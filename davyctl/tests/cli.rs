//! The program itself, against a running detector and against none.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::path::Path;
use std::process::Output;
use std::time::{SystemTime, UNIX_EPOCH};

use davy_detector::{Config, Server};
use davy_evidence::TenantEvidence;
use davy_proto::v1;
use davy_proto::v1::agent_message::Message as FromAgent;
use davy_proto::v1::detector_message::Message as ToAgent;
use davy_proto::v1::telemetry_client::TelemetryClient;

const SECOND_NS: u64 = 1_000_000_000;

async fn davyctl(detector: &str, arguments: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_davyctl"))
        .args(["--detector", detector])
        .args(arguments)
        .output()
        .await
        .unwrap()
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(output: Output) -> serde_json::Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

/// The error, which is one line.
fn error(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

fn tenant(key: &str, evidence: &TenantEvidence) -> v1::TenantWindow {
    v1::TenantWindow {
        key: key.into(),
        kind: v1::TenantKind::Droplet.into(),
        name: "web".into(),
        cpu: Some(v1::Cpu {
            threads: 3,
            on_cpu_ns: 15 * SECOND_NS,
            ..v1::Cpu::default()
        }),
        evidence: Some(evidence.into()),
        verdict: Some(davy_evidence::verdict(evidence).into()),
        ..v1::TenantWindow::default()
    }
}

/// Reports one window of two tenants of the same name.
async fn report(url: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = u64::try_from(now.as_nanos()).unwrap();
    let mut concluded = TenantEvidence::default();
    concluded.fp_rounding.modes = [25; 4];
    concluded.fp_rounding.llr = [40.0; 4];
    concluded.fp_rounding.concluded = true;
    let hello = v1::Hello {
        host: "host-1".into(),
        instance: "0f8fad5b-d9cb-469f-a165-70867728950e".into(),
        ..v1::Hello::default()
    };
    let window = v1::Window {
        sequence: 1,
        start_unix_ns: now - 10 * SECOND_NS,
        end_unix_ns: now,
        tenants: vec![
            tenant("qemu:a", &TenantEvidence::default()),
            tenant("qemu:b", &concluded),
        ],
        ..v1::Window::default()
    };
    let messages =
        [FromAgent::Hello(hello), FromAgent::Window(window)].map(|message| v1::AgentMessage {
            message: Some(message),
        });
    let mut client = TelemetryClient::connect(url.to_owned()).await.unwrap();
    let mut answers = client
        .report(tokio_stream::iter(messages))
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(answer) = answers.message().await.unwrap() {
        // The suspect may be asked about, too.
        if !matches!(answer.message, Some(ToAgent::CloserLook(_))) {
            last = answer.message;
        }
    }
    assert_eq!(
        last,
        Some(ToAgent::Acknowledged(v1::Acknowledged { sequence: 1 }))
    );
}

async fn detector(dir: &Path) -> (Server, String) {
    let mut config = Config {
        database: dir.join("davy.db").display().to_string(),
        ..Config::default()
    };
    config.listen.set_port(0);
    config.metrics_listen.set_port(0);
    let server = Server::start(config).await.unwrap();
    let url = format!("http://{}", server.grpc_addr);
    (server, url)
}

#[tokio::test]
async fn what_the_detector_knows_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (server, url) = detector(dir.path()).await;
    report(&url).await;

    let all = json(davyctl(&url, &["droplets", "--json"]).await);
    assert_eq!(all["version"], 1);
    assert_eq!(all["droplets"].as_array().unwrap().len(), 2);
    let suspects = json(davyctl(&url, &["droplets", "--at-least", "suspect", "--json"]).await);
    assert_eq!(suspects["droplets"].as_array().unwrap().len(), 1);
    let suspect = &suspects["droplets"][0];
    assert_eq!(suspect["key"], "qemu:b");
    assert_eq!(suspect["verdict"]["level"], "suspect");
    assert_eq!(suspect["planned"], "closer look");
    assert_eq!(suspect["cpu"]["percent_of_one_cpu"], 150.0);
    assert_eq!(
        suspect["fp_rounding"]["modes"],
        serde_json::json!([25, 25, 25, 25])
    );
    assert_eq!(suspect["droplet_id"], serde_json::Value::Null);

    let table = stdout(davyctl(&url, &["droplets"]).await);
    assert!(
        table.contains("150.0 %") && table.contains("25/25/25/25 %"),
        "{table}"
    );
    assert!(
        table.ends_with("2 tenants: 0 mining, 1 suspect, 1 quiet\n"),
        "{table}"
    );

    let one = json(davyctl(&url, &["droplet", "qemu:b", "--json"]).await);
    assert_eq!(one["droplet"], *suspect);
    assert_eq!(one["history"].as_array().unwrap().len(), 1);
    assert!(stdout(davyctl(&url, &["droplet", "qemu:b"]).await).contains("Reasons"));

    let status = json(davyctl(&url, &["status", "--json"]).await);
    assert_eq!(status["hosts"][0]["host"], "host-1");
    assert_eq!(status["hosts"][0]["windows"], 1);
    assert!(stdout(davyctl(&url, &["status"]).await).contains("host-1"));

    let unclear = error(davyctl(&url, &["droplet", "web"]).await);
    assert!(
        unclear.contains("qemu:a") && unclear.contains("qemu:b"),
        "{unclear}"
    );
    let absent = error(davyctl(&url, &["droplet", "nobody", "--host", "host-1"]).await);
    assert_eq!(
        absent,
        "davyctl: no tenant on host \"host-1\" has the key, name or droplet id \"nobody\"\n"
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_detector_that_is_not_there_is_one_clear_sentence() {
    // Bound and closed again: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("http://127.0.0.1:{port}");
    let text = error(davyctl(&url, &["status"]).await);
    assert!(
        text.starts_with(&format!(
            "davyctl: no detector answers at {url} (Connection refused"
        )),
        "{text}"
    );
    assert!(text.contains("start `davy-detector serve`"), "{text}");
    for url in ["127.0.0.1:7700", "not a url", "ftp://x"] {
        let text = error(davyctl(url, &["status"]).await);
        assert!(
            text.contains("is not a URL such as http://127.0.0.1:7700"),
            "{text}"
        );
    }
}
