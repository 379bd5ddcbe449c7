//! Facts between the wire (`davy.v1.AccountFacts`) and the deciding half. What is absent stays unknown; what cannot be is refused.

use std::collections::BTreeMap;

use crate::v1;
use davy_decision::{
    account::{
        AccountId, Cents, Credit, Droplet, DropletId, Facts, IdError, Invoice, InvoiceState, Known,
        Link, Payments, Vouch,
    },
    time::Time,
};

/// Why facts cannot be taken from the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// An amount below zero.
    #[error("{field} is {value}: no amount is negative")]
    Negative {
        /// Which.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// A number that names nothing.
    #[error("{field} is {value}, which is none of this release's")]
    Enum {
        /// Which.
        field: &'static str,
        /// Its value.
        value: i32,
    },
    /// A fact without its value.
    #[error("{field} is not there: send the fact with its value, or leave the whole fact out")]
    Empty {
        /// Which.
        field: &'static str,
    },
    /// No id.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A droplet twice.
    #[error("droplet {0} is in the inventory twice")]
    Twice(DropletId),
}

fn cents(field: &'static str, value: i64) -> Result<Cents, WireError> {
    let cents = u64::try_from(value).map_err(|_| WireError::Negative { field, value })?;
    Ok(Cents(cents))
}

fn known<T>(as_of_unix_ms: u64, value: T) -> Known<T> {
    Known {
        value,
        as_of: Time::from_unix_ms(as_of_unix_ms),
    }
}

fn maybe(time: v1::MaybeTime) -> Known<Option<Time>> {
    known(time.as_of_unix_ms, time.unix_ms.map(Time::from_unix_ms))
}

/// From the wire.
///
/// # Errors
/// [`WireError`].
pub fn facts(wire: v1::AccountFacts) -> Result<Facts, WireError> {
    let v1::AccountFacts {
        created_at,
        first_payment_at,
        first_droplet_at,
        payments,
        run_rate,
        credit,
        high_cpu_allowed,
        vouched,
        links,
        droplets,
    } = wire;
    Ok(Facts {
        created_at: created_at.map(created_at_of).transpose()?,
        first_payment_at: first_payment_at.map(maybe),
        first_droplet_at: first_droplet_at.map(maybe),
        payments: payments.map(payments_of).transpose()?,
        run_rate: run_rate.map(run_rate_of).transpose()?,
        credit: credit.map(credit_of).transpose()?,
        high_cpu_allowed: high_cpu_allowed.map(flag_of).transpose()?,
        vouched: vouched.map(vouched_of).transpose()?,
        links: links.map(links_of).transpose()?,
        droplets: droplets.map(inventory_of).transpose()?,
    })
}

fn there<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Empty { field })
}

fn created_at_of(wire: v1::CreatedAt) -> Result<Known<Time>, WireError> {
    let at = there("created_at.unix_ms", wire.unix_ms)?;
    Ok(known(wire.as_of_unix_ms, Time::from_unix_ms(at)))
}

fn flag_of(wire: v1::HighCpuAllowed) -> Result<Known<bool>, WireError> {
    let allowed = there("high_cpu_allowed.allowed", wire.allowed)?;
    Ok(known(wire.as_of_unix_ms, allowed))
}

fn run_rate_of(wire: v1::RunRate) -> Result<Known<Cents>, WireError> {
    Ok(known(
        wire.as_of_unix_ms,
        cents("run_rate.cents", there("run_rate.cents", wire.cents)?)?,
    ))
}

