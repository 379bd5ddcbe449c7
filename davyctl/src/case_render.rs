//! Cases and accounts for people. Pure: the time and the terminal's width are arguments.
//!
//! Times are said as how long ago they were; absent values as "not known" or "-", never as a zero.

use davy_decision::{
    time::{Span, Time},
    words::plain_line,
};
use davy_proto::v1;

use crate::prose::{paragraph, quoted};
use crate::render::{IF_WORDS_BREAK, age_ms, column, list, table};

/// Above links, everywhere.
const LINKS: &str = "Links to other accounts (context only, never a justification)";

fn span(ms: u64) -> String {
    Span::ms(ms / 1_000 * 1_000).to_string()
}

fn ago(then: Option<u64>, now: u64) -> String {
    then.map_or_else(
        || "-".to_owned(),
        |then| format!("{} ago", age_ms(then, now)),
    )
}

fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}

fn name(case: &v1::CaseSummary) -> String {
    format!("{}/{}", plain_line(&case.account), case.number)
}

fn state(case: &v1::CaseSummary) -> String {
    let of = |text: &Option<String>| plain_line(text.as_deref().unwrap_or_default());
    match case.state.as_str() {
        "claimed" => format!("claimed by {}", of(&case.claimed_by)),
        "decided" => format!("decided: {}", of(&case.ruling)),
        "closed" => format!("closed: {}", of(&case.ruling)),
        other => plain_line(other),
    }
}

fn customer(case: &v1::CaseSummary, now: u64) -> String {
    let Some(since) = case.waiting_since_unix_ms else {
        let undecided = case.undecided_since_unix_ms;
        return undecided.map_or_else(
            || "-".to_owned(),
            |since| format!("answered, undecided for {}", age_ms(since, now)),
        );
    };
    let waits = format!("waits {}", age_ms(since, now));
    let paged = if case.paged { ", paged" } else { "" };
    match case.first_answer_due_unix_ms {
        Some(due) if due < now => format!("{waits}, answer overdue{paged}"),
        Some(due) => format!("{waits}, answer due in {}{paged}", age_ms(now, due)),
        None => waits,
    }
}

fn opinions(case: &v1::CaseSummary) -> String {
    match (case.appealed_at_unix_ms, case.state.as_str(), case.opinions) {
        (Some(_), "open" | "claimed", 0) => "review wanted".to_owned(),
        (Some(_), _, 1) => "your review is in".to_owned(),
        (Some(_), _, given) => format!("{given} reviews"),
        (None, "open" | "claimed", given) if given > 0 => format!("denial, {given} of 2"),
        _ => "-".to_owned(),
    }
}

/// Of a case that is shown as it stood: as of when.
fn as_of(case: &v1::CaseSummary, now: u64) -> String {
    case.as_of_unix_ms.map_or_else(String::new, |at| {
        format!(
            " (as of {} ago, until your own review is in)",
            age_ms(at, now)
        )
    })
}

/// `davyctl cases list`.
pub fn list_of(answer: &v1::ListCasesResponse, now: u64, width: Option<u16>) -> String {
    if answer.cases.is_empty() {
        return "No case is open.\n".to_owned();
    }
    let columns = [
        column("CASE", None, false),
        column("STATE", None, false),
        column("LOCKED", Some(IF_WORDS_BREAK), false),
        column("CUSTOMER", None, false),
        column("OPINIONS", Some(IF_WORDS_BREAK + 1), false),
        column("OPENED", Some(1), true),
    ];
    let row = |case: &v1::CaseSummary| {
        vec![
            name(case),
            state(case),
            if case.locked { "yes" } else { "-" }.to_owned(),
            customer(case, now),
            opinions(case),
            ago(Some(case.opened_at_unix_ms), now),
        ]
    };
    let rows: Vec<_> = answer.cases.iter().map(row).collect();
    let count = |holds: &dyn Fn(&v1::CaseSummary) -> bool| {
        answer.cases.iter().filter(|case| holds(case)).count()
    };
    let mut text = table(&columns, &rows, width);
    text += &format!(
        "\n{}{}: {} open, {} locked, {} waiting customers, {} overdue\n",
        answer.cases.len(),
        if answer.more {
            " cases, and more"
        } else if rows.len() == 1 {
            " case"
        } else {
            " cases"
        },
        count(&|case| matches!(case.state.as_str(), "open" | "claimed")),
        count(&|case| case.locked),
        count(&|case| case.waiting_since_unix_ms.is_some()),
        count(&|case| case.first_answer_due_unix_ms.is_some_and(|due| due < now)),
    );
    text
}

