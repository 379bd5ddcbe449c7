//! What `--json` prints, and what the tables are made from.
//!
//! The names are stable: a field is never renamed or given another meaning within one [`VERSION`]; new ones may be
//! added. Times are ns since the Unix epoch. `null` is "not known", never a zero.
//!
//! All texts come from agents: control characters are replaced, so that none reaches a terminal.

use std::collections::BTreeMap;

use davy_proto::v1;
use serde::Serialize;

pub use crate::guests::{KvmExits, MsrWrites};
use crate::{model_pmu::Pmu, waits::Waits};

/// Version of the documents.
pub const VERSION: u32 = 1;

/// `davyctl droplets --json`.
#[derive(Debug, Serialize)]
pub struct Droplets {
    /// [`VERSION`].
    pub version: u32,
    /// Ordered by host and key.
    pub droplets: Vec<Droplet>,
}

/// `davyctl droplet --json`.
#[derive(Debug, Serialize)]
pub struct OneDroplet {
    /// [`VERSION`].
    pub version: u32,
    /// As last reported.
    pub droplet: Droplet,
    /// Newest first.
    pub history: Vec<HistoryEntry>,
}

/// `davyctl status --json`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// Ordered by name.
    pub hosts: Vec<Host>,
    /// Refusals since the detector's start, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Windows that came twice, since the detector's start.
    pub duplicates: u64,
}

/// A tenant as last reported.
#[derive(Debug, Serialize)]
pub struct Droplet {
    /// Its host.
    pub host: String,
    /// Its last window.
    #[serde(flatten)]
    pub window: Window,
    /// When the present verdict began.
    pub verdict_since_unix_ns: u64,
    /// What the detector would do.
    pub planned: String,
    /// End of its first window.
    pub first_seen_unix_ns: u64,
    /// End of its last window.
    pub last_seen_unix_ns: u64,
}

/// A tenant's window of the past.
#[derive(Debug, Serialize)]
pub struct HistoryEntry {
    /// Start of the window.
    pub start_unix_ns: u64,
    /// End of the window.
    pub end_unix_ns: u64,
    /// What it showed.
    #[serde(flatten)]
    pub window: Window,
}

/// What a window says about a tenant.
#[derive(Debug, Serialize)]
pub struct Window {
    /// Stable over the tenant's life on its host.
    pub key: String,
    /// `droplet`, `cgroup`, `process`; `null` if of another kind.
    pub kind: Option<&'static str>,
    /// What the VMM or the configuration calls it.
    pub name: Option<String>,
    /// The provider's id.
    pub droplet_id: Option<String>,
    /// The VMM.
    pub vmm: Option<String>,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Length of the window.
    pub window_ns: u64,
    /// CPU figures.
    pub cpu: Option<Cpu>,
    /// Behind whom its threads waited; `null` if that is not known.
    pub waits: Option<Waits>,
    /// What `fp_rounding` found.
    pub fp_rounding: Option<FpRounding>,
    /// What `register_randomness` found.
    pub register_randomness: Option<RegisterRandomness>,
    /// What `kvm_exits` found.
    pub kvm_exits: Option<KvmExits>,
    /// What `msr_writes` found.
    pub msr_writes: Option<MsrWrites>,
    /// What performance counters showed; `null` from an agent without that sensor.
    pub pmu: Option<Pmu>,
    /// The detector's verdict.
    pub verdict: Verdict,
}

/// CPU figures of a window.
#[derive(Debug, Serialize)]
pub struct Cpu {
    /// On-CPU time in per cent of one CPU; `null` if the window's length is not known.
    pub percent_of_one_cpu: Option<f64>,
    /// Threads watched.
    pub threads: u32,
    /// On-CPU time.
    pub on_cpu_ns: u64,
    /// Part of it by vCPU threads.
    pub vcpu_on_cpu_ns: u64,
    /// Part of that inside the guest.
    pub guest_ns: u64,
    /// Time runnable but not running.
    pub run_queue_wait_ns: u64,
    /// Switches by the threads' own will.
    pub voluntary_switches: u64,
    /// Switches against it.
    pub involuntary_switches: u64,
    /// Host time of vCPU threads spent polling in a guest's halt; `null` if not known.
    pub halt_poll_ns: Option<u64>,
}

