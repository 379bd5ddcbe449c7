//! The verdict's rule, clause by clause, and the words of its reasons.

use davy_evidence::{
    ExitReason, ExitSource, Family, FpOps, FpRounding, HashRate, KvmExits, Level, MINING_DUTY,
    MsrWrites, Pmu, RegisterRandomness, SensorState, TenantEvidence, kvm_exits::Isa, verdict,
};
use proptest::prelude::*;

/// A `RandomX` miner's evidence at full speed on one vCPU.
fn miner() -> TenantEvidence {
    TenantEvidence {
        fp_rounding: FpRounding {
            state: SensorState::Live,
            modes: [112, 104, 81, 87],
            llr: [73.0, 73.0, 73.0, 61.29],
            test_samples: 384,
            concluded: true,
            concluded_on_cpu_ns: 9_800_000_000,
            concluded_threads: 1,
            duty: 0.98,
        },
        register_randomness: RegisterRandomness {
            state: SensorState::Live,
            samples: 384,
            random: 380,
            directed_samples: 272,
            directed_random: 270,
            any_llr: 73.0,
            any_concluded: true,
            any_test_samples: 384,
            directed_llr: 73.0,
            directed_concluded: true,
            directed_test_samples: 272,
            general_samples: 54,
            general_random: 40,
            general_llr: 20.0,
            general_concluded: false,
            general_test_samples: 54,
        },
        ..TenantEvidence::default()
    }
}

/// An honest program's evidence, with enough samples.
fn honest() -> TenantEvidence {
    TenantEvidence {
        fp_rounding: FpRounding {
            state: SensorState::Live,
            modes: [1_200, 0, 0, 0],
            llr: [73.0, 0.0, 0.0, 0.0],
            test_samples: 5_000,
            ..FpRounding::default()
        },
        register_randomness: RegisterRandomness {
            state: SensorState::Live,
            samples: 1_200,
            random: 5,
            any_test_samples: 1_200,
            general_samples: 170,
            general_random: 2,
            general_test_samples: 170,
            ..RegisterRandomness::default()
        },
        ..TenantEvidence::default()
    }
}

#[test]
fn a_randomx_miner_is_mining_for_reasons_a_reviewer_can_check() {
    let v = verdict(&miner());
    assert_eq!(v.level, Level::Mining);
    assert_eq!(v.families, [Family::RandomX]);
    assert_eq!(
        v.reasons,
        [
            "mining: computes in all four rounding modes on random registers, as RandomX does, at or above the duty of a \
             miner",
            "fp_rounding: concluded, 61.2 nats of the 36.5 that conclude; rounding modes 0/1/2/3 in 29.2 %/27.1 %/21.1 \
             %/22.7 % of 384 samples in this window",
            "register_randomness, all samples: concluded, 73.0 nats of the 36.5 that conclude; 380 of 384 samples (99.0 %) \
             with random registers in this window",
            "register_randomness, outside rounding mode 0: concluded, 73.0 nats of the 36.5 that conclude; 270 of 272 samples \
             (99.3 %) with random registers in this window",
            "register_randomness, general registers: not enough samples to tell (54 samples of the thread nearest to a \
             conclusion, 100 needed), 20.0 nats of the 36.5 that conclude; 40 of 54 samples (74.1 %) with random registers in \
             this window",
            "duty: the threads concluded used 98.0 % of one CPU over the last minute, at or above the 25.0 % that mining needs",
        ]
    );
}

#[test]
fn an_honest_program_is_quiet_and_the_reasons_say_it_was_looked_at() {
    let v = verdict(&honest());
    assert_eq!(v.level, Level::Quiet);
    assert_eq!(v.families, []);
    assert_eq!(
        v.reasons,
        [
            "quiet: all tests had enough samples, of the thread nearest to a conclusion, and none concluded",
            "fp_rounding: not concluded after 5000 samples of the thread nearest to a conclusion, 0.0 nats of the 36.5 that \
             conclude; rounding modes 0/1/2/3 in 100.0 %/0.0 %/0.0 %/0.0 % of 1200 samples in this window",
            "register_randomness, all samples: not concluded after 1200 samples of the thread nearest to a conclusion, 0.0 nats \
             of the 36.5 that conclude; 5 of 1200 samples (0.4 %) with random registers in this window",
            "register_randomness, outside rounding mode 0: not concluded, 0.0 nats of the 36.5 that conclude; none of 1200 \
             samples in this window lay there",
            "register_randomness, general registers: not concluded after 170 samples of the thread nearest to a conclusion, 0.0 \
             nats of the 36.5 that conclude; 2 of 170 samples (1.2 %) with random registers in this window",
        ]
    );
}

