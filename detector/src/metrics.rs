//! What the detector publishes about itself at `/metrics` (OpenMetrics text), names by Prometheus' conventions.
//!
//! | name | labels | what |
//! |---|---|---|
//! | `davy_detector_windows_total` | `result` | windows received: `stored`, `duplicate`, `rejected`, `store_failed` |
//! | `davy_detector_rejected_total` | `reason` | messages and streams refused, see [`Reason`] |
//! | `davy_detector_lost_windows_total` | | windows that never arrived |
//! | `davy_detector_verdict_differences_total` | | tenants' windows whose proposed level was not the detector's |
//! | `davy_detector_closer_looks_total` | | closer looks asked of agents |
//! | `davy_detector_hosts_connected` | | agents with a live stream |
//! | `davy_detector_tenants` | `verdict` | tenants seen within the last hour |
//! | `davy_detector_store_seconds` | `operation` | time until the store has answered, waiting in its queue included |
//! | `davy_detector_decisions_total` | `step` | decisions stored, by their highest step |
//! | `davy_detector_withheld_total` | | automated actions that a safety, or their age, kept from leaving |
//! | `davy_detector_answers_total` | `outcome` | what the control plane said: `done`, `refused`, `in_doubt`, `never_seen` |
//! | `davy_detector_unattributed_total` | | windows of droplets that no account has |
//! | `davy_detector_policy_reload_failures_total` | | changed policies that did not hold, and were not taken |
//! | `davy_detector_evicted_total` | `what` | removed by a bound or by age: `history`, `tenants`, `hosts` |

use davy_decision::{action::Outcome, policy::Step};
use davy_evidence::Level;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::ingest::Reason;
use crate::store::Evicted;

/// What became of a received window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WindowResult {
    /// Stored and acknowledged.
    Stored,
    /// Stored before; acknowledged again.
    Duplicate,
    /// Refused for good.
    Rejected,
    /// The store failed; the agent has to send it again.
    StoreFailed,
}

