//! What is refused, and that the rest passes.

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_800_000_000 * SECOND_NS;

fn good_hello() -> v1::Hello {
    v1::Hello {
        host: "host-1.example".into(),
        instance: "0f8fad5b-d9cb-469f-a165-70867728950e".into(),
        agent_version: "0.1.0".into(),
        kernel_release: "6.12.0-amd64".into(),
        started_unix_ns: NOW,
    }
}

fn good_tenant(key: &str) -> v1::TenantWindow {
    v1::TenantWindow {
        key: key.into(),
        kind: v1::TenantKind::Droplet.into(),
        name: "web".into(),
        vmm: "qemu".into(),
        vcpus: 2,
        cpu: Some(v1::Cpu {
            threads: 5,
            on_cpu_ns: 20 * SECOND_NS,
            vcpu_on_cpu_ns: 19 * SECOND_NS,
            ..v1::Cpu::default()
        }),
        evidence: Some(TenantEvidence::default().into()),
        verdict: Some(davy_evidence::verdict(&TenantEvidence::default()).into()),
        ..v1::TenantWindow::default()
    }
}

fn good_window() -> v1::Window {
    v1::Window {
        sequence: 1,
        start_unix_ns: NOW - 10 * SECOND_NS,
        end_unix_ns: NOW,
        tenants: vec![good_tenant("qemu:a"), good_tenant("qemu:b")],
        lost_windows: 0,
        sensors: vec![v1::SensorStatus {
            sensor: "fp_rounding".into(),
            state: v1::SensorState::Live.into(),
            reason: String::new(),
        }],
    }
}

fn reason_after(change: impl FnOnce(&mut v1::Window)) -> Option<Reason> {
    let mut changed = good_window();
    change(&mut changed);
    window(changed, NOW).err().map(|refusal| refusal.reason)
}

fn tenant_reason_after(change: impl FnOnce(&mut v1::TenantWindow)) -> Option<Reason> {
    reason_after(|window| change(&mut window.tenants[1]))
}

fn evidence_reason_after(
    change: impl FnOnce(&mut v1::FpRounding, &mut v1::RegisterRandomness),
) -> Option<Reason> {
    tenant_reason_after(|tenant| {
        let evidence = tenant.evidence.as_mut().unwrap();
        let (fp, rr) = (&mut evidence.fp_rounding, &mut evidence.register_randomness);
        change(fp.as_mut().unwrap(), rr.as_mut().unwrap());
    })
}

#[test]
fn good_messages_pass() {
    assert_eq!(hello(&good_hello(), NOW), Ok(()));
    let valid = window(good_window(), NOW).unwrap();
    assert_eq!(valid.tenants.len(), 2);
    assert_eq!(valid.tenants[0].evidence, TenantEvidence::default());
    assert_eq!(reason_after(|window| window.tenants.clear()), None);
    assert_eq!(tenant_reason_after(|tenant| tenant.cpu = None), None);
}

#[test]
fn hellos_with_bad_fields_are_refused() {
    let refused = |change: &dyn Fn(&mut v1::Hello)| {
        let mut changed = good_hello();
        change(&mut changed);
        hello(&changed, NOW).err().map(|refusal| refusal.reason) == Some(Reason::BadHello)
    };
    assert!(refused(&|hello| hello.host.clear()));
    assert!(refused(&|hello| hello.host = "a b".into()));
    assert!(refused(&|hello| hello.host = "ä".into()));
    assert!(refused(&|hello| hello.host = "a".repeat(254)));
    assert!(!refused(&|hello| hello.host = "a".repeat(253)));
    assert!(refused(&|hello| hello.instance = "one".into()));
    assert!(refused(
        &|hello| hello.instance = hello.instance.replace('0', "g")
    ));
    assert!(refused(&|hello| hello.agent_version = "1\u{1b}[2J".into()));
    assert!(refused(&|hello| hello.kernel_release = "x".repeat(257)));
    assert!(refused(
        &|hello| hello.started_unix_ns = NOW + FUTURE_MAX_NS + 1
    ));
    assert!(!refused(
        &|hello| hello.started_unix_ns = NOW + FUTURE_MAX_NS
    ));
}

#[test]
fn spans_that_cannot_be_are_refused() {
    assert_eq!(
        reason_after(|window| window.start_unix_ns = window.end_unix_ns),
        Some(Reason::BadSpan)
    );
    assert_eq!(
        reason_after(|window| window.start_unix_ns = u64::MAX),
        Some(Reason::BadSpan)
    );
    assert_eq!(
        reason_after(|window| window.start_unix_ns = NOW - WINDOW_SPAN_MAX_NS - 1),
        Some(Reason::BadSpan)
    );
    assert_eq!(
        reason_after(|window| window.start_unix_ns = NOW - WINDOW_SPAN_MAX_NS),
        None
    );
}

