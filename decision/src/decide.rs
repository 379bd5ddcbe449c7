//! The decision: from an immutable input to a plan with reasons. Pure: the same input and policies give the same plan, bit for bit.
//!
//! Policies say what is permitted ([`crate::policy`]); then code checks the design's invariants 1 to 4 once more, whatever
//! they said:
//! 1. nothing that reaches the customer with a safety in force;
//! 2. unknown or stale facts are a safety;
//! 3. nothing that reaches the customer on CPU load, or on a single class of evidence;
//! 4. nothing that reaches the customer before an unlock's hold has ended;
//!
//! and nothing beyond what people have decided about the account.
//!
//! A plan does nothing: each of its steps is released on its own, where everything is looked at again.

use std::collections::BTreeSet;

use davy_evidence::Level;
use serde::{Deserialize, Serialize};

use crate::{
    account::{AccountId, Burst, DropletId, Facts, greatest_burst},
    episode::{Episode, Summary},
    fleet::Fleet,
    policy::{Asked, Policies, Situation, Step},
    safety::{self, Allowed, Conversation, Ground, Hold, Looked, Safety},
    settings::Settings,
    time::{Span, Time},
};

/// Everything a decision rests on. It is stored with the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The reference time.
    pub at: Time,
    /// Whose.
    pub account: AccountId,
    /// The digest of the policies.
    pub policy: String,
    /// The limits.
    pub settings: Settings,
    /// The evidence.
    pub episode: Episode,
    /// The facts, as held.
    pub facts: Facts,
    /// Why facts could not be fetched, if so.
    #[serde(default)]
    pub fetch_failed: Option<String>,
    /// A person's word that high CPU is allowed.
    #[serde(default)]
    pub allowed: Option<Allowed>,
    /// Holds that unlocks set.
    #[serde(default)]
    pub holds: Vec<Hold>,
    /// The customer waits for a person.
    #[serde(default)]
    pub conversation: Option<Conversation>,
    /// Kill switch and budget.
    pub fleet: Fleet,
    /// Steps that were taken in this episode, or are under way.
    #[serde(default)]
    pub taken: Vec<Step>,
    /// The account is throttled now, or may be: whoever asked for it, in whichever episode.
    #[serde(default)]
    pub throttled: bool,
    /// What a person decided for this account before.
    #[serde(default)]
    pub ruling: Option<Step>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The highest step it asks for.
    pub step: Step,
    /// All of them, mildest first; what was taken before is not among them.
    pub steps: Vec<Step>,
    /// Droplets to act on.
    pub targets: Vec<DropletId>,
    /// Why, in words.
    pub reasons: Vec<String>,
    /// Every safety, and whether it is in force.
    pub safeties: Vec<Looked>,
    /// What policies said to each step.
    pub asked: Vec<Asked>,
    /// Steps that policies permitted and code refused, and why.
    pub overruled: Vec<String>,
    /// What the evidence amounts to.
    pub evidence: Summary,
    /// The policies' digest.
    pub policy: String,
}

impl Plan {
    /// Whether any safety is in force.
    #[must_use]
    pub fn safety_in_force(&self) -> bool {
        self.safeties.iter().any(|looked| looked.in_force)
    }

