//! `cargo xtask doctor`: every prerequisite, whether it is met, and one mending command for each lack.
//!
//! The judging is a pure function from [`Facts`] to a [`Report`]; `setup`, `test` and `demo` ask
//! the same report.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::facts::{self, BPF_LINKER, Facts, KERNEL_MIN, PACKAGES, Task};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
}

/// What `setup` can do about a lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mend {
    /// Install a toolchain by rustup.
    Toolchain(String),
    /// Add the rust-src component by rustup.
    RustSrc,
    /// Install bpf-linker by cargo.
    BpfLinker,
    /// Install a Debian package.
    Package(&'static str),
    /// Nothing `setup` does: the person must.
    ByHand,
}

/// One prerequisite, as judged.
#[derive(Debug, Clone, Serialize)]
pub struct Requirement {
    /// Its name, for people.
    pub name: String,
    /// Whether it is met.
    pub met: bool,
    /// What was found.
    pub found: String,
    /// Why it is wanted.
    pub purpose: String,
    /// What cannot be done without it.
    pub needed_for: Vec<Task>,
    /// Whether its lack only limits those tasks.
    pub limits_only: bool,
    /// The command (or act) that mends its lack.
    pub command: String,
    /// What `setup` can do about it.
    pub mend: Mend,
}

/// Whether a task can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ready {
    /// All of it.
    Yes,
    /// In part: what cannot run is named as skipped.
    Limited,
    /// Not at all.
    No,
}

impl Ready {
    fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Limited => "limited",
            Self::No => "no",
        }
    }
}

/// Which tasks can be done.
#[derive(Debug, Clone, Serialize)]
pub struct ReadyTo {
    /// `cargo xtask build`
    pub build: Ready,
    /// `cargo xtask demo`
    pub demo: Ready,
    /// `cargo xtask test`
    pub test: Ready,
    /// `cargo xtask test vm`
    pub vm: Ready,
}

/// The whole judgement.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Every prerequisite.
    pub requirements: Vec<Requirement>,
    /// What follows from them.
    pub ready_to: ReadyTo,
}

impl Report {
    /// The prerequisites that are not met.
    pub fn missing(&self) -> impl Iterator<Item = &Requirement> {
        self.requirements.iter().filter(|r| !r.met)
    }

    /// What stands in the way of a task, as one sentence with the mending commands; `None` if nothing does.
    pub fn obstacle(&self, task: Task) -> Option<String> {
        let lacks: Vec<String> = self
            .missing()
            .filter(|r| r.needed_for.contains(&task) && !r.limits_only)
            .map(|r| format!("{} ({}): {}", r.name, r.found, r.command))
            .collect();
        (!lacks.is_empty()).then(|| lacks.join("; "))
    }

    /// The closing line: what this machine is ready for.
    pub fn ready_line(&self) -> String {
        let ReadyTo {
            build,
            demo,
            test,
            vm,
        } = &self.ready_to;
        format!(
            "Ready to: build {}, demo {}, test {}, vm {}",
            build.word(),
            demo.word(),
            test.word(),
            vm.word()
        )
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let width = self
            .requirements
            .iter()
            .map(|r| r.name.len())
            .max()
            .unwrap_or(0);
        for r in &self.requirements {
            let mark = match (r.met, r.limits_only) {
                (true, _) => "ok     ",
                (false, true) => "limited",
                (false, false) => "MISSING",
            };
            let _ = writeln!(text, "{mark}  {:width$}  {}", r.name, r.found);
            if !r.met {
                let _ = writeln!(text, "         {:width$}  needed to {}", "", r.purpose);
                let _ = writeln!(text, "         {:width$}  mend: {}", "", r.command);
            }
        }
        if self.missing().any(|r| r.mend != Mend::ByHand) {
            text.push_str("\nInstall what is missing: cargo xtask setup\n");
        }
        let _ = write!(text, "\n{}", self.ready_line());
        text
    }
}

/// Judges what was found.
pub fn report(facts: &Facts) -> Report {
    let mut requirements = toolchain(facts);
    requirements.extend(packages(facts));
    requirements.extend(kernel(facts));
    let ready = |task: Task| {
        let lacks = |limits_only: bool| {
            requirements
                .iter()
                .any(|r| !r.met && r.limits_only == limits_only && r.needed_for.contains(&task))
        };
        if lacks(false) {
            Ready::No
        } else if lacks(true) {
            Ready::Limited
        } else {
            Ready::Yes
        }
    };
    let build = ready(Task::Build);
    // Whatever cannot be built cannot run.
    let after_build = |ready: Ready| if build == Ready::No { Ready::No } else { ready };
    let demo = after_build(ready(Task::Demo));
    let vm = after_build(ready(Task::Vm));
    let test = match after_build(ready(Task::Test)) {
        // The unit tests run wherever Davy builds; the rest needs what the demo and the VMs need.
        Ready::Yes if demo != Ready::Yes || vm != Ready::Yes => Ready::Limited,
        other => other,
    };
    Report {
        requirements,
        ready_to: ReadyTo {
            build,
            demo,
            test,
            vm,
        },
    }
}

