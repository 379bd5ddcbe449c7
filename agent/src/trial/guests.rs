//! What KVM tells of a trial's vCPUs, in its document: only for a process or group that runs a guest.

use davy_evidence::{ExitSource, SensorState, kvm_exits::reason_name};
use serde::{Deserialize, Serialize};

/// What `kvm_exits` found. Absent figures are not known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvmExits {
    /// Live if it measured at any time.
    pub state: SensorState,
    /// Where the figures are from, or why there are none.
    pub reason: String,
    /// Sum over the vCPUs of the time in which was counted, ns.
    pub observed_ns: u64,
    /// Where they were counted; null if they were not.
    pub source: Option<ExitSource>,
    /// All VM exits; null if they were not counted.
    pub exits: Option<u64>,
    /// HLT.
    pub halts: Option<u64>,
    /// Port I/O.
    pub io: Option<u64>,
    /// Memory-mapped I/O.
    pub mmio: Option<u64>,
    /// Interrupts of the host.
    pub interrupts: Option<u64>,
    /// Hypercalls.
    pub hypercalls: Option<u64>,
    /// Host time of the vCPUs' threads spent polling in halts, ns.
    pub halt_poll_ns: Option<u64>,
    /// The most frequent reasons, where the source tells them.
    pub reasons: Vec<Reason>,
}

/// Why guests left, how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// As the CPU's manual names it.
    pub name: String,
    /// As the CPU numbers it.
    pub code: u32,
    /// Exits for it.
    pub count: u64,
}

/// What `msr_writes` found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MsrWrites {
    /// Live if it measured at any time.
    pub state: SensorState,
    /// Where it measures, or why it cannot.
    pub reason: String,
    /// Writes to the prefetcher's registers; null if they cannot be seen.
    pub prefetcher_writes: Option<u64>,
}

impl KvmExits {
    /// From a trial's evidence.
    #[must_use]
    pub fn new(exits: &davy_evidence::KvmExits, halt_poll_ns: Option<u64>, reason: String) -> Self {
        let named = exits.isa.map(|isa| {
            exits
                .reasons
                .iter()
                .filter(|one| one.count > 0)
                .map(move |one| Reason {
                    name: reason_name(isa, one.code).into_owned(),
                    code: one.code,
                    count: one.count,
                })
        });
        Self {
            state: exits.state,
            reason,
            observed_ns: exits.observed_ns,
            source: exits.source,
            exits: exits.source.map(|_| exits.exits),
            halts: exits.halts,
            io: exits.io,
            mmio: exits.mmio,
            interrupts: exits.interrupts,
            hypercalls: exits.hypercalls,
            halt_poll_ns,
            reasons: named.into_iter().flatten().collect(),
        }
    }
}

impl MsrWrites {
    /// From a trial's evidence.
    #[must_use]
    pub fn new(msrs: &davy_evidence::MsrWrites, reason: String) -> Self {
        Self {
            state: msrs.state,
            reason,
            prefetcher_writes: (msrs.state != SensorState::Unsupported)
                .then_some(msrs.prefetcher_writes),
        }
    }
}
