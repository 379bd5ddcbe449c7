//! What the privileged tests on the local kernel share: loads whose use of the CPU is known, control groups
//! to put them in, and waiting for a state with a deadline.
//!
//! These tests load the real programs into the running kernel, so they need root and BTF. They are run one at
//! a time. Nothing here asserts on times: a test polls for a state and fails when the deadline has passed.

pub mod guest;
pub mod mounts;
pub mod pattern;
pub mod stats;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use davy_agent::{
    config,
    kernel::{Kernel, KernelOptions, Reading},
    nudge::Nudger,
};

/// How long a test waits for a state before it fails.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// The loaded programs, with the default options.
///
/// # Panics
/// If they cannot be loaded: these tests have no meaning then.
#[must_use]
pub fn kernel() -> Kernel {
    match Kernel::load(&KernelOptions::default()) {
        Ok(kernel) => kernel,
        Err(error) => panic!("the kernel half cannot be loaded: {error}"),
    }
}

/// Wakes every CPU often while it lives, so that a load that has a CPU to itself is looked at often too.
#[must_use]
pub fn nudged() -> Nudger {
    Nudger::start(&config::Nudge {
        rest_hz: 100.0,
        ..config::Nudge::default()
    })
}

/// All readings.
#[must_use]
pub fn readings(kernel: &Kernel) -> Vec<Reading> {
    let mut readings = Vec::new();
    kernel.readings(&mut readings);
    readings
}

/// The reading of one live thread.
#[must_use]
pub fn reading_of(kernel: &Kernel, tid: u32) -> Option<Reading> {
    readings(kernel)
        .into_iter()
        .find(|reading| reading.slot.tid == tid && !reading.ended())
}

/// Asks `look` until it gives something, 20 times a second.
///
/// # Panics
/// If nothing came within [`DEADLINE`].
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A load that computes all the time on the last CPU that is online, with a real-time priority (round robin): whatever else
/// the machine does gets a twentieth of that CPU (`sched_rt_runtime_us`).
///
/// # Panics
/// If it cannot be started, or this process may do neither.
#[must_use]
pub fn pinned(program: &str) -> Load {
    let load = Load::start(program, &["hold", "text", "0"]);
    pin(load.id());
    load
}

/// Puts all threads of a process on the last CPU, with a real-time priority that takes turns.
///
/// # Panics
/// If it cannot be done.
pub fn pin(pid: u32) {
    let cpu = davy_agent::nudge::online_cpus()
        .ok()
        .and_then(|cpus| cpus.last().copied());
    let Some(cpu) = cpu else {
        panic!("the kernel does not say which CPUs are online");
    };
    let (cpu, pid) = (cpu.to_string(), pid.to_string());
    for (program, arguments) in [
        (
            "taskset",
            ["--all-tasks", "--cpu-list", "--pid", &cpu, &pid],
        ),
        ("chrt", ["--all-tasks", "--rr", "--pid", "1", &pid]),
    ] {
        let run = || {
            let done = Command::new(program)
                .args(arguments)
                .stdout(std::process::Stdio::null())
                .status();
            (done.as_ref().is_ok_and(ExitStatus::success), done)
        };
        // A thread that ends between being listed and being pinned fails it; the next time it is not listed.
        let mut tries = (0..5).map(|_| run());
        let mut last = None;
        let done = tries.any(|(done, status)| {
            last = Some(status);
            done
        });
        assert!(done, "{program} gave {last:?}");
    }
}

/// A process of `davy-host-load`, ended with the test.
pub struct Load {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Load {
    /// Starts it and waits until it says that its work has begun.
    ///
    /// # Panics
    /// If it cannot be started or ends at once.
    #[must_use]
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let mut load = Self::spawn(program, arguments);
        assert_eq!(load.line(), "ready", "the load {arguments:?} did not start");
        load
    }

    /// Starts it stopped: it waits for a line on its input before its work begins.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(program: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
        let Some(output) = child.stdout.take() else {
            panic!("{program} has no output");
        };
        Self {
            child,
            output: BufReader::new(output),
        }
    }

    /// Lets a load that waits go on.
    pub fn go(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Writes a line to its input.
    ///
    /// # Panics
    /// If it does not read any more.
    pub fn tell(&mut self) {
        let input = self.child.stdin.as_mut();
        let written = input.map(|input| std::io::Write::write_all(input, b"\n"));
        assert!(matches!(written, Some(Ok(()))), "the load does not listen");
    }

    /// Ends it, and waits until it has.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output, without the line's end; empty at the end of the output.
    ///
    /// # Panics
    /// If the output cannot be read.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(_) => line.trim_end().to_owned(),
            Err(error) => panic!("the load's output cannot be read: {error}"),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

/// A control group of the test's own, removed with it.
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Makes one in the v1 hierarchy that accounts CPU time, or in v2 where there is no v1.
    ///
    /// # Panics
    /// If there is no writable hierarchy.
    #[must_use]
    pub fn make(name: &str) -> Self {
        let parent = [
            "/sys/fs/cgroup/cpuacct",
            "/sys/fs/cgroup/unified",
            "/sys/fs/cgroup",
        ]
        .into_iter()
        .find(|parent| {
            ["tasks", "cgroup.procs"]
                .iter()
                .any(|file| Path::new(parent).join(file).exists())
        });
        let Some(parent) = parent else {
            panic!("there is no control group hierarchy under /sys/fs/cgroup");
        };
        let directory = Path::new(parent).join(format!("davy-test-{name}-{}", std::process::id()));
        if let Err(error) = fs::create_dir_all(&directory) {
            panic!("{} cannot be made: {error}", directory.display());
        }
        Self { directory }
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Puts a process into it.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn add(&self, tgid: u32) {
        if let Err(error) = fs::write(self.directory.join("cgroup.procs"), tgid.to_string()) {
            panic!(
                "{tgid} cannot be put into {}: {error}",
                self.directory.display()
            );
        }
    }

    /// CPU time of everything that ever ran in it, ns, by the kernel's account.
    ///
    /// # Panics
    /// If the kernel does not say.
    #[must_use]
    pub fn usage_ns(&self) -> u64 {
        let v1 = fs::read_to_string(self.directory.join("cpuacct.usage"));
        if let Ok(usage) = v1 {
            return number(&usage);
        }
        let stat = fs::read_to_string(self.directory.join("cpu.stat")).unwrap_or_default();
        let usage = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        number(usage.unwrap_or_default()) * 1000
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes are ended before; the kernel may need a moment to let go of the last one.
        for _ in 0..50 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn number(text: &str) -> u64 {
    match text.trim().parse() {
        Ok(number) => number,
        Err(error) => panic!("the kernel's figure {text:?} is no number: {error}"),
    }
}
