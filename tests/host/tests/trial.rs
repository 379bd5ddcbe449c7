//! `davy-agent trial` on the local kernel: the verdicts on known loads, and what it says of bad input.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    ffi::OsString,
    path::PathBuf,
    sync::mpsc::{self, Sender},
    time::Duration,
};

use davy_agent::trial::{
    Options, Progress, Target, course,
    document::{Document, Ended},
    run,
};
use davy_evidence::{Family, Level, SensorState};
use davy_host_tests::{Cgroup, Load, wait_for};

const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");
/// No trial is to last that long: each ends when its state is reached.
const LENGTH: Duration = Duration::from_secs(120);

fn command(words: &[&str]) -> Options {
    Options {
        length: LENGTH,
        output: Some(PathBuf::from("/dev/null")),
        ..Options::of(Target::Command(words.iter().map(OsString::from).collect()))
    }
}

/// The trial's document; `each` is asked after every window, and may end the trial through the sender.
fn try_out(
    options: &Options,
    mut each: impl FnMut(&Progress, &Sender<()>),
) -> Result<Document, String> {
    let (stop, stopped) = mpsc::channel();
    run(options, &stopped, &mut |progress| each(progress, &stop)).map_err(|e| format!("{e:#}"))
}

/// The sentence of a trial that cannot be done.
fn refusal(options: &Options) -> String {
    try_out(options, |_, _| {}).unwrap_err()
}

fn is_gone(what: &str) -> bool {
    let ends = std::process::Command::new("pgrep")
        .args(["-f", what])
        .output()
        .unwrap();
    ends.stdout.is_empty()
}

#[test]
fn what_computes_like_a_miner_is_mining_and_is_ended_with_the_trial() {
    let options = Options {
        until: Some(Level::Mining),
        ..command(&["sh", "-c", &format!("{LOAD} hold random all; true")])
    };
    let document = try_out(&options, |_, _| {}).unwrap();
    assert_eq!(document.verdict, Level::Mining, "{:?}", document.reasons);
    assert_eq!(document.ended, Ended::LevelReached);
    assert_eq!(document.families, [Family::RandomX]);
    assert!(document.enough_samples);
    assert!(document.exit_signal.is_some());
    assert_eq!(document.left_running, 0);
    assert_eq!(document.fp_rounding.state, SensorState::Live);
    assert!(document.fp_rounding.modes.iter().all(|&n| n > 0));
    // The shell and the load, and nobody of this process.
    assert_eq!(document.threads, 2);
    assert!(document.cpu_seconds > 0.0);
    let again = course::replay(&document);
    assert_eq!(again.verdict.level, Level::Mining);
    assert_eq!(again.evidence.fp_rounding.modes, document.fp_rounding.modes);
    assert_eq!(again.evidence.fp_rounding.llr, document.fp_rounding.llr);
}

#[test]
fn honest_floating_point_is_quiet_with_enough_samples() {
    let options = command(&[LOAD, "hold", "doubles", "0"]);
    let document = try_out(&options, |progress, stop| {
        if progress.enough_samples {
            stop.send(()).unwrap();
        }
    })
    .unwrap();
    assert_eq!(document.ended, Ended::Interrupted);
    assert_eq!(document.verdict, Level::Quiet);
    assert!(document.enough_samples, "{:?}", document.reasons);
    assert!(document.families.is_empty());
    assert!(document.reasons[0].starts_with("quiet: all tests"));
    assert_eq!(course::replay(&document).verdict.reasons, document.reasons);
}

#[test]
fn a_command_that_ends_at_once_gives_not_enough_samples() {
    let document = try_out(&command(&["sh", "-c", "exit 3"]), |_, _| {}).unwrap();
    assert_eq!(document.ended, Ended::TargetEnded);
    assert_eq!((document.exit_code, document.exit_signal), (Some(3), None));
    assert_eq!(document.verdict, Level::Quiet);
    assert!(!document.enough_samples);
    let reason = &document.reasons[0];
    assert!(
        reason.contains("not enough samples") && reason.contains("exit status 3"),
        "{reason}"
    );
}

