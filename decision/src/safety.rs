//! The safeties: reasons why automation must not act on an account. Each looks at the input alone and says why.
//!
//! All of them are always looked at and all are in the plan, in force or not: a reviewer sees what spoke for the customer.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    account::{DropletId, Facts, Known},
    episode::Episode,
    fleet::Fleet,
    settings::Settings,
    time::{Span, Time},
};

/// A safety.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Safety {
    /// The account carries the Allow High CPU flag.
    HighCpuAllowed,
    /// A person unlocked it, and the hold has not ended.
    UnlockHold,
    /// Engaged long ago.
    LongStanding,
    /// Paid at least its last invoice and runs at a usual rate, or vouched for.
    GoodStanding,
    /// Something the decision needs is not known, or not known to be so still.
    UnknownStanding,
    /// The customer has spoken, and nobody has dealt with it.
    OpenConversation,
    /// The budget of automated actions is used up.
    BlastRadius,
    /// An operator stopped automation.
    KillSwitch,
}

impl Safety {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::HighCpuAllowed,
        Self::UnlockHold,
        Self::LongStanding,
        Self::GoodStanding,
        Self::UnknownStanding,
        Self::OpenConversation,
        Self::BlastRadius,
        Self::KillSwitch,
    ];

    /// Its name, as in policies and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HighCpuAllowed => "high_cpu_allowed",
            Self::UnlockHold => "unlock_hold",
            Self::LongStanding => "long_standing",
            Self::GoodStanding => "good_standing",
            Self::UnknownStanding => "unknown_standing",
            Self::OpenConversation => "open_conversation",
            Self::BlastRadius => "blast_radius",
            Self::KillSwitch => "kill_switch",
        }
    }
}

impl Safety {
    /// That it came into force, as a customer reads it.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::HighCpuAllowed => "your account was allowed to use much CPU",
            Self::UnlockHold => "a person released your account",
            Self::LongStanding => "it was found that you have been with us for long",
            Self::GoodStanding => "it was found that your account is in good standing",
            Self::UnknownStanding => "it was found that not enough is known about your account",
            Self::OpenConversation => "you wrote to us, and a person is to read that first",
            Self::BlastRadius => "too much was done automatically",
            Self::KillSwitch => "everything that is done automatically was stopped",
        }
    }
}

impl fmt::Display for Safety {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A safety that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Looked {
    /// Which one.
    pub safety: Safety,
    /// Whether it is in force.
    pub in_force: bool,
    /// Why, or why not, in words.
    pub why: String,
}

/// A hold that an unlock set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// When it was set.
    pub since: Time,
    /// Its end.
    pub until: Time,
    /// Who unlocked.
    pub by: String,
}

/// A person's word that this account may use all the CPU it likes. It stands beside the provider's own flag, and ends with a
/// person's word alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    /// Since when.
    pub since: Time,
    /// Who said so.
    pub by: String,
}

/// A customer who waits for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// When the customer first spoke without having been dealt with.
    pub since: Time,
}

/// What the safeties look at.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// The reference time.
    pub at: Time,
    /// The limits.
    pub settings: &'a Settings,
    /// At most so old may facts be that change: less at a release than at a decision.
    pub facts_fresh: Span,
    /// The facts.
    pub facts: &'a Facts,
    /// Why facts could not be fetched, if so.
    pub fetch_failed: Option<&'a str>,
    /// A person's word, beside the provider's flag.
    pub allowed: Option<&'a Allowed>,
    /// Holds.
    pub holds: &'a [Hold],
    /// The customer waits.
    pub conversation: Option<&'a Conversation>,
    /// Budget and kill switch.
    pub fleet: &'a Fleet,
    /// Droplets that would be acted on.
    pub targets: &'a [DropletId],
    /// The evidence that speaks against the account, if there is any.
    pub episode: Option<&'a Episode>,
}

/// Looks at all safeties.
#[must_use]
pub fn look(ground: &Ground<'_>) -> Vec<Looked> {
    Safety::ALL
        .into_iter()
        .map(|safety| {
            let (in_force, why) = match safety {
                Safety::HighCpuAllowed => high_cpu_allowed(ground),
                Safety::UnlockHold => unlock_hold(ground),
                Safety::LongStanding => long_standing(ground),
                Safety::GoodStanding => good_standing(ground),
                Safety::UnknownStanding => unknown_standing(ground),
                Safety::OpenConversation => open_conversation(ground),
                Safety::BlastRadius => ground.fleet.blast_radius(
                    ground.at,
                    ground.settings,
                    u64::try_from(ground.targets.len()).unwrap_or(u64::MAX),
                ),
                Safety::KillSwitch => ground.fleet.stopped(),
            };
            Looked {
                safety,
                in_force,
                why,
            }
        })
        .collect()
}

fn high_cpu_allowed(ground: &Ground<'_>) -> (bool, String) {
    if let Some(Allowed { since, by }) = ground.allowed {
        return (true, format!("{by} allowed high CPU on {since}"));
    }
    // A flag that was set counts, however old the fact is: stale facts never speak against a customer.
    match ground.facts.high_cpu_allowed {
        Some(Known { value: true, as_of }) => (
            true,
            format!("the account carries Allow High CPU, as of {as_of}"),
        ),
        Some(Known {
            value: false,
            as_of,
        }) => (
            false,
            format!("the account does not carry Allow High CPU, as of {as_of}"),
        ),
        None => (
            false,
            "whether the account carries Allow High CPU is not known".to_owned(),
        ),
    }
}

