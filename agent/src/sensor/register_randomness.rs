//! `register_randomness`: samples with at least 8 of 16 vector registers, or 6 of 15 general ones, uniformly random and changed.
//!
//! Kernel half: `agent-ebpf/src/sensor/register_randomness.rs`; counts leave it, never contents. They come by
//! rounding mode, because only RandomX computes outside mode 0 with registers full of random bits. The test
//! itself is `davy_evidence::register_randomness`.

use davy_abi::Slot;

use super::fp_rounding::{Modes, difference};

/// Samples of general registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct General {
    /// All of them.
    pub samples: u64,
    /// Those with enough random, changed registers.
    pub random: u64,
}

impl General {
    /// As a slot counts them.
    #[must_use]
    pub fn of(slot: &Slot) -> Self {
        Self {
            samples: slot.general_samples,
            random: slot.general_random,
        }
    }

    /// Those since `before`: never negative, and never more random ones than there are.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let samples = self.samples.saturating_sub(before.samples);
        Self {
            samples,
            random: self.random.saturating_sub(before.random).min(samples),
        }
    }

    /// Adds `more`, saturating.
    pub fn add(&mut self, more: Self) {
        self.samples = self.samples.saturating_add(more.samples);
        self.random = self.random.saturating_add(more.random);
    }
}

/// Random samples since `before`, by rounding mode, and never more than the samples of that mode: the two
/// counters of a slot are read together, but a test must not see more successes than trials.
#[must_use]
pub fn since(slot: &Slot, before: &Modes, samples: &Modes) -> Modes {
    let random = difference(&slot.random, before);
    std::array::from_fn(|mode| random[mode].min(samples[mode]))
}

/// Sum over all modes.
#[must_use]
pub fn all(modes: &Modes) -> u64 {
    modes.iter().fold(0, |sum, &n| sum.saturating_add(n))
}

/// Sum over the directed modes (1..3).
#[must_use]
pub fn directed(modes: &Modes) -> u64 {
    modes[1..].iter().fold(0, |sum, &n| sum.saturating_add(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_random_samples_than_samples() {
        let slot = Slot {
            random: [5, 9, 1, 0],
            ..Slot::default()
        };
        assert_eq!(since(&slot, &[1, 0, 3, 0], &[10, 7, 1, 1]), [4, 7, 0, 0]);
    }

    #[test]
    fn general_samples_are_differences_too() {
        let before = General {
            samples: 10,
            random: 9,
        };
        let slot = Slot {
            general_samples: 12,
            general_random: 15,
            ..Slot::default()
        };
        let since = General::of(&slot).since(before);
        assert_eq!((since.samples, since.random), (2, 2));
        assert_eq!(General::default().since(before), General::default());
    }

    #[test]
    fn sums_are_over_all_and_over_directed_modes() {
        assert_eq!(all(&[1, 2, 3, 4]), 10);
        assert_eq!(directed(&[1, 2, 3, 4]), 9);
    }
}