#[test]
fn mining_needs_both_classes_and_the_duty_whatever_else_there_is() {
    for bits in 0..16 {
        let mut e = miner();
        e.fp_rounding.concluded = bits & 1 != 0;
        e.register_randomness.directed_concluded = bits & 2 != 0;
        e.register_randomness.any_concluded = bits & 4 != 0;
        e.fp_rounding.duty = if bits & 8 != 0 {
            MINING_DUTY
        } else {
            MINING_DUTY - 0.000_1
        };
        let expected = match bits {
            0b1011 | 0b1111 => Level::Mining,
            0b0000 | 0b1000 => Level::Quiet,
            _ => Level::Suspect,
        };
        let v = verdict(&e);
        assert_eq!(v.level, expected, "{bits:04b}");
        let family: &[Family] = match bits & 7 {
            3 | 7 => &[Family::RandomX],
            4 => &[Family::OtherHashing],
            _ => &[],
        };
        assert_eq!(v.families, family, "{bits:04b}");
        assert!(v.reasons[0].starts_with(&expected.to_string()));
    }
}

#[test]
fn duty_just_below_the_limit_does_not_read_as_the_limit() {
    let mut e = miner();
    e.fp_rounding.duty = 0.249_99;
    let v = verdict(&e);
    assert_eq!(v.level, Level::Suspect);
    assert!(v.reasons[0].contains("a node that verifies does the same"));
    assert!(
        v.reasons[5].contains("24.9 % of one CPU over the last minute, below the 25.0 %"),
        "{}",
        v.reasons[5]
    );
}

#[test]
fn a_duty_that_is_not_a_number_is_not_mining() {
    let mut e = miner();
    e.fp_rounding.duty = f64::NAN;
    assert_eq!(verdict(&e).level, Level::Suspect);
}

#[test]
fn other_hashing_at_full_speed_is_suspect_and_left_to_a_person() {
    let mut e = honest();
    e.register_randomness.random = 1_190;
    e.register_randomness.any_llr = 73.0;
    e.register_randomness.any_concluded = true;
    let v = verdict(&e);
    assert_eq!(v.level, Level::Suspect);
    assert_eq!(v.families, [Family::OtherHashing]);
    assert!(v.reasons[0].contains("only a person can tell"));
}

#[test]
fn too_few_samples_are_said_with_their_number() {
    let mut e = honest();
    e.fp_rounding.modes = [12, 0, 0, 0];
    e.fp_rounding.test_samples = 12;
    e.register_randomness.samples = 12;
    e.register_randomness.any_test_samples = 12;
    e.register_randomness.random = 0;
    let v = verdict(&e);
    assert_eq!(v.level, Level::Quiet);
    assert_eq!(
        v.reasons[0],
        "quiet for want of evidence: not enough samples"
    );
    assert!(v.reasons[1].contains("not enough samples to tell (12 samples of the thread"));
    assert!(v.reasons[2].contains("not enough samples to tell (12 samples of the thread"));
    assert!(v.reasons[3].contains("not enough samples to tell (0 samples there of the thread"));
}

#[test]
fn hashing_in_general_registers_alone_is_suspect_and_names_who_else_does_it() {
    let mut e = honest();
    e.register_randomness.general_random = 150;
    e.register_randomness.general_llr = 60.0;
    e.register_randomness.general_concluded = true;
    let v = verdict(&e);
    assert_eq!(v.level, Level::Suspect);
    assert_eq!(v.families, [], "it may be public-key cryptography");
    assert!(
        v.reasons[0].contains("public-key cryptography"),
        "{}",
        v.reasons[0]
    );
    // Nor does it stand in for random vector registers outside mode 0.
    e.fp_rounding = miner().fp_rounding;
    assert_eq!(verdict(&e).level, Level::Suspect);
}

