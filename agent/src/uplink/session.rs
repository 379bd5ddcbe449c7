//! One stream after another to the detector.
//!
//! A stream is given up when the detector ends it, when the connection fails, when HTTP/2 keep-alive gets no
//! answer, or when a window got none for [`ANSWER_TIMEOUT`]. Then a pause ([`pause_before`]), and the next.

use std::{sync::Arc, time::Duration};

use davy_evidence::TenantEvidence;
use davy_proto::v1::{
    self, agent_message::Message as ToDetector, detector_message::Message as FromDetector,
    telemetry_client::TelemetryClient,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info, warn};

use super::{Carried, Options, Shared, lock, queue::IN_FLIGHT_MAX};
use crate::error::chain;

/// First and longest pause between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// For the TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the request to the `Welcome`.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// For an answer while windows await one.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests for closer looks that may wait for the measuring thread.
const CLOSER_LOOKS_MAX: usize = 1_024;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the detector's address {0:?} cannot be used")]
    Address(String, #[source] tonic::transport::Error),
    #[error("cannot connect to the detector at {0}")]
    Connect(String, #[source] tonic::transport::Error),
    #[error("the detector refused or ended the stream: {0}")]
    Refused(String),
    #[error("the detector closed the stream")]
    Closed,
    #[error("the detector gave no welcome within {} s", WELCOME_TIMEOUT.as_secs())]
    NoWelcome,
    #[error("the detector's first message was no welcome")]
    NotWelcomed,
    #[error("the detector answered no window for {} s", ANSWER_TIMEOUT.as_secs())]
    NoAnswer,
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(format!("{} ({:?})", status.message(), status.code()))
    }
}

/// The pause before the attempt that follows `failed` failed ones in a row: doubling from 0.25 s to 30 s, of
/// which `random` (0..1) takes away up to half, so that ten thousand agents do not come back at one moment.
#[must_use]
pub fn pause_before(failed: u32, random: f64) -> Duration {
    let doubled = PAUSE_MIN.saturating_mul(2_u32.saturating_pow(failed.saturating_sub(1).min(16)));
    doubled
        .min(PAUSE_MAX)
        .mul_f64(1.0 - 0.5 * random.clamp(0.0, 1.0))
}

/// Serves until told to stop and everything was settled.
pub(super) async fn run(
    shared: Arc<Shared>,
    options: Options,
    mut random: impl FnMut() -> f64 + Send,
) {
    let mut failed = 0_u32;
    loop {
        if *shared.stopping.borrow() && lock(&shared.queue).is_empty() {
            return;
        }
        let settled = |shared: &Shared| {
            let counts = lock(&shared.queue).counts();
            counts.acknowledged + counts.rejected
        };
        let settled_before = settled(&shared);
        let outcome = stream(&shared, &options).await;
        lock(&shared.queue).connection_lost();
        {
            let mut status = lock(&shared.status);
            status.connected = false;
            if outcome.is_err() {
                status.failures += 1;
            }
        }
        let Err(error) = outcome else {
            return;
        };
        // A detector that welcomes but settles nothing is in trouble: it is not to be pressed.
        failed = if settled(&shared) > settled_before {
            1
        } else {
            failed.saturating_add(1)
        };
        let pause = pause_before(failed, random());
        let queued = lock(&shared.queue).len();
        warn!(
            error = chain(&error),
            queued,
            next_attempt_ms = pause.as_millis(),
            "no connection to the detector; measuring goes on"
        );
        tokio::time::sleep(pause).await;
    }
}

