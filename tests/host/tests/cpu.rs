//! `cpu` on the local kernel: what the slots say against what the kernel itself says, under load, with threads
//! born and dying all the time and more runnable threads than cores.

use std::fs;

use davy_abi::Slot;
use davy_agent::{
    observe::{Observer, span},
    tenant::discover::ProcFs,
};
use davy_host_tests::{Cgroup, Load, kernel, reading_of, readings, wait_for};

const SECOND_NS: u64 = 1_000_000_000;
const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");

/// on-CPU ns, wait ns, voluntary and involuntary switches, as /proc shows them for a thread that is off its CPU.
fn kernels_own(tgid: u32, tid: u32) -> Option<[u64; 4]> {
    let read = |name| fs::read_to_string(format!("/proc/{tgid}/task/{tid}/{name}")).ok();
    let stat = read("stat")?;
    let state = stat.as_bytes().get(stat.rfind(')')? + 2).copied()?;
    if state != b'S' && state != b'Z' {
        return None;
    }
    let schedstat = read("schedstat")?;
    let mut times = schedstat.split(' ').map(|field| field.trim().parse().ok());
    let status = read("status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    Some([
        times.next()??,
        times.next()??,
        field("voluntary_ctxt_switches:")?,
        field("nonvoluntary_ctxt_switches:")?,
    ])
}

fn figures(slot: &Slot) -> [u64; 4] {
    [
        slot.on_cpu_ns,
        slot.run_queue_wait_ns,
        slot.voluntary_switches,
        slot.involuntary_switches,
    ]
}

/// Within 0.1 %.
fn agree(ours: u64, kernels: u64) -> bool {
    ours.abs_diff(kernels) * 1000 <= kernels
}

#[test]
fn a_group_of_changing_threads_agrees_with_the_kernels_account() {
    let group = Cgroup::make("cpu");
    let mut load = Load::spawn(LOAD, &["churn", "6", "30"]);
    group.add(load.id());
    // The load waits for its input; nothing runs in the group until `go`.
    wait_for("the load asleep", || kernels_own(load.id(), load.id()));
    let mut kernel = kernel();
    kernel.watch_cgroup(group.directory(), 1).unwrap();
    let before_ns = group.usage_ns();
    load.go();
    assert_eq!(load.line(), "ready");
    assert_eq!(load.line(), "done");
    wait_for("the load asleep", || kernels_own(load.id(), load.id()));

    let ours: Vec<_> = readings(&kernel)
        .into_iter()
        .filter(|r| r.slot.tenant == 1)
        .collect();
    let kernels_ns = group.usage_ns() - before_ns;
    let ours_ns: u64 = ours
        .iter()
        .map(|r| r.slot.on_cpu_ns - r.slot.base_on_cpu_ns)
        .sum();
    let ended = ours.iter().filter(|reading| reading.ended()).count();
    println!("group: kernel {kernels_ns} ns, slots {ours_ns} ns, {ended} threads ended");
    assert!(ended > 100, "{ended} threads were born and died");
    assert!(
        agree(ours_ns, kernels_ns),
        "kernel {kernels_ns} ns, slots {ours_ns} ns"
    );

    let live: Vec<_> = ours.iter().filter(|reading| !reading.ended()).collect();
    assert_eq!(live.len(), 7, "the main thread and six that stayed");
    for reading in live {
        let (tgid, tid) = (reading.slot.tgid, reading.slot.tid);
        let kernels = wait_for("a thread asleep", || kernels_own(tgid, tid));
        // Read again: it may have gone to sleep a moment after the others.
        let slot = reading_of(&kernel, tid).map_or(reading.slot, |reading| reading.slot);
        println!(
            "thread {}: kernel {kernels:?}, slot {:?}",
            slot.tid,
            figures(&slot)
        );
        for (ours, kernels) in figures(&slot).into_iter().zip(kernels) {
            assert!(
                agree(ours, kernels),
                "{}: {ours} against {kernels}",
                slot.tid
            );
        }
    }
    assert_eq!(kernel.counters(), [0; 3], "nothing was lost");
}

