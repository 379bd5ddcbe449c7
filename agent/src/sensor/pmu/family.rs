//! What each family of CPUs can count beyond cycles and instructions, with the numbers of its events.
//!
//! Every number stands in the Linux kernel's tables, `tools/perf/pmu-events/arch/x86/<directory>/` (named at each table, with file and
//! event), which the vendors maintain: <https://github.com/torvalds/linux/tree/master/tools/perf/pmu-events/arch/x86>. Which CPU has which
//! table is from `mapfile.csv` there. Further: AMD, the documents 56255 (family 17h), 55898 (19h, Zen 3), 55901 (19h, Zen 4) and
//! 58550 (1Ah) at <https://docs.amd.com>; Intel, <https://perfmon-events.intel.com>.
//!
//! Cache and branch misses are the kernel's generic events, which it translates for each CPU (`amd_f17h_perfmon_event_map`,
//! arch/x86/events/amd/core.c; `intel_perfmon_event_map`, arch/x86/events/intel/core.c).
//!
//! What is not here is not counted: CPUs without a table, events that could not be found in those files, and the raw events of CPUs
//! with unequal cores (a raw number means another event on the other kind of core).

use std::arch::x86_64::{__cpuid, __cpuid_count};

use crate::kernel::perf::Kind;

/// What an event counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// CPU cycles.
    Cycles,
    /// Instructions retired.
    Instructions,
    /// Cache misses.
    CacheMisses,
    /// Branches mispredicted.
    BranchMisses,
    /// Packed 128-bit additions.
    FpAdd,
    /// Packed 128-bit subtractions.
    FpSub,
    /// FLOPs of additions and subtractions.
    FpAddSub,
    /// Multiplications: packed 128-bit operations, or FLOPs where [`What::FpAddSub`] is counted.
    FpMul,
    /// Packed 128-bit divisions.
    FpDiv,
    /// Packed 128-bit square roots.
    FpSqrt,
    /// FLOPs of divisions and square roots.
    FpDivSqrt,
    /// Packed 128-bit double-precision operations of all kinds.
    FpPackedDouble,
    /// Traps because a control word was mispredicted.
    ControlWordTraps,
    /// Cycles in which a divider was busy.
    DividerCycles,
    /// AES operations.
    Aes,
    /// SHA operations.
    Sha,
}

/// Values of [`What`].
pub const WHATS: usize = What::Sha as usize + 1;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it counts.
    pub what: What,
    /// Whose number `config` is.
    pub kind: Kind,
    /// Its number.
    pub config: u64,
    /// General counters it takes.
    pub counters: u32,
    /// Its name, as the vendor or the kernel calls it.
    pub name: &'static str,
}

/// Cycles and instructions: always together. `PERF_COUNT_HW_CPU_CYCLES` and `…_INSTRUCTIONS`, include/uapi/linux/perf_event.h.
pub const PAIR: [Event; 2] = [
    generic(What::Cycles, 0, "cpu-cycles"),
    generic(What::Instructions, 1, "instructions"),
];

const CACHE_MISSES: Event = generic(What::CacheMisses, 3, "cache-misses");
const BRANCH_MISSES: Event = generic(What::BranchMisses, 5, "branch-misses");

const fn generic(what: What, config: u64, name: &'static str) -> Event {
    Event {
        what,
        kind: Kind::Hardware,
        config,
        counters: 1,
        name,
    }
}

/// `event` in bits 0 to 7, `umask` in 8 to 15, `cmask` in 24 to 31 (/sys/bus/event_source/devices/cpu/format).
const fn raw(what: What, event: u64, umask: u64, cmask: u64, name: &'static str) -> Event {
    Event {
        what,
        kind: Kind::Raw,
        config: event | umask << 8 | cmask << 24,
        counters: 1,
        name,
    }
}

/// AMD's event 003 adds up to 64 in a cycle and takes two counters, merged (`amd_is_pair_event_code`, arch/x86/events/amd/core.c).
const fn flops(what: What, umask: u64, name: &'static str) -> Event {
    Event {
        counters: 2,
        ..raw(what, 0x03, umask, 0, name)
    }
}

/// `amdzen1/floating-point.json`. Here double precision has bits of its own, and control words another bit than later.
const ZEN_1: &[Event] = &[
    flops(What::FpDivSqrt, 0x40, "fp_ret_sse_avx_ops.dp_div_flops"),
    flops(What::FpMul, 0x20, "fp_ret_sse_avx_ops.dp_mult_flops"),
    flops(What::FpAddSub, 0x10, "fp_ret_sse_avx_ops.dp_add_sub_flops"),
    raw(
        What::ControlWordTraps,
        0x05,
        0x02,
        0,
        "fp_retired_ser_ops.sse_ctrl_ret",
    ),
    CACHE_MISSES,
    BRANCH_MISSES,
];

