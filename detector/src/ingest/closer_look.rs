//! The ladder's second step: which tenants of a host the agent is asked to look at more closely, and how often. Pure.
//!
//! Asked for where the policies in force permit the step ([`Policies::look_closer_at`]), for each tenant at most once in
//! [`INTERVAL_NS`]: the agent spends some seconds on each request, and rests as long. Memory is bounded by the tenants of the last window.

use std::collections::HashMap;

use davy_decision::policy::Policies;
use davy_evidence::Level;

use crate::evidence::Judged;

/// Least time between two requests for one tenant, ns (1 min).
pub const INTERVAL_NS: u64 = 60 * 1_000_000_000;

/// When each tenant of one host was last asked for.
#[derive(Debug, Default)]
pub struct CloserLooks {
    asked_unix_ns: HashMap<String, u64>,
}

impl CloserLooks {
    /// Keys of the tenants to ask for now, given the tenants of the window that was just stored.
    pub fn due(
        &mut self,
        tenants: &[Judged],
        policies: &Policies,
        now_unix_ns: u64,
    ) -> Vec<String> {
        let before = std::mem::take(&mut self.asked_unix_ns);
        let mut due = Vec::new();
        let levels = [Level::Quiet, Level::Suspect, Level::Mining]
            .map(|level| (level, policies.look_closer_at(level)));
        let wanted = |tenant: &&Judged| levels.contains(&(tenant.level, true));
        for tenant in tenants.iter().filter(wanted) {
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

    fn shipped() -> Policies {
        Policies::shipped().unwrap()
    }

    #[test]
    fn only_suspects_are_asked_for_and_not_too_often() {
        let (mut looks, policies) = (CloserLooks::default(), shipped());
        let tenants = [
            judged("a", Level::Suspect),
            judged("b", Level::Quiet),
            judged("c", Level::Mining),
        ];
        let mut due = |now| looks.due(&tenants, &policies, now);
        assert_eq!(due(INTERVAL_NS), ["a"]);
        assert!(due(2 * INTERVAL_NS - 1).is_empty());
        assert_eq!(due(2 * INTERVAL_NS), ["a"]);
    }

    #[test]
    fn whom_no_policy_permits_to_look_at_more_closely_is_not_asked_for() {
        let policy = r#"@id("miners") permit (principal, action == Davy::Action::"closer_look", resource)
            when { context.level == "mining" };"#;
        let files = [("ours.cedar".to_owned(), policy.to_owned())].into();
        let policies = Policies::new(&files).unwrap();
        let tenants = [judged("a", Level::Suspect), judged("c", Level::Mining)];
        assert_eq!(CloserLooks::default().due(&tenants, &policies, 1), ["c"]);
    }

    #[test]
    fn a_tenant_that_is_gone_is_forgotten() {
        let mut looks = CloserLooks::default();
        looks.due(&[judged("a", Level::Suspect)], &shipped(), 0);
        looks.due(&[], &shipped(), 1);
        assert!(looks.asked_unix_ns.is_empty());
    }
}
