//! `msr_writes`: a guest's writes to the prefetcher's model-specific registers, which miners make to gain some speed.
//!
//! Hook: the tracepoint `kvm:kvm_msr` (arch/x86/kvm/trace.h), fired on the vCPU's thread for each RDMSR and WRMSR that KVM
//! handles, whether it lets it through or refuses it. Attached only while there are guests. An access that KVM does not
//! intercept is not seen. What is written is not read: only that a register was, and which.

use aya_ebpf::programs::TracePointContext;
use davy_abi::Counter;

use super::kvm_exits::{add_one, begin_write, end_write, field, of_record, record};
use crate::{maps, thread};

/// One access.
#[inline(always)]
pub fn count(ctx: &TracePointContext) {
    let (Some((slot, index)), Some(kvm)) = (thread::running(), maps::kvm()) else {
        return;
    };
    let Some(vcpu) = record(slot, index) else {
        return;
    };
    let write = of_record(ctx, field(&kvm.msr_write));
    let msr = of_record(ctx, field(&kvm.msr_ecx));
    let (Ok(write), Ok(msr)) = (write, msr) else {
        return maps::count(Counter::ReadFailed);
    };
    begin_write(vcpu);
    add_one(&mut vcpu.msr_events);
    if write != 0 {
        match msr {
            // LS_CFG, IC_CFG, DC_CFG; CU_CFG3: AMD's BIOS and Kernel Developer's Guides, and what XMRig writes
            // (src/hw/msr/MsrItem and `RandomX` presets, https://github.com/xmrig/xmrig).
            0xc001_1020..=0xc001_1022 | 0xc001_102b => add_one(&mut vcpu.prefetcher_writes_amd),
            // MSR_MISC_FEATURE_CONTROL: Intel SDM vol. 4, table 2-20, "Prefetcher disable".
            0x1a4 => add_one(&mut vcpu.prefetcher_writes_intel),
            _ => {}
        }
    }
    end_write(vcpu);
}
