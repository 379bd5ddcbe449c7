//! A running detector, asked over its real interfaces: gRPC and HTTP on loopback, SQLite files on disk.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod blind;
mod cases;
mod deciding;
mod ingest;
mod intake;
mod keeping;
mod people;
mod program;
mod reload;
mod replay;
mod support;
