//! A trial's command: started so that its whole process tree is watched from birth, and ended with the trial.
//!
//! It has a process group of its own, no input (`/dev/null`), and its output goes where the trial says. Its tree
//! is ended by its group, and what left the group by the threads that the kernel half still sees in the tenant.
//! Limit: what left the group while no slot was free is not found.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use davy_abi::{FLAG_ENDED, TENANT_GONE, TenantIndex};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};

use crate::{
    kernel::{Kernel, Reading},
    observe::Observer,
    source::ThreadSource,
    tenant::discover::Processes,
    window::ThreadKey,
};

/// How long the tree has to end by itself after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);
/// How long the kernel has to end it after SIGKILL.
const KILL: Duration = Duration::from_secs(5);
/// Between two looks whether it has ended.
const POLL: Duration = Duration::from_millis(20);

/// A command that runs; killed on drop if it was not ended before.
#[derive(Debug)]
pub struct Running {
    child: Child,
    group: Pid,
    reaped: bool,
}

/// How a command's tree ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// The command's own status; `None` if it could not be ended.
    pub status: Option<ExitStatus>,
    /// Threads that could not be ended.
    pub left: u64,
}

impl Running {
    /// Starts `argv` in `tenant`; its output goes to `output`, or else to standard error.
    ///
    /// # Errors
    /// If it cannot be run, in a sentence that says what to do.
    pub fn start(
        kernel: &mut Kernel,
        tenant: TenantIndex,
        argv: &[OsString],
        output: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let Some((program, arguments)) = argv.split_first() else {
            bail!("there is no command: give one behind `--`");
        };
        let (stdout, stderr) = outputs(output)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0);
        // What the starting thread starts is watched; it is let go before it does anything else, and no look in
        // between counts it.
        let child = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let watched = kernel.watch_this_thread(tenant)?;
                    if watched.refused > 0 {
                        bail!("no slot is free to watch the command");
                    }
                    let child = command.spawn();
                    let_go_of_this_thread(kernel, tenant);
                    child.map_err(|error| not_started(&program.to_string_lossy(), &error))
                })
                .join()
        });
        let Ok(child) = child else {
            bail!("the thread that starts the command panicked");
        };
        let child = child?;
        let group = Pid::from_child(&child);
        Ok(Self {
            child,
            group,
            reaped: false,
        })
    }

    /// The command's process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the command itself has exited. It stays a zombie until [`Running::end`], so that its id, which
    /// is its group's too, means nobody else.
    #[must_use]
    pub fn exited(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.reaped || !matches!(waitid(WaitId::Pid(self.group), options), Ok(None))
    }

    /// Ends the whole tree: SIGTERM, and SIGKILL to what is left after 2 s. `unwatched`: there may be threads
    /// that have no slot, so nothing tells when the last one is gone.
    pub fn end<P: Processes>(
        &mut self,
        observer: &mut Observer<Kernel, P>,
        tenant: TenantIndex,
        unwatched: bool,
    ) -> Ending {
        let settled = |running: &Self, observer: &Observer<Kernel, P>| {
            running.exited() && live(observer.readings(), tenant).is_empty()
        };
        observer.look();
        if !settled(self, observer) || unwatched {
            for signal in [Signal::TERM, Signal::CONT] {
                self.signal(observer.source(), tenant, signal);
            }
            let end = Instant::now() + GRACE;
            while Instant::now() < end && (!settled(self, observer) || unwatched) {
                std::thread::sleep(POLL);
                observer.look();
            }
        }
        let end = Instant::now() + KILL;
        loop {
            self.signal(observer.source(), tenant, Signal::KILL);
            observer.look();
            if settled(self, observer) || Instant::now() >= end {
                break;
            }
            std::thread::sleep(POLL);
        }
        let left: usize = live(observer.readings(), tenant)
            .values()
            .map(Vec::len)
            .sum();
        let status = if self.exited() {
            self.reaped = true;
            self.child.wait().ok()
        } else {
            None
        };
        Ending {
            status,
            left: u64::try_from(left).unwrap_or(u64::MAX),
        }
    }

    fn signal(&self, kernel: &Kernel, tenant: TenantIndex, signal: Signal) {
        // The group may be empty, or a process may be gone: nothing is left to do then.
        if !self.reaped {
            let _ = kill_process_group(self.group, signal);
        }
        let mut readings = Vec::new();
        ThreadSource::readings(kernel, &mut readings);
        let before = live(&readings, tenant);
        let processes: Vec<(u32, OwnedFd)> = before
            .keys()
            .filter_map(|&tgid| Some((tgid, open(tgid)?)))
            .collect();
        // A thread that lives now lived when its process was opened: the id meant that process.
        ThreadSource::readings(kernel, &mut readings);
        let after = live(&readings, tenant);
        for (tgid, process) in processes {
            let threads = after.get(&tgid).map_or(&[][..], Vec::as_slice);
            if before[&tgid].iter().any(|key| threads.contains(key)) {
                let _ = pidfd_send_signal(process.as_fd(), signal);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = kill_process_group(self.group, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

fn open(tgid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(tgid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// The tenant's threads that live, by process; never those of this process.
fn live(readings: &[Reading], tenant: TenantIndex) -> HashMap<u32, Vec<ThreadKey>> {
    let mut processes: HashMap<u32, Vec<ThreadKey>> = HashMap::new();
    for Reading { index, slot } in readings {
        if slot.tenant == tenant
            && slot.flags & FLAG_ENDED == 0
            && slot.tgid > 1
            && slot.tgid != std::process::id()
        {
            processes.entry(slot.tgid).or_default().push(ThreadKey {
                slot: *index,
                tgid: slot.tgid,
                start_boottime_ns: slot.start_boottime_ns,
            });
        }
    }
    processes
}

fn let_go_of_this_thread(kernel: &mut Kernel, tenant: TenantIndex) {
    let tid = rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs();
    let mut readings = Vec::new();
    kernel.readings(&mut readings);
    for Reading { index, slot } in readings {
        if slot.tid == tid && slot.tenant == tenant {
            kernel.assign(index, TENANT_GONE);
        }
    }
}

/// Where the command's output goes: twice the same.
fn outputs(output: Option<&Path>) -> anyhow::Result<(Stdio, Stdio)> {
    let (first, second) = match output {
        Some(path) => {
            let context = || format!("cannot write the command's output to {}", path.display());
            let file = File::create(path).with_context(context)?;
            (
                OwnedFd::from(file.try_clone().with_context(context)?),
                OwnedFd::from(file),
            )
        }
        None => {
            let duplicate = || {
                let duplicate = io::stderr().as_fd().try_clone_to_owned();
                duplicate.context("cannot duplicate standard error for the command")
            };
            (duplicate()?, duplicate()?)
        }
    };
    Ok((first.into(), second.into()))
}

fn not_started(program: &str, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!(
            "cannot run {program:?}: there is no such program (or the interpreter it names is missing); \
             give its path, or one that is found in PATH"
        ),
        io::ErrorKind::PermissionDenied => anyhow::anyhow!(
            "cannot run {program:?}: it is not executable; give a program, or a script with its interpreter \
             (`sh script`)"
        ),
        _ => anyhow::anyhow!("cannot run {program:?}: {error}"),
    }
}
