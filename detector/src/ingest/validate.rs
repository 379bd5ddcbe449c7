//! Whether what an agent sent can be true: the host's name, a window's span, each tenant's identity and figures.
//!
//! Pure: the time is an argument. A window is taken whole or refused whole, because a window with some tenants
//! missing would look as if those were gone. What passes is a [`ValidWindow`], in which evidence is already the
//! domain's type; nothing later looks at unchecked figures.
//!
//! Control characters are refused in every text, so that nothing an agent sends can steer a terminal or a log.

use std::collections::HashSet;

use davy_evidence::{
    Level, Pmu, TenantEvidence, fp_rounding, pmu,
    register_randomness::{self, Standing},
};
use davy_proto::{convert, v1};

use super::reason::{Malformed, Reason};

const MILLISECOND_NS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000 * MILLISECOND_NS;

/// Longest window, ns (1 h).
pub const WINDOW_SPAN_MAX_NS: u64 = 3_600 * SECOND_NS;
/// How far after the detector's clock a window may end, and an agent may have started, ns (5 min).
pub const FUTURE_MAX_NS: u64 = 300 * SECOND_NS;
/// How long before the detector's clock a window may have ended, ns (24 h).
pub const PAST_MAX_NS: u64 = 24 * 3_600 * SECOND_NS;
/// Most tenants in one window.
pub const TENANTS_MAX: usize = 4096;
/// Most sensors in one window.
pub const SENSORS_MAX: usize = 32;
/// Longest host name, characters (RFC 1035 §2.3.4, as text).
pub const HOST_CHARS_MAX: usize = 253;
/// Longest tenant key, bytes. A cgroup's path is part of a key, and may be long.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest name, droplet id, VMM name, version or release, bytes.
pub const TEXT_BYTES_MAX: usize = 256;
/// Longest reason for a sensor's state, bytes.
pub const SENSOR_REASON_BYTES_MAX: usize = 1024;
/// Most CPUs a tenant can have used at once: the kernel's largest `CONFIG_NR_CPUS` on x86 (arch/x86/Kconfig, `NR_CPUS_RANGE_END`).
pub const CPUS_MAX: u64 = 8192;
/// Most threads of a tenant: the kernel's `PID_MAX_LIMIT` (include/linux/threads.h).
pub const THREADS_MAX: u32 = 4 * 1024 * 1024;
/// Largest count of samples or switches in a window: more would be above 10^8 per CPU and second, for the longest window on the most CPUs.
const COUNT_MAX: u64 = CPUS_MAX * 3_600 * 100_000_000;
/// What CPU time may exceed the span by, per CPU: a thread's figures are not read in the same instant as the window closes.
const SPAN_SLACK_NS: u64 = 60 * SECOND_NS;

/// A window that passed [`window`].
#[derive(Clone, Debug, PartialEq)]
pub struct ValidWindow {
    /// Its sequence; still to be judged by [`super::sequence::step`].
    pub sequence: u64,
    /// Start, ns since the Unix epoch.
    pub start_unix_ns: u64,
    /// End, ns since the Unix epoch.
    pub end_unix_ns: u64,
    /// Windows the agent says it dropped before this one.
    pub lost_windows: u64,
    /// The host's sensors.
    pub sensors: Vec<v1::SensorStatus>,
    /// The tenants; their keys differ.
    pub tenants: Vec<ValidTenant>,
}

/// A tenant of a [`ValidWindow`].
#[derive(Clone, Debug, PartialEq)]
pub struct ValidTenant {
    /// As received.
    pub window: v1::TenantWindow,
    /// Its evidence, checked.
    pub evidence: TenantEvidence,
    /// The level the agent proposes.
    pub proposed: Level,
}

fn refuse<T>(reason: Reason, detail: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed::new(reason, detail))
}

