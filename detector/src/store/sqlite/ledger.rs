//! The deciding half's records in SQLite: see [`crate::store::ledger`]. The writing thread's transaction is immediate, so a change
//! has all locks there are.

use std::collections::{BTreeMap, BTreeSet};

use davy_decision::{
    account::{AccountId, DropletId},
    audit::{Actor, Chain, Entry, Note},
    case::CaseId,
    dossier::{Dossier, Refusal},
    fleet::Fleet,
    time::Time,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Sqlite;
use super::write::{Fault, signed, unsigned};
use crate::store::StoreError;
use crate::store::ledger::{
    Change, Changed, Decision, FleetChange, GivenReason, Ledger, LedgerError, Reach, StoredCase,
    rows::{self, Rows, ms, read},
};

fn fleet(connection: &Connection) -> Result<Fleet, Fault> {
    let body: Option<String> = connection
        .prepare_cached("SELECT body FROM fleet")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(match body {
        Some(body) => read("the fleet's record", &body)?,
        None => Fleet::lost(),
    })
}

fn write_fleet(connection: &Connection, body: &str) -> Result<(), Fault> {
    connection
        .prepare_cached(
            "INSERT INTO fleet (id, body) VALUES (1, ?1) ON CONFLICT DO UPDATE SET body = ?1",
        )?
        .execute([body])?;
    Ok(())
}

fn dossier(connection: &Connection, account: &AccountId) -> Result<Option<Dossier>, Fault> {
    let body: Option<String> = connection
        .prepare_cached("SELECT body FROM accounts WHERE account = ?1")?
        .query_row([account.as_str()], |row| row.get(0))
        .optional()?;
    Ok(body
        .map(|body| read("an account's record", &body))
        .transpose()?)
}

fn run(
    connection: &Connection,
    account: &AccountId,
    reach: Reach,
    actor: &Actor,
    at: Time,
    change: &Change,
) -> Result<Result<Changed, Refusal>, Fault> {
    let fleet_before = fleet(connection)?;
    let held = dossier(connection, account)?;
    let before = held
        .clone()
        .unwrap_or_else(|| Dossier::new(account.clone()));
    let (mut after, mut fleet_after) = (before.clone(), fleet_before.clone());
    let changed = match change(&mut after, &mut fleet_after) {
        Ok(changed) => changed,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let fleets = (&fleet_before, &fleet_after);
    let rows = rows::rows((&before, &after), fleets, reach, &changed, actor, at)?;
    if !rows.reasons.is_empty() {
        let last = last_reasons(connection, rows::LAST_REASONS)?;
        if let Err(refusal) = rows.reasons.iter().try_for_each(|row| row.check(&last)) {
            return Ok(Err(refusal));
        }
    }
    write(connection, account, held.is_none(), &rows, &before)?;
    Ok(Ok(changed))
}

fn write(
    connection: &Connection,
    account: &AccountId,
    is_new: bool,
    rows: &Rows,
    before: &Dossier,
) -> Result<(), Fault> {
    let id = account.as_str();
    if let Some(body) = &rows.fleet {
        write_fleet(connection, body)?;
    }
    if let Some(body) = &rows.dossier {
        connection
            .prepare_cached(
                "INSERT INTO accounts (account, body, due_ms) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET body = ?2, due_ms = ?3",
            )?
            .execute(params![id, body, rows.due_ms])?;
    } else if is_new {
        let body = rows::write("an account's record", before)?;
        connection
            .prepare_cached("INSERT INTO accounts (account, body, due_ms) VALUES (?1, ?2, ?3)")?
            .execute(params![id, body, rows.due_ms])?;
    } else {
        connection
            .prepare_cached("UPDATE accounts SET due_ms = ?2 WHERE account = ?1")?
            .execute(params![id, rows.due_ms])?;
    }
    for case in &rows.cases {
        connection
            .prepare_cached(
                "INSERT INTO cases (account, number, opened_ms, closed, settled, locked, waiting_ms, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT DO UPDATE SET closed = ?4, settled = ?5, locked = ?6, waiting_ms = ?7, body = ?8",
            )?
            .execute(params![
                id,
                signed(case.number),
                case.opened_ms,
                case.closed,
                case.settled,
                case.locked,
                case.waiting_ms,
                case.body
            ])?;
    }
    if let Some(decision) = &rows.decision {
        connection
            .prepare_cached(
                "INSERT INTO decisions (account, number, input, plan) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                id,
                signed(decision.number),
                decision.input,
                decision.plan
            ])?;
    }
    for row in &rows.reasons {
        connection
            .prepare_cached("INSERT INTO reasons (account, number, text) VALUES (?1, ?2, ?3)")?
            .execute(params![id, signed(row.case.number), row.reason.as_str()])?;
    }
    if let Some(droplets) = &rows.droplets {
        write_owners(connection, id, droplets)?;
    }
    append(connection, &rows.notes)
}

fn write_owners(
    connection: &Connection,
    account: &str,
    droplets: &BTreeSet<DropletId>,
) -> Result<(), Fault> {
    connection
        .prepare_cached("DELETE FROM owners WHERE account = ?1")?
        .execute([account])?;
    for droplet in droplets {
        connection
            .prepare_cached(
                "INSERT INTO owners (droplet, account) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET account = ?2",
            )?
            .execute([droplet.as_str(), account])?;
    }
    Ok(())
}

fn append(connection: &Connection, notes: &[Note]) -> Result<(), Fault> {
    if notes.is_empty() {
        return Ok(());
    }
    let head: Option<(i64, String)> = connection
        .prepare_cached("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let mut chain = head.map_or_else(Chain::default, |(number, head)| Chain {
        entries: unsigned(number),
        head,
    });
    for note in notes {
        let entry = chain.append(note.clone());
        connection
            .prepare_cached(
                "INSERT INTO audit (number, account, note, hash) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                signed(entry.number),
                note.account.as_ref().map(AccountId::as_str),
                rows::write("a note", note)?,
                entry.hash
            ])?;
    }
    Ok(())
}

