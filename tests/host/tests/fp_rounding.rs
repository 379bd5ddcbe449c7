//! `fp_rounding` on the local kernel: what a process has in MXCSR is counted, and only when something changed.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use davy_host_tests::{Load, kernel, nudged, reading_of, wait_for};

const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");

/// Samples by mode once there are at least `least`.
fn modes(arguments: &[&str], least: u64) -> [u64; 4] {
    let load = Load::start(LOAD, arguments);
    let mut kernel = kernel();
    let _nudged = nudged();
    kernel.watch_process(load.id(), 1).unwrap();
    wait_for("samples", || {
        let modes = reading_of(&kernel, load.id())?.slot.modes;
        (modes.iter().sum::<u64>() >= least).then_some(modes)
    })
}

#[test]
fn each_mode_is_seen_where_it_is() {
    for mode in 0..4 {
        let modes = modes(&["hold", "doubles", &mode.to_string()], 50);
        let all: u64 = modes.iter().sum();
        // Between two rounds the load is in mode 0 for some instructions.
        assert!(modes[mode] * 100 >= all * 95, "mode {mode}: {modes:?}");
    }
}

#[test]
fn all_four_modes_are_seen_alike() {
    let modes = modes(&["hold", "random", "all"], 200);
    let all: u64 = modes.iter().sum();
    for count in modes {
        assert!(count * 100 >= all * 10, "{modes:?}");
    }
}

#[test]
fn registers_that_never_change_are_no_samples() {
    let load = Load::start(LOAD, &["hold", "random", "2", "once"]);
    let mut kernel = kernel();
    let _nudged = nudged();
    kernel.watch_process(load.id(), 1).unwrap();
    let slot = wait_for("looks", || {
        let slot = reading_of(&kernel, load.id())?.slot;
        (slot.looks >= 50).then_some(slot)
    });
    assert_eq!(slot.modes, [0; 4], "{} looks", slot.looks);
    assert_eq!(slot.random, [0; 4]);
}
