//! The observer, driven by a scripted source of readings.

use std::path::Path;

use davy_abi::FLAG_VCPU;

use super::*;
use crate::message::REASON_BYTES_MAX;
use crate::source::script::{Script, ScriptedProcesses};

const SECOND_NS: u64 = 1_000_000_000;

fn observer(processes: ScriptedProcesses) -> Observer<Script, ScriptedProcesses> {
    let text = "[names]\npattern = '^droplet-(?<id>[0-9]+)$'";
    let config = Config::parse(Path::new("test.toml"), text).unwrap();
    let script = Script {
        now_ns: SECOND_NS,
        ..Script::default()
    };
    Observer::new(script, processes, &config)
}

/// An observer of one QEMU with one vCPU in slot 1.
fn observer_of_a_vm() -> Observer<Script, ScriptedProcesses> {
    let mut processes = ScriptedProcesses::default();
    processes.run(100, "qemu-system-x86_64 -name guest=droplet-8");
    let mut observer = observer(processes);
    observer.source.vcpu(1, 100);
    observer
}

fn close(observer: &mut Observer<Script, ScriptedProcesses>) -> v1::Window {
    observer.source.now_ns += 10 * SECOND_NS;
    observer.look();
    let window = observer.close(span(1_000 * SECOND_NS, 10 * SECOND_NS));
    assert_eq!(window.start_unix_ns, 990 * SECOND_NS);
    window
}

fn compute_randomx(observer: &mut Observer<Script, ScriptedProcesses>) {
    let slot = observer.source.slot(1);
    slot.on_cpu_ns += 8 * SECOND_NS;
    slot.guest_ns += 7 * SECOND_NS;
    slot.looks += 450;
    slot.switch_ins += 450;
    for (mode, samples) in [(0, 140), (1, 100), (2, 100), (3, 100)] {
        slot.modes[mode] += samples;
        slot.random[mode] += samples;
    }
    slot.involuntary_looks += 300;
    slot.involuntary_directed += 200;
}

#[test]
fn a_vm_is_reported_from_the_first_window_on() {
    let mut observer = observer_of_a_vm();
    compute_randomx(&mut observer);
    let window = close(&mut observer);
    let [tenant] = &window.tenants[..] else {
        panic!("one tenant, not {:?}", window.tenants);
    };
    assert_eq!(
        (tenant.key.as_str(), tenant.droplet_id.as_str()),
        ("qemu:droplet-8", "8")
    );
    assert_eq!(tenant.kind(), v1::TenantKind::Droplet);
    assert_eq!((tenant.vmm.as_str(), tenant.vcpus), ("qemu", 1));
    let cpu = tenant.cpu.unwrap();
    assert_eq!((cpu.threads, cpu.on_cpu_ns), (1, 8 * SECOND_NS));
    assert_eq!(
        (cpu.vcpu_on_cpu_ns, cpu.guest_ns),
        (8 * SECOND_NS, 7 * SECOND_NS)
    );
    let evidence = tenant.evidence.as_ref().unwrap();
    assert!(evidence.fp_rounding.as_ref().unwrap().concluded);
    let verdict = tenant.verdict.as_ref().unwrap();
    assert!(!verdict.reasons.is_empty());
    assert_ne!(verdict.level(), v1::VerdictLevel::Quiet);
}

#[test]
fn sensors_that_cannot_measure_are_said_so() {
    let mut observer = observer_of_a_vm();
    compute_randomx(&mut observer);
    let window = close(&mut observer);
    let states: Vec<_> = window.sensors.iter().map(v1::SensorStatus::state).collect();
    assert_eq!(
        states,
        [
            v1::SensorState::Live,
            v1::SensorState::Live,
            v1::SensorState::Unsupported,
            v1::SensorState::NeverRan,
            v1::SensorState::NeverRan,
        ]
    );
    assert_eq!(window.sensors[2].reason, "scripted to be absent");
    let evidence = window.tenants[0].evidence.as_ref().unwrap();
    let random = evidence.register_randomness.as_ref().unwrap();
    assert_eq!(random.state(), v1::SensorState::Unsupported);
    let window = close(&mut observer);
    assert_eq!(window.sensors[1].state(), v1::SensorState::Stalled);
}

