//! `register_randomness` on the local kernel: uniform bits are told from what honest programs keep in vector
//! registers, and no map holds a register's bytes.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use davy_abi::Slot;
use davy_host_tests::{Load, kernel, nudged, reading_of, wait_for};

const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");

/// Share of samples counted as random, in percent.
fn share(content: &str, mode: &str) -> u64 {
    let load = Load::start(LOAD, &["hold", content, mode]);
    let mut kernel = kernel();
    let _nudged = nudged();
    kernel.watch_process(load.id(), 1).unwrap();
    let slot = wait_for("samples", || {
        let slot = reading_of(&kernel, load.id())?.slot;
        (slot.modes.iter().sum::<u64>() >= 100).then_some(slot)
    });
    slot.random.iter().sum::<u64>() * 100 / slot.modes.iter().sum::<u64>()
}

#[test]
fn uniform_bits_are_random() {
    let share = share("random", "0");
    assert!(share >= 90, "{share} %");
}

#[test]
fn what_honest_programs_keep_is_not() {
    for content in [
        "doubles",
        "floats",
        "integers",
        "residuals",
        "pixels",
        "text",
        "counter",
    ] {
        let share = share(content, "0");
        assert!(share <= 2, "{content}: {share} %");
    }
}

#[test]
fn full_mantissas_alone_are_not_random_in_a_directed_mode_either() {
    let share = share("doubles", "1");
    assert!(share <= 2, "{share} %");
}

/// Share of samples of general registers counted as random, in percent.
fn general_share(content: &str) -> u64 {
    let load = Load::start(LOAD, &["general", content]);
    let mut kernel = kernel();
    let _nudged = nudged();
    kernel.watch_process(load.id(), 1).unwrap();
    let slot = wait_for("samples", || {
        let slot = reading_of(&kernel, load.id())?.slot;
        (slot.general_samples >= 30).then_some(slot)
    });
    slot.general_random * 100 / slot.general_samples
}

#[test]
fn uniform_bits_in_general_registers_are_random() {
    for content in ["random", "random32"] {
        let share = general_share(content);
        assert!(share >= 90, "{content}: {share} %");
    }
}

#[test]
fn what_honest_programs_keep_in_general_registers_is_not() {
    for content in [
        "pointers",
        "kernel-pointers",
        "integers",
        "negative",
        "lengths",
        "text",
        "doubles",
    ] {
        let share = general_share(content);
        assert!(share <= 3, "{content}: {share} %");
    }
}

#[test]
fn no_map_holds_register_bytes() {
    no_map_holds("secret", 16, |slot| slot.modes.iter().sum::<u64>() >= 50);
}

#[test]
fn no_map_holds_bytes_of_general_registers() {
    no_map_holds("secret-general", 8, |slot| slot.general_samples >= 20);
}

fn no_map_holds(load: &str, length: usize, sampled: impl Fn(&Slot) -> bool) {
    let uuid = std::fs::read("/proc/sys/kernel/random/uuid").unwrap();
    let secret = &uuid[..length];
    let hex: String = secret
        .iter()
        .rev()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let load = Load::start(LOAD, &[load, &hex]);
    let mut kernel = kernel();
    let _nudged = nudged();
    kernel.watch_process(load.id(), 1).unwrap();
    wait_for("samples", || {
        sampled(&reading_of(&kernel, load.id())?.slot).then_some(())
    });
    let memory = kernel.memory().unwrap();
    assert!(memory.len() > 1 << 20, "{} bytes searched", memory.len());
    // The search sees what stands there: the slot's start time, and the thread's id in the table of threads.
    let slot = reading_of(&kernel, load.id()).unwrap().slot;
    // Random words that did not change beside a counter that did are no random sample; the look that first met them may be one.
    let random = slot.random.iter().sum::<u64>() + slot.general_random;
    assert!(random <= 2, "{random} random samples of {:?}", slot.modes);
    for (what, known) in [
        ("a slot", slot.start_boottime_ns.to_ne_bytes().to_vec()),
        ("the table of threads", slot.tid.to_ne_bytes().to_vec()),
    ] {
        let found = memory.windows(known.len()).any(|bytes| bytes == known);
        assert!(found, "{what} was not searched");
    }
    // Four bytes in a row would be a quarter of one lane; shorter runs occur by chance.
    for part in secret.windows(4) {
        let found = memory.windows(4).any(|bytes| bytes == part);
        assert!(!found, "{part:02x?} of the registers stands in a map");
    }
}