/// What a change did, and how to take it back.
pub fn change(answer: &v1::ChangeResponse, back: &str) -> String {
    if answer.happened.is_empty() {
        return "It was so already; nothing was changed.\n".to_owned();
    }
    let mut text: String = (answer.happened.iter())
        .map(|sentence| format!("- {}\n", plain_line(sentence)))
        .collect();
    if let Some(case) = &answer.case {
        text += &format!("\nCase {} is {}.\n", name(case), state(case));
    }
    if !back.is_empty() {
        text += &format!("To undo: {back}\n");
    }
    text
}

/// Safeties, those in force first.
pub fn safeties(looked: &[v1::SafetyLooked], width: Option<u16>) -> String {
    let columns = [
        column("SAFETY", None, false),
        column("IN FORCE", None, false),
        column("WHY", None, false),
    ];
    let mut looked: Vec<_> = looked.iter().collect();
    looked.sort_by_key(|safety| !safety.in_force);
    let row = |safety: &&v1::SafetyLooked| {
        let in_force = if safety.in_force { "yes" } else { "no" };
        vec![
            plain_line(&safety.name),
            in_force.to_owned(),
            plain_line(&safety.why),
        ]
    };
    table(&columns, &looked.iter().map(row).collect::<Vec<_>>(), width)
}

fn facts(facts: &[v1::Fact], now: u64, width: Option<u16>) -> String {
    let columns = [
        column("FACT", None, false),
        column("VALUE", None, false),
        column("AS OF", None, true),
    ];
    let row = |fact: &v1::Fact| {
        let value = fact.value.as_deref().map(plain_line);
        vec![
            plain_line(&fact.name),
            value.unwrap_or_else(|| "not known".to_owned()),
            ago(fact.as_of_unix_ms, now),
        ]
    };
    table(&columns, &facts.iter().map(row).collect::<Vec<_>>(), width)
}

fn links(links: &[v1::Link], width: Option<u16>) -> String {
    if links.is_empty() {
        return String::new();
    }
    let columns = [
        column("ACCOUNT", None, false),
        column("SHARES", None, false),
        column("NOTE", None, false),
    ];
    let row = |link: &v1::Link| {
        vec![
            plain_line(&link.account),
            plain_line(&link.by),
            or_dash(Some(plain_line(&link.note))),
        ]
    };
    let rows: Vec<_> = links.iter().map(row).collect();
    table(&columns, &rows, width)
}

/// `davyctl accounts show`.
pub fn account(answer: &v1::GetAccountResponse, width: Option<u16>) -> String {
    let now = answer.at_unix_ms;
    let case = answer.case.as_ref();
    let fetched = match &answer.fetch_failed {
        Some(why) => format!(
            "failed {}: {}",
            ago(answer.fetched_at_unix_ms, now),
            plain_line(why)
        ),
        None => ago(answer.fetched_at_unix_ms, now),
    };
    let rows = [
        ("Account", plain_line(&answer.account)),
        ("Facts came", fetched),
        (
            "Last case",
            case.map_or_else(
                || "-".to_owned(),
                |case| format!("{}, {}", name(case), state(case)),
            ),
        ),
    ];
    let mut text = labelled(&rows, width);
    text.push('\n');
    text += &facts(&answer.facts, now, width);
    if !answer.links.is_empty() {
        text += &format!("\n{LINKS}\n{}", links(&answer.links, width));
    }
    text.push('\n');
    text += &safeties(&answer.safeties, width);
    text
}

fn labelled(rows: &[(&str, String)], width: Option<u16>) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|(label, value)| ((*label).to_owned(), value.clone()))
        .collect();
    list(&rows, width)
}

/// `davyctl cases show`.
pub fn case(answer: &v1::GetCaseResponse, width: Option<u16>) -> String {
    let now = answer.at_unix_ms;
    let mut text = String::new();
    if let Some(summary) = &answer.case {
        text += &head(answer, summary, width);
    }
    let mut section = |title: &str, body: String| {
        if !body.is_empty() {
            text += &format!("\n{title}\n{body}");
        }
    };
    section("Evidence", evidence(answer, now, width));
    section("Usual and unusual", comparisons(answer, width));
    section("Facts", facts(&answer.facts, now, width));
    section(LINKS, links(&answer.links, width));
    section("Safeties now", safeties(&answer.safeties, width));
    section("Decisions", decisions(answer, now, width));
    section("Actions", actions(answer, now, width));
    section("Opinions", given(answer, now, width));
    section("Messages", messages(answer, now, width));
    section("Letters", letters(answer, now, width));
    let ticket = answer.ticket.as_deref().map(|ticket| quoted(ticket, width));
    section("The customer's ticket", ticket.unwrap_or_default());
    text += &format!("\nHow to judge: {}\n", plain_line(&answer.guideline));
    text
}

