//! `davyctl policy`: checks policies before they are in force, and shows what others would have decided.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use davy_decision::{
    decide::{Input, Plan, decide},
    policy::{Described, Policies, Step},
    reach,
    settings::Settings,
    words::plain_line,
};
use davy_proto::v1;
use serde::Serialize;

use crate::case_render as render;
use crate::client::{Detector, said};
use crate::document;
use crate::render::IF_WORDS_BREAK;

/// `davyctl policy`.
#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Check a directory of policies, without a detector: the syntax, schema and ids of its *.cedar files, permits that nothing can
    /// ever reach or that reach customers sooner than may be meant, and its settings.toml.
    Check {
        /// The directory
        dir: PathBuf,
    },
    /// Compare two directories of policies: which policies and settings differ and, with --history, which decisions would.
    Diff(DiffArgs),
}

#[derive(Args)]
pub struct DiffArgs {
    /// The directory that is in force, or was
    pub old: PathBuf,
    /// The one that is to be
    pub new: PathBuf,
    /// Make every decision that the detector keeps again, under both
    #[arg(long)]
    pub history: bool,
    /// Only decisions on this account
    #[arg(long, requires = "history")]
    pub account: Option<String>,
}

/// A directory's policies.
pub struct Set {
    policies: Policies,
    /// None: there is no settings.toml.
    settings: Option<Settings>,
    dir: PathBuf,
}

/// Name of the settings beside the policies.
const SETTINGS_FILE: &str = "settings.toml";

/// A directory's settings, if it has any.
fn settings(dir: &Path) -> anyhow::Result<Option<Settings>> {
    let path = dir.join(SETTINGS_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("{} cannot be read", path.display()));
        }
    };
    let settings = Settings::of_toml(&text).map_err(|why| anyhow!("{}: {why}", path.display()))?;
    Ok(Some(settings))
}

impl Set {
    /// Reads and checks the `*.cedar` files of a directory, and its settings.
    ///
    /// # Errors
    /// What is wrong, with the file and the policy.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let cannot = |path: &Path| format!("{} cannot be read", path.display());
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir).with_context(|| cannot(dir))? {
            let path = entry.with_context(|| cannot(dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            // As the detector reads them.
            let Some(name) = name.filter(|name| name.ends_with(".cedar") && !name.starts_with('.'))
            else {
                continue;
            };
            let text = std::fs::read_to_string(&path).with_context(|| cannot(&path))?;
            files.insert(name.to_owned(), text);
        }
        if files.is_empty() {
            bail!(
                "{} has no file that ends in .cedar; put at least one policy there",
                dir.display()
            );
        }
        let policies = Policies::new(&files).map_err(|error| {
            anyhow!(
                "{}: {}",
                dir.display(),
                error.to_string().replace('\n', " ")
            )
        })?;
        Ok(Self {
            policies,
            settings: settings(dir)?,
            dir: dir.to_owned(),
        })
    }
}

/// `davyctl policy check --json`.
#[derive(Debug, Serialize)]
struct Checked {
    version: u32,
    digest: String,
    policies: Vec<Described>,
    /// Permits that nothing was found to reach.
    unreached: Vec<String>,
    /// What may not be meant.
    concerns: Vec<reach::Concern>,
    /// Settings that are not the defaults.
    settings: Vec<Setting>,
}

/// A setting that is another one.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Setting {
    name: String,
    before: String,
    after: String,
}

fn changed(before: &Settings, after: &Settings) -> Vec<Setting> {
    let all = before.differing(after).into_iter();
    all.map(|(name, before, after)| Setting {
        name,
        before,
        after,
    })
    .collect()
}

fn told(settings: &[Setting]) -> String {
    let line =
        |Setting {
             name,
             before,
             after,
         }: &Setting| { format!("changed: setting {name}, from {before} to {after}\n") };
    settings.iter().map(line).collect()
}

