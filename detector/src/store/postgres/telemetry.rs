//! Hosts, tenants and their history in PostgreSQL: see [`crate::store`].
//!
//! The bound on the history of all tenants is kept by [`Store::evict`], so it may be exceeded for as long as that does not run.

use davy_evidence::Level;
use davy_proto::v1;
use prost::Message;
use tokio_postgres::{Row, Transaction};

use super::{Fault, Postgres, signed, unsigned};
use crate::evidence::{FRESH_NS, Judged, Planned, Standing, level_of_rank, rank, since};
use crate::ingest::sequence::{Step, step};
use crate::metrics::TenantsByLevel;
use crate::store::{
    EVICT_TENANTS_MAX, Evicted, Host, INSTANCES_PER_HOST_MAX, Opened, ROWS_MAX, Record, Recorded,
    Store, StoreError, Tenant,
};

const TENANT_COLUMNS: &str = "hosts.name, current, first_seen_unix_ns, tenants.last_seen_unix_ns, verdict_since_unix_ns, \
     window_ns, planned";

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
    let known = transaction
        .query_opt("SELECT id FROM hosts WHERE name = $1", &[&hello.host])
        .await?;
    if known.is_none() {
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

async fn record(
    transaction: &Transaction<'_>,
    limits: &crate::store::Limits,
    record: &Record,
) -> Result<Recorded, Fault> {
    let (host_id, last_sequence) = instance(transaction, &record.host, &record.instance).await?;
    let missing = match step(last_sequence, record.sequence, record.lost_windows) {
        Step::Next { missing } => missing,
        Step::Duplicate => return Ok(Recorded::Duplicate { last_sequence }),
        Step::Absurd => return Ok(Recorded::Absurd { last_sequence }),
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
    let mut evicted = Evicted::default();
    for tenant in &record.tenants {
        let removed = store_tenant(
            transaction,
            limits.history_per_tenant_max,
            host_id,
            record,
            tenant,
        )
        .await?;
        evicted.history += removed;
    }
    // Those of the window just stored last, even if the host's clock was set back.
    let sql = "DELETE FROM tenants WHERE id IN (SELECT id FROM tenants WHERE host_id = $1
             ORDER BY last_seen_unix_ns = $3 DESC, last_seen_unix_ns DESC, id DESC OFFSET $2)";
    let params = (
        signed(limits.tenants_per_host_max),
        signed(record.end_unix_ns),
    );
    evicted.tenants = transaction
        .execute(sql, &[&host_id, &params.0, &params.1])
        .await?;
    Ok(Recorded::Stored { missing, evicted })
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
    limits: &crate::store::Limits,
    now_unix_ns: u64,
) -> Result<Evicted, Fault> {
    let unseen_since = signed(now_unix_ns.saturating_sub(limits.retention_ns));
    let sql = "DELETE FROM tenants WHERE id IN (SELECT id FROM tenants WHERE last_seen_unix_ns < $1
             ORDER BY last_seen_unix_ns LIMIT $2)";
    let tenants = transaction
        .execute(sql, &[&unseen_since, &signed(EVICT_TENANTS_MAX)])
        .await?;
    let sql = "DELETE FROM hosts WHERE last_seen_unix_ns < $1 AND NOT EXISTS (SELECT 1 FROM tenants WHERE host_id = hosts.id)";
    let hosts = transaction.execute(sql, &[&unseen_since]).await?;
    let sql = "SELECT coalesce(sum(history_entries), 0)::bigint FROM tenants";
    let entries = unsigned(transaction.query_one(sql, &[]).await?.get(0));
    let excess = entries.saturating_sub(limits.history_total_max);
    let history = if excess == 0 {
        0
    } else {
        let sql = "WITH gone AS (DELETE FROM history WHERE id IN (SELECT id FROM history ORDER BY id LIMIT $1) RETURNING tenant_id),
                 counted AS (SELECT tenant_id, count(*) AS entries FROM gone GROUP BY tenant_id)
             UPDATE tenants SET history_entries = history_entries - entries FROM counted WHERE tenants.id = tenant_id";
        transaction.execute(sql, &[&signed(excess)]).await?;
        excess
    };
    Ok(Evicted {
        history,
        tenants,
        hosts,
    })
}

