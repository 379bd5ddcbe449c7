//! A trial in words.

use super::*;
use crate::trial::course::tests::{document_of, honest, randomx};
use crate::trial::document::WaitedBehind;

#[test]
fn a_quiet_that_says_little_says_so() {
    let mut document = document_of(&[honest()]);
    document.ended = Ended::TargetEnded;
    (document.exit_code, document.exit_signal) = (Some(3), None);
    document.seconds = 0.04;
    let reasons = further_reasons(&document, None);
    assert!(reasons[0].contains("not enough samples"), "{reasons:?}");
    assert!(
        reasons[0].contains("exit status 3 after 0.0 s"),
        "{reasons:?}"
    );
    assert!(result(&document).contains("quiet, not enough samples\n"));
}

#[test]
fn a_quiet_with_enough_samples_needs_no_further_words() {
    let document = document_of(&[honest(), honest(), honest()]);
    assert!(further_reasons(&document, None).is_empty());
    assert!(result(&document).contains("miner -t1: quiet\n"));
}

#[test]
fn what_does_nothing_may_want_a_terminal() {
    let mut document = document_of(&[]);
    (document.seconds, document.cpu_seconds, document.threads) = (60.0, 0.01, 1);
    assert!(further_reasons(&document, None)[0].contains("a terminal"));
    document.threads = 0;
    document.target = TargetName::Cgroup("/sys/fs/cgroup/x".to_owned());
    assert!(further_reasons(&document, None)[0].contains("had no threads"));
}

#[test]
fn unwatched_threads_and_an_unsupported_sensor_are_named() {
    let mut document = document_of(&[]);
    document.threads_unwatched = 7;
    document.fp_rounding.state = SensorState::Unsupported;
    document.fp_rounding.reason = "no such field".to_owned();
    let reasons = further_reasons(&document, Some((Level::Suspect, 12.0)));
    assert!(reasons[0].contains("fp_rounding is unsupported here (no such field)"));
    assert!(reasons[1].starts_with("it was suspect until 12 s"));
    assert!(reasons[2].starts_with("7 threads were not watched"));
}

#[test]
fn a_sensor_that_never_ran_beside_a_busy_program_is_named() {
    let mut document = document_of(&[]);
    (document.seconds, document.cpu_seconds, document.threads) = (60.0, 59.0, 1);
    document.ended = Ended::Time;
    document.fp_rounding.state = SensorState::NeverRan;
    document.fp_rounding.reason = "nothing looked".to_owned();
    let reasons = further_reasons(&document, None);
    assert!(
        reasons[0].ends_with("fp_rounding never ran (nothing looked)"),
        "{reasons:?}"
    );
}

#[test]
fn whom_it_waited_behind_is_said_if_it_waited() {
    let mut document = document_of(&[honest()]);
    let behind = |pid, command: &str, own, ns| WaitedBehind {
        pid,
        command: command.to_owned(),
        own,
        ns,
    };
    let mut waits = Waits {
        behind: vec![
            behind(7, "rustc", false, 2_000_000_000),
            behind(8, "", true, 1_000_000_000),
        ],
        idle_ns: 1_000,
        ..Waits::default()
    };
    document.waits = Some(waits.clone());
    let said =
        "it waited 3.0 s for a CPU, behind: rustc (pid 7) 2.0 s, ended (pid 8, its own) 1.0 s\n";
    assert!(result(&document).ends_with(said), "{}", result(&document));
    waits.behind.clear();
    document.waits = Some(waits);
    assert!(!result(&document).contains("waited"));
}

#[test]
fn a_miner_is_named_with_its_family() {
    let text = result(&document_of(&vec![randomx(); 5]));
    assert!(
        text.starts_with("miner -t1: mining (RandomX)\n  - "),
        "{text}"
    );
    assert!(text.contains("ended by signal 15"), "{text}");
}

#[test]
fn a_long_or_hostile_command_is_one_bounded_line() {
    let line = target(&TargetName::Command(vec!["a\nb\x1b".repeat(200)]));
    assert_eq!(line.chars().count(), TARGET_CHARS_MAX + 1);
    assert!(!line.chars().any(char::is_control));
}

#[test]
fn progress_says_how_far_and_what_so_far() {
    let progress = Progress {
        seconds: 12.2,
        of_seconds: 60.0,
        cpu_seconds: 11.91,
        samples: 900,
        threads_unwatched: 4,
        level: Level::Quiet,
        enough_samples: false,
        never_ran: false,
    };
    let said = "12 of 60 s, 11.9 s of CPU, 900 samples, 4 threads not watched: quiet, not enough samples yet";
    assert!(line(&progress).ends_with(said));
    let never = Progress {
        never_ran: true,
        ..progress
    };
    assert!(line(&never).ends_with(": quiet, and the sensors on registers never ran so far"));
}