/// `amdzen2/floating-point.json` and `amdzen3/floating-point.json`: the same numbers.
const ZEN_2_3: &[Event] = &[
    flops(What::FpDivSqrt, 0x04, "fp_ret_sse_avx_ops.div_flops"),
    flops(What::FpMul, 0x02, "fp_ret_sse_avx_ops.mult_flops"),
    flops(What::FpAddSub, 0x01, "fp_ret_sse_avx_ops.add_sub_flops"),
    raw(
        What::ControlWordTraps,
        0x05,
        0x04,
        0,
        "fp_retired_ser_ops.sse_ctrl_ret",
    ),
    CACHE_MISSES,
    BRANCH_MISSES,
];

/// `amdzen4/floating-point.json`.
const ZEN_4: &[Event] = &[
    raw(What::FpDiv, 0x0c, 0x05, 0, "fp_pack_ops_retired.fp128_div"),
    raw(
        What::FpSqrt,
        0x0c,
        0x06,
        0,
        "fp_pack_ops_retired.fp128_sqrt",
    ),
    raw(What::FpMul, 0x0c, 0x03, 0, "fp_pack_ops_retired.fp128_mul"),
    raw(What::FpAdd, 0x0c, 0x01, 0, "fp_pack_ops_retired.fp128_add"),
    raw(What::FpSub, 0x0c, 0x02, 0, "fp_pack_ops_retired.fp128_sub"),
    raw(
        What::ControlWordTraps,
        0x05,
        0x04,
        0,
        "fp_retired_ser_ops.sse_ctrl_ret",
    ),
    CACHE_MISSES,
    BRANCH_MISSES,
    raw(What::Aes, 0x0b, 0x50, 0, "sse_avx_ops_retired.sse_avx_aes"),
    raw(What::Sha, 0x0b, 0x60, 0, "sse_avx_ops_retired.sse_avx_sha"),
];

/// `amdzen5/floating-point.json`: as Zen 4, without the traps.
const ZEN_5: &[Event] = &[
    ZEN_4[0],
    ZEN_4[1],
    ZEN_4[2],
    ZEN_4[3],
    ZEN_4[4],
    CACHE_MISSES,
    BRANCH_MISSES,
    ZEN_4[8],
    ZEN_4[9],
];

/// All of Intel's: `floating-point.json` of `skylakex`, `icelakex`, `sapphirerapids` and `emeraldrapids`. It does not tell
/// additions from divisions.
const PACKED_DOUBLE: Event = raw(
    What::FpPackedDouble,
    0xc7,
    0x04,
    0,
    "FP_ARITH_INST_RETIRED.128B_PACKED_DOUBLE",
);

/// `skylakex/pipeline.json`. Cycles, integer divisions included: no count of divisions.
const SKYLAKE: &[Event] = &[
    PACKED_DOUBLE,
    raw(What::DividerCycles, 0x14, 0x01, 1, "ARITH.DIVIDER_ACTIVE"),
    CACHE_MISSES,
    BRANCH_MISSES,
];

/// `icelakex/pipeline.json`.
const ICE_LAKE: &[Event] = &[
    PACKED_DOUBLE,
    raw(What::DividerCycles, 0x14, 0x09, 1, "ARITH.DIVIDER_ACTIVE"),
    CACHE_MISSES,
    BRANCH_MISSES,
];

/// `sapphirerapids/floating-point.json` and `emeraldrapids/floating-point.json`: floating-point divisions alone, but cycles still.
const SAPPHIRE_RAPIDS: &[Event] = &[
    PACKED_DOUBLE,
    raw(What::DividerCycles, 0xb0, 0x01, 1, "ARITH.FPDIV_ACTIVE"),
    CACHE_MISSES,
    BRANCH_MISSES,
];

const GENERIC: &[Event] = &[CACHE_MISSES, BRANCH_MISSES];

/// Who made the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// `GenuineIntel`.
    Intel,
    /// `AuthenticAMD`.
    Amd,
    /// Anyone else.
    Other,
}

/// A CPU, as far as its counters are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its maker.
    pub vendor: Vendor,
    /// Its family, base and extended added.
    pub family: u32,
    /// Its model, base and extended together.
    pub model: u32,
    /// General counters of one hardware thread.
    pub general_counters: u32,
    /// Whether cycles and instructions have counters of their own.
    pub has_fixed_counters: bool,
    /// Whether it has cores of more than one kind.
    pub is_hybrid: bool,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// What people call it.
    pub name: &'static str,
    /// What can be counted beyond cycles and instructions, most telling first.
    pub events: &'static [Event],
}

