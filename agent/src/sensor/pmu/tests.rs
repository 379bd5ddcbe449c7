//! The sensor on a fake CPU.

use davy_abi::{FLAG_ENDED, FLAG_LIVE, FLAG_VCPU, Slot};

use super::{
    fake::{Fake, Rates, matrices, randomx_on, zen_3, zen_4},
    *,
};

const SECOND_NS: u64 = 1_000_000_000;
const TENANT: TenantIndex = 5;

/// A sensor of `cpu` with its watchdog, and what runs there.
struct Bench {
    fake: Fake,
    pmu: Pmu,
    now_ns: u64,
    readings: Vec<Reading>,
}

impl Bench {
    fn new(cpu: &Cpu) -> Self {
        Self::with(cpu, &Options::default(), 1_000)
    }

    fn with(cpu: &Cpu, options: &Options, fds_max: usize) -> Self {
        let fake = Fake::default();
        let pmu = Pmu::new(options, cpu, true, fds_max, Box::new(fake.clone()));
        Self {
            fake,
            pmu,
            now_ns: SECOND_NS,
            readings: Vec::new(),
        }
    }

    fn vcpu(mut self, tid: u32) -> Self {
        self.readings.push(Reading {
            index: tid,
            slot: Slot {
                tid,
                tgid: 1,
                tenant: TENANT,
                flags: FLAG_LIVE | FLAG_VCPU,
                ..Slot::default()
            },
        });
        self
    }

    fn look(&mut self) {
        self.pmu.look(&self.readings, self.now_ns, |tenant| {
            (tenant == TENANT).then_some(true)
        });
    }

    /// Every thread runs at these rates for so many seconds, with a look after each.
    fn run(&mut self, seconds: u64, rates: &Rates) {
        for _ in 0..seconds {
            self.look();
            for reading in &self.readings {
                self.fake.run(reading.slot.tid, SECOND_NS, rates);
            }
            self.now_ns += SECOND_NS;
        }
        self.look();
    }

    fn close(&mut self, seconds: u64) -> Evidence {
        self.pmu.collect();
        self.pmu
            .close(TENANT, seconds * SECOND_NS, &InAllModes::default())
    }
}

fn near(value: Option<u64>, expected: u64) -> bool {
    value.is_some_and(|value| value.abs_diff(expected) <= expected / 50)
}

#[test]
fn a_miners_mix_concludes_with_its_hash_rate_on_every_zen() {
    for cpu in [zen_3(), zen_4()] {
        let mut bench = Bench::new(&cpu).vcpu(11);
        bench.run(60, &randomx_on(&cpu));
        let evidence = bench.close(60);
        assert_eq!(evidence.state, SensorState::Live);
        assert_eq!(evidence.mix_state, SensorState::Live);
        assert!(evidence.mix_concluded, "{evidence:?}");
        assert_eq!((evidence.turns, evidence.matches), (12, 12));
        let HashRate { low, high } = evidence.hash_rate.unwrap();
        assert!((high - 600.0).abs() < 12.0 && (low - 400.0).abs() < 8.0);
        assert!(near(Some(evidence.instructions), 60 * 4_500_000_000));
        assert!(near(evidence.cache_misses, 60 * 9_000_000));
        assert!(near(evidence.control_word_traps, 60 * 5_000_000));
    }
}

#[test]
fn honest_work_gives_turns_that_do_not_match() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    bench.run(60, &matrices());
    let evidence = bench.close(60);
    assert_eq!((evidence.turns, evidence.matches), (12, 0));
    assert!(!evidence.mix_concluded);
    assert_eq!(evidence.hash_rate, None);
    assert_eq!(evidence.mix_state, SensorState::Live);
}

#[test]
fn no_more_counters_are_taken_than_the_budget_has() {
    let mut bench = Bench::new(&zen_4()).vcpu(11).vcpu(12);
    bench.run(10, &matrices());
    // 6 counters less the watchdog and the reserve: cycles, instructions and two more.
    bench.fake.with(|machine| {
        assert_eq!(machine.events_max, 4);
        assert_eq!(machine.open_groups, 2);
    });
}

#[test]
fn a_greater_reserve_leaves_fewer_and_says_what_is_not_counted() {
    let options = Options {
        reserve_counters: 2,
        ..Options::default()
    };
    let bench = Bench::with(&zen_3(), &options, 100);
    let capability = bench.pmu.capability().unwrap();
    assert!(
        capability.contains("too few counters for fp_ret_sse_avx_ops.div_flops"),
        "{capability}"
    );
    let mut bench = bench.vcpu(11);
    bench.run(3, &randomx_on(&zen_3()));
    let evidence = bench.close(3);
    assert_eq!(evidence.state, SensorState::Live);
    assert_eq!(evidence.mix_state, SensorState::Unsupported);
    assert_eq!(evidence.fp, FpOps::default());
}

