//! A trial in words: its reasons beyond the verdict's own, its result for people, its progress.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
};

use davy_evidence::{Level, SensorState};

use super::{
    Progress,
    course::seconds,
    document::{Document, Ended, TargetName, Waits},
};

/// Longest target in a line of text, characters.
const TARGET_CHARS_MAX: usize = 100;
/// Who used less of a CPU than this did nothing.
pub(super) const BUSY_SHARE: f64 = 0.1;
/// Where progress is no terminal: a line this often, s.
const LINE_EVERY_S: f64 = 5.0;

/// A target in one line.
#[must_use]
pub fn target(target: &TargetName) -> String {
    let text = match target {
        TargetName::Command(words) => words.join(" "),
        TargetName::Pid(pid) => format!("process {pid}"),
        TargetName::Cgroup(dir) => format!("control group {dir}"),
    };
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(TARGET_CHARS_MAX)
        .collect();
    if clean.len() < text.len() {
        format!("{clean}…")
    } else {
        clean
    }
}

/// What the verdict's own reasons cannot say: why there was too little to tell, what was missed, and what
/// stood `higher` on the way (with when, s). First what weighs most.
#[must_use]
pub fn further_reasons(document: &Document, higher: Option<(Level, f64)>) -> Vec<String> {
    let mut reasons = Vec::new();
    if document.verdict == Level::Quiet && !document.enough_samples {
        let samples = document.samples;
        let why = too_little(document);
        reasons.push(format!(
            "not enough samples to tell ({samples}), so `quiet` says little: {why}"
        ));
    }
    if let Some((level, seconds)) = higher {
        reasons.push(format!(
            "it was {level} until {seconds:.0} s after the begin, and is no longer at the end"
        ));
    }
    if document.threads_unwatched > 0 {
        let unwatched = document.threads_unwatched;
        reasons.push(format!(
            "{unwatched} threads were not watched, because no slot was free: what they did is not known"
        ));
    }
    reasons
}

fn too_little(document: &Document) -> String {
    let seconds = document.seconds;
    for (name, state, reason) in [
        (
            "fp_rounding",
            document.fp_rounding.state,
            &document.fp_rounding.reason,
        ),
        (
            "register_randomness",
            document.register_randomness.state,
            &document.register_randomness.reason,
        ),
    ] {
        if state == SensorState::Unsupported {
            let reason = if reason.is_empty() {
                "its registers are encrypted, or `davy-agent check` tells more"
            } else {
                reason
            };
            return format!("{name} is unsupported here ({reason})");
        }
        // One that did nothing had nothing to be looked at for.
        if state == SensorState::NeverRan && document.cpu_seconds >= BUSY_SHARE * seconds {
            return format!("{name} never ran ({reason})");
        }
    }
    let what = match &document.target {
        TargetName::Command(_) => "the command",
        TargetName::Pid(_) => "the process",
        TargetName::Cgroup(_) => "the control group",
    };
    match document.ended {
        Ended::TargetEnded => {
            let how = match (document.exit_code, document.exit_signal) {
                (Some(code), _) => format!(" with exit status {code}"),
                (None, Some(signal)) => format!(" by signal {signal}"),
                (None, None) => String::new(),
            };
            format!("{what} ended{how} after {seconds:.1} s; give one that computes for longer")
        }
        Ended::CgroupVanished => format!("{what} vanished after {seconds:.1} s"),
        Ended::Interrupted => format!("the trial was stopped after {seconds:.1} s"),
        Ended::Time | Ended::LevelReached if document.threads == 0 => {
            format!("{what} had no threads")
        }
        Ended::Time | Ended::LevelReached if document.cpu_seconds < BUSY_SHARE * seconds => {
            format!(
                "{what} used only {:.2} s of CPU in {seconds:.1} s (a command's input is /dev/null: one that waits for \
             a person or a terminal does nothing)",
                document.cpu_seconds
            )
        }
        Ended::Time | Ended::LevelReached => {
            "no thread was sampled often enough; give it more time with --seconds".to_owned()
        }
    }
}

