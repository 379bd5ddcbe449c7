//! Looks for Debian's `librandomx-dev`, which `davy-randomx` links against, and says what to do if it is missing.

use std::path::Path;

/// Where the package `librandomx-dev` installs the header.
const HEADER: &str = "/usr/include/randomx.h";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={HEADER}");
    if !Path::new(HEADER).exists() {
        println!("cargo::error={HEADER} is missing; install librandomx-dev: cargo xtask setup");
    }
}
