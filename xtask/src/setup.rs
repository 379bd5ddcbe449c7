//! `cargo xtask setup`: installs what is missing, and says what and why before each step.
//!
//! Does nothing, in a second or two, where nothing is missing. Debian packages come by apt-get (through sudo
//! unless run as root), rust-src by rustup, bpf-linker by cargo; every download is tried three times.

use std::io::{self, BufRead, IsTerminal, Write as _};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::doctor::{self, Mend, Report, Requirement};
use crate::facts::{self, BPF_LINKER, Task};
use crate::shell;

/// Arguments of `setup`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Do not ask before installing
    #[arg(long)]
    yes: bool,
}

/// Runs `setup`, and closes with what the machine is then ready for.
///
/// # Errors
/// If something could not be installed, or nobody can be asked.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let report = ensure(
        &[Task::Build, Task::Demo, Task::Test, Task::Vm],
        arguments.yes,
    )?;
    for lack in report.missing() {
        eprintln!(
            "not installed by setup: {} ({}); {}",
            lack.name, lack.found, lack.command
        );
    }
    println!("{}", report.ready_line());
    Ok(ExitCode::SUCCESS)
}

/// Installs what these tasks lack, and says how the machine stands afterwards.
///
/// # Errors
/// If something could not be installed, or nobody can be asked.
pub fn ensure(tasks: &[Task], yes: bool) -> Result<Report> {
    let report = doctor::report(&facts::gather()?);
    let lacks: Vec<&Requirement> = report
        .missing()
        .filter(|r| r.mend != Mend::ByHand && r.needed_for.iter().any(|t| tasks.contains(t)))
        .collect();
    if lacks.is_empty() {
        return Ok(report);
    }
    eprintln!("Missing here:");
    for lack in &lacks {
        eprintln!("  {:<20} to {}", lack.name, lack.purpose);
    }
    if !yes {
        ask()?;
    }
    // Packages first: bpf-linker needs the C++ compiler.
    let packages: Vec<&str> = lacks
        .iter()
        .filter_map(|lack| match lack.mend {
            Mend::Package(name) => Some(name),
            _ => None,
        })
        .collect();
    install_packages(&packages)?;
    for lack in &lacks {
        match &lack.mend {
            Mend::Toolchain(version) => install_toolchain(version)?,
            Mend::RustSrc => add_rust_src()?,
            Mend::BpfLinker => install_bpf_linker()?,
            Mend::Package(_) | Mend::ByHand => {}
        }
    }
    let after = doctor::report(&facts::gather()?);
    let left: Vec<String> = lacks
        .iter()
        .filter(|lack| after.missing().any(|r| r.name == lack.name))
        .map(|lack| format!("{}: {}", lack.name, lack.command))
        .collect();
    if !left.is_empty() {
        bail!("still missing after installing: {}", left.join("; "));
    }
    Ok(after)
}

fn ask() -> Result<()> {
    if !io::stdin().is_terminal() {
        bail!("nobody to ask (no terminal): run `cargo xtask setup --yes` to install it");
    }
    eprint!("Install it? [Y/n] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if !["", "y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        bail!("nothing was installed");
    }
    Ok(())
}

/// apt-get, as root.
fn apt_get(arguments: &[&str]) -> Result<Command> {
    let mut command = if shell::is_root() {
        shell::command("apt-get")?
    } else {
        let mut command = shell::command("sudo")?;
        command.arg("apt-get");
        command
    };
    command.args(["-q", "-y"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // sudo may have to ask for a password.
    if !shell::is_root() && !shell::is_ci() {
        command.stdin(std::process::Stdio::inherit());
    }
    Ok(command)
}

fn install_packages(names: &[&str]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    eprintln!("Installing Debian packages: {}", names.join(" "));
    // An incomplete index (one mirror away, say) may still hold what is wanted: the installation tells.
    if let Err(error) = shell::run_with_retries(|| apt_get(&["update"])) {
        eprintln!("{error:#}; going on with the package lists that are here");
    }
    shell::run_with_retries(|| {
        let mut arguments = vec!["install", "--no-install-recommends"];
        arguments.extend(names);
        apt_get(&arguments)
    })
    .with_context(|| format!("could not install {}", names.join(" ")))
}

fn install_toolchain(version: &str) -> Result<()> {
    eprintln!("Installing Rust {version} (pinned by rust-toolchain.toml)");
    shell::run_with_retries(|| {
        let mut command = shell::command("rustup")?;
        command.args(["toolchain", "install", version, "--profile", "minimal"]);
        command.args(["-c", "clippy", "-c", "rustfmt"]);
        Ok(command)
    })
}

fn add_rust_src() -> Result<()> {
    let pinned = facts::gather()?.toolchain_pinned;
    eprintln!("Adding the sources of Rust's core library (for the eBPF target)");
    shell::run_with_retries(|| {
        let mut command = shell::command("rustup")?;
        command.args(["component", "add", "rust-src", "--toolchain", &pinned]);
        Ok(command)
    })
    .context(
        "rustup could not add rust-src. Where rustup can add nothing, Debian's rustc-web and rust-web-src \
         with bpf-linker 0.13 (`cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22`, \
         after `apt-get install rustc-web rust-web-src llvm-22-dev libpolly-22-dev`) can build the kernel half by hand",
    )
}

fn install_bpf_linker() -> Result<()> {
    eprintln!(
        "Installing bpf-linker {BPF_LINKER} (links the kernel half; compiles for some minutes)"
    );
    shell::run_with_retries(|| {
        let mut command = shell::cargo()?;
        command.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]);
        // A version of another kind may be there.
        command.arg("--force");
        Ok(command)
    })
}
