//! `cargo xtask build`: every program of the workspace, the kernel half included.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::facts::Task;
use crate::{doctor, facts, shell};

/// Arguments of `build`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Build with optimisations
    #[arg(long)]
    release: bool,
}

/// The packages whose programs make up Davy, and the workloads it is shown on.
pub const PROGRAMS: [&str; 4] = ["davy-agent", "davy-detector", "davyctl", "davy-workloads"];

/// And the packages of those that only the demo needs.
pub const DEMO_PROGRAMS: [&str; 1] = ["davy-test-provider"];

/// Builds some packages of the workspace; the directory their programs then lie in.
///
/// # Errors
/// If the build fails.
pub fn build(packages: &[&str], release: bool) -> Result<PathBuf> {
    let mut command = shell::cargo()?;
    command.args(["build", "--bins"]);
    for package in packages {
        command.args(["--package", package]);
    }
    if release {
        command.arg("--release");
    }
    shell::run(&mut command)?;
    Ok(shell::target_dir()?.join(if release { "release" } else { "debug" }))
}

/// Runs `build`.
///
/// # Errors
/// If something needed is missing, or the build fails.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(obstacle) = doctor::report(&facts::gather()?).obstacle(Task::Build) {
        bail!("cannot build; missing: {obstacle} (or all at once: cargo xtask setup)");
    }
    let dir = build(&PROGRAMS, arguments.release)?;
    println!("built into {}", dir.display());
    Ok(ExitCode::SUCCESS)
}
