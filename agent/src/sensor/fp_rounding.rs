//! `fp_rounding`: how a thread's samples spread over the four MXCSR rounding modes.
//!
//! Kernel half: `agent-ebpf/src/sensor/fp_rounding.rs`, which counts a sample only if the registers had changed
//! since the thread's previous look. The test itself is `davy_evidence::fp_rounding`.

use davy_abi::Slot;

/// Samples by rounding mode (MXCSR.RC 0..3).
pub type Modes = [u64; 4];

/// Samples since `before`, by mode. A counter that fell counts as nothing new.
#[must_use]
pub fn since(slot: &Slot, before: &Modes) -> Modes {
    difference(&slot.modes, before)
}

/// Looks at the vector registers of a thread that had left its CPU involuntarily: what ran on it is met so in proportion to its time,
/// however often it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Involuntary {
    /// All of them.
    pub looks: u64,
    /// Those that found a sample outside rounding mode 0.
    pub directed: u64,
}

impl Involuntary {
    /// A slot's, since watching began.
    #[must_use]
    pub fn of(slot: &Slot) -> Self {
        Self {
            looks: slot.involuntary_looks,
            directed: slot.involuntary_directed,
        }
    }

    /// What was added since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let looks = self.looks.saturating_sub(before.looks);
        // A slot is read while it is written: the two may be one look apart.
        let directed = self.directed.saturating_sub(before.directed).min(looks);
        Self { looks, directed }
    }

    /// Adds `other`, saturating.
    pub fn add(&mut self, other: Self) {
        self.looks = self.looks.saturating_add(other.looks);
        self.directed = self.directed.saturating_add(other.directed);
    }
}

/// Whether samples lie in at least one directed mode (1..3): only then can evidence be forming.
#[must_use]
pub fn any_directed(modes: &Modes) -> bool {
    modes[1..].iter().any(|&count| count > 0)
}

/// Mode by mode `now - before`, not below 0.
#[must_use]
pub fn difference(now: &Modes, before: &Modes) -> Modes {
    std::array::from_fn(|mode| now[mode].saturating_sub(before[mode]))
}

/// Adds `more` mode by mode, saturating.
pub fn add(sum: &mut Modes, more: &Modes) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum = sum.saturating_add(*more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_by_mode_and_never_negative() {
        let slot = Slot {
            modes: [10, 4, 0, 7],
            ..Slot::default()
        };
        assert_eq!(since(&slot, &[8, 4, 2, 0]), [2, 0, 0, 7]);
        assert!(any_directed(&[0, 0, 0, 1]));
        assert!(!any_directed(&[9, 0, 0, 0]));
    }
}
