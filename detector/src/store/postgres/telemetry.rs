//! Hosts, tenants and their history in PostgreSQL: see [`crate::store`].
//!
//! Whoever changes a tenant or its history has its host's row locked; several hosts are locked in the order of their ids.
//!
//! The bound on the history of all tenants is kept in a transaction of its own, after a window is stored: it may be exceeded by a
//! thousandth, so that not every window pays for it. Several detectors count each what they store themselves, and all of it at
//! every [`Store::evict`]: in between the bound may be exceeded by what the others stored.

use std::sync::atomic::Ordering;

use davy_evidence::Level;
use davy_proto::v1;
use prost::Message;
use tokio_postgres::{GenericClient, Row, Transaction, types::ToSql};

use super::{Fault, Postgres, signed, transact, unsigned};
use crate::evidence::{FRESH_NS, Judged, Planned, Standing, level_of_rank, rank, since};
use crate::ingest::sequence::{Step, step};
use crate::metrics::TenantsByLevel;
use crate::store::{
    EVICT_TENANTS_MAX, Evicted, Host, INSTANCES_PER_HOST_MAX, Opened, ROWS_MAX, Record, Recorded,
    Store, StoreError, Tenant,
};

const TENANT_COLUMNS: &str = "hosts.name, current, first_seen_unix_ns, tenants.last_seen_unix_ns, verdict_since_unix_ns, \
     window_ns, planned";

/// Keys of advisory locks: "Dav1", "Dav2" in ASCII.
const HOSTS_LOCK: i64 = 0x4461_7631;
const HISTORY_LOCK: i64 = 0x4461_7632;
/// By which part of itself the bound on all history may be exceeded.
const HISTORY_SLACK: u64 = 1_000;

