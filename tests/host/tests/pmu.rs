//! `pmu` on the local kernel: groups are opened, read and closed on real threads, and where there is no PMU that is said with its
//! reason. Groups are exercised with the kernel's own clocks, which every machine has.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use davy_agent::{
    evidence::InAllModes,
    kernel::perf::{Kind, PerfGroup, Scope},
    sensor::pmu::{
        Options, Pmu,
        counters::{Counters, Group, OpenError, Perf},
        family::{Cpu, Event, PAIR, Vendor, What},
    },
    trial::{self, Target, course},
};
use davy_evidence::SensorState;
use davy_host_tests::{Load, kernel, wait_for};

const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");

/// `PERF_COUNT_SW_TASK_CLOCK`, ns, and `PERF_COUNT_SW_PAGE_FAULTS` (include/uapi/linux/perf_event.h).
const CLOCKS: [(Kind, u64); 2] = [(Kind::Software, 1), (Kind::Software, 2)];

/// One test counts this process's descriptors: no other one may open any meanwhile.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this machine has performance counters, by the kernel's own word.
fn has_pmu() -> bool {
    std::path::Path::new("/sys/bus/event_source/devices/cpu").exists()
        || std::path::Path::new("/sys/bus/event_source/devices/cpu_core").exists()
}

fn open_descriptors() -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    descriptors
        .filter(|fd| {
            std::fs::read_link(fd.path())
                .is_ok_and(|to| to.to_str() == Some("anon_inode:[perf_event]"))
        })
        .count()
}

#[test]
fn a_group_counts_the_thread_it_is_opened_on_and_closes_with_its_end() {
    let _alone = alone();
    let load = Load::start(LOAD, &["hold", "doubles", "0"]);
    let before = open_descriptors();
    let group = PerfGroup::open(load.id(), &CLOCKS, Scope::User).unwrap();
    assert_eq!(open_descriptors(), before + 2);
    let first = wait_for("time on a CPU", || {
        let counts = group.read().unwrap();
        (counts.values[0] > 100_000_000).then_some(counts)
    });
    assert_eq!(first.values.len(), 2);
    // Its clock runs as the group's own time does, and nobody else's.
    assert!(first.time_running_ns <= first.time_enabled_ns);
    assert!(
        first.values[0].abs_diff(first.time_running_ns) < 20_000_000,
        "{first:?}"
    );
    drop(group);
    assert_eq!(open_descriptors(), before);
}

#[test]
fn counts_are_still_there_after_the_threads_end() {
    let _alone = alone();
    let load = Load::start(LOAD, &["hold", "doubles", "0"]);
    let group = PerfGroup::open(load.id(), &CLOCKS, Scope::User).unwrap();
    wait_for("time on a CPU", || {
        (group.read().unwrap().values[0] > 50_000_000).then_some(())
    });
    drop(load);
    let last = group.read().unwrap();
    assert!(last.values[0] > 50_000_000);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(group.read().unwrap(), last);
}

#[test]
fn a_thread_that_sleeps_adds_nothing() {
    let _alone = alone();
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let group = PerfGroup::open(sleeper.id(), &CLOCKS, Scope::User).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let counts = group.read().unwrap();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!((counts.values[0], counts.time_enabled_ns), (0, 0));
}

#[test]
fn a_thread_that_is_gone_is_told_from_what_cannot_be_counted() {
    let _alone = alone();
    let mut gone = Command::new("true").spawn().unwrap();
    let tid = gone.id();
    gone.wait().unwrap();
    let error = PerfGroup::open(tid, &CLOCKS, Scope::User).unwrap_err();
    assert_eq!(OpenError::from_io(&error), OpenError::ThreadGone);
}

/// The kernel's counters, with its own clocks and counts in the place of the CPU's events.
#[derive(Debug)]
struct Clocks;

impl Counters for Clocks {
    fn open(
        &mut self,
        tid: u32,
        events: &[Event],
        scope: Scope,
    ) -> Result<Box<dyn Group>, OpenError> {
        // PERF_COUNT_SW_TASK_CLOCK, …_CPU_CLOCK and …_PAGE_FAULTS.
        let clock_of = |what| match what {
            What::Cycles => 1,
            What::Instructions => 0,
            _ => 2,
        };
        let clocks: Vec<_> = events
            .iter()
            .map(|event| Event {
                kind: Kind::Software,
                config: clock_of(event.what),
                ..*event
            })
            .collect();
        Perf.open(tid, &clocks, scope)
    }
}

