//! What is known about an account, and since when.
//!
//! Every fact is [`Known`] with the time it is of, or it is missing. Missing is never read as "no": it is `unknown_standing`,
//! a safety. Facts come from the provider and are checked as they come ([`Facts::check`]): what cannot be so is refused.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::time::{Span, Time};

/// Longest id of an account or a droplet, bytes.
pub const ID_BYTES_MAX: usize = 128;
/// Most droplets, or links, of an account that are kept.
pub const ENTRIES_MAX: usize = 10_000;

/// An account, by the provider's own id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountId(String);

/// A droplet, by the provider's own id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DropletId(String);

/// A text that is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no id: 1 to {ID_BYTES_MAX} printable characters without spaces")]
pub struct IdError {
    text: String,
}

fn checked(text: String) -> Result<String, IdError> {
    let fits = !text.is_empty()
        && text.len() <= ID_BYTES_MAX
        && text.chars().all(|c| !c.is_whitespace() && !c.is_control());
    if fits {
        return Ok(text);
    }
    Err(IdError {
        text: text.chars().take(80).collect(),
    })
}

macro_rules! id {
    ($name:ident) => {
        impl $name {
            /// As the provider writes it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                checked(text).map(Self)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = IdError;

            fn try_from(text: &str) -> Result<Self, IdError> {
                checked(text.to_owned()).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

id!(AccountId);
id!(DropletId);

/// Money in the provider's billing currency, in its smallest unit (cents).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Cents(pub u64);

impl fmt::Display for Cents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// A fact, and the time it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub struct Known<T> {
    /// What is so. Never left out: of what may be none, too, nothing said is not none.
    #[serde(deserialize_with = "T::deserialize")]
    pub value: T,
    /// When it was.
    pub as_of: Time,
}

/// How a payment ended, or where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvoiceState {
    /// Not due yet: neutral.
    Open,
    /// Paid.
    Paid,
    /// Due and not paid.
    Overdue,
    /// Payment was tried and failed.
    Failed,
}

/// An invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invoice {
    /// How much.
    pub amount: Cents,
    /// Until when it is to be paid.
    pub due: Time,
    /// Where it stands.
    pub state: InvoiceState,
}

/// What was paid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payments {
    /// All settled payments.
    pub settled: Cents,
    /// The part of them that is disputed or was charged back.
    #[serde(default)]
    pub disputed: Cents,
    /// The last invoice; absent: none was made yet, which is neutral.
    #[serde(default)]
    pub last_invoice: Option<Invoice>,
}

impl Payments {
    /// Settled and not disputed.
    #[must_use]
    pub const fn undisputed(&self) -> Cents {
        Cents(self.settled.0.saturating_sub(self.disputed.0))
    }

    /// Whether a payment failed or is overdue at `at`. Of an invoice over nothing, nothing is owed.
    #[must_use]
    pub fn troubled(&self, at: Time) -> bool {
        (self
            .last_invoice
            .filter(|invoice| invoice.amount > Cents(0)))
        .is_some_and(|invoice| match invoice.state {
            InvoiceState::Failed | InvoiceState::Overdue => true,
            InvoiceState::Open => invoice.due < at,
            InvoiceState::Paid => false,
        })
    }
}

/// Credit that the provider gave: neutral, never bad.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credit {
    /// What is left of it.
    pub remaining: Cents,
    /// From which programme; empty: none in particular.
    #[serde(default)]
    pub programme: String,
}

/// Who vouches for the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vouch {
    /// A credit programme (startups, education).
    CreditProgramme,
    /// A contract.
    Contract,
    /// A contact in sales.
    SalesContact,
}

impl Vouch {
    /// In words, after "by".
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::CreditProgramme => "a credit programme",
            Self::Contract => "a contract",
            Self::SalesContact => "a contact in sales",
        }
    }
}

/// A link to another account: context for a person, never a justification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The other account.
    pub account: AccountId,
    /// What they share: `ssh_key`, `card`, `address`, …
    pub by: String,
    /// What is known of the other one.
    #[serde(default)]
    pub note: String,
}

