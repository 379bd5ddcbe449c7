//! What only a server far away can do: break a connection, before a commit or while it is under way, or not be there at all.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use davy_decision::{
    account::{AccountId, DropletId, Facts},
    action::{Action, State},
    audit::Entry,
    decide::in_force,
    dossier::Event,
    policy::Step,
    settings::Settings,
    time::Span,
};
use davy_detector::account::directory::{Directory, DirectoryError};
use davy_detector::desk::Desk;
use davy_detector::engine::Engine;
use davy_detector::store::ledger::{Decision, LedgerError, Reach};
use davy_detector::store::{self, Memory, Recorded, StoreError};
use tokio::sync::oneshot;
use tokio_postgres::Client;

use crate::place::{LIMITS, Place};
use crate::proxy::{Cut, Proxy};
use crate::releases::{event, plans, sized, steps_released, stop};
use crate::replica::{Line, Replica, mines};
use crate::support::*;

/// As it goes over the line, and as no other statement has it (`READ COMMITTED`).
const COMMIT: &str = "COMMIT\0";

/// That a statement was understood (message `ParseComplete`).
const PARSED: &str = "1\0\0\0\u{4}";

/// A store whose line to the server can be cut.
async fn behind_a_proxy(place: &Place) -> (Proxy, Arc<dyn Memory>) {
    let Place::Postgres { server, database } = place else {
        panic!("PostgreSQL alone has a line to be cut");
    };
    let proxy = Proxy::start(server.socket());
    let url = davy_test_postgres::url_at(proxy.directory(), database, "davy");
    let memory = store::open(&url, LIMITS).await.unwrap();
    (proxy, memory)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_not_known_to_be_kept() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let (proxy, memory) = behind_a_proxy(&place).await;
    make(&memory, "a", Reach::Fleet, count_one()).await.unwrap();
    for (cut, letters) in [(Cut::Before(COMMIT), 1), (Cut::After(COMMIT, COMMIT), 2)] {
        proxy.arm(cut);
        let made = make(&memory, "a", Reach::Fleet, count_one()).await;
        assert!(proxy.was_cut());
        let Err(LedgerError::Store(error @ StoreError::Unknown { .. })) = made else {
            panic!("{cut:?}: {made:?}");
        };
        assert!(
            error
                .to_string()
                .contains("whether it was kept is not known"),
            "{error}"
        );
        // One of both, and it is not made twice.
        let dossier = record_of(&memory, "a").await.unwrap();
        assert_eq!(dossier.letters_written, letters, "{cut:?}");
        assert_eq!(followed(&memory).await, letters);
    }
    make(&memory, "a", Reach::Fleet, count_one()).await.unwrap();
    assert_eq!(followed(&memory).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_whose_commit_was_lost_is_known_when_it_comes_again() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let (proxy, memory) = behind_a_proxy(&place).await;
    memory
        .open(hello("host-1", INSTANCE), NOW_NS)
        .await
        .unwrap();
    proxy.arm(Cut::After(COMMIT, COMMIT));
    let recorded = memory.record(window("host-1", 1, 0, &["t"])).await;
    assert!(
        matches!(recorded, Err(StoreError::Unknown { .. })),
        "{recorded:?}"
    );
    let again = memory.record(window("host-1", 1, 0, &["t"])).await;
    assert_eq!(again.unwrap(), Recorded::Duplicate { last_sequence: 1 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_lost_before_the_commit_is_tried_again_on_another() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let (proxy, memory) = behind_a_proxy(&place).await;
    memory
        .open(hello("host-1", INSTANCE), NOW_NS)
        .await
        .unwrap();
    for (sequence, cut) in [
        (1, Cut::Before("INSERT INTO audit ")),
        (2, Cut::After("INSERT INTO audit ", PARSED)),
        (3, Cut::After("UPDATE audit_head", PARSED)),
        (4, Cut::Before("START TRANSACTION")),
    ] {
        proxy.arm(cut);
        make(&memory, "a", Reach::Fleet, count_one()).await.unwrap();
        assert!(proxy.was_cut(), "{cut:?}");
        assert_eq!(followed(&memory).await, sequence, "{cut:?}");
        proxy.arm(Cut::After("INSERT INTO history", PARSED));
        let recorded = memory.record(window("host-1", sequence, sequence, &["t"]));
        let recorded = recorded.await.unwrap();
        assert!(matches!(recorded, Recorded::Stored { missing: 0, .. }));
        assert!(proxy.was_cut());
    }
    proxy.arm(Cut::Before("SELECT body FROM accounts"));
    assert_eq!(record_of(&memory, "a").await.unwrap().letters_written, 4);
    assert!(proxy.was_cut());
    let history = memory.history("host-1".to_owned(), "t".to_owned(), 10);
    assert_eq!(history.await.unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_away_is_used_again() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let Place::Postgres { server, database } = &place else {
        return;
    };
    let memory = place.open().await;
    make(&memory, "a", Reach::Fleet, count_one()).await.unwrap();
    // Every connection that waits in the pool is dead; nobody has noticed.
    let waits = (0..6).map(|_| record_of(&memory, "a"));
    let mut all = tokio::task::JoinSet::new();
    for _ in waits {
        let memory = Arc::clone(&memory);
        all.spawn(async move { record_of(&memory, "a").await.is_some() });
    }
    assert!(all.join_all().await.into_iter().all(|found| found));
    let end = format!(
        "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = '{database}'"
    );
    let ended: u64 = server.run("postgres", &end).unwrap().parse().unwrap();
    assert!(ended > 0);
    make(&memory, "a", Reach::Fleet, count_one()).await.unwrap();
    assert_eq!(followed(&memory).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_loses_a_deadlock_is_made_again() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let Place::Postgres { server, database } = &place else {
        return;
    };
    let memory = place.open().await;
    for (name, own) in [("a", "d1"), ("b", "d2")] {
        make(&memory, name, Reach::Account, owns(&[own]))
            .await
            .unwrap();
    }
    let (server, database) = (Arc::clone(server), database.clone());
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let other = tokio::task::spawn_blocking(move || {
        // It has the second row long before it wants the first, which the change has by then. Whoever looks for a deadlock finds it
        // and loses: the change, since this one never looks.
        let _ = begun.send(());
        let sql = "BEGIN; SET LOCAL deadlock_timeout = '10min';
             UPDATE owners SET account = 'c' WHERE droplet = 'd2'; SELECT pg_sleep(0.7);
             UPDATE owners SET account = 'c' WHERE droplet = 'd1'; COMMIT";
        server.run(&database, sql)
    });
    has_begun.await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    make(&memory, "a", Reach::Account, owns(&["d2"]))
        .await
        .unwrap();
    other.await.unwrap().unwrap();
    let owner = memory.owner(droplet("d2")).await.unwrap();
    assert_eq!(owner, Some(account("a")));
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let url = davy_test_postgres::url_at(dir.path(), "davy", "davy");
    let url = url.replace("user=davy", "user=davy&password=secret");
    let error = store::open(&url, LIMITS)
        .await
        .err()
        .expect("it was opened");
    let said = error.to_string();
    assert!(matches!(error, StoreError::Unusable { .. }), "{said}");
    assert!(said.contains("cannot be reached"), "{said}");
    assert!(said.contains("is it running"), "{said}");
    assert!(!said.contains("secret"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_rights_is_told_so() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let Place::Postgres { server, database } = &place else {
        return;
    };
    drop(place.open().await);
    let role = format!("{database}_reader");
    let grant =
        format!("CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}");
    place.sql(&grant).unwrap();
    let url = davy_test_postgres::url_at(server.directory(), database, &role);
    let memory = store::open(&url, LIMITS).await.unwrap();
    let made = make(&memory, "a", Reach::Account, count_one()).await;
    let error = made.unwrap_err().to_string();
    assert!(
        error.contains("permission denied for table accounts"),
        "{error}"
    );
    assert_eq!(record_of(&memory, "a").await, None);
    place
        .sql(&format!(
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
        ))
        .unwrap();
    make(&memory, "a", Reach::Account, count_one())
        .await
        .unwrap();
    assert_eq!(followed(&memory).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_reaches_the_disk_and_levels_hold_whatever_the_servers_defaults_are() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let Place::Postgres { server, database } = &place else {
        return;
    };
    for default in [
        "synchronous_commit = off",
        "default_transaction_isolation = 'serializable'",
    ] {
        let set = format!("ALTER DATABASE {database} SET {default}");
        server.run("postgres", &set).unwrap();
    }
    place
        .sql("CREATE SCHEMA seen; CREATE TABLE seen.settings (name text)")
        .unwrap();
    let memory = place.open().await;
    // Each entry of the log tells under which settings it was written.
    let watch = "CREATE FUNCTION seen.look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO seen.settings VALUES (current_setting('synchronous_commit') || ', ' || current_setting('transaction_isolation'));
             RETURN NEW; END $$;
         CREATE TRIGGER look BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION seen.look()";
    place.sql(watch).unwrap();
    make(&memory, "a", Reach::Account, count_one())
        .await
        .unwrap();
    let seen = place.sql("SELECT name FROM seen.settings").unwrap();
    assert_eq!(seen, "on, read committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_another_encoding_is_refused() {
    let Some(Place::Postgres { server, .. }) = Place::postgres() else {
        return;
    };
    let make = "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'";
    server.run("postgres", make).unwrap();
    let error = store::open(&server.url("latin"), LIMITS).await;
    let error = error.err().expect("it was opened").to_string();
    assert!(error.contains("its encoding is LATIN1"), "{error}");
}

/// How many accounts two detectors attend to at once.
const MINERS: usize = 30;

/// Rounds of that many accounts until each detector has had a part in it.
const ROUNDS_MAX: usize = 10;

/// Until the account's record knows that both steps that it is due were taken, and nothing is to be done at once any more.
async fn settles(desk: &Desk, name: &str) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let record = desk.ledger.dossier(account(name)).await.unwrap().unwrap();
        let done = |action: &&Action| matches!(action.state, State::Done { .. });
        if record.actions.iter().filter(done).count() == 2 {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{record:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// That an account's decisions are one after the other, each another one than that before it, and one of them throttles.
async fn each_decision_is_another_one(desk: &Desk, name: &str) -> usize {
    let decisions = desk.ledger.decisions(Some(account(name)), None, 1_000);
    let decisions = decisions.await.unwrap();
    let rests_on = |decision: &Decision| {
        let plan = &decision.plan;
        let (safeties, steps) = (in_force(&plan.safeties), plan.steps.clone());
        (
            decision.input.episode.number,
            plan.evidence.level,
            safeties,
            steps,
        )
    };
    for pair in decisions.windows(2) {
        let [before, after] = [&pair[0], &pair[1]].map(rests_on);
        let numbers = (pair[0].number, pair[1].number);
        assert_ne!(before, after, "{name}: decided twice, {numbers:?}");
    }
    let throttles = |decision: &&Decision| decision.plan.steps.contains(&Step::Throttle);
    let throttled: Vec<_> = (decisions.iter().filter(throttles))
        .map(|decision| decision.number)
        .collect();
    assert_eq!(throttled.len(), 1, "{name}: by decisions {throttled:?}");
    let record = desk.ledger.dossier(account(name)).await.unwrap().unwrap();
    let stored = u64::try_from(decisions.len()).unwrap();
    assert_eq!(record.decisions, stored, "{name}: each is stored");
    decisions.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_detectors_at_once_decide_each_thing_once_and_ask_for_it_once() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let settings = Settings {
        budget_per_hour: 1_000,
        // What was held up is soon known not to have arrived.
        delivery_ms: Span::seconds(1),
        ..Settings::default()
    };
    let replicas = Replica::two(&place, &settings).await;
    let desk = replicas[0].engine.desk.clone();
    sized(&desk.ledger).await;
    let (end, ended) = tokio::sync::watch::channel(false);
    let runs = (replicas.each_ref())
        .map(|replica| tokio::spawn(Arc::clone(&replica.engine).run(ended.clone())));
    let mut names = Vec::new();
    // One that was always late would make this a test of one detector.
    let took_part = |replica: &Replica| {
        let (decided, sent) = replica.did();
        decided > 0 && sent > 0
    };
    for round in 0.. {
        let did = replicas.each_ref().map(Replica::did);
        if round > 0 && replicas.iter().all(took_part) {
            break;
        }
        assert!(round < ROUNDS_MAX, "one took no part: {did:?}");
        let new = (0..MINERS).map(|n| format!("a{round}-{n}"));
        let new: Vec<_> = new.collect();
        for name in &new {
            mines(&desk, name).await;
        }
        for name in &new {
            settles(&desk, name).await;
        }
        names.extend(new);
    }
    end.send(true).unwrap();
    for run in runs {
        run.await.unwrap();
    }
    let wanted: BTreeSet<_> = (names.iter())
        .flat_map(|name| ["notify", "throttle"].map(|step| format!("{name}/1/{step}/0")))
        .collect();
    let mut arrived = replicas[0].line.arrived();
    arrived.sort();
    assert_eq!(arrived, Vec::from_iter(wanted), "each order arrives once");
    // Each throttle is one against the budget, whoever released it.
    let counted = desk.ledger.fleet().await.unwrap().within_hour(desk.now());
    assert_eq!(counted, u64::try_from(names.len()).unwrap());
    let mut stored = 0;
    for name in &names {
        stored += each_decision_is_another_one(&desk, name).await;
    }
    // What both say they did is all that was done: no decision is another's, made again and lost.
    let did = replicas.each_ref().map(Replica::did);
    let decided: usize = did.iter().map(|(decided, _)| decided).sum();
    let sent: usize = did.iter().map(|(_, sent)| sent).sum();
    assert_eq!((decided, sent), (stored, arrived.len()), "{did:?}");
}

/// A provider's directory that is asked right before a release: then somebody else takes the account's row.
struct TakesTheRow {
    url: String,
    line: Arc<Line>,
    /// Gets who has it.
    taken: Mutex<Option<oneshot::Sender<Client>>>,
}

#[tonic::async_trait]
impl Directory for TakesTheRow {
    async fn facts(&self, name: &AccountId) -> Result<Facts, DirectoryError> {
        let taken = self.taken.lock().unwrap().take();
        if let Some(taken) = taken {
            let connected = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await;
            let (client, connection) = connected.unwrap();
            tokio::spawn(connection);
            let take = "BEGIN; SELECT account FROM accounts FOR UPDATE";
            client.batch_execute(take).await.unwrap();
            assert!(taken.send(client).is_ok(), "the test is over");
        }
        self.line.facts(name).await
    }

    async fn owner(&self, _: &DropletId) -> Result<Option<AccountId>, DirectoryError> {
        Ok(None)
    }
}

/// Until `holds` of how many wait for a lock of somebody else's.
async fn waiters(place: &Place, holds: impl Fn(usize) -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    loop {
        let waiters = place.sql(sql).unwrap().parse().unwrap();
        if holds(waiters) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{waiters} wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A release has looked at everything when the kill switch comes, and is not committed: the switch waits for it, and has not returned
/// before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_the_release_that_is_under_way() {
    let Some(place) = Place::postgres() else {
        return;
    };
    let replicas = Replica::two(&place, &Settings::default()).await;
    let [one, other] = replicas.each_ref().map(|replica| &replica.engine);
    sized(&one.desk.ledger).await;
    plans(&replicas[0], "a").await;
    let (taken, has_taken) = oneshot::channel();
    let engine = Engine {
        desk: one.desk.clone(),
        directory: Arc::new(TakesTheRow {
            url: place.name(),
            line: Arc::clone(&replicas[0].line),
            taken: Mutex::new(Some(taken)),
        }),
        driver: Arc::clone(&replicas[0].line) as _,
        policies: Arc::clone(&one.policies),
        metrics: Arc::clone(&one.metrics),
    };
    let attending = tokio::spawn(async move { engine.attend(&account("a")).await });
    let has_the_row = has_taken.await.unwrap();
    waiters(&place, |waiters| waiters == 1).await;
    let desk = other.desk.clone();
    let stopping = tokio::spawn(async move { desk.change_fleet(person("ann"), stop()).await });
    // It waits behind the release, or it is through.
    waiters(&place, |waiters| waiters == 2 || stopping.is_finished()).await;
    has_the_row.batch_execute("COMMIT").await.unwrap();
    attending.await.unwrap().unwrap();
    stopping.await.unwrap().unwrap();
    let log = one.desk.ledger.audit(None, 0, 1_000).await.unwrap();
    let stopped = |entry: &Entry| matches!(event(entry), Event::Stopped { .. });
    let (before, after) = log.split_at(log.iter().position(stopped).unwrap());
    assert_eq!(steps_released(after), [], "released after the stop");
    assert_eq!(steps_released(before), [(account("a"), Step::Notify)]);
}
