//! The sequential tests on what real programs show: who concludes, who never does, and what a resumed test does.

use davy_evidence::{
    fp_rounding,
    register_randomness::{self, Samples, Standing},
    sequential::CEILING_NATS,
};
use proptest::prelude::*;

/// A fixed sequence of uniformly distributed numbers (`SplitMix64`), so that every run draws the same samples.
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One sample in a mode drawn with these shares.
    fn sample(&mut self, shares: [f64; 4]) -> [u64; 4] {
        let mut at = self.next() * shares.iter().sum::<f64>();
        let mut mode = 0;
        while mode < 3 && at >= shares[mode] {
            at -= shares[mode];
            mode += 1;
        }
        let mut modes = [0; 4];
        modes[mode] = 1;
        modes
    }
}

const RANDOMX: [f64; 4] = [0.32, 0.23, 0.22, 0.23];

/// Samples until a conclusion, or none within `samples_max`.
fn samples_to_conclude(draw: &mut Uniform, shares: [f64; 4], samples_max: u64) -> Option<u64> {
    let mut test = fp_rounding::Test::new();
    while !test.concluded() && test.samples() < samples_max {
        test.add(draw.sample(shares));
    }
    test.concluded().then(|| test.samples())
}

/// Samples of vector registers alone.
fn vectors(modes: [u64; 4], random: [u64; 4]) -> Samples {
    Samples {
        modes,
        random,
        ..Samples::default()
    }
}

fn at(llr: f64, concluded: bool) -> Standing {
    Standing {
        llr,
        concluded,
        samples: 9,
    }
}

/// Resumes with `standing` in one place (any, directed, general) and nothing in the others.
fn resume_with(
    place: usize,
    standing: Standing,
) -> Result<register_randomness::Test, davy_evidence::ResumeError> {
    let mut all = [Standing::default(); 3];
    all[place] = standing;
    register_randomness::Test::resume(all[0], all[1], all[2])
}

#[test]
fn randomx_concludes_within_the_documented_samples() {
    let mut draw = Uniform(1);
    let mut taken = Vec::new();
    for _ in 0..10_000 {
        taken.extend(samples_to_conclude(
            &mut draw,
            RANDOMX,
            fp_rounding::SAMPLES_TO_TELL,
        ));
    }
    assert!(taken.len() > 9_990, "{} of 10000", taken.len());
    let mean = taken.iter().sum::<u64>() as f64 / taken.len() as f64;
    assert!((86.0..96.0).contains(&mean), "{mean}");
}

#[test]
fn randomx_seen_from_the_host_of_a_real_guest_concludes_in_one_batch() {
    let mut test = fp_rounding::Test::new();
    test.add([112, 104, 81, 87]);
    assert!(test.concluded());
    assert_eq!(test.samples(), 384);
}

#[test]
fn every_mode_at_the_edge_of_the_alternative_concludes() {
    let mut draw = Uniform(2);
    let taken = samples_to_conclude(&mut draw, [0.97, 0.01, 0.01, 0.01], 10_000);
    assert!(taken.is_some());
}

#[test]
fn a_twentieth_of_a_vcpu_concludes_in_a_few_thousand_samples() {
    let mut draw = Uniform(4);
    let shares = [0.966, 0.0115, 0.011, 0.0115];
    let mut taken: Vec<_> = (0..200)
        .filter_map(|_| samples_to_conclude(&mut draw, shares, 6_000))
        .collect();
    taken.sort_unstable();
    assert!(taken.len() > 190, "{} of 200", taken.len());
    let median = taken[taken.len() / 2];
    assert!((1_500..3_500).contains(&median), "{median}");
}

#[test]
fn nine_million_samples_of_honest_shares_never_conclude() {
    let honest = [
        ("mode 0 only", [1.0, 0.0, 0.0, 0.0]),
        ("intervals, one directed mode", [0.0, 0.0, 1.0, 0.0]),
        ("intervals, two modes", [0.0, 0.5, 0.5, 0.0]),
        ("three modes", [0.4, 0.3, 0.3, 0.0]),
        (
            "0.05 % in each other mode",
            [0.9985, 0.0005, 0.0005, 0.0005],
        ),
        ("one mode at the null's edge", [0.341, 0.329, 0.329, 0.001]),
    ];
    for (name, shares) in honest {
        let mut draw = Uniform(3);
        assert_eq!(
            samples_to_conclude(&mut draw, shares, 1_500_000),
            None,
            "{name}"
        );
    }
}

#[test]
fn two_modes_in_turns_never_conclude() {
    let mut test = fp_rounding::Test::new();
    for turn in 0..10_000 {
        test.add(if turn % 2 == 0 {
            [0, 1_000, 0, 0]
        } else {
            [0, 0, 1_000, 0]
        });
        assert!(!test.concluded());
    }
}

