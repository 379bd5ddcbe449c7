//! KVM's layout in the kernel's BTF and in a module's, tracepoint formats, and which source is taken.

use super::*;
use crate::kernel::btf::tests::{Blob, MemberOf};
use davy_abi::{ExitClass, SOURCE_NONE};
use davy_evidence::kvm_exits::Class;

/// KVM's types appended to a blob, without one member.
fn types_of_kvm(blob: &mut Blob, notifier: u32, word: u32, without: &str) {
    let keep = |mut members: Vec<MemberOf>| {
        members.retain(|member| member.0 != without);
        members
    };
    let generic = blob.structure(
        "kvm_vcpu_stat_generic",
        64,
        &keep(vec![
            MemberOf("halt_poll_success_ns", word, 8 * 32),
            MemberOf("halt_poll_fail_ns", word, 8 * 40),
            MemberOf("halt_wait_ns", word, 8 * 48),
        ]),
    );
    let stat = blob.structure(
        "kvm_vcpu_stat",
        200,
        &keep(vec![
            MemberOf("generic", generic, 0),
            MemberOf("exits", word, 8 * 64),
            MemberOf("io_exits", word, 8 * 72),
            MemberOf("mmio_exits", word, 8 * 80),
            MemberOf("halt_exits", word, 8 * 88),
            MemberOf("irq_exits", word, 8 * 96),
            MemberOf("hypercalls", word, 8 * 104),
        ]),
    );
    let arch = blob.structure("kvm_vcpu_arch", 300, &keep(vec![MemberOf("regs", word, 0)]));
    blob.structure(
        "kvm_vcpu",
        1000,
        &keep(vec![
            MemberOf("kvm", word, 0),
            MemberOf("preempt_notifier", notifier, 8 * 8),
            MemberOf("vcpu_id", word, 8 * 36),
            MemberOf("stat", stat, 8 * 400),
            MemberOf("arch", arch, 8 * 640),
        ]),
    );
}

/// A kernel without KVM: the types that KVM's refer to.
fn vmlinux() -> (Blob, u32, u32) {
    let mut blob = Blob::default();
    let word = blob.int("u64", 8);
    let node = blob.structure("hlist_node", 16, &[MemberOf("next", word, 0)]);
    let notifier = blob.structure("preempt_notifier", 24, &[MemberOf("link", node, 0)]);
    (blob, notifier, word)
}

fn built_in(without: &str) -> Btf {
    let (mut blob, notifier, word) = vmlinux();
    types_of_kvm(&mut blob, notifier, word, without);
    Btf::parse(&blob.bytes()).unwrap()
}

fn expected() -> KvmOffsets {
    KvmOffsets {
        source: SOURCE_KVM,
        vcpu_notifier_link: 8,
        vcpu_id: 36,
        exits: 464,
        io: 472,
        mmio: 480,
        halts: 488,
        interrupts: 496,
        hypercalls: 504,
        halt_poll_success_ns: 432,
        halt_poll_fail_ns: 440,
        halt_wait_ns: 448,
        general_registers: 640,
        ..KvmOffsets::default()
    }
}

#[test]
fn the_layout_is_found_where_kvm_is_built_in() {
    assert_eq!(layout(&built_in("")), Ok(expected()));
}

#[test]
fn the_layout_is_found_in_a_modules_split_btf() {
    let (base, notifier, word) = vmlinux();
    let mut module = Blob::behind(&base);
    types_of_kvm(&mut module, notifier, word, "");
    let kernel = Btf::parse(&base.bytes()).unwrap();
    assert_eq!(kernel.struct_size("kvm_vcpu"), None);
    let with_module = kernel.with_module(&module.bytes()).unwrap();
    assert_eq!(layout(&with_module), Ok(expected()));
}

#[test]
fn a_counter_that_a_kernel_lacks_is_absent_and_the_others_are_read() {
    let offsets = layout(&built_in("hypercalls")).unwrap();
    assert_eq!(
        offsets,
        KvmOffsets {
            hypercalls: 0,
            ..expected()
        }
    );
}

#[test]
fn without_what_all_need_there_is_no_layout_and_the_member_is_named() {
    for member in ["preempt_notifier", "vcpu_id", "exits"] {
        let error = layout(&built_in(member)).unwrap_err();
        assert!(error.contains(member), "{error}");
    }
}

