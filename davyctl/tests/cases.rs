//! Every verb of `davyctl cases`, once for people and once as JSON, by the real program against a running detector.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::path::Path;
use std::process::Output;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use davy_decision::account::AccountId;
use davy_decision::action::State;
use davy_decision::audit::Actor;
use davy_decision::dossier::Dossier;
use davy_decision::episode::{Classes, Sighting};
use davy_decision::policy::Step;
use davy_decision::settings::Settings;
use davy_decision::time::{Span, Time};
use davy_detector::people::{Kind, TokenConfig};
use davy_detector::{Config, Server};
use davy_evidence::Level;
use serde_json::Value;
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

/// Asks again until `holds`.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds().await {
        let now = tokio::time::Instant::now();
        assert!(now < deadline, "{what}: not so in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl World {
    async fn start(dir: &Path) -> Self {
        let mut config = Config {
            database: dir.join("davy.db").display().to_string(),
            tokens: ["ann", "bob", "cid"].map(stanza).to_vec(),
            ..Config::default()
        };
        config.listen.set_port(0);
        config.metrics_listen.set_port(0);
        let server = Server::start(config).await.unwrap();
        let url = format!("http://{}", server.grpc_addr);
        Self { server, url }
    }

    /// An account that mined for twenty minutes, and its open case.
    async fn mine(&self, account: &str) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = Time::from_unix_ms(u64::try_from(since.as_millis()).unwrap());
        let sighting = Sighting {
            droplet: format!("d-{account}").as_str().try_into().unwrap(),
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
        let id = AccountId::try_from(account).unwrap();
        let observe = move |dossier: &mut Dossier, settings: &Settings, _| {
            Ok(dossier.observe(sighting.clone(), settings))
        };
        let seen = (self.server.desk).act(id, Actor::Automation, observe);
        seen.await.unwrap();
        eventually("a case is open", async || {
            self.record(account).await.case.is_some()
        })
        .await;
    }

    async fn record(&self, account: &str) -> Dossier {
        let id = AccountId::try_from(account).unwrap();
        let held = self.server.desk.ledger.dossier(id).await;
        held.unwrap().unwrap()
    }

    /// Until what people asked for at this step is done.
    async fn is_done(&self, account: &str, step: Step, undo: bool) {
        eventually("it is done", async || {
            let record = self.record(account).await;
            let held = record
                .actions
                .iter()
                .find(|action| (action.key.step, action.key.undo) == (step, undo));
            held.is_some_and(|action| matches!(action.state, State::Done { .. }))
        })
        .await;
    }

    async fn run(&self, token: &str, arguments: &[&str]) -> Output {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_davyctl"))
            .args(["--detector", &self.url, "cases"])
            .args(arguments)
            .env("DAVY_TOKEN", token)
            .output()
            .await
            .unwrap()
    }

    async fn said(&self, token: &str, arguments: &[&str]) -> String {
        let output = self.run(token, arguments).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn json(&self, token: &str, arguments: &[&str]) -> Value {
        let text = self.said(token, &[arguments, &["--json"]].concat()).await;
        serde_json::from_str(&text).unwrap()
    }

    /// The one sentence with which it refuses.
    async fn refused(&self, token: &str, arguments: &[&str]) -> String {
        let output = self.run(token, arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    }
}

/// How a verb's answer is printed.
#[derive(Clone, Copy, Debug)]
enum Form {
    People,
    Json,
}

/// One account's case, worked on in one form.
struct Work<'a> {
    world: &'a World,
    form: Form,
    account: &'static str,
}

impl Work<'_> {
    /// Runs a verb that changes something. `happened`: what it says, whatever the form; `back`: how it says to undo it, for people.
    async fn does(&self, token: &str, arguments: &[&str], happened: &str, back: &str) {
        let happened = happened.replace("CASE", &format!("{}/1", self.account));
        match self.form {
            Form::People => {
                let text = self.world.said(token, arguments).await;
                assert!(
                    text.contains(&format!("- {happened}")),
                    "{arguments:?}: {text}"
                );
                let undo = format!("To undo: davyctl cases {back}");
                assert_eq!(
                    text.contains(&undo),
                    !back.is_empty(),
                    "{arguments:?}: {text}"
                );
            }
            Form::Json => {
                let document = self.world.json(token, arguments).await;
                assert_eq!(document["account"], self.account, "{document}");
                let sentences = document["happened"].as_array().unwrap();
                let said = |sentence: &Value| sentence.as_str().unwrap().starts_with(&happened);
                assert!(sentences.iter().any(said), "{arguments:?}: {document}");
                // The records are unfolded.
                let events = document["events"].as_array().unwrap();
                assert_eq!(events.len(), sentences.len(), "{document}");
                assert!(events.iter().all(|event| !event.is_string()), "{document}");
            }
        }
    }
}

