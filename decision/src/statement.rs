//! What customers are told. Pure.
//!
//! Every text says what was seen, which rule applied, whether a person or Davy did it, what it means, and how to answer; none is
//! final without a way back.

use crate::{
    account::DropletId,
    action::By,
    case::CaseId,
    decide::Plan,
    episode::{DropletEvidence, Episode},
    policy::Step,
    settings::Settings,
    time::{Span, Time},
};

/// What was done, to whom it was done.
fn done(step: Step, droplets: &[DropletId]) -> String {
    let names: Vec<_> = droplets.iter().map(DropletId::as_str).collect();
    let names = names.join(", ");
    match step {
        Step::Throttle => {
            format!(
                "The CPU of these droplets is capped: {names}. Nothing on them is lost or turned off"
            )
        }
        Step::PowerDown => format!(
            "These droplets were turned off: {names}. Nothing on them is deleted, and they are turned on again if this was wrong"
        ),
        Step::Lock if names.is_empty() => {
            "The account was locked. Nothing in it is deleted, and it is unlocked if this was wrong"
                .to_owned()
        }
        Step::Lock => format!(
            "The account was locked because of these droplets: {names}. Nothing in it is deleted, and it is unlocked if this was wrong"
        ),
        Step::Observe | Step::CloserLook | Step::OpenCase | Step::Notify => {
            format!("We are writing to you because of how these droplets compute: {names}")
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

/// The statement of reasons of an automated action; `ruled`: people have decided abuse before, and that stands.
#[must_use]
pub fn of_plan(
    plan: &Plan,
    step: Step,
    case: &CaseId,
    ends_at: Option<Time>,
    ruled: bool,
    settings: &Settings,
) -> String {
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
    let who = if ruled {
        "This was done automatically, as people decided about your account before"
    } else {
        "This was done automatically; no person has decided on it"
    };
    format!(
        "{}.{end}\n\nWhat was seen: {}. This is about how the droplets compute, not about how much CPU they use.\n\nWhich rule \
         applied: {rules}. {who}.\n\n{}",
        done(step, &plan.targets),
        plan.reasons.join("; "),
        answer(case, settings)
    )
}

/// Of an action that people decided: a denial by two, or a throttle by one.
#[must_use]
pub fn of_people(
    step: Step,
    droplets: &[DropletId],
    reasons: &[&str],
    ends_at: Option<Time>,
    case: &CaseId,
    settings: &Settings,
) -> String {
    let end = ends_at.map_or_else(String::new, |end| {
        format!(" It ends by itself on {end}, unless a person extends it.")
    });
    let rule = if reasons.len() > 1 {
        "what a customer may not do is decided by two people, each with reasons of their own"
            .to_owned()
    } else {
        format!(
            "a person may cap the CPU of droplets that compute like a miner, or may do so, for {}; it ends by itself unless a person extends it",
            settings.throttle_ms
        )
    };
    // Only what takes the droplets away is reviewed like this; a throttle is looked at again by whoever reads the answer.
    let appeal = if step > Step::Throttle {
        "You can appeal by answering this message: then two people who have not decided on it before each look at it by themselves. "
    } else {
        ""
    };
    format!(
        "{}.{end} This was decided by people, not automatically.\n\nWhat they saw, and why they decided so, in their words:\n\
         {}\n\nWhich rule applied: {rule}.\n\n{appeal}{}",
        done(step, droplets),
        reasons
            .iter()
            .map(|reason| format!("- {reason}"))
            .collect::<Vec<_>>()
            .join("\n"),
        answer(case, settings)
    )
}

/// That a person lets a throttle go on, to another end than was said.
#[must_use]
pub fn of_renewal(
    droplets: &[DropletId],
    until: Time,
    reason: &str,
    case: &CaseId,
    settings: &Settings,
) -> String {
    format!(
        "{}. The cap lasts longer than we wrote: it ends by itself on {until}, unless a person extends it again. A person decided this, not \
         automatically.\n\nWhat they saw, and why they decided so, in their words:\n- {reason}\n\nWhich rule applied: a person may let a cap \
         go on for {} at a time.\n\n{}",
        done(Step::Throttle, droplets),
        settings.throttle_ms,
        answer(case, settings)
    )
}

/// That an account may not use as much CPU as it likes any more; `held`: until when nothing is done automatically, if it is.
#[must_use]
pub fn of_withdrawal(seen: &str, held: Option<Time>, case: &CaseId) -> String {
    let held = held.map_or_else(String::new, |until| {
        format!(" Nothing is done automatically before {until}.")
    });
    format!(
        "A person took back that your account may use as much CPU as it likes. Nothing is done to your account by this: how its droplets \
         compute is looked at as before.{held} A person decided this; it was not automated.\n\nWhat was seen: {seen}.\n\nWhich rule applied: a \
         person's word that allows an account high CPU ends with a person's word.\n\nIf this is wrong, answer this message (case {case}); a \
         person reads it."
    )
}

/// What was seen in an episode so far, on droplets that are known to be the account's: another one's are not for this customer to read.
/// None: nothing was.
#[must_use]
pub fn seen(episode: Option<&Episode>) -> Option<String> {
    let longest = |shows: fn(&DropletEvidence) -> Span| {
        let droplets = episode.iter().flat_map(|episode| &episode.droplets);
        let shown = droplets.filter(|(_, held)| held.own && shows(held) > Span::ZERO);
        let (names, spans): (Vec<_>, Vec<_>) =
            (shown.map(|(id, held)| (id.as_str(), shows(held)))).unzip();
        Some((names.join(", "), spans.into_iter().max()?))
    };
    if let Some((names, span)) = longest(|held| held.mining.total_ms) {
        return Some(format!(
            "these droplets computed like a miner, for up to {span}: {names}"
        ));
    }
    let (names, span) = longest(|held| held.suspect.total_ms)?;
    Some(format!(
        "of what these droplets compute only a person can tell what it is, for up to {span}: {names}"
    ))
}

/// That an action is taken back, and by whom; `statement`: what was said when it was done.
#[must_use]
pub fn of_undo(step: Step, why: &str, by: &By, case: &CaseId, statement: &str) -> String {
    let what = match step {
        Step::Throttle => "The cap on your droplets' CPU was lifted",
        Step::PowerDown => "The droplets that were turned off are turned on again",
        Step::Lock => "Your account was unlocked",
        Step::Observe | Step::CloserLook | Step::OpenCase | Step::Notify => {
            "Our earlier message does not stand any more"
        }
    };
    let (who, rule) = match by {
        By::Automation { .. } => (
            "This was done automatically",
            "what was done ends by itself when its time is over, when something that speaks for you comes up, or when nobody decides in time",
        ),
        By::Person { .. } => (
            "A person decided this",
            "a person's word is enough to take it back",
        ),
    };
    let quoted: Vec<_> = (statement.lines())
        .map(|line| format!("> {line}").trim_end().to_owned())
        .collect();
    format!(
        "{what}: {why}. {who}.\n\nWhich rule applied: {rule}. If anything is not as it was, answer this message (case {case}); a \
         person reads it.\n\nWhat was seen, and what we wrote when it was done:\n{}",
        quoted.join("\n")
    )
}

/// That a person released the account, on which nothing was to be undone.
#[must_use]
pub fn of_unlock(legitimate: bool, seen: &str, case: &CaseId, hold: Span) -> String {
    let allowed = if legitimate {
        ", and it may use as much CPU as it likes"
    } else {
        ""
    };
    format!(
        "A person looked at your case: how your droplets compute is not held against your account{allowed}. A person decided this; it \
         was not automated.\n\nWhat was seen: {seen}.\n\nWhich rule applied: one person's word releases an account; nothing is done automatically for {hold} from now.\n\nIf \
         you have more to say, answer this message (case {case}); a person reads it."
    )
}

/// A person's answer. Whatever it says, it names the case, and the way back.
#[must_use]
pub fn of_answer(text: &str, seen: &str, case: &CaseId) -> String {
    format!(
        "{}\n\nA person wrote this; it is about case {case}. What was seen so far: {seen}. Which rule applied: what was seen is for a person \
         to judge, and this message decides nothing. You can answer this message at any time; a person reads it.",
        text.trim_end()
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

/// For on-call: nobody has decided on what the customer said.
#[must_use]
pub fn page_undecided(case: &CaseId, since: Time, unanswered: bool) -> String {
    let answered = if unanswered {
        "has no answer yet"
    } else {
        "has an answer, and no decision"
    };
    format!(
        "The customer of case {case} wrote on {since} and {answered}; nothing is done automatically meanwhile. `davyctl cases show {case}`"
    )
}

/// For on-call: an appeal's second review does not come; it says nothing of the first.
#[must_use]
pub fn page_review(case: &CaseId, waited: Span) -> String {
    format!(
        "The appeal of case {case} wants its second review since {waited}, by somebody who has not decided on it before. `davyctl cases show \
         {case}`"
    )
}

/// For on-call: the customer does not get a letter.
#[must_use]
pub fn page_letter(number: u64, why: &str, case: &CaseId) -> String {
    format!(
        "Letter {number} does not reach the customer of case {case}: {why}. Reach them another way, then `davyctl cases show {case}`"
    )
}

/// For on-call: what people decided does not hold.
#[must_use]
pub fn page_measure(key: &str, why: &str, case: &CaseId) -> String {
    format!(
        "The control plane refused what people decided ({key}): {why}. It does not hold, and the customer was not told; see `davyctl cases show \
         {case}`, and decide again"
    )
}

/// For on-call: something was not undone.
#[must_use]
pub fn page_undo(key: &str, why: &str, case: &CaseId) -> String {
    format!(
        "What Davy did is not undone ({key}): {why}. Undo it by hand, then `davyctl cases show {case}`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        episode::Summary,
        policy::Asked,
        time::{Span, Time},
    };

    const END: Time = Time::from_unix_ms(1_559_148_180_000);

    fn case() -> CaseId {
        let account = "acct-1".try_into().unwrap();
        CaseId { account, number: 3 }
    }

    fn plan() -> Plan {
        Plan {
            step: Step::Throttle,
            steps: vec![Step::Throttle],
            targets: vec!["d-1".try_into().unwrap()],
            reasons: vec!["mining for 10 min in this episode".to_owned()],
            safeties: Vec::new(),
            asked: vec![Asked {
                step: Step::Throttle,
                permitted: true,
                policies: vec!["mining:throttle-the-new".to_owned()],
                errors: Vec::new(),
            }],
            overruled: Vec::new(),
            evidence: Summary::default(),
            policy: String::new(),
        }
    }

    fn says(text: &str, all: &[&str]) {
        for words in all {
            assert!(text.contains(words), "{words:?} is not in {text:?}");
        }
        // Nothing is final without a way back, and every text says how to answer.
        says_how_to_answer(text);
    }

    fn says_how_to_answer(text: &str) {
        assert!(text.contains("answer this message") || text.contains("answering this message"));
        assert!(text.contains("acct-1/3") && text.contains("a person"));
    }

    #[test]
    fn an_automated_step_says_what_was_seen_by_which_rule_that_it_was_automated_and_its_end() {
        let settings = Settings::default();
        let text = of_plan(
            &plan(),
            Step::Throttle,
            &case(),
            Some(END),
            false,
            &settings,
        );
        says(
            &text,
            &[
                "d-1",
                "mining for 10 min",
                "mining:throttle-the-new",
                "automatically; no person has decided on it",
                "It ends by itself on 2019-05-29T16:43:00Z",
                "Nothing on them is lost",
                "nothing more is done automatically until a person has decided",
            ],
        );
        let ruled = of_plan(&plan(), Step::Lock, &case(), None, true, &settings);
        says(&ruled, &["as people decided about your account before"]);
        assert!(!ruled.contains("no person has decided"));
    }

    #[test]
    fn what_people_decided_says_so_with_both_reasons_and_the_appeal() {
        let reasons = ["the first one", "and the second"];
        let droplets = ["d-1".try_into().unwrap(), "d-2".try_into().unwrap()];
        let of = |step, reasons: &[&str]| {
            let end = (step == Step::Throttle).then_some(END);
            of_people(step, &droplets, reasons, end, &case(), &Settings::default())
        };
        for step in [Step::Throttle, Step::PowerDown, Step::Lock] {
            let text = of(step, &reasons);
            says(&text, &reasons);
            says(
                &text,
                &[
                    "decided by people, not automatically",
                    "d-1, d-2",
                    "by two people, each with reasons of their own",
                ],
            );
            // What the code does not do is not promised.
            assert_eq!(
                text.contains("two people who have not decided on it before"),
                step != Step::Throttle
            );
        }
        says(
            &of(Step::Throttle, &reasons[..1]),
            &[
                "a person may cap",
                "for 1 d;",
                "ends by itself on 2019-05-29T16:43:00Z",
            ],
        );
    }

    #[test]
    fn what_is_taken_back_says_why_and_a_persons_answer_the_way_back() {
        for step in [Step::Notify, Step::Throttle, Step::PowerDown, Step::Lock] {
            let automatic = By::Automation { decision: 4 };
            let before = "Capped.\n\nWhat was seen: mining. Which rule applied: mining:new.";
            let undo = |why, by: &By| of_undo(step, why, by, &case(), before);
            says(
                &undo("it was meant to end by now", &automatic),
                &[
                    "meant to end",
                    "This was done automatically",
                    "Which rule applied: what was done ends by itself",
                    "> What was seen: mining.",
                ],
            );
            let person = By::Person {
                person: "ann".to_owned(),
            };
            let text = undo("a person lifted it", &person);
            says(
                &text,
                &["A person decided this", "> What was seen: mining."],
            );
            assert!(
                !text.contains("ann"),
                "who it was is the provider's: {text}"
            );
        }
        says(
            &of_answer("We are done here.", "nothing new", &case()),
            &[
                "We are done here.",
                "A person wrote this",
                "What was seen so far: nothing new",
                "Which rule applied",
            ],
        );
        says(
            &of_renewal(
                &["d-1".try_into().unwrap()],
                END,
                "it mines on",
                &case(),
                &Settings::default(),
            ),
            &[
                "d-1",
                "ends by itself on 2019-05-29T16:43:00Z",
                "it mines on",
                "A person decided",
            ],
        );
        says(
            &of_withdrawal("nothing new", Some(END), &case()),
            &[
                "took back",
                "before 2019-05-29T16:43:00Z",
                "What was seen: nothing new",
            ],
        );
        says(
            &of_unlock(true, "nothing new", &case(), Span::days(30)),
            &[
                "What was seen: nothing",
                "Which rule applied",
                "A person decided",
                "much CPU",
                "for 30 d",
            ],
        );
    }

    #[test]
    fn a_letter_names_no_droplet_that_is_not_known_to_be_the_customers() {
        let sighting = |droplet: &str, to: u64| crate::episode::Sighting {
            droplet: droplet.try_into().unwrap(),
            host: "h1".to_owned(),
            from: END,
            to: END.after(Span::minutes(to)),
            level: davy_evidence::Level::Suspect,
            classes: crate::episode::Classes::default(),
            cpu_percent: 100,
            neighbours_wait_percent: None,
            reasons: Vec::new(),
        };
        let mut episode = Episode::begin(1, sighting("another-ones", 60));
        episode.add(sighting("d-1", 5));
        let said = |episode: &Episode| seen(Some(episode));
        assert_eq!(said(&episode), None);
        episode.recognise([&"d-1".try_into().unwrap()]);
        let said = said(&episode).unwrap();
        assert!(said.ends_with("for up to 5 min: d-1"), "{said}");
    }

    #[test]
    fn pages_name_the_case_and_what_to_type() {
        let since = END.before(Span::minutes(20));
        for page in [
            page_waiting(&case(), since, true),
            page_undo("acct-1/1/lock/1/undo", "out of order", &case()),
            page_letter(4, "no such ticket", &case()),
            page_undecided(&case(), since, true),
            page_measure("acct-1/1/lock/1", "out of order", &case()),
            page_review(&case(), Span::minutes(120)),
        ] {
            assert!(page.contains("`davyctl cases show acct-1/3`"), "{page}");
        }
    }
}
