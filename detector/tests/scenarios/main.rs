//! Scenarios: what the deciding half does over hours and weeks, from facts, evidence and people's acts to orders.
//!
//! | file | what |
//! |---|---|
//! | `golden` | every scenario of `tests/scenarios` plays to its timeline, kept beside it |
//! | `incident` | the 2019 incident with false sensors: each safety alone, each but one, each taken out of the input |
//! | `mutants` | the incident varied at random, a thousand times, judged by `oracle` |
//! | `oracle` | the safeties stated a second time, from a scenario's text alone |
//! | `again` | every decision that any scenario stored, made again from its JSON, byte for byte |
//! | `schema` | the schema has every event and field that the code takes, and no other |

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod again;
mod golden;
mod incident;
mod mutants;
mod oracle;
mod schema;

use std::path::PathBuf;

use davy_decision::{policy::Policies, settings::Settings};
use davy_detector::replay::{self, world::World};

/// Where the scenarios are.
fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios")
}

/// All scenarios, name and text, sorted.
fn scenarios() -> Vec<(String, String)> {
    let mut all: Vec<_> = (std::fs::read_dir(dir()).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "jsonl"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    all.sort();
    for name in ALWAYS {
        assert!(
            all.iter().any(|(held, _)| held == name),
            "scenario {name} is gone"
        );
    }
    all
}

/// Scenarios that are never to go: the incident as it was and as sensors that err would have it, and what a policy for miners has to tell
/// from miners, or to do with them.
const ALWAYS: [&str; 21] = [
    "incident-2019-load",
    "incident-2019-falsely-mining",
    "miner-new-unpaid",
    "miner-ten-years",
    "stolen-card",
    "node-verifies",
    "interval-lab",
    "kdf-farm",
    "burst-honest",
    "reply-before-release",
    "directory-down",
    "facts-stale",
    "unlock-then-again",
    "hold-expired",
    "flag-while-in-outbox",
    "kill-switch-mid-batch",
    "budget-exhausted",
    "shared-ssh-key",
    "two-who-are-one",
    "another-accounts-evidence",
    "flag-after-the-episode",
];

fn play(name: &str, text: &str) -> World {
    let name = format!("{name}.jsonl");
    let events = replay::parse(&name, text.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    let policies = Policies::shipped().unwrap();
    replay::play(&name, &events, policies, Settings::default())
        .unwrap_or_else(|error| panic!("{error}"))
}
