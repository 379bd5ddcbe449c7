//! KVM's part of the kernel: where its counters lie, its tracepoints, and what is attached to them.
//!
//! - `kvm_vcpu` is in the kernel's own BTF where KVM is built in, else in the module's (`/sys/kernel/btf/kvm`). Then exits
//!   are read from **KVM's own counters**, without a further hook.
//! - Where that is missing (a module built without BTF, or a field that is not there), exits are counted at **the
//!   tracepoint `kvm:kvm_exit`**, and halt-polling is not known. [`super::ExitsFrom::Tracepoint`] forces it, for tests.
//! - `msr_writes` always needs the tracepoint `kvm:kvm_msr`.
//!
//! Tracepoints are attached while there are guests and detached with the last one: an attached one keeps the `kvm` module
//! from being unloaded, and costs at each exit. All is looked up anew with the first guest if the module was loaded, or
//! exchanged, since. Which source is in use stands in the sensor's reason.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use aya::{
    Ebpf, Pod,
    maps::{Array, Map, MapData},
    programs::{TracePoint, trace_point::TracePointLinkId},
};
use davy_abi::{
    EXIT_REASONS_MAX, KvmOffsets, RECORD_BYTES_MAX, SOURCE_KVM, SOURCE_TRACEPOINT, Slot, SlotIndex,
    Vcpu,
};
use davy_evidence::{
    SensorState,
    kvm_exits::{Isa, classes},
};
use tracing::debug;

use super::{
    ExitsFrom, LoadError,
    btf::{self, Btf},
    vcpus::VcpuTable,
};

/// The BTF of KVM as a module.
const MODULE_BTF: &str = "/sys/kernel/btf/kvm";
/// Where tracefs may be mounted (Documentation/trace/ftrace.rst).
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const KVM_EXIT: &str = "kvm_exit";
const KVM_MSR: &str = "kvm_msr";

/// What goes into the map `KVM`.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Element(KvmOffsets);

// SAFETY: a transparent wrapper of a repr(C) struct of u32 alone, without padding.
unsafe impl Pod for Element {}

/// What can be done about KVM on this host now.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    offsets: KvmOffsets,
    /// From where exits come, or why they cannot be had.
    exits: Result<String, String>,
    /// Whether `kvm:kvm_msr` is there, or why not.
    msrs: Result<(), String>,
}

/// The maps that concern KVM, and what is attached.
pub(super) struct Kvm {
    vcpus: VcpuTable,
    offsets: Array<MapData, Element>,
    from: ExitsFrom,
    /// The layout of KVM's types, and of which load of the module.
    types: Result<KvmOffsets, String>,
    stamp: Option<u64>,
    found: Found,
    guests: bool,
    attached: Vec<(&'static str, TracePointLinkId)>,
}

impl Kvm {
    pub(super) fn new(
        vcpus: VcpuTable,
        offsets: Map,
        classes: &mut Map,
        from: ExitsFrom,
        vmlinux: Btf,
    ) -> Result<Self, LoadError> {
        fill_classes(classes)?;
        let offsets = Array::try_from(offsets).map_err(LoadError::refused("the map KVM"))?;
        let stamp = stamp();
        let types = wanted(from, || types(vmlinux, MODULE_BTF.as_ref()));
        let mut kvm = Self {
            vcpus,
            offsets,
            from,
            found: found(types.clone(), format_of),
            types,
            stamp,
            guests: false,
            attached: Vec::new(),
        };
        kvm.tell()?;
        Ok(kvm)
    }

    /// What was counted of the thread in that slot.
    pub(super) fn vcpu(&self, index: SlotIndex, slot: &Slot) -> Option<Vcpu> {
        self.vcpus.get(index, slot)
    }