/// Reasons are a case's own.
fn reason(account: &str, by: &str) -> String {
    match by {
        "ann" => format!(
            "The droplets of {account} computed RandomX on every vCPU for {account} alone and I wrote to {account} twice."
        ),
        by => format!(
            "I, {by}, found {account} in the list of a pool, and {account} has {account} as its payer in {account}."
        ),
    }
}

async fn works_on_a_case(world: &World, form: Form, account: &'static str) {
    world.mine(account).await;
    let work = Work {
        world,
        form,
        account,
    };
    let case = format!("{account}/1");
    let case = case.as_str();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    let (anns, bobs) = (reason(account, "ann"), reason(account, "bob"));
    std::fs::write(file.path(), format!("{bobs}\n")).unwrap();

    let back = format!("give-back {case}");
    work.does("ann", &["claim", case], "ann has case CASE", &back)
        .await;
    let taken = world.refused("bob", &["claim", case]).await;
    assert!(taken.contains("claimed by ann"), "{taken}");
    let claim = ["claim", case, "--take-over"];
    work.does("bob", &claim, "bob has case CASE", &back).await;
    let happened = "bob gave case CASE back to the queue";
    work.does(
        "bob",
        &["give-back", case],
        happened,
        &format!("claim {case}"),
    )
    .await;
    let answer = ["answer", case, "--text", "We look into it."];
    work.does("ann", &answer, "ann answered the customer in case CASE", "")
        .await;

    let renew: &[&str] = &["renew", case, "--reason", &bobs];
    for verb in [renew, &["un-throttle", case]] {
        let none = world.refused("ann", verb).await;
        assert!(none.contains("no throttle in effect"), "{none}");
    }
    let throttle = ["throttle", case, "--reason", &anns];
    let back = format!("un-throttle {case}");
    work.does("ann", &throttle, "the throttle is to be done", &back)
        .await;
    world.is_done(account, Step::Throttle, false).await;
    work.does("bob", renew, "bob renewed the throttle until", &back)
        .await;
    let back = format!("throttle {case} --reason …");
    work.does("ann", &["un-throttle", case], "hold set by ann", &back)
        .await;
    world.is_done(account, Step::Throttle, true).await;

    let back = format!("allow-high-cpu {account} --revoke");
    let allow = ["allow-high-cpu", account];
    work.does("ann", &allow, "ann set Allow High CPU", &back)
        .await;
    let revoke = ["allow-high-cpu", account, "--revoke"];
    let back = format!("allow-high-cpu {account}");
    work.does("bob", &revoke, "bob took Allow High CPU back", &back)
        .await;

    let propose = [
        "propose-denial",
        case,
        "--measure",
        "lock",
        "--reason",
        &anns,
    ];
    let back = format!("undo {case}");
    work.does("ann", &propose, "ann is for a denial of case CASE", &back)
        .await;
    // Of two measures the milder; the reason from a file.
    let second = [
        "second-opinion",
        case,
        "deny",
        "--measure",
        "power-down",
        "--reason-file",
        &path,
    ];
    work.does("bob", &second, "case CASE is decided by bob: denied", &back)
        .await;
    world.is_done(account, Step::PowerDown, false).await;
    let happened = "bob took the decision back (denied); case CASE is theirs again";
    work.does("bob", &["undo", case], happened, "").await;
    world.is_done(account, Step::PowerDown, true).await;
    let unlock = ["unlock", case, "--outcome", "unsure"];
    let happened = "case CASE is decided by cid: nobody can tell";
    work.does("cid", &unlock, happened, &back).await;
    work.does("cid", &["close", case], "case CASE is closed", "")
        .await;
    let closed = world.refused("cid", &["close", case]).await;
    assert!(
        closed.contains("only a decided case can be closed"),
        "{closed}"
    );

    let record = world.record(account).await;
    assert!(record.case.unwrap().is_closed());
    assert_eq!((record.allowed, record.holds.len()), (None, 4));
}

#[tokio::test]
async fn every_verb_says_what_it_did_to_people_and_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    works_on_a_case(&world, Form::People, "acct-1").await;
    works_on_a_case(&world, Form::Json, "acct-2").await;

    assert_eq!(
        world.json("ann", &["list"]).await["cases"],
        serde_json::json!([])
    );
    let listed = world.json("ann", &["list", "--closed"]).await;
    let cases = listed["cases"].as_array().unwrap();
    let mut accounts: Vec<_> = cases.iter().map(|case| &case["account"]).collect();
    accounts.sort_by_key(|account| account.as_str());
    assert_eq!(accounts, ["acct-1", "acct-2"]);
    assert!(
        cases.iter().all(|case| case["state"] == "closed"),
        "{listed}"
    );
    let table = world.said("ann", &["list", "--closed"]).await;
    assert!(
        table.contains("acct-1/1") && table.contains("acct-2/1"),
        "{table}"
    );
    let shown = world.said("bob", &["show", "acct-1"]).await;
    assert!(shown.contains("We look into it."), "{shown}");
    let document = world.json("bob", &["show", "acct-1/1"]).await;
    assert_eq!(document["case"]["ruling"], "unsure");
    world.server.shutdown().await;
}
