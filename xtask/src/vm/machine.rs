//! Runs the emulated hypervisor (L1) and watches it: its console, its time, its end.
//!
//! QEMU's TCG emulates AMD's nested virtualisation, so no hardware virtualisation is needed. One CPU:
//! with two, QEMU 7.2's multi-threaded TCG now and then ends a boot in `Oops: int3`. QEMU before 8
//! translates AVX of a guest's guest wrongly, so there AVX and XSAVE are off.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::outcome::{Line, Outcome};

/// The whole run of one machine: several times what it takes, for build machines that are slow or shared.
const RUN_LIMIT: Duration = Duration::from_secs(840);
/// From its start to the beginning of the checks.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Between two lines of the checks; they say what they wait for every few seconds.
const STALL_LIMIT: Duration = Duration::from_secs(240);
/// From the last marker to the machine's end.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(30);

/// What a machine boots and where it writes.
#[derive(Debug)]
pub(super) struct Machine {
    /// Kernel image.
    pub(super) kernel: PathBuf,
    /// Initramfs.
    pub(super) initrd: PathBuf,
    /// Directory the machine may write to.
    pub(super) out: PathBuf,
    /// Where the console goes.
    pub(super) console: PathBuf,
    /// What lines shown live begin with.
    pub(super) label: String,
}

/// How a machine's run ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// What the checks said.
    pub(super) outcome: Outcome,
    /// Why it ended before the last marker, if it did.
    pub(super) broke: Option<String>,
}

impl Machine {
    /// Runs the machine to its end, showing the checks' lines as they come.
    pub(super) fn run(&self, cpu: &str) -> Result<Ended> {
        let mut child = self.start(cpu)?;
        let stdout = child.stdout.take().context("QEMU's output is piped")?;
        let ended = self.watch(&lines(stdout));
        // Ended already, or to be ended: either way it is reaped.
        let _ = child.kill();
        child.wait().context("waiting for QEMU")?;
        ended
    }

    fn start(&self, cpu: &str) -> Result<Child> {
        let kernel_line = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable random.trust_cpu=on maxcpus=1";
        Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
            .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", cpu])
            .args(["-smp", "2", "-m", "3G", "-append", kernel_line])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd)
            .args([
                "-virtfs",
                &share(Path::new("/"), "hostroot", ",readonly=on"),
            ])
            .args(["-virtfs", &share(&self.out, "out", "")])
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(self.console.with_extension("qemu.log"))?)
            .spawn()
            .context("starting qemu-system-x86_64")
    }

    fn watch(&self, lines: &Receiver<String>) -> Result<Ended> {
        let mut console = File::create(&self.console)
            .with_context(|| format!("creating {}", self.console.display()))?;
        let started = Instant::now();
        let mut outcome = Outcome::default();
        let mut last_line = started;
        loop {
            let (deadline, why) = next_deadline(&outcome, started, last_line);
            let left = deadline.saturating_duration_since(Instant::now());
            let broke = match lines.recv_timeout(left) {
                Ok(text) => {
                    writeln!(console, "[{:6.1}] {text}", started.elapsed().as_secs_f64())?;
                    match outcome.take(&text) {
                        Line::Ours(at) => {
                            last_line = Instant::now();
                            let seconds = started.elapsed().as_secs_f64();
                            println!("{} {seconds:4.0} s  {}", self.label, &text[at..]);
                            None
                        }
                        Line::Dying(true) => Some(text),
                        Line::Dying(false) | Line::Other => None,
                    }
                }
                Err(RecvTimeoutError::Timeout) => Some(why.to_owned()),
                Err(RecvTimeoutError::Disconnected) if outcome.complete() => {
                    return Ok(Ended {
                        outcome,
                        broke: None,
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    Some("the machine ended before the checks did".to_owned())
                }
            };
            if broke.is_some() {
                let broke = broke.filter(|_| !outcome.complete());
                return Ok(Ended { outcome, broke });
            }
        }
    }
}

/// Until when the next line must come, and what it means if it does not.
fn next_deadline(outcome: &Outcome, started: Instant, last: Instant) -> (Instant, &'static str) {
    if outcome.complete() {
        return (last + POWER_OFF_LIMIT, "the machine did not power off");
    }
    let run = (started + RUN_LIMIT, "the run took longer than 14 minutes");
    let nearer = if outcome.begun {
        (last + STALL_LIMIT, "the checks said nothing for 120 s")
    } else {
        (started + BOOT_LIMIT, "the checks had not begun after 180 s")
    };
    if run.0 < nearer.0 { run } else { nearer }
}

/// A `-virtfs` share; a comma in an option's value is written twice.
fn share(path: &Path, tag: &str, more: &str) -> String {
    let path = path.to_string_lossy().replace(',', ",,");
    format!("local,path={path},mount_tag={tag},security_model=none,multidevs=remap{more}")
}

/// The lines of a console, read by a thread that ends with it.
fn lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The CPU model for the installed QEMU, or why there is none to be used.
pub(super) fn cpu_model() -> Result<&'static str, String> {
    let missing = "qemu-system-x86_64 does not run; install it: apt-get install qemu-system-x86";
    let shown = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .map_err(|_| missing.to_owned())?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let major = qemu_major(&shown).ok_or_else(|| missing.to_owned())?;
    Ok(if major >= 10 {
        "max"
    } else {
        "EPYC,-xsave,-avx,-avx2,-f16c,-fma,+svm"
    })
}

/// The major version in `QEMU emulator version 7.2.22 (…)`.
fn qemu_major(shown: &str) -> Option<u32> {
    let version = shown
        .split_whitespace()
        .skip_while(|w| *w != "version")
        .nth(1)?;
    version.split('.').next()?.parse().ok()
}

/// The last lines of every log, for a run that failed.
pub(super) fn print_log_tails(logs: &Path, lines_max: usize) {
    let Ok(entries) = fs::read_dir(logs) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let Ok(content) = fs::read(&path) else {
            continue;
        };
        let text = String::from_utf8_lossy(&content);
        // QEMU names every feature of the CPU model that it cannot emulate.
        let known = |line: &&str| !line.contains("TCG doesn't support requested feature");
        let lines: Vec<&str> = text.lines().filter(known).collect();
        if !lines.is_empty() {
            println!("--- the end of {}", path.display());
        }
        for line in &lines[lines.len().saturating_sub(lines_max)..] {
            println!("    {}", line.escape_debug());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_of_qemu_is_read() {
        assert_eq!(
            qemu_major("QEMU emulator version 7.2.22 (Debian 1:7.2)"),
            Some(7)
        );
        assert_eq!(qemu_major("QEMU emulator version 10.0.2"), Some(10));
        assert_eq!(qemu_major("something else"), None);
    }

    #[test]
    fn a_comma_in_a_shared_path_is_doubled() {
        assert_eq!(
            share(Path::new("/a,b"), "t", ""),
            "local,path=/a,,b,mount_tag=t,security_model=none,multidevs=remap"
        );
    }
}
