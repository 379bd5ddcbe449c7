//! Behind whom a trial's threads waited for a CPU, added up over its windows.

use std::collections::BTreeMap;

use davy_proto::v1;

use super::document::{WaitedBehind, Waits};
use crate::sensor::waits::{CULPRITS_MAX, TOP};

/// Sums over windows.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// By process: its name as last known, whether it is the trial's, and ns.
    behind: BTreeMap<u32, (String, bool, u64)>,
    others_ns: u64,
    idle_ns: u64,
    unknown_ns: u64,
}

impl Sums {
    /// Adds a window's; `own_key` is the trial's tenant.
    pub(super) fn add(&mut self, window: v1::Waits, own_key: &str) {
        let v1::Waits {
            behind,
            others_ns,
            idle_ns,
            unknown_ns,
        } = window;
        for of in behind {
            if self.behind.len() >= CULPRITS_MAX && !self.behind.contains_key(&of.pid) {
                self.others_ns = self.others_ns.saturating_add(of.ns);
                continue;
            }
            let (command, own, ns) = self.behind.entry(of.pid).or_default();
            if !of.command.is_empty() {
                *command = of.command;
            }
            *own |= of.tenant_key == own_key;
            *ns = ns.saturating_add(of.ns);
        }
        for (sum, more) in [
            (&mut self.others_ns, others_ns),
            (&mut self.idle_ns, idle_ns),
            (&mut self.unknown_ns, unknown_ns),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// The most important ones by name.
    pub(super) fn document(&self) -> Waits {
        let mut behind: Vec<_> = self
            .behind
            .iter()
            .map(|(&pid, (command, own, ns))| WaitedBehind {
                pid,
                command: command.clone(),
                own: *own,
                ns: *ns,
            })
            .collect();
        behind.sort_by_key(|of| (std::cmp::Reverse(of.ns), of.pid));
        let rest = behind.split_off(behind.len().min(TOP));
        Waits {
            others_ns: rest
                .iter()
                .fold(self.others_ns, |sum, of| sum.saturating_add(of.ns)),
            behind,
            idle_ns: self.idle_ns,
            unknown_ns: self.unknown_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_add_up_by_process_and_the_rest_are_others() {
        let window = |pids: std::ops::RangeInclusive<u32>, command: &str| v1::Waits {
            behind: pids
                .map(|pid| v1::WaitedBehind {
                    tenant_key: if pid == 1 { "trial" } else { "" }.to_owned(),
                    command: command.to_owned(),
                    pid,
                    ns: u64::from(pid),
                })
                .collect(),
            others_ns: 1,
            idle_ns: 2,
            unknown_ns: 3,
        };
        let mut sums = Sums::default();
        sums.add(window(1..=4, "a"), "trial");
        sums.add(window(1..=7, ""), "trial");
        let document = sums.document();
        let seen: Vec<_> = document.behind.iter().map(|of| (of.pid, of.ns)).collect();
        assert_eq!(seen, [(4, 8), (7, 7), (3, 6), (6, 6), (5, 5)]);
        assert_eq!(
            document.behind[0].command, "a",
            "its name when it still had one"
        );
        assert_eq!(document.behind[1].command, "");
        assert_eq!(document.others_ns, 2 + 4 + 2, "pids 2 and 1 are the least");
        assert_eq!((document.idle_ns, document.unknown_ns), (4, 6));
        assert!(sums.behind[&1].1 && !sums.behind[&2].1);
    }
}
