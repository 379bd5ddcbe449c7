//! From BTF to the offsets that the kernel half uses, and what is unsupported without them.
//!
//! Both places of `struct fpu`: kernels before 6.16 keep it in `task_struct.thread.fpu`, later ones right
//! behind `task_struct` (`x86_task_fpu`, arch/x86/include/asm/processor.h). A missing field is never guessed:
//! a field all programs need is an error, one that only a sensor needs makes that sensor *unsupported*.

use davy_abi::{HEAD_BYTES_MAX, Offsets};

use super::btf::Btf;

/// End of MXCSR in the FXSAVE area (Intel SDM vol. 1, 10.5.1).
const MXCSR_END: u32 = 28;

/// A kernel structure the programs cannot work without is not there.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "this kernel's BTF has no {structure}.{member}: kernels 5.18 and newer have it; boot one of those"
)]
pub struct OffsetError {
    /// The struct's name.
    pub structure: &'static str,
    /// The member's path.
    pub member: &'static str,
}

/// Offsets, and what each absent optional field takes away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What goes to the kernel half.
    pub offsets: Offsets,
    /// Why the sensors on registers are unsupported, if they are.
    pub registers_unsupported: Option<String>,
    /// Why vCPU threads cannot be found, if they cannot.
    pub vcpus_unsupported: Option<String>,
}

/// Resolves every offset.
///
/// # Errors
/// Names the first field that is missing and needed by all.
pub fn resolve(btf: &Btf) -> Result<Resolved, OffsetError> {
    let mut offsets = Offsets {
        task_pid: task(btf, "pid")?,
        task_tgid: task(btf, "tgid")?,
        task_flags: task(btf, "flags")?,
        task_state: task(btf, "__state")?,
        task_start_boottime: task(btf, "start_boottime")?,
        task_sum_exec_runtime: task(btf, "se.sum_exec_runtime")?,
        task_gtime: task(btf, "gtime")?,
        task_run_delay: task(btf, "sched_info.run_delay")?,
        task_last_queued: task(btf, "sched_info.last_queued")?,
        task_last_arrival: task(btf, "sched_info.last_arrival")?,
        task_nvcsw: task(btf, "nvcsw")?,
        task_nivcsw: task(btf, "nivcsw")?,
        ..Offsets::default()
    };
    let registers_unsupported = registers(btf, &mut offsets).err();
    let notifiers = byte(btf, "task_struct", "preempt_notifiers.first");
    offsets.task_preempt_notifiers_first = notifiers.unwrap_or(0);
    let vcpus_unsupported = match (&registers_unsupported, notifiers) {
        (Some(reason), _) => Some(reason.clone()),
        (None, None) => Some(
            "task_struct.preempt_notifiers is not in the kernel's BTF: this kernel was built without KVM; \
             boot one with CONFIG_KVM"
                .to_owned(),
        ),
        (None, Some(_)) => None,
    };
    Ok(Resolved {
        offsets,
        registers_unsupported,
        vcpus_unsupported,
    })
}

fn task(btf: &Btf, member: &'static str) -> Result<u32, OffsetError> {
    byte(btf, "task_struct", member).ok_or(OffsetError {
        structure: "task_struct",
        member,
    })
}

fn byte(btf: &Btf, structure: &str, member: &str) -> Option<u32> {
    u32::try_from(btf.member(structure, member)?.byte()).ok()
}

