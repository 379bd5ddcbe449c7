//! `msr_writes`: a guest's writes to the prefetcher's model-specific registers.
//!
//! Kernel half: `agent-ebpf/src/sensor/msr_writes.rs`, at the tracepoint `kvm:kvm_msr`, which tells only of accesses that KVM
//! intercepts. Corroboration, never evidence: it says that somebody tunes for memory speed.

use davy_abi::Vcpu;
use davy_evidence::{MsrWrites, SensorState};

/// Figures of one vCPU, or sums of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsrFigures {
    /// Accesses seen, of whatever register.
    pub events: u64,
    /// Writes to the prefetcher's registers, AMD's and Intel's.
    pub prefetcher_writes: u64,
}

impl MsrFigures {
    /// The absolute figures of a vCPU.
    #[must_use]
    pub fn absolute(vcpu: &Vcpu) -> Self {
        Self {
            events: vcpu.msr_events,
            prefetcher_writes: vcpu
                .prefetcher_writes_amd
                .saturating_add(vcpu.prefetcher_writes_intel),
        }
    }

    /// What came on top of `before`; a counter that fell counts as nothing new.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            events: self.events.saturating_sub(before.events),
            prefetcher_writes: self
                .prefetcher_writes
                .saturating_sub(before.prefetcher_writes),
        }
    }

    /// Adds `other`, saturating.
    pub fn add(&mut self, other: &Self) {
        self.events = self.events.saturating_add(other.events);
        self.prefetcher_writes = self
            .prefetcher_writes
            .saturating_add(other.prefetcher_writes);
    }
}

/// What a tenant's figures amount to. `host` is what the sensor can do on this host; `fired`: the tracepoint was met
/// since the agent began, by any guest, so that it is known to work and a 0 of this tenant is a 0.
#[must_use]
pub fn found(host: SensorState, fired: bool, window: MsrFigures, watched: u64) -> MsrWrites {
    MsrWrites {
        state: match host {
            SensorState::Unsupported => SensorState::Unsupported,
            _ if fired => SensorState::Live,
            _ => SensorState::NeverRan,
        },
        prefetcher_writes: window.prefetcher_writes,
        prefetcher_writes_watched: watched,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_makers_registers_count() {
        let vcpu = Vcpu {
            msr_events: 9,
            prefetcher_writes_amd: 4,
            prefetcher_writes_intel: 1,
            ..Vcpu::default()
        };
        let figures = MsrFigures::absolute(&vcpu);
        assert_eq!((figures.events, figures.prefetcher_writes), (9, 5));
        assert_eq!(figures.since(&figures), MsrFigures::default());
    }

    #[test]
    fn nothing_seen_is_a_zero_only_where_the_tracepoint_is_known_to_fire() {
        let state = |host, fired| found(host, fired, MsrFigures::default(), 0).state;
        assert_eq!(state(SensorState::Live, false), SensorState::NeverRan);
        assert_eq!(state(SensorState::Live, true), SensorState::Live);
        assert_eq!(
            state(SensorState::Unsupported, true),
            SensorState::Unsupported
        );
    }
}
