//! A scenario's provider: an account directory and a control plane, simulated.

use std::collections::{BTreeMap, BTreeSet};

use davy_decision::{
    account::{AccountId, Cents, Droplet, DropletId, Facts, Known, Payments},
    action::Outcome,
    order::Order,
    time::{Span, Time},
};

use super::event::{Dependency, GivenFacts, Manner};

/// An account.
#[derive(Clone, Debug)]
struct Held {
    /// What is so, but for times of knowing.
    facts: Facts,
    /// Facts that the directory does not know, though they are so; and how each is taken away.
    unknown: BTreeMap<String, fn(&mut Facts)>,
    /// The directory's facts are of this time, whenever it is asked.
    pinned: Option<Time>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Provider {
    accounts: BTreeMap<AccountId, Held>,
    down_until: BTreeMap<&'static str, Time>,
    manner: Manner,
    /// Keys of orders that were done.
    done: BTreeSet<String>,
    /// Orders that arrived and were done, in order.
    pub orders: Vec<Order>,
    /// How long a release takes.
    pub release_takes: Span,
}

const fn name(of: Dependency) -> &'static str {
    match of {
        Dependency::Directory => "directory",
        Dependency::ControlPlane => "control_plane",
        Dependency::Detector => "detector",
        Dependency::Executor => "executor",
    }
}

fn known<T>(value: T) -> Option<Known<T>> {
    Some(Known {
        value,
        as_of: Time::default(),
    })
}

impl Provider {
    /// A dependency is down until then.
    pub fn outage(&mut self, of: Dependency, until: Time) {
        self.down_until.insert(name(of), until);
    }

    /// When an outage ends; none if there is none at `at`.
    #[must_use]
    pub fn down(&self, of: Dependency, at: Time) -> Option<Time> {
        self.down_until
            .get(name(of))
            .copied()
            .filter(|until| *until > at)
    }

    /// How the control plane answers from now on.
    pub const fn answer(&mut self, manner: Manner, release_takes: Span) {
        (self.manner, self.release_takes) = (manner, release_takes);
    }

    /// Takes what a scenario says of an account.
    ///
    /// # Errors
    /// If it cannot be, in words.
    pub fn learn(
        &mut self,
        account: &AccountId,
        given: &GivenFacts,
        at: Time,
    ) -> Result<(), String> {
        let mut held = match self.accounts.get(account) {
            Some(held) => held.clone(),
            None => Held {
                facts: nothing_special(),
                unknown: BTreeMap::new(),
                pinned: None,
            },
        };
        held.pinned = given.as_of.or(held.pinned);
        held.merge(given)?;
        held.answer(at)
            .check(at)
            .map_err(|error| error.to_string())?;
        self.accounts.insert(account.clone(), held);
        Ok(())
    }

    /// Droplets are created at `at`.
    ///
    /// # Errors
    /// If the account is not known, or has one of them.
    pub fn create(
        &mut self,
        account: &AccountId,
        ids: &[DropletId],
        vcpus: u32,
        at: Time,
    ) -> Result<(), String> {
        let held = (self.accounts.get_mut(account)).ok_or_else(|| {
            format!("account {account} is not known; give an `account` event before")
        })?;
        let droplets = held.facts.droplets.get_or_insert_with(|| Known {
            value: BTreeMap::new(),
            as_of: Time::default(),
        });
        for id in ids {
            let droplet = Droplet {
                created_at: at,
                vcpus,
            };
            if droplets.value.insert(id.clone(), droplet).is_some() {
                return Err(format!("account {account} has a droplet {id} already"));
            }
        }
        let first = &mut held.facts.first_droplet_at;
        if first.is_some_and(|first| first.value.is_none()) {
            *first = known(Some(at));
        }
        Ok(())
    }

    /// Whose a droplet is.
    #[must_use]
    pub fn owner(&self, droplet: &DropletId) -> Option<&AccountId> {
        let has = |held: &Held| {
            (held.facts.droplets.as_ref()).is_some_and(|known| known.value.contains_key(droplet))
        };
        let found = self.accounts.iter().find(|(_, held)| has(held));
        found.map(|(account, _)| account)
    }

    /// What the directory answers.
    ///
    /// # Errors
    /// Why it does not, in words.
    pub fn facts(&self, account: &AccountId, at: Time) -> Result<Facts, String> {
        if self.down(Dependency::Directory, at).is_some() {
            return Err("the account directory does not answer".to_owned());
        }
        let held = (self.accounts.get(account))
            .ok_or_else(|| format!("the account directory knows no account {account}"))?;
        Ok(held.answer(at))
    }

