//! Accounts: where facts come from, and whose a droplet is.
//!
//! - [`directory`] — the provider's `AccountDirectory`, asked when a decision needs facts.
//! - [`intake`], [`webhook`] — facts that are pushed, and what customers say.
//! - [`sighting`] — from a host's window to what it says of each account's droplets.
//! - [`attribute`] — whose they are.

pub mod attribute;
pub mod directory;
pub mod intake;
pub mod sighting;
pub mod webhook;
