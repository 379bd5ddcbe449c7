//! `Telemetry.Report`: windows in, acknowledgements out.
//!
//! A stream begins with `Hello` ([`HELLO_TIMEOUT`]), answered by `Welcome`; then each window is checked
//! ([`validate`]), judged ([`crate::evidence`]) and stored, and acknowledged after the store's commit. What is
//! malformed is refused and counted by its [`Reason`], and the stream goes on, with these exceptions, which end it:
//! a bad `Hello`; a second agent of the same host ([`live`]); a frame above [`MESSAGE_BYTES_MAX`], which is not read; a
//! failing store (the window is not acknowledged, so the agent sends it again). Bytes that do not decode ([`service`]) and
//! windows above [`WINDOW_BYTES_MAX`] are refused like anything malformed.
//!
//! What a stored window says of droplets goes into their accounts' records ([`crate::account`]) before it is acknowledged: if that
//! fails, the agent sends the window again, and a window that was stored before is looked at again.
//!
//! Where a stored window shows what the policies look closer at, a suspect by default, the agent is asked to ([`closer_look`]).
//!
//! One window of a host is in work at a time; HTTP/2's flow control holds the agent back meanwhile.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use davy_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::account::attribute::Attribution;
use crate::metrics::Metrics;
use crate::policy::Held;
use crate::store::Store;

pub mod closer_look;
pub mod live;
mod reason;
pub mod sequence;
pub mod service;
mod session;
pub mod validate;

pub use reason::{Malformed, Reason};
pub use validate::{ValidTenant, ValidWindow};

/// Largest window accepted, bytes of its encoding (4 MiB).
pub const WINDOW_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest message read at all (16 MiB); above, the stream ends.
pub const MESSAGE_BYTES_MAX: usize = 4 * WINDOW_BYTES_MAX;
/// How long a stream may wait with its `Hello`.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers that may wait for a slow agent.
const ANSWERS_MAX: usize = 16;

/// Takes the streams of agents; [`service::TelemetryService`] serves it.
#[derive(Clone)]
pub struct Ingest {
    store: Arc<dyn Store>,
    attribution: Attribution,
    policies: Arc<Held>,
    metrics: Arc<Metrics>,
    live: live::Live,
}

impl Ingest {
    /// A service that stores into `store`, gives accounts what is seen of their droplets, and has agents look closer where `policies`
    /// permit it.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        attribution: Attribution,
        policies: Arc<Held>,
        metrics: Arc<Metrics>,
        live: live::Live,
    ) -> Self {
        Self {
            store,
            attribution,
            policies,
            metrics,
            live,
        }
    }
}

/// The answers of one stream.
type Answered = Pin<Box<dyn Stream<Item = Result<v1::DetectorMessage, Status>> + Send>>;

impl Ingest {
    /// Serves a stream in a task of its own; returns its answers.
    fn report(&self, request: Request<service::Inbound>) -> Answered {
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let peer = request
            .remote_addr()
            .map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        let ingest = self.clone();
        tokio::spawn(async move {
            if let Err(status) = session::serve(&ingest, request.into_inner(), &answers).await {
                tracing::warn!(peer, code = ?status.code(), reason = status.message(), "a stream ended");
                // The agent may be gone: then nobody needs the reason.
                let _ = answers.send(Err(status)).await;
            }
        });
        Box::pin(ReceiverStream::new(stream))
    }
}
