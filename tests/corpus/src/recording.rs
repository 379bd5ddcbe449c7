//! A recording: a trial's document, its feature trace packed, with what is needed to make it again.
//!
//! A thread's entry of the trace is a row of numbers: thread, CPU time in ns, looks, samples by rounding mode 0 to 3, random ones by
//! rounding mode 0 to 3, 1 if it is the thread's last, samples of general registers, random ones of these, looks at vector registers after involuntary
//! switches, those of them that found a sample outside mode 0. Trailing zeros are left out. A trace too long for a recording is packed
//! further ([`Recording::shorten`]): entries of a thread within a window are added up, then the last windows go.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use davy_agent::trial::document::{Document, Part, Window};
use davy_evidence::Level;
use serde::{Deserialize, Serialize};

use crate::catalogue::Entry;

/// Longest file, bytes.
pub const BYTES_MAX: usize = 60_000;

/// One recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// What was to be recorded, and how.
    pub entry: Entry,
    /// Versions of the entry's packages, and of the agent.
    pub versions: BTreeMap<String, String>,
    /// What today's tests make of the trace: a test fails if that changes.
    pub verdict: Level,
    /// The trial's document without its trace, and without its command, which the entry has.
    pub trial: serde_json::Map<String, serde_json::Value>,
    /// Windows that were left out for length.
    #[serde(default)]
    pub windows_cut: usize,
    /// The trace.
    pub windows: Vec<PackedWindow>,
}

/// Span in ns; threads; CPU time and wait for a CPU, ns; voluntary and involuntary switches; verdict; rows.
pub type PackedWindow = (u64, u32, u64, u64, u64, u64, Level, Vec<Vec<u64>>);

impl Recording {
    /// Packs a trial.
    ///
    /// # Errors
    /// If the trial's trace is not complete, or it cannot be made small enough.
    pub fn new(
        entry: Entry,
        versions: BTreeMap<String, String>,
        document: &Document,
    ) -> Result<Self> {
        ensure!(
            document.trace_complete,
            "the trial's trace is not complete: record for a shorter time"
        );
        let value = serde_json::to_value(Document {
            windows: Vec::new(),
            ..document.clone()
        })?;
        let serde_json::Value::Object(mut trial) = value else {
            anyhow::bail!("the trial's document is no object");
        };
        trial.remove("windows");
        trial.remove("command");
        let mut recording = Self {
            entry,
            versions,
            verdict: document.verdict,
            trial,
            windows_cut: 0,
            windows: document.windows.iter().map(pack).collect(),
        };
        recording.shorten()?;
        recording.verdict = crate::score::judge(&recording.document()?).at_end.level;
        Ok(recording)
    }

    /// The trial's document again, with the trace.
    ///
    /// # Errors
    /// If the recording is malformed.
    pub fn document(&self) -> Result<Document> {
        let name = &self.entry.name;
        let mut value = self.trial.clone();
        value.insert(
            "command".to_owned(),
            serde_json::json!(["sh", "-c", self.entry.command]),
        );
        value.insert("windows".to_owned(), serde_json::json!([]));
        let mut document: Document = serde_json::from_value(value.into())
            .with_context(|| format!("recording {name}: the trial"))?;
        document.windows = self.windows.iter().map(unpack).collect();
        Ok(document)
    }

    /// Makes the trace fit, if it does not.
    fn shorten(&mut self) -> Result<()> {
        if self.text()?.len() > BYTES_MAX {
            for window in &mut self.windows {
                merge(&mut window.7);
            }
        }
        while self.text()?.len() > BYTES_MAX {
            ensure!(
                self.windows.pop().is_some(),
                "the recording is longer than {BYTES_MAX} bytes without any trace"
            );
            self.windows_cut += 1;
        }
        Ok(())
    }

    /// As it is stored: a line per window.
    ///
    /// # Errors
    /// If it cannot be put into JSON.
    pub fn text(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(&Self {
            windows: Vec::new(),
            ..self.clone()
        })?;
        ensure!(text.ends_with("[]\n}"), "the trace is not the last field");
        text.truncate(text.len() - "]\n}".len());
        for (at, window) in self.windows.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(text, "{comma}\n{}", serde_json::to_string(window)?)?;
        }
        text.push_str("\n]}\n");
        Ok(text)
    }

    /// Reads one.
    ///
    /// # Errors
    /// If it is not there or malformed.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("malformed: {}", path.display()))
    }

    /// Reads all, by name.
    ///
    /// # Errors
    /// If the directory cannot be read, or one is malformed.
    pub fn read_all() -> Result<Vec<Self>> {
        let dir = crate::recordings_dir();
        let mut paths = Vec::new();
        for file in
            std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?
        {
            let path = file?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                paths.push(path);
            }
        }
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }
}

