//! The way of windows to the detector: a bounded queue in memory and one bidirectional gRPC stream.
//!
//! Measuring never waits for it: [`Uplink::push`] only puts a window into the queue. [`session`] connects, says
//! `Hello`, skips what the detector has already, sends, and takes settled windows out; when the connection
//! breaks it connects again with growing pauses and sends what was not settled. What had to be dropped
//! meanwhile is counted and declared ([`queue`]).

pub mod queue;
pub mod session;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use davy_evidence::TenantEvidence;
use davy_proto::v1;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use queue::{Counts, Limits, Queue};

/// What an uplink needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The detector, `http://HOST:PORT`.
    pub detector: String,
    /// Who we are: the first message of every stream.
    pub hello: v1::Hello,
    /// What the queue may hold.
    pub limits: Limits,
}

/// The uplink's state at one moment, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What became of the windows.
    pub counts: Counts,
    /// Windows in the queue.
    pub queued: usize,
    /// Their encoded size, bytes.
    pub queued_bytes: usize,
    /// Whether a stream is open and welcomed.
    pub connected: bool,
    /// Streams welcomed after the first.
    pub reconnects: u64,
    /// Attempts and streams that failed.
    pub failures: u64,
}

/// A tenant's tests as the detector had them stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Carried {
    /// The tenant's key.
    pub tenant_key: String,
    /// Its evidence.
    pub evidence: TenantEvidence,
}

#[derive(Debug, Default)]
struct Status {
    connected: bool,
    welcomes: u64,
    failures: u64,
    carried: Vec<Carried>,
    closer_looks: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    status: Mutex<Status>,
    pushed: Notify,
    welcomed: watch::Sender<bool>,
    stopping: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing done under these locks can leave a value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running uplink.
#[derive(Debug)]
pub struct Uplink {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Uplink {
    /// Starts to connect; call within a tokio runtime. `random` gives numbers in 0..1, for the pauses' jitter.
    #[must_use]
    pub fn start(options: Options, random: impl FnMut() -> f64 + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::new(options.limits)),
            status: Mutex::default(),
            pushed: Notify::new(),
            welcomed: watch::Sender::new(false),
            stopping: watch::Sender::new(false),
        });
        let task = tokio::spawn(session::run(Arc::clone(&shared), options, random));
        Self { shared, task }
    }

    /// Puts a window into the queue; its sequence and losses are set there. Never waits.
    pub fn push(&self, window: v1::Window) -> u64 {
        let sequence = lock(&self.shared.queue).push(window);
        self.shared.pushed.notify_one();
        sequence
    }

    /// The state now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (counts, queued, queued_bytes) = {
            let queue = lock(&self.shared.queue);
            (queue.counts(), queue.len(), queue.bytes())
        };
        let status = lock(&self.shared.status);
        Snapshot {
            counts,
            queued,
            queued_bytes,
            connected: status.connected,
            reconnects: status.welcomes.saturating_sub(1),
            failures: status.failures,
        }
    }

    /// Waits until the detector has welcomed the first stream, at most `at_most`; `true` if it has.
    pub async fn welcomed(&self, at_most: Duration) -> bool {
        let mut welcomed = self.shared.welcomed.subscribe();
        tokio::time::timeout(at_most, welcomed.wait_for(|&welcomed| welcomed))
            .await
            .is_ok_and(|outcome| outcome.is_ok())
    }

    /// What the first `Welcome` brought; empty once taken.
    #[must_use]
    pub fn take_carried(&self) -> Vec<Carried> {
        std::mem::take(&mut lock(&self.shared.status).carried)
    }

    /// Keys of the tenants the detector would like more samples of; empty once taken.
    #[must_use]
    pub fn take_closer_looks(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.status).closer_looks)
    }

    /// Sends what is left, for at most `at_most`, and ends. Returns how many windows were not settled.
    pub async fn finish(mut self, at_most: Duration) -> usize {
        self.shared.stopping.send_replace(true);
        if tokio::time::timeout(at_most, &mut self.task).await.is_err() {
            self.task.abort();
        }
        lock(&self.shared.queue).len()
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        self.task.abort();
    }
}