#[test]
fn what_left_the_commands_group_is_watched_and_ended_too() {
    // Ignores SIGTERM, in a session of its own, and the command itself ends at once.
    let script = "trap '' TERM; setsid sh -c 'sleep 86399.25; true' & exit 0";
    let options = command(&["sh", "-c", script]);
    let document = try_out(&options, |_, stop| stop.send(()).unwrap()).unwrap();
    assert_eq!(document.ended, Ended::Interrupted);
    assert_eq!((document.exit_code, document.left_running), (Some(0), 0));
    wait_for("the end of what left", || {
        is_gone("sleep 86399.25").then_some(())
    });
}

#[test]
fn a_command_that_cannot_be_run_is_named() {
    let said = refusal(&command(&["/nonexistent/miner"]));
    assert!(said.contains("there is no such program"), "{said}");
    let said = refusal(&command(&["/etc/passwd"]));
    assert!(said.contains("it is not executable"), "{said}");
    let said = refusal(&Options {
        output: Some(PathBuf::from("/nonexistent/output")),
        ..command(&["true"])
    });
    assert!(said.contains("cannot write the command's output"), "{said}");
}

#[test]
fn a_command_that_forks_wildly_is_said_to_be_watched_in_part() {
    let script = "i=0; while [ $i -lt 40 ]; do sleep 86399.5 & i=$((i+1)); done; wait";
    let options = Options {
        slots_max: 16,
        ..command(&["sh", "-c", script])
    };
    let document = try_out(&options, |progress, stop| {
        if progress.threads_unwatched > 0 {
            stop.send(()).unwrap();
        }
    })
    .unwrap();
    assert!(document.threads_unwatched > 0, "{document:?}");
    assert!(!document.enough_samples);
    let reasons = document.reasons.join("\n");
    assert!(reasons.contains("were not watched"), "{reasons}");
    wait_for("the end of all", || is_gone("sleep 86399.5").then_some(()));
}

#[test]
fn a_command_that_waits_for_input_finds_none() {
    let document = try_out(&command(&["cat"]), |_, _| {}).unwrap();
    assert_eq!(
        (document.ended, document.exit_code),
        (Ended::TargetEnded, Some(0))
    );
    assert!(!document.enough_samples);
}

#[test]
fn a_process_that_dies_ends_the_trial() {
    let load = Load::start(LOAD, &["hold", "doubles", "0"]);
    let pid = load.id();
    let mut load = Some(load);
    let options = Options {
        length: LENGTH,
        ..Options::of(Target::Process(pid))
    };
    let document = try_out(&options, |progress, _| {
        if progress.samples > 0 {
            drop(load.take());
        }
    })
    .unwrap();
    assert_eq!(document.ended, Ended::TargetEnded);
    assert!(document.samples > 0);
    assert_eq!((document.exit_code, document.exit_signal), (None, None));
    let said = refusal(&options);
    assert!(
        said.contains(&format!("there is no process {pid}")),
        "{said}"
    );
}

#[test]
fn a_watched_process_is_not_ended() {
    let load = Load::start(LOAD, &["hold", "doubles", "0"]);
    let options = Options {
        length: LENGTH,
        ..Options::of(Target::Process(load.id()))
    };
    let document = try_out(&options, |_, stop| stop.send(()).unwrap()).unwrap();
    assert_eq!(document.ended, Ended::Interrupted);
    assert!(PathBuf::from(format!("/proc/{}/exe", load.id())).exists());
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", load.id())).unwrap();
    assert!(stat.contains(") R "), "{stat}");
}

#[test]
fn a_group_that_vanishes_ends_the_trial() {
    let group = Cgroup::make("trial");
    let options = Options {
        length: LENGTH,
        ..Options::of(Target::Cgroup(group.directory().to_owned()))
    };
    let mut group = Some(group);
    let document = try_out(&options, |_, _| drop(group.take())).unwrap();
    assert_eq!(document.ended, Ended::CgroupVanished);
    assert!(!document.enough_samples);
    assert!(document.reasons[0].contains("vanished"));
    let said = refusal(&options);
    assert!(said.contains("is not a control group"), "{said}");
    let said = refusal(&Options::of(Target::Cgroup(PathBuf::from("/proc"))));
    assert!(said.contains("is not a control group"), "{said}");
}
