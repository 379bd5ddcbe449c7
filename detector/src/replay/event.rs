//! What a scenario's lines may say. `docs/scenario.md` documents them, `docs/scenario.schema.json` is their schema.

use std::collections::BTreeMap;

use davy_decision::{
    account::{AccountId, Cents, Credit, Droplet, DropletId, Link, Payments, Vouch},
    episode::Classes,
    policy::Step,
    time::Time,
};
use davy_evidence::Level;
use serde::{Deserialize, Deserializer};

/// An event and its time.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Timed {
    /// When it happens.
    pub at: Time,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// A field that may be absent (unchanged), `null` (known: none), or a value.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A field that may be absent (unchanged) and is never `null`.
fn some<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Facts as a scenario gives them. At an account's first event what is absent is known and none; later it is unchanged.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GivenFacts {
    /// When the account was made.
    #[serde(deserialize_with = "some")]
    pub created_at: Option<Time>,
    /// The first payment.
    #[serde(deserialize_with = "given")]
    pub first_payment_at: Option<Option<Time>>,
    /// The first droplet.
    #[serde(deserialize_with = "given")]
    pub first_droplet_at: Option<Option<Time>>,
    /// What was paid.
    #[serde(deserialize_with = "some")]
    pub payments: Option<Payments>,
    /// For a month as it runs now.
    #[serde(deserialize_with = "some")]
    pub run_rate: Option<Cents>,
    /// Credit.
    #[serde(deserialize_with = "given")]
    pub credit: Option<Option<Credit>>,
    /// Who vouches.
    #[serde(deserialize_with = "given")]
    pub vouched: Option<Option<Vouch>>,
    /// The provider's flag.
    #[serde(deserialize_with = "some")]
    pub high_cpu_allowed: Option<bool>,
    /// Links.
    #[serde(deserialize_with = "some")]
    pub links: Option<Vec<Link>>,
    /// The whole inventory.
    #[serde(deserialize_with = "some")]
    pub droplets: Option<BTreeMap<DropletId, Droplet>>,
    /// Facts that the directory does not know from now on, by name.
    pub unknown: Vec<String>,
    /// The directory answers with facts of this time, whenever it is asked; absent: of the time it is asked.
    #[serde(deserialize_with = "some")]
    pub as_of: Option<Time>,
}

/// What an outage is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dependency {
    /// Facts cannot be fetched.
    Directory,
    /// Orders do not arrive, and queries are not answered.
    ControlPlane,
    /// The detector itself: nothing is decided or released.
    Detector,
    /// What releases: decisions are made, and wait in the outbox.
    Executor,
}

/// How the control plane answers orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// Does what it is asked and says so.
    #[default]
    Done,
    /// Refuses.
    Refuses,
    /// The order never arrives; nobody answers.
    Lost,
    /// It is done; nobody answers.
    Silent,
    /// It is done; the answer comes twice.
    Twice,
    /// It is not done; the answer is not understood.
    Rubbish,
}

/// What a person found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opined {
    /// To be unlocked.
    Unlock,
    /// Abuse.
    Deny,
}

/// An unlock's outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The customer is in the right.
    #[default]
    Legitimate,
    /// Nobody can tell.
    Unsure,
}

const fn minute_s() -> u64 {
    60
}

fn host() -> String {
    "host-1".to_owned()
}

