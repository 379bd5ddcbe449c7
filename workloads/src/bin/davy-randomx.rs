//! `davy-randomx`: mines RandomX (to nobody's profit: hashes are counted and forgotten).

use std::{
    num::NonZeroU64,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Result;
use clap::Parser;
use davy_workloads::{
    load::Load,
    randomx::{Cache, Dataset, KEY, Variant, Vm},
};

/// Computes RandomX hashes with librandomx, as a miner does: usually in light mode, compiled.
///
/// Prints "ready" once the cache (and dataset) is filled and a known hash was checked, then a line per second. Needs 256 MiB (2336 MiB with
/// --full), and 2 MiB per thread.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Threads that hash.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Share of one CPU each thread uses; it computes and sleeps in periods of 100 ms, or longer if one hash takes longer than its share.
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    duty: u8,
    /// Stop after this many seconds of hashing.
    #[arg(long, value_name = "N")]
    seconds: Option<NonZeroU64>,
    /// Light mode: a cache of 256 MiB instead of a dataset of 2 GiB. The default.
    #[arg(long, conflicts_with = "full")]
    light: bool,
    /// Full mode, as miners at their best: a dataset of 2 GiB, which all CPUs fill first, for one to two minutes of CPU time.
    #[arg(long)]
    full: bool,
    /// Interpret programs instead of compiling them: about a tenth of the speed.
    #[arg(long)]
    interpreted: bool,
    /// AES by tables instead of the CPU's instructions.
    #[arg(long)]
    soft_aes: bool,
    /// Compiled programs are never writable and executable at once (W^X).
    #[arg(long, conflicts_with = "interpreted")]
    secure: bool,
}

fn main() -> Result<()> {
    let Options {
        threads,
        duty,
        seconds,
        light: _,
        full,
        interpreted,
        soft_aes,
        secure,
    } = Options::parse();
    let variant = Variant {
        interpreted,
        soft_aes,
        secure,
    };
    let cache = Cache::new(KEY, variant)?;
    let dataset = if full {
        let cpus = std::thread::available_parallelism()?.get();
        Some(Dataset::new(
            &cache,
            u16::try_from(cpus).unwrap_or(u16::MAX),
        )?)
    } else {
        None
    };
    let machine = || match &dataset {
        Some(dataset) => Vm::on_dataset(dataset),
        None => Vm::new(&cache),
    };
    machine()?.check_known_hash()?;
    let next_nonce = AtomicU64::new(0);
    let load = Load {
        threads,
        duty_percent: duty,
        seconds,
    };
    load.run(
        |_| {
            let mut vm = machine()?;
            let next_nonce = &next_nonce;
            Ok(move || {
                let nonce = next_nonce.fetch_add(1, Ordering::Relaxed);
                std::hint::black_box(vm.hash(&nonce.to_le_bytes()));
                1
            })
        },
        |progress| format!("{} hashes, {:.1} hashes/s", progress.total, progress.per_s),
    )
}