#[test]
fn a_reserve_of_all_counters_is_unsupported_with_the_remedy() {
    let options = Options {
        reserve_counters: 5,
        ..Options::default()
    };
    let reason = Bench::with(&zen_3(), &options, 100)
        .pmu
        .capability()
        .unwrap_err();
    assert!(reason.contains("lower `pmu.reserve_counters`"), "{reason}");
}

#[test]
fn states_are_told_apart() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    bench.run(5, &Rates::new());
    let evidence = bench.close(5);
    assert_eq!(evidence.state, SensorState::NeverRan);
    assert_eq!(bench.pmu.status().0, SensorState::NeverRan);
    assert_eq!(
        (evidence.turns, evidence.mix_state),
        (0, SensorState::NeverRan)
    );
    bench.run(1, &matrices());
    assert_eq!(bench.close(1).state, SensorState::Live);
    assert_eq!(bench.pmu.status(), (SensorState::Live, String::new()));
    bench.run(1, &Rates::new());
    assert_eq!(bench.close(1).state, SensorState::Stalled);
    assert_eq!(bench.pmu.status().0, SensorState::Stalled);
}

#[test]
fn a_group_never_on_the_counters_has_never_run() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    bench.fake.with(|machine| machine.running_percent = Some(0));
    bench.run(3, &matrices());
    let evidence = bench.close(3);
    assert_eq!(evidence.state, SensorState::NeverRan);
    assert_eq!((evidence.instructions, evidence.cache_misses), (0, None));
    assert_eq!(evidence.time_enabled_ns, 3 * SECOND_NS);
    let (state, remark) = bench.pmu.status();
    assert_eq!(state, SensorState::NeverRan);
    assert!(remark.contains("in only 0 % of the time"), "{remark}");
}

#[test]
fn where_counters_are_short_the_optional_ones_go_first_and_counts_are_scaled() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    bench
        .fake
        .with(|machine| machine.running_percent = Some(50));
    bench.run(4, &matrices());
    bench.fake.with(|machine| machine.events_max = 0);
    bench.run(4, &matrices());
    // The pair is all that is left, and it is estimated from half the time.
    let evidence = bench.close(8);
    assert!(near(Some(evidence.instructions), 8 * 6_000_000_000));
    assert_eq!(evidence.time_running_ns * 2, evidence.time_enabled_ns);
    assert!(bench.pmu.status().1.contains("in only 50 % of the time"));
    assert_eq!(bench.pmu.threads.len(), 1);
    bench.fake.with(|machine| assert!(machine.events_max <= 2));
}

#[test]
fn what_the_kernel_does_not_take_is_left_out_and_the_pair_stays() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    bench.fake.with(|machine| {
        machine.refusal = Some((2, OpenError::Unsupported("no such event".to_owned())));
    });
    bench.run(3, &matrices());
    let evidence = bench.close(3);
    assert_eq!(evidence.state, SensorState::Live);
    assert!(near(Some(evidence.instructions), 3 * 6_000_000_000));
}

#[test]
fn a_refused_guest_is_unsupported_with_the_reason() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    bench.fake.with(|machine| {
        machine.refusal = Some((0, OpenError::Unsupported("mediated".to_owned())));
    });
    bench.run(2, &matrices());
    let evidence = bench.close(2);
    assert_eq!(evidence.state, SensorState::Unsupported);
    assert_eq!(
        bench.pmu.status(),
        (
            SensorState::Unsupported,
            "1 threads are not counted: mediated".to_owned()
        )
    );
}

#[test]
fn a_thread_that_ended_just_now_is_none_that_could_not_be_counted() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    bench
        .fake
        .with(|machine| machine.refusal = Some((0, OpenError::ThreadGone)));
    bench.run(2, &matrices());
    bench.close(2);
    assert_eq!(bench.pmu.status(), (SensorState::NeverRan, String::new()));
}

#[test]
fn a_thread_that_lost_its_counters_is_said_so_at_every_look() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    bench.run(1, &matrices());
    bench
        .fake
        .with(|machine| machine.refusal = Some((0, OpenError::NoDescriptors)));
    bench.run(1, &matrices());
    for _ in 0..3 {
        bench.look();
        bench.pmu.collect();
        let remark = bench.pmu.status().1;
        assert!(remark.starts_with("1 threads are not counted"), "{remark}");
    }
    bench.fake.with(|machine| machine.refusal = None);
    bench.run(1, &matrices());
    assert_eq!(bench.pmu.status().1, "");
}