/// `davyctl policy check`.
///
/// # Errors
/// What is wrong, with the file and the policy.
pub fn check(dir: &Path, json: bool, width: Option<u16>) -> anyhow::Result<String> {
    let set = Set::read(dir)?;
    let checked = Checked {
        version: crate::model::VERSION,
        digest: set.policies.digest().to_owned(),
        policies: set.policies.describe(),
        unreached: reach::unreached(&set.policies),
        concerns: concerns(&set),
        settings: (set.settings.as_ref())
            .map(|settings| changed(&Settings::default(), settings))
            .unwrap_or_default(),
    };
    if json {
        return document::pretty(&checked);
    }
    let row = |policy: &Described| {
        let effect = if policy.permits { "permits" } else { "forbids" };
        vec![
            plain_line(&policy.id),
            effect.to_owned(),
            names(&policy.steps),
        ]
    };
    let heads = [
        ("POLICY", None, false),
        ("EFFECT", None, false),
        ("STEPS", None, false),
    ];
    let rows: Vec<_> = checked.policies.iter().map(row).collect();
    let mut text = render::rows(&heads, &rows, width);
    text += &format!(
        "\n{} holds: {} policies, digest {}\n",
        set.dir.display(),
        rows.len(),
        checked.digest
    );
    text += &told(&checked.settings);
    for id in &checked.unreached {
        text += &format!(
            "Warning: nothing reaches the permit {}: its condition is never true, or Davy refuses its steps there (an action on a \
             customer needs `mining` on two classes of evidence).\n",
            plain_line(id)
        );
    }
    for reach::Concern { id, what } in &checked.concerns {
        text += &format!("Warning: {} {}.\n", plain_line(id), plain_line(what));
    }
    Ok(text)
}

/// Of the policies and of the settings.
fn concerns(set: &Set) -> Vec<reach::Concern> {
    let figures = set.settings.iter().flat_map(Settings::concerns);
    let figures = figures.map(|(name, what)| reach::Concern {
        id: format!("setting {name}"),
        what: format!("is {what}"),
    });
    reach::concerns(&set.policies)
        .into_iter()
        .chain(figures)
        .collect()
}

fn names(steps: &[Step]) -> String {
    if steps.is_empty() {
        return "none".to_owned();
    }
    steps
        .iter()
        .map(|step| step.name())
        .collect::<Vec<_>>()
        .join(", ")
}

/// A policy that is not the same in both sets.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Differs {
    id: String,
    /// `added`, `removed` or `changed`.
    how: &'static str,
}

fn differing(old: &Policies, new: &Policies) -> Vec<Differs> {
    let by_id = |policies: &Policies| -> BTreeMap<String, String> {
        policies
            .describe()
            .into_iter()
            .map(|policy| (policy.id, policy.text))
            .collect()
    };
    let (old, new) = (by_id(old), by_id(new));
    let ids: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let differ = ids.into_iter().filter_map(|id| {
        let how = match (old.get(id), new.get(id)) {
            (Some(a), Some(b)) if a == b => return None,
            (Some(_), Some(_)) => "changed",
            (Some(_), None) => "removed",
            (None, _) => "added",
        };
        Some(Differs {
            id: id.clone(),
            how,
        })
    });
    differ.collect()
}

/// A decision that would be another one.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Other {
    account: String,
    number: u64,
    at: davy_decision::time::Time,
    before: Vec<Step>,
    after: Vec<Step>,
}

/// `davyctl policy diff --json`.
#[derive(Debug, Serialize)]
struct Diff {
    version: u32,
    old: String,
    new: String,
    policies: Vec<Differs>,
    settings: Vec<Setting>,
    /// Decisions made again; absent without --history.
    decisions: Option<u64>,
    differ: Vec<Other>,
}

/// Decides again as `set` would; with its settings, if one of the sets compared has any, else with those of the decision.
fn replay(set: &Set, input: &Input) -> Plan {
    let input = Input {
        policy: set.policies.digest().to_owned(),
        settings: set
            .settings
            .clone()
            .unwrap_or_else(|| input.settings.clone()),
        ..input.clone()
    };
    decide(&set.policies, &input)
}

fn compare(old: &Set, new: &Set, number: u64, input: &Input) -> Option<Other> {
    let (before, after) = (replay(old, input).steps, replay(new, input).steps);
    (before != after).then(|| Other {
        account: input.account.to_string(),
        number,
        at: input.at,
        before,
        after,
    })
}

