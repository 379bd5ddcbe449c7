//! A `task_struct` as the tracepoints hand it over.
//!
//! Fields inside `task_struct` are loaded through the trusted pointer: the verifier checks each such load
//! against BTF, and none can fault. What lies behind other pointers goes through `bpf_probe_read_kernel`
//! (from 6.16 on `struct fpu` lies past the end of `task_struct`, where only the helper reads).

use aya_ebpf::helpers::bpf_probe_read_kernel;

use crate::offsets::offset;

/// `TASK_DEAD`, include/linux/sched.h: the thread leaves its CPU for the last time.
const TASK_DEAD: u32 = 0x80;
/// `PF_KTHREAD`, include/linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;

/// A trusted pointer to a `task_struct`.
#[derive(Clone, Copy)]
pub struct Task(*const u8);

impl Task {
    /// # Safety
    /// `pointer` must be a `struct task_struct *` argument of the tracepoint.
    #[inline(always)]
    pub unsafe fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    /// The pointer itself, for helpers that want it.
    #[inline(always)]
    pub fn pointer(self) -> *const u8 {
        self.0
    }

    #[inline(always)]
    fn load<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the offset is that of a member of type T, from the running kernel's BTF, and the verifier checks the load.
        unsafe { core::ptr::read_volatile(self.0.add(offset).cast::<T>()) }
    }

    /// Thread id in the initial pid namespace; 0 for the idle tasks.
    #[inline(always)]
    pub fn tid(self) -> u32 {
        self.load(offset!(task_pid))
    }

    #[inline(always)]
    pub fn tgid(self) -> u32 {
        self.load(offset!(task_tgid))
    }

    #[inline(always)]
    pub fn is_kernel_thread(self) -> bool {
        self.load::<u32>(offset!(task_flags)) & PF_KTHREAD != 0
    }

    /// At `sched_switch`: the thread has ended and will not run again (`do_task_dead`, kernel/sched/core.c).
    #[inline(always)]
    pub fn is_dead(self) -> bool {
        self.load::<u32>(offset!(task_state)) & TASK_DEAD != 0
    }

    #[inline(always)]
    pub fn start_boottime_ns(self) -> u64 {
        self.load(offset!(task_start_boottime))
    }

    /// Up to date for the thread that leaves: `put_prev_task` has called `update_curr` (kernel/sched/fair.c).
    #[inline(always)]
    pub fn sum_exec_runtime_ns(self) -> u64 {
        self.load(offset!(task_sum_exec_runtime))
    }

    #[inline(always)]
    pub fn gtime_ns(self) -> u64 {
        self.load(offset!(task_gtime))
    }

    /// For the thread that leaves it holds the wait before this stint: `sched_info_arrive` (kernel/sched/stats.h)
    /// booked it when the thread came. For the thread that enters it is booked after this tracepoint.
    #[inline(always)]
    pub fn run_delay_ns(self) -> u64 {
        self.load(offset!(task_run_delay))
    }

    /// The run queue's clock when it became runnable, 0 if its wait is booked (`sched_info_arrive`).
    #[inline(always)]
    pub fn last_queued_ns(self) -> u64 {
        self.load(offset!(task_last_queued))
    }

    /// The run queue's clock when its wait was booked last (`sched_info_arrive`), at the begin of this stint.
    #[inline(always)]
    pub fn last_arrival_ns(self) -> u64 {
        self.load(offset!(task_last_arrival))
    }

    /// `__schedule` counts the switch before it fires the tracepoint.
    #[inline(always)]
    pub fn voluntary_switches(self) -> u64 {
        self.load(offset!(task_nvcsw))
    }

    #[inline(always)]
    pub fn involuntary_switches(self) -> u64 {
        self.load(offset!(task_nivcsw))
    }

    /// Whether KVM has this thread's vCPU loaded (`vcpu_load` registers a preempt notifier, virt/kvm/kvm_main.c).
    #[inline(always)]
    pub fn has_preempt_notifier(self) -> bool {
        self.load::<u64>(offset!(task_preempt_notifiers_first)) != 0
    }

    /// Address of the preempt notifier's `link`, which lies in the thread's `kvm_vcpu`; 0 if none is loaded. Read by the
    /// helper, as a number: from the pointer itself the verifier lets nobody walk back to what contains it.
    #[inline(always)]
    pub fn preempt_notifier(self) -> u64 {
        let first = self.0.wrapping_add(offset!(task_preempt_notifiers_first));
        // SAFETY: the helper checks the address itself and fails instead of faulting.
        unsafe { bpf_probe_read_kernel(first.cast::<u64>()) }.unwrap_or(0)
    }

    /// The thread's `struct fpstate`: the guest's while a vCPU is inside `KVM_RUN`, else its own.
    #[inline(always)]
    pub fn fpstate(self) -> Option<Fpstate> {
        let pointer = self.0.wrapping_add(offset!(task_fpstate));
        // SAFETY: the helper checks the address itself and fails instead of faulting.
        let fpstate = unsafe { bpf_probe_read_kernel(pointer.cast::<u64>()) }.ok()?;
        // A kernel address has its top bit set; anything else means that the offset is wrong.
        ((fpstate as i64) < 0).then_some(Fpstate(fpstate as *const u8))
    }
}

/// An address of a `struct fpstate` (arch/x86/include/asm/fpu/types.h).
#[derive(Clone, Copy)]
pub struct Fpstate(*const u8);

impl Fpstate {
    /// (`is_guest`, `is_confidential`).
    #[inline(always)]
    pub fn flags(self) -> Option<(bool, bool)> {
        let address = self.0.wrapping_add(offset!(fpstate_flags));
        // SAFETY: the helper checks the address itself and fails instead of faulting.
        let byte = unsafe { bpf_probe_read_kernel(address) }.ok()?;
        let byte = usize::from(byte);
        Some((
            byte & offset!(fpstate_is_guest) != 0,
            byte & offset!(fpstate_is_confidential) != 0,
        ))
    }

    /// Address of its byte at `offset`.
    #[inline(always)]
    pub fn address(self, offset: usize) -> *const u8 {
        self.0.wrapping_add(offset)
    }
}
