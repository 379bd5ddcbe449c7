//! What happens when the storage does not do as it should.

use std::sync::Arc;

use davy_decision::fleet::Fleet;
use davy_detector::store::ledger::{LedgerError, Reach};
use davy_detector::store::{Recorded, StoreError};

use crate::place::Place;
use crate::support::*;

pub(crate) async fn a_store_that_takes_no_writes_says_so_and_loses_nothing(place: Place) {
    let memory = place.open().await;
    memory
        .open(hello("host-1", INSTANCE), NOW_NS)
        .await
        .unwrap();
    memory.record(window("host-1", 1, 0, &["t"])).await.unwrap();
    make(&memory, "a", Reach::Account, count_one())
        .await
        .unwrap();
    let no_writes = place.take_no_writes();
    let made = make(&memory, "a", Reach::Fleet, count_one()).await;
    assert!(
        matches!(&made, Err(LedgerError::Store(StoreError::Failed { .. }))),
        "{made:?}"
    );
    let recorded = memory.record(window("host-1", 2, 10, &["t"])).await;
    assert!(
        matches!(recorded, Err(StoreError::Failed { .. })),
        "{recorded:?}"
    );
    let kept = memory
        .keep_policies("d".to_owned(), Default::default())
        .await;
    assert!(matches!(kept, Err(StoreError::Failed { .. })), "{kept:?}");
    // What is there is read all the same.
    assert_eq!(record_of(&memory, "a").await.unwrap().letters_written, 1);
    assert_eq!(memory.tenants(String::new(), 0).await.unwrap().len(), 1);
    drop(no_writes);
    assert_eq!(followed(&memory).await, 1);
    assert_eq!(memory.policies("d".to_owned()).await.unwrap(), None);
    make(&memory, "a", Reach::Fleet, count_one()).await.unwrap();
    assert_eq!(record_of(&memory, "a").await.unwrap().letters_written, 2);
    assert_eq!(followed(&memory).await, 2);
    let recorded = memory
        .record(window("host-1", 2, 10, &["t"]))
        .await
        .unwrap();
    assert!(
        matches!(recorded, Recorded::Stored { missing: 0, .. }),
        "{recorded:?}"
    );
}

/// With its record it has lost whether automation was stopped: that is the customers' side, until a person starts it.
pub(crate) async fn a_store_that_has_lost_its_record_of_the_fleet_has_stopped_automation(
    place: Place,
) {
    let memory = place.open().await;
    assert!(memory.fleet().await.unwrap().stop.is_none(), "a new store");
    for reach in [Reach::Account, Reach::Fleet] {
        place.sql("DELETE FROM fleet").unwrap();
        assert!(memory.fleet().await.unwrap().stopped().0);
        let sees = change(|_, fleet| assert!(fleet.stopped().0));
        make(&memory, "a", reach, sees).await.unwrap();
    }
    let start = Arc::new(|fleet: &mut Fleet| {
        fleet.stop = None;
        Vec::new()
    });
    (memory.change_fleet(person("ann"), T0, start).await).unwrap();
    assert!(!memory.fleet().await.unwrap().stopped().0);
}

pub(crate) async fn a_newer_schema_is_refused(place: Place) {
    drop(place.open().await);
    let newer = match place {
        Place::Sqlite { .. } => "PRAGMA user_version = 99",
        Place::Postgres { .. } => "INSERT INTO davy_schema VALUES (99)",
    };
    place.sql(newer).unwrap();
    let error = place.try_open().await.err().expect("it was opened");
    assert!(
        matches!(error, StoreError::Newer { found: 99, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("run the newer release"),
        "{error}"
    );
}

pub(crate) async fn another_programs_database_is_refused(place: Place) {
    place.sql("CREATE TABLE theirs (x integer)").unwrap();
    let error = place.try_open().await.err().expect("it was opened");
    assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("another program's"), "{error}");
    // And left as it was.
    let tables = match place {
        Place::Sqlite { .. } => "SELECT count(*) FROM sqlite_schema",
        Place::Postgres { .. } => "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'",
    };
    assert_eq!(place.sql(tables).unwrap(), "1");
}
