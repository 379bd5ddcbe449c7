//! Records shared by the kernel half (`agent-ebpf`) and the user half (`agent`).
//!
//! Everything here is plain memory with a fixed layout, read by user space through a mapping while
//! the kernel half writes it. Sizes are asserted below. No record has room for register contents:
//! a slot holds counts, the scheduler's books and a keyed digest that only tells "changed or not".
#![no_std]

/// Index of a slot in the slot table. Slot 0 is never given to a thread.
pub type SlotIndex = u32;

/// What the agent calls a tenant inside the kernel half; 0 means "none assigned yet".
pub type TenantIndex = u32;

/// Put into `Slot::tenant` by the agent when the thread left its tenant: the kernel half then ends the slot
/// at the thread's next switch.
pub const TENANT_GONE: TenantIndex = u32::MAX;

/// The slot belongs to a thread now.
pub const FLAG_LIVE: u32 = 1 << 0;
/// The thread has died, or left its tenant; the figures are final and the slot waits to be handed back.
pub const FLAG_ENDED: u32 = 1 << 1;
/// The thread was seen with a guest's registers (`fpstate.is_guest`): it is a vCPU.
pub const FLAG_VCPU: u32 = 1 << 2;
/// The guest's registers are encrypted (`fpstate.is_confidential`): sensors on registers are unsupported for it.
pub const FLAG_CONFIDENTIAL: u32 = 1 << 3;
/// The thread took over its leader's id at an exec: its start in /proc is the leader's now.
pub const FLAG_RENAMED: u32 = 1 << 4;
/// The thread left its CPU involuntarily when it last left one: `task_struct.nivcsw` grew (`__schedule`, kernel/sched/core.c).
pub const FLAG_INVOLUNTARY: u32 = 1 << 5;

/// One watched thread. Written by the kernel half alone (on the CPU that switches the thread), except
/// `tenant`, which the agent sets (for a vCPU the kernel half found by itself; when a thread changes tenants), and the whole slot
/// before the agent makes it known to the kernel half.
///
/// Counters are absolute, as in the scheduler's books; windows are differences made by the reader, the first
/// one against the `base_…` fields: what the thread had used before it was watched (0 if watched from birth).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Thread group id in the initial pid namespace.
    pub tgid: u32,
    /// `FLAG_…` bits.
    pub flags: u32,
    /// The tenant it counts for.
    pub tenant: TenantIndex,
    /// `task_struct.start_boottime`, ns: with `tid` it names a thread for good.
    pub start_boottime_ns: u64,

    // cpu
    /// `se.sum_exec_runtime` as of the last switch-out, ns.
    pub on_cpu_ns: u64,
    /// `task_struct.gtime` as of the last switch-out, ns: the part spent inside a guest.
    pub guest_ns: u64,
    /// `sched_info.run_delay`, ns: waited runnable for a CPU. As of the last switch-out; since a later switch-in, with
    /// the wait that ended there, which the kernel books a moment after it.
    pub run_queue_wait_ns: u64,
    /// `task_struct.nvcsw` as of the last switch-out.
    pub voluntary_switches: u64,
    /// `task_struct.nivcsw` as of the last switch-out.
    pub involuntary_switches: u64,
    /// CLOCK_MONOTONIC at the last switch-in, ns; 0 while not running.
    pub running_since_ns: u64,
    /// CPU of the last switch-in.
    pub cpu: u32,
    /// Switch-ins seen.
    pub switch_ins: u32,

    /// `on_cpu_ns` before watching began.
    pub base_on_cpu_ns: u64,
    /// `guest_ns` before watching began.
    pub base_guest_ns: u64,
    /// `run_queue_wait_ns` before watching began.
    pub base_run_queue_wait_ns: u64,
    /// `voluntary_switches` before watching began.
    pub base_voluntary_switches: u64,
    /// `involuntary_switches` before watching began.
    pub base_involuntary_switches: u64,

    // fp_rounding and register_randomness
    /// CLOCK_MONOTONIC before which no further sample is taken, ns.
    pub next_sample_ns: u64,
    /// Looks at the registers, whether they had changed or not.
    pub looks: u64,
    /// Samples (registers changed since the previous look) by MXCSR rounding mode.
    pub modes: [u64; 4],
    /// Of those, with at least 8 of 16 vector registers random and changed, by rounding mode.
    pub random: [u64; 4],
    /// Keyed digests of 16 bits, four in a word, one per vector register; see `agent-ebpf/src/registers/`.
    pub digests: [u64; 4],
    /// Keyed digest of MXCSR, 16 bits.
    pub mxcsr_digest: u32,
    /// 1 once the digests hold a first look.
    pub looked: u32,
    /// Samples of the general registers (some had changed since the previous look at them).
    pub general_samples: u64,
    /// Of those, with at least 6 of 15 general registers random and changed.
    pub general_random: u64,
    /// Keyed digests of 16 bits, four in a word, one per general register and one of an empty place, which never changes.
    pub general_digests: [u64; 4],
    /// 1 once these hold a first look.
    pub general_looked: u64,
    /// Looks at the vector registers of a thread that had left its CPU involuntarily (or yielded, which the kernel counts alike): what
    /// computes is met so about in proportion to its time, however often it sleeps.
    pub involuntary_looks: u64,
    /// Those of them that found a sample outside rounding mode 0.
    pub involuntary_directed: u64,
}