/// Rows of `history`.
pub(super) async fn count_history(client: &impl GenericClient) -> Result<i64, Fault> {
    let sql = "SELECT coalesce(sum(history_entries), 0)::bigint FROM tenants";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

/// Waits for a lock that holds until the transaction ends.
async fn lock(transaction: &Transaction<'_>, key: i64) -> Result<(), Fault> {
    let sql = "SELECT pg_advisory_xact_lock($1)";
    transaction.execute(sql, &[&key]).await?;
    Ok(())
}

/// Whether a text can be stored at all: PostgreSQL's have no NUL, and nothing that ingest takes has one.
fn is_storable(text: &str) -> bool {
    !text.contains('\0')
}

fn decoded<M: Message + Default>(row: &Row, column: usize) -> Result<M, Fault> {
    let bytes: &[u8] = row.get(column);
    M::decode(bytes).map_err(|error| {
        Fault::Store(StoreError::Failed {
            what: "reading a stored message",
            why: error.to_string(),
        })
    })
}

fn tenant(row: &Row) -> Result<Tenant, Fault> {
    let planned: &str = row.get(6);
    let planned = Planned::from_text(planned).ok_or_else(|| {
        Fault::Store(StoreError::Failed {
            what: "reading a plan",
            why: format!("there is no plan {planned:?}"),
        })
    })?;
    Ok(Tenant {
        host: row.get(0),
        current: decoded(row, 1)?,
        first_seen_unix_ns: unsigned(row.get(2)),
        last_seen_unix_ns: unsigned(row.get(3)),
        verdict_since_unix_ns: unsigned(row.get(4)),
        window_ns: unsigned(row.get(5)),
        planned,
    })
}

async fn open(
    transaction: &Transaction<'_>,
    hosts_max: u64,
    hello: &v1::Hello,
    now_unix_ns: u64,
) -> Result<Opened, Fault> {
    let now = signed(now_unix_ns);
    let sql = "SELECT id FROM hosts WHERE name = $1";
    if transaction.query_opt(sql, &[&hello.host]).await?.is_none() {
        // New hosts come one at a time: two must not both be the last that fits.
        lock(transaction, HOSTS_LOCK).await?;
    }
    if transaction.query_opt(sql, &[&hello.host]).await?.is_none() {
        let hosts: i64 = transaction
            .query_one("SELECT count(*) FROM hosts", &[])
            .await?
            .get(0);
        if unsigned(hosts) >= hosts_max {
            return Err(StoreError::TooManyHosts { hosts_max }.into());
        }
    }
    let host_id: i64 = transaction
        .query_one(
            "INSERT INTO hosts (name, instance, agent_version, kernel_release, last_seen_unix_ns) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (name) DO UPDATE SET instance = $2, agent_version = $3, kernel_release = $4, last_seen_unix_ns = $5
             RETURNING id",
            &[&hello.host, &hello.instance, &hello.agent_version, &hello.kernel_release, &now],
        )
        .await?
        .get(0);
    let last_sequence: i64 = transaction
        .query_one(
            "INSERT INTO instances (host_id, instance, opened_unix_ns) VALUES ($1, $2, $3)
             ON CONFLICT (host_id, instance) DO UPDATE SET opened_unix_ns = $3 RETURNING last_sequence",
            &[&host_id, &hello.instance, &now],
        )
        .await?
        .get(0);
    // This one first, whatever the times say: the detector's clock may have been set back since the others came.
    transaction
        .execute(
            "DELETE FROM instances WHERE host_id = $1 AND instance NOT IN
             (SELECT instance FROM instances WHERE host_id = $1 ORDER BY instance = $3 DESC, opened_unix_ns DESC LIMIT $2)",
            &[&host_id, &signed(INSTANCES_PER_HOST_MAX), &hello.instance],
        )
        .await?;
    let seen_since = signed(now_unix_ns.saturating_sub(FRESH_NS));
    let sql = "SELECT current FROM tenants WHERE host_id = $1 AND last_seen_unix_ns >= $2 ORDER BY key COLLATE \"C\"";
    let rows = transaction.query(sql, &[&host_id, &seen_since]).await?;
    let carried = (rows.iter())
        .map(|row| {
            let v1::TenantWindow { key, evidence, .. } = decoded(row, 0)?;
            Ok(v1::CarriedEvidence {
                tenant_key: key,
                evidence,
            })
        })
        .collect::<Result<_, Fault>>()?;
    Ok(Opened {
        last_sequence: unsigned(last_sequence),
        carried,
    })
}

/// The host's row and the instance's last settled sequence, locked.
async fn instance(
    transaction: &Transaction<'_>,
    host: &str,
    instance: &str,
) -> Result<(i64, u64), Fault> {
    let sql = "SELECT hosts.id, last_sequence FROM hosts JOIN instances ON host_id = hosts.id
         WHERE name = $1 AND instances.instance = $2 FOR UPDATE";
    let row = transaction.query_opt(sql, &[&host, &instance]).await?;
    let row = row.ok_or_else(|| StoreError::UnknownInstance {
        host: host.to_owned(),
        instance: instance.to_owned(),
    })?;
    Ok((row.get(0), unsigned(row.get(1))))
}

async fn set_sequence(
    transaction: &Transaction<'_>,
    host_id: i64,
    instance: &str,
    sequence: u64,
) -> Result<(), Fault> {
    let sql = "UPDATE instances SET last_sequence = $3 WHERE host_id = $1 AND instance = $2";
    transaction
        .execute(sql, &[&host_id, &instance, &signed(sequence)])
        .await?;
    Ok(())
}

/// What became of it, and by how much all history grew.
async fn record(
    transaction: &Transaction<'_>,
    limits: &crate::store::Limits,
    record: &Record,
) -> Result<(Recorded, i64), Fault> {
    let (host_id, last_sequence) = instance(transaction, &record.host, &record.instance).await?;
    let missing = match step(last_sequence, record.sequence, record.lost_windows) {
        Step::Next { missing } => missing,
        Step::Duplicate => return Ok((Recorded::Duplicate { last_sequence }, 0)),
        Step::Absurd => return Ok((Recorded::Absurd { last_sequence }, 0)),
    };
    set_sequence(transaction, host_id, &record.instance, record.sequence).await?;
    let sensors = v1::Window {
        sensors: record.sensors.clone(),
        ..v1::Window::default()
    }
    .encode_to_vec();
    transaction
        .execute(
            "UPDATE hosts SET windows = windows + 1, lost_windows = lost_windows + $2, last_seen_unix_ns = $3, sensors = $4
             WHERE id = $1",
            &[&host_id, &signed(missing), &signed(record.received_unix_ns), &sensors],
        )
        .await?;
    let mut pushed_out = 0;
    for tenant in &record.tenants {
        let per_tenant_max = limits.history_per_tenant_max;
        pushed_out += store_tenant(transaction, per_tenant_max, host_id, record, tenant).await?;
    }
    // Those of the window just stored last, even if the host's clock was set back.
    let sql = "DELETE FROM tenants WHERE id IN (SELECT id FROM tenants WHERE host_id = $1
             ORDER BY last_seen_unix_ns = $3 DESC, last_seen_unix_ns DESC, id DESC OFFSET $2) RETURNING history_entries";
    let (most, end) = (
        signed(limits.tenants_per_host_max),
        signed(record.end_unix_ns),
    );
    let removed = transaction.query(sql, &[&host_id, &most, &end]).await?;
    let went_along: i64 = removed.iter().map(|row| row.get::<_, i64>(0)).sum();
    let evicted = Evicted {
        history: pushed_out,
        tenants: u64::try_from(removed.len()).unwrap_or(u64::MAX),
        hosts: 0,
    };
    let stored = i64::try_from(record.tenants.len()).unwrap_or(i64::MAX);
    let grown = stored - signed(pushed_out) - went_along;
    Ok((Recorded::Stored { missing, evicted }, grown))
}