#[test]
fn every_truncation_of_a_modules_btf_is_an_error_never_a_panic() {
    let (base, notifier, word) = vmlinux();
    let mut module = Blob::behind(&base);
    types_of_kvm(&mut module, notifier, word, "");
    let bytes = module.bytes();
    for length in 0..bytes.len() {
        let kernel = Btf::parse(&base.bytes()).unwrap();
        assert!(kernel.with_module(&bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn a_module_without_btf_is_said_with_its_file() {
    let missing = Path::new("/nonexistent/btf/kvm");
    let directory = tempfile::tempdir().unwrap();
    let kernel = || Btf::parse(&vmlinux().0.bytes()).unwrap();
    let error = types(kernel(), missing).unwrap_err();
    assert!(
        error.starts_with("/nonexistent/btf/kvm is missing"),
        "{error}"
    );
    let broken = directory.path().join("kvm");
    fs::write(&broken, b"no BTF").unwrap();
    let error = types(kernel(), &broken).unwrap_err();
    assert!(error.contains("cannot be used"), "{error}");
}

/// As in tracefs, cut to what matters.
const EXIT: &str = "name: kvm_exit\nID: 103\nformat:\n\
    \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
    \tfield:unsigned int exit_reason;\toffset:8;\tsize:4;\tsigned:0;\n\
    \tfield:unsigned long guest_rip;\toffset:16;\tsize:8;\tsigned:0;\n\
    \tfield:u32 isa;\toffset:24;\tsize:4;\tsigned:0;\n\
    \nprint fmt: \"reason %s\", REC->isa\n";
const MSR: &str = "name: kvm_msr\n\
    \tfield:unsigned write;\toffset:8;\tsize:4;\tsigned:0;\n\
    \tfield:u32 ecx;\toffset:12;\tsize:4;\tsigned:0;\n";

fn both(event: &str) -> Result<String, String> {
    Ok(if event == KVM_EXIT { EXIT } else { MSR }.to_owned())
}

fn no_tracefs(_: &str) -> Result<String, String> {
    Err("tracefs is not mounted".to_owned())
}

#[test]
fn fields_of_a_tracepoint_are_found_by_their_names() {
    assert_eq!(field(EXIT, "exit_reason"), Some(8));
    assert_eq!(field(EXIT, "isa"), Some(24));
    assert_eq!(field(EXIT, "guest_rip"), None, "it has 8 bytes");
    assert_eq!(field(EXIT, "reason"), None);
    assert_eq!(field("\tfield:u32 x;\toffset:256;\tsize:4;", "x"), None);
}

#[test]
fn kvms_own_counters_are_preferred() {
    let found = found(Ok(expected()), both);
    assert_eq!(found.exits, Ok("from KVM's own counters".to_owned()));
    assert_eq!(
        found.offsets,
        KvmOffsets {
            msr_write: 8,
            msr_ecx: 12,
            ..expected()
        }
    );
    assert_eq!(found.msrs, Ok(()));
}

#[test]
fn without_a_layout_the_tracepoint_is_the_source_and_says_why() {
    let found = found(Err("/sys/kernel/btf/kvm is missing".to_owned()), both);
    let source = found.exits.unwrap();
    assert!(source.contains("tracepoint kvm:kvm_exit"), "{source}");
    assert!(
        source.contains("/sys/kernel/btf/kvm is missing"),
        "{source}"
    );
    let offsets = KvmOffsets {
        source: SOURCE_TRACEPOINT,
        exit_reason: 8,
        exit_isa: 24,
        msr_write: 8,
        msr_ecx: 12,
        ..KvmOffsets::default()
    };
    assert_eq!(found.offsets, offsets);
}

#[test]
fn with_neither_both_reasons_are_said_and_nothing_is_counted() {
    let found = found(Err("no BTF".to_owned()), no_tracefs);
    assert_eq!(found.offsets.source, SOURCE_NONE);
    let reason = found.exits.unwrap_err();
    assert!(reason.contains("no BTF") && reason.contains("tracefs is not mounted"));
    assert_eq!(found.msrs, Err("tracefs is not mounted".to_owned()));
}

#[test]
fn without_tracefs_kvms_counters_are_read_all_the_same() {
    let found = found(Ok(expected()), no_tracefs);
    assert!(found.exits.is_ok());
    assert!(found.msrs.is_err());
}

#[test]
fn classes_have_the_numbers_of_the_kernel_half() {
    let pairs = [
        (Class::Other, ExitClass::Other),
        (Class::Halt, ExitClass::Halt),
        (Class::Io, ExitClass::Io),
        (Class::Mmio, ExitClass::Mmio),
        (Class::Interrupt, ExitClass::Interrupt),
        (Class::Msr, ExitClass::Msr),
        (Class::PageFault, ExitClass::PageFault),
        (Class::Hypercall, ExitClass::Hypercall),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(ours as u32, theirs as u32, "{ours:?}");
    }
    for isa in [Isa::Vmx, Isa::Svm] {
        assert!(classes(isa).all(|(reason, _)| reason < EXIT_REASONS_MAX));
    }
}

#[test]
fn the_running_kernels_own_layout_is_found_if_it_has_kvm() {
    let kernel = Btf::read(btf::VMLINUX.as_ref()).unwrap();
    match types(kernel, MODULE_BTF.as_ref()) {
        Ok(offsets) => assert!(
            offsets.halts != 0 && offsets.halt_poll_fail_ns != 0,
            "{offsets:?}"
        ),
        Err(reason) => assert!(reason.contains("btf"), "{reason}"),
    }
}
