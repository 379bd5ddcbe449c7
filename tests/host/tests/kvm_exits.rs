//! `kvm_exits` on the local kernel: what the kernel half copied is KVM's own account of the vCPU, as its VMM gets it.
//!
//! Where this kernel tells nothing of KVM's layout, the sensor must say so.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::sync::mpsc;

use davy_abi::{NOT_COUNTED, SOURCE_KVM, Vcpu};
use davy_agent::{
    kernel::Kernel,
    trial::{Options, Target, document::Document, run},
};
use davy_evidence::{Level, SensorState};
use davy_host_tests::{
    Load,
    guest::STATS,
    kernel,
    mounts::{hide_kvms_types, hide_tracefs, mount_tracefs, own_mounts},
    nudged, readings, wait_for,
};

const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");

/// What KVM counted, by its own account; `None` for what it does not count.
fn account(load: &mut Load) -> [Option<u64>; STATS.len()] {
    load.tell();
    let line = load.line();
    let words = line.split(' ').take(STATS.len());
    let figures: Vec<_> = words.map(|word| word.parse().ok()).collect();
    figures
        .try_into()
        .unwrap_or_else(|_| panic!("no figures: {line}"))
}

/// The record of the guest's vCPU.
fn record(kernel: &Kernel, tgid: u32) -> Option<Vcpu> {
    let of_load = readings(kernel)
        .into_iter()
        .find(|reading| reading.slot.tgid == tgid)?;
    kernel.vcpu(&of_load).filter(|vcpu| vcpu.read_ns > 0)
}

#[test]
fn what_is_copied_is_kvms_own_account() {
    let kernel = kernel();
    let sensors = kernel.sensors();
    let (_, state, reason) = sensors
        .iter()
        .find(|(name, ..)| *name == "kvm_exits")
        .unwrap();
    if !reason.contains("KVM's own counters") {
        println!("KVM's counters are not to be had here: {state} ({reason})");
        assert!(*state == SensorState::Unsupported || reason.contains("kvm:kvm_exit"));
        assert!(!reason.is_empty());
        return;
    }
    let mut load = Load::spawn(LOAD, &["guest", "halting"]);
    let said = load.line();
    if said != "ready" {
        println!("SKIPPED: no KVM guest can run on this machine ({said})");
        return;
    }
    let _nudged = nudged();
    let mut earlier: Option<Vcpu> = None;
    for _ in 0..3 {
        let before = account(&mut load);
        let now_ns = kernel.now_ns();
        let vcpu = wait_for("a reading of KVM's counters", || {
            record(&kernel, load.id()).filter(|vcpu| vcpu.read_ns > now_ns)
        });
        let after = account(&mut load);
        assert_eq!((vcpu.source, vcpu.vcpu_id), (SOURCE_KVM, 0));
        let copied = [
            vcpu.exits,
            vcpu.halts,
            vcpu.io,
            vcpu.interrupts,
            vcpu.halt_poll_success_ns,
            vcpu.halt_poll_fail_ns,
        ];
        println!("{STATS:?}: {before:?} <= {copied:?} <= {after:?}");
        for (at, name) in STATS.iter().enumerate() {
            match (before[at], after[at]) {
                (Some(least), Some(most)) => {
                    assert!((least..=most).contains(&copied[at]), "{name}");
                }
                _ => assert_eq!(copied[at], NOT_COUNTED, "{name}"),
            }
        }
        if let Some(earlier) = earlier {
            assert!(vcpu.halts > earlier.halts, "the guest halts all the time");
            assert!(
                vcpu.read_ns - earlier.read_ns >= 500_000_000,
                "read too often"
            );
        }
        earlier = Some(vcpu);
    }
}

/// The trial of a guest's VMM for a few windows.
fn try_guest(load: &Load) -> Document {
    let (stop, stopped) = mpsc::channel();
    let mut windows = 0;
    run(
        &Options::of(Target::Process(load.id())),
        &stopped,
        &mut |_| {
            windows += 1;
            if windows == 5 {
                let _ = stop.send(());
            }
        },
    )
    .unwrap()
}

#[test]
fn without_kvms_types_the_sensor_says_what_it_lacks_and_falls_back_where_it_can() {
    let scratch = std::env::temp_dir().join(format!("davy-btf-{}", std::process::id()));
    own_mounts().unwrap();
    hide_kvms_types(&scratch).unwrap();
    hide_tracefs().unwrap();
    let state = || {
        let sensors = kernel().sensors();
        let found = sensors.into_iter().find(|(name, ..)| *name == "kvm_exits");
        found.map(|(_, state, reason)| (state, reason)).unwrap()
    };
    let (unsupported, reason) = state();
    assert_eq!(unsupported, SensorState::Unsupported);
    for word in [
        "/sys/kernel/btf/kvm",
        "tracefs is not mounted: mount -t tracefs",
    ] {
        assert!(reason.contains(word), "{reason}");
    }
    let mut load = Load::spawn(LOAD, &["guest", "halting"]);
    let said = load.line();
    if said == "ready" {
        let document = try_guest(&load);
        let exits = document.kvm_exits.unwrap();
        assert_eq!(
            (exits.state, exits.source),
            (SensorState::Unsupported, None)
        );
        assert_eq!(
            (exits.halts, exits.halt_poll_ns),
            (None, None),
            "not known, not zero"
        );
        assert_eq!(exits.reason, reason);
        let told = |reason: &String| reason == "kvm_exits: unsupported here, so it says nothing";
        assert!(document.reasons.iter().any(told), "{:?}", document.reasons);
    } else {
        println!("SKIPPED: no KVM guest can run on this machine ({said})");
    }
    mount_tracefs().unwrap();
    let (fallback, reason) = state();
    if reason.contains("kvm:kvm_exit is not there") {
        println!("this kernel has no KVM: {reason}");
    } else {
        assert_eq!(fallback, SensorState::Live);
        assert!(
            reason.starts_with("from the tracepoint kvm:kvm_exit, since"),
            "{reason}"
        );
    }
    let _ = std::fs::remove_file(scratch);
}

#[test]
fn a_trial_of_a_vmm_tells_what_its_guest_left_for() {
    let mut load = Load::spawn(LOAD, &["guest", "halting"]);
    let said = load.line();
    if said != "ready" {
        println!("SKIPPED: no KVM guest can run on this machine ({said})");
        return;
    }
    let document = try_guest(&load);
    let exits = document.kvm_exits.unwrap();
    if exits.state == SensorState::Unsupported {
        println!("not to be had here: {}", exits.reason);
        assert!(!exits.reason.is_empty() && exits.source.is_none());
        return;
    }
    println!("{exits:?}");
    assert_eq!(exits.state, SensorState::Live);
    assert!(exits.reason.starts_with("from "), "{}", exits.reason);
    assert!(exits.observed_ns > 0 && exits.halts.unwrap() > 0);
    let told = document
        .reasons
        .iter()
        .find(|reason| reason.starts_with("kvm_exits: "));
    assert!(told.unwrap().contains("it halts"), "{told:?}");
    assert_eq!(document.verdict, Level::Quiet);
}

#[test]
fn a_thread_that_is_no_vcpu_has_no_record() {
    let load = Load::start(LOAD, &["hold", "doubles", "0"]);
    let mut kernel = kernel();
    kernel.watch_process(load.id(), 1).unwrap();
    let reading = wait_for("looks at the load", || {
        readings(&kernel)
            .into_iter()
            .find(|reading| reading.slot.tgid == load.id() && reading.slot.looks > 10)
    });
    assert_eq!(kernel.vcpu(&reading), None);
}
