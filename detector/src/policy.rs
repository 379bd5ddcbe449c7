//! The policies in force: what ships, or a directory of `*.cedar` files with an optional `settings.toml` beside them.
//!
//! The directory is read at the start (an error there ends the start) and looked at again every few seconds. What was changed is
//! taken only if two looks in a row found the same, so that no file is taken half written, and if all of it holds; a bad policy never
//! replaces a good one. `settings.toml` is read at the start alone; that it was changed since is said once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use davy_decision::{
    policy::{DEFAULT, Policies, PolicyError},
    reach,
    settings::Settings,
};

/// Name of the settings beside the policies.
pub const SETTINGS_FILE: &str = "settings.toml";

/// Why a policy directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyDirError {
    /// Something in it cannot be read.
    #[error("{path} cannot be read: {why}", path = path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// It has no policies.
    #[error("{path} has no file that ends in .cedar; put at least one policy there", path = path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// A policy does not hold.
    #[error("{path}: {why}", path = path.display())]
    Policy {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        why: PolicyError,
    },
    /// The settings do not hold.
    #[error("{path}: {why}", path = path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Policy files by name.
pub type Files = BTreeMap<String, String>;

/// Reads the `*.cedar` files of a directory.
///
/// # Errors
/// [`PolicyDirError`].
pub fn read_files(dir: &Path) -> Result<Files, PolicyDirError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |why| PolicyDirError::Unreadable { path, why }
    };
    let mut files = Files::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable(dir))? {
        let path = entry.map_err(unreadable(dir))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        // Editors' and mounts' hidden files are no policies.
        if name.starts_with('.') || !name.ends_with(".cedar") {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(unreadable(&path))?;
        files.insert(name.to_owned(), text);
    }
    if files.is_empty() {
        return Err(PolicyDirError::Empty {
            path: dir.to_owned(),
        });
    }
    Ok(files)
}

/// Reads the settings beside the policies; `held` if there are none.
///
/// # Errors
/// [`PolicyDirError`].
pub fn read_settings(dir: &Path, held: Settings) -> Result<Settings, PolicyDirError> {
    let path = dir.join(SETTINGS_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(held),
        Err(why) => return Err(PolicyDirError::Unreadable { path, why }),
    };
    Settings::of_toml(&text).map_err(|why| PolicyDirError::Settings { path, why })
}

fn settings_text(dir: &Path) -> Option<String> {
    std::fs::read_to_string(dir.join(SETTINGS_FILE)).ok()
}

/// The policies in force, and where they come from.
#[derive(Debug)]
pub struct Held {
    dir: Option<PathBuf>,
    now: RwLock<(Arc<Policies>, Files)>,
    /// What the last look found, if it was not what is in force.
    found: Mutex<Option<Files>>,
    /// The settings' text as last looked at.
    settings: Mutex<Option<String>>,
}

/// What is odd about policies that hold, a sentence each: permits that nothing reaches, and those that may not be meant.
#[must_use]
pub fn warnings(policies: &Policies) -> Vec<String> {
    let unreached = reach::unreached(policies).into_iter();
    let unreached = unreached.map(|id| format!("nothing reaches the permit {id}"));
    let concerns = reach::concerns(policies).into_iter();
    let concerns = concerns.map(|reach::Concern { id, what }| format!("{id} {what}"));
    unreached.chain(concerns).collect()
}

impl Held {
    /// Of a directory, or what ships.
    ///
    /// # Errors
    /// [`PolicyDirError`].
    pub fn open(dir: Option<PathBuf>) -> Result<Self, PolicyDirError> {
        let files = match &dir {
            Some(dir) => read_files(dir)?,
            None => Files::from([("default.cedar".to_owned(), DEFAULT.to_owned())]),
        };
        let policies = Policies::new(&files).map_err(|why| PolicyDirError::Policy {
            path: dir.clone().unwrap_or_default(),
            why,
        })?;
        let settings = dir.as_deref().and_then(settings_text);
        Ok(Self {
            dir,
            settings: Mutex::new(settings),
            now: RwLock::new((Arc::new(policies), files)),
            found: Mutex::default(),
        })
    }

