//! The command line.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{check, config::Config, run};

/// Davy's agent: one per hypervisor host.
///
/// It measures from the host's kernel how each VM uses its CPUs and whether it computes like a cryptocurrency
/// miner. It never reads guest memory, and it never acts on a guest.
#[derive(Debug, Parser)]
#[command(name = "davy-agent", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, and stream what is found to the detector, until stopped (SIGTERM or Ctrl-C).
    ///
    /// Needs root (or CAP_BPF and CAP_PERFMON). `davy-agent check` tells what is missing.
    /// Log lines go to standard error; RUST_LOG sets how many (default: info).
    Run {
        /// The configuration, TOML. Without it the defaults hold: all VMs of this host, detector on this machine.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Write log lines as JSON.
        #[arg(long)]
        log_json: bool,
    },
    /// Tell what this host can measure, and what to do about what it cannot.
    ///
    /// Loads the kernel half for a moment. Exit status 0 if the agent can run here, 1 if not.
    Check {
        /// Print one JSON document instead of a table.
        #[arg(long)]
        json: bool,
    },
}

impl Cli {
    /// Does what was asked; errors go to standard error as one sentence with their causes.
    #[must_use]
    pub fn execute(self) -> ExitCode {
        let outcome = match self.command {
            Command::Run { config, log_json } => {
                log(log_json);
                configuration(config)
                    .and_then(|config| run::run(&config))
                    .map(|()| ExitCode::SUCCESS)
            }
            Command::Check { json } => check::print(json),
        };
        outcome.unwrap_or_else(|error| {
            eprintln!("davy-agent: {error:#}");
            ExitCode::FAILURE
        })
    }
}

fn configuration(file: Option<PathBuf>) -> anyhow::Result<Config> {
    Ok(match file {
        Some(file) => Config::load(&file)?,
        None => Config::default(),
    })
}

fn log(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if json {
        lines.json().init();
    } else {
        lines.with_target(false).init();
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_needs_no_configuration() {
        assert!(Cli::try_parse_from(["davy-agent", "run"]).is_ok());
        assert!(Cli::try_parse_from(["davy-agent", "check", "--json"]).is_ok());
        assert!(Cli::try_parse_from(["davy-agent"]).is_err());
    }
}
