//! `kvm_exits`: what KVM counted of each vCPU, as sums per tenant and window; halt-polling for the sensor `cpu`.
//!
//! Kernel half: `agent-ebpf/src/sensor/kvm_exits.rs`, which says where the figures are from; `kernel/kvm.rs` decides it. Not
//! evidence: it is told beside a verdict. Limits:
//! - a vCPU's first reading is the mark to count from: what was before it is nobody's;
//! - a reading is of the vCPU's last entry, at most half a second apart: a window ends with the last one before it;
//! - what a vCPU did after its last reading is lost when it ends.
//!
//! The book of [`super::msr_writes`] is kept here too: both come in the same record.

use std::collections::{BTreeMap, HashMap};

use davy_abi::{
    ISA_SVM, ISA_VMX, NOT_COUNTED, REASONS, SOURCE_KVM, SOURCE_NONE, SOURCE_TRACEPOINT,
    TENANT_GONE, TenantIndex, Vcpu,
};
use davy_evidence::{
    ExitReason, ExitSource, KvmExits, MsrWrites, SensorState, add_known, kvm_exits::Isa,
    most_frequent,
};

use super::msr_writes::{self, MsrFigures};
use crate::{kernel::Reading, window::ThreadKey};

/// What one tenant's vCPUs did in a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuestWindow {
    /// For the sensor `kvm_exits`.
    pub kvm_exits: KvmExits,
    /// For the sensor `msr_writes`.
    pub msr_writes: MsrWrites,
    /// Host time of the vCPUs' threads spent polling in a halt; `None`: not known.
    pub halt_poll: Option<HaltPoll>,
}

/// Halt-polling: instead of sleeping at once, KVM polls for a while whether the guest is woken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HaltPoll {
    /// Polled until the wake-up came, ns.
    pub success_ns: u64,
    /// Polled in vain, ns.
    pub fail_ns: u64,
}

impl HaltPoll {
    /// All of it, ns.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.success_ns.saturating_add(self.fail_ns)
    }
}

/// What the sensors can do on this host.
#[derive(Clone, Copy, Debug)]
pub struct HostStates {
    /// `kvm_exits`.
    pub kvm_exits: SensorState,
    /// `msr_writes`.
    pub msr_writes: SensorState,
}

#[derive(Clone, Debug)]
struct Mark {
    tenant: TenantIndex,
    vcpu: Vcpu,
    /// Whether `vcpu` holds a reading of exits, from which differences can be made.
    read: bool,
    round: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    exits: KvmExits,
    msrs: MsrFigures,
    halt_poll: Option<HaltPoll>,
    /// Whether exits were ever read.
    ever: bool,
    prefetcher_writes_watched: u64,
}

/// The last figures of every vCPU and the sums of every tenant that has one.
#[derive(Debug, Default)]
pub struct Guests {
    vcpus: HashMap<ThreadKey, Mark>,
    tenants: BTreeMap<TenantIndex, Sums>,
    msrs_fired: bool,
    read_in_window: bool,
    ever_read: bool,
    round: u64,
}

impl Guests {
    /// Takes what was counted of the vCPUs among the readings. `known` says whether there is such a tenant.
    pub fn update(
        &mut self,
        readings: &[Reading],
        known: impl Fn(TenantIndex) -> bool,
        counted: impl Fn(&Reading) -> Option<Vcpu>,
    ) {
        self.round += 1;
        let tenants = |reading: &&Reading| {
            let tenant = reading.slot.tenant;
            !matches!(tenant, 0 | TENANT_GONE) && known(tenant)
        };
        for reading in readings.iter().filter(|r| r.is_vcpu()).filter(tenants) {
            let tenant = reading.slot.tenant;
            let sums = self.tenants.entry(tenant).or_default();
            let key = ThreadKey {
                slot: reading.index,
                tgid: reading.slot.tgid,
                start_boottime_ns: reading.slot.start_boottime_ns,
            };
            let before = self.vcpus.get(&key);
            let Some(vcpu) = counted(reading) else {
                // Kept: its record may just be written to.
                if let Some(mark) = self.vcpus.get_mut(&key) {
                    mark.round = self.round;
                }
                continue;
            };
            let msrs = MsrFigures::absolute(&vcpu);
            let msrs = msrs.since(
                &before.map_or_else(MsrFigures::default, |mark| MsrFigures::absolute(&mark.vcpu)),
            );
            self.msrs_fired |= msrs.events > 0;
            sums.msrs.add(&msrs);
            sums.prefetcher_writes_watched = sums
                .prefetcher_writes_watched
                .saturating_add(msrs.prefetcher_writes);
            let read = vcpu.source != SOURCE_NONE && vcpu.read_ns != 0;
            if let Some(mark) = before
                && mark.read
                && read
                && mark.vcpu.source == vcpu.source
                && let Some((exits, halt_poll)) = since(&vcpu, &mark.vcpu)
            {
                sums.exits.add(&exits);
                sums.halt_poll = add_polls(sums.halt_poll, halt_poll);
                sums.ever = true;
                self.read_in_window = true;
                self.ever_read = true;
            }
            let mark = Mark {
                tenant,
                vcpu,
                read,
                round: self.round,
            };
            self.vcpus.insert(key, mark);
        }
        let round = self.round;
        self.vcpus.retain(|_, mark| mark.round == round);
    }

