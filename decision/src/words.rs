//! What happened, in a sentence for people; and what others wrote, made harmless to show. Pure.
//!
//! The event itself, as JSON, is the record.

use crate::{
    action::{Key, Recipient, State},
    case::{Finding, Ruling},
    dossier::Event,
};

const fn ruling_name(ruling: Ruling) -> &'static str {
    match ruling {
        Ruling::Legitimate => "the customer is in the right",
        Ruling::Unsure => "nobody can tell",
        Ruling::Denied => "denied",
    }
}

fn action(key: &Key) -> String {
    let step = key.step.name().replace('_', " ");
    if key.undo {
        format!("the {step} is to be undone")
    } else {
        format!("the {step} is to be done")
    }
}

/// Whether a character would do something to a terminal, or to how its neighbours are read, instead of being seen: control characters,
/// the bidirectional formatting of UAX #9, invisible ones of the general categories Cf, Zl and Zp, and blanks that look like none.
/// The joiners U+200C and U+200D stay: Persian and emoji are written with them.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{115f}'
                | '\u{1160}'
                | '\u{180e}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{2800}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// What others wrote, with its lines, for a terminal: characters that are not seen are replaced.
#[must_use]
pub fn plain(text: &str) -> String {
    let seen = |c| match c {
        '\n' => c,
        _ if is_unseen(c) => char::REPLACEMENT_CHARACTER,
        _ => c,
    };
    text.chars().map(seen).collect()
}

/// As [`plain`], on one line.
#[must_use]
pub fn plain_line(text: &str) -> String {
    plain(text).replace('\n', " ")
}

/// An event in words.
#[must_use]
pub fn of(event: &Event) -> String {
    match event {
        Event::FactsChanged => "facts changed".to_owned(),
        Event::FactsFailed { why } => format!("facts could not be fetched: {why}"),
        Event::EpisodeBegan { episode } => format!("episode {episode} began"),
        Event::EpisodeEnded { episode } => format!("episode {episode} ended"),
        Event::CloserLook => "the agents are asked for more samples".to_owned(),
        Event::CaseOpened { case } => format!("case {case} is open"),
        Event::Decided { decision, step } => format!("decision {decision} was made: {step}"),
        Event::CaseClaimed { case, by } => format!("{by} has case {case}"),
        Event::CaseGivenBack { case, by } => format!("{by} gave case {case} back to the queue"),
        Event::CaseClosed { case } => format!("case {case} is closed"),
        Event::Answered { case, by } => {
            format!("{by} answered the customer in case {case}; their clock stands still")
        }
        Event::OpinionWithdrawn { case, by } => {
            format!("{by} withdrew their opinion on case {case}")
        }
        Event::OpinionGiven { case, by, finding } => match finding {
            Finding::Deny => format!("{by} is for a denial of case {case}"),
            Finding::Unlock => format!("{by} is for an unlock of case {case}"),
        },
        Event::TakenBack { case, ruling, by } => {
            format!(
                "{by} took the decision back ({}); case {case} is theirs again",
                ruling_name(*ruling)
            )
        }
        Event::ThrottleRenewed { until, by } => format!("{by} renewed the throttle until {until}"),
        Event::CaseDecided { case, ruling, by } => {
            format!("case {case} is decided by {by}: {}", ruling_name(*ruling))
        }
        Event::ActionPlanned { key } => format!("{} ({key})", action(key)),
        Event::Released { parcel } => format!("{parcel} was given to the control plane"),
        Event::ActionWithheld { key, why } => format!("{key} does not leave: {why}"),
        Event::Learned { parcel, state } => match state {
            State::Refused { why, .. } => format!("the control plane refused {parcel}: {why}"),
            state => format!("{parcel} is {}", state.name()),
        },
        Event::LetterWritten { number, to } => match to {
            Recipient::Customer => format!("letter {number} goes to the customer"),
            Recipient::OnCall => format!("letter {number} goes to on-call"),
        },
        Event::LetterWithheld { number, why } => format!("letter {number} does not leave: {why}"),
        Event::HoldSet { until, by } => {
            format!("hold set by {by}: no automated action before {until}")
        }
        Event::HighCpuAllowed { by } => format!("{by} set Allow High CPU"),
        Event::HighCpuWithdrawn { by } => format!("{by} took Allow High CPU back"),
        Event::Stopped { why } => format!("automation is stopped: {why}"),
        Event::Resumed => "automation goes on".to_owned(),
        Event::CustomerSpoke { .. } => "the customer wrote".to_owned(),
        Event::SteppedBack { case } => {
            format!("nobody decided case {case} in time: locks and power-downs are lifted")
        }
        Event::Paged { case } => format!("somebody was paged for case {case}"),
    }
}
