//! `msr_writes` on the local kernel: the tracepoint is attached while there are guests, and detached without one; where
//! it is not to be had the sensor says what to do.
//!
//! That writes are counted is checked on real guests in `tests/vm`: a guest in real mode has no such registers.

use std::fs;

use davy_agent::kernel::{ExitsFrom, Kernel, KernelOptions};
use davy_evidence::SensorState;
use davy_host_tests::kernel;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

const TRACEFS: &str = "/sys/kernel/tracing";

fn state_of(kernel: &Kernel, sensor: &str) -> (SensorState, String) {
    let sensors = kernel.sensors();
    let found = sensors.into_iter().find(|(name, ..)| *name == sensor);
    let (_, state, reason) = found.unwrap();
    (state, reason)
}

/// Mounts tracefs for this thread alone.
fn mount_tracefs() {
    // SAFETY: only this thread's view of mounts changes; no file descriptor and no memory does.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .unwrap();
    mount("tracefs", TRACEFS, "tracefs", MountFlags::empty(), None).unwrap();
}

/// Programs of that name that are loaded and attached now, by the kernel's account of this process's descriptors.
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
    mount_tracefs();
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
