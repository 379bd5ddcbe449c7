//! `cargo xtask bench`: what Davy costs on this machine, measured by `davy-bench` (`tests/bench/`).
//!
//! The agent is built with optimisations, since its own CPU time is measured; the kernel half always is. Prints
//! tables that can be compared with those in `docs/performance.md`.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::facts::Task;
use crate::{build, doctor, facts, shell};

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Cost per event: BPF run time per switch beside an empty program, perf's pipe benchmark with and without
    /// Davy, the agent's CPU time and memory. Needs root (or sudo) and perf
    Events {
        /// About how long to measure, in seconds
        #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(30..=86_400))]
        seconds: u64,
        /// Print one JSON document on standard output, all else on standard error
        #[arg(long)]
        json: bool,
    },
    /// Decisions per second, of an optimised build: of the pure core on one core, and of the whole path with SQLite and, where
    /// Debian's package is, PostgreSQL
    Decisions {
        /// About how long to measure, in seconds
        #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(3..=3_600))]
        seconds: u64,
        /// Print one JSON document on standard output, all else on standard error
        #[arg(long)]
        json: bool,
    },
}

/// Runs `bench`.
///
/// # Errors
/// If something needed is missing, the build fails, or a measurement does.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(obstacle) = doctor::report(&facts::gather()?).obstacle(Task::Build) {
        bail!("cannot build; missing: {obstacle} (or all at once: cargo xtask setup)");
    }
    match &arguments.what {
        What::Events { seconds, json } => events(*seconds, *json),
        What::Decisions { seconds, json } => decisions(*seconds, *json),
    }
}

fn decisions(seconds: u64, json: bool) -> Result<ExitCode> {
    let programs = build::build(&["davy-bench"], true)?;
    let mut command = shell::command(&programs.join("davy-bench").to_string_lossy())?;
    command.args(["decisions", "--seconds", &seconds.to_string()]);
    run_it(command, json)
}

fn events(seconds: u64, json: bool) -> Result<ExitCode> {
    if shell::capture("perf", &["--version"]).is_none() {
        bail!("perf is missing; install it: apt-get install linux-perf");
    }
    let programs = build::build(&["davy-bench", "davy-detector"], false)?;
    let release = build::build(&["davy-agent"], true)?;

    let bench = programs.join("davy-bench");
    let mut command = if shell::is_root() {
        shell::command(&bench.to_string_lossy())?
    } else {
        eprintln!("Going on as root (sudo): loading the kernel half needs it");
        let mut command = shell::command("sudo")?;
        command.arg(&bench).stdin(Stdio::inherit());
        command
    };
    command
        .args(["events", "--seconds", &seconds.to_string(), "--agent"])
        .arg(release.join("davy-agent"))
        .arg("--detector")
        .arg(programs.join("davy-detector"));
    run_it(command, json)
}

fn run_it(mut command: std::process::Command, json: bool) -> Result<ExitCode> {
    if json {
        command.arg("--json");
    }
    let line = shell::line(&command);
    eprintln!("$ {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status}); its own words are above");
    }
    Ok(ExitCode::SUCCESS)
}
