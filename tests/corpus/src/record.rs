//! Makes recordings: each entry of the catalogue runs as a real `davy-agent trial`, in a directory of its own that is
//! removed afterwards. Every input is generated; nothing is downloaded.
//!
//! Several trials may run at a time: real machines are busy, too. Each loads its own kernel half. Entries that say `alone` run after all
//! others, one at a time. Packages that are missing are named before anything runs; recordings that could not be made, at the end.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use davy_agent::trial::document::Document;

use crate::{
    catalogue::{Catalogue, Entry},
    packages::{self, Versions},
    recording::Recording,
};

/// A command that uses less CPU time than this does not do what it is to.
const CPU_SECONDS_MIN: f64 = 0.5;

/// What a trial takes beyond its length: loading and removing the kernel half, ending the programs. An estimate, for the time shown only.
const OVERHEAD: Duration = Duration::from_millis(1_500);

/// What is to be recorded.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where `davy-agent` and the `davy-*` loads are.
    pub programs: PathBuf,
    /// Only recordings of these names; empty: all.
    pub only: Vec<String>,
    /// Only recordings that are not there yet, or are of an entry that has changed since.
    pub missing: bool,
    /// Trials at a time.
    pub jobs: usize,
}

/// Makes the recordings; says on standard error how far it is.
///
/// # Errors
/// If a package is missing or an input cannot be made (nothing is recorded then), or some recordings could not (all others are there then).
pub fn run(options: &Options) -> Result<()> {
    let catalogue = Catalogue::read()?;
    let entries = select(&catalogue, options)?;
    let packages = packages::versions_for(&entries)?;
    let recordings = crate::recordings_dir();
    fs::create_dir_all(&recordings)
        .with_context(|| format!("cannot make {}", recordings.display()))?;
    let scratch = tempfile::Builder::new()
        .prefix("davy-corpus.")
        .tempdir()
        .context("cannot make a temporary directory")?;
    make_inputs(&catalogue, &entries, scratch.path(), &options.programs)?;

    let (alone, together): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.alone);
    let jobs = options.jobs.max(1);
    eprintln!(
        "{} recordings, about {} min",
        entries.len(),
        expected(&together, &alone, jobs).as_secs().div_ceil(60)
    );
    let (done, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let make = |entry: &Entry| {
        let outcome = record(entry, &packages, scratch.path(), &options.programs);
        let nth = done.fetch_add(1, Ordering::Relaxed) + 1;
        let words = outcome.unwrap_or_else(|error| {
            let why = format!("{error:#}");
            let words = format!("FAILED: {why}");
            failures
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((entry.name.clone(), why));
            words
        });
        eprintln!("[{nth}/{}] {}: {words}", entries.len(), entry.name);
    };
    in_parallel(&together, jobs, &make);
    in_parallel(&alone, 1, &make);
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    ensure!(failures.is_empty(), "{}", refused(&failures, entries.len()));
    Ok(())
}

/// Calls `each` with every entry, in `jobs` threads.
fn in_parallel(entries: &[&Entry], jobs: usize, each: &(impl Fn(&Entry) + Sync)) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    each(entry);
                }
            });
        }
    });
}

/// How long it will take, the inputs not counted.
fn expected(together: &[&Entry], alone: &[&Entry], jobs: usize) -> Duration {
    let sum = |entries: &[&Entry]| -> Duration {
        let one = |entry: &&Entry| Duration::from_secs(u64::from(entry.seconds)) + OVERHEAD;
        entries.iter().map(one).sum()
    };
    sum(together) / u32::try_from(jobs).unwrap_or(u32::MAX) + sum(alone)
}

/// The last words of a run that could not make every recording.
fn refused(failures: &[(String, String)], all: usize) -> String {
    let lines: Vec<_> = failures
        .iter()
        .map(|(name, why)| format!("\n  {name}: {why}"))
        .collect();
    let names: Vec<_> = failures.iter().map(|(name, _)| name.as_str()).collect();
    format!(
        "{} of {all} recordings failed:{}\nAgain: cargo xtask corpus record --only {}",
        failures.len(),
        lines.concat(),
        names.join(" ")
    )
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
            && !(options.missing && is_recorded(entry))
    };
    Ok(catalogue.recordings.iter().filter(wanted).collect())
}

