//! What customers are told. Pure.
//!
//! Every text says what was seen, which rule applied, whether a person or Davy did it, what it means, and how to answer; none is
//! final without a way back.

use crate::{
    account::DropletId, case::CaseId, decide::Plan, policy::Step, settings::Settings, time::Time,
};

/// What was done, to whom it was done.
fn done(step: Step) -> &'static str {
    match step {
        Step::Throttle => {
            "The CPU of these droplets is capped; nothing on them is lost or turned off"
        }
        Step::PowerDown => {
            "These droplets were turned off; nothing on them is deleted, and they are turned on again if this was wrong"
        }
        Step::Lock => {
            "The account was locked; nothing in it is deleted, and it is unlocked if this was wrong"
        }
        Step::Observe | Step::CloserLook | Step::OpenCase | Step::Notify => {
            "We are writing to you because of how these droplets compute"
        }
    }
}

/// How to answer, the same in every text.
fn answer(case: &CaseId, settings: &Settings) -> String {
    format!(
        "If this is wrong, or you are not sure what it is about, answer this message (case {case}): a person reads it, and is to \
         answer within {}. Once you have written, nothing more is done automatically until a person has decided.",
        settings.first_answer_ms
    )
}

/// The statement of reasons of an automated action.
#[must_use]
pub fn of_plan(
    plan: &Plan,
    step: Step,
    case: &CaseId,
    ends_at: Option<Time>,
    settings: &Settings,
) -> String {
    let targets: Vec<_> = plan.targets.iter().map(DropletId::as_str).collect();
    let rules: Vec<_> = (plan.asked.iter())
        .filter(|asked| asked.step == step && asked.permitted)
        .flat_map(|asked| asked.policies.iter().map(String::as_str))
        .collect();
    let rules = if rules.is_empty() {
        "nobody is acted on without being told".to_owned()
    } else {
        rules.join(", ")
    };
    let end = ends_at.map_or_else(String::new, |end| {
        format!(" It ends by itself on {end}, unless a person extends it.")
    });
    format!(
        "{}: {}.{end}\n\nWhat was seen: {}. This is about how the droplets compute, not about how much CPU they use.\n\nWhich rule \
         applied: {rules}. This was done automatically; no person has looked at it yet.\n\n{}",
        done(step),
        targets.join(", "),
        plan.reasons.join("; "),
        answer(case, settings)
    )
}

/// Of an action that people decided.
#[must_use]
pub fn of_people(step: Step, reasons: &[&str], case: &CaseId, settings: &Settings) -> String {
    format!(
        "{}. This was decided by people, not automatically.\n\nTheir reasons:\n{}\n\nYou can appeal by answering this message: then two \
         people who have not decided on it before each look at it by themselves. {}",
        done(step),
        reasons
            .iter()
            .map(|reason| format!("- {reason}"))
            .collect::<Vec<_>>()
            .join("\n"),
        answer(case, settings)
    )
}

/// That an action is taken back.
#[must_use]
pub fn of_undo(step: Step, why: &str, case: &CaseId) -> String {
    let what = match step {
        Step::Throttle => "The cap on your droplets' CPU was lifted",
        Step::PowerDown => "The droplets that were turned off are turned on again",
        Step::Lock => "Your account was unlocked",
        Step::Observe | Step::CloserLook | Step::OpenCase | Step::Notify => {
            "Our earlier message does not stand any more"
        }
    };
    format!(
        "{what}: {why}. If anything is not as it was, answer this message (case {case}); a person reads it."
    )
}

/// For on-call: the customer waits too long.
#[must_use]
pub fn page_waiting(case: &CaseId, since: Time, locked: bool) -> String {
    let locked = if locked {
        ", and is locked or turned off"
    } else {
        ""
    };
    format!(
        "The customer of case {case} has waited for a person since {since}{locked}. `davyctl cases show {case}`"
    )
}

/// For on-call: something was not undone.
#[must_use]
pub fn page_undo(key: &str, why: &str, case: &CaseId) -> String {
    format!(
        "What Davy did is not undone ({key}): {why}. Undo it by hand, then `davyctl cases show {case}`"
    )
}
