//! The only code of Davy that sees register contents. It reads, compares, judges and forgets.
//!
//! What is read: MXCSR and XMM0–15 of the FXSAVE area (Intel SDM vol. 1, 10.5.1: offsets 24 and 160) and the
//! `xfeatures` word of the XSAVE header (13.4.2: offset 512), for one thread, as the kernel saved them when
//! that thread was last switched out. Never guest memory.
//!
//! What is kept: per register 16 bits of a digest under a secret key that is new at each load of the programs. The digest answers one question, "is this register still the same?". It
//! cannot be turned back: 2^112 contents of a vector register share each value, the key is not readable from the maps the digests
//! lie in, and no other thread's digest helps, since equal contents at two places of a slot give different digests.
//!
//! What leaves: the rounding mode and two numbers from 0 to 16.

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_kernel_buf};
use davy_abi::{Counter, Slot};

use crate::{maps, offsets::setting, task::Fpstate};

const MXCSR: usize = 24;
const XMM: usize = 160;
const XFEATURES: usize = 512;
/// XSAVE state component 1, SSE: if its bit is clear the registers are in their initial state and were not written.
const XFEATURE_SSE: u64 = 1 << 1;
/// MXCSR after reset, Intel SDM vol. 1, 10.2.3.
const MXCSR_INITIAL: u32 = 0x1f80;
/// Vector registers looked at.
const REGISTERS: usize = 16;

/// What one look found.
pub enum Look {
    /// Nothing changed since the previous look, or this was the first.
    Same,
    /// Something changed.
    Changed {
        /// MXCSR.RC, 0..3.
        mode: usize,
        random: Found,
    },
}

/// How many registers changed and look …
#[derive(Clone, Copy)]
pub struct Found {
    /// … full of entropy, perhaps as mantissas of floating-point numbers.
    pub full: u32,
    /// … uniformly random in all their bits.
    pub random: u32,
}

/// A kernel read failed: counted, and no sample.
#[inline(always)]
pub fn failed() {
    maps::count(Counter::ReadFailed);
}

/// Reads the registers behind `fpstate`, compares them with the previous look and keeps the new digests.
#[inline(always)]
pub fn look(slot: &mut Slot, fpstate: Fpstate) -> Option<Look> {
    let image = fpstate.registers();
    let mut registers = [0u64; 2 * REGISTERS];
    let mut mxcsr = MXCSR_INITIAL;
    if is_written(image)? {
        // SAFETY: the helper checks the address itself and fails instead of faulting.
        mxcsr = unsafe { bpf_probe_read_kernel(image.wrapping_add(MXCSR).cast::<u32>()) }.ok()?;
        // SAFETY: a view of the array above as bytes.
        let bytes = unsafe {
            core::slice::from_raw_parts_mut(registers.as_mut_ptr().cast::<u8>(), 16 * REGISTERS)
        };
        // SAFETY: as above.
        unsafe { bpf_probe_read_kernel_buf(image.wrapping_add(XMM), bytes) }.ok()?;
    }
    let mxcsr_digest = u32::from(digest(u64::from(mxcsr), 0, REGISTERS as u64));
    let mut changed = mxcsr_digest != slot.mxcsr_digest;
    let mut found = Found { full: 0, random: 0 };
    let mut number = 0;
    while number < REGISTERS {
        let (low, high) = (registers[2 * number], registers[2 * number + 1]);
        let digest = digest(low, high, number as u64);
        if digest != slot.digests[number] {
            slot.digests[number] = digest;
            changed = true;
            let looks = looks_random(low, high);
            found.full += (looks & FULL) as u32;
            found.random += (looks >> 1) as u32;
        }
        number += 1;
    }
    slot.mxcsr_digest = mxcsr_digest;
    let first = slot.looked == 0;
    slot.looked = 1;
    if first || !changed {
        return Some(Look::Same);
    }
    Some(Look::Changed {
        mode: ((mxcsr >> 13) & 3) as usize,
        random: found,
    })
}

/// Whether the SSE registers were written into the image.
#[inline(always)]
fn is_written(image: *const u8) -> Option<bool> {
    if setting!(has_xsave) == 0 {
        return Some(true);
    }
    // SAFETY: the helper checks the address itself and fails instead of faulting.
    let xfeatures = unsafe { bpf_probe_read_kernel(image.wrapping_add(XFEATURES).cast::<u64>()) };
    Some(xfeatures.ok()? & XFEATURE_SSE != 0)
}

