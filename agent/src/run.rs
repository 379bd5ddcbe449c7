//! `davy-agent run`: the daemon.
//!
//! Measuring has its own thread, the main one: looks at least once a second, windows at steady deadlines.
//! Uplink, metrics and signals live on a small tokio runtime and never hold it up.

use std::{
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use davy_evidence::SensorState;
use davy_proto::v1;
use rustix::time::ClockId;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};
use tracing::{info, warn};

use crate::{
    config::Config,
    governor::{Costs, Governor, Step},
    kernel::{Kernel, KernelOptions, Meter, ProgramCost},
    metrics::{self, Metrics},
    nudge::{Limit, Nudger},
    observe::{Observer, span},
    sensor::pmu::{self, Pmu},
    source::{ThreadSource, clock_ns},
    tenant::discover::{ProcFs, Processes},
    uplink::{self, Uplink, queue::Limits},
};

/// Longest time between two looks.
const LOOK_INTERVAL_NS: u64 = 1_000_000_000;
/// The same while control groups are watched: what moves into one is not seen until the next look, and what is
/// born to it and dies before that never is.
const GROUP_LOOK_INTERVAL_NS: u64 = 250_000_000;
/// The same while many threads end, so that their slots come free.
const BUSY_LOOK_INTERVAL_NS: u64 = 100_000_000;
/// How long measuring waits at the start for what the detector has stored of this host's tests.
const WELCOME_WAIT: Duration = Duration::from_secs(2);
/// How long the end waits for the last windows to be settled.
const FLUSH: Duration = Duration::from_secs(3);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// If the kernel half cannot be loaded or the metrics' address cannot be bound. A detector that cannot be reached
/// is no error: measuring goes on.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let started_unix_ns = unix_ns();
    let kernel = Kernel::load(&KernelOptions {
        slots_max: config.slots_max,
        sample_interval: Duration::from_millis(config.sample_interval_ms),
        find_vcpus: config.find_vcpus,
        ..KernelOptions::default()
    })?;
    say_sensors(&kernel);
    pmu::raise_fd_limit();
    let pmu = Pmu::of_this_host(&config.pmu);
    match pmu.capability() {
        Ok(counted) => info!("performance counters: {counted}"),
        Err(reason) => info!(reason, "performance counters are not used"),
    }
    let mut observer = Observer::new(kernel, ProcFs, config).with_pmu(pmu);

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("uplink")
        .enable_all()
        .build()
        .context("cannot start the runtime for the uplink")?;
    let stop = stop_signals(
        &runtime,
        &[SignalKind::terminate(), SignalKind::interrupt()],
    )?;
    let metrics = Metrics::default();
    if let Some(address) = config.metrics_address() {
        let address = runtime
            .block_on(metrics::serve(address, metrics.clone()))
            .with_context(|| format!("cannot serve metrics at {address} (`metrics_listen`)"))?;
        info!(%address, "serving metrics");
    }
    let uplink = {
        let _guard = runtime.enter();
        Uplink::start(uplink_options(config, started_unix_ns), random)
    };
    let nudger = Nudger::start(&config.nudge);
    if !runtime.block_on(uplink.welcomed(WELCOME_WAIT)) {
        warn!(detector = %config.detector, "the detector has not answered yet; measuring begins without it");
    }
    info!(
        host = %config.host, window_ms = config.window_ms, configured_tenants = config.tenant.len(),
        "measuring"
    );
    let late_windows = measure(&mut observer, config, &uplink, &nudger, &metrics, &stop);

    info!("stopping");
    drop(nudger);
    let left = runtime.block_on(uplink.finish(FLUSH));
    if left > 0 {
        warn!(
            windows = left,
            "the detector did not take all windows in time; they are lost"
        );
    }
    if late_windows > 0 {
        warn!(
            late_windows,
            "window boundaries were missed: the machine held the agent up"
        );
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

/// Measures until told to stop. Returns how many window boundaries were missed.
fn measure<S: ThreadSource, P: Processes>(
    observer: &mut Observer<S, P>,
    config: &Config,
    uplink: &Uplink,
    nudger: &Nudger,
    metrics: &Metrics,
    stop: &Receiver<()>,
) -> u64 {
    let mut schedule = Schedule::new(observer.source().now_ns(), config.window_ms);
    let busy = usize::try_from(config.slots_max / 16)
        .unwrap_or(usize::MAX)
        .max(1);
    let mut previous = None;
    let mut window_span = |elapsed_ns| {
        let next = span(unix_ns(), elapsed_ns).after(previous);
        previous = Some(next);
        next
    };
    let mut governor = Governor::new(config.budget.cpus(online_cpus()));
    let mut meter = Meter::default();
    let groups = config.tenant.iter().any(|tenant| tenant.cgroup.is_some());
    loop {
        observer.carry(uplink.take_carried());
        let now_ns = observer.source().now_ns();
        let look = observer.look();
        nudger.look_closer(&look.forming_cpus, now_ns);
        let asked = observer.cpus_of(&uplink.take_closer_looks());
        nudger.look_closer(&asked, now_ns);
        if let Some(elapsed_ns) = schedule.close_due(now_ns) {
            uplink.push(observer.close(window_span(elapsed_ns)));
        }
        let interval_ns = if look.released >= busy {
            BUSY_LOOK_INTERVAL_NS
        } else if groups {
            GROUP_LOOK_INTERVAL_NS
        } else {
            LOOK_INTERVAL_NS
        };
        schedule.look_after(now_ns, interval_ns);
        let programs = meter.read(
            now_ns,
            &observer.source().overhead(),
            governor.is_deciding(),
        );
        if let Some(step) = governor.observe(now_ns, costs(&programs)) {
            shed(observer, nudger, &governor, step);
        }
        metrics.set(metrics::Snapshot {
            overview: observer.overview().clone(),
            uplink: uplink.snapshot(),
            kernel_counters: observer.source().counters(),
            programs,
            nudge: nudger.cost(now_ns),
            late_windows: schedule.late,
            governor: Some(governor.clone()),
        });
        let pause = schedule.pause(observer.source().now_ns());
        match stop.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let elapsed_ns = schedule.elapsed_ns(observer.source().now_ns());
    observer.look();
    uplink.push(observer.close(window_span(elapsed_ns)));
    schedule.late
}

/// What the agent has used until now.
fn costs(programs: &[ProgramCost]) -> Costs {
    let bpf_ns = programs.iter().fold(0, |sum: u64, program| {
        sum.saturating_add(program.run_time_ns)
    });
    Costs {
        bpf_ns: (!programs.is_empty()).then_some(bpf_ns),
        agent_ns: clock_ns(ClockId::ProcessCPUTime),
    }
}

fn online_cpus() -> usize {
    // What cannot be told is taken for the least: the budget is at its floor then.
    crate::nudge::online_cpus().map_or(1, |cpus| cpus.len())
}

/// Takes a step of the governor's, and says so.
fn shed<S: ThreadSource, P: Processes>(
    observer: &mut Observer<S, P>,
    nudger: &Nudger,
    governor: &Governor,
    step: Step,
) {
    nudger.limit(match step {
        Step::Nothing => Limit::None,
        Step::CloserLooks => Limit::Rest,
        Step::Nudges | Step::FewLooks | Step::Looks => Limit::Off,
    });
    observer.shed(step, governor.reason());
    let percent = format!("{:.1} %", governor.share().unwrap_or(0.0) * 100.0);
    if step == Step::Nothing {
        info!(
            cost = percent,
            "within the budget again: nothing is shed any more"
        );
    } else {
        warn!(cost = percent, "{}", governor.reason());
    }
}

/// When to look and when to close. Pure; all times CLOCK_MONOTONIC, ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    window_ns: u64,
    began_ns: u64,
    close_at_ns: u64,
    look_at_ns: u64,
    late: u64,
}

impl Schedule {
    pub(crate) fn new(now_ns: u64, window_ms: u64) -> Self {
        let window_ns = window_ms.saturating_mul(1_000_000).max(1);
        Self {
            window_ns,
            began_ns: now_ns,
            close_at_ns: now_ns.saturating_add(window_ns),
            look_at_ns: now_ns,
            late: 0,
        }
    }

    /// If the window is to be closed: how long it lasted. The next one ends at the next steady deadline; deadlines
    /// that have passed meanwhile are skipped and counted.
    pub(crate) fn close_due(&mut self, now_ns: u64) -> Option<u64> {
        if now_ns < self.close_at_ns {
            return None;
        }
        let elapsed_ns = self.elapsed_ns(now_ns);
        self.began_ns = now_ns;
        let missed = (now_ns - self.close_at_ns) / self.window_ns;
        self.late += missed;
        self.close_at_ns += (missed + 1) * self.window_ns;
        Some(elapsed_ns)
    }

    pub(crate) fn elapsed_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.began_ns)
    }

    pub(crate) fn look_after(&mut self, now_ns: u64, interval_ns: u64) {
        self.look_at_ns = now_ns.saturating_add(interval_ns);
    }

    pub(crate) fn pause(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(self.look_at_ns.min(self.close_at_ns).saturating_sub(now_ns))
    }
}

