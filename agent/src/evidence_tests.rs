//! The tenants' sequential tests, on deltas made by hand.

use super::*;
use crate::sensor::cpu::CpuFigures;

const TENANT: TenantIndex = 1;
const SECOND_NS: u64 = 1_000_000_000;
const LIVE: HostSensors = HostSensors {
    fp_rounding: SensorState::Live,
    register_randomness: SensorState::Live,
};

fn delta(tid: u32, on_cpu_ns: u64, modes: Modes, random: Modes) -> ThreadDelta {
    ThreadDelta {
        thread: ThreadKey {
            slot: tid,
            tgid: tid,
            start_boottime_ns: 1,
        },
        tenant: TENANT,
        is_vcpu: true,
        is_confidential: false,
        ended: false,
        cpu_number: 4,
        cpu: CpuFigures {
            on_cpu_ns,
            ..CpuFigures::default()
        },
        looks: modes.iter().sum(),
        modes,
        random,
        general: General::default(),
        involuntary: Involuntary {
            looks: modes.iter().sum(),
            directed: directed(&modes),
        },
    }
}

fn randomx(tid: u32, on_cpu_ns: u64) -> ThreadDelta {
    delta(tid, on_cpu_ns, [130, 90, 90, 90], [129, 89, 90, 89])
}

/// A thread that has concluded, in a window that is closed.
fn concluded(tests: &mut Tests, tid: u32, span_ns: u64) {
    update(tests, &[randomx(tid, span_ns)]);
    assert!(close(tests, span_ns).fp_rounding.concluded);
}

fn honest(tid: u32, on_cpu_ns: u64) -> ThreadDelta {
    delta(tid, on_cpu_ns, [400, 0, 0, 0], [0; 4])
}

fn close(tests: &mut Tests, span_ns: u64) -> TenantEvidence {
    tests.close(TENANT, span_ns, LIVE, &Mixing::default())
}

fn update(tests: &mut Tests, deltas: &[ThreadDelta]) -> Vec<u32> {
    tests.update(deltas, |_| true)
}

#[test]
fn a_randomx_thread_beside_honest_ones_is_mining() {
    let mut tests = Tests::default();
    update(&mut tests, &[randomx(2, 0)]);
    close(&mut tests, 1);
    let deltas = [
        honest(1, 9 * SECOND_NS),
        randomx(2, 5 * SECOND_NS),
        honest(3, 9 * SECOND_NS),
    ];
    update(&mut tests, &deltas);
    let evidence = close(&mut tests, 10 * SECOND_NS);
    let fp = &evidence.fp_rounding;
    assert_eq!(fp.state, SensorState::Live);
    assert_eq!(fp.modes, [930, 90, 90, 90]);
    assert_eq!(fp.test_samples, 800);
    assert!(fp.concluded);
    assert_eq!(fp.concluded_on_cpu_ns, 5 * SECOND_NS);
    assert!((fp.duty - 0.5).abs() < 1e-9);
    let rr = &evidence.register_randomness;
    assert_eq!(
        (
            rr.samples,
            rr.random,
            rr.directed_samples,
            rr.directed_random
        ),
        (1200, 397, 270, 268)
    );
    assert!(rr.any_concluded && rr.directed_concluded);
    assert_eq!(
        davy_evidence::verdict(&evidence).level,
        davy_evidence::Level::Mining
    );
}

#[test]
fn four_honest_threads_in_four_modes_are_not_one_that_uses_them_all() {
    let mut tests = Tests::default();
    let deltas: Vec<_> = (0..4)
        .map(|mode| {
            let mut modes = [0; 4];
            modes[mode] = 1_000;
            delta(u32::try_from(mode).unwrap(), SECOND_NS, modes, [0; 4])
        })
        .collect();
    update(&mut tests, &deltas);
    let evidence = close(&mut tests, SECOND_NS);
    assert!(!evidence.fp_rounding.concluded);
    assert_eq!(evidence.fp_rounding.concluded_on_cpu_ns, 0);
}

#[test]
fn what_the_vmm_computes_is_not_the_guests_doing() {
    let mut vmm = randomx(1, SECOND_NS);
    vmm.is_vcpu = false;
    let mut tests = Tests::default();
    assert!(update(&mut tests, &[vmm]).is_empty());
    let evidence = close(&mut tests, SECOND_NS);
    assert!(!evidence.fp_rounding.concluded);
    assert_eq!(evidence.fp_rounding.state, SensorState::NeverRan);
    // Of a plain process every thread counts.
    let mut tests = Tests::default();
    tests.update(&[vmm], |_| false);
    assert!(close(&mut tests, SECOND_NS).fp_rounding.concluded);
}

