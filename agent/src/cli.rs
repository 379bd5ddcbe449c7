//! The command line.

use std::{
    ffi::OsString,
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{ArgGroup, Args, Parser, Subcommand};
use davy_evidence::Level;
use tokio::signal::unix::SignalKind;
use tracing_subscriber::EnvFilter;

use crate::{
    check,
    config::Config,
    run,
    trial::{self, Options, Target, text},
};

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
    /// Needs root (or CAP_BPF, CAP_PERFMON and CAP_SYS_RESOURCE). `davy-agent check` tells what is missing.
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
        /// The configuration to check for; without it the defaults hold.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print one JSON document instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Watch a command, a process or a control group for a while, and tell what Davy would conclude, and why.
    ///
    /// A command is run as its own tenant, with everything it starts, and is ended with the trial (SIGTERM, and
    /// SIGKILL after 2 s); its input is /dev/null. The trial ends early when everything it watches has ended, and
    /// at Ctrl-C, with the verdict so far. A process or control group is only watched, never ended.
    ///
    /// Needs root (or CAP_BPF, CAP_PERFMON and CAP_SYS_RESOURCE). The result goes to standard output, progress to standard error.
    /// Exit status 0 if the trial itself worked, whatever the verdict and the command's own status.
    Trial(TrialArguments),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("target").required(true).args(["command", "pid", "cgroup"])))]
struct TrialArguments {
    /// The agent's configuration, for which CPUs are never nudged and for the performance counters; without it the defaults hold.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long at most, s; 1 to 86400.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Print one JSON document instead (docs/trial.md describes it).
    #[arg(long)]
    json: bool,
    /// Write the command's output to FILE; without it, it goes to standard error.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pid", "cgroup"])]
    output: Option<PathBuf>,
    /// End as soon as the verdict is at least LEVEL: suspect or mining.
    #[arg(long, value_name = "LEVEL", value_parser = until)]
    until: Option<Level>,
    /// Watch this process, which runs already, and its descendants.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// Watch this control group (its directory) and the groups below it.
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// The command to run, and its arguments, behind `--`.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
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
            Command::Check { config, json } => {
                configuration(config).and_then(|config| check::print(&config, json))
            }
            Command::Trial(arguments) => try_out(arguments),
        };
        outcome.unwrap_or_else(|error| {
            // Nobody may listen any more.
            let _ = writeln!(std::io::stderr(), "davy-agent: {error:#}");
            ExitCode::FAILURE
        })
    }
}

fn try_out(arguments: TrialArguments) -> anyhow::Result<ExitCode> {
    let TrialArguments {
        config,
        seconds,
        json,
        output,
        until,
        pid,
        cgroup,
        command,
    } = arguments;
    let target = match (pid, cgroup) {
        (Some(pid), _) => Target::Process(pid),
        (None, Some(dir)) => Target::Cgroup(dir),
        (None, None) => Target::Command(command),
    };
    let options = Options {
        length: Duration::from_secs(seconds),
        output,
        until,
        config: configuration(config)?,
        ..Options::of(target)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime that waits for signals")?;
    let signals = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let stop = run::stop_signals(&runtime, &signals)?;
    let mut shown = text::ProgressLine::default();
    let outcome = trial::run(&options, &stop, &mut |progress| shown.show(progress));
    shown.end();
    let document = outcome?;
    let mut text = if json {
        serde_json::to_string(&document).context("cannot write the result as JSON")?
    } else {
        text::result(&document)
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn until(name: &str) -> Result<Level, &'static str> {
    match name.parse() {
        Ok(level @ (Level::Suspect | Level::Mining)) => Ok(level),
        Ok(Level::Quiet) | Err(_) => Err("it must be suspect or mining"),
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

    #[test]
    fn a_trial_has_exactly_one_target() {
        let parses = |arguments: &[&str]| {
            let words = ["davy-agent", "trial"].iter().chain(arguments);
            Cli::try_parse_from(words).is_ok()
        };
        assert!(parses(&["--", "sleep", "--json"]));
        assert!(parses(&["--pid", "7", "--until", "mining", "--json"]));
        assert!(parses(&["--cgroup", "/sys/fs/cgroup/x", "--seconds", "5"]));
        assert!(!parses(&[]));
        assert!(!parses(&["--pid", "7", "--", "sleep"]));
        assert!(!parses(&["--pid", "7", "--cgroup", "/x"]));
        assert!(!parses(&["--pid", "0"]));
        assert!(!parses(&["--pid", "7", "--output", "x"]));
        assert!(!parses(&["--seconds", "0", "--", "sleep"]));
        assert!(!parses(&["--until", "quiet", "--", "sleep"]));
    }
}