#[test]
fn a_kernel_half_that_never_fires_is_said_to_have_never_run() {
    let mut observer = observer_of_a_vm();
    // What /proc had when watching began.
    observer.source.slot(1).on_cpu_ns = 5 * SECOND_NS;
    let window = close(&mut observer);
    for sensor in &window.sensors[..2] {
        assert_eq!(sensor.state(), v1::SensorState::NeverRan, "{sensor:?}");
        assert!(sensor.reason.contains("is attached, but"), "{sensor:?}");
    }
    let verdict = window.tenants[0].verdict.as_ref().unwrap();
    assert!(
        verdict.reasons[0].contains("nothing was measured (fp_rounding never ran"),
        "{:?}",
        verdict.reasons
    );
}

#[test]
fn what_is_shed_is_said_and_done() {
    let mut observer = observer_of_a_vm();
    compute_randomx(&mut observer);
    observer.shed(Step::Looks, "too dear".to_owned());
    assert_eq!(observer.source.pace, Some(Duration::MAX));
    let window = close(&mut observer);
    assert_eq!(window.sensors[0].reason, "", "cpu goes on");
    assert_eq!(window.sensors[1].reason, "too dear");
    assert_eq!(window.sensors[2].reason, "scripted to be absent");
    observer.shed(Step::Nothing, String::new());
    assert_eq!(observer.source.pace, Some(Duration::ZERO));
    let window = close(&mut observer);
    assert_eq!(window.sensors[1].state(), v1::SensorState::Stalled);
    assert_eq!(window.sensors[1].reason, "");
}

#[test]
fn waits_are_reported_with_who_was_ahead() {
    let mut observer = observer_of_a_vm();
    observer.processes.run(70, "kworker/0:1");
    let mut waits = davy_abi::Waits {
        waited_ns: 1_000,
        named_ns: 900,
        ..davy_abi::Waits::default()
    };
    for (place, (tgid, ns)) in [(100, 300), (70, 500), (71, 100)].into_iter().enumerate() {
        waits.behind[place] = davy_abi::Behind {
            tgid,
            weight: 0,
            ns,
        };
    }
    observer.source.waits.insert(1, waits);
    let window = close(&mut observer);
    let waits = window.tenants[0].waits.as_ref().unwrap();
    let seen: Vec<_> = waits
        .behind
        .iter()
        .map(|of| (of.tenant_key.as_str(), of.command.as_str(), of.pid, of.ns))
        .collect();
    assert_eq!(
        seen,
        [
            ("", "kworker/0:1", 70, 500),
            ("qemu:droplet-8", "qemu-system-x86_", 100, 300),
            ("", "", 71, 100),
        ]
    );
    assert_eq!(
        (waits.others_ns, waits.idle_ns, waits.unknown_ns),
        (0, 0, 100)
    );
    // Nothing new: all zero, and that is known.
    let window = close(&mut observer);
    assert_eq!(window.tenants[0].waits, Some(v1::Waits::default()));
}

#[test]
fn nothing_to_watch_is_an_empty_window() {
    let mut observer = observer(ScriptedProcesses::default());
    let window = close(&mut observer);
    assert!(window.tenants.is_empty());
    assert_eq!(window.sensors[0].state(), v1::SensorState::NeverRan);
}

#[test]
fn an_ended_vms_last_part_is_reported_and_its_slot_handed_back() {
    let mut observer = observer_of_a_vm();
    close(&mut observer);
    observer.source.slot(1).on_cpu_ns += 5;
    observer.source.end(1);
    assert_eq!(observer.look().released, 1);
    let window = close(&mut observer);
    assert_eq!(window.tenants[0].cpu.unwrap().on_cpu_ns, 5);
    assert!(close(&mut observer).tenants.is_empty());
    assert_eq!(observer.source.released, vec![1]);
}

