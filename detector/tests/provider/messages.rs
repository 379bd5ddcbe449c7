//! Customers' messages over the signed webhook of a real detector.

use std::os::unix::fs::PermissionsExt;

use davy_decision::time::{Span, Time};
use davy_detector::config::HookConfig;
use davy_detector::signature::Secret;
use davy_detector::{Config, Server};
use tempfile::TempDir;

use super::support::{now, post};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const PATH: &str = "/v1/customer-messages";
const BODY: &str = r#"{"key":"ticket-77/3","account":"acct-1","channel":"ticket","text":"That is our build farm."}"#;

struct Detector {
    server: Server,
    // Its database and secret live as long as it.
    _dir: TempDir,
}

impl Detector {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secret_file = dir.path().join("secret");
        std::fs::write(&secret_file, SECRET).unwrap();
        std::fs::set_permissions(&secret_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mut config = Config {
            database: dir.path().join("davy.db").display().to_string(),
            webhook: Some(HookConfig {
                listen: "127.0.0.1:0".parse().unwrap(),
                secret_file,
            }),
            ..Config::default()
        };
        config.listen.set_port(0);
        config.metrics_listen.set_port(0);
        Self {
            server: Server::start(config).await.unwrap(),
            _dir: dir,
        }
    }

    async fn post(&self, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        post(self.server.webhook_addr.unwrap(), PATH, headers, body).await
    }

    async fn post_signed(&self, secret: &[u8], at: Time, body: &str) -> (u16, String) {
        let (timestamp, signature) = Secret::new(secret).sign(at, body.as_bytes());
        self.post(
            &[
                ("davy-timestamp", &timestamp),
                ("davy-signature", &signature),
            ],
            body,
        )
        .await
    }

    /// What was heard of the account.
    async fn heard(&self) -> Vec<String> {
        let dossier = self
            .server
            .desk
            .ledger
            .dossier("acct-1".try_into().unwrap())
            .await
            .unwrap();
        let case = dossier.and_then(|dossier| dossier.case);
        case.map_or_else(Vec::new, |case| {
            case.messages
                .iter()
                .map(|message| message.text.clone())
                .collect()
        })
    }
}

#[tokio::test]
async fn a_signed_message_is_kept_and_a_replay_changes_nothing() {
    let detector = Detector::start().await;
    let at = now();
    let (status, said) = detector.post_signed(SECRET, at, BODY).await;
    let heard = |new: bool| serde_json::json!({ "new": new, "case": "acct-1/1" });
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!((status, json(&said)), (200, heard(true)));
    let (status, said) = detector.post_signed(SECRET, at, BODY).await;
    assert_eq!((status, json(&said)), (200, heard(false)));
    assert_eq!(detector.heard().await, ["That is our build farm."]);
}

#[tokio::test]
async fn what_is_not_signed_with_the_secret_now_is_refused() {
    let detector = Detector::start().await;
    let (status, said) = detector.post(&[], BODY).await;
    assert_eq!(status, 401);
    assert!(
        said.contains("Davy-Timestamp and Davy-Signature must be there"),
        "{said}"
    );
    let (status, _) = detector.post_signed(b"another secret", now(), BODY).await;
    assert_eq!(status, 401);
    for off in [
        now().before(Span::minutes(6)),
        now().after(Span::minutes(6)),
    ] {
        let (status, said) = detector.post_signed(SECRET, off, BODY).await;
        assert_eq!(status, 401);
        assert!(said.contains("5 minutes off"), "{said}");
    }
    let (timestamp, signature) = Secret::new(SECRET).sign(now(), BODY.as_bytes());
    let headers = [
        ("davy-timestamp", timestamp.as_str()),
        ("davy-signature", &signature),
    ];
    let (status, said) = detector
        .post(&headers, &BODY.replace("acct-1", "acct-2"))
        .await;
    assert_eq!(status, 401);
    assert!(said.contains("does not fit the body"), "{said}");
    assert!(detector.heard().await.is_empty());
}

#[tokio::test]
async fn a_signed_body_that_is_no_message_is_refused_in_a_sentence() {
    let detector = Detector::start().await;
    for (body, says) in [
        ("rubbish", "the body is no message"),
        (
            r#"{"query":"acct-1/2/throttle/0"}"#,
            "the body is no message",
        ),
        (r#"{"key":"k","account":"a b","text":"t"}"#, "is no id"),
        (r#"{"key":"","account":"acct-1","text":"t"}"#, ""),
    ] {
        let (status, said) = detector.post_signed(SECRET, now(), body).await;
        assert_eq!(status, 400, "{body}: {said}");
        assert!(
            said.starts_with(r#"{"error":""#) && said.contains(says),
            "{body}: {said}"
        );
    }
    assert!(detector.heard().await.is_empty());
}

#[tokio::test]
async fn whatever_a_customer_sends_is_heard() {
    let detector = Detector::start().await;
    let empty = "[The message has no text.]";
    let sent = [
        (r#""text":" ""#, empty),
        (r#""channel":"ticket""#, empty),
        (r#""text":null,"channel":null"#, empty),
        (
            r#""text":["log","is attached"]"#,
            r#"["log","is attached"]"#,
        ),
        (r#""text":"Why?","subject":"my droplet""#, "Why?"),
    ];
    for (number, (fields, _)) in sent.into_iter().enumerate() {
        let body = format!(r#"{{"key":"k{number}","account":"acct-1",{fields}}}"#);
        let (status, said) = detector.post_signed(SECRET, now(), &body).await;
        assert_eq!(status, 200, "{body}: {said}");
        let ignored = fields.contains("subject");
        assert_eq!(said.contains(r#""ignored":["subject"]"#), ignored, "{said}");
    }
    assert_eq!(detector.heard().await, sent.map(|(_, heard)| heard));
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_unread() {
    let detector = Detector::start().await;
    let body = BODY.replace("That", &"a".repeat(2 << 20));
    let (status, _) = detector.post_signed(SECRET, now(), &body).await;
    assert_eq!(status, 413);
    assert!(detector.heard().await.is_empty());
}

#[tokio::test]
async fn a_customer_who_sends_a_long_log_is_heard() {
    let detector = Detector::start().await;
    let body = BODY.replace("That", &"a".repeat(200 << 10));
    let (status, said) = detector.post_signed(SECRET, now(), &body).await;
    assert_eq!(status, 200, "{said}");
    let heard = detector.heard().await;
    assert!(heard[0].starts_with("aaaa") && heard[0].contains("bytes; this is its beginning"));
}
