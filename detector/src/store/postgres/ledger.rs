//! The deciding half's records in PostgreSQL: see [`crate::store::ledger`].

use std::collections::{BTreeMap, BTreeSet};

use davy_decision::{
    account::{AccountId, DropletId},
    audit::{Actor, Chain, Entry, Note, ORIGIN},
    case::CaseId,
    dossier::Dossier,
    fleet::Fleet,
    time::Time,
};
use tokio_postgres::{Row, Transaction, types::ToSql};

use super::{Fault, Postgres, signed, transact, unsigned};
use crate::store::StoreError;
use crate::store::ledger::{
    Change, Changed, Decision, FleetChange, GivenReason, Ledger, LedgerError, Reach, StoredCase,
    rows::{self, Rows, ms, read},
};

/// An advisory lock's key: "Davr", after the key of [`super::schema`]. Whoever gives a reason holds it.
const REASONS_LOCK: i64 = 0x4461_7672;

/// The last reasons given, the latest first.
const LAST_REASONS: &str = "SELECT account, number, text FROM reasons ORDER BY id DESC LIMIT $1";

async fn fleet(transaction: &Transaction<'_>, lock: bool) -> Result<Fleet, Fault> {
    let mut sql = "SELECT body FROM fleet";
    if lock {
        // The row must be there to be locked.
        let body = rows::write("the fleet's record", &Fleet::lost())?;
        transaction
            .execute(
                "INSERT INTO fleet (id, body) VALUES (1, $1) ON CONFLICT DO NOTHING",
                &[&body],
            )
            .await?;
        sql = "SELECT body FROM fleet FOR UPDATE";
    }
    Ok(match transaction.query_opt(sql, &[]).await? {
        Some(row) => read("the fleet's record", row.get(0))?,
        None => Fleet::lost(),
    })
}

async fn run(
    transaction: &Transaction<'_>,
    account: &AccountId,
    reach: Reach,
    actor: &Actor,
    at: Time,
    change: &Change,
) -> Result<Changed, Fault> {
    let fleet_before = fleet(transaction, reach == Reach::Fleet).await?;
    // Made if absent, so that there is a row to lock: two that come at once must not both think it new.
    let empty = rows::write("an account's record", &Dossier::new(account.clone()))?;
    transaction
        .execute(
            "INSERT INTO accounts (account, body) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            &[&account.as_str(), &empty],
        )
        .await?;
    let sql = "SELECT body FROM accounts WHERE account = $1 FOR UPDATE";
    let held = transaction.query_one(sql, &[&account.as_str()]).await?;
    let before: Dossier = read("an account's record", held.get(0))?;
    let (mut after, mut fleet_after) = (before.clone(), fleet_before.clone());
    let changed = change(&mut after, &mut fleet_after).map_err(Fault::Refused)?;
    let fleets = (&fleet_before, &fleet_after);
    let rows = rows::rows((&before, &after), fleets, reach, &changed, actor, at)?;
    if !rows.reasons.is_empty() {
        // Until the end of the transaction: of two that give the same reason at once, one sees the other's.
        transaction
            .execute("SELECT pg_advisory_xact_lock($1)", &[&REASONS_LOCK])
            .await?;
        let last = transaction
            .query(LAST_REASONS, &[&signed(rows::LAST_REASONS)])
            .await?;
        let last: Vec<_> = last.iter().map(given_reason).collect::<Result<_, _>>()?;
        let own = rows.reasons.iter().try_for_each(|row| row.check(&last));
        own.map_err(Fault::Refused)?;
    }
    write(transaction, account, &rows).await?;
    Ok(changed)
}

async fn run_fleet(
    transaction: &Transaction<'_>,
    actor: &Actor,
    at: Time,
    change: &FleetChange,
) -> Result<(), Fault> {
    let mut record = fleet(transaction, true).await?;
    let events = change(&mut record);
    let body = rows::write("the fleet's record", &record)?;
    transaction
        .execute("UPDATE fleet SET body = $1", &[&body])
        .await?;
    append(transaction, &rows::notes(None, &events, actor, at)?).await
}

async fn write(
    transaction: &Transaction<'_>,
    account: &AccountId,
    rows: &Rows,
) -> Result<(), Fault> {
    let id = account.as_str();
    if let Some(body) = &rows.fleet {
        transaction
            .execute("UPDATE fleet SET body = $1", &[body])
            .await?;
    }
    transaction
        .execute(
            "UPDATE accounts SET body = coalesce($2, body), due_ms = $3 WHERE account = $1",
            &[&id, &rows.dossier, &rows.due_ms],
        )
        .await?;
    for case in &rows.cases {
        transaction
            .execute(
                "INSERT INTO cases (account, number, opened_ms, closed, settled, locked, waiting_ms, body)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (account, number)
                 DO UPDATE SET closed = $4, settled = $5, locked = $6, waiting_ms = $7, body = $8",
                &[
                    &id,
                    &signed(case.number),
                    &case.opened_ms,
                    &case.closed,
                    &case.settled,
                    &case.locked,
                    &case.waiting_ms,
                    &case.body,
                ],
            )
            .await?;
    }
    if let Some(decision) = &rows.decision {
        transaction
            .execute(
                "INSERT INTO decisions (account, number, input, plan) VALUES ($1, $2, $3, $4)",
                &[
                    &id,
                    &signed(decision.number),
                    &decision.input,
                    &decision.plan,
                ],
            )
            .await?;
    }
    for row in &rows.reasons {
        transaction
            .execute(
                "INSERT INTO reasons (account, number, text) VALUES ($1, $2, $3)",
                &[
                    &id,
                    &signed(row.case.number),
                    &rows::write("a reason", &row.reason)?,
                ],
            )
            .await?;
    }
    if let Some(droplets) = &rows.droplets {
        write_owners(transaction, id, droplets).await?;
    }
    append(transaction, &rows.notes).await
}