#[test]
fn states_tell_unknown_from_nothing() {
    let mut tests = Tests::default();
    assert_eq!(
        close(&mut tests, 1).fp_rounding.state,
        SensorState::NeverRan
    );
    update(&mut tests, &[honest(1, 1)]);
    assert_eq!(close(&mut tests, 1).fp_rounding.state, SensorState::Live);
    update(&mut tests, &[delta(1, 1, [0; 4], [0; 4])]);
    assert_eq!(close(&mut tests, 1).fp_rounding.state, SensorState::Stalled);
    let mut encrypted = randomx(2, 1);
    encrypted.is_confidential = true;
    let mut tests = Tests::default();
    update(&mut tests, &[encrypted]);
    let evidence = close(&mut tests, 1);
    assert_eq!(evidence.register_randomness.state, SensorState::Unsupported);
    assert_eq!(evidence.fp_rounding.modes, [0; 4]);
}

#[test]
fn duty_is_averaged_over_the_last_minute() {
    let mut tests = Tests::default();
    update(&mut tests, &[randomx(1, 0)]);
    let mut duty = 0.0;
    for _ in 0..6 {
        update(&mut tests, &[randomx(1, 10 * SECOND_NS)]);
        duty = close(&mut tests, 10 * SECOND_NS).fp_rounding.duty;
    }
    assert!((duty - 1.0).abs() < 1e-9, "{duty}");
    for _ in 0..3 {
        update(&mut tests, &[randomx(1, 0)]);
        duty = close(&mut tests, 10 * SECOND_NS).fp_rounding.duty;
    }
    assert!((duty - 0.5).abs() < 1e-9, "{duty}");
}

#[test]
fn an_ended_miner_counts_until_its_time_has_left_the_duty() {
    let mut tests = Tests::default();
    update(&mut tests, &[randomx(1, 0)]);
    let mut ended = randomx(1, 10 * SECOND_NS);
    ended.ended = true;
    update(&mut tests, &[ended]);
    let evidence = close(&mut tests, 10 * SECOND_NS);
    assert!(evidence.fp_rounding.concluded);
    assert_eq!(evidence.fp_rounding.concluded_on_cpu_ns, 10 * SECOND_NS);
    let evidence = close(&mut tests, 10 * SECOND_NS);
    assert!(evidence.fp_rounding.concluded);
    assert_eq!(evidence.fp_rounding.concluded_on_cpu_ns, 0);
    for _ in 0..6 {
        close(&mut tests, 10 * SECOND_NS);
    }
    assert!(!close(&mut tests, 10 * SECOND_NS).fp_rounding.concluded);
    assert!(tests.tenants[&TENANT].threads.is_empty());
}

#[test]
fn cpu_time_before_the_conclusion_is_not_the_miners() {
    let mut tests = Tests::default();
    update(&mut tests, &[honest(1, 9 * SECOND_NS)]);
    update(&mut tests, &[delta(1, SECOND_NS, [200; 4], [200; 4])]);
    let evidence = close(&mut tests, 10 * SECOND_NS);
    assert!(evidence.fp_rounding.concluded);
    assert_eq!(evidence.fp_rounding.concluded_on_cpu_ns, 0);
    assert!(davy_evidence::verdict(&evidence).level < davy_evidence::Level::Mining);
    // From then on it counts, at once.
    update(&mut tests, &[randomx(1, 10 * SECOND_NS)]);
    let evidence = close(&mut tests, 10 * SECOND_NS);
    assert!((evidence.fp_rounding.duty - 0.5).abs() < 1e-9);
    assert_eq!(
        davy_evidence::verdict(&evidence).level,
        davy_evidence::Level::Mining
    );
}

#[test]
fn a_miner_that_went_over_to_other_work_stops_being_one() {
    // Work that leaves the registers alone gives looks, but no samples; other work gives samples in mode 0.
    let mut scalar = delta(1, 10 * SECOND_NS, [0; 4], [0; 4]);
    scalar.looks = 50;
    let floating = delta(1, 10 * SECOND_NS, [10, 0, 0, 0], [0; 4]);
    for other_work in [scalar, floating] {
        let mut tests = Tests::default();
        concluded(&mut tests, 1, 10 * SECOND_NS);
        update(&mut tests, &[randomx(1, 10 * SECOND_NS)]);
        assert!(close(&mut tests, 10 * SECOND_NS).fp_rounding.duty > 0.4);
        let mut evidence = TenantEvidence::default();
        for _ in 0..6 {
            update(&mut tests, &[other_work]);
            evidence = close(&mut tests, 10 * SECOND_NS);
            assert_eq!(evidence.fp_rounding.concluded_on_cpu_ns, 0);
        }
        assert_eq!(evidence.fp_rounding.state, SensorState::Live);
        assert!(evidence.fp_rounding.duty < 1e-9);
    }
}