    /// The ids of the policies that decided its steps, sorted, each once.
    #[must_use]
    pub fn deciding(&self) -> Vec<&str> {
        let mut ids: Vec<_> = (self.asked.iter())
            .filter(|asked| self.steps.contains(&asked.step))
            .flat_map(|asked| asked.policies.iter().map(String::as_str))
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Decides. `policies` are those that `input.policy` names; with others nothing but observing is planned.
#[must_use]
pub fn decide(policies: &Policies, input: &Input) -> Plan {
    let evidence = input.episode.summary(input.at, &input.settings);
    let mut safeties = safety::look(&ground(input, &evidence));
    let situation = situation(input, &evidence, &safeties);
    let asked = policies.ask(&situation);
    doubt_errors(&asked, policies, input, &mut safeties);
    let in_force: Vec<_> = in_force(&safeties);
    let mut overruled = Vec::new();
    let mut steps: Vec<Step> = Vec::new();
    for answer in &asked {
        if !answer.permitted {
            continue;
        }
        match refusal(answer.step, &evidence, &in_force, input.ruling) {
            Some(why) => overruled.push(format!(
                "{}: permitted by {}, refused: {why}",
                answer.step,
                answer.policies.join(", ")
            )),
            None => steps.push(answer.step),
        }
    }
    steps.retain(|step| !input.taken.contains(step));
    overruled.extend(withhold_untold(&asked, &mut steps));
    let acts = steps.iter().any(|step| step.is_customer_facing());
    // Every automated action has a case, and nobody is acted on without being told.
    for step in [Step::OpenCase, Step::Notify] {
        if acts && !steps.contains(&step) && !input.taken.contains(&step) {
            steps.push(step);
        }
    }
    steps.sort_unstable();
    let step = steps.iter().copied().max().unwrap_or_default();
    let targets = if acts {
        evidence.targets.clone()
    } else {
        Vec::new()
    };
    Plan {
        step,
        reasons: reasons(input, &evidence, &situation, &safeties, step),
        steps,
        targets,
        safeties,
        asked,
        overruled,
        evidence,
        policy: policies.digest().to_owned(),
    }
}

/// Every automated action has a case, and nobody is acted on without being told: where a policy forbids either, nothing that reaches
/// the customer is planned. A forbid beats whatever permits the rest.
fn withhold_untold(asked: &[Asked], steps: &mut Vec<Step>) -> Vec<String> {
    let forbids = |answer: &&Asked| {
        let needed = matches!(answer.step, Step::OpenCase | Step::Notify);
        needed && !answer.permitted && !answer.policies.is_empty()
    };
    let mut overruled = Vec::new();
    for answer in asked.iter().filter(forbids) {
        let acting: Vec<_> = steps
            .extract_if(.., |step| step.is_customer_facing())
            .collect();
        overruled.extend(acting.into_iter().map(|step| {
            format!(
                "{step}: refused: {} is forbidden by {}, and goes with it",
                answer.step,
                answer.policies.join(", ")
            )
        }));
    }
    overruled
}

/// What the safeties look at, of a decision's input.
#[must_use]
pub fn ground<'a>(input: &'a Input, evidence: &'a Summary) -> Ground<'a> {
    Ground {
        at: input.at,
        settings: &input.settings,
        facts_fresh: input.settings.facts_fresh_ms,
        facts: &input.facts,
        fetch_failed: input.fetch_failed.as_deref(),
        allowed: input.allowed.as_ref(),
        holds: &input.holds,
        conversation: input.conversation.as_ref(),
        fleet: &input.fleet,
        targets: &evidence.targets,
        episode: Some(&input.episode),
    }
}

/// The safeties in force.
#[must_use]
pub fn in_force(safeties: &[Looked]) -> Vec<Safety> {
    (safeties.iter())
        .filter(|looked| looked.in_force)
        .map(|looked| looked.safety)
        .collect()
}

/// An error while evaluating policies, or policies that are not the input's: nothing is known for sure.
fn doubt_errors(asked: &[Asked], policies: &Policies, input: &Input, safeties: &mut [Looked]) {
    let mut why: Vec<_> = asked
        .iter()
        .flat_map(|asked| asked.errors.iter().cloned())
        .collect();
    why.sort_unstable();
    why.dedup();
    let mut why: Vec<_> = why
        .into_iter()
        .map(|error| format!("a policy could not be evaluated: {error}"))
        .collect();
    if policies.digest() != input.policy {
        why.push(format!(
            "the policies are {}, the decision was to be made under {}",
            policies.digest(),
            input.policy
        ));
    }
    if why.is_empty() {
        return;
    }
    for looked in safeties
        .iter_mut()
        .filter(|looked| looked.safety == Safety::UnknownStanding)
    {
        if looked.in_force {
            why.insert(0, std::mem::take(&mut looked.why));
        }
        looked.in_force = true;
        looked.why = why.join("; ");
    }
}

/// Why automation may not take a step, whatever it is for: people have decided that less is enough.
#[must_use]
pub fn beyond_ruling(step: Step, ruling: Option<Step>) -> Option<String> {
    let ruling = ruling.filter(|ruling| step.is_customer_facing() && *ruling < step)?;
    Some(format!("people decided on no more than to {ruling}"))
}

/// Why a step that policies permit is not taken: by invariants 1 to 4, and because people have decided that less is enough.
fn refusal(
    step: Step,
    evidence: &Summary,
    in_force: &[Safety],
    ruling: Option<Step>,
) -> Option<String> {
    if !step.is_customer_facing() {
        return None;
    }
    if let Some(why) = beyond_ruling(step, ruling) {
        return Some(why);
    }
    if !in_force.is_empty() {
        let names: Vec<_> = in_force.iter().map(|safety| safety.name()).collect();
        return Some(format!("in force: {}", names.join(", ")));
    }
    if evidence.level != Level::Mining {
        return Some(format!("the evidence is {}", evidence.level));
    }
    if evidence.classes.count() < 2 {
        return Some(format!(
            "{} class of evidence, two are needed",
            evidence.classes.count()
        ));
    }
    if evidence.targets.is_empty() {
        return Some("no droplet mines now".to_owned());
    }
    None
}

fn situation<'a>(input: &'a Input, evidence: &Summary, safeties: &[Looked]) -> Situation<'a> {
    let burst = burst_of(input, evidence);
    Situation {
        account: &input.account,
        level: evidence.level,
        mining_seconds: evidence.mining.as_seconds(),
        suspect_seconds: evidence.suspect.as_seconds(),
        classes: evidence.classes.count(),
        // A day that has begun counts: 7 days and an hour are more than 7 days.
        engaged_days: (input.facts.engaged_since())
            .map(|since| (input.at - since).as_ms().div_ceil(Span::days(1).as_ms())),
        payment_trouble: (input.facts.payments.as_ref())
            .is_some_and(|known| known.value.troubled(input.at)),
        burst_droplets: burst.droplets,
        burst_mining_percent: burst.mining_percent,
        burst_mining_seconds: burst.mining.as_seconds(),
        throttled: input.throttled,
        ruling: input.ruling,
        safeties: in_force(safeties),
    }
}

