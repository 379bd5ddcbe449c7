//! Wakes every CPU for a moment now and then, so that what runs there is switched out and looked at.
//!
//! A vCPU alone on its CPU is switched out only two or three times a second. One thread per CPU, pinned there,
//! sleeps until it is woken: twice a second at rest, harder for a few seconds where evidence is forming. Its waking
//! is all it does; each one forces the CPU to switch to it and back. One more thread keeps the time and wakes them.
//!
//! CPUs excluded by configuration, isolated CPUs and `nohz_full` CPUs are left alone; if the kernel's lists of them cannot be
//! read, all are. CPUs that come online or go are followed: a thread whose CPU is offline is not woken, since the kernel
//! would move it to another CPU and undo its pinning (`select_fallback_rq`, kernel/sched/core.c). If the CPU goes in
//! the moment between, the thread sees that it runs elsewhere, which is no waking, and is not woken again before the
//! kernel lets it be pinned as before.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::{
    thread::{CpuSet, Pid},
    time::ClockId,
};
use tracing::{info, warn};

use crate::{
    config::{self, parse_cpu_list},
    source::clock_ns,
};

/// A thread needs next to nothing: it sleeps.
const STACK_BYTES: usize = 64 * 1024;
/// Where the kernel says which CPUs are online, and which are isolated.
const CPUS: &str = "/sys/devices/system/cpu";
/// How often these lists are read again, ns; at rest, when they are needed.
const LISTS_NS: u64 = 100_000_000;

/// How much nudging is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Limit {
    /// As configured.
    #[default]
    None = 0,
    /// At rest at most: no closer looks.
    Rest = 1,
    /// Not at all.
    Off = 2,
}

/// The state of one CPU's thread.
#[derive(Debug, Default)]
struct Worker {
    own_cpu_ns: AtomicU64,
    wakings: AtomicU64,
    /// Times it found itself on another CPU.
    displaced: AtomicU64,
    /// It is not pinned: it is to be before it is woken.
    astray: AtomicBool,
    /// Its id, 0 before it runs.
    tid: AtomicI32,
}

#[derive(Debug)]
struct Cpu {
    number: u32,
    worker: Arc<Worker>,
    thread: JoinHandle<()>,
    /// Whether it is online and not excluded.
    wanted: bool,
    /// CLOCK_MONOTONIC of its next waking, ns.
    next_ns: u64,
    /// CLOCK_MONOTONIC until which it is looked at closely, ns.
    closer_until_ns: u64,
    /// CLOCK_MONOTONIC before which no further closer look begins, ns.
    rest_until_ns: u64,
}

#[derive(Debug)]
struct Shared {
    stop: Arc<AtomicBool>,
    limit: AtomicU8,
    /// CPU time of the thread that keeps the time.
    own_cpu_ns: AtomicU64,
    options: config::Nudge,
    excluded: Vec<u32>,
    lists: PathBuf,
    cpus: Mutex<Vec<Cpu>>,
}

/// The running threads; they end on drop.
#[derive(Debug)]
pub struct Nudger {
    shared: Arc<Shared>,
    pacer: Option<JoinHandle<()>>,
}

/// What nudging has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NudgeCost {
    /// CPUs that are nudged.
    pub cpus: u64,
    /// CPUs under a closer look now.
    pub closer_looks: u64,
    /// Wakings, each of which forced a CPU to switch.
    pub wakings: u64,
    /// Times a nudging thread found itself on another CPU, because its own had gone.
    pub displaced: u64,
    /// CPU time of the nudging threads, ns.
    pub cpu_ns: u64,
}

