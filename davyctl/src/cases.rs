//! `davyctl cases`: people's work on cases.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use davy_proto::v1;

use crate::case_render as render;
use crate::client::{Detector, said};
use crate::document;

/// Longest text read from a file, bytes: above what the detector takes.
const TEXT_BYTES_MAX: u64 = 128 << 10;

/// What can be done with cases.
#[derive(Subcommand)]
pub enum CasesCommand {
    /// The queue: locked or turned off first, then who waits longest, then the oldest.
    ///
    /// CUSTOMER says since when the customer waits for a person, and until when a first answer is due; or, once they have one, for how
    /// long nobody has decided. OPINIONS are those that count: a denial takes two people, and so does each review of an appealed lock.
    List {
        /// Closed ones, too
        #[arg(long)]
        closed: bool,
    },
    /// Everything about one case: evidence with reasons, what is usual and what is not, facts, safeties, decisions, actions, messages.
    ///
    /// While an appeal is reviewed you see your own opinion only. Read docs/review-guideline.md before deciding.
    Show(CaseArgs),
    /// Take a case up.
    Claim {
        #[command(flatten)]
        case: CaseArgs,
        /// Also from another person
        #[arg(long)]
        take_over: bool,
    },
    /// Give a case you claimed back to the queue.
    GiveBack(CaseArgs),
    /// Write to the customer; their clock stops. A message that was sent cannot be taken back.
    Answer {
        #[command(flatten)]
        case: CaseArgs,
        /// What to write
        #[arg(
            long,
            required_unless_present = "text_file",
            conflicts_with = "text_file"
        )]
        text: Option<String>,
        /// A file with what to write; - is standard input
        #[arg(long, value_name = "FILE")]
        text_file: Option<PathBuf>,
    },
    /// Undo what was done to the account and set the hold, and, unless you are unsure, the Allow High CPU flag: all at once.
    ///
    /// On an appealed case it is a review and needs a reason; elsewhere a reason is kept with the case. `davyctl cases undo` takes the
    /// decision back; the hold stays.
    Unlock {
        #[command(flatten)]
        case: CaseArgs,
        /// legitimate: the customer is in the right (flag and hold); unsure: nobody can tell (hold alone)
        #[arg(long, value_enum, default_value = "legitimate")]
        outcome: Outcome,
        /// Why, in your own words (eight at least)
        #[arg(long, value_name = "TEXT", conflicts_with = "reason_file")]
        reason: Option<String>,
        /// A file with the reason; - is standard input
        #[arg(long, value_name = "FILE")]
        reason_file: Option<PathBuf>,
    },
    /// Set the Allow High CPU flag of an account, with or without a case, and the hold. What automation did to it is undone.
    AllowHighCpu {
        /// The account
        account: String,
        /// Take a person's word back; the provider's own flag stays as it is
        #[arg(long)]
        revoke: bool,
    },
    /// Cap the CPU of the droplets in question. It ends by itself (after 24 h by default).
    Throttle {
        #[command(flatten)]
        case: CaseArgs,
        #[command(flatten)]
        reason: ReasonArgs,
    },
    /// Let the throttle in effect go on, for as long as one lasts from now. The customer reads the new end, and the reason.
    Renew {
        #[command(flatten)]
        case: CaseArgs,
        #[command(flatten)]
        reason: ReasonArgs,
    },
    /// Lift the throttle, and set the hold.
    UnThrottle(CaseArgs),
    /// Propose to deny: you are the first of two, and nothing happens before the second agrees.
    ProposeDenial {
        #[command(flatten)]
        case: CaseArgs,
        #[command(flatten)]
        reason: ReasonArgs,
        /// What is to be done about the account; of two, the milder is
        #[arg(long, value_enum)]
        measure: Measure,
    },
    /// Give the second opinion on a proposed denial, or review an appeal. One unlock unlocks; two denials deny.
    SecondOpinion {
        #[command(flatten)]
        case: CaseArgs,
        /// What you found
        #[arg(value_enum)]
        finding: Finding,
        #[command(flatten)]
        reason: ReasonArgs,
        /// Of a denial: what is to be done about the account; of two, the milder is
        #[arg(long, value_enum, required_if_eq("finding", "deny"))]
        measure: Option<Measure>,
    },
    /// Take the last decision back; without one, what automation did.
    Undo(CaseArgs),
    /// Close a decided case. What the customer says afterwards opens a new one.
    Close(CaseArgs),
}

