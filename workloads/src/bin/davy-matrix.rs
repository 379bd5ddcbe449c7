//! `davy-matrix`: an honest load that keeps the vector registers busy.

use std::{
    num::NonZeroU64,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Result;
use clap::Parser;
use davy_workloads::{
    load::Load,
    matrix::{SIZE, Work},
};

/// Multiplies f64 and f32 matrices, at full speed.
///
/// Prints "ready", then a line per second with the checksum (the sum of the elements) of a thread's latest product.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Threads that multiply.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Stop after this many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<NonZeroU64>,
}

fn main() -> Result<()> {
    let Options { threads, seconds } = Options::parse();
    let checksum = AtomicU64::new(0f64.to_bits());
    let load = Load {
        threads,
        duty_percent: 100,
        seconds,
    };
    load.run(
        |thread| {
            let mut work = Work::new(thread);
            let checksum = &checksum;
            Ok(move || {
                checksum.store(work.step().to_bits(), Ordering::Relaxed);
                2
            })
        },
        |progress| {
            format!(
                "{} products of {SIZE}x{SIZE}, {:.0} products/s, checksum {:.6}",
                progress.total,
                progress.per_s,
                f64::from_bits(checksum.load(Ordering::Relaxed))
            )
        },
    )
}
