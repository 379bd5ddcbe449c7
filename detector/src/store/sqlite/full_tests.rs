//! A disk that is full: what SQLite does when its file may not grow (`PRAGMA max_page_count`), which fails as a full disk does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

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
    assert!(error.to_string().contains("make room"), "{error}");
    assert_eq!(letters(&store, "a").await, 1);
    // Many in one transaction, the large among the small: each is told what became of its own. Policies are what undoes all of
    // it: one statement, of which SQLite keeps no way back.
    let begun = Arc::clone(&store);
    let waits = tokio::spawn(async move {
        let wait = begun.write("waiting", |_, _| {
            std::thread::sleep(Duration::from_millis(300));
            Ok(())
        });
        wait.await
    });
    let mut told = tokio::task::JoinSet::new();
    for n in 0..60_u64 {
        let store = Arc::clone(&store);
        told.spawn(async move {
            let kept = match n % 20 {
                7 => make(&store, &format!("b{n}"), 1 << 20).await.is_ok(),
                13 => {
                    let files = BTreeMap::from([("a".to_owned(), "x".repeat(1 << 20))]);
                    store.keep_policies(format!("b{n}"), files).await.is_ok()
                }
                _ => make(&store, &format!("b{n}"), 1).await.is_ok(),
            };
            (n, kept)
        });
    }
    for (n, kept) in told.join_all().await {
        let found = match n % 20 {
            13 => store.policies(format!("b{n}")).await.unwrap().is_some(),
            _ => letters(&store, &format!("b{n}")).await > 0,
        };
        assert_eq!(found, kept, "b{n}");
        assert!(!kept || !matches!(n % 20, 7 | 13), "b{n} found room");
    }
    // The one before them may have been in the same transaction.
    let _ = waits.await.unwrap();
    grow_to(&store, None).await;
    make(&store, "a", 1 << 20).await.unwrap();
    drop(store);
    let store = Sqlite::open(&path, LIMITS).unwrap();
    assert_eq!(letters(&store, "a").await, 2);
}
