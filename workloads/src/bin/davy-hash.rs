//! `davy-hash`: proofs of work other than RandomX, over hash crates.

use std::num::NonZeroU64;

use anyhow::Result;
use clap::Parser;
use davy_workloads::{
    hash::{Algorithm, Work},
    load::Load,
};

/// Hashes block headers with one nonce after the other, as a miner does.
///
/// Prints "ready" once a published value was checked, then a line per second.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// What is computed.
    algorithm: Algorithm,
    /// Threads that hash.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Share of one CPU each thread uses, in periods of 100 ms.
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    duty: u8,
    /// Stop after this many seconds of hashing.
    #[arg(long, value_name = "N")]
    seconds: Option<NonZeroU64>,
}

fn main() -> Result<()> {
    let Options {
        algorithm,
        threads,
        duty,
        seconds,
    } = Options::parse();
    algorithm.check_known_hash()?;
    Work::new(algorithm, 0).step()?;
    let load = Load {
        threads,
        duty_percent: duty,
        seconds,
    };
    load.run(
        |thread| {
            let mut work = Work::new(algorithm, thread);
            Ok(move || {
                let mut done = 0;
                for _ in 0..work.batch() {
                    // No memory for this one: the rate shows it.
                    if let Ok(hash) = work.step() {
                        std::hint::black_box(hash);
                        done += 1;
                    }
                }
                done
            })
        },
        |progress| format!("{} hashes, {:.0} hashes/s", progress.total, progress.per_s),
    )
}
