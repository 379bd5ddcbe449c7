//! MXCSR and the vector registers.
//!
//! Read are `struct fpstate` from its flags to MXCSR, the XSAVE header's `xfeatures`, and XMM0–15: one helper call each.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use davy_abi::{HEAD_BYTES_MAX, Slot};

use super::{Digester, differs, judge, zero};
use crate::{
    offsets::{offset, setting},
    sensor::register_randomness::{self, Found},
    task::Fpstate,
};

/// Offsets in the FXSAVE area and behind it.
const MXCSR: usize = 24;
const XMM: usize = 160;
const XFEATURES: usize = 512;
/// XSAVE state component 1, SSE: if its bit is clear the registers are in their initial state and were not written.
const XFEATURE_SSE: u64 = 1 << 1;
/// Stands for the digest of registers in their initial state; no digest has more than 16 bits.
const INITIAL_DIGEST: u32 = 1 << 16;
/// Vector registers looked at.
const REGISTERS: usize = 16;
/// They are compared by four: a word of the slot holds four digests.
const GROUP: usize = 4;
/// They are read by eight.
const HALF: usize = REGISTERS / 2;
/// What one look found.
pub enum Look {
    /// Nothing changed since the previous look, or this was the first.
    Same,
    /// Something changed.
    Changed {
        /// MXCSR.RC, 0..3.
        mode: usize,
        /// Whether enough registers changed and look random.
        random: bool,
    },
}

/// What lies in `struct fpstate` from its flags to MXCSR: MXCSR in the upper half, the flags' byte in the lower one.
#[derive(Clone, Copy)]
pub struct Head(u64);

impl Head {
    /// Stands for "cannot be read".
    const NONE: u64 = u64::MAX;

    #[inline(always)]
    pub fn read(fpstate: Fpstate) -> Option<Self> {
        match read_head(fpstate) {
            Self::NONE => None,
            head => Some(Self(head)),
        }
    }

    #[inline(always)]
    pub fn is_guest(self) -> bool {
        self.0 as usize & offset!(fpstate_is_guest) != 0
    }

    #[inline(always)]
    pub fn is_confidential(self) -> bool {
        self.0 as usize & offset!(fpstate_is_confidential) != 0
    }

