//! What the programs cost, by the kernel's own account: `run_cnt` and `run_time_ns` in the program's fdinfo
//! (`bpf_prog_show_fdinfo`, kernel/bpf/syscall.c), kept while `BPF_ENABLE_STATS` is on.
//!
//! Keeping that account costs two clock reads per run, about as much as the programs do at most switches. So [`Meter`] has it kept
//! for [`ON_NS`] of every [`PERIOD_NS`] and takes the time between for alike.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use aya::Ebpf;

/// One program's cost since it was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramCost {
    /// The program's name.
    pub name: String,
    /// Events it ran for.
    pub run_count: u64,
    /// Time it took for them, ns.
    pub run_time_ns: u64,
}

/// How long the account is kept at a time, ns; from a meter's begin on.
pub const ON_NS: u64 = 2_000_000_000;
/// Every so often, ns.
pub const PERIOD_NS: u64 = 20_000_000_000;

/// Has the kernel keep account now and then, and reckons what the programs cost all the time.
#[derive(Debug, Default)]
pub struct Meter {
    stats: Option<OwnedFd>,
    reckoning: Reckoning,
}

impl Meter {
    /// What the programs have cost since the first call, from what the kernel has counted of them (`counted`, see
    /// [`super::Kernel::overhead`]) by `now_ns` (`CLOCK_MONOTONIC`). Call it about once a second. Empty where the kernel keeps no account.
    /// `closely`: have it kept all the time, because something is decided by it.
    pub fn read(
        &mut self,
        now_ns: u64,
        counted: &[ProgramCost],
        closely: bool,
    ) -> Vec<ProgramCost> {
        self.reckoning
            .advance(now_ns, self.stats.is_some(), counted);
        if (closely || self.reckoning.is_on_time(now_ns)) != self.stats.is_some() {
            self.stats = match self.stats {
                Some(_) => None,
                // Where that fails nothing is ever counted, and nothing is reckoned.
                None => aya::sys::enable_stats(aya::sys::Stats::RunTime).ok(),
            };
        }
        self.reckoning.costs()
    }
}

/// One program's runs and their time; of a rate, per ns.
#[derive(Clone, Copy, Debug, Default)]
struct Runs {
    count: f64,
    time_ns: f64,
}

/// The pure part of [`Meter`].
#[derive(Debug, Default)]
struct Reckoning {
    began_ns: Option<u64>,
    at_ns: u64,
    counted: BTreeMap<String, (u64, u64)>,
    /// Of the last time it was counted.
    rates: BTreeMap<String, Runs>,
    sums: BTreeMap<String, Runs>,
}

impl Reckoning {
    /// Whether account is to be kept at `now_ns`.
    fn is_on_time(&self, now_ns: u64) -> bool {
        let began_ns = self.began_ns.unwrap_or(now_ns);
        now_ns.saturating_sub(began_ns) % PERIOD_NS < ON_NS
    }

    /// Adds the time since the last call, in which account was kept or not.
    fn advance(&mut self, now_ns: u64, was_on: bool, counted: &[ProgramCost]) {
        let elapsed_ns = now_ns.saturating_sub(self.at_ns) as f64;
        let first = self.began_ns.is_none();
        self.began_ns.get_or_insert(now_ns);
        self.at_ns = now_ns;
        if first || elapsed_ns == 0.0 {
            return;
        }
        for program in counted {
            let now = (program.run_count, program.run_time_ns);
            // Somebody else may have account kept too: what was counted while this meter had not is no part of a rate.
            let before = self.counted.insert(program.name.clone(), now);
            if was_on {
                let before = before.unwrap_or_default();
                let count = now.0.saturating_sub(before.0) as f64;
                let time_ns = now.1.saturating_sub(before.1) as f64;
                let rate = Runs {
                    count: count / elapsed_ns,
                    time_ns: time_ns / elapsed_ns,
                };
                self.rates.insert(program.name.clone(), rate);
            }
        }
        for (name, rate) in &self.rates {
            let sum = self.sums.entry(name.clone()).or_default();
            sum.count += rate.count * elapsed_ns;
            sum.time_ns += rate.time_ns * elapsed_ns;
        }
    }

