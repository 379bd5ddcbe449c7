//! The provider's side of the demo: its accounts, the policy the detector runs under, and who may look at cases.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::program::{self, Program};
use crate::shell;

/// Whose the droplets are: a scenario's accounts, with their stories moved so that they end now.
const ACCOUNTS: &str = include_str!("../../../tests/provider/accounts.jsonl");

/// The policy: that which ships, with a duration shortened.
const POLICY: &str = include_str!("../../../tests/provider/policy/demo.cedar");

/// Its settings.
const SETTINGS: &str = include_str!("../../../tests/provider/policy/settings.toml");

/// What the demo's policy and settings have shortened, as people are told.
pub const SHORTENED: [&str; 3] = [
    "10 minutes of mining are 10 seconds",
    "half of the fleet may be acted on at one time, not 1 %: the whole fleet is one small host",
    "facts are fetched anew after 10 seconds, not after an hour",
];

/// Who looks at the cases.
const PERSON: &str = "demo";

/// The account directory as it runs, and what the detector is told.
#[derive(Debug)]
pub struct Provider {
    directory: Program,
    /// The detector's configuration.
    pub config: PathBuf,
    /// The directory of the demo's policy.
    pub policy: PathBuf,
    /// A token of [`PERSON`], in a file.
    pub token: PathBuf,
}

impl Provider {
    /// Starts the account directory, and writes the rest into `dir`.
    ///
    /// # Errors
    /// If a file cannot be written, the policy does not hold, or the directory does not start.
    pub fn set(programs: &Path, dir: &Path) -> Result<Self> {
        let policy = dir.join("policy");
        fs::create_dir_all(&policy).with_context(|| format!("cannot make {}", policy.display()))?;
        write(&policy.join("demo.cedar"), POLICY)?;
        write(&policy.join("settings.toml"), SETTINGS)?;
        let davyctl = programs.join("davyctl").to_string_lossy().into_owned();
        check(&davyctl, &policy)?;

        let accounts = dir.join("accounts.jsonl");
        write(&accounts, ACCOUNTS)?;
        let listen = program::free_address()?;
        let mut directory = Program::start(
            "provider",
            &[
                &programs.join("davy-test-provider").to_string_lossy(),
                "--listen",
                &listen.to_string(),
                &accounts.to_string_lossy(),
            ],
            None,
            dir,
        )?;
        directory.wait_for(listen)?;

        let (token, sha256) = new_token(&davyctl)?;
        let token_file = dir.join("token");
        write(&token_file, &token)?;
        // davyctl refuses a token that others can read.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&token_file, mode).context("cannot keep the token to its owner")?;
        let config = dir.join("detector.toml");
        write(&config, &detector_config(listen, &policy, &sha256))?;
        Ok(Self {
            directory,
            config,
            policy,
            token: token_file,
        })
    }

    /// Whether the account directory still runs.
    ///
    /// # Errors
    /// If it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.directory.check()
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn check(davyctl: &str, policy: &Path) -> Result<()> {
    let done = shell::command(davyctl)?
        .args(["policy", "check"])
        .arg(policy)
        .output()
        .context("cannot start davyctl")?;
    if !done.status.success() {
        bail!(
            "the demo's policy does not hold: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(())
}

/// A new token of [`PERSON`], and its digest.
fn new_token(davyctl: &str) -> Result<(String, String)> {
    let done = shell::command(davyctl)?
        .args(["token", "new", PERSON, "--json"])
        .output()
        .context("cannot start davyctl")?;
    let told: Value =
        serde_json::from_slice(&done.stdout).context("davyctl's new token is not JSON")?;
    let text = |field: &str| {
        let value = told.get(field).and_then(Value::as_str);
        value
            .map(str::to_owned)
            .with_context(|| format!("davyctl's new token has no {field}"))
    };
    Ok((text("token")?, text("sha256")?))
}

fn detector_config(directory: SocketAddr, policy: &Path, sha256: &str) -> String {
    let mut root = toml::Table::new();
    root.insert(
        "policy_dir".to_owned(),
        policy.to_string_lossy().into_owned().into(),
    );
    let mut asked = toml::Table::new();
    asked.insert("url".to_owned(), format!("http://{directory}").into());
    root.insert("directory".to_owned(), asked.into());
    let mut token = toml::Table::new();
    for (key, value) in [("identity", PERSON), ("kind", "person"), ("sha256", sha256)] {
        token.insert(key.to_owned(), value.into());
    }
    root.insert("tokens".to_owned(), vec![toml::Value::from(token)].into());
    root.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_toml() {
        let listen = "127.0.0.1:1".parse().unwrap();
        let text = detector_config(listen, Path::new("/a policy"), "ab");
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(
            read["directory"]["url"].as_str(),
            Some("http://127.0.0.1:1")
        );
        assert_eq!(read["tokens"][0]["sha256"].as_str(), Some("ab"));
    }
}
