//! Builds the empty program (`agent-ebpf/src/empty.rs`) for the BPF target, as `agent/build.rs` builds the kernel half.

use std::{env, path::PathBuf, process::Command};

fn main() -> Result<(), String> {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let root = here
        .ancestors()
        .nth(2)
        .ok_or("tests/bench/ lies in no workspace")?;
    let directory = root.join("agent-ebpf");
    for input in ["src/empty.rs", "Cargo.toml", "Cargo.lock"] {
        println!(
            "cargo::rerun-if-changed={}",
            directory.join(input).display()
        );
    }
    let target_dir = out_dir.join("ebpf");
    let mut cargo = Command::new(variable("CARGO")?);
    // What the outer cargo exports describes the outer build; none of it may reach the nested one.
    for (name, _) in env::vars() {
        let foreign = name.starts_with("CARGO_")
            && !matches!(name.as_str(), "CARGO_HOME" | "CARGO_NET_OFFLINE");
        if foreign || name.starts_with("RUSTC") || name == "RUSTFLAGS" {
            cargo.env_remove(name);
        }
    }
    let status = cargo
        .current_dir(&directory)
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Clinker=bpf-linker\x1f-Clink-arg=--btf\x1f-Cdebuginfo=2",
        )
        .args(["build", "--release", "--locked", "-Z", "build-std=core"])
        .args(["--bin", "davy-empty-ebpf", "--target", "bpfel-unknown-none"])
        .arg("--target-dir")
        .arg(&target_dir)
        .status()
        .map_err(|error| format!("cargo could not be started: {error}"))?;
    if !status.success() {
        return Err(format!(
            "building the empty program failed ({status}); `cargo xtask doctor` tells what is missing"
        ));
    }
    let object = target_dir.join("bpfel-unknown-none/release/davy-empty-ebpf");
    std::fs::copy(&object, out_dir.join("davy-empty-ebpf.o"))
        .map_err(|error| format!("copying {} failed: {error}", object.display()))?;
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