/// A droplet in the account's inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Droplet {
    /// When it was created.
    pub created_at: Time,
    /// Its vCPUs; 0: not known.
    #[serde(default)]
    pub vcpus: u32,
}

/// Everything known about an account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Facts {
    /// When the account was made.
    pub created_at: Option<Known<Time>>,
    /// The first payment; `null` inside: none yet.
    pub first_payment_at: Option<Known<Option<Time>>>,
    /// The first droplet; `null` inside: none yet.
    pub first_droplet_at: Option<Known<Option<Time>>>,
    /// What was paid.
    pub payments: Option<Known<Payments>>,
    /// What it would pay for a month as it runs now.
    pub run_rate: Option<Known<Cents>>,
    /// Credit; `null` inside: none.
    pub credit: Option<Known<Option<Credit>>>,
    /// The Allow High CPU flag.
    pub high_cpu_allowed: Option<Known<bool>>,
    /// Who vouches; `null` inside: nobody.
    pub vouched: Option<Known<Option<Vouch>>>,
    /// Links to other accounts.
    pub links: Option<Known<Vec<Link>>>,
    /// All its droplets.
    pub droplets: Option<Known<BTreeMap<DropletId, Droplet>>>,
}

/// Facts that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// Of a time to come.
    #[error(
        "{fact} says {time}, which is after {now}: no fact is of the future; mend the clock or the record"
    )]
    Future {
        /// Which one.
        fact: &'static str,
        /// What it says.
        time: Time,
        /// The time now.
        now: Time,
    },
    /// They contradict each other.
    #[error(
        "payments: {disputed} disputed of {settled} settled; no more can be disputed than was settled"
    )]
    Disputed {
        /// Disputed.
        disputed: Cents,
        /// Settled.
        settled: Cents,
    },
    /// Too many.
    #[error("{count} {fact}: at most {ENTRIES_MAX} are taken")]
    TooMany {
        /// Of which fact.
        fact: &'static str,
        /// How many.
        count: usize,
    },
}

/// How far a provider's clock may be ahead.
const AHEAD_MAX: Span = Span::minutes(5);

impl Facts {
    /// Refuses what cannot be so.
    ///
    /// # Errors
    /// [`FactsError`]: nothing of these facts is to be taken then.
    pub fn check(&self, now: Time) -> Result<(), FactsError> {
        let latest = now.after(AHEAD_MAX);
        for (fact, time) in self.times() {
            if time > latest {
                return Err(FactsError::Future { fact, time, now });
            }
        }
        if let Some(Known { value, .. }) = &self.payments
            && value.disputed > value.settled
        {
            return Err(FactsError::Disputed {
                disputed: value.disputed,
                settled: value.settled,
            });
        }
        let count = |known: usize, fact| match known > ENTRIES_MAX {
            true => Err(FactsError::TooMany { fact, count: known }),
            false => Ok(()),
        };
        count(
            self.links.as_ref().map_or(0, |known| known.value.len()),
            "links",
        )?;
        count(
            self.droplets.as_ref().map_or(0, |known| known.value.len()),
            "droplets",
        )
    }

    /// What a clock that is ahead says is as of `now`, when it came: otherwise it would hide what another one says after it.
    #[must_use]
    pub fn as_of_at_most(mut self, now: Time) -> Self {
        fn clamp<T>(known: &mut Option<Known<T>>, now: Time) {
            if let Some(known) = known {
                known.as_of = known.as_of.min(now);
            }
        }
        let Self {
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
        } = &mut self;
        clamp(created_at, now);
        clamp(first_payment_at, now);
        clamp(first_droplet_at, now);
        clamp(payments, now);
        clamp(run_rate, now);
        clamp(credit, now);
        clamp(high_cpu_allowed, now);
        clamp(vouched, now);
        clamp(links, now);
        clamp(droplets, now);
        self
    }