/// What `fp_rounding` found in a window.
#[derive(Debug, Serialize)]
pub struct FpRounding {
    /// `live`, `stalled`, `never_ran`, `unsupported`.
    pub state: &'static str,
    /// Samples by rounding mode.
    pub modes: Vec<u64>,
    /// All samples.
    pub samples: u64,
    /// The sequential test's sums, nats.
    pub llr: Vec<f64>,
    /// Samples given to it.
    pub test_samples: u64,
    /// Whether it has concluded.
    pub concluded: bool,
    /// CPU time of the threads concluded.
    pub concluded_on_cpu_ns: u64,
    /// Threads whose own test stands concluded.
    pub concluded_threads: u32,
    /// Their share of one CPU over the last minute; 1 is one CPU.
    pub duty: f64,
}

/// What `register_randomness` found in a window.
#[derive(Debug, Serialize)]
pub struct RegisterRandomness {
    /// `live`, `stalled`, `never_ran`, `unsupported`.
    pub state: &'static str,
    /// All samples.
    pub samples: u64,
    /// Samples with random registers.
    pub random: u64,
    /// Samples outside rounding mode 0.
    pub directed_samples: u64,
    /// Those with random registers.
    pub directed_random: u64,
    /// The test over all samples, nats.
    pub any_llr: f64,
    /// Whether it has concluded.
    pub any_concluded: bool,
    /// Samples of the thread nearest to a conclusion.
    pub any_test_samples: u64,
    /// The test over samples outside mode 0, nats.
    pub directed_llr: f64,
    /// Whether it has concluded.
    pub directed_concluded: bool,
    /// Samples of the thread nearest to a conclusion.
    pub directed_test_samples: u64,
    /// Samples of general registers.
    pub general_samples: u64,
    /// Those with random registers.
    pub general_random: u64,
    /// The test over samples of general registers, nats.
    pub general_llr: f64,
    /// Whether it has concluded.
    pub general_concluded: bool,
    /// Samples of the thread nearest to a conclusion.
    pub general_test_samples: u64,
}

/// A verdict.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// `quiet`, `suspect`, `mining`; `unknown` for a level this program does not know.
    pub level: &'static str,
    /// In words and numbers.
    pub reasons: Vec<String>,
    /// What is computed, where that can be told.
    pub families: Vec<String>,
}

/// A host and its agent.
#[derive(Debug, Serialize)]
pub struct Host {
    /// Its name.
    pub host: String,
    /// The agent's instance.
    pub instance: String,
    /// Whether the agent is connected now.
    pub connected: bool,
    /// Highest sequence settled.
    pub last_sequence: u64,
    /// Windows stored.
    pub windows: u64,
    /// Windows that never arrived.
    pub lost_windows: u64,
    /// When it last sent anything.
    pub last_seen_unix_ns: u64,
    /// The agent's version.
    pub agent_version: String,
    /// The host's kernel.
    pub kernel_release: String,
    /// Its sensors.
    pub sensors: Vec<Sensor>,
}

/// A sensor of a host.
#[derive(Debug, Serialize)]
pub struct Sensor {
    /// Its name.
    pub sensor: String,
    /// `live`, `stalled`, `never_ran`, `unsupported`.
    pub state: &'static str,
    /// Why it is so.
    pub reason: Option<String>,
}

pub fn text(given: &str) -> String {
    davy_decision::words::plain_line(given)
}

pub fn some_text(given: &str) -> Option<String> {
    (!given.is_empty()).then(|| text(given))
}

