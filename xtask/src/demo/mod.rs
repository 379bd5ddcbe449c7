//! `cargo xtask demo`: the whole system on this machine, on real workloads.
//!
//! Sets up what is missing, builds, starts a provider's account directory, the detector (its database in a temporary directory)
//! and the agent, and runs seven tenants of four accounts, each in a control group of its own: RandomX miners of three accounts, an
//! idle program, and x264 encoders of the fourth. Shows what Davy sees while it runs, and at the end what it decided about each
//! account. Fails unless the miners come out `mining` and the others `quiet`, and of the miners only the one for whom nothing speaks is
//! throttled (in a dry run). Where that is not so when the time is over, but may still come, it runs on for a while.
//!
//! The detector runs under a policy of the demo's own, with durations shortened; the demo says which.
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
use serde_json::Value;

use crate::build::{self, DEMO_PROGRAMS, PROGRAMS};
use crate::facts::Task;
use crate::{setup, shell};

mod account;
mod clip;
mod group;
mod program;
mod provider;
mod seen;

use account::Account;
use group::Groups;
use program::Program;
use provider::Provider;
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

/// Encodes the clip `$0` again and again. Behind the miners: those must have a quarter of a CPU each for their verdict, also where
/// there are two CPUs in all.
const ENCODE: &str = "while setpriv --pdeathsig KILL -- nice -n 5 \
    x264 --preset slower --threads 1 --quiet --no-progress -o /dev/null \"$0\"; do :; done; exit 1";

/// How a tenant's name becomes its droplet's id.
const NAMES: &str = "-(?P<id>[0-9]+)$";

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
    /// What the policy it ran under has shortened.
    shortened: &'a [&'a str],
    tenants: &'a [Tenant],
    accounts: &'a [Account],
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
        Ok(()) => stage.problems(),
        Err(error) => vec![format!("{error:#}")],
    };
    if !problems.is_empty() && !interrupted.load(Ordering::Relaxed) {
        stage.show_logs();
    }
    let (tenants, accounts) = (stage.tenants.clone(), stage.accounts.clone());
    drop(stage);

    tell(seconds, &tenants, &accounts);
    if arguments.json {
        output.print(&serde_json::to_string_pretty(&Outcome {
            success: problems.is_empty(),
            problems: &problems,
            seconds,
            window_ms: WINDOW_MS,
            shortened: &provider::SHORTENED,
            tenants: &tenants,
            accounts: &accounts,
        })?)?;
    }
    if problems.is_empty() {
        println!(
            "As it should be: of three miners one was throttled, after it was told; two have a person to speak for them; and whoever \
             only works hard was left alone."
        );
        Ok(ExitCode::SUCCESS)
    } else {
        bail!(
            "the demo did not show what it should: {}",
            problems.join("; ")
        );
    }
}

