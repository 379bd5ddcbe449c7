//! What KVM tells of guests, in the documents: `kvm_exits` and `msr_writes`.

use davy_evidence::kvm_exits::{Isa, reason_name};
use davy_proto::v1;
use serde::Serialize;

use crate::model::state;

/// What `kvm_exits` found in a window. `null` is "not known".
#[derive(Debug, Serialize)]
pub struct KvmExits {
    /// `live`, `stalled`, `never_ran`, `unsupported`.
    pub state: &'static str,
    /// `counters` (KVM's own) or `tracepoint` (`kvm:kvm_exit`).
    pub source: Option<&'static str>,
    /// Sum over the vCPUs of the time in which was counted.
    pub observed_ns: u64,
    /// All VM exits.
    pub exits: u64,
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
    /// The most frequent reasons, where the source tells them.
    pub reasons: Vec<ExitReason>,
}

/// A reason for exits.
#[derive(Debug, Serialize)]
pub struct ExitReason {
    /// As the CPU numbers it.
    pub code: u32,
    /// As the CPU's manual names it; `null` if it is not known whose manual.
    pub name: Option<String>,
    /// Exits for it.
    pub count: u64,
}

/// What `msr_writes` found in a window.
#[derive(Debug, Serialize)]
pub struct MsrWrites {
    /// `live`, `stalled`, `never_ran`, `unsupported`.
    pub state: &'static str,
    /// Writes to the prefetcher's registers.
    pub prefetcher_writes: u64,
    /// The same since the agent watches the tenant.
    pub prefetcher_writes_watched: u64,
}

impl From<v1::KvmExits> for KvmExits {
    fn from(wire: v1::KvmExits) -> Self {
        let (source, isa) = (wire.source(), wire.isa());
        let isa = match isa {
            v1::ExitIsa::Vmx => Some(Isa::Vmx),
            v1::ExitIsa::Svm => Some(Isa::Svm),
            v1::ExitIsa::Unspecified => None,
        };
        let v1::KvmExits {
            state: sensor,
            source: _,
            observed_ns,
            exits,
            halts,
            io,
            mmio,
            interrupts,
            hypercalls,
            isa: _,
            reasons,
        } = wire;
        Self {
            state: state(sensor),
            source: match source {
                v1::ExitSource::Counters => Some("counters"),
                v1::ExitSource::Tracepoint => Some("tracepoint"),
                v1::ExitSource::Unspecified => None,
            },
            observed_ns,
            exits,
            halts,
            io,
            mmio,
            interrupts,
            hypercalls,
            reasons: reasons
                .into_iter()
                .map(|v1::ExitReason { code, count }| ExitReason {
                    code,
                    name: isa.map(|isa| reason_name(isa, code).into_owned()),
                    count,
                })
                .collect(),
        }
    }
}

impl From<v1::MsrWrites> for MsrWrites {
    fn from(wire: v1::MsrWrites) -> Self {
        let v1::MsrWrites {
            state: sensor,
            prefetcher_writes,
            prefetcher_writes_watched,
        } = wire;
        Self {
            state: state(sensor),
            prefetcher_writes,
            prefetcher_writes_watched,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_named_where_it_is_known_whose_they_are() {
        let named = |isa: v1::ExitIsa| {
            let wire = v1::KvmExits {
                isa: isa.into(),
                reasons: vec![v1::ExitReason { code: 12, count: 3 }],
                ..v1::KvmExits::default()
            };
            KvmExits::from(wire).reasons[0].name.clone()
        };
        assert_eq!(named(v1::ExitIsa::Vmx).as_deref(), Some("HLT"));
        assert_eq!(named(v1::ExitIsa::Svm).as_deref(), Some("CR12_READ"));
        assert_eq!(named(v1::ExitIsa::Unspecified), None);
    }
}