    /// Those in force.
    #[must_use]
    pub fn now(&self) -> Arc<Policies> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&now.0)
    }

    /// Their files.
    #[must_use]
    pub fn files(&self) -> Files {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        now.1.clone()
    }

    /// Looks whether they were changed, and gives the change once the next look finds the same and if all of it holds. What is in force stays until it is [taken](Self::take).
    ///
    /// # Errors
    /// [`PolicyDirError`].
    pub fn changed(&self) -> Result<Option<(Policies, Files)>, PolicyDirError> {
        let Some(dir) = &self.dir else {
            return Ok(None);
        };
        let files = read_files(dir)?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if files == self.files() {
            *found = None;
            return Ok(None);
        }
        if found.as_ref() != Some(&files) {
            *found = Some(files);
            return Ok(None);
        }
        let policies = Policies::new(&files).map_err(|why| PolicyDirError::Policy {
            path: dir.clone(),
            why,
        })?;
        Ok(Some((policies, files)))
    }

    /// Whether the settings were changed since they were last looked at.
    #[must_use]
    pub fn settings_changed(&self) -> bool {
        let Some(dir) = &self.dir else {
            return false;
        };
        let text = settings_text(dir);
        let mut held = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *held != text;
        *held = text;
        changed
    }

    /// Puts changed policies in force.
    pub fn take(&self, (policies, files): (Policies, Files)) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = (Arc::new(policies), files);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_policy_never_replaces_a_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ours.cedar");
        std::fs::write(&file, DEFAULT).unwrap();
        let held = Held::open(Some(dir.path().to_owned())).unwrap();
        let before = held.now().digest().to_owned();
        assert!(held.changed().unwrap().is_none());
        std::fs::write(
            &file,
            "permit (principal, action, resource) when { context.load > 90 };",
        )
        .unwrap();
        let half_written = held.changed().unwrap();
        assert!(half_written.is_none(), "it may be, at the first look");
        let error = held.changed().unwrap_err().to_string();
        assert!(error.contains("ours.cedar"), "{error}");
        assert_eq!(held.now().digest(), before);
        std::fs::write(&file, format!("{DEFAULT}\n")).unwrap();
        assert!(held.changed().unwrap().is_none());
        let changed = held.changed().unwrap().unwrap();
        assert_eq!(
            held.now().digest(),
            before,
            "in force only when it is taken"
        );
        held.take(changed);
        assert_ne!(held.now().digest(), before);
        assert!(!held.settings_changed());
        std::fs::write(dir.path().join(SETTINGS_FILE), "hold_ms = 60000").unwrap();
        assert!(held.settings_changed() && !held.settings_changed());
    }

    #[test]
    fn what_ships_has_no_warning_and_what_reaches_customers_sooner_has_one() {
        assert_eq!(warnings(&Policies::shipped().unwrap()), [""; 0]);
        let lock = "@id(\"l\") permit (principal, action == Davy::Action::\"lock\", resource) \
                    when { context.level == \"mining\" };";
        let files = Files::from([("a.cedar".to_owned(), format!("{DEFAULT}\n{lock}"))]);
        let warned = warnings(&Policies::new(&files).unwrap());
        assert!(
            warned
                .iter()
                .any(|warning| warning.starts_with("l permits to lock")),
            "{warned:?}"
        );
    }

    #[test]
    fn an_empty_directory_and_odd_settings_are_refused_in_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_files(dir.path()).unwrap_err().to_string();
        assert!(error.contains("no file that ends in .cedar"), "{error}");
        let settings = |text| {
            std::fs::write(dir.path().join(SETTINGS_FILE), text).unwrap();
            read_settings(dir.path(), Settings::default())
        };
        assert!(
            settings("hold_ms = 0")
                .unwrap_err()
                .to_string()
                .contains("hold_ms is 0")
        );
        assert!(
            settings("hold = 1")
                .unwrap_err()
                .to_string()
                .contains("unknown field")
        );
        assert_eq!(settings("hold_ms = 60000").unwrap().hold_ms.as_ms(), 60_000);
    }
}
