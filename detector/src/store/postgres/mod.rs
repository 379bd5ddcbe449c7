//! PostgreSQL: for several detectors that share their records.
//!
//! Every operation is one transaction at `READ COMMITTED`; what it changes it locks first (`SELECT … FOR UPDATE`), always in one
//! order, so that no two wait for each other: of the ledger fleet, account, audit head; of telemetry hosts by id, then what is theirs.
//! A transaction that lost all the same (a deadlock, a server's restart) before its commit is run again. One whose connection is lost
//! *while* committing is [`StoreError::Unknown`]: whoever asked looks, and asks again.
//!
//! Connections are not encrypted: use a socket, loopback, or a tunnel. A commit has reached the server's disk
//! (`synchronous_commit` is turned on where it is off); with `fsync = off` at the server that is worth nothing.

mod ledger;
mod schema;
mod telemetry;

use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use davy_decision::dossier::Refusal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::{
    Client, Config, IsolationLevel, NoTls, Row, Transaction,
    config::Host,
    error::{DbError, Severity, SqlState},
    types::ToSql,
};

use crate::store::ledger::rows::BadRecord;
use crate::store::{Limits, StoreError};

/// Connections to the server at most.
const CONNECTIONS_MAX: usize = 8;
/// How long to wait for the server to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a transaction is tried that lost against another, or whose connection broke.
const ATTEMPTS_MAX: u32 = 5;
/// After how long without a sign from the server's machine a connection is given up.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// What every connection begins with. A detector that hangs must not keep the others from the rows that it has locked: the kill
/// switch is one of them.
const SESSION: &str = "SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '10s';
    SET statement_timeout = '60s';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// A store in a PostgreSQL database.
pub struct Postgres {
    pool: Arc<Pool>,
    limits: Limits,
    /// Rows of `history`: exact when last counted, and since then with what this detector did.
    history_entries: AtomicI64,
}

/// An error within a transaction.
#[derive(Debug)]
enum Fault {
    /// A statement failed, or its connection; nothing is kept.
    Sql(tokio_postgres::Error),
    /// No connection could be made.
    Unreachable(tokio_postgres::Error),
    /// The connection was lost while committing.
    Unknown(tokio_postgres::Error),
    /// A change refused.
    Refused(Refusal),
    Store(StoreError),
    Record(BadRecord),
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<BadRecord> for Fault {
    fn from(error: BadRecord) -> Self {
        Self::Record(error)
    }
}

impl Fault {
    fn during(self, what: &'static str) -> StoreError {
        let why = match self {
            Self::Sql(error) if error.code() == Some(&SqlState::DISK_FULL) => format!(
                "{}; nothing of it was kept: make room on the server's disk, and try again",
                words(&error)
            ),
            Self::Sql(error) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                format!(
                    "{}; nothing of it was kept: give the server that takes writes, not a standby",
                    words(&error)
                )
            }
            Self::Sql(error) => words(&error),
            Self::Unreachable(error) => format!(
                "the database's server cannot be reached ({}): is it running, and may this user connect?",
                words(&error)
            ),
            Self::Unknown(error) => {
                let why = words(&error);
                return StoreError::Unknown { what, why };
            }
            Self::Store(error) => return error,
            Self::Record(error) => error.to_string(),
            Self::Refused(refusal) => refusal.to_string(),
        };
        StoreError::Failed { what, why }
    }

    /// Whether the same transaction may well succeed if it is tried again; it was not committed.
    fn is_passing(&self) -> bool {
        let Self::Sql(error) = self else {
            return false;
        };
        let lost = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ];
        error.code().is_some_and(|code| lost.contains(code)) || is_broken(error)
    }
}

/// Whether a statement failed with its connection.
fn is_broken(error: &tokio_postgres::Error) -> bool {
    let fatal = |severity| matches!(severity, Severity::Fatal | Severity::Panic);
    match error.as_db_error() {
        Some(said) => said.parsed_severity().is_some_and(fatal),
        None => {
            let source = std::error::Error::source(error);
            error.is_closed() || source.is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
        }
    }
}

/// Commits. Only the server's own word that it failed is one: an answer that never came says nothing.
async fn commit(transaction: Transaction<'_>) -> Result<(), Fault> {
    let failed = |error: tokio_postgres::Error| {
        let severity = error.as_db_error().and_then(DbError::parsed_severity);
        match severity {
            Some(Severity::Error) => Fault::Sql(error),
            _ => Fault::Unknown(error),
        }
    };
    transaction.commit().await.map_err(failed)
}

/// Runs `work` in a transaction and commits it; again, if it lost.
macro_rules! transact {
    ($store:expr, |$transaction:ident| $work:expr) => {{
        let mut attempt = 1;
        loop {
            let done = async {
                let mut client = $store.pool.get().await?;
                let $transaction = client.begin().await?;
                let value = $work?;
                $crate::store::postgres::commit($transaction).await?;
                Ok::<_, $crate::store::postgres::Fault>(value)
            };
            match done.await {
                Err(fault)
                    if fault.is_passing() && attempt < $crate::store::postgres::ATTEMPTS_MAX =>
                {
                    tracing::debug!(?fault, attempt, "a transaction is run again");
                    $store.pool.forget_broken(&fault);
                    attempt += 1;
                }
                done => break done,
            }
        }
    }};
}
use transact;

/// The server's own words: the error itself says only "db error".
fn words(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return said.message().to_owned();
    }
    let mut text = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        text = format!("{text}: {cause}");
    }
    text
}

