//! `davy-idle`: does nothing, and wakes once a second to see whether it may stop.

use std::{num::NonZeroU64, thread, time::Duration};

use anyhow::Result;
use clap::Parser;
use davy_workloads::load::print_line;

/// Sleeps, and wakes once a second. Prints "ready" at the start and nothing else.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Stop after this many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<NonZeroU64>,
}

fn main() -> Result<()> {
    let Options { seconds } = Options::parse();
    print_line("ready")?;
    let mut slept = 0;
    while seconds.is_none_or(|seconds| slept < seconds.get()) {
        thread::sleep(Duration::from_secs(1));
        slept += 1;
    }
    Ok(())
}