    /// Attaches with the first guest what needs to be, and detaches it with the last one.
    pub(super) fn follow(&mut self, guests: bool, ebpf: &mut Ebpf) {
        if guests == self.guests {
            return;
        }
        self.guests = guests;
        if !guests {
            for (name, link) in self.attached.drain(..) {
                if let Ok(program) = program(ebpf, name) {
                    // It can fail only if it is detached already.
                    let _ = program.detach(link);
                }
            }
            return;
        }
        // Reading BTF takes a while; where KVM is built in there is no module's, now as before.
        let stamp = stamp();
        if stamp != self.stamp {
            self.stamp = stamp;
            self.types = wanted(self.from, || {
                let vmlinux =
                    Btf::read(btf::VMLINUX.as_ref()).map_err(|error| error.to_string())?;
                types(vmlinux, MODULE_BTF.as_ref())
            });
        }
        self.found = found(self.types.clone(), format_of);
        if let Err(error) = self.tell() {
            self.found.exits = Err(error.to_string());
            self.found.msrs = Err(error.to_string());
            return;
        }
        if self.found.exits.is_ok()
            && self.found.offsets.source == SOURCE_TRACEPOINT
            && let Err(error) = self.attach(ebpf, KVM_EXIT)
        {
            self.found.exits = Err(error.to_string());
        }
        if let Ok(source) = &self.found.exits {
            debug!(source, "guests: exits are counted");
        }
        if self.found.msrs.is_ok()
            && let Err(error) = self.attach(ebpf, KVM_MSR)
        {
            self.found.msrs = Err(error.to_string());
        }
    }

    /// The programs that are attached now.
    pub(super) fn attached(&self) -> Vec<&'static str> {
        self.attached.iter().map(|(name, _)| *name).collect()
    }

    fn attach(&mut self, ebpf: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
        let program = program(ebpf, name)?;
        if program.fd().is_err() {
            program
                .load()
                .map_err(LoadError::refused(format!("loading the program {name}")))?;
        }
        let link = program
            .attach("kvm", name)
            .map_err(LoadError::refused(format!("attaching the program {name}")))?;
        self.attached.push((name, link));
        Ok(())
    }

    /// Hands the offsets to the kernel half.
    fn tell(&mut self) -> Result<(), LoadError> {
        self.offsets
            .set(0, Element(self.found.offsets), 0)
            .map_err(LoadError::refused("writing the map KVM"))
    }

