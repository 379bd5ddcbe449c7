//! The demo's child processes: each dies with the demo, however the demo ends.
//!
//! They are started through `setpriv --pdeathsig` (util-linux), so the kernel kills them should the demo be
//! killed, and in their own process groups, so that Ctrl-C reaches the demo alone, which then ends them.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::shell;

/// How long a program may take to end by itself when asked to.
const END_WITHIN: Duration = Duration::from_secs(3);

/// How long a server may take to listen.
const LISTEN_WITHIN: Duration = Duration::from_secs(20);

/// Lines of a program's log shown when it failed.
const LOG_LINES_MAX: usize = 20;

/// Enters the control group whose `cgroup.procs` is `$0`, and becomes the command.
const ENTER_GROUP: &str = r#"echo $$ > "$0" && exec "$@""#;

/// A running child with its log.
#[derive(Debug)]
pub struct Program {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Program {
    /// Starts `words` under `name`, its output in `<dir>/<name>.log`, in `group` if one is given.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(name: &str, words: &[&str], group: Option<&Path>, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let output =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let errors = output.try_clone().context("cannot share a log")?;
        let mut command = shell::command("setpriv")?;
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(group) = group {
            command
                .args(["sh", "-c", ENTER_GROUP])
                .arg(group.join("cgroup.procs"));
        }
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            log,
            child,
        })
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// If it has ended: the end of its log is part of the message.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self
            .child
            .try_wait()
            .context("cannot ask for a child's state")?
        {
            bail!(
                "{} ended early ({status}); the end of its log:\n{}",
                self.name,
                self.log_end()
            );
        }
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_end(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n")
    }

    /// Waits until it listens.
    ///
    /// # Errors
    /// If it ends, or does not listen in time.
    pub fn wait_for(&mut self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + LISTEN_WITHIN;
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            self.check()?;
            if Instant::now() > deadline {
                bail!(
                    "{} does not listen on {address} after {} s; the end of its log:\n{}",
                    self.name,
                    LISTEN_WITHIN.as_secs(),
                    self.log_end()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
        if ended(&mut self.child) {
            return;
        }
        // Not reaped yet, so the id is still this child's.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + END_WITHIN;
        while !ended(&mut self.child) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A loopback address nobody listens on.
///
/// # Errors
/// If the machine has no free port.
pub fn free_address() -> Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .context("cannot find a free port on 127.0.0.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ended_is_reported_with_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let words = ["sh", "-c", "echo no luck; exit 3"];
        let mut program = Program::start("gambler", &words, None, dir.path()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let error = loop {
            if let Err(error) = program.check() {
                break error.to_string();
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(10));
        };
        assert!(error.contains("gambler ended early"), "{error}");
        assert!(error.contains("no luck"), "{error}");
    }

    #[test]
    fn a_program_dies_with_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::start("sleeper", &["sleep", "600"], None, dir.path()).unwrap();
        let process = PathBuf::from(format!("/proc/{}", program.child.id()));
        assert!(process.exists());
        drop(program);
        assert!(!process.exists());
    }
}
