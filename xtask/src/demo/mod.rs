//! `cargo xtask demo`: the whole system on this machine, on real workloads.
//!
//! Sets up what is missing, builds, starts the detector (its database in a temporary directory) and the agent,
//! and runs three tenants, each in a control group of its own: a RandomX miner, an x264 encoder on all CPUs, and
//! an idle program. Shows what Davy sees while it runs, and fails unless the miner comes out `mining` and the others
//! `quiet`. Where that is not so when the time is over, but may still come, it runs on for a while.
//!
//! Nothing stays behind: processes, control groups and files go with the demo, also on Ctrl-C. All traffic is on
//! loopback, on ports nobody uses.

use std::fs;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::build::{self, PROGRAMS};
use crate::facts::Task;
use crate::{setup, shell};

mod clip;
mod group;
mod program;
mod seen;

use group::Groups;
use program::Program;
use seen::{Role, Tenant};

/// The name the demo's agent reports under.
const HOST: &str = "demo";

/// Length of the agent's windows: short, for a live view.
const WINDOW_MS: u64 = 1000;

/// How often the detector is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How long the detector may fail to answer; it listens before the first question.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What the tenants may run beyond the time asked for: a slow or crowded machine gives samples slowly.
const EXTRA_MAX: Duration = Duration::from_secs(180);

/// How often a line is printed where the view cannot be redrawn.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Encodes the clip `$0` again and again on `$1` threads.
const ENCODE: &str = "while setpriv --pdeathsig KILL -- \
    x264 --preset slower --threads \"$1\" --quiet --no-progress -o /dev/null \"$0\"; do :; done; exit 1";

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How long the tenants run, in seconds; up to 180 more where the miner's test has not concluded by then
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=86_400))]
    seconds: u64,
    /// Print one JSON document on standard output, all else on standard error
    #[arg(long)]
    json: bool,
    /// Use the programs in this directory: everything is set up and built
    #[arg(long, hide = true)]
    programs: Option<PathBuf>,
}

/// The demo's result, for machines.
#[derive(Serialize)]
struct Outcome<'a> {
    success: bool,
    problems: &'a [String],
    seconds: f64,
    window_ms: u64,
    tenants: &'a [Tenant],
}

/// Runs `demo`.
///
/// # Errors
/// If something cannot be set up, built or started, or ends early.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let programs = match &arguments.programs {
        Some(dir) => dir.clone(),
        None => prepare()?,
    };
    if !shell::is_root() {
        return Err(become_root(arguments, &programs)?.into());
    }
    let output = shell::ResultOutput::new(arguments.json)?;
    let interrupted = interruption()?;
    let mut stage = Stage::set(&programs)?;
    println!(
        "Running for {} s (Ctrl-C ends it and cleans up)",
        arguments.seconds
    );
    let started = Instant::now();
    let watched = stage.watch(Duration::from_secs(arguments.seconds), &interrupted);
    let seconds = started.elapsed().as_secs_f64();
    let problems = match watched {
        Ok(()) => seen::problems(&stage.tenants),
        Err(error) => vec![format!("{error:#}")],
    };
    if !problems.is_empty() && !interrupted.load(Ordering::Relaxed) {
        stage.show_logs();
    }
    let tenants = stage.tenants.clone();
    drop(stage);

    println!(
        "\nWhat Davy saw in {seconds:.0} s:\n{}",
        seen::table(&tenants, false)
    );
    for tenant in &tenants {
        for reason in &tenant.reasons {
            println!("{}: {reason}", tenant.name);
        }
    }
    if arguments.json {
        output.print(&serde_json::to_string_pretty(&Outcome {
            success: problems.is_empty(),
            problems: &problems,
            seconds,
            window_ms: WINDOW_MS,
            tenants: &tenants,
        })?)?;
    }
    if problems.is_empty() {
        println!("As it should be: the miner's fp_rounding concluded, the others' did not.");
        Ok(ExitCode::SUCCESS)
    } else {
        bail!(
            "the demo did not show what it should: {}",
            problems.join("; ")
        );
    }
}

