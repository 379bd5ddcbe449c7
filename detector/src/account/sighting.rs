//! From a host's window to what it says of droplets: the deciding half's [`Sighting`]s. Pure.
//!
//! Only what matters for a decision is passed on: windows that are not quiet, and the first quiet one after those. Tenants without a
//! droplet id belong to no account, and are not passed on.

use std::collections::HashSet;

use davy_decision::{
    account::DropletId,
    episode::{Classes, Sighting},
    time::Time,
};
use davy_evidence::Level;
use davy_proto::v1;

use crate::evidence::Judged;

/// Most reasons of a verdict that go along.
const REASONS_MAX: usize = 8;

/// Droplets of one host that were not quiet in the last window.
#[derive(Debug, Default)]
pub struct Stirring {
    droplets: HashSet<String>,
}

impl Stirring {
    /// What a window says of its host's droplets.
    pub fn sightings(
        &mut self,
        host: &str,
        start_unix_ns: u64,
        end_unix_ns: u64,
        tenants: &[Judged],
    ) -> Vec<Sighting> {
        let before = std::mem::take(&mut self.droplets);
        let (from, to) = (
            Time::from_unix_ns(start_unix_ns),
            Time::from_unix_ns(end_unix_ns),
        );
        let mut sightings = Vec::new();
        for tenant in tenants {
            let Ok(droplet) = DropletId::try_from(tenant.window.droplet_id.as_str()) else {
                continue;
            };
            if tenant.level > Level::Quiet {
                self.droplets.insert(droplet.to_string());
            } else if !before.contains(droplet.as_str()) {
                continue;
            }
            let span_ns = end_unix_ns.saturating_sub(start_unix_ns);
            sightings.push(Sighting {
                droplet,
                host: host.to_owned(),
                from,
                to,
                level: tenant.level,
                classes: classes(&tenant.window),
                cpu_percent: cpu_percent(&tenant.window, span_ns),
                neighbours_wait_percent: neighbours_wait_percent(tenant, tenants, span_ns),
                reasons: (tenant.window.verdict.iter())
                    .flat_map(|verdict| verdict.reasons.iter().take(REASONS_MAX).cloned())
                    .collect(),
            });
        }
        sightings
    }
}

fn classes(window: &v1::TenantWindow) -> Classes {
    let Some(evidence) = &window.evidence else {
        return Classes::default();
    };
    Classes {
        fp_rounding: evidence
            .fp_rounding
            .as_ref()
            .is_some_and(|found| found.concluded),
        register_randomness: (evidence.register_randomness.as_ref()).is_some_and(|found| {
            found.any_concluded || found.directed_concluded || found.general_concluded
        }),
        pmu: evidence
            .pmu
            .as_ref()
            .is_some_and(|found| found.mix_concluded),
    }
}

fn percent(part_ns: u64, span_ns: u64) -> u64 {
    u64::try_from(u128::from(part_ns) * 100 / u128::from(span_ns.max(1))).unwrap_or(u64::MAX)
}

fn cpu_percent(window: &v1::TenantWindow, span_ns: u64) -> u64 {
    percent(window.cpu.map_or(0, |cpu| cpu.on_cpu_ns), span_ns)
}

/// Time that other droplets' threads waited behind this one, where that is told; none if no other tenant tells.
fn neighbours_wait_percent(tenant: &Judged, tenants: &[Judged], span_ns: u64) -> Option<u64> {
    let key = tenant.window.key.as_str();
    let told: Vec<u64> = (tenants.iter())
        .filter(|other| other.window.key != key)
        .filter_map(|other| other.window.waits.as_ref())
        .map(|waits| {
            (waits.behind.iter())
                .filter(|behind| behind.tenant_key == key)
                .fold(0_u64, |sum, behind| sum.saturating_add(behind.ns))
        })
        .collect();
    let all = told.iter().fold(0_u64, |sum, ns| sum.saturating_add(*ns));
    (!told.is_empty()).then(|| percent(all, span_ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::plan;

    const SECOND_NS: u64 = 1_000_000_000;

    fn judged(key: &str, droplet: &str, level: Level) -> Judged {
        Judged {
            window: v1::TenantWindow {
                key: key.to_owned(),
                droplet_id: droplet.to_owned(),
                cpu: Some(v1::Cpu {
                    on_cpu_ns: 15 * SECOND_NS,
                    ..v1::Cpu::default()
                }),
                ..v1::TenantWindow::default()
            },
            level,
            planned: plan(level),
            agent_agrees: true,
        }
    }

    fn see(stirring: &mut Stirring, tenants: &[Judged]) -> Vec<Sighting> {
        stirring.sightings("h1", 0, 10 * SECOND_NS, tenants)
    }

    #[test]
    fn quiet_droplets_are_passed_on_once_after_they_stirred_and_others_never() {
        let mut stirring = Stirring::default();
        let quiet = [judged("a", "1", Level::Quiet)];
        assert!(see(&mut stirring, &quiet).is_empty());
        let seen = see(
            &mut stirring,
            &[
                judged("a", "1", Level::Mining),
                judged("b", "", Level::Mining),
            ],
        );
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].level, seen[0].cpu_percent), (Level::Mining, 150));
        assert_eq!(see(&mut stirring, &quiet)[0].level, Level::Quiet);
        assert!(see(&mut stirring, &quiet).is_empty());
    }

    #[test]
    fn harm_to_neighbours_is_their_wait_behind_this_droplet() {
        let mut neighbour = judged("b", "2", Level::Quiet);
        let behind = |tenant_key: &str, ns| v1::WaitedBehind {
            tenant_key: tenant_key.to_owned(),
            ns,
            ..v1::WaitedBehind::default()
        };
        neighbour.window.waits = Some(v1::Waits {
            behind: vec![behind("a", 4 * SECOND_NS), behind("c", SECOND_NS)],
            ..v1::Waits::default()
        });
        let miner = judged("a", "1", Level::Mining);
        let alone = see(&mut Stirring::default(), std::slice::from_ref(&miner));
        assert_eq!(alone[0].neighbours_wait_percent, None, "nobody told");
        let both = see(&mut Stirring::default(), &[miner, neighbour]);
        assert_eq!(both[0].neighbours_wait_percent, Some(40));
    }
}
