//! `cargo xtask test vm`: the real agent and detector on stock Debian kernels as hypervisors of real KVM guests.
//!
//! For each kernel: an emulated machine (L1, `machine`) boots it, mounts this machine's root read-only, and
//! runs `davy-vm-checks` (crate `tests/vm`), which starts agent, detector and QEMU/KVM guests and checks what
//! Davy finds. Needs QEMU, a static busybox and the kernels' packages (`kernel`), no hardware virtualisation
//! and no privileges. Logs stay in `<target>/vm/logs/<kernel>/`.
//!
//! What is missing makes the suite *skipped*, with the reason (on a build machine that fails the run). A hypervisor that dies before the checks
//! began (nested emulation rarely does that) is started again, and that is printed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::build;
use crate::suite::SuiteResult;

mod cpio;
mod image;
mod kernel;
mod machine;
mod outcome;

pub(crate) use kernel::HostKernel;
use kernel::Kernel;
use machine::{Ended, Machine};

/// How often a hypervisor is started until its checks begin.
const STARTS_MAX: u32 = 3;
/// The packages of the programs that run on the hypervisor and in its guests.
const PROGRAMS: [&str; 4] = [
    "davy-agent",
    "davy-detector",
    "davy-workloads",
    "davy-vm-tests",
];
/// Lines shown of each log of a failed run.
const LOG_TAIL_LINES: usize = 25;
/// The kernel of the guests, whatever the hypervisor's: it starts fastest under emulation.
const GUEST_KERNEL: HostKernel = HostKernel::V6_12;

/// Runs the suite on one kernel, or on all.
pub(crate) fn run(only: Option<HostKernel>) -> SuiteResult {
    let started = Instant::now();
    let mut suite = SuiteResult::new("vm");
    let kernels = only.map_or_else(|| HostKernel::ALL.to_vec(), |kernel| vec![kernel]);
    if let Err(error) = run_kernels(&kernels, &mut suite) {
        suite.fail(&format!("{error:#}"));
    }
    suite.seconds = started.elapsed().as_secs_f64();
    suite
}

fn run_kernels(kernels: &[HostKernel], suite: &mut SuiteResult) -> Result<()> {
    let cpu = match prerequisites() {
        Ok(cpu) => cpu,
        Err(reason) => {
            skip(suite, kernels, &reason);
            return Ok(());
        }
    };
    let target = target_dir();
    let vm_dir = target.join("vm");
    let guest_kernel = match kernel::provide(GUEST_KERNEL, &vm_dir) {
        Ok(kernel) => kernel,
        Err(error) => {
            skip(suite, kernels, &format!("{error:#}"));
            return Ok(());
        }
    };
    let built = build::build(&PROGRAMS, false)?;
    let stage = vm_dir.join("stage");
    image::stage(&built, &guest_kernel, &stage)?;
    for &which in kernels {
        match kernel::provide(which, &vm_dir) {
            Ok(kernel) => run_kernel(which, &kernel, &stage, &vm_dir, cpu, suite)?,
            Err(error) => skip(suite, &[which], &format!("{error:#}")),
        }
    }
    Ok(())
}

/// Boots one kernel as hypervisor, adds what its checks say to `suite`.
fn run_kernel(
    which: HostKernel,
    kernel: &Kernel,
    stage: &Path,
    vm_dir: &Path,
    cpu: &str,
    suite: &mut SuiteResult,
) -> Result<()> {
    let name = which.name();
    let started = Instant::now();
    println!(
        "vm {name}: {} as hypervisor, emulated CPU {cpu}",
        kernel.package
    );
    let initrd = vm_dir.join(format!("host-initrd-{name}"));
    image::host_initrd(which, kernel, stage, &initrd)?;
    let logs = vm_dir.join("logs").join(name);
    let ended = start_until_checks_begin(name, kernel, &initrd, &logs, cpu)?;
    fs::remove_file(&initrd)?;

    suite.passed += ended.outcome.passed;
    let mut failures = ended.outcome.failed.clone();
    failures.extend(ended.broke);
    failures.extend(ended.outcome.contradiction());
    println!(
        "vm {name}: {} passed, {} failed in {:.0} s",
        ended.outcome.passed,
        failures.len(),
        started.elapsed().as_secs_f64()
    );
    if !failures.is_empty() {
        machine::print_log_tails(&logs, LOG_TAIL_LINES);
    }
    for failure in failures {
        suite.fail(&format!(
            "kernel {name}: {failure} (logs: {})",
            logs.display()
        ));
    }
    Ok(())
}

fn start_until_checks_begin(
    name: &str,
    kernel: &Kernel,
    initrd: &Path,
    logs: &Path,
    cpu: &str,
) -> Result<Ended> {
    let mut start = 1;
    loop {
        if logs.exists() {
            fs::remove_dir_all(logs).with_context(|| format!("removing {}", logs.display()))?;
        }
        fs::create_dir_all(logs).with_context(|| format!("creating {}", logs.display()))?;
        let machine = Machine {
            kernel: kernel.vmlinuz(),
            initrd: initrd.to_owned(),
            out: logs.to_owned(),
            console: logs.join("console.log"),
            label: format!("vm {name}"),
        };
        let ended = machine.run(cpu)?;
        match &ended.broke {
            Some(why) if !ended.outcome.begun && start < STARTS_MAX => {
                println!(
                    "vm {name}: start {start} of {STARTS_MAX} ended early, starting again: {why}"
                );
                machine::print_log_tails(logs, LOG_TAIL_LINES);
                start += 1;
            }
            _ => return Ok(ended),
        }
    }
}

/// The CPU model to emulate, or the sentence that says what is missing and what mends it.
fn prerequisites() -> Result<&'static str, String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("the VM tests emulate AMD's virtualisation and run on x86-64 only".to_owned());
    }
    if !image::is_static(Path::new(image::BUSYBOX)) || !Path::new(image::BUSYBOX).exists() {
        return Err(format!(
            "{} is missing or not static; install it: apt-get install busybox-static",
            image::BUSYBOX
        ));
    }
    for tool in ["apt-get", "dpkg", "ldd", "strip"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return Err(format!(
                "{tool} does not run; the VM tests need Debian with binutils installed"
            ));
        }
    }
    machine::cpu_model()
}

/// The repository's root.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where cargo builds: `CARGO_TARGET_DIR`, or `target` in the repository.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || root().join("target"),
        |dir| root().join(PathBuf::from(dir)),
    )
}

fn skip(suite: &mut SuiteResult, kernels: &[HostKernel], reason: &str) {
    for kernel in kernels {
        suite.skip(&format!("kernel {}: {reason}", kernel.name()));
    }
}