#[test]
fn stored_tests_go_on_after_a_restart() {
    let mut before = observer_of_a_vm();
    compute_randomx(&mut before);
    let window = close(&mut before);
    let stored = window.tenants[0].evidence.clone().unwrap();

    let mut after = observer_of_a_vm();
    after.carry(vec![Carried {
        tenant_key: "qemu:droplet-8".to_owned(),
        evidence: stored.try_into().unwrap(),
    }]);
    let window = close(&mut after);
    let fp = window.tenants[0]
        .evidence
        .as_ref()
        .unwrap()
        .fp_rounding
        .clone()
        .unwrap();
    assert!(fp.concluded);
    assert_eq!(fp.state(), v1::SensorState::NeverRan);
}

#[test]
fn a_vm_made_anew_under_its_name_is_one_tenant_of_the_window() {
    let mut observer = observer_of_a_vm();
    compute_randomx(&mut observer);
    observer.look();
    observer.source.slot(1).on_cpu_ns += 5;
    observer.source.end(1);
    observer.look();
    observer
        .processes
        .run(200, "qemu-system-x86_64 -name guest=droplet-8");
    observer.source.vcpu(2, 200);
    observer.source.slot(2).on_cpu_ns += 7;
    let window = close(&mut observer);
    let [tenant] = &window.tenants[..] else {
        panic!("one tenant, not {:?}", window.tenants);
    };
    assert_eq!((tenant.key.as_str(), tenant.vcpus), ("qemu:droplet-8", 1));
    let cpu = tenant.cpu.unwrap();
    assert_eq!((cpu.threads, cpu.on_cpu_ns), (2, 8 * SECOND_NS + 12));
    let evidence = tenant.evidence.as_ref().unwrap();
    let fp = evidence.fp_rounding.as_ref().unwrap();
    assert!(fp.concluded);
    assert_eq!(fp.modes, [140, 100, 100, 100]);
    // What the ended one did is told once.
    let window = close(&mut observer);
    assert_eq!(window.tenants.len(), 1);
    assert_eq!(window.tenants[0].cpu.unwrap().on_cpu_ns, 0);
}

#[test]
fn a_vm_made_after_the_restart_does_not_go_on_with_old_tests() {
    let mut before = observer_of_a_vm();
    compute_randomx(&mut before);
    let stored = close(&mut before).tenants[0].evidence.clone().unwrap();
    let carried = vec![Carried {
        tenant_key: "qemu:droplet-8".to_owned(),
        evidence: stored.try_into().unwrap(),
    }];

    // It began after the agent did.
    let mut after = observer_of_a_vm();
    after.source.slot(1).start_boottime_ns += 1;
    after.carry(carried.clone());
    let concluded = |window: &v1::Window| {
        let evidence = window.tenants[0].evidence.clone().unwrap();
        evidence.fp_rounding.unwrap().concluded
    };
    assert!(!concluded(&close(&mut after)));

    // It was found too late.
    let mut after = observer_of_a_vm();
    let slots = std::mem::take(&mut after.source.slots);
    after.carry(carried);
    after.source.now_ns += CARRIED_WAIT_NS + 1;
    after.look();
    after.source.slots = slots;
    assert!(!concluded(&close(&mut after)));
    assert!(after.carried.is_empty());
}

#[test]
fn a_conclusion_does_not_stay_with_a_tenant_the_thread_has_left() {
    let mut observer = observer_of_a_vm();
    compute_randomx(&mut observer);
    close(&mut observer);
    let group = observer
        .enter("cgroup:/g".to_owned(), String::new(), |_, _| {
            let dir = "/g".into();
            Ok::<_, std::io::Error>(Kind::Cgroup { dir })
        })
        .unwrap();
    observer.source.thread(2, 100, 1);
    observer.source.slot(1).tenant = group;
    close(&mut observer);
    let window = close(&mut observer);
    let droplet = &window.tenants[0];
    assert_eq!(droplet.key, "qemu:droplet-8");
    let evidence = droplet.evidence.as_ref().unwrap();
    assert!(!evidence.fp_rounding.as_ref().unwrap().concluded);
}

