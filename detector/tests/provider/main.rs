//! The provider's side over real sockets: what really arrives there, and what Davy makes of every kind of answer.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod control;
mod directory;
mod messages;
mod support;
mod webhook;