    /// Takes an order; gives the answers that come back.
    pub fn perform(&mut self, order: &Order, at: Time) -> Vec<Outcome> {
        if self.down(Dependency::ControlPlane, at).is_some() {
            return vec![Outcome::Doubtful];
        }
        let does = match self.manner {
            Manner::Done | Manner::Silent | Manner::Twice => true,
            Manner::Refuses | Manner::Lost | Manner::Rubbish => false,
        };
        if does && self.done.insert(order.key.clone()) {
            self.orders.push(order.clone());
        }
        match self.manner {
            Manner::Done => vec![Outcome::Done],
            Manner::Twice => vec![Outcome::Done, Outcome::Done],
            Manner::Refuses => vec![Outcome::Refused {
                why: "the control plane does not do this".to_owned(),
            }],
            Manner::Lost | Manner::Silent | Manner::Rubbish => vec![Outcome::Doubtful],
        }
    }

    /// What became of the order with this key.
    #[must_use]
    pub fn query(&self, key: &str, at: Time) -> Outcome {
        if self.down(Dependency::ControlPlane, at).is_some() {
            Outcome::Doubtful
        } else if self.done.contains(key) {
            Outcome::Done
        } else {
            Outcome::NeverSeen
        }
    }
}

/// Everything known, and nothing of it special: what an account is before a scenario says more.
fn nothing_special() -> Facts {
    Facts {
        created_at: None,
        first_payment_at: known(None),
        first_droplet_at: known(None),
        payments: known(Payments::default()),
        run_rate: known(Cents(0)),
        credit: known(None),
        high_cpu_allowed: known(false),
        vouched: known(None),
        links: known(Vec::new()),
        droplets: known(BTreeMap::new()),
    }
}

impl Held {
    /// Takes what is said of it: what is given is known again.
    fn merge(&mut self, given: &GivenFacts) -> Result<(), String> {
        let GivenFacts {
            created_at,
            first_payment_at,
            first_droplet_at,
            payments,
            run_rate,
            credit,
            vouched,
            high_cpu_allowed,
            links,
            droplets,
            unknown,
            as_of: _,
        } = given.clone();
        let forgotten = &mut self.unknown;
        let mut known_again = |name: &str| {
            forgotten.remove(name);
        };
        macro_rules! take {
            ($($fact:ident)*) => {$(
                if let Some(value) = $fact {
                    self.facts.$fact = known(value);
                    known_again(stringify!($fact));
                }
            )*};
        }
        take!(created_at first_payment_at first_droplet_at payments run_rate credit vouched high_cpu_allowed links droplets);
        for fact in unknown {
            let forget = forgetting(&fact)?;
            self.unknown.insert(fact, forget);
        }
        Ok(())
    }

    /// What the directory says when it is asked at `at`.
    fn answer(&self, at: Time) -> Facts {
        let mut facts = self.facts.clone();
        for forget in self.unknown.values() {
            forget(&mut facts);
        }
        stamp(&mut facts, self.pinned.unwrap_or(at));
        facts
    }
}

fn forgetting(fact: &str) -> Result<fn(&mut Facts), String> {
    Ok(match fact {
        "created_at" => |facts| facts.created_at = None,
        "first_payment_at" => |facts| facts.first_payment_at = None,
        "first_droplet_at" => |facts| facts.first_droplet_at = None,
        "payments" => |facts| facts.payments = None,
        "run_rate" => |facts| facts.run_rate = None,
        "credit" => |facts| facts.credit = None,
        "vouched" => |facts| facts.vouched = None,
        "high_cpu_allowed" => |facts| facts.high_cpu_allowed = None,
        "links" => |facts| facts.links = None,
        "droplets" => |facts| facts.droplets = None,
        other => return Err(format!("unknown names {other:?}, which is no fact")),
    })
}

/// Facts as of `at`.
fn stamp(facts: &mut Facts, at: Time) {
    fn of<T>(known: &mut Option<Known<T>>, at: Time) {
        if let Some(known) = known {
            known.as_of = at;
        }
    }
    of(&mut facts.created_at, at);
    of(&mut facts.first_payment_at, at);
    of(&mut facts.first_droplet_at, at);
    of(&mut facts.payments, at);
    of(&mut facts.run_rate, at);
    of(&mut facts.credit, at);
    of(&mut facts.high_cpu_allowed, at);
    of(&mut facts.vouched, at);
    of(&mut facts.links, at);
    of(&mut facts.droplets, at);
}
