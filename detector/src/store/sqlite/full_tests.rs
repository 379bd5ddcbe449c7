//! A disk that is full: what SQLite does when its file may not grow (`PRAGMA max_page_count`), which fails as a full disk does.

use std::sync::Arc;

use davy_decision::{account::AccountId, audit::Actor, time::Time};

use super::*;
use crate::store::ledger::{Change, Changed, Ledger, LedgerError, Reach};

const LIMITS: Limits = Limits {
    hosts_max: 9,
    tenants_per_host_max: 9,
    history_per_tenant_max: 9,
    history_total_max: 9,
    retention_ns: 1,
};

/// Room for so many pages, or for any number.
async fn grow_to(store: &Sqlite, pages: Option<u32>) {
    let set = store.write("setting a bound", move |connection, _| {
        let now: u32 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
        let most = pages.map_or(u32::MAX - 1, |pages| now + pages);
        connection.pragma_update_and_check(None, "max_page_count", most, |_| Ok(()))?;
        Ok(())
    });
    set.await.unwrap();
}

/// A change that leaves `bytes` in the account's record.
fn swell(bytes: usize) -> Change {
    Arc::new(move |dossier, _| {
        dossier.letters_written += 1;
        dossier.fetch_failed = Some("x".repeat(bytes));
        Ok(Changed::default())
    })
}

async fn make(store: &Sqlite, account: &str, bytes: usize) -> Result<Changed, LedgerError> {
    let account = AccountId::try_from(account).unwrap();
    let at = Time::from_unix_ms(1);
    store
        .change(account, Reach::Account, Actor::Automation, at, swell(bytes))
        .await
}

async fn letters(store: &Sqlite, account: &str) -> u64 {
    let account = AccountId::try_from(account).unwrap();
    let held = store.dossier(account).await.unwrap();
    held.map_or(0, |dossier| dossier.letters_written)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_to_whom_it_concerns_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("davy.db");
    let store = Arc::new(Sqlite::open(&path, LIMITS).unwrap());
    make(&store, "a", 10).await.unwrap();
    grow_to(&store, Some(3)).await;
    let error = make(&store, "a", 1 << 20).await.unwrap_err();
    assert!(error.to_string().contains("full"), "{error}");
    assert_eq!(letters(&store, "a").await, 1);
    // Many at once, the large among the small: each is told what became of its own.
    let mut told = tokio::task::JoinSet::new();
    for n in 0..64_u64 {
        let store = Arc::clone(&store);
        told.spawn(async move {
            let bytes = if n % 4 == 3 { 1 << 20 } else { 1 };
            let made = make(&store, &format!("b{n}"), bytes).await;
            (n, made.is_ok())
        });
    }
    for (n, kept) in told.join_all().await {
        let letters = letters(&store, &format!("b{n}")).await;
        assert_eq!(letters, u64::from(kept), "b{n}");
        assert!(!kept || n % 4 != 3, "b{n} found room");
    }
    grow_to(&store, None).await;
    make(&store, "a", 1 << 20).await.unwrap();
    drop(store);
    let store = Sqlite::open(&path, LIMITS).unwrap();
    assert_eq!(letters(&store, "a").await, 2);
}
