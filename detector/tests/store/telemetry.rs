//! Hosts, tenants and history.

use davy_detector::evidence::rank;
use davy_detector::store::{Evicted, Limits, Memory, Recorded, StoreError};
use davy_evidence::Level;
use davy_proto::v1;
use std::sync::Arc;

use crate::place::{LIMITS, Place};
use crate::support::*;

async fn greet(memory: &Arc<dyn Memory>, host: &str) {
    let opened = memory.open(hello(host, INSTANCE), NOW_NS).await.unwrap();
    assert_eq!(opened.last_sequence, 0);
}

/// Stores a window of `host-1`; what its arrival pushed out.
async fn stored(memory: &Arc<dyn Memory>, sequence: u64, end_s: u64, keys: &[&str]) -> Evicted {
    match memory.record(window("host-1", sequence, end_s, keys)).await {
        Ok(Recorded::Stored { evicted, .. }) => evicted,
        other => panic!("{other:?}"),
    }
}

async fn ends(memory: &Arc<dyn Memory>, key: &str) -> Vec<u64> {
    let history = memory
        .history("host-1".to_owned(), key.to_owned(), 100)
        .await;
    let end = |entry: v1::HistoryEntry| (entry.end_unix_ns - NOW_NS) / SECOND_NS;
    history.unwrap().into_iter().map(end).collect()
}

async fn keys(memory: &Arc<dyn Memory>) -> Vec<String> {
    let tenants = memory.tenants(String::new(), 0).await.unwrap();
    tenants.into_iter().map(|held| held.current.key).collect()
}

pub(crate) async fn a_window_is_stored_once_and_read_as_it_was(place: Place) {
    let memory = place.open().await;
    let unknown = memory.record(window("host-1", 1, 0, &["t"])).await;
    assert!(matches!(unknown, Err(StoreError::UnknownInstance { .. })));
    greet(&memory, "host-1").await;
    let mut first = window("host-1", 1, 0, &["t"]);
    first.tenants = vec![tenant("t", Level::Suspect)];
    let mut second = first.clone();
    (second.sequence, second.lost_windows) = (2, 3);
    (second.start_unix_ns, second.end_unix_ns) = (first.end_unix_ns, first.end_unix_ns + SECOND_NS);
    memory.record(first.clone()).await.unwrap();
    let recorded = memory.record(second.clone()).await.unwrap();
    let evicted = Evicted::default();
    assert_eq!(
        recorded,
        Recorded::Stored {
            missing: 3,
            evicted
        }
    );
    let look = async |memory: &Arc<dyn Memory>| {
        (
            memory.tenants(String::new(), 0).await.unwrap(),
            memory.hosts().await.unwrap(),
            memory
                .history("host-1".to_owned(), "t".to_owned(), 10)
                .await
                .unwrap(),
        )
    };
    let before = look(&memory).await;
    for (again, answer) in [
        (1, Recorded::Duplicate { last_sequence: 2 }),
        (2, Recorded::Duplicate { last_sequence: 2 }),
        (0, Recorded::Absurd { last_sequence: 2 }),
        (u64::MAX, Recorded::Absurd { last_sequence: 2 }),
    ] {
        let recorded = memory.record(window("host-1", again, 90, &["u"])).await;
        assert_eq!(recorded.unwrap(), answer);
    }
    assert_eq!(look(&memory).await, before);
    let (tenants, hosts, history) = &before;
    let held = &tenants[0];
    assert_eq!(held.current, second.tenants[0].window);
    assert_eq!(held.planned, second.tenants[0].planned);
    assert_eq!(
        [
            held.first_seen_unix_ns,
            held.last_seen_unix_ns,
            held.verdict_since_unix_ns,
            held.window_ns
        ],
        [
            first.end_unix_ns,
            second.end_unix_ns,
            first.end_unix_ns,
            SECOND_NS
        ]
    );
    let host = &hosts[0];
    assert_eq!(
        (host.name.as_str(), host.instance.as_str()),
        ("host-1", INSTANCE)
    );
    assert_eq!(
        [host.last_sequence, host.windows, host.lost_windows],
        [2, 2, 3]
    );
    assert_eq!(host.last_seen_unix_ns, second.received_unix_ns);
    assert_eq!(
        (host.agent_version.as_str(), host.kernel_release.as_str()),
        ("0.1.0", "6.12.0")
    );
    assert_eq!(host.sensors, second.sensors);
    let entry = |of: &davy_detector::store::Record| v1::HistoryEntry {
        start_unix_ns: of.start_unix_ns,
        end_unix_ns: of.end_unix_ns,
        window: Some(of.tenants[0].window.clone()),
    };
    assert_eq!(*history, [entry(&second), entry(&first)]);
    drop(memory);
    let again = place.open().await;
    assert_eq!(look(&again).await, before);
    let opened = again
        .open(hello("host-1", INSTANCE), second.end_unix_ns)
        .await
        .unwrap();
    assert_eq!(opened.last_sequence, 2);
    assert_eq!(opened.carried.len(), 1);
    assert_eq!(opened.carried[0].tenant_key, "t");
    assert_eq!(opened.carried[0].evidence, held.current.evidence);
    let much_later = second.end_unix_ns + davy_detector::evidence::FRESH_NS + 1;
    let opened = again
        .open(hello("host-1", INSTANCE), much_later)
        .await
        .unwrap();
    assert_eq!(opened.carried, []);
}

