//! `davy-agent`: see `davy-agent --help`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    davy_agent::cli::Cli::parse().execute()
}
