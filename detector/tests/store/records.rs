//! How records are read: order, bounds, and what is never changed.

use std::collections::BTreeMap;

use davy_decision::{account::AccountId, case::CaseId};
use davy_detector::store::ledger::Reach;

use crate::changes::due;
use crate::place::Place;
use crate::support::*;

fn names(accounts: Vec<AccountId>) -> Vec<String> {
    accounts.into_iter().map(String::from).collect()
}

pub(crate) async fn who_is_due_comes_in_the_order_of_time(place: Place) {
    let memory = place.open().await;
    for (name, at) in [
        ("late", Some(minute(30))),
        ("never", None),
        ("soon", Some(minute(10))),
        ("also-soon", Some(minute(10))),
        ("now", Some(T0)),
        ("once", Some(T0)),
    ] {
        make(&memory, name, Reach::Account, due(at)).await.unwrap();
    }
    // Whoever was looked at and needs no further look is not due any more.
    make(&memory, "once", Reach::Account, due(None))
        .await
        .unwrap();
    let due = async |at, most| names(memory.due(at, most).await.unwrap());
    assert_eq!(
        due(T0.before(davy_decision::time::Span::ms(1)), 10).await,
        [""; 0]
    );
    assert_eq!(due(T0, 10).await, ["now"]);
    assert_eq!(due(minute(10), 10).await, ["now", "also-soon", "soon"]);
    assert_eq!(due(minute(60), 2).await, ["now", "also-soon"]);
    assert_eq!(due(minute(60), 10).await.len(), 4);
    // What changes nothing but when to look next is kept too.
    let unchanged = std::sync::Arc::new(|_: &mut _, _: &mut _| {
        Ok(davy_detector::store::ledger::Changed {
            due: Some(T0),
            ..Default::default()
        })
    });
    make(&memory, "late", Reach::Account, unchanged.clone())
        .await
        .unwrap();
    make(&memory, "new", Reach::Account, unchanged)
        .await
        .unwrap();
    assert_eq!(due(T0, 10).await, ["late", "new", "now"]);
}