fn say_sensors(kernel: &Kernel) {
    if let Some(reason) = kernel.vcpus_unsupported() {
        warn!(reason, "VMs are not found by themselves on this host");
    }
    let mut states = Vec::new();
    for (sensor, state, reason) in kernel.sensors() {
        if state == SensorState::Unsupported {
            states.push(format!("{sensor}: unsupported ({reason})"));
        } else if !reason.is_empty() {
            states.push(format!("{sensor}: ready ({reason})"));
        } else {
            states.push(format!("{sensor}: ready"));
        }
    }
    info!("sensors: {}", states.join("; "));
}

fn uplink_options(config: &Config, started_unix_ns: u64) -> uplink::Options {
    let uname = rustix::system::uname();
    uplink::Options {
        detector: config.detector.clone(),
        hello: v1::Hello {
            host: config.host.clone(),
            instance: uuid::Uuid::new_v4().to_string(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: uname.release().to_string_lossy().into_owned(),
            started_unix_ns,
        },
        limits: Limits {
            windows_max: config.queue_windows_max,
            bytes_max: config.queue_bytes_max,
        },
    }
}

/// A channel that gets a message at each of the signals.
pub(crate) fn stop_signals(
    runtime: &Runtime,
    kinds: &[SignalKind],
) -> anyhow::Result<Receiver<()>> {
    let (sender, receiver) = mpsc::channel();
    let _guard = runtime.enter();
    for &kind in kinds {
        let number = kind.as_raw_value();
        let mut signals =
            signal(kind).with_context(|| format!("cannot wait for signal {number}"))?;
        let sender = sender.clone();
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                // Nobody listens any more if measuring has ended by itself.
                let _ = sender.send(());
            }
        });
    }
    Ok(receiver)
}

