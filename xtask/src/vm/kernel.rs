//! Stock Debian kernels for the VM tests: found through apt's metadata, unpacked, never installed.
//!
//! A kernel's cache (`<target>/vm/kernels/<version>/`) holds `vmlinuz`, the modules the hypervisor needs
//! (decompressed) and `package`, the exact package they came from. It is used as long as apt names the
//! same package, or names none (no network, no package lists). Nothing else of the package is kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// The modules that guests load: theirs is one of these kernels.
pub(super) const GUEST_MODULES: [&str; 1] = ["msr"];

/// How often a download is tried, with growing pauses between.
const DOWNLOAD_ATTEMPTS: u32 = 4;

/// A kernel the hypervisor of the VM tests can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum HostKernel {
    /// Debian 12's own.
    #[value(name = "6.1")]
    V6_1,
    /// The newer one Debian 12 offers.
    #[value(name = "6.12")]
    V6_12,
}

impl HostKernel {
    /// All of them, oldest first.
    pub(crate) const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// The version as said on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// Debian's package that depends on the current build of this kernel.
    const fn meta_package(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-amd64",
            Self::V6_12 => "linux-image-6.12-amd64",
        }
    }

    /// The modules for 9p over virtio and for KVM on AMD, in the order they must be inserted.
    pub(super) const fn modules(self) -> &'static [&'static str] {
        match self {
            Self::V6_1 => &[
                "virtio_ring",
                "virtio_pci_modern_dev",
                "virtio_pci_legacy_dev",
                "virtio",
                "virtio_pci",
                "9pnet",
                "9pnet_virtio",
                "netfs",
                "fscache",
                "9p",
                "irqbypass",
                "kvm",
                "ccp",
                "kvm-amd",
            ],
            Self::V6_12 => &[
                "netfs",
                "9pnet",
                "9pnet_virtio",
                "9p",
                "irqbypass",
                "kvm",
                "ccp",
                "kvm-amd",
            ],
        }
    }
}

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// The directory of `vmlinuz` and the modules.
    dir: PathBuf,
    /// Package and version, for people.
    pub(super) package: String,
}

impl Kernel {
    /// The bootable image.
    pub(super) fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// A module's file.
    pub(super) fn module(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.ko"))
    }
}

/// Provides `which` from the cache under `vm_dir`, or downloads it.
///
/// # Errors
/// Says in one sentence what was not to be had and what mends it.
pub(super) fn provide(which: HostKernel, vm_dir: &Path) -> Result<Kernel> {
    let dir = vm_dir.join("kernels").join(which.name());
    // One that an earlier version made may lack a module.
    let whole = kept_modules(which).all(|name| dir.join(format!("{name}.ko")).exists());
    let cached = fs::read_to_string(dir.join("package"))
        .ok()
        .filter(|_| whole);
    let mut offered = current_package(which);
    match (&offered, cached) {
        (Ok(offered), Some(package)) if *offered == package => return Ok(Kernel { dir, package }),
        (Err(_), Some(package)) => return Ok(Kernel { dir, package }),
        _ => {}
    }
    if offered.is_err() {
        refresh_package_lists();
        offered = current_package(which);
    }
    let mut package = offered?;
    for attempt in 1..=DOWNLOAD_ATTEMPTS {
        println!("vm {}: downloading {package}", which.name());
        match download(which, &package, &dir) {
            Ok(()) => return Ok(Kernel { dir, package }),
            Err(error) if attempt == DOWNLOAD_ATTEMPTS => {
                return Err(error.context(format!(
                    "{package} could not be downloaded in {attempt} attempts; \
                     run `apt-get update` and see that Debian's archive can be reached"
                )));
            }
            Err(error) => println!("vm {}: attempt {attempt}: {error:#}", which.name()),
        }
        std::thread::sleep(Duration::from_secs(2 << attempt));
        // A security update replaces a package: old lists then name a file that is gone.
        refresh_package_lists();
        package = current_package(which).unwrap_or(package);
    }
    unreachable!("the last attempt returns")
}