#[test]
fn a_host_that_cannot_find_vms_says_so() {
    let vcpus = |window: &v1::Window| {
        let status = window.sensors.iter().find(|s| s.sensor == VCPUS)?;
        assert_eq!(status.state(), v1::SensorState::Unsupported);
        Some(status.reason.clone())
    };
    let mut processes = ScriptedProcesses {
        without_kvm: true,
        ..ScriptedProcesses::default()
    };
    let mut without = observer(processes.clone());
    assert_eq!(vcpus(&close(&mut without)).as_deref(), Some(NO_KVM));
    processes.without_kvm = false;
    let mut with = observer(processes);
    assert_eq!(vcpus(&close(&mut with)), None);
    with.source.vcpus_unsupported = Some("no such field".to_owned());
    assert_eq!(vcpus(&close(&mut with)).as_deref(), Some("no such field"));
}

#[test]
fn of_too_many_tenants_the_most_telling_are_reported() {
    let tenant = |level, on_cpu_ns, key: &str| {
        let cpu = Some(v1::Cpu {
            on_cpu_ns,
            ..v1::Cpu::default()
        });
        let key = key.to_owned();
        let tenant = v1::TenantWindow {
            key,
            cpu,
            ..v1::TenantWindow::default()
        };
        (level, tenant)
    };
    let all = vec![
        tenant(Level::Quiet, 1, "idle"),
        tenant(Level::Suspect, 2, "suspect"),
        tenant(Level::Quiet, 9, "busy"),
    ];
    let keys = |max| {
        let (tenants, left_out) = most_telling(all.clone(), max);
        let keys: Vec<_> = tenants.into_iter().map(|tenant| tenant.key).collect();
        (keys.join(" "), left_out)
    };
    assert_eq!(keys(3), ("idle suspect busy".to_owned(), 0));
    assert_eq!(keys(2), ("suspect busy".to_owned(), 1));
}

#[test]
fn a_closer_look_is_asked_for_where_evidence_forms() {
    let mut observer = observer_of_a_vm();
    observer.look();
    let slot = observer.source.slot(1);
    slot.cpu = 3;
    slot.modes = [2, 1, 1, 0];
    assert_eq!(observer.look().forming_cpus, vec![3]);
    assert!(observer.look().forming_cpus.is_empty());
}

#[test]
fn a_thread_that_becomes_a_vcpu_counts_as_one_from_then_on() {
    let mut observer = observer_of_a_vm();
    observer.look();
    observer.source.thread(2, 100, 1);
    observer.look();
    observer.source.slot(2).flags |= FLAG_VCPU;
    assert_eq!(close(&mut observer).tenants[0].vcpus, 2);
}

#[test]
fn a_span_is_never_longer_than_the_wire_allows() {
    let hour_ns = 3_600 * SECOND_NS;
    let late = span(10_000 * SECOND_NS, hour_ns + 5);
    assert_eq!(late.end_unix_ns - late.start_unix_ns, hour_ns);
    let instant = span(10, 0);
    assert!(instant.end_unix_ns > instant.start_unix_ns);
}

#[test]
fn long_reasons_are_cut_at_a_character() {
    assert_eq!(cut("ok".to_owned()), "ok");
    let reason = cut("ü".repeat(2_000));
    assert!(reason.len() <= REASON_BYTES_MAX && reason.chars().all(|c| c == 'ü'));
}

#[test]
fn windows_follow_one_another_unless_the_clock_was_set() {
    let first = span(100 * SECOND_NS, 10 * SECOND_NS);
    let second = span(110 * SECOND_NS, 10 * SECOND_NS + 5_000_000).after(Some(first));
    assert_eq!(second.start_unix_ns, first.end_unix_ns);
    let set_back = span(50 * SECOND_NS, 10 * SECOND_NS);
    assert_eq!(set_back.after(Some(second)), set_back);
    let set_ahead = span(500 * SECOND_NS, 10 * SECOND_NS);
    assert_eq!(set_ahead.after(Some(second)), set_ahead);
    assert_eq!(first.after(None), first);
}