/// One look at registers of so many is at the general registers, the others at the vector registers.
pub const GENERAL_EVERY: u64 = 4;

/// From `fpstate`'s flags to the end of MXCSR at most, bytes: what the kernel half has room for.
pub const HEAD_BYTES_MAX: usize = 64;

const _: () = assert!(size_of::<Slot>() == 312);
const _: () = assert!(align_of::<Slot>() == 8);

/// Kinds of VM exits a [`Vcpu`] can list with their numbers; the first ones met are listed.
pub const REASONS: usize = 12;

/// A counter of a [`Vcpu`] that this kernel does not have, or that its source does not count: not known, never 0.
pub const NOT_COUNTED: u64 = u64::MAX;

/// Nothing was counted yet.
pub const SOURCE_NONE: u32 = 0;
/// [`Vcpu`]'s counters are KVM's own (`kvm_vcpu.stat`), copied as they are.
pub const SOURCE_KVM: u32 = 1;
/// [`Vcpu`]'s counters are counted at the tracepoint `kvm:kvm_exit`, from 0.
pub const SOURCE_TRACEPOINT: u32 = 2;

/// What KVM counted of one watched vCPU thread. Indexed like the slots, in a table of its own: threads that are no
/// vCPU never touch it. Written by the kernel half alone, on the CPU that runs the thread; `sequence` is odd meanwhile.
///
/// A record belongs to the thread named by `tid` and `start_boottime_ns`, those of its slot; else it is an earlier one's.
/// Counters only grow while the thread keeps its vCPU, and tell nothing of what was before the first reading.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vcpu {
    /// `Slot::start_boottime_ns` of the thread.
    pub start_boottime_ns: u64,
    /// `Slot::tid` of the thread.
    pub tid: u32,
    /// Odd while the record is being written.
    pub sequence: u32,
    /// `SOURCE_…`: where the counters of exits come from.
    pub source: u32,
    /// `kvm_vcpu.vcpu_id`; only with [`SOURCE_KVM`].
    pub vcpu_id: u32,
    /// `ISA_…` of the last exit, whose reasons it is; only with [`SOURCE_TRACEPOINT`].
    pub isa: u32,
    /// Readings so far.
    pub readings: u32,
    /// CLOCK_MONOTONIC before which KVM's counters are not read again, ns.
    pub next_read_ns: u64,
    /// CLOCK_MONOTONIC of which the counters are, ns; 0 if there was no reading.
    pub read_ns: u64,

    // kvm_exits
    /// All VM exits.
    pub exits: u64,
    /// HLT.
    pub halts: u64,
    /// Port I/O.
    pub io: u64,
    /// Memory-mapped I/O.
    pub mmio: u64,
    /// Interrupts of the host.
    pub interrupts: u64,
    /// Hypercalls.
    pub hypercalls: u64,
    /// Reads and writes of model-specific registers; only with [`SOURCE_TRACEPOINT`].
    pub msrs: u64,
    /// Nested page faults; only with [`SOURCE_TRACEPOINT`].
    pub page_faults: u64,
    /// Exits of an instruction set whose reasons are not known here; only with [`SOURCE_TRACEPOINT`].
    pub foreign: u64,
    /// Polled in a halt until the wake-up came, ns; only with [`SOURCE_KVM`].
    pub halt_poll_success_ns: u64,
    /// Polled in a halt in vain, ns; only with [`SOURCE_KVM`].
    pub halt_poll_fail_ns: u64,
    /// Slept in a halt, ns; only with [`SOURCE_KVM`].
    pub halt_wait_ns: u64,

    // msr_writes, counted from 0
    /// Times `kvm:kvm_msr` was met: reads and writes, of whatever register.
    pub msr_events: u64,
    /// Writes to AMD's prefetcher registers.
    pub prefetcher_writes_amd: u64,
    /// Writes to Intel's.
    pub prefetcher_writes_intel: u64,

    /// Exit reasons as the CPU numbers them; those with a count below. Only with [`SOURCE_TRACEPOINT`].
    pub reason_codes: [u32; REASONS],
    /// How often each was met.
    pub reason_counts: [u32; REASONS],
}

