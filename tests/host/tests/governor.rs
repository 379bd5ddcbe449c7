//! What the agent sheds and what never runs, on the local kernel: said in words, never a silent zero.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{path::Path, time::Duration};

use davy_agent::{
    config::Config,
    governor::Step,
    kernel::{Kernel, KernelOptions},
    observe::{Observer, span},
    tenant::discover::ProcFs,
};
use davy_host_tests::{Load, kernel, nudged, wait_for};
use davy_proto::v1::{SensorState, Window};

const SECOND_NS: u64 = 1_000_000_000;
const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");

fn observer(kernel: Kernel, load: &Load) -> Observer<Kernel, ProcFs> {
    let config = format!("[[tenant]]\nname = \"load\"\npid = {}\n", load.id());
    let config = Config::parse(Path::new("test"), &config).unwrap();
    Observer::new(kernel, ProcFs, &config)
}

/// A window of as long as it takes to pass, about.
fn window(observer: &mut Observer<Kernel, ProcFs>) -> Window {
    std::thread::sleep(Duration::from_millis(200));
    observer.look();
    observer.close(span(100 * SECOND_NS, SECOND_NS))
}

fn state(window: &Window, sensor: &str) -> (SensorState, String) {
    let mut sensors = window.sensors.iter();
    let found = sensors.find(|status| status.sensor == sensor).unwrap();
    (found.state(), found.reason.clone())
}

#[test]
fn looks_that_are_shed_stop_and_come_back() {
    let load = Load::start(LOAD, &["hold", "doubles", "0"]);
    let _nudger = nudged();
    let mut observer = observer(kernel(), &load);
    wait_for("looks", || {
        (state(&window(&mut observer), "fp_rounding").0 == SensorState::Live).then_some(())
    });
    observer.shed(Step::Looks, "too dear".to_owned());
    // One look may have been on its way.
    window(&mut observer);
    let seen = window(&mut observer);
    assert_eq!(
        state(&seen, "fp_rounding"),
        (SensorState::Stalled, "too dear".to_owned())
    );
    assert_eq!(state(&seen, "cpu").0, SensorState::Live);
    assert!(seen.tenants[0].cpu.unwrap().on_cpu_ns > 0);
    observer.shed(Step::FewLooks, "dear".to_owned());
    wait_for("a few looks", || {
        let seen = window(&mut observer);
        (state(&seen, "fp_rounding") == (SensorState::Live, "dear".to_owned())).then_some(())
    });
    observer.shed(Step::Nothing, String::new());
    wait_for("looks", || {
        let seen = window(&mut observer);
        (state(&seen, "fp_rounding") == (SensorState::Live, String::new())).then_some(())
    });
}

#[test]
fn a_sensor_that_never_looks_never_ran_and_its_quiet_says_so() {
    let load = Load::start(LOAD, &["hold", "random", "all"]);
    let _nudger = nudged();
    let kernel = Kernel::load(&KernelOptions {
        sample_interval: Duration::MAX,
        ..KernelOptions::default()
    })
    .unwrap();
    let mut observer = observer(kernel, &load);
    let seen = wait_for("a switch", || {
        let seen = window(&mut observer);
        (state(&seen, "cpu").0 == SensorState::Live).then_some(seen)
    });
    for sensor in ["fp_rounding", "register_randomness"] {
        let (state, reason) = state(&seen, sensor);
        assert_eq!(state, SensorState::NeverRan);
        assert!(reason.contains("has not looked at any"), "{reason}");
    }
    let verdict = seen.tenants[0].verdict.as_ref().unwrap();
    let first = &verdict.reasons[0];
    assert!(
        first.contains("quiet for want of evidence: nothing was measured (fp_rounding never ran"),
        "{first}"
    );
}

#[test]
fn what_is_never_switched_never_ran() {
    let load = Load::start(LOAD, &["stop"]);
    let mut observer = observer(kernel(), &load);
    // A moment for the load to be asleep for good.
    std::thread::sleep(Duration::from_millis(200));
    let seen = window(&mut observer);
    let (state, reason) = state(&seen, "cpu");
    assert_eq!(state, SensorState::NeverRan, "{reason}");
    assert!(
        reason.contains("no watched thread has been switched"),
        "{reason}"
    );
}