    fn costs(&self) -> Vec<ProgramCost> {
        let whole = |value: f64| {
            // Sums of what was counted in u64: never negative, far below its range.
            std::time::Duration::from_secs_f64(value.max(0.0) / 1e9).as_nanos()
        };
        (self.sums.iter())
            .map(|(name, sum)| ProgramCost {
                name: name.clone(),
                run_count: u64::try_from(whole(sum.count)).unwrap_or(u64::MAX),
                run_time_ns: u64::try_from(whole(sum.time_ns)).unwrap_or(u64::MAX),
            })
            .collect()
    }
}

pub(super) fn costs(ebpf: &Ebpf) -> Vec<ProgramCost> {
    ebpf.programs()
        .filter_map(|(name, program)| {
            let fd = program.fd().ok()?;
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            parse(name, &std::fs::read_to_string(path).ok()?)
        })
        .collect()
}

/// `None` if the kernel does not say, or never measured.
fn parse(name: &str, fdinfo: &str) -> Option<ProgramCost> {
    let field = |key: &str| {
        let line = fdinfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().parse::<u64>().ok()
    };
    let run_count = field("run_cnt:")?;
    (run_count > 0).then_some(ProgramCost {
        name: name.to_owned(),
        run_count,
        run_time_ns: field("run_time_ns:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn counted(run_count: u64, run_time_ns: u64) -> [ProgramCost; 1] {
        [ProgramCost {
            name: "p".to_owned(),
            run_count,
            run_time_ns,
        }]
    }

    #[test]
    fn what_was_not_counted_is_taken_for_alike() {
        let mut reckoning = Reckoning::default();
        reckoning.advance(0, false, &[]);
        assert_eq!(reckoning.costs(), []);
        reckoning.advance(SECOND_NS, true, &counted(1_000, 200_000));
        reckoning.advance(2 * SECOND_NS, true, &counted(2_000, 400_000));
        // Off: nothing is counted any more.
        reckoning.advance(10 * SECOND_NS, false, &counted(2_000, 400_000));
        assert_eq!(reckoning.costs(), counted(10_000, 2_000_000));
        // On again, and twice as busy: from then on, not before.
        reckoning.advance(11 * SECOND_NS, true, &counted(4_000, 800_000));
        assert_eq!(reckoning.costs(), counted(12_000, 2_400_000));
    }

    #[test]
    fn what_somebody_else_had_counted_meanwhile_is_not_counted_twice() {
        let mut reckoning = Reckoning::default();
        reckoning.advance(0, false, &[]);
        reckoning.advance(SECOND_NS, true, &counted(1_000, 200_000));
        reckoning.advance(11 * SECOND_NS, false, &counted(11_000, 2_200_000));
        reckoning.advance(12 * SECOND_NS, true, &counted(12_000, 2_400_000));
        assert_eq!(reckoning.costs(), counted(12_000, 2_400_000));
    }

    #[test]
    fn account_is_kept_at_the_begin_and_then_now_and_then() {
        let mut reckoning = Reckoning::default();
        reckoning.advance(5 * SECOND_NS, false, &[]);
        let on: Vec<_> = (5..50)
            .filter(|&s| reckoning.is_on_time(s * SECOND_NS))
            .collect();
        assert_eq!(on, [5, 6, 25, 26, 45, 46]);
    }

    #[test]
    fn fdinfo_is_read() {
        let cost = parse("p", "pos:\t0\nrun_time_ns:\t1200\nrun_cnt:\t40\n").unwrap();
        assert_eq!((cost.run_count, cost.run_time_ns), (40, 1200));
        assert_eq!(parse("p", "pos:\t0\n"), None);
        assert_eq!(parse("p", "run_time_ns:\t0\nrun_cnt:\t0\n"), None);
    }
}
