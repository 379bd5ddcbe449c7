//! The rules of the source that no compiler checks, each a named test.
//!
//! A rule is a pure function from the repository's files to its violations. Rules look at what git
//! tracks or would track, and tell code from comments and literals by [`source::code_only`].

use std::collections::BTreeSet;
use std::path::Path;

use crate::source::{self, SourceFile, has_word};

/// Longest Rust file, in lines.
const LINES_MAX: usize = 600;

/// The only places with `unsafe` code: those that talk to the kernel or to foreign functions.
const UNSAFE_PLACES: [&str; 4] = [
    "agent/src/kernel/",
    "agent-ebpf/",
    "workloads/src/",
    "tests/host/src/",
];

/// The crates that decide, what evidence means and what is done about it: pure functions of their inputs.
const PURE_CRATES: [&str; 2] = ["evidence/", "decision/"];

/// A named rule.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// What it says, as the name of a test.
    pub name: &'static str,
    /// Its violations, one sentence each.
    pub check: fn(&[SourceFile]) -> Vec<String>,
}

/// Every rule.
pub const RULES: &[Rule] = &[
    Rule {
        name: "rust_files_are_short",
        check: rust_files_are_short,
    },
    Rule {
        name: "rust_files_begin_with_docs",
        check: rust_files_begin_with_docs,
    },
    Rule {
        name: "unsafe_stays_in_its_places",
        check: unsafe_stays_in_its_places,
    },
    Rule {
        name: "no_unfinished_work",
        check: no_unfinished_work,
    },
    Rule {
        name: "no_machine_paths",
        check: no_machine_paths,
    },
    Rule {
        name: "deciding_is_pure",
        check: deciding_is_pure,
    },
    Rule {
        name: "sensors_come_in_threes",
        check: sensors_come_in_threes,
    },
    Rule {
        name: "no_allow_attributes",
        check: no_allow_attributes,
    },
    Rule {
        name: "crates_share_the_lints",
        check: crates_share_the_lints,
    },
];

fn rust(files: &[SourceFile]) -> impl Iterator<Item = &SourceFile> {
    files.iter().filter(|file| file.is_rust())
}

/// `path:line: what` for every line of code that breaks a rule.
fn lines_of_code<'a>(
    files: impl Iterator<Item = &'a SourceFile>,
    broken: impl Fn(&str) -> Option<&'static str>,
) -> Vec<String> {
    files
        .flat_map(|file| {
            source::code_only(&file.text)
                .lines()
                .enumerate()
                .filter_map(|(index, line)| {
                    broken(line).map(|what| format!("{}:{}: {what}", file.path, index + 1))
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

fn rust_files_are_short(files: &[SourceFile]) -> Vec<String> {
    rust(files)
        .filter_map(|file| {
            let lines = file.text.lines().count();
            (lines > LINES_MAX).then(|| {
                format!(
                    "{}: {lines} lines, at most {LINES_MAX}: split it",
                    file.path
                )
            })
        })
        .collect()
}

fn rust_files_begin_with_docs(files: &[SourceFile]) -> Vec<String> {
    rust(files)
        .filter(|file| !file.text.starts_with("//!"))
        .map(|file| format!("{}: begin with `//!` and what the module is for", file.path))
        .collect()
}

fn unsafe_stays_in_its_places(files: &[SourceFile]) -> Vec<String> {
    let elsewhere = rust(files).filter(|file| {
        !UNSAFE_PLACES
            .iter()
            .any(|place| file.path.starts_with(place))
    });
    lines_of_code(elsewhere, |line| {
        has_word(line, "unsafe").then_some("`unsafe` belongs in the kernel-facing modules only")
    })
}

/// Marks of unfinished work. Split, so that this file does not hold them itself.
const UNFINISHED: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

fn no_unfinished_work(files: &[SourceFile]) -> Vec<String> {
    let mut violations = Vec::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            if let Some(word) = UNFINISHED.iter().find(|word| has_word(line, word)) {
                violations.push(format!(
                    "{}:{}: finish it or drop `{word}`",
                    file.path,
                    index + 1
                ));
            }
        }
    }
    violations.extend(lines_of_code(rust(files), |line| {
        ["todo", "unimplemented"]
            .iter()
            .any(|name| has_word(line, name) && line.contains(&format!("{name}!")))
            .then_some("code that only says it is missing")
    }));
    violations
}

/// Directories of one machine. Split, so that this file does not hold them itself.
const MACHINE_PATHS: [&str; 3] = [
    concat!("/wo", "rk/"),
    concat!("/tmp/", "target"),
    concat!("/fa", "rm"),
];

fn no_machine_paths(files: &[SourceFile]) -> Vec<String> {
    let mut violations = Vec::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            if let Some(path) = MACHINE_PATHS.iter().find(|path| begins_a_path(line, path)) {
                violations.push(format!(
                    "{}:{}: `{path}` is a path of one machine",
                    file.path,
                    index + 1
                ));
            }
        }
    }
    violations
}

/// Whether a path in `line` begins with `prefix` (`a/prefix` does not).
fn begins_a_path(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix).any(|(at, _)| {
        let inside = |c: char| c.is_alphanumeric() || "._-/}".contains(c);
        !line[..at].chars().next_back().is_some_and(inside)
    })
}

