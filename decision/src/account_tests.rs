//! Facts as they come, and what is derived of them.

use super::*;

const NOW: Time = Time::from_unix_ms(1_559_148_180_000);

fn known<T>(value: T) -> Option<Known<T>> {
    Some(Known { value, as_of: NOW })
}

fn droplets(minutes: &[u64]) -> BTreeMap<DropletId, Droplet> {
    let created = |m: &u64| Droplet {
        created_at: NOW.after(Span::minutes(*m)),
        vcpus: 2,
    };
    (minutes.iter().enumerate())
        .map(|(n, m)| (DropletId(format!("d{n}")), created(m)))
        .collect()
}

#[test]
fn facts_of_the_future_are_refused() {
    let ahead = Facts {
        created_at: known(NOW.after(Span::hours(1))),
        ..Facts::default()
    };
    let error = ahead.check(NOW).unwrap_err().to_string();
    assert!(error.contains("created_at"), "{error}");
    let as_of = Facts {
        run_rate: Some(Known {
            value: Cents(1),
            as_of: NOW.after(Span::days(1)),
        }),
        ..Facts::default()
    };
    assert!(matches!(
        as_of.check(NOW),
        Err(FactsError::Future {
            fact: "run_rate.as_of",
            ..
        })
    ));
    let droplet = Facts {
        droplets: known(droplets(&[10])),
        ..Facts::default()
    };
    assert!(droplet.check(NOW).is_err());
    assert_eq!(droplet.check(NOW.after(Span::minutes(10))), Ok(()));
}

#[test]
fn negative_payments_and_what_is_no_number_are_refused() {
    for value in ["-1", "1.5", "\"NaN\"", "1e400"] {
        let json = format!(
            r#"{{"payments":{{"value":{{"settled":{value}}},"as_of":"2019-05-29T16:43:00Z"}}}}"#
        );
        assert!(serde_json::from_str::<Facts>(&json).is_err(), "{value}");
    }
}

#[test]
fn no_more_can_be_disputed_than_was_paid() {
    let facts = Facts {
        payments: known(Payments {
            settled: Cents(100),
            disputed: Cents(101),
            last_invoice: None,
        }),
        ..Facts::default()
    };
    assert!(matches!(facts.check(NOW), Err(FactsError::Disputed { .. })));
}

#[test]
fn engaged_since_the_earliest_that_is_known() {
    assert_eq!(Facts::default().engaged_since(), None);
    let facts = Facts {
        created_at: known(NOW.before(Span::days(5))),
        first_payment_at: known(None),
        first_droplet_at: known(Some(NOW.before(Span::days(9)))),
        ..Facts::default()
    };
    assert_eq!(facts.engaged_since(), Some(NOW.before(Span::days(9))));
}

#[test]
fn an_older_fact_never_replaces_a_newer_one() {
    let mut held = Facts {
        high_cpu_allowed: known(true),
        ..Facts::default()
    };
    let older = Facts {
        high_cpu_allowed: Some(Known {
            value: false,
            as_of: NOW.before(Span::seconds(1)),
        }),
        run_rate: known(Cents(5)),
        ..Facts::default()
    };
    assert!(held.update(older));
    assert_eq!(held.high_cpu_allowed, known(true));
    assert_eq!(held.run_rate, known(Cents(5)));
    assert!(!held.update(Facts::default()));
}

#[test]
fn a_burst_is_the_most_droplets_within_the_span() {
    let within = Span::minutes(30);
    assert_eq!(greatest_burst(&BTreeMap::new(), within), None);
    let burst = greatest_burst(&droplets(&[0, 100, 110, 125, 131, 300]), within).unwrap();
    assert_eq!(
        (burst.droplets.len(), burst.since),
        (3, NOW.after(Span::minutes(110)))
    );
    let all = greatest_burst(&droplets(&[1, 0, 30, 20]), within).unwrap();
    assert_eq!(all.droplets.len(), 4);
}

#[test]
fn ids_are_short_and_visible() {
    assert!(AccountId::try_from("acct-42").is_ok());
    for text in ["", "a b", "a\n", &"x".repeat(ID_BYTES_MAX + 1)] {
        assert!(AccountId::try_from(text).is_err(), "{text:?}");
    }
}

#[test]
fn an_invoice_that_is_not_due_is_no_trouble() {
    let with = |state, due| Payments {
        last_invoice: Some(Invoice {
            amount: Cents(500),
            due,
            state,
        }),
        ..Payments::default()
    };
    let (past, future) = (NOW.before(Span::days(1)), NOW.after(Span::days(1)));
    assert!(!Payments::default().troubled(NOW));
    assert!(!with(InvoiceState::Open, future).troubled(NOW));
    assert!(with(InvoiceState::Open, past).troubled(NOW));
    assert!(with(InvoiceState::Failed, future).troubled(NOW));
    assert!(!with(InvoiceState::Paid, past).troubled(NOW));
    // Of nothing, nothing is owed.
    for state in [
        InvoiceState::Open,
        InvoiceState::Overdue,
        InvoiceState::Failed,
    ] {
        let mut nothing = with(state, past);
        nothing.last_invoice.as_mut().unwrap().amount = Cents(0);
        assert!(!nothing.troubled(NOW), "{state:?}");
    }
}
