//! The general registers: a hash computed in scalar instructions keeps its state there and in memory.
//!
//! Of a plain thread they lie on its kernel stack (`task_pt_regs`, arch/x86/include/asm/processor.h), as of its last way
//! from user mode into the kernel. RAX, RCX and R11 are overwritten by a system call (Intel SDM vol. 2, SYSCALL;
//! `PUSH_AND_CLEAR_REGS`, arch/x86/entry/calling.h): after one they are no random words.

use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use davy_abi::Slot;

use super::{Digester, differs, judge};
use crate::{sensor::register_randomness, task::Task};

/// Where in `struct pt_regs` (arch/x86/include/uapi/asm/ptrace.h, x86-64) the registers lie, in words. Four groups of four; the
/// last place of the last one holds nothing: RSP is not looked at.
const PT_REGS: [usize; 15] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
/// Registers by group: a word of the slot holds four digests.
const GROUP: usize = 4;
const GROUPS: usize = 4;

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
#[inline(always)]
pub fn look(slot: &mut Slot, task: Task) -> Look {
    // SAFETY: `task` is a trusted pointer. What comes back is one to a `struct pt_regs`, whose loads the verifier checks.
    let registers = unsafe { bpf_task_pt_regs(task.pointer().cast_mut().cast()) } as *const u64;
    judge_all(slot, |number| {
        // SAFETY: within `struct pt_regs`; a load through this pointer cannot fault.
        unsafe { registers.add(PT_REGS[number]).read_volatile() }
    })
}

#[inline(always)]
fn judge_all(slot: &mut Slot, register: impl Fn(usize) -> u64) -> Look {
    let mut digester = Digester::new();
    let (mut changed, mut random) = (false, 0);
    let mut group = 0;
    while group < GROUPS {
        let mut words = [0; GROUP];
        let mut digests = 0;
        let mut number = 0;
        while number < GROUP {
            words[number] = match GROUP * group + number {
                place if place < PT_REGS.len() => register(place),
                _ => 0,
            };
            digests = (digests >> 16) | digester.next(words[number], 0);
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
                not_random += (judge::general(words[number]) | same) >> 63;
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
