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
    /// Why these are not all, if so: the rest is kept from who is to review an appeal.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_back: Option<String>,
    /// The number of the entry with the hash expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_at: Option<u64>,
}

/// Follows the log as it comes in.
#[derive(Default)]
struct Verifier {
    chain: Chain,
    kept_back: Option<String>,
    expected_at: Option<u64>,
}

impl Verifier {
    fn follow(&mut self, entry: v1::AuditEntry, expect: Option<&str>) -> anyhow::Result<()> {
        let v1::AuditEntry {
            number,
            hash,
            note_json,
        } = entry;
        let note = note(number, &note_json)?;
        let followed = self.chain.follow(&Entry {
            number,
            note,
            hash: hash.clone(),
        });
        followed.with_context(|| format!("the audit log is broken at entry {number}"))?;
        if expect.is_some_and(|expect| expect.eq_ignore_ascii_case(&hash)) {
            self.expected_at = Some(number);
        }
        Ok(())
    }

    fn verified(self, expect: Option<&str>) -> anyhow::Result<Verified> {
        let Self {
            chain,
            kept_back,
            expected_at,
        } = self;
        let expected_at = match expect {
            Some(hash) if hash == ORIGIN => Some(0),
            Some(hash) if expected_at.is_none() && kept_back.is_some() => bail!(
                "whether an entry has the hash {hash} cannot be told: {}",
                kept_back.unwrap_or_default()
            ),
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
            kept_back,
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
    while let Some(entry) = next(&mut entries, &mut verifier.kept_back).await? {
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
    if let Some(why) = &verified.kept_back {
        text += &format!("These are not all: {}.\n", words::plain_line(why));
    }
    Ok(text)
}

/// The next entry. What is kept from who asks, because their review of an appeal is wanted, ends the log for them.
async fn next(
    entries: &mut tonic::Streaming<v1::AuditEntry>,
    kept_back: &mut Option<String>,
) -> anyhow::Result<Option<v1::AuditEntry>> {
    match entries.message().await {
        Ok(entry) => Ok(entry),
        Err(status) if status.code() == tonic::Code::FailedPrecondition => {
            *kept_back = Some(status.message().to_owned());
            Ok(None)
        }
        Err(status) => Err(said(&status)),
    }
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
    let (mut entries, mut kept_back) = (Vec::new(), None);
    while let Some(entry) = next(&mut stream, &mut kept_back).await? {
        entries.push(entry);
    }
    if json {
        let answer = serde_json::json!({ "entries": entries, "kept_back": kept_back });
        return document::pretty(&document::of(&answer)?);
    }
    let rest = kept_back.map_or_else(String::new, |why| {
        format!("These are not all: {}.\n", words::plain_line(&why))
    });
    if entries.is_empty() {
        return Ok(format!("No entry.\n{rest}"));
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
    Ok(render::rows(&heads, &rows, width) + &rest)
}

fn row(entry: &v1::AuditEntry) -> anyhow::Result<Vec<String>> {
    let note = note(entry.number, &entry.note_json)?;
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
        words::plain_line(&note.actor.to_string()),
        words::plain_line(&what),
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
            words::plain_line(answer.stopped_by.as_deref().unwrap_or("-")),
            words::plain_line(answer.stopped_why.as_deref().unwrap_or("-"))
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
    let in_force = (answer.safeties.iter())
        .filter(|safety| safety.in_force)
        .map(|safety| words::plain_line(&safety.name));
    let ruling = Some(&answer.beyond_ruling).filter(|why| !why.is_empty());
    let in_force: Vec<String> = in_force
        .chain(ruling.map(|why| words::plain_line(why)))
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
                note_json: serde_json::to_string(&entry.note).unwrap(),
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
        let note = &mut changed[1].note_json;
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
    fn of_a_log_whose_end_is_kept_back_a_hash_is_not_said_to_be_cut_off() {
        let noted = log()[2].hash.clone();
        let mut verifier = Verifier {
            kept_back: Some("entries from then on are kept from you".to_owned()),
            ..Verifier::default()
        };
        for entry in log().into_iter().take(2) {
            verifier.follow(entry, Some(&noted)).unwrap();
        }
        let error = verifier.verified(Some(&noted)).unwrap_err().to_string();
        assert!(error.contains("cannot be told: entries"), "{error}");
    }
}