/// Every row as text columns, then read from JSON.
fn all<T>(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, Fault> {
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement
        .query_map(params, row)?
        .collect::<rusqlite::Result<Vec<T>>>()?;
    Ok(found)
}

fn id(text: String) -> Result<AccountId, Fault> {
    let bad = |error: davy_decision::account::IdError| {
        Fault::Store(StoreError::Failed {
            what: "reading an account's id",
            why: error.to_string(),
        })
    };
    AccountId::try_from(text).map_err(bad)
}

fn stored_case((locked, body): (bool, String)) -> Result<StoredCase, Fault> {
    let case = read("a case", &body)?;
    Ok(StoredCase { case, locked })
}

/// The last reasons given, the latest first.
fn last_reasons(connection: &Connection, rows_max: u64) -> Result<Vec<GivenReason>, Fault> {
    let sql = "SELECT account, number, text FROM reasons ORDER BY id DESC LIMIT ?1";
    let found = all(connection, sql, [signed(rows_max)], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?))
    })?;
    (found.into_iter())
        .map(|(account, number, text)| {
            let case = CaseId {
                account: id(account)?,
                number: unsigned(number),
            };
            let reason = rows::reason(text)?;
            Ok(GivenReason { case, reason })
        })
        .collect()
}

#[tonic::async_trait]
impl Ledger for Sqlite {
    async fn change(
        &self,
        account: AccountId,
        reach: Reach,
        actor: Actor,
        at: Time,
        change: Change,
    ) -> Result<Changed, LedgerError> {
        let changed = self
            .write("changing an account's record", move |connection, _| {
                run(connection, &account, reach, &actor, at, &change)
            })
            .await?;
        Ok(changed?)
    }

    async fn change_fleet(
        &self,
        actor: Actor,
        at: Time,
        change: FleetChange,
    ) -> Result<(), StoreError> {
        self.write("changing the fleet's record", move |connection, _| {
            let mut record = fleet(connection)?;
            let before = record.clone();
            let events = change(&mut record);
            if record != before {
                write_fleet(connection, &rows::write("the fleet's record", &record)?)?;
            }
            append(connection, &rows::notes(None, &events, &actor, at)?)
        })
        .await
    }

    async fn dossier(&self, account: AccountId) -> Result<Option<Dossier>, StoreError> {
        self.read("reading an account's record", move |connection| {
            dossier(connection, &account)
        })
        .await
    }

    async fn fleet(&self) -> Result<Fleet, StoreError> {
        self.read("reading the fleet's record", fleet).await
    }

    async fn due(&self, at: Time, rows_max: u64) -> Result<Vec<AccountId>, StoreError> {
        self.read("reading who is due", move |connection| {
            let sql =
                "SELECT account FROM accounts WHERE due_ms <= ?1 ORDER BY due_ms, account LIMIT ?2";
            let found = all(connection, sql, [ms(at), signed(rows_max)], |row| {
                row.get(0)
            })?;
            found.into_iter().map(id).collect()
        })
        .await
    }

