//! The embedded store: one SQLite file, nothing to set up.
//!
//! One thread owns the writing connection. It takes what waits in its queue, up to [`BATCH_MAX`] operations, into
//! one transaction (each in its own savepoint), and answers only after the commit: many hosts share one flush to
//! disk. `synchronous=FULL` with write-ahead logging means a commit has reached the disk (<https://sqlite.org/pragma.html#pragma_synchronous>).
//! Reads have a connection of their own and do not wait for writes. A lock file beside the database keeps a second
//! detector away from it.

mod ledger;
mod read;
mod schema;
mod write;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use davy_proto::v1;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use self::write::{Bounds, Fault};
use super::{Evicted, Host, Limits, Opened, ROWS_MAX, Record, Recorded, Store, StoreError, Tenant};
use crate::metrics::TenantsByLevel;

/// Most operations in one transaction.
pub const BATCH_MAX: usize = 64;
/// Operations that may wait for the writing thread; further callers wait for room.
const QUEUE_MAX: usize = 1024;
/// How long to wait for another process's lock, a backup's for instance.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for another detector to let go: one that is being replaced may still be closing, and a process
/// forked from it holds the lock until it executes its program (flock(2): the lock belongs to the open file).
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);
/// How often to try meanwhile.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// What is done within the transaction; the value says after the commit (or its failure) whom to answer what.
type Operation = Box<dyn FnOnce(&Connection, &mut Bounds) -> Executed + Send>;

/// Tells a caller how its operation and the commit went.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

struct Executed {
    failed: bool,
    answer: Answer,
}

/// A [`Store`] in one SQLite file.
pub struct Sqlite {
    operations: Option<mpsc::Sender<Operation>>,
    writer: Option<JoinHandle<()>>,
    reader: Arc<Mutex<Connection>>,
    // Held, not used: released after the writer has ended.
    _lock: File,
}

impl Sqlite {
    /// Opens or creates the database at `path`; its directory must exist. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Newer`] for a later release's database, else [`StoreError::Unusable`].
    pub fn open(path: &Path, limits: Limits) -> Result<Self, StoreError> {
        let name = path.display().to_string();
        let unusable = |why: String| StoreError::Unusable {
            path: name.clone(),
            why,
        };
        let lock = lock(path).map_err(unusable)?;
        let prepare = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(path)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            connection.set_prepared_statement_cache_capacity(64);
            Ok(connection)
        };
        let mut writing = prepare().map_err(|error| unusable(error.to_string()))?;
        schema::migrate(&mut writing, &name)?;
        let history_entries =
            write::count_history(&writing).map_err(|error| unusable(error.to_string()))?;
        let reading = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .and_then(|connection| connection.busy_timeout(BUSY_TIMEOUT).map(|()| connection))
        .map_err(|error| unusable(error.to_string()))?;
        let (operations, queue) = mpsc::channel(QUEUE_MAX);
        let bounds = Bounds {
            limits,
            history_entries,
        };
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || write_all(writing, queue, bounds))
            .map_err(|error| unusable(format!("its thread cannot be started: {error}")))?;
        Ok(Self {
            operations: Some(operations),
            writer: Some(writer),
            reader: Arc::new(Mutex::new(reading)),
            _lock: lock,
        })
    }

    async fn write<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Connection, &mut Bounds) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let operation: Operation = Box::new(move |connection, bounds| {
            let result = work(connection, bounds).map_err(|fault| fault.during(what));
            let failed = result.is_err();
            // The caller may be gone: then nobody waits for the answer.
            let answer = Box::new(move |commit: Result<(), StoreError>| {
                let _ = sender.send(result.and_then(|value| commit.map(|()| value)));
            });
            Executed { failed, answer }
        });
        let operations = self.operations.as_ref().ok_or(StoreError::Closed)?;
        operations
            .send(operation)
            .await
            .map_err(|_| StoreError::Closed)?;
        // Dropped unanswered: the transaction could not even be begun, and the thread has logged why.
        receiver.await.map_err(|_| StoreError::Failed {
            what,
            why: "the database took no transaction".to_owned(),
        })?
    }

    async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reader = Arc::clone(&self.reader);
        tokio::task::spawn_blocking(move || {
            let connection = reader.lock().unwrap_or_else(PoisonError::into_inner);
            work(&connection).map_err(|fault| fault.during(what))
        })
        .await
        .map_err(|error| StoreError::Failed {
            what,
            why: error.to_string(),
        })?
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.operations = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's thread has panicked");
        }
    }
}

