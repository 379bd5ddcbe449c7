//! `davy-rounding`: an honest load in directed rounding modes.

use std::num::NonZeroU64;

use anyhow::Result;
use clap::Parser;
use davy_workloads::{
    load::Load,
    rounding::{Mode, check, stochastic_sums, sum},
};

/// Bounds sums in directed rounding modes, as interval arithmetic does, or rounds by chance, as stochastic arithmetic does, at full speed.
///
/// Prints "ready" once the modes were checked, then a line per second.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Rounding modes used.
    mode: Mode,
    /// Sums computed in a mode before the next one's turn; each takes about 0.1 ms, by chance 1 ms or more.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sums: u32,
    /// Threads that compute.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Stop after this many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<NonZeroU64>,
}

fn main() -> Result<()> {
    let Options {
        mode,
        sums,
        threads,
        seconds,
    } = Options::parse();
    check()?;
    let load = Load {
        threads,
        duty_percent: 100,
        seconds,
    };
    load.run(
        |thread| {
            let mut state = u64::from(thread) + 1;
            let mut turns = mode.in_turn().iter().cycle();
            Ok(move || {
                let rounding_control = turns.next().copied().unwrap_or_default();
                for _ in 0..sums {
                    if let Some(chance) = mode.by_chance() {
                        std::hint::black_box(stochastic_sums(chance, &mut state));
                    } else {
                        std::hint::black_box(sum(rounding_control));
                    }
                }
                u64::from(sums)
            })
        },
        |progress| format!("{} sums, {:.0} sums/s", progress.total, progress.per_s),
    )
}
