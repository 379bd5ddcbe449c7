//! What the virtual machines boot from: the stage directory that the hypervisor sees, and both initramfs images.
//!
//! The stage (`<target>/vm/stage/`) holds stripped copies of the programs under test, `guest-vmlinuz`
//! and `guest-initrd`; copies, so that a build running meanwhile cannot change them under the test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::cpio::Archive;
use super::kernel::{GUEST_MODULES, HostKernel, Kernel};

/// The statically linked shell and tools of both images (Debian's `busybox-static`).
pub(super) const BUSYBOX: &str = "/bin/busybox";

/// Programs that run on the hypervisor.
const HOST_PROGRAMS: [&str; 3] = ["davy-agent", "davy-detector", "davy-vm-checks"];

/// Loads that run in guests.
const GUEST_PROGRAMS: [&str; 4] = ["davy-idle", "davy-matrix", "davy-randomx", "davy-sha256"];

const L1_INIT: &str = include_str!("l1-init.sh");
const L2_TUNE: &str = include_str!("l2-tune-prefetcher.sh");
const L2_INIT: &str = include_str!("l2-init.sh");

/// Makes the stage directory from freshly built programs; both kernels' runs use it.
pub(super) fn stage(built: &Path, guest_kernel: &Kernel, stage: &Path) -> Result<()> {
    if stage.exists() {
        fs::remove_dir_all(stage).with_context(|| format!("removing {}", stage.display()))?;
    }
    fs::create_dir_all(stage).with_context(|| format!("creating {}", stage.display()))?;
    for name in HOST_PROGRAMS.into_iter().chain(GUEST_PROGRAMS) {
        strip(&built.join(name), &stage.join(name))?;
    }
    let initrd = guest_initrd(stage, guest_kernel)?;
    fs::write(stage.join("guest-initrd"), initrd).context("writing the guests' initramfs")?;
    fs::copy(guest_kernel.vmlinuz(), stage.join("guest-vmlinuz"))
        .context("copying the guests' kernel")?;
    Ok(())
}

/// Writes the hypervisor's initramfs.
pub(super) fn host_initrd(
    which: HostKernel,
    kernel: &Kernel,
    stage: &Path,
    initrd: &Path,
) -> Result<()> {
    let stage = stage
        .to_str()
        .filter(|path| !path.contains(['"', '$', '`', '\\']))
        .with_context(|| {
            format!(
                "{} has characters a shell treats specially",
                stage.display()
            )
        })?;
    let mut archive = base()?;
    archive.directory("modules")?;
    archive.directory("host")?;
    for name in which.modules() {
        let file = kernel.module(name);
        let module = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        archive.file(&format!("modules/{name}.ko"), &module)?;
    }
    let init = L1_INIT
        .replace("@MODULES@", &which.modules().join(" "))
        .replace("@STAGE@", stage);
    archive.file("init", init.as_bytes())?;
    fs::write(initrd, archive.finish()?).with_context(|| format!("writing {}", initrd.display()))
}

/// The guests' initramfs: the loads and the libraries they need, and what tunes the prefetcher.
fn guest_initrd(stage: &Path, kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = base()?;
    let mut libraries = BTreeSet::new();
    for name in GUEST_PROGRAMS {
        let program = stage.join(name);
        libraries.extend(libraries_of(&program)?);
        archive.file(&format!("bin/{name}"), &fs::read(&program)?)?;
    }
    let mut directories = BTreeSet::new();
    for library in &libraries {
        let mut parents: Vec<&Path> = library.ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents {
            let name = parent.to_string_lossy();
            let name = name.trim_start_matches('/');
            if !name.is_empty() && directories.insert(name.to_owned()) {
                archive.directory(name)?;
            }
        }
        let content =
            fs::read(library).with_context(|| format!("reading {}", library.display()))?;
        let name = library.to_string_lossy();
        archive.file(name.trim_start_matches('/'), &content)?;
    }
    archive.directory("modules")?;
    for name in GUEST_MODULES {
        let file = kernel.module(name);
        let module = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        archive.file(&format!("modules/{name}.ko"), &module)?;
    }
    archive.file("bin/tune-prefetcher", L2_TUNE.as_bytes())?;
    archive.file("init", L2_INIT.as_bytes())?;
    archive.finish()
}

/// Busybox and empty mount points.
fn base() -> Result<Archive> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.directory(directory)?;
    }
    let busybox = fs::read(BUSYBOX).with_context(|| format!("reading {BUSYBOX}"))?;
    archive.file("bin/busybox", &busybox)?;
    archive.symlink("bin/sh", "busybox")?;
    Ok(archive)
}

/// The shared libraries of a program and its loader, as absolute paths, by `ldd`.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let done = Command::new("ldd")
        .arg(program)
        .output()
        .context("starting ldd")?;
    ensure!(
        done.status.success(),
        "ldd {} ended with {}",
        program.display(),
        done.status
    );
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(
        !text.contains("not found"),
        "{} needs a library this machine does not have:\n{text}",
        program.display()
    );
    Ok(parse_ldd(&text))
}

/// The paths in `ldd`'s output: `name => /path (address)` or `/path (address)`.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// Whether `program` needs no shared library.
pub(super) fn is_static(program: &Path) -> bool {
    Command::new("ldd")
        .arg(program)
        .output()
        .is_ok_and(|done| !done.status.success())
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip")
        .arg("-o")
        .args([to, from])
        .status()
        .context("starting strip (package binutils)")?;
    ensure!(
        status.success(),
        "strip {} ended with {status}",
        from.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_output_gives_the_libraries_and_the_loader() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f01)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n";
        assert_eq!(
            parse_ldd(text),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libm.so.6"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2"),
            ]
        );
    }
}