fn unlock_hold(ground: &Ground<'_>) -> (bool, String) {
    match ground
        .holds
        .iter()
        .filter(|hold| hold.until > ground.at)
        .max_by_key(|hold| hold.until)
    {
        Some(Hold { since, until, by }) => (
            true,
            format!("unlocked by {by} on {since}; held until {until}"),
        ),
        None => match ground.holds.iter().map(|hold| hold.until).max() {
            Some(ended) => (false, format!("the last hold ended on {ended}")),
            None => (false, "never unlocked".to_owned()),
        },
    }
}

fn long_standing(ground: &Ground<'_>) -> (bool, String) {
    let limit = ground.settings.long_standing_ms;
    match ground.facts.engaged_since() {
        Some(since) => {
            let engaged = ground.at - since;
            let relation = if engaged > limit {
                "more than"
            } else {
                "not more than"
            };
            (
                engaged > limit,
                format!("engaged since {since}, {engaged} ago: {relation} {limit}"),
            )
        }
        None => (
            false,
            "since when the account is engaged is not known".to_owned(),
        ),
    }
}

fn good_standing(ground: &Ground<'_>) -> (bool, String) {
    if let Some(Known {
        value: Some(vouch),
        as_of,
    }) = ground.facts.vouched
    {
        return (
            true,
            format!("vouched for by {}, as of {as_of}", vouch.words()),
        );
    }
    let Some(Known {
        value: payments, ..
    }) = &ground.facts.payments
    else {
        return (false, "payments are not known".to_owned());
    };
    let Some(invoice) = payments.last_invoice else {
        return (
            false,
            "no invoice was made yet: neither good nor bad".to_owned(),
        );
    };
    let Some(Known {
        value: run_rate, ..
    }) = ground.facts.run_rate
    else {
        return (false, "the run rate is not known".to_owned());
    };
    let (paid, times) = (payments.undisputed(), ground.settings.run_rate_times);
    if paid < invoice.amount {
        return (
            false,
            format!(
                "settled and undisputed {paid}, less than the last invoice of {}",
                invoice.amount
            ),
        );
    }
    let most = invoice.amount.0.saturating_mul(times);
    if run_rate.0 > most {
        return (
            false,
            format!(
                "run rate {run_rate}, more than {times} times the last invoice of {}",
                invoice.amount
            ),
        );
    }
    (
        true,
        format!(
            "settled and undisputed {paid}, at least the last invoice of {}; run rate {run_rate}, at most {times} times of it",
            invoice.amount
        ),
    )
}

fn unknown_standing(ground: &Ground<'_>) -> (bool, String) {
    if let Some(why) = ground.fetch_failed {
        return (true, format!("the facts could not be fetched: {why}"));
    }
    let mut unknown = doubtful(ground.facts, ground.at, ground.facts_fresh);
    if let Some(inventory) = &ground.facts.droplets {
        let foreign = |droplet: &&DropletId| !inventory.value.contains_key(*droplet);
        unknown.extend(
            ground
                .targets
                .iter()
                .filter(foreign)
                .map(|droplet| format!("droplet {droplet} is not in the account's inventory")),
        );
        let strangers = ground.episode.into_iter().flat_map(Episode::strangers);
        let strangers = strangers.filter(|droplet| !ground.targets.contains(droplet));
        unknown.extend(strangers.filter(foreign).map(|droplet| {
            format!(
                "droplet {droplet} showed evidence in this episode while it was not in the account's inventory"
            )
        }));
    }
    if unknown.is_empty() {
        return (
            false,
            format!(
                "every fact needed is known and at most {} old",
                ground.facts_fresh
            ),
        );
    }
    (true, unknown.join("; "))
}

/// What the decision needs and is missing, stale or of the future, in words.
#[must_use]
pub fn doubtful(facts: &Facts, at: Time, fresh: Span) -> Vec<String> {
    /// Clocks of two machines are not the same.
    const AHEAD_MAX: Span = Span::minutes(5);
    let Facts {
        created_at,
        first_payment_at,
        first_droplet_at,
        payments,
        run_rate,
        credit,
        high_cpu_allowed,
        vouched,
        // Context for people: no decision needs them.
        links: _,
        droplets,
    } = facts;
    let mut doubts = Vec::new();
    let needed = [
        ("created_at", created_at.map(|known| known.as_of)),
        (
            "first_payment_at",
            first_payment_at.map(|known| known.as_of),
        ),
        (
            "first_droplet_at",
            first_droplet_at.map(|known| known.as_of),
        ),
        ("payments", payments.as_ref().map(|known| known.as_of)),
        ("run_rate", run_rate.map(|known| known.as_of)),
        ("credit", credit.as_ref().map(|known| known.as_of)),
        (
            "high_cpu_allowed",
            high_cpu_allowed.map(|known| known.as_of),
        ),
        ("vouched", vouched.map(|known| known.as_of)),
        ("droplets", droplets.as_ref().map(|known| known.as_of)),
    ];
    for (fact, as_of) in needed {
        match as_of {
            None => doubts.push(format!("{fact} is not known")),
            Some(as_of) if as_of > at.after(AHEAD_MAX) => {
                doubts.push(format!("{fact} is of {as_of}, after the time now"));
            }
            Some(as_of) if at - as_of > fresh => {
                doubts.push(format!("{fact} is {} old, more than {fresh}", at - as_of));
            }
            Some(_) => {}
        }
    }
    doubts
}

fn open_conversation(ground: &Ground<'_>) -> (bool, String) {
    match ground.conversation {
        Some(Conversation { since }) => (
            true,
            format!(
                "the customer wrote on {since}, and no person has decided since ({})",
                ground.at - *since
            ),
        ),
        None => (
            false,
            "no word of the customer's waits for a decision".to_owned(),
        ),
    }
}
