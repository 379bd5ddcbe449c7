//! `waits` on the local kernel: busy processes that share one CPU, and who is named for their waits.
//!
//! They run with a real-time priority, so that whatever else the machine does takes little from them.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fs;

use davy_abi::Waits;
use davy_agent::kernel::Kernel;
use davy_host_tests::{Load, kernel, pinned, reading_of, wait_for};

const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");
/// Enough of a wait to compare by, ns.
const ENOUGH_NS: u64 = 4_000_000_000;

fn waits_of(kernel: &Kernel, load: &Load) -> Option<Waits> {
    kernel.waits(reading_of(kernel, load.id())?.index)
}

fn behind(waits: &Waits, load: &Load) -> u64 {
    let mut entries = waits.behind.iter();
    entries
        .find(|entry| entry.tgid == load.id())
        .map_or(0, |entry| entry.ns)
}

/// On-CPU time by the kernel's account, ns.
fn on_cpu_ns(load: &Load) -> u64 {
    let schedstat = fs::read_to_string(format!("/proc/{}/schedstat", load.id())).unwrap();
    let first = schedstat.split(' ').next().unwrap();
    first.parse().unwrap()
}

/// What was seen of `loads[0]` while it waited.
struct Seen {
    waited: u64,
    named: u64,
    /// Of that, behind each load.
    each: Vec<u64>,
    /// On-CPU time of each load meanwhile, by the kernel's account.
    ran: Vec<u64>,
}

/// Watches `loads[0]` until it has waited long enough.
fn watch(loads: &[Load]) -> Seen {
    let mut kernel = kernel();
    kernel.watch_process(loads[0].id(), 1).unwrap();
    // Both figures are as of the end of a stint of `loads[0]`.
    let now = || {
        let waits = waits_of(&kernel, &loads[0])?;
        let ran: Vec<_> = loads.iter().map(on_cpu_ns).collect();
        (waits.named_ns > 0 && waits_of(&kernel, &loads[0])? == waits).then_some((waits, ran))
    };
    let (before, ran_before) = wait_for("a first stint", now);
    let (after, ran_after) = wait_for("a long wait", || {
        now().filter(|(waits, _)| waits.waited_ns > before.waited_ns + ENOUGH_NS)
    });
    let each = loads
        .iter()
        .map(|load| behind(&after, load) - behind(&before, load));
    Seen {
        waited: after.waited_ns - before.waited_ns,
        named: after.named_ns - before.named_ns,
        each: each.collect(),
        ran: ran_after
            .iter()
            .zip(ran_before)
            .map(|(after, before)| after - before)
            .collect(),
    }
}

/// What is said of `loads[0]` must agree with the kernel's account: it is always runnable and has only this CPU, so
/// whenever another load ran, it waited.
fn agree(loads: &[Load], seen: &Seen) {
    let Seen {
        waited,
        named,
        each,
        ran,
    } = seen;
    println!("waited {waited} ns, named {named} ns, behind {each:?} ns; they ran {ran:?} ns");
    assert!(named <= waited, "{named} of {waited}");
    assert!(named * 100 >= waited * 95, "{named} of {waited}");
    assert_eq!(each[0], 0, "one thread never waits for itself");
    for index in 1..loads.len() {
        let (ours, kernels) = (each[index], ran[index]);
        assert!(
            ours.abs_diff(kernels) * 20 <= kernels,
            "{ours} against {kernels}"
        );
    }
}

#[test]
fn of_two_on_a_cpu_one_waits_behind_the_other() {
    let loads = [pinned(LOAD), pinned(LOAD)];
    let seen = watch(&loads);
    agree(&loads, &seen);
    let others = seen.named - seen.each[1];
    assert!(
        seen.each[1] * 100 >= (seen.waited - others) * 95,
        "{} of {} without {others} behind what else the machine did",
        seen.each[1],
        seen.waited
    );
}

#[test]
fn of_three_on_a_cpu_each_is_named_by_its_share() {
    let loads = [pinned(LOAD), pinned(LOAD), pinned(LOAD)];
    agree(&loads, &watch(&loads));
}

#[test]
fn a_thread_with_a_cpu_to_itself_waits_behind_nobody_for_long() {
    let loads = [pinned(LOAD), Load::start(LOAD, &["stop"])];
    let mut kernel = kernel();
    kernel.watch_process(loads[0].id(), 1).unwrap();
    let started = on_cpu_ns(&loads[0]);
    wait_for("three seconds of CPU", || {
        (on_cpu_ns(&loads[0]) > started + 3_000_000_000).then_some(())
    });
    let waits = waits_of(&kernel, &loads[0]).unwrap();
    let base_ns = reading_of(&kernel, loads[0].id())
        .unwrap()
        .slot
        .base_run_queue_wait_ns;
    println!("{waits:?}");
    assert!(waits.named_ns <= waits.waited_ns.saturating_sub(base_ns));
    assert_eq!(
        behind(&waits, &loads[1]),
        0,
        "who sleeps is in nobody's way"
    );
}