#[test]
fn the_cpus_of_a_tenant_are_known_by_its_key() {
    let mut observer = observer_of_a_vm();
    observer.source.slot(1).cpu = 5;
    observer.look();
    assert_eq!(observer.cpus_of(&["qemu:droplet-8".to_owned()]), [5]);
    assert!(observer.cpus_of(&["qemu:other".to_owned()]).is_empty());
}

/// A droplet that spreads over four rounding modes, on a CPU with counters, while its vCPU runs at `rates`.
fn observe_counted(rates: &crate::sensor::pmu::fake::Rates) -> v1::Window {
    use crate::sensor::pmu::fake::{Fake, zen_4};
    let fake = Fake::default();
    let options = pmu::Options::default();
    let counters = Pmu::new(&options, &zen_4(), true, 100, Box::new(fake.clone()));
    let mut observer = observer_of_a_vm().with_pmu(counters);
    let tid = observer.source.slot(1).tid;
    for _ in 0..60 {
        observer.look();
        observer.source.now_ns += SECOND_NS;
        fake.run(tid, SECOND_NS, rates);
        spread_over_modes(&mut observer);
    }
    observer.look();
    close(&mut observer);
    // The duty counts from the conclusion on.
    spread_over_modes(&mut observer);
    close(&mut observer)
}

/// As [`compute_randomx`], but the registers never look random.
fn spread_over_modes(observer: &mut Observer<Script, ScriptedProcesses>) {
    compute_randomx(observer);
    observer.source.slot(1).random = [0; 4];
}

fn said_of(window: &v1::Window) -> (v1::VerdictLevel, Vec<String>) {
    let verdict = window.tenants[0].verdict.as_ref().unwrap();
    (verdict.level(), verdict.reasons.clone())
}

#[test]
fn four_modes_with_randomxs_mix_are_mining_where_registers_cannot_be_judged() {
    use crate::sensor::pmu::fake::{randomx_on, zen_4};
    let window = observe_counted(&randomx_on(&zen_4()));
    let evidence = window.tenants[0].evidence.as_ref().unwrap();
    let random = evidence.register_randomness.as_ref().unwrap();
    assert_eq!(random.state(), v1::SensorState::Unsupported);
    assert!(evidence.pmu.as_ref().unwrap().mix_concluded);
    let (level, reasons) = said_of(&window);
    assert_eq!(level, v1::VerdictLevel::Mining, "{reasons:?}");
    assert!(reasons[0].contains("RandomX's mix of floating-point operations"));
}

#[test]
fn four_modes_with_an_honest_mix_are_no_mining() {
    let window = observe_counted(&crate::sensor::pmu::fake::matrices());
    assert!(
        !window.tenants[0]
            .evidence
            .as_ref()
            .unwrap()
            .pmu
            .unwrap()
            .mix_concluded
    );
    let (level, reasons) = said_of(&window);
    assert_eq!(level, v1::VerdictLevel::Suspect, "{reasons:?}");
}

#[test]
fn counters_are_one_of_the_hosts_sensors() {
    let window = observe_counted(&crate::sensor::pmu::fake::matrices());
    let status = window
        .sensors
        .iter()
        .find(|s| s.sensor == pmu::NAME)
        .unwrap();
    // The last window's second look came without anything run.
    assert_eq!(status.state(), v1::SensorState::Stalled);
    let pmu = window.tenants[0].evidence.as_ref().unwrap().pmu.unwrap();
    assert_eq!(pmu.state(), v1::SensorState::Stalled);
}

