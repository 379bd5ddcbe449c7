//! `register_randomness` on the local kernel: uniform bits are told from what honest programs keep in vector
//! registers, and no map holds a register's bytes.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

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

#[test]
fn no_map_holds_register_bytes() {
    let secret: [u8; 16] = std::fs::read("/proc/sys/kernel/random/uuid").unwrap()[..16]
        .try_into()
        .unwrap();
    let hex = format!("{:032x}", u128::from_le_bytes(secret));
    let load = Load::start(LOAD, &["secret", &hex]);
    let mut kernel = kernel();
    let _nudged = nudged();
    kernel.watch_process(load.id(), 1).unwrap();
    wait_for("samples", || {
        let slot = reading_of(&kernel, load.id())?.slot;
        (slot.modes.iter().sum::<u64>() >= 50).then_some(())
    });
    let memory = kernel.memory().unwrap();
    assert!(memory.len() > 1 << 20, "{} bytes searched", memory.len());
    // Four bytes in a row would be a quarter of one lane; shorter runs occur by chance.
    for part in secret.windows(4) {
        let found = memory.windows(4).any(|bytes| bytes == part);
        assert!(!found, "{part:02x?} of the registers stands in a map");
    }
}
