//! `perf bench sched pipe` (Debian's linux-perf) with and without the agent, in alternation.
//!
//! Two processes hand a byte to and fro: per operation two switches and next to nothing else, the worst case
//! for what hangs on every switch. Measured as it is, free to use all CPUs, and on one CPU, where it switches
//! fastest. A round runs every variant once, each round in another order, and each run is compared
//! with the run without it of its own round.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use davy_agent::kernel::{Kernel, KernelOptions};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::{
    daemon::{Programs, Unwatching},
    figures::Spread,
    load,
};

/// How long one run should last, µs.
const RUN_US: f64 = 400_000.0;
/// Operations of the run that finds out how many that takes.
const TRIAL_OPERATIONS: u32 = 10_000;

/// What runs beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Nothing.
    Without,
    /// The kernel half as the agent loads it; nobody watches the benchmark.
    Attached,
    /// The whole agent, as it runs by default: nudging, and the kernel keeping time of its programs for 2 s of 20.
    Agent,
    /// As `Attached`, and the benchmark is watched, with the default interval between looks.
    Watched,
}

const VARIANTS: [Variant; 4] = [
    Variant::Without,
    Variant::Attached,
    Variant::Agent,
    Variant::Watched,
];

/// Where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// On whatever CPU the scheduler chooses.
    AllCpus,
    /// Both processes on one CPU.
    OneCpu,
}

const PLACEMENTS: [Placement; 2] = [Placement::AllCpus, Placement::OneCpu];

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Where it ran.
    pub placement: Placement,
    /// What ran beside it.
    pub variant: Variant,
    /// Time per operation, µs.
    pub operation_us: Spread,
    /// How much longer than without, in percent; negative if faster.
    pub slower_percent: Option<Spread>,
    /// Greatest value wanted of that.
    pub goal_percent: Option<f64>,
}

/// Rounds until `end`, at least three.
///
/// # Errors
/// If `perf` is not there or the kernel half cannot be loaded.
pub fn measure(end: Instant, programs: &Programs) -> Result<Vec<Row>> {
    const ROUNDS_MIN: usize = 3;
    let mut operations = Vec::new();
    for placement in PLACEMENTS {
        operations.push(operations_for(run(placement, TRIAL_OPERATIONS)?));
    }
    // us[placement][variant][round]
    let mut us: Vec<[Vec<f64>; VARIANTS.len()]> =
        PLACEMENTS.iter().map(|_| Default::default()).collect();
    let mut round = 0;
    while round < ROUNDS_MIN || Instant::now() < end {
        for (at, &placement) in PLACEMENTS.iter().enumerate() {
            for turn in 0..VARIANTS.len() {
                let index = place(turn, round);
                let variant = VARIANTS[index];
                us[at][index].push(beside(variant, programs, || {
                    run(placement, operations[at])
                })?);
            }
        }
        round += 1;
        eprintln!("pipe: round {round} done");
    }
    Ok(rows(&us))
}

/// Which variant a round runs at a turn: forwards and backwards, beginning with each variant in turn.
fn place(turn: usize, round: usize) -> usize {
    let count = VARIANTS.len();
    let shifted = (turn + round / 2) % count;
    if round.is_multiple_of(2) {
        shifted
    } else {
        count - 1 - shifted
    }
}

fn rows(us: &[[Vec<f64>; VARIANTS.len()]]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (&placement, us) in PLACEMENTS.iter().zip(us) {
        for (&variant, with) in VARIANTS.iter().zip(us) {
            let pairs = with.iter().zip(&us[0]);
            let is_without = variant == Variant::Without;
            let is_goal = variant == Variant::Agent;
            let Some(operation_us) = Spread::of(with.iter().copied()) else {
                continue;
            };
            rows.push(Row {
                placement,
                variant,
                operation_us,
                slower_percent: Spread::of(pairs.map(|(with, without)| {
                    if is_without {
                        f64::NAN
                    } else {
                        (with / without - 1.0) * 100.0
                    }
                })),
                goal_percent: is_goal.then_some(1.5),
            });
        }
    }
    rows
}

