//! The real agent's CPU time and resident memory by number of watched threads.
//!
//! It runs as it is configured by default, apart from its addresses, with one tenant: a process of so many
//! threads that wake ten times a second. Figures are the agent's own (`davy_agent_cpu_seconds`,
//! `davy_agent_resident_bytes` of its `/metrics`): process CPU time, user and system, with the nudging
//! threads, without the kernel half. The user part alone is from `/proc/PID/stat`.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::load::Load;

/// Watched threads.
const THREADS: [usize; 3] = [10, 100, 1000];
/// How long the agent may take to watch them.
const WATCH_WITHIN: Duration = Duration::from_secs(30);
/// After its start the agent has the kernel keep time of its programs for two seconds.
const TIMED: Duration = Duration::from_secs(3);
/// How long it may take to end.
const END_WITHIN: Duration = Duration::from_secs(5);
/// Least time to measure: two windows of the default length.
const MEASURE_MIN: Duration = Duration::from_secs(20);

/// The programs to run.
pub struct Programs {
    /// The agent.
    pub agent: PathBuf,
    /// The detector it reports to.
    pub detector: Option<PathBuf>,
}

/// The agent with nothing to watch; ended when dropped.
pub struct Unwatching {
    _agent: Program,
    _scratch: tempfile::TempDir,
}