/// A random number in 0..1, for the pauses' jitter.
fn random() -> f64 {
    let [a, b, c, d, ..] = *uuid::Uuid::new_v4().as_bytes();
    f64::from(u32::from_ne_bytes([a, b, c, d])) / f64::from(u32::MAX)
}

/// Now, ns since the Unix epoch.
pub(crate) fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn windows_end_at_steady_deadlines() {
        let mut schedule = Schedule::new(0, 10_000);
        assert_eq!(schedule.close_due(9 * SECOND_NS), None);
        assert_eq!(
            schedule.close_due(10 * SECOND_NS + 5),
            Some(10 * SECOND_NS + 5)
        );
        // A little late once does not shift the next deadline.
        assert_eq!(schedule.close_due(20 * SECOND_NS), Some(10 * SECOND_NS - 5));
        assert_eq!(schedule.late, 0);
    }

    #[test]
    fn missed_deadlines_are_skipped_and_counted() {
        let mut schedule = Schedule::new(0, 1_000);
        assert_eq!(
            schedule.close_due(5 * SECOND_NS + 1),
            Some(5 * SECOND_NS + 1)
        );
        assert_eq!(schedule.late, 4);
        assert_eq!(schedule.close_due(5 * SECOND_NS + 2), None);
        assert_eq!(schedule.close_due(6 * SECOND_NS), Some(SECOND_NS - 1));
    }

    #[test]
    fn the_loop_sleeps_until_whatever_comes_first() {
        let mut schedule = Schedule::new(0, 1_500);
        schedule.look_after(0, SECOND_NS);
        assert_eq!(schedule.pause(0), Duration::from_secs(1));
        schedule.look_after(SECOND_NS, SECOND_NS);
        assert_eq!(schedule.pause(SECOND_NS), Duration::from_millis(500));
        assert_eq!(schedule.pause(9 * SECOND_NS), Duration::ZERO);
    }

    #[test]
    fn random_numbers_are_within_0_and_1() {
        for _ in 0..100 {
            assert!((0.0..=1.0).contains(&random()));
        }
    }
}