/// Sets up and builds; the directory of the programs.
fn prepare() -> Result<PathBuf> {
    let report = setup::ensure(&[Task::Build, Task::Demo], true)?;
    if let Some(obstacle) = report
        .obstacle(Task::Build)
        .or_else(|| report.obstacle(Task::Demo))
    {
        bail!("the demo cannot run here; missing: {obstacle}");
    }
    build::build(&PROGRAMS, false)
}

/// Goes on as root. Returns only if that fails.
fn become_root(arguments: &Arguments, programs: &Path) -> Result<std::io::Error> {
    eprintln!("Going on as root (sudo): loading the kernel half needs it");
    let mut command = shell::command("sudo")?;
    command.arg(std::env::current_exe().context("cannot tell this program's file")?);
    command.args([
        "demo",
        "--seconds",
        &arguments.seconds.to_string(),
        "--programs",
    ]);
    command.arg(programs).stdin(Stdio::inherit());
    if arguments.json {
        command.arg("--json");
    }
    Ok(command.exec())
}

/// A flag that Ctrl-C, a request to end and a closed terminal set.
fn interruption() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, Arc::clone(&flag))
            .context("cannot handle the signals that end the demo")?;
    }
    Ok(flag)
}

/// All that runs. Fields are dropped in their order: processes first, then their groups, then the files.
struct Stage {
    agent: Program,
    detector: Program,
    workloads: Vec<Program>,
    _groups: Groups,
    _files: tempfile::TempDir,
    davyctl: PathBuf,
    detector_url: String,
    tenants: Vec<Tenant>,
}

impl Stage {
    /// Starts detector, tenants and agent, in this order.
    fn set(programs: &Path) -> Result<Self> {
        let files = tempfile::Builder::new()
            .prefix("davy-demo-")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let dir = files.path();
        let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let tenants = vec![
            Tenant::new("miner", &format!("RandomX, {threads} threads"), Role::Miner),
            Tenant::new("honest", &format!("x264, {threads} threads"), Role::Honest),
            Tenant::new("idle", "waits", Role::Idle),
        ];
        let names: Vec<&str> = tenants.iter().map(|tenant| tenant.name.as_str()).collect();

        let (listen, metrics) = (program::free_address()?, program::free_address()?);
        let detector = start_detector(programs, dir, listen, metrics)?;
        let detector_url = format!("http://{listen}");
        let groups = Groups::create(&names)?;
        let workloads = start_workloads(programs, dir, &groups, threads)?;
        let config = dir.join("agent.toml");
        fs::write(&config, agent_config(&detector_url, &groups, &names))
            .with_context(|| format!("cannot write {}", config.display()))?;
        let agent = Program::start(
            "agent",
            &[
                &words(programs, "davy-agent"),
                "run",
                "--config",
                &config.to_string_lossy(),
            ],
            None,
            dir,
        )?;
        Ok(Self {
            agent,
            detector,
            workloads,
            _groups: groups,
            _files: files,
            davyctl: programs.join("davyctl"),
            detector_url,
            tenants,
        })
    }

    /// Shows what the detector knows until the time is over, and on to [`EXTRA_MAX`] while more time may show
    /// what is to be shown.
    fn watch(&mut self, how_long: Duration, interrupted: &AtomicBool) -> Result<()> {
        let mut end = Instant::now() + how_long;
        let last_end = end + EXTRA_MAX;
        let mut view = View::new();
        let mut next = Instant::now();
        let mut answered = Instant::now();
        loop {
            if Instant::now() >= end {
                if end >= last_end || !seen::may_come_right(&self.tenants) {
                    return Ok(());
                }
                end = (end + LINE_EVERY).min(last_end);
            }
            if interrupted.load(Ordering::Relaxed) {
                bail!("it was interrupted before its end");
            }
            if Instant::now() < next {
                thread::sleep(Duration::from_millis(50));
                continue;
            }
            next += ASK_EVERY;
            self.agent.check()?;
            self.detector.check()?;
            for workload in &mut self.workloads {
                workload.check()?;
            }
            match self.ask() {
                Ok(document) => {
                    seen::update(&mut self.tenants, &document)?;
                    answered = Instant::now();
                }
                Err(error) if answered.elapsed() > ANSWER_WITHIN => return Err(error),
                // A crowded machine may keep the detector waiting; a window missed here is only not counted.
                Err(_) => {}
            }
            view.show(&self.tenants, end.saturating_duration_since(Instant::now()));
        }
    }

