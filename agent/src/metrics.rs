//! The agent's own metrics, in the OpenMetrics text format at `/metrics`.
//!
//! The measuring loop puts a [`Snapshot`] there at every look; a scrape only writes it out, and asks nothing of
//! the kernel half. What is not known is absent, never 0.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};
use davy_abi::Counter;
use davy_evidence::SensorState;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use rustix::time::ClockId;

use crate::{
    governor::Governor, kernel::ProgramCost, nudge::NudgeCost, observe::Overview, source::clock_ns,
    uplink,
};

/// Everything a scrape shows.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Tenants, threads, sensors.
    pub overview: Overview,
    /// The uplink.
    pub uplink: uplink::Snapshot,
    /// The kernel half's counters, by [`Counter`].
    pub kernel_counters: Vec<u64>,
    /// What each program has cost.
    pub programs: Vec<ProgramCost>,
    /// What nudging has cost.
    pub nudge: NudgeCost,
    /// Window boundaries that were missed because the agent was held up.
    pub late_windows: u64,
    /// The budget and what is shed; `None` before measuring.
    pub governor: Option<Governor>,
}

/// The snapshot shared by the measuring loop and the metrics' server.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    snapshot: Arc<Mutex<Snapshot>>,
}

impl Metrics {
    /// Replaces what scrapes show.
    pub fn set(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// The metrics as text.
    ///
    /// # Errors
    /// If a value cannot be formatted; never seen.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

type Labels = Vec<(&'static str, String)>;

struct Encoder<'a>(DescriptorEncoder<'a>);

impl Encoder<'_> {
    fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    fn count(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)
    }

