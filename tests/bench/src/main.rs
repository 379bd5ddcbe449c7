//! `davy-bench`: what the kernel half, the agent and the detector's decisions cost, measured on the machine it runs on.
//!
//! Started by `cargo xtask bench events`, which builds everything first. Three parts, each in rounds that
//! alternate between what is compared, so that a busy or throttled machine disturbs all sides alike:
//!
//! - [`events`]: BPF run time per `sched_switch`, beside an empty program on the same hook;
//! - [`pipe`]: `perf bench sched pipe` with and without the kernel half;
//! - [`daemon`]: the real agent's CPU time and memory by number of watched threads.
//!
//! Those need root, BTF and `perf`. A line of progress per round on standard error; the table, or with `--json` one
//! JSON document, on standard output.
//!
//! And by `cargo xtask bench decisions`: [`decisions`], how fast the pure core decides, and [`path`], how fast accounts are decided on
//! with all that is stored.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Parser, Subcommand};

mod daemon;
mod decisions;
mod empty;
mod events;
mod figures;
mod load;
mod machine;
mod path;
mod pipe;
mod report;

/// Measures what Davy's kernel half and agent cost on this machine.
#[derive(Debug, Parser)]
#[command(name = "davy-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, and print a table
    Events {
        /// About how long to measure, in seconds, shared among the three parts
        #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(30..=86_400))]
        seconds: u64,
        /// Print one JSON document instead of the table
        #[arg(long)]
        json: bool,
        /// The agent to measure
        #[arg(long)]
        agent: PathBuf,
        /// The detector it reports to; without it the agent finds none and keeps trying
        #[arg(long)]
        detector: Option<PathBuf>,
    },
    /// Measure decisions per second, of the pure core on one core and of the whole path on both stores; needs no root
    Decisions {
        /// About how long to measure, in seconds
        #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(3..=3_600))]
        seconds: u64,
        /// Print one JSON document instead of the table
        #[arg(long)]
        json: bool,
    },
    /// Two threads that switch to each other on one CPU (used by `events`)
    #[command(hide = true)]
    Switching {
        /// What they keep in their vector registers, see `pattern.rs`; `none` touches none
        content: String,
        /// Whether it is the same at each switch
        #[arg(long)]
        same: bool,
    },
    /// Threads that mostly sleep (used by `events`)
    #[command(hide = true)]
    Sleeping {
        /// How many
        threads: usize,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Events {
            seconds,
            json,
            agent,
            detector,
        } => measure(seconds, json, &daemon::Programs { agent, detector }),
        Command::Decisions { seconds, json } => decide(seconds, json),
        Command::Switching { content, same } => load::switching(&content, same),
        Command::Sleeping { threads } => load::sleeping(threads),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn decide(seconds: u64, json: bool) -> Result<()> {
    let half = Duration::from_secs(seconds) / 2;
    let core = decisions::measure(Instant::now() + half)?;
    let path = path::measure(half)?;
    if json {
        let document = serde_json::json!({ "core": core, "path": path });
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        println!("The pure core, one core:\n\n{core}\n\nThe whole path:\n\n{path}");
    }
    Ok(())
}

fn measure(seconds: u64, json: bool, programs: &daemon::Programs) -> Result<()> {
    let third = Duration::from_secs(seconds) / 3;
    let machine = machine::Machine::read();
    let events = events::measure(Instant::now() + third)?;
    let pipe = pipe::measure(Instant::now() + third, programs)?;
    let daemon = daemon::measure(programs, third)?;
    let report = report::Report {
        machine,
        events,
        pipe,
        daemon,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}
