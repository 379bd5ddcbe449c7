//! The central detector: takes the windows of many hosts' agents, decides each tenant's verdict by itself, keeps
//! current evidence and a bounded history, and serves both.
//!
//! - [`ingest`] — `Telemetry.Report`: validation, sequences, one live agent per host.
//! - [`evidence`] — the verdict, since when it stands, and what would be done. Nothing acts.
//! - [`store`] — what is kept, in SQLite.
//! - [`inventory`] — `Inventory`, for `davyctl` and tools.
//! - [`metrics`] — what `/metrics` says.
//! - [`server`] — all of it, started and stopped.
//! - [`config`] — the configuration, none of which is needed.
//! - [`case`] — `Cases`, [`automation`] — `Automation`, [`safety_service`] — `SafetyService`: people's side of decisions.
//! - [`people`] — who calls: tokens of people and services. Agents have none yet: it listens on loopback unless told otherwise.

use std::time::{SystemTime, UNIX_EPOCH};

pub mod account;
pub mod action;
pub mod automation;
pub mod case;
pub mod config;
pub mod desk;
pub mod engine;
pub mod evidence;
pub mod ingest;
pub mod inventory;
pub mod metrics;
pub mod people;
pub mod policy;
pub mod replay;
pub mod safety_service;
pub mod server;
pub mod signature;
pub mod store;
mod upkeep;

pub use config::Config;
pub use server::Server;

/// The detector's clock, ns since the Unix epoch. Only the shell asks it; what decides gets the time as an argument.
fn unix_now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