#[test]
fn the_stored_mix_goes_on_after_a_restart() {
    use crate::sensor::pmu::fake::{Fake, randomx_on, zen_4};
    let window = observe_counted(&randomx_on(&zen_4()));
    let stored = window.tenants[0].evidence.clone().unwrap();
    let counters = Pmu::new(
        &pmu::Options::default(),
        &zen_4(),
        true,
        100,
        Box::new(Fake::default()),
    );
    let mut after = observer_of_a_vm().with_pmu(counters);
    after.carry(vec![Carried {
        tenant_key: "qemu:droplet-8".to_owned(),
        evidence: stored.try_into().unwrap(),
    }]);
    let window = close(&mut after);
    let pmu = window.tenants[0].evidence.as_ref().unwrap().pmu.unwrap();
    assert!(pmu.mix_concluded);
    assert_eq!(pmu.state(), v1::SensorState::NeverRan);
}

/// KVM's counters of the vCPU in slot 1 at the present time.
fn count_exits(observer: &mut Observer<Script, ScriptedProcesses>) {
    let now_ns = observer.source.now_ns;
    let vcpu = davy_abi::Vcpu {
        source: davy_abi::SOURCE_KVM,
        read_ns: now_ns,
        exits: now_ns / 1_000_000,
        halts: now_ns / 100_000_000,
        halt_poll_success_ns: now_ns / 1_000,
        msr_events: now_ns / SECOND_NS,
        prefetcher_writes_amd: 4,
        ..davy_abi::Vcpu::default()
    };
    observer.source.vcpus.insert(1, vcpu);
}

#[test]
fn what_kvm_counted_of_a_vm_is_reported_and_told_among_the_reasons() {
    let mut observer = observer_of_a_vm();
    count_exits(&mut observer);
    observer.look();
    observer.source.now_ns += 10 * SECOND_NS;
    count_exits(&mut observer);
    observer.look();
    let window = observer.close(span(1_000 * SECOND_NS, 10 * SECOND_NS));
    let tenant = &window.tenants[0];
    assert_eq!(tenant.cpu.unwrap().halt_poll_ns, Some(10_000_000));
    let evidence = tenant.evidence.as_ref().unwrap();
    let exits = evidence.kvm_exits.as_ref().unwrap();
    assert_eq!(exits.state(), v1::SensorState::Live);
    assert_eq!(
        (exits.exits, exits.halts, exits.observed_ns),
        (10_000, Some(100), 10 * SECOND_NS)
    );
    let msrs = evidence.msr_writes.as_ref().unwrap();
    assert_eq!(
        (msrs.state(), msrs.prefetcher_writes),
        (v1::SensorState::Live, 4)
    );
    let reasons = tenant.verdict.as_ref().unwrap().reasons.join("\n");
    assert!(reasons.contains("halts 10.0/s"), "{reasons}");
    assert!(reasons.contains("4 since it is watched"), "{reasons}");
    assert_eq!(
        tenant.verdict.as_ref().unwrap().level(),
        v1::VerdictLevel::Quiet
    );
    let states: Vec<_> = window.sensors.iter().map(v1::SensorStatus::state).collect();
    assert_eq!(states[3..], [v1::SensorState::Live; 2]);
}

#[test]
fn a_process_without_vcpus_says_nothing_of_exits_and_needs_no_tracepoint() {
    let mut processes = ScriptedProcesses::default();
    processes.run(100, "sleep 60");
    let mut observer = observer(processes);
    observer.source.thread(1, 100, 0);
    observer
        .enter("pid:100".to_owned(), String::new(), |source, index| {
            source.watch_process(100, index)?;
            Ok::<_, std::io::Error>(Kind::Process { tgid: 100 })
        })
        .unwrap();
    let window = close(&mut observer);
    let tenant = &window.tenants[0];
    let evidence = tenant.evidence.as_ref().unwrap();
    assert_eq!((&evidence.kvm_exits, &evidence.msr_writes), (&None, &None));
    assert_eq!(tenant.cpu.unwrap().halt_poll_ns, None);
    assert!(!observer.source.guests_said.contains(&true));
}

#[test]
fn the_source_is_told_when_guests_come_and_go() {
    let mut observer = observer_of_a_vm();
    observer.look();
    assert_eq!(observer.source.guests_said.last(), Some(&true));
    observer.source.end(1);
    observer.look();
    observer.look();
    assert_eq!(observer.source.guests_said.last(), Some(&false));
}
