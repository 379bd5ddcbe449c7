//! Policies: Cedar text, validated against the schema, with the safeties' forbids added to every set.
//!
//! Default deny; `forbid` beats `permit`. Cedar skips a policy that errors, so an erroring forbid would allow: any error while
//! evaluating means deny, and [`Asked::errors`] says so. What is permitted here is checked once more in code ([`crate::decide`]).

use std::{collections::BTreeMap, str::FromStr};

use cedar_policy::{
    ActionConstraint, Authorizer, Context, Decision, Effect, Entities, EntityId, EntityTypeName,
    EntityUid, PolicyId, PolicySet, Request, RestrictedExpression, Schema,
};
use davy_evidence::Level;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{account::AccountId, safety::Safety};

mod load;

const SCHEMA: &str = include_str!("../policies/schema.cedarschema");
const SAFETIES: &str = include_str!("../policies/safeties.cedar");
/// The policy that ships.
pub const DEFAULT: &str = include_str!("../policies/default.cedar");

/// Longest text of all policies together, bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// A step of the ladder, mildest first.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Go on watching.
    #[default]
    Observe,
    /// Ask the agent for more samples.
    CloserLook,
    /// Let a person decide.
    OpenCase,
    /// Tell the customer.
    Notify,
    /// Cap the droplets' CPU.
    Throttle,
    /// Turn the droplets off.
    PowerDown,
    /// Lock the account.
    Lock,
}

impl Step {
    /// All of them, mildest first.
    pub const ALL: [Self; 7] = [
        Self::Observe,
        Self::CloserLook,
        Self::OpenCase,
        Self::Notify,
        Self::Throttle,
        Self::PowerDown,
        Self::Lock,
    ];

    /// Its name, as in policies.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::CloserLook => "closer_look",
            Self::OpenCase => "open_case",
            Self::Notify => "notify",
            Self::Throttle => "throttle",
            Self::PowerDown => "power_down",
            Self::Lock => "lock",
        }
    }

    /// Whether a denial can amount to it.
    #[must_use]
    pub const fn is_measure(self) -> bool {
        matches!(self, Self::Throttle | Self::PowerDown | Self::Lock)
    }

    /// Whether it reaches the customer: what every safety forbids.
    #[must_use]
    pub const fn is_customer_facing(self) -> bool {
        match self {
            Self::Observe | Self::CloserLook | Self::OpenCase => false,
            Self::Notify | Self::Throttle | Self::PowerDown | Self::Lock => true,
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What policies are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Situation<'a> {
    /// Whose.
    pub account: &'a AccountId,
    /// The evidence now.
    pub level: Level,
    /// Seconds `mining`.
    pub mining_seconds: u64,
    /// Seconds at least `suspect`.
    pub suspect_seconds: u64,
    /// Classes of evidence.
    pub classes: u64,
    /// Days since it was engaged, if known.
    pub engaged_days: Option<u64>,
    /// A payment failed or is overdue.
    pub payment_trouble: bool,
    /// Droplets of the greatest burst.
    pub burst_droplets: u64,
    /// The share of them that mines, per cent.
    pub burst_mining_percent: u64,
    /// For how long each of those did at least.
    pub burst_mining_seconds: u64,
    /// The account is throttled now, or may be: whoever asked for it, in whichever episode.
    pub throttled: bool,
    /// What a person decided before.
    pub ruling: Option<Step>,
    /// The safeties in force.
    pub safeties: Vec<Safety>,
}

/// What policies said to one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Which step.
    pub step: Step,
    /// Whether it is permitted.
    pub permitted: bool,
    /// The ids of the policies that decided, sorted; none for a default deny.
    pub policies: Vec<String>,
    /// Errors while evaluating: if there are any, nothing is permitted.
    pub errors: Vec<String>,
}

/// A policy, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Described {
    /// Its id.
    pub id: String,
    /// Whether it permits; else it forbids.
    pub permits: bool,
    /// The steps that it is about.
    pub steps: Vec<Step>,
    /// Its text.
    pub text: String,
}

/// Why policies cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No Cedar.
    #[error("{file}: {why}")]
    Syntax {
        /// Which file.
        file: String,
        /// Cedar's words.
        why: String,
    },
    /// It speaks of what the schema does not have, or cannot be true.
    #[error("{file}: policy {policy}: {why}")]
    Schema {
        /// Which file.
        file: String,
        /// Which policy.
        policy: String,
        /// Cedar's words.
        why: String,
    },
    /// A policy has no id, or another's.
    #[error(
        "{file}: {why}; give each policy an @id of its own that does not begin with \"safety:\""
    )]
    Id {
        /// Which file.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// A template, which would need links to say anything.
    #[error(
        "{file}: has a template (?principal or ?resource); write a policy for each case instead"
    )]
    Template {
        /// Which file.
        file: String,
    },
    /// No policies, in a file or at all, or too long.
    #[error("{0}")]
    Size(String),
}