const _: () = assert!(size_of::<Vcpu>() == 264);
const _: () = assert!(align_of::<Vcpu>() == 8);

/// Offsets into KVM's structures and into its tracepoints' records, and what is to be done with them. In bytes; 0 means
/// that there is no such field (none lies at 0). Handed over in the array map `KVM`, and not as a global: the `kvm` module
/// may be loaded after the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmOffsets {
    /// `SOURCE_…`: from where exits are to be counted.
    pub source: u32,
    /// From the start of `kvm_vcpu` to `preempt_notifier.link`.
    pub vcpu_notifier_link: u32,
    /// `kvm_vcpu.vcpu_id`.
    pub vcpu_id: u32,
    /// `kvm_vcpu.stat.exits`.
    pub exits: u32,
    /// `kvm_vcpu.stat.halt_exits`.
    pub halts: u32,
    /// `kvm_vcpu.stat.io_exits`.
    pub io: u32,
    /// `kvm_vcpu.stat.mmio_exits`.
    pub mmio: u32,
    /// `kvm_vcpu.stat.irq_exits`.
    pub interrupts: u32,
    /// `kvm_vcpu.stat.hypercalls`.
    pub hypercalls: u32,
    /// `kvm_vcpu.stat.generic.halt_poll_success_ns`.
    pub halt_poll_success_ns: u32,
    /// `kvm_vcpu.stat.generic.halt_poll_fail_ns`.
    pub halt_poll_fail_ns: u32,
    /// `kvm_vcpu.stat.generic.halt_wait_ns`.
    pub halt_wait_ns: u32,
    /// `kvm_vcpu.arch.regs`: the guest's general registers as of its last exit.
    pub general_registers: u32,
    /// `exit_reason` in the record of `kvm:kvm_exit`.
    pub exit_reason: u32,
    /// `isa` in the record of `kvm:kvm_exit`.
    pub exit_isa: u32,
    /// `write` in the record of `kvm:kvm_msr`.
    pub msr_write: u32,
    /// `ecx` in the record of `kvm:kvm_msr`.
    pub msr_ecx: u32,
}

/// Offsets into a tracepoint's record are below this, a power of two.
pub const RECORD_BYTES_MAX: u32 = 256;

/// What a VM exit counts as, besides as an exit.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitClass {
    /// Nothing of the following.
    Other = 0,
    /// HLT.
    Halt = 1,
    /// Port I/O.
    Io = 2,
    /// Memory-mapped I/O.
    Mmio = 3,
    /// An interrupt of the host.
    Interrupt = 4,
    /// A model-specific register.
    Msr = 5,
    /// A nested page fault.
    PageFault = 6,
    /// A hypercall.
    Hypercall = 7,
}

/// `KVM_ISA_VMX`, arch/x86/kvm/trace.h: exit reasons are Intel's.
pub const ISA_VMX: u32 = 1;
/// `KVM_ISA_SVM`, arch/x86/kvm/trace.h: exit reasons are AMD's.
pub const ISA_SVM: u32 = 2;
/// Exit reasons below this have a class in the array map `EXIT_CLASSES`, at `isa * EXIT_REASONS_MAX + reason` with Intel's
/// first: all that KVM handles but those of SEV-ES, which start at 0x8000_0000 and are in no class.
pub const EXIT_REASONS_MAX: u32 = 2048;

/// Stands for the idle task among thread group ids: whose it is, 0, stands for nobody.
pub const IDLE: u32 = u32::MAX;

/// Processes that [`Waits`] names at one time.
pub const BEHIND: usize = 8;

/// A process that ran while a watched thread waited for the same CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Its thread group id in the initial pid namespace; [`IDLE`]; 0: nobody.
    pub tgid: u32,
    /// How much of late, about µs, at most 2^20: who is not in the table wears it down.
    pub weight: u32,
    /// How long, ns, since it is in this place of the table.
    pub ns: u64,
}

