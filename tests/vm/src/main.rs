//! `davy-vm-checks`: runs on a hypervisor host and checks what Davy finds there.
//!
//! Starts the real detector and agent and real QEMU/KVM guests (a RandomX miner with two vCPUs, an idle guest, an
//! honest vector-heavy one, one that hashes otherwise), and compares what the detector's inventory then says with what these guests are.
//! Written for the emulated hypervisor of `cargo xtask test vm`, where it is the only thing that runs: it uses
//! fixed ports, `/dev/kvm`, and at the end locks the kernel down. Do not run it on a machine you use.
//!
//! One line per check: `davy-check: ok|FAILED NAME: DETAIL`; the last line is `davy-checks: N passed, M failed`.
//! Nothing waits a fixed time: every check polls for a state until a deadline.

mod accounts;
mod checks;
mod cpu_truth;
mod exits;
mod guest;
mod hasher;
mod hotplug;
mod inventory;
mod report;
mod service;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Checks Davy on this hypervisor host with real KVM guests; locks the kernel down at its end.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Directory of davy-agent and davy-detector
    #[arg(long)]
    programs: PathBuf,
    /// Kernel image of the guests
    #[arg(long)]
    guest_kernel: PathBuf,
    /// Initramfs of the guests; its init runs the load named behind `--` on the kernel's command line
    #[arg(long)]
    guest_initrd: PathBuf,
    /// Directory for the logs of the agent, the detector and the guests' consoles
    #[arg(long)]
    logs: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    println!("davy-checks: begin");
    let mut report = report::Report::new();
    if let Err(error) = checks::run(&arguments, &mut report).await {
        report.record("run", Err(format!("{error:#}")));
    }
    if report.finish() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
