//! The committed recordings, fed to today's tests and today's rule: no change of code changes a verdict unnoticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::LazyLock,
};

use davy_corpus::{
    catalogue::{Catalogue, Label},
    page,
    recording::{BYTES_MAX, Recording},
    report,
    score::Scored,
};
use davy_evidence::Level;

static RECORDINGS: LazyLock<Vec<Recording>> =
    LazyLock::new(|| Recording::read_all().unwrap_or_else(|error| panic!("{error:#}")));
static SCORED: LazyLock<Vec<Scored>> =
    LazyLock::new(|| report::score(&RECORDINGS).unwrap_or_else(|error| panic!("{error:#}")));

#[test]
fn every_verdict_is_the_one_committed() {
    let changed: Vec<_> = RECORDINGS
        .iter()
        .zip(&*SCORED)
        .filter(|(recording, scored)| recording.verdict != scored.outcome.at_end.level)
        .map(|(recording, scored)| {
            let now = scored.outcome.at_end.level;
            format!("{}: {} → {now}", recording.entry.name, recording.verdict)
        })
        .collect();
    assert!(
        changed.is_empty(),
        "if that is meant, say so in the change and record anew: {changed:#?}"
    );
}

#[test]
fn nothing_honest_is_ever_mining() {
    let wrong: Vec<_> = SCORED
        .iter()
        .filter(|s| s.entry.label != Label::Mining)
        .filter(|s| s.outcome.highest.max(s.outcome.highest_as_one_vcpu) == Level::Mining)
        .map(|s| &s.entry.name)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn the_corpus_is_as_large_as_it_says() {
    let count = |label| SCORED.iter().filter(|s| s.is(None, label)).count();
    assert!(count(Label::Mining) >= 20, "{}", count(Label::Mining));
    assert!(count(Label::Honest) >= 60, "{}", count(Label::Honest));
    assert!(count(Label::LookAlike) >= 10, "{}", count(Label::LookAlike));
}

#[test]
fn the_sets_share_no_program() {
    let mut sets = BTreeMap::new();
    for recording in &*RECORDINGS {
        let entry = &recording.entry;
        let set = sets.entry(&entry.program).or_insert(entry.set);
        assert_eq!(*set, entry.set, "{}", entry.program);
    }
}

#[test]
fn the_recordings_are_those_of_the_catalogue() {
    let catalogue = Catalogue::read().unwrap();
    for entry in &catalogue.recordings {
        let recording = RECORDINGS.iter().find(|r| r.entry.name == entry.name);
        let recorded = recording.map(|recording| &recording.entry);
        assert_eq!(recorded, Some(entry), "record it: {}", entry.name);
    }
    let names: BTreeSet<_> = catalogue.recordings.iter().map(|e| &e.name).collect();
    for recording in &*RECORDINGS {
        let name = &recording.entry.name;
        assert!(names.contains(name), "{name} is not in programs.toml");
    }
}

#[test]
fn recordings_are_small_complete_and_as_they_were_written() {
    for recording in &*RECORDINGS {
        let name = &recording.entry.name;
        let path = davy_corpus::recordings_dir().join(format!("{name}.json"));
        let text = fs::read_to_string(path).unwrap();
        assert!(text.len() <= BYTES_MAX, "{name}: {} bytes", text.len());
        assert_eq!(text, recording.text().unwrap(), "{name}");
        let document = recording.document().unwrap();
        assert!(document.trace_complete, "{name}");
        assert!(!document.machine.cpu_model.is_empty(), "{name}");
        assert!(!document.machine.kernel_release.is_empty(), "{name}");
    }
}

#[test]
fn the_tables_are_those_of_the_recordings() {
    let before = fs::read_to_string(page()).unwrap();
    let after = report::put(&before, &report::tables(&SCORED)).unwrap();
    assert!(
        before == after,
        "docs/detection.md is not what the recordings give: cargo xtask corpus score"
    );
}
