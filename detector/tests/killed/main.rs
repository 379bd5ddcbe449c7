//! The detector's program is killed at every step of releasing an action, and started again on the same records: nothing is lost,
//! nothing is doubled.
//!
//! The program, its database and the wire are the real ones. The provider's side is in the test's process, so it outlives the
//! detector and knows what really arrived. Killing is SIGKILL, by the program itself at a fault point (`engine::fault`) or by the
//! test; a fault point that is never passed fails the test. What is waited for is a state, never a time; the rules' own times are
//! as short as the settings let them be.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod again;
mod cases;
mod people;
#[expect(dead_code, reason = "shared with the tests of the store")]
#[path = "../store/place.rs"]
mod place;
mod program;
mod provider;
mod replicas;
mod safeties;
mod silence;
#[expect(dead_code, reason = "shared with the tests of a running detector")]
#[path = "../detector/support.rs"]
mod support;
mod taking;
mod undoing;
mod world;
