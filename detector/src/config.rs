//! The configuration: a TOML file, none of which is needed. An unknown key is refused, because a misspelt bound
//! would otherwise silently be the default.
//!
//! ```toml
//! listen = "127.0.0.1:7700"
//! metrics_listen = "127.0.0.1:7701"
//! database = "davy.db"              # or postgres://USER@HOST/DATABASE, for several detectors
//! policy_dir = "/etc/davy/policy"   # *.cedar, and settings.toml; without: the policy that ships
//!
//! [directory]                       # and [actions]: see crate::action::config
//! url = "http://127.0.0.1:7800"
//!
//! [webhook]                         # what customers say, signed: see crate::account::webhook
//! listen = "127.0.0.1:7702"
//! secret_file = "/etc/davy/customers.secret"
//!
//! [limits]
//! hosts_max = 16384
//! tenants_per_host_max = 8192
//! history_per_tenant_max = 8640     # windows: a day at 10 s
//! history_total_max = 2000000       # windows of all tenants: about 1 GB
//! retention_hours = 168             # unseen tenants and hosts are removed after a week
//!
//! [[tokens]]                        # who may see and decide cases: see crate::people
//! identity = "ann"
//! kind = "person"
//! sha256 = "…"                      # `davyctl token new ann` prints it
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::action::config::{ActionsConfig, DirectoryConfig};
use crate::ingest::validate::TENANTS_MAX;
use crate::people::{Gate, TokenConfig, TokenError};
use crate::store::Limits;

/// Everything `davy-detector serve` can be told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where gRPC is served. Port 0: any free one.
    pub listen: SocketAddr,
    /// Where `/metrics` is served. Port 0: any free one.
    pub metrics_listen: SocketAddr,
    /// The SQLite file (it is made if absent, its directory is not), or the URL of a PostgreSQL database.
    pub database: String,
    /// Where the policies are, with `settings.toml`; none: what ships.
    pub policy_dir: Option<PathBuf>,
    /// Where the provider's facts come from.
    pub directory: DirectoryConfig,
    /// Where actions go.
    pub actions: ActionsConfig,
    /// The webhook for what customers say; none: gRPC alone.
    pub webhook: Option<HookConfig>,
    /// Bounds on what is kept.
    pub limits: LimitsConfig,
    /// Whose tokens are let in.
    pub tokens: Vec<TokenConfig>,
}

/// `[webhook]`: see [`crate::account::webhook`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookConfig {
    /// Where it is served (HTTP). Port 0: any free one.
    pub listen: SocketAddr,
    /// The shared secret, in a file of its own.
    pub secret_file: PathBuf,
}

/// `[limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Hosts.
    pub hosts_max: u64,
    /// Tenants of one host; at least what one window may hold.
    pub tenants_per_host_max: u64,
    /// Windows kept of one tenant.
    pub history_per_tenant_max: u64,
    /// Windows kept of all tenants.
    pub history_total_max: u64,
    /// How long unseen tenants and hosts are kept, h.
    pub retention_hours: u64,
}

/// Longest retention: above, ns since the Unix epoch would no longer fit.
const RETENTION_HOURS_MAX: u64 = 24 * 365 * 10;

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            listen: loopback(7700),
            metrics_listen: loopback(7701),
            database: "davy.db".to_owned(),
            policy_dir: None,
            directory: DirectoryConfig::default(),
            actions: ActionsConfig::default(),
            webhook: None,
            limits: LimitsConfig::default(),
            tokens: Vec::new(),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            hosts_max: 16_384,
            tenants_per_host_max: 8_192,
            history_per_tenant_max: 8_640,
            history_total_max: 2_000_000,
            retention_hours: 7 * 24,
        }
    }
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {path} cannot be read: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, or a key is unknown or of another type.
    #[error("the configuration {path} is not right: {why}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        why: String,
    },
    /// A value is out of its range.
    #[error("limits.{key} is {value}, but must be {range}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        range: String,
    },
    /// A token's stanza cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`], one clear sentence.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Parses a file's text; `path` is for errors.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            why: describe(&error, text),
        })?;
        config.store_limits()?;
        Gate::new(&config.tokens)?;
        Ok(config)
    }

    /// The bounds, checked.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`].
    pub fn store_limits(&self) -> Result<Limits, ConfigError> {
        let LimitsConfig {
            hosts_max,
            tenants_per_host_max,
            history_per_tenant_max,
            history_total_max,
            retention_hours,
        } = self.limits;
        let tenants_min = u64::try_from(TENANTS_MAX).unwrap_or(u64::MAX);
        let most = u64::from(u32::MAX);
        for (key, value, min, max) in [
            ("hosts_max", hosts_max, 1, most),
            (
                "tenants_per_host_max",
                tenants_per_host_max,
                tenants_min,
                most,
            ),
            ("history_per_tenant_max", history_per_tenant_max, 1, most),
            ("history_total_max", history_total_max, 1, most),
            ("retention_hours", retention_hours, 1, RETENTION_HOURS_MAX),
        ] {
            if !(min..=max).contains(&value) {
                return Err(ConfigError::OutOfRange {
                    key,
                    value,
                    range: format!("{min} to {max}"),
                });
            }
        }
        Ok(Limits {
            hosts_max,
            tenants_per_host_max,
            history_per_tenant_max,
            history_total_max,
            retention_ns: retention_hours * 3_600 * 1_000_000_000,
        })
    }
}

/// One line of a TOML error: where, and what.
fn describe(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => {
            let line = text
                .get(..span.start)
                .map_or(1, |before| before.matches('\n').count() + 1);
            format!("line {line}: {message}")
        }
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("f.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_needed() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn given_keys_are_taken() {
        let config = parse("listen = \"[::1]:9\"\n[limits]\nhosts_max = 3\n").unwrap();
        assert_eq!(config.listen.to_string(), "[::1]:9");
        assert_eq!(config.limits.hosts_max, 3);
        assert_eq!(config.limits.retention_hours, 168);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name_and_line() {
        let error = parse("database = \"x\"\nlisten_on = \"y\"\n").unwrap_err();
        assert!(
            error.starts_with(
                "the configuration f.toml is not right: line 2: unknown field `listen_on`"
            ),
            "{error}"
        );
        let error = parse("[limits]\nhost_max = 1\n").unwrap_err();
        assert!(
            error.contains("line 2: unknown field `host_max`"),
            "{error}"
        );
    }

    #[test]
    fn a_bound_out_of_range_is_refused() {
        let error = parse("[limits]\ntenants_per_host_max = 100\n").unwrap_err();
        assert_eq!(
            error,
            "limits.tenants_per_host_max is 100, but must be 4096 to 4294967295"
        );
        assert!(parse("[limits]\nhistory_total_max = 0\n").is_err());
        assert!(parse("[limits]\nretention_hours = 9223372036854775807\n").is_err());
    }

    #[test]
    fn no_toml_is_one_line() {
        let error = parse("listen = ").unwrap_err();
        assert!(!error.contains('\n'), "{error}");
    }
}