    async fn accounts(
        &self,
        after: Option<AccountId>,
        rows_max: u64,
    ) -> Result<Vec<AccountId>, StoreError> {
        self.read("listing accounts", move |connection| {
            let after = after.as_ref().map_or("", AccountId::as_str);
            let sql = "SELECT account FROM accounts WHERE account > ?1 ORDER BY account LIMIT ?2";
            let found = all(connection, sql, params![after, signed(rows_max)], |row| {
                row.get(0)
            })?;
            found.into_iter().map(id).collect()
        })
        .await
    }

    async fn owner(&self, droplet: DropletId) -> Result<Option<AccountId>, StoreError> {
        self.read("reading whose a droplet is", move |connection| {
            let found: Option<String> = connection
                .prepare_cached("SELECT account FROM owners WHERE droplet = ?1")?
                .query_row([droplet.as_str()], |row| row.get(0))
                .optional()?;
            found.map(id).transpose()
        })
        .await
    }

    async fn cases(&self, closed: bool, rows_max: u64) -> Result<Vec<StoredCase>, StoreError> {
        self.read("listing cases", move |connection| {
            let sql = "SELECT locked, body FROM cases WHERE closed <= ?1
                 ORDER BY closed, settled, locked DESC, waiting_ms, opened_ms, account, number LIMIT ?2";
            let found = all(connection, sql, params![closed, signed(rows_max)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
            found.into_iter().map(stored_case).collect()
        })
        .await
    }

    async fn case(&self, case: CaseId) -> Result<Option<StoredCase>, StoreError> {
        self.read("reading a case", move |connection| {
            let found = connection
                .prepare_cached(
                    "SELECT locked, body FROM cases WHERE account = ?1 AND number = ?2",
                )?
                .query_row(params![case.account.as_str(), signed(case.number)], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            found.map(stored_case).transpose()
        })
        .await
    }

    async fn decisions(
        &self,
        account: Option<AccountId>,
        after: Option<(AccountId, u64)>,
        rows_max: u64,
    ) -> Result<Vec<Decision>, StoreError> {
        self.read("reading decisions", move |connection| {
            let sql = "SELECT number, input, plan FROM decisions
                 WHERE (?1 IS NULL OR account = ?1) AND (account, number) > (?2, ?3) ORDER BY account, number LIMIT ?4";
            let (from, number) = after
                .as_ref()
                .map_or(("", 0), |(account, number)| (account.as_str(), *number));
            let account = account.as_ref().map(AccountId::as_str);
            let params = params![account, from, signed(number), signed(rows_max)];
            let found = all(connection, sql, params, |row| {
                Ok((row.get(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
            })?;
            (found.into_iter())
                .map(|(number, input, plan)| {
                    Ok(Decision {
                        number: unsigned(number),
                        input: read("a decision's input", &input)?,
                        plan: read("a plan", &plan)?,
                    })
                })
                .collect()
        })
        .await
    }

    async fn reasons(&self, rows_max: u64) -> Result<Vec<GivenReason>, StoreError> {
        self.read("reading reasons", move |connection| {
            last_reasons(connection, rows_max)
        })
        .await
    }

    async fn keep_policies(
        &self,
        digest: String,
        files: BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        self.write("keeping policies", move |connection, _| {
            let files = rows::write("policies", &files)?;
            connection
                .prepare_cached(
                    "INSERT INTO policies (digest, files) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                )?
                .execute([&digest, &files])?;
            Ok(())
        })
        .await
    }

    async fn policies(
        &self,
        digest: String,
    ) -> Result<Option<BTreeMap<String, String>>, StoreError> {
        self.read("reading policies", move |connection| {
            let found: Option<String> = connection
                .prepare_cached("SELECT files FROM policies WHERE digest = ?1")?
                .query_row([&digest], |row| row.get(0))
                .optional()?;
            Ok(found.map(|text| read("policies", &text)).transpose()?)
        })
        .await
    }

    async fn audit(
        &self,
        account: Option<AccountId>,
        after: u64,
        rows_max: u64,
    ) -> Result<Vec<Entry>, StoreError> {
        self.read("reading the audit log", move |connection| {
            let sql = "SELECT number, account, note, hash FROM audit WHERE (?1 IS NULL OR account = ?1) AND number > ?2
                 ORDER BY number LIMIT ?3";
            let account = account.as_ref().map(AccountId::as_str);
            let params = params![account, signed(after), signed(rows_max)];
            let found = all(connection, sql, params, |row| {
                let account: Option<String> = row.get(1)?;
                Ok((row.get(0)?, account, row.get::<_, String>(2)?, row.get(3)?))
            })?;
            (found.into_iter())
                .map(|(number, account, note, hash)| {
                    Ok(rows::entry(unsigned(number), account.as_deref(), &note, hash)?)
                })
                .collect()
        })
        .await
    }
}