fn head(answer: &v1::GetCaseResponse, summary: &v1::CaseSummary, width: Option<u16>) -> String {
    let now = answer.at_unix_ms;
    let ended = if answer.evidence_ended {
        " (the episode has ended)"
    } else {
        ""
    };
    let spans = |ms: Option<u64>| ms.map_or_else(|| "not known".to_owned(), span);
    let mut rows = vec![
        ("Case", name(summary)),
        ("State", state(summary) + &as_of(summary, now)),
        ("Opened", ago(Some(summary.opened_at_unix_ms), now)),
        (
            "Locked",
            if summary.locked { "yes" } else { "no" }.to_owned(),
        ),
        ("Customer", customer(summary, now)),
    ];
    if let Some(at) = answer.step_back_due_unix_ms {
        let when = if at > now {
            format!("in {}", age_ms(now, at))
        } else {
            "now".to_owned()
        };
        rows.push((
            "Steps back",
            format!("{when}: locks and power-downs are lifted, unless a person decides"),
        ));
    }
    if summary.appealed_at_unix_ms.is_some() {
        rows.push(("Appealed", ago(summary.appealed_at_unix_ms, now)));
    }
    rows.push((
        "Evidence",
        match &answer.level {
            Some(level) => format!(
                "{}{ended}; in the episode mining for {}, suspect for {}",
                plain_line(level),
                spans(answer.mining_ms),
                spans(answer.suspect_ms)
            ),
            None => "not known any more".to_owned(),
        },
    ));
    labelled(&rows, width)
}

fn evidence(answer: &v1::GetCaseResponse, now: u64, width: Option<u16>) -> String {
    if answer.droplets.is_empty() {
        return String::new();
    }
    let columns = [
        column("DROPLET", None, false),
        column("HOST", Some(1), false),
        column("VERDICT", None, false),
        column("CLASSES", Some(IF_WORDS_BREAK), false),
        column("MINING", None, true),
        column("SUSPECT", Some(3), true),
        column("CPU", Some(4), true),
        column("SEEN", Some(2), true),
    ];
    let row = |droplet: &v1::DropletReview| {
        vec![
            plain_line(&droplet.droplet),
            plain_line(&droplet.host),
            plain_line(&droplet.level),
            or_dash(Some(plain_line(&droplet.classes.join(", ")))),
            span(droplet.mining_ms),
            span(droplet.suspect_ms),
            format!("{} %", droplet.cpu_percent),
            ago(Some(droplet.to_unix_ms), now),
        ]
    };
    let mut text = table(
        &columns,
        &answer.droplets.iter().map(row).collect::<Vec<_>>(),
        width,
    );
    for droplet in &answer.droplets {
        for (number, reason) in droplet.reasons.iter().enumerate() {
            if number == 0 {
                text += &paragraph(&format!("{}: why", droplet.droplet), width);
            }
            text += &paragraph(&format!("- {reason}"), width);
        }
        text += &paragraph(
            &format!("{}: harm to neighbours: {}", droplet.droplet, droplet.harm),
            width,
        );
    }
    text
}

fn comparisons(answer: &v1::GetCaseResponse, width: Option<u16>) -> String {
    let columns = [
        column("WHAT", None, false),
        column("USUALLY", None, false),
        column("NOW", None, false),
        column("UNUSUAL", None, false),
    ];
    let row = |held: &v1::Comparison| {
        let unusual = match held.unusual {
            Some(true) => "yes",
            Some(false) => "no",
            None => "cannot tell",
        };
        vec![
            plain_line(&held.what),
            plain_line(&held.usually),
            plain_line(&held.now),
            unusual.to_owned(),
        ]
    };
    table(
        &columns,
        &answer.comparisons.iter().map(row).collect::<Vec<_>>(),
        width,
    )
}

fn decisions(answer: &v1::GetCaseResponse, now: u64, width: Option<u16>) -> String {
    let Some(last) = answer.decisions.first() else {
        return String::new();
    };
    let columns = [
        column("NUMBER", None, true),
        column("WHEN", None, true),
        column("STEPS", None, false),
        column("POLICIES", None, false),
    ];
    let row = |held: &v1::DecisionShown| {
        vec![
            held.number.to_string(),
            ago(Some(held.at_unix_ms), now),
            or_dash(Some(plain_line(&held.steps.join(", ")))),
            or_dash(Some(plain_line(&held.policies.join(", ")))),
        ]
    };
    let mut text = table(
        &columns,
        &answer.decisions.iter().map(row).collect::<Vec<_>>(),
        width,
    );
    text += &paragraph(&format!("Reasons of number {}:", last.number), width);
    for reason in &last.reasons {
        text += &paragraph(&format!("- {reason}"), width);
    }
    text
}

