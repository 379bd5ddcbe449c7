//! Conversions of what KVM tells of guests: `kvm_exits` and `msr_writes`.

use davy_evidence::{
    EXIT_REASONS_MAX, ExitReason, ExitSource, KvmExits, MsrWrites, kvm_exits::Isa, most_frequent,
};

use super::{ConvertError, sensor_state};
use crate::v1;

impl From<&KvmExits> for v1::KvmExits {
    fn from(exits: &KvmExits) -> Self {
        let KvmExits {
            state,
            source,
            observed_ns,
            exits,
            halts,
            io,
            mmio,
            interrupts,
            hypercalls,
            isa,
            reasons,
        } = *exits;
        let source = match source {
            None => v1::ExitSource::Unspecified,
            Some(ExitSource::Counters) => v1::ExitSource::Counters,
            Some(ExitSource::Tracepoint) => v1::ExitSource::Tracepoint,
        };
        let isa = match isa {
            None => v1::ExitIsa::Unspecified,
            Some(Isa::Vmx) => v1::ExitIsa::Vmx,
            Some(Isa::Svm) => v1::ExitIsa::Svm,
        };
        Self {
            state: v1::SensorState::from(state).into(),
            source: source.into(),
            observed_ns,
            exits,
            halts,
            io,
            mmio,
            interrupts,
            hypercalls,
            isa: isa.into(),
            reasons: reasons
                .iter()
                .filter(|reason| reason.count > 0)
                .map(|&ExitReason { code, count }| v1::ExitReason { code, count })
                .collect(),
        }
    }
}

impl TryFrom<&v1::KvmExits> for KvmExits {
    type Error = ConvertError;

    fn try_from(wire: &v1::KvmExits) -> Result<Self, ConvertError> {
        let v1::KvmExits {
            state,
            source,
            observed_ns,
            exits,
            halts,
            io,
            mmio,
            interrupts,
            hypercalls,
            isa,
            reasons,
        } = wire;
        if reasons.len() > EXIT_REASONS_MAX {
            return Err(ConvertError::WrongLength {
                field: "evidence.kvm_exits.reasons",
                len: reasons.len(),
                expected: "at most 4",
            });
        }
        let unknown = |field, value| ConvertError::UnknownValue { field, value };
        Ok(Self {
            state: sensor_state("evidence.kvm_exits.state", *state)?,
            source: match v1::ExitSource::try_from(*source) {
                Ok(v1::ExitSource::Unspecified) => None,
                Ok(v1::ExitSource::Counters) => Some(ExitSource::Counters),
                Ok(v1::ExitSource::Tracepoint) => Some(ExitSource::Tracepoint),
                Err(_) => return Err(unknown("evidence.kvm_exits.source", *source)),
            },
            observed_ns: *observed_ns,
            exits: *exits,
            halts: *halts,
            io: *io,
            mmio: *mmio,
            interrupts: *interrupts,
            hypercalls: *hypercalls,
            isa: match v1::ExitIsa::try_from(*isa) {
                Ok(v1::ExitIsa::Unspecified) => None,
                Ok(v1::ExitIsa::Vmx) => Some(Isa::Vmx),
                Ok(v1::ExitIsa::Svm) => Some(Isa::Svm),
                Err(_) => return Err(unknown("evidence.kvm_exits.isa", *isa)),
            },
            reasons: most_frequent(
                reasons
                    .iter()
                    .map(|&v1::ExitReason { code, count }| ExitReason { code, count })
                    .collect(),
            ),
        })
    }
}

impl From<&MsrWrites> for v1::MsrWrites {
    fn from(msrs: &MsrWrites) -> Self {
        let MsrWrites {
            state,
            prefetcher_writes,
            prefetcher_writes_watched,
        } = *msrs;
        Self {
            state: v1::SensorState::from(state).into(),
            prefetcher_writes,
            prefetcher_writes_watched,
        }
    }
}

impl TryFrom<&v1::MsrWrites> for MsrWrites {
    type Error = ConvertError;

    fn try_from(wire: &v1::MsrWrites) -> Result<Self, ConvertError> {
        let v1::MsrWrites {
            state,
            prefetcher_writes,
            prefetcher_writes_watched,
        } = *wire;
        Ok(Self {
            state: sensor_state("evidence.msr_writes.state", state)?,
            prefetcher_writes,
            prefetcher_writes_watched,
        })
    }
}