/// A validated set of policies.
#[derive(Clone, Debug)]
pub struct Policies {
    set: PolicySet,
    entities: Entities,
    digest: String,
    principal: EntityUid,
    account: EntityTypeName,
    asked: [Slice; Step::ALL.len()],
}

/// A step and the policies that are about it. Cedar calls this slicing: one about another action is never satisfied and cannot err,
/// since scopes are looked at first; it costs time alone.
#[derive(Clone, Debug)]
struct Slice {
    step: Step,
    action: EntityUid,
    policies: PolicySet,
}

impl Slice {
    fn of(set: &PolicySet, step: Step) -> Result<Self, PolicyError> {
        let action = uid("Action", step.name())?;
        let about = (set.policies())
            .filter(|policy| concerns(&policy.action_constraint(), step, &action))
            .cloned();
        let policies = PolicySet::from_policies(about).map_err(|error| PolicyError::Syntax {
            file: format!("the policies about {step}"),
            why: error.to_string(),
        })?;
        Ok(Self {
            step,
            action,
            policies,
        })
    }

    fn all(set: &PolicySet) -> Result<[Self; Step::ALL.len()], PolicyError> {
        let slices: Result<Vec<_>, _> = Step::ALL
            .map(|step| Self::of(set, step))
            .into_iter()
            .collect();
        slices?
            .try_into()
            .map_err(|_| PolicyError::Size("no actions".to_owned()))
    }
}

/// A kind of entity as this module names them itself: a failure is a fault in it.
fn kind(name: &str) -> Result<EntityTypeName, PolicyError> {
    EntityTypeName::from_str(&format!("Davy::{name}")).map_err(|error| PolicyError::Syntax {
        file: "an entity's kind".to_owned(),
        why: error.to_string(),
    })
}

fn uid(name: &str, id: &str) -> Result<EntityUid, PolicyError> {
    Ok(EntityUid::from_type_name_and_id(
        kind(name)?,
        EntityId::new(id),
    ))
}

impl Policies {
    /// The set that ships.
    ///
    /// # Errors
    /// Never, as a test shows.
    pub fn shipped() -> Result<Self, PolicyError> {
        Self::new(&BTreeMap::from([(
            "default.cedar".to_owned(),
            DEFAULT.to_owned(),
        )]))
    }

    /// Of files, by name. The safeties' forbids are added.
    ///
    /// # Errors
    /// [`PolicyError`]: what is wrong, and in which file.
    pub fn new(files: &BTreeMap<String, String>) -> Result<Self, PolicyError> {
        let length: usize = files.values().map(String::len).sum();
        if files.is_empty() || length > TEXT_BYTES_MAX {
            return Err(PolicyError::Size(format!(
                "{} policy files of {length} bytes: at least one is needed, and at most {TEXT_BYTES_MAX} bytes",
                files.len()
            )));
        }
        let (schema, _) =
            Schema::from_cedarschema_str(SCHEMA).map_err(|error| PolicyError::Syntax {
                file: "schema.cedarschema".to_owned(),
                why: error.to_string(),
            })?;
        let mut set = PolicySet::new();
        load::add(&mut set, ("safeties.cedar", SAFETIES), &schema, true)?;
        for (file, text) in files {
            load::add(&mut set, (file, text), &schema, false)?;
        }
        let entities =
            Entities::from_entities([], Some(&schema)).map_err(|error| PolicyError::Syntax {
                file: "schema.cedarschema".to_owned(),
                why: error.to_string(),
            })?;
        Ok(Self {
            asked: Slice::all(&set)?,
            set,
            entities,
            digest: digest(files),
            principal: uid("Automation", "detector")?,
            account: kind("Account")?,
        })
    }

