//! The programs under test as child processes: started with their logs in files, ended by SIGTERM.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::report::{Report, State};

/// A running service; killed when dropped.
#[derive(Debug)]
pub(crate) struct Service {
    name: String,
    child: Child,
}

impl Service {
    /// Starts `program`, its output going to `<logs>/<name>.log`.
    pub(crate) fn start(name: &str, program: &Path, args: &[&str], logs: &Path) -> Result<Self> {
        let path = logs.join(format!("{name}.log"));
        let log = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let child = Command::new(program)
            .args(args)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
        })
    }

    /// How the service ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks the service to end and records whether it did so cleanly.
    pub(crate) async fn end_cleanly(mut self, report: &mut Report) {
        let name = format!("{}-ends-at-sigterm", self.name);
        if let Some(status) = self.ended() {
            report.record(&name, Err(format!("it had ended before, with {status}")));
            return;
        }
        let asked = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
        if !asked {
            report.record(&name, Err("SIGTERM could not be sent".to_owned()));
            return;
        }
        let result = report
            .until(&name, Duration::from_secs(45), async || {
                match self.ended() {
                    None => State::NotYet("still running".to_owned()),
                    Some(status) if status.success() => State::Reached(status.to_string()),
                    Some(status) => State::Wrong(status.to_string()),
                }
            })
            .await;
        report.record(&name, result);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails only for a process that ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