pub(crate) fn state(state: i32) -> &'static str {
    match v1::SensorState::try_from(state) {
        Ok(v1::SensorState::Live) => "live",
        Ok(v1::SensorState::Stalled) => "stalled",
        Ok(v1::SensorState::NeverRan) => "never_ran",
        Ok(v1::SensorState::Unsupported) => "unsupported",
        Ok(v1::SensorState::Unspecified) | Err(_) => "unknown",
    }
}

/// `part` in per cent of `whole`; `None` if there is no whole.
pub fn percent(part: u64, whole: u64) -> Option<f64> {
    // Above 2^53 a figure loses its last digits, of which none is shown.
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let (part, whole) = (part as f64, whole as f64);
    (whole > 0.0).then(|| part / whole * 100.0)
}

impl Droplets {
    /// From the wire.
    pub fn new(wire: v1::ListDropletsResponse) -> Self {
        Self {
            version: VERSION,
            droplets: wire.droplets.into_iter().map(Droplet::from).collect(),
        }
    }
}

impl OneDroplet {
    /// From the wire; `None` if the answer holds no droplet.
    pub fn new(wire: v1::GetDropletResponse) -> Option<Self> {
        let history = wire.history.into_iter().map(HistoryEntry::from).collect();
        Some(Self {
            version: VERSION,
            droplet: wire.droplet?.into(),
            history,
        })
    }
}

impl Status {
    /// From the wire.
    pub fn new(wire: v1::GetIngestStatusResponse) -> Self {
        let v1::GetIngestStatusResponse {
            hosts,
            rejected,
            duplicates,
        } = wire;
        Self {
            version: VERSION,
            hosts: hosts.into_iter().map(Host::from).collect(),
            rejected: rejected
                .into_iter()
                .map(|(reason, count)| (text(&reason), count))
                .collect(),
            duplicates,
        }
    }
}

impl From<v1::Droplet> for Droplet {
    fn from(wire: v1::Droplet) -> Self {
        let v1::Droplet {
            host,
            current,
            first_seen_unix_ns,
            last_seen_unix_ns,
            verdict_since_unix_ns,
            window_ns,
            planned,
        } = wire;
        Self {
            host: text(&host),
            window: Window::new(current.unwrap_or_default(), window_ns),
            verdict_since_unix_ns,
            planned: text(&planned),
            first_seen_unix_ns,
            last_seen_unix_ns,
        }
    }
}

impl From<v1::HistoryEntry> for HistoryEntry {
    fn from(wire: v1::HistoryEntry) -> Self {
        let v1::HistoryEntry {
            start_unix_ns,
            end_unix_ns,
            window,
        } = wire;
        let window = Window::new(
            window.unwrap_or_default(),
            end_unix_ns.saturating_sub(start_unix_ns),
        );
        Self {
            start_unix_ns,
            end_unix_ns,
            window,
        }
    }
}

impl Window {
    fn new(wire: v1::TenantWindow, window_ns: u64) -> Self {
        let v1::TenantWindow {
            key,
            kind,
            name,
            droplet_id,
            vmm,
            vcpus,
            cpu,
            evidence,
            verdict,
            waits,
        } = wire;
        let v1::Evidence {
            fp_rounding,
            register_randomness,
            kvm_exits,
            msr_writes,
            pmu,
        } = evidence.unwrap_or_default();
        Self {
            key: text(&key),
            kind: match v1::TenantKind::try_from(kind) {
                Ok(v1::TenantKind::Droplet) => Some("droplet"),
                Ok(v1::TenantKind::Cgroup) => Some("cgroup"),
                Ok(v1::TenantKind::Process) => Some("process"),
                Ok(v1::TenantKind::Unspecified) | Err(_) => None,
            },
            name: some_text(&name),
            droplet_id: some_text(&droplet_id),
            vmm: some_text(&vmm),
            vcpus,
            window_ns,
            cpu: cpu.map(|cpu| Cpu::new(cpu, window_ns)),
            waits: waits.map(Waits::from),
            fp_rounding: fp_rounding.map(FpRounding::from),
            register_randomness: register_randomness.map(RegisterRandomness::from),
            kvm_exits: kvm_exits.map(KvmExits::from),
            msr_writes: msr_writes.map(MsrWrites::from),
            pmu: pmu.map(Pmu::from),
            verdict: verdict.unwrap_or_default().into(),
        }
    }

