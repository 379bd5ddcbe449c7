//! `cargo xtask test`: every test this machine can run, and plainly what it could not run and why.
//!
//! | suite | runs | needs |
//! |---|---|---|
//! | `tidy` | the source rules, rustfmt, clippy, cargo-deny | cargo-deny for the last |
//! | `unit` | every test that needs no privilege | – |
//! | `host` | the kernel half on the running kernel | root (or sudo), BTF, kernel ≥ 5.18 |
//! | `vm` | agent and detector on stock kernels with real KVM guests | QEMU |
//!
//! Ends with a table, the reasons of what failed or was skipped, and the line
//! `N passed, N failed, N skipped`. Fails if anything failed or nothing ran; on a build machine (`CI` set)
//! also if a suite, or a kernel of `vm`, was skipped.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::doctor::Report;
use crate::facts::Task;
use crate::suite::{self, CargoTestOutput, SuiteResult};
use crate::vm::HostKernel;
use crate::{doctor, facts, setup, shell, source, tidy, vm};

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The suites to run; all of them if none is named
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Run the VM tests on this hypervisor kernel only
    #[arg(long, value_enum)]
    kernel: Option<HostKernel>,
    /// Print one JSON document on standard output, all else on standard error
    #[arg(long)]
    json: bool,
}

/// A suite of tests, in the order they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Suite {
    /// Rules of the source, formatting, lints, licences
    Tidy,
    /// Tests that need no privilege
    Unit,
    /// The kernel half on the running kernel; needs root
    Host,
    /// Real KVM guests on stock kernels; needs QEMU
    Vm,
}

#[derive(Serialize)]
struct Outcome<'a> {
    suites: &'a [SuiteResult],
    passed: u64,
    failed: u64,
    skipped: u64,
    success: bool,
}

/// Runs `test`.
///
/// # Errors
/// If the machine cannot be looked at, or (on a build machine) not be set up.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let results_out = shell::ResultOutput::new(arguments.json)?;
    let suites = chosen(arguments);
    let report = prepared(&suites)?;
    let mut results = Vec::new();
    for suite in suites {
        println!("\n== {}", name(suite));
        let started = Instant::now();
        let mut result = match suite {
            Suite::Tidy => run_tidy()?,
            Suite::Unit => run_unit(&report)?,
            Suite::Host => run_host(&report)?,
            Suite::Vm => run_vm(&report, arguments.kernel),
        };
        if shell::is_ci() {
            result.require_run();
        }
        result.seconds = started.elapsed().as_secs_f64();
        results.push(result);
    }
    let success = suite::is_success(&results);
    println!(
        "\n{}\n\n{}",
        suite::table(&results),
        suite::closing_line(&results)
    );
    if arguments.json {
        let sum = |field: fn(&SuiteResult) -> u64| results.iter().map(field).sum();
        results_out.print(&serde_json::to_string_pretty(&Outcome {
            suites: &results,
            passed: sum(|r| r.passed),
            failed: sum(|r| r.failed),
            skipped: sum(|r| r.skipped),
            success,
        })?)?;
    }
    Ok(if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn chosen(arguments: &Arguments) -> Vec<Suite> {
    let mut suites = arguments.suites.clone();
    if suites.is_empty() {
        suites = Suite::value_variants().to_vec();
    }
    suites.sort_unstable();
    suites.dedup();
    suites
}

fn name(suite: Suite) -> &'static str {
    match suite {
        Suite::Tidy => "tidy",
        Suite::Unit => "unit",
        Suite::Host => "host",
        Suite::Vm => "vm",
    }
}

/// The state of this machine; on a build machine after installing what is missing.
fn prepared(suites: &[Suite]) -> Result<Report> {
    if shell::is_ci() {
        let mut tasks = vec![Task::Build, Task::Test];
        if suites.contains(&Suite::Vm) {
            tasks.push(Task::Vm);
        }
        return setup::ensure(&tasks, true);
    }
    let report = doctor::report(&facts::gather()?);
    println!("{}", report.ready_line());
    if report.missing().next().is_some() {
        println!("What is missing, and its mending: cargo xtask doctor");
    }
    Ok(report)
}

