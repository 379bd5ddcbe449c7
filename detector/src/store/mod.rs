//! What the detector keeps: hosts and their agents' sequences, each tenant's current evidence, and a bounded history.
//!
//! [`Memory`] is what the rest of the detector sees: [`Store`] for telemetry, [`ledger::Ledger`] for decisions. [`sqlite`] is the embedded
//! default, [`postgres`] serves several detectors at once; [`open`] makes either. A window is stored in one
//! transaction: its sequence, every tenant's current state and every history entry, or nothing. When a call has
//! returned, its effect survives a crash of the process and of the machine.
//!
//! Everything is bounded by [`Limits`]; what a bound removes is returned as [`Evicted`], so that it can be counted.

use std::path::PathBuf;
use std::sync::Arc;

use davy_proto::v1;

use crate::evidence::{Judged, Planned};
use crate::metrics::TenantsByLevel;

pub mod ledger;

pub mod postgres;
pub mod sqlite;

/// Agent instances remembered per host: enough that one which comes back finds its sequences.
const INSTANCES_PER_HOST_MAX: u64 = 8;
/// Tenants removed for their age in one transaction, so that ingest does not wait long.
const EVICT_TENANTS_MAX: u64 = 100;
/// Most tenants in one answer.
pub const ROWS_MAX: u64 = 200_000;

/// Bounds on what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Hosts; a further one is refused.
    pub hosts_max: u64,
    /// Tenants of one host; the least recently seen goes first.
    pub tenants_per_host_max: u64,
    /// History entries of one tenant; the earliest stored goes first.
    pub history_per_tenant_max: u64,
    /// History entries of all tenants; the earliest stored goes first.
    pub history_total_max: u64,
    /// Tenants and hosts not seen for longer than this are removed, ns.
    pub retention_ns: u64,
}

/// What bounds and age removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// History entries (without those that went with their tenant).
    pub history: u64,
    /// Tenants, with their history.
    pub tenants: u64,
    /// Hosts.
    pub hosts: u64,
}

impl std::ops::AddAssign for Evicted {
    fn add_assign(&mut self, other: Self) {
        let Self {
            history,
            tenants,
            hosts,
        } = other;
        self.history += history;
        self.tenants += tenants;
        self.hosts += hosts;
    }
}

/// What the store knows when an agent connects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Opened {
    /// Highest settled sequence of this instance; 0 if none.
    pub last_sequence: u64,
    /// Evidence of the host's tenants fresher than [`crate::evidence::FRESH_NS`].
    pub carried: Vec<v1::CarriedEvidence>,
}

/// A judged window to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The host it came from.
    pub host: String,
    /// The agent instance it came from.
    pub instance: String,
    /// Its sequence.
    pub sequence: u64,
    /// Start, ns since the Unix epoch.
    pub start_unix_ns: u64,
    /// End, ns since the Unix epoch.
    pub end_unix_ns: u64,
    /// Windows the agent says it dropped before this one.
    pub lost_windows: u64,
    /// When it was received, ns since the Unix epoch.
    pub received_unix_ns: u64,
    /// The host's sensors.
    pub sensors: Vec<v1::SensorStatus>,
    /// The tenants, judged.
    pub tenants: Vec<Judged>,
}

/// What became of a [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is stored.
    Stored {
        /// Windows between the last settled one and this one that never arrived.
        missing: u64,
        /// What its arrival pushed out.
        evicted: Evicted,
    },
    /// Its sequence was settled before.
    Duplicate {
        /// Highest settled sequence.
        last_sequence: u64,
    },
    /// Its sequence cannot be (0, or far ahead); nothing was changed.
    Absurd {
        /// Highest settled sequence.
        last_sequence: u64,
    },
}

/// A tenant as last reported.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Its host.
    pub host: String,
    /// Its last window, with the detector's verdict.
    pub current: v1::TenantWindow,
    /// End of its first window, ns since the Unix epoch.
    pub first_seen_unix_ns: u64,
    /// End of its last window, ns since the Unix epoch.
    pub last_seen_unix_ns: u64,
    /// When the present level began, ns since the Unix epoch.
    pub verdict_since_unix_ns: u64,
    /// Span of the last window, ns.
    pub window_ns: u64,
    /// What would be done about it.
    pub planned: Planned,
}

/// A host as last reported.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The agent instance that connected last.
    pub instance: String,
    /// Highest settled sequence of that instance.
    pub last_sequence: u64,
    /// Windows stored, of all instances.
    pub windows: u64,
    /// Windows that never arrived, of all instances.
    pub lost_windows: u64,
    /// When it last sent anything, by the detector's clock, ns since the Unix epoch.
    pub last_seen_unix_ns: u64,
    /// The agent's version.
    pub agent_version: String,
    /// The host's kernel.
    pub kernel_release: String,
    /// Its sensors.
    pub sensors: Vec<v1::SensorStatus>,
}

