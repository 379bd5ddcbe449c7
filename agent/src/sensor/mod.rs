//! The user half of each sensor: how the fields of a thread's slot become figures of a window, and what
//! state the sensor is in. One file per sensor, with the name of its kernel half (`agent-ebpf/src/sensor/`);
//! [`pmu`] has none, the kernel counts for it.

pub mod cpu;
pub mod fp_rounding;
pub mod kvm_exits;
pub mod msr_writes;
pub mod pmu;
pub mod register_randomness;
pub mod waits;

use davy_evidence::SensorState;

/// What is needed to say in which state a sensor on registers is for one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    /// Looks at registers within the window.
    pub in_window: u64,
    /// Whether there ever was a look at this tenant's registers.
    pub ever: bool,
    /// Whether every thread that could be looked at has encrypted registers.
    pub all_confidential: bool,
}

/// The state of a sensor on registers for one tenant; `host` is what the sensor can do on this host.
///
/// A host that cannot measure wins over everything: a tenant's zero there means "don't know".
#[must_use]
pub fn register_state(host: SensorState, looks: Looks) -> SensorState {
    if host == SensorState::Unsupported || looks.all_confidential {
        SensorState::Unsupported
    } else if looks.in_window > 0 {
        SensorState::Live
    } else if looks.ever {
        SensorState::Stalled
    } else {
        SensorState::NeverRan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_state_is_never_a_silent_zero() {
        let looks = |in_window, ever, all_confidential| Looks {
            in_window,
            ever,
            all_confidential,
        };
        let live = SensorState::Live;
        assert_eq!(
            register_state(live, looks(0, false, false)),
            SensorState::NeverRan
        );
        assert_eq!(register_state(live, looks(3, true, false)), live);
        assert_eq!(
            register_state(live, looks(0, true, false)),
            SensorState::Stalled
        );
        assert_eq!(
            register_state(live, looks(3, true, true)),
            SensorState::Unsupported
        );
        assert_eq!(
            register_state(SensorState::Unsupported, looks(3, true, false)),
            SensorState::Unsupported
        );
    }
}
