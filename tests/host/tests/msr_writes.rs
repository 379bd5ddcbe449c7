//! `msr_writes` on the local kernel: the tracepoint is attached while there are guests, and detached without one; where
//! it is not to be had the sensor says what to do.
//!
//! A real guest's writes are counted, each once; on guests with an operating system in `tests/vm`.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fs;

use davy_abi::Vcpu;
use davy_agent::kernel::{ExitsFrom, Kernel, KernelOptions};
use davy_evidence::SensorState;
use davy_host_tests::{
    Load, kernel,
    mounts::{TRACEFS, mount_tracefs, own_mounts},
    nudged, readings, wait_for,
};

const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");

fn state_of(kernel: &Kernel, sensor: &str) -> (SensorState, String) {
    let sensors = kernel.sensors();
    let found = sensors.into_iter().find(|(name, ..)| *name == sensor);
    let (_, state, reason) = found.unwrap();
    (state, reason)
}

fn attached(kernel: &Kernel, program: &str) -> bool {
    kernel.attached().contains(&program)
}

#[test]
fn tracepoints_are_attached_while_there_are_guests() {
    let without = kernel();
    let before = state_of(&without, "msr_writes");
    drop(without);
    if before.0 == SensorState::Unsupported {
        println!("without tracefs: {}", before.1);
        assert!(before.1.contains("tracefs is not mounted") || before.1.contains("kvm:kvm_msr"));
    }
    own_mounts().unwrap();
    mount_tracefs().unwrap();
    let mut kernel = Kernel::load(&KernelOptions {
        exits: ExitsFrom::Tracepoint,
        ..KernelOptions::default()
    })
    .unwrap();
    if !fs::exists(format!("{TRACEFS}/events/kvm")).unwrap() {
        assert_eq!(state_of(&kernel, "msr_writes").0, SensorState::Unsupported);
        println!(
            "this kernel has no KVM: {}",
            state_of(&kernel, "msr_writes").1
        );
        return;
    }
    assert!(!attached(&kernel, "kvm_msr"));
    for _ in 0..2 {
        kernel.follow_guests(true);
        for sensor in ["kvm_exits", "msr_writes"] {
            let (state, reason) = state_of(&kernel, sensor);
            assert_eq!(state, SensorState::Live, "{reason}");
            assert!(reason.contains("from the tracepoint kvm:"), "{reason}");
        }
        assert!(attached(&kernel, "kvm_msr") && attached(&kernel, "kvm_exit"));
        kernel.follow_guests(false);
        assert!(!attached(&kernel, "kvm_msr") && !attached(&kernel, "kvm_exit"));
    }
}

/// The writes the guest has made, as its VMM counts them: it is told of each after it was made.
fn made(load: &mut Load) -> u64 {
    load.tell();
    let line = load.line();
    line.split(' ').next_back().unwrap().parse().unwrap()
}

fn record(kernel: &Kernel, tgid: u32) -> Option<Vcpu> {
    let of_load = readings(kernel)
        .into_iter()
        .find(|reading| reading.slot.tgid == tgid)?;
    kernel
        .vcpu(&of_load)
        .filter(|vcpu| vcpu.prefetcher_writes_amd > 0)
}

#[test]
fn every_write_of_a_real_guest_is_counted() {
    let mut load = Load::spawn(LOAD, &["guest", "tuning"]);
    let said = load.line();
    if said != "ready" {
        println!("SKIPPED: no KVM guest can run on this machine ({said})");
        return;
    }
    own_mounts().unwrap();
    mount_tracefs().unwrap();
    let mut kernel = kernel();
    kernel.follow_guests(true);
    let (state, reason) = state_of(&kernel, "msr_writes");
    assert_eq!(state, SensorState::Live, "{reason}");
    let _nudged = nudged();
    wait_for("writes of the guest", || record(&kernel, load.id()));
    // The VMM's count before and after each record: of a write it is told a moment after it was counted.
    let mut around = || {
        let before = made(&mut load);
        let counted = record(&kernel, load.id()).unwrap();
        (before, counted, made(&mut load))
    };
    let first = around();
    let last = wait_for("more writes", || {
        let now = around();
        (now.0 > first.2 + 1_000).then_some(now)
    });
    let counted = last.1.prefetcher_writes_amd - first.1.prefetcher_writes_amd;
    let (least, most) = (last.0 - first.2 - 1, last.2 - first.0 + 1);
    println!("{counted} counted, {least} to {most} made");
    assert!((least..=most).contains(&counted));
    assert_eq!(last.1.prefetcher_writes_intel, 0);
    assert_eq!(
        last.1.msr_events, last.1.prefetcher_writes_amd,
        "it does nothing else"
    );
    kernel.follow_guests(false);
    let before = (made(&mut load), record(&kernel, load.id()).unwrap());
    wait_for("writes that nobody counts", || {
        (made(&mut load) > before.0 + 100).then_some(())
    });
    let after = record(&kernel, load.id()).unwrap();
    assert_eq!(after.prefetcher_writes_amd, before.1.prefetcher_writes_amd);
}