#[test]
fn a_conclusion_holds_through_a_lull_and_falls_after_the_miner_stopped() {
    let mut test = fp_rounding::Test::new();
    for _ in 0..100 {
        test.add([32, 23, 22, 23]);
    }
    assert_eq!(test.llr(), [CEILING_NATS; 4]);
    // Below the threshold again, yet not at 0: hysteresis.
    test.add([5_000, 0, 0, 0]);
    assert!(test.least_llr() < fp_rounding::THRESHOLD_NATS);
    assert!(test.concluded());
    // However long it mined, 8,100 honest samples clear it.
    test.add([3_100, 0, 0, 0]);
    assert!(!test.concluded());
    assert_eq!(test.llr()[1..], [0.0; 3]);
    // And from there it must be earned anew.
    test.add([8, 6, 5, 6]);
    assert!(!test.concluded());
    test.add([64, 46, 44, 46]);
    assert!(test.concluded());
}

#[test]
fn no_samples_change_nothing() {
    let mut test = fp_rounding::Test::new();
    test.add([0; 4]);
    assert_eq!(test, fp_rounding::Test::new());
    let mut test = register_randomness::Test::new();
    test.add(vectors([0; 4], [9; 4]));
    assert_eq!(test, register_randomness::Test::new());
}

#[test]
fn absurd_counts_do_not_overflow() {
    let mut test = fp_rounding::Test::new();
    test.add([u64::MAX; 4]);
    test.add([u64::MAX; 4]);
    assert_eq!(test.samples(), u64::MAX);
    assert!(test.llr().iter().all(|l| (0.0..=CEILING_NATS).contains(l)));
    let mut test = register_randomness::Test::new();
    test.add(vectors([u64::MAX; 4], [u64::MAX; 4]));
    assert_eq!(test.any().llr, CEILING_NATS);
}

#[test]
fn hashing_in_mode_0_concludes_any_and_never_directed() {
    let mut test = register_randomness::Test::new();
    test.add(vectors([100, 0, 0, 0], [89, 0, 0, 0]));
    assert!(test.any().concluded);
    assert_eq!(test.directed().llr, 0.0);
    assert!(!test.directed().concluded);
}

#[test]
fn randomx_concludes_any_and_directed() {
    let mut test = register_randomness::Test::new();
    test.add(vectors([48, 35, 33, 34], [47, 35, 33, 33]));
    assert!(test.any().concluded && test.directed().concluded);
    // The miner stops, something honest goes on in mode 0 and a little outside it.
    test.add(vectors([400, 40, 0, 0], [1, 0, 0, 0]));
    assert!(!test.any().concluded);
    assert!(test.directed().concluded, "hysteresis");
    test.add(vectors([0, 60, 0, 0], [0; 4]));
    assert!(!test.directed().concluded);
}

#[test]
fn aes_gcm_codecs_and_intervals_never_conclude() {
    let mut test = register_randomness::Test::new();
    for _ in 0..10_000 {
        test.add(vectors([100, 0, 0, 0], [11, 0, 0, 0]));
        test.add(vectors([0, 100, 0, 0], [0, 1, 0, 0]));
        assert!(!test.any().concluded && !test.directed().concluded);
    }
}

#[test]
fn hashing_in_general_registers_concludes_general_alone() {
    let mut test = register_randomness::Test::new();
    let hashing = Samples {
        modes: [700, 0, 0, 0],
        general: 100,
        general_random: 86,
        ..Samples::default()
    };
    test.add(hashing);
    assert!(test.general().concluded);
    assert!(!test.any().concluded && !test.directed().concluded);
    assert_eq!(test.general().samples, 100);
    assert_eq!(test.any().samples, 700);
}

#[test]
fn elliptic_curves_never_conclude() {
    let mut test = register_randomness::Test::new();
    for _ in 0..10_000 {
        test.add(Samples {
            general: 100,
            general_random: 58,
            ..Samples::default()
        });
        assert!(!test.general().concluded);
    }
}

#[test]
fn impossible_states_are_not_resumed() {
    use fp_rounding::Test;
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-9, 73.1] {
        assert!(Test::resume([40.0, 40.0, bad, 40.0], 9, false).is_err());
        for place in 0..3 {
            assert!(resume_with(place, at(bad, false)).is_err());
        }
    }
    assert!(Test::resume([40.0, 40.0, 0.0, 40.0], 9, true).is_err());
    assert!(Test::resume([40.0; 4], 9, false).is_err());
    for place in 0..3 {
        assert!(resume_with(place, at(0.0, true)).is_err());
        assert!(resume_with(place, at(40.0, false)).is_err());
        assert!(resume_with(place, at(40.0, true)).is_ok());
    }
    let refused = Test::resume([40.0, 40.0, f64::NAN, 40.0], 9, false)
        .unwrap_err()
        .to_string();
    assert_eq!(
        refused,
        "the cumulative sum `mode 2` is NaN nats, which is not within 0 to 73"
    );
}

prop_compose! {
    fn batch()(modes in prop::array::uniform4(0u64..400)) -> [u64; 4] { modes }
}

