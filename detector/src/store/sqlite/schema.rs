//! The SQLite schema and its migrations, numbered by `PRAGMA user_version`.
//!
//! A migration is only ever added. A database of a higher version than this program knows is refused, because an
//! older program would misread it; a database that is not Davy's is refused, because it belongs to someone else.
//! Times are ns since the Unix epoch. `tenants.current` and `history.window` are `davy.v1.TenantWindow`,
//! `hosts.sensors` is a `davy.v1.Window` with nothing but its sensors: protobuf keeps what later releases add.

use rusqlite::Connection;

use crate::store::StoreError;

/// `PRAGMA application_id`: "Davy" in ASCII.
const APPLICATION_ID: i64 = 0x4461_7679;

const MIGRATIONS: &[&str] = &["
    CREATE TABLE hosts (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        instance TEXT NOT NULL,
        agent_version TEXT NOT NULL,
        kernel_release TEXT NOT NULL,
        windows INTEGER NOT NULL DEFAULT 0,
        lost_windows INTEGER NOT NULL DEFAULT 0,
        last_seen_unix_ns INTEGER NOT NULL,
        sensors BLOB NOT NULL DEFAULT x''
    ) STRICT;

    -- Sequences belong to an agent instance. Several are kept per host, so that an older agent which comes
    -- back for a moment does not make the newer one's windows look new.
    CREATE TABLE instances (
        host_id INTEGER NOT NULL REFERENCES hosts ON DELETE CASCADE,
        instance TEXT NOT NULL,
        opened_unix_ns INTEGER NOT NULL,
        last_sequence INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (host_id, instance)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE tenants (
        id INTEGER PRIMARY KEY,
        host_id INTEGER NOT NULL REFERENCES hosts ON DELETE CASCADE,
        key TEXT NOT NULL,
        name TEXT NOT NULL,
        droplet_id TEXT NOT NULL,
        level INTEGER NOT NULL,
        verdict_since_unix_ns INTEGER NOT NULL,
        first_seen_unix_ns INTEGER NOT NULL,
        last_seen_unix_ns INTEGER NOT NULL,
        window_ns INTEGER NOT NULL,
        planned TEXT NOT NULL,
        history_entries INTEGER NOT NULL,
        current BLOB NOT NULL,
        UNIQUE (host_id, key)
    ) STRICT;
    CREATE INDEX tenants_by_key ON tenants (key);
    CREATE INDEX tenants_by_name ON tenants (name);
    CREATE INDEX tenants_by_droplet_id ON tenants (droplet_id);
    CREATE INDEX tenants_by_last_seen ON tenants (last_seen_unix_ns);

    CREATE TABLE history (
        id INTEGER PRIMARY KEY,
        tenant_id INTEGER NOT NULL REFERENCES tenants ON DELETE CASCADE,
        start_unix_ns INTEGER NOT NULL,
        end_unix_ns INTEGER NOT NULL,
        window BLOB NOT NULL
    ) STRICT;
    CREATE INDEX history_by_tenant ON history (tenant_id, end_unix_ns);
", "
    -- A tenant's history is read and evicted in the order of arrival: clocks may be set back. The row's id is
    -- part of every index.
    DROP INDEX history_by_tenant;
    CREATE INDEX history_by_tenant ON history (tenant_id);
", "
    -- The deciding half. Bodies are JSON as the pure core writes it; times are ms since the Unix epoch.
    CREATE TABLE fleet (id INTEGER PRIMARY KEY CHECK (id = 1), body TEXT NOT NULL) STRICT;

    CREATE TABLE accounts (
        account TEXT PRIMARY KEY,
        body TEXT NOT NULL,
        due_ms INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX accounts_by_due ON accounts (due_ms) WHERE due_ms IS NOT NULL;

    CREATE TABLE cases (
        account TEXT NOT NULL,
        number INTEGER NOT NULL,
        opened_ms INTEGER NOT NULL,
        closed INTEGER NOT NULL,
        locked INTEGER NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (account, number)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX cases_by_opened ON cases (closed, opened_ms);

    CREATE TABLE decisions (
        account TEXT NOT NULL,
        number INTEGER NOT NULL,
        input TEXT NOT NULL,
        plan TEXT NOT NULL,
        PRIMARY KEY (account, number)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER decisions_stay BEFORE UPDATE ON decisions BEGIN SELECT raise(ABORT, 'decisions are never changed'); END;
    CREATE TRIGGER decisions_remain BEFORE DELETE ON decisions BEGIN SELECT raise(ABORT, 'decisions are never removed'); END;

    CREATE TABLE reasons (
        id INTEGER PRIMARY KEY,
        account TEXT NOT NULL,
        number INTEGER NOT NULL,
        text TEXT NOT NULL
    ) STRICT;

    CREATE TABLE owners (droplet TEXT PRIMARY KEY, account TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE INDEX owners_by_account ON owners (account);

    CREATE TABLE policies (digest TEXT PRIMARY KEY, files TEXT NOT NULL) STRICT, WITHOUT ROWID;

    CREATE TABLE audit (
        number INTEGER PRIMARY KEY,
        account TEXT,
        note TEXT NOT NULL,
        hash TEXT NOT NULL
    ) STRICT;
    CREATE INDEX audit_by_account ON audit (account, number);
    CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT raise(ABORT, 'the audit log is never changed'); END;
    CREATE TRIGGER audit_remains BEFORE DELETE ON audit BEGIN SELECT raise(ABORT, 'the audit log is never removed'); END;
", "
    -- A REPLACE removes rows without asking the triggers of removal (https://sqlite.org/lang_conflict.html).
    CREATE TRIGGER decisions_come_once BEFORE INSERT ON decisions
        WHEN EXISTS (SELECT 1 FROM decisions WHERE account = NEW.account AND number = NEW.number)
        BEGIN SELECT raise(ABORT, 'decisions are never changed'); END;
    CREATE TRIGGER audit_comes_once BEFORE INSERT ON audit
        WHEN EXISTS (SELECT 1 FROM audit WHERE number = NEW.number)
        BEGIN SELECT raise(ABORT, 'the audit log is never changed'); END;
", "
    -- The queue's order. Cases from before come first until they change: nobody's wait is hidden.
    ALTER TABLE cases ADD COLUMN settled INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE cases ADD COLUMN waiting_ms INTEGER NOT NULL DEFAULT 0;
    DROP INDEX cases_by_opened;
    CREATE INDEX cases_by_rank ON cases (closed, settled, locked DESC, waiting_ms, opened_ms, account, number);
", "
    -- There from the first: a store without it has lost it.
    INSERT INTO fleet (id, body) VALUES (1, '{}') ON CONFLICT DO NOTHING;
"];

/// Brings the database at `path` to the newest schema.
///
/// # Errors
/// [`StoreError::Newer`], [`StoreError::Unusable`].
pub(super) fn migrate(connection: &mut Connection, path: &str) -> Result<(), StoreError> {
    let unusable = |error: rusqlite::Error| StoreError::Unusable {
        path: path.to_owned(),
        why: error.to_string(),
    };
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    // An exclusive lock first: two detectors started at once must not both migrate.
    let transaction = connection
        .transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive)
        .map_err(unusable)?;
    let pragma = |name: &str| {
        transaction
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(unusable)
    };
    let (application, found) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 = transaction
        .query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'",
            [],
            |row| row.get(0),
        )
        .map_err(unusable)?;
    if tables > 0 && application != APPLICATION_ID {
        let why = "it is another program's; give another --database".to_owned();
        return Err(StoreError::Unusable {
            path: path.to_owned(),
            why,
        });
    }
    if found > known {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for migration in MIGRATIONS.iter().skip(done) {
        transaction.execute_batch(migration).map_err(unusable)?;
    }
    if found < known {
        transaction
            .pragma_update(None, "application_id", APPLICATION_ID)
            .map_err(unusable)?;
        transaction
            .pragma_update(None, "user_version", known)
            .map_err(unusable)?;
    }
    transaction.commit().map_err(unusable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_database_is_migrated_once() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "memory").unwrap();
        migrate(&mut connection, "memory").unwrap();
        let version: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(version, 6);
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "memory").unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        let error = migrate(&mut connection, "memory").unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::Newer {
                    found: 99,
                    known: 6,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn another_programs_database_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
        let error = migrate(&mut connection, "memory").unwrap_err();
        assert!(error.to_string().contains("another program's"), "{error}");
    }
}
