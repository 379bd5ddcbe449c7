//! The agent's configuration: one TOML file, every key optional.
//!
//! An empty file is a working configuration. A key that is not described here is refused, and so is a
//! value out of range: the error names the file and the key. Nothing here is read again while the agent runs.
//!
//! ```toml
//! detector = "http://10.0.0.5:7700"
//! window_ms = 10000
//!
//! [names]
//! pattern = '^droplet-(?<id>[0-9]+)$'
//!
//! [pmu]
//! reserve_counters = 2
//!
//! [[tenant]]
//! name = "encoder"
//! cgroup = "/sys/fs/cgroup/encoder"
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Component, Path, PathBuf},
};

use regex::Regex;
use serde::Deserialize;

use crate::sensor::pmu;

/// Least and greatest window, ms. The wire allows windows of at most an hour.
pub const WINDOW_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;

/// Least rate of wakings that is not off, 1/s.
const RATE_HZ_MIN: f64 = 0.01;

/// Everything that can be configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The host's name as the detector will know it: 1 to 253 characters of `[A-Za-z0-9._-]`.
    /// Default: the machine's host name.
    pub host: String,
    /// The detector's address, `http://HOST:PORT`. Default: `http://127.0.0.1:7700`.
    pub detector: String,
    /// Length of a window, ms; 1000 to 3600000. Default: 10000.
    pub window_ms: u64,
    /// Windows kept in memory while the detector does not take them; 1 to 1000000. Beyond it the oldest is
    /// dropped and counted. Default: 8640 (a day of 10 s windows).
    pub queue_windows_max: usize,
    /// The same in bytes of encoded windows; at least 65536. Default: 268435456 (256 MiB).
    pub queue_bytes_max: usize,
    /// Where the agent serves its own metrics (`/metrics`). Default: `127.0.0.1:7710`. Empty: nowhere.
    pub metrics_listen: String,
    /// Threads that can be watched at one time; 16 to 1048576. Default: 16384.
    pub slots_max: u32,
    /// Least time between two looks at one thread's registers, ms; 1 to 1000. Default: 5.
    pub sample_interval_ms: u64,
    /// Whether vCPU threads are found by themselves. Default: true.
    pub find_vcpus: bool,
    /// Performance counters.
    pub pmu: pmu::Options,
    /// How names become droplet ids.
    pub names: Names,
    /// Further tenants: control groups and processes.
    pub tenant: Vec<Tenant>,
    /// The waking that makes an uncontended CPU switch, and so be sampled.
    pub nudge: Nudge,
    /// What the agent may cost.
    pub budget: crate::governor::Budget,
}

/// How the name a VMM was given, or that of a tenant configured here, becomes the provider's droplet id.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// A regular expression with a group named `id`, matched against the names of VMs and of the tenants configured here.
    /// Default: none, and every tenant is reported with an empty droplet id. A name that does not match is reported too.
    pub pattern: Option<String>,
}

/// A tenant that is not a VM found by itself: exactly one of `cgroup` and `pid`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tenant {
    /// What it is called: 1 to 255 bytes without control characters; no two tenants may share it.
    pub name: String,
    /// The directory of a control group (any hierarchy); its descendants belong to it, present and future.
    /// It may appear later: the agent asks again every second. A VM in it counts for this tenant, not as a
    /// droplet of its own.
    pub cgroup: Option<PathBuf>,
    /// A process, with all its threads.
    pub pid: Option<u32>,
    /// With `pid`: the process's descendants too. Default: false.
    pub tree: bool,
}

/// A thread per CPU that wakes for a moment, so that the CPU switches and what runs there is looked at.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nudge {
    /// Wakings per second and CPU at rest; 0 (off), or 0.01 to 50. Default: 2.
    pub rest_hz: f64,
    /// Wakings per second on the CPUs of a tenant where evidence is forming; 0 (off), or 0.01 to 100. Default: 20.
    pub closer_look_hz: f64,
    /// How long a closer look lasts, s; 1 to 600. Default: 5.
    pub closer_look_s: u64,
    /// CPUs that are never nudged, as the kernel writes CPU lists (`2-3,8`). Isolated CPUs
    /// (`/sys/devices/system/cpu/isolated`, `nohz_full`) are never nudged either. Default: none.
    pub exclude_cpus: String,
}