/// The source rules and the three tools: one test each.
fn run_tidy() -> Result<SuiteResult> {
    let mut result = SuiteResult::new("tidy");
    let files = match source::tracked() {
        Ok(files) => files,
        Err(error) => {
            result.fail(&format!("{error:#}"));
            return Ok(result);
        }
    };
    for rule in tidy::RULES {
        let violations = (rule.check)(&files);
        println!(
            "rule {} ... {}",
            rule.name,
            if violations.is_empty() {
                "ok"
            } else {
                "FAILED"
            }
        );
        for violation in &violations {
            println!("  {violation}");
        }
        match violations.len() {
            0 => result.passed += 1,
            n => result.fail(&format!(
                "{} ({n}, the first: {})",
                rule.name, violations[0]
            )),
        }
    }
    let mut fmt = shell::cargo()?;
    fmt.args(["fmt", "--all", "--check"]);
    tool(&mut result, &mut fmt);
    let mut fmt_kernel_half = shell::cargo()?;
    fmt_kernel_half.args(["fmt", "--manifest-path", "agent-ebpf/Cargo.toml", "--check"]);
    tool(&mut result, &mut fmt_kernel_half);
    let mut clippy = shell::cargo()?;
    clippy.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    tool(&mut result, &mut clippy);
    if shell::capture("cargo-deny", &["--version"]).is_some() {
        let mut deny = shell::cargo()?;
        deny.args(["deny", "check"]);
        tool(&mut result, &mut deny);
    } else {
        result
            .skip("cargo deny check: not installed; install it: cargo install cargo-deny --locked");
    }
    Ok(result)
}

/// Counts a tool's run as one test.
fn tool(result: &mut SuiteResult, command: &mut Command) {
    match shell::run(command) {
        Ok(()) => result.passed += 1,
        Err(error) => result.fail(&format!("{error:#}")),
    }
}

fn run_unit(report: &Report) -> Result<SuiteResult> {
    if let Some(obstacle) = report.obstacle(Task::Build) {
        return Ok(SuiteResult::skipped("unit", &obstacle));
    }
    let mut command = shell::cargo()?;
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.args(["--exclude", "davy-host-tests"]);
    cargo_test("unit", &mut command)
}

fn run_host(report: &Report) -> Result<SuiteResult> {
    let obstacles: Vec<String> = report
        .missing()
        // Of what the demo needs, the tests do not need its encoder.
        .filter(|r| !r.limits_only && r.name != "x264" && r.needed_for.contains(&Task::Demo))
        .map(|r| format!("{} ({}): {}", r.name, r.found, r.command))
        .collect();
    if !obstacles.is_empty() {
        return Ok(SuiteResult::skipped("host", &obstacles.join("; ")));
    }
    let mut command = shell::cargo()?;
    command.args(["test", "--package", "davy-host-tests", "--no-fail-fast"]);
    command.args(["--", "--test-threads=1", "--nocapture"]);
    if !shell::is_root() {
        if shell::is_ci() && shell::capture("sudo", &["-n", "true"]).is_none() {
            let reason = "root is needed, and sudo would ask for a password: run as root";
            return Ok(SuiteResult::skipped("host", reason));
        }
        // Built as the user, run as root.
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -E");
        command.stdin(Stdio::inherit());
    }
    cargo_test("host", &mut command)
}

fn run_vm(report: &Report, kernel: Option<HostKernel>) -> SuiteResult {
    match report.obstacle(Task::Vm) {
        Some(obstacle) => SuiteResult::skipped("vm", &obstacle),
        None => vm::run(kernel),
    }
}

/// Runs `cargo test`, showing its output as it comes and counting what it says.
fn cargo_test(name: &str, command: &mut Command) -> Result<SuiteResult> {
    let line = shell::line(command);
    println!("$ {line}");
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let Some(stdout) = child.stdout.take() else {
        bail!("`{line}` has no output");
    };
    let counts = pass_through(stdout, &mut std::io::stdout().lock())?;
    let status = child
        .wait()
        .with_context(|| format!("waiting for `{line}`"))?;
    Ok(counts.result(name, status.success()))
}

fn pass_through(from: impl Read, to: &mut impl Write) -> Result<CargoTestOutput> {
    let mut counts = CargoTestOutput::default();
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from
        .read_until(b'\n', &mut line)
        .context("reading the tests' output")?
        > 0
    {
        to.write_all(&line).context("showing the tests' output")?;
        counts.line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(suites: &[Suite]) -> Arguments {
        Arguments {
            suites: suites.to_vec(),
            kernel: None,
            json: false,
        }
    }

    #[test]
    fn all_suites_run_in_order_unless_some_are_named() {
        assert_eq!(
            chosen(&arguments(&[])),
            [Suite::Tidy, Suite::Unit, Suite::Host, Suite::Vm]
        );
        assert_eq!(
            chosen(&arguments(&[Suite::Vm, Suite::Unit, Suite::Vm])),
            [Suite::Unit, Suite::Vm]
        );
    }

    #[test]
    fn output_is_shown_as_it_came_and_counted() {
        let output = b"test a ... ok\n\xff\ntest result: ok. 2 passed; 0 failed; 0 ignored\n";
        let mut shown = Vec::new();
        let counts = pass_through(&output[..], &mut shown).unwrap();
        assert_eq!(shown, output);
        assert_eq!(counts.result("unit", true).passed, 2);
    }
}
