//! What a host must have before programs can be loaded, each with its remedy.

use std::fs;

use super::{LoadError, btf, offsets};

/// One thing that the kernel half needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// What it is.
    pub name: &'static str,
    /// What was found, or the sentence that says what to do.
    pub found: Result<String, String>,
}

/// Inode of the initial pid namespace, `PROC_PID_INIT_INO`, include/linux/proc_ns.h.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// All requirements, for `check`.
#[must_use]
pub fn requirements() -> Vec<Requirement> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        requirement(
            "privileges",
            privileges().map(|()| "all that is needed".to_owned()),
        ),
        requirement(
            "pid namespace",
            pid_namespace().map(|()| "the host's".to_owned()),
        ),
        requirement("lockdown", lockdown(&lockdown_file()).map(str::to_owned)),
        requirement(
            "BTF",
            fields().map(|()| format!("of kernel {}", kernel.trim())),
        ),
    ]
}

fn requirement(name: &'static str, found: Result<String, LoadError>) -> Requirement {
    Requirement {
        name,
        found: found.map_err(|error| error.to_string()),
    }
}

/// The first requirement that is not met.
pub(super) fn check() -> Result<(), LoadError> {
    privileges()?;
    pid_namespace()?;
    lockdown(&lockdown_file())?;
    Ok(())
}

/// CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN (capabilities(7)), among the effective ones.
fn privileges() -> Result<(), LoadError> {
    const SYS_ADMIN: u64 = 1 << 21;
    const BPF_AND_PERFMON: u64 = (1 << 39) | (1 << 38);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    if effective & SYS_ADMIN != 0 || effective & BPF_AND_PERFMON == BPF_AND_PERFMON {
        return Ok(());
    }
    Err(LoadError::Privileges)
}

fn pid_namespace() -> Result<(), LoadError> {
    match fs::read_link("/proc/self/ns/pid") {
        Ok(link) if link.to_str() == Some(INITIAL_PID_NAMESPACE) => Ok(()),
        _ => Err(LoadError::PidNamespace),
    }
}

fn lockdown_file() -> String {
    fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default()
}

/// The mode in brackets, as in "none [integrity] confidentiality" (security/lockdown/lockdown.c).
fn lockdown(content: &str) -> Result<&'static str, LoadError> {
    if content.contains("[confidentiality]") {
        return Err(LoadError::Lockdown);
    }
    Ok(if content.contains("[integrity]") {
        "integrity (eBPF is allowed)"
    } else {
        "none"
    })
}

fn fields() -> Result<(), LoadError> {
    offsets::resolve(&btf::Btf::read(btf::VMLINUX.as_ref())?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_confidentiality_is_refused() {
        assert!(lockdown("none integrity [confidentiality]\n").is_err());
        assert!(lockdown("none [integrity] confidentiality\n").is_ok());
        assert!(lockdown("[none] integrity confidentiality\n").is_ok());
        assert!(lockdown("").is_ok());
    }
}