#[test]
fn quiet_says_if_general_registers_cannot_tell_yet() {
    let mut e = honest();
    e.register_randomness.general_test_samples = 74;
    let said = &verdict(&e).reasons[0];
    assert!(
        said.starts_with("quiet so far") && said.contains("74 of 100"),
        "{said}"
    );
}

#[test]
fn quiet_says_if_general_registers_were_never_seen_or_nothing_new_was() {
    let mut e = honest();
    e.register_randomness.general_test_samples = 0;
    let said = &verdict(&e).reasons[0];
    assert!(
        said.starts_with("quiet so far") && said.contains("never seen"),
        "{said}"
    );
    for stalled in [0, 1] {
        let mut e = honest();
        if stalled == 0 {
            e.fp_rounding.state = SensorState::Stalled;
        } else {
            e.register_randomness.state = SensorState::Stalled;
        }
        let said = &verdict(&e).reasons[0];
        assert!(
            said.starts_with("quiet so far") && said.contains("nothing new"),
            "{said}"
        );
    }
}

#[test]
fn what_hashes_is_not_said_to_be_no_randomx_before_that_is_known() {
    let mut e = honest();
    e.register_randomness.any_llr = 73.0;
    e.register_randomness.any_concluded = true;
    e.fp_rounding.test_samples = 299;
    let early = verdict(&e);
    assert!(early.families.is_empty());
    assert!(
        early.reasons[0].contains("cannot be told yet"),
        "{}",
        early.reasons[0]
    );
    e.fp_rounding.test_samples = 300;
    assert_eq!(verdict(&e).families, [Family::OtherHashing]);
}

#[test]
fn one_test_with_enough_samples_does_not_speak_for_the_other() {
    let mut e = honest();
    e.register_randomness.any_test_samples = 12;
    assert!(verdict(&e).reasons[0].contains("register_randomness cannot tell yet"));
    let mut e = honest();
    e.fp_rounding.test_samples = 12;
    assert!(verdict(&e).reasons[0].contains("fp_rounding cannot tell yet"));
}

#[test]
fn a_sensor_that_cannot_or_did_not_measure_is_never_a_silent_quiet() {
    for (state, word) in [
        (SensorState::Unsupported, "unsupported"),
        (SensorState::NeverRan, "never ran"),
    ] {
        let mut e = TenantEvidence::default();
        e.fp_rounding.state = state;
        e.register_randomness.state = state;
        let v = verdict(&e);
        assert_eq!(v.level, Level::Quiet);
        assert_eq!(
            v.reasons[0],
            format!(
                "quiet for want of evidence: nothing was measured (fp_rounding {word}, register_randomness {word})"
            )
        );
        for reason in &v.reasons[1..] {
            assert!(reason.contains(&format!(": {word}")), "{reason}");
            assert!(reason.contains("says nothing"), "{reason}");
        }
    }
    let mut e = honest();
    e.fp_rounding.state = SensorState::Stalled;
    assert!(verdict(&e).reasons[1].contains("stalled (nothing new in this window)"));
}

#[test]
fn a_conclusion_carried_over_says_where_it_comes_from() {
    for (state, words) in [
        (SensorState::Stalled, "in earlier windows, stalled now"),
        (SensorState::NeverRan, "before the agent's start"),
        (SensorState::Unsupported, "unsupported now"),
    ] {
        let mut e = miner();
        e.fp_rounding.state = state;
        e.fp_rounding.modes = [0; 4];
        let v = verdict(&e);
        assert!(v.reasons[1].contains(words), "{}", v.reasons[1]);
        assert!(v.reasons[1].ends_with("no samples in this window"));
    }
}

#[test]
fn names_are_read_back() {
    for level in [Level::Quiet, Level::Suspect, Level::Mining] {
        assert_eq!(level.to_string().parse(), Ok(level));
    }
    for family in [Family::RandomX, Family::OtherHashing] {
        assert_eq!(family.to_string().parse(), Ok(family));
    }
    assert_eq!(
        "loud".parse::<Level>().unwrap_err().to_string(),
        "not one of quiet, suspect, mining"
    );
    assert!(Level::Quiet < Level::Suspect && Level::Suspect < Level::Mining);
}