/// Tells what was seen and decided.
fn tell(seconds: f64, tenants: &[Tenant], accounts: &[Account]) {
    println!(
        "\nWhat Davy saw in {seconds:.0} s:\n{}",
        seen::table(tenants, false)
    );
    // The first says why in a sentence; the others are the figures behind it.
    for tenant in tenants {
        if let Some(reason) = tenant.reasons.first() {
            println!("{}: {reason}", tenant.name);
        }
    }
    println!(
        "\nWhat it decided, under the demo's policy ({}):\n{}",
        provider::SHORTENED.join("; "),
        account::table(accounts, tenants)
    );
    for account in accounts {
        if let Some(statement) = &account.statement {
            println!("What {} was told:\n{statement}\n", account.name);
        }
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
    build::build(&[&PROGRAMS[..], &DEMO_PROGRAMS].concat(), false)
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
    provider: Provider,
    workloads: Vec<Program>,
    _groups: Groups,
    _files: tempfile::TempDir,
    davyctl: PathBuf,
    detector_url: String,
    tenants: Vec<Tenant>,
    accounts: Vec<Account>,
}

impl Stage {
    /// Starts provider, detector, tenants and agent, in this order.
    fn set(programs: &Path) -> Result<Self> {
        let files = tempfile::Builder::new()
            .prefix("davy-demo-")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let dir = files.path();
        let tenants = vec![
            Tenant::new("miner-101", "RandomX", Role::Miner),
            Tenant::new("idle-102", "waits", Role::Idle),
            Tenant::new("miner-104", "RandomX", Role::Miner),
            Tenant::new("miner-105", "RandomX", Role::Miner),
            Tenant::new("batch-111", "x264", Role::Honest),
            Tenant::new("batch-112", "x264", Role::Honest),
            Tenant::new("batch-113", "x264", Role::Honest),
        ];
        let names: Vec<&str> = tenants.iter().map(|tenant| tenant.name.as_str()).collect();

        let (listen, metrics) = (program::free_address()?, program::free_address()?);
        let provider = Provider::set(programs, dir)?;
        println!(
            "The detector runs under the demo's policy ({}): that which ships, but {}",
            provider.policy.display(),
            provider::SHORTENED.join("; ")
        );
        let detector = start_detector(programs, dir, &provider.config, listen, metrics)?;
        let detector_url = format!("http://{listen}");
        let groups = Groups::create(&names)?;
        let workloads = start_workloads(programs, dir, &groups, &tenants)?;
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
            provider,
            workloads,
            _groups: groups,
            _files: files,
            davyctl: programs.join("davyctl"),
            detector_url,
            tenants,
            accounts: Account::all(),
        })
    }

    /// What is not as it must be.
    fn problems(&self) -> Vec<String> {
        let mut problems = seen::problems(&self.tenants);
        problems.extend(account::problems(&self.accounts));
        problems
    }

    /// Whether more time may mend it.
    fn may_come_right(&self) -> bool {
        !self.problems().is_empty()
            && !self.tenants.iter().any(Tenant::is_wrong_for_good)
            && account::may_come_right(&self.accounts)
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
                self.look_at_accounts()?;
                if end >= last_end || !self.may_come_right() {
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
            self.provider.check()?;
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
        self.davyctl(&["droplets", "--host", HOST])
    }

    /// Asks what was decided about each account.
    fn look_at_accounts(&mut self) -> Result<()> {
        let mut accounts = std::mem::take(&mut self.accounts);
        let looked = accounts
            .iter_mut()
            .try_for_each(|account| self.look_at(account));
        self.accounts = accounts;
        looked
    }

    fn look_at(&self, account: &mut Account) -> Result<()> {
        let safeties = self.document(&[
            "safety",
            "check",
            account.name,
            "throttle",
            "--droplet",
            account.droplet,
        ])?;
        let cases = self.document(&["cases", "list"])?;
        let case = match account::has_case(account.name, &cases)? {
            true => Some(self.document(&["cases", "show", account.name])?),
            false => None,
        };
        account.update(&safeties, case.as_ref())
    }

    fn document(&self, words: &[&str]) -> Result<Value> {
        serde_json::from_str(&self.davyctl(words)?).context("davyctl's answer is not JSON")
    }

    /// What davyctl answers, as JSON.
    fn davyctl(&self, words: &[&str]) -> Result<String> {
        let davyctl = &self.davyctl.to_string_lossy();
        let output = shell::command(davyctl)?
            .args(["--detector", &self.detector_url, "--json", "--token-file"])
            .arg(&self.provider.token)
            .args(words)
            .output()
            .with_context(|| format!("cannot start {davyctl}"))?;
        // It says so with this code if a safety is in force.
        const NOT_ALLOWED: i32 = 3;
        if !output.status.success() && output.status.code() != Some(NOT_ALLOWED) {
            bail!(
                "davyctl {} failed: {}",
                words.join(" "),
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
    config: &Path,
    listen: SocketAddr,
    metrics: SocketAddr,
) -> Result<Program> {
    let mut detector = Program::start(
        "detector",
        &[
            &words(programs, "davy-detector"),
            "serve",
            "--config",
            &config.to_string_lossy(),
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
    tenants: &[Tenant],
) -> Result<Vec<Program>> {
    let clip = dir.join("clip.y4m");
    clip::write(&clip)?;
    let (miner, idle) = (
        words(programs, "davy-randomx"),
        words(programs, "davy-idle"),
    );
    let clip = clip.to_string_lossy();
    let start = |tenant: &Tenant| {
        let words: &[&str] = match tenant.role {
            Role::Miner => &[&miner, "--threads", "1"],
            Role::Honest => &["sh", "-c", ENCODE, &clip],
            Role::Idle => &[&idle],
        };
        Program::start(&tenant.name, words, Some(&groups.dir_of(&tenant.name)), dir)
    };
    tenants.iter().map(start).collect()
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
    let pattern = toml::Table::from_iter([("pattern".to_owned(), NAMES.into())]);
    root.insert("names".to_owned(), pattern.into());
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