fn pack(window: &Window) -> PackedWindow {
    (
        window.span_ns,
        window.threads,
        window.on_cpu_ns,
        window.run_queue_wait_ns,
        window.voluntary_switches,
        window.involuntary_switches,
        window.verdict,
        window.by_thread.iter().map(row).collect(),
    )
}

fn row(part: &Part) -> Vec<u64> {
    let mut row = vec![u64::from(part.thread), part.on_cpu_ns, part.looks];
    row.extend(part.modes.iter().chain(&part.random));
    row.push(u64::from(part.ended));
    row.extend([
        part.general_samples,
        part.general_random,
        part.involuntary_looks,
        part.involuntary_directed,
    ]);
    let length = row.iter().rposition(|&n| n != 0).map_or(1, |at| at + 1);
    row.truncate(length);
    row
}

/// Adds up each thread's entries of a window; one that told nothing but its CPU time goes to the thread's next.
fn merge(rows: &mut Vec<Vec<u64>>) {
    let mut merged: Vec<Vec<u64>> = Vec::new();
    let mut at_of = BTreeMap::new();
    for row in rows.drain(..) {
        let Some(&thread) = row.first() else { continue };
        let at = *at_of.entry(thread).or_insert_with(|| {
            merged.push(vec![thread]);
            merged.len() - 1
        });
        let sum = &mut merged[at];
        sum.resize(sum.len().max(row.len()), 0);
        for (sum, n) in sum.iter_mut().zip(&row).skip(1) {
            *sum = sum.saturating_add(*n);
        }
    }
    *rows = merged;
}

fn unpack(packed: &PackedWindow) -> Window {
    let (span_ns, threads, on_cpu_ns, wait_ns, voluntary, involuntary, verdict, rows) = packed;
    Window {
        span_ns: *span_ns,
        threads: *threads,
        on_cpu_ns: *on_cpu_ns,
        run_queue_wait_ns: *wait_ns,
        voluntary_switches: *voluntary,
        involuntary_switches: *involuntary,
        verdict: *verdict,
        by_thread: rows.iter().map(|row| part(row)).collect(),
    }
}

fn part(row: &[u64]) -> Part {
    let n = |at: usize| row.get(at).copied().unwrap_or(0);
    Part {
        thread: u32::try_from(n(0)).unwrap_or(u32::MAX),
        on_cpu_ns: n(1),
        looks: n(2),
        modes: [n(3), n(4), n(5), n(6)],
        random: [n(7), n(8), n(9), n(10)],
        general_samples: n(12),
        general_random: n(13),
        involuntary_looks: n(14),
        involuntary_directed: n(15),
        vcpu: false,
        confidential: false,
        ended: n(11) != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_packing() {
        let entry = Part {
            thread: 3,
            on_cpu_ns: 5_000_000,
            looks: 9,
            modes: [1, 0, 2, 0],
            random: [0, 0, 2, 0],
            general_samples: 4,
            general_random: 3,
            involuntary_looks: 6,
            involuntary_directed: 1,
            vcpu: false,
            confidential: false,
            ended: true,
        };
        assert_eq!(part(&row(&entry)), entry);
        let quiet = Part {
            random: [0; 4],
            general_samples: 0,
            general_random: 0,
            involuntary_looks: 0,
            involuntary_directed: 0,
            ended: false,
            ..entry
        };
        assert_eq!(row(&quiet), [3, 5_000_000, 9, 1, 0, 2]);
        assert_eq!(part(&row(&quiet)), quiet);
    }

    #[test]
    fn entries_of_a_thread_are_added_up() {
        let mut rows = vec![vec![1, 10, 2, 2], vec![2, 5], vec![1, 10, 1, 0, 1]];
        merge(&mut rows);
        assert_eq!(rows, [vec![1, 20, 3, 2, 1], vec![2, 5]]);
    }
}