/// The CPU's row. Models as in `mapfile.csv`; what is not there gets the generic events alone.
#[must_use]
pub fn family_of(cpu: &Cpu) -> Family {
    let (name, events) = match (cpu.vendor, cpu.family, cpu.model) {
        (Vendor::Amd, 0x17, 0x00..=0x2f) => ("AMD Zen 1", ZEN_1),
        (Vendor::Amd, 0x17, _) => ("AMD Zen 2", ZEN_2_3),
        (Vendor::Amd, 0x19, 0x00..=0x0f | 0x20..=0x2f | 0x40..=0x5f) => ("AMD Zen 3", ZEN_2_3),
        (Vendor::Amd, 0x19, _) => ("AMD Zen 4", ZEN_4),
        (Vendor::Amd, 0x1a, _) => ("AMD Zen 5", ZEN_5),
        (Vendor::Intel, 6, _) if cpu.is_hybrid => ("Intel with unequal cores", GENERIC),
        (Vendor::Intel, 6, 0x4e | 0x5e | 0x8e | 0x9e | 0xa5 | 0xa6 | 0x55) => {
            ("Intel Skylake or Cascade Lake", SKYLAKE)
        }
        (Vendor::Intel, 6, 0x6a | 0x6c) => ("Intel Ice Lake", ICE_LAKE),
        (Vendor::Intel, 6, 0x8f | 0xcf) => ("Intel Sapphire or Emerald Rapids", SAPPHIRE_RAPIDS),
        (Vendor::Intel, ..) => ("another Intel", GENERIC),
        (Vendor::Amd, ..) => ("another AMD", GENERIC),
        (Vendor::Other, ..) => ("another make", GENERIC),
    };
    Family { name, events }
}

/// This machine's CPU, from CPUID.
#[must_use]
pub fn this_cpu() -> Cpu {
    let leaf = __cpuid(0);
    let max_leaf = leaf.eax;
    let vendor = match (leaf.ebx, leaf.edx, leaf.ecx) {
        // "GenuineIntel", "AuthenticAMD", four letters each.
        (0x756e_6547, 0x4965_6e69, 0x6c65_746e) => Vendor::Intel,
        (0x6874_7541, 0x6974_6e65, 0x444d_4163) => Vendor::Amd,
        _ => Vendor::Other,
    };
    let (family, model) = family_and_model(__cpuid(1).eax);
    let (general_counters, has_fixed_counters) = match vendor {
        Vendor::Intel if max_leaf >= 0xa => {
            let leaf = __cpuid_count(0xa, 0);
            intel_counters(leaf.eax, leaf.edx)
        }
        Vendor::Amd => (amd_counters(), false),
        Vendor::Intel | Vendor::Other => (0, false),
    };
    Cpu {
        vendor,
        family,
        model,
        general_counters,
        has_fixed_counters,
        // CPUID 7.0, EDX bit 15 (Intel SDM vol. 2, CPUID).
        is_hybrid: max_leaf >= 7 && __cpuid_count(7, 0).edx & (1 << 15) != 0,
    }
}

/// CPUID 1, EAX (Intel SDM vol. 2, CPUID; AMD APM vol. 3, E.3.2).
fn family_and_model(eax: u32) -> (u32, u32) {
    let (base, model) = ((eax >> 8) & 0xf, (eax >> 4) & 0xf);
    let family = if base == 0xf {
        base + ((eax >> 20) & 0xff)
    } else {
        base
    };
    let model = if base == 6 || base == 0xf {
        model | ((eax >> 16) & 0xf) << 4
    } else {
        model
    };
    (family, model)
}

/// CPUID 0xA (Intel SDM vol. 2, CPUID): general counters in EAX bits 8 to 15, fixed ones in EDX bits 0 to 4.
fn intel_counters(eax: u32, edx: u32) -> (u32, bool) {
    if eax & 0xff == 0 {
        return (0, false);
    }
    ((eax >> 8) & 0xff, edx & 0x1f >= 2)
}

