//! `Telemetry.Report`: windows in, acknowledgements out.
//!
//! A stream begins with `Hello` ([`HELLO_TIMEOUT`]), answered by `Welcome`; then each window is checked
//! ([`validate`]), judged ([`crate::evidence`]) and stored, and acknowledged after the store's commit. What is
//! malformed is refused and counted by its [`Reason`], and the stream goes on, with these exceptions, which end it:
//! a bad `Hello`; a second agent of the same host ([`live`]); bytes that are no message, or more than
//! [`MESSAGE_BYTES_MAX`] of them (the rest of the stream cannot be read then); a failing store (the window is not
//! acknowledged, so the agent sends it again). A window above [`WINDOW_BYTES_MAX`] is refused like any malformed one.
//!
//! Where a stored window makes a tenant suspect, the agent is asked for a closer look ([`closer_look`]).
//!
//! One window of a host is in work at a time; HTTP/2's flow control holds the agent back meanwhile.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use davy_proto::v1;
use davy_proto::v1::telemetry_server::Telemetry;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::metrics::Metrics;
use crate::store::Store;

pub mod closer_look;
pub mod live;
mod reason;
pub mod sequence;
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

/// The `Telemetry` service.
#[derive(Clone)]
pub struct Ingest {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    live: live::Live,
}

impl Ingest {
    /// A service that stores into `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>, live: live::Live) -> Self {
        Self {
            store,
            metrics,
            live,
        }
    }
}

#[tonic::async_trait]
impl Telemetry for Ingest {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<v1::DetectorMessage, Status>> + Send>>;

    async fn report(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
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
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