/// The modules that are kept of a kernel.
fn kept_modules(which: HostKernel) -> impl Iterator<Item = &'static str> {
    which.modules().iter().copied().chain(GUEST_MODULES)
}

/// The versioned package behind the meta package, as `name=version`.
fn current_package(which: HostKernel) -> Result<String> {
    let meta = which.meta_package();
    let missing = || {
        format!(
            "apt knows no package {meta}: run `apt-get update`, and see that \
             bookworm and bookworm-security are among apt's sources"
        )
    };
    let depends = output(Command::new("apt-cache").args(["depends", "--important", meta]))
        .with_context(missing)?;
    let name = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .with_context(missing)?;
    let name = format!("linux-image-{name}");
    let shown = output(Command::new("apt-cache").args(["show", "--no-all-versions", &name]))
        .with_context(missing)?;
    let version = shown
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .with_context(missing)?;
    Ok(format!("{name}={version}"))
}

/// Brings apt's package lists up to date where we may; what fails here shows when a package is looked up.
fn refresh_package_lists() {
    if rustix::process::geteuid().is_root() {
        let _ = Command::new("apt-get")
            .args(["-q", "-o", "Acquire::Retries=3", "update"])
            .stdout(Stdio::null())
            .status();
    }
}

/// Downloads `package` and keeps what is needed of it in `dir`.
fn download(which: HostKernel, package: &str, dir: &Path) -> Result<()> {
    let parent = dir.parent().context("a cache directory has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let scratch = tempfile::tempdir_in(parent).context("making a scratch directory")?;
    let options = [
        "-q",
        "-o",
        "Acquire::Retries=3",
        "-o",
        "APT::Sandbox::User=root",
    ];
    let status = Command::new("apt-get")
        .args(options)
        .args(["download", package])
        .current_dir(scratch.path())
        .stdout(Stdio::null())
        .status()
        .context("starting apt-get")?;
    ensure!(status.success(), "apt-get download ended with {status}");
    let package_file = fs::read_dir(scratch.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .context("apt-get download left no package file")?;

    let tree = scratch.path().join("tree");
    let unpacked = Command::new("dpkg")
        .arg("-x")
        .args([&package_file, &tree])
        .status()
        .context("starting dpkg")?;
    ensure!(unpacked.success(), "dpkg -x ended with {unpacked}");
    fs::remove_file(&package_file)?;

    let kept = scratch.path().join("kept");
    fs::create_dir(&kept)?;
    for name in kept_modules(which) {
        let found = find(&tree, &|file| {
            file == format!("{name}.ko") || file == format!("{name}.ko.xz")
        })?
        .with_context(|| format!("{package} has no module {name}"))?;
        fs::write(kept.join(format!("{name}.ko")), module_bytes(&found)?)?;
    }
    let image = find(&tree, &|file| file.starts_with("vmlinuz-"))?
        .with_context(|| format!("{package} has no vmlinuz"))?;
    fs::copy(image, kept.join("vmlinuz"))?;
    fs::write(kept.join("package"), package)?;
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::rename(&kept, dir).with_context(|| format!("creating {}", dir.display()))
}

/// A module's content; newer Debian kernels ship it as `.ko.xz`.
fn module_bytes(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|e| e != "xz") {
        return fs::read(path).with_context(|| format!("reading {}", path.display()));
    }
    let done = Command::new("busybox")
        .args(["unxz", "-c"])
        .arg(path)
        .stderr(Stdio::inherit())
        .output()
        .context("starting busybox")?;
    ensure!(
        done.status.success(),
        "unpacking {} ended with {}",
        path.display(),
        done.status
    );
    Ok(done.stdout)
}

/// The first file below `dir` whose name fits.
fn find(dir: &Path, fits: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if let Some(found) = find(&entry.path(), fits)? {
                return Ok(Some(found));
            }
        } else if kind.is_file() && entry.file_name().to_str().is_some_and(fits) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// A command's standard output.
fn output(command: &mut Command) -> Result<String> {
    let done = command
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    if !done.status.success() {
        bail!(
            "{} ended with {}",
            command.get_program().display(),
            done.status
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
