//! Loading: what is needed is checked first, so that a refusal has a name; then the object that build.rs made
//! is given its offsets and settings, verified, and attached.

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, Queue},
    programs::BtfTracePoint,
};
use davy_abi::{NEVER_NS, Offsets, Settings, SlotIndex};

use super::{
    Kernel, KernelOptions, LoadError, btf,
    kvm::Kvm,
    offsets::{self, Resolved},
    requirements,
    slots::SlotTable,
    vcpus::VcpuTable,
};

/// The object, aligned as the ELF reader wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/davy-agent-ebpf.o"));

const PROGRAMS: [&str; 3] = ["sched_process_exec", "sched_process_fork", "sched_switch"];

pub(super) fn load(options: &KernelOptions) -> Result<Kernel, LoadError> {
    check(options)?;
    requirements::check()?;
    let vmlinux = btf::Btf::read(btf::VMLINUX.as_ref())?;
    let resolved = offsets::resolve(&vmlinux)?;
    let mut ebpf = object(options, &resolved)?;
    let slots = array(take(&mut ebpf, "SLOTS")?)?;
    let waits = array(take(&mut ebpf, "WAITS")?)?;
    let slots = SlotTable::map(slots, waits, options.slots_max)?;
    let mut free = queue(take(&mut ebpf, "FREE")?)?;
    for index in 1..options.slots_max {
        free.push(index, 0)
            .map_err(LoadError::refused("filling the map FREE"))?;
    }
    let threads = HashMap::try_from(take(&mut ebpf, "THREADS")?)
        .map_err(LoadError::refused("the map THREADS"))?;
    let counters = PerCpuArray::try_from(take(&mut ebpf, "COUNTERS")?)
        .map_err(LoadError::refused("the map COUNTERS"))?;
    let vcpus = VcpuTable::map(array(take(&mut ebpf, "VCPUS")?)?, options.slots_max)?;
    let kvm = Kvm::new(
        vcpus,
        take(&mut ebpf, "KVM")?,
        // Not taken: a program that may be loaded later refers to it.
        ebpf.map_mut("EXIT_CLASSES")
            .ok_or_else(|| missing("map", "EXIT_CLASSES"))?,
        options.exits,
        vmlinux,
    )?;
    let pace =
        Array::try_from(take(&mut ebpf, "PACE")?).map_err(LoadError::refused("the map PACE"))?;
    attach(&mut ebpf)?;
    Ok(Kernel {
        slots,
        free,
        threads,
        counters,
        pace,
        groups: std::collections::HashMap::new(),
        absent: std::collections::HashMap::new(),
        swept: 0,
        registers_unsupported: resolved.registers_unsupported,
        vcpus_unsupported: resolved.vcpus_unsupported,
        kvm,
        ebpf,
    })
}

fn check(options: &KernelOptions) -> Result<(), LoadError> {
    if !(2..=1 << 20).contains(&options.slots_max) {
        return Err(LoadError::Option {
            name: "slots_max",
            value: u64::from(options.slots_max),
            range: "2 to 1048576",
        });
    }
    Ok(())
}

fn object(options: &KernelOptions, resolved: &Resolved) -> Result<Ebpf, LoadError> {
    let settings = settings(options, resolved)?;
    EbpfLoader::new()
        .override_global("OFFSETS", bytes_of_offsets(&resolved.offsets), true)
        .override_global("SETTINGS", bytes_of_settings(&settings), true)
        .map_max_entries("SLOTS", options.slots_max)
        .map_max_entries("VCPUS", options.slots_max)
        .map_max_entries("WAITS", options.slots_max)
        .map_max_entries("FREE", options.slots_max)
        .map_max_entries("THREADS", options.slots_max)
        .load(OBJECT)
        .map_err(LoadError::refused("creating the eBPF maps"))
}

fn settings(options: &KernelOptions, resolved: &Resolved) -> Result<Settings, LoadError> {
    let mut key = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut key))
        .map_err(LoadError::refused("reading a key from /dev/urandom"))?;
    let (low, high) = key.split_at(8);
    let word = |half: &[u8]| u64::from_ne_bytes(half.try_into().unwrap_or_default());
    Ok(Settings {
        digest_key: [word(low), word(high)],
        sample_interval_ns: if resolved.registers_unsupported.is_some() {
            NEVER_NS
        } else {
            u64::try_from(options.sample_interval.as_nanos()).unwrap_or(NEVER_NS)
        },
        has_xsave: u32::from(has_xsave()),
        find_vcpus: u32::from(options.find_vcpus && resolved.vcpus_unsupported.is_none()),
    })
}

/// Whether the kernel saves registers with XSAVE: CPUID.1:ECX.OSXSAVE (Intel SDM vol. 2, CPUID), which the
/// kernel sets only if it uses it.
fn has_xsave() -> bool {
    std::arch::is_x86_feature_detected!("xsave")
}

fn bytes_of_offsets(offsets: &Offsets) -> &[u8] {
    // SAFETY: a repr(C) struct of u32 alone, without padding; the view lives as long as the borrow.
    unsafe {
        std::slice::from_raw_parts(
            std::ptr::from_ref(offsets).cast::<u8>(),
            size_of::<Offsets>(),
        )
    }
}

fn bytes_of_settings(settings: &Settings) -> &[u8] {
    // SAFETY: a repr(C) struct of u64 and u32 whose size is the sum of its fields, without padding.
    unsafe {
        std::slice::from_raw_parts(
            std::ptr::from_ref(settings).cast::<u8>(),
            size_of::<Settings>(),
        )
    }
}

fn attach(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let btf = Btf::from_sys_fs().map_err(LoadError::refused("reading BTF"))?;
    for name in PROGRAMS {
        let program: &mut BtfTracePoint = ebpf
            .program_mut(name)
            .ok_or_else(|| missing("program", name))?
            .try_into()
            .map_err(LoadError::refused(format!("the program {name}")))?;
        program
            .load(name, &btf)
            .map_err(LoadError::refused(format!("loading the program {name}")))?;
        program
            .attach()
            .map_err(LoadError::refused(format!("attaching the program {name}")))?;
    }
    Ok(())
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or_else(|| missing("map", name))
}

fn missing(kind: &str, name: &str) -> LoadError {
    LoadError::Refused {
        what: format!("the {kind} {name}"),
        reason: "it is not in the built object".to_owned(),
    }
}

fn array(map: Map) -> Result<MapData, LoadError> {
    match map {
        Map::Array(data) => Ok(data),
        _ => Err(missing("array", "of that name")),
    }
}

fn queue(map: Map) -> Result<Queue<MapData, SlotIndex>, LoadError> {
    Queue::try_from(map).map_err(LoadError::refused("the map FREE"))
}