impl Postgres {
    async fn tenants_where(
        &self,
        what: &'static str,
        condition: &str,
        params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<Tenant>, StoreError> {
        let sql = format!(
            "SELECT {TENANT_COLUMNS} FROM tenants JOIN hosts ON hosts.id = host_id
             WHERE ($1 = '' OR hosts.name = $1) AND {condition} ORDER BY hosts.name COLLATE \"C\", key COLLATE \"C\" LIMIT $3"
        );
        let found = async {
            let client = self.pool.get().await?;
            let rows = client.query(&sql, params).await?;
            rows.iter().map(tenant).collect::<Result<Vec<_>, Fault>>()
        };
        found.await.map_err(|fault| fault.during(what))
    }
}

/// Runs `work` in a transaction.
macro_rules! transact {
    ($store:expr, $what:expr, |$transaction:ident| $work:expr) => {{
        let done = async {
            let mut client = $store.pool.get().await?;
            let $transaction = client.transaction().await?;
            let value = $work?;
            $transaction.commit().await?;
            Ok(value)
        };
        done.await.map_err(|fault: Fault| fault.during($what))
    }};
}

#[tonic::async_trait]
impl Store for Postgres {
    async fn open(&self, hello: v1::Hello, now_unix_ns: u64) -> Result<Opened, StoreError> {
        transact!(self, "noting an agent's connection", |transaction| {
            open(&transaction, self.limits.hosts_max, &hello, now_unix_ns).await
        })
    }

    async fn record(&self, window: Record) -> Result<Recorded, StoreError> {
        transact!(self, "storing a window", |transaction| {
            record(&transaction, &self.limits, &window).await
        })
    }

    async fn settle(
        &self,
        host: String,
        name: String,
        sequence: u64,
        lost_windows: u64,
    ) -> Result<u64, StoreError> {
        transact!(self, "noting a rejected window", |transaction| {
            settle(&transaction, &host, &name, sequence, lost_windows).await
        })
    }

    async fn evict(&self, now_unix_ns: u64) -> Result<Evicted, StoreError> {
        transact!(self, "removing what is old", |transaction| {
            evict(&transaction, &self.limits, now_unix_ns).await
        })
    }

    async fn tenants(&self, host: String, at_least_rank: i64) -> Result<Vec<Tenant>, StoreError> {
        let params = (at_least_rank, signed(ROWS_MAX + 1));
        let found = self
            .tenants_where(
                "listing tenants",
                "level >= $2",
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
                .tenants_where("finding a tenant", condition, &[&host, &text, &params])
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
        let found = async {
            let client = self.pool.get().await?;
            let sql = "SELECT start_unix_ns, end_unix_ns, body FROM history WHERE tenant_id =
                     (SELECT tenants.id FROM tenants JOIN hosts ON hosts.id = host_id WHERE hosts.name = $1 AND key = $2)
                 ORDER BY id DESC LIMIT $3";
            let rows = client.query(sql, &[&host, &key, &signed(rows_max)]).await?;
            (rows.iter())
                .map(|row| {
                    Ok(v1::HistoryEntry {
                        start_unix_ns: unsigned(row.get(0)),
                        end_unix_ns: unsigned(row.get(1)),
                        window: Some(decoded(row, 2)?),
                    })
                })
                .collect::<Result<Vec<_>, Fault>>()
        };
        found.await.map_err(|fault| fault.during("reading history"))
    }

    async fn hosts(&self) -> Result<Vec<Host>, StoreError> {
        let found = async {
            let client = self.pool.get().await?;
            let sql = "SELECT name, hosts.instance, coalesce(last_sequence, 0), windows, lost_windows, last_seen_unix_ns,
                     agent_version, kernel_release, sensors
                 FROM hosts LEFT JOIN instances ON host_id = id AND instances.instance = hosts.instance ORDER BY name COLLATE \"C\"";
            let rows = client.query(sql, &[]).await?;
            (rows.iter())
                .map(|row| {
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
                })
                .collect::<Result<Vec<_>, Fault>>()
        };
        found.await.map_err(|fault| fault.during("listing hosts"))
    }

    async fn tenants_by_level(
        &self,
        seen_since_unix_ns: u64,
    ) -> Result<TenantsByLevel, StoreError> {
        let found = async {
            let client = self.pool.get().await?;
            let sql =
                "SELECT level, count(*) FROM tenants WHERE last_seen_unix_ns >= $1 GROUP BY level";
            let mut counts = TenantsByLevel::default();
            for row in client.query(sql, &[&signed(seen_since_unix_ns)]).await? {
                let count = unsigned(row.get(1));
                match level_of_rank(row.get(0)) {
                    Some(Level::Quiet) => counts.quiet = count,
                    Some(Level::Suspect) => counts.suspect = count,
                    Some(Level::Mining) => counts.mining = count,
                    None => {}
                }
            }
            Ok(counts)
        };
        found
            .await
            .map_err(|fault: Fault| fault.during("counting tenants"))
    }
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
