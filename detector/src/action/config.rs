//! The provider's side in the configuration: where facts come from, and where actions go.
//!
//! ```toml
//! [directory]
//! url = "http://127.0.0.1:7800"     # AccountDirectory; without this nothing automated ever leaves
//!
//! [actions]
//! driver = "dry_run"                # or "power_control", "webhook"
//!
//! [actions.power_control]
//! url = "http://127.0.0.1:7801"
//!
//! [actions.webhook]
//! url = "https://control.example/davy"
//! secret_file = "/etc/davy/webhook.secret"
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::driver::Driver;
use super::dry_run::DryRun;
use super::power_control::PowerControl;
use super::webhook::Webhook;
use crate::account::directory::{BadUrl, Directory, GrpcDirectory, NoDirectory};
use crate::desk::system_clock;
use crate::signature::{Secret, SecretError};

/// `[directory]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DirectoryConfig {
    /// Where the provider's `AccountDirectory` is; none: there is none.
    pub url: Option<String>,
    /// How long an answer may take, ms.
    pub timeout_ms: u64,
}

impl Default for DirectoryConfig {
    fn default() -> Self {
        Self {
            url: None,
            timeout_ms: 5_000,
        }
    }
}

/// Which driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverName {
    /// Nothing is asked of anybody.
    #[default]
    DryRun,
    /// gRPC.
    PowerControl,
    /// Signed JSON.
    Webhook,
}

/// `[actions]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActionsConfig {
    /// Which driver; none: dry run.
    pub driver: Option<DriverName>,
    /// For `power_control`.
    pub power_control: Option<PowerControlConfig>,
    /// For `webhook`.
    pub webhook: Option<WebhookConfig>,
}

const fn timeout_default() -> u64 {
    10_000
}

const fn attempts_default() -> u32 {
    3
}

/// `[actions.power_control]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerControlConfig {
    /// Where.
    pub url: String,
    /// How long an answer may take, ms.
    #[serde(default = "timeout_default")]
    pub timeout_ms: u64,
}

/// `[actions.webhook]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Where.
    pub url: String,
    /// The shared secret, in a file of its own.
    pub secret_file: PathBuf,
    /// How long an attempt may take, ms.
    #[serde(default = "timeout_default")]
    pub timeout_ms: u64,
    /// Attempts at most.
    #[serde(default = "attempts_default")]
    pub attempts_max: u32,
}

/// Why the provider's side cannot be reached as configured.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// A URL is none.
    #[error("{key}: {source}")]
    Url {
        /// The key.
        key: &'static str,
        /// What is wrong.
        source: BadUrl,
    },
    /// A driver is described, and none is chosen.
    #[error(
        "there is a section [actions.{section}], but no actions.driver; set it to {section:?}, or to \"dry_run\" while nothing is to be asked of it"
    )]
    Unchosen {
        /// The section.
        section: &'static str,
    },
    /// The driver's own section is missing.
    #[error(
        "actions.driver is {driver:?}, but there is no section [{section}]; add it with its url"
    )]
    Missing {
        /// The driver.
        driver: &'static str,
        /// The section.
        section: &'static str,
    },
    /// The secret cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A value out of its range.
    #[error("{key} is {value}, but must be {least} to {most}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// The least it may be.
        least: u64,
        /// The most.
        most: u64,
    },
}

fn timeout(key: &'static str, value: u64) -> Result<Duration, ProviderError> {
    // Shorter than what is doubted after: a request must not outlast its own release.
    let (least, most) = (10, 25_000);
    if (least..=most).contains(&value) {
        return Ok(Duration::from_millis(value));
    }
    Err(ProviderError::Range {
        key,
        value,
        least,
        most,
    })
}

/// Whether a webhook can be there: http or https, a host, and no password in the configuration's text.
fn is_web(url: &str) -> bool {
    let uri = url.parse::<axum::http::Uri>();
    uri.is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && (uri.authority()).is_some_and(|authority| !authority.as_str().contains('@'))
    })
}

