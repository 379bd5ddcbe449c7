//! `davyctl accounts`: facts about accounts, brought in and shown.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use davy_decision::words::plain_line;
use davy_decision::{
    account::{AccountId, Facts},
    time::Time,
};
use davy_proto::v1;
use prost::Message;
use serde::Serialize;
use serde_json::Value;

use crate::case_render as render;
use crate::client::{Detector, said};
use crate::document;

/// Longest line of a file, bytes: an account with ten thousand droplets is below it.
const LINE_BYTES_MAX: usize = 4 << 20;
/// Most records in one call, and most bytes: the detector takes 10,000, and messages of 4 MiB.
const PART_RECORDS_MAX: usize = 2_000;
const PART_BYTES_MAX: usize = 2 << 20;
/// Most lines that are told to be wrong.
const ERRORS_MAX: usize = 50;

/// What can be done with accounts.
#[derive(Subcommand)]
pub enum AccountsCommand {
    /// Bring in facts from a file of JSON lines: all of them, or, if a line is wrong, none.
    ///
    /// Each line is one account: {"account": "acct-1", "created_at": {"value": "2019-05-01T00:00:00Z", "as_of": "2019-05-29T16:43:00Z"}, …}.
    /// Facts are created_at, first_payment_at, first_droplet_at, payments, run_rate, credit, high_cpu_allowed, vouched, links and
    /// droplets; each has its value and the time it is of. Money is in cents. A missing fact is not known, which is a safety.
    /// docs/decisions.md has the fields of each.
    Import {
        /// The file; - is standard input
        file: PathBuf,
    },
    /// What is known of an account, of when it is, and which safeties are in force for it.
    Show {
        /// The account
        account: String,
    },
}

/// A line that is right.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number in the file, from 1.
    pub number: usize,
    /// Whose.
    pub account: AccountId,
    /// What.
    pub facts: Facts,
}

/// Reads lines; empty ones are passed over.
///
/// # Errors
/// Every line that is wrong, with its number and what to do.
pub fn read_lines(input: impl BufRead, now: Time) -> anyhow::Result<Vec<Line>> {
    let (mut lines, mut errors) = (Vec::new(), Vec::new());
    let mut seen: HashMap<AccountId, usize> = HashMap::new();
    for (number, text) in (1..).zip(input.lines()) {
        let text =
            text.with_context(|| format!("line {number} cannot be read: the file is to be UTF-8"))?;
        if text.trim().is_empty() {
            continue;
        }
        match read_line(number, &text, now) {
            Ok(line) => match seen.insert(line.account.clone(), number) {
                Some(first) => errors.push(format!(
                    "line {number}: account {} is in line {first}, too; keep one of them",
                    line.account
                )),
                None => lines.push(line),
            },
            Err(why) => errors.push(format!("line {number}: {why}")),
        }
    }
    if errors.is_empty() {
        return Ok(lines);
    }
    let count = errors.len();
    let are = if count == 1 {
        "1 line is"
    } else {
        &format!("{count} lines are")
    };
    if count > ERRORS_MAX {
        errors.truncate(ERRORS_MAX);
        errors.push(format!("and {} lines more", count - ERRORS_MAX));
    }
    bail!(
        "{are} wrong, and nothing was sent:\n  {}",
        errors.join("\n  ")
    )
}

fn read_line(number: usize, text: &str, now: Time) -> Result<Line, String> {
    if text.len() > LINE_BYTES_MAX {
        return Err(format!(
            "{} bytes, at most {LINE_BYTES_MAX}; split it",
            text.len()
        ));
    }
    let value: Value =
        serde_json::from_str(text).map_err(|error| format!("it is no JSON ({error})"))?;
    let Value::Object(mut fields) = value else {
        return Err("it is no object; write {\"account\": …, and the facts}".to_owned());
    };
    let account = match fields.remove("account") {
        Some(Value::String(account)) => account,
        Some(_) => return Err("\"account\" is no text; give the account's id".to_owned()),
        None => return Err("\"account\" is missing; give the account's id".to_owned()),
    };
    let account = AccountId::try_from(account).map_err(|error| format!("account: {error}"))?;
    // With the fact's name: "invalid value" alone does not say which.
    let facts: Facts = serde_path_to_error::deserialize(Value::Object(fields))
        .map_err(|error| format!("{error}; see `davyctl accounts import --help`"))?;
    if facts == Facts::default() {
        return Err("it has no facts; give at least one, or leave the line out".to_owned());
    }
    facts.check(now).map_err(|error| error.to_string())?;
    Ok(Line {
        number,
        account,
        facts,
    })
}

