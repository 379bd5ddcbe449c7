//! The kill switch, the audit log, and what the safeties say to other automation.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use davy_decision::audit::{Chain, Entry, Note, ORIGIN};
use davy_decision::{dossier::Event, words};
use davy_proto::v1;
use serde::Serialize;

use crate::case_render as render;
use crate::client::{Detector, said};
use crate::document;
use crate::render::IF_WORDS_BREAK;

/// `davyctl audit`.
#[derive(Subcommand)]
pub enum AuditCommand {
    /// Recompute every entry's hash from the first one on: a changed, removed or swapped entry is found.
    ///
    /// Prints how many entries there are, and the last one's hash: note it elsewhere, and give it later with --expect, so that a log that
    /// was cut off or written anew is found, too. Exits with 1 at the first entry that does not fit.
    Verify {
        /// A hash noted earlier: it must be among the entries'
        #[arg(long, value_name = "HASH")]
        expect: Option<String>,
    },
    /// The entries, in order.
    Show {
        /// Only this account's
        #[arg(long)]
        account: Option<String>,
    },
}

/// `davyctl safety`.
#[derive(Subcommand)]
pub enum SafetyCommand {
    /// Ask whether automation may act on an account now, as the provider's other automation does.
    ///
    /// Every safety is shown with its reason. Exits with 0 if none is in force, and with 3 if one is.
    Check(CheckArgs),
}

#[derive(Args)]
pub struct CheckArgs {
    account: String,
    /// notify, throttle, power_down or lock
    action: String,
    /// A droplet that would be acted on, more than once if there are several; without: all of the account's
    #[arg(long = "droplet", value_name = "ID")]
    droplets: Vec<String>,
}

/// What `davyctl audit verify` found.
#[derive(Debug, Serialize)]
struct Verified {
    version: u32,
    entries: u64,
    head: String,
    /// Entries whose content is kept back until an appeal's reviews are in: their hashes were taken as they are.
    withheld: u64,
    /// The number of the entry with the hash expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_at: Option<u64>,
}

/// Follows the log as it comes in.
#[derive(Default)]
struct Verifier {
    chain: Chain,
    withheld: u64,
    expected_at: Option<u64>,
}

impl Verifier {
    fn follow(&mut self, entry: v1::AuditEntry, expect: Option<&str>) -> anyhow::Result<()> {
        let v1::AuditEntry {
            number,
            hash,
            note_json,
        } = entry;
        let followed = match note_json {
            Some(text) => {
                let note = note(number, &text)?;
                self.chain.follow(&Entry {
                    number,
                    note,
                    hash: hash.clone(),
                })
            }
            None if number == self.chain.entries + 1 => {
                self.withheld += 1;
                (self.chain.entries, self.chain.head) = (number, hash.clone());
                Ok(())
            }
            None => Err(davy_decision::audit::Broken::Number {
                expected: self.chain.entries + 1,
                found: number,
            }),
        };
        followed.with_context(|| format!("the audit log is broken at entry {number}"))?;
        if expect.is_some_and(|expect| expect.eq_ignore_ascii_case(&hash)) {
            self.expected_at = Some(number);
        }
        Ok(())
    }

    fn verified(self, expect: Option<&str>) -> anyhow::Result<Verified> {
        let Self {
            chain,
            withheld,
            expected_at,
        } = self;
        let expected_at = match expect {
            Some(hash) if hash == ORIGIN => Some(0),
            Some(hash) if expected_at.is_none() => bail!(
                "none of the {} entries has the hash {hash}: the log was cut off or written anew since it was noted",
                chain.entries
            ),
            _ => expected_at,
        };
        Ok(Verified {
            version: crate::model::VERSION,
            entries: chain.entries,
            head: chain.head,
            withheld,
            expected_at,
        })
    }
}