/// How many history entries its arrival pushed out.
async fn store_tenant(
    transaction: &Transaction<'_>,
    history_max: u64,
    host_id: i64,
    record: &Record,
    tenant: &Judged,
) -> Result<u64, Fault> {
    let Judged {
        window,
        level,
        planned,
        agent_agrees: _,
    } = tenant;
    let sql = "SELECT level, verdict_since_unix_ns, last_seen_unix_ns FROM tenants WHERE host_id = $1 AND key = $2";
    let before = transaction.query_opt(sql, &[&host_id, &window.key]).await?;
    let before = before.and_then(|row| {
        level_of_rank(row.get(0)).map(|level| Standing {
            level,
            since_unix_ns: unsigned(row.get(1)),
            last_seen_unix_ns: unsigned(row.get(2)),
        })
    });
    let verdict_since = since(before, *level, record.start_unix_ns, record.end_unix_ns);
    let blob = window.encode_to_vec();
    let row = transaction
        .query_one(
            "INSERT INTO tenants (host_id, key, name, droplet_id, level, verdict_since_unix_ns, first_seen_unix_ns,
                 last_seen_unix_ns, window_ns, planned, history_entries, current)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8, $9, 1, $10)
             ON CONFLICT (host_id, key) DO UPDATE SET name = $3, droplet_id = $4, level = $5, verdict_since_unix_ns = $6,
                 last_seen_unix_ns = $7, window_ns = $8, planned = $9, history_entries = tenants.history_entries + 1, current = $10
             RETURNING id, history_entries",
            &[
                &host_id,
                &window.key,
                &window.name,
                &window.droplet_id,
                &rank(*level),
                &signed(verdict_since),
                &signed(record.end_unix_ns),
                &signed(record.end_unix_ns - record.start_unix_ns),
                &planned.as_str(),
                &blob,
            ],
        )
        .await?;
    let (tenant_id, entries): (i64, u64) = (row.get(0), unsigned(row.get(1)));
    transaction
        .execute(
            "INSERT INTO history (tenant_id, start_unix_ns, end_unix_ns, body) VALUES ($1, $2, $3, $4)",
            &[&tenant_id, &signed(record.start_unix_ns), &signed(record.end_unix_ns), &blob],
        )
        .await?;
    let excess = entries.saturating_sub(history_max);
    if excess == 0 {
        return Ok(0);
    }
    let sql = "DELETE FROM history WHERE id IN (SELECT id FROM history WHERE tenant_id = $1 ORDER BY id LIMIT $2)";
    let removed = transaction
        .execute(sql, &[&tenant_id, &signed(excess)])
        .await?;
    let sql = "UPDATE tenants SET history_entries = history_entries - $2 WHERE id = $1";
    transaction
        .execute(sql, &[&tenant_id, &signed(removed)])
        .await?;
    Ok(removed)
}

