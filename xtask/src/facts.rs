//! What this machine has, as plain data: gathered once, judged by `doctor`, mended by `setup`.
//!
//! Gathering starts only short programs that change nothing (`rustc --version`, `dpkg-query`, …).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::shell;

/// The version of bpf-linker that links the kernel half with the pinned toolchain's own LLVM.
pub const BPF_LINKER: &str = "0.10.4";

/// The oldest kernel that runs the kernel half: `fpstate.is_guest` came with 5.16, the signature of
/// the `sched_switch` tracepoint it is written for with 5.18 (`include/trace/events/sched.h`).
pub const KERNEL_MIN: (u32, u32) = (5, 18);

/// Where the running kernel describes its own types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// A Debian package, what it is for, and a file by which it is known where there is no dpkg.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    /// Debian's name.
    pub name: &'static str,
    /// Why Davy wants it, as the end of the sentence "needed to …".
    pub purpose: &'static str,
    /// What cannot be done without it.
    pub task: Task,
    /// A file that comes with it.
    pub file: &'static str,
}

/// What a person may want to do with the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Build every program.
    Build,
    /// Run the demonstration.
    Demo,
    /// Run the tests.
    Test,
    /// Run the nested-VM tests.
    Vm,
}

/// Every Debian package used, in the order of the tasks they serve.
pub const PACKAGES: &[Package] = &[
    Package {
        name: "g++",
        purpose: "compile the C and C++ parts (SQLite, bpf-linker) and link every program",
        task: Task::Build,
        file: "/usr/bin/g++",
    },
    Package {
        name: "make",
        purpose: "build the C parts of dependencies",
        task: Task::Build,
        file: "/usr/bin/make",
    },
    Package {
        name: "libc6-dev",
        purpose: "link every program",
        task: Task::Build,
        file: "/usr/include/stdio.h",
    },
    Package {
        name: "librandomx-dev",
        purpose: "build the real RandomX workload of the tests and the demo",
        task: Task::Build,
        file: "/usr/include/randomx.h",
    },
    Package {
        name: "x264",
        purpose: "run a real video encoder as the demo's honest tenant",
        task: Task::Demo,
        file: "/usr/bin/x264",
    },
    Package {
        name: "postgresql",
        purpose: "run a server of the store's tests' own",
        task: Task::Test,
        file: "/usr/lib/postgresql",
    },
    Package {
        name: "qemu-system-x86",
        purpose: "run a hypervisor host and its guests in the VM tests",
        task: Task::Vm,
        file: "/usr/bin/qemu-system-x86_64",
    },
    Package {
        name: "busybox-static",
        purpose: "make the VM tests' start-up file systems",
        task: Task::Vm,
        file: "/bin/busybox",
    },
    Package {
        name: "binutils",
        purpose: "strip the programs that go into the VM tests' guests",
        task: Task::Vm,
        file: "/usr/bin/strip",
    },
];

/// What was found on this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Machine architecture, as Rust names it.
    pub architecture: String,
    /// Toolchain version that `rust-toolchain.toml` pins.
    pub toolchain_pinned: String,
    /// Version of the `rustc` that runs in this repository.
    pub toolchain: Option<String>,
    /// Whether `rustup` is there to change toolchains.
    pub rustup: bool,
    /// Whether that toolchain has the standard library's sources.
    pub rust_src: bool,
    /// Version of `bpf-linker`.
    pub bpf_linker: Option<String>,
    /// Whether `cargo deny` is there.
    pub cargo_deny: bool,
    /// Whether packages come from apt.
    pub apt: bool,
    /// Names from [`PACKAGES`] that are not installed.
    pub packages_missing: BTreeSet<&'static str>,
    /// Whether the running kernel has BTF.
    pub btf: bool,
    /// Release of the running kernel.
    pub kernel_release: String,
    /// Whether this process runs as root.
    pub root: bool,
    /// Whether `sudo` is there.
    pub sudo: bool,
    /// Mount points of cgroup file systems the demo can make its groups in.
    pub cgroup_mounts: Vec<String>,
}