#[test]
fn looks_without_samples_between_samples_count_too() {
    let mut tests = Tests::default();
    concluded(&mut tests, 1, SECOND_NS);
    update(&mut tests, &[delta(1, SECOND_NS, [0; 4], [0; 4])]);
    update(&mut tests, &[delta(1, SECOND_NS, [1, 1, 1, 1], [0; 4])]);
    update(&mut tests, &[delta(1, SECOND_NS, [1, 0, 1, 0], [0; 4])]);
    let evidence = close(&mut tests, 3 * SECOND_NS);
    assert_eq!(evidence.fp_rounding.concluded_on_cpu_ns, 3 * SECOND_NS);
}

/// The evidence that a miner's tests had when the agent was restarted.
fn stored() -> TenantEvidence {
    let mut before = Tests::default();
    update(&mut before, &[randomx(1, SECOND_NS)]);
    close(&mut before, SECOND_NS)
}

#[test]
fn stored_tests_stand_until_the_thread_they_were_of_goes_on() {
    let stored = stored();
    let mut tests = Tests::default();
    tests.resume(TENANT, &stored).unwrap();
    let still = |tid| delta(tid, SECOND_NS, [0; 4], [0; 4]);
    update(&mut tests, &[still(7), still(8)]);
    let evidence = close(&mut tests, SECOND_NS);
    assert!(evidence.fp_rounding.concluded);
    assert_eq!(evidence.fp_rounding.llr, stored.fp_rounding.llr);
    assert!(evidence.register_randomness.directed_concluded);
    assert_eq!(evidence.fp_rounding.concluded_threads, 0);

    update(
        &mut tests,
        &[
            honest(7, SECOND_NS),
            delta(8, SECOND_NS, [1, 1, 1, 1], [1; 4]),
        ],
    );
    let evidence = close(&mut tests, SECOND_NS);
    assert!(evidence.fp_rounding.concluded);
    assert_eq!(evidence.fp_rounding.test_samples, 404);
    assert_eq!(evidence.fp_rounding.concluded_threads, 1);
    assert_eq!(evidence.fp_rounding.concluded_on_cpu_ns, SECOND_NS);
}

#[test]
fn stored_tests_make_no_miner_of_threads_beside() {
    let mut tests = Tests::default();
    tests.resume(TENANT, &stored()).unwrap();
    let scalar = delta(7, 10 * SECOND_NS, [0; 4], [0; 4]);
    // A miner at a low duty, and one that never touches a vector register.
    update(&mut tests, &[scalar, randomx(8, SECOND_NS)]);
    let evidence = close(&mut tests, 10 * SECOND_NS);
    assert_eq!(evidence.fp_rounding.concluded_threads, 1);
    assert!((evidence.fp_rounding.duty - 0.1).abs() < 1e-9);
    assert_eq!(
        davy_evidence::verdict(&evidence).level,
        davy_evidence::Level::Suspect
    );
}

#[test]
fn stored_tests_stand_for_an_hour_at_most() {
    let mut tests = Tests::default();
    tests.resume(TENANT, &stored()).unwrap();
    let mut hours = 0;
    while close(&mut tests, CARRIED_NS_MAX / 4).fp_rounding.concluded {
        hours += 1;
        assert!(hours <= 4, "they stand too long");
    }
    assert_eq!(hours, 4);
}

#[test]
fn absurd_stored_tests_are_refused() {
    let mut stored = TenantEvidence::default();
    stored.fp_rounding.llr = [f64::NAN; 4];
    let mut tests = Tests::default();
    assert!(tests.resume(TENANT, &stored).is_err());
    update(&mut tests, &[honest(1, 1)]);
    assert!(!close(&mut tests, 1).fp_rounding.concluded);
}

#[test]
fn a_closer_look_is_asked_for_only_where_evidence_forms() {
    let mut tests = Tests::default();
    assert!(update(&mut tests, &[honest(1, 1)]).is_empty());
    // Interval arithmetic sits in one directed mode.
    assert!(update(&mut tests, &[delta(2, 1, [0, 50, 0, 0], [0; 4])]).is_empty());
    assert_eq!(
        update(&mut tests, &[delta(3, 1, [3, 1, 2, 1], [0; 4])]),
        vec![4]
    );
    // Concluded: nothing more to learn.
    update(&mut tests, &[randomx(5, 1)]);
    assert!(update(&mut tests, &[randomx(5, 1)]).is_empty());
}

#[test]
fn what_runs_beside_a_verifying_node_on_its_vcpu_is_not_the_nodes_duty() {
    let mut tests = Tests::default();
    concluded(&mut tests, 1, SECOND_NS);
    let mut duty = 0.0;
    for _ in 0..12 {
        // One look in twelve finds RandomX, one in seventeen outside mode 0; at the others nothing had changed, or something else ran in mode 0.
        let node = ThreadDelta {
            looks: 200,
            involuntary: Involuntary {
                looks: 200,
                directed: 12,
            },
            ..delta(1, 10 * SECOND_NS, [5, 4, 4, 4], [5, 4, 4, 4])
        };
        update(&mut tests, &[node]);
        duty = close(&mut tests, 10 * SECOND_NS).fp_rounding.duty;
    }
    assert!((0.08..0.11).contains(&duty), "{duty}");
}

