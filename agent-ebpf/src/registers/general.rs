//! The general registers: a hash computed in scalar instructions keeps its state there and in memory.
//!
//! Of a plain thread they lie on its kernel stack (`task_pt_regs`, arch/x86/include/asm/processor.h), as of its last way
//! from user mode into the kernel. RAX, RCX and R11 are overwritten by a system call (Intel SDM vol. 2, SYSCALL;
//! `PUSH_AND_CLEAR_REGS`, arch/x86/entry/calling.h): after one they are no random words. Of a guest KVM keeps them in
//! `kvm_vcpu.arch.regs`, as of its last exit.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_task_pt_regs};
use davy_abi::Slot;

use super::{Digester, differs, judge};
use crate::{sensor::register_randomness, task::Task};

/// Registers of one thread: those of `struct pt_regs` up to RDI (arch/x86/include/uapi/asm/ptrace.h, x86-64) and an
/// empty place, or those of `enum kvm_reg` (arch/x86/include/asm/kvm_host.h) without RSP.
const PLACES: usize = 16;
/// RDI's place in `struct pt_regs`, its fifteenth word; behind it lies no general register but RSP.
const PT_REGS: usize = 15;
/// `VCPU_REGS_RSP`.
const GUEST_RSP: usize = 4;
/// Registers by group: a word of the slot holds four digests.
const GROUP: usize = 4;

/// What one look found.
pub enum Look {
    /// Nothing changed since the previous look, or this was the first.
    Same,
    /// Something changed.
    Changed {
        /// Whether enough registers changed and look random.
        random: bool,
    },
}

/// Compares a plain thread's registers with the previous look and keeps the new digests.
#[inline(never)]
pub fn look(slot: &mut Slot, task: Task) -> Look {
    // SAFETY: `task` is a trusted pointer. What comes back is one to a `struct pt_regs`, whose loads the verifier checks.
    let registers = unsafe { bpf_task_pt_regs(task.pointer().cast_mut().cast()) } as *const u64;
    let mut words = [0; PLACES];
    for (place, word) in words.iter_mut().enumerate().take(PT_REGS) {
        // SAFETY: within `struct pt_regs`; a load through this pointer cannot fault.
        *word = unsafe { registers.add(place).read_volatile() };
    }
    judge_all(slot, &words)
}

/// The same for a guest, whose registers lie at `registers`. `None`: they cannot be read.
#[inline(never)]
pub fn look_at_guest(slot: &mut Slot, registers: u64) -> Option<Look> {
    let mut words = [0; PLACES];
    // SAFETY: the helper checks the address itself and fails instead of faulting.
    let result = unsafe {
        bpf_probe_read_kernel(
            words.as_mut_ptr().cast(),
            size_of_val(&words) as u32,
            registers as *const _,
        )
    };
    words[GUEST_RSP] = 0;
    (result == 0).then(|| judge_all(slot, &words))
}

#[inline(always)]
fn judge_all(slot: &mut Slot, words: &[u64; PLACES]) -> Look {
    let mut digester = Digester::new(slot);
    let (mut changed, mut random) = (false, 0);
    let mut group = 0;
    while group < PLACES / GROUP {
        let first = GROUP * group;
        let mut digests = 0;
        let mut number = 0;
        while number < GROUP {
            digests = (digests >> 16) | digester.next(words[first + number], 0);
            number += 1;
        }
        let difference = digests ^ slot.general_digests[group];
        if difference != 0 {
            slot.general_digests[group] = digests;
            changed = true;
            let mut not_random = 0;
            let mut number = 0;
            while number < GROUP {
                let same = !differs(difference, number) & judge::NO;
                not_random += (judge::general(words[first + number]) | same) >> 63;
                number += 1;
            }
            random += GROUP as u64 - not_random;
        }
        group += 1;
    }
    let first = slot.general_looked == 0;
    slot.general_looked = 1;
    if first || !changed {
        return Look::Same;
    }
    Look::Changed {
        random: register_randomness::is_general_random(random),
    }
}