fn beside<T>(variant: Variant, programs: &Programs, work: impl FnOnce() -> Result<T>) -> Result<T> {
    match variant {
        Variant::Without => return work(),
        Variant::Agent => {
            let _agent = Unwatching::start(programs)?;
            return work();
        }
        Variant::Attached | Variant::Watched => {}
    }
    let mut kernel = Kernel::load(&KernelOptions::default())?;
    if variant == Variant::Watched {
        // What this thread starts is watched from birth.
        kernel.watch_this_thread(1)?;
    }
    let result = work();
    drop(kernel);
    result
}

/// Runs the benchmark; µs per operation.
fn run(placement: Placement, operations: u32) -> Result<f64> {
    let _moved = match placement {
        Placement::AllCpus => None,
        Placement::OneCpu => Some(Moved::to(&load::last_cpu()?)?),
    };
    let output = Command::new("perf")
        .args(["bench", "sched", "pipe", "-l"])
        .arg(operations.to_string())
        .stdin(Stdio::null())
        .output()
        .context("perf cannot be started; install it: apt-get install linux-perf")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("perf bench sched pipe failed: {}", words.trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).with_context(|| format!("perf printed no time per operation: {:?}", text.trim()))
}

/// The number before `usecs/op`: the total, which perf prints too, is rounded to milliseconds.
fn parse(output: &str) -> Option<f64> {
    let line = output
        .lines()
        .find_map(|line| line.trim().strip_suffix("usecs/op"))?;
    let us: f64 = line.trim().parse().ok()?;
    (us.is_finite() && us > 0.0).then_some(us)
}

/// Operations for a run of [`RUN_US`], if one takes `us`; at most a hundred times [`TRIAL_OPERATIONS`].
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive, and small after the clamp"
)]
fn operations_for(us: f64) -> u32 {
    let wanted = RUN_US / us;
    let trials = (wanted / f64::from(TRIAL_OPERATIONS)).clamp(1.0, 100.0);
    TRIAL_OPERATIONS * trials as u32
}

/// Keeps this thread, and what it starts, on some CPUs until dropped.
struct Moved {
    before: CpuSet,
}

impl Moved {
    fn to(cpus: &CpuSet) -> Result<Self> {
        let before = sched_getaffinity(None)?;
        sched_setaffinity(None, cpus)?;
        Ok(Self { before })
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        if let Err(error) = sched_setaffinity(None, &self.before) {
            eprintln!("this thread stays on one CPU: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perf_prints_is_read() {
        let printed = "# Running 'sched/pipe' benchmark:\n# Executed 20000 pipe operations between two processes\n\n     \
                       Total time: 0.303 [sec]\n\n      15.170450 usecs/op\n          65917 ops/sec\n";
        assert_eq!(parse(printed), Some(15.170_45));
        for wrong in ["", "0.000000 usecs/op\n", "nan usecs/op", "0.303\n"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_run_is_made_long_enough() {
        assert_eq!(operations_for(10.0), 40_000);
        assert_eq!(operations_for(1e6), TRIAL_OPERATIONS);
        assert_eq!(operations_for(1e-9), 100 * TRIAL_OPERATIONS);
    }

    #[test]
    fn every_round_runs_every_variant_in_another_order() {
        let order = |round| {
            (0..VARIANTS.len())
                .map(|turn| place(turn, round))
                .collect::<Vec<_>>()
        };
        for round in 0..8 {
            let mut sorted = order(round);
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
        }
        assert_eq!(order(0), [0, 1, 2, 3]);
        assert_eq!(order(1), [3, 2, 1, 0]);
        assert_eq!(order(2), [1, 2, 3, 0]);
    }

    #[test]
    fn runs_are_compared_within_their_round() {
        let us = [
            [
                vec![1.0, 2.0],
                vec![1.1, 2.2],
                vec![1.0, 2.0],
                vec![1.2, 2.4],
            ],
            [vec![4.0], vec![4.0], vec![4.0], vec![2.0]],
        ];
        let rows = rows(&us);
        let slower = |at: usize| rows[at].slower_percent.map(|spread| spread.median.round());
        assert_eq!(slower(0), None);
        assert_eq!(
            (slower(1), slower(2), slower(3)),
            (Some(10.0), Some(0.0), Some(20.0))
        );
        assert_eq!(slower(7), Some(-50.0));
        assert_eq!(
            rows.iter().filter(|row| row.goal_percent.is_some()).count(),
            2
        );
    }
}
