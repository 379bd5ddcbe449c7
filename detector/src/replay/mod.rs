//! `davy-detector replay`: plays a scenario through the same deciding code, with a simulated clock, account directory and control plane.
//!
//! A scenario is JSON lines, each an [`event::Event`] with its time; `docs/scenario.md` has them all. Between two events the clock stops at
//! every moment at which something is due, so what time alone brings happens exactly when it is due. Nothing here decides:
//! [`world::World`] calls the transitions of `davy-decision` that the detector calls, in the same order.
//!
//! What cannot be (an unknown event or field, a time before the last, impossible facts) ends it with file and line.

pub mod event;
mod people;
pub mod provider;
pub mod timeline;
pub mod world;

use davy_decision::{policy::Policies, settings::Settings, time::Time};

use event::Timed;
use timeline::Entry;
use world::World;

/// Longest scenario, lines.
const LINES_MAX: usize = 100_000;

/// Why a scenario cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// A line is wrong.
    #[error("{file}:{line}: {why}")]
    Line {
        /// The scenario.
        file: String,
        /// Which line, from 1.
        line: usize,
        /// What is wrong, and what to do.
        why: String,
    },
    /// It has no events.
    #[error("{file} has no events; docs/scenario.md says how one is written")]
    Empty {
        /// The scenario.
        file: String,
    },
}

/// Reads a scenario's lines. Empty ones, and those that begin with `#`, do not count.
///
/// # Errors
/// [`ScenarioError`]: the first line that is wrong.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Vec<(usize, Timed)>, ScenarioError> {
    let mut events: Vec<(usize, Timed)> = Vec::new();
    let mut last: Option<Time> = None;
    for (index, bytes) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = index + 1;
        let wrong = |why: String| ScenarioError::Line {
            file: file.to_owned(),
            line,
            why,
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|_| wrong("is no UTF-8 text; write the scenario as JSON lines".to_owned()))?
            .trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if events.len() == LINES_MAX {
            return Err(wrong(format!(
                "is beyond {LINES_MAX} events; play it in parts"
            )));
        }
        let event: Timed = serde_json::from_str(text).map_err(|error| wrong(said(&error)))?;
        if let Some(last) = last.filter(|last| event.at < *last) {
            return Err(wrong(format!(
                "is of {}, before the event of {last} above it; put the events in the order of their times",
                event.at
            )));
        }
        last = Some(event.at);
        events.push((line, event));
    }
    if events.is_empty() {
        return Err(ScenarioError::Empty {
            file: file.to_owned(),
        });
    }
    Ok(events)
}

/// A JSON error without its own line, which is always 1 here.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    let text = text.get(..end).unwrap_or(&text);
    format!("{text}; docs/scenario.md has every event and field")
}

/// Plays a scenario to its end.
///
/// # Errors
/// [`ScenarioError`]: the first event that cannot be.
pub fn play(
    file: &str,
    events: &[(usize, Timed)],
    policies: Policies,
    settings: Settings,
) -> Result<World, ScenarioError> {
    let start = events
        .first()
        .map_or_else(Time::default, |(_, event)| event.at);
    let mut world = World::new(start, policies, settings);
    for (line, event) in events {
        world.advance(event.at);
        world.happen(event).map_err(|why| ScenarioError::Line {
            file: file.to_owned(),
            line: *line,
            why,
        })?;
    }
    world.settle();
    Ok(world)
}

/// The timeline of a played scenario, for people.
#[must_use]
pub fn to_text(entries: &[Entry]) -> String {
    timeline::text(entries)
}

/// The timeline, as JSON lines.
#[must_use]
pub fn to_json(entries: &[Entry]) -> String {
    timeline::json(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        match parse("s.jsonl", text.as_bytes()) {
            Err(error) => error.to_string(),
            Ok(events) => match play(
                "s.jsonl",
                &events,
                Policies::shipped().unwrap(),
                Settings::default(),
            ) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{text} was played"),
            },
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let fleet = r#"{"at":"2019-05-29T16:00:00Z","event":"fleet","droplets":1000}"#;
        for (line, words) in [
            (
                r#"{"at":"2019-05-29T16:00:00Z","event":"explode"}"#,
                "unknown variant `explode`",
            ),
            (
                r#"{"at":"2019-05-29T16:00:00Z","event":"clock","odd":1}"#,
                "unknown field `odd`",
            ),
            (r#"{"at":"yesterday","event":"clock"}"#, "RFC 3339"),
            (
                r#"{"at":"2019-05-29T15:59:59Z","event":"clock"}"#,
                "before the event of 2019-05-29T16:00:00Z",
            ),
            (
                r#"{"at":"2019-05-29T16:01:00Z","event":"account","account":"a","created_at":"2020-01-01T00:00:00Z"}"#,
                "no fact is of the future",
            ),
            (
                r#"{"at":"2019-05-29T16:01:00Z","event":"account","account":"a","payments":{"settled":-5}}"#,
                "-5",
            ),
            (
                r#"{"at":"2019-05-29T16:01:00Z","event":"unlock","account":"a","by":"ann"}"#,
                "no case",
            ),
            ("{", "EOF"),
        ] {
            let said = error(&format!("{fleet}\n\n# a remark\n{line}\n"));
            assert!(said.starts_with("s.jsonl:4: "), "{said}");
            assert!(said.contains(words), "{words}: {said}");
        }
        assert!(error("").contains("has no events"));
        let odd = parse("s.jsonl", b"\xff\xfe").unwrap_err().to_string();
        assert!(odd.contains("no UTF-8"), "{odd}");
    }
}