/// The pause between two wakings of a CPU; `None`: none is due until someone asks for a closer look.
#[must_use]
pub fn pause(rest_hz: f64, closer_look_hz: f64, close: bool, limit: Limit) -> Option<Duration> {
    let hz = match limit {
        Limit::Off => 0.0,
        // Never slower than at rest, even if so configured.
        Limit::None if close => closer_look_hz.max(rest_hz),
        Limit::None | Limit::Rest => rest_hz,
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

/// The same from the kernel's lists in `directory` and what the configuration excludes.
fn selected(directory: &Path, excluded: &[u32]) -> std::io::Result<Vec<u32>> {
    let list = |name: &str| {
        let list = std::fs::read_to_string(directory.join(name))?;
        parse_cpu_list(&list).map_err(std::io::Error::other)
    };
    // A kernel built without isolation has no list of it.
    let if_any = |name: &str| match list(name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    };
    let (isolated, nohz_full) = (if_any("isolated")?, if_any("nohz_full")?);
    Ok(cpus_to_nudge(
        &list("online")?,
        &[excluded, &isolated, &nohz_full],
    ))
}

/// Which CPUs are nudged with these options, in words.
///
/// # Errors
/// Why none is, and what to do.
pub fn reach(options: &config::Nudge) -> Result<String, String> {
    reach_in(options, Path::new(CPUS))
}

fn reach_in(options: &config::Nudge, lists: &Path) -> Result<String, String> {
    if options.rest_hz <= 0.0 && options.closer_look_hz <= 0.0 {
        return Err("off: nudge.rest_hz and nudge.closer_look_hz are 0; a vCPU alone on its CPU is hardly seen".to_owned());
    }
    let read = |excluded: &[u32]| {
        selected(lists, excluded)
            .map_err(|error| format!("the lists in {} cannot be read: {error}", lists.display()))
    };
    let excluded = parse_cpu_list(&options.exclude_cpus).unwrap_or_default();
    let (nudged, not_isolated) = (read(&excluded)?.len(), read(&[])?.len());
    let online = online_in(lists)
        .map_err(|error| format!("the lists in {} cannot be read: {error}", lists.display()))?
        .len();
    let left_alone = format!(
        "{} isolated or nohz_full, {} excluded by nudge.exclude_cpus",
        online - not_isolated,
        not_isolated - nudged
    );
    if nudged == 0 {
        return Err(format!(
            "none of {online} CPUs: {left_alone}; vCPUs there are looked at only when they are switched for other reasons"
        ));
    }
    let config::Nudge {
        rest_hz,
        closer_look_hz,
        closer_look_s,
        exclude_cpus: _,
    } = options;
    Ok(format!(
        "{nudged} of {online} CPUs ({left_alone}), {rest_hz} times a second, and {closer_look_hz} for {closer_look_s} s where evidence forms"
    ))
}

/// The CPUs that are online.
///
/// # Errors
/// If the kernel does not say.
pub fn online_cpus() -> std::io::Result<Vec<u32>> {
    online_in(Path::new(CPUS))
}

fn online_in(lists: &Path) -> std::io::Result<Vec<u32>> {
    let list = std::fs::read_to_string(lists.join("online"))?;
    parse_cpu_list(&list).map_err(std::io::Error::other)
}

impl Nudger {
    /// Starts the threads. A CPU whose thread cannot be started or pinned is not nudged, and said so.
    #[must_use]
    pub fn start(options: &config::Nudge) -> Self {
        Self::start_in(options, Path::new(CPUS))
    }

    fn start_in(options: &config::Nudge, lists: &Path) -> Self {
        let shared = Arc::new(Shared {
            stop: Arc::default(),
            limit: AtomicU8::new(Limit::None as u8),
            own_cpu_ns: AtomicU64::new(0),
            options: options.clone(),
            excluded: parse_cpu_list(&options.exclude_cpus).unwrap_or_default(),
            lists: lists.to_owned(),
            cpus: Mutex::default(),
        });
        if options.rest_hz <= 0.0 && options.closer_look_hz <= 0.0 {
            return Self {
                shared,
                pacer: None,
            };
        }
        let of_pacer = Arc::clone(&shared);
        let pacer = std::thread::Builder::new()
            .name("nudge".to_owned())
            .spawn(move || of_pacer.keep_time());
        let pacer = match pacer {
            Ok(pacer) => Some(pacer),
            Err(error) => {
                warn!(%error, "CPUs are not nudged: no thread could be started");
                None
            }
        };
        Self { shared, pacer }
    }

    /// Looks closely at these CPUs from `now_ns` (CLOCK_MONOTONIC) on. After a closer look a CPU is left at rest
    /// for as long, whatever is asked.
    pub fn look_closer(&self, cpus: &[u32], now_ns: u64) {
        if cpus.is_empty() {
            return;
        }
        let closer_look_ns = (self.shared.options.closer_look_s).saturating_mul(1_000_000_000);
        for cpu in self.shared.cpus().iter_mut() {
            if cpus.contains(&cpu.number) && now_ns >= cpu.rest_until_ns {
                cpu.closer_until_ns = now_ns.saturating_add(closer_look_ns);
                cpu.rest_until_ns = cpu.closer_until_ns.saturating_add(closer_look_ns);
                cpu.next_ns = 0;
            }
        }
        self.wake_pacer();
    }

    /// Allows that much from now on.
    pub fn limit(&self, limit: Limit) {
        if self.shared.limit.swap(limit as u8, Relaxed) != limit as u8 {
            for cpu in self.shared.cpus().iter_mut() {
                cpu.next_ns = 0;
            }
            self.wake_pacer();
        }
    }

    /// What it has cost so far; `now_ns` is CLOCK_MONOTONIC.
    #[must_use]
    pub fn cost(&self, now_ns: u64) -> NudgeCost {
        let limit = self.shared.limit();
        let mut cost = NudgeCost {
            cpu_ns: self.shared.own_cpu_ns.load(Relaxed),
            ..NudgeCost::default()
        };
        for cpu in self.shared.cpus().iter() {
            let allowed = cpu.wanted && limit != Limit::Off;
            cost.cpus += u64::from(allowed);
            cost.closer_looks +=
                u64::from(allowed && limit == Limit::None && now_ns < cpu.closer_until_ns);
            cost.wakings += cpu.worker.wakings.load(Relaxed);
            cost.displaced += cpu.worker.displaced.load(Relaxed);
            cost.cpu_ns += cpu.worker.own_cpu_ns.load(Relaxed);
        }
        cost
    }

    fn wake_pacer(&self) {
        if let Some(pacer) = &self.pacer {
            pacer.thread().unpark();
        }
    }
}

impl Drop for Nudger {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.wake_pacer();
        if let Some(pacer) = self.pacer.take() {
            // A thread that panicked has nothing left to end.
            let _ = pacer.join();
        }
        let cpus = std::mem::take(&mut *self.shared.cpus());
        for cpu in &cpus {
            cpu.thread.thread().unpark();
        }
        for cpu in cpus {
            let _ = cpu.thread.join();
        }
    }
}

impl Shared {
    fn cpus(&self) -> MutexGuard<'_, Vec<Cpu>> {
        self.cpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self) -> Limit {
        match self.limit.load(Relaxed) {
            0 => Limit::None,
            1 => Limit::Rest,
            _ => Limit::Off,
        }
    }

    /// Wakes each CPU's thread when it is due, and keeps up with which CPUs there are.
    fn keep_time(&self) {
        let mut read_ns: Option<u64> = None;
        let mut readable = true;
        while !self.stop.load(Relaxed) {
            let now_ns = clock_ns(ClockId::Monotonic);
            if read_ns.is_none_or(|read_ns| now_ns.saturating_sub(read_ns) >= LISTS_NS) {
                read_ns = Some(now_ns);
                let selected = selected(&self.lists, &self.excluded);
                if let Err(error) = &selected
                    && readable
                {
                    let lists = self.lists.display();
                    warn!(%error, "no CPU is nudged: the lists in {lists} cannot be read");
                }
                readable = selected.is_ok();
                self.follow(&selected.unwrap_or_default(), now_ns);
            }
            let pause = self.wake_due(now_ns);
            self.own_cpu_ns
                .store(clock_ns(ClockId::ThreadCPUTime), Relaxed);
            match pause {
                Some(pause) => std::thread::park_timeout(pause),
                None => std::thread::park(),
            }
        }
    }

    /// Wakes the threads that are due; gives the pause until the next is.
    fn wake_due(&self, now_ns: u64) -> Option<Duration> {
        let (options, limit) = (&self.options, self.limit());
        let mut next_ns: Option<u64> = None;
        for cpu in self.cpus().iter_mut().filter(|cpu| cpu.wanted) {
            let close = now_ns < cpu.closer_until_ns;
            let Some(pause) = pause(options.rest_hz, options.closer_look_hz, close, limit) else {
                continue;
            };
            if now_ns >= cpu.next_ns {
                if cpu.is_pinned() {
                    cpu.thread.thread().unpark();
                }
                let pause_ns = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
                cpu.next_ns = now_ns.saturating_add(pause_ns);
            }
            next_ns = Some(next_ns.map_or(cpu.next_ns, |next_ns| next_ns.min(cpu.next_ns)));
        }
        // Nothing due: still look now and then whether a CPU has come, unless all nudging is on demand or off.
        match next_ns {
            Some(next_ns) => Some(Duration::from_nanos(next_ns.saturating_sub(now_ns))),
            None if limit != Limit::Off && options.rest_hz > 0.0 => {
                Some(Duration::from_nanos(LISTS_NS))
            }
            None => None,
        }
    }

    /// Makes `selected` the CPUs that are nudged.
    fn follow(&self, selected: &[u32], now_ns: u64) {
        let mut cpus = self.cpus();
        let mut changed = false;
        for cpu in cpus.iter_mut() {
            let wanted = selected.contains(&cpu.number);
            changed |= wanted != cpu.wanted;
            if wanted && !cpu.wanted {
                cpu.next_ns = now_ns;
            }
            cpu.wanted = wanted;
        }
        for &number in selected {
            if cpus.iter().all(|cpu| cpu.number != number) {
                changed = true;
                cpus.extend(self.start_on(number, now_ns));
            }
        }
        if changed {
            let count = cpus.iter().filter(|cpu| cpu.wanted).count();
            info!(cpus = count, "CPUs that are nudged now");
        }
    }

    fn start_on(&self, number: u32, now_ns: u64) -> Option<Cpu> {
        let worker = Arc::new(Worker::default());
        let (stop, of_thread) = (Arc::clone(&self.stop), Arc::clone(&worker));
        let started = std::thread::Builder::new()
            .name(format!("nudge/{number}"))
            .stack_size(STACK_BYTES)
            .spawn(move || work(number, &stop, &of_thread));
        match started {
            Ok(thread) => Some(Cpu {
                number,
                worker,
                thread,
                wanted: true,
                next_ns: now_ns,
                closer_until_ns: 0,
                rest_until_ns: 0,
            }),
            Err(error) => {
                warn!(cpu = number, %error, "this CPU is not nudged");
                None
            }
        }
    }
}

