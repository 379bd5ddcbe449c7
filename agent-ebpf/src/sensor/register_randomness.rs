//! `register_randomness`: samples in which most vector registers look uniformly random *and* have changed.
//!
//! A hash's state is uniformly random all the time; what video, numeric code or compilers keep in vector
//! registers is not. Outside rounding mode 0, where RandomX works, registers full of random mantissas count
//! as well once at least two look random whole: RandomX keeps many of its registers in floating-point form
//! (specification 4.3), while ordinary software computes nothing there.

use davy_abi::Slot;

use crate::registers::Found;

/// Registers of 16 that must look random.
const ENOUGH: u32 = 8;
/// Registers that must look random whole where full mantissas are accepted.
const ENOUGH_WHOLE: u32 = 2;

/// Counts a sample in rounding mode `mode` if what was found is random.
#[inline(always)]
pub fn count(slot: &mut Slot, mode: usize, found: Found) {
    let random = found.random >= ENOUGH
        || (mode != 0 && found.full >= ENOUGH && found.random >= ENOUGH_WHOLE);
    if random {
        slot.random[mode & 3] += 1;
    }
}