async fn evict(
    transaction: &Transaction<'_>,
    retention_ns: u64,
    now_unix_ns: u64,
) -> Result<Evicted, Fault> {
    let unseen_since = signed(now_unix_ns.saturating_sub(retention_ns));
    // One that is seen meanwhile is looked at again once its host is locked, and stays.
    let sql = "SELECT id FROM hosts WHERE last_seen_unix_ns < $1 OR id IN
             (SELECT host_id FROM tenants WHERE last_seen_unix_ns < $1 ORDER BY last_seen_unix_ns LIMIT $2)
         ORDER BY id FOR UPDATE";
    let most = signed(EVICT_TENANTS_MAX);
    let locked = transaction.query(sql, &[&unseen_since, &most]).await?;
    let locked: Vec<i64> = locked.iter().map(|row| row.get(0)).collect();
    let sql = "DELETE FROM tenants WHERE id IN (SELECT id FROM tenants
             WHERE last_seen_unix_ns < $1 AND host_id = ANY ($3) ORDER BY last_seen_unix_ns LIMIT $2)";
    let tenants = transaction
        .execute(sql, &[&unseen_since, &most, &locked])
        .await?;
    let sql = "DELETE FROM hosts WHERE last_seen_unix_ns < $1 AND id = ANY ($2)
         AND NOT EXISTS (SELECT 1 FROM tenants WHERE host_id = hosts.id)";
    let hosts = transaction.execute(sql, &[&unseen_since, &locked]).await?;
    Ok(Evicted {
        history: 0,
        tenants,
        hosts,
    })
}

/// Removes the earliest stored entries of all tenants that are above `most`. Returns how many there were, and how many are left.
async fn trim(transaction: &Transaction<'_>, most: u64) -> Result<(u64, i64), Fault> {
    // One at a time, and counted then: two must not remove the same excess twice.
    lock(transaction, HISTORY_LOCK).await?;
    let counted = count_history(transaction).await?;
    let excess = unsigned(counted).saturating_sub(most);
    if excess == 0 {
        return Ok((0, counted));
    }
    let excess = signed(excess);
    let sql = "SELECT id FROM hosts WHERE id IN (SELECT host_id FROM tenants WHERE id IN
             (SELECT tenant_id FROM history ORDER BY history.id LIMIT $1)) ORDER BY id FOR UPDATE";
    let locked = transaction.query(sql, &[&excess]).await?;
    let locked: Vec<i64> = locked.iter().map(|row| row.get(0)).collect();
    let sql = "WITH gone AS (DELETE FROM history WHERE id IN (SELECT id FROM history ORDER BY id LIMIT $1)
                 AND tenant_id IN (SELECT id FROM tenants WHERE host_id = ANY ($2)) RETURNING tenant_id),
             counted AS (SELECT tenant_id, count(*) AS entries FROM gone GROUP BY tenant_id),
             noted AS (UPDATE tenants SET history_entries = history_entries - entries FROM counted WHERE tenants.id = tenant_id)
         SELECT count(*) FROM gone";
    let removed: i64 = (transaction.query_one(sql, &[&excess, &locked]).await?).get(0);
    Ok((unsigned(removed), counted - removed))
}

