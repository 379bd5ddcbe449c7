//! Real QEMU/KVM guests: booted, given the word to start their load, watched through their serial console.
//!
//! A guest boots to `davy-guest: booted` and waits for a line on its console before it starts its load, so that
//! guests do not slow each other's boot. Nested emulation now and then panics a guest's kernel in early boot: such
//! a guest is started again, at most [`STARTS_MAX`] times, and that is printed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::Arguments;
use crate::report::{Report, State};

/// How often a guest is started until its kernel is up.
const STARTS_MAX: u32 = 3;
/// How long a guest's kernel may take to come up under emulation.
const BOOT_PATIENCE: Duration = Duration::from_secs(100);

/// What a guest's init says when its load ended; none of ours should.
const LOAD_ENDED: &str = "davy-guest: load ended";

/// What a guest is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// QEMU's `-name guest=`.
    pub(crate) name: &'static str,
    /// Number of vCPUs.
    pub(crate) vcpus: u32,
    /// Memory, MiB.
    pub(crate) memory_mib: u32,
    /// The load's command line inside the guest.
    pub(crate) load: &'static str,
}

/// A running guest; killed when dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) plan: Plan,
    child: Child,
    console: PathBuf,
}

impl Guest {
    /// Boots a guest until its init waits for the word to start.
    pub(crate) async fn boot(plan: Plan, arguments: &Arguments, report: &Report) -> Result<Self> {
        for start in 1..=STARTS_MAX {
            let mut guest = Self::spawn(plan, arguments, start)?;
            let what = format!("guest {} boots", plan.name);
            let booted = report
                .until(&what, BOOT_PATIENCE, async || guest.boot_state())
                .await;
            match booted {
                Ok(_) => return Ok(guest),
                Err(why) => println!(
                    "davy-progress: guest {}: start {start} of {STARTS_MAX} failed: {why}",
                    plan.name
                ),
            }
        }
        bail!("guest {} did not boot in {STARTS_MAX} starts", plan.name)
    }

    fn spawn(plan: Plan, arguments: &Arguments, start: u32) -> Result<Self> {
        let console = arguments
            .logs
            .join(format!("guest-{}-{start}.log", plan.name));
        let log =
            File::create(&console).with_context(|| format!("creating {}", console.display()))?;
        let kernel_line = format!(
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable -- load {}",
            plan.load
        );
        let child = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
            .args(["-M", "q35", "-accel", "kvm", "-cpu", "host"])
            .args(["-name", &format!("guest={},debug-threads=on", plan.name)])
            .args(["-smp", &plan.vcpus.to_string()])
            .args(["-m", &plan.memory_mib.to_string()])
            .args(["-serial", "stdio", "-append", &kernel_line, "-kernel"])
            .arg(&arguments.guest_kernel)
            .arg("-initrd")
            .arg(&arguments.guest_initrd)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting qemu-system-x86_64")?;
        Ok(Self {
            plan,
            child,
            console,
        })
    }

    /// The VMM's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells the guest to start its load.
    pub(crate) fn go(&mut self) -> Result<()> {
        let name = self.plan.name;
        let stdin = self.child.stdin.as_mut().context("stdin is piped")?;
        stdin
            .write_all(b"\n")
            .and_then(|()| stdin.flush())
            .with_context(|| format!("writing to the console of {name}"))
    }

    /// What the guest wrote so far.
    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether a whole line of the console satisfies `fits`.
    pub(crate) fn line_seen(&mut self, fits: fn(&str) -> bool) -> State {
        let console = self.console();
        let whole = &console[..console.rfind('\n').map_or(0, |end| end + 1)];
        if let Some(line) = whole.lines().find(|line| fits(line)) {
            return State::Reached(line.trim().to_owned());
        }
        if let Some(line) = whole.lines().find(|line| line.starts_with(LOAD_ENDED)) {
            return State::Wrong(line.trim().to_owned());
        }
        let last = whole.lines().last().unwrap_or("nothing written").trim();
        match self.child.try_wait() {
            Ok(None) => State::NotYet(format!("console: {last}")),
            Ok(Some(status)) => State::Wrong(format!("QEMU ended with {status}; console: {last}")),
            Err(error) => State::Wrong(format!("QEMU cannot be watched: {error}")),
        }
    }

    fn boot_state(&mut self) -> State {
        let state = self.line_seen(|line| line.contains("davy-guest: booted"));
        if let State::NotYet(now) = &state {
            if let Some(line) = self.console().lines().find(|line| is_panic(line)) {
                return State::Wrong(line.trim().to_owned());
            }
            return State::NotYet(now.clone());
        }
        state
    }

    /// Thread ids of the vCPUs, found by the names QEMU gives its threads under `debug-threads=on`.
    pub(crate) fn vcpu_threads(&self) -> Result<Vec<PathBuf>> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let mut threads = Vec::new();
        for entry in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
            let path = entry?.path();
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            if name.starts_with("CPU ") && name.trim_end().ends_with("/KVM") {
                threads.push(path);
            }
        }
        Ok(threads)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Fails only for a process that ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a line of a guest's console says that its kernel died.
fn is_panic(line: &str) -> bool {
    line.contains("Kernel panic") || line.contains("Oops: ")
}