/// Locks the database against a second detector for as long as the file is held.
fn lock(path: &Path) -> Result<File, String> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&name)
        .map_err(|error| {
            format!(
                "{} cannot be written ({error}): its directory must exist and be writable",
                Path::new(&name).display()
            )
        })?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_INTERVAL);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(
                    "another davy-detector uses it; stop that one or give another --database"
                        .into(),
                );
            }
            Err(TryLockError::Error(error)) => return Err(format!("it cannot be locked: {error}")),
        }
    }
}

fn write_all(mut connection: Connection, mut queue: mpsc::Receiver<Operation>, mut bounds: Bounds) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        let mut answers = Vec::with_capacity(batch.len());
        let mut recount = false;
        let committed = write_batch(
            &mut connection,
            &mut bounds,
            batch,
            &mut answers,
            &mut recount,
        );
        if let Err(error) = &committed {
            tracing::error!(%error, "a transaction failed; the agents concerned will send again");
        }
        if recount || committed.is_err() {
            // Something counted was rolled back.
            match write::count_history(&connection) {
                Ok(entries) => bounds.history_entries = entries,
                Err(error) => tracing::warn!(%error, "history could not be counted again"),
            }
        }
        let committed = committed.map_err(|error| StoreError::Failed {
            what: "committing to the database",
            why: write::advised(&error),
        });
        for answer in answers {
            answer(committed.clone());
        }
    }
    if let Err(error) = connection.execute_batch("PRAGMA optimize") {
        tracing::debug!(%error, "the database could not be optimised on closing");
    }
}

fn write_batch(
    connection: &mut Connection,
    bounds: &mut Bounds,
    batch: Vec<Operation>,
    answers: &mut Vec<Answer>,
    recount: &mut bool,
) -> rusqlite::Result<()> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for operation in batch {
        // Dropped without commit, a savepoint is rolled back.
        let savepoint = transaction.savepoint()?;
        let Executed { failed, answer } = operation(&savepoint, bounds);
        answers.push(answer);
        if failed {
            *recount = true;
            // A full disk, among others, may have rolled back all of the transaction and not this operation alone
            // (<https://sqlite.org/lang_transaction.html>): nothing may be done outside it, and nobody be told of success.
            if savepoint.is_autocommit() {
                return Err(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK),
                    Some("one operation's failure undid the whole transaction".to_owned()),
                ));
            }
        } else {
            savepoint.commit()?;
        }
    }
    transaction.commit()
}

#[tonic::async_trait]
impl Store for Sqlite {
    async fn open(&self, hello: v1::Hello, now_unix_ns: u64) -> Result<Opened, StoreError> {
        self.write("noting an agent's connection", move |connection, bounds| {
            write::open(connection, &bounds.limits, &hello, now_unix_ns)
        })
        .await
    }

    async fn record(&self, record: Record) -> Result<Recorded, StoreError> {
        self.write("storing a window", move |connection, bounds| {
            write::record(connection, bounds, &record)
        })
        .await
    }

    async fn settle(
        &self,
        host: String,
        instance: String,
        sequence: u64,
        lost_windows: u64,
    ) -> Result<u64, StoreError> {
        self.write("noting a rejected window", move |connection, _| {
            write::settle(connection, &host, &instance, sequence, lost_windows)
        })
        .await
    }

    async fn evict(&self, now_unix_ns: u64) -> Result<Evicted, StoreError> {
        self.write("removing what is old", move |connection, bounds| {
            write::evict(connection, bounds, now_unix_ns)
        })
        .await
    }

    async fn tenants(&self, host: String, at_least_rank: i64) -> Result<Vec<Tenant>, StoreError> {
        self.read("listing tenants", move |connection| {
            read::tenants(connection, &host, at_least_rank, ROWS_MAX)
        })
        .await
    }

    async fn find(
        &self,
        host: String,
        text: String,
        rows_max: u64,
    ) -> Result<Vec<Tenant>, StoreError> {
        self.read("finding a tenant", move |connection| {
            read::find(connection, &host, &text, rows_max)
        })
        .await
    }

    async fn history(
        &self,
        host: String,
        key: String,
        rows_max: u64,
    ) -> Result<Vec<v1::HistoryEntry>, StoreError> {
        self.read("reading history", move |connection| {
            read::history(connection, &host, &key, rows_max)
        })
        .await
    }

    async fn hosts(&self) -> Result<Vec<Host>, StoreError> {
        self.read("listing hosts", read::hosts).await
    }

    async fn tenants_by_level(
        &self,
        seen_since_unix_ns: u64,
    ) -> Result<TenantsByLevel, StoreError> {
        self.read("counting tenants", move |connection| {
            read::tenants_by_level(connection, seen_since_unix_ns)
        })
        .await
    }
}

#[cfg(test)]
#[path = "full_tests.rs"]
mod full_tests;