/// As `amd_core_pmu_init`, arch/x86/events/amd/core.c.
fn amd_counters() -> u32 {
    let max_leaf = __cpuid(0x8000_0000).eax;
    if max_leaf >= 0x8000_0022 {
        let leaf = __cpuid(0x8000_0022);
        if leaf.eax & 1 != 0 {
            return leaf.ebx & 0xf;
        }
    }
    let has_core_extension = max_leaf >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & (1 << 23) != 0;
    if has_core_extension { 6 } else { 4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(vendor: Vendor, family: u32, model: u32) -> Cpu {
        Cpu {
            vendor,
            family,
            model,
            general_counters: 6,
            has_fixed_counters: false,
            is_hybrid: false,
        }
    }

    fn config(family: &Family, what: What) -> Option<(u64, u32)> {
        let event = family.events.iter().find(|event| event.what == what)?;
        Some((event.config, event.counters))
    }

    #[test]
    fn models_have_the_names_of_the_kernels_table() {
        for (family, model, name) in [
            (0x17, 0x01, "AMD Zen 1"),
            (0x17, 0x18, "AMD Zen 1"),
            (0x17, 0x31, "AMD Zen 2"),
            (0x17, 0x71, "AMD Zen 2"),
            (0x19, 0x01, "AMD Zen 3"),
            (0x19, 0x21, "AMD Zen 3"),
            (0x19, 0x50, "AMD Zen 3"),
            (0x19, 0x11, "AMD Zen 4"),
            (0x19, 0x61, "AMD Zen 4"),
            (0x19, 0xa0, "AMD Zen 4"),
            (0x1a, 0x02, "AMD Zen 5"),
        ] {
            assert_eq!(family_of(&cpu(Vendor::Amd, family, model)).name, name);
        }
        let intel = |model| family_of(&cpu(Vendor::Intel, 6, model)).name;
        assert_eq!(intel(0x55), "Intel Skylake or Cascade Lake");
        assert_eq!(intel(0x6a), "Intel Ice Lake");
        assert_eq!(intel(0xcf), "Intel Sapphire or Emerald Rapids");
        assert_eq!(intel(0x3f), "another Intel");
    }

    #[test]
    fn numbers_are_those_that_perf_prints() {
        let zen_1 = family_of(&cpu(Vendor::Amd, 0x17, 0x01));
        let zen_3 = family_of(&cpu(Vendor::Amd, 0x19, 0x01));
        let zen_4 = family_of(&cpu(Vendor::Amd, 0x19, 0x11));
        let skylake = family_of(&cpu(Vendor::Intel, 6, 0x55));
        assert_eq!(config(&zen_1, What::FpDivSqrt), Some((0x4003, 2)));
        assert_eq!(config(&zen_1, What::ControlWordTraps), Some((0x0205, 1)));
        assert_eq!(config(&zen_3, What::FpDivSqrt), Some((0x0403, 2)));
        assert_eq!(config(&zen_3, What::ControlWordTraps), Some((0x0405, 1)));
        assert_eq!(config(&zen_4, What::FpDiv), Some((0x050c, 1)));
        assert_eq!(config(&zen_4, What::FpSqrt), Some((0x060c, 1)));
        assert_eq!(config(&zen_4, What::Sha), Some((0x600b, 1)));
        assert_eq!(
            config(&skylake, What::DividerCycles),
            Some((0x0100_0114, 1))
        );
    }

    #[test]
    fn zen_5_has_no_traps_and_intel_no_divisions() {
        let zen_5 = family_of(&cpu(Vendor::Amd, 0x1a, 0x02));
        assert_eq!(config(&zen_5, What::ControlWordTraps), None);
        assert_eq!(config(&zen_5, What::Aes), Some((0x500b, 1)));
        for model in [0x55, 0x6a, 0x8f] {
            let family = family_of(&cpu(Vendor::Intel, 6, model));
            assert_eq!(config(&family, What::FpDiv), None);
            assert_eq!(config(&family, What::FpDivSqrt), None);
        }
    }

    #[test]
    fn unequal_cores_get_no_raw_numbers() {
        let family = family_of(&Cpu {
            is_hybrid: true,
            ..cpu(Vendor::Intel, 6, 0x8f)
        });
        assert!(family.events.iter().all(|e| e.kind == Kind::Hardware));
    }

    #[test]
    fn family_and_model_are_put_together_as_the_manuals_say() {
        // EPYC 7763 (Zen 3), Xeon Gold 6142 (Skylake).
        assert_eq!(family_and_model(0x00a0_0f11), (0x19, 0x01));
        assert_eq!(family_and_model(0x0005_0654), (6, 0x55));
    }

    #[test]
    fn counters_are_those_that_cpuid_says() {
        // Skylake with hyper-threading: version 4, 4 general counters of 48 bits; 3 fixed.
        assert_eq!(intel_counters(0x0730_0404, 0x603), (4, true));
        // A guest without a PMU.
        assert_eq!(intel_counters(0, 0), (0, false));
    }
}