pub(crate) async fn what_is_missing_or_rejected_is_counted(place: Place) {
    let memory = place.open().await;
    greet(&memory, "host-1").await;
    let settle = async |sequence, lost| {
        memory
            .settle("host-1".to_owned(), INSTANCE.to_owned(), sequence, lost)
            .await
    };
    stored(&memory, 5, 0, &["t"]).await;
    assert_eq!(settle(8, 1).await.unwrap(), 2);
    assert_eq!(
        settle(8, 9).await.unwrap(),
        0,
        "a duplicate changes nothing"
    );
    assert_eq!(settle(0, 9).await.unwrap(), 0);
    let recorded = memory
        .record(window("host-1", 12, 10, &["t"]))
        .await
        .unwrap();
    assert!(
        matches!(recorded, Recorded::Stored { missing: 3, .. }),
        "{recorded:?}"
    );
    let host = memory.hosts().await.unwrap().remove(0);
    assert_eq!(
        [host.last_sequence, host.windows, host.lost_windows],
        [12, 2, 5]
    );
    let unknown = memory
        .settle("host-1".to_owned(), "other".to_owned(), 1, 0)
        .await;
    assert!(matches!(unknown, Err(StoreError::UnknownInstance { .. })));
}

pub(crate) async fn one_sequence_is_stored_once_whoever_brings_it(place: Place) {
    let stores = place.two(LIMITS).await;
    greet(&stores[0], "host-1").await;
    for sequence in 1..=20 {
        let [one, other] = stores
            .each_ref()
            .map(|store| store.record(window("host-1", sequence, sequence, &["t", "u"])));
        let (one, other) = tokio::join!(one, other);
        let stored = |recorded: &Recorded| matches!(recorded, Recorded::Stored { missing: 0, .. });
        let duplicate = Recorded::Duplicate {
            last_sequence: sequence,
        };
        let (one, other) = (one.unwrap(), other.unwrap());
        assert!(
            stored(&one) && other == duplicate || stored(&other) && one == duplicate,
            "{one:?} {other:?}"
        );
    }
    assert_eq!(ends(&stores[0], "t").await.len(), 20);
    assert_eq!(stores[1].hosts().await.unwrap()[0].windows, 20);
}

pub(crate) async fn a_tenants_history_is_bounded_in_the_order_of_arrival(place: Place) {
    let memory = place
        .open_with(Limits {
            history_per_tenant_max: 3,
            ..LIMITS
        })
        .await;
    greet(&memory, "host-1").await;
    // The host's clock is set back at the fourth.
    let mut removed = 0;
    for (sequence, end_s) in [(1, 100), (2, 110), (3, 120), (4, 20), (5, 30)] {
        removed += stored(&memory, sequence, end_s, &["t"]).await.history;
    }
    assert_eq!(ends(&memory, "t").await, [30, 20, 120]);
    assert_eq!(removed, 2);
    let two = memory
        .history("host-1".to_owned(), "t".to_owned(), 2)
        .await
        .unwrap();
    assert_eq!(two.len(), 2);
}

pub(crate) async fn all_history_is_bounded_and_the_earliest_stored_goes(place: Place) {
    let memory = place
        .open_with(Limits {
            history_total_max: 4,
            ..LIMITS
        })
        .await;
    greet(&memory, "host-1").await;
    let mut removed = 0;
    for sequence in 1..=3 {
        removed += stored(&memory, sequence, sequence, &["t", "u"])
            .await
            .history;
    }
    assert_eq!(removed, 2);
    assert_eq!(ends(&memory, "t").await, [3, 2]);
    assert_eq!(ends(&memory, "u").await, [3, 2]);
    drop(memory);
    // Opened again with a smaller bound, it is kept from the next window on.
    let memory = place
        .open_with(Limits {
            history_total_max: 3,
            ..LIMITS
        })
        .await;
    assert_eq!(stored(&memory, 4, 4, &["t"]).await.history, 2);
    assert_eq!(ends(&memory, "t").await, [4, 3]);
    assert_eq!(ends(&memory, "u").await, [3]);
}

