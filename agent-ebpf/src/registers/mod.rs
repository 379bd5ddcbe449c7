//! The only code of Davy that sees register contents. It reads, compares, judges and forgets.
//!
//! | what is read | where |
//! |---|---|
//! | MXCSR, XMM0–15 and the `xfeatures` word of one thread, as the kernel saved them when it was last switched out | [`vector`]; FXSAVE area and XSAVE header, Intel SDM vol. 1, 10.5.1 and 13.4.2 |
//! | fifteen general registers of one thread, as they were when it last left user mode, or its guest last left for the host | [`general`]; `struct pt_regs`, `kvm_vcpu.arch.regs` |
//!
//! Never guest memory, never the instruction pointer; a guest's stack pointer lies among the others and is set to 0 before anything is judged.
//!
//! What is kept: per register 16 bits of a digest under a secret key that is new at each load of the programs and other factors for each
//! thread and place. The digest answers one question, "is this register still the same?". 2^112 contents of a vector
//! register (2^48 of a general one) share each value, and equal contents at two places or of two threads have digests that do not show
//! it. The key lies in a map of its own, which root can read, who can read the guest's memory as well: with it a digest tells which
//! of a few contents a register may have, no more.
//!
//! What leaves: the rounding mode, and whether enough registers look random ([`judge`]).
//!
//! Judging has no branches per register: the verifier follows every path, and sixteen registers with two ways each are too many.

pub mod general;
mod judge;
pub mod vector;

use davy_abi::{Counter, Slot};

use crate::{maps, offsets::setting};

/// A kernel read failed: counted, and no sample.
#[inline(always)]
pub fn failed() {
    maps::count(Counter::ReadFailed);
}

/// Makes the digests of one look, register after register. Multiply-shift hashing (Dietzfelbinger, Hagerup, Katajainen, Penttonen
/// 1997, its form for vectors) with another secret factor for each register: two contents share a digest with a chance of 2^-15 at most.
#[derive(Clone, Copy)]
struct Digester {
    low: u64,
    high: u64,
    sum: u64,
}

impl Digester {
    #[inline(always)]
    fn new(slot: &Slot) -> Self {
        let [low, high] = setting!(digest_key);
        let low = low ^ slot.start_boottime_ns;
        Self {
            low: low | 1,
            high: high | 1,
            sum: low ^ high,
        }
    }

    /// The digest of the next register, in the top 16 bits; what is below them is not to be kept.
    #[inline(always)]
    fn next(&mut self, low: u64, high: u64) -> u64 {
        let digest = low
            .wrapping_mul(self.low)
            .wrapping_add(high.wrapping_mul(self.high))
            .wrapping_add(self.sum);
        self.sum = self.sum.wrapping_add(self.low);
        self.low = self.low.wrapping_add(self.high << 1);
        self.high = self.high.wrapping_add(self.sum << 1);
        digest & (0xffff << 48)
    }
}

/// Top bit set if the `number`-th 16 bits of `difference` are not 0.
#[inline(always)]
fn differs(difference: u64, number: usize) -> u64 {
    ((difference >> (16 * number)) & 0xffff).wrapping_neg()
}

/// 0, unknown to the compiler: a loop that begins there is not unrolled, whose copies would need more stack than there is.
#[inline(always)]
fn zero() -> usize {
    static ZERO: usize = 0;
    // SAFETY: reads a static.
    unsafe { core::ptr::read_volatile(&raw const ZERO) }
}
