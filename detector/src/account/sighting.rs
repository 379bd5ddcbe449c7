//! From a host's window to what it says of droplets: the deciding half's [`Sighting`]s. Pure.
//!
//! Only what matters for a decision is passed on: windows that are not quiet, and the first quiet one after those, or on a new stream,
//! where nobody knows what was before. Tenants without a droplet id belong to no account, and are not passed on.
//!
//! A verdict is of its window's end. Of the first window at a level, however long, no more than [`FIRST_COUNTS`] counts.

use std::collections::HashMap;

use davy_decision::{
    account::DropletId,
    episode::{Classes, Sighting},
    time::{Span, Time},
};
use davy_evidence::Level;
use davy_proto::v1;

use crate::evidence::Judged;

/// Most reasons of a verdict that go along.
const REASONS_MAX: usize = 8;

/// So much of the first window at a level counts at most: a verdict that has just come says little of an hour before it.
const FIRST_COUNTS: Span = Span::minutes(1);

/// Droplets of one host that were not quiet in the last window; none before the first.
#[derive(Debug, Default)]
pub struct Stirring {
    droplets: Option<HashMap<String, Level>>,
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
        let before = self.droplets.take();
        let mut now = HashMap::new();
        let (from, to) = (
            Time::from_unix_ns(start_unix_ns),
            Time::from_unix_ns(end_unix_ns),
        );
        let mut sightings = Vec::new();
        for tenant in tenants {
            let Ok(droplet) = DropletId::try_from(tenant.window.droplet_id.as_str()) else {
                continue;
            };
            let was = (before.as_ref()).and_then(|before| before.get(droplet.as_str()));
            if tenant.level > Level::Quiet {
                now.insert(droplet.to_string(), tenant.level);
            } else if before.is_some() && was.is_none() {
                continue;
            }
            let lasted = was.is_some_and(|was| *was >= tenant.level);
            let counts_from = if lasted {
                from
            } else {
                from.max(to.before(FIRST_COUNTS))
            };
            let span_ns = end_unix_ns.saturating_sub(start_unix_ns);
            sightings.push(Sighting {
                droplet,
                host: host.to_owned(),
                from: counts_from,
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
        self.droplets = Some(now);
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
        // Nobody knows here what it was before.
        assert_eq!(see(&mut stirring, &quiet)[0].level, Level::Quiet);
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
    fn of_a_long_first_window_at_a_level_a_minute_counts() {
        let hour = |stirring: &mut Stirring, hour: u64, level| {
            let (start, end) = (hour * 3_600 * SECOND_NS, (hour + 1) * 3_600 * SECOND_NS);
            let seen = stirring.sightings("h1", start, end, &[judged("a", "1", level)]);
            seen[0].to - seen[0].from
        };
        let mut stirring = Stirring::default();
        assert_eq!(hour(&mut stirring, 0, Level::Suspect), Span::minutes(1));
        assert_eq!(hour(&mut stirring, 1, Level::Mining), Span::minutes(1));
        assert_eq!(hour(&mut stirring, 2, Level::Mining), Span::hours(1));
        assert_eq!(hour(&mut stirring, 3, Level::Suspect), Span::hours(1));
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
