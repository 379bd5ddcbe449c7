//! Streams of agents against a running detector: what is stored, refused, counted, and when a stream ends.

use davy_evidence::TenantEvidence;
use davy_proto::v1;
use davy_proto::v1::agent_message::Message as FromAgent;
use davy_proto::v1::detector_message::Message as ToAgent;
use tonic::Code;

use crate::support::*;

#[tokio::test]
async fn windows_are_stored_judged_and_acknowledged() {
    let detector = Detector::start().await;
    let (mut agent, welcome) = Agent::start(&detector).await;
    assert_eq!(welcome, v1::Welcome::default());
    let mut first = window(1, 20);
    first.tenants.push(tenant("qemu:b", &concluded()));
    assert_eq!(agent.acknowledged(first.clone()).await, 1);
    let mut second = window(2, 10);
    second.tenants.push(tenant("qemu:b", &concluded()));
    assert_eq!(agent.acknowledged(second.clone()).await, 2);

    let found = detector.droplet("qemu:b").await.unwrap();
    let droplet = found.droplet.unwrap();
    assert_eq!(droplet.host, "host-1");
    assert_eq!(droplet.current.unwrap(), second.tenants[1]);
    assert_eq!(droplet.planned, "closer look");
    assert_eq!(droplet.first_seen_unix_ns, first.end_unix_ns);
    assert_eq!(droplet.last_seen_unix_ns, second.end_unix_ns);
    assert_eq!(droplet.verdict_since_unix_ns, first.end_unix_ns);
    assert_eq!(droplet.window_ns, 10 * SECOND_NS);
    let ends: Vec<u64> = found
        .history
        .iter()
        .map(|entry| entry.end_unix_ns)
        .collect();
    assert_eq!(ends, [second.end_unix_ns, first.end_unix_ns]);
    assert_eq!(
        detector
            .droplet("qemu:a")
            .await
            .unwrap()
            .droplet
            .unwrap()
            .planned,
        "observe"
    );

    let host = detector.host().await;
    assert!(host.connected);
    assert_eq!(
        (host.windows, host.last_sequence, host.lost_windows),
        (2, 2, 0)
    );
    assert_eq!(host.instance, INSTANCE);
    assert_eq!(
        (host.agent_version.as_str(), host.kernel_release.as_str()),
        ("0.1.0", "6.12.0")
    );
    assert_eq!(host.sensors, second.sensors);
}

#[tokio::test]
async fn a_duplicate_is_counted_acknowledged_again_and_not_stored_twice() {
    let detector = Detector::start().await;
    let (mut agent, _) = Agent::start(&detector).await;
    agent.acknowledged(window(1, 30)).await;
    agent.acknowledged(window(2, 20)).await;
    assert_eq!(agent.acknowledged(window(2, 20)).await, 2);
    assert_eq!(agent.acknowledged(window(1, 30)).await, 2);
    assert_eq!(agent.acknowledged(window(3, 10)).await, 3);
    assert_eq!(detector.droplet("qemu:a").await.unwrap().history.len(), 3);
    assert_eq!(detector.status().await.duplicates, 2);
    assert_eq!(detector.host().await.windows, 3);
    assert_eq!(
        detector
            .metric("davy_detector_windows_total{result=\"duplicate\"}")
            .await,
        "2"
    );
}

#[tokio::test]
async fn a_gap_is_accepted_and_counted_as_lost() {
    let detector = Detector::start().await;
    let (mut agent, _) = Agent::start(&detector).await;
    agent.acknowledged(window(1, 30)).await;
    assert_eq!(agent.acknowledged(window(5, 20)).await, 5);
    // The agent's own word about the same gap is not added to it.
    let mut told = window(8, 10);
    told.lost_windows = 2;
    assert_eq!(agent.acknowledged(told).await, 8);
    assert_eq!(detector.host().await.lost_windows, 5);
    assert_eq!(
        detector.metric("davy_detector_lost_windows_total").await,
        "5"
    );
}

