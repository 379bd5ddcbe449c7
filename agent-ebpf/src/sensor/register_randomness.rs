//! `register_randomness`: samples in which most vector registers, or many general ones, look uniformly random *and* have
//! changed.
//!
//! A hash's state is uniformly random all the time; what video, numeric code or compilers keep in
//! registers is not. Outside rounding mode 0, where RandomX works, vector registers full of random mantissas count
//! as well once at least two look random whole: RandomX keeps many of its registers in floating-point form
//! (specification 4.3), while ordinary software computes nothing there.

use davy_abi::Slot;

/// Vector registers of 16 that must look random.
const ENOUGH: u64 = 8;
/// Registers that must look random whole where full mantissas are accepted.
const ENOUGH_WHOLE: u64 = 2;
/// General registers of 15 that must look random.
const ENOUGH_GENERAL: u64 = 6;

/// How many vector registers changed and look …
#[derive(Clone, Copy)]
pub struct Found {
    /// … full of entropy, perhaps as mantissas of floating-point numbers.
    pub full: u64,
    /// … uniformly random in all their bits.
    pub random: u64,
}

/// Whether what was found in rounding mode `mode` makes a sample random.
#[inline(always)]
pub fn is_random(found: Found, mode: usize) -> bool {
    found.random >= ENOUGH || (mode != 0 && found.full >= ENOUGH && found.random >= ENOUGH_WHOLE)
}

/// Whether `remaining` more registers can change what [`is_random`] says.
#[inline(always)]
pub fn is_undecided(found: Found, mode: usize, remaining: u64) -> bool {
    let most = if mode == 0 { found.random } else { found.full };
    !is_random(found, mode) && most + remaining >= ENOUGH
}

/// Whether so many random general registers make a sample random.
#[inline(always)]
pub fn is_general_random(random: u64) -> bool {
    random >= ENOUGH_GENERAL
}

/// Counts a sample of the vector registers in rounding mode `mode`.
#[inline(always)]
pub fn count(slot: &mut Slot, mode: usize, random: bool) {
    if random {
        slot.random[mode & 3] += 1;
    }
}

/// Counts a sample of the general registers.
#[inline(always)]
pub fn count_general(slot: &mut Slot, random: bool) {
    slot.general_samples += 1;
    slot.general_random += u64::from(random);
}
