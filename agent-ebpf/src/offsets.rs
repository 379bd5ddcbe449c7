//! What the agent tells the kernel half at load: offsets from the running kernel's BTF, and settings.
//!
//! Both are `.rodata`, frozen before the programs are verified: the verifier knows every value, checks the
//! loads made with them and drops the code of what is switched off.

use davy_abi::{Offsets, Settings};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    task_pid: 0,
    task_tgid: 0,
    task_flags: 0,
    task_state: 0,
    task_start_boottime: 0,
    task_sum_exec_runtime: 0,
    task_gtime: 0,
    task_run_delay: 0,
    task_last_queued: 0,
    task_last_arrival: 0,
    task_nvcsw: 0,
    task_nivcsw: 0,
    task_preempt_notifiers_first: 0,
    task_fpstate: 0,
    fpstate_regs: 0,
    fpstate_flags: 0,
    fpstate_is_guest: 0,
    fpstate_is_confidential: 0,
};

#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    digest_key: [0; 2],
    sample_interval_ns: 0,
    has_xsave: 0,
    find_vcpus: 0,
};

/// One field of [`Offsets`]. Read volatile: the agent replaces the zeroes above.
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: reads a field of a static that lives as long as the program.
        unsafe {
            core::ptr::read_volatile(&raw const (*$crate::offsets::offsets()).$field) as usize
        }
    };
}

/// One field of [`Settings`], likewise.
macro_rules! setting {
    ($field:ident) => {
        // SAFETY: reads a field of a static that lives as long as the program.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::offsets::settings()).$field) }
    };
}

pub(crate) use {offset, setting};

#[inline(always)]
pub fn offsets() -> *const Offsets {
    &raw const OFFSETS
}

#[inline(always)]
pub fn settings() -> *const Settings {
    &raw const SETTINGS
}