fn payments_of(wire: v1::Payments) -> Result<Known<Payments>, WireError> {
    let last_invoice = (wire.last_invoice)
        .map(|invoice| {
            let state = match v1::InvoiceState::try_from(invoice.state) {
                Ok(v1::InvoiceState::Open) => InvoiceState::Open,
                Ok(v1::InvoiceState::Paid) => InvoiceState::Paid,
                Ok(v1::InvoiceState::Overdue) => InvoiceState::Overdue,
                Ok(v1::InvoiceState::Failed) => InvoiceState::Failed,
                Ok(v1::InvoiceState::Unspecified) | Err(_) => {
                    return Err(WireError::Enum {
                        field: "last_invoice.state",
                        value: invoice.state,
                    });
                }
            };
            let amount = "last_invoice.amount_cents";
            let due = there("last_invoice.due_unix_ms", invoice.due_unix_ms)?;
            Ok(Invoice {
                amount: cents(amount, there(amount, invoice.amount_cents)?)?,
                due: Time::from_unix_ms(due),
                state,
            })
        })
        .transpose()?;
    let settled = "payments.settled_cents";
    let payments = Payments {
        settled: cents(settled, there(settled, wire.settled_cents)?)?,
        disputed: cents("payments.disputed_cents", wire.disputed_cents)?,
        last_invoice,
    };
    Ok(known(wire.as_of_unix_ms, payments))
}

fn credit_of(wire: v1::Credit) -> Result<Known<Option<Credit>>, WireError> {
    let programme = wire.programme;
    let credit = (wire.remaining_cents)
        .map(|remaining| {
            Ok::<_, WireError>(Credit {
                remaining: cents("credit.remaining_cents", remaining)?,
                programme,
            })
        })
        .transpose()?;
    Ok(known(wire.as_of_unix_ms, credit))
}

fn vouched_of(wire: v1::Vouched) -> Result<Known<Option<Vouch>>, WireError> {
    let by = match v1::Vouch::try_from(wire.by) {
        Ok(v1::Vouch::Unspecified) => {
            return Err(WireError::Empty {
                field: "vouched.by",
            });
        }
        Ok(v1::Vouch::Nobody) => None,
        Ok(v1::Vouch::CreditProgramme) => Some(Vouch::CreditProgramme),
        Ok(v1::Vouch::Contract) => Some(Vouch::Contract),
        Ok(v1::Vouch::SalesContact) => Some(Vouch::SalesContact),
        Err(_) => {
            return Err(WireError::Enum {
                field: "vouched.by",
                value: wire.by,
            });
        }
    };
    Ok(known(wire.as_of_unix_ms, by))
}

fn links_of(wire: v1::Links) -> Result<Known<Vec<Link>>, WireError> {
    let links = (wire.links.into_iter())
        .map(|link| {
            Ok(Link {
                account: AccountId::try_from(link.account)?,
                by: link.by,
                note: link.note,
            })
        })
        .collect::<Result<_, WireError>>()?;
    Ok(known(wire.as_of_unix_ms, links))
}

fn inventory_of(
    wire: v1::DropletInventory,
) -> Result<Known<BTreeMap<DropletId, Droplet>>, WireError> {
    let mut droplets = BTreeMap::new();
    for entry in wire.droplets {
        let id = DropletId::try_from(entry.droplet)?;
        let droplet = Droplet {
            created_at: Time::from_unix_ms(there(
                "droplets.created_unix_ms",
                entry.created_unix_ms,
            )?),
            vcpus: entry.vcpus,
        };
        if droplets.insert(id.clone(), droplet).is_some() {
            return Err(WireError::Twice(id));
        }
    }
    Ok(known(wire.as_of_unix_ms, droplets))
}

fn signed(cents: Cents) -> i64 {
    i64::try_from(cents.0).unwrap_or(i64::MAX)
}

fn maybe_on_wire(known: Known<Option<Time>>) -> v1::MaybeTime {
    v1::MaybeTime {
        as_of_unix_ms: known.as_of.unix_ms(),
        unix_ms: known.value.map(Time::unix_ms),
    }
}