impl Postgres {
    async fn tenants_where(
        &self,
        what: &'static str,
        condition: &str,
        (host, text): (&str, &str),
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Tenant>, StoreError> {
        if !is_storable(host) || !is_storable(text) {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT {TENANT_COLUMNS} FROM tenants JOIN hosts ON hosts.id = host_id
             WHERE ($1 = '' OR hosts.name = $1) AND {condition} ORDER BY hosts.name COLLATE \"C\", key COLLATE \"C\" LIMIT $3"
        );
        let rows = self.select(&sql, params).await;
        let found = rows.and_then(|rows| rows.iter().map(tenant).collect());
        found.map_err(|fault| fault.during(what))
    }

    /// Keeps the bound on all history, as far as this detector has counted; how many entries that removed.
    async fn bound_history(&self) -> u64 {
        let most = self.limits.history_total_max;
        let excess = unsigned(self.history_entries.load(Ordering::Relaxed)).saturating_sub(most);
        if excess <= most / HISTORY_SLACK {
            return 0;
        }
        let trimmed = transact!(self, |transaction| trim(&transaction, most).await);
        match trimmed {
            Ok((removed, left)) => {
                self.history_entries.store(left, Ordering::Relaxed);
                removed
            }
            Err(fault) => {
                let error = fault.during("removing the earliest history");
                tracing::warn!(%error, "the bound on history is exceeded until the next window");
                0
            }
        }
    }
}

#[tonic::async_trait]
impl Store for Postgres {
    async fn open(&self, hello: v1::Hello, now_unix_ns: u64) -> Result<Opened, StoreError> {
        let opened = transact!(self, |transaction| {
            open(&transaction, self.limits.hosts_max, &hello, now_unix_ns).await
        });
        opened.map_err(|fault| fault.during("noting an agent's connection"))
    }

    async fn record(&self, window: Record) -> Result<Recorded, StoreError> {
        let done = transact!(self, |transaction| {
            record(&transaction, &self.limits, &window).await
        });
        let (mut recorded, grown) = done.map_err(|fault| fault.during("storing a window"))?;
        self.history_entries.fetch_add(grown, Ordering::Relaxed);
        if let Recorded::Stored { evicted, .. } = &mut recorded {
            evicted.history += self.bound_history().await;
        }
        Ok(recorded)
    }

    async fn settle(
        &self,
        host: String,
        name: String,
        sequence: u64,
        lost_windows: u64,
    ) -> Result<u64, StoreError> {
        let settled = transact!(self, |transaction| {
            settle(&transaction, &host, &name, sequence, lost_windows).await
        });
        settled.map_err(|fault| fault.during("noting a rejected window"))
    }

    async fn evict(&self, now_unix_ns: u64) -> Result<Evicted, StoreError> {
        let what = "removing what is old";
        let evicted = transact!(self, |transaction| {
            evict(&transaction, self.limits.retention_ns, now_unix_ns).await
        });
        let mut evicted = evicted.map_err(|fault| fault.during(what))?;
        let most = self.limits.history_total_max;
        let trimmed = transact!(self, |transaction| trim(&transaction, most).await);
        let (removed, left) = trimmed.map_err(|fault| fault.during(what))?;
        self.history_entries.store(left, Ordering::Relaxed);
        evicted.history = removed;
        Ok(evicted)
    }

    async fn tenants(&self, host: String, at_least_rank: i64) -> Result<Vec<Tenant>, StoreError> {
        let params = (at_least_rank, signed(ROWS_MAX + 1));
        let found = self
            .tenants_where(
                "listing tenants",
                "level >= $2",
                (&host, ""),
                &[&host, &params.0, &params.1],
            )
            .await?;
        if u64::try_from(found.len()).unwrap_or(u64::MAX) > ROWS_MAX {
            return Err(StoreError::TooMany { rows_max: ROWS_MAX });
        }
        Ok(found)
    }