    fn ratio(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    fn gauges(&mut self, name: &str, help: &str, values: &[(Labels, u64)]) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            let gauge = ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX));
            gauge.encode(metric.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn counts(&mut self, name: &str, help: &str, values: &[(Labels, u64)]) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(*value).encode(metric.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn seconds(&mut self, name: &str, help: &str, values: &[(Labels, u64)]) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, ns) in values {
            ConstCounter::new(seconds(*ns)).encode(metric.encode_family(labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self
            .snapshot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut encoder = Encoder(encoder);
        encode_uplink(&mut encoder, &snapshot.uplink)?;
        encode_tenants(&mut encoder, &snapshot.overview)?;
        encode_kernel(&mut encoder, &snapshot)?;
        encode_own_cost(&mut encoder, &snapshot)
    }
}

fn encode_uplink(encoder: &mut Encoder<'_>, uplink: &uplink::Snapshot) -> fmt::Result {
    let uplink::Snapshot {
        counts,
        queued,
        queued_bytes,
        connected,
        reconnects,
        failures,
    } = uplink;
    let size = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    for (name, help, value) in [
        ("davy_agent_windows_closed", "Windows closed", counts.closed),
        (
            "davy_agent_windows_acknowledged",
            "Windows the detector has acknowledged",
            counts.acknowledged,
        ),
        (
            "davy_agent_windows_rejected",
            "Windows the detector has refused",
            counts.rejected,
        ),
        (
            "davy_agent_windows_lost",
            "Windows dropped for want of room in the queue, or too large to be sent",
            counts.lost,
        ),
        (
            "davy_agent_windows_resent",
            "Windows sent again after a connection broke",
            counts.resent,
        ),
        (
            "davy_agent_reconnects",
            "Streams opened after the first",
            *reconnects,
        ),
        (
            "davy_agent_uplink_failures",
            "Attempts and streams that failed",
            *failures,
        ),
    ] {
        encoder.count(name, help, value)?;
    }
    encoder.gauge(
        "davy_agent_queue_windows",
        "Windows not settled yet",
        size(*queued),
    )?;
    encoder.gauge(
        "davy_agent_queue_bytes",
        "Their encoded size",
        size(*queued_bytes),
    )?;
    encoder.gauge(
        "davy_agent_connected",
        "1 while a stream to the detector is open",
        u64::from(*connected),
    )
}

fn encode_tenants(encoder: &mut Encoder<'_>, overview: &Overview) -> fmt::Result {
    let Overview {
        threads,
        tenants,
        tenants_left_out,
        threads_refused,
        sensors,
    } = overview;
    let threads = u64::try_from(*threads).unwrap_or(u64::MAX);
    encoder.gauge("davy_agent_threads", "Threads watched", threads)?;
    encoder.gauge(
        "davy_agent_threads_refused",
        "Threads not watched because they found no free slot, as of the last attempts",
        *threads_refused,
    )?;
    encoder.gauge(
        "davy_agent_tenants_left_out",
        "Tenants left out of the last window, which had too many",
        *tenants_left_out,
    )?;
    let tenants: Vec<_> = ["quiet", "suspect", "mining"]
        .map(|level| {
            let count = tenants.get(level).copied().unwrap_or(0);
            (vec![("verdict", level.to_owned())], count)
        })
        .to_vec();
    encoder.gauges(
        "davy_agent_tenants",
        "Tenants by proposed verdict in the last window",
        &tenants,
    )?;
    let mut states = Vec::new();
    for (sensor, now) in sensors {
        for (state, name) in [
            (SensorState::Live, "live"),
            (SensorState::Stalled, "stalled"),
            (SensorState::NeverRan, "never_ran"),
            (SensorState::Unsupported, "unsupported"),
        ] {
            let labels = vec![("sensor", sensor.clone()), ("state", name.to_owned())];
            states.push((labels, u64::from(*now == state)));
        }
    }
    encoder.gauges(
        "davy_agent_sensor_state",
        "1 for the state each sensor was in in the last window",
        &states,
    )
}

fn encode_kernel(encoder: &mut Encoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let problems: Vec<_> = [
        (Counter::NoFreeSlot, "no_free_slot"),
        (Counter::ReadFailed, "read_failed"),
        (Counter::TableFull, "table_full"),
    ]
    .into_iter()
    .filter_map(|(counter, name)| {
        let value = snapshot.kernel_counters.get(counter as usize)?;
        Some((vec![("problem", name.to_owned())], *value))
    })
    .collect();
    encoder.counts(
        "davy_agent_kernel_problems",
        "What went wrong in the kernel half",
        &problems,
    )?;
    let by_program = |value: fn(&ProgramCost) -> u64| -> Vec<(Labels, u64)> {
        let labels = |program: &ProgramCost| vec![("program", program.name.clone())];
        let programs = snapshot.programs.iter();
        programs
            .map(|program| (labels(program), value(program)))
            .collect()
    };
    encoder.counts(
        "davy_agent_bpf_runs",
        "Runs of each BPF program",
        &by_program(|p| p.run_count),
    )?;
    encoder.seconds(
        "davy_agent_bpf_run_seconds",
        "Run time of each BPF program",
        &by_program(|p| p.run_time_ns),
    )
}

fn encode_own_cost(encoder: &mut Encoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let NudgeCost {
        cpus,
        closer_looks,
        wakings,
        displaced,
        cpu_ns,
    } = snapshot.nudge;
    encoder.gauge("davy_agent_nudged_cpus", "CPUs that are nudged", cpus)?;
    encoder.gauge(
        "davy_agent_closer_looks",
        "CPUs under a closer look now",
        closer_looks,
    )?;
    encoder.count(
        "davy_agent_nudges",
        "Wakings of CPUs, each of which forces one to switch",
        wakings,
    )?;
    encoder.count(
        "davy_agent_nudges_displaced",
        "Times a nudging thread found itself on another CPU than its own",
        displaced,
    )?;
    encode_governor(encoder, snapshot.governor.as_ref())?;
    encoder.counter(
        "davy_agent_nudge_cpu_seconds",
        "CPU time of the nudging threads",
        seconds(cpu_ns),
    )?;
    encoder.count(
        "davy_agent_late_windows",
        "Window boundaries missed because the agent was held up",
        snapshot.late_windows,
    )?;
    encoder.counter(
        "davy_agent_cpu_seconds",
        "CPU time of the agent, its kernel half not included",
        seconds(clock_ns(ClockId::ProcessCPUTime)),
    )?;
    match resident_bytes() {
        Some(bytes) => encoder.gauge(
            "davy_agent_resident_bytes",
            "Resident memory of the agent",
            bytes,
        ),
        None => Ok(()),
    }
}

fn encode_governor(encoder: &mut Encoder<'_>, governor: Option<&Governor>) -> fmt::Result {
    let Some(governor) = governor else {
        return Ok(());
    };
    encoder.gauge(
        "davy_agent_shed_step",
        "What is shed to stay within the budget: 0 nothing, 1 closer looks, 2 nudges, 3 most looks at registers, 4 all",
        governor.step().number(),
    )?;
    if let Some(budget) = governor.budget() {
        encoder.ratio(
            "davy_agent_budget_cpu_share",
            "What the agent may use, as a share of one CPU",
            budget,
        )?;
    }
    if let Some(share) = governor.share() {
        encoder.ratio(
            "davy_agent_cost_cpu_share",
            "What the agent and its kernel half used lately, as a share of one CPU",
            share,
        )?;
    }
    encoder.gauge(
        "davy_agent_cost_incomplete",
        "1 if the kernel keeps no time of BPF programs, so that the cost lacks it",
        u64::from(governor.blind()),
    )
}

fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

/// The second field of `/proc/self/statm`, proc(5), in bytes.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}

/// Binds and serves `/metrics`, until the runtime ends. Returns the address in use.
///
/// # Errors
/// If the address cannot be bound.
pub async fn serve(address: SocketAddr, metrics: Metrics) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/metrics", get(scrape))
        .with_state(metrics);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!(%error, "metrics are no longer served");
        }
    });
    Ok(address)
}

