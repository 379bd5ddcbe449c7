//! Threads that work for some time, at some duty, with one line of progress per second.

use std::{
    io::Write as _,
    num::NonZeroU64,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use rustix::time::{ClockId, clock_gettime};

/// A thread below 100 % duty computes for its share of this and sleeps the rest; for longer where one unit of work takes longer than the share.
pub const PERIOD: Duration = Duration::from_millis(100);

/// How much is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Threads that work, 1 or more.
    pub threads: u16,
    /// Share of one CPU each thread uses, percent, 1 to 100.
    pub duty_percent: u8,
    /// How long, seconds; none: until a signal ends the process.
    pub seconds: Option<NonZeroU64>,
}

/// What was done when a line is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Units of work since the start.
    pub total: u64,
    /// Units per second since the line before.
    pub per_s: f64,
}

impl Load {
    /// Works until the time is up. `worker` is called once in each thread, with the thread's index, and gives what the thread then calls
    /// again and again: it does a little work and returns how many units that was. `line` puts the progress into words.
    ///
    /// # Errors
    /// If a worker cannot be made, a thread not be started, or standard output is closed.
    pub fn run<W: FnMut() -> u64>(
        &self,
        worker: impl Fn(u16) -> Result<W> + Sync,
        line: impl Fn(Progress) -> String,
    ) -> Result<()> {
        let stop = AtomicBool::new(false);
        let total = AtomicU64::new(0);
        thread::scope(|scope| {
            let mut threads = Vec::new();
            let mut outcome = Ok(());
            for index in 0..self.threads {
                let (stop, total, worker) = (&stop, &total, &worker);
                let started = thread::Builder::new()
                    .name(format!("work-{index}"))
                    .spawn_scoped(scope, move || {
                        work(worker(index)?, self.duty_percent, stop, total)
                    });
                match started {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        outcome =
                            Err(error).with_context(|| format!("cannot start thread {index}"));
                        break;
                    }
                }
            }
            if outcome.is_ok() {
                let failed = || threads.iter().any(thread::ScopedJoinHandle::is_finished);
                outcome = report(self.seconds, &total, failed, line);
            }
            stop.store(true, Ordering::Relaxed);
            for thread in threads {
                thread.thread().unpark();
                let ended = thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a worker thread panicked")));
                outcome = ended.and(outcome);
            }
            outcome
        })
    }
}

/// One thread's life: at least one unit of work.
fn work(
    mut unit: impl FnMut() -> u64,
    duty_percent: u8,
    stop: &AtomicBool,
    total: &AtomicU64,
) -> Result<()> {
    let (mut wall_start, mut cpu_start) = (Instant::now(), cpu_time()?);
    loop {
        total.fetch_add(unit(), Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if duty_percent >= 100 {
            continue;
        }
        let cpu = cpu_time()?.saturating_sub(cpu_start);
        if cpu < PERIOD * u32::from(duty_percent) / 100 {
            continue;
        }
        let until = wall_start + period(cpu, duty_percent);
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() || stop.load(Ordering::Relaxed) {
                break;
            }
            thread::park_timeout(rest);
        }
        (wall_start, cpu_start) = (Instant::now(), cpu_time()?);
    }
}

/// How long a period lasts in which `cpu` was used, if that is to be `duty_percent` of it.
fn period(cpu: Duration, duty_percent: u8) -> Duration {
    cpu * 100 / u32::from(duty_percent.max(1))
}

/// CPU time of the calling thread.
fn cpu_time() -> Result<Duration> {
    clock_gettime(ClockId::ThreadCPUTime)
        .try_into()
        .map_err(|_| anyhow!("the thread's CPU clock is negative"))
}

/// Prints `ready`, then a line per second, until the time is up or `failed`.
fn report(
    seconds: Option<NonZeroU64>,
    total: &AtomicU64,
    failed: impl Fn() -> bool,
    line: impl Fn(Progress) -> String,
) -> Result<()> {
    print_line("ready")?;
    let start = Instant::now();
    let (mut before, mut before_at) = (0, start);
    for second in 1.. {
        let due = start + Duration::from_secs(second);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if failed() {
            break;
        }
        let (now, now_at) = (total.load(Ordering::Relaxed), Instant::now());
        let per_s = (now - before) as f64 / (now_at - before_at).as_secs_f64();
        (before, before_at) = (now, now_at);
        print_line(&line(Progress { total: now, per_s }))?;
        if seconds.is_some_and(|seconds| second >= seconds.get()) {
            break;
        }
    }
    Ok(())
}

/// Prints one line at once, also into a pipe.
///
/// # Errors
/// If standard output is closed: nobody looks any more.
pub fn print_line(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_as_long_as_the_duty_asks() {
        let ms = Duration::from_millis;
        assert_eq!(period(ms(25), 25), ms(100));
        assert_eq!(period(ms(50), 5), ms(1_000));
        assert_eq!(period(ms(100), 100), ms(100));
    }

    #[test]
    fn all_threads_work_and_the_total_is_theirs() {
        let units = AtomicU64::new(0);
        let load = Load {
            threads: 3,
            duty_percent: 50,
            seconds: NonZeroU64::new(1),
        };
        let started = AtomicU64::new(0);
        let last = std::cell::Cell::new(0);
        load.run(
            |_| {
                started.fetch_add(1, Ordering::Relaxed);
                Ok(|| {
                    units.fetch_add(2, Ordering::Relaxed);
                    thread::yield_now();
                    2
                })
            },
            |progress| {
                last.set(progress.total);
                String::new()
            },
        )
        .unwrap();
        assert_eq!(started.into_inner(), 3);
        let units = units.into_inner();
        assert!(units >= 3 * 2 && last.get() <= units);
    }

    #[test]
    fn a_worker_that_cannot_be_made_ends_the_load_with_its_error() {
        let load = Load {
            threads: 2,
            duty_percent: 100,
            seconds: None,
        };
        let error = load
            .run(
                |index| {
                    if index == 1 {
                        anyhow::bail!("no memory");
                    }
                    Ok(|| 1)
                },
                |_| String::new(),
            )
            .unwrap_err();
        assert_eq!(error.to_string(), "no memory");
    }
}