#[tokio::test]
async fn what_a_rejected_window_declares_lost_is_counted() {
    let detector = Detector::start().await;
    let (mut agent, _) = Agent::start(&detector).await;
    // Nothing is settled yet: only the agent's word tells of these.
    let mut first = window(4, 25 * 3600);
    first.lost_windows = 3;
    assert!(agent.rejected(first).await.starts_with("past: "));
    assert_eq!(detector.host().await.lost_windows, 3);
    // A gap before a rejected window is lost too, and not added to the word about it.
    let mut second = window(7, 25 * 3600);
    second.lost_windows = 1;
    assert!(agent.rejected(second).await.starts_with("past: "));
    // A word that cannot be is why the window is rejected.
    let mut third = window(8, 0);
    third.lost_windows = u64::MAX;
    assert!(agent.rejected(third).await.starts_with("bad_sequence: "));
    assert_eq!(agent.acknowledged(window(9, 0)).await, 9);
    assert_eq!(detector.host().await.lost_windows, 5);
    assert_eq!(
        detector.metric("davy_detector_lost_windows_total").await,
        "5"
    );
}

#[tokio::test]
async fn malformed_windows_are_rejected_counted_and_the_stream_goes_on() {
    let detector = Detector::start().await;
    let (mut agent, _) = Agent::start(&detector).await;
    agent.acknowledged(window(1, 0)).await;

    let past = window(2, 25 * 3600);
    assert!(
        agent
            .rejected(past)
            .await
            .starts_with("past: the window ended 90")
    );
    let mut future = window(3, 0);
    (future.start_unix_ns, future.end_unix_ns) = (now_ns(), now_ns() + 900 * SECOND_NS);
    assert!(agent.rejected(future).await.starts_with("future: "));
    let mut backwards = window(4, 0);
    backwards.start_unix_ns = backwards.end_unix_ns;
    assert!(agent.rejected(backwards).await.starts_with("bad_span: "));
    let mut no_number = window(5, 0);
    no_number.tenants[0]
        .evidence
        .as_mut()
        .unwrap()
        .fp_rounding
        .as_mut()
        .unwrap()
        .duty = f64::NAN;
    assert!(
        agent
            .rejected(no_number)
            .await
            .starts_with("bad_evidence: tenant \"qemu:a\": ")
    );
    let mut twice = window(6, 0);
    twice.tenants.push(twice.tenants[0].clone());
    assert!(agent.rejected(twice).await.starts_with("bad_tenant: "));
    assert!(
        agent
            .rejected(window(0, 0))
            .await
            .starts_with("bad_sequence: ")
    );
    assert!(
        agent
            .rejected(window(u64::MAX, 0))
            .await
            .starts_with("bad_sequence: ")
    );
    agent.send_empty().await;
    let answer = agent.receive().await.unwrap();
    assert!(
        matches!(&answer, ToAgent::Rejected(v1::Rejected { sequence: 0, .. })),
        "{answer:?}"
    );
    agent.send(FromAgent::Hello(hello(INSTANCE, 1))).await;
    let answer = agent.receive().await.unwrap();
    assert!(
        matches!(&answer, ToAgent::Rejected(v1::Rejected { sequence: 0, .. })),
        "{answer:?}"
    );

    assert_eq!(agent.acknowledged(window(7, 0)).await, 7);
    let status = detector.status().await;
    let counted = |reason: &str| status.rejected.get(reason).copied().unwrap_or(0);
    for reason in [
        "past",
        "future",
        "bad_span",
        "bad_evidence",
        "bad_tenant",
        "empty_message",
        "unexpected_hello",
    ] {
        assert_eq!(counted(reason), 1, "{reason}: {:?}", status.rejected);
    }
    assert_eq!(counted("bad_sequence"), 2);
    // Rejected windows were settled: they are not lost.
    assert_eq!(detector.host().await.lost_windows, 0);
    assert_eq!(detector.droplet("qemu:a").await.unwrap().history.len(), 2);
    assert_eq!(
        detector
            .metric("davy_detector_rejected_total{reason=\"past\"}")
            .await,
        "1"
    );
    assert_eq!(
        detector
            .metric("davy_detector_windows_total{result=\"rejected\"}")
            .await,
        "7"
    );
}

/// A window of about `bytes` bytes.
fn large(sequence: u64, bytes: usize) -> v1::Window {
    let mut large = window(sequence, 0);
    large.tenants = vec![tenant("qemu:a", &quiet())];
    large.tenants[0].name = "x".repeat(bytes);
    large
}

#[tokio::test]
async fn an_oversized_window_is_rejected_and_the_stream_goes_on() {
    let detector = Detector::start().await;
    let (mut agent, _) = Agent::start(&detector).await;
    assert!(
        agent
            .rejected(large(1, 5 * 1024 * 1024))
            .await
            .starts_with("too_large: ")
    );
    assert_eq!(agent.acknowledged(window(2, 0)).await, 2);
    assert_eq!(
        detector
            .metric("davy_detector_rejected_total{reason=\"too_large\"}")
            .await,
        "1"
    );
}