async fn scrape(State(metrics): State<Metrics>) -> impl IntoResponse {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(_) => axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{governor, uplink::queue::Counts};

    /// Of a quarter of a CPU, that used half of one for two intervals.
    fn governor() -> Governor {
        let mut governor = Governor::new(Some(0.25));
        for interval in 0..3 {
            let costs = governor::Costs {
                bpf_ns: Some(0),
                agent_ns: interval * governor::INTERVAL_NS / 2,
            };
            governor.observe(interval * governor::INTERVAL_NS, costs);
        }
        governor
    }

    #[test]
    fn a_scrape_shows_what_was_set() {
        let metrics = Metrics::default();
        metrics.set(Snapshot {
            overview: Overview {
                threads: 7,
                tenants: [("mining", 2)].into(),
                tenants_left_out: 8,
                threads_refused: 9,
                sensors: vec![("fp_rounding".to_owned(), SensorState::Stalled)],
            },
            uplink: uplink::Snapshot {
                counts: Counts {
                    lost: 3,
                    ..Counts::default()
                },
                queued: 5,
                ..uplink::Snapshot::default()
            },
            kernel_counters: vec![4, 0, 0],
            programs: vec![ProgramCost {
                name: "switch".to_owned(),
                run_count: 10,
                run_time_ns: 1_500_000_000,
            }],
            nudge: NudgeCost::default(),
            late_windows: 0,
            governor: Some(governor()),
        });
        let text = metrics.text().unwrap();
        for line in [
            "davy_agent_threads 7\n",
            "davy_agent_tenants{verdict=\"mining\"} 2\n",
            "davy_agent_tenants{verdict=\"quiet\"} 0\n",
            "davy_agent_sensor_state{sensor=\"fp_rounding\",state=\"stalled\"} 1\n",
            "davy_agent_threads_refused 9\n",
            "davy_agent_tenants_left_out 8\n",
            "davy_agent_windows_lost_total 3\n",
            "davy_agent_queue_windows 5\n",
            "davy_agent_kernel_problems_total{problem=\"no_free_slot\"} 4\n",
            "davy_agent_bpf_runs_total{program=\"switch\"} 10\n",
            "davy_agent_bpf_run_seconds_total{program=\"switch\"} 1.5\n",
            "davy_agent_shed_step 1\n",
            "davy_agent_budget_cpu_share 0.25\n",
            "davy_agent_cost_cpu_share 0.5\n",
            "davy_agent_cost_incomplete 0\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert!(text.contains("davy_agent_resident_bytes "));
    }
}
