//! The loads, each a process of its own that ends with the one that started it.

use std::{
    io::{self, BufRead as _, BufReader, PipeReader, PipeWriter, Read as _, Write as _, pipe},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use davy_host_tests::pattern::{Registers, Words, content, hold, mxcsr};
use rustix::{
    process::{Signal, set_parent_process_death_signal},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// How many different contents follow each other.
const CONTENTS: usize = 64;

/// Pause of a sleeping thread.
const PAUSE: Duration = Duration::from_millis(100);

/// A load that runs.
pub struct Load {
    child: Child,
}

impl Load {
    /// Starts this program with `arguments` and waits until its work has begun.
    ///
    /// # Errors
    /// If it cannot be started or says why it cannot work.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().context("cannot tell this program's file")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("a load cannot be started")?;
        let output = child.stdout.take();
        let load = Self { child };
        let mut line = String::new();
        BufReader::new(output.context("a load has no output")?).read_line(&mut line)?;
        if line.trim_end() != "ready" {
            bail!("the load {arguments:?} did not start");
        }
        Ok(load)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last CPU this process may run on: the first ones take most interrupts.
///
/// # Errors
/// If the kernel does not say.
pub fn last_cpu() -> Result<CpuSet> {
    let allowed = sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU)
        .rev()
        .find(|&cpu| allowed.is_set(cpu))
        .context("there is no CPU")?;
    let mut set = CpuSet::new();
    set.set(last);
    Ok(set)
}

/// Two threads on one CPU that wake each other through pipes: nearly every switch there is theirs.
///
/// # Errors
/// If the content is unknown, or a pipe or thread cannot be made.
pub fn switching(kind: &str, same: bool) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    sched_setaffinity(None, &last_cpu()?)?;
    let mut words = Words(u64::from(std::process::id()));
    let mut contents = Vec::new();
    for _ in 0..if same { 1 } else { CONTENTS } {
        if kind != "none" {
            contents.push(content(kind, &mut words).context("there is no such content")?);
        }
    }
    let (there, back) = (pipe()?, pipe()?);
    let mine = contents.clone();
    thread::Builder::new().spawn(move || play(&mine, there.0, back.1))?;
    println!("ready");
    let mut first = there.1;
    first.write_all(&[0])?;
    play(&contents, back.0, first)?;
    Ok(())
}

fn play(contents: &[Registers], mut from: PipeReader, mut to: PipeWriter) -> io::Result<()> {
    let mut byte = [0];
    let mut turn = 0;
    loop {
        from.read_exact(&mut byte)?;
        if let Some(registers) = contents.get(turn) {
            hold(registers, mxcsr(0), 1);
            turn = (turn + 1) % contents.len();
        }
        to.write_all(&byte)?;
    }
}

/// Threads that wake ten times a second for a moment.
///
/// # Errors
/// If they cannot be started.
pub fn sleeping(threads: usize) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    for _ in 1..threads {
        thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(sleep)
            .context("a thread cannot be started")?;
    }
    println!("ready");
    sleep()
}

fn sleep() -> ! {
    loop {
        thread::sleep(PAUSE);
    }
}