/// Samples with their random ones, by mode.
fn random_batch() -> impl Strategy<Value = Samples> {
    let general = (0u64..300, 0u64..300);
    let vectors = (batch(), prop::array::uniform4(0.0..=1.0f64));
    (vectors, general).prop_map(|((modes, shares), (general, general_random))| {
        let mut random = [0; 4];
        for ((random, &all), share) in random.iter_mut().zip(&modes).zip(shares) {
            *random = (0..all)
                .filter(|&i| (i as f64) < share * all as f64)
                .count() as u64;
        }
        Samples {
            modes,
            random,
            general,
            general_random,
        }
    })
}

proptest! {
    /// Whichever mode is missing and however the others vary, there is no conclusion.
    #[test]
    fn a_missing_mode_forbids_a_conclusion(missing in 0usize..4, batches in prop::collection::vec(batch(), 1..100)) {
        let mut test = fp_rounding::Test::new();
        for mut modes in batches {
            modes[missing] = 0;
            test.add(modes);
            prop_assert!(!test.concluded());
            prop_assert_eq!(test.llr()[missing], 0.0);
        }
    }

    /// A mode that never has more than 0.1 % of a batch forbids it too.
    #[test]
    fn a_polluted_mode_forbids_a_conclusion(rare in 0usize..4, batches in prop::collection::vec(batch(), 1..100)) {
        let mut test = fp_rounding::Test::new();
        for mut modes in batches {
            modes[rare] = 0;
            modes[rare] = modes.iter().sum::<u64>() / 1_000;
            test.add(modes);
            prop_assert!(!test.concluded());
        }
    }

    /// A fifth of the samples or more in every mode concludes within 200 samples, however they are batched.
    #[test]
    fn four_modes_conclude_within_200_samples(extra in prop::collection::vec(0usize..4, 40), per_batch in 1usize..8) {
        // 40 groups of one sample per mode and one in any mode: at least 20 % each.
        let mut test = fp_rounding::Test::new();
        for batch in extra.chunks(per_batch) {
            let mut modes = [batch.len() as u64; 4];
            for &mode in batch {
                modes[mode] += 1;
            }
            test.add(modes);
        }
        prop_assert_eq!(test.samples(), 200);
        prop_assert!(test.concluded());
    }

    /// The sum of a batch is never above what the same samples give one by one, in whatever order.
    #[test]
    fn a_batch_never_adds_more_than_its_samples_do(
        before in batch(),
        order in prop::collection::vec(0usize..4, 1..40),
    ) {
        let mut batched = fp_rounding::Test::new();
        batched.add(before.map(|n| n / 40));
        let mut single = batched;
        let mut modes = [0; 4];
        for &mode in &order {
            modes[mode] += 1;
            let mut one = [0; 4];
            one[mode] = 1;
            single.add(one);
        }
        batched.add(modes);
        prop_assert_eq!(batched.samples(), single.samples());
        for (b, s) in batched.llr().into_iter().zip(single.llr()) {
            // At the ceiling the order decides what is cut off; below it the inequality is exact.
            prop_assert!(b <= s + 1e-9 || b > CEILING_NATS / 2.0, "{b} {s}");
        }
    }

    #[test]
    fn a_resumed_fp_rounding_test_goes_on_as_the_one_it_continues(
        before in prop::collection::vec(batch(), 0..20),
        after in prop::collection::vec(batch(), 0..20),
    ) {
        let mut continued = fp_rounding::Test::new();
        for modes in before {
            continued.add(modes);
        }
        let resumed = fp_rounding::Test::resume(continued.llr(), continued.samples(), continued.concluded());
        prop_assert_eq!(resumed, Ok(continued));
        let mut resumed = resumed.unwrap();
        for modes in after {
            continued.add(modes);
            resumed.add(modes);
            prop_assert_eq!(resumed, continued);
        }
    }

    #[test]
    fn a_resumed_register_randomness_test_goes_on_as_the_one_it_continues(
        before in prop::collection::vec(random_batch(), 0..20),
        after in prop::collection::vec(random_batch(), 0..20),
    ) {
        let mut continued = register_randomness::Test::new();
        for samples in before {
            continued.add(samples);
        }
        let resumed = register_randomness::Test::resume(
            continued.any(),
            continued.directed(),
            continued.general(),
        );
        prop_assert_eq!(resumed, Ok(continued));
        let mut resumed = resumed.unwrap();
        for samples in after {
            continued.add(samples);
            resumed.add(samples);
            prop_assert_eq!(resumed, continued);
        }
    }

    /// Samples in mode 0 alone never move the directed test, whatever they hold.
    #[test]
    fn mode_0_never_moves_the_directed_test(batches in prop::collection::vec(random_batch(), 1..50)) {
        let mut test = register_randomness::Test::new();
        for Samples { modes, random, .. } in batches {
            test.add(vectors([modes[0], 0, 0, 0], [random[0], 0, 0, 0]));
            prop_assert_eq!(test.directed().llr, 0.0);
            prop_assert!(!test.directed().concluded);
        }
    }
}
