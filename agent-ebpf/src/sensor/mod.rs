//! The sensors' kernel halves, one file each, with the same names as in the user half.

pub mod cpu;
pub mod fp_rounding;
pub mod kvm_exits;
pub mod msr_writes;
pub mod register_randomness;
pub mod waits;

use davy_abi::{FLAG_CONFIDENTIAL, FLAG_INVOLUNTARY, FLAG_VCPU, GENERAL_EVERY, Slot};

use crate::{
    registers::{self, general, vector},
    task::Task,
};

/// Looks at the registers of the thread that enters, as they were saved when it last left, and lets the
/// sensors on registers count. Only registers that changed since the previous look make a sample: what a
/// program left behind long ago is no evidence.
///
/// Each look is at the vector registers or, every [`GENERAL_EVERY`]th, at the general ones.
#[inline(always)]
pub fn look(slot: &mut Slot, task: Task) {
    if slot.looks % GENERAL_EVERY == GENERAL_EVERY - 1
        && let Some(look) = look_at_general(slot, task)
    {
        slot.looks += 1;
        if let general::Look::Changed { random } = look {
            register_randomness::count_general(slot, random);
        }
    } else {
        look_at_vectors(slot, task);
    }
}

/// `None` for a guest whose general registers cannot be found now.
#[inline(always)]
fn look_at_general(slot: &mut Slot, task: Task) -> Option<general::Look> {
    if slot.flags & FLAG_VCPU == 0 {
        return Some(general::look(slot, task));
    }
    if slot.flags & FLAG_CONFIDENTIAL != 0 {
        return None;
    }
    general::look_at_guest(slot, kvm_exits::guest_registers(task)?)
}

#[inline(always)]
fn look_at_vectors(slot: &mut Slot, task: Task) {
    let Some(fpstate) = task.fpstate() else {
        return registers::failed();
    };
    let Some(head) = vector::Head::read(fpstate) else {
        return registers::failed();
    };
    if head.is_guest() {
        slot.flags |= FLAG_VCPU;
    } else if slot.flags & FLAG_VCPU != 0 {
        // The VMM's own registers, while it handles an exit: not the guest's.
        return;
    }
    if head.is_confidential() {
        slot.flags |= FLAG_CONFIDENTIAL;
        return;
    }
    let Some(look) = vector::look(slot, fpstate, head) else {
        return registers::failed();
    };
    slot.looks += 1;
    let involuntary = u64::from(slot.flags & FLAG_INVOLUNTARY != 0);
    slot.involuntary_looks += involuntary;
    if let vector::Look::Changed { mode, random } = look {
        fp_rounding::count(slot, mode);
        register_randomness::count(slot, mode, random);
        if mode != 0 {
            slot.involuntary_directed += involuntary;
        }
    }
}

/// Empties what the sensors on registers keep in a slot.
#[inline(always)]
pub fn forget(slot: &mut Slot) {
    slot.next_sample_ns = 0;
    slot.looks = 0;
    slot.modes = [0; 4];
    slot.random = [0; 4];
    slot.digests = [0; 4];
    slot.mxcsr_digest = 0;
    slot.looked = 0;
    slot.general_samples = 0;
    slot.general_random = 0;
    slot.general_digests = [0; 4];
    slot.general_looked = 0;
    slot.involuntary_looks = 0;
    slot.involuntary_directed = 0;
}