/// Every task needs what the build needs.
const ALL: [Task; 4] = [Task::Build, Task::Demo, Task::Test, Task::Vm];

fn toolchain(facts: &Facts) -> Vec<Requirement> {
    let pinned = &facts.toolchain_pinned;
    let version = facts.toolchain.as_deref();
    let linker = facts.bpf_linker.as_deref();
    vec![
        Requirement {
            name: "architecture".to_owned(),
            met: facts.architecture == "x86_64",
            found: facts.architecture.clone(),
            purpose: "read the x86 registers the evidence is in".to_owned(),
            needed_for: ALL.to_vec(),
            limits_only: false,
            command: "use an x86-64 machine".to_owned(),
            mend: Mend::ByHand,
        },
        Requirement {
            name: format!("Rust {pinned}"),
            met: version == Some(pinned),
            found: version.unwrap_or("not found").to_owned(),
            purpose: "compile with the toolchain this repository is tested with".to_owned(),
            needed_for: ALL.to_vec(),
            limits_only: false,
            command: if facts.rustup {
                format!("rustup toolchain install {pinned} --profile minimal -c clippy -c rustfmt")
            } else {
                "install rustup: https://rustup.rs".to_owned()
            },
            mend: if facts.rustup {
                Mend::Toolchain(pinned.clone())
            } else {
                Mend::ByHand
            },
        },
        Requirement {
            name: "rust-src".to_owned(),
            met: facts.rust_src,
            found: found(facts.rust_src, "with the toolchain"),
            purpose: "compile `core` for the eBPF target".to_owned(),
            needed_for: ALL.to_vec(),
            limits_only: false,
            command: format!("rustup component add rust-src --toolchain {pinned}"),
            mend: Mend::RustSrc,
        },
        Requirement {
            name: format!("bpf-linker {BPF_LINKER}"),
            met: linker == Some(BPF_LINKER),
            found: linker.unwrap_or("not found").to_owned(),
            purpose: "link the kernel half".to_owned(),
            needed_for: ALL.to_vec(),
            limits_only: false,
            command: format!("cargo install bpf-linker --version {BPF_LINKER} --locked"),
            mend: Mend::BpfLinker,
        },
        Requirement {
            name: "cargo-deny".to_owned(),
            met: facts.cargo_deny,
            found: found(facts.cargo_deny, "installed"),
            purpose: "check the licences and advisories of dependencies".to_owned(),
            needed_for: vec![Task::Test],
            limits_only: true,
            command: "cargo install cargo-deny --locked".to_owned(),
            mend: Mend::ByHand,
        },
    ]
}

fn found(is: bool, words: &str) -> String {
    if is { words } else { "not found" }.to_owned()
}

fn packages(facts: &Facts) -> Vec<Requirement> {
    PACKAGES
        .iter()
        .map(|package| {
            let met = !facts.packages_missing.contains(package.name);
            Requirement {
                name: package.name.to_owned(),
                met,
                found: found(met, "installed"),
                purpose: package.purpose.to_owned(),
                needed_for: if package.task == Task::Build {
                    ALL.to_vec()
                } else {
                    vec![package.task]
                },
                // What only some tests need leaves those out, and says so.
                limits_only: package.task == Task::Test,
                command: match (facts.apt, facts.root) {
                    (true, true) => format!("apt-get install {}", package.name),
                    (true, false) => format!("sudo apt-get install {}", package.name),
                    (false, _) => format!(
                        "install what Debian calls {} (it brings {})",
                        package.name, package.file
                    ),
                },
                mend: if facts.apt {
                    Mend::Package(package.name)
                } else {
                    Mend::ByHand
                },
            }
        })
        .collect()
}

/// What the local kernel must offer to load the kernel half. The VM tests bring their own kernels.
fn kernel(facts: &Facts) -> Vec<Requirement> {
    let release = &facts.kernel_release;
    let new_enough = facts::kernel_version(release).is_some_and(|version| version >= KERNEL_MIN);
    let (major, minor) = KERNEL_MIN;
    let of_demo = |name: &str, met, found: String, purpose: &str, command: &str| Requirement {
        name: name.to_owned(),
        met,
        found,
        purpose: purpose.to_owned(),
        needed_for: vec![Task::Demo],
        limits_only: false,
        command: command.to_owned(),
        mend: Mend::ByHand,
    };
    vec![
        of_demo(
            &format!("kernel ≥ {major}.{minor}"),
            new_enough,
            release.clone(),
            "run the kernel half",
            "boot a newer kernel: apt-get install linux-image-amd64",
        ),
        of_demo(
            "kernel BTF",
            facts.btf,
            found(facts.btf, "/sys/kernel/btf/vmlinux"),
            "find the kernel's fields",
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, such as Debian's",
        ),
        of_demo(
            "root",
            facts.root || facts.sudo,
            match (facts.root, facts.sudo) {
                (true, _) => "yes",
                (false, true) => "by sudo",
                (false, false) => "neither root nor sudo",
            }
            .to_owned(),
            "load the kernel half",
            "become root, or as root: apt-get install sudo",
        ),
        of_demo(
            "cgroups",
            !facts.cgroup_mounts.is_empty(),
            if facts.cgroup_mounts.is_empty() {
                "none mounted".to_owned()
            } else {
                facts.cgroup_mounts.join(", ")
            },
            "make the demo's tenants",
            "mount -t cgroup2 none /sys/fs/cgroup",
        ),
    ]
}