/// A case.
#[derive(Args)]
pub struct CaseArgs {
    /// The case, as ACCOUNT/NUMBER; ACCOUNT alone is its last case
    #[arg(value_name = "CASE")]
    case: String,
}

/// A reason, from the command line or a file.
#[derive(Args)]
pub struct ReasonArgs {
    /// Why, in your own words (eight at least): the customer reads it; a denial's is refused if it is a copy of an earlier one
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "reason_file",
        conflicts_with = "reason_file"
    )]
    reason: Option<String>,
    /// A file with the reason; - is standard input
    #[arg(long, value_name = "FILE")]
    reason_file: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Outcome {
    Legitimate,
    Unsure,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Finding {
    Deny,
    Unlock,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Measure {
    Throttle,
    PowerDown,
    Lock,
}

impl Measure {
    /// As on the wire.
    const fn name(self) -> &'static str {
        match self {
            Self::Throttle => "throttle",
            Self::PowerDown => "power_down",
            Self::Lock => "lock",
        }
    }
}

impl CaseArgs {
    /// As on the wire: an account may have a slash in its id, so the number is what stands behind the last one.
    fn name(&self) -> Option<v1::CaseName> {
        let numbered = (self.case.rsplit_once('/'))
            .and_then(|(account, number)| Some((account, number.parse::<u64>().ok()?)));
        let (account, number) = numbered.unwrap_or((&self.case, 0));
        Some(v1::CaseName {
            account: account.to_owned(),
            number,
        })
    }
}

/// A text given, or read from a file; empty if neither is.
fn text(given: Option<String>, file: Option<&Path>) -> anyhow::Result<String> {
    let Some(path) = file else {
        return Ok(given.unwrap_or_default());
    };
    let mut text = String::new();
    let cannot = || format!("the text in {} cannot be read", path.display());
    let read = if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(TEXT_BYTES_MAX)
            .read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path).with_context(cannot)?;
        file.take(TEXT_BYTES_MAX).read_to_string(&mut text)
    };
    read.with_context(cannot)?;
    if text.trim().is_empty() {
        bail!("there is no text in {}", path.display());
    }
    Ok(text.trim_end().to_owned())
}

impl ReasonArgs {
    fn text(self) -> anyhow::Result<String> {
        text(self.reason, self.reason_file.as_deref())
    }
}

/// Runs one, and gives what it prints.
///
/// # Errors
/// One sentence that says what to do.
pub async fn run(
    command: CasesCommand,
    detector: &Detector,
    json: bool,
    width: Option<u16>,
) -> anyhow::Result<String> {
    let mut cases = detector.cases();
    match command {
        CasesCommand::List { closed } => {
            let request = v1::ListCasesRequest { closed_too: closed };
            let answer = cases
                .list_cases(request)
                .await
                .map_err(|status| said(&status))?;
            let answer = answer.into_inner();
            if json {
                document::pretty(&document::of(&answer)?)
            } else {
                Ok(render::list_of(&answer, crate::now_unix_ms(), width))
            }
        }
        CasesCommand::Show(case) => {
            let request = v1::GetCaseRequest { case: case.name() };
            let answer = cases
                .get_case(request)
                .await
                .map_err(|status| said(&status))?;
            let answer = answer.into_inner();
            if json {
                document::pretty(&document::of(&answer)?)
            } else {
                Ok(render::case(&answer, width))
            }
        }
        change => {
            let (answer, back) = make(change, &mut cases).await?;
            if json {
                document::pretty(&document::of(&answer)?)
            } else {
                Ok(render::change(&answer, &back))
            }
        }
    }
}

type Cases = v1::cases_client::CasesClient<crate::client::Signed>;