/// The greatest burst, and how much of it mines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct BurstMining {
    droplets: u64,
    mining_percent: u64,
    mining: Span,
}

fn burst_of(input: &Input, evidence: &Summary) -> BurstMining {
    let within = input.settings.burst_within_ms;
    let burst =
        (input.facts.droplets.as_ref()).and_then(|known| greatest_burst(&known.value, within));
    let Some(Burst { droplets, since: _ }) = burst else {
        return BurstMining::default();
    };
    // Those that mine now; what one did before it stopped is not held against it.
    let targets: BTreeSet<_> = evidence.targets.iter().collect();
    let mut mining: Vec<Span> = (droplets.iter())
        .filter(|id| targets.contains(id))
        .filter_map(|id| input.episode.droplets.get(id))
        .map(|droplet| droplet.mining.total_ms)
        .collect();
    mining.sort_unstable_by(|a, b| b.cmp(a));
    let all = u64::try_from(droplets.len()).unwrap_or(u64::MAX);
    // For how long four fifths of them mined at least; with fewer that mine, those that do.
    let four_fifths = droplets.len().saturating_mul(4).div_ceil(5);
    let span = mining.get(four_fifths.saturating_sub(1)).or(mining.last());
    BurstMining {
        droplets: all,
        mining_percent: u64::try_from(mining.len())
            .unwrap_or(u64::MAX)
            .saturating_mul(100)
            / all.max(1),
        mining: span.copied().unwrap_or_default(),
    }
}

fn reasons(
    input: &Input,
    evidence: &Summary,
    situation: &Situation<'_>,
    safeties: &[Looked],
    step: Step,
) -> Vec<String> {
    let mut reasons = vec![match evidence.level {
        Level::Quiet => "no droplet of the account shows evidence now; CPU load is none".to_owned(),
        Level::Suspect => format!(
            "suspect for {} in this episode, which began on {}: only a person can tell",
            evidence.suspect, input.episode.since
        ),
        Level::Mining => format!(
            "mining for {} in this episode, which began on {}; now on {}, on {} of evidence",
            evidence.mining,
            input.episode.since,
            match evidence.targets.len() {
                1 => "1 droplet".to_owned(),
                more => format!("{more} droplets"),
            },
            match evidence.classes.count() {
                1 => "1 class".to_owned(),
                more => format!("{more} classes"),
            }
        ),
    }];
    for droplet in input
        .episode
        .droplets
        .values()
        .filter(|d| d.last.level == evidence.level && evidence.level > Level::Quiet)
        .take(3)
    {
        if let Some(reason) = droplet.last.reasons.first() {
            // The customer reads this: which host it is on is the provider's.
            reasons.push(format!("droplet {}: {reason}", droplet.last.droplet));
        }
    }
    if situation.burst_droplets > 1 {
        reasons.push(format!(
            "{} droplets were created within {}, of which {} per cent mine now",
            situation.burst_droplets,
            input.settings.burst_within_ms,
            situation.burst_mining_percent
        ));
    }
    let names: Vec<_> = situation
        .safeties
        .iter()
        .map(|safety| safety.name())
        .collect();
    if evidence.level > Level::Quiet {
        reasons.push(if safeties.iter().any(|looked| looked.in_force) {
            format!("in force for the customer: {}", names.join(", "))
        } else {
            "no safety is in force".to_owned()
        });
    }
    if step == Step::Observe && !input.taken.is_empty() {
        let taken: Vec<_> = input.taken.iter().map(|step| step.name()).collect();
        reasons.push(format!(
            "taken in this episode before: {}",
            taken.join(", ")
        ));
    }
    reasons
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