/// Reads a file, or standard input.
///
/// # Errors
/// As [`read_lines`], or if it cannot be opened.
pub fn read_file(path: &Path, now: Time) -> anyhow::Result<Vec<Line>> {
    let lines = if path == Path::new("-") {
        read_lines(std::io::stdin().lock(), now)
    } else {
        let file = std::fs::File::open(path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        read_lines(std::io::BufReader::new(file), now)
    };
    let lines = lines.with_context(|| path.display().to_string())?;
    if lines.is_empty() {
        bail!("{} has no lines", path.display());
    }
    Ok(lines)
}

/// What `davyctl accounts import` did.
#[derive(Debug, Default, Serialize)]
struct Imported {
    version: u32,
    taken: u64,
    refused: Vec<RefusedLine>,
}

/// A line that the detector did not take.
#[derive(Debug, Serialize)]
struct RefusedLine {
    line: usize,
    account: String,
    reason: String,
}

/// Sends what was read, in parts.
///
/// # Errors
/// If the detector does not answer, or refuses a line: those before it were taken.
pub async fn import(lines: Vec<Line>, detector: &Detector, json: bool) -> anyhow::Result<String> {
    let mut imported = Imported {
        version: crate::model::VERSION,
        ..Imported::default()
    };
    for part in parts(lines) {
        let numbers: Vec<_> = part.iter().map(|(number, _)| *number).collect();
        let records = part.into_iter().map(|(_, record)| record).collect();
        let answer = detector
            .intake()
            .push_facts(v1::PushFactsRequest { records })
            .await;
        let answer = answer.map_err(|status| {
            said(&status).context(format!(
                "{} accounts were taken before this",
                imported.taken
            ))
        })?;
        let v1::PushFactsResponse { taken, refused } = answer.into_inner();
        imported.taken += taken;
        imported.refused.extend(refused.into_iter().map(|refused| {
            RefusedLine {
                line: (usize::try_from(refused.index).ok())
                    .and_then(|index| numbers.get(index).copied())
                    .unwrap_or(0),
                account: plain_line(&refused.account),
                reason: plain_line(&refused.reason),
            }
        }));
    }
    if !imported.refused.is_empty() {
        let told: Vec<_> = (imported.refused.iter().take(ERRORS_MAX))
            .map(
                |RefusedLine {
                     line,
                     account,
                     reason,
                 }| format!("line {line}: account {account}: {reason}"),
            )
            .collect();
        bail!(
            "{} accounts were taken, {} refused by the detector:\n  {}",
            imported.taken,
            imported.refused.len(),
            told.join("\n  ")
        );
    }
    if json {
        return document::pretty(&imported);
    }
    let accounts = match imported.taken {
        1 => "1 account".to_owned(),
        several => format!("{several} accounts"),
    };
    Ok(format!("Facts about {accounts} were taken.\n"))
}

/// Records with their lines' numbers, in parts that a message has room for.
fn parts(lines: Vec<Line>) -> Vec<Vec<(usize, v1::AccountRecord)>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for Line {
        number,
        account,
        facts,
    } in lines
    {
        let record = v1::AccountRecord {
            account: account.to_string(),
            facts: Some(davy_proto::accounts::on_wire(&facts)),
        };
        let length = record.encoded_len();
        let full = parts
            .last()
            .is_none_or(|part: &Vec<_>| part.len() >= PART_RECORDS_MAX);
        if full || (bytes > 0 && bytes + length > PART_BYTES_MAX) {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += length;
        if let Some(part) = parts.last_mut() {
            part.push((number, record));
        }
    }
    parts
}

/// `davyctl accounts show`.
///
/// # Errors
/// One sentence.
pub async fn show(
    account: String,
    detector: &Detector,
    json: bool,
    width: Option<u16>,
) -> anyhow::Result<String> {
    let request = v1::GetAccountRequest { account };
    let answer = detector.cases().get_account(request).await;
    let answer = answer.map_err(|status| said(&status))?.into_inner();
    if json {
        document::pretty(&document::of(&answer)?)
    } else {
        Ok(render::account(&answer, width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_unix_ms(1_559_148_180_000);

    #[test]
    fn lines_that_are_right_are_taken() {
        let text = r#"{"account": "a", "run_rate": {"value": 100, "as_of": "2019-05-29T00:00:00Z"}}

{"account": "b", "vouched": {"value": null, "as_of": "2019-05-29T00:00:00Z"}}
"#;
        let lines = read_lines(text.as_bytes(), NOW).unwrap();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].facts.vouched.is_some());
        assert_eq!(lines[1].number, 3);
    }

    #[test]
    fn a_long_file_goes_in_parts_with_its_numbers() {
        let line = |n: usize| {
            format!(
                r#"{{"account": "a{n}", "run_rate": {{"value": 1, "as_of": "2019-05-29T00:00:00Z"}}}}"#
            )
        };
        let text: Vec<_> = (1..=2_500).map(line).collect();
        let parts = parts(read_lines(text.join("\n").as_bytes(), NOW).unwrap());
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [2_000, 500]);
        assert_eq!(parts[1][0].0, 2_001);
    }

    #[test]
    fn every_wrong_line_is_told_by_its_number() {
        let text = r#"{"account": "a", "run_rate": {"value": 100, "as_of": "2019-05-29T00:00:00Z"}}
{"run_rate": {"value": 100, "as_of": "2019-05-29T00:00:00Z"}}
{"account": "b", "runrate": {"value": 100, "as_of": "2019-05-29T00:00:00Z"}}
not json
{"account": "c", "run_rate": {"value": 100, "as_of": "2029-05-29T00:00:00Z"}}
{"account": "a", "run_rate": {"value": 100, "as_of": "2019-05-29T00:00:00Z"}}
{"account": "d"}
{"account": "e", "run_rate": {"value": "much", "as_of": "2019-05-29T00:00:00Z"}}
"#;
        let error = read_lines(text.as_bytes(), NOW).unwrap_err().to_string();
        for said in [
            "7 lines are wrong, and nothing was sent",
            "line 2: \"account\" is missing",
            "line 3: runrate: unknown field `runrate`",
            "line 4: it is no JSON",
            "line 5: run_rate.as_of says 2029-05-29T00:00:00Z",
            "line 6: account a is in line 1, too",
            "line 7: it has no facts",
            "line 8: run_rate.value: invalid type",
        ] {
            assert!(error.contains(said), "{said} is not in {error}");
        }
    }
}
