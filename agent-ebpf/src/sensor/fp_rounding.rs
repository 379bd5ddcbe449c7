//! `fp_rounding`: samples by the rounding mode in MXCSR.
//!
//! RandomX changes the rounding mode from data (instruction CFROUND, RandomX specification 5.4.1), so its
//! samples spread over all four modes; ordinary software stays in mode 0.

use davy_abi::Slot;

/// Counts a sample in `mode` (MXCSR.RC, 0..3: nearest, down, up, towards zero; Intel SDM vol. 1, 10.2.3).
#[inline(always)]
pub fn count(slot: &mut Slot, mode: usize) {
    slot.modes[mode & 3] += 1;
}