fn note(number: u64, text: &str) -> anyhow::Result<Note> {
    serde_json::from_str(text).with_context(|| {
        format!("the audit log is broken at entry {number}: it is no note; are davyctl and the detector of one release?")
    })
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `davyctl audit …`.
///
/// # Errors
/// If the log cannot be read, or is broken.
pub async fn audit(
    command: AuditCommand,
    detector: &Detector,
    json: bool,
    width: Option<u16>,
) -> anyhow::Result<String> {
    match command {
        AuditCommand::Verify { expect } => {
            if let Some(hash) = expect.as_ref().filter(|hash| !is_hash(hash)) {
                bail!(
                    "--expect {hash:?} is no hash: give 64 hex digits, as `davyctl audit verify` printed them"
                );
            }
            verify(detector, expect, json).await
        }
        AuditCommand::Show { account } => show(detector, account, json, width).await,
    }
}

async fn verify(detector: &Detector, expect: Option<String>, json: bool) -> anyhow::Result<String> {
    let request = v1::ReadAuditRequest::default();
    let answer = detector.automation().read_audit(request).await;
    let mut entries = answer.map_err(|status| said(&status))?.into_inner();
    let mut verifier = Verifier::default();
    while let Some(entry) = entries.message().await.map_err(|status| said(&status))? {
        verifier.follow(entry, expect.as_deref())?;
    }
    let verified = verifier.verified(expect.as_deref())?;
    if json {
        return document::pretty(&verified);
    }
    let mut text = format!(
        "{} entries, each as it was written.\nHead: {}\n",
        verified.entries, verified.head
    );
    if let Some(number) = verified.expected_at {
        text += &format!(
            "The hash you noted is entry {number}'s; {} came after it.\n",
            verified.entries - number
        );
    }
    if verified.withheld > 0 {
        text += &format!(
            "{} of them are kept from you, because your review of an appeal is wanted: shown, and checked in full, once it is in.\n",
            verified.withheld
        );
    }
    Ok(text)
}

async fn show(
    detector: &Detector,
    account: Option<String>,
    json: bool,
    width: Option<u16>,
) -> anyhow::Result<String> {
    let request = v1::ReadAuditRequest { account, after: 0 };
    let answer = detector.automation().read_audit(request).await;
    let mut stream = answer.map_err(|status| said(&status))?.into_inner();
    let mut entries = Vec::new();
    while let Some(entry) = stream.message().await.map_err(|status| said(&status))? {
        entries.push(entry);
    }
    if json {
        return document::pretty(&document::of(&serde_json::json!({ "entries": entries }))?);
    }
    if entries.is_empty() {
        return Ok("No entry.\n".to_owned());
    }
    let rows = entries
        .iter()
        .map(row)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let heads = [
        ("NUMBER", None, true),
        ("WHEN", Some(IF_WORDS_BREAK), false),
        ("ACCOUNT", None, false),
        ("WHO", None, false),
        ("WHAT", None, false),
    ];
    Ok(render::rows(&heads, &rows, width))
}

fn row(entry: &v1::AuditEntry) -> anyhow::Result<Vec<String>> {
    let Some(text) = &entry.note_json else {
        let what = "an opinion on an appeal under review".to_owned();
        let dash = || "-".to_owned();
        return Ok(vec![entry.number.to_string(), dash(), dash(), dash(), what]);
    };
    let note = note(entry.number, text)?;
    // An event of a later release is shown as it is.
    let what = match serde_json::from_value::<Event>(note.event.clone()) {
        Ok(event) => words::of(&event),
        Err(_) => note.event.to_string(),
    };
    Ok(vec![
        entry.number.to_string(),
        render::time(note.at.unix_ms()),
        note.account
            .map_or_else(|| "-".to_owned(), |account| account.to_string()),
        document::clean(&note.actor.to_string()),
        document::clean(&what),
    ])
}

/// `davyctl stop` and `davyctl resume`. `why`: of a stop.
///
/// # Errors
/// One sentence.
pub async fn switch(
    detector: &Detector,
    why: Option<String>,
    json: bool,
) -> anyhow::Result<String> {
    let mut automation = detector.automation();
    let stops = why.is_some();
    let answer = match why {
        Some(why) => automation.stop(v1::StopRequest { why }).await,
        None => automation.resume(v1::ResumeRequest {}).await,
    };
    let answer = answer.map_err(|status| said(&status))?.into_inner();
    if json {
        return document::pretty(&document::of(&answer)?);
    }
    Ok(match (stops, answer.changed) {
        (true, true) => {
            "Automation is stopped: no automated action leaves any more. Cases are opened, and people decide, as before.\nTo undo: davyctl resume\n".to_owned()
        }
        (true, false) => format!(
            "Automation was stopped already, by {}: {}\nTo undo: davyctl resume\n",
            document::clean(answer.stopped_by.as_deref().unwrap_or("-")),
            document::clean(answer.stopped_why.as_deref().unwrap_or("-"))
        ),
        (false, true) => "Automation goes on.\nTo undo: davyctl stop WHY\n".to_owned(),
        (false, false) => "Automation was not stopped; nothing was changed.\n".to_owned(),
    })
}

/// `davyctl safety …`. Says whether it is allowed, too.
///
/// # Errors
/// One sentence.
pub async fn safety(
    command: SafetyCommand,
    detector: &Detector,
    json: bool,
    width: Option<u16>,
) -> anyhow::Result<(String, bool)> {
    let SafetyCommand::Check(CheckArgs {
        account,
        action,
        droplets,
    }) = command;
    let request = v1::CheckRequest {
        account: account.clone(),
        action: action.replace('-', "_"),
        droplets,
    };
    let answer = detector.safeties().check(request).await;
    let answer = answer.map_err(|status| said(&status))?.into_inner();
    if json {
        return Ok((document::pretty(&document::of(&answer)?)?, answer.allowed));
    }
    let in_force: Vec<_> = (answer.safeties.iter())
        .filter(|safety| safety.in_force)
        .map(|safety| document::clean(&safety.name))
        .collect();
    let mut text = if answer.allowed {
        format!(
            "Allowed: no safety is in force for {account} as of {}.\n\n",
            render::time(answer.as_of_unix_ms)
        )
    } else {
        format!("Not allowed: {}.\n\n", in_force.join(", "))
    };
    text += &render::safeties(&answer.safeties, width);
    Ok((text, answer.allowed))
}

#[cfg(test)]
mod tests {
    use davy_decision::{audit::Actor, time::Time};

    use super::*;

    fn log() -> Vec<v1::AuditEntry> {
        let mut chain = Chain::default();
        let entries = (0..3).map(|n| {
            let entry = chain.append(Note {
                at: Time::from_unix_ms(n),
                account: None,
                actor: Actor::Automation,
                event: serde_json::json!("resumed"),
            });
            v1::AuditEntry {
                number: entry.number,
                note_json: Some(serde_json::to_string(&entry.note).unwrap()),
                hash: entry.hash,
            }
        });
        entries.collect()
    }

    fn verify(log: Vec<v1::AuditEntry>, expect: Option<&str>) -> anyhow::Result<Verified> {
        let mut verifier = Verifier::default();
        log.into_iter()
            .try_for_each(|entry| verifier.follow(entry, expect))?;
        verifier.verified(expect)
    }

    #[test]
    fn a_changed_byte_is_found_at_its_entry() {
        assert_eq!(verify(log(), None).unwrap().entries, 3);
        let mut changed = log();
        let note = changed[1].note_json.as_mut().unwrap();
        *note = note.replace("resumed", "resumee");
        let error = format!("{:#}", verify(changed, None).unwrap_err());
        assert!(error.contains("broken at entry 2"), "{error}");
    }

    #[test]
    fn a_hash_noted_earlier_is_found_among_the_entries_and_one_cut_off_is_not() {
        let noted = log()[1].hash.clone();
        assert_eq!(verify(log(), Some(&noted)).unwrap().expected_at, Some(2));
        let mut cut = log();
        cut.truncate(1);
        let error = verify(cut, Some(&noted)).unwrap_err().to_string();
        assert!(error.contains("cut off"), "{error}");
    }

    #[test]
    fn a_withheld_entry_still_binds_those_after_it() {
        let mut log = log();
        log[1].note_json = None;
        assert_eq!(verify(log.clone(), None).unwrap().withheld, 1);
        log[1].hash = ORIGIN.to_owned();
        assert!(verify(log, None).is_err());
    }
}
