//! What can go wrong on the way to the kernel, in sentences that say what to do.

use super::{btf::BtfError, offsets::OffsetError};

/// Why the kernel half could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not root, and without the capabilities.
    #[error(
        "loading eBPF programs needs root (or CAP_BPF, CAP_PERFMON and CAP_SYS_RESOURCE): run the agent as root"
    )]
    Privileges,
    /// In a container's pid namespace, where thread ids mean something else.
    #[error(
        "the agent runs in a pid namespace of its own, where it cannot tell the host's threads: run it in the host's (for a container: `--pid=host`)"
    )]
    PidNamespace,
    /// Lockdown in confidentiality mode.
    #[error(
        "kernel lockdown is in confidentiality mode and refuses eBPF programs that read kernel memory: boot with lockdown=integrity or none"
    )]
    Lockdown,
    /// No usable BTF.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A structure the programs need differs.
    #[error(transparent)]
    Offset(#[from] OffsetError),
    /// An option is out of range.
    #[error("{name} = {value} is out of range: set it to {range}")]
    Option {
        /// The option.
        name: &'static str,
        /// What was given.
        value: u64,
        /// What is allowed.
        range: &'static str,
    },
    /// The kernel refused something.
    #[error(
        "{what} was refused by the kernel: {reason}; `davy-agent check` lists what this host lacks"
    )]
    Refused {
        /// What was asked.
        what: String,
        /// The kernel's words, with the verifier's last lines if there are any.
        reason: String,
    },
}

impl LoadError {
    /// For `map_err`: the kernel refused `what`.
    pub(super) fn refused<E: std::error::Error>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |error| Self::Refused {
            what,
            reason: chain(&error),
        }
    }
}

/// Why a loaded kernel half could not do something.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No such process.
    #[error("there is no process {tgid}")]
    NoSuchProcess {
        /// The id asked for.
        tgid: u32,
    },
    /// Not a control group.
    #[error(
        "{path} is not a control group ({reason}): give the group's directory, e.g. /sys/fs/cgroup/machine.slice/web"
    )]
    NotACgroup {
        /// The directory asked for.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// A map operation failed.
    #[error("the eBPF map {map} could not be used: {reason}")]
    Map {
        /// Which map.
        map: String,
        /// The kernel's words.
        reason: String,
    },
}

impl KernelError {
    /// For `map_err`: the map failed.
    pub(super) fn map<E: std::error::Error>(map: &str) -> impl FnOnce(E) -> Self {
        let map = map.to_owned();
        move |error| Self::Map {
            map,
            reason: chain(&error),
        }
    }
}

/// An error and its causes in one line, cut to what a person can use.
fn chain(error: &dyn std::error::Error) -> String {
    const CHARS_MAX: usize = 600;
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let skip = text.chars().count().saturating_sub(CHARS_MAX);
    if skip == 0 {
        return text;
    }
    // The verifier's verdict stands at the end of its log.
    let head: String = text.chars().take(120).collect();
    let tail: String = text.chars().skip(skip + 120).collect();
    format!("{head} … {tail}")
}