/// Makes a change; gives what it did, and how to take it back.
async fn make(
    command: CasesCommand,
    cases: &mut Cases,
) -> anyhow::Result<(v1::ChangeResponse, String)> {
    let (answer, back) = match command {
        CasesCommand::List { .. } | CasesCommand::Show(_) => bail!("nothing is changed by looking"),
        CasesCommand::Claim { case, take_over } => {
            let back = format!("davyctl cases give-back {}", case.case);
            let case = case.name();
            let request = v1::ClaimRequest { case, take_over };
            (cases.claim(request).await, back)
        }
        CasesCommand::GiveBack(case) => {
            let back = format!("davyctl cases claim {}", case.case);
            (
                cases
                    .give_back(v1::GiveBackRequest { case: case.name() })
                    .await,
                back,
            )
        }
        CasesCommand::Answer {
            case,
            text: given,
            text_file,
        } => {
            let text = text(given, text_file.as_deref())?;
            let case = case.name();
            let request = v1::AnswerRequest { case, text };
            (cases.answer(request).await, String::new())
        }
        CasesCommand::Unlock {
            case,
            outcome,
            reason,
            reason_file,
        } => {
            let back = format!("davyctl cases undo {} (the hold stays)", case.case);
            let outcome = match outcome {
                Outcome::Legitimate => v1::UnlockOutcome::Legitimate,
                Outcome::Unsure => v1::UnlockOutcome::Unsure,
            };
            let request = v1::UnlockRequest {
                case: case.name(),
                outcome: outcome.into(),
                reason: text(reason, reason_file.as_deref())?,
            };
            (cases.unlock(request).await, back)
        }
        CasesCommand::AllowHighCpu { account, revoke } => {
            let other = if revoke { "" } else { " --revoke" };
            let back = format!("davyctl cases allow-high-cpu {account}{other}");
            let request = v1::AllowHighCpuRequest { account, revoke };
            (cases.allow_high_cpu(request).await, back)
        }
        CasesCommand::Throttle { case, reason } => {
            let back = format!("davyctl cases un-throttle {}", case.case);
            let case = case.name();
            let reason = reason.text()?;
            (
                cases.throttle(v1::ThrottleRequest { case, reason }).await,
                back,
            )
        }
        CasesCommand::Renew { case, reason } => {
            let back = format!("davyctl cases un-throttle {}", case.case);
            let case = case.name();
            let reason = reason.text()?;
            let request = v1::RenewThrottleRequest { case, reason };
            (cases.renew_throttle(request).await, back)
        }
        CasesCommand::UnThrottle(case) => {
            let back = format!("davyctl cases throttle {} --reason …", case.case);
            let request = v1::UnthrottleRequest { case: case.name() };
            (cases.unthrottle(request).await, back)
        }
        CasesCommand::ProposeDenial {
            case,
            reason,
            measure,
        } => {
            let back = format!("davyctl cases undo {}", case.case);
            let request = v1::ProposeDenialRequest {
                case: case.name(),
                reason: reason.text()?,
                measure: measure.name().to_owned(),
            };
            (cases.propose_denial(request).await, back)
        }
        CasesCommand::SecondOpinion {
            case,
            finding,
            reason,
            measure,
        } => {
            let back = format!("davyctl cases undo {}", case.case);
            let (finding, measure) = match finding {
                Finding::Deny => (v1::Finding::Deny, measure.map_or("", Measure::name)),
                Finding::Unlock => (v1::Finding::Unlock, ""),
            };
            let request = v1::SecondOpinionRequest {
                case: case.name(),
                finding: finding.into(),
                reason: reason.text()?,
                measure: measure.to_owned(),
            };
            (cases.second_opinion(request).await, back)
        }
        CasesCommand::Undo(case) => (
            cases.undo(v1::UndoRequest { case: case.name() }).await,
            String::new(),
        ),
        CasesCommand::Close(case) => (
            cases.close(v1::CloseRequest { case: case.name() }).await,
            String::new(),
        ),
    };
    let answer = answer.map_err(|status| said(&status))?;
    Ok((answer.into_inner(), back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_an_account_and_a_number_or_the_last_one() {
        let name = |case: &str| {
            let case = case.to_owned();
            let name = CaseArgs { case }.name().unwrap();
            (name.account, name.number)
        };
        assert_eq!(name("acct-1/12"), ("acct-1".to_owned(), 12));
        assert_eq!(name("acct-1"), ("acct-1".to_owned(), 0));
        assert_eq!(name("team/a/3"), ("team/a".to_owned(), 3));
        assert_eq!(name("team/a"), ("team/a".to_owned(), 0));
    }

    #[test]
    fn an_empty_file_is_no_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = text(None, Some(file.path())).unwrap_err().to_string();
        assert!(error.contains("there is no text"), "{error}");
    }
}
