//! A played scenario's timeline: for people as text, for programs as JSON lines.

use std::fmt::Write;

use davy_decision::{
    account::{AccountId, DropletId},
    decide::Plan,
    order::Order,
    time::Time,
    words::plain,
};
use serde::Serialize;

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something the scenario says.
    Scenario,
    /// A decision.
    Decision,
    /// Something that happened to a record.
    Event,
    /// An order that reached the control plane.
    Order,
    /// A person's act that was refused.
    Refused,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// When.
    pub at: Time,
    /// Whose; absent: the fleet's.
    pub account: Option<AccountId>,
    /// What about.
    pub kind: Kind,
    /// In words; further lines are details.
    pub text: String,
    /// The event, decision or order itself.
    pub data: serde_json::Value,
}

/// For people: one line each, details indented below.
#[must_use]
pub fn text(entries: &[Entry]) -> String {
    let mut text = String::new();
    let mut day = String::new();
    for entry in entries {
        let at = entry.at.to_string();
        let (date, time) = at.split_once('T').unwrap_or((&at, ""));
        if date != day {
            date.clone_into(&mut day);
            let _ = writeln!(text, "{}{day}", if text.is_empty() { "" } else { "\n" });
        }
        let sign = match entry.kind {
            Kind::Scenario => ">",
            Kind::Decision => "=",
            Kind::Event => "·",
            Kind::Order => "!",
            Kind::Refused => "x",
        };
        let account = entry.account.as_ref().map_or("", AccountId::as_str);
        let time = time.trim_end_matches('Z');
        let shown = plain(&entry.text);
        let mut lines = shown.lines();
        let first = lines.next().unwrap_or_default();
        let _ = writeln!(text, "  {time:<12} {account:<12} {sign} {first}");
        for line in lines {
            let _ = writeln!(text, "  {:<12} {:<12}     {line}", "", "");
        }
    }
    text
}

/// For programs: an object a line.
#[must_use]
pub fn json(entries: &[Entry]) -> String {
    let mut text = String::new();
    for entry in entries {
        // No value of an entry can fail to be written.
        text.push_str(&serde_json::to_string(entry).unwrap_or_default());
        text.push('\n');
    }
    text
}

/// Droplets, in short.
#[must_use]
pub fn list(droplets: &[DropletId]) -> String {
    match droplets {
        [first, _, _, .., last] => format!("{first} … {last} ({} droplets)", droplets.len()),
        few => few
            .iter()
            .map(DropletId::as_str)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// A decision.
#[must_use]
pub fn decided(at: Time, account: &AccountId, number: u64, plan: &Plan) -> Entry {
    let names: Vec<_> = plan.steps.iter().map(|step| step.name()).collect();
    let mut text = format!("decision {number}: {}", names.join(", "));
    for reason in &plan.reasons {
        text.push('\n');
        text.push_str(reason);
    }
    for looked in plan.safeties.iter().filter(|looked| looked.in_force) {
        let _ = write!(text, "\nsafety {}: {}", looked.safety, looked.why);
    }
    for overruled in &plan.overruled {
        text.push('\n');
        text.push_str(overruled);
    }
    let deciding = plan.deciding();
    if !deciding.is_empty() {
        let _ = write!(text, "\nby {}", deciding.join(", "));
    }
    Entry {
        at,
        account: Some(account.clone()),
        kind: Kind::Decision,
        text,
        data: serde_json::to_value(plan).unwrap_or_default(),
    }
}

/// An order that reached the control plane.
#[must_use]
pub fn ordered(at: Time, order: &Order) -> Entry {
    let who = if order.automated {
        "automated"
    } else {
        "asked for by people"
    };
    let mut text = format!("{} ({who}, {})", order.verb, order.key);
    if !order.droplets.is_empty() {
        let _ = write!(text, " on {}", list(&order.droplets));
    }
    for line in order.text.lines().filter(|line| !line.is_empty()) {
        text.push('\n');
        text.push_str(line);
    }
    Entry {
        at,
        account: Some(order.account.clone()),
        kind: Kind::Order,
        text,
        data: serde_json::to_value(order).unwrap_or_default(),
    }
}
