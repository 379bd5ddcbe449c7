//! Does a word look uniformly random? Arithmetic alone: an answer is a word whose top bit is set for "no", and answers are
//! joined with `|`.
//!
//! Counts of uniformly random bits are binomial, so each bound states how far from the middle it lets that count be.

/// The top bit of each byte.
const TOP_BITS: u64 = 0x8080_8080_8080_8080;

/// Answer "no".
pub const NO: u64 = 1 << 63;

/// The two answers to one vector register.
#[derive(Clone, Copy)]
pub struct Verdict {
    /// Not full of entropy in both halves.
    pub not_full: u64,
    /// Not uniformly random either.
    pub not_random: u64,
}

/// "No" to a vector register by what settles most of what honest programs keep without counting bits: what fails is not random by
/// [`vector`] either, but for one in a thousand. "No" if it fails [`no_numbers`], or both halves have a byte of 0: small integers.
#[inline(always)]
pub fn at_first_sight(low: u64, high: u64) -> u64 {
    no_numbers(low, high) | (at_least_one(zero_bytes(low)) & at_least_one(zero_bytes(high)))
}

/// "No" if
/// - both halves look like a `double` near 1, or three quarters like a `float` near 1: numeric code;
/// - of the top bits of the 16 bytes not two are 1, or not two are 0: ASCII and small bytes.
#[inline(always)]
fn no_numbers(low: u64, high: u64) -> u64 {
    let doubles = !(not_double_near_one(low) | not_double_near_one(high));
    let not_floats = not_floats_near_one(low) | (not_floats_near_one(high) >> 1);
    let top_bits = (low & TOP_BITS) | ((high & TOP_BITS) >> 1);
    let no_top_bits = top_bits ^ (TOP_BITS | (TOP_BITS >> 1));
    doubles | !at_least_two(not_floats) | !(at_least_two(top_bits) & at_least_two(no_top_bits))
}

/// Judges one vector register, by [`no_numbers`] and
/// 1. ones in each half (sd 4) and ones in the halves' difference (sd 4): zeroes, small integers, pointers and
///    equal lanes fail; mantissas pass;
/// 2. bit changes along both halves, at every other place (sd 4): runs and sign-extended integers fail. What passes is full;
/// 3. bits 4 to 7 of neighbouring bytes differ as often as not (sd 3.7 of 56): pixels and text fail.
#[inline(always)]
pub fn vector(low: u64, high: u64) -> Verdict {
    const EVEN: u64 = 0x5555_5555_5555_5555;
    const HIGH_NIBBLES: u64 = 0x00f0_f0f0_f0f0_f0f0;
    let changes = ((low ^ (low >> 1)) & EVEN) | ((high ^ (high >> 1)) & !EVEN);
    let not_full = outside(ones(low), 32, 13)
        | outside(ones(high), 32, 13)
        | outside(ones(low ^ high), 32, 16)
        | outside(ones(changes), 32, 14);
    let low_steps = (low ^ (low >> 8)) & HIGH_NIBBLES;
    let high_steps = (high ^ (high >> 8)) & HIGH_NIBBLES;
    let not_random =
        not_full | no_numbers(low, high) | outside(ones(low_steps | (high_steps >> 4)), 28, 13);
    Verdict {
        not_full,
        not_random,
    }
}

/// Judges one general register: 64 random bits, or 32 of them where the upper half is 0. By each half's ones and bit
/// changes (sd 2.8 of 32, bounds at 7) and its top byte (within 2 to 254), and by the top bits of all bytes (neither all 0 nor all
/// 1): counters, small numbers, pointers (their top byte is 0, or 255 in the kernel), sign-extended numbers and text fail.
#[inline(always)]
pub fn general(word: u64) -> u64 {
    // Where the upper half is 0 the lower one stands for both.
    let no_upper = ((word >> 32).wrapping_sub(1)) >> 63;
    let both = word | ((word << 32) & no_upper.wrapping_neg());
    let upper = both >> 32;
    // The top bit of each half has no neighbour: 31 changes, and one of the lower half's top bit against the upper's lowest is cut.
    let changes = (both ^ (both >> 1)) & 0x7fff_ffff_7fff_ffff;
    let (ones, changes) = (halves(both), halves(changes));
    outside_halves(ones, 16, 7)
        | outside_halves(changes, 15, 7)
        | outside((upper >> 24) & 0xff, 128, 126)
        | outside((both >> 24) & 0xff, 128, 126)
        | !(at_least_one(both & TOP_BITS) & at_least_one(!both & TOP_BITS))
}

/// "No" if `|count - middle| > slack`; `count < 2^63`.
#[inline(always)]
fn outside(count: u64, middle: u64, slack: u64) -> u64 {
    count.wrapping_sub(middle - slack) | (middle + slack).wrapping_sub(count)
}

/// The same for the counts in both halves of a word.
#[inline(always)]
fn outside_halves(counts: u64, middle: u64, slack: u64) -> u64 {
    outside(counts & 0xffff_ffff, middle, slack) | outside(counts >> 32, middle, slack)
}

/// Bits set in each byte. BPF has no instruction for it; this is the usual sum by halves.
#[inline(always)]
fn bytes(mut word: u64) -> u64 {
    word -= (word >> 1) & 0x5555_5555_5555_5555;
    word = (word & 0x3333_3333_3333_3333) + ((word >> 2) & 0x3333_3333_3333_3333);
    (word + (word >> 4)) & 0x0f0f_0f0f_0f0f_0f0f
}

/// Bits set.
#[inline(always)]
fn ones(word: u64) -> u64 {
    bytes(word).wrapping_mul(0x0101_0101_0101_0101) >> 56
}

/// Bits set in each half.
#[inline(always)]
fn halves(word: u64) -> u64 {
    let mut sum = bytes(word);
    sum += sum >> 16;
    sum += sum >> 8;
    sum & 0x0000_003f_0000_003f
}

/// Exponent within 64 of 1.0's, IEEE 754 binary64: 6 % of random words.
#[inline(always)]
fn not_double_near_one(word: u64) -> u64 {
    outside((word >> 52) & 0x7ff, 0x3ff, 64)
}

/// For each half of `word` its top bit, unless its exponent is within 20 of 1.0's, IEEE 754 binary32: 16 % of random words.
#[inline(always)]
fn not_floats_near_one(word: u64) -> u64 {
    const TOP_BITS: u64 = 0x8000_0000_8000_0000;
    const LEAST: u64 = (127 - 20) * 0x1_0000_0001;
    const MOST: u64 = (127 + 20) * 0x1_0000_0001;
    let exponents = (word >> 23) & 0x0000_00ff_0000_00ff;
    // The top bits keep one half from borrowing of the other, and are left where nothing was borrowed.
    let near = ((exponents | TOP_BITS) - LEAST) & ((MOST | TOP_BITS) - exponents);
    !near & TOP_BITS
}

/// Not 0 if a byte of `word` is 0 ("Bit Twiddling Hacks", `haszero`), and only then.
#[inline(always)]
fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(TOP_BITS >> 7) & !word & TOP_BITS
}

/// Top bit set if a bit is; the lowest one does not count.
#[inline(always)]
fn at_least_one(bits: u64) -> u64 {
    (bits >> 1).wrapping_neg()
}

/// Top bit set if two bits at least are.
#[inline(always)]
fn at_least_two(bits: u64) -> u64 {
    // Those but the lowest: none of them is the word's lowest bit.
    at_least_one(bits & bits.wrapping_sub(1))
}