fn state() -> impl Strategy<Value = SensorState> {
    prop_oneof![
        Just(SensorState::Live),
        Just(SensorState::Stalled),
        Just(SensorState::NeverRan),
        Just(SensorState::Unsupported)
    ]
}

prop_compose! {
    fn fp_rounding()(
        state in state(), modes in any::<[u64; 4]>(), llr in prop::array::uniform4(0.0..=1_000.0f64), test_samples in any::<u64>(),
        concluded in any::<bool>(), concluded_on_cpu_ns in any::<u64>(), duty in 0.0..=8_192.0f64,
    ) -> FpRounding {
        FpRounding { state, modes, llr, test_samples, concluded, concluded_on_cpu_ns, concluded_threads: u32::from(concluded), duty }
    }
}

prop_compose! {
    fn register_randomness()(
        state in state(), counts in any::<[u64; 9]>(), llr in prop::array::uniform3(0.0..=1_000.0f64), concluded in any::<[bool; 3]>(),
    ) -> RegisterRandomness {
        RegisterRandomness {
            state,
            samples: counts[0],
            random: counts[1],
            directed_samples: counts[2],
            directed_random: counts[3],
            any_llr: llr[0],
            any_concluded: concluded[0],
            any_test_samples: counts[4],
            directed_llr: llr[1],
            directed_concluded: concluded[1],
            directed_test_samples: counts[5],
            general_samples: counts[6],
            general_random: counts[7],
            general_llr: llr[2],
            general_concluded: concluded[2],
            general_test_samples: counts[8],
        }
    }
}

prop_compose! {
    fn pmu()(
        state in state(), mix_state in state(), counts in any::<[Option<u64>; 13]>(), whole in any::<[u64; 7]>(),
        mix_llr in 0.0..=1_000.0f64, mix_concluded in any::<bool>(), rate in prop::option::of(0.0..=1e12f64),
    ) -> Pmu {
        Pmu {
            state,
            mix_state,
            cycles: whole[0],
            instructions: whole[1],
            cache_misses: counts[0],
            branch_misses: counts[1],
            fp: FpOps {
                add: counts[2],
                sub: counts[3],
                add_sub: counts[4],
                mul: counts[5],
                div: counts[6],
                sqrt: counts[7],
                div_sqrt: counts[8],
                packed_double: counts[9],
            },
            control_word_traps: counts[10],
            divider_cycles: None,
            aes: counts[11],
            sha: counts[12],
            time_enabled_ns: whole[2],
            time_running_ns: whole[3],
            turns: whole[4],
            matches: whole[5],
            mix_llr,
            mix_turns: whole[6],
            mix_concluded,
            hash_rate: rate.map(|high| HashRate { low: high / 1.5, high }),
        }
    }
}

/// Exits of a guest that sleeps most of the time, over 2 vCPUs and 10 s.
fn exits() -> KvmExits {
    KvmExits {
        state: SensorState::Live,
        source: Some(ExitSource::Counters),
        observed_ns: 20_000_000_000,
        exits: 1_000,
        halts: Some(240),
        io: Some(20),
        interrupts: Some(100),
        ..KvmExits::default()
    }
}

#[test]
fn exits_are_told_in_words_and_numbers() {
    let reason = |kvm_exits| {
        let mut evidence = honest();
        evidence.kvm_exits = Some(kvm_exits);
        verdict(&evidence).reasons.pop().unwrap()
    };
    assert_eq!(
        reason(exits()),
        "kvm_exits: each vCPU left 50.0 times a second (halts 12.0/s, port I/O 1.0/s, host interrupts 5.0/s); it halts, which a \
         miner at full speed does not; by KVM's own counters"
    );
    let busy = reason(KvmExits {
        halts: Some(3),
        ..exits()
    });
    assert!(busy.contains("hardly a halt"), "{busy}");
    let traced = reason(KvmExits {
        source: Some(ExitSource::Tracepoint),
        isa: Some(Isa::Svm),
        reasons: davy_evidence::most_frequent(vec![
            ExitReason {
                code: 0x78,
                count: 240,
            },
            ExitReason {
                code: 0x60,
                count: 100,
            },
        ]),
        ..exits()
    });
    assert!(traced.contains("most often HLT 240, INTR 100"), "{traced}");
    let never = reason(KvmExits::default());
    assert_eq!(never, "kvm_exits: never ran, so it says nothing");
}

