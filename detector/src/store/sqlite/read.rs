//! What only reads the database.

use davy_proto::v1;
use prost::Message;
use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};

use super::write::{Fault, signed, unsigned};
use crate::evidence::{Planned, rank};
use crate::metrics::TenantsByLevel;
use crate::store::{Host, StoreError, Tenant};
use davy_evidence::Level;

const TENANT_COLUMNS: &str = "hosts.name, current, first_seen_unix_ns, tenants.last_seen_unix_ns, verdict_since_unix_ns, \
     window_ns, planned";

fn decoded<M: Message + Default>(row: &Row<'_>, column: usize) -> rusqlite::Result<M> {
    let bytes: Vec<u8> = row.get(column)?;
    M::decode(bytes.as_slice()).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, Box::new(error))
    })
}

fn tenant(row: &Row<'_>) -> rusqlite::Result<Tenant> {
    let planned: String = row.get(6)?;
    let planned = Planned::from_text(&planned).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(
            6,
            Type::Text,
            format!("no such plan: {planned}").into(),
        )
    })?;
    Ok(Tenant {
        host: row.get(0)?,
        current: decoded(row, 1)?,
        first_seen_unix_ns: row.get(2).map(unsigned)?,
        last_seen_unix_ns: row.get(3).map(unsigned)?,
        verdict_since_unix_ns: row.get(4).map(unsigned)?,
        window_ns: row.get(5).map(unsigned)?,
        planned,
    })
}

/// Evidence of a host's tenants seen since a time.
pub(super) fn carried(
    connection: &Connection,
    host_id: i64,
    seen_since_unix_ns: u64,
) -> rusqlite::Result<Vec<v1::CarriedEvidence>> {
    connection
        .prepare_cached("SELECT current FROM tenants WHERE host_id = ?1 AND last_seen_unix_ns >= ?2 ORDER BY key")?
        .query_map(params![host_id, signed(seen_since_unix_ns)], |row| {
            let v1::TenantWindow { key, evidence, .. } = decoded(row, 0)?;
            Ok(v1::CarriedEvidence { tenant_key: key, evidence })
        })?
        .collect()
}

pub(super) fn tenants(
    connection: &Connection,
    host: &str,
    at_least_rank: i64,
    rows_max: u64,
) -> Result<Vec<Tenant>, Fault> {
    let rows = connection
        .prepare_cached(&format!(
            "SELECT {TENANT_COLUMNS} FROM tenants JOIN hosts ON hosts.id = host_id
             WHERE (?1 = '' OR hosts.name = ?1) AND level >= ?2 ORDER BY hosts.name, key LIMIT ?3"
        ))?
        .query_map(params![host, at_least_rank, signed(rows_max + 1)], tenant)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    if u64::try_from(rows.len()).unwrap_or(u64::MAX) > rows_max {
        return Err(Fault::Store(StoreError::TooMany { rows_max }));
    }
    Ok(rows)
}

pub(super) fn find(
    connection: &Connection,
    host: &str,
    text: &str,
    rows_max: u64,
) -> Result<Vec<Tenant>, Fault> {
    for condition in [
        "key = ?2",
        "?2 <> '' AND (tenants.name = ?2 OR droplet_id = ?2)",
    ] {
        let rows = connection
            .prepare_cached(&format!(
                "SELECT {TENANT_COLUMNS} FROM tenants JOIN hosts ON hosts.id = host_id
                 WHERE (?1 = '' OR hosts.name = ?1) AND {condition} ORDER BY hosts.name, key LIMIT ?3"
            ))?
            .query_map(params![host, text, signed(rows_max)], tenant)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        if !rows.is_empty() {
            return Ok(rows);
        }
    }
    Ok(Vec::new())
}

pub(super) fn history(
    connection: &Connection,
    host: &str,
    key: &str,
    rows_max: u64,
) -> Result<Vec<v1::HistoryEntry>, Fault> {
    let rows = connection
        .prepare_cached(
            "SELECT start_unix_ns, end_unix_ns, window FROM history WHERE tenant_id =
                 (SELECT tenants.id FROM tenants JOIN hosts ON hosts.id = host_id WHERE hosts.name = ?1 AND key = ?2)
             ORDER BY id DESC LIMIT ?3",
        )?
        .query_map(params![host, key, signed(rows_max)], |row| {
            Ok(v1::HistoryEntry {
                start_unix_ns: row.get(0).map(unsigned)?,
                end_unix_ns: row.get(1).map(unsigned)?,
                window: Some(decoded(row, 2)?),
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(rows)
}

pub(super) fn hosts(connection: &Connection) -> Result<Vec<Host>, Fault> {
    let rows = connection
        .prepare_cached(
            "SELECT name, hosts.instance, coalesce(last_sequence, 0), windows, lost_windows, last_seen_unix_ns,
                 agent_version, kernel_release, sensors
             FROM hosts LEFT JOIN instances ON host_id = id AND instances.instance = hosts.instance ORDER BY name",
        )?
        .query_map([], |row| {
            Ok(Host {
                name: row.get(0)?,
                instance: row.get(1)?,
                last_sequence: row.get(2).map(unsigned)?,
                windows: row.get(3).map(unsigned)?,
                lost_windows: row.get(4).map(unsigned)?,
                last_seen_unix_ns: row.get(5).map(unsigned)?,
                agent_version: row.get(6)?,
                kernel_release: row.get(7)?,
                sensors: decoded::<v1::Window>(row, 8)?.sensors,
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(rows)
}

pub(super) fn tenants_by_level(
    connection: &Connection,
    seen_since_unix_ns: u64,
) -> Result<TenantsByLevel, Fault> {
    let mut counts = TenantsByLevel::default();
    let mut statement = connection.prepare_cached(
        "SELECT level, count(*) FROM tenants WHERE last_seen_unix_ns >= ?1 GROUP BY level",
    )?;
    let mut rows = statement.query([signed(seen_since_unix_ns)])?;
    while let Some(row) = rows.next()? {
        let (level, count): (i64, u64) = (row.get(0)?, row.get(1).map(unsigned)?);
        for (of, slot) in [
            (Level::Quiet, &mut counts.quiet),
            (Level::Suspect, &mut counts.suspect),
            (Level::Mining, &mut counts.mining),
        ] {
            if rank(of) == level {
                *slot = count;
            }
        }
    }
    Ok(counts)
}
