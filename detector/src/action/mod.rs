//! Actions: from the outbox of an account's record to the provider's control plane.
//!
//! - [`driver`] — what carries an order there.
//! - [`dry_run`] — the default: records what it would have asked.
//! - [`power_control`] — gRPC.
//! - [`webhook`] — signed JSON.
//! - [`config`] — which of them.

pub mod config;
pub mod driver;
pub mod dry_run;
pub mod power_control;
pub mod webhook;
