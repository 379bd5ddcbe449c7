//! What changes the database, within a transaction that the caller begins and commits.

use std::collections::HashMap;

use davy_proto::v1;
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use super::read;
use crate::evidence::{FRESH_NS, Judged, Standing, level_of_rank, rank, since};
use crate::ingest::sequence::{Step, step};
use crate::store::ledger::rows::BadRecord;
use crate::store::{
    EVICT_TENANTS_MAX, Evicted, INSTANCES_PER_HOST_MAX, Limits, Opened, Record, Recorded,
    StoreError,
};

/// An error within a transaction: SQLite's, or the store's own.
#[derive(Debug)]
pub(super) enum Fault {
    Sql(rusqlite::Error),
    Store(StoreError),
    Record(BadRecord),
}

impl From<BadRecord> for Fault {
    fn from(error: BadRecord) -> Self {
        Self::Record(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl Fault {
    /// As the store's error; `what` is the operation.
    pub(super) fn during(self, what: &'static str) -> StoreError {
        match self {
            Self::Sql(error) => StoreError::Failed {
                what,
                why: advised(&error),
            },
            Self::Store(error) => error,
            Self::Record(error) => StoreError::Failed {
                what,
                why: error.to_string(),
            },
        }
    }
}

/// SQLite's words, and what to do where that is known.
pub(super) fn advised(error: &rusqlite::Error) -> String {
    use rusqlite::ErrorCode::{DiskFull, ReadOnly};
    match error.sqlite_error_code() {
        Some(DiskFull) => {
            format!("{error}; nothing of it was kept: make room on the disk, and try again")
        }
        Some(ReadOnly) => {
            format!(
                "{error}; nothing of it was kept: let the detector write the file and its directory, and try again"
            )
        }
        _ => error.to_string(),
    }
}

/// SQLite's integers are signed. What is stored is checked to fit before; anything else saturates.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The inverse of [`signed`].
pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The writer's bounds, and the one figure that is too dear to count each time.
pub(super) struct Bounds {
    pub(super) limits: Limits,
    /// Rows of `history`.
    pub(super) history_entries: u64,
}

pub(super) fn count_history(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row(
        "SELECT coalesce(sum(history_entries), 0) FROM tenants",
        [],
        |row| row.get(0).map(unsigned),
    )
}

pub(super) fn open(
    connection: &Connection,
    limits: &Limits,
    hello: &v1::Hello,
    now_unix_ns: u64,
) -> Result<Opened, Fault> {
    let now = signed(now_unix_ns);
    let known: Option<i64> = connection
        .prepare_cached("SELECT id FROM hosts WHERE name = ?1")?
        .query_row([&hello.host], |row| row.get(0))
        .optional()?;
    if known.is_none() {
        let hosts: u64 = connection.query_row("SELECT count(*) FROM hosts", [], |row| {
            row.get(0).map(unsigned)
        })?;
        if hosts >= limits.hosts_max {
            return Err(Fault::Store(StoreError::TooManyHosts {
                hosts_max: limits.hosts_max,
            }));
        }
    }
    let host_id: i64 = connection
        .prepare_cached(
            "INSERT INTO hosts (name, instance, agent_version, kernel_release, last_seen_unix_ns) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (name) DO UPDATE SET instance = ?2, agent_version = ?3, kernel_release = ?4, last_seen_unix_ns = ?5
             RETURNING id",
        )?
        .query_row(params![hello.host, hello.instance, hello.agent_version, hello.kernel_release, now], |row| {
            row.get(0)
        })?;
    let last_sequence: i64 = connection
        .prepare_cached(
            "INSERT INTO instances (host_id, instance, opened_unix_ns) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET opened_unix_ns = ?3 RETURNING last_sequence",
        )?
        .query_row(params![host_id, hello.instance, now], |row| row.get(0))?;
    // This one first, whatever the times say: the detector's clock may have been set back since the others came.
    connection
        .prepare_cached(
            "DELETE FROM instances WHERE host_id = ?1 AND instance NOT IN
             (SELECT instance FROM instances WHERE host_id = ?1 ORDER BY instance = ?3 DESC, opened_unix_ns DESC LIMIT ?2)",
        )?
        .execute(params![host_id, signed(INSTANCES_PER_HOST_MAX), hello.instance])?;
    let carried = read::carried(connection, host_id, now_unix_ns.saturating_sub(FRESH_NS))?;
    Ok(Opened {
        last_sequence: unsigned(last_sequence),
        carried,
    })
}

/// The host's row and the instance's last settled sequence.
fn instance(connection: &Connection, host: &str, instance: &str) -> Result<(i64, u64), Fault> {
    connection
        .prepare_cached(
            "SELECT hosts.id, last_sequence FROM hosts JOIN instances ON host_id = hosts.id
             WHERE name = ?1 AND instances.instance = ?2",
        )?
        .query_row([host, instance], |row| {
            Ok((row.get(0)?, row.get(1).map(unsigned)?))
        })
        .optional()?
        .ok_or_else(|| {
            Fault::Store(StoreError::UnknownInstance {
                host: host.to_owned(),
                instance: instance.to_owned(),
            })
        })
}

fn set_sequence(
    connection: &Connection,
    host_id: i64,
    instance: &str,
    sequence: u64,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "UPDATE instances SET last_sequence = ?3 WHERE host_id = ?1 AND instance = ?2",
        )?
        .execute(params![host_id, instance, signed(sequence)])
        .map(drop)
}

pub(super) fn settle(
    connection: &Connection,
    host: &str,
    name: &str,
    sequence: u64,
    lost_windows: u64,
) -> Result<u64, Fault> {
    let (host_id, last) = instance(connection, host, name)?;
    // What was missing before a rejected window is lost as it would be before a stored one.
    let Step::Next { missing } = step(last, sequence, lost_windows) else {
        return Ok(0);
    };
    set_sequence(connection, host_id, name, sequence)?;
    connection
        .prepare_cached("UPDATE hosts SET lost_windows = lost_windows + ?2 WHERE id = ?1")?
        .execute(params![host_id, signed(missing)])?;
    Ok(missing)
}

pub(super) fn record(
    connection: &Connection,
    bounds: &mut Bounds,
    record: &Record,
) -> Result<Recorded, Fault> {
    let (host_id, last_sequence) = instance(connection, &record.host, &record.instance)?;
    let missing = match step(last_sequence, record.sequence, record.lost_windows) {
        Step::Next { missing } => missing,
        Step::Duplicate => return Ok(Recorded::Duplicate { last_sequence }),
        Step::Absurd => return Ok(Recorded::Absurd { last_sequence }),
    };
    set_sequence(connection, host_id, &record.instance, record.sequence)?;
    let sensors = v1::Window {
        sensors: record.sensors.clone(),
        ..v1::Window::default()
    }
    .encode_to_vec();
    connection
        .prepare_cached(
            "UPDATE hosts SET windows = windows + 1, lost_windows = lost_windows + ?2, last_seen_unix_ns = ?3, sensors = ?4
             WHERE id = ?1",
        )?
        .execute(params![host_id, signed(missing), signed(record.received_unix_ns), sensors])?;
    let mut evicted = Evicted::default();
    for tenant in &record.tenants {
        evicted += store_tenant(connection, bounds, host_id, record, tenant)?;
    }
    evicted += bound_tenants(connection, bounds, host_id, record.end_unix_ns)?;
    evicted += bound_history(connection, bounds)?;
    Ok(Recorded::Stored { missing, evicted })
}

fn store_tenant(
    connection: &Connection,
    bounds: &mut Bounds,
    host_id: i64,
    record: &Record,
    tenant: &Judged,
) -> Result<Evicted, Fault> {
    let Judged {
        window,
        level,
        planned,
        agent_agrees: _,
    } = tenant;
    let before: Option<Standing> = connection
        .prepare_cached(
            "SELECT level, verdict_since_unix_ns, last_seen_unix_ns FROM tenants WHERE host_id = ?1 AND key = ?2",
        )?
        .query_row(params![host_id, window.key], |row| {
            let (level, since, seen): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(level_of_rank(level).map(|level| Standing {
                level,
                since_unix_ns: unsigned(since),
                last_seen_unix_ns: unsigned(seen),
            }))
        })
        .optional()?
        .flatten();
    let verdict_since = since(before, *level, record.start_unix_ns, record.end_unix_ns);
    let blob = window.encode_to_vec();
    let (tenant_id, entries): (i64, u64) = connection
        .prepare_cached(
            "INSERT INTO tenants (host_id, key, name, droplet_id, level, verdict_since_unix_ns, first_seen_unix_ns,
                 last_seen_unix_ns, window_ns, planned, history_entries, current)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9, 1, ?10)
             ON CONFLICT (host_id, key) DO UPDATE SET name = ?3, droplet_id = ?4, level = ?5, verdict_since_unix_ns = ?6,
                 last_seen_unix_ns = ?7, window_ns = ?8, planned = ?9, history_entries = history_entries + 1, current = ?10
             RETURNING id, history_entries",
        )?
        .query_row(
            params![
                host_id,
                window.key,
                window.name,
                window.droplet_id,
                rank(*level),
                signed(verdict_since),
                signed(record.end_unix_ns),
                signed(record.end_unix_ns - record.start_unix_ns),
                planned.as_str(),
                blob
            ],
            |row| Ok((row.get(0)?, row.get(1).map(unsigned)?)),
        )?;
    connection
        .prepare_cached("INSERT INTO history (tenant_id, start_unix_ns, end_unix_ns, window) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![tenant_id, signed(record.start_unix_ns), signed(record.end_unix_ns), blob])?;
    bounds.history_entries += 1;
    let excess = entries.saturating_sub(bounds.limits.history_per_tenant_max);
    if excess == 0 {
        return Ok(Evicted::default());
    }
    // In the order of arrival: after a clock was set back, the newest windows have the earliest ends.
    let removed = connection
        .prepare_cached(
            "DELETE FROM history WHERE id IN
             (SELECT id FROM history WHERE tenant_id = ?1 ORDER BY id LIMIT ?2)",
        )?
        .execute(params![tenant_id, signed(excess)])?;
    let removed = u64::try_from(removed).unwrap_or(u64::MAX);
    connection
        .prepare_cached("UPDATE tenants SET history_entries = history_entries - ?2 WHERE id = ?1")?
        .execute(params![tenant_id, signed(removed)])?;
    bounds.history_entries = bounds.history_entries.saturating_sub(removed);
    Ok(Evicted {
        history: removed,
        ..Evicted::default()
    })
}

/// Removes tenants with their history; returns how many there were.
fn remove_tenants(
    connection: &Connection,
    bounds: &mut Bounds,
    ids: &[i64],
) -> rusqlite::Result<u64> {
    let mut remove =
        connection.prepare_cached("DELETE FROM tenants WHERE id = ?1 RETURNING history_entries")?;
    for id in ids {
        let entries: u64 = remove.query_row([id], |row| row.get(0).map(unsigned))?;
        bounds.history_entries = bounds.history_entries.saturating_sub(entries);
    }
    Ok(u64::try_from(ids.len()).unwrap_or(u64::MAX))
}

fn bound_tenants(
    connection: &Connection,
    bounds: &mut Bounds,
    host_id: i64,
    end_unix_ns: u64,
) -> rusqlite::Result<Evicted> {
    let tenants: u64 = connection
        .prepare_cached("SELECT count(*) FROM tenants WHERE host_id = ?1")?
        .query_row([host_id], |row| row.get(0).map(unsigned))?;
    let excess = tenants.saturating_sub(bounds.limits.tenants_per_host_max);
    if excess == 0 {
        return Ok(Evicted::default());
    }
    // Those of the window just stored last, even if the host's clock was set back.
    let ids = connection
        .prepare_cached(
            "SELECT id FROM tenants WHERE host_id = ?1 ORDER BY last_seen_unix_ns = ?3, last_seen_unix_ns, id LIMIT ?2",
        )?
        .query_map(params![host_id, signed(excess), signed(end_unix_ns)], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    Ok(Evicted {
        tenants: remove_tenants(connection, bounds, &ids)?,
        ..Evicted::default()
    })
}

fn bound_history(connection: &Connection, bounds: &mut Bounds) -> rusqlite::Result<Evicted> {
    let excess = bounds
        .history_entries
        .saturating_sub(bounds.limits.history_total_max);
    if excess == 0 {
        return Ok(Evicted::default());
    }
    let mut by_tenant: HashMap<i64, u64> = HashMap::new();
    let mut remove = connection.prepare_cached(
        "DELETE FROM history WHERE id IN (SELECT id FROM history ORDER BY id LIMIT ?1) RETURNING tenant_id",
    )?;
    for tenant_id in remove.query_map([signed(excess)], |row| row.get(0))? {
        *by_tenant.entry(tenant_id?).or_default() += 1;
    }
    let mut update = connection.prepare_cached(
        "UPDATE tenants SET history_entries = history_entries - ?2 WHERE id = ?1",
    )?;
    let mut removed = 0;
    for (tenant_id, entries) in by_tenant {
        update.execute(params![tenant_id, signed(entries)])?;
        removed += entries;
    }
    bounds.history_entries = bounds.history_entries.saturating_sub(removed);
    Ok(Evicted {
        history: removed,
        ..Evicted::default()
    })
}

pub(super) fn evict(
    connection: &Connection,
    bounds: &mut Bounds,
    now_unix_ns: u64,
) -> Result<Evicted, Fault> {
    let unseen_since = signed(now_unix_ns.saturating_sub(bounds.limits.retention_ns));
    let ids = connection
        .prepare_cached("SELECT id FROM tenants WHERE last_seen_unix_ns < ?1 ORDER BY last_seen_unix_ns LIMIT ?2")?
        .query_map(params![unseen_since, signed(EVICT_TENANTS_MAX)], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    let tenants = remove_tenants(connection, bounds, &ids)?;
    let hosts = connection
        .prepare_cached(
            "DELETE FROM hosts WHERE last_seen_unix_ns < ?1 AND NOT EXISTS (SELECT 1 FROM tenants WHERE host_id = hosts.id)",
        )?
        .execute([unseen_since])?;
    Ok(Evicted {
        history: 0,
        tenants,
        hosts: u64::try_from(hosts).unwrap_or(u64::MAX),
    })
}