    /// Every time in them that must not lie ahead, by name.
    fn times(&self) -> Vec<(&'static str, Time)> {
        let Self {
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
        } = self;
        let mut times = Vec::new();
        let mut add = |fact, time: Option<Time>| times.extend(time.map(|time| (fact, time)));
        add("created_at", created_at.map(|known| known.value));
        add("created_at.as_of", created_at.map(|known| known.as_of));
        for (fact, as_of, known) in [
            (
                "first_payment_at",
                "first_payment_at.as_of",
                first_payment_at,
            ),
            (
                "first_droplet_at",
                "first_droplet_at.as_of",
                first_droplet_at,
            ),
        ] {
            add(fact, known.and_then(|known| known.value));
            add(as_of, known.map(|known| known.as_of));
        }
        add("payments.as_of", payments.as_ref().map(|known| known.as_of));
        add("run_rate.as_of", run_rate.map(|known| known.as_of));
        add("credit.as_of", credit.as_ref().map(|known| known.as_of));
        add(
            "high_cpu_allowed.as_of",
            high_cpu_allowed.map(|known| known.as_of),
        );
        add("vouched.as_of", vouched.map(|known| known.as_of));
        add("links.as_of", links.as_ref().map(|known| known.as_of));
        if let Some(known) = droplets {
            add("droplets.as_of", Some(known.as_of));
            for droplet in known.value.values() {
                add("a droplet's created_at", Some(droplet.created_at));
            }
        }
        times
    }

    /// The earliest of the account's creation, first payment and first droplet that is known: it can only have been earlier.
    #[must_use]
    pub fn engaged_since(&self) -> Option<Time> {
        let inventory = self
            .droplets
            .as_ref()
            .and_then(|known| known.value.values().map(|droplet| droplet.created_at).min());
        [
            self.created_at.map(|known| known.value),
            self.first_payment_at.and_then(|known| known.value),
            self.first_droplet_at.and_then(|known| known.value),
            inventory,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Takes each fact of `newer` that is of a later time than the one held; a missing one leaves what is held. Says
    /// whether anything changed.
    pub fn update(&mut self, newer: Self) -> bool {
        let before = self.clone();
        let Self {
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
        } = newer;
        take(&mut self.created_at, created_at);
        take(&mut self.first_payment_at, first_payment_at);
        take(&mut self.first_droplet_at, first_droplet_at);
        take(&mut self.payments, payments);
        take(&mut self.run_rate, run_rate);
        take(&mut self.credit, credit);
        take(&mut self.high_cpu_allowed, high_cpu_allowed);
        take(&mut self.vouched, vouched);
        take(&mut self.links, links);
        take(&mut self.droplets, droplets);
        *self != before
    }
}

fn take<T>(held: &mut Option<Known<T>>, newer: Option<Known<T>>) {
    if let Some(newer) = newer
        && held.as_ref().is_none_or(|held| held.as_of <= newer.as_of)
    {
        *held = Some(newer);
    }
}

/// Droplets that were created together: derived, no fact of the provider's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burst {
    /// Them.
    pub droplets: Vec<DropletId>,
    /// When the first was created.
    pub since: Time,
}

/// The greatest number of droplets created within `within`, the latest such burst if several are as great. None without droplets.
#[must_use]
pub fn greatest_burst(droplets: &BTreeMap<DropletId, Droplet>, within: Span) -> Option<Burst> {
    let mut by_time: Vec<_> = droplets.iter().map(|(id, d)| (d.created_at, id)).collect();
    by_time.sort_unstable();
    let (mut best, mut first) = (0..0, 0);
    for last in 0..by_time.len() {
        while by_time[last].0 - by_time[first].0 > within {
            first += 1;
        }
        if last + 1 - first >= best.len() {
            best = first..last + 1;
        }
    }
    let since = by_time.get(best.start)?.0;
    Some(Burst {
        droplets: by_time[best].iter().map(|(_, id)| (*id).clone()).collect(),
        since,
    })
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
