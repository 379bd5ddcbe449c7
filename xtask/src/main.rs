//! `cargo xtask`: everything a developer or a build machine does with this repository.
//!
//! | command | does |
//! |---|---|
//! | `doctor` | says what this machine lacks and the one command that mends each lack |
//! | `setup` | installs what is missing |
//! | `build` | builds every program |
//! | `test` | runs every test this machine can run and says plainly what it could not run and why |
//! | `demo` | runs the whole system on real workloads |
//! | `corpus` | records what programs look like to Davy, and scores how often it is wrong |
//! | `bench` | measures what Davy costs on this machine |
//!
//! Needs nothing but cargo to build: no crate of this workspace and no system library, so that it
//! works on a bare machine.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod corpus;
mod demo;
mod doctor;
mod facts;
mod setup;
mod shell;
mod source;
mod suite;
mod test;
mod tidy;
mod vm;

/// Builds, tests and demonstrates Davy.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what this machine lacks, and the one command that mends each lack
    Doctor(doctor::Arguments),
    /// Install what is missing: Debian packages, rust-src, bpf-linker
    Setup(setup::Arguments),
    /// Build every program
    Build(build::Arguments),
    /// Run every test this machine can run; say plainly what could not run and why
    Test(test::Arguments),
    /// Run the whole system on real workloads and show what Davy sees
    Demo(demo::Arguments),
    /// Record what programs look like to Davy, and score how often it is wrong about them
    Corpus(corpus::Arguments),
    /// Measure what Davy costs on this machine
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Build(arguments) => build::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Corpus(arguments) => corpus::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
