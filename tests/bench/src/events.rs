//! BPF run time per `sched_switch`: the kernel half's program beside the empty one, on the same events.
//!
//! Two threads on one CPU switch to each other as fast as they can. Both programs are attached, and the kernel
//! keeps time of each (`BPF_ENABLE_STATS`), so a ratio compares runs for the very same switches. Nothing is
//! subtracted: both figures hold the two clock reads the kernel takes for each run.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use davy_agent::kernel::{Kernel, KernelOptions, Reading};
use serde::Serialize;

use crate::{
    empty::{Cost, Empty},
    figures::{Spread, ratio},
    load::Load,
};

/// Length of one measurement.
const INTERVAL: Duration = Duration::from_millis(400);
/// Time for caches and the scheduler to settle before it.
const SETTLE: Duration = Duration::from_millis(50);
/// An interval between looks that never passes here.
const NEVER: Duration = Duration::from_secs(3600);

/// What is measured, in the order of a round.
const CASES: [Case; 7] = [
    Case {
        name: "empty program alone",
        kernel_half: None,
        watched: false,
        content: "none",
        same: true,
        goal: None,
    },
    Case {
        name: "unwatched",
        kernel_half: Some(NEVER),
        watched: false,
        content: "none",
        same: true,
        goal: Some(2.5),
    },
    Case {
        name: "watched, no look due",
        kernel_half: Some(NEVER),
        watched: true,
        content: "none",
        same: true,
        goal: Some(5.0),
    },
    Case {
        name: "sampled, registers unchanged",
        kernel_half: Some(Duration::ZERO),
        watched: true,
        content: "random",
        same: true,
        goal: Some(12.0),
    },
    Case {
        name: "sampled, new integers",
        kernel_half: Some(Duration::ZERO),
        watched: true,
        content: "integers",
        same: false,
        goal: Some(12.0),
    },
    Case {
        name: "sampled, new doubles",
        kernel_half: Some(Duration::ZERO),
        watched: true,
        content: "doubles",
        same: false,
        goal: Some(12.0),
    },
    Case {
        name: "sampled, new random words",
        kernel_half: Some(Duration::ZERO),
        watched: true,
        content: "random",
        same: false,
        goal: Some(12.0),
    },
];

/// One thing to measure.
struct Case {
    name: &'static str,
    /// The interval between looks, if the kernel half is attached.
    kernel_half: Option<Duration>,
    watched: bool,
    content: &'static str,
    same: bool,
    /// Greatest ratio wanted.
    goal: Option<f64>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: &'static str,
    /// The empty program, ns per run.
    pub empty_ns: Spread,
    /// The kernel half's program, ns per run.
    pub davy_ns: Option<Spread>,
    /// The second by the first, round by round.
    pub ratio: Option<Spread>,
    /// Greatest ratio wanted.
    pub goal: Option<f64>,
    /// Share of all runs that the load's own threads entered with, 0 to 1; where they are watched.
    pub share_of_runs: Option<f64>,
    /// Looks at the registers per switch of the load; where they are watched.
    pub looks_per_switch: Option<f64>,
    /// Share of looks that found random registers.
    pub random_per_look: Option<f64>,
}

/// One measurement.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    empty: Cost,
    davy: Option<Cost>,
    switches: u64,
    looks: u64,
    random: u64,
}

/// Rounds until `end`, at least three.
///
/// # Errors
/// If a program cannot be loaded or a load not be started.
pub fn measure(end: Instant) -> Result<Vec<Row>> {
    const ROUNDS_MIN: usize = 3;
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime)
        .context("the kernel does not keep time of programs: run as root")?;
    let empty = Empty::attach()?;
    let mut samples: Vec<Vec<Sample>> = CASES.iter().map(|_| Vec::new()).collect();
    let mut round = 0;
    while round < ROUNDS_MIN || Instant::now() < end {
        for turn in 0..CASES.len() {
            // Each round begins with another case, so that none always follows the same.
            let index = (turn + round) % CASES.len();
            let sample = one(&CASES[index], &empty)
                .with_context(|| format!("measuring {:?} failed", CASES[index].name))?;
            samples[index].push(sample);
        }
        round += 1;
        eprintln!("events: round {round} done");
    }
    CASES
        .iter()
        .zip(&samples)
        .map(|(case, samples)| row(case, samples).context("nothing was measured"))
        .collect()
}