impl WindowResult {
    const fn label(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Duplicate => "duplicate",
            Self::Rejected => "rejected",
            Self::StoreFailed => "store_failed",
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VerdictLabel {
    verdict: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WhatLabel {
    what: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StepLabel {
    step: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// The detector's metrics.
pub struct Metrics {
    registry: Registry,
    windows: Family<ResultLabel, Counter>,
    rejected: Family<ReasonLabel, Counter>,
    lost_windows: Counter,
    verdict_differences: Counter,
    closer_looks: Counter,
    hosts_connected: Gauge,
    tenants: Family<VerdictLabel, Gauge>,
    store_seconds: Family<OperationLabel, Histogram, fn() -> Histogram>,
    evicted: Family<WhatLabel, Counter>,
    decisions: Family<StepLabel, Counter>,
    withheld: Counter,
    answers: Family<OutcomeLabel, Counter>,
    unattributed: Counter,
    policy_reload_failures: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Tenants by level, as `/metrics` shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantsByLevel {
    /// Tenants that are quiet.
    pub quiet: u64,
    /// Tenants that are suspect.
    pub suspect: u64,
    /// Tenants that are mining.
    pub mining: u64,
}

impl Metrics {
    /// All metrics, registered. Every known label value starts at 0, so that a rate can be formed from the first event on.
    #[must_use]
    pub fn new() -> Self {
        // 0.1 ms to 26 s.
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.000_1, 4.0, 10));
        let mut metrics = Self {
            registry: Registry::with_prefix("davy_detector"),
            windows: Family::default(),
            rejected: Family::default(),
            lost_windows: Counter::default(),
            verdict_differences: Counter::default(),
            closer_looks: Counter::default(),
            hosts_connected: Gauge::default(),
            tenants: Family::default(),
            store_seconds: Family::new_with_constructor(buckets),
            evicted: Family::default(),
            decisions: Family::default(),
            withheld: Counter::default(),
            answers: Family::default(),
            unattributed: Counter::default(),
            policy_reload_failures: Counter::default(),
        };
        metrics.register();
        metrics.register_decisions();
        for result in [
            WindowResult::Stored,
            WindowResult::Duplicate,
            WindowResult::Rejected,
            WindowResult::StoreFailed,
        ] {
            drop(metrics.windows.get_or_create(&ResultLabel {
                result: result.label(),
            }));
        }
        for reason in Reason::ALL {
            drop(metrics.rejected.get_or_create(&ReasonLabel {
                reason: reason.label(),
            }));
        }
        for step in Step::ALL {
            drop(
                metrics
                    .decisions
                    .get_or_create(&StepLabel { step: step.name() }),
            );
        }
        for outcome in ["done", "refused", "in_doubt", "never_seen"] {
            drop(metrics.answers.get_or_create(&OutcomeLabel { outcome }));
        }
        metrics.evicted(Evicted::default());
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "windows",
            "Windows received, by what became of them",
            self.windows.clone(),
        );
        registry.register(
            "rejected",
            "Messages and streams refused, by reason",
            self.rejected.clone(),
        );
        registry.register(
            "lost_windows",
            "Windows that never arrived",
            self.lost_windows.clone(),
        );
        registry.register(
            "verdict_differences",
            "Tenants' windows whose proposed level was not the detector's own",
            self.verdict_differences.clone(),
        );
        registry.register(
            "closer_looks",
            "Closer looks asked of agents",
            self.closer_looks.clone(),
        );
        registry.register(
            "hosts_connected",
            "Agents with a live stream",
            self.hosts_connected.clone(),
        );
        registry.register(
            "tenants",
            "Tenants seen within the last hour, by verdict",
            self.tenants.clone(),
        );
        registry.register_with_unit(
            "store",
            "Time until the store has answered",
            Unit::Seconds,
            self.store_seconds.clone(),
        );
        registry.register(
            "evicted",
            "Removed from the store by a bound or by age",
            self.evicted.clone(),
        );
    }

    fn register_decisions(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "decisions",
            "Decisions stored, by their highest step",
            self.decisions.clone(),
        );
        registry.register(
            "withheld",
            "Automated actions that did not leave",
            self.withheld.clone(),
        );
        registry.register(
            "answers",
            "What the control plane said",
            self.answers.clone(),
        );
        registry.register(
            "unattributed",
            "Windows of droplets that no account has",
            self.unattributed.clone(),
        );
        registry.register(
            "policy_reload_failures",
            "Changed policies that did not hold, and were not taken",
            self.policy_reload_failures.clone(),
        );
    }

    /// Counts a decision.
    pub fn decided(&self, step: Step) {
        (self
            .decisions
            .get_or_create(&StepLabel { step: step.name() }))
        .inc();
    }

    /// Counts an automated action that did not leave.
    pub fn withheld(&self) {
        self.withheld.inc();
    }

    /// Counts what the control plane said.
    pub fn answered(&self, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Done => "done",
            Outcome::Refused { .. } => "refused",
            Outcome::Doubtful => "in_doubt",
            Outcome::NeverSeen => "never_seen",
        };
        (self.answers.get_or_create(&OutcomeLabel { outcome })).inc();
    }

    /// Counts windows of nobody's droplets.
    pub fn unattributed(&self, windows: u64) {
        self.unattributed.inc_by(windows);
    }

    /// Counts policies that were not taken.
    pub fn policy_reload_failed(&self) {
        self.policy_reload_failures.inc();
    }

    /// Counts a received window.
    pub fn window(&self, result: WindowResult) {
        self.windows
            .get_or_create(&ResultLabel {
                result: result.label(),
            })
            .inc();
    }

    /// Counts a refusal.
    pub fn rejected(&self, reason: Reason) {
        self.rejected
            .get_or_create(&ReasonLabel {
                reason: reason.label(),
            })
            .inc();
    }

    /// Counts windows that never arrived.
    pub fn lost(&self, windows: u64) {
        self.lost_windows.inc_by(windows);
    }

    /// Counts tenants about whose level agent and detector differed.
    pub fn verdict_differences(&self, tenants: u64) {
        self.verdict_differences.inc_by(tenants);
    }

    /// Counts closer looks asked of an agent.
    pub fn closer_looks(&self, tenants: usize) {
        self.closer_looks
            .inc_by(u64::try_from(tenants).unwrap_or(u64::MAX));
    }

    /// Notes how long the store took.
    pub fn store_took(&self, operation: &'static str, seconds: f64) {
        self.store_seconds
            .get_or_create(&OperationLabel { operation })
            .observe(seconds);
    }

    /// Counts what the store removed.
    pub fn evicted(&self, evicted: Evicted) {
        let Evicted {
            history,
            tenants,
            hosts,
        } = evicted;
        for (what, count) in [("history", history), ("tenants", tenants), ("hosts", hosts)] {
            self.evicted
                .get_or_create(&WhatLabel { what })
                .inc_by(count);
        }
    }

    /// Refusals since the start by reason, without those that never happened.
    #[must_use]
    pub fn rejections(&self) -> Vec<(Reason, u64)> {
        Reason::ALL
            .into_iter()
            .map(|reason| {
                (
                    reason,
                    self.rejected
                        .get_or_create(&ReasonLabel {
                            reason: reason.label(),
                        })
                        .get(),
                )
            })
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// Duplicate windows since the start.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.windows
            .get_or_create(&ResultLabel {
                result: WindowResult::Duplicate.label(),
            })
            .get()
    }

    /// The text for a scrape. `tenants`: `None` if the store did not say; the gauge is then absent, not zero.
    #[must_use]
    pub fn render(&self, hosts_connected: usize, tenants: Option<TenantsByLevel>) -> String {
        self.hosts_connected
            .set(i64::try_from(hosts_connected).unwrap_or(i64::MAX));
        self.tenants.clear();
        if let Some(TenantsByLevel {
            quiet,
            suspect,
            mining,
        }) = tenants
        {
            for (level, count) in [
                (Level::Quiet, quiet),
                (Level::Suspect, suspect),
                (Level::Mining, mining),
            ] {
                let verdict = match level {
                    Level::Quiet => "quiet",
                    Level::Suspect => "suspect",
                    Level::Mining => "mining",
                };
                let gauge = self.tenants.get_or_create_owned(&VerdictLabel { verdict });
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            tracing::error!("a metric could not be written as text");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_convention() {
        let metrics = Metrics::new();
        metrics.window(WindowResult::Stored);
        metrics.rejected(Reason::Past);
        metrics.lost(3);
        metrics.store_took("record", 0.002);
        metrics.evicted(Evicted {
            history: 2,
            tenants: 0,
            hosts: 0,
        });
        let text = metrics.render(
            1,
            Some(TenantsByLevel {
                quiet: 2,
                suspect: 1,
                mining: 0,
            }),
        );
        for line in [
            "davy_detector_windows_total{result=\"stored\"} 1",
            "davy_detector_windows_total{result=\"duplicate\"} 0",
            "davy_detector_rejected_total{reason=\"past\"} 1",
            "davy_detector_rejected_total{reason=\"future\"} 0",
            "davy_detector_lost_windows_total 3",
            "davy_detector_hosts_connected 1",
            "davy_detector_tenants{verdict=\"suspect\"} 1",
            "davy_detector_store_seconds_count{operation=\"record\"} 1",
            "davy_detector_evicted_total{what=\"history\"} 2",
        ] {
            assert!(
                text.lines().any(|have| have == line),
                "{line} is not in:\n{text}"
            );
        }
    }

    #[test]
    fn unknown_tenants_are_absent_not_zero() {
        let text = Metrics::new().render(0, None);
        assert!(!text.contains("davy_detector_tenants{"), "{text}");
    }

    #[test]
    fn only_reasons_that_happened_are_listed() {
        let metrics = Metrics::new();
        metrics.rejected(Reason::Future);
        metrics.rejected(Reason::Future);
        assert_eq!(metrics.rejections(), [(Reason::Future, 2)]);
    }
}