    #[inline(always)]
    fn mxcsr(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A function of its own: before 6.13 the frames of a call and its callers share 512 bytes of stack.
#[inline(never)]
fn read_head(fpstate: Fpstate) -> u64 {
    let mut bytes = MaybeUninit::<[u64; HEAD_BYTES_MAX / 8]>::uninit();
    let begin = offset!(fpstate_flags);
    let mxcsr_at = offset!(fpstate_regs) + MXCSR - begin;
    // SAFETY: the agent gives only offsets whose span fits (`kernel::offsets`), and the verifier checks that; the helper
    // checks the address itself and fails instead of faulting.
    let result = unsafe {
        generated::bpf_probe_read_kernel(
            bytes.as_mut_ptr().cast(),
            (mxcsr_at + 4) as u32,
            fpstate.address(begin).cast(),
        )
    };
    if result != 0 {
        return Head::NONE;
    }
    let bytes = bytes.as_ptr().cast::<u8>();
    // SAFETY: within what the helper has just written.
    let (flags, mxcsr) = unsafe {
        (
            bytes.read(),
            bytes.add(mxcsr_at).cast::<u32>().read_unaligned(),
        )
    };
    u64::from(mxcsr) << 32 | u64::from(flags)
}

/// Reads the registers behind `fpstate`, compares them with the previous look and keeps the new digests.
///
/// A function of its own, for the same reason.
#[inline(never)]
pub fn look(slot: &mut Slot, fpstate: Fpstate, head: Head) -> Option<Look> {
    let image = offset!(fpstate_regs);
    if !is_written(fpstate.address(image + XFEATURES))? {
        return Some(initial(slot));
    }
    let mode = ((head.mxcsr() >> 13) & 3) as usize;
    let mut digester = Digester::new(slot);
    let mxcsr_digest = (digester.next(u64::from(head.mxcsr()), 0) >> 48) as u32;
    let mut changed = mxcsr_digest != slot.mxcsr_digest;
    slot.mxcsr_digest = mxcsr_digest;
    let mut found = Found { full: 0, random: 0 };
    let mut undecided = slot.looked != 0;
    let mut half = Half(MaybeUninit::uninit());
    let mut number = zero();
    while number < REGISTERS {
        half.read(fpstate.address(image + XMM + 16 * number))?;
        let mut group = 0;
        while group < HALF / GROUP {
            let digests = half.digests(GROUP * group, &mut digester);
            // No more than 3, which the compiler does not see.
            let place = (number / GROUP + group) % slot.digests.len();
            let difference = digests ^ slot.digests[place];
            group += 1;
            if difference != 0 {
                slot.digests[place] = digests;
                changed = true;
                if undecided {
                    half.judge(GROUP * (group - 1), difference, mode, &mut found);
                    let remaining = (REGISTERS - number - GROUP * group) as u64;
                    undecided = register_randomness::is_undecided(found, mode, remaining);
                }
            }
        }
        number += HALF;
    }
    let first = slot.looked == 0;
    slot.looked = 1;
    if first || !changed {
        return Some(Look::Same);
    }
    Some(Look::Changed {
        mode,
        random: register_randomness::is_random(found, mode),
    })
}

/// The registers are in their initial state, and were not written: MXCSR as after reset, in mode 0, the others 0.
#[inline(always)]
fn initial(slot: &mut Slot) -> Look {
    let changed = slot.looked != 0 && slot.mxcsr_digest != INITIAL_DIGEST;
    slot.digests = [0; 4];
    slot.mxcsr_digest = INITIAL_DIGEST;
    slot.looked = 1;
    if changed {
        Look::Changed {
            mode: 0,
            random: false,
        }
    } else {
        Look::Same
    }
}

/// Whether the SSE registers were written into the image.
#[inline(always)]
fn is_written(xfeatures: *const u8) -> Option<bool> {
    if setting!(has_xsave) == 0 {
        return Some(true);
    }
    // SAFETY: the helper checks the address itself and fails instead of faulting.
    let xfeatures = unsafe { bpf_probe_read_kernel(xfeatures.cast::<u64>()) };
    Some(xfeatures.ok()? & XFEATURE_SSE != 0)
}

/// Eight neighbouring registers: before 6.13 the frames of a call and its callers share 512 bytes of stack, and all sixteen
/// would leave too little of it.
struct Half(MaybeUninit<[u64; 2 * HALF]>);

impl Half {
    #[inline(always)]
    fn read(&mut self, from: *const u8) -> Option<()> {
        // SAFETY: the helper checks the address itself and fails instead of faulting.
        let result = unsafe {
            generated::bpf_probe_read_kernel(
                self.0.as_mut_ptr().cast(),
                size_of_val(&self.0) as u32,
                from.cast(),
            )
        };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn register(&self, number: usize) -> (u64, u64) {
        // SAFETY: the helper has written all of it.
        let words = unsafe { self.0.assume_init_ref() };
        (words[2 * number], words[2 * number + 1])
    }

    /// Four digests, of the registers from `first` on.
    #[inline(always)]
    fn digests(&self, first: usize, digester: &mut Digester) -> u64 {
        let mut digests = 0;
        let mut number = 0;
        while number < GROUP {
            let (low, high) = self.register(first + number);
            digests = (digests >> 16) | digester.next(low, high);
            number += 1;
        }
        digests
    }

    /// Whether none of four looks random, by the cheaper part of judging alone.
    #[inline(always)]
    fn none_random_at_first_sight(&self, first: usize) -> bool {
        let mut number = zero();
        while number < GROUP {
            let (low, high) = self.register(first + number);
            if judge::at_first_sight(low, high) >> 63 == 0 {
                return false;
            }
            number += 1;
        }
        true
    }

    /// Adds those of four that changed and look random to what was found.
    #[inline(always)]
    fn judge(&self, first: usize, difference: u64, mode: usize, found: &mut Found) {
        // In mode 0 those that are full and not random do not count.
        if mode == 0 && self.none_random_at_first_sight(first) {
            return;
        }
        let (mut not_full, mut not_random) = (0, 0);
        let mut number = 0;
        while number < GROUP {
            let (low, high) = self.register(first + number);
            let verdict = judge::vector(low, high);
            let same = !differs(difference, number) & judge::NO;
            not_full += (verdict.not_full | same) >> 63;
            not_random += (verdict.not_random | same) >> 63;
            number += 1;
        }
        found.full += GROUP as u64 - not_full;
        found.random += GROUP as u64 - not_random;
    }
}