/// Fills in what the sensors on registers need.
fn registers(btf: &Btf, offsets: &mut Offsets) -> Result<(), String> {
    let absent = |what: &str| {
        format!(
            "{what} is not in the kernel's BTF: x86-64 kernels 5.16 and newer have it; boot one of those"
        )
    };
    let fpu = match byte(btf, "task_struct", "thread.fpu") {
        Some(inside) => inside,
        None => btf
            .struct_size("task_struct")
            .ok_or_else(|| absent("struct task_struct"))?,
    };
    let fpstate = byte(btf, "fpu", "fpstate").ok_or_else(|| absent("fpu.fpstate"))?;
    offsets.task_fpstate = fpu + fpstate;
    offsets.fpstate_regs = byte(btf, "fpstate", "regs").ok_or_else(|| absent("fpstate.regs"))?;
    let guest = btf
        .member("fpstate", "is_guest")
        .ok_or_else(|| absent("fpstate.is_guest"))?;
    offsets.fpstate_flags = u32::try_from(guest.byte()).unwrap_or(u32::MAX);
    offsets.fpstate_is_guest = 1 << (guest.bit_offset % 8);
    let confidential = btf
        .member("fpstate", "is_confidential")
        .filter(|place| place.byte() == guest.byte())
        .ok_or_else(|| absent("fpstate.is_confidential beside is_guest"))?;
    offsets.fpstate_is_confidential = 1 << (confidential.bit_offset % 8);
    let head_bytes = (offsets.fpstate_regs + MXCSR_END).checked_sub(offsets.fpstate_flags);
    if head_bytes.is_none_or(|bytes| usize::try_from(bytes).is_ok_and(|n| n > HEAD_BYTES_MAX)) {
        return Err(format!(
            "fpstate.is_guest lies {} bytes from fpstate.regs in this kernel, further than Davy reads; report it",
            i64::from(offsets.fpstate_regs) - i64::from(offsets.fpstate_flags)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::tests::{Blob, MemberOf};

    /// A kernel's structs as far as they matter; `behind`: `struct fpu` lies behind `task_struct`.
    fn kernel(behind: bool, without: &str) -> Btf {
        let mut blob = Blob::default();
        let u64_type = blob.int("u64", 8);
        let se = blob.structure(
            "sched_entity",
            64,
            &[MemberOf("sum_exec_runtime", u64_type, 128)],
        );
        let info = blob.structure(
            "sched_info",
            32,
            &[
                MemberOf("run_delay", u64_type, 64),
                MemberOf("last_arrival", u64_type, 128),
                MemberOf("last_queued", u64_type, 192),
            ],
        );
        let head = blob.structure("hlist_head", 8, &[MemberOf("first", u64_type, 0)]);
        let fpu = blob.structure("fpu", 128, &[MemberOf("fpstate", u64_type, 128)]);
        let thread = blob.structure("thread_struct", 4096, &[MemberOf("fpu", fpu, 512 * 8)]);
        let mut members = vec![
            MemberOf("flags", u64_type, 8 * 44),
            MemberOf("__state", u64_type, 8 * 24),
            MemberOf("pid", u64_type, 8 * 100),
            MemberOf("tgid", u64_type, 8 * 104),
            MemberOf("start_boottime", u64_type, 8 * 112),
            MemberOf("se", se, 8 * 200),
            MemberOf("gtime", u64_type, 8 * 300),
            MemberOf("sched_info", info, 8 * 400),
            MemberOf("nvcsw", u64_type, 8 * 500),
            MemberOf("nivcsw", u64_type, 8 * 508),
            MemberOf("preempt_notifiers", head, 8 * 600),
        ];
        if !behind {
            members.push(MemberOf("thread", thread, 8 * 1024));
        }
        members.retain(|member| member.0 != without);
        blob.structure("task_struct", 8192, &members);
        let mut fpstate = vec![
            MemberOf("size", u64_type, 0),
            MemberOf("is_valloc", u64_type, (1 << 24) | (8 * 40)),
            MemberOf("is_guest", u64_type, (1 << 24) | (8 * 40 + 1)),
            MemberOf("is_confidential", u64_type, (1 << 24) | (8 * 40 + 2)),
            MemberOf("regs", u64_type, 8 * 64),
        ];
        fpstate.retain(|member| member.0 != without);
        blob.bit_field_structure("fpstate", 4096, &fpstate);
        Btf::parse(&blob.bytes()).unwrap()
    }

    #[test]
    fn nested_members_and_bit_fields_are_found() {
        let resolved = resolve(&kernel(false, "")).unwrap();
        assert_eq!(resolved.offsets.task_sum_exec_runtime, 216);
        assert_eq!(resolved.offsets.task_run_delay, 408);
        assert_eq!(resolved.offsets.fpstate_flags, 40);
        assert_eq!(resolved.offsets.fpstate_is_guest, 2);
        assert_eq!(resolved.offsets.fpstate_is_confidential, 4);
        assert_eq!(resolved.offsets.fpstate_regs, 64);
        assert_eq!(resolved.registers_unsupported, None);
        assert_eq!(resolved.vcpus_unsupported, None);
    }

    #[test]
    fn the_fpu_is_found_inside_the_thread_and_behind_it() {
        let inside = resolve(&kernel(false, "")).unwrap();
        assert_eq!(inside.offsets.task_fpstate, 1024 + 512 + 16);
        let behind = resolve(&kernel(true, "")).unwrap();
        assert_eq!(behind.offsets.task_fpstate, 8192 + 16);
    }

    #[test]
    fn without_is_guest_the_sensors_on_registers_are_unsupported() {
        let resolved = resolve(&kernel(false, "is_guest")).unwrap();
        let reason = resolved.registers_unsupported.unwrap();
        assert!(reason.contains("fpstate.is_guest"), "{reason}");
        assert_eq!(resolved.vcpus_unsupported, Some(reason));
    }

    #[test]
    fn without_kvm_only_vcpus_are_unsupported() {
        let resolved = resolve(&kernel(false, "preempt_notifiers")).unwrap();
        assert_eq!(resolved.registers_unsupported, None);
        assert!(resolved.vcpus_unsupported.unwrap().contains("without KVM"));
    }

    #[test]
    fn a_kernel_too_old_is_named_by_its_missing_field() {
        let error = resolve(&kernel(false, "__state")).unwrap_err();
        assert_eq!(error.member, "__state");
        assert!(error.to_string().contains("5.18"));
    }
}
