//! The kernel's own books of a thread's CPU time, to compare the agent's figures with.
//!
//! A thread of ours reads `/proc/<pid>/task/<tid>/schedstat` (first field: time on the CPU, ns; kernel:
//! `proc_pid_schedstat`) many times a second with the time of day. The agent's windows end at other moments than
//! these readings; as the counter only grows, the readings around a window's ends bound what it can have grown by.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Between two readings.
const PERIOD: Duration = Duration::from_millis(50);

/// One reading of the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    at_unix_ns: u64,
    on_cpu_ns: u64,
}

/// Reads a thread's books until dropped.
#[derive(Debug)]
pub(crate) struct Books {
    readings: Arc<Mutex<Vec<Reading>>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Books {
    /// Starts reading the thread whose `/proc/<pid>/task/<tid>` is `task`.
    pub(crate) fn read(task: &Path) -> Self {
        Self::read_file(task.join("schedstat"))
    }

    /// Starts reading a file whose first word is a counter.
    pub(crate) fn read_file(path: PathBuf) -> Self {
        let readings = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let reader = {
            let (readings, stop) = (Arc::clone(&readings), Arc::clone(&stop));
            std::thread::spawn(move || keep_reading(&path, &readings, &stop))
        };
        Self {
            readings,
            stop,
            reader: Some(reader),
        }
    }

    /// The least and the most by which the counter can have grown between two times; `None` if either is
    /// not between readings.
    pub(crate) fn growth(&self, from_unix_ns: u64, to_unix_ns: u64) -> Option<(u64, u64)> {
        let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        growth(&readings, from_unix_ns, to_unix_ns)
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // It cannot panic: it only reads a file and sleeps.
            let _ = reader.join();
        }
    }
}

fn keep_reading(path: &PathBuf, readings: &Mutex<Vec<Reading>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let at_unix_ns = now_unix_ns();
        let Some(on_cpu_ns) = fs::read_to_string(path)
            .ok()
            .and_then(|text| first_field(&text))
        else {
            return;
        };
        let mut readings = readings.lock().unwrap_or_else(PoisonError::into_inner);
        readings.push(Reading {
            at_unix_ns,
            on_cpu_ns,
        });
        drop(readings);
        std::thread::sleep(PERIOD);
    }
}

/// Now, ns since the Unix epoch.
pub(crate) fn now_unix_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn first_field(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

fn growth(readings: &[Reading], from: u64, to: u64) -> Option<(u64, u64)> {
    let around = |at: u64| {
        let after = readings.partition_point(|reading| reading.at_unix_ns < at);
        let before = readings.get(after.checked_sub(1)?)?;
        Some((before.on_cpu_ns, readings.get(after)?.on_cpu_ns))
    };
    let (from_least, from_most) = around(from)?;
    let (to_least, to_most) = around(to)?;
    Some((to_least.saturating_sub(from_most), to_most - from_least))
}

/// Whether the agent's sum lies within the bounds, widened by `tolerance` (a share).
#[expect(
    clippy::cast_precision_loss,
    reason = "nanoseconds of minutes fit a double exactly"
)]
pub(crate) fn agrees(agent_ns: u64, bounds: (u64, u64), tolerance: f64) -> bool {
    let agent = agent_ns as f64;
    agent >= bounds.0 as f64 * (1.0 - tolerance) && agent <= bounds.1 as f64 * (1.0 + tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;

    const READINGS: [Reading; 4] = [
        Reading {
            at_unix_ns: 100,
            on_cpu_ns: 10,
        },
        Reading {
            at_unix_ns: 200,
            on_cpu_ns: 60,
        },
        Reading {
            at_unix_ns: 300,
            on_cpu_ns: 120,
        },
        Reading {
            at_unix_ns: 400,
            on_cpu_ns: 200,
        },
    ];

    #[test]
    fn readings_around_both_ends_bound_the_growth() {
        assert_eq!(growth(&READINGS, 150, 350), Some((60, 190)));
        assert_eq!(growth(&READINGS, 50, 350), None);
        assert_eq!(growth(&READINGS, 150, 401), None);
    }

    #[test]
    fn agreement_is_judged_against_the_bounds() {
        assert!(agrees(100, (100, 110), 0.0));
        assert!(agrees(99, (100, 110), 0.02));
        assert!(!agrees(97, (100, 110), 0.02));
        assert!(!agrees(113, (100, 110), 0.02));
    }

    #[test]
    fn the_first_field_of_schedstat_is_read() {
        assert_eq!(first_field("123456 789 10\n"), Some(123_456));
        assert_eq!(first_field(""), None);
    }
}