#[test]
fn writes_to_the_prefetchers_registers_corroborate() {
    let reason = |msr_writes| {
        let mut evidence = honest();
        evidence.msr_writes = Some(msr_writes);
        verdict(&evidence).reasons.pop().unwrap()
    };
    let live = MsrWrites {
        state: SensorState::Live,
        ..MsrWrites::default()
    };
    assert_eq!(
        reason(live),
        "msr_writes: none to the prefetcher's registers since it is watched"
    );
    let wrote = MsrWrites {
        prefetcher_writes: 1,
        prefetcher_writes_watched: 4,
        ..live
    };
    let text = reason(wrote);
    assert!(
        text.contains("registers 1 in")
            && text.contains("4 since")
            && text.contains("corroborates"),
        "{text}"
    );
    let absent = MsrWrites {
        state: SensorState::Unsupported,
        ..MsrWrites::default()
    };
    assert_eq!(
        reason(absent),
        "msr_writes: unsupported here, so it says nothing"
    );
}

fn all_exits() -> impl Strategy<Value = KvmExits> {
    let count = || prop::option::of(any::<u64>());
    let counts = (count(), count(), count(), count(), count());
    let reason = (any::<u32>(), any::<u64>()).prop_map(|(code, count)| ExitReason { code, count });
    (
        state(),
        any::<u64>(),
        any::<u64>(),
        counts,
        prop::array::uniform4(reason),
    )
        .prop_map(
            |(state, observed_ns, exits, (halts, io, mmio, interrupts, hypercalls), reasons)| {
                KvmExits {
                    state,
                    source: Some(ExitSource::Tracepoint),
                    observed_ns,
                    exits,
                    halts,
                    io,
                    mmio,
                    interrupts,
                    hypercalls,
                    isa: Some(Isa::Vmx),
                    reasons,
                }
            },
        )
}

fn all_msr_writes() -> impl Strategy<Value = MsrWrites> {
    (state(), any::<u64>(), any::<u64>()).prop_map(|(state, window, watched)| MsrWrites {
        state,
        prefetcher_writes: window.min(watched),
        prefetcher_writes_watched: watched,
    })
}

proptest! {
    /// What is told beside a verdict changes neither its level nor what is computed nor another reason.
    #[test]
    fn exits_and_register_writes_never_decide(
        fp_rounding in fp_rounding(),
        register_randomness in register_randomness(),
        kvm_exits in prop::option::of(all_exits()),
        msr_writes in prop::option::of(all_msr_writes()),
    ) {
        let alone = TenantEvidence { fp_rounding, register_randomness, ..TenantEvidence::default() };
        let beside = verdict(&TenantEvidence { kvm_exits, msr_writes, ..alone });
        let alone = verdict(&alone);
        prop_assert_eq!(beside.level, alone.level);
        prop_assert_eq!(beside.families, alone.families);
        prop_assert_eq!(&beside.reasons[..alone.reasons.len()], &alone.reasons[..]);
        let told = usize::from(kvm_exits.is_some()) + usize::from(msr_writes.is_some());
        prop_assert_eq!(beside.reasons.len(), alone.reasons.len() + told);
        prop_assert!(beside.reasons.iter().all(|r| (1..=500).contains(&r.chars().count())));
    }

    /// Whatever the evidence: reasons within the wire's limits, `mining` never from one class alone, and the
    /// same verdict again for the same evidence.
    #[test]
    fn any_evidence_has_a_verdict_with_reasons(
        fp_rounding in fp_rounding(), register_randomness in register_randomness(), pmu in prop::option::of(pmu()),
    ) {
        let e = TenantEvidence { fp_rounding, register_randomness, pmu, ..TenantEvidence::default() };
        let v = verdict(&e);
        let second = register_randomness.directed_concluded || pmu.is_some_and(|pmu| pmu.mix_concluded);
        prop_assert!(v.level != Level::Mining || (fp_rounding.concluded && second));
        prop_assert!((5..=32).contains(&v.reasons.len()));
        prop_assert!(v.reasons.iter().all(|r| (1..=500).contains(&r.chars().count())));
        prop_assert_eq!(verdict(&e), v);
    }
}
