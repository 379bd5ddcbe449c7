//! `davy-sha256`: a vectorised proof of work that is not RandomX.

use std::num::NonZeroU64;

use anyhow::Result;
use clap::Parser;
use davy_workloads::{
    load::Load,
    sha256::{GENESIS, Header, Vectors},
};

/// Header vectors hashed between two looks at the clock.
const STEPS: u32 = 1024;

/// Computes sha256d of block headers, 8 at once in AVX2 registers, or 4 in SSE2 registers.
///
/// Prints "ready" once known hashes were checked, then a line per second.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Threads that hash.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Share of one CPU each thread uses, in periods of 100 ms.
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    duty: u8,
    /// Stop after this many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<NonZeroU64>,
}

fn main() -> Result<()> {
    let Options {
        threads,
        duty,
        seconds,
    } = Options::parse();
    let vectors = Vectors::detect();
    vectors.check_known_hash()?;
    let load = Load {
        threads,
        duty_percent: duty,
        seconds,
    };
    load.run(
        |thread| {
            // Each thread has a block of its own.
            let mut header = GENESIS;
            header[4..6].copy_from_slice(&thread.to_le_bytes());
            let header = Header::new(&header);
            let mut nonce = 0u32;
            Ok(move || {
                let mut best = u32::MAX;
                for _ in 0..STEPS {
                    vectors.hash(&header, nonce, |_, hash| {
                        best = best.min(hash[7].swap_bytes());
                    });
                    nonce = nonce.wrapping_add(vectors.lanes());
                }
                std::hint::black_box(best);
                u64::from(STEPS * vectors.lanes())
            })
        },
        |progress| format!("{} hashes, {:.0} hashes/s", progress.total, progress.per_s),
    )
}