/// Whether the recording is there, of the entry as it is today.
fn is_recorded(entry: &Entry) -> bool {
    Recording::read(&path(entry)).is_ok_and(|recording| recording.entry == *entry)
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

/// The line in which the shell, or a program like it, says that a program is not there: what would be recorded then is a loop of failures.
fn not_found(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    let says_so = |line: &&str| {
        line.ends_with(": not found")
            || line.contains("command not found")
            || line.contains("is not installed")
    };
    text.lines().find(says_so).map(str::to_owned)
}

/// Makes one recording; what is to be said of it.
fn record(entry: &Entry, installed: &Versions, inputs: &Path, programs: &Path) -> Result<String> {
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
    let said = fs::read(&said).unwrap_or_default();
    let words = || tail(&said);
    if let Some(line) = not_found(&said) {
        bail!("a program of the command is not there: {line}");
    }
    ensure!(
        document.cpu_seconds >= CPU_SECONDS_MIN,
        "it used only {:.1} s of CPU time; the command said: {}",
        document.cpu_seconds,
        words()
    );
    let recording = Recording::new(entry.clone(), packages::of(entry, installed), &document)?;
    ensure!(
        recording.verdict == document.verdict,
        "the trial said {}, its packed trace {}: the trace does not fit a recording",
        document.verdict,
        recording.verdict
    );
    let (path, text) = (path(entry), recording.text()?);
    write_whole(&path, &text)?;
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

/// Writes a file that is there whole or not at all: who is interrupted goes on with `--missing`.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, text).with_context(context)?;
    fs::rename(&unfinished, path).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Label, Set};

    fn entry(name: &str, seconds: u32) -> Entry {
        Entry {
            name: name.to_owned(),
            program: name.to_owned(),
            label: Label::Honest,
            set: Set::Tune,
            command: "true".to_owned(),
            seconds,
            alone: false,
            randomx_percent: None,
            packages: Vec::new(),
        }
    }

    #[test]
    fn every_entry_is_made_once() {
        let entries: Vec<_> = (0..9).map(|n| entry(&n.to_string(), 1)).collect();
        let made = Mutex::new(Vec::new());
        in_parallel(&entries.iter().collect::<Vec<_>>(), 3, &|entry: &Entry| {
            made.lock().unwrap().push(entry.name.clone());
        });
        let mut made = made.into_inner().unwrap();
        made.sort();
        assert_eq!(made, ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
    }

    #[test]
    fn what_runs_alone_takes_its_whole_time() {
        let (a, b) = (entry("a", 20), entry("b", 60));
        let time = expected(&[&a, &a, &a, &a], &[&b], 2);
        assert_eq!(time, Duration::from_secs(2 * 20 + 60) + OVERHEAD * 3);
    }

    #[test]
    fn an_entry_that_changed_is_not_recorded() {
        let catalogue = Catalogue::read().unwrap();
        let recording = Recording::read_all().unwrap().swap_remove(0);
        let before = recording.entry;
        assert!(is_recorded(&before));
        let mut changed = before.clone();
        changed.command.push_str("; true");
        assert!(!is_recorded(&changed));
        let mut unknown = catalogue.recordings[0].clone();
        unknown.name = "no-such-recording".to_owned();
        assert!(!is_recorded(&unknown));
    }

    #[test]
    fn a_failed_run_ends_with_its_reasons() {
        let said = refused(
            &[("a".into(), "no CPU".into()), ("b".into(), "x".into())],
            9,
        );
        assert!(said.starts_with("2 of 9 recordings failed:\n  a: no CPU\n  b: x\n"));
        assert!(said.ends_with("--only a b"), "{said}");
    }

    #[test]
    fn a_program_that_is_not_there_is_told_from_words_of_a_load() {
        let said = |text: &str| not_found(text.as_bytes());
        let line = "sh: 1: no-such-program: not found";
        assert_eq!(said(&format!("a\n{line}\nb")).as_deref(), Some(line));
        assert_eq!(said("ready\n12 hashes\n404 Not Found"), None);
        let real = Command::new("sh")
            .args(["-c", "no-such-program"])
            .output()
            .unwrap();
        assert!(not_found(&real.stderr).is_some());
    }

    #[test]
    fn a_file_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_whole(&path, "old").unwrap();
        write_whole(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