    /// Names the set: SHA-256 of schema, safeties and files, in hex.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The ids of all policies, the safeties' included, sorted.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = self
            .set
            .policies()
            .map(|policy| policy.id().to_string())
            .collect();
        ids.sort_unstable();
        ids
    }

    /// Every policy, the safeties' included, by id.
    #[must_use]
    pub fn describe(&self) -> Vec<Described> {
        let mut all: Vec<_> = (self.set.policies())
            .map(|policy| Described {
                id: AsRef::<str>::as_ref(policy.id()).to_owned(),
                permits: policy.effect() == Effect::Permit,
                steps: (self.asked.iter())
                    .filter(|slice| slice.policies.policy(policy.id()).is_some())
                    .map(|slice| slice.step)
                    .collect(),
                text: policy.to_string(),
            })
            .collect();
        all.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// This set with one of its policies alone: to see what that one would permit. None if there is no such policy.
    pub(crate) fn alone(&self, id: &str) -> Option<Self> {
        let policy = self.set.policy(&PolicyId::new(id))?.clone();
        let set = PolicySet::from_policies([policy]).ok()?;
        Some(Self {
            asked: Slice::all(&set).ok()?,
            set,
            ..self.clone()
        })
    }

    /// Asks about one step.
    pub(crate) fn permits(&self, step: Step, situation: &Situation<'_>) -> bool {
        let slice = self.asked.iter().find(|slice| slice.step == step);
        match (context(situation), slice) {
            (Ok(context), Some(slice)) => {
                let resource = self.resource(situation);
                self.ask_one(slice, &resource, &context).permitted
            }
            _ => false,
        }
    }

    /// Whether the agent is asked for more samples of a tenant that shows `level`. It may be nobody's as far as is known, and asking
    /// reaches no customer: so the answer rests on the level alone, and on no fact.
    #[must_use]
    pub fn look_closer_at(&self, level: Level) -> bool {
        let Ok(account) = AccountId::try_from("unattributed") else {
            return false;
        };
        let situation = Situation {
            account: &account,
            level,
            mining_seconds: 0,
            suspect_seconds: 0,
            classes: 0,
            engaged_days: None,
            payment_trouble: false,
            burst_droplets: 0,
            burst_mining_percent: 0,
            burst_mining_seconds: 0,
            throttled: false,
            ruling: None,
            safeties: Vec::new(),
        };
        self.permits(Step::CloserLook, &situation)
    }

    /// Asks about every step, mildest first.
    #[must_use]
    pub fn ask(&self, situation: &Situation<'_>) -> Vec<Asked> {
        let (resource, context) = (self.resource(situation), context(situation));
        (self.asked.iter())
            .map(|slice| match &context {
                Ok(context) => self.ask_one(slice, &resource, context),
                Err(why) => refused(slice.step, why.clone()),
            })
            .collect()
    }

    fn resource(&self, situation: &Situation<'_>) -> EntityUid {
        let id = EntityId::new(situation.account.as_str());
        EntityUid::from_type_name_and_id(self.account.clone(), id)
    }

    fn ask_one(&self, slice: &Slice, resource: &EntityUid, context: &Context) -> Asked {
        let Slice {
            step,
            action,
            policies,
        } = slice;
        let request = Request::new(
            self.principal.clone(),
            action.clone(),
            resource.clone(),
            context.clone(),
            None,
        );
        let request = match request {
            Ok(request) => request,
            Err(error) => return refused(*step, error.to_string()),
        };
        let response = Authorizer::new().is_authorized(&request, policies, &self.entities);
        let mut errors: Vec<_> = response
            .diagnostics()
            .errors()
            .map(ToString::to_string)
            .collect();
        errors.sort_unstable();
        let mut policies: Vec<_> = response
            .diagnostics()
            .reason()
            .map(|id| AsRef::<str>::as_ref(id).to_owned())
            .collect();
        policies.sort_unstable();
        Asked {
            step: *step,
            permitted: response.decision() == Decision::Allow && errors.is_empty(),
            policies,
            errors,
        }
    }
}

/// Whether a policy with this constraint is about a step.
fn concerns(constraint: &ActionConstraint, step: Step, action: &EntityUid) -> bool {
    // The group's name, as in the schema.
    let group =
        |held: &EntityUid| step.is_customer_facing() && held.id().unescaped() == "customer_facing";
    match constraint {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(held) => held == action,
        ActionConstraint::In(all) => all.iter().any(|held| held == action || group(held)),
    }
}

fn refused(step: Step, why: String) -> Asked {
    Asked {
        step,
        permitted: false,
        policies: Vec::new(),
        errors: vec![why],
    }
}

fn digest(files: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    let builtin = [("schema.cedarschema", SCHEMA), ("safeties.cedar", SAFETIES)];
    let files = files
        .iter()
        .map(|(file, text)| (file.as_str(), text.as_str()));
    for (file, text) in builtin.into_iter().chain(files) {
        for part in [file, text] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
    }
    let bytes = hash.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn context(situation: &Situation<'_>) -> Result<Context, String> {
    let Situation {
        account: _,
        level,
        mining_seconds,
        suspect_seconds,
        classes,
        engaged_days,
        payment_trouble,
        burst_droplets,
        burst_mining_percent,
        burst_mining_seconds,
        throttled,
        ruling,
        safeties,
    } = situation;
    let long = |n: u64| RestrictedExpression::new_long(i64::try_from(n).unwrap_or(i64::MAX));
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let names = safeties.iter().map(|safety| text(safety.name()));
    let mut pairs = vec![
        ("level", text(&level.to_string())),
        ("mining_seconds", long(*mining_seconds)),
        ("suspect_seconds", long(*suspect_seconds)),
        ("classes", long(*classes)),
        (
            "payment_trouble",
            RestrictedExpression::new_bool(*payment_trouble),
        ),
        ("burst_droplets", long(*burst_droplets)),
        ("burst_mining_percent", long(*burst_mining_percent)),
        ("burst_mining_seconds", long(*burst_mining_seconds)),
        ("throttled", RestrictedExpression::new_bool(*throttled)),
        ("ruling", text(ruling.map_or("", Step::name))),
        ("safeties", RestrictedExpression::new_set(names)),
    ];
    pairs.extend(engaged_days.map(|days| ("engaged_days", long(days))));
    Context::from_pairs(
        pairs
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value)),
    )
    .map_err(|error| error.to_string())
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
