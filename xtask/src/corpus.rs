//! `cargo xtask corpus`: makes and scores the recordings of `tests/corpus/`, by its program `davy-corpus`.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::facts::Task;
use crate::{build, doctor, facts, shell};

/// Arguments of `corpus`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Run the programs of tests/corpus/programs.toml as trials and write their recordings. Needs root (or sudo)
    Record {
        /// Only these recordings
        #[arg(long, value_name = "NAME", num_args = 1..)]
        only: Vec<String>,
        /// Only recordings that are not there yet
        #[arg(long)]
        missing: bool,
        /// Trials at a time
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
        jobs: u32,
    },
    /// Judge every recording anew and write the tables of docs/detection.md
    Score {
        /// Write nothing; fail if the tables are not what would be written
        #[arg(long)]
        check: bool,
        /// Make today's verdicts those that the recordings are held to: after a change of the rule that is meant
        #[arg(long, conflicts_with = "check")]
        accept: bool,
    },
}

/// Runs `corpus`.
///
/// # Errors
/// If something needed is missing, the build fails, or the recording or scoring does.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(obstacle) = doctor::report(&facts::gather()?).obstacle(Task::Build) {
        bail!("cannot build; missing: {obstacle} (or all at once: cargo xtask setup)");
    }
    let packages: &[&str] = match arguments.what {
        What::Record { .. } => &["davy-agent", "davy-workloads", "davy-corpus"],
        What::Score { .. } => &["davy-corpus"],
    };
    let program = build::build(packages, false)?.join("davy-corpus");
    let mut command = match arguments.what {
        What::Record { .. } if !shell::is_root() => {
            eprintln!("Going on as root (sudo): watching programs needs it");
            let mut command = shell::command("sudo")?;
            command.arg(&program).stdin(Stdio::inherit());
            command
        }
        _ => shell::command(&program.to_string_lossy())?,
    };
    match &arguments.what {
        What::Record {
            only,
            missing,
            jobs,
        } => {
            command.args(["record", "--jobs", &jobs.to_string()]);
            if *missing {
                command.arg("--missing");
            }
            if !only.is_empty() {
                command.arg("--only").args(only);
            }
        }
        What::Score { check, accept } => {
            command.arg("score");
            if *accept {
                command.arg("--accept");
            }
            if *check {
                command.arg("--check");
            }
        }
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