#[test]
fn processes_that_have_ended_agree_with_their_remains() {
    let mut load = Load::spawn(LOAD, &["zombies", "100"]);
    wait_for("the load asleep", || kernels_own(load.id(), load.id()));
    let mut kernel = kernel();
    kernel.watch_tree(load.id(), 1).unwrap();
    load.go();
    assert_eq!(load.line(), "ready");
    assert_eq!(load.line(), "done");
    // A process shows as a zombie a moment before it leaves its CPU for the last time.
    let ended = wait_for("100 processes ended", || {
        let ended: Vec<_> = readings(&kernel)
            .into_iter()
            .filter(|r| r.slot.tid == r.slot.tgid && r.ended())
            .collect();
        (ended.len() == 100).then_some(ended)
    });
    for reading in ended {
        let slot = reading.slot;
        let kernels = kernels_own(slot.tgid, slot.tid).unwrap();
        assert_eq!(figures(&slot), kernels, "process {}", slot.tgid);
        assert_eq!(slot.base_on_cpu_ns, 0, "watched from birth");
    }
}

#[test]
fn threads_follow_when_they_are_moved_between_groups() {
    let (from, to) = (Cgroup::make("from"), Cgroup::make("to"));
    let load = Load::start(LOAD, &["hold", "text", "0"]);
    from.add(load.id());
    let mut kernel = kernel();
    kernel.watch_cgroup(from.directory(), 1).unwrap();
    kernel.watch_cgroup(to.directory(), 2).unwrap();
    let tenant_of = |kernel: &davy_agent::kernel::Kernel| {
        let found = reading_of(kernel, load.id())?;
        Some(found.slot.tenant)
    };
    assert_eq!(tenant_of(&kernel), Some(1));
    to.add(load.id());
    wait_for("tenant 2", || {
        kernel.refresh_cgroups();
        (tenant_of(&kernel) == Some(2)).then_some(())
    });
    let out = Cgroup::make("out");
    out.add(load.id());
    wait_for("no tenant", || {
        kernel.refresh_cgroups();
        tenant_of(&kernel).is_none().then_some(())
    });
    // The kernel half lets go of the slot at the thread's next switch, and it can be used again.
    let reading = wait_for("an ended slot", || {
        readings(&kernel)
            .into_iter()
            .find(|r| r.slot.tid == load.id() && r.slot.flags & davy_abi::FLAG_ENDED != 0)
    });
    kernel.release(&reading);
    assert!(readings(&kernel).iter().all(|r| r.slot.tid != load.id()));
    from.add(load.id());
    kernel.refresh_cgroups();
    assert_eq!(tenant_of(&kernel), Some(1));
}

#[test]
fn a_group_that_vanishes_is_told() {
    let mut kernel = kernel();
    let group = Cgroup::make("vanish");
    let directory = group.directory().to_owned();
    kernel.watch_cgroup(&directory, 1).unwrap();
    drop(group);
    assert_eq!(kernel.refresh_cgroups(), [directory]);
    assert!(kernel.refresh_cgroups().is_empty());
}

#[test]
fn a_thread_that_takes_over_its_leaders_id_is_followed() {
    let mut load = Load::spawn(LOAD, &["exec"]);
    wait_for("the load asleep", || kernels_own(load.id(), load.id()));
    let mut kernel = kernel();
    kernel.watch_process(load.id(), 1).unwrap();
    load.go();
    assert_eq!(load.line(), "ready");
    let slot = wait_for("samples after the exec", || {
        let slot = reading_of(&kernel, load.id())?.slot;
        (slot.modes[2] >= 20).then_some(slot)
    });
    assert_eq!((slot.tid, slot.tenant), (load.id(), 1));
    let live = readings(&kernel)
        .iter()
        .filter(|r| r.slot.tenant == 1 && !r.ended())
        .count();
    assert_eq!(live, 1, "the old leader has ended");
}