#[tokio::test]
async fn a_message_beyond_all_measure_ends_the_stream_and_is_counted() {
    let detector = Detector::start().await;
    let (mut agent, _) = Agent::start(&detector).await;
    agent
        .send(FromAgent::Window(large(1, 17 * 1024 * 1024)))
        .await;
    let ended = agent.ended().await;
    assert_eq!(ended.code(), Code::InvalidArgument, "{ended}");
    assert_eq!(
        detector
            .metric("davy_detector_rejected_total{reason=\"undecodable\"}")
            .await,
        "1"
    );
    let (mut again, welcome) = Agent::start(&detector).await;
    assert_eq!(welcome.last_sequence, 0);
    assert_eq!(again.acknowledged(window(2, 0)).await, 2);
}

/// Sends frames of any bytes; `Vec<u8>`'s own encoding would be a `BytesValue`.
#[derive(Clone, Copy)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = v1::DetectorMessage;
    type Encoder = Self;
    type Decoder = tonic_prost::ProstDecoder<v1::DetectorMessage>;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self::Decoder {
        Self::Decoder::default()
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn encode(
        &mut self,
        item: Vec<u8>,
        frame: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), tonic::Status> {
        prost::bytes::BufMut::put_slice(frame, &item);
        Ok(())
    }
}

/// The answers to a stream of these frames.
async fn answers(
    detector: &Detector,
    frames: Vec<Vec<u8>>,
) -> tonic::Streaming<v1::DetectorMessage> {
    let mut client = tonic::client::Grpc::new(detector.channel().await);
    client.ready().await.unwrap();
    let path = axum::http::uri::PathAndQuery::from_static("/davy.v1.Telemetry/Report");
    let request = tonic::Request::new(tokio_stream::iter(frames));
    let answers = client.streaming(request, path, Raw).await.unwrap();
    answers.into_inner()
}

fn encoded(message: FromAgent) -> Vec<u8> {
    let message = Some(message);
    prost::Message::encode_to_vec(&v1::AgentMessage { message })
}

/// Not a message: field 1 is announced with more bytes than there are, and more follow than decoding reads.
const NONSENSE: &[u8] = b"\x0a\xff\x00zzzz";

#[tokio::test]
async fn bytes_that_are_no_message_are_rejected_counted_and_the_stream_goes_on() {
    let detector = Detector::start().await;
    let frames = vec![
        encoded(FromAgent::Hello(hello(INSTANCE, 1))),
        NONSENSE.to_vec(),
        encoded(FromAgent::Window(window(1, 10))),
        vec![0xff; 100_000],
        encoded(FromAgent::Window(window(2, 0))),
    ];
    let mut answers = answers(&detector, frames).await;
    let mut got = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        got.push(answer.message.unwrap());
    }
    let acknowledged = |sequence| ToAgent::Acknowledged(v1::Acknowledged { sequence });
    assert_eq!(got.len(), 5, "{got:?}");
    assert!(matches!(got[0], ToAgent::Welcome(_)), "{got:?}");
    assert_eq!((&got[2], &got[4]), (&acknowledged(1), &acknowledged(2)));
    for refused in [&got[1], &got[3]] {
        let ToAgent::Rejected(v1::Rejected { sequence, reason }) = refused else {
            panic!("not Rejected but {refused:?}");
        };
        assert_eq!(*sequence, 0);
        assert!(reason.starts_with("undecodable: "), "{reason}");
    }
    assert_eq!(detector.status().await.rejected["undecodable"], 2);
    assert_eq!(detector.host().await.windows, 2);
}

#[tokio::test]
async fn bytes_that_are_no_hello_end_the_stream_and_are_counted() {
    let detector = Detector::start().await;
    let mut answers = answers(&detector, vec![NONSENSE.to_vec()]).await;
    let ended = answers.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::InvalidArgument, "{ended}");
    assert_eq!(detector.status().await.rejected["undecodable"], 1);
}

#[tokio::test]
async fn a_bad_hello_ends_the_stream_with_a_reason() {
    let detector = Detector::start().await;
    let mut agent = Agent::silent(&detector).await;
    agent
        .send(FromAgent::Hello(v1::Hello {
            host: "a b".into(),
            ..hello(INSTANCE, 1)
        }))
        .await;
    let ended = agent.ended().await;
    assert_eq!(ended.code(), Code::InvalidArgument);
    assert!(
        ended.message().contains("the host's name must be"),
        "{ended}"
    );
    let mut agent = Agent::silent(&detector).await;
    agent.send(FromAgent::Window(window(1, 0))).await;
    assert!(
        agent
            .ended()
            .await
            .message()
            .contains("the first message of a stream must be Hello")
    );
    assert_eq!(detector.status().await.rejected["bad_hello"], 2);
}

