//! JSON for machines, of answers about cases, accounts and automation: their fields as in `cases.proto`, with a `version`.
//!
//! Records that travel as JSON text (`…_json`) are unfolded under the name without that ending. `null` is "not known" or "none".
//! Characters that are not seen are replaced: what customers and agents write reaches no terminal as it is.

use anyhow::Context;
use davy_decision::words::plain;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::model::VERSION;

/// A document of one answer.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn of(answer: &impl Serialize) -> anyhow::Result<Value> {
    let value = serde_json::to_value(answer).context("the answer cannot be written as JSON")?;
    let mut document = Map::new();
    document.insert("version".to_owned(), VERSION.into());
    match unfold(value) {
        Value::Object(fields) => document.extend(fields),
        other => {
            document.insert("answer".to_owned(), other);
        }
    }
    Ok(Value::Object(document))
}

/// Records in the place of their text.
pub fn unfold(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(fields.into_iter().map(unfold_field).collect()),
        Value::Array(items) => items.into_iter().map(unfold).collect(),
        Value::String(text) => Value::String(plain(&text)),
        plain => plain,
    }
}

fn unfold_field((name, value): (String, Value)) -> (String, Value) {
    let Some(short) = name.strip_suffix("_json") else {
        return (name, unfold(value));
    };
    let parsed = match value {
        Value::Array(items) => items.into_iter().map(parse).collect(),
        one => parse(one),
    };
    (short.to_owned(), unfold(parsed))
}

/// The record in a text; what is none stays as it is.
fn parse(value: Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        other => other,
    }
}

/// As it is printed.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn pretty(document: &impl Serialize) -> anyhow::Result<String> {
    let mut text =
        serde_json::to_string_pretty(document).context("the answer cannot be written as JSON")?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_unfolded_and_control_characters_replaced() {
        let answer = serde_json::json!({
            "why": "a\u{1b}[2Jb",
            "note_json": "{\"at\":1}",
            "events_json": ["{\"a\":2}"],
            "absent_json": null,
        });
        assert_eq!(
            of(&answer).unwrap(),
            serde_json::json!({
                "version": VERSION,
                "why": "a\u{fffd}[2Jb",
                "note": {"at": 1},
                "events": [{"a": 2}],
                "absent": null,
            })
        );
    }
}