/// Runs `doctor`: fails if something cannot be done at all.
///
/// # Errors
/// If the machine cannot be looked at.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let report = report(&facts::gather()?);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.text());
    }
    let ReadyTo {
        build,
        demo,
        test,
        vm,
    } = report.ready_to;
    Ok(if [build, demo, test, vm].contains(&Ready::No) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Facts {
        Facts {
            architecture: "x86_64".to_owned(),
            toolchain_pinned: "1.95.0".to_owned(),
            toolchain: Some("1.95.0".to_owned()),
            rustup: true,
            rust_src: true,
            bpf_linker: Some(BPF_LINKER.to_owned()),
            cargo_deny: true,
            apt: true,
            packages_missing: [].into(),
            btf: true,
            kernel_release: "6.1.0-28-amd64".to_owned(),
            root: true,
            sudo: false,
            cgroup_mounts: vec!["/sys/fs/cgroup".to_owned()],
        }
    }

    #[test]
    fn a_complete_machine_is_ready_for_everything() {
        let report = report(&complete());
        assert_eq!(report.missing().count(), 0);
        assert_eq!(
            report.ready_line(),
            "Ready to: build yes, demo yes, test yes, vm yes"
        );
    }

    #[test]
    fn every_lack_has_a_mending_command() {
        let facts = Facts {
            architecture: "riscv64".to_owned(),
            toolchain: None,
            rust_src: false,
            bpf_linker: None,
            cargo_deny: false,
            packages_missing: PACKAGES.iter().map(|package| package.name).collect(),
            btf: false,
            kernel_release: "5.10.0".to_owned(),
            root: false,
            cgroup_mounts: Vec::new(),
            ..complete()
        };
        let report = report(&facts);
        assert_eq!(report.missing().count(), report.requirements.len());
        assert!(report.missing().all(|r| !r.command.is_empty()));
        assert_eq!(
            report.ready_line(),
            "Ready to: build no, demo no, test no, vm no"
        );
    }

    #[test]
    fn without_bpf_linker_nothing_builds() {
        let facts = Facts {
            bpf_linker: Some("0.9.0".to_owned()),
            ..complete()
        };
        let report = report(&facts);
        assert_eq!(report.ready_to.build, Ready::No);
        assert_eq!(report.ready_to.test, Ready::No);
        let obstacle = report.obstacle(Task::Build).unwrap();
        assert!(
            obstacle.contains("cargo install bpf-linker --version"),
            "{obstacle}"
        );
    }

    #[test]
    fn without_root_the_tests_are_limited_and_the_demo_impossible() {
        let facts = Facts {
            root: false,
            ..complete()
        };
        let report = report(&facts);
        assert_eq!(
            report.ready_line(),
            "Ready to: build yes, demo no, test limited, vm yes"
        );
    }

    #[test]
    fn sudo_is_as_good_as_root() {
        let facts = Facts {
            root: false,
            sudo: true,
            packages_missing: ["busybox-static"].into(),
            ..complete()
        };
        let report = report(&facts);
        assert_eq!(report.ready_to.demo, Ready::Yes);
        assert!(
            report
                .obstacle(Task::Vm)
                .unwrap()
                .contains("sudo apt-get install busybox-static")
        );
    }

    #[test]
    fn without_cargo_deny_the_tests_are_limited_only() {
        let facts = Facts {
            cargo_deny: false,
            ..complete()
        };
        let report = report(&facts);
        assert_eq!(
            report.ready_line(),
            "Ready to: build yes, demo yes, test limited, vm yes"
        );
        assert_eq!(report.obstacle(Task::Test), None);
    }

    #[test]
    fn an_old_kernel_or_one_without_btf_cannot_demo() {
        for facts in [
            Facts {
                kernel_release: "5.17.9".to_owned(),
                ..complete()
            },
            Facts {
                btf: false,
                ..complete()
            },
        ] {
            let report = report(&facts);
            assert_eq!(report.ready_to.demo, Ready::No);
            assert_eq!(report.ready_to.vm, Ready::Yes);
        }
    }

    #[test]
    fn the_text_names_the_lack_and_its_mending() {
        let facts = Facts {
            rust_src: false,
            ..complete()
        };
        let text = report(&facts).text();
        assert!(text.contains("MISSING"), "{text}");
        assert!(
            text.contains("mend: rustup component add rust-src --toolchain 1.95.0"),
            "{text}"
        );
        assert!(text.contains("cargo xtask setup"), "{text}");
    }
}
