//! People's commands against a running detector, with its real database.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::path::Path;
use std::process::Output;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use davy_decision::audit::Actor;
use davy_decision::episode::{Classes, Sighting};
use davy_decision::policy::DEFAULT;
use davy_decision::time::{Span, Time};
use davy_detector::people::{Kind, TokenConfig};
use davy_detector::{Config, Server};
use davy_evidence::Level;
use sha2::{Digest, Sha256};

struct World {
    server: Server,
    url: String,
}

fn stanza(identity: &str) -> TokenConfig {
    let hash = Sha256::digest(identity);
    TokenConfig {
        identity: identity.to_owned(),
        kind: Kind::Person,
        sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

impl World {
    async fn start(dir: &Path) -> Self {
        let mut config = Config {
            database: dir.join("davy.db").display().to_string(),
            tokens: vec![stanza("ann"), stanza("bob")],
            ..Config::default()
        };
        config.listen.set_port(0);
        config.metrics_listen.set_port(0);
        let server = Server::start(config).await.unwrap();
        let url = format!("http://{}", server.grpc_addr);
        Self { server, url }
    }

    /// An account that mined for twenty minutes, and its open case.
    async fn mine(&self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = Time::from_unix_ms(u64::try_from(since.as_millis()).unwrap());
        let sighting = Sighting {
            droplet: "d1".try_into().unwrap(),
            host: "h1".to_owned(),
            from: now.before(Span::minutes(20)),
            to: now,
            level: Level::Mining,
            classes: Classes {
                fp_rounding: true,
                register_randomness: true,
                pmu: false,
            },
            cpu_percent: 400,
            neighbours_wait_percent: None,
            reasons: vec!["computes in all four rounding modes".to_owned()],
        };
        let desk = &self.server.desk;
        let account = || "acct-1".try_into().unwrap();
        let observe = move |dossier: &mut davy_decision::dossier::Dossier, settings: &_, _| {
            Ok(dossier.observe(sighting.clone(), settings))
        };
        desk.act(account(), Actor::Automation, observe)
            .await
            .unwrap();
        for _ in 0..600 {
            let dossier = desk.ledger.dossier(account()).await.unwrap().unwrap();
            if dossier.case.is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no case was opened");
    }

    async fn run(&self, token: &str, arguments: &[&str]) -> Output {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_davyctl"))
            .args(["--detector", &self.url])
            .args(arguments)
            .env("DAVY_TOKEN", token)
            .output()
            .await
            .unwrap()
    }

    async fn said(&self, token: &str, arguments: &[&str]) -> String {
        let output = self.run(token, arguments).await;
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn json(&self, token: &str, arguments: &[&str]) -> serde_json::Value {
        let text = self.said(token, &[arguments, &["--json"]].concat()).await;
        serde_json::from_str(&text).unwrap()
    }
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn a_case_is_taken_up_unlocked_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    world.mine().await;
    assert!(
        world
            .said("ann", &["cases", "list"])
            .await
            .contains("acct-1/1")
    );
    let claimed = world.said("ann", &["cases", "claim", "acct-1"]).await;
    assert!(
        claimed.contains("To undo: davyctl cases give-back acct-1"),
        "{claimed}"
    );
    let taken = error(&world.run("bob", &["cases", "claim", "acct-1/1"]).await);
    assert!(taken.contains("claimed by ann"), "{taken}");
    let unlocked = world.said("ann", &["cases", "unlock", "acct-1/1"]).await;
    assert!(
        unlocked.contains("hold set by ann") && unlocked.contains("ann set Allow High CPU"),
        "{unlocked}"
    );
    let shown = world.json("bob", &["cases", "show", "acct-1"]).await;
    assert_eq!(shown["case"]["ruling"], "legitimate");
    assert_eq!(
        shown["dossier"]["account"], "acct-1",
        "the record is unfolded"
    );
    assert_eq!(
        shown["droplets"][0]["neighbours_wait_percent"],
        serde_json::Value::Null
    );
    let undone = world.said("bob", &["cases", "undo", "acct-1"]).await;
    assert!(undone.contains("took the decision back"), "{undone}");
    let account = world.json("bob", &["accounts", "show", "acct-1"]).await;
    let held = account["safeties"].as_array().unwrap();
    assert!(
        held.iter()
            .any(|held| held["name"] == "unlock_hold" && held["in_force"] == true)
    );
    let checked = world
        .run("ann", &["safety", "check", "acct-1", "power-down"])
        .await;
    assert_eq!(checked.status.code(), Some(3), "{checked:?}");
    world.server.shutdown().await;
}

#[tokio::test]
async fn the_kill_switch_stands_in_the_status() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let stopped = world.said("ann", &["stop", "odd", "figures"]).await;
    assert!(stopped.contains("To undo: davyctl resume"), "{stopped}");
    let status = world.said("bob", &["status"]).await;
    assert!(
        status.contains("stopped by ann") && status.contains("odd figures"),
        "{status}"
    );
    assert_eq!(
        world.json("bob", &["status"]).await["automation"]["stopped"],
        true
    );
    world.said("bob", &["resume"]).await;
    assert_eq!(
        world.json("bob", &["status"]).await["automation"]["stopped"],
        false
    );
    let without = world.said("", &["status"]).await;
    assert!(without.contains("not shown without a token"), "{without}");
    let refused = error(&world.run("", &["resume"]).await);
    assert!(refused.contains("DAVY_TOKEN"), "{refused}");
    world.server.shutdown().await;
}

/// Changes a text in the audit log behind the detector's back, as somebody with the file can; says in how many entries.
fn tamper(dir: &Path, from: &str, to: &str) -> usize {
    let database = rusqlite::Connection::open(dir.join("davy.db")).unwrap();
    database.execute_batch("DROP TRIGGER audit_stays").unwrap();
    let change = "UPDATE audit SET note = replace(note, ?1, ?2) WHERE note LIKE '%' || ?1 || '%'";
    database.execute(change, [from, to]).unwrap()
}

#[tokio::test]
async fn a_byte_changed_in_the_database_is_found_by_audit_verify() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    world.said("ann", &["stop", "the", "first", "reason"]).await;
    world.said("ann", &["resume"]).await;
    let verified = world.json("ann", &["audit", "verify"]).await;
    assert_eq!(verified["entries"], 2);
    let head = verified["head"].as_str().unwrap().to_owned();
    let held = world
        .said("bob", &["audit", "verify", "--expect", &head])
        .await;
    assert!(held.contains("entry 2's"), "{held}");
    let shown = world.said("bob", &["audit", "show"]).await;
    assert!(
        shown.contains("automation is stopped: the first reason"),
        "{shown}"
    );
    world.server.shutdown().await;

    assert_eq!(
        tamper(dir.path(), "the first reason", "the worst reason"),
        1
    );
    let world = World::start(dir.path()).await;
    let broken = error(&world.run("ann", &["audit", "verify"]).await);
    assert!(broken.contains("broken at entry 1"), "{broken}");
    let absent = "0".repeat(63) + "1";
    let absent = error(
        &world
            .run("ann", &["audit", "verify", "--expect", &absent])
            .await,
    );
    assert!(absent.contains("broken at entry 1"), "{absent}");
    world.server.shutdown().await;
}

/// The hash is over the note alone: an entry hidden under another account is found all the same.
#[tokio::test]
async fn an_entry_put_under_another_account_is_found_by_audit_verify() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    world.mine().await;
    world.server.shutdown().await;
    let database = rusqlite::Connection::open(dir.path().join("davy.db")).unwrap();
    database.execute_batch("DROP TRIGGER audit_stays").unwrap();
    let hide = "UPDATE audit SET account = 'other' WHERE number = (SELECT max(number) FROM audit WHERE account = 'acct-1')";
    assert_eq!(database.execute(hide, []).unwrap(), 1);
    drop(database);
    let world = World::start(dir.path()).await;
    let broken = error(&world.run("ann", &["audit", "verify"]).await);
    assert!(
        broken.contains("is kept under other, and is about acct-1"),
        "{broken}"
    );
    world.server.shutdown().await;
}

#[tokio::test]
async fn decisions_are_made_again_under_other_policies() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    world.mine().await;
    let policies = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let dir = policies.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("ours.cedar"), text).unwrap();
        dir.display().to_string()
    };
    let old = write("old", DEFAULT);
    let new = write(
        "new",
        &DEFAULT.replace("mining_seconds >= 600", "mining_seconds >= 7200"),
    );
    let same = world
        .json("ann", &["policy", "diff", &old, &old, "--history"])
        .await;
    assert_eq!(
        (&same["differ"], &same["policies"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
    let found = world
        .json("ann", &["policy", "diff", &old, &new, "--history"])
        .await;
    assert!(found["decisions"].as_u64().unwrap() >= 1, "{found}");
    let first = &found["differ"][0];
    assert_eq!(
        (&first["account"], &first["number"]),
        (&"acct-1".into(), &1.into())
    );
    let has_case =
        |steps: &serde_json::Value| steps.as_array().unwrap().contains(&"open_case".into());
    assert!(
        has_case(&first["before"]) && !has_case(&first["after"]),
        "{first}"
    );
    let history = ["policy", "diff", &old, &new, "--history", "--account"];
    let words = world
        .said("ann", &[&history[..], &["acct-1"]].concat())
        .await;
    assert!(words.contains("changed: mining:case"), "{words}");
    let nobody = world
        .run("ann", &[&history[..], &["acct-2"]].concat())
        .await;
    let nobody = String::from_utf8(nobody.stderr).unwrap();
    assert!(
        nobody.contains("no record of an account acct-2"),
        "{nobody}"
    );
    world.server.shutdown().await;
}

#[tokio::test]
async fn facts_are_brought_in_from_a_file_and_shown_with_their_time() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let file = dir.path().join("facts.jsonl");
    let line =
        r#"{"account": "acct-7", "run_rate": {"value": 12345, "as_of": "2019-05-29T00:00:00Z"}}"#;
    std::fs::write(&file, line).unwrap();
    let file = file.display().to_string();
    let taken = world.said("ann", &["accounts", "import", &file]).await;
    assert_eq!(taken, "Facts about 1 account were taken.\n");
    let shown = world.said("ann", &["accounts", "show", "acct-7"]).await;
    assert!(
        shown.contains("123.45 a month") && shown.contains("unknown_standing"),
        "{shown}"
    );
    let document = world.json("ann", &["accounts", "show", "acct-7"]).await;
    assert_eq!(document["record"]["run_rate"]["value"], 12_345);
    assert_eq!(document["facts"].as_array().unwrap().len(), 10);
    world.server.shutdown().await;
}

#[tokio::test]
async fn wrong_lines_are_told_by_number_before_anything_is_sent() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{\"account\": \"a\"}\n{\"account\": 7}\n").unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_davyctl"))
        // Nobody listens there: the file is read first.
        .args(["--detector", "http://127.0.0.1:1", "accounts", "import"])
        .arg(file.path())
        .output()
        .await
        .unwrap();
    let text = error(&output);
    assert!(
        text.contains("2 lines are wrong, and nothing was sent"),
        "{text}"
    );
    assert!(
        text.contains("line 1: it has no facts") && text.contains("line 2: \"account\" is no text"),
        "{text}"
    );
}