fn deciding_is_pure(files: &[SourceFile]) -> Vec<String> {
    let mut violations = Vec::new();
    for place in PURE_CRATES {
        let code = rust(files).filter(|file| file.path.starts_with(&format!("{place}src/")));
        violations.extend(lines_of_code(code, impure));
        let manifest = format!("{place}Cargo.toml");
        match files.iter().find(|file| file.path == manifest) {
            None => violations.push(format!(
                "{manifest}: not found, so its purity cannot be checked"
            )),
            Some(file) => violations.extend(impure_dependencies(file)),
        }
    }
    violations
}

fn impure_dependencies(manifest: &SourceFile) -> Vec<String> {
    let table = manifest.text.parse::<toml::Table>().unwrap_or_default();
    (table.get("dependencies").and_then(toml::Value::as_table))
        .into_iter()
        .flatten()
        .filter(|(name, _)| ["rand", "tokio", "fastrand", "getrandom"].contains(&name.as_str()))
        .map(|(name, _)| format!("{}: depends on {name}", manifest.path))
        .collect()
}

/// What a line brings in from the world outside, if it does.
fn impure(line: &str) -> Option<&'static str> {
    let grouped = line.contains("std::{");
    for module in ["time", "fs", "net", "env", "process", "thread"] {
        if has_word(line, &format!("std::{module}")) || (grouped && has_word(line, module)) {
            return Some("what decides is a pure function: no clock, file, network or process");
        }
    }
    ["rand", "tokio"]
        .iter()
        .any(|name| has_word(line, name) && line.contains(&format!("{name}::")))
        .then_some("what decides is a pure function: no randomness, no runtime")
}

fn sensors_come_in_threes(files: &[SourceFile]) -> Vec<String> {
    let sensors: BTreeSet<&str> = files
        .iter()
        .filter_map(|file| {
            file.path
                .strip_prefix("agent-ebpf/src/sensor/")?
                .strip_suffix(".rs")
        })
        .filter(|name| *name != "mod")
        .collect();
    if sensors.is_empty() {
        return vec!["agent-ebpf/src/sensor/: no sensor found".to_owned()];
    }
    let mut violations = Vec::new();
    for name in sensors {
        let user_half = format!("agent/src/sensor/{name}.rs");
        if !files.iter().any(|file| file.path == user_half) {
            violations.push(format!(
                "{user_half}: the user half of sensor {name} is missing"
            ));
        }
        let tested = rust(files)
            .filter(|file| file.path.starts_with("tests/host/tests/"))
            .any(|file| {
                Path::new(&file.path)
                    .file_stem()
                    .is_some_and(|stem| stem == name)
                    || has_word(&file.text, name)
            });
        if !tested {
            violations.push(format!("tests/host/tests/: no test names sensor {name}"));
        }
    }
    violations
}

