//! One agent's stream, from `Hello` to its end.

use std::time::Instant;

use davy_decision::episode::Sighting;
use davy_proto::v1;
use davy_proto::v1::agent_message::Message as FromAgent;
use davy_proto::v1::detector_message::Message as ToAgent;
use prost::{DecodeError, Message};
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status};

use super::closer_look::CloserLooks;
use super::live::Stop;
use super::sequence::SEQUENCE_JUMP_MAX;
use super::service::Inbound;
use super::{HELLO_TIMEOUT, Ingest, Malformed, Reason, WINDOW_BYTES_MAX, validate};
use crate::account::sighting::Stirring;
use crate::evidence::judge;
use crate::metrics::WindowResult;
use crate::store::{Record, Recorded, StoreError};
use crate::unix_now_ns;

type Answers = mpsc::Sender<Result<v1::DetectorMessage, Status>>;

/// What is remembered of a stream's windows.
#[derive(Default)]
struct Seen {
    looks: CloserLooks,
    stirring: Stirring,
}

/// A stream after its `Hello`.
struct Session<'a> {
    ingest: &'a Ingest,
    answers: &'a Answers,
    host: String,
    instance: String,
}

/// Serves a stream until the agent ends it.
///
/// # Errors
/// The status with which the detector ends it.
pub(super) async fn serve(
    ingest: &Ingest,
    mut inbound: Inbound,
    answers: &Answers,
) -> Result<(), Status> {
    let mut hello = match first_message(&mut inbound).await? {
        Ok(hello) => hello,
        Err(refusal) => return Err(refuse_stream(ingest, &refusal)),
    };
    validate::hello(&hello, unix_now_ns()).map_err(|refusal| refuse_stream(ingest, &refusal))?;
    hello.instance.make_ascii_lowercase();
    let (_place, mut stop) = ingest.live.enter(&hello).inspect_err(|status| {
        if status.code() == Code::AlreadyExists {
            ingest.metrics.rejected(Reason::SecondAgent);
        }
    })?;
    let started = Instant::now();
    let opened = ingest.store.open(hello.clone(), unix_now_ns()).await;
    ingest
        .metrics
        .store_took("open", started.elapsed().as_secs_f64());
    let opened = opened.map_err(|error| store_status(&error))?;
    tracing::info!(
        host = hello.host,
        instance = hello.instance,
        version = hello.agent_version,
        kernel = hello.kernel_release,
        last_sequence = opened.last_sequence,
        carried = opened.carried.len(),
        "an agent connected"
    );
    let session = Session {
        ingest,
        answers,
        host: hello.host,
        instance: hello.instance,
    };
    let welcome = v1::Welcome {
        last_sequence: opened.last_sequence,
        carried: opened.carried,
    };
    let ended = match session.answer(ToAgent::Welcome(welcome), &mut stop).await {
        Ok(()) => session.windows(&mut inbound, &mut stop).await,
        Err(status) => Err(status),
    };
    tracing::info!(
        host = session.host,
        instance = session.instance,
        "an agent disconnected"
    );
    ended
}

/// The `Hello`, or why the first message is none. An end before any message is no error of the agent's.
async fn first_message(inbound: &mut Inbound) -> Result<Result<v1::Hello, Malformed>, Status> {
    let bad = |detail: &str| Ok(Err(Malformed::new(Reason::BadHello, detail)));
    match tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await {
        Ok(Ok(Some(Ok(v1::AgentMessage {
            message: Some(FromAgent::Hello(hello)),
        })))) => Ok(Ok(hello)),
        Ok(Ok(Some(Ok(_)))) => bad("the first message of a stream must be Hello"),
        Ok(Ok(Some(Err(error)))) => Ok(Err(undecodable(&error))),
        Ok(Ok(None)) => Err(Status::cancelled("the stream ended before its Hello")),
        Ok(Err(status)) if is_unreadable(&status) => {
            Ok(Err(Malformed::new(Reason::Undecodable, status.message())))
        }
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no Hello within {} s",
            HELLO_TIMEOUT.as_secs()
        ))),
    }
}

fn refuse_stream(ingest: &Ingest, refusal: &Malformed) -> Status {
    ingest.metrics.rejected(refusal.reason);
    Status::invalid_argument(refusal.to_string())
}

