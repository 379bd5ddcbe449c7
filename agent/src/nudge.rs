//! Wakes every CPU for a moment now and then, so that what runs there is switched out and looked at.
//!
//! A vCPU alone on its CPU is switched out only two or three times a second. One thread per CPU, pinned there,
//! sleeps and wakes: twice a second at rest, harder for a few seconds where evidence is forming. Its waking
//! is all it does. CPUs excluded by configuration, isolated CPUs and `nohz_full` CPUs are left alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{JoinHandle, Thread},
    time::Duration,
};

use rustix::{thread::CpuSet, time::ClockId};
use tracing::{debug, warn};

use crate::{
    config::{self, parse_cpu_list},
    source::clock_ns,
};

/// A thread needs next to nothing: it sleeps.
/// Where the kernel says which CPUs are online.
const ONLINE: &str = "/sys/devices/system/cpu/online";
const STACK_BYTES: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Cpu {
    /// CLOCK_MONOTONIC until which this CPU is looked at closely, ns.
    closer_until_ns: AtomicU64,
    /// CLOCK_MONOTONIC before which no further closer look begins, ns.
    rest_until_ns: AtomicU64,
    own_cpu_ns: AtomicU64,
    wakings: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    rest_hz: f64,
    closer_look_hz: f64,
}

/// The running threads; they end on drop.
#[derive(Debug)]
pub struct Nudger {
    shared: Arc<Shared>,
    cpus: Vec<(u32, Arc<Cpu>, Thread)>,
    threads: Vec<JoinHandle<()>>,
    closer_look_ns: u64,
}

/// What nudging has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NudgeCost {
    /// CPUs that are nudged.
    pub cpus: u64,
    /// CPUs under a closer look now.
    pub closer_looks: u64,
    /// Wakings.
    pub wakings: u64,
    /// CPU time of the nudging threads, ns.
    pub cpu_ns: u64,
}

/// The pause until a CPU's next waking; `None`: none is due until someone asks for a closer look.
#[must_use]
pub fn pause(rest_hz: f64, closer_look_hz: f64, close: bool) -> Option<Duration> {
    // Never slower than at rest, even if so configured.
    let hz = if close {
        closer_look_hz.max(rest_hz)
    } else {
        rest_hz
    };
    if hz <= 0.0 {
        return None;
    }
    // A rate too small to be a time is a pause without end.
    Some(Duration::try_from_secs_f64(1.0 / hz).unwrap_or(Duration::MAX))
}

/// The CPUs to nudge: the online ones without the excluded ones.
#[must_use]
pub fn cpus_to_nudge(online: &[u32], excluded: &[&[u32]]) -> Vec<u32> {
    online
        .iter()
        .copied()
        .filter(|cpu| !excluded.iter().any(|list| list.contains(cpu)))
        .collect()
}

impl Nudger {
    /// Starts the threads. A CPU whose thread cannot be started or pinned is not nudged, and said so.
    #[must_use]
    pub fn start(options: &config::Nudge) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            rest_hz: options.rest_hz,
            closer_look_hz: options.closer_look_hz,
        });
        let mut nudger = Self {
            shared,
            cpus: Vec::new(),
            threads: Vec::new(),
            closer_look_ns: options.closer_look_s.saturating_mul(1_000_000_000),
        };
        if options.rest_hz <= 0.0 && options.closer_look_hz <= 0.0 {
            return nudger;
        }
        let excluded = parse_cpu_list(&options.exclude_cpus).unwrap_or_default();
        let online = read_cpu_list("/sys/devices/system/cpu/online");
        let isolated = read_cpu_list("/sys/devices/system/cpu/isolated");
        let nohz_full = read_cpu_list("/sys/devices/system/cpu/nohz_full");
        for cpu in cpus_to_nudge(&online, &[&excluded, &isolated, &nohz_full]) {
            nudger.start_on(cpu);
        }
        debug!(cpus = nudger.cpus.len(), "nudging");
        nudger
    }

    fn start_on(&mut self, number: u32) {
        let cpu = Arc::new(Cpu::default());
        let (shared, state) = (Arc::clone(&self.shared), Arc::clone(&cpu));
        let started = std::thread::Builder::new()
            .name(format!("nudge/{number}"))
            .stack_size(STACK_BYTES)
            .spawn(move || match pin(number) {
                Ok(()) => wake_now_and_then(&shared, &state),
                Err(error) => warn!(cpu = number, %error, "this CPU is not nudged"),
            });
        match started {
            Ok(thread) => {
                self.cpus.push((number, cpu, thread.thread().clone()));
                self.threads.push(thread);
            }
            Err(error) => warn!(cpu = number, %error, "this CPU is not nudged"),
        }
    }

    /// Looks closely at these CPUs from `now_ns` (CLOCK_MONOTONIC) on. After a closer look a CPU is left at rest
    /// for as long, whatever is asked.
    pub fn look_closer(&self, cpus: &[u32], now_ns: u64) {
        for (_, cpu, thread) in self
            .cpus
            .iter()
            .filter(|(number, ..)| cpus.contains(number))
        {
            if now_ns >= cpu.rest_until_ns.load(Relaxed) {
                let until_ns = now_ns.saturating_add(self.closer_look_ns);
                cpu.closer_until_ns.store(until_ns, Relaxed);
                cpu.rest_until_ns
                    .store(until_ns.saturating_add(self.closer_look_ns), Relaxed);
                thread.unpark();
            }
        }
    }

    /// What it has cost so far; `now_ns` is CLOCK_MONOTONIC.
    #[must_use]
    pub fn cost(&self, now_ns: u64) -> NudgeCost {
        let mut cost = NudgeCost::default();
        for (_, cpu, _) in &self.cpus {
            cost.cpus += 1;
            cost.closer_looks += u64::from(now_ns < cpu.closer_until_ns.load(Relaxed));
            cost.wakings += cpu.wakings.load(Relaxed);
            cost.cpu_ns += cpu.own_cpu_ns.load(Relaxed);
        }
        cost
    }
}

