//! The kernel half of the agent: one program at every switch of the scheduler, one at every fork and one at every exec;
//! two more only where and while they are needed.
//!
//! - `sched_switch` (`tp_btf/sched_switch`): the thread that leaves has its books copied into its slot
//!   ([`sensor::cpu`]); the thread that enters is looked up, and its registers, saved when it last left,
//!   are looked at ([`sensor::fp_rounding`], [`sensor::register_randomness`]).
//!   Every thread that leaves is noted as one that ran on this CPU, for those that wait there ([`sensor::waits`]).
//! - `sched_process_fork` (`tp_btf/sched_process_fork`): a child of a watched thread is watched from birth.
//! - `sched_process_exec` (`tp_btf/sched_process_exec`): a thread that execs may get another id.
//! - `kvm_exit` and `kvm_msr` (classic tracepoints of KVM's): attached only while guests exist; the former only where
//!   KVM's own counters cannot be read ([`sensor::kvm_exits`], [`sensor::msr_writes`]).
//!
//! Work per event is constant: no loops over tasks, nothing allocated, one hash lookup for the thread that
//! enters, none for the one that leaves (it is the one that entered), for the idle task a note of when it came.
//! Nothing is logged from here, not in debug builds either: a message per switch would cost more than all the rest, and what
//! goes wrong is counted (`COUNTERS`).
//! Needs a kernel of 5.18 or newer with BTF. Register contents never leave `registers/`.
#![no_std]
#![no_main]

mod maps;
mod offsets;
mod registers;
mod sensor;
mod task;
mod thread;

use aya_ebpf::{
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};

use crate::task::Task;

/// `TP_PROTO(bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int prev_state)`,
/// include/trace/events/sched.h.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments' types are those of the tracepoint's prototype.
    let (prev, next) = unsafe { (Task::new(ctx.arg(1)), Task::new(ctx.arg(2))) };
    let Some(cpu) = maps::cpu() else {
        return 0;
    };
    // SAFETY: points into this CPU's own element; programs on one CPU do not preempt each other here.
    let cpu = unsafe { &mut *cpu };
    thread::leave(prev, cpu);
    sensor::waits::note(cpu, prev, next);
    cpu.current = thread::enter(next, cpu);
    0
}

/// `TP_PROTO(struct task_struct *parent, struct task_struct *child)`, include/trace/events/sched.h.
/// Fired by `kernel_clone` before the child is woken: it has not run yet.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments' types are those of the tracepoint's prototype.
    let (parent, child) = unsafe { (Task::new(ctx.arg(0)), Task::new(ctx.arg(1))) };
    thread::born(parent, child);
    0
}

/// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, include/trace/events/sched.h.
/// A thread that execs while it is not its group's leader takes over the leader's id (`de_thread`, fs/exec.c).
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments' types are those of the tracepoint's prototype.
    let (task, old_tid) = unsafe { (Task::new(ctx.arg(0)), ctx.arg::<u32>(1)) };
    thread::renamed(task, old_tid);
    0
}

/// Fired after each VM exit, on the vCPU's thread. 0: nothing is to be recorded.
#[tracepoint(category = "kvm", name = "kvm_exit")]
pub fn kvm_exit(ctx: TracePointContext) -> u32 {
    sensor::kvm_exits::count(&ctx);
    0
}

/// Fired when KVM handles a guest's RDMSR or WRMSR, on the vCPU's thread. 0: nothing is to be recorded.
#[tracepoint(category = "kvm", name = "kvm_msr")]
pub fn kvm_msr(ctx: TracePointContext) -> u32 {
    sensor::msr_writes::count(&ctx);
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