impl Default for Nudge {
    fn default() -> Self {
        Self {
            rest_hz: 2.0,
            closer_look_hz: 20.0,
            closer_look_s: 5,
            exclude_cpus: String::new(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: machine_host_name(),
            detector: "http://127.0.0.1:7700".to_owned(),
            window_ms: 10_000,
            queue_windows_max: 8_640,
            queue_bytes_max: 256 << 20,
            metrics_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7710).to_string(),
            slots_max: 16_384,
            sample_interval_ms: 5,
            find_vcpus: true,
            pmu: pmu::Options::default(),
            names: Names::default(),
            tenant: Vec::new(),
            nudge: Nudge::default(),
            budget: crate::governor::Budget::default(),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML, has an unknown key, or a value of the wrong type.
    #[error("the configuration {} is not valid: {problem}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line and what is wrong, one sentence.
        problem: String,
    },
    /// A value is out of range or contradicts another.
    #[error("in the configuration {}, `{key}` {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read, parsed, or holds a value out of range.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Parses and checks `text`; `path` is for messages.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            problem: in_one_sentence(&source, text),
        })?;
        config
            .check()
            .map_err(|(key, problem)| ConfigError::Value {
                path: path.to_owned(),
                key,
                problem,
            })?;
        Ok(config)
    }

    /// The compiled name pattern; `None` if none is configured (or the configuration was never checked).
    #[must_use]
    pub fn name_pattern(&self) -> Option<Regex> {
        self.names
            .pattern
            .as_deref()
            .and_then(|pattern| Regex::new(pattern).ok())
    }

    /// Where to serve metrics; `None` if nowhere.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_listen.parse().ok()
    }

    fn check(&self) -> Result<(), (String, String)> {
        let bad = |key: &str, problem: String| Err((key.to_owned(), problem));
        let host_ok = (1..=253).contains(&self.host.len())
            && self
                .host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !host_ok {
            let host = &self.host;
            return bad(
                "host",
                format!("is {host:?}: it must have 1 to 253 characters of A-Z a-z 0-9 . _ -"),
            );
        }
        if !self.detector.starts_with("http://") || self.detector.len() <= "http://".len() {
            let detector = &self.detector;
            return bad(
                "detector",
                format!("is {detector:?}: it must look like http://HOST:PORT"),
            );
        }
        in_range("window_ms", self.window_ms, WINDOW_MS)?;
        in_range("queue_windows_max", self.queue_windows_max, 1..=1_000_000)?;
        in_range("queue_bytes_max", self.queue_bytes_max, 65_536..=usize::MAX)?;
        in_range("slots_max", self.slots_max, 16..=1_048_576)?;
        in_range("sample_interval_ms", self.sample_interval_ms, 1..=1_000)?;
        in_range("pmu.reserve_counters", self.pmu.reserve_counters, 0..=16)?;
        in_range("pmu.slice_ms", self.pmu.slice_ms, 1_000..=60_000)?;
        if !self.metrics_listen.is_empty() && self.metrics_address().is_none() {
            let listen = &self.metrics_listen;
            return bad(
                "metrics_listen",
                format!("is {listen:?}: it must be ADDRESS:PORT, or empty"),
            );
        }
        if let Some(pattern) = &self.names.pattern {
            match Regex::new(pattern) {
                Err(error) => {
                    // The lines before the last draw where it is.
                    let error = error.to_string();
                    let what = error.lines().last().unwrap_or_default();
                    let what = what.trim_start_matches("error: ");
                    return bad("names.pattern", format!("is not a pattern: {what}"));
                }
                Ok(regex) if !regex.capture_names().flatten().any(|name| name == "id") => {
                    return bad(
                        "names.pattern",
                        "has no group named `id`: write (?<id>…)".to_owned(),
                    );
                }
                Ok(_) => {}
            }
        }
        self.check_tenants()?;
        self.budget.check()?;
        self.nudge.check()
    }

    /// The name of an earlier tenant than the `index`-th that is the same control group, or is above or below it.
    fn overlapping(&self, index: usize, cgroup: &Path) -> Option<&str> {
        let mut earlier = self.tenant[..index].iter();
        let tenant = earlier.find(|tenant| {
            (tenant.cgroup.as_deref())
                .is_some_and(|other| other.starts_with(cgroup) || cgroup.starts_with(other))
        })?;
        Some(&tenant.name)
    }

    fn check_tenants(&self) -> Result<(), (String, String)> {
        for (index, tenant) in self.tenant.iter().enumerate() {
            let key = format!("tenant[{index}]");
            if tenant.name.is_empty() {
                return Err((format!("{key}.name"), "is missing or empty".to_owned()));
            }
            if tenant.name.len() > 255 || tenant.name.chars().any(char::is_control) {
                return Err((
                    format!("{key}.name"),
                    "must have at most 255 bytes and no control characters".to_owned(),
                ));
            }
            if self.tenant[..index].iter().any(|t| t.name == tenant.name) {
                return Err((
                    format!("{key}.name"),
                    format!("{:?} is used twice", tenant.name),
                ));
            }
            match (&tenant.cgroup, tenant.pid) {
                (Some(_), Some(_)) => {
                    return Err((key, "has both `cgroup` and `pid`: keep one".to_owned()));
                }
                (None, None) => {
                    return Err((key, "needs `cgroup` or `pid`".to_owned()));
                }
                (Some(cgroup), None) if !cgroup.is_absolute() => {
                    return Err((
                        format!("{key}.cgroup"),
                        format!("is {}: it must be an absolute path", cgroup.display()),
                    ));
                }
                (Some(cgroup), None) if cgroup.components().any(|c| c == Component::ParentDir) => {
                    return Err((
                        format!("{key}.cgroup"),
                        format!("is {}: it must not go through ..", cgroup.display()),
                    ));
                }
                (Some(cgroup), None) if let Some(other) = self.overlapping(index, cgroup) => {
                    return Err((
                        format!("{key}.cgroup"),
                        format!(
                            "is {}, which overlaps that of tenant {other:?}: a thread can count for one tenant only",
                            cgroup.display()
                        ),
                    ));
                }
                (Some(_), None) if tenant.tree => {
                    return Err((
                        format!("{key}.tree"),
                        "goes with `pid`; a control group's descendants always belong to it"
                            .to_owned(),
                    ));
                }
                (None, Some(0)) => {
                    return Err((format!("{key}.pid"), "must not be 0".to_owned()));
                }
                (Some(_), None) | (None, Some(_)) => {}
            }
        }
        Ok(())
    }
}

