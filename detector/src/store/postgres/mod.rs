//! PostgreSQL: for several detectors that share their records.
//!
//! Every operation is one transaction at `READ COMMITTED`; what it changes it locks first (`SELECT … FOR UPDATE`), always in the order
//! fleet, account, audit head, so no two wait for each other. A transaction that was not committed for sure is an error: a lost
//! connection while committing leaves it open whether it was, and whoever asked asks again.
//!
//! Connections are not encrypted: use a socket, loopback, or a tunnel. `synchronous_commit` must be on at the server (its
//! default), else an acknowledged window may be lost with the machine.

mod ledger;
mod schema;
mod telemetry;

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::{Client, Config, NoTls, error::SqlState};

use crate::store::ledger::rows::BadRecord;
use crate::store::{Limits, StoreError};

/// Connections to the server at most.
const CONNECTIONS_MAX: usize = 8;
/// How long to wait for the server to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a transaction is tried that lost against another.
const ATTEMPTS_MAX: u32 = 5;

/// A store in a PostgreSQL database.
pub struct Postgres {
    pool: Arc<Pool>,
    limits: Limits,
}

/// An error within a transaction.
#[derive(Debug)]
enum Fault {
    Sql(tokio_postgres::Error),
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
            Self::Sql(error) => words(&error),
            Self::Store(error) => return error,
            Self::Record(error) => error.to_string(),
        };
        StoreError::Failed { what, why }
    }

    /// Whether the same transaction may well succeed if it is tried again.
    fn is_passing(&self) -> bool {
        let Self::Sql(error) = self else {
            return false;
        };
        let lost = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::UNIQUE_VIOLATION,
        ];
        error.code().is_some_and(|code| lost.contains(code))
    }
}

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
        config.application_name("davy-detector");
        let pool = Arc::new(Pool {
            config,
            idle: Mutex::new(Vec::new()),
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        });
        let mut connection = pool.get().await.map_err(|fault| {
            let why = fault.during("").to_string();
            unusable(format!(
                "{}; is the server running, and may this user connect?",
                why.trim_start_matches(" failed: ")
            ))
        })?;
        schema::migrate(&mut connection, &shown).await?;
        drop(connection);
        Ok(Self { pool, limits })
    }
}

/// A URL without its password.
fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    match rest.split_once('@') {
        Some((user, place)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{place}")
        }
        None => url.to_owned(),
    }
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
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(error = words(&error), "a connection to the database ended");
            }
        });
        Ok(self.lend(client, place))
    }

    fn lend(self: &Arc<Self>, client: Client, place: OwnedSemaphorePermit) -> Lent {
        Lent {
            client: Some(client),
            pool: Arc::clone(self),
            _place: place,
        }
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
        assert_eq!(
            shown("postgres://davy:secret@db/davy"),
            "postgres://davy@db/davy"
        );
        assert_eq!(
            shown("postgres:///davy?host=/run"),
            "postgres:///davy?host=/run"
        );
    }
}
