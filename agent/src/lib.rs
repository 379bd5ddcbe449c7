//! The agent of a hypervisor host: measures from the kernel what each tenant does with its CPUs and whether it
//! computes like a cryptocurrency miner, and streams what it found to the detector.
//!
//! ```text
//! kernel ─ readings ─▶ tenant (whose thread?) ─▶ window (sums) ─▶ evidence (tests) ─▶ observe (messages) ─▶ uplink
//! ```
//!
//! [`kernel`] is the only part with `unsafe` code; [`window`], [`evidence`], [`governor`], [`uplink::queue`] and
//! [`tenant::identity`] are pure. The agent never acts on a guest.

pub mod check;
pub mod cli;
pub mod config;
pub mod error;
pub mod evidence;
pub mod governor;
pub mod kernel;
mod message;
pub mod metrics;
pub mod nudge;
pub mod observe;
pub mod run;
pub mod sensor;
pub mod source;
pub mod tenant;
pub mod trial;
pub mod uplink;
pub mod window;