/// An act of a person's on an account's case. With `refused` the scenario says that it is expected to be refused.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Act {
    /// Whose.
    pub account: AccountId,
    /// Who, by identity.
    pub by: String,
    /// Their text: a reason, or an answer to the customer.
    #[serde(default)]
    pub text: Option<String>,
    /// Of an unlock.
    #[serde(default)]
    pub outcome: Outcome,
    /// Of an opinion.
    #[serde(default)]
    pub finding: Option<Opined>,
    /// Of a denial: what follows.
    #[serde(default)]
    pub measure: Option<Step>,
    /// Of a claim: from another person.
    #[serde(default)]
    pub take_over: bool,
    /// Of Allow High CPU: take it back.
    #[serde(default)]
    pub revoke: bool,
    /// It is expected to be refused.
    #[serde(default)]
    pub refused: bool,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A remark, shown in the timeline.
    Note {
        /// What.
        text: String,
    },
    /// The clock goes on; nothing else.
    Clock {},
    /// The fleet's size.
    Fleet {
        /// Its droplets.
        droplets: u64,
    },
    /// What the provider's directory knows of an account.
    Account {
        /// Whose.
        account: AccountId,
        /// What.
        #[serde(flatten)]
        facts: Box<GivenFacts>,
    },
    /// Droplets are created.
    DropletCreated {
        /// Whose.
        account: AccountId,
        /// Which.
        droplets: Vec<DropletId>,
        /// Their vCPUs each.
        #[serde(default)]
        vcpus: u32,
    },
    /// Sensors see droplets compute, from now on until `for_s` is over or another such event says otherwise.
    Evidence {
        /// Which.
        droplets: Vec<DropletId>,
        /// What the sensors say.
        level: Level,
        /// Classes concluded; absent: those that the level needs.
        #[serde(default)]
        classes: Option<Classes>,
        /// For how long, s; absent: until said otherwise.
        #[serde(default)]
        for_s: Option<u64>,
        /// A window's span, s.
        #[serde(default = "minute_s")]
        window_s: u64,
        /// CPU used, per cent of one CPU; no evidence.
        #[serde(default)]
        cpu_percent: u64,
        /// The host.
        #[serde(default = "host")]
        host: String,
        /// Time other droplets of the host waited behind each, per cent.
        #[serde(default)]
        neighbours_wait_percent: Option<u64>,
        /// The verdict's reasons.
        #[serde(default)]
        reasons: Vec<String>,
        /// To whose record they are taken, whatever the inventories say: a wrong attribution.
        #[serde(default)]
        account: Option<AccountId>,
    },
    /// Droplets use CPU, and the sensors find nothing: load alone.
    Load {
        /// Which.
        droplets: Vec<DropletId>,
        /// Per cent of one CPU.
        cpu_percent: u64,
    },
    /// The customer writes.
    Customer {
        /// Who.
        account: AccountId,
        /// By which way.
        #[serde(default)]
        channel: String,
        /// What.
        text: String,
        /// The message's key; absent: its time.
        #[serde(default)]
        key: Option<String>,
    },
    /// A person takes the case up.
    Claim(Act),
    /// A person gives it back.
    GiveBack(Act),
    /// A person answers the customer.
    Answer(Act),
    /// A person unlocks.
    Unlock(Act),
    /// A person allows high CPU, or takes that back.
    AllowHighCpu(Act),
    /// A person throttles.
    Throttle(Act),
    /// A person renews the throttle.
    Renew(Act),
    /// A person lifts the throttle.
    Unthrottle(Act),
    /// A person proposes a denial, seconds it, or reviews an appeal.
    Opinion(Act),
    /// A person takes the last thing back.
    Undo(Act),
    /// A person closes the case.
    Close(Act),
    /// The kill switch is turned on.
    Stop {
        /// By whom.
        by: String,
        /// Why.
        why: String,
    },
    /// It is turned off.
    Resume {
        /// By whom.
        by: String,
    },
    /// A dependency is down.
    Outage {
        /// Which.
        of: Dependency,
        /// For how long, s.
        for_s: u64,
    },
    /// How the control plane answers from now on.
    ControlPlane {
        /// How.
        answers: Manner,
        /// How long each release takes, s: the next one leaves later.
        #[serde(default)]
        seconds_per_release: u64,
    },
    /// Settings change.
    Settings {
        /// Those that change, by name.
        change: serde_json::Map<String, serde_json::Value>,
    },
}
