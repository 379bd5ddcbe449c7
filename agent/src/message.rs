//! A closed window's tenants as messages. Pure.

use davy_evidence::{Level, TenantEvidence, Verdict};
use davy_proto::v1;

use crate::{
    sensor::kvm_exits::GuestWindow,
    tenant::{Kind, Tenant},
    window::WindowSums,
};

/// A sensor's reason is cut to this on the wire, bytes.
pub(crate) const REASON_BYTES_MAX: usize = 1_000;

/// At most `max` of the messages, the highest verdicts first, then those with the most CPU time; and how many are left out.
pub(crate) fn most_telling(
    mut tenants: Vec<(Level, v1::TenantWindow)>,
    max: usize,
) -> (Vec<v1::TenantWindow>, u64) {
    let left_out = tenants.len().saturating_sub(max);
    if left_out > 0 {
        let on_cpu_ns = |tenant: &v1::TenantWindow| tenant.cpu.map_or(0, |cpu| cpu.on_cpu_ns);
        tenants.sort_by_key(|(level, tenant)| std::cmp::Reverse((*level, on_cpu_ns(tenant))));
        tenants.truncate(max);
    }
    let tenants = tenants.into_iter().map(|(_, tenant)| tenant).collect();
    (tenants, u64::try_from(left_out).unwrap_or(u64::MAX))
}

/// A sensor's reason as it may go on the wire.
pub(crate) fn cut(mut reason: String) -> String {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.truncate(end);
    reason
}

/// One tenant's window; without its waits.
pub(crate) fn message(
    tenant: &Tenant,
    sums: &WindowSums,
    guest: Option<&GuestWindow>,
    evidence: &TenantEvidence,
    verdict: &Verdict,
) -> v1::TenantWindow {
    let (kind, vmm) = match &tenant.kind {
        Kind::Droplet { vmm, .. } => (v1::TenantKind::Droplet, vmm.as_str()),
        Kind::Cgroup { .. } => (v1::TenantKind::Cgroup, ""),
        Kind::Process { .. } => (v1::TenantKind::Process, ""),
    };
    v1::TenantWindow {
        key: tenant.key.clone(),
        kind: kind.into(),
        name: tenant.name.clone(),
        droplet_id: tenant.droplet_id.clone(),
        vmm: vmm.to_owned(),
        vcpus: tenant.vcpus,
        cpu: Some(v1::Cpu {
            threads: sums.threads,
            on_cpu_ns: sums.cpu.on_cpu_ns,
            vcpu_on_cpu_ns: sums.vcpu_on_cpu_ns,
            guest_ns: sums.cpu.guest_ns,
            run_queue_wait_ns: sums.cpu.run_queue_wait_ns,
            voluntary_switches: sums.cpu.voluntary_switches,
            involuntary_switches: sums.cpu.involuntary_switches,
            halt_poll_ns: guest
                .and_then(|guest| guest.halt_poll)
                .map(|poll| poll.total_ns()),
        }),
        evidence: Some(v1::Evidence::from(evidence)),
        verdict: Some(v1::Verdict::from(verdict)),
        waits: None,
    }
}