#[tokio::test]
async fn of_two_agents_of_a_host_the_later_started_stays() {
    let detector = Detector::start().await;
    let (mut old, _) = Agent::connect(&detector, hello(INSTANCE, 1_000)).await;
    old.acknowledged(window(1, 20)).await;
    let (mut new, welcome) = Agent::connect(&detector, hello(OTHER_INSTANCE, 2_000)).await;
    assert_eq!(welcome.last_sequence, 0);
    let ended = old.ended().await;
    assert_eq!(ended.code(), Code::AlreadyExists, "{ended}");
    assert!(ended.message().contains(OTHER_INSTANCE), "{ended}");

    let mut again = Agent::silent(&detector).await;
    again.send(FromAgent::Hello(hello(INSTANCE, 1_000))).await;
    let refused = again.ended().await;
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(
        refused.message().contains("run only one agent per host"),
        "{refused}"
    );
    assert_eq!(new.acknowledged(window(1, 10)).await, 1);
    assert_eq!(detector.host().await.instance, OTHER_INSTANCE);
    assert_eq!(
        detector
            .metric("davy_detector_rejected_total{reason=\"second_agent\"}")
            .await,
        "1"
    );
    assert_eq!(detector.metric("davy_detector_hosts_connected").await, "1");
}

#[tokio::test]
async fn the_same_agent_connecting_again_replaces_its_stream() {
    let detector = Detector::start().await;
    let (mut first, _) = Agent::connect(&detector, hello(INSTANCE, 1_000)).await;
    first.acknowledged(window(1, 20)).await;
    let (mut second, welcome) = Agent::connect(&detector, hello(INSTANCE, 1_000)).await;
    assert_eq!(welcome.last_sequence, 1);
    assert_eq!(first.ended().await.code(), Code::Aborted);
    assert_eq!(second.acknowledged(window(2, 10)).await, 2);
}

#[tokio::test]
async fn a_host_whose_agent_left_is_not_connected() {
    let detector = Detector::start().await;
    let (agent, _) = Agent::start(&detector).await;
    assert!(detector.host().await.connected);
    drop(agent);
    eventually("the host is disconnected", || async {
        !detector.host().await.connected
    })
    .await;
}

#[tokio::test]
async fn a_new_agent_of_the_host_is_given_the_evidence_of_the_last_hour() {
    let detector = Detector::start().await;
    let (mut old, _) = Agent::connect(&detector, hello(INSTANCE, 1_000)).await;
    let mut stale = window(1, 2 * 3600);
    stale.tenants = vec![tenant("qemu:gone", &concluded())];
    old.acknowledged(stale).await;
    let mut fresh = window(2, 0);
    fresh.tenants = vec![tenant("qemu:a", &quiet()), tenant("qemu:b", &concluded())];
    old.acknowledged(fresh).await;
    let (_new, welcome) = Agent::connect(&detector, hello(OTHER_INSTANCE, 2_000)).await;
    let carried: Vec<(String, TenantEvidence)> = welcome
        .carried
        .into_iter()
        .map(|one| (one.tenant_key, one.evidence.unwrap().try_into().unwrap()))
        .collect();
    assert_eq!(
        carried,
        [
            ("qemu:a".to_owned(), quiet()),
            ("qemu:b".to_owned(), concluded())
        ]
    );
}

#[tokio::test]
async fn the_detectors_verdict_stands_and_the_difference_is_counted() {
    let detector = Detector::start().await;
    let (mut agent, _) = Agent::start(&detector).await;
    let mut lying = window(1, 0);
    lying.tenants[0].verdict.as_mut().unwrap().level = v1::VerdictLevel::Mining.into();
    agent.acknowledged(lying).await;
    let current = detector
        .droplet("qemu:a")
        .await
        .unwrap()
        .droplet
        .unwrap()
        .current
        .unwrap();
    assert_eq!(
        current.verdict,
        Some(davy_evidence::verdict(&quiet()).into())
    );
    assert_eq!(
        detector
            .metric("davy_detector_verdict_differences_total")
            .await,
        "1"
    );
    assert_eq!(
        detector
            .metric("davy_detector_tenants{verdict=\"quiet\"}")
            .await,
        "1"
    );
}