fn one(case: &Case, empty: &Empty) -> Result<Sample> {
    let mut arguments = vec!["switching", case.content];
    if case.same {
        arguments.push("--same");
    }
    let load = Load::start(&arguments)?;
    let Some(sample_interval) = case.kernel_half else {
        return interval(empty, None, load.id());
    };
    let mut kernel = Kernel::load(&KernelOptions {
        sample_interval,
        ..KernelOptions::default()
    })?;
    if case.watched {
        kernel.watch_process(load.id(), 1)?;
    }
    interval(empty, Some(&kernel), load.id())
}

fn interval(empty: &Empty, kernel: Option<&Kernel>, load: u32) -> Result<Sample> {
    thread::sleep(SETTLE);
    let before = now(empty, kernel, load)?;
    thread::sleep(INTERVAL);
    let after = now(empty, kernel, load)?;
    Ok(Sample {
        empty: after.empty.since(before.empty),
        davy: after.davy.zip(before.davy).map(|(a, b)| a.since(b)),
        switches: after.switches.saturating_sub(before.switches),
        looks: after.looks.saturating_sub(before.looks),
        random: after.random.saturating_sub(before.random),
    })
}

fn now(empty: &Empty, kernel: Option<&Kernel>, load: u32) -> Result<Sample> {
    let mut sample = Sample {
        empty: empty.cost()?,
        ..Sample::default()
    };
    if let Some(kernel) = kernel {
        sample.davy = Some(program(kernel).context("the kernel does not count its runs")?);
        let mut readings: Vec<Reading> = Vec::new();
        kernel.readings(&mut readings);
        for Reading { slot, .. } in readings.iter().filter(|r| r.slot.tgid == load) {
            sample.switches += u64::from(slot.switch_ins);
            sample.looks += slot.looks;
            sample.random += slot.random.iter().sum::<u64>();
        }
    }
    Ok(sample)
}

fn program(kernel: &Kernel) -> Option<Cost> {
    let costs = kernel.overhead();
    let cost = costs.iter().find(|cost| cost.name == "sched_switch")?;
    Some(Cost {
        runs: cost.run_count,
        ns: cost.run_time_ns,
    })
}

fn row(case: &Case, samples: &[Sample]) -> Option<Row> {
    let each = |cost: Cost| ratio(cost.ns, cost.runs);
    let davy = || samples.iter().filter_map(|s| Some((s, s.davy?)));
    let sum = |part: fn(&Sample) -> u64| samples.iter().map(part).sum::<u64>();
    let (switches, looks, random) = (sum(|s| s.switches), sum(|s| s.looks), sum(|s| s.random));
    let runs = sum(|s| s.davy.map_or(0, |davy| davy.runs));
    let share = |a, b| (case.watched && b > 0).then(|| ratio(a, b));
    Some(Row {
        name: case.name,
        empty_ns: Spread::of(samples.iter().map(|s| each(s.empty)))?,
        davy_ns: Spread::of(davy().map(|(_, davy)| each(davy))),
        ratio: Spread::of(davy().map(|(sample, davy)| each(davy) / each(sample.empty))),
        goal: case.goal,
        share_of_runs: share(switches, runs),
        looks_per_switch: share(looks, switches),
        random_per_look: share(random, looks),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_compares_round_by_round() {
        let sample = |empty_ns, davy_ns| Sample {
            empty: Cost {
                runs: 10,
                ns: empty_ns,
            },
            davy: Some(Cost {
                runs: 10,
                ns: davy_ns,
            }),
            switches: 8,
            looks: 4,
            random: 1,
        };
        // A machine twice as slow in one round leaves the ratio as it is.
        let row = row(&CASES[2], &[sample(100, 300), sample(200, 600)]).unwrap();
        assert!((row.ratio.unwrap().median - 3.0).abs() < 1e-9);
        assert!((row.empty_ns.median - 15.0).abs() < 1e-9);
        assert_eq!(row.share_of_runs, Some(0.8));
        assert_eq!(row.looks_per_switch, Some(0.5));
        assert_eq!(row.random_per_look, Some(0.25));
    }

    #[test]
    fn the_empty_program_alone_has_no_ratio() {
        let sample = Sample {
            empty: Cost { runs: 10, ns: 100 },
            ..Sample::default()
        };
        let alone = row(&CASES[0], &[sample]).unwrap();
        assert_eq!((alone.ratio, alone.share_of_runs), (None, None));
        assert!(row(&CASES[0], &[]).is_none());
    }
}
