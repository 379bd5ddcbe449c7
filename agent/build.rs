//! Builds the kernel half (`agent-ebpf`) for the BPF target and leaves the object in `OUT_DIR`.
//!
//! A nested cargo does it, with `-Z build-std=core`: the BPF target ships no core library. `RUSTC_BOOTSTRAP`
//! is set for that cargo alone. It needs the component `rust-src` and the program `bpf-linker`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() -> Result<(), String> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let root = manifest_dir
        .parent()
        .ok_or("agent/ has no parent directory")?;
    for input in ["agent-ebpf", "agent-abi/src"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    let target_dir = out_dir.join("ebpf");
    build(&root.join("agent-ebpf"), &target_dir)?;
    let object = target_dir.join("bpfel-unknown-none/release/davy-agent-ebpf");
    let to = out_dir.join("davy-agent-ebpf.o");
    std::fs::copy(&object, &to)
        .map_err(|error| format!("copying {} failed: {error}", object.display()))?;
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}

fn build(directory: &Path, target_dir: &Path) -> Result<(), String> {
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
        .current_dir(directory)
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Clinker=bpf-linker\x1f-Clink-arg=--btf\x1f-Cdebuginfo=2",
        )
        .args(["build", "--release", "--locked", "-Z", "build-std=core"])
        .args(["--bin", "davy-agent-ebpf"])
        .args(["--target", "bpfel-unknown-none", "--target-dir"])
        .arg(target_dir)
        .status()
        .map_err(|error| format!("cargo could not be started: {error}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!(
        "building the kernel half in {} failed ({status}); `cargo xtask doctor` tells what is missing \
         (rust-src and bpf-linker are needed)",
        directory.display()
    ))
}