impl Nudge {
    fn check(&self) -> Result<(), (String, String)> {
        let rate = |key: &str, value: f64, max: f64| {
            if value == 0.0 || (RATE_HZ_MIN..=max).contains(&value) {
                Ok(())
            } else {
                Err((
                    key.to_owned(),
                    format!("is {value}: it must be 0, or between {RATE_HZ_MIN} and {max}"),
                ))
            }
        };
        rate("nudge.rest_hz", self.rest_hz, 50.0)?;
        rate("nudge.closer_look_hz", self.closer_look_hz, 100.0)?;
        in_range("nudge.closer_look_s", self.closer_look_s, 1..=600)?;
        parse_cpu_list(&self.exclude_cpus)
            .map(|_| ())
            .map_err(|problem| ("nudge.exclude_cpus".to_owned(), problem))
    }
}

/// What `toml` has to say about `text`, without the drawing.
fn in_one_sentence(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().replace('\n', "; ");
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return message;
    };
    let number = before.matches('\n').count();
    let line = text.lines().nth(number).unwrap_or_default().trim();
    format!("line {} ({line}): {message}", number + 1)
}

fn in_range<T: Copy + PartialOrd + std::fmt::Display>(
    key: &str,
    value: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<(), (String, String)> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, greatest) = range.into_inner();
    Err((
        key.to_owned(),
        format!("is {value}: it must be between {least} and {greatest}"),
    ))
}