/// 16 bits of a keyed multiply-and-fold over the register and its number.
#[inline(always)]
fn digest(low: u64, high: u64, number: u64) -> u16 {
    let [key_low, key_high] = setting!(digest_key);
    let a = (low ^ key_low).wrapping_mul(key_high | 1);
    let b = (high ^ key_high).wrapping_mul(key_low | 1);
    let mixed = (a ^ (a >> 32)) ^ b.rotate_left(23) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 48) as u16
}

/// Bit of [`looks_random`]: both halves are full of entropy.
const FULL: u64 = 1;
/// Bit of [`looks_random`]: and nothing tells them from uniformly random bits.
const RANDOM: u64 = 2;

/// Judges one register; `FULL`, or `FULL | RANDOM`, or 0.
///
/// Counts of uniformly random bits are binomial, so each bound below states how many standard deviations of
/// that count it allows. In this order, cheapest and most telling first:
/// 1. ones in each half (sd 4) and ones in the halves' difference (sd 4): zeroes, small integers, pointers and
///    equal lanes fail; mantissas pass;
/// 2. bit changes along each half (sd 4): runs and sign-extended integers fail. What passes is `FULL`;
/// 3. both halves look like a `double` near 1, or three quarters like a `float` near 1: numeric code fails;
/// 4. bits 4 to 7 of neighbouring bytes differ as often as not (sd 3.7 of 56): pixels and text fail;
/// 5. top bits of the 16 bytes (sd 2): ASCII and small bytes fail.
///
/// A function of its own, verified once with unknown arguments, so that its branches do not multiply over 16 registers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn looks_random(low: u64, high: u64) -> u64 {
    if !near(ones(low), 32, 13) || !near(ones(high), 32, 13) || !near(ones(low ^ high), 32, 16) {
        return 0;
    }
    if !near(ones(low ^ (low >> 1)), 32, 14) || !near(ones(high ^ (high >> 1)), 32, 14) {
        return 0;
    }
    if is_double_near_one(low) && is_double_near_one(high) {
        return FULL;
    }
    let floats = is_float_near_one(low)
        + is_float_near_one(low >> 32)
        + is_float_near_one(high)
        + is_float_near_one(high >> 32);
    if floats >= 3 {
        return FULL;
    }
    const HIGH_NIBBLES: u64 = 0x00f0_f0f0_f0f0_f0f0;
    let low_steps = (low ^ (low >> 8)) & HIGH_NIBBLES;
    let high_steps = (high ^ (high >> 8)) & HIGH_NIBBLES;
    if !near(ones(low_steps | (high_steps >> 4)), 28, 13) {
        return FULL;
    }
    const TOP_BITS: u64 = 0x8080_8080_8080_8080;
    if !near(ones((low & TOP_BITS) | ((high & TOP_BITS) >> 1)), 8, 6) {
        return FULL;
    }
    FULL | RANDOM
}

/// `|count - middle| <= slack`.
#[inline(always)]
fn near(count: u64, middle: u64, slack: u64) -> bool {
    count.wrapping_sub(middle - slack) <= 2 * slack
}

/// Bits set. BPF has no instruction for it; this is the usual sum by halves.
#[inline(always)]
fn ones(mut word: u64) -> u64 {
    word -= (word >> 1) & 0x5555_5555_5555_5555;
    word = (word & 0x3333_3333_3333_3333) + ((word >> 2) & 0x3333_3333_3333_3333);
    word = (word + (word >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    word.wrapping_mul(0x0101_0101_0101_0101) >> 56
}

/// Exponent within 64 of 1.0's, IEEE 754 binary64: 6 % of random words.
#[inline(always)]
fn is_double_near_one(word: u64) -> bool {
    near((word >> 52) & 0x7ff, 0x3ff, 64)
}

/// Exponent within 20 of 1.0's, IEEE 754 binary32: 16 % of random words.
#[inline(always)]
fn is_float_near_one(word: u64) -> u32 {
    near((word >> 23) & 0xff, 127, 20) as u32
}
