//! `kvm_exits`: names and classes of the reasons for which a guest leaves its vCPU.
//!
//! Not a class of evidence: how often a guest leaves does not tell mining from other load. It says what a guest that
//! computes does not do (halt), and a reviewer sees at what a busy guest is busy.
//!
//! Sources: Intel SDM vol. 3, appendix C "VMX Basic Exit Reasons" (in Linux: arch/x86/include/uapi/asm/vmx.h); AMD64 APM
//! vol. 2, appendix C "SVM Intercept Exit Codes" (arch/x86/include/uapi/asm/svm.h). Names are those of the manuals.
//! Limits: AMD's codes of SEV-ES guests (from 0x8000_0000) are not named.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Whose exit reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isa {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
}

/// What an exit counts as, besides as an exit. The numbers are the kernel half's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Class {
    /// Nothing of the following.
    Other = 0,
    /// HLT.
    Halt = 1,
    /// Port I/O.
    Io = 2,
    /// Memory-mapped I/O, where the CPU tells it from a page fault.
    Mmio = 3,
    /// An interrupt of the host.
    Interrupt = 4,
    /// RDMSR or WRMSR.
    Msr = 5,
    /// A nested page fault.
    PageFault = 6,
    /// A hypercall.
    Hypercall = 7,
}

use Class::{Halt, Hypercall, Interrupt, Io, Mmio, Msr, Other, PageFault};

/// Code, name, class. In rising order of codes.
type Row = (u32, &'static str, Class);

/// SDM vol. 3, appendix C, table C-1.
const VMX: &[Row] = &[
    (0, "exception or NMI", Other),
    (1, "external interrupt", Interrupt),
    (2, "triple fault", Other),
    (3, "INIT signal", Other),
    (4, "start-up IPI", Other),
    (7, "interrupt window", Other),
    (8, "NMI window", Other),
    (9, "task switch", Other),
    (10, "CPUID", Other),
    (12, "HLT", Halt),
    (13, "INVD", Other),
    (14, "INVLPG", Other),
    (15, "RDPMC", Other),
    (16, "RDTSC", Other),
    (17, "RSM", Other),
    (18, "VMCALL", Hypercall),
    (19, "VMCLEAR", Other),
    (20, "VMLAUNCH", Other),
    (21, "VMPTRLD", Other),
    (22, "VMPTRST", Other),
    (23, "VMREAD", Other),
    (24, "VMRESUME", Other),
    (25, "VMWRITE", Other),
    (26, "VMXOFF", Other),
    (27, "VMXON", Other),
    (28, "control-register access", Other),
    (29, "MOV DR", Other),
    (30, "I/O instruction", Io),
    (31, "RDMSR", Msr),
    (32, "WRMSR", Msr),
    (33, "VM-entry failure: guest state", Other),
    (34, "VM-entry failure: MSR loading", Other),
    (36, "MWAIT", Other),
    (37, "monitor trap flag", Other),
    (39, "MONITOR", Other),
    (40, "PAUSE", Other),
    (41, "VM-entry failure: machine check", Other),
    (43, "TPR below threshold", Other),
    (44, "APIC access", Other),
    (45, "virtualized EOI", Other),
    (46, "access to GDTR or IDTR", Other),
    (47, "access to LDTR or TR", Other),
    (48, "EPT violation", PageFault),
    // KVM marks the pages of devices so (`handle_ept_misconfig`, arch/x86/kvm/vmx/vmx.c).
    (49, "EPT misconfiguration", Mmio),
    (50, "INVEPT", Other),
    (51, "RDTSCP", Other),
    (52, "VMX-preemption timer", Other),
    (53, "INVVPID", Other),
    (54, "WBINVD", Other),
    (55, "XSETBV", Other),
    (56, "APIC write", Other),
    (57, "RDRAND", Other),
    (58, "INVPCID", Other),
    (59, "VMFUNC", Other),
    (60, "ENCLS", Other),
    (61, "RDSEED", Other),
    (62, "page-modification log full", Other),
    (63, "XSAVES", Other),
    (64, "XRSTORS", Other),
    (67, "UMWAIT", Other),
    (68, "TPAUSE", Other),
    (74, "bus lock", Other),
    (75, "instruction timeout", Other),
];

/// APM vol. 2, appendix C, table C-1, without the prefix `VMEXIT_`. Accesses to control and debug registers and exceptions are named
/// by [`reason_name`].
const SVM: &[Row] = &[
    (0x60, "INTR", Interrupt),
    (0x61, "NMI", Other),
    (0x62, "SMI", Other),
    (0x63, "INIT", Other),
    (0x64, "VINTR", Other),
    (0x65, "CR0_SEL_WRITE", Other),
    (0x66, "IDTR_READ", Other),
    (0x67, "GDTR_READ", Other),
    (0x68, "LDTR_READ", Other),
    (0x69, "TR_READ", Other),
    (0x6a, "IDTR_WRITE", Other),
    (0x6b, "GDTR_WRITE", Other),
    (0x6c, "LDTR_WRITE", Other),
    (0x6d, "TR_WRITE", Other),
    (0x6e, "RDTSC", Other),
    (0x6f, "RDPMC", Other),
    (0x70, "PUSHF", Other),
    (0x71, "POPF", Other),
    (0x72, "CPUID", Other),
    (0x73, "RSM", Other),
    (0x74, "IRET", Other),
    (0x75, "SWINT", Other),
    (0x76, "INVD", Other),
    (0x77, "PAUSE", Other),
    (0x78, "HLT", Halt),
    (0x79, "INVLPG", Other),
    (0x7a, "INVLPGA", Other),
    (0x7b, "IOIO", Io),
    (0x7c, "MSR", Msr),
    (0x7d, "TASK_SWITCH", Other),
    (0x7e, "FERR_FREEZE", Other),
    (0x7f, "SHUTDOWN", Other),
    (0x80, "VMRUN", Other),
    (0x81, "VMMCALL", Hypercall),
    (0x82, "VMLOAD", Other),
    (0x83, "VMSAVE", Other),
    (0x84, "STGI", Other),
    (0x85, "CLGI", Other),
    (0x86, "SKINIT", Other),
    (0x87, "RDTSCP", Other),
    (0x88, "ICEBP", Other),
    (0x89, "WBINVD", Other),
    (0x8a, "MONITOR", Other),
    (0x8b, "MWAIT", Other),
    (0x8c, "MWAIT_CONDITIONAL", Other),
    (0x8d, "XSETBV", Other),
    (0x8e, "RDPRU", Other),
    (0x8f, "EFER_WRITE_TRAP", Other),
    (0xa2, "INVPCID", Other),
    (0xa5, "BUSLOCK", Other),
    (0xa6, "IDLE_HLT", Halt),
    (0x400, "NPF", PageFault),
    (0x401, "AVIC_INCOMPLETE_IPI", Other),
    (0x402, "AVIC_NOACCEL", Other),
    (0x403, "VMGEXIT", Other),
];

const fn table(isa: Isa) -> &'static [Row] {
    match isa {
        Isa::Vmx => VMX,
        Isa::Svm => SVM,
    }
}