fn text(value: &str, what: &str, bytes_max: usize, reason: Reason) -> Result<(), Malformed> {
    if value.len() > bytes_max {
        return refuse(
            reason,
            format!("{what} has {} bytes, more than {bytes_max}", value.len()),
        );
    }
    if value.chars().any(char::is_control) {
        return refuse(reason, format!("{what} {value:?} has control characters"));
    }
    Ok(())
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups
            .iter()
            .all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Checks an agent's first message at the detector's time `now_unix_ns`.
///
/// # Errors
/// [`Reason::BadHello`] with what is wrong.
pub fn hello(hello: &v1::Hello, now_unix_ns: u64) -> Result<(), Malformed> {
    let v1::Hello {
        host,
        instance,
        agent_version,
        kernel_release,
        started_unix_ns,
    } = hello;
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if host.is_empty() || host.len() > HOST_CHARS_MAX || !host.bytes().all(usable) {
        return refuse(
            Reason::BadHello,
            format!(
                "the host's name must be 1 to {HOST_CHARS_MAX} characters of A-Z a-z 0-9 . _ -, not {host:?}"
            ),
        );
    }
    if !is_uuid(instance) {
        return refuse(
            Reason::BadHello,
            format!("the agent's instance must be a UUID, not {instance:?}"),
        );
    }
    text(
        agent_version,
        "the agent's version",
        TEXT_BYTES_MAX,
        Reason::BadHello,
    )?;
    text(
        kernel_release,
        "the kernel's release",
        TEXT_BYTES_MAX,
        Reason::BadHello,
    )?;
    if *started_unix_ns > now_unix_ns.saturating_add(FUTURE_MAX_NS) {
        return refuse(
            Reason::BadHello,
            format!(
                "the agent started {} s in the future; set the clock of host {host:?}",
                (started_unix_ns - now_unix_ns) / SECOND_NS
            ),
        );
    }
    Ok(())
}

/// Checks a window at the detector's time `now_unix_ns`.
///
/// # Errors
/// The first thing found wrong.
pub fn window(window: v1::Window, now_unix_ns: u64) -> Result<ValidWindow, Malformed> {
    let v1::Window {
        sequence,
        start_unix_ns,
        end_unix_ns,
        tenants,
        lost_windows,
        sensors: states,
    } = window;
    let span_ns = span(start_unix_ns, end_unix_ns, now_unix_ns)?;
    if lost_windows > super::sequence::SEQUENCE_JUMP_MAX {
        return refuse(
            Reason::BadSequence,
            format!("{lost_windows} lost windows cannot be"),
        );
    }
    sensors(&states)?;
    if tenants.len() > TENANTS_MAX {
        return refuse(
            Reason::TooManyTenants,
            format!("{} tenants, more than {TENANTS_MAX}", tenants.len()),
        );
    }
    let mut keys = HashSet::with_capacity(tenants.len());
    if let Some(twice) = tenants
        .iter()
        .find(|tenant| !keys.insert(tenant.key.as_str()))
    {
        return refuse(
            Reason::BadTenant,
            format!("tenant {:?} occurs twice", twice.key),
        );
    }
    let tenants = tenants
        .into_iter()
        .map(|one| tenant(one, span_ns))
        .collect::<Result<_, _>>()?;
    Ok(ValidWindow {
        sequence,
        start_unix_ns,
        end_unix_ns,
        lost_windows,
        sensors: states,
        tenants,
    })
}

/// The span's length, ns.
fn span(start_unix_ns: u64, end_unix_ns: u64, now_unix_ns: u64) -> Result<u64, Malformed> {
    if end_unix_ns <= start_unix_ns {
        return refuse(Reason::BadSpan, "the window does not end after its start");
    }
    let span_ns = end_unix_ns - start_unix_ns;
    if span_ns > WINDOW_SPAN_MAX_NS {
        return refuse(
            Reason::BadSpan,
            format!(
                "the window is {} s long, more than {}",
                span_ns / SECOND_NS,
                WINDOW_SPAN_MAX_NS / SECOND_NS
            ),
        );
    }
    if end_unix_ns > now_unix_ns.saturating_add(FUTURE_MAX_NS) {
        let ahead_s = (end_unix_ns - now_unix_ns) / SECOND_NS;
        return refuse(
            Reason::Future,
            format!("the window ends {ahead_s} s in the future; set the host's clock"),
        );
    }
    if end_unix_ns < now_unix_ns.saturating_sub(PAST_MAX_NS) {
        let age_s = (now_unix_ns - end_unix_ns) / SECOND_NS;
        return refuse(
            Reason::Past,
            format!(
                "the window ended {age_s} s ago, more than {}",
                PAST_MAX_NS / SECOND_NS
            ),
        );
    }
    Ok(span_ns)
}

fn sensors(states: &[v1::SensorStatus]) -> Result<(), Malformed> {
    if states.len() > SENSORS_MAX {
        return refuse(
            Reason::BadSensors,
            format!("{} sensors, more than {SENSORS_MAX}", states.len()),
        );
    }
    for v1::SensorStatus {
        sensor,
        state,
        reason,
    } in states
    {
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if sensor.is_empty() || sensor.len() > 64 || !sensor.bytes().all(word) {
            return refuse(
                Reason::BadSensors,
                format!("{sensor:?} is no sensor's name"),
            );
        }
        convert::sensor_state("sensors.state", *state).map_err(|error| {
            Malformed::new(Reason::BadSensors, format!("sensor {sensor}: {error}"))
        })?;
        text(
            reason,
            "a sensor's reason",
            SENSOR_REASON_BYTES_MAX,
            Reason::BadSensors,
        )?;
    }
    Ok(())
}

fn tenant(window: v1::TenantWindow, span_ns: u64) -> Result<ValidTenant, Malformed> {
    let v1::TenantWindow {
        key,
        kind,
        name,
        droplet_id,
        vmm,
        vcpus,
        cpu: figures,
        evidence,
        verdict,
        waits: waited,
    } = &window;
    if key.is_empty() {
        return refuse(Reason::BadTenant, "a tenant has no key");
    }
    text(key, "a tenant's key", KEY_BYTES_MAX, Reason::BadTenant)?;
    if matches!(
        v1::TenantKind::try_from(*kind),
        Err(_) | Ok(v1::TenantKind::Unspecified)
    ) {
        return refuse(
            Reason::BadTenant,
            format!("tenant {key:?} is of no known kind ({kind})"),
        );
    }
    for (value, what) in [
        (name, "a tenant's name"),
        (droplet_id, "a droplet id"),
        (vmm, "a VMM's name"),
    ] {
        text(value, what, TEXT_BYTES_MAX, Reason::BadTenant)?;
    }
    if u64::from(*vcpus) > CPUS_MAX {
        return refuse(
            Reason::BadTenant,
            format!("tenant {key:?} has {vcpus} vCPUs, more than {CPUS_MAX}"),
        );
    }
    // Absent CPU figures are unknown, and stay unknown; absent evidence is a defect: its states say what is unknown.
    if let Some(figures) = figures {
        cpu(figures, span_ns).map_err(|detail| {
            Malformed::new(Reason::BadCpu, format!("tenant {key:?}: {detail}"))
        })?;
    }
    if let Some(waited) = waited {
        waits(waited).map_err(|detail| {
            Malformed::new(Reason::BadCpu, format!("tenant {key:?}: {detail}"))
        })?;
    }
    let Some(evidence) = evidence else {
        return refuse(
            Reason::BadEvidence,
            format!("tenant {key:?} has no evidence"),
        );
    };
    let evidence = checked_evidence(evidence, span_ns).map_err(|detail| {
        Malformed::new(Reason::BadEvidence, format!("tenant {key:?}: {detail}"))
    })?;
    // Only the level is looked at: the detector finds its own reasons.
    let level = verdict.as_ref().map_or(0, |verdict| verdict.level);
    let proposed = convert::verdict_level("verdict.level", level)
        .map_err(|error| Malformed::new(Reason::BadVerdict, format!("tenant {key:?}: {error}")))?;
    Ok(ValidTenant {
        window,
        evidence,
        proposed,
    })
}

fn cpu(figures: &v1::Cpu, span_ns: u64) -> Result<(), String> {
    let v1::Cpu {
        threads,
        on_cpu_ns,
        vcpu_on_cpu_ns,
        guest_ns,
        run_queue_wait_ns,
        voluntary_switches,
        involuntary_switches,
        halt_poll_ns,
    } = *figures;
    if threads > THREADS_MAX {
        return Err(format!("{threads} threads, more than {THREADS_MAX}"));
    }
    let cpu_ns_max = CPUS_MAX * (span_ns + SPAN_SLACK_NS);
    for (ns, what) in [(on_cpu_ns, "on_cpu_ns"), (guest_ns, "guest_ns")] {
        if ns > cpu_ns_max {
            return Err(format!(
                "{what} {ns} is more than {CPUS_MAX} CPUs have in the window"
            ));
        }
    }
    if vcpu_on_cpu_ns > on_cpu_ns {
        return Err(format!(
            "vcpu_on_cpu_ns {vcpu_on_cpu_ns} is part of on_cpu_ns {on_cpu_ns}, and cannot be more"
        ));
    }
    // A wait may have begun long before the window and is booked as it ends.
    if run_queue_wait_ns > i64::MAX.unsigned_abs() {
        return Err(format!("run_queue_wait_ns {run_queue_wait_ns} cannot be"));
    }
    if halt_poll_ns.is_some_and(|ns| ns > cpu_ns_max) {
        return Err("halt_poll_ns is more than all CPUs have in the window".to_owned());
    }
    for (count, what) in [
        (voluntary_switches, "voluntary_switches"),
        (involuntary_switches, "involuntary_switches"),
    ] {
        count_in_range(count, what)?;
    }
    Ok(())
}

/// Most processes a tenant's waits may name.
const BEHIND_MAX: usize = 16;

fn waits(waits: &v1::Waits) -> Result<(), String> {
    let v1::Waits {
        behind,
        others_ns,
        idle_ns,
        unknown_ns,
    } = waits;
    if behind.len() > BEHIND_MAX {
        return Err(format!(
            "waits behind {} processes, more than {BEHIND_MAX}",
            behind.len()
        ));
    }
    let mut sum_ns = u128::from(*others_ns) + u128::from(*idle_ns) + u128::from(*unknown_ns);
    for of in behind {
        let v1::WaitedBehind {
            tenant_key,
            command,
            pid,
            ns,
        } = of;
        if tenant_key.len() > KEY_BYTES_MAX || command.len() > TEXT_BYTES_MAX {
            return Err(format!("the name of process {pid} is too long"));
        }
        if tenant_key
            .chars()
            .chain(command.chars())
            .any(char::is_control)
        {
            return Err(format!("the name of process {pid} has control characters"));
        }
        sum_ns += u128::from(*ns);
    }
    // As with run_queue_wait_ns: a wait may have begun long before the window.
    if sum_ns > u128::from(i64::MAX.unsigned_abs()) {
        return Err(format!("waits of {sum_ns} ns cannot be"));
    }
    Ok(())
}

fn count_in_range(count: u64, what: &str) -> Result<(), String> {
    if count > COUNT_MAX {
        return Err(format!("{what} {count} cannot be"));
    }
    Ok(())
}

fn checked_evidence(wire: &v1::Evidence, span_ns: u64) -> Result<TenantEvidence, String> {
    let evidence = TenantEvidence::try_from(wire).map_err(|error| error.to_string())?;
    let fp = &evidence.fp_rounding;
    for (mode, samples) in fp.modes.iter().enumerate() {
        count_in_range(*samples, &format!("fp_rounding.modes[{mode}]"))?;
    }
    // As an agent would resume it: a conclusion its own sums contradict is none, and could not be carried over.
    fp_rounding::Test::resume(fp.llr, fp.test_samples, fp.concluded)
        .map_err(|error| error.to_string())?;
    if fp.concluded_threads > 0 && !fp.concluded {
        return Err(format!(
            "fp_rounding.concluded_threads is {} though no test stands concluded",
            fp.concluded_threads
        ));
    }
    if fp.concluded_on_cpu_ns > CPUS_MAX * (span_ns + SPAN_SLACK_NS) {
        return Err(format!(
            "fp_rounding.concluded_on_cpu_ns {} cannot be",
            fp.concluded_on_cpu_ns
        ));
    }
    guests(&evidence, span_ns)?;
    let rr = &evidence.register_randomness;
    register_randomness::Test::resume(
        Standing {
            llr: rr.any_llr,
            concluded: rr.any_concluded,
            samples: rr.any_test_samples,
        },
        Standing {
            llr: rr.directed_llr,
            concluded: rr.directed_concluded,
            samples: rr.directed_test_samples,
        },
        Standing {
            llr: rr.general_llr,
            concluded: rr.general_concluded,
            samples: rr.general_test_samples,
        },
    )
    .map_err(|error| error.to_string())?;
    count_in_range(rr.samples, "register_randomness.samples")?;
    count_in_range(rr.general_samples, "register_randomness.general_samples")?;
    for (part, whole, what) in [
        (rr.random, rr.samples, "random"),
        (rr.directed_samples, rr.samples, "directed_samples"),
        (rr.directed_random, rr.directed_samples, "directed_random"),
        (rr.general_random, rr.general_samples, "general_random"),
    ] {
        if part > whole {
            return Err(format!(
                "register_randomness.{what} {part} is part of {whole}, and cannot be more"
            ));
        }
    }
    if let Some(pmu) = &evidence.pmu {
        checked_pmu(pmu, span_ns)?;
    }
    Ok(evidence)
}

fn checked_pmu(counted: &Pmu, span_ns: u64) -> Result<(), String> {
    // Far above any CPU: 10 GHz, and 10 instructions per cycle.
    const CYCLES_PER_NS_MAX: u64 = 10;
    const INSTRUCTIONS_PER_NS_MAX: u64 = 100;
    // As for the other tests: what an agent could not resume is refused.
    pmu::Test::resume(counted.mix_llr, counted.mix_turns, counted.mix_concluded)
        .map_err(|error| error.to_string())?;
    let ns_max = CPUS_MAX * (span_ns + SPAN_SLACK_NS);
    for (count, max, what) in [
        (counted.matches, counted.turns, "matches"),
        (counted.turns, COUNT_MAX, "turns"),
        (counted.time_enabled_ns, ns_max, "time_enabled_ns"),
        (
            counted.time_running_ns,
            counted.time_enabled_ns,
            "time_running_ns",
        ),
        (counted.cycles, ns_max * CYCLES_PER_NS_MAX, "cycles"),
        (
            counted.instructions,
            ns_max * INSTRUCTIONS_PER_NS_MAX,
            "instructions",
        ),
    ] {
        if count > max {
            return Err(format!("pmu.{what} {count} is more than {max}"));
        }
    }
    if counted.hash_rate.is_some() && !counted.mix_concluded {
        return Err("pmu.hash_rate is there though no mix stands concluded".to_owned());
    }
    Ok(())
}

/// What is told beside a verdict: counts that cannot be are refused all the same, as they are shown to people.
fn guests(evidence: &TenantEvidence, span_ns: u64) -> Result<(), String> {
    if let Some(exits) = &evidence.kvm_exits {
        count_in_range(exits.exits, "kvm_exits.exits")?;
        if exits.observed_ns > CPUS_MAX * (span_ns + SPAN_SLACK_NS) {
            return Err(format!(
                "kvm_exits.observed_ns {} cannot be",
                exits.observed_ns
            ));
        }
        for (count, what) in [
            (exits.halts, "halts"),
            (exits.io, "io"),
            (exits.mmio, "mmio"),
            (exits.interrupts, "interrupts"),
            (exits.hypercalls, "hypercalls"),
        ] {
            count_in_range(count.unwrap_or(0), &format!("kvm_exits.{what}"))?;
        }
    }
    if let Some(msrs) = &evidence.msr_writes
        && msrs.prefetcher_writes > msrs.prefetcher_writes_watched
    {
        return Err(format!(
            "msr_writes.prefetcher_writes {} is part of {}, and cannot be more",
            msrs.prefetcher_writes, msrs.prefetcher_writes_watched
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