    async fn find(
        &self,
        host: String,
        text: String,
        rows_max: u64,
    ) -> Result<Vec<Tenant>, StoreError> {
        for condition in [
            "key = $2",
            "$2 <> '' AND (tenants.name = $2 OR droplet_id = $2)",
        ] {
            let params = signed(rows_max);
            let found = self
                .tenants_where(
                    "finding a tenant",
                    condition,
                    (&host, &text),
                    &[&host, &text, &params],
                )
                .await?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    async fn history(
        &self,
        host: String,
        key: String,
        rows_max: u64,
    ) -> Result<Vec<v1::HistoryEntry>, StoreError> {
        if !is_storable(&host) || !is_storable(&key) {
            return Ok(Vec::new());
        }
        let sql = "SELECT start_unix_ns, end_unix_ns, body FROM history WHERE tenant_id =
                 (SELECT tenants.id FROM tenants JOIN hosts ON hosts.id = host_id WHERE hosts.name = $1 AND key = $2)
             ORDER BY id DESC LIMIT $3";
        let rows = (self.select(sql, &[&host, &key, &signed(rows_max)])).await;
        let entry = |row: &Row| {
            Ok(v1::HistoryEntry {
                start_unix_ns: unsigned(row.get(0)),
                end_unix_ns: unsigned(row.get(1)),
                window: Some(decoded(row, 2)?),
            })
        };
        let found: Result<_, Fault> = rows.and_then(|rows| rows.iter().map(entry).collect());
        found.map_err(|fault| fault.during("reading history"))
    }

    async fn hosts(&self) -> Result<Vec<Host>, StoreError> {
        let sql = "SELECT name, hosts.instance, coalesce(last_sequence, 0), windows, lost_windows, last_seen_unix_ns,
                 agent_version, kernel_release, sensors
             FROM hosts LEFT JOIN instances ON host_id = id AND instances.instance = hosts.instance ORDER BY name COLLATE \"C\"";
        let rows = self.select(sql, &[]).await;
        let found = rows.and_then(|rows| rows.iter().map(host).collect());
        found.map_err(|fault| fault.during("listing hosts"))
    }

    async fn tenants_by_level(
        &self,
        seen_since_unix_ns: u64,
    ) -> Result<TenantsByLevel, StoreError> {
        let sql =
            "SELECT level, count(*) FROM tenants WHERE last_seen_unix_ns >= $1 GROUP BY level";
        let rows = self.select(sql, &[&signed(seen_since_unix_ns)]).await;
        let mut counts = TenantsByLevel::default();
        for row in rows.map_err(|fault| fault.during("counting tenants"))? {
            let count = unsigned(row.get(1));
            match level_of_rank(row.get(0)) {
                Some(Level::Quiet) => counts.quiet = count,
                Some(Level::Suspect) => counts.suspect = count,
                Some(Level::Mining) => counts.mining = count,
                None => {}
            }
        }
        Ok(counts)
    }
}

fn host(row: &Row) -> Result<Host, Fault> {
    Ok(Host {
        name: row.get(0),
        instance: row.get(1),
        last_sequence: unsigned(row.get(2)),
        windows: unsigned(row.get(3)),
        lost_windows: unsigned(row.get(4)),
        last_seen_unix_ns: unsigned(row.get(5)),
        agent_version: row.get(6),
        kernel_release: row.get(7),
        sensors: decoded::<v1::Window>(row, 8)?.sensors,
    })
}

async fn settle(
    transaction: &Transaction<'_>,
    host: &str,
    name: &str,
    sequence: u64,
    lost_windows: u64,
) -> Result<u64, Fault> {
    let (host_id, last) = instance(transaction, host, name).await?;
    // What was missing before a rejected window is lost as it would be before a stored one.
    let Step::Next { missing } = step(last, sequence, lost_windows) else {
        return Ok(0);
    };
    set_sequence(transaction, host_id, name, sequence).await?;
    let sql = "UPDATE hosts SET lost_windows = lost_windows + $2 WHERE id = $1";
    transaction
        .execute(sql, &[&host_id, &signed(missing)])
        .await?;
    Ok(missing)
}