#[test]
fn windows_from_the_past_and_the_future_are_refused() {
    let ending = |end: u64| {
        reason_after(|window| {
            (window.start_unix_ns, window.end_unix_ns) = (end - 10 * SECOND_NS, end);
        })
    };
    assert_eq!(ending(NOW + FUTURE_MAX_NS), None);
    assert_eq!(ending(NOW + FUTURE_MAX_NS + 1), Some(Reason::Future));
    assert_eq!(ending(NOW - PAST_MAX_NS), None);
    assert_eq!(ending(NOW - PAST_MAX_NS - 1), Some(Reason::Past));
}

#[test]
fn too_many_of_anything_is_refused() {
    let with_tenants = |count: usize| {
        reason_after(|window| {
            window.tenants = (0..count)
                .map(|n| good_tenant(&format!("pid:{n}")))
                .collect();
        })
    };
    assert_eq!(with_tenants(TENANTS_MAX), None);
    assert_eq!(with_tenants(TENANTS_MAX + 1), Some(Reason::TooManyTenants));
    let sensor = good_window().sensors[0].clone();
    assert_eq!(
        reason_after(|window| window.sensors = vec![sensor; SENSORS_MAX + 1]),
        Some(Reason::BadSensors)
    );
    assert_eq!(
        reason_after(|window| window.lost_windows = u64::MAX),
        Some(Reason::BadSequence)
    );
}

#[test]
fn sensors_need_a_name_and_a_state() {
    assert_eq!(
        reason_after(|window| window.sensors[0].sensor.clear()),
        Some(Reason::BadSensors)
    );
    assert_eq!(
        reason_after(|window| window.sensors[0].sensor = "Cpu 1".into()),
        Some(Reason::BadSensors)
    );
    assert_eq!(
        reason_after(|window| window.sensors[0].state = 0),
        Some(Reason::BadSensors)
    );
    assert_eq!(
        reason_after(|window| window.sensors[0].state = 99),
        Some(Reason::BadSensors)
    );
    assert_eq!(
        reason_after(|window| window.sensors[0].reason = "a\nb".into()),
        Some(Reason::BadSensors)
    );
}

#[test]
fn tenants_need_a_usable_identity() {
    assert_eq!(
        tenant_reason_after(|tenant| tenant.key.clear()),
        Some(Reason::BadTenant)
    );
    assert_eq!(
        tenant_reason_after(|tenant| tenant.key = "qemu:a".into()),
        Some(Reason::BadTenant)
    );
    assert_eq!(
        tenant_reason_after(|tenant| tenant.key = "k".repeat(KEY_BYTES_MAX + 1)),
        Some(Reason::BadTenant)
    );
    assert_eq!(
        tenant_reason_after(|tenant| tenant.name = "\u{7}".into()),
        Some(Reason::BadTenant)
    );
    assert_eq!(
        tenant_reason_after(|tenant| tenant.kind = 0),
        Some(Reason::BadTenant)
    );
    assert_eq!(
        tenant_reason_after(|tenant| tenant.vcpus = 8193),
        Some(Reason::BadTenant)
    );
}

#[test]
fn cpu_figures_that_cannot_be_are_refused() {
    let after = |change: &dyn Fn(&mut v1::Cpu)| {
        tenant_reason_after(|tenant| change(tenant.cpu.as_mut().unwrap()))
    };
    assert_eq!(after(&|cpu| cpu.threads = u32::MAX), Some(Reason::BadCpu));
    assert_eq!(after(&|cpu| cpu.on_cpu_ns = u64::MAX), Some(Reason::BadCpu));
    assert_eq!(
        after(&|cpu| cpu.vcpu_on_cpu_ns = cpu.on_cpu_ns + 1),
        Some(Reason::BadCpu)
    );
    assert_eq!(after(&|cpu| cpu.guest_ns = u64::MAX), Some(Reason::BadCpu));
    assert_eq!(
        after(&|cpu| cpu.run_queue_wait_ns = u64::MAX),
        Some(Reason::BadCpu)
    );
    assert_eq!(
        after(&|cpu| cpu.voluntary_switches = u64::MAX),
        Some(Reason::BadCpu)
    );
}