async fn write_owners(
    transaction: &Transaction<'_>,
    account: &str,
    droplets: &BTreeSet<DropletId>,
) -> Result<(), Fault> {
    let droplets: Vec<&str> = droplets.iter().map(DropletId::as_str).collect();
    transaction
        .execute(
            "DELETE FROM owners WHERE account = $1 AND NOT (droplet = ANY ($2))",
            &[&account, &droplets],
        )
        .await?;
    // In one order everywhere (they are sorted): two inventories that share droplets do not wait for each other.
    transaction
        .execute(
            "INSERT INTO owners (droplet, account) SELECT unnest($2::text[]), $1
             ON CONFLICT (droplet) DO UPDATE SET account = $1",
            &[&account, &droplets],
        )
        .await?;
    Ok(())
}

async fn append(transaction: &Transaction<'_>, notes: &[Note]) -> Result<(), Fault> {
    if notes.is_empty() {
        return Ok(());
    }
    transaction
        .execute(
            "INSERT INTO audit_head (id, number, hash) VALUES (1, 0, $1) ON CONFLICT DO NOTHING",
            &[&ORIGIN],
        )
        .await?;
    let head = transaction
        .query_one("SELECT number, hash FROM audit_head FOR UPDATE", &[])
        .await?;
    let mut chain = Chain {
        entries: unsigned(head.get(0)),
        head: head.get(1),
    };
    for note in notes {
        let entry = chain.append(note.clone());
        transaction
            .execute(
                "INSERT INTO audit (number, account, note, hash) VALUES ($1, $2, $3, $4)",
                &[
                    &signed(entry.number),
                    &note.account.as_ref().map(AccountId::as_str),
                    &rows::write("a note", note)?,
                    &entry.hash,
                ],
            )
            .await?;
    }
    transaction
        .execute(
            "UPDATE audit_head SET number = $1, hash = $2",
            &[&signed(chain.entries), &chain.head],
        )
        .await?;
    Ok(())
}

fn id(text: String) -> Result<AccountId, Fault> {
    AccountId::try_from(text).map_err(|error| {
        Fault::Store(StoreError::Failed {
            what: "reading an account's id",
            why: error.to_string(),
        })
    })
}

impl Postgres {
    async fn query<T>(
        &self,
        what: &'static str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        row: impl Fn(&Row) -> Result<T, Fault>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.select(sql, params).await;
        let found = rows.and_then(|rows| rows.iter().map(row).collect());
        found.map_err(|fault| fault.during(what))
    }
}

fn given_reason(row: &Row) -> Result<GivenReason, Fault> {
    let case = CaseId {
        account: id(row.get(0))?,
        number: unsigned(row.get(1)),
    };
    let reason = rows::reason(read("a reason", row.get(2))?)?;
    Ok(GivenReason { case, reason })
}

fn stored_case(row: &Row) -> Result<StoredCase, Fault> {
    Ok(StoredCase {
        locked: row.get(0),
        case: read("a case", row.get(1))?,
    })
}

#[tonic::async_trait]
impl Ledger for Postgres {
    async fn change(
        &self,
        account: AccountId,
        reach: Reach,
        actor: Actor,
        at: Time,
        change: Change,
    ) -> Result<Changed, LedgerError> {
        let changed = transact!(self, |transaction| {
            run(&transaction, &account, reach, &actor, at, &change).await
        });
        changed.map_err(|fault| match fault {
            Fault::Refused(refusal) => LedgerError::Refused(refusal),
            fault => fault.during("changing an account's record").into(),
        })
    }

    async fn change_fleet(
        &self,
        actor: Actor,
        at: Time,
        change: FleetChange,
    ) -> Result<(), StoreError> {
        let changed = transact!(self, |transaction| {
            run_fleet(&transaction, &actor, at, &change).await
        });
        changed.map_err(|fault| fault.during("changing the fleet's record"))
    }

    async fn dossier(&self, account: AccountId) -> Result<Option<Dossier>, StoreError> {
        let sql = "SELECT body FROM accounts WHERE account = $1";
        let what = "reading an account's record";
        let mut found = self
            .query(what, sql, &[&account.as_str()], |row| {
                Ok(read("an account's record", row.get(0))?)
            })
            .await?;
        Ok(found.pop())
    }