#[test]
fn descriptors_are_bounded_and_what_is_not_counted_is_said() {
    // A group takes at most four.
    let mut bench = Bench::with(&zen_4(), &Options::default(), 9)
        .vcpu(11)
        .vcpu(12)
        .vcpu(13);
    bench.run(2, &matrices());
    bench
        .fake
        .with(|machine| assert_eq!(machine.open_groups, 2));
    bench.close(2);
    let (state, remark) = bench.pmu.status();
    assert_eq!(state, SensorState::Live);
    assert!(remark.starts_with("1 threads are not counted: no file descriptor"));
}

#[test]
fn an_ended_thread_is_read_once_more_and_closed() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    bench.run(2, &matrices());
    bench.fake.run(11, SECOND_NS, &matrices());
    bench.readings[0].slot.flags |= FLAG_ENDED;
    bench.look();
    bench
        .fake
        .with(|machine| assert_eq!(machine.open_groups, 0));
    let evidence = bench.close(3);
    assert!(near(Some(evidence.instructions), 3 * 6_000_000_000));
    assert_eq!(bench.close(1).instructions, 0);
}

#[test]
fn of_a_droplet_its_guests_are_counted_and_of_others_user_space() {
    let mut bench = Bench::new(&zen_4()).vcpu(11).vcpu(12);
    bench.readings[1].slot.flags = FLAG_LIVE;
    bench.look();
    let scopes = |bench: &Bench| bench.fake.with(|machine| machine.scopes.clone());
    assert_eq!(scopes(&bench).get(&11), Some(&Scope::Guest));
    assert_eq!(scopes(&bench).get(&12), None);
    bench.pmu.look(&bench.readings, 0, |_| Some(false));
    assert_eq!(scopes(&bench).get(&12), Some(&Scope::User));
}

#[test]
fn a_thread_that_becomes_a_vcpu_is_counted_as_one_from_then_on() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    bench.readings[0].slot.flags = FLAG_LIVE;
    bench.pmu.look(&bench.readings, 0, |_| Some(false));
    bench.readings[0].slot.flags |= FLAG_VCPU;
    bench.pmu.look(&bench.readings, 0, |_| Some(false));
    bench.pmu.look(&bench.readings, 0, |_| Some(false));
    bench.fake.with(|machine| {
        assert_eq!(machine.scopes.get(&11), Some(&Scope::Guest));
        assert_eq!(machine.open_groups, 1);
    });
}

#[test]
fn a_thread_of_no_tenant_is_not_counted() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    bench.readings[0].slot.tenant = 99;
    bench.look();
    bench
        .fake
        .with(|machine| assert_eq!(machine.open_groups, 0));
    assert_eq!(bench.close(1).state, SensorState::NeverRan);
}

#[test]
fn a_mix_is_no_turn_while_the_thread_hardly_runs() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    let idle = randomx_on(&zen_4())
        .into_iter()
        .map(|(what, n)| (what, n / 10_000));
    bench.run(10, &idle.collect());
    assert_eq!(bench.close(10).turns, 0);
}

#[test]
fn a_sensor_that_is_switched_off_says_so_and_opens_nothing() {
    let options = Options {
        enabled: false,
        ..Options::default()
    };
    let mut bench = Bench::with(&zen_4(), &options, 100).vcpu(11);
    bench.run(2, &matrices());
    let (state, reason) = bench.pmu.status();
    assert_eq!(state, SensorState::Unsupported);
    assert!(reason.contains("pmu.enabled"), "{reason}");
    assert_eq!(bench.close(2).state, SensorState::Unsupported);
}

#[test]
fn a_stored_conclusion_goes_on_and_gives_no_hash_rate_of_nobody() {
    let mut bench = Bench::new(&zen_4()).vcpu(11);
    let stored = Evidence {
        mix_llr: 60.0,
        mix_turns: 40,
        mix_concluded: true,
        ..Evidence::default()
    };
    bench.pmu.resume(TENANT, &stored).unwrap();
    bench.look();
    let evidence = bench.close(1);
    assert!(evidence.mix_concluded);
    assert_eq!(evidence.hash_rate, None);
    bench.run(6, &randomx_on(&zen_4()));
    let evidence = bench.close(6);
    assert_eq!(evidence.mix_turns, 41);
    assert!(evidence.hash_rate.is_some());
}
