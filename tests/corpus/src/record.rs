//! Makes recordings: each entry of the catalogue runs as a real `davy-agent trial`, in a directory of its own that is
//! removed afterwards. Every input is generated; nothing is downloaded.
//!
//! Several trials may run at a time: real machines are busy, too. Each loads its own kernel half.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use davy_agent::trial::document::Document;

use crate::{
    catalogue::{Catalogue, Entry},
    recording::Recording,
};

/// A command that uses less CPU time than this does not do what it is to.
const CPU_SECONDS_MIN: f64 = 0.5;

/// What is to be recorded.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where `davy-agent` and the `davy-*` loads are.
    pub programs: PathBuf,
    /// Only recordings of these names; empty: all.
    pub only: Vec<String>,
    /// Only recordings that are not there yet.
    pub missing: bool,
    /// Trials at a time.
    pub jobs: usize,
}

/// Makes the recordings; says on standard error how far it is.
///
/// # Errors
/// If an input cannot be made, or some recordings could not (all others are there then).
pub fn run(options: &Options) -> Result<()> {
    let catalogue = Catalogue::read()?;
    let entries = select(&catalogue, options)?;
    let recordings = crate::recordings_dir();
    fs::create_dir_all(&recordings)
        .with_context(|| format!("cannot make {}", recordings.display()))?;
    let scratch = tempfile::Builder::new()
        .prefix("davy-corpus.")
        .tempdir()
        .context("cannot make a temporary directory")?;
    make_inputs(&catalogue, &entries, scratch.path(), &options.programs)?;

    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = record(entry, scratch.path(), &options.programs);
                    let nth = done.fetch_add(1, Ordering::Relaxed) + 1;
                    let words = match outcome {
                        Ok(words) => words,
                        Err(error) => {
                            if let Ok(mut failures) = failures.lock() {
                                failures.push(entry.name.clone());
                            }
                            format!("FAILED: {error:#}")
                        }
                    };
                    eprintln!("[{nth}/{}] {}: {words}", entries.len(), entry.name);
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    ensure!(
        failures.is_empty(),
        "{} of {} recordings failed: {}; why is said above",
        failures.len(),
        entries.len(),
        failures.join(" ")
    );
    Ok(())
}

fn select<'a>(catalogue: &'a Catalogue, options: &Options) -> Result<Vec<&'a Entry>> {
    for name in &options.only {
        ensure!(
            catalogue.recordings.iter().any(|entry| entry.name == *name),
            "programs.toml has no recording `{name}`"
        );
    }
    let wanted = |entry: &&Entry| {
        (options.only.is_empty() || options.only.contains(&entry.name))
            && !(options.missing && path(entry).exists())
    };
    Ok(catalogue.recordings.iter().filter(wanted).collect())
}

fn path(entry: &Entry) -> PathBuf {
    crate::recordings_dir().join(format!("{}.json", entry.name))
}

/// Makes the input files that the entries name.
fn make_inputs(
    catalogue: &Catalogue,
    entries: &[&Entry],
    scratch: &Path,
    programs: &Path,
) -> Result<()> {
    for (name, command) in &catalogue.inputs {
        if !entries.iter().any(|entry| entry.command.contains(name)) {
            continue;
        }
        eprintln!("Making the input {name}");
        let output = shell(command, scratch, scratch, programs)?
            .env("OUT", scratch.join(name))
            .output()
            .with_context(|| format!("cannot start the command for the input {name}"))?;
        if !output.status.success() {
            bail!(
                "the command for the input {name} failed ({}): {}",
                output.status,
                tail(&output.stderr)
            );
        }
    }
    Ok(())
}

fn shell(command: &str, dir: &Path, inputs: &Path, programs: &Path) -> Result<Command> {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(dir)
        .env("IN", inputs)
        .env("PATH", search_path(programs)?)
        .stdin(Stdio::null());
    Ok(shell)
}

/// The loads first, then what is there already, then Debian's games.
fn search_path(programs: &Path) -> Result<OsString> {
    let present = env::var_os("PATH").unwrap_or_default();
    let dirs = [programs.to_owned()]
        .into_iter()
        .chain(env::split_paths(&present))
        .chain([PathBuf::from("/usr/games"), PathBuf::from("/usr/sbin")]);
    env::join_paths(dirs).context("a directory's name has a colon")
}

/// The end of what a program said.
fn tail(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// Makes one recording; what is to be said of it.
fn record(entry: &Entry, inputs: &Path, programs: &Path) -> Result<String> {
    let versions = versions(entry)?;
    let dir = tempfile::Builder::new()
        .prefix("davy-corpus-run.")
        .tempdir()
        .context("cannot make a temporary directory")?;
    let said = dir.path().join("output");
    let output = Command::new(programs.join("davy-agent"))
        .args(["trial", "--json", "--seconds", &entry.seconds.to_string()])
        .arg("--output")
        .arg(&said)
        .args(["--", "sh", "-c", &entry.command])
        .current_dir(dir.path())
        .env("IN", inputs)
        .env("PATH", search_path(programs)?)
        .stdin(Stdio::null())
        .output()
        .context("cannot start davy-agent")?;
    ensure!(
        output.status.success(),
        "the trial failed: {}",
        tail(&output.stderr)
    );
    let document: Document =
        serde_json::from_slice(&output.stdout).context("the trial's document")?;
    let words = || tail(&fs::read(&said).unwrap_or_default());
    ensure!(
        document.cpu_seconds >= CPU_SECONDS_MIN,
        "it used only {:.1} s of CPU time; the command said: {}",
        document.cpu_seconds,
        words()
    );
    let recording = Recording::new(entry.clone(), versions, &document)?;
    ensure!(
        recording.verdict == document.verdict,
        "the trial said {}, its packed trace {}: the trace does not fit a recording",
        document.verdict,
        recording.verdict
    );
    let (path, text) = (path(entry), recording.text()?);
    fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(format!(
        "{}{} ({}), {:.1} s of CPU time, {} samples, {} kB",
        recording.verdict,
        if document.enough_samples {
            ""
        } else {
            ", too few samples"
        },
        entry.label,
        document.cpu_seconds,
        document.samples,
        text.len() / 1000
    ))
}

/// Versions of the entry's packages.
fn versions(entry: &Entry) -> Result<BTreeMap<String, String>> {
    entry
        .packages
        .iter()
        .map(|package| {
            let output = Command::new("dpkg-query")
                .args(["-W", "-f", "${Version}", package])
                .output()
                .context("cannot start dpkg-query")?;
            ensure!(
                output.status.success(),
                "the package {package} is missing: apt-get install {package}"
            );
            let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            Ok((package.clone(), version))
        })
        .collect()
}