    async fn fleet(&self) -> Result<Fleet, StoreError> {
        let what = "reading the fleet's record";
        let found = self.query(what, "SELECT body FROM fleet", &[], |row| {
            Ok(read("the fleet's record", row.get(0))?)
        });
        Ok(found.await?.pop().unwrap_or_else(Fleet::lost))
    }

    async fn due(&self, at: Time, rows_max: u64) -> Result<Vec<AccountId>, StoreError> {
        let sql =
            "SELECT account FROM accounts WHERE due_ms <= $1 ORDER BY due_ms, account LIMIT $2";
        let params = (ms(at), signed(rows_max));
        self.query("reading who is due", sql, &[&params.0, &params.1], |row| {
            id(row.get(0))
        })
        .await
    }

    async fn accounts(
        &self,
        after: Option<AccountId>,
        rows_max: u64,
    ) -> Result<Vec<AccountId>, StoreError> {
        let sql = "SELECT account FROM accounts WHERE account > $1 ORDER BY account LIMIT $2";
        let after = after.as_ref().map_or("", AccountId::as_str);
        self.query(
            "listing accounts",
            sql,
            &[&after, &signed(rows_max)],
            |row| id(row.get(0)),
        )
        .await
    }

    async fn owner(&self, droplet: DropletId) -> Result<Option<AccountId>, StoreError> {
        let sql = "SELECT account FROM owners WHERE droplet = $1";
        let what = "reading whose a droplet is";
        let mut found = self
            .query(what, sql, &[&droplet.as_str()], |row| id(row.get(0)))
            .await?;
        Ok(found.pop())
    }

    async fn cases(&self, closed: bool, rows_max: u64) -> Result<Vec<StoredCase>, StoreError> {
        let sql = "SELECT locked, body FROM cases WHERE closed <= $1
             ORDER BY closed, settled, locked DESC, waiting_ms, opened_ms, account, number LIMIT $2";
        self.query(
            "listing cases",
            sql,
            &[&closed, &signed(rows_max)],
            stored_case,
        )
        .await
    }

    async fn case(&self, case: CaseId) -> Result<Option<StoredCase>, StoreError> {
        let sql = "SELECT locked, body FROM cases WHERE account = $1 AND number = $2";
        let params = (case.account.as_str(), signed(case.number));
        let mut found = self
            .query("reading a case", sql, &[&params.0, &params.1], stored_case)
            .await?;
        Ok(found.pop())
    }

    async fn decisions(
        &self,
        account: Option<AccountId>,
        after: Option<(AccountId, u64)>,
        rows_max: u64,
    ) -> Result<Vec<Decision>, StoreError> {
        let sql = "SELECT number, input, plan FROM decisions
             WHERE ($1::text IS NULL OR account = $1) AND (account, number) > ($2, $3) ORDER BY account, number LIMIT $4";
        let account = account.as_ref().map(AccountId::as_str);
        let (from, number) = after
            .as_ref()
            .map_or(("", 0), |(account, number)| (account.as_str(), *number));
        let params = (signed(number), signed(rows_max));
        self.query(
            "reading decisions",
            sql,
            &[&account, &from, &params.0, &params.1],
            |row| {
                Ok(Decision {
                    number: unsigned(row.get(0)),
                    input: read("a decision's input", row.get(1))?,
                    plan: read("a plan", row.get(2))?,
                })
            },
        )
        .await
    }

    async fn reasons(&self, rows_max: u64) -> Result<Vec<GivenReason>, StoreError> {
        self.query(
            "reading reasons",
            LAST_REASONS,
            &[&signed(rows_max)],
            given_reason,
        )
        .await
    }

    async fn keep_policies(
        &self,
        digest: String,
        files: BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        let kept = async {
            let files = rows::write("policies", &files)?;
            let sql = "INSERT INTO policies (digest, files) VALUES ($1, $2) ON CONFLICT DO NOTHING";
            transact!(self, |transaction| {
                let kept = transaction.execute(sql, &[&digest, &files]).await;
                kept.map_err(Fault::Sql)
            })?;
            Ok(())
        };
        kept.await
            .map_err(|fault: Fault| fault.during("keeping policies"))
    }

    async fn policies(
        &self,
        digest: String,
    ) -> Result<Option<BTreeMap<String, String>>, StoreError> {
        let sql = "SELECT files FROM policies WHERE digest = $1";
        let what = "reading policies";
        let mut found = self
            .query(what, sql, &[&digest], |row| {
                Ok(read("policies", row.get(0))?)
            })
            .await?;
        Ok(found.pop())
    }

    async fn audit(
        &self,
        account: Option<AccountId>,
        after: u64,
        rows_max: u64,
    ) -> Result<Vec<Entry>, StoreError> {
        let sql = "SELECT number, account, note, hash FROM audit WHERE ($1::text IS NULL OR account = $1) AND number > $2
             ORDER BY number LIMIT $3";
        let account = account.as_ref().map(AccountId::as_str);
        let params = (signed(after), signed(rows_max));
        self.query(
            "reading the audit log",
            sql,
            &[&account, &params.0, &params.1],
            |row| {
                let number = unsigned(row.get(0));
                Ok(rows::entry(number, row.get(1), row.get(2), row.get(3))?)
            },
        )
        .await
    }
}
