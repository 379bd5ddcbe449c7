//! The sensors' kernel halves, one file each, with the same names as in the user half.

pub mod cpu;
pub mod fp_rounding;
pub mod register_randomness;
pub mod waits;

use davy_abi::{FLAG_CONFIDENTIAL, FLAG_VCPU, Slot};

use crate::{
    registers::{self, Look},
    task::Task,
};

/// Looks at the registers of the thread that enters, as they were saved when it last left, and lets the
/// sensors on registers count. Only registers that changed since the previous look make a sample: what a
/// program left behind long ago is no evidence.
#[inline(always)]
pub fn look(slot: &mut Slot, task: Task) {
    let Some(fpstate) = task.fpstate() else {
        return registers::failed();
    };
    let Some((is_guest, is_confidential)) = fpstate.flags() else {
        return registers::failed();
    };
    if is_guest {
        slot.flags |= FLAG_VCPU;
    } else if slot.flags & FLAG_VCPU != 0 {
        // The VMM's own registers, while it handles an exit: not the guest's.
        return;
    }
    if is_confidential {
        slot.flags |= FLAG_CONFIDENTIAL;
        return;
    }
    let Some(look) = registers::look(slot, fpstate) else {
        return registers::failed();
    };
    slot.looks += 1;
    if let Look::Changed { mode, random } = look {
        fp_rounding::count(slot, mode);
        register_randomness::count(slot, mode, random);
    }
}

/// Empties what the sensors on registers keep in a slot.
#[inline(always)]
pub fn forget(slot: &mut Slot) {
    slot.next_sample_ns = 0;
    slot.looks = 0;
    slot.modes = [0; 4];
    slot.random = [0; 4];
    slot.digests = [0; 16];
    slot.mxcsr_digest = 0;
    slot.looked = 0;
}
