//! The PostgreSQL schema and its migrations, numbered by the table `davy_schema`.
//!
//! A migration is only ever added. A database of a higher version is refused, as is one with tables that are not Davy's. Columns are
//! as in SQLite; JSON is text, because its bytes must come back as they were written. `reasons.text` is a JSON string: a text of
//! PostgreSQL's cannot hold every character that a person's can (no NUL).

use tokio_postgres::Client;

use super::{Fault, commit};
use crate::store::StoreError;

/// An advisory lock's key: "Davy" in ASCII. Two detectors started at once must not both migrate.
const LOCK: i64 = 0x4461_7679;

const MIGRATIONS: &[&str] = &["
    CREATE TABLE hosts (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        instance TEXT NOT NULL,
        agent_version TEXT NOT NULL,
        kernel_release TEXT NOT NULL,
        windows BIGINT NOT NULL DEFAULT 0,
        lost_windows BIGINT NOT NULL DEFAULT 0,
        last_seen_unix_ns BIGINT NOT NULL,
        sensors BYTEA NOT NULL DEFAULT ''
    );
    CREATE TABLE instances (
        host_id BIGINT NOT NULL REFERENCES hosts ON DELETE CASCADE,
        instance TEXT NOT NULL,
        opened_unix_ns BIGINT NOT NULL,
        last_sequence BIGINT NOT NULL DEFAULT 0,
        PRIMARY KEY (host_id, instance)
    );
    CREATE TABLE tenants (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        host_id BIGINT NOT NULL REFERENCES hosts ON DELETE CASCADE,
        key TEXT NOT NULL,
        name TEXT NOT NULL,
        droplet_id TEXT NOT NULL,
        level BIGINT NOT NULL,
        verdict_since_unix_ns BIGINT NOT NULL,
        first_seen_unix_ns BIGINT NOT NULL,
        last_seen_unix_ns BIGINT NOT NULL,
        window_ns BIGINT NOT NULL,
        planned TEXT NOT NULL,
        history_entries BIGINT NOT NULL,
        current BYTEA NOT NULL,
        UNIQUE (host_id, key)
    );
    CREATE INDEX tenants_by_key ON tenants (key);
    CREATE INDEX tenants_by_name ON tenants (name);
    CREATE INDEX tenants_by_droplet_id ON tenants (droplet_id);
    CREATE INDEX tenants_by_last_seen ON tenants (last_seen_unix_ns);
    CREATE TABLE history (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant_id BIGINT NOT NULL REFERENCES tenants ON DELETE CASCADE,
        start_unix_ns BIGINT NOT NULL,
        end_unix_ns BIGINT NOT NULL,
        body BYTEA NOT NULL
    );
    CREATE INDEX history_by_tenant ON history (tenant_id, id);

    CREATE TABLE fleet (id BIGINT PRIMARY KEY CHECK (id = 1), body TEXT NOT NULL);
    CREATE TABLE accounts (account TEXT COLLATE \"C\" PRIMARY KEY, body TEXT NOT NULL, due_ms BIGINT);
    CREATE INDEX accounts_by_due ON accounts (due_ms) WHERE due_ms IS NOT NULL;
    CREATE TABLE cases (
        account TEXT COLLATE \"C\" NOT NULL,
        number BIGINT NOT NULL,
        opened_ms BIGINT NOT NULL,
        closed BOOLEAN NOT NULL,
        locked BOOLEAN NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (account, number)
    );
    CREATE INDEX cases_by_opened ON cases (closed, opened_ms);
    CREATE TABLE decisions (
        account TEXT COLLATE \"C\" NOT NULL,
        number BIGINT NOT NULL,
        input TEXT NOT NULL,
        plan TEXT NOT NULL,
        PRIMARY KEY (account, number)
    );
    CREATE TABLE reasons (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        account TEXT NOT NULL,
        number BIGINT NOT NULL,
        text TEXT NOT NULL
    );
    CREATE TABLE owners (droplet TEXT PRIMARY KEY, account TEXT NOT NULL);
    CREATE INDEX owners_by_account ON owners (account);
    CREATE TABLE policies (digest TEXT PRIMARY KEY, files TEXT NOT NULL);
    CREATE TABLE audit (number BIGINT PRIMARY KEY, account TEXT, note TEXT NOT NULL, hash TEXT NOT NULL);
    CREATE INDEX audit_by_account ON audit (account, number);
    CREATE TABLE audit_head (id BIGINT PRIMARY KEY CHECK (id = 1), number BIGINT NOT NULL, hash TEXT NOT NULL);

    CREATE FUNCTION davy_never() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION '% is never changed or removed', TG_TABLE_NAME; END $$;
    CREATE TRIGGER decisions_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON decisions EXECUTE FUNCTION davy_never();
    CREATE TRIGGER audit_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON audit EXECUTE FUNCTION davy_never();
", "
    -- The queue's order. Cases from before come first until they change: nobody's wait is hidden.
    ALTER TABLE cases ADD COLUMN settled BOOLEAN NOT NULL DEFAULT FALSE;
    ALTER TABLE cases ADD COLUMN waiting_ms BIGINT NOT NULL DEFAULT 0;
    DROP INDEX cases_by_opened;
    CREATE INDEX cases_by_rank ON cases (closed, settled, locked DESC, waiting_ms, opened_ms, account, number);
", "
    -- There from the first: a store without it has lost it.
    INSERT INTO fleet (id, body) VALUES (1, '{}') ON CONFLICT DO NOTHING;
"];

/// Brings the database to the newest schema.
///
/// # Errors
/// [`StoreError::Newer`], [`StoreError::Unusable`].
pub(super) async fn migrate(client: &mut Client, shown: &str) -> Result<(), StoreError> {
    let outcome = try_migrate(client, shown).await;
    outcome.map_err(|fault| match fault {
        Fault::Store(error) => error,
        fault => StoreError::Unusable {
            path: shown.to_owned(),
            why: fault.during("bringing its schema up to date").to_string(),
        },
    })
}

async fn try_migrate(client: &mut Client, shown: &str) -> Result<(), Fault> {
    let transaction = client.transaction().await?;
    // A migration takes as long as it takes, and whoever starts meanwhile waits for it.
    transaction
        .batch_execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        .await?;
    let encoding: String = transaction
        .query_one("SELECT current_setting('server_encoding')", &[])
        .await?
        .get(0);
    if encoding != "UTF8" {
        return Err(Fault::Store(StoreError::Unusable {
            path: shown.to_owned(),
            why: format!("its encoding is {encoding}; make one with ENCODING 'UTF8'"),
        }));
    }
    transaction
        .execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK])
        .await?;
    let ours: Option<String> = transaction
        .query_one("SELECT to_regclass('davy_schema')::text", &[])
        .await?
        .get(0);
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let found: i64 = if ours.is_some() {
        transaction
            .query_one("SELECT coalesce(max(version), 0) FROM davy_schema", &[])
            .await?
            .get(0)
    } else {
        let sql = "SELECT count(*) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
             WHERE relkind = 'r' AND nspname = current_schema()";
        let others: i64 = transaction.query_one(sql, &[]).await?.get(0);
        if others > 0 {
            return Err(Fault::Store(StoreError::Unusable {
                path: shown.to_owned(),
                why: "it has another program's tables; give Davy a database of its own".to_owned(),
            }));
        }
        0
    };
    if found > known {
        return Err(Fault::Store(StoreError::Newer {
            path: shown.to_owned(),
            found,
            known,
        }));
    }
    if found < known {
        let done = usize::try_from(found).unwrap_or(0);
        for migration in MIGRATIONS.iter().skip(done) {
            transaction.batch_execute(migration).await?;
        }
        transaction
            .batch_execute("CREATE TABLE IF NOT EXISTS davy_schema (version BIGINT NOT NULL)")
            .await?;
        transaction
            .execute("INSERT INTO davy_schema (version) VALUES ($1)", &[&known])
            .await?;
    }
    commit(transaction).await
}
