//! The corpus: what real programs, mining and honest, look like to Davy, and how often Davy is wrong about them.
//!
//! - `programs.toml` names the recordings to be made ([`catalogue`]).
//! - [`record`] runs each as a `davy-agent trial` and writes `recordings/NAME.json` ([`recording`]): counts and the
//!   scheduler's books, never register contents.
//! - [`score`] feeds every recording to today's tests and today's rule again; [`report`] writes what comes out as the
//!   tables of `docs/detection.md`.
//!
//! `cargo xtask corpus record|score` runs this crate's program. Needs root to record, nothing to score.

use std::path::{Path, PathBuf};

pub mod catalogue;
pub mod packages;
pub mod record;
pub mod recording;
pub mod report;
pub mod score;

/// This crate's directory.
#[must_use]
pub fn dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the recordings are.
#[must_use]
pub fn recordings_dir() -> PathBuf {
    dir().join("recordings")
}

/// The page that has the tables.
#[must_use]
pub fn page() -> PathBuf {
    dir().join("../../docs/detection.md")
}