#[test]
fn a_thread_whose_end_was_missed_is_swept_out() {
    let mut load = Load::start(LOAD, &["stop"]);
    let mut kernel = kernel();
    kernel.watch_process(load.id(), 1).unwrap();
    let before = readings(&kernel).len();
    load.end();
    // Its end is met by the kernel half; a second one is made up that nobody meets.
    let reading = wait_for("the end", || {
        readings(&kernel)
            .into_iter()
            .find(|r| r.slot.tid == load.id() && r.ended())
    });
    kernel.release(&reading);
    assert_eq!(readings(&kernel).len(), before - 1);
    kernel.enter_missed(&reading);
    assert!(reading_of(&kernel, load.id()).is_some());
    wait_for("the sweep", || {
        kernel.refresh_cgroups();
        let swept = readings(&kernel)
            .into_iter()
            .find(|r| r.slot.tid == load.id() && r.ended())?;
        kernel.release(&swept);
        Some(())
    });
    assert!(readings(&kernel).iter().all(|r| r.slot.tid != load.id()));
}

#[test]
fn the_wait_of_a_thread_that_runs_is_counted_from_its_entry_on() {
    let loads: Vec<_> = (0..6)
        .map(|_| Load::start(LOAD, &["hold", "text", "0"]))
        .collect();
    let mut kernel = kernel();
    for load in &loads {
        kernel.watch_process(load.id(), 1).unwrap();
    }
    let mut seen = 0;
    wait_for("twenty stints", || {
        for load in &loads {
            let before = reading_of(&kernel, load.id())?.slot;
            let schedstat = fs::read_to_string(format!("/proc/{}/schedstat", load.id())).ok()?;
            let after = reading_of(&kernel, load.id())?.slot;
            // The same stint all the while, and on a CPU whose clocks were compared before.
            if before.running_since_ns == 0
                || before.running_since_ns != after.running_since_ns
                || after.switch_ins < 20
            {
                continue;
            }
            let kernels: u64 = schedstat.split(' ').nth(1)?.parse().ok()?;
            // The clocks are compared to within the time from the tracepoint to the booking.
            let apart = after.run_queue_wait_ns.abs_diff(kernels);
            assert!(
                agree(after.run_queue_wait_ns, kernels) || apart < 100_000,
                "{} against {kernels}",
                after.run_queue_wait_ns
            );
            seen += 1;
        }
        (seen >= 20).then_some(())
    });
}

#[test]
fn what_windows_report_agrees_with_the_groups_account() {
    let group = Cgroup::make("windows");
    let mut load = Load::spawn(LOAD, &["churn", "6", "10"]);
    group.add(load.id());
    wait_for("the load asleep", || kernels_own(load.id(), load.id()));
    let config = format!(
        "[[tenant]]\nname = \"churn\"\ncgroup = {:?}\n",
        group.directory()
    );
    let config = davy_agent::config::Config::parse(std::path::Path::new("test"), &config).unwrap();
    let mut observer = Observer::new(kernel(), ProcFs, &config);
    observer.look();
    observer.close(span(SECOND_NS, SECOND_NS));
    let before_ns = group.usage_ns();
    load.go();
    assert_eq!(load.line(), "ready");
    let ended = std::thread::spawn(move || {
        assert_eq!(load.line(), "done");
        wait_for("the load asleep", || kernels_own(load.id(), load.id()));
        load
    });
    let mut reported_ns = 0;
    let mut windows = 0;
    let mut last = false;
    while !last {
        // Looked at once more after the end, for the last parts.
        last = ended.is_finished();
        std::thread::sleep(std::time::Duration::from_millis(250));
        observer.look();
        windows += 1;
        let window = observer.close(span((windows + 1) * SECOND_NS, SECOND_NS));
        let cpu = window.tenants.first().and_then(|tenant| tenant.cpu);
        reported_ns += cpu.map_or(0, |cpu| cpu.on_cpu_ns);
    }
    let kernels_ns = group.usage_ns() - before_ns;
    println!("group: kernel {kernels_ns} ns, {windows} windows {reported_ns} ns");
    assert!(
        agree(reported_ns, kernels_ns),
        "kernel {kernels_ns} ns, windows {reported_ns} ns"
    );
}