    /// Its name, or else its key.
    pub fn title(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.key)
    }
}

impl Cpu {
    fn new(wire: v1::Cpu, window_ns: u64) -> Self {
        let v1::Cpu {
            threads,
            on_cpu_ns,
            vcpu_on_cpu_ns,
            guest_ns,
            run_queue_wait_ns,
            voluntary_switches,
            involuntary_switches,
            halt_poll_ns,
        } = wire;
        Self {
            percent_of_one_cpu: percent(on_cpu_ns, window_ns),
            threads,
            on_cpu_ns,
            vcpu_on_cpu_ns,
            guest_ns,
            run_queue_wait_ns,
            voluntary_switches,
            involuntary_switches,
            halt_poll_ns,
        }
    }
}

impl From<v1::FpRounding> for FpRounding {
    fn from(wire: v1::FpRounding) -> Self {
        let v1::FpRounding {
            state: sensor,
            modes,
            llr,
            test_samples,
            concluded,
            concluded_on_cpu_ns,
            concluded_threads,
            duty,
        } = wire;
        Self {
            state: state(sensor),
            samples: modes
                .iter()
                .fold(0, |sum, samples| sum.saturating_add(*samples)),
            modes,
            llr,
            test_samples,
            concluded,
            concluded_on_cpu_ns,
            concluded_threads,
            duty,
        }
    }
}

impl From<v1::RegisterRandomness> for RegisterRandomness {
    fn from(wire: v1::RegisterRandomness) -> Self {
        let v1::RegisterRandomness {
            state: sensor,
            samples,
            random,
            directed_samples,
            directed_random,
            any_llr,
            any_concluded,
            any_test_samples,
            directed_llr,
            directed_concluded,
            directed_test_samples,
            general_samples,
            general_random,
            general_llr,
            general_concluded,
            general_test_samples,
        } = wire;
        Self {
            state: state(sensor),
            samples,
            random,
            directed_samples,
            directed_random,
            any_llr,
            any_concluded,
            any_test_samples,
            directed_llr,
            directed_concluded,
            directed_test_samples,
            general_samples,
            general_random,
            general_llr,
            general_concluded,
            general_test_samples,
        }
    }
}

impl From<v1::Verdict> for Verdict {
    fn from(wire: v1::Verdict) -> Self {
        let v1::Verdict {
            level,
            reasons,
            families,
        } = wire;
        Self {
            level: match v1::VerdictLevel::try_from(level) {
                Ok(v1::VerdictLevel::Quiet) => "quiet",
                Ok(v1::VerdictLevel::Suspect) => "suspect",
                Ok(v1::VerdictLevel::Mining) => "mining",
                Ok(v1::VerdictLevel::Unspecified) | Err(_) => "unknown",
            },
            reasons: reasons.iter().map(|reason| text(reason)).collect(),
            families: families.iter().map(|family| text(family)).collect(),
        }
    }
}

impl From<v1::HostStatus> for Host {
    fn from(wire: v1::HostStatus) -> Self {
        let v1::HostStatus {
            host,
            instance,
            connected,
            last_sequence,
            windows,
            lost_windows,
            last_seen_unix_ns,
            agent_version,
            kernel_release,
            sensors,
        } = wire;
        Self {
            host: text(&host),
            instance: text(&instance),
            connected,
            last_sequence,
            windows,
            lost_windows,
            last_seen_unix_ns,
            agent_version: text(&agent_version),
            kernel_release: text(&kernel_release),
            sensors: sensors
                .into_iter()
                .map(
                    |v1::SensorStatus {
                         sensor,
                         state: of,
                         reason,
                     }| Sensor {
                        sensor: text(&sensor),
                        state: state(of),
                        reason: some_text(&reason),
                    },
                )
                .collect(),
        }
    }
}