fn undecodable(error: &DecodeError) -> Malformed {
    Malformed::new(
        Reason::Undecodable,
        format!("the bytes are no message of an agent: {error}"),
    )
}

/// Whether tonic could not take a frame from the stream: it reports one above the limit as `OUT_OF_RANGE`, a broken or
/// compressed one as `INTERNAL`, "received message with …" (tonic's src/codec/decode.rs). A broken connection is something else.
fn is_unreadable(status: &Status) -> bool {
    match status.code() {
        Code::OutOfRange => true,
        Code::Internal => status.message().contains("received message"),
        _ => false,
    }
}

/// `UNAVAILABLE` where trying again later may help.
fn store_status(error: &StoreError) -> Status {
    match error {
        StoreError::TooManyHosts { .. } | StoreError::TooMany { .. } => {
            Status::resource_exhausted(error.to_string())
        }
        StoreError::UnknownInstance { .. } => Status::aborted(error.to_string()),
        StoreError::Unusable { .. }
        | StoreError::Newer { .. }
        | StoreError::Failed { .. }
        | StoreError::Unknown { .. }
        | StoreError::Closed => Status::unavailable(error.to_string()),
    }
}

impl Session<'_> {
    async fn windows(
        &self,
        inbound: &mut Inbound,
        stop: &mut oneshot::Receiver<Stop>,
    ) -> Result<(), Status> {
        let mut seen = Seen::default();
        loop {
            let mut asked = Vec::new();
            let message = tokio::select! {
                biased;
                why = &mut *stop => return Err(self.stopped(why)),
                message = inbound.message() => message,
            };
            let answer = match message {
                Ok(Some(Ok(v1::AgentMessage { message }))) => match message {
                    Some(FromAgent::Window(window)) => {
                        self.window(window, &mut seen, &mut asked).await?
                    }
                    Some(FromAgent::Hello(_)) => {
                        let detail = "a stream has one Hello only";
                        self.reject(0, &Malformed::new(Reason::UnexpectedHello, detail))
                    }
                    None => {
                        let detail = "the message is neither Hello nor Window";
                        self.reject(0, &Malformed::new(Reason::EmptyMessage, detail))
                    }
                },
                Ok(Some(Err(error))) => self.reject(0, &undecodable(&error)),
                Ok(None) => return Ok(()),
                Err(status) if is_unreadable(&status) => {
                    return Err(refuse_stream(
                        self.ingest,
                        &Malformed::new(Reason::Undecodable, status.message()),
                    ));
                }
                Err(status) => {
                    tracing::debug!(host = self.host, %status, "the connection ended");
                    return Ok(());
                }
            };
            self.answer(answer, stop).await?;
            for tenant_key in asked {
                let look = v1::CloserLook { tenant_key };
                self.answer(ToAgent::CloserLook(look), stop).await?;
            }
        }
    }

    fn stopped(&self, why: Result<Stop, oneshot::error::RecvError>) -> Status {
        // The sender lives in `Live` until it has sent, so the default is not reached.
        why.unwrap_or(Stop::Shutdown).status(&self.host)
    }

    async fn answer(
        &self,
        message: ToAgent,
        stop: &mut oneshot::Receiver<Stop>,
    ) -> Result<(), Status> {
        let message = v1::DetectorMessage {
            message: Some(message),
        };
        tokio::select! {
            biased;
            sent = self.answers.send(Ok(message)) => sent.map_err(|_| Status::cancelled("the agent has gone")),
            why = stop => Err(self.stopped(why)),
        }
    }

    fn reject(&self, sequence: u64, refusal: &Malformed) -> ToAgent {
        self.ingest.metrics.rejected(refusal.reason);
        tracing::warn!(host = self.host, sequence, %refusal, "a message was rejected");
        ToAgent::Rejected(v1::Rejected {
            sequence,
            reason: refusal.to_string(),
        })
    }

    /// Counts `missing` windows before `sequence`.
    fn lost(&self, sequence: u64, missing: u64) {
        self.ingest.metrics.lost(missing);
        if missing > 0 {
            tracing::warn!(host = self.host, sequence, missing, "windows were lost");
        }
    }

    /// Takes one window; the answer is due once it is settled. `asked` gets the tenants to look at more closely.
    async fn window(
        &self,
        window: v1::Window,
        seen: &mut Seen,
        asked: &mut Vec<String>,
    ) -> Result<ToAgent, Status> {
        let (sequence, received_unix_ns) = (window.sequence, unix_now_ns());
        // Of a rejected window the word about losses still counts, unless it is what cannot be.
        let lost_windows = Some(window.lost_windows)
            .filter(|lost| *lost <= SEQUENCE_JUMP_MAX)
            .unwrap_or(0);
        let bytes = window.encoded_len();
        let checked = if bytes > WINDOW_BYTES_MAX {
            let detail = format!("the window has {bytes} bytes, more than {WINDOW_BYTES_MAX}");
            Err(Malformed::new(Reason::TooLarge, detail))
        } else {
            validate::window(window, received_unix_ns)
        };
        match checked {
            Ok(window) => self.record(window, received_unix_ns, seen, asked).await,
            Err(refusal) => {
                self.ingest.metrics.window(WindowResult::Rejected);
                let settled = self
                    .ingest
                    .store
                    .settle(
                        self.host.clone(),
                        self.instance.clone(),
                        sequence,
                        lost_windows,
                    )
                    .await;
                let missing = settled.map_err(|error| store_status(&error))?;
                self.lost(sequence, missing);
                Ok(self.reject(sequence, &refusal))
            }
        }
    }

    async fn record(
        &self,
        window: validate::ValidWindow,
        received_unix_ns: u64,
        seen: &mut Seen,
        asked: &mut Vec<String>,
    ) -> Result<ToAgent, Status> {
        let metrics = &self.ingest.metrics;
        let validate::ValidWindow {
            sequence,
            start_unix_ns,
            end_unix_ns,
            lost_windows,
            sensors,
            tenants,
        } = window;
        let tenants: Vec<_> = tenants.into_iter().map(judge).collect();
        let suspects = (seen.looks).due(&tenants, &self.ingest.policies.now(), received_unix_ns);
        let sightings = (seen.stirring).sightings(&self.host, start_unix_ns, end_unix_ns, &tenants);
        let differences = tenants.iter().filter(|tenant| !tenant.agent_agrees).count();
        let record = Record {
            host: self.host.clone(),
            instance: self.instance.clone(),
            sequence,
            start_unix_ns,
            end_unix_ns,
            lost_windows,
            received_unix_ns,
            sensors,
            tenants,
        };
        let started = Instant::now();
        let recorded = self.ingest.store.record(record).await;
        metrics.store_took("record", started.elapsed().as_secs_f64());
        if let Ok(Recorded::Stored { .. } | Recorded::Duplicate { .. }) = &recorded {
            self.attribute(sightings).await?;
        }
        match recorded {
            Ok(Recorded::Stored { missing, evicted }) => {
                metrics.window(WindowResult::Stored);
                self.lost(sequence, missing);
                metrics.evicted(evicted);
                metrics.verdict_differences(u64::try_from(differences).unwrap_or(u64::MAX));
                metrics.closer_looks(suspects.len());
                *asked = suspects;
                Ok(ToAgent::Acknowledged(v1::Acknowledged { sequence }))
            }
            Ok(Recorded::Duplicate { last_sequence }) => {
                metrics.window(WindowResult::Duplicate);
                Ok(ToAgent::Acknowledged(v1::Acknowledged {
                    sequence: last_sequence,
                }))
            }
            Ok(Recorded::Absurd { last_sequence }) => {
                metrics.window(WindowResult::Rejected);
                let detail = format!("sequence {sequence} cannot follow {last_sequence}");
                Ok(self.reject(sequence, &Malformed::new(Reason::BadSequence, detail)))
            }
            Err(error) => {
                metrics.window(WindowResult::StoreFailed);
                tracing::error!(host = self.host, sequence, %error, "a window could not be stored");
                Err(store_status(&error))
            }
        }
    }

    /// Carries what was seen into the accounts' records.
    async fn attribute(&self, sightings: Vec<Sighting>) -> Result<(), Status> {
        if sightings.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let taken = self.ingest.attribution.take(sightings).await;
        (self.ingest.metrics).store_took("attribute", started.elapsed().as_secs_f64());
        match taken {
            Ok(nobodys) => {
                self.ingest.metrics.unattributed(nobodys);
                Ok(())
            }
            Err(error) => {
                tracing::error!(host = self.host, %error, "what was seen could not be kept; the window is to be sent again");
                Err(Status::unavailable(error.to_string()))
            }
        }
    }
}
