//! The ladder's second step: which tenants of a host the agent is asked to look at more closely, and how often. Pure.
//!
//! Asked for where the plan says so ([`Planned::CloserLook`]), for each tenant at most once in [`INTERVAL_NS`]: the agent
//! spends some seconds on each request, and rests as long. Memory is bounded by the tenants of the last window.

use std::collections::HashMap;

use crate::evidence::{Judged, Planned};

/// Least time between two requests for one tenant, ns (1 min).
pub const INTERVAL_NS: u64 = 60 * 1_000_000_000;

/// When each tenant of one host was last asked for.
#[derive(Debug, Default)]
pub struct CloserLooks {
    asked_unix_ns: HashMap<String, u64>,
}

impl CloserLooks {
    /// Keys of the tenants to ask for now, given the tenants of the window that was just stored.
    pub fn due(&mut self, tenants: &[Judged], now_unix_ns: u64) -> Vec<String> {
        let before = std::mem::take(&mut self.asked_unix_ns);
        let mut due = Vec::new();
        for tenant in tenants.iter().filter(|t| t.planned == Planned::CloserLook) {
            let key = &tenant.window.key;
            let asked = match before.get(key) {
                // A clock that was set back makes it due as well.
                Some(&asked) if now_unix_ns.wrapping_sub(asked) < INTERVAL_NS => asked,
                _ => {
                    due.push(key.clone());
                    now_unix_ns
                }
            };
            self.asked_unix_ns.insert(key.clone(), asked);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use davy_evidence::Level;
    use davy_proto::v1;

    use super::*;
    use crate::evidence::plan;

    fn judged(key: &str, level: Level) -> Judged {
        Judged {
            window: v1::TenantWindow {
                key: key.to_owned(),
                ..v1::TenantWindow::default()
            },
            level,
            planned: plan(level),
            agent_agrees: true,
        }
    }

    #[test]
    fn only_suspects_are_asked_for_and_not_too_often() {
        let mut looks = CloserLooks::default();
        let tenants = [
            judged("a", Level::Suspect),
            judged("b", Level::Quiet),
            judged("c", Level::Mining),
        ];
        assert_eq!(looks.due(&tenants, INTERVAL_NS), ["a"]);
        assert!(looks.due(&tenants, 2 * INTERVAL_NS - 1).is_empty());
        assert_eq!(looks.due(&tenants, 2 * INTERVAL_NS), ["a"]);
    }

    #[test]
    fn a_tenant_that_is_gone_is_forgotten() {
        let mut looks = CloserLooks::default();
        looks.due(&[judged("a", Level::Suspect)], 0);
        looks.due(&[], 1);
        assert!(looks.asked_unix_ns.is_empty());
    }
}
