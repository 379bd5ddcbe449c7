//! What the detector keeps: over a restart, within its bounds, and how it is asked for. What any store promises is in `tests/store`.

use davy_detector::Server;
use davy_proto::v1;
use tonic::Code;

use crate::support::*;

#[tokio::test]
async fn a_restart_keeps_state_and_sequence() {
    let detector = Detector::start().await;
    let (mut agent, _) = Agent::connect(&detector, hello(INSTANCE, 1_000)).await;
    let mut first = window(1, 20);
    first.tenants = vec![tenant("qemu:b", &concluded())];
    agent.acknowledged(first.clone()).await;
    let mut second = first.clone();
    second.sequence = 2;
    agent.acknowledged(second).await;
    let before = detector.droplet("qemu:b").await.unwrap();

    let detector = detector.restart().await;
    let ended = agent.ended().await;
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    assert_eq!(detector.droplet("qemu:b").await.unwrap(), before);
    assert!(!detector.host().await.connected);
    let (mut agent, welcome) = Agent::connect(&detector, hello(INSTANCE, 1_000)).await;
    assert_eq!(welcome.last_sequence, 2);
    assert_eq!(welcome.carried.len(), 1);
    // What was in flight comes again, and is known.
    assert_eq!(agent.acknowledged(first).await, 2);
    assert_eq!(agent.acknowledged(window(3, 0)).await, 3);
    let host = detector.host().await;
    assert_eq!((host.windows, host.lost_windows), (3, 0));
}

#[tokio::test]
async fn a_tenants_history_is_bounded_and_the_oldest_goes() {
    let detector = Detector::start_in(tempfile::tempdir().unwrap(), |config| {
        config.limits.history_per_tenant_max = 3;
    })
    .await;
    let (mut agent, _) = Agent::start(&detector).await;
    let mut ends = Vec::new();
    for sequence in 1..=5 {
        let one = window(sequence, 100 - 10 * sequence);
        ends.insert(0, one.end_unix_ns);
        agent.acknowledged(one).await;
    }
    let kept: Vec<u64> = detector
        .droplet("qemu:a")
        .await
        .unwrap()
        .history
        .iter()
        .map(|entry| entry.end_unix_ns)
        .collect();
    assert_eq!(kept, ends[..3]);
    assert_eq!(
        detector
            .metric("davy_detector_evicted_total{what=\"history\"}")
            .await,
        "2"
    );
}

#[tokio::test]
async fn all_history_is_bounded_and_the_earliest_stored_goes() {
    let dir = tempfile::tempdir().unwrap();
    let detector = Detector::start_in(dir, |config| config.limits.history_total_max = 4).await;
    let (mut agent, _) = Agent::start(&detector).await;
    for sequence in 1..=3 {
        let mut one = window(sequence, 100 - 10 * sequence);
        one.tenants.push(tenant("qemu:b", &quiet()));
        agent.acknowledged(one).await;
    }
    assert_eq!(detector.droplet("qemu:a").await.unwrap().history.len(), 2);
    assert_eq!(detector.droplet("qemu:b").await.unwrap().history.len(), 2);
    assert_eq!(
        detector
            .metric("davy_detector_evicted_total{what=\"history\"}")
            .await,
        "2"
    );
}

#[tokio::test]
async fn the_newest_history_stays_though_the_hosts_clock_was_set_back() {
    let detector = Detector::start_in(tempfile::tempdir().unwrap(), |config| {
        config.limits.history_per_tenant_max = 2;
    })
    .await;
    let (mut agent, _) = Agent::start(&detector).await;
    agent.acknowledged(window(1, 10)).await;
    agent.acknowledged(window(2, 0)).await;
    let mut set_back = Vec::new();
    for sequence in 3..=4 {
        let one = window(sequence, 1_000 - 10 * sequence);
        set_back.insert(0, one.end_unix_ns);
        agent.acknowledged(one).await;
    }
    let kept: Vec<u64> = detector
        .droplet("qemu:a")
        .await
        .unwrap()
        .history
        .iter()
        .map(|entry| entry.end_unix_ns)
        .collect();
    assert_eq!(kept, set_back);
}