/// To the wire. An amount above what it holds is the greatest one.
#[must_use]
pub fn on_wire(facts: &Facts) -> v1::AccountFacts {
    let Facts {
        created_at,
        first_payment_at,
        first_droplet_at,
        payments,
        run_rate,
        credit,
        high_cpu_allowed,
        vouched,
        links,
        droplets,
    } = facts;
    v1::AccountFacts {
        created_at: created_at.map(|known| v1::CreatedAt {
            as_of_unix_ms: known.as_of.unix_ms(),
            unix_ms: Some(known.value.unix_ms()),
        }),
        first_payment_at: first_payment_at.map(maybe_on_wire),
        first_droplet_at: first_droplet_at.map(maybe_on_wire),
        payments: payments.as_ref().map(payments_on_wire),
        run_rate: run_rate.map(|known| v1::RunRate {
            as_of_unix_ms: known.as_of.unix_ms(),
            cents: Some(signed(known.value)),
        }),
        credit: credit.as_ref().map(|known| v1::Credit {
            as_of_unix_ms: known.as_of.unix_ms(),
            remaining_cents: known.value.as_ref().map(|credit| signed(credit.remaining)),
            programme: (known.value.as_ref())
                .map_or_else(String::new, |credit| credit.programme.clone()),
        }),
        high_cpu_allowed: high_cpu_allowed.map(|known| v1::HighCpuAllowed {
            as_of_unix_ms: known.as_of.unix_ms(),
            allowed: Some(known.value),
        }),
        vouched: vouched.map(|known| v1::Vouched {
            as_of_unix_ms: known.as_of.unix_ms(),
            by: match known.value {
                None => v1::Vouch::Nobody,
                Some(Vouch::CreditProgramme) => v1::Vouch::CreditProgramme,
                Some(Vouch::Contract) => v1::Vouch::Contract,
                Some(Vouch::SalesContact) => v1::Vouch::SalesContact,
            }
            .into(),
        }),
        links: links.as_ref().map(|known| v1::Links {
            as_of_unix_ms: known.as_of.unix_ms(),
            links: (known.value.iter())
                .map(|link| v1::Link {
                    account: link.account.to_string(),
                    by: link.by.clone(),
                    note: link.note.clone(),
                })
                .collect(),
        }),
        droplets: droplets.as_ref().map(|known| v1::DropletInventory {
            as_of_unix_ms: known.as_of.unix_ms(),
            droplets: (known.value.iter())
                .map(|(id, droplet)| v1::InventoryDroplet {
                    droplet: id.to_string(),
                    created_unix_ms: Some(droplet.created_at.unix_ms()),
                    vcpus: droplet.vcpus,
                })
                .collect(),
        }),
    }
}

