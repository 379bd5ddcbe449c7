//! A program that does nothing, on the hook of the kernel half's busiest one: the yardstick of `cargo xtask bench events`.
//!
//! What it costs is what the kernel takes to enter a program at `tp_btf/sched_switch`, leave it and keep time of it.
#![no_std]
#![no_main]

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

/// Nothing.
#[btf_tracepoint(function = "sched_switch")]
pub fn empty(_ctx: BtfTracePointContext) -> i32 {
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No path may lead here: the verifier would refuse the endless loop.
    loop {}
}

// The kernel compares this string (`license_is_gpl_compatible`, include/linux/license.h).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