impl DirectoryConfig {
    /// The directory.
    ///
    /// # Errors
    /// [`ProviderError`].
    pub fn open(&self) -> Result<Arc<dyn Directory>, ProviderError> {
        let timeout = timeout("directory.timeout_ms", self.timeout_ms)?;
        let Some(url) = &self.url else {
            return Ok(Arc::new(NoDirectory));
        };
        let key = "directory.url";
        let directory = GrpcDirectory::open(url, timeout);
        Ok(Arc::new(
            directory.map_err(|source| ProviderError::Url { key, source })?,
        ))
    }
}

impl ActionsConfig {
    /// The driver.
    ///
    /// # Errors
    /// [`ProviderError`].
    pub fn open(&self) -> Result<Arc<dyn Driver>, ProviderError> {
        let missing = |driver, section| ProviderError::Missing { driver, section };
        let described = [
            ("power_control", self.power_control.is_some()),
            ("webhook", self.webhook.is_some()),
        ];
        if self.driver.is_none()
            && let Some((section, _)) = described.into_iter().find(|(_, is_there)| *is_there)
        {
            return Err(ProviderError::Unchosen { section });
        }
        match self.driver.unwrap_or_default() {
            DriverName::DryRun => Ok(Arc::new(DryRun::default())),
            DriverName::PowerControl => {
                let section = "actions.power_control";
                let config = (self.power_control.as_ref())
                    .ok_or_else(|| missing("power_control", section))?;
                let timeout = timeout("actions.power_control.timeout_ms", config.timeout_ms)?;
                let key = "actions.power_control.url";
                let driver = PowerControl::open(&config.url, timeout, system_clock());
                Ok(Arc::new(
                    driver.map_err(|source| ProviderError::Url { key, source })?,
                ))
            }
            DriverName::Webhook => {
                let config =
                    (self.webhook.as_ref()).ok_or_else(|| missing("webhook", "actions.webhook"))?;
                let (url, key) = (&config.url, "actions.webhook.url");
                if !is_web(url) {
                    let source = BadUrl(url.clone());
                    return Err(ProviderError::Url { key, source });
                }
                if !(1..=10).contains(&config.attempts_max) {
                    return Err(ProviderError::Range {
                        key: "actions.webhook.attempts_max",
                        value: config.attempts_max.into(),
                        least: 1,
                        most: 10,
                    });
                }
                Ok(Arc::new(Webhook::new(
                    url.clone(),
                    Secret::read(&config.secret_file)?,
                    timeout("actions.webhook.timeout_ms", config.timeout_ms)?,
                    config.attempts_max,
                    system_clock(),
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<&'static str, String> {
        let config: ActionsConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        let driver = config.open().map_err(|error| error.to_string())?;
        Ok(driver.name())
    }

    #[tokio::test]
    async fn the_default_is_a_dry_run_and_what_is_missing_is_said() {
        assert_eq!(open(""), Ok("dry run"));
        let error = open("driver = \"webhook\"").unwrap_err();
        assert!(error.contains("no section [actions.webhook]"), "{error}");
        let error =
            open("driver = \"power_control\"\n[power_control]\nurl = \"nowhere\"").unwrap_err();
        assert!(
            error.starts_with("actions.power_control.url: \"nowhere\" is not a URL"),
            "{error}"
        );
        let unchosen = open("[webhook]\nurl = \"http://h:1\"\nsecret_file = \"s\"").unwrap_err();
        assert!(
            unchosen.contains("no actions.driver; set it to \"webhook\""),
            "{unchosen}"
        );
        let chosen = "driver = \"dry_run\"\n[webhook]\nurl = \"http://h:1\"\nsecret_file = \"s\"";
        assert_eq!(open(chosen), Ok("dry run"));
        let slow =
            "driver = \"power_control\"\n[power_control]\nurl = \"http://h:1\"\ntimeout_ms = 60000";
        assert!(open(slow).unwrap_err().contains("must be 10 to 25000"));
        assert_eq!(
            open("driver = \"power_control\"\n[power_control]\nurl = \"http://h:1\""),
            Ok("power control")
        );
    }

    #[test]
    fn a_webhook_is_a_url_with_a_host_and_without_a_password() {
        assert!(is_web("https://control.example/davy"));
        assert!(is_web("http://[::1]:7801"));
        for odd in [
            "https://",
            "control.example",
            "ftp://a",
            "https://davy:pw@a/",
        ] {
            assert!(!is_web(odd), "{odd}");
        }
    }
}