#[tokio::test]
async fn a_host_beyond_the_bound_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let detector = Detector::start_in(dir, |config| config.limits.hosts_max = 1).await;
    let (_first, _) = Agent::start(&detector).await;
    let mut second = Agent::silent(&detector).await;
    let other = v1::Hello {
        host: "host-2".into(),
        ..hello(OTHER_INSTANCE, 1)
    };
    second.send(v1::agent_message::Message::Hello(other)).await;
    let refused = second.ended().await;
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("limits.hosts_max"), "{refused}");
}

/// Why a detector does not start on `dir`'s database.
async fn refusal(dir: &std::path::Path) -> String {
    Server::start(config(dir))
        .await
        .err()
        .expect("it started")
        .to_string()
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let Detector { server, dir } = Detector::start().await;
    server.shutdown().await;
    let database = rusqlite::Connection::open(dir.path().join("davy.db")).unwrap();
    database.pragma_update(None, "user_version", 1_000).unwrap();
    drop(database);
    let why = refusal(dir.path()).await;
    assert!(
        why.contains("has schema 1000, this davy-detector knows up to"),
        "{why}"
    );
    assert!(why.contains("run the newer release"), "{why}");
}

#[tokio::test]
async fn what_is_no_database_and_what_another_detector_uses_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("davy.db"),
        "no database at all, but a text of some length".repeat(100),
    )
    .unwrap();
    let why = refusal(dir.path()).await;
    assert!(why.contains("cannot be used"), "{why}");

    let detector = Detector::start().await;
    let why = refusal(detector.dir.path()).await;
    assert!(why.contains("another davy-detector uses it"), "{why}");

    let why = refusal(&dir.path().join("absent")).await;
    assert!(why.contains("its directory must exist"), "{why}");
}

#[tokio::test]
async fn tenants_are_listed_by_host_and_level() {
    let detector = Detector::start().await;
    let (mut agent, _) = Agent::start(&detector).await;
    let mut one = window(1, 0);
    one.tenants.push(tenant("qemu:b", &concluded()));
    agent.acknowledged(one).await;
    let mut inventory = detector.inventory().await;
    let mut list = async |host: &str, at_least: v1::VerdictLevel| -> Vec<String> {
        let request = v1::ListDropletsRequest {
            host: host.into(),
            at_least: at_least.into(),
        };
        let droplets = inventory
            .list_droplets(request)
            .await
            .unwrap()
            .into_inner()
            .droplets;
        droplets
            .into_iter()
            .map(|droplet| droplet.current.unwrap().key)
            .collect()
    };
    assert_eq!(
        list("", v1::VerdictLevel::Unspecified).await,
        ["qemu:a", "qemu:b"]
    );
    assert_eq!(list("host-1", v1::VerdictLevel::Suspect).await, ["qemu:b"]);
    assert!(list("", v1::VerdictLevel::Mining).await.is_empty());
    assert!(
        list("host-2", v1::VerdictLevel::Unspecified)
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn a_tenant_is_found_by_key_name_or_droplet_id_if_that_is_clear() {
    let detector = Detector::start().await;
    let (mut agent, _) = Agent::start(&detector).await;
    let mut one = window(1, 0);
    one.tenants.push(tenant("qemu:b", &quiet()));
    one.tenants.push(v1::TenantWindow {
        name: "name of qemu:b".into(),
        ..tenant("qemu:c", &quiet())
    });
    agent.acknowledged(one).await;
    for text in ["qemu:a", "name of qemu:a", "id of qemu:a"] {
        let found = detector.droplet(text).await.unwrap().droplet.unwrap();
        assert_eq!(found.current.unwrap().key, "qemu:a");
    }
    let unclear = detector.droplet("name of qemu:b").await.unwrap_err();
    assert_eq!(unclear.code(), Code::InvalidArgument);
    for part in [
        "host-1 qemu:b name of qemu:b",
        "host-1 qemu:c name of qemu:b",
        "Give the host, or the tenant's key",
    ] {
        assert!(unclear.message().contains(part), "{unclear}");
    }
    assert_eq!(
        detector.droplet("nobody").await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(
        detector.droplet("").await.unwrap_err().code(),
        Code::NotFound
    );
}