fn payments_on_wire(known: &Known<Payments>) -> v1::Payments {
    let Payments {
        settled,
        disputed,
        last_invoice,
    } = known.value;
    v1::Payments {
        as_of_unix_ms: known.as_of.unix_ms(),
        settled_cents: Some(signed(settled)),
        disputed_cents: signed(disputed),
        last_invoice: last_invoice.map(|invoice| v1::Invoice {
            amount_cents: Some(signed(invoice.amount)),
            due_unix_ms: Some(invoice.due.unix_ms()),
            state: match invoice.state {
                InvoiceState::Open => v1::InvoiceState::Open,
                InvoiceState::Paid => v1::InvoiceState::Paid,
                InvoiceState::Overdue => v1::InvoiceState::Overdue,
                InvoiceState::Failed => v1::InvoiceState::Failed,
            }
            .into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time() -> impl Strategy<Value = Time> {
        (0..2_000_000_000_000_u64).prop_map(Time::from_unix_ms)
    }

    fn fact<T: std::fmt::Debug + Clone>(
        value: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = Option<Known<T>>> {
        proptest::option::of((value, time()).prop_map(|(value, as_of)| Known { value, as_of }))
    }

    fn money() -> impl Strategy<Value = Cents> {
        (0..1_000_000_000_u64).prop_map(Cents)
    }

    fn invoice() -> impl Strategy<Value = Invoice> {
        let states = [
            InvoiceState::Open,
            InvoiceState::Paid,
            InvoiceState::Overdue,
            InvoiceState::Failed,
        ];
        (money(), time(), proptest::sample::select(states.to_vec()))
            .prop_map(|(amount, due, state)| Invoice { amount, due, state })
    }

    prop_compose! {
        fn paid()(settled in money(), disputed in money(), last_invoice in proptest::option::of(invoice())) -> Payments {
            Payments { settled, disputed, last_invoice }
        }
    }

    prop_compose! {
        fn any_facts()(
            created_at in fact(time()),
            first_payment_at in fact(proptest::option::of(time())),
            first_droplet_at in fact(proptest::option::of(time())),
            payments in fact(paid()),
            run_rate in fact(money()),
            credit in fact(proptest::option::of((money(), "[a-z]{0,8}").prop_map(|(remaining, programme)| Credit { remaining, programme }))),
            high_cpu_allowed in fact(any::<bool>()),
            vouched in fact(proptest::option::of(proptest::sample::select(vec![Vouch::CreditProgramme, Vouch::Contract, Vouch::SalesContact]))),
            links in fact(proptest::collection::vec(("[a-z]{1,8}", "[a-z]{0,8}").prop_map(|(account, by)| Link { account: account.try_into().unwrap(), by, note: String::new() }), 0..3)),
            droplets in fact(proptest::collection::btree_map("[a-z]{1,8}".prop_map(|id| DropletId::try_from(id).unwrap()), (time(), 0..64_u32).prop_map(|(created_at, vcpus)| Droplet { created_at, vcpus }), 0..4)),
        ) -> Facts {
            Facts { created_at, first_payment_at, first_droplet_at, payments, run_rate, credit, high_cpu_allowed, vouched, links, droplets }
        }
    }

    proptest! {
        #[test]
        fn facts_come_back_from_the_wire_as_they_were(given in any_facts()) {
            prop_assert_eq!(facts(on_wire(&given)), Ok(given));
        }
    }

    #[test]
    fn an_empty_fact_is_never_read_as_no() {
        let empty = v1::AccountFacts {
            high_cpu_allowed: Some(v1::HighCpuAllowed::default()),
            ..v1::AccountFacts::default()
        };
        let error = facts(empty).unwrap_err().to_string();
        assert!(
            error.starts_with("high_cpu_allowed.allowed is not there"),
            "{error}"
        );
        let unpaid = v1::AccountFacts {
            payments: Some(v1::Payments::default()),
            ..v1::AccountFacts::default()
        };
        assert!(matches!(facts(unpaid), Err(WireError::Empty { .. })));
        let nobody = v1::AccountFacts {
            vouched: Some(v1::Vouched::default()),
            ..v1::AccountFacts::default()
        };
        assert!(matches!(facts(nobody), Err(WireError::Empty { .. })));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let negative = v1::AccountFacts {
            payments: Some(v1::Payments {
                settled_cents: Some(-5),
                ..v1::Payments::default()
            }),
            ..v1::AccountFacts::default()
        };
        let error = facts(negative).unwrap_err().to_string();
        assert_eq!(error, "payments.settled_cents is -5: no amount is negative");
        let unnamed = v1::AccountFacts {
            vouched: Some(v1::Vouched {
                by: 77,
                ..v1::Vouched::default()
            }),
            ..v1::AccountFacts::default()
        };
        assert!(
            facts(unnamed)
                .unwrap_err()
                .to_string()
                .contains("vouched.by is 77")
        );
        let droplet = || v1::InventoryDroplet {
            droplet: "d".to_owned(),
            created_unix_ms: Some(0),
            ..v1::InventoryDroplet::default()
        };
        let twice = v1::AccountFacts {
            droplets: Some(v1::DropletInventory {
                as_of_unix_ms: 0,
                droplets: vec![droplet(), droplet()],
            }),
            ..v1::AccountFacts::default()
        };
        assert!(matches!(facts(twice), Err(WireError::Twice(_))));
    }
}