/// Who ran while a watched thread waited: one for each slot, in the map `WAITS`, written as a slot is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// `sched_info.run_delay` as of the last switch-out, ns; 0 before the first.
    pub waited_ns: u64,
    /// The part of it that was booked to somebody since watching began, whoever has left the table included, ns.
    pub named_ns: u64,
    /// When the thread's last stint began, by the run queue's clock, ns; 0 before the first.
    pub arrived_ns: u64,
    /// The table.
    pub behind: [Behind; BEHIND],
}

const _: () = assert!(size_of::<Waits>() == 152);
const _: () = assert!(align_of::<Waits>() == 8);

/// Stints that a CPU remembers; a power of two.
pub const STINTS: usize = 32;

/// A stint of a thread on a CPU. It ended when the next one began.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stint {
    /// When it began, by the run queue's clock, ns.
    pub arrived_ns: u64,
    /// Whose, by thread group id; [`IDLE`].
    pub tgid: u32,
    /// Nothing.
    pub padding: u32,
}

/// What the kernel half keeps of a CPU, in the per-CPU map `CPU`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// How far the run queue's clock is ahead of CLOCK_MONOTONIC, ns, wrapping; 0 if not known.
    pub ahead_ns: u64,
    /// `sched_info.run_delay` of the watched thread that runs here as it came: without the wait that ended then, ns.
    pub entered_run_delay_ns: u64,
    /// Stints noted; the last [`STINTS`] of them are kept.
    pub pushed: u64,
    /// Slot of the thread that runs here, 0 if it is not watched.
    pub current: SlotIndex,
    /// Nothing.
    pub padding: u32,
    /// The stints, at `number % STINTS`.
    pub stints: [Stint; STINTS],
}

const _: () = assert!(size_of::<Cpu>() == 544);

/// Offsets into kernel structures, resolved from the running kernel's BTF when the programs are loaded.
/// All in bytes. Handed over as one `.rodata` global.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.pid`.
    pub task_pid: u32,
    /// `task_struct.tgid`.
    pub task_tgid: u32,
    /// `task_struct.flags`.
    pub task_flags: u32,
    /// `task_struct.__state`.
    pub task_state: u32,
    /// `task_struct.start_boottime`.
    pub task_start_boottime: u32,
    /// `task_struct.se.sum_exec_runtime`.
    pub task_sum_exec_runtime: u32,
    /// `task_struct.gtime`.
    pub task_gtime: u32,
    /// `task_struct.sched_info.run_delay`.
    pub task_run_delay: u32,
    /// `task_struct.sched_info.last_queued`.
    pub task_last_queued: u32,
    /// `task_struct.sched_info.last_arrival`.
    pub task_last_arrival: u32,
    /// `task_struct.nvcsw`.
    pub task_nvcsw: u32,
    /// `task_struct.nivcsw`.
    pub task_nivcsw: u32,
    /// `task_struct.preempt_notifiers.first`; only vCPU threads inside `vcpu_load` have one.
    pub task_preempt_notifiers_first: u32,
    /// From the start of `task_struct` to its `fpstate` pointer (both layouts, before and after 6.16).
    pub task_fpstate: u32,
    /// `fpstate.regs`.
    pub fpstate_regs: u32,
    /// Byte of `fpstate` that holds the bit field `is_guest`.
    pub fpstate_flags: u32,
    /// Mask of `is_guest` in that byte.
    pub fpstate_is_guest: u32,
    /// Mask of `is_confidential` in that byte.
    pub fpstate_is_confidential: u32,
}

/// No look at registers, ever.
pub const NEVER_NS: u64 = u64::MAX;

/// What the agent tells the kernel half at load, as one `.rodata` global.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Secret of this load, the key of the change digests.
    pub digest_key: [u64; 2],
    /// Least time between two looks at one thread's registers, ns; [`NEVER_NS`] for no look at all.
    pub sample_interval_ns: u64,
    /// 1 if the CPU writes an XSAVE header (`xfeatures`); without XSAVE it must be ignored.
    pub has_xsave: u32,
    /// 1 if vCPU threads are to be found by themselves.
    pub find_vcpus: u32,
}

/// Counters of the kernel half, in the per-CPU array map `COUNTERS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// A thread could not be watched because no slot was free.
    NoFreeSlot = 0,
    /// A kernel read failed.
    ReadFailed = 1,
    /// A thread could not be entered into the thread table.
    TableFull = 2,
}

/// How many counters there are.
pub const COUNTERS: u32 = 3;
