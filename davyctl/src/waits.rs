//! Behind whom a tenant's threads waited for a CPU in a window: what the wire says, for JSON and in a line of text.

use davy_proto::v1;
use serde::Serialize;

use crate::model::{percent, some_text, text};

/// Waits that ended within a window.
#[derive(Debug, Serialize)]
pub struct Waits {
    /// Who ran meanwhile, the most first.
    pub behind: Vec<WaitedBehind>,
    /// Behind all other processes.
    pub others_ns: u64,
    /// Beside an idle CPU: it was waking up, or a quota was used up.
    pub idle_ns: u64,
    /// Not known.
    pub unknown_ns: u64,
}

/// A process that ran meanwhile.
#[derive(Debug, Serialize)]
pub struct WaitedBehind {
    /// Its tenant; `null` if none.
    pub tenant_key: Option<String>,
    /// Its name; `null` if it has ended.
    pub command: Option<String>,
    /// Its id.
    pub pid: u32,
    /// How long.
    pub ns: u64,
}

impl From<v1::Waits> for Waits {
    fn from(wire: v1::Waits) -> Self {
        let v1::Waits {
            behind,
            others_ns,
            idle_ns,
            unknown_ns,
        } = wire;
        Self {
            behind: behind.into_iter().map(WaitedBehind::from).collect(),
            others_ns,
            idle_ns,
            unknown_ns,
        }
    }
}

impl From<v1::WaitedBehind> for WaitedBehind {
    fn from(wire: v1::WaitedBehind) -> Self {
        let v1::WaitedBehind {
            tenant_key,
            command,
            pid,
            ns,
        } = wire;
        Self {
            tenant_key: some_text(&tenant_key),
            command: some_text(&command),
            pid,
            ns,
        }
    }
}

/// In one line: each part of the wait in per cent of one CPU; `own_key` is the waiting tenant's.
pub fn in_words(waits: Option<&Waits>, own_key: &str, window_ns: u64) -> String {
    let Some(waits) = waits else {
        return "unknown".to_owned();
    };
    let mut parts: Vec<(String, u64)> = Vec::new();
    for of in &waits.behind {
        let name = of.command.as_deref().unwrap_or("ended");
        let who = match of.tenant_key.as_deref() {
            Some(key) if key == own_key => format!("itself ({name}, pid {})", of.pid),
            Some(key) => format!("{} ({name}, pid {})", text(key), of.pid),
            None => format!("{name} (pid {})", of.pid),
        };
        parts.push((who, of.ns));
    }
    parts.extend([
        ("others".to_owned(), waits.others_ns),
        ("an idle CPU".to_owned(), waits.idle_ns),
        ("unknown".to_owned(), waits.unknown_ns),
    ]);
    let parts: Vec<String> = parts
        .into_iter()
        .filter_map(|(who, ns)| {
            let share = percent(ns, window_ns)?;
            // Less than is shown.
            (share >= 0.05).then(|| format!("{who} {share:.1} %"))
        })
        .collect();
    if parts.is_empty() {
        "nobody".to_owned()
    } else {
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_ahead_is_named_in_one_line() {
        let behind = |tenant_key: &str, command: &str, pid, ns| v1::WaitedBehind {
            tenant_key: tenant_key.to_owned(),
            command: command.to_owned(),
            pid,
            ns,
        };
        let waits = Waits::from(v1::Waits {
            behind: vec![
                behind("qemu:b", "qemu-system-x86", 9, 500),
                behind("qemu:a", "qemu-system-x86", 8, 120),
                behind("", "", 7, 30),
                behind("", "rcu_sched", 6, 0),
            ],
            others_ns: 0,
            idle_ns: 10,
            unknown_ns: 0,
        });
        assert_eq!(
            in_words(Some(&waits), "qemu:a", 1000),
            "qemu:b (qemu-system-x86, pid 9) 50.0 %, itself (qemu-system-x86, pid 8) 12.0 %, ended (pid 7) 3.0 %, \
             an idle CPU 1.0 %"
        );
    }

    #[test]
    fn what_is_not_known_is_not_nobody() {
        assert_eq!(in_words(None, "qemu:a", 1000), "unknown");
        let none = Waits::from(v1::Waits::default());
        assert_eq!(in_words(Some(&none), "qemu:a", 1000), "nobody");
    }
}