/// The result for people.
#[must_use]
pub fn result(document: &Document) -> String {
    let mut text = String::new();
    let families: Vec<_> = document.families.iter().map(ToString::to_string).collect();
    let families = match &families[..] {
        [] => String::new(),
        families => format!(" ({})", families.join(", ")),
    };
    let enough = if document.enough_samples {
        ""
    } else {
        ", not enough samples"
    };
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{}: {}{families}{enough}",
        target(&document.target),
        document.verdict
    );
    for reason in &document.reasons {
        let _ = writeln!(text, "  - {reason}");
    }
    let _ = writeln!(
        text,
        "{:.1} s, {:.1} s of CPU, {} threads, {} samples; {}",
        document.seconds,
        document.cpu_seconds,
        document.threads,
        document.samples,
        ended(document)
    );
    if let Some(waits) = document.waits.as_ref().and_then(waited) {
        let _ = writeln!(text, "{waits}");
    }
    text
}

/// Behind whom it waited, if it waited for 0.1 s or more at all.
fn waited(waits: &Waits) -> Option<String> {
    const LEAST_NS: u64 = 100_000_000;
    let mut parts: Vec<_> = waits
        .behind
        .iter()
        .map(|of| {
            let own = if of.own { ", its own" } else { "" };
            let name = if of.command.is_empty() {
                "ended"
            } else {
                &of.command
            };
            (format!("{name} (pid {}{own})", of.pid), of.ns)
        })
        .collect();
    parts.extend([
        ("others".to_owned(), waits.others_ns),
        ("an idle CPU".to_owned(), waits.idle_ns),
        ("unknown".to_owned(), waits.unknown_ns),
    ]);
    let all_ns = parts
        .iter()
        .fold(0, |sum: u64, (_, ns)| sum.saturating_add(*ns));
    if all_ns < LEAST_NS {
        return None;
    }
    let parts: Vec<_> = parts
        .into_iter()
        .filter(|&(_, ns)| ns >= all_ns / 100)
        .map(|(who, ns)| format!("{who} {:.1} s", seconds(ns)))
        .collect();
    Some(format!(
        "it waited {:.1} s for a CPU, behind: {}",
        seconds(all_ns),
        parts.join(", ")
    ))
}

fn ended(document: &Document) -> String {
    let mut text = match document.ended {
        Ended::Time => "its time was over",
        Ended::TargetEnded => "it ended by itself",
        Ended::CgroupVanished => "the control group vanished",
        Ended::LevelReached => "the verdict was reached",
        Ended::Interrupted => "the trial was stopped",
    }
    .to_owned();
    match (document.exit_code, document.exit_signal) {
        (Some(code), _) => text.push_str(&format!("; exit status {code}")),
        (None, Some(signal)) => text.push_str(&format!("; ended by signal {signal}")),
        (None, None) => {}
    }
    if document.left_running > 0 {
        let left = document.left_running;
        text.push_str(&format!(
            "; {left} of its threads could not be ended and still run"
        ));
    }
    text
}

/// Shows progress on standard error: one line redrawn on a terminal, else a line every 5 s.
#[derive(Debug)]
pub struct ProgressLine {
    terminal: bool,
    next_s: f64,
}

impl Default for ProgressLine {
    fn default() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            next_s: LINE_EVERY_S,
        }
    }
}

impl ProgressLine {
    /// Shows it, if it is time to.
    pub fn show(&mut self, progress: &Progress) {
        let line = line(progress);
        if self.terminal {
            say(&format!("\r\x1b[K{line}"));
        } else if progress.seconds >= self.next_s {
            say(&format!("{line}\n"));
            self.next_s = progress.seconds + LINE_EVERY_S;
        }
    }

    /// Wipes a redrawn line.
    pub fn end(&self) {
        if self.terminal {
            say("\r\x1b[K");
        }
    }
}

fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // Progress that cannot be shown is no reason to stop.
    let _ = stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush());
}

fn line(progress: &Progress) -> String {
    let Progress {
        seconds,
        of_seconds,
        cpu_seconds,
        samples,
        threads_unwatched,
        level,
        enough_samples,
        never_ran,
    } = progress;
    let enough = if *enough_samples {
        ""
    } else if *never_ran {
        ", and the sensors on registers never ran so far"
    } else {
        ", not enough samples yet"
    };
    let unwatched = match threads_unwatched {
        0 => String::new(),
        unwatched => format!(", {unwatched} threads not watched"),
    };
    format!(
        "davy-agent: {seconds:.0} of {of_seconds:.0} s, {cpu_seconds:.1} s of CPU, {samples} samples{unwatched}: {level}{enough}"
    )
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