/// Looks at this machine.
///
/// # Errors
/// If the repository's own files cannot be read.
pub fn gather() -> Result<Facts> {
    let apt = Path::new("/usr/bin/apt-get").exists() && Path::new("/usr/bin/dpkg-query").exists();
    let sysroot = shell::capture("rustc", &["--print", "sysroot"]);
    Ok(Facts {
        architecture: std::env::consts::ARCH.to_owned(),
        toolchain_pinned: pinned_toolchain()?,
        toolchain: shell::capture("rustc", &["--version"]).and_then(|text| word(&text, 1)),
        rustup: shell::capture("rustup", &["--version"]).is_some(),
        rust_src: sysroot.is_some_and(|sysroot| {
            Path::new(&sysroot)
                .join("lib/rustlib/src/rust/library/core/src/lib.rs")
                .is_file()
        }),
        bpf_linker: shell::capture("bpf-linker", &["--version"]).and_then(|text| word(&text, 1)),
        cargo_deny: shell::capture("cargo-deny", &["--version"]).is_some(),
        apt,
        packages_missing: packages_missing(apt),
        btf: Path::new(BTF).is_file(),
        kernel_release: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        root: shell::is_root(),
        sudo: shell::capture("sudo", &["--version"]).is_some(),
        cgroup_mounts: fs::read_to_string("/proc/self/mountinfo")
            .map(|text| cgroup_mounts(&text))
            .unwrap_or_default(),
    })
}

fn word(text: &str, index: usize) -> Option<String> {
    text.split_whitespace().nth(index).map(str::to_owned)
}

fn pinned_toolchain() -> Result<String> {
    let path = shell::root()?.join("rust-toolchain.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
    let table: toml::Table = text
        .parse()
        .with_context(|| format!("bad TOML in {path:?}"))?;
    table
        .get("toolchain")
        .and_then(|toolchain| toolchain.get("channel"))
        .and_then(toml::Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("{path:?} names no toolchain.channel"))
}

fn packages_missing(apt: bool) -> BTreeSet<&'static str> {
    if !apt {
        return PACKAGES
            .iter()
            .filter(|package| !Path::new(package.file).exists())
            .map(|package| package.name)
            .collect();
    }
    // dpkg-query fails when it knows nothing of a package, and still lists the others.
    let listed = shell::command("dpkg-query")
        .and_then(|mut command| {
            command.args(["-W", "-f", "${Package} ${db:Status-Status}\\n"]);
            command.args(PACKAGES.iter().map(|package| package.name));
            Ok(command.output()?)
        })
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    missing_in_listing(&listed)
}

/// The packages that dpkg's listing (`name status` a line) does not show as installed.
fn missing_in_listing(listing: &str) -> BTreeSet<&'static str> {
    let installed: BTreeSet<&str> = listing
        .lines()
        .filter_map(|line| line.trim().strip_suffix(" installed"))
        .collect();
    PACKAGES
        .iter()
        .map(|package| package.name)
        .filter(|name| !installed.contains(name))
        .collect()
}

/// Mount points of cgroup v2 and of the v1 `cpu`/`cpuacct` controllers, from `/proc/self/mountinfo`
/// (fields as in proc(5): mount point 5th, type and super options after the lone hyphen).
pub fn cgroup_mounts(mountinfo: &str) -> Vec<String> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let mut filesystem = filesystem.split(' ');
            let kind = filesystem.next()?;
            let options = filesystem.nth(1)?;
            let accounts_cpu = options
                .split(',')
                .any(|option| option == "cpu" || option == "cpuacct");
            let wanted = kind == "cgroup2" || (kind == "cgroup" && accounts_cpu);
            wanted.then(|| mount.split(' ').nth(4).map(str::to_owned))?
        })
        .collect()
}

/// Major and minor number of a kernel release such as `6.1.0-28-amd64`.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(kernel_version("6.1.0-28-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(kernel_version("nonsense"), None);
        assert_eq!(kernel_version(""), None);
    }

    #[test]
    fn cgroup_mounts_of_both_versions_are_found() {
        let mountinfo = "\
            31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            32 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            33 24 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
            34 24 0:30 / /sys rw,relatime - sysfs sysfs rw\n";
        assert_eq!(
            cgroup_mounts(mountinfo),
            ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"]
        );
    }

    #[test]
    fn only_installed_packages_count() {
        let listing = "g++ installed\nmake config-files\n";
        let missing = missing_in_listing(listing);
        assert!(!missing.contains("g++"));
        assert!(missing.contains("make"));
        assert!(missing.contains("librandomx-dev"));
    }
}