#[test]
fn a_miner_that_sleeps_often_has_its_duty_from_the_looks_after_involuntary_switches() {
    let mut tests = Tests::default();
    concluded(&mut tests, 1, SECOND_NS);
    let mut duty = 0.0;
    for _ in 0..60 {
        // It went to sleep in mode 0 six times, and was interrupted three times while it computed.
        let miner = ThreadDelta {
            looks: 9,
            involuntary: Involuntary {
                looks: 3,
                directed: 2,
            },
            ..delta(1, 3 * SECOND_NS / 10, [6, 1, 1, 1], [3, 1, 1, 1])
        };
        update(&mut tests, &[miner]);
        duty = close(&mut tests, SECOND_NS).fp_rounding.duty;
    }
    assert!((0.29..=0.30).contains(&duty), "{duty}");
}

#[test]
fn cpu_time_that_no_look_tells_of_is_not_the_miners() {
    let mut tests = Tests::default();
    concluded(&mut tests, 1, SECOND_NS);
    let unseen = ThreadDelta {
        involuntary: Involuntary::default(),
        ..randomx(1, 60 * SECOND_NS)
    };
    update(&mut tests, &[unseen]);
    let evidence = close(&mut tests, 60 * SECOND_NS);
    assert!(evidence.fp_rounding.concluded && evidence.fp_rounding.duty < 1e-9);
}

#[test]
fn two_classes_of_evidence_of_two_threads_are_no_mining() {
    // One in all four modes with plain registers, one in a single directed mode with random registers.
    let modes = |tid| delta(tid, 10 * SECOND_NS, [100; 4], [0; 4]);
    let random = |tid| delta(tid, 10 * SECOND_NS, [0, 0, 400, 0], [0, 0, 400, 0]);
    let level = |one: &dyn Fn(u32) -> ThreadDelta, other: &dyn Fn(u32) -> ThreadDelta| {
        let mut tests = Tests::default();
        for _ in 0..3 {
            update(&mut tests, &[one(1), other(2)]);
            close(&mut tests, 10 * SECOND_NS);
        }
        update(&mut tests, &[one(1), other(2)]);
        davy_evidence::verdict(&close(&mut tests, 10 * SECOND_NS)).level
    };
    assert_eq!(level(&modes, &random), davy_evidence::Level::Suspect);
    assert_eq!(
        level(&modes, &|tid| randomx(tid, 10 * SECOND_NS)),
        davy_evidence::Level::Mining
    );
}

#[test]
fn a_node_and_another_program_in_all_modes_are_no_miner_together() {
    // RandomX at a twentieth of a vCPU, and stochastic rounding on another one: the duty is the node's alone.
    let mut tests = Tests::default();
    let stochastic = |tid| delta(tid, 10 * SECOND_NS, [100; 4], [0; 4]);
    let mut evidence = TenantEvidence::default();
    for _ in 0..8 {
        update(&mut tests, &[randomx(1, SECOND_NS / 2), stochastic(2)]);
        evidence = close(&mut tests, 10 * SECOND_NS);
    }
    assert_eq!(evidence.fp_rounding.concluded_threads, 2);
    assert!(evidence.register_randomness.directed_concluded);
    assert!((evidence.fp_rounding.duty - 0.05).abs() < 1e-9);
    assert_eq!(
        davy_evidence::verdict(&evidence).level,
        davy_evidence::Level::Suspect
    );
    // The same with the mix as the second class.
    let mixing = Mixing {
        threads: [stochastic(2).thread].into(),
        carried: false,
    };
    update(&mut tests, &[randomx(1, SECOND_NS / 2), stochastic(2)]);
    let duty = tests
        .close(TENANT, 10 * SECOND_NS, LIVE, &mixing)
        .fp_rounding
        .duty;
    assert!(duty > 0.9, "{duty}");
}

#[test]
fn a_conclusion_without_a_sample_for_an_hour_stands_no_more() {
    let mut tests = Tests::default();
    concluded(&mut tests, 1, SECOND_NS);
    let idle = delta(1, 0, [0; 4], [0; 4]);
    let mut hours = 0;
    while update(&mut tests, &[idle]).is_empty()
        && close(&mut tests, CARRIED_NS_MAX / 4).fp_rounding.concluded
    {
        hours += 1;
        assert!(hours <= 6, "it stands too long");
    }
    assert!(hours >= 4, "{hours}");
    assert!(
        !close(&mut tests, SECOND_NS)
            .register_randomness
            .any_concluded
    );
}
