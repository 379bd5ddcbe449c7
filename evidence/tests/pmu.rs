//! `pmu`: which mixes match, when its test concludes, and what its conclusion is worth in a verdict.

use davy_evidence::{
    Family, FpOps, FpRounding, HashRate, Level, MINING_DUTY, Pmu, RegisterRandomness, SensorState,
    TenantEvidence,
    pmu::{self, Mix, THRESHOLD_NATS, TURNS_PER_S_MAX, TURNS_TO_TELL, Test},
    verdict,
};

fn split(counts: [f64; 5]) -> Mix {
    let [add, sub, mul, div, sqrt] = counts;
    Mix::Split {
        add,
        sub,
        mul,
        div,
        sqrt,
    }
}

fn merged(add_sub: f64, mul: f64, div_sqrt: f64) -> Mix {
    Mix::Merged {
        add_sub,
        mul,
        div_sqrt,
    }
}

#[test]
fn the_specified_mix_matches_in_any_unit_and_within_its_scatter() {
    let exact = [21.0, 21.0, 32.0, 4.0, 6.0];
    assert!(split(exact).matches_randomx());
    assert!(split(exact.map(|n| n * 1e-4)).matches_randomx());
    assert!(split([21.4, 20.7, 31.5, 4.3, 5.7]).matches_randomx());
    assert!(merged(42.0, 32.0, 10.0).matches_randomx());
}

#[test]
fn each_kind_that_is_off_is_a_miss() {
    for kind in 0..5 {
        for factor in [0.75, 1.45] {
            let mut counts = [21.0, 21.0, 32.0, 4.0, 6.0];
            counts[kind] *= factor;
            assert!(!split(counts).matches_randomx(), "{kind} × {factor}");
        }
    }
}

#[test]
fn honest_mixes_do_not_match() {
    // Matrix products, a softmax, vector normalisation, Black-Scholes-like pricing, and no floating point at all.
    for counts in [
        [50.0, 0.0, 50.0, 0.0, 0.0],
        [45.0, 5.0, 48.0, 2.0, 0.0],
        [33.0, 0.0, 50.0, 0.0, 17.0],
        [30.0, 15.0, 45.0, 8.0, 2.0],
        [0.0; 5],
    ] {
        assert!(!split(counts).matches_randomx(), "{counts:?}");
    }
    // An N-body step: the nearest of the honest ones where kinds are counted together.
    assert!(!merged(11.0, 10.0, 2.0).matches_randomx());
}

#[test]
fn what_is_no_number_matches_nothing() {
    assert!(!split([f64::NAN, 21.0, 32.0, 4.0, 6.0]).matches_randomx());
    assert!(!split([f64::INFINITY, 21.0, 32.0, 4.0, 6.0]).matches_randomx());
}

#[test]
fn eleven_matching_turns_conclude_and_ten_do_not() {
    let mut test = Test::new();
    test.add(10, 0);
    assert!(!test.concluded());
    test.add(1, 0);
    assert!(test.concluded() && test.llr() >= THRESHOLD_NATS);
    assert_eq!(test.turns(), 11);
}

#[test]
fn a_conclusion_falls_when_the_miner_has_gone() {
    let mut test = Test::new();
    test.add(100, 0);
    assert!(test.concluded());
    test.add(0, 81);
    assert!(test.concluded());
    test.add(0, 1);
    assert!(!test.concluded());
}

#[test]
fn too_few_turns_to_tell_are_more_than_a_miner_needs() {
    let mut test = Test::new();
    for turn in 0..TURNS_TO_TELL {
        test.add(u64::from(turn % 10 != 9), u64::from(turn % 10 == 9));
    }
    assert!(test.concluded());
}

#[test]
fn false_conclusions_are_as_rare_as_documented() {
    let rate =
        davy_evidence::sequential::false_conclusions_per_million_vm_days(64.0, TURNS_PER_S_MAX);
    assert!((0.000_7..0.000_8).contains(&rate), "{rate}");
}

#[test]
fn a_test_goes_on_where_another_stood_and_a_contradiction_is_refused() {
    let mut whole = Test::new();
    whole.add(7, 1);
    let mut second = Test::resume(whole.llr(), whole.turns(), whole.concluded()).unwrap();
    whole.add(9, 0);
    second.add(9, 0);
    assert_eq!(whole, second);
    assert!(Test::resume(1.0, 5, false).is_ok());
    assert!(Test::resume(0.0, 5, true).is_err());
    assert!(Test::resume(THRESHOLD_NATS, 5, false).is_err());
    assert!(Test::resume(f64::NAN, 5, false).is_err());
}

#[test]
fn a_rate_of_divisions_is_a_range_of_hash_rates() {
    let (low, high) = pmu::hash_rate(655_360_000.0);
    assert!((high - 10_000.0).abs() < 1e-6, "{high}");
    assert!((low - 6_666.666).abs() < 0.01, "{low}");
}

