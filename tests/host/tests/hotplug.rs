//! CPUs that go offline and come back while the agent measures. Only where the machine has a CPU that can be put offline;
//! it is put online again whatever happens.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{fs, path::PathBuf};

use davy_agent::nudge::online_cpus;
use davy_host_tests::{Load, kernel, nudged, reading_of, wait_for};

const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");

/// A CPU that can be put offline.
struct Cpu {
    number: u32,
    file: PathBuf,
}

impl Cpu {
    /// The last one, if it is not the only one and can be put offline.
    fn last() -> Option<Self> {
        let online = online_cpus().ok().filter(|cpus| cpus.len() > 1)?;
        let number = *online.last()?;
        let file = PathBuf::from(format!("/sys/devices/system/cpu/cpu{number}/online"));
        file.exists().then_some(Self { number, file })
    }

    fn put(&self, online: bool) {
        fs::write(&self.file, if online { "1" } else { "0" }).unwrap();
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        let _ = fs::write(&self.file, "1");
    }
}

/// The CPUs the nudging thread of a CPU may run on.
fn allowed(cpu: u32) -> Option<String> {
    let name = format!("nudge/{cpu}\n");
    let mut threads = fs::read_dir("/proc/self/task").ok()?.flatten();
    let thread = threads.find(|thread| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm == name)
    })?;
    let status = fs::read_to_string(thread.path().join("status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Some(line.trim().to_owned())
}

/// on-CPU ns by the kernel's account.
fn kernels_ns(load: &Load) -> u64 {
    let schedstat = fs::read_to_string(format!("/proc/{}/schedstat", load.id())).unwrap();
    schedstat.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_cpu_may_go_and_come_back() {
    let Some(cpu) = Cpu::last() else {
        println!("skipped: this machine has no CPU that can be put offline");
        return;
    };
    // More than CPUs: each is off its CPU for a while again and again.
    let loads = [0; 6].map(|_| Load::start(LOAD, &["hold", "doubles", "0"]));
    let mut kernel = kernel();
    for load in &loads {
        kernel.watch_process(load.id(), 1).unwrap();
    }
    let nudger = nudged();
    let all = u64::try_from(online_cpus().unwrap().len()).unwrap();
    wait_for("every CPU nudged", || {
        (nudger.cost(0).cpus == all && nudger.cost(0).wakings > 10).then_some(())
    });
    let own = Some(cpu.number.to_string());
    assert_eq!(allowed(cpu.number), own);

    cpu.put(false);
    wait_for("one CPU less", || {
        (nudger.cost(0).cpus == all - 1).then_some(())
    });
    let wakings = nudger.cost(0).wakings;
    wait_for("the others go on", || {
        (nudger.cost(0).wakings > wakings + 10).then_some(())
    });

    cpu.put(true);
    wait_for("the CPU again", || {
        (nudger.cost(0).cpus == all).then_some(())
    });
    // Pinned as before: at once if it was not woken meanwhile, else after its next waking.
    wait_for("its thread where it belongs", || {
        (allowed(cpu.number) == own).then_some(())
    });
    println!("{:?}", nudger.cost(0));
    assert!(nudger.cost(0).displaced <= 1, "{:?}", nudger.cost(0));

    // The figures are right all the while: as of a switch-out, the kernel's.
    for load in &loads {
        wait_for("a figure that agrees", || {
            let before = kernels_ns(load);
            let slot = reading_of(&kernel, load.id())?.slot;
            (slot.running_since_ns == 0 && slot.on_cpu_ns == before && kernels_ns(load) == before)
                .then_some(())
        });
    }
    assert_eq!(kernel.counters(), [0; 3], "nothing was lost");
}