impl Postgres {
    /// Connects to the database that `url` names (`postgres://user@host/database`), and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Newer`] for a later release's database, else [`StoreError::Unusable`].
    pub async fn open(url: &str, limits: Limits) -> Result<Self, StoreError> {
        let shown = shown(url);
        let unusable = |why: String| StoreError::Unusable {
            path: shown.clone(),
            why,
        };
        let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
            unusable(format!(
                "{}; write it as postgres://USER@HOST/DATABASE",
                words(&error)
            ))
        })?;
        config.connect_timeout(CONNECT_TIMEOUT);
        config.tcp_user_timeout(SILENCE_MAX);
        config.keepalives_idle(SILENCE_MAX);
        config.keepalives_interval(SILENCE_MAX / 2);
        config.application_name("davy-detector");
        let pool = Arc::new(Pool {
            config,
            idle: Mutex::new(Vec::new()),
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        });
        let failed = |fault: Fault| match fault.during("") {
            StoreError::Failed { why, .. } | StoreError::Unknown { why, .. } => unusable(why),
            other => other,
        };
        let mut connection = pool.get().await.map_err(failed)?;
        schema::migrate(&mut connection, &shown).await?;
        let entries = telemetry::count_history(&*connection).await;
        let entries = entries.map_err(failed)?;
        drop(connection);
        Ok(Self {
            pool,
            limits,
            history_entries: AtomicI64::new(entries),
        })
    }
}

impl Postgres {
    /// Rows, read in one statement.
    async fn select(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Fault> {
        let mut attempt = 1;
        loop {
            let found = async {
                let client = self.pool.get().await?;
                Ok(client.query(sql, params).await?)
            };
            match found.await {
                Err(fault @ Fault::Sql(_)) if fault.is_passing() && attempt < ATTEMPTS_MAX => {
                    self.pool.forget_broken(&fault);
                    attempt += 1;
                }
                found => return found,
            }
        }
    }
}

/// A URL as it may be shown: who, where, which database. A password can stand in more than one place of it.
pub(super) fn shown(url: &str) -> String {
    let Ok(config) = url.parse::<Config>() else {
        return "postgres://…".to_owned();
    };
    let hosts: Vec<_> = (config.get_hosts().iter())
        .map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        })
        .collect();
    let (user, hosts) = (config.get_user().unwrap_or_default(), hosts.join(","));
    let at = if user.is_empty() { "" } else { "@" };
    let database = config.get_dbname().unwrap_or(user);
    format!("postgres://{user}{at}{hosts}/{database}")
}

/// A few connections, made when needed and used again.
struct Pool {
    config: Config,
    idle: Mutex<Vec<Client>>,
    room: Arc<Semaphore>,
}

/// A connection on loan.
struct Lent {
    client: Option<Client>,
    pool: Arc<Pool>,
    _place: OwnedSemaphorePermit,
}

impl Pool {
    async fn get(self: &Arc<Self>) -> Result<Lent, Fault> {
        let closed = |_| Fault::Store(StoreError::Closed);
        let place = (Arc::clone(&self.room).acquire_owned().await).map_err(closed)?;
        let idle = || {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.pop()
        };
        while let Some(client) = idle() {
            if !client.is_closed() {
                return Ok(self.lend(client, place));
            }
        }
        let (client, connection) =
            (self.config.connect(NoTls).await).map_err(Fault::Unreachable)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(error = words(&error), "a connection to the database ended");
            }
        });
        client.batch_execute(SESSION).await?;
        Ok(self.lend(client, place))
    }

    /// After a connection broke: those that wait in the pool have broken with it, most likely.
    fn forget_broken(&self, fault: &Fault) {
        if matches!(fault, Fault::Sql(error) if is_broken(error)) {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.clear();
        }
    }

    fn lend(self: &Arc<Self>, client: Client, place: OwnedSemaphorePermit) -> Lent {
        Lent {
            client: Some(client),
            pool: Arc::clone(self),
            _place: place,
        }
    }
}

impl Lent {
    /// Begins a transaction, whatever the server's defaults are.
    async fn begin(&mut self) -> Result<Transaction<'_>, Fault> {
        let begun = self
            .build_transaction()
            .isolation_level(IsolationLevel::ReadCommitted);
        Ok(begun.start().await?)
    }
}

impl Deref for Lent {
    type Target = Client;

    #[expect(
        clippy::expect_used,
        reason = "the client is taken by `drop` alone, after which nothing can be asked of it"
    )]
    fn deref(&self) -> &Client {
        self.client.as_ref().expect("a lent connection")
    }
}

impl DerefMut for Lent {
    #[expect(
        clippy::expect_used,
        reason = "the client is taken by `drop` alone, after which nothing can be asked of it"
    )]
    fn deref_mut(&mut self) -> &mut Client {
        self.client.as_mut().expect("a lent connection")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(client) = self.client.take().filter(|client| !client.is_closed()) {
            let mut idle = self
                .pool
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            idle.push(client);
        }
    }
}

/// PostgreSQL's integers are signed, as SQLite's are: what is stored is checked to fit before; anything else saturates.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The inverse of [`signed`].
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for (url, at) in [
            ("postgres://davy:secret@db/davy", "davy@db/davy"),
            ("postgres://davy:sec@ret@db:6/davy", ""),
            (
                "postgres://db/davy?user=davy&password=secret",
                "davy@db/davy",
            ),
            ("postgres://db/davy?p%61ssword=secret", "db/davy"),
            ("postgres:///davy?host=/run", "/run/davy"),
            ("postgres://davy:secret@db/davy?nonsense=1", "…"),
        ] {
            let said = shown(url);
            assert!(!said.contains("sec"), "{said}");
            assert!(
                said.starts_with("postgres://") && said.ends_with(at),
                "{said}"
            );
        }
    }
}