pub(crate) async fn a_hosts_tenants_are_bounded_and_the_last_seen_stay(place: Place) {
    let memory = place
        .open_with(Limits {
            tenants_per_host_max: 2,
            ..LIMITS
        })
        .await;
    greet(&memory, "host-1").await;
    greet(&memory, "host-2").await;
    memory.record(window("host-2", 1, 0, &["x"])).await.unwrap();
    stored(&memory, 1, 100, &["a"]).await;
    stored(&memory, 2, 110, &["b"]).await;
    let evicted = stored(&memory, 3, 120, &["c"]).await;
    assert_eq!((evicted.tenants, evicted.history), (1, 0));
    assert_eq!(keys(&memory).await, ["b", "c", "x"]);
    // The clock is set back: those of the window that came last stay all the same.
    stored(&memory, 4, 10, &["d", "a"]).await;
    assert_eq!(keys(&memory).await, ["a", "d", "x"]);
    assert_eq!(ends(&memory, "c").await, [0; 0]);
    assert_eq!(
        ends(&memory, "a").await,
        [10],
        "history goes with its tenant"
    );
}

pub(crate) async fn hosts_are_bounded_also_when_they_come_at_once(place: Place) {
    let limits = Limits {
        hosts_max: 3,
        ..LIMITS
    };
    let stores = place.two(limits).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..12_usize {
        let store = Arc::clone(&stores[n % 2]);
        let hello = hello(&format!("host-{n}"), INSTANCE);
        tasks.spawn(async move { store.open(hello, NOW_NS).await });
    }
    let mut taken = 0;
    for opened in tasks.join_all().await {
        match opened {
            Ok(_) => taken += 1,
            Err(StoreError::TooManyHosts { hosts_max: 3 }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(taken, 3);
    let hosts = stores[0].hosts().await.unwrap();
    assert_eq!(hosts.len(), 3);
    // One that is known is welcome.
    let known = hello(&hosts[0].name, "other");
    stores[1].open(known, NOW_NS).await.unwrap();
    assert_eq!(stores[0].hosts().await.unwrap()[0].instance, "other");
}

pub(crate) async fn an_agent_is_known_though_the_clock_was_set_back(place: Place) {
    let memory = place.open().await;
    for n in 1..=20_u64 {
        let instance = format!("{n:08}-1111-4111-8111-111111111111");
        // The clock goes back at the tenth.
        let now = NOW_NS - if n < 10 { 0 } else { 3_600 * SECOND_NS };
        let opened = memory.open(hello("host-1", &instance), now + n).await;
        assert_eq!(opened.unwrap().last_sequence, 0);
        let settled = memory.settle("host-1".to_owned(), instance, 1, 0).await;
        assert_eq!(settled.unwrap(), 0, "instance {n}");
    }
    assert_eq!(place.sql("SELECT count(*) FROM instances").unwrap(), "8");
    // One that comes back before it is forgotten finds its sequence.
    let ninth = "00000009-1111-4111-8111-111111111111";
    let opened = memory.open(hello("host-1", ninth), NOW_NS).await;
    assert_eq!(opened.unwrap().last_sequence, 1);
}

pub(crate) async fn what_was_not_seen_for_the_retention_is_removed(place: Place) {
    let memory = place.open().await;
    for host in ["host-1", "host-2"] {
        greet(&memory, host).await;
    }
    stored(&memory, 1, 0, &["old"]).await;
    stored(&memory, 2, 2_000, &["new"]).await;
    let at = |s: u64| NOW_NS + s * SECOND_NS;
    let removed = async |s| {
        let Evicted {
            history: 0,
            tenants,
            hosts,
        } = memory.evict(at(s)).await.unwrap()
        else {
            panic!("history is not removed by age");
        };
        (tenants, hosts)
    };
    assert_eq!(removed(3_600).await, (0, 0));
    assert_eq!(
        removed(3_601).await,
        (1, 1),
        "old, and host-2 which never sent"
    );
    assert_eq!(keys(&memory).await, ["new"]);
    assert_eq!(ends(&memory, "old").await, [0; 0]);
    assert_eq!(removed(5_601).await, (1, 1));
    assert_eq!(memory.hosts().await.unwrap(), []);
    // What is removed is not known any more.
    let gone = memory.record(window("host-1", 3, 6_000, &["new"])).await;
    assert!(matches!(gone, Err(StoreError::UnknownInstance { .. })));
    assert_eq!(place.sql("SELECT count(*) FROM history").unwrap(), "0");
    assert_eq!(place.sql("SELECT count(*) FROM instances").unwrap(), "0");
}

pub(crate) async fn tenants_are_listed_found_and_counted(place: Place) {
    let memory = place.open().await;
    for host in ["b", "B", "a-1", "a1"] {
        greet(&memory, host).await;
        let mut one = window(host, 1, 0, &[]);
        one.tenants = vec![
            tenant("t", Level::Quiet),
            tenant("T", Level::Mining),
            tenant("_", Level::Suspect),
        ];
        memory.record(one).await.unwrap();
    }
    let pairs = |tenants: Vec<davy_detector::store::Tenant>| -> Vec<String> {
        let name =
            |held: davy_detector::store::Tenant| format!("{}/{}", held.host, held.current.key);
        tenants.into_iter().map(name).collect()
    };
    let listed =
        async |host: &str, level| pairs(memory.tenants(host.to_owned(), level).await.unwrap());
    assert_eq!(
        listed("", 0).await,
        [
            "B/T", "B/_", "B/t", "a-1/T", "a-1/_", "a-1/t", "a1/T", "a1/_", "a1/t", "b/T", "b/_",
            "b/t"
        ]
    );
    assert_eq!(listed("b", rank(Level::Suspect)).await, ["b/T", "b/_"]);
    assert_eq!(listed("c", 0).await, [""; 0]);
    let hosts = memory.hosts().await.unwrap();
    let hosts: Vec<_> = hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(hosts, ["B", "a-1", "a1", "b"]);
    let found = async |host: &str, text: &str, most| {
        pairs(
            memory
                .find(host.to_owned(), text.to_owned(), most)
                .await
                .unwrap(),
        )
    };
    assert_eq!(found("", "t", 9).await, ["B/t", "a-1/t", "a1/t", "b/t"]);
    assert_eq!(found("", "t", 2).await, ["B/t", "a-1/t"]);
    assert_eq!(found("b", "name of T", 9).await, ["b/T"]);
    assert_eq!(found("b", "id of _", 9).await, ["b/_"]);
    assert_eq!(found("b", "", 9).await, [""; 0]);
    let counts = memory.tenants_by_level(NOW_NS).await.unwrap();
    assert_eq!((counts.quiet, counts.suspect, counts.mining), (4, 4, 4));
    let counts = memory.tenants_by_level(NOW_NS + 1).await.unwrap();
    assert_eq!((counts.quiet, counts.suspect, counts.mining), (0, 0, 0));
}

pub(crate) async fn texts_that_cannot_be_are_not_found(place: Place) {
    let memory = place.open().await;
    greet(&memory, "host-1").await;
    stored(&memory, 1, 0, &["t"]).await;
    for text in ["\0", "t\0", "'; DROP TABLE tenants; --", "%", "\u{1f512}"] {
        let text = text.to_owned();
        let found = memory.find(String::new(), text.clone(), 9).await.unwrap();
        assert_eq!(found, []);
        assert_eq!(memory.tenants(text.clone(), 0).await.unwrap(), []);
        let history = memory.history("host-1".to_owned(), text, 9).await;
        assert_eq!(history.unwrap(), []);
    }
    assert_eq!(keys(&memory).await, ["t"]);
}

pub(crate) async fn entries_are_counted_right_while_all_is_written_and_removed(place: Place) {
    let limits = Limits {
        history_per_tenant_max: 7,
        history_total_max: 60,
        tenants_per_host_max: 5,
        ..LIMITS
    };
    let stores = place.two(limits).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..6_usize {
        let store = Arc::clone(&stores[n % 2]);
        tasks.spawn(async move {
            let host = format!("host-{n}");
            greet(&store, &host).await;
            for sequence in 1..=30 {
                let names: Vec<_> = (0..4)
                    .map(|of| format!("t{}", (sequence + of * of) % 9))
                    .collect();
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                let at = sequence + if n == 0 { 0 } else { 4_000 };
                let one = window(&host, sequence, at, &names);
                loop {
                    match store.record(one.clone()).await {
                        Ok(Recorded::Stored { .. }) => break,
                        // Removed for its age: it comes again.
                        Err(StoreError::UnknownInstance { .. }) => {
                            greet(&store, &host).await;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        });
    }
    for store in stores.clone() {
        tasks.spawn(async move {
            for _ in 0..15 {
                // The first host's tenants are old already, as they come.
                store.evict(NOW_NS + 3_620 * SECOND_NS).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let wrong = "SELECT count(*) FROM tenants WHERE history_entries <>
         (SELECT count(*) FROM history WHERE tenant_id = tenants.id)";
    assert_eq!(place.sql(wrong).unwrap(), "0");
    stores[0].evict(NOW_NS).await.unwrap();
    let kept: u64 = place
        .sql("SELECT count(*) FROM history")
        .unwrap()
        .parse()
        .unwrap();
    assert!((40..=60).contains(&kept), "{kept}");
}
