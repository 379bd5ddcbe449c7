//! Where a store is: a directory for SQLite, a database on a server of the tests' own for PostgreSQL.

use std::sync::Arc;

use davy_detector::store::{self, Limits, Memory, StoreError};
use davy_test_postgres::Server;
use tempfile::TempDir;

/// Wide enough for every test that is not about them.
pub(crate) const LIMITS: Limits = Limits {
    hosts_max: 100,
    tenants_per_host_max: 100,
    history_per_tenant_max: 1_000,
    history_total_max: 100_000,
    retention_ns: 3_600 * 1_000_000_000,
};

/// A store's place; what is in it stays until it is dropped.
pub(crate) enum Place {
    Sqlite {
        dir: TempDir,
    },
    Postgres {
        server: Arc<Server>,
        database: String,
    },
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::Sqlite { dir }
    }

    /// None, said aloud, where there is no PostgreSQL.
    pub(crate) fn postgres() -> Option<Self> {
        let Some(server) = Server::shared().unwrap() else {
            davy_test_postgres::skipped(davy_test_postgres::ABSENT);
            return None;
        };
        let database = server.database().unwrap();
        Some(Self::Postgres { server, database })
    }

    /// As a configuration names it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Sqlite { dir } => dir.path().join("davy.db").display().to_string(),
            Self::Postgres { server, database } => server.url(database),
        }
    }

    pub(crate) async fn try_open(&self) -> Result<Arc<dyn Memory>, StoreError> {
        store::open(&self.name(), LIMITS).await
    }

    pub(crate) async fn open(&self) -> Arc<dyn Memory> {
        self.open_with(LIMITS).await
    }

    pub(crate) async fn open_with(&self, limits: Limits) -> Arc<dyn Memory> {
        store::open(&self.name(), limits).await.unwrap()
    }

    /// Two detectors' stores on the same records. SQLite has one detector at a time: it is asked twice.
    pub(crate) async fn two(&self, limits: Limits) -> [Arc<dyn Memory>; 2] {
        let one = self.open_with(limits).await;
        let other = match self {
            Self::Sqlite { .. } => Arc::clone(&one),
            Self::Postgres { .. } => self.open_with(limits).await,
        };
        [one, other]
    }

    /// Runs SQL beside the store; the first value of what it answers, as text.
    pub(crate) fn sql(&self, sql: &str) -> Result<String, String> {
        match self {
            Self::Sqlite { .. } => {
                let database = rusqlite::Connection::open(self.name()).unwrap();
                let run = || {
                    let mut statement = database.prepare(sql)?;
                    let mut rows = statement.query([])?;
                    let mut first = None;
                    while let Some(row) = rows.next()? {
                        let value: rusqlite::types::Value = row.get(0)?;
                        first.get_or_insert(match value {
                            rusqlite::types::Value::Text(text) => text,
                            rusqlite::types::Value::Integer(number) => number.to_string(),
                            other => format!("{other:?}"),
                        });
                    }
                    Ok(first.unwrap_or_default())
                };
                run().map_err(|error: rusqlite::Error| error.to_string())
            }
            Self::Postgres { server, database } => {
                (server.run(database, sql)).map_err(|error| error.to_string())
            }
        }
    }

    /// From here on nothing can be written, until the guard is dropped.
    pub(crate) fn take_no_writes(&self) -> NoWrites<'_> {
        match self {
            // Another program holds the lock for writing, longer than anybody waits.
            Self::Sqlite { .. } => {
                let database = rusqlite::Connection::open(self.name()).unwrap();
                database.execute_batch("BEGIN IMMEDIATE").unwrap();
                NoWrites::Sqlite {
                    _database: database,
                }
            }
            Self::Postgres { .. } => {
                self.set_read_only("on");
                NoWrites::Postgres(self)
            }
        }
    }

    /// New connections may or may not write; those of before are ended.
    fn set_read_only(&self, read_only: &str) {
        let Self::Postgres { server, database } = self else {
            return;
        };
        for sql in [
            format!("ALTER DATABASE {database} SET default_transaction_read_only = {read_only}"),
            format!(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{database}'"
            ),
        ] {
            server.run("postgres", &sql).unwrap();
        }
    }
}

/// Nothing can be written while this lives.
pub(crate) enum NoWrites<'a> {
    Sqlite { _database: rusqlite::Connection },
    Postgres(&'a Place),
}

impl Drop for NoWrites<'_> {
    fn drop(&mut self) {
        if let Self::Postgres(place) = self {
            place.set_read_only("off");
        }
    }
}
