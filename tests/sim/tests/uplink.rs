//! An agent's uplink against a real detector: what is sent is stored once, whatever happens to the connection.

use anyhow::Result;
use davy_agent::uplink::Uplink;
use davy_evidence::{TenantEvidence, fp_rounding, register_randomness};
use davy_proto::v1;
use davy_sim_tests::{DEADLINE, Detector, TENANT, agent, until, window, window_of};

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_windows_are_stored() -> Result<()> {
    let detector = Detector::start().await?;
    let uplink = agent("h1", 1, detector.url(), 100);
    for number in 0..10 {
        uplink.push(window(number));
    }
    let snapshot = until(&uplink, |s| s.counts.acknowledged == 10).await?;
    assert!(snapshot.connected);
    assert_eq!((snapshot.queued, snapshot.queued_bytes), (0, 0));
    let host = detector.host("h1").await?;
    assert_eq!(
        (host.windows, host.last_sequence, host.lost_windows),
        (10, 10, 0)
    );
    assert_eq!(detector.stored("h1").await?, (0..10).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detector_that_was_gone_gets_everything_once() -> Result<()> {
    let mut detector = Detector::start().await?;
    let uplink = agent("h1", 1, detector.url(), 100);
    for number in 0..3 {
        uplink.push(window(number));
    }
    until(&uplink, |s| s.counts.acknowledged == 3).await?;

    detector.go_away().await;
    until(&uplink, |s| !s.connected && s.failures > 0).await?;
    for number in 3..20 {
        uplink.push(window(number));
    }
    assert_eq!(uplink.snapshot().queued, 17);

    detector.come_back().await?;
    let snapshot = until(&uplink, |s| s.counts.acknowledged == 20).await?;
    assert_eq!(snapshot.counts.lost, 0);
    assert!(snapshot.reconnects >= 1);
    let host = detector.host("h1").await?;
    assert_eq!((host.last_sequence, host.lost_windows), (20, 0));
    assert_eq!(detector.stored("h1").await?, (0..20).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_at_any_moment_lose_and_double_nothing() -> Result<()> {
    let mut detector = Detector::start().await?;
    let uplink = agent("h1", 1, detector.url(), 1_000);
    for round in 0..3 {
        for number in 0..100 {
            uplink.push(window(round * 100 + number));
        }
        // Some of the hundred are stored by now, some are under way, some are not sent.
        until(&uplink, |s| s.counts.acknowledged > round * 100).await?;
        detector.go_away().await;
        detector.come_back().await?;
    }
    let snapshot = until(&uplink, |s| s.counts.acknowledged == 300).await?;
    assert_eq!((snapshot.counts.lost, snapshot.counts.rejected), (0, 0));
    assert_eq!(detector.stored("h1").await?, (0..300).collect::<Vec<_>>());
    assert_eq!(detector.host("h1").await?.lost_windows, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_runs_over_loses_its_oldest_and_says_so() -> Result<()> {
    let mut detector = Detector::start().await?;
    let url = detector.url();
    detector.go_away().await;
    let uplink = agent("h1", 1, url, 4);
    for number in 0..10 {
        uplink.push(window(number));
    }
    let snapshot = uplink.snapshot();
    assert_eq!((snapshot.counts.lost, snapshot.queued), (6, 4));

    detector.come_back().await?;
    until(&uplink, |s| s.counts.acknowledged == 4).await?;
    let host = detector.host("h1").await?;
    assert_eq!((host.last_sequence, host.lost_windows), (10, 6));
    assert_eq!(detector.stored("h1").await?, vec![6, 7, 8, 9]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_window_does_not_hold_up_the_others() -> Result<()> {
    let detector = Detector::start().await?;
    let uplink = agent("h1", 1, detector.url(), 100);
    uplink.push(window(0));
    let mut backwards = window(1);
    std::mem::swap(&mut backwards.start_unix_ns, &mut backwards.end_unix_ns);
    uplink.push(backwards);
    uplink.push(window(2));
    let snapshot = until(&uplink, |s| {
        s.counts.acknowledged == 2 && s.counts.rejected == 1
    })
    .await?;
    assert_eq!(
        (snapshot.queued, snapshot.reconnects, snapshot.failures),
        (0, 0, 0)
    );
    assert_eq!(detector.stored("h1").await?, vec![0, 2]);
    let status = detector.status().await?;
    assert_eq!(
        status.rejected.values().sum::<u64>(),
        1,
        "{:?}",
        status.rejected
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_two_hosts_do_not_mix() -> Result<()> {
    let detector = Detector::start().await?;
    let (a, b) = (
        agent("a", 1, detector.url(), 100),
        agent("b", 1, detector.url(), 100),
    );
    for number in 0..5 {
        a.push(window(number));
    }
    for number in 5..12 {
        b.push(window(number));
    }
    until(&a, |s| s.counts.acknowledged == 5).await?;
    until(&b, |s| s.counts.acknowledged == 7).await?;
    assert_eq!(detector.stored("a").await?, (0..5).collect::<Vec<_>>());
    assert_eq!(detector.stored("b").await?, (5..12).collect::<Vec<_>>());
    assert_eq!(detector.host("b").await?.last_sequence, 7);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_gets_its_tenants_tests_back() -> Result<()> {
    let detector = Detector::start().await?;
    let first = agent("h1", 1, detector.url(), 100);
    let (mut fp, mut rr) = (fp_rounding::Test::new(), register_randomness::Test::new());
    fp.add([130, 90, 90, 90]);
    rr.add(register_randomness::Samples {
        modes: [130, 90, 90, 90],
        random: [130, 90, 90, 90],
        ..Default::default()
    });
    assert!(fp.concluded() && rr.directed().concluded);
    let mut evidence = TenantEvidence::default();
    evidence.fp_rounding.llr = fp.llr();
    evidence.fp_rounding.test_samples = fp.samples();
    evidence.fp_rounding.concluded = fp.concluded();
    evidence.register_randomness.any_llr = rr.any().llr;
    evidence.register_randomness.any_concluded = rr.any().concluded;
    evidence.register_randomness.directed_llr = rr.directed().llr;
    evidence.register_randomness.directed_concluded = rr.directed().concluded;
    let mut recent = window_of(0, &evidence);
    let now_ns = u64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_nanos())?;
    (recent.start_unix_ns, recent.end_unix_ns) = (now_ns - 1_000_000_000, now_ns);
    first.push(recent);
    until(&first, |s| s.counts.acknowledged == 1).await?;
    assert_eq!(first.finish(davy_sim_tests::DEADLINE).await, 0);

    let second = agent("h1", 2, detector.url(), 100);
    assert!(second.welcomed(davy_sim_tests::DEADLINE).await);
    let carried = second.take_carried();
    assert_eq!(carried.len(), 1);
    assert_eq!(carried[0].tenant_key, TENANT);
    assert_eq!(
        carried[0].evidence.fp_rounding.llr,
        evidence.fp_rounding.llr
    );
    assert!(carried[0].evidence.register_randomness.directed_concluded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_an_agent_waits_for_its_last_windows() -> Result<()> {
    let detector = Detector::start().await?;
    let uplink = agent("h1", 1, detector.url(), 500);
    for number in 0..200 {
        uplink.push(window(number));
    }
    assert_eq!(uplink.finish(davy_sim_tests::DEADLINE).await, 0);
    assert_eq!(detector.stored("h1").await?.len(), 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detector_that_is_not_there_is_no_reason_not_to_end() -> Result<()> {
    let mut detector = Detector::start().await?;
    let url = detector.url();
    detector.go_away().await;
    let uplink = agent("h1", 1, url, 5);
    uplink.push(v1::Window::default());
    until(&uplink, |s| s.failures > 0).await?;
    assert_eq!(
        uplink.finish(std::time::Duration::from_millis(100)).await,
        1
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_is_asked_for_once_and_a_quiet_tenant_is_not() -> Result<()> {
    let detector = Detector::start().await?;
    let uplink = agent("h1", 1, detector.url(), 100);
    uplink.push(window(0));
    until(&uplink, |s| s.counts.acknowledged == 1).await?;
    assert!(uplink.take_closer_looks().is_empty());

    let mut evidence = TenantEvidence::default();
    evidence.register_randomness.state = davy_evidence::SensorState::Live;
    evidence.register_randomness.any_llr = 40.0;
    evidence.register_randomness.any_concluded = true;
    uplink.push(window_of(1, &evidence));
    let asked = until_asked(&uplink).await?;
    assert_eq!(asked, [TENANT]);
    uplink.push(window_of(2, &evidence));
    uplink.push(window(3));
    until(&uplink, |s| s.counts.acknowledged == 4).await?;
    assert!(uplink.take_closer_looks().is_empty(), "asked a moment ago");
    Ok(())
}

/// Waits until the detector has asked for closer looks.
async fn until_asked(uplink: &Uplink) -> Result<Vec<String>> {
    let begun = std::time::Instant::now();
    loop {
        let asked = uplink.take_closer_looks();
        if !asked.is_empty() {
            return Ok(asked);
        }
        anyhow::ensure!(begun.elapsed() < DEADLINE, "the detector never asked");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