    /// Shows how the logs of agent and detector end.
    fn show_logs(&self) {
        for (name, program) in [("agent", &self.agent), ("detector", &self.detector)] {
            println!("\nThe end of the {name}'s log:\n{}", program.log_end());
        }
    }

    fn ask(&self) -> Result<String> {
        let davyctl = &self.davyctl.to_string_lossy();
        let output = shell::command(davyctl)?
            .args([
                "--detector",
                &self.detector_url,
                "droplets",
                "--host",
                HOST,
                "--json",
            ])
            .output()
            .with_context(|| format!("cannot start {davyctl}"))?;
        if !output.status.success() {
            bail!(
                "davyctl failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        String::from_utf8(output.stdout).context("davyctl's answer is not UTF-8")
    }
}

fn words(programs: &Path, name: &str) -> String {
    programs.join(name).to_string_lossy().into_owned()
}

fn start_detector(
    programs: &Path,
    dir: &Path,
    listen: SocketAddr,
    metrics: SocketAddr,
) -> Result<Program> {
    let mut detector = Program::start(
        "detector",
        &[
            &words(programs, "davy-detector"),
            "serve",
            "--listen",
            &listen.to_string(),
            "--metrics-listen",
            &metrics.to_string(),
            "--database",
            &dir.join("davy.sqlite").to_string_lossy(),
        ],
        None,
        dir,
    )?;
    detector.wait_for(listen)?;
    Ok(detector)
}

fn start_workloads(
    programs: &Path,
    dir: &Path,
    groups: &Groups,
    threads: usize,
) -> Result<Vec<Program>> {
    let clip = dir.join("clip.y4m");
    clip::write(&clip)?;
    let threads = threads.to_string();
    let start =
        |name: &str, words: &[&str]| Program::start(name, words, Some(&groups.dir_of(name)), dir);
    Ok(vec![
        start(
            "miner",
            &[&words(programs, "davy-randomx"), "--threads", &threads],
        )?,
        start(
            "honest",
            &["sh", "-c", ENCODE, &clip.to_string_lossy(), &threads],
        )?,
        start("idle", &[&words(programs, "davy-idle")])?,
    ])
}

/// The agent's configuration: short windows, the demo's tenants, no metrics page.
fn agent_config(detector: &str, groups: &Groups, names: &[&str]) -> String {
    let mut root = toml::Table::new();
    root.insert("host".to_owned(), HOST.into());
    root.insert("detector".to_owned(), detector.into());
    root.insert(
        "window_ms".to_owned(),
        i64::try_from(WINDOW_MS).unwrap_or(i64::MAX).into(),
    );
    root.insert("metrics_listen".to_owned(), "".into());
    let tenants: Vec<toml::Value> = names
        .iter()
        .map(|name| {
            let mut tenant = toml::Table::new();
            tenant.insert("name".to_owned(), (*name).into());
            let dir = groups.dir_of(name).to_string_lossy().into_owned();
            tenant.insert("cgroup".to_owned(), dir.into());
            tenant.into()
        })
        .collect();
    root.insert("tenant".to_owned(), tenants.into());
    root.to_string()
}

/// The live view: a table drawn over itself on a terminal wide enough, a line now and then elsewhere.
struct View {
    redraws: bool,
    lines_drawn: usize,
    last_line: Option<Instant>,
}

impl View {
    fn new() -> Self {
        let columns =
            rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| size.ws_col);
        Self {
            redraws: std::io::stdout().is_terminal() && columns >= seen::COLUMNS_MIN,
            lines_drawn: 0,
            last_line: None,
        }
    }

    fn show(&mut self, tenants: &[Tenant], left: Duration) {
        let left_s = left.as_secs();
        if self.redraws {
            let text = format!("{}\n{left_s} s left", seen::table(tenants, true));
            if self.lines_drawn > 0 {
                // Up over what was drawn, and clear to the screen's end (ECMA-48: CUU, ED).
                print!("\x1b[{}A\x1b[J", self.lines_drawn);
            }
            println!("{text}");
            self.lines_drawn = text.lines().count();
        } else if self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_EVERY)
        {
            self.last_line = Some(Instant::now());
            println!("{left_s:>4} s left | {}", seen::line(tenants));
        }
    }
}
