//! Actions: from the outbox of an account's record to the provider's control plane.
//!
//! - [`driver`] — what carries an order there.
//! - [`dry_run`] — the default: records what it would have asked.

pub mod driver;
pub mod dry_run;
