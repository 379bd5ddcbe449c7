//! `programs.toml`: what is recorded, and how.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// What a recording is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Label {
    /// A proof of work, again and again.
    Mining,
    /// Nothing of the kind.
    Honest,
    /// Honest, but it hashes as miners do, or goes through all rounding modes.
    LookAlike,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Mining => "mining",
            Self::Honest => "honest",
            Self::LookAlike => "look-alike",
        })
    }
}

/// What a recording may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Set {
    /// To choose thresholds by.
    Tune,
    /// To say how good they are.
    Score,
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tune => "tune",
            Self::Score => "score",
        })
    }
}

/// One recording to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Of the recording, and of its file.
    pub name: String,
    /// What runs. All entries of one program are in one set.
    pub program: String,
    /// What it is.
    pub label: Label,
    /// What the recording may be used for.
    pub set: Set,
    /// For `sh -c`, in a directory of its own; `$IN` has the inputs, `davy-*` are on the path.
    pub command: String,
    /// How long, s.
    #[serde(default = "seconds")]
    pub seconds: u32,
    /// Whether nothing else may be recorded at the same time: what it shows depends on getting the CPU time it asks for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
    /// Of a RandomX miner: share of one CPU it is to use, over all its threads, percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub randomx_percent: Option<u32>,
    /// Debian packages whose versions matter.
    #[serde(default)]
    pub packages: Vec<String>,
}

fn seconds() -> u32 {
    20
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// Input files by name, each with the command that writes it to `$OUT`. Made if a command names the file.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
    /// The recordings.
    #[serde(rename = "recording")]
    pub recordings: Vec<Entry>,
}

impl Catalogue {
    /// Reads and checks `programs.toml`.
    ///
    /// # Errors
    /// If it is malformed, or breaks a rule of the corpus: names differ, are plain, and a program is in one set.
    pub fn read() -> Result<Self> {
        let path = crate::dir().join("programs.toml");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let catalogue: Self = toml::from_str(&text).context("programs.toml")?;
        catalogue.check()?;
        Ok(catalogue)
    }

    fn check(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        let mut sets = BTreeMap::new();
        for entry in &self.recordings {
            let Entry {
                name, program, set, ..
            } = entry;
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            ensure!(
                !name.is_empty() && name.chars().all(plain),
                "recording `{name}`: a name has lower-case letters, digits and hyphens"
            );
            ensure!(
                names.insert(name),
                "recording `{name}` is there twice: choose another name"
            );
            ensure!(
                *sets.entry(program).or_insert(*set) == *set,
                "program `{program}` is in both sets: all its recordings belong in one"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, program: &str, set: Set) -> Entry {
        Entry {
            name: name.to_owned(),
            program: program.to_owned(),
            label: Label::Honest,
            set,
            command: "true".to_owned(),
            seconds: 20,
            alone: false,
            randomx_percent: None,
            packages: Vec::new(),
        }
    }

    fn refusal(recordings: Vec<Entry>) -> Option<String> {
        let catalogue = Catalogue {
            recordings,
            ..Catalogue::default()
        };
        catalogue.check().err().map(|error| error.to_string())
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let a = entry("a", "p", Set::Tune);
        assert_eq!(refusal(vec![a.clone(), entry("b", "p", Set::Tune)]), None);
        let twice = refusal(vec![a.clone(), a.clone()]).unwrap();
        assert!(twice.contains("twice"), "{twice}");
        let both = refusal(vec![a, entry("b", "p", Set::Score)]).unwrap();
        assert!(both.contains("both sets"), "{both}");
        let path = refusal(vec![entry("../a", "p", Set::Tune)]).unwrap();
        assert!(path.contains("lower-case"), "{path}");
    }
}
