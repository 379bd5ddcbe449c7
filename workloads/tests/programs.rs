//! The programs as people start them: `ready`, lines, a clean end, and an end on SIGTERM.

use std::{
    io::{BufRead as _, BufReader, Lines},
    os::unix::process::ExitStatusExt as _,
    process::{Child, ChildStdout, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

const RANDOMX: &str = env!("CARGO_BIN_EXE_davy-randomx");
const SHA256: &str = env!("CARGO_BIN_EXE_davy-sha256");
const MATRIX: &str = env!("CARGO_BIN_EXE_davy-matrix");
const HASH: &str = env!("CARGO_BIN_EXE_davy-hash");
const ROUNDING: &str = env!("CARGO_BIN_EXE_davy-rounding");
const IDLE: &str = env!("CARGO_BIN_EXE_davy-idle");

/// A started program; killed if a test fails before its end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already in a test that passed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &str, arguments: &[&str]) -> (Running, Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let Some(out) = child.stdout.take() else {
        panic!("standard output was asked for");
    };
    (Running(child), BufReader::new(out).lines())
}

/// All lines of a program that is to end by itself.
fn lines_of(program: &str, arguments: &[&str]) -> Vec<String> {
    let (mut running, lines) = start(program, arguments);
    let lines = lines.map_while(Result::ok).collect();
    match running.0.wait() {
        Ok(status) if status.success() => lines,
        other => panic!("{program} ended with {other:?} after {lines:?}"),
    }
}

/// The signal that ended a program which was sent SIGTERM after its first line; and that line.
fn sigterm_after_first_line(
    program: &str,
    arguments: &[&str],
) -> std::io::Result<(Option<i32>, Option<String>)> {
    let (mut running, mut lines) = start(program, arguments);
    let first = lines.next().transpose()?;
    kill_process(Pid::from_child(&running.0), Signal::TERM)?;
    Ok((running.0.wait()?.signal(), first))
}

#[test]
fn randomx_hashes_and_ends() {
    let lines = lines_of(RANDOMX, &["--light", "--duty", "50", "--seconds", "2"]);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(lines[0], "ready");
    assert!(lines[2].ends_with(" hashes/s"), "{lines:?}");
}

#[test]
fn interpreted_randomx_hashes_and_ends() {
    let lines = lines_of(RANDOMX, &["--interpreted", "--soft-aes", "--seconds", "2"]);
    assert_eq!(lines.len(), 3, "{lines:?}");
    // It checked the known hash before this line.
    assert_eq!(lines[0], "ready");
    assert!(lines[2].ends_with(" hashes/s"), "{lines:?}");
}

#[test]
fn sha256_hashes_and_ends() {
    let lines = lines_of(SHA256, &["--threads", "2", "--seconds", "1"]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0], "ready");
    assert!(lines[1].ends_with(" hashes/s"), "{lines:?}");
}

#[test]
fn matrix_multiplies_and_ends() {
    let lines = lines_of(MATRIX, &["--threads", "2", "--seconds", "1"]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0], "ready");
    assert!(lines[1].contains("checksum "), "{lines:?}");
}

#[test]
fn hash_hashes_and_ends() {
    let lines = lines_of(HASH, &["blake2s", "--duty", "50", "--seconds", "1"]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0], "ready");
    assert!(lines[1].ends_with(" hashes/s"), "{lines:?}");
}

#[test]
fn rounding_sums_and_ends() {
    let lines = lines_of(ROUNDING, &["all", "--seconds", "1"]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0], "ready");
    assert!(lines[1].ends_with(" sums/s"), "{lines:?}");
}

#[test]
fn rounding_by_chance_sums_and_ends() {
    let lines = lines_of(ROUNDING, &["stochastic", "--seconds", "1"]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].ends_with(" sums/s"), "{lines:?}");
}

#[test]
fn idle_ends() {
    assert_eq!(lines_of(IDLE, &["--seconds", "1"]), ["ready"]);
}

#[test]
fn all_end_on_sigterm() {
    let programs: [(&str, &[&str]); 6] = [
        (RANDOMX, &["--duty", "1"]),
        (SHA256, &[]),
        (MATRIX, &[]),
        (HASH, &["scrypt"]),
        (ROUNDING, &["interval"]),
        (IDLE, &[]),
    ];
    for (program, arguments) in programs {
        let (signal, first) = sigterm_after_first_line(program, arguments).unwrap();
        assert_eq!(first.as_deref(), Some("ready"), "{program}");
        assert_eq!(signal, Some(Signal::TERM.as_raw()), "{program}");
    }
}

#[test]
fn impossible_options_are_refused() {
    for (program, arguments) in [
        (RANDOMX, ["--duty", "0"]),
        (RANDOMX, ["--duty", "101"]),
        (RANDOMX, ["--threads", "0"]),
        (RANDOMX, ["--light", "--full"]),
        (RANDOMX, ["--interpreted", "--secure"]),
        (SHA256, ["--threads", "0"]),
        (SHA256, ["--duty", "101"]),
        (HASH, ["nohash", "--duty"]),
        (ROUNDING, ["sideways", "--sums"]),
        (MATRIX, ["--seconds", "0"]),
        (IDLE, ["--seconds", "never"]),
    ] {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{program} {arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}
