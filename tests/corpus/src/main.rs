//! `davy-corpus`: makes and scores the corpus. `cargo xtask corpus` builds and runs it.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use davy_corpus::{page, record, recording::Recording, recordings_dir, report, score::judge};

/// Records what programs look like to Davy, and scores how often Davy is wrong about them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the catalogue's programs as trials and write their recordings. Needs root
    Record {
        /// Directory with davy-agent and the davy-* loads; usually where this program is
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
        /// Only these recordings
        #[arg(long, value_name = "NAME", num_args = 1..)]
        only: Vec<String>,
        /// Only recordings that are not there yet
        #[arg(long)]
        missing: bool,
        /// Trials at a time
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = 1..=64)]
        jobs: i64,
    },
    /// Judge every recording anew and write the tables of docs/detection.md
    Score {
        /// Write nothing; fail if the tables are not what would be written
        #[arg(long)]
        check: bool,
        /// Make today's verdicts those that the recordings are held to: after a change of the rule that is meant
        #[arg(long, conflicts_with = "check")]
        accept: bool,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Record {
            programs,
            only,
            missing,
            jobs,
        } => {
            let programs = match programs {
                Some(programs) => programs,
                None => std::env::current_exe()?
                    .parent()
                    .context("this program has no directory")?
                    .to_owned(),
            };
            record::run(&record::Options {
                programs,
                only,
                missing,
                jobs: usize::try_from(jobs)?,
            })
        }
        Command::Score { check, accept } => {
            if accept {
                self::accept()?;
            }
            score(check)
        }
    }
}

/// Writes today's verdicts into the recordings.
fn accept() -> Result<()> {
    for mut recording in Recording::read_all()? {
        let verdict = judge(&recording.document()?).at_end.level;
        if recording.verdict != verdict {
            let name = &recording.entry.name;
            eprintln!("{name}: {} becomes {verdict}", recording.verdict);
            let path = recordings_dir().join(format!("{name}.json"));
            recording.verdict = verdict;
            fs::write(path, recording.text()?).context("a recording")?;
        }
    }
    Ok(())
}

fn score(check: bool) -> Result<()> {
    let scored = report::score(&Recording::read_all()?)?;
    let tables = report::tables(&scored);
    let path = page();
    let before = fs::read_to_string(&path).context("docs/detection.md")?;
    let after = report::put(&before, &tables)?;
    ensure!(
        !check || before == after,
        "docs/detection.md is not what the recordings give: cargo xtask corpus score"
    );
    if before != after {
        fs::write(&path, after).context("docs/detection.md")?;
    }
    println!("{tables}");
    Ok(())
}