fn actions(answer: &v1::GetCaseResponse, now: u64, width: Option<u16>) -> String {
    if answer.actions.is_empty() {
        return String::new();
    }
    let columns = [
        column("ACTION", None, false),
        column("BY", None, false),
        column("PLANNED", Some(1), true),
        column("ENDS", Some(2), true),
        column("STATE", None, false),
        column("DROPLETS", Some(3), false),
    ];
    let row = |held: &v1::ActionShown| {
        let undo = if held.undo { "undo of " } else { "" };
        let ends = match held.ends_at_unix_ms {
            Some(at) if at > now => format!("in {}", age_ms(now, at)),
            at => ago(at, now),
        };
        let why = held
            .why
            .as_ref()
            .map_or_else(String::new, |why| format!(": {}", plain_line(why)));
        vec![
            format!("{undo}{}", plain_line(&held.step)),
            plain_line(&held.by),
            ago(Some(held.planned_at_unix_ms), now),
            ends,
            format!("{}{why}", plain_line(&held.state)),
            or_dash(Some(plain_line(&held.droplets.join(", ")))),
        ]
    };
    table(
        &columns,
        &answer.actions.iter().map(row).collect::<Vec<_>>(),
        width,
    )
}

fn given(answer: &v1::GetCaseResponse, now: u64, width: Option<u16>) -> String {
    let mut text = String::new();
    for held in &answer.opinions {
        let measure = held
            .measure
            .as_ref()
            .map_or_else(String::new, |step| format!(" ({})", plain_line(step)));
        let past = if held.past { ", from before" } else { "" };
        let by = format!(
            "{}, {}: {}{measure}{past}",
            held.by,
            ago(Some(held.at_unix_ms), now),
            held.finding
        );
        text += &paragraph(&by, width);
        text += &quoted(&held.reason, width);
    }
    if answer.review_wanted {
        let note = "Each reviewer of an appeal judges alone: what another one may have found and done is shown once yours is in.";
        text += &paragraph(note, width);
    }
    text
}

fn letters(answer: &v1::GetCaseResponse, now: u64, width: Option<u16>) -> String {
    let mut text = String::new();
    for held in &answer.letters {
        let to = match held.to.as_str() {
            "on_call" => "on-call",
            other => other,
        };
        let head = format!(
            "to {}, by {}, {}: {}",
            plain_line(to),
            plain_line(&held.by),
            ago(Some(held.written_at_unix_ms), now),
            plain_line(&held.state)
        );
        text += &paragraph(&head, width);
        text += &quoted(&held.text, width);
    }
    text
}

fn messages(answer: &v1::GetCaseResponse, now: u64, width: Option<u16>) -> String {
    let mut text = String::new();
    for held in &answer.messages {
        text += &paragraph(
            &format!("{}, {}:", held.from, ago(Some(held.at_unix_ms), now)),
            width,
        );
        text += &quoted(&held.text, width);
    }
    text
}

/// The kill switch and the budget, as labels and values.
pub fn fleet(answer: &v1::GetFleetResponse, now: u64) -> Vec<(String, String)> {
    let switch = if answer.stopped {
        format!(
            "on: stopped by {} {}: {}",
            plain_line(answer.stopped_by.as_deref().unwrap_or("-")),
            ago(answer.stopped_since_unix_ms, now),
            plain_line(answer.stopped_why.as_deref().unwrap_or("-"))
        )
    } else {
        "off: automation runs".to_owned()
    };
    let fleet = (answer.droplets).map_or_else(
        || "an unknown number".to_owned(),
        |droplets| droplets.to_string(),
    );
    let rows = [
        ("Kill switch", switch),
        (
            "Automated actions",
            format!(
                "{} of {} within the hour; {} of {fleet} droplets held, up to {} per mille",
                answer.actions_within_hour,
                answer.actions_per_hour_max,
                answer.droplets_held,
                answer.fleet_per_mille_max
            ),
        ),
    ];
    rows.into_iter()
        .map(|(label, value)| (label.to_owned(), value))
        .collect()
}

/// A point in time for people who compare logs.
pub fn time(unix_ms: u64) -> String {
    Time::from_unix_ms(unix_ms / 1_000 * 1_000).to_string()
}

/// A table of the audit log's entries or of decisions.
pub fn rows(
    heads: &[(&'static str, Option<u8>, bool)],
    rows: &[Vec<String>],
    width: Option<u16>,
) -> String {
    let columns: Vec<_> = heads
        .iter()
        .map(|(head, drop, right)| column(head, *drop, *right))
        .collect();
    table(&columns, rows, width)
}

#[cfg(test)]
#[path = "case_render_tests.rs"]
mod tests;