/// The classes of all reasons that have one besides [`Class::Other`].
pub fn classes(isa: Isa) -> impl Iterator<Item = (u32, Class)> {
    table(isa)
        .iter()
        .map(|&(code, _, class)| (code, class))
        .filter(|&(_, class)| class != Other)
}

/// What the CPU's manual calls a reason; its number if the manual names none.
#[must_use]
pub fn reason_name(isa: Isa, code: u32) -> Cow<'static, str> {
    let row = table(isa).binary_search_by_key(&code, |&(code, ..)| code);
    if let Some((_, name, _)) = row.ok().and_then(|at| table(isa).get(at)) {
        return Cow::Borrowed(name);
    }
    let register = code & 0xf;
    match (isa, code) {
        (Isa::Svm, 0x00..=0x0f) => format!("CR{register}_READ").into(),
        (Isa::Svm, 0x10..=0x1f) => format!("CR{register}_WRITE").into(),
        (Isa::Svm, 0x20..=0x2f) => format!("DR{register}_READ").into(),
        (Isa::Svm, 0x30..=0x3f) => format!("DR{register}_WRITE").into(),
        (Isa::Svm, 0x40..=0x5f) => format!("EXCP{}", code - 0x40).into(),
        (Isa::Svm, 0x90..=0x9f) => format!("CR{register}_WRITE_TRAP").into(),
        _ => format!("reason {code:#x}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_in_order_so_that_every_row_is_found() {
        for isa in [Isa::Vmx, Isa::Svm] {
            for &(code, name, _) in table(isa) {
                assert_eq!(reason_name(isa, code), name);
            }
            assert!(table(isa).is_sorted_by(|a, b| a.0 < b.0));
        }
    }

    #[test]
    fn the_same_number_means_different_things_to_intel_and_amd() {
        assert_eq!(reason_name(Isa::Vmx, 12), "HLT");
        assert_eq!(reason_name(Isa::Svm, 0x78), "HLT");
        assert_eq!(reason_name(Isa::Svm, 12), "CR12_READ");
        assert_eq!(reason_name(Isa::Vmx, 0x78), "reason 0x78");
    }

    #[test]
    fn registers_exceptions_and_unknown_numbers_are_named() {
        assert_eq!(reason_name(Isa::Svm, 0x10), "CR0_WRITE");
        assert_eq!(reason_name(Isa::Svm, 0x37), "DR7_WRITE");
        assert_eq!(reason_name(Isa::Svm, 0x4e), "EXCP14");
        assert_eq!(reason_name(Isa::Svm, u32::MAX), "reason 0xffffffff");
    }

    #[test]
    fn both_have_a_reason_for_each_class_but_amd_for_device_memory() {
        let has = |isa, wanted| classes(isa).any(|(_, class)| class == wanted);
        for class in [Halt, Io, Interrupt, Msr, PageFault, Hypercall] {
            assert!(has(Isa::Vmx, class) && has(Isa::Svm, class), "{class:?}");
        }
        assert!(has(Isa::Vmx, Mmio) && !has(Isa::Svm, Mmio));
    }
}