impl Drop for Nudger {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for (_, _, thread) in &self.cpus {
            thread.unpark();
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to end.
            let _ = thread.join();
        }
    }
}

fn wake_now_and_then(shared: &Shared, cpu: &Cpu) {
    while !shared.stop.load(Relaxed) {
        let close = clock_ns(ClockId::Monotonic) < cpu.closer_until_ns.load(Relaxed);
        match pause(shared.rest_hz, shared.closer_look_hz, close) {
            Some(pause) => std::thread::park_timeout(pause),
            None => std::thread::park(),
        }
        cpu.wakings.fetch_add(1, Relaxed);
        cpu.own_cpu_ns
            .store(clock_ns(ClockId::ThreadCPUTime), Relaxed);
    }
}

fn pin(cpu: u32) -> std::io::Result<()> {
    let cpu = usize::try_from(cpu).map_err(std::io::Error::other)?;
    if cpu >= CpuSet::MAX_CPU {
        return Err(std::io::Error::other(
            "its number is too high for sched_setaffinity(2)",
        ));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)?;
    Ok(())
}

/// The CPUs that are online.
///
/// # Errors
/// If the kernel does not say.
pub fn online_cpus() -> std::io::Result<Vec<u32>> {
    let list = std::fs::read_to_string(ONLINE)?;
    parse_cpu_list(&list).map_err(std::io::Error::other)
}

/// A CPU list of the kernel's; a file that is not there holds none.
fn read_cpu_list(path: &str) -> Vec<u32> {
    std::fs::read_to_string(path)
        .ok()
        .and_then(|list| parse_cpu_list(&list).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closer_look_is_never_slower_than_rest() {
        assert_eq!(pause(2.0, 20.0, false), Some(Duration::from_millis(500)));
        assert_eq!(pause(2.0, 20.0, true), Some(Duration::from_millis(50)));
        assert_eq!(pause(2.0, 0.0, true), Some(Duration::from_millis(500)));
        assert_eq!(pause(0.0, 20.0, false), None);
        assert_eq!(pause(1e-300, 0.0, false), Some(Duration::MAX));
    }

    #[test]
    fn excluded_cpus_are_left_alone() {
        assert_eq!(cpus_to_nudge(&[0, 1, 2, 3], &[&[1], &[3, 9]]), vec![0, 2]);
    }

    #[test]
    fn wakings_and_their_cost_are_counted() {
        let nudger = Nudger::start(&config::Nudge {
            rest_hz: 50.0,
            ..config::Nudge::default()
        });
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        let cost = loop {
            let cost = nudger.cost(0);
            if (cost.wakings > 3 && cost.cpu_ns > 0) || std::time::Instant::now() > deadline {
                break cost;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(
            cost.cpus >= 1 && cost.wakings > 3 && cost.cpu_ns > 0,
            "{cost:?}"
        );
    }

    #[test]
    fn after_a_closer_look_a_cpu_rests() {
        let nudger = Nudger::start(&config::Nudge::default());
        let Some(&(cpu, ..)) = nudger.cpus.first() else {
            panic!("this machine has no CPU that may be nudged");
        };
        let second = 1_000_000_000;
        nudger.look_closer(&[cpu], 100 * second);
        assert_eq!(nudger.cost(104 * second).closer_looks, 1);
        nudger.look_closer(&[cpu], 106 * second);
        assert_eq!(nudger.cost(107 * second).closer_looks, 0);
        nudger.look_closer(&[cpu], 110 * second);
        assert_eq!(nudger.cost(111 * second).closer_looks, 1);
    }
}
