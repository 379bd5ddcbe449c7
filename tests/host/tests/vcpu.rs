//! vCPU threads on the local kernel: the vCPU of a real KVM guest is found by itself, and nothing else is. What
//! guests compute is looked at in `tests/vm`.

use davy_host_tests::{Load, kernel, nudged, pin, pinned, readings, wait_for};

const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");

#[test]
fn a_vcpu_is_found_by_itself() {
    let mut load = Load::spawn(LOAD, &["guest"]);
    let said = load.line();
    if said != "ready" {
        println!("SKIPPED: no KVM guest can run on this machine ({said})");
        return;
    }
    let kernel = kernel();
    let _nudged = nudged();
    assert_eq!(kernel.vcpus_unsupported(), None);
    let slot = wait_for("looks at the guest", || {
        let of_load: Vec<_> = readings(&kernel)
            .into_iter()
            .filter(|reading| reading.slot.tgid == load.id())
            .collect();
        let [vcpu] = of_load[..] else {
            assert!(of_load.is_empty(), "only the vCPU is found: {of_load:?}");
            return None;
        };
        assert!(vcpu.is_vcpu());
        let enough = vcpu.slot.looks >= 20 && vcpu.slot.guest_ns > 0;
        enough.then_some(vcpu.slot)
    });
    assert_ne!(slot.tid, slot.tgid, "the vCPU has a thread of its own");
    assert_eq!(slot.tenant, 0, "the agent has not said whose it is");
    assert_eq!(slot.modes, [0; 4], "its registers never change");
}

#[test]
fn a_guests_general_registers_are_looked_at() {
    let mut load = Load::spawn(LOAD, &["guest", "mixing"]);
    let said = load.line();
    if said != "ready" {
        println!("SKIPPED: no KVM guest can run on this machine ({said})");
        return;
    }
    let kernel = kernel();
    let _nudged = nudged();
    let slot = wait_for("samples of the guest's general registers", || {
        readings(&kernel)
            .into_iter()
            .find(|reading| reading.slot.tgid == load.id() && reading.slot.general_samples >= 16)
            .map(|reading| reading.slot)
    });
    assert_eq!(slot.modes, [0; 4], "its vector registers never change");
    // In real mode it has seven halves of registers to compute in, of which six must look random: about every second time.
    assert!(
        slot.general_random * 4 >= slot.general_samples,
        "{} of {} random",
        slot.general_random,
        slot.general_samples
    );
}

#[test]
fn who_ran_while_a_vcpu_waited_is_named() {
    let mut guest = Load::spawn(LOAD, &["guest"]);
    let said = guest.line();
    if said != "ready" {
        println!("SKIPPED: no KVM guest can run on this machine ({said})");
        return;
    }
    pin(guest.id());
    let busy = pinned(LOAD);
    let kernel = kernel();
    let waits = wait_for("a long wait of the vCPU", || {
        let vcpu = readings(&kernel)
            .into_iter()
            .find(|reading| reading.slot.tgid == guest.id())?;
        let waits = kernel.waits(vcpu.index)?;
        (waits.named_ns > 1_000_000_000).then_some(waits)
    });
    let behind: u64 = (waits.behind.iter())
        .filter(|entry| entry.tgid == busy.id())
        .map(|entry| entry.ns)
        .sum();
    assert!(waits.named_ns <= waits.waited_ns, "{waits:?}");
    assert!(
        behind * 100 >= waits.named_ns * 90,
        "{behind} ns behind the busy process: {waits:?}"
    );
}