#[test]
fn the_sensor_counts_a_real_thread_from_slice_to_slice_until_it_ends() {
    const TENANT: u32 = 1;
    let _alone = alone();
    let before = open_descriptors();
    let zen_4 = Cpu {
        vendor: Vendor::Amd,
        family: 0x19,
        model: 0x11,
        general_counters: 6,
        has_fixed_counters: false,
        is_hybrid: false,
    };
    let mut pmu = Pmu::new(&Options::default(), &zen_4, true, 100, Box::new(Clocks));
    let load = Load::start(LOAD, &["hold", "doubles", "0"]);
    let mut kernel = kernel();
    kernel.watch_process(load.id(), TENANT).unwrap();
    let mut readings = Vec::new();
    let began = Instant::now();
    let mut look = |pmu: &mut Pmu| {
        let now_ns = kernel.now_ns();
        kernel.readings(&mut readings);
        pmu.look(&readings, now_ns, |tenant| {
            (tenant == TENANT).then_some(false)
        });
    };
    // Five slices of a second: a turn is complete when all kinds were counted.
    let turns = wait_for("a turn", || {
        look(&mut pmu);
        // Cycles, instructions and the two events of a slice: no more, whatever slice it is.
        assert_eq!(open_descriptors(), before + 4);
        (!pmu.turns().is_empty()).then(|| pmu.turns().to_vec())
    });
    // Page faults are no floating-point operations.
    assert!(
        turns
            .iter()
            .all(|turn| turn.tenant == TENANT && !turn.matched)
    );
    assert!(began.elapsed() >= Duration::from_secs(5));
    drop(load);
    wait_for("the counters' end", || {
        look(&mut pmu);
        (open_descriptors() == before).then_some(())
    });
    pmu.collect();
    let span_ns = u64::try_from(began.elapsed().as_nanos()).unwrap();
    let counted = pmu.close(TENANT, span_ns, &InAllModes::default());
    assert_eq!(counted.state, SensorState::Live);
    // The clock in the place of cycles is the time the thread ran, all slices together.
    assert!(
        counted.cycles.abs_diff(counted.time_running_ns) < 100_000_000,
        "{counted:?}"
    );
    assert!(
        (1_000_000_000..=span_ns).contains(&counted.cycles),
        "{counted:?}"
    );
    assert_eq!(counted.time_running_ns, counted.time_enabled_ns);
}

#[test]
fn without_a_pmu_the_sensor_is_unsupported_and_says_why() {
    let _alone = alone();
    let capability = Pmu::of_this_host(&Options::default()).capability();
    if has_pmu() {
        assert!(capability.unwrap().contains("cycles and instructions"));
        return;
    }
    let reason = capability.unwrap_err();
    assert!(
        reason.starts_with("the kernel has no performance counters of this CPU"),
        "{reason}"
    );
    assert!(reason.contains("give it a virtual PMU"), "{reason}");
    let load = Load::start(LOAD, &["hold", "doubles", "0"]);
    for scope in [Scope::Guest, Scope::User] {
        let error = Perf.open(load.id(), &PAIR, scope).unwrap_err();
        assert!(matches!(error, OpenError::Unsupported(_)), "{error}");
    }
}

#[test]
fn a_trial_says_what_the_counters_did() {
    let _alone = alone();
    let options = trial::Options {
        length: Duration::from_secs(4),
        output: Some("/dev/null".into()),
        ..trial::Options::of(Target::Command(
            [LOAD, "hold", "doubles", "0"].map(Into::into).to_vec(),
        ))
    };
    let (_stop, stopped) = std::sync::mpsc::channel();
    let document = trial::run(&options, &stopped, &mut |_| {}).unwrap();
    let pmu = document.pmu.as_ref().unwrap();
    let reasons = document.reasons.join("\n");
    if has_pmu() {
        assert_eq!(pmu.state, SensorState::Live, "{pmu:?}");
        assert!(
            pmu.instructions > Some(1_000_000) && pmu.cycles > Some(0),
            "{pmu:?}"
        );
        assert!(reasons.contains("instructions per cycle"), "{reasons}");
    } else {
        assert_eq!(pmu.state, SensorState::Unsupported);
        assert!(pmu.reason.contains("no performance counters"), "{pmu:?}");
        assert_eq!((pmu.cycles, pmu.cache_misses), (None, None));
        assert!(
            reasons.contains("pmu, mix of floating-point operations: unsupported here"),
            "{reasons}"
        );
    }
    assert!(!pmu.mix_concluded);
    assert_eq!(course::replay(&document).verdict.level, document.verdict);
}