    /// The state of `kvm_exits` and of `msr_writes`, with the source in use or what is missing.
    pub(super) fn sensors(&self) -> [(&'static str, SensorState, String); 2] {
        let exits = match &self.found.exits {
            Ok(source) => ("kvm_exits", SensorState::Live, source.clone()),
            Err(reason) => ("kvm_exits", SensorState::Unsupported, reason.clone()),
        };
        let msrs = match &self.found.msrs {
            Ok(()) => (
                "msr_writes",
                SensorState::Live,
                "from the tracepoint kvm:kvm_msr, attached while there are guests".to_owned(),
            ),
            Err(reason) => ("msr_writes", SensorState::Unsupported, reason.clone()),
        };
        [exits, msrs]
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut TracePoint, LoadError> {
    ebpf.program_mut(name)
        .ok_or_else(|| LoadError::Refused {
            what: format!("the program {name}"),
            reason: "it is not in the built object".to_owned(),
        })?
        .try_into()
        .map_err(LoadError::refused(format!("the program {name}")))
}

fn fill_classes(map: &mut Map) -> Result<(), LoadError> {
    let refused = "writing the map EXIT_CLASSES";
    let mut map: Array<_, u32> = Array::try_from(map).map_err(LoadError::refused(refused))?;
    for (isa, first) in [(Isa::Vmx, 0), (Isa::Svm, EXIT_REASONS_MAX)] {
        for (reason, class) in classes(isa) {
            map.set(first + reason, class as u32, 0)
                .map_err(LoadError::refused(refused))?;
        }
    }
    Ok(())
}

/// Names one load of the module; `None` if it has no BTF, or there is none. A file of sysfs has a number of its own.
fn stamp() -> Option<u64> {
    fs::metadata(MODULE_BTF).ok().map(|file| file.ino())
}

/// The layout, unless the tracepoint was asked for.
fn wanted(
    from: ExitsFrom,
    types: impl FnOnce() -> Result<KvmOffsets, String>,
) -> Result<KvmOffsets, String> {
    match from {
        ExitsFrom::Best => types(),
        ExitsFrom::Tracepoint => Err("the tracepoint was asked for".to_owned()),
    }
}

/// The format of one of KVM's tracepoints, or what is missing.
fn format_of(event: &str) -> Result<String, String> {
    let mut mounted = TRACEFS.iter().map(Path::new);
    let tracefs = mounted
        .find(|path| path.join("events").exists())
        .ok_or("tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing")?;
    let path = tracefs.join("events/kvm").join(event).join("format");
    fs::read_to_string(&path).map_err(|error| {
        format!(
            "the tracepoint kvm:{event} is not there ({}: {error}): load kvm_intel or kvm_amd",
            path.display()
        )
    })
}

/// From the layout of KVM's types, or why there is none, and the tracepoints' formats. Pure.
fn found(
    types: Result<KvmOffsets, String>,
    format: impl Fn(&str) -> Result<String, String>,
) -> Found {
    let mut offsets = KvmOffsets::default();
    let fields = |event: &str, names: [&str; 2]| -> Result<[u32; 2], String> {
        let format = format(event)?;
        let [first, second] = names.map(|name| {
            field(&format, name).ok_or_else(|| {
                format!("the tracepoint kvm:{event} has no field {name} of 4 bytes in this kernel")
            })
        });
        Ok([first?, second?])
    };
    let msrs = fields(KVM_MSR, ["write", "ecx"]).map(|[write, ecx]| {
        (offsets.msr_write, offsets.msr_ecx) = (write, ecx);
    });
    let exits = match types {
        Ok(types) => {
            offsets = KvmOffsets {
                source: SOURCE_KVM,
                msr_write: offsets.msr_write,
                msr_ecx: offsets.msr_ecx,
                ..types
            };
            Ok("from KVM's own counters".to_owned())
        }
        Err(missing) => match fields(KVM_EXIT, ["exit_reason", "isa"]) {
            Ok([reason, isa]) => {
                offsets.source = SOURCE_TRACEPOINT;
                (offsets.exit_reason, offsets.exit_isa) = (reason, isa);
                Ok(format!(
                    "from the tracepoint kvm:kvm_exit, since {missing}; halt-polling is not known then"
                ))
            }
            Err(no_tracepoint) => Err(format!("{missing}; and {no_tracepoint}")),
        },
    };
    Found {
        offsets,
        exits,
        msrs,
    }
}

/// The layout of `kvm_vcpu`, from the kernel's BTF or the module's.
fn types(mut types: Btf, module: &Path) -> Result<KvmOffsets, String> {
    if types.struct_size("kvm_vcpu").is_none() {
        let shown = module.display();
        let bytes = fs::read(module).map_err(|error| {
            format!("{shown} is missing ({error}): KVM is not loaded, or its module has no BTF")
        })?;
        types = types
            .with_module(&bytes)
            .map_err(|error| format!("{shown} cannot be used: {error}"))?;
    }
    layout(&types)
}

/// Pure part of [`types`]. What is not there stays 0, but without these three nothing can be read.
fn layout(btf: &Btf) -> Result<KvmOffsets, String> {
    let size = btf
        .struct_size("kvm_vcpu")
        .ok_or("KVM's BTF has no struct kvm_vcpu")?;
    // A member that does not lie inside its struct is none.
    let at = |member: &str| {
        let byte = u32::try_from(btf.member("kvm_vcpu", member)?.byte()).ok()?;
        (byte > 0 && byte.saturating_add(8) <= size).then_some(byte)
    };
    let needed =
        |member: &str| at(member).ok_or_else(|| format!("KVM's BTF has no kvm_vcpu.{member}"));
    let optional = |member: &str| at(member).unwrap_or(0);
    Ok(KvmOffsets {
        source: SOURCE_KVM,
        vcpu_notifier_link: needed("preempt_notifier.link")?,
        vcpu_id: needed("vcpu_id")?,
        exits: needed("stat.exits")?,
        halts: optional("stat.halt_exits"),
        io: optional("stat.io_exits"),
        mmio: optional("stat.mmio_exits"),
        interrupts: optional("stat.irq_exits"),
        hypercalls: optional("stat.hypercalls"),
        halt_poll_success_ns: optional("stat.generic.halt_poll_success_ns"),
        halt_poll_fail_ns: optional("stat.generic.halt_poll_fail_ns"),
        halt_wait_ns: optional("stat.generic.halt_wait_ns"),
        general_registers: optional("arch.regs"),
        ..KvmOffsets::default()
    })
}

/// Offset of a field of 4 bytes in a tracepoint's `format` (Documentation/trace/events.rst, "Event formats").
fn field(format: &str, name: &str) -> Option<u32> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().strip_prefix("field:")?.split(';');
        if parts.next()?.split_whitespace().last()? != name {
            return None;
        }
        let offset = parts.next()?.trim().strip_prefix("offset:")?;
        let size = parts.next()?.trim().strip_prefix("size:")?;
        let offset: u32 = offset.parse().ok()?;
        (size == "4" && offset < RECORD_BYTES_MAX).then_some(offset)
    })
}

#[cfg(test)]
#[path = "kvm_tests.rs"]
mod tests;