#[test]
fn waits_that_cannot_be_are_refused() {
    let after = |change: &dyn Fn(&mut v1::Waits)| {
        let mut waits = v1::Waits {
            behind: vec![v1::WaitedBehind {
                command: "kworker/0:1".to_owned(),
                pid: 7,
                ns: 5,
                ..v1::WaitedBehind::default()
            }],
            ..v1::Waits::default()
        };
        change(&mut waits);
        tenant_reason_after(|tenant| tenant.waits = Some(waits.clone()))
    };
    let bad = Some(Reason::BadCpu);
    assert_eq!(after(&|_| ()), None);
    assert_eq!(after(&|waits| waits.unknown_ns = u64::MAX), bad);
    assert_eq!(after(&|waits| waits.behind[0].ns = u64::MAX), bad);
    assert_eq!(
        after(&|waits| waits.behind[0].command = "a\nb".to_owned()),
        bad
    );
    assert_eq!(
        after(&|waits| waits.behind[0].tenant_key = "k".repeat(KEY_BYTES_MAX + 1)),
        bad
    );
    assert_eq!(
        after(&|waits| waits.behind = vec![v1::WaitedBehind::default(); 17]),
        bad
    );
}

#[test]
fn evidence_that_cannot_be_is_refused() {
    let bad = Some(Reason::BadEvidence);
    assert_eq!(tenant_reason_after(|tenant| tenant.evidence = None), bad);
    assert_eq!(evidence_reason_after(|fp, _| fp.state = 0), bad);
    assert_eq!(evidence_reason_after(|fp, _| fp.modes.truncate(3)), bad);
    assert_eq!(evidence_reason_after(|fp, _| fp.modes[2] = u64::MAX), bad);
    assert_eq!(evidence_reason_after(|fp, _| fp.llr[0] = f64::NAN), bad);
    assert_eq!(evidence_reason_after(|fp, _| fp.duty = f64::INFINITY), bad);
    assert_eq!(evidence_reason_after(|fp, _| fp.duty = -0.5), bad);
    assert_eq!(
        evidence_reason_after(|fp, _| fp.concluded_on_cpu_ns = u64::MAX),
        bad
    );
    assert_eq!(evidence_reason_after(|_, rr| rr.any_llr = f64::NAN), bad);
    assert_eq!(evidence_reason_after(|_, rr| rr.random = 1), bad);
    assert_eq!(
        evidence_reason_after(
            |_, rr| (rr.samples, rr.directed_samples, rr.directed_random) = (3, 2, 3)
        ),
        bad
    );
}

#[test]
fn figures_of_guests_that_cannot_be_are_refused() {
    let bad = Some(Reason::BadEvidence);
    let exits_after = |change: &dyn Fn(&mut v1::KvmExits)| {
        tenant_reason_after(|tenant| {
            let mut exits = v1::KvmExits {
                state: v1::SensorState::Live.into(),
                observed_ns: SECOND_NS,
                exits: 10,
                halts: Some(3),
                ..v1::KvmExits::default()
            };
            change(&mut exits);
            tenant.evidence.as_mut().unwrap().kvm_exits = Some(exits);
        })
    };
    assert_eq!(exits_after(&|_| {}), None);
    assert_eq!(exits_after(&|exits| exits.exits = u64::MAX), bad);
    assert_eq!(exits_after(&|exits| exits.observed_ns = u64::MAX), bad);
    assert_eq!(exits_after(&|exits| exits.halts = Some(u64::MAX)), bad);
    assert_eq!(exits_after(&|exits| exits.state = 0), bad);

    let msrs_after = |prefetcher_writes| {
        tenant_reason_after(|tenant| {
            tenant.evidence.as_mut().unwrap().msr_writes = Some(v1::MsrWrites {
                state: v1::SensorState::Live.into(),
                prefetcher_writes,
                prefetcher_writes_watched: 4,
            });
        })
    };
    assert_eq!(msrs_after(4), None);
    assert_eq!(msrs_after(5), bad);
    let polled =
        |ns| tenant_reason_after(|tenant| tenant.cpu.as_mut().unwrap().halt_poll_ns = Some(ns));
    assert_eq!(polled(1), None);
    assert_eq!(polled(u64::MAX), Some(Reason::BadCpu));
}