/// `davyctl policy diff`; `detector`: with `--history`.
///
/// # Errors
/// What is wrong with the policies, or with the way to the detector.
pub async fn diff(
    arguments: DiffArgs,
    detector: Option<&Detector>,
    json: bool,
    width: Option<u16>,
) -> anyhow::Result<String> {
    let (mut old, mut new) = (Set::read(&arguments.old)?, Set::read(&arguments.new)?);
    if old.settings.is_some() || new.settings.is_some() {
        for set in [&mut old, &mut new] {
            set.settings.get_or_insert_default();
        }
    }
    let settings = (old.settings.as_ref()).zip(new.settings.as_ref());
    let mut found = Diff {
        version: crate::model::VERSION,
        old: old.policies.digest().to_owned(),
        new: new.policies.digest().to_owned(),
        policies: differing(&old.policies, &new.policies),
        settings: settings
            .map(|(old, new)| changed(old, new))
            .unwrap_or_default(),
        decisions: None,
        differ: Vec::new(),
    };
    if let Some(detector) = detector {
        let request = v1::ReadDecisionsRequest {
            account: arguments.account,
        };
        let answer = detector.automation().read_decisions(request).await;
        let mut decisions = answer.map_err(|status| said(&status))?.into_inner();
        let mut count = 0;
        while let Some(decision) = decisions.message().await.map_err(|status| said(&status))? {
            let input: Input = serde_json::from_str(&decision.input_json).with_context(|| {
                format!(
                    "decision {} on account {} cannot be read; are davyctl and the detector of one release?",
                    decision.number, decision.account
                )
            })?;
            count += 1;
            found
                .differ
                .extend(compare(&old, &new, decision.number, &input));
        }
        found.decisions = Some(count);
    }
    if json {
        document::pretty(&found)
    } else {
        Ok(in_words(&found, width))
    }
}

fn in_words(found: &Diff, width: Option<u16>) -> String {
    let mut text = String::new();
    if found.policies.is_empty() {
        text += "The policies are the same.\n";
    }
    for Differs { id, how } in &found.policies {
        text += &format!("{how}: {}\n", plain_line(id));
    }
    text += &told(&found.settings);
    let Some(decisions) = found.decisions else {
        return text;
    };
    text.push('\n');
    if !found.differ.is_empty() {
        let heads = [
            ("ACCOUNT", None, false),
            ("NUMBER", None, true),
            ("WHEN", Some(IF_WORDS_BREAK), false),
            ("BEFORE", None, false),
            ("AFTER", None, false),
        ];
        let row = |other: &Other| {
            vec![
                plain_line(&other.account),
                other.number.to_string(),
                render::time(other.at.unix_ms()),
                names(&other.before),
                names(&other.after),
            ]
        };
        text += &render::rows(
            &heads,
            &found.differ.iter().map(row).collect::<Vec<_>>(),
            width,
        );
        text.push('\n');
    }
    text += &format!(
        "{} of {decisions} decisions would be others.\n",
        found.differ.len()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ours.cedar"), text).unwrap();
        dir
    }

    #[test]
    fn what_ships_holds_and_has_no_idle_permit() {
        let dir = dir(davy_decision::policy::DEFAULT);
        let text = check(dir.path(), false, None).unwrap();
        assert!(
            text.contains("mining:throttle-the-new") && !text.contains("Warning"),
            "{text}"
        );
        assert!(
            text.contains("notify, throttle, power_down, lock"),
            "{text}"
        );
    }

    #[test]
    fn an_error_names_file_and_policy() {
        let dir =
            dir(r#"@id("busy") permit (principal, action, resource) when { context.load > 90 };"#);
        let error = check(dir.path(), false, None).unwrap_err().to_string();
        assert!(error.contains("ours.cedar: policy busy"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn an_empty_directory_is_no_policy() {
        let dir = tempfile::tempdir().unwrap();
        let error = check(dir.path(), false, None).unwrap_err().to_string();
        assert!(error.contains("no file that ends in .cedar"), "{error}");
    }

    #[test]
    fn policies_that_differ_are_named() {
        let old = Policies::shipped().unwrap();
        let changed = davy_decision::policy::DEFAULT
            .replace("mining_seconds >= 600", "mining_seconds >= 900")
            .replace("@id(\"observe\")", "@id(\"watch\")");
        let new = Set::read(dir(&changed).path()).unwrap().policies;
        let found = differing(&old, &new);
        let how = |id: &str| {
            found
                .iter()
                .find(|differs| differs.id == id)
                .map(|differs| differs.how)
        };
        assert_eq!(how("observe"), Some("removed"));
        assert_eq!(how("watch"), Some("added"));
        assert_eq!(how("mining:case"), Some("changed"));
        assert_eq!(how("burst:throttle"), None);
    }
}