    /// A tenant's figures of the window that ends now; `None` for a tenant without vCPUs. A new window begins for it.
    pub fn close(&mut self, tenant: TenantIndex, host: HostStates) -> Option<GuestWindow> {
        let sums = self.tenants.get_mut(&tenant)?;
        let state = match host.kvm_exits {
            SensorState::Unsupported => SensorState::Unsupported,
            _ if sums.exits.observed_ns > 0 => SensorState::Live,
            _ if sums.ever => SensorState::Stalled,
            _ => SensorState::NeverRan,
        };
        let window = GuestWindow {
            kvm_exits: KvmExits {
                state,
                ..sums.exits
            },
            msr_writes: msr_writes::found(
                host.msr_writes,
                self.msrs_fired,
                sums.msrs,
                sums.prefetcher_writes_watched,
            ),
            halt_poll: sums.halt_poll,
        };
        *sums = Sums {
            ever: sums.ever,
            prefetcher_writes_watched: sums.prefetcher_writes_watched,
            ..Sums::default()
        };
        Some(window)
    }

    /// Whether exits were read since the last call, of any guest, and whether they ever were; and whether `kvm:kvm_msr` was
    /// ever met.
    pub fn seen(&mut self) -> (bool, bool, bool) {
        let in_window = std::mem::take(&mut self.read_in_window);
        (in_window, self.ever_read, self.msrs_fired)
    }

    /// Makes what `ended` did a part of what `successor` did.
    pub fn merge(&mut self, ended: TenantIndex, successor: TenantIndex) {
        let Some(ended_sums) = self.tenants.remove(&ended) else {
            return;
        };
        let sums = self.tenants.entry(successor).or_default();
        sums.exits.add(&ended_sums.exits);
        sums.msrs.add(&ended_sums.msrs);
        sums.halt_poll = add_polls(sums.halt_poll, ended_sums.halt_poll);
        sums.ever |= ended_sums.ever;
        sums.prefetcher_writes_watched = sums
            .prefetcher_writes_watched
            .saturating_add(ended_sums.prefetcher_writes_watched);
    }

    /// Forgets a tenant that has ended.
    pub fn forget(&mut self, tenant: TenantIndex) {
        self.tenants.remove(&tenant);
        self.vcpus.retain(|_, mark| mark.tenant != tenant);
    }
}

fn add_polls(a: Option<HaltPoll>, b: Option<HaltPoll>) -> Option<HaltPoll> {
    let field = |of: fn(&HaltPoll) -> u64| add_known(a.as_ref().map(of), b.as_ref().map(of));
    Some(HaltPoll {
        success_ns: field(|poll| poll.success_ns)?,
        fail_ns: field(|poll| poll.fail_ns)?,
    })
}

/// What came between two readings of one vCPU from one source; `None` if there was no new one. A counter that fell (the
/// thread has another vCPU now) counts as nothing new.
fn since(now: &Vcpu, before: &Vcpu) -> Option<(KvmExits, Option<HaltPoll>)> {
    let observed_ns = now.read_ns.saturating_sub(before.read_ns);
    if observed_ns == 0 || now.exits < before.exits || now.vcpu_id != before.vcpu_id {
        return None;
    }
    let source = match now.source {
        SOURCE_KVM => ExitSource::Counters,
        SOURCE_TRACEPOINT => ExitSource::Tracepoint,
        _ => return None,
    };
    // Of exits whose reasons nobody can read, how many were halts is not known.
    let readable = now.foreign == before.foreign;
    let more = |of: fn(&Vcpu) -> u64| match (of(now), of(before)) {
        (NOT_COUNTED, _) | (_, NOT_COUNTED) => None,
        (now, before) => readable.then(|| now.saturating_sub(before)),
    };
    let isa = match (source, now.isa) {
        (ExitSource::Tracepoint, ISA_VMX) => Some(Isa::Vmx),
        (ExitSource::Tracepoint, ISA_SVM) => Some(Isa::Svm),
        _ => None,
    };
    let exits = KvmExits {
        state: SensorState::Live,
        source: Some(source),
        observed_ns,
        exits: now.exits - before.exits,
        halts: more(|v| v.halts),
        io: more(|v| v.io),
        // AMD's CPUs report a device's memory as any page fault.
        mmio: more(|v| v.mmio).filter(|_| isa != Some(Isa::Svm)),
        interrupts: more(|v| v.interrupts),
        hypercalls: more(|v| v.hypercalls),
        isa,
        reasons: reasons(now, before),
    };
    let poll = more(|v| v.halt_poll_success_ns).zip(more(|v| v.halt_poll_fail_ns));
    let poll = poll.map(|(success_ns, fail_ns)| HaltPoll {
        success_ns,
        fail_ns,
    });
    Some((exits, poll))
}

/// The kernel half lists the first [`REASONS`] reasons it meets, each for good.
fn reasons(now: &Vcpu, before: &Vcpu) -> [ExitReason; davy_evidence::EXIT_REASONS_MAX] {
    if now.source != SOURCE_TRACEPOINT {
        return Default::default();
    }
    let more = (0..REASONS).map(|at| ExitReason {
        code: now.reason_codes[at],
        count: u64::from(now.reason_counts[at].saturating_sub(before.reason_counts[at])),
    });
    most_frequent(more.collect())
}

#[cfg(test)]
#[path = "kvm_exits_tests.rs"]
mod tests;