/// One stream; `Ok` when told to stop and everything was settled.
async fn stream(shared: &Shared, options: &Options) -> Result<(), SessionError> {
    let channel = connect(&options.detector).await?;
    // Room for the hello and every window that may be in flight: sending never waits.
    let (sender, receiver) = mpsc::channel(IN_FLIGHT_MAX + 1);
    send(&sender, ToDetector::Hello(options.hello.clone()))?;
    let mut client = TelemetryClient::new(channel);
    let opened = async {
        let mut inbound = client
            .report(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        let first = inbound.message().await?.ok_or(SessionError::Closed)?;
        Ok::<_, SessionError>((inbound, first))
    };
    let (mut inbound, first) = tokio::time::timeout(WELCOME_TIMEOUT, opened)
        .await
        .map_err(|_| SessionError::NoWelcome)??;
    let Some(FromDetector::Welcome(welcome)) = first.message else {
        return Err(SessionError::NotWelcomed);
    };
    take_welcome(shared, options, welcome);

    let mut stopping = shared.stopping.subscribe();
    let mut answered = Instant::now();
    loop {
        if send_queued(shared, &sender)? {
            answered = Instant::now();
        }
        let (empty, awaits_answer) = {
            let queue = lock(&shared.queue);
            (queue.is_empty(), queue.awaits_answer())
        };
        if empty && *stopping.borrow_and_update() {
            return Ok(());
        }
        tokio::select! {
            message = inbound.message() => {
                let message = message?.ok_or(SessionError::Closed)?;
                answered = Instant::now();
                take_answer(shared, message);
            }
            () = shared.pushed.notified() => {}
            _ = stopping.changed() => {}
            () = tokio::time::sleep_until(answered + ANSWER_TIMEOUT), if awaits_answer => {
                return Err(SessionError::NoAnswer);
            }
        }
    }
}

async fn connect(detector: &str) -> Result<Channel, SessionError> {
    Endpoint::from_shared(detector.to_owned())
        .map_err(|error| SessionError::Address(detector.to_owned(), error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(|error| SessionError::Connect(detector.to_owned(), error))
}

fn send(sender: &mpsc::Sender<v1::AgentMessage>, message: ToDetector) -> Result<(), SessionError> {
    let message = v1::AgentMessage {
        message: Some(message),
    };
    // Full cannot be (see the channel's size); closed is: the connection is gone.
    sender.try_send(message).map_err(|_| SessionError::Closed)
}

/// Hands over all that may be in flight; `true` if nothing had been awaiting an answer before and now is.
fn send_queued(
    shared: &Shared,
    sender: &mpsc::Sender<v1::AgentMessage>,
) -> Result<bool, SessionError> {
    let mut queue = lock(&shared.queue);
    let awaited = queue.awaits_answer();
    while let Some(window) = queue.next_to_send() {
        send(sender, ToDetector::Window(window))?;
    }
    Ok(!awaited && queue.awaits_answer())
}

fn take_welcome(shared: &Shared, options: &Options, welcome: v1::Welcome) {
    let v1::Welcome {
        last_sequence,
        carried,
    } = welcome;
    let queued = {
        let mut queue = lock(&shared.queue);
        queue.acknowledge(last_sequence);
        queue.len()
    };
    info!(detector = %options.detector, last_sequence, queued, "connected to the detector");
    let mut status = lock(&shared.status);
    status.connected = true;
    status.welcomes += 1;
    if status.welcomes == 1 {
        status.carried = carried.into_iter().filter_map(carried_evidence).collect();
    }
    drop(status);
    shared.welcomed.send_replace(true);
}

/// Stored evidence the agent cannot use is left out: its tests then start afresh.
fn carried_evidence(carried: v1::CarriedEvidence) -> Option<Carried> {
    let evidence = carried.evidence?;
    match TenantEvidence::try_from(evidence) {
        Ok(evidence) => Some(Carried {
            tenant_key: carried.tenant_key,
            evidence,
        }),
        Err(error) => {
            warn!(tenant = %carried.tenant_key, error = chain(&error), "the detector's stored evidence cannot be used");
            None
        }
    }
}

fn take_answer(shared: &Shared, message: v1::DetectorMessage) {
    match message.message {
        Some(FromDetector::Acknowledged(v1::Acknowledged { sequence })) => {
            lock(&shared.queue).acknowledge(sequence);
        }
        Some(FromDetector::Rejected(v1::Rejected { sequence, reason })) => {
            warn!(
                sequence,
                reason, "the detector rejected a window; it is not sent again"
            );
            lock(&shared.queue).reject(sequence);
        }
        Some(FromDetector::CloserLook(v1::CloserLook { tenant_key })) => {
            let mut status = lock(&shared.status);
            // What is not taken in time is not worth keeping: the detector asks again.
            if status.closer_looks.len() < CLOSER_LOOKS_MAX {
                status.closer_looks.push(tenant_key);
            }
        }
        Some(FromDetector::Welcome(_)) | None => {
            debug!("the detector sent something this agent does not know; ignored");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit() {
        let pauses: Vec<_> = (1..=9).map(|failed| pause_before(failed, 0.0)).collect();
        assert_eq!(pauses[0], Duration::from_millis(250));
        assert_eq!(pauses[1], Duration::from_millis(500));
        assert_eq!(pauses[6], Duration::from_secs(16));
        assert_eq!(pauses[7], PAUSE_MAX);
        assert_eq!(pauses[8], PAUSE_MAX);
        assert_eq!(pause_before(u32::MAX, 0.0), PAUSE_MAX);
    }

    #[test]
    fn jitter_takes_away_at_most_half() {
        assert_eq!(pause_before(1, 1.0), Duration::from_millis(125));
        assert_eq!(pause_before(1, 7.0), Duration::from_millis(125));
        assert!(pause_before(3, 0.5) < pause_before(3, 0.1));
    }
}