#[test]
fn conclusions_that_their_own_sums_contradict_are_refused() {
    let bad = Some(Reason::BadEvidence);
    assert_eq!(evidence_reason_after(|fp, _| fp.concluded = true), bad);
    assert_eq!(evidence_reason_after(|_, rr| rr.any_concluded = true), bad);
    assert_eq!(
        evidence_reason_after(|_, rr| rr.directed_concluded = true),
        bad
    );
    assert_eq!(evidence_reason_after(|_, rr| rr.any_llr = 40.0), bad);
    assert_eq!(evidence_reason_after(|fp, _| fp.llr = vec![40.0; 4]), bad);
    assert_eq!(evidence_reason_after(|fp, _| fp.llr[0] = 74.0), bad);
    assert_eq!(evidence_reason_after(|fp, _| fp.concluded_threads = 1), bad);
    let concluded = |least: f64| {
        evidence_reason_after(|fp, rr| {
            fp.llr = vec![least, 40.0, 73.0, 50.0];
            (fp.concluded, fp.concluded_threads) = (true, 1);
            (rr.any_llr, rr.any_concluded) = (least, true);
        })
    };
    // Concluded before, and falling since.
    assert_eq!(concluded(0.5), None);
    assert_eq!(concluded(0.0), bad);
}

#[test]
fn counters_that_cannot_be_are_refused_and_their_absence_is_not() {
    let after = |change: fn(&mut v1::Pmu)| {
        tenant_reason_after(|tenant| {
            let mut pmu = v1::Pmu::from(&davy_evidence::Pmu {
                time_enabled_ns: SECOND_NS,
                ..davy_evidence::Pmu::default()
            });
            change(&mut pmu);
            tenant.evidence.as_mut().unwrap().pmu = Some(pmu);
        })
    };
    let bad = Some(Reason::BadEvidence);
    assert_eq!(after(|_| {}), None);
    assert_eq!(after(|p| p.state = 0), bad);
    assert_eq!(after(|p| p.matches = 1), bad);
    assert_eq!(after(|p| p.turns = u64::MAX), bad);
    assert_eq!(after(|p| p.time_running_ns = SECOND_NS + 1), bad);
    assert_eq!(after(|p| p.time_enabled_ns = u64::MAX), bad);
    assert_eq!(after(|p| p.cycles = u64::MAX), bad);
    assert_eq!(after(|p| p.instructions = u64::MAX), bad);
    assert_eq!(after(|p| p.mix_concluded = true), bad);
    assert_eq!(after(|p| p.mix_llr = 40.0), bad);
    let rate = |p: &mut v1::Pmu| {
        (p.hash_rate_low, p.hash_rate_high) = (Some(1.0), Some(2.0));
    };
    assert_eq!(after(rate), bad);
    assert_eq!(
        after(|p| {
            (p.mix_llr, p.mix_concluded) = (40.0, true);
            (p.hash_rate_low, p.hash_rate_high) = (Some(1.0), Some(2.0));
        }),
        None
    );
}

#[test]
fn a_proposal_needs_a_known_level() {
    assert_eq!(
        tenant_reason_after(|tenant| tenant.verdict = None),
        Some(Reason::BadVerdict)
    );
    assert_eq!(
        tenant_reason_after(|tenant| tenant.verdict.as_mut().unwrap().level = 0),
        Some(Reason::BadVerdict)
    );
    assert_eq!(
        tenant_reason_after(|tenant| tenant.verdict.as_mut().unwrap().level = 9),
        Some(Reason::BadVerdict)
    );
}

proptest! {
    /// Whatever the times are, nothing panics, and what passes keeps the bounds.
    #[test]
    fn any_times_are_judged(start: u64, end: u64, now: u64) {
        let given = v1::Window { start_unix_ns: start, end_unix_ns: end, ..v1::Window::default() };
        if let Ok(valid) = window(given, now) {
            prop_assert!(valid.end_unix_ns > valid.start_unix_ns);
            prop_assert!(valid.end_unix_ns - valid.start_unix_ns <= WINDOW_SPAN_MAX_NS);
            prop_assert!(valid.end_unix_ns <= now.saturating_add(FUTURE_MAX_NS));
        }
    }

    /// Whatever the figures are, nothing panics, and what passes fits the store's signed integers.
    #[test]
    fn any_figures_are_judged(on_cpu: u64, vcpu: u64, guest: u64, wait: u64, modes: [u64; 4], duty: f64) {
        let mut given = good_window();
        let tenant = &mut given.tenants[0];
        *tenant.cpu.as_mut().unwrap() = v1::Cpu {
            on_cpu_ns: on_cpu, vcpu_on_cpu_ns: vcpu, guest_ns: guest, run_queue_wait_ns: wait, ..v1::Cpu::default()
        };
        let fp = tenant.evidence.as_mut().unwrap().fp_rounding.as_mut().unwrap();
        fp.modes = modes.to_vec();
        fp.duty = duty;
        if let Ok(valid) = window(given, NOW) {
            let fp = valid.tenants[0].evidence.fp_rounding;
            prop_assert!(fp.duty.is_finite() && fp.duty >= 0.0);
            prop_assert!(fp.modes.iter().all(|samples| i64::try_from(*samples).is_ok()));
        }
    }
}