/// Why the store could not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be opened or is not usable as one.
    #[error("the database {path} cannot be used: {why}")]
    Unusable {
        /// Its path.
        path: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The database was written by a later release.
    #[error(
        "the database {path} has schema {found}, this davy-detector knows up to {known}: run the newer release, or give another --database"
    )]
    Newer {
        /// Its path.
        path: String,
        /// Its schema version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// An operation failed; nothing of it was kept.
    #[error("{what} failed: {why}")]
    Failed {
        /// The operation.
        what: &'static str,
        /// The database's words.
        why: String,
    },
    /// The connection was lost while committing: it may have been kept, or not.
    #[error(
        "{what}: the connection to the database was lost while committing ({why}), so whether it was kept is not known; look before asking again"
    )]
    Unknown {
        /// The operation.
        what: &'static str,
        /// The connection's words.
        why: String,
    },
    /// The bound on hosts is reached.
    #[error("{hosts_max} hosts are known already, and no more are taken; raise limits.hosts_max")]
    TooManyHosts {
        /// The bound.
        hosts_max: u64,
    },
    /// A window of an agent that has not been opened, or was removed since.
    #[error("agent instance {instance} of host {host:?} is not known; connect again")]
    UnknownInstance {
        /// The host.
        host: String,
        /// The instance.
        instance: String,
    },
    /// The answer would be larger than is sensible.
    #[error("more than {rows_max} tenants match; narrow the question by a host or a level")]
    TooMany {
        /// The bound.
        rows_max: u64,
    },
    /// The store's thread has ended.
    #[error("the store is closed")]
    Closed,
}

/// The detector's whole memory, whatever keeps it.
pub trait Memory: Store + ledger::Ledger {}

impl<T: Store + ledger::Ledger> Memory for T {}

/// Whether `name` names a PostgreSQL database, and no file.
fn is_url(name: &str) -> bool {
    name.starts_with("postgres://") || name.starts_with("postgresql://")
}

/// The database that `name` names, as it may be shown and logged: without a password.
#[must_use]
pub fn shown(name: &str) -> String {
    if is_url(name) {
        return postgres::shown(name);
    }
    name.to_owned()
}

/// Opens the database that `name` names: `postgres://…`, or a path to an SQLite file, made if absent.
///
/// # Errors
/// [`StoreError::Newer`] for a later release's database, else [`StoreError::Unusable`].
pub async fn open(name: &str, limits: Limits) -> Result<Arc<dyn Memory>, StoreError> {
    if is_url(name) {
        return Ok(Arc::new(postgres::Postgres::open(name, limits).await?));
    }
    let path = PathBuf::from(name);
    let opened = tokio::task::spawn_blocking(move || sqlite::Sqlite::open(&path, limits));
    let opened = opened.await.map_err(|error| StoreError::Failed {
        what: "opening the database",
        why: error.to_string(),
    })?;
    Ok(Arc::new(opened?))
}

/// The detector's memory of hosts and tenants.
#[tonic::async_trait]
pub trait Store: Send + Sync + 'static {
    /// Notes that an agent connected, and says what is known of it.
    ///
    /// # Errors
    /// [`StoreError::TooManyHosts`], or a failure of the storage.
    async fn open(&self, hello: v1::Hello, now_unix_ns: u64) -> Result<Opened, StoreError>;

    /// Stores a window.
    ///
    /// # Errors
    /// [`StoreError::UnknownInstance`], or a failure of the storage; nothing of the window is kept then.
    async fn record(&self, record: Record) -> Result<Recorded, StoreError>;

    /// Settles the sequence of a rejected window, so that it does not count as lost. What was missing before it does:
    /// `lost_windows` is the agent's word about that. Returns how many were missing. A duplicate or absurd sequence
    /// changes nothing.
    ///
    /// # Errors
    /// As [`Store::record`].
    async fn settle(
        &self,
        host: String,
        instance: String,
        sequence: u64,
        lost_windows: u64,
    ) -> Result<u64, StoreError>;

    /// Removes tenants and hosts that were not seen for [`Limits::retention_ns`].
    ///
    /// # Errors
    /// A failure of the storage.
    async fn evict(&self, now_unix_ns: u64) -> Result<Evicted, StoreError>;

    /// Tenants ordered by host and key. `host` empty: of all hosts; `at_least_rank`: see [`crate::evidence::rank`], 0 for all.
    ///
    /// # Errors
    /// [`StoreError::TooMany`], or a failure of the storage.
    async fn tenants(&self, host: String, at_least_rank: i64) -> Result<Vec<Tenant>, StoreError>;

    /// Tenants whose key is `text` or, if there is none, whose name or droplet id is; at most `rows_max`. `host` empty: of all hosts.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn find(
        &self,
        host: String,
        text: String,
        rows_max: u64,
    ) -> Result<Vec<Tenant>, StoreError>;

    /// A tenant's history, the window stored last first, at most `rows_max`.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn history(
        &self,
        host: String,
        key: String,
        rows_max: u64,
    ) -> Result<Vec<v1::HistoryEntry>, StoreError>;

    /// All hosts, by name.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn hosts(&self) -> Result<Vec<Host>, StoreError>;

    /// Tenants seen since a time, by level.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn tenants_by_level(&self, seen_since_unix_ns: u64)
    -> Result<TenantsByLevel, StoreError>;
}
