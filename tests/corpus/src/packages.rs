//! The Debian packages that the entries name: which are missing, and the versions of those that are there (`dpkg-query`).

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::catalogue::Entry;

/// Versions of installed packages by name.
pub type Versions = BTreeMap<String, String>;

/// The versions of all packages that the entries name, before the first trial starts.
///
/// # Errors
/// If any is missing: all of them are named, with the command that installs them.
pub fn versions_for(entries: &[&Entry]) -> Result<Versions> {
    if entries.iter().all(|entry| entry.packages.is_empty()) {
        return Ok(Versions::new());
    }
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\n"])
        .output()
        .context("cannot start dpkg-query")?;
    ensure!(
        output.status.success(),
        "dpkg-query failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let installed = installed(&String::from_utf8_lossy(&output.stdout));
    let missing = missing(entries, &installed);
    ensure!(missing.is_empty(), "{}", words(&missing));
    Ok(installed)
}

/// Of an entry's packages alone.
#[must_use]
pub fn of(entry: &Entry, installed: &Versions) -> Versions {
    entry
        .packages
        .iter()
        .filter_map(|name| Some((name.clone(), installed.get(name)?.clone())))
        .collect()
}

/// Reads lines `STATUS PACKAGE VERSION`. Only status `ii` counts: others are removed, or half there (dpkg-query(1), `db:Status-Abbrev`).
fn installed(lines: &str) -> Versions {
    lines
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (status, name, version) = (words.next()?, words.next()?, words.next()?);
            (status == "ii").then(|| (name.to_owned(), version.to_owned()))
        })
        .collect()
}

/// Missing packages, each with the recordings that need it.
fn missing<'a>(entries: &[&'a Entry], installed: &Versions) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for entry in entries {
        for package in &entry.packages {
            if !installed.contains_key(package) {
                missing.entry(package).or_default().push(&entry.name);
            }
        }
    }
    missing
}

fn words(missing: &BTreeMap<&str, Vec<&str>>) -> String {
    let lines: Vec<_> = missing
        .iter()
        .map(|(package, recordings)| format!("  {package} (for {})", recordings.join(", ")))
        .collect();
    let names: Vec<_> = missing.keys().copied().collect();
    format!(
        "packages are missing:\n{}\nInstall them, or choose others by --only:\n  apt-get install --no-install-recommends {}",
        lines.join("\n"),
        names.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Label, Set};

    fn entry(name: &str, packages: &[&str]) -> Entry {
        Entry {
            name: name.to_owned(),
            program: name.to_owned(),
            label: Label::Honest,
            set: Set::Tune,
            command: "true".to_owned(),
            seconds: 20,
            alone: false,
            randomx_percent: None,
            packages: packages.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn a_removed_package_is_not_installed() {
        let versions = installed("ii  xz-utils 5.4.1\nrc  zstd 1.5\niU  half 1\n");
        assert_eq!(versions, [("xz-utils".into(), "5.4.1".into())].into());
    }

    #[test]
    fn all_missing_packages_are_named_with_their_command() {
        let (a, b) = (entry("a", &["p", "q"]), entry("b", &["q", "r"]));
        let versions = installed("ii p 1");
        let said = words(&missing(&[&a, &b], &versions));
        assert!(said.contains("q (for a, b)"), "{said}");
        assert!(
            said.ends_with("apt-get install --no-install-recommends q r"),
            "{said}"
        );
        assert_eq!(of(&a, &versions), [("p".into(), "1".into())].into());
    }
}