pub(crate) async fn accounts_are_listed_by_the_bytes_of_their_ids(place: Place) {
    let memory = place.open().await;
    for name in ["b", "a", "\u{e4}", "B", "a-1", "a1", "_"] {
        make(&memory, name, Reach::Account, count_one())
            .await
            .unwrap();
    }
    let sorted = ["B", "_", "a", "a-1", "a1", "b", "\u{e4}"];
    assert_eq!(names(memory.accounts(None, 100).await.unwrap()), sorted);
    let mut after = None;
    let mut walked = Vec::new();
    loop {
        let mut page = memory.accounts(after.clone(), 2).await.unwrap();
        walked.extend(names(page.clone()));
        match page.pop() {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    assert_eq!(walked, sorted);
}

/// However many there are, those that wait longest are among those listed.
pub(crate) async fn cases_are_listed_in_the_queues_order(place: Place) {
    let memory = place.open().await;
    for (name, at) in [("b", 5), ("a", 7), ("c", 5)] {
        make(&memory, name, Reach::Account, speak("k", minute(at)))
            .await
            .unwrap();
    }
    let closed = events(|dossier| {
        let by = davy_decision::case::Person("ann".to_owned());
        let settings = davy_decision::settings::Settings::default();
        dossier.unlock(&by, true, None, [], &settings, minute(20))?;
        dossier.close(minute(21))
    });
    make(&memory, "b", Reach::Account, closed).await.unwrap();
    let listed = async |closed, most| -> Vec<String> {
        let cases = memory.cases(closed, most).await.unwrap();
        cases.iter().map(|held| held.case.id.to_string()).collect()
    };
    assert_eq!(listed(false, 10).await, ["c/1", "a/1"]);
    assert_eq!(listed(true, 10).await, ["c/1", "a/1", "b/1"]);
    assert_eq!(listed(true, 1).await, ["c/1"]);
    // A further word to a closed case opens the next one; the former stays as it ended.
    make(&memory, "b", Reach::Account, speak("k2", minute(40)))
        .await
        .unwrap();
    assert_eq!(listed(true, 10).await, ["c/1", "a/1", "b/2", "b/1"]);
    // Who was answered waits as before until somebody decides; who is decided waits behind all who are not.
    let by = davy_decision::case::Person("ann".to_owned());
    let answered = events({
        let by = by.clone();
        move |dossier| dossier.answer(&by, "I look at it now.", minute(41))
    });
    make(&memory, "c", Reach::Account, answered).await.unwrap();
    assert_eq!(listed(true, 10).await, ["c/1", "a/1", "b/2", "b/1"]);
    let decided = events(move |dossier| {
        let settings = davy_decision::settings::Settings::default();
        dossier.unlock(&by, false, None, [], &settings, minute(42))
    });
    make(&memory, "a", Reach::Account, decided).await.unwrap();
    assert_eq!(listed(true, 10).await, ["c/1", "b/2", "a/1", "b/1"]);
    let held = memory.cases(true, 10).await.unwrap();
    assert!(held.is_sorted_by_key(|held| held.case.rank(held.locked)));
    let case = |number| CaseId {
        account: account("b"),
        number,
    };
    assert!(
        memory
            .case(case(1))
            .await
            .unwrap()
            .unwrap()
            .case
            .is_closed()
    );
    assert!(memory.case(case(2)).await.unwrap().unwrap().case.is_open());
    assert_eq!(memory.case(case(3)).await.unwrap(), None);
}

pub(crate) async fn decisions_are_read_by_account_and_number(place: Place) {
    let memory = place.open().await;
    let mut made = Vec::new();
    for name in ["b", "a", "B"] {
        for _ in 0..3 {
            let brought = make(&memory, name, Reach::Account, decided()).await;
            made.push(brought.unwrap().decision.unwrap());
        }
    }
    made.sort_by_key(|decision| (decision.input.account.clone(), decision.number));
    assert_eq!(memory.decisions(None, None, 100).await.unwrap(), made);
    assert_eq!(
        memory
            .decisions(Some(account("a")), None, 100)
            .await
            .unwrap(),
        made[3..6]
    );
    let after = Some((account("a"), 2));
    assert_eq!(
        memory.decisions(None, after.clone(), 2).await.unwrap(),
        made[5..7]
    );
    assert_eq!(
        memory
            .decisions(Some(account("a")), after, 9)
            .await
            .unwrap(),
        made[5..6]
    );
    assert_eq!(
        memory.decisions(Some(account("c")), None, 9).await.unwrap(),
        []
    );
}

pub(crate) async fn policies_are_kept_as_they_were_first(place: Place) {
    let memory = place.open().await;
    let files = |text: &str| BTreeMap::from([("a.cedar".to_owned(), text.to_owned())]);
    assert_eq!(memory.policies("d".to_owned()).await.unwrap(), None);
    let text = "forbid (principal, action, resource); // \0 \u{1f512}";
    for kept in [text, "permit (principal, action, resource);"] {
        let kept = memory.keep_policies("d".to_owned(), files(kept)).await;
        kept.unwrap();
    }
    drop(memory);
    let held = place.open().await.policies("d".to_owned()).await.unwrap();
    assert_eq!(held, Some(files(text)));
}

pub(crate) async fn the_audit_log_is_read_in_parts_and_by_account(place: Place) {
    let memory = place.open().await;
    for name in ["a", "b", "a", "b", "b"] {
        make(&memory, name, Reach::Account, count_one())
            .await
            .unwrap();
    }
    let numbers = async |of: Option<&str>, after, most| -> Vec<u64> {
        let entries = memory.audit(of.map(account), after, most).await.unwrap();
        entries.iter().map(|entry| entry.number).collect()
    };
    assert_eq!(numbers(None, 0, 10).await, [1, 2, 3, 4, 5]);
    assert_eq!(numbers(None, 2, 2).await, [3, 4]);
    assert_eq!(numbers(Some("b"), 0, 10).await, [2, 4, 5]);
    assert_eq!(numbers(Some("b"), 2, 1).await, [4]);
    assert_eq!(numbers(Some("c"), 0, 10).await, [0; 0]);
}

pub(crate) async fn decisions_and_the_audit_log_are_never_changed_or_removed(place: Place) {
    let memory = place.open().await;
    make(&memory, "a", Reach::Account, decided()).await.unwrap();
    let entries = followed(&memory).await;
    let mut attempts = vec![
        "UPDATE audit SET note = '{}' WHERE number = 1",
        "UPDATE audit SET hash = hash",
        "DELETE FROM audit WHERE number = 1",
        "DELETE FROM audit",
        "UPDATE decisions SET plan = '{}'",
        "DELETE FROM decisions",
    ];
    if matches!(place, Place::Postgres { .. }) {
        attempts.extend(["TRUNCATE audit", "TRUNCATE decisions"]);
        attempts.push(
            "INSERT INTO audit VALUES (1, NULL, '{}', '') ON CONFLICT (number) DO UPDATE SET note = '{}'",
        );
    } else {
        attempts.push("INSERT OR REPLACE INTO audit VALUES (1, NULL, '{}', '')");
        attempts.push(
            "INSERT OR REPLACE INTO decisions SELECT account, number, '{}', '{}' FROM decisions",
        );
    }
    for attempt in attempts {
        let error = place.sql(attempt).expect_err(attempt);
        assert!(error.contains("never"), "{attempt}: {error}");
    }
    assert_eq!(followed(&memory).await, entries);
    assert_eq!(memory.decisions(None, None, 9).await.unwrap().len(), 1);
    make(&memory, "a", Reach::Account, count_one())
        .await
        .unwrap();
    assert_eq!(followed(&memory).await, entries + 1);
}