fn no_allow_attributes(files: &[SourceFile]) -> Vec<String> {
    lines_of_code(rust(files), |line| {
        let line: String = line.split_whitespace().collect();
        (line.contains("#[allow(") || line.contains("#![allow(")).then_some(
            "use #[expect(lint, reason = \"…\")], which says when it is no longer needed",
        )
    })
}

fn crates_share_the_lints(files: &[SourceFile]) -> Vec<String> {
    let root = files
        .iter()
        .find(|file| file.path == "Cargo.toml")
        .and_then(|file| file.text.parse::<toml::Table>().ok());
    let members: Vec<String> = root
        .as_ref()
        .and_then(|table| table.get("workspace")?.get("members")?.as_array())
        .into_iter()
        .flatten()
        .filter_map(|member| Some(format!("{}/Cargo.toml", member.as_str()?)))
        .collect();
    if members.is_empty() {
        return vec!["Cargo.toml: no workspace members found".to_owned()];
    }
    members
        .iter()
        .filter(|path| {
            let shared = files
                .iter()
                .find(|file| file.path == **path)
                .and_then(|file| file.text.parse::<toml::Table>().ok())
                .and_then(|table| table.get("lints")?.get("workspace")?.as_bool());
            shared != Some(true)
        })
        .map(|path| format!("{path}: add `[lints]` with `workspace = true`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn one(path: &str, text: &str) -> [SourceFile; 1] {
        [file(path, text)]
    }

    #[test]
    fn a_long_file_is_found() {
        assert!(rust_files_are_short(&one("a.rs", &"\n".repeat(LINES_MAX))).is_empty());
        assert_eq!(
            rust_files_are_short(&one("a.rs", &"\n".repeat(LINES_MAX + 1))).len(),
            1
        );
        assert!(rust_files_are_short(&one("a.md", &"\n".repeat(LINES_MAX + 1))).is_empty());
    }

    #[test]
    fn a_file_without_docs_is_found() {
        assert!(rust_files_begin_with_docs(&one("a.rs", "//! Docs.\nuse x;\n")).is_empty());
        assert_eq!(
            rust_files_begin_with_docs(&one("a.rs", "use x;\n")).len(),
            1
        );
    }

    #[test]
    fn unsafe_code_outside_its_places_is_found() {
        let code = "//! Docs about unsafe.\nfn f() { unsafe { g() } }\n";
        assert_eq!(
            unsafe_stays_in_its_places(&one("agent/src/window.rs", code)),
            ["agent/src/window.rs:2: `unsafe` belongs in the kernel-facing modules only"]
        );
        assert!(unsafe_stays_in_its_places(&one("agent/src/kernel/slots.rs", code)).is_empty());
        assert!(unsafe_stays_in_its_places(&one("a.rs", "// unsafe\nf(\"unsafe\");")).is_empty());
    }

    #[test]
    fn unfinished_work_is_found() {
        for word in UNFINISHED {
            assert_eq!(
                no_unfinished_work(&one("README.md", &format!("a {word}: b"))).len(),
                1
            );
        }
        assert_eq!(
            no_unfinished_work(&one("a.rs", "fn f() { todo!() }")).len(),
            1
        );
        assert_eq!(
            no_unfinished_work(&one("a.rs", "fn f() { unimplemented!() }")).len(),
            1
        );
        assert!(no_unfinished_work(&one("a.sh", "mktemp -d /tmp/a.XXXXXX")).is_empty());
        assert!(no_unfinished_work(&one("Cargo.toml", "todo = \"warn\"")).is_empty());
    }

    #[test]
    fn a_machine_path_is_found() {
        for path in MACHINE_PATHS {
            assert_eq!(
                no_machine_paths(&one("a.md", &format!("see {path}x"))).len(),
                1,
                "{path}"
            );
        }
        let inside = format!("https://example.org{}x", MACHINE_PATHS[0]);
        assert!(no_machine_paths(&one("a.md", &inside)).is_empty());
    }

    #[test]
    fn what_decides_impurely_is_found() {
        let manifests = |dependencies: &str| {
            PURE_CRATES.map(|place| file(&format!("{place}Cargo.toml"), dependencies))
        };
        let with = |path: &str, line: &str| {
            let mut files = manifests("[dependencies]\nthiserror = \"2\"\n").to_vec();
            files.push(file(path, line));
            deciding_is_pure(&files).len()
        };
        for line in [
            "use std::time::Instant;",
            "use std::{fs, path};",
            "let x = std::net::lookup();",
            "let x = rand::random();",
            "use tokio::sync::watch;",
        ] {
            assert_eq!(with("evidence/src/lib.rs", line), 1, "{line}");
            assert_eq!(with("decision/src/lib.rs", line), 1, "{line}");
            assert_eq!(with("agent/src/lib.rs", line), 0, "{line}");
        }
        let innocent = "// std::time\nlet time = operand::new();";
        assert_eq!(with("decision/src/lib.rs", innocent), 0);
        let dependent = manifests("[dependencies]\nrand = \"1\"\n");
        assert_eq!(deciding_is_pure(&dependent).len(), 2);
        assert_eq!(deciding_is_pure(&[]).len(), 2, "nothing was checked");
    }

    #[test]
    fn a_sensor_without_its_other_parts_is_found() {
        let kernel_half = file("agent-ebpf/src/sensor/cpu.rs", "");
        let user_half = file("agent/src/sensor/cpu.rs", "");
        let test = file("tests/host/tests/cpu.rs", "");
        let naming = file("tests/host/tests/all.rs", "fn cpu() {}");
        assert_eq!(
            sensors_come_in_threes(std::slice::from_ref(&kernel_half)).len(),
            2
        );
        assert_eq!(
            sensors_come_in_threes(&[kernel_half.clone(), test.clone()]).len(),
            1
        );
        assert_eq!(
            sensors_come_in_threes(&[kernel_half.clone(), user_half.clone()]).len(),
            1
        );
        assert!(sensors_come_in_threes(&[kernel_half.clone(), user_half.clone(), test]).is_empty());
        assert!(sensors_come_in_threes(&[kernel_half, user_half, naming]).is_empty());
        assert_eq!(sensors_come_in_threes(&[]).len(), 1);
    }

    #[test]
    fn an_allow_attribute_is_found() {
        assert_eq!(
            no_allow_attributes(&one("a.rs", "#[allow(dead_code)]")).len(),
            1
        );
        assert_eq!(
            no_allow_attributes(&one("a.rs", "#![allow(dead_code)]")).len(),
            1
        );
        assert!(
            no_allow_attributes(&one("a.rs", "#[expect(dead_code, reason = \"r\")]")).is_empty()
        );
        assert!(no_allow_attributes(&one("a.rs", "// #[allow(dead_code)]")).is_empty());
    }

    #[test]
    fn a_crate_without_the_shared_lints_is_found() {
        let root = file("Cargo.toml", "[workspace]\nmembers = [\"a\"]\n");
        let with = file("a/Cargo.toml", "[lints]\nworkspace = true\n");
        let without = file("a/Cargo.toml", "[package]\nname = \"a\"\n");
        assert!(crates_share_the_lints(&[root.clone(), with]).is_empty());
        assert_eq!(crates_share_the_lints(&[root.clone(), without]).len(), 1);
        assert_eq!(crates_share_the_lints(&[root]).len(), 1);
        assert_eq!(crates_share_the_lints(&[]).len(), 1);
    }
}