/// Concluded in all four modes, at `duty`; the mix as given.
fn evidence(fp_concluded: bool, mix_concluded: bool, duty: f64) -> TenantEvidence {
    TenantEvidence {
        fp_rounding: FpRounding {
            state: SensorState::Live,
            modes: [112, 104, 81, 87],
            llr: [73.0; 4],
            test_samples: 384,
            concluded: fp_concluded,
            duty,
            ..FpRounding::default()
        },
        register_randomness: RegisterRandomness {
            state: SensorState::Unsupported,
            ..RegisterRandomness::default()
        },
        pmu: Some(Pmu {
            state: SensorState::Live,
            mix_state: SensorState::Live,
            cycles: 4_000_000,
            instructions: 6_000_000,
            cache_misses: Some(12_000),
            fp: FpOps {
                add: Some(210_000),
                sub: Some(210_000),
                mul: Some(320_000),
                div: Some(40_000),
                sqrt: Some(60_000),
                ..FpOps::default()
            },
            time_enabled_ns: 1_000,
            time_running_ns: 1_000,
            turns: 3,
            matches: 3,
            mix_llr: 40.8,
            mix_turns: 12,
            mix_concluded,
            hash_rate: mix_concluded.then_some(HashRate {
                low: 400.0,
                high: 600.0,
            }),
            ..Pmu::default()
        }),
        ..TenantEvidence::default()
    }
}

#[test]
fn four_modes_and_the_mix_at_a_miners_duty_are_mining() {
    let v = verdict(&evidence(true, true, 0.9));
    assert_eq!(v.level, Level::Mining);
    assert_eq!(v.families, [Family::RandomX]);
    assert_eq!(
        v.reasons[0],
        "mining: computes in all four rounding modes with RandomX's mix of floating-point operations, at or above the duty of \
         a miner"
    );
    assert_eq!(
        v.reasons[5],
        "pmu, mix of floating-point operations: concluded, 40.8 nats of the 36.5 that conclude; 3 of 3 turns in this window \
         matched"
    );
    assert_eq!(
        v.reasons[6],
        "pmu: 1.50 instructions per cycle, 2.000 cache misses, add:sub:mul:div:sqrt 25.0:25.0:38.1:4.8:7.1 %, divisions for 400 \
         to 600 H/s of RandomX (misses, traps and operations per 1000 instructions)"
    );
}

#[test]
fn the_mix_alone_is_suspect_and_never_mining_at_whatever_duty() {
    let v = verdict(&evidence(false, true, 64.0));
    assert_eq!(v.level, Level::Suspect);
    assert_eq!(v.families, []);
    assert!(
        v.reasons[0].contains("mining needs all four rounding modes as well"),
        "{:?}",
        v.reasons
    );
}

#[test]
fn four_modes_without_the_mix_or_the_registers_are_suspect() {
    let v = verdict(&evidence(true, false, 0.9));
    assert_eq!(v.level, Level::Suspect);
    assert_eq!(v.families, []);
}

#[test]
fn the_duty_counts_for_the_mix_as_well() {
    assert_eq!(
        verdict(&evidence(true, true, MINING_DUTY)).level,
        Level::Mining
    );
    let v = verdict(&evidence(true, true, MINING_DUTY - 1e-6));
    assert_eq!(v.level, Level::Suspect);
    assert!(v.reasons[0].contains("a node that verifies does the same"));
}

#[test]
fn the_mix_and_random_registers_are_no_mining_without_the_modes() {
    let mut e = evidence(false, true, 0.9);
    e.register_randomness.directed_concluded = true;
    assert_eq!(verdict(&e).level, Level::Suspect);
}

#[test]
fn hashing_with_the_mix_is_not_called_other_hashing() {
    let mut e = evidence(false, true, 0.9);
    e.register_randomness.any_concluded = true;
    let v = verdict(&e);
    assert_eq!((v.level, v.families), (Level::Suspect, Vec::new()));
}

#[test]
fn counters_that_cannot_count_say_nothing_and_say_so() {
    let mut e = evidence(false, false, 0.0);
    e.pmu = Some(Pmu {
        state: SensorState::Unsupported,
        mix_state: SensorState::Unsupported,
        ..Pmu::default()
    });
    let v = verdict(&e);
    assert_eq!(v.level, Level::Quiet);
    assert!(
        v.reasons[5].contains("unsupported here, so it says nothing"),
        "{:?}",
        v.reasons
    );
    e.pmu = Some(Pmu {
        state: SensorState::Live,
        mix_state: SensorState::Unsupported,
        ..Pmu::default()
    });
    assert!(verdict(&e).reasons[5].contains("do not tell them apart"));
}

#[test]
fn what_was_counted_in_part_of_the_time_is_said_to_be_scaled() {
    let mut e = evidence(false, false, 0.0);
    let pmu = e.pmu.as_mut().unwrap();
    pmu.time_running_ns = 750;
    assert!(verdict(&e).reasons[6].contains("counted in 75.0 % of the time and scaled"));
}