/// Parses a CPU list as the kernel writes it (`0-3,8`); whitespace around it and an empty list are fine.
///
/// # Errors
/// One sentence that quotes the part that is wrong.
pub fn parse_cpu_list(list: &str) -> Result<Vec<u32>, String> {
    let mut cpus = Vec::new();
    for part in list.trim().split(',').map(str::trim) {
        if part.is_empty() || part == "(null)" {
            continue;
        }
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            text.trim()
                .parse::<u32>()
                .ok()
                .filter(|&cpu| cpu < 8192)
                .ok_or_else(|| format!("is not a list of CPUs like 2-3,8: {part:?}"))
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("has a range that runs backwards: {part:?}"));
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// The machine's host name, with what the wire does not allow replaced by `-`.
fn machine_host_name() -> String {
    let uname = rustix::system::uname();
    let name: String = uname
        .nodename()
        .to_string_lossy()
        .chars()
        .take(253)
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("agent.toml"), text)
    }

    fn refusal(text: &str) -> String {
        let error = parse(text).expect_err("must be refused");
        let mut sentence = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            sentence.push_str(&format!(": {source}"));
        }
        sentence
    }

    #[test]
    fn an_empty_file_is_a_working_configuration() {
        let config = parse("").unwrap();
        assert_eq!(config.detector, "http://127.0.0.1:7700");
        assert_eq!(config.window_ms, 10_000);
        assert_eq!(config.queue_windows_max, 8_640);
        assert_eq!(
            config.metrics_address(),
            Some("127.0.0.1:7710".parse().unwrap())
        );
        assert!(!config.host.is_empty());
        assert!(config.tenant.is_empty());
    }

    #[test]
    fn a_full_file_is_read() {
        let config = parse(
            r#"
            host = "hv-7"
            detector = "http://10.0.0.5:7700"
            window_ms = 1000
            metrics_listen = ""
            [names]
            pattern = '^droplet-(?<id>[0-9]+)$'
            [[tenant]]
            name = "encoder"
            cgroup = "/sys/fs/cgroup/encoder"
            [[tenant]]
            name = "job"
            pid = 42
            tree = true
            [nudge]
            exclude_cpus = "2-3"
            [pmu]
            enabled = false
            reserve_counters = 3
            "#,
        )
        .unwrap();
        assert_eq!(config.host, "hv-7");
        assert_eq!(config.metrics_address(), None);
        assert!(config.name_pattern().unwrap().is_match("droplet-12"));
        assert_eq!(config.tenant[1].pid, Some(42));
        assert!(config.tenant[1].tree);
        assert_eq!(
            (config.pmu.enabled, config.pmu.reserve_counters),
            (false, 3)
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_file_and_key() {
        for (text, words) in [
            ("windw_ms = 5", &["agent.toml", "windw_ms"][..]),
            ("[nudge]\nrest = 1", &["agent.toml", "rest"]),
            ("window_ms = 999", &["agent.toml", "window_ms", "1000"]),
            ("window_ms = \"a\"", &["agent.toml", "window_ms"]),
            ("host = 'a b'", &["host", "253"]),
            ("detector = 'https://x'", &["detector", "http://"]),
            ("[names]\npattern = '('", &["names.pattern"]),
            ("[names]\npattern = 'x'", &["names.pattern", "(?<id>"]),
            ("[[tenant]]\nname = 'a'", &["tenant[0]", "cgroup"]),
            (
                "[[tenant]]\nname = 'a'\npid = 1\ncgroup = '/x'",
                &["tenant[0]", "both"],
            ),
            (
                "[[tenant]]\nname = 'a'\npid = 1\n[[tenant]]\nname = 'a'\npid = 2",
                &["tenant[1].name", "twice"],
            ),
            ("[nudge]\nrest_hz = -1.0", &["nudge.rest_hz"]),
            ("[nudge]\nrest_hz = 1e-300", &["nudge.rest_hz", "0.01"]),
            ("[nudge]\nrest_hz = nan", &["nudge.rest_hz"]),
            (
                "[pmu]\nreserve_counters = 17",
                &["pmu.reserve_counters", "16"],
            ),
            ("[pmu]\nslice_ms = 500", &["pmu.slice_ms", "1000"]),
            ("[pmu]\nreserve = 1", &["agent.toml", "reserve"]),
            (
                "[[tenant]]\nname = 'a'\ncgroup = '/g/../x'",
                &["tenant[0].cgroup", ".."],
            ),
            (
                "[[tenant]]\nname = 'a'\ncgroup = '/g/x/'\n[[tenant]]\nname = 'b'\ncgroup = '/g'",
                &["tenant[1].cgroup", "overlaps", "\"a\""],
            ),
            (
                "[[tenant]]\nname = 'a'\ncgroup = '/g'\n[[tenant]]\nname = 'b'\ncgroup = '/g/.'",
                &["tenant[1].cgroup", "overlaps"],
            ),
            ("\nwindow_ms = = 5", &["agent.toml", "line 2"]),
            ("[nudge]\nexclude_cpus = '3-2'", &["nudge.exclude_cpus"]),
            ("[budget]\ncpu_share = -1", &["budget.cpu_share", "0.001"]),
            ("[budget]\ncpu_share = nan", &["budget.cpu_share"]),
            ("metrics_listen = 'x'", &["metrics_listen"]),
        ] {
            let sentence = refusal(text);
            for word in words {
                assert!(sentence.contains(word), "{text:?} gave {sentence:?}");
            }
            assert!(!sentence.contains('\n'), "{sentence:?}");
        }
    }

    #[test]
    fn groups_side_by_side_are_two_tenants() {
        let text =
            "[[tenant]]\nname = 'a'\ncgroup = '/g/x'\n[[tenant]]\nname = 'b'\ncgroup = '/g/xy'";
        assert_eq!(parse(text).unwrap().tenant.len(), 2);
    }

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("\n").unwrap(), Vec::<u32>::new());
        assert_eq!(parse_cpu_list("0-2,7\n").unwrap(), vec![0, 1, 2, 7]);
        assert_eq!(parse_cpu_list(" (null)\n").unwrap(), Vec::<u32>::new());
        assert!(parse_cpu_list("a").is_err());
        assert!(parse_cpu_list("0-99999").is_err());
    }
}