impl Cpu {
    /// Whether its thread is pinned, or lets itself be pinned now: the kernel refuses while the CPU is offline.
    fn is_pinned(&self) -> bool {
        if !self.worker.astray.load(Relaxed) {
            return true;
        }
        let pinned = Pid::from_raw(self.worker.tid.load(Relaxed))
            .is_some_and(|thread| pin(thread, self.number).is_ok());
        if pinned {
            self.worker.astray.store(false, Relaxed);
        }
        pinned
    }
}

/// A CPU's thread: sleeps until it is woken, again and again.
fn work(number: u32, stop: &AtomicBool, worker: &Worker) {
    let tid = rustix::thread::gettid();
    worker.tid.store(tid.as_raw_nonzero().get(), Relaxed);
    if let Err(error) = pin(tid, number) {
        // It may have gone this moment.
        warn!(cpu = number, %error, "this CPU is not nudged yet");
        worker.astray.store(true, Relaxed);
    }
    while !stop.load(Relaxed) {
        std::thread::park();
        if u32::try_from(rustix::thread::sched_getcpu()) == Ok(number) {
            worker.wakings.fetch_add(1, Relaxed);
        } else {
            worker.displaced.fetch_add(1, Relaxed);
            worker.astray.store(true, Relaxed);
        }
        worker
            .own_cpu_ns
            .store(clock_ns(ClockId::ThreadCPUTime), Relaxed);
    }
}

fn pin(thread: Pid, cpu: u32) -> std::io::Result<()> {
    let cpu = usize::try_from(cpu).map_err(std::io::Error::other)?;
    if cpu >= CpuSet::MAX_CPU {
        return Err(std::io::Error::other(
            "its number is too high for sched_setaffinity(2)",
        ));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(Some(thread), &set)?;
    Ok(())
}

#[cfg(test)]
#[path = "nudge_tests.rs"]
mod tests;