impl Unwatching {
    /// Starts it; when this returns its programs are attached, and the kernel keeps time of them no more, as in 18 s of 20.
    ///
    /// # Errors
    /// If it cannot be started, or does not answer.
    pub fn start(programs: &Programs) -> Result<Self> {
        let scratch = tempfile::tempdir().context("no temporary directory")?;
        let metrics = free_address()?;
        let config = scratch.path().join("agent.toml");
        fs::write(
            &config,
            format!("host = \"bench\"\nmetrics_listen = \"{metrics}\"\n"),
        )?;
        let mut agent = start_agent(programs, &config, scratch.path())?;
        let end = Instant::now() + WATCH_WITHIN;
        while get(metrics).is_err() {
            agent.check()?;
            if Instant::now() > end {
                bail!(
                    "the agent does not answer after {WATCH_WITHIN:?}\n{}",
                    agent.log()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(TIMED);
        agent.check()?;
        Ok(Self {
            _agent: agent,
            _scratch: scratch,
        })
    }
}

fn start_agent(programs: &Programs, config: &Path, scratch: &Path) -> Result<Program> {
    let mut command = Command::new(&programs.agent);
    command.arg("run").arg("--config").arg(config);
    Program::start("the agent", command, scratch)
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Threads of the tenant.
    pub threads: usize,
    /// User CPU time, percent of one CPU.
    pub user_percent: f64,
    /// User and system CPU time, percent of one CPU.
    pub cpu_percent: f64,
    /// Resident memory at the end, bytes.
    pub resident_bytes: f64,
    /// How long was measured, s.
    pub seconds: f64,
}

/// Measures each number of threads for its share of `time`.
///
/// # Errors
/// If a program cannot be started, or the agent does not come to watch the threads.
pub fn measure(programs: &Programs, time: Duration) -> Result<Vec<Row>> {
    let each = (time / 3).max(MEASURE_MIN);
    THREADS
        .iter()
        .map(|&threads| {
            let row = one(programs, threads, each)
                .with_context(|| format!("measuring the agent with {threads} threads failed"))?;
            eprintln!("agent: {threads} threads done");
            Ok(row)
        })
        .collect()
}

fn one(programs: &Programs, threads: usize, time: Duration) -> Result<Row> {
    let scratch = tempfile::tempdir().context("no temporary directory")?;
    let (uplink, detector_metrics, metrics) = (free_address()?, free_address()?, free_address()?);
    let load = Load::start(&["sleeping", &threads.to_string()])?;
    let _detector = programs
        .detector
        .as_ref()
        .map(|program| {
            let mut command = Command::new(program);
            command.args(["serve", "--listen", &uplink.to_string()]);
            command.args([
                "--metrics-listen",
                &detector_metrics.to_string(),
                "--database",
            ]);
            command.arg(scratch.path().join("davy.db"));
            Program::start("the detector", command, scratch.path())
        })
        .transpose()?;
    let config = scratch.path().join("agent.toml");
    fs::write(&config, configuration(uplink, metrics, load.id()))?;
    let mut agent = start_agent(programs, &config, scratch.path())?;
    watching(&mut agent, metrics, threads)?;

    let began = Instant::now();
    let before = now(&agent, metrics)?;
    thread::sleep(time);
    let after = now(&agent, metrics)?;
    let seconds = began.elapsed().as_secs_f64();
    agent.check()?;
    Ok(Row {
        threads,
        user_percent: (after.user_s - before.user_s) / seconds * 100.0,
        cpu_percent: (after.cpu_s - before.cpu_s) / seconds * 100.0,
        resident_bytes: after.resident_bytes,
        seconds,
    })
}

fn configuration(uplink: SocketAddr, metrics: SocketAddr, pid: u32) -> String {
    format!(
        "host = \"bench\"\ndetector = \"http://{uplink}\"\nmetrics_listen = \"{metrics}\"\n\n\
         [[tenant]]\nname = \"load\"\npid = {pid}\n"
    )
}

/// Waits until the agent has closed a window and watches all threads.
fn watching(agent: &mut Program, metrics: SocketAddr, threads: usize) -> Result<()> {
    let end = Instant::now() + WATCH_WITHIN;
    loop {
        agent.check()?;
        if let Ok(text) = get(metrics)
            && value(&text, "davy_agent_threads").is_some_and(|watched| watched >= count(threads))
            && value(&text, "davy_agent_windows_closed_total").is_some_and(|closed| closed >= 1.0)
        {
            return Ok(());
        }
        if Instant::now() > end {
            bail!(
                "the agent does not watch {threads} threads after {WATCH_WITHIN:?}\n{}",
                agent.log()
            );
        }
        thread::sleep(Duration::from_millis(200));
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most some thousands")]
fn count(threads: usize) -> f64 {
    threads as f64
}

struct Now {
    user_s: f64,
    cpu_s: f64,
    resident_bytes: f64,
}

fn now(agent: &Program, metrics: SocketAddr) -> Result<Now> {
    let text = get(metrics)?;
    let figure =
        |name| value(&text, name).with_context(|| format!("the agent does not say {name}"));
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.child.id()))?;
    let hertz = rustix::param::clock_ticks_per_second();
    Ok(Now {
        user_s: user_ticks(&stat).context("no user time in /proc/PID/stat")?
            * crate::figures::ratio(1, hertz),
        cpu_s: figure("davy_agent_cpu_seconds_total")?,
        resident_bytes: figure("davy_agent_resident_bytes")?,
    })
}

/// Field 14, utime, proc(5); the second field may hold anything but ends with the last `)`.
fn user_ticks(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(11)?.parse().ok()
}

/// The value of a metric without labels, in the text format.
fn value(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| {
        let (found, value) = line.split_once(' ')?;
        (found == name).then(|| value.parse().ok())?
    })
}

fn get(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A child that is ended with its value.
struct Program {
    name: &'static str,
    log: PathBuf,
    child: Child,
}

impl Program {
    fn start(name: &'static str, mut command: Command, directory: &Path) -> Result<Self> {
        let log = directory.join(name);
        let output = File::create(&log)?;
        let errors = output.try_clone()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        Ok(Self { name, log, child })
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}):\n{}", self.name, self.log());
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && matches!(self.child.try_wait(), Ok(None))
        {
            let _ = kill_process(pid, Signal::TERM);
            let end = Instant::now() + END_WITHIN;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
                thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_read_by_its_whole_name() {
        let text = "# HELP a b\ndavy_agent_threads_max 9\ndavy_agent_threads 7\nx{y=\"z\"} 1\n";
        assert_eq!(value(text, "davy_agent_threads"), Some(7.0));
        assert_eq!(value(text, "davy_agent"), None);
    }

    #[test]
    fn user_time_is_the_fourteenth_field() {
        let stat = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 1234 99 0 0 20 0";
        assert_eq!(user_ticks(stat), Some(1234.0));
        assert_eq!(user_ticks("12 (a) S 1"), None);
    }
}
