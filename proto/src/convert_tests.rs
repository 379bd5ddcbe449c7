//! What is sent arrives; what cannot be is refused by the field's name.

use davy_evidence::{ExitReason, ExitSource, KvmExits, MsrWrites, kvm_exits::Isa, most_frequent};
use prost::Message;

use super::*;

fn exits() -> KvmExits {
    KvmExits {
        state: SensorState::Live,
        source: Some(ExitSource::Tracepoint),
        observed_ns: 9_000_000_000,
        exits: 700,
        halts: Some(12),
        io: Some(0),
        mmio: None,
        interrupts: Some(250),
        hypercalls: None,
        isa: Some(Isa::Svm),
        reasons: most_frequent(vec![
            ExitReason {
                code: 0x60,
                count: 250,
            },
            ExitReason {
                code: 0x78,
                count: 12,
            },
        ]),
    }
}

fn evidence() -> TenantEvidence {
    TenantEvidence {
        fp_rounding: FpRounding {
            state: SensorState::Live,
            modes: [1, 2, 3, 4],
            llr: [0.5, 1.5, 2.5, 73.0],
            test_samples: 5,
            concluded: true,
            concluded_on_cpu_ns: 6,
            concluded_threads: 2,
            duty: 0.7,
        },
        register_randomness: RegisterRandomness {
            state: SensorState::Stalled,
            samples: 8,
            random: 7,
            directed_samples: 6,
            directed_random: 5,
            any_llr: 4.5,
            any_concluded: true,
            any_test_samples: 9,
            directed_llr: 3.5,
            directed_concluded: true,
            directed_test_samples: 10,
            general_samples: 12,
            general_random: 11,
            general_llr: 2.5,
            general_concluded: true,
            general_test_samples: 13,
        },
        kvm_exits: Some(exits()),
        msr_writes: Some(MsrWrites {
            state: SensorState::Live,
            prefetcher_writes: 1,
            prefetcher_writes_watched: 4,
        }),
        pmu: None,
    }
}

/// The wire form of [`evidence`], changed by `change`, converted back; the error's text.
fn refusal(change: impl FnOnce(&mut v1::FpRounding, &mut v1::RegisterRandomness)) -> String {
    let mut fp = v1::FpRounding::from(&evidence().fp_rounding);
    let mut rr = v1::RegisterRandomness::from(&evidence().register_randomness);
    change(&mut fp, &mut rr);
    let wire = v1::Evidence {
        fp_rounding: Some(fp),
        register_randomness: Some(rr),
        ..v1::Evidence::default()
    };
    match TenantEvidence::try_from(&wire) {
        Ok(accepted) => format!("accepted: {accepted:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn evidence_survives_the_wire() {
    for evidence in [evidence(), TenantEvidence::default()] {
        let bytes = v1::Evidence::from(&evidence).encode_to_vec();
        let wire = v1::Evidence::decode(bytes.as_slice()).unwrap();
        assert_eq!(TenantEvidence::try_from(&wire), Ok(evidence));
    }
}

#[test]
fn every_state_and_level_survives_the_wire() {
    for state in [
        SensorState::Live,
        SensorState::Stalled,
        SensorState::NeverRan,
        SensorState::Unsupported,
    ] {
        assert_eq!(
            SensorState::try_from(v1::SensorState::from(state)),
            Ok(state)
        );
    }
    for level in [Level::Quiet, Level::Suspect, Level::Mining] {
        assert_eq!(Level::try_from(v1::VerdictLevel::from(level)), Ok(level));
    }
    assert!(SensorState::try_from(v1::SensorState::Unspecified).is_err());
    assert!(Level::try_from(v1::VerdictLevel::Unspecified).is_err());
}

#[test]
fn verdicts_of_real_evidence_survive_the_wire() {
    for evidence in [evidence(), TenantEvidence::default()] {
        let verdict = davy_evidence::verdict(&evidence);
        let wire = v1::Verdict::from(&verdict);
        assert_eq!(Verdict::try_from(&wire), Ok(verdict));
    }
}

#[test]
fn what_an_older_agent_does_not_send_is_not_known() {
    let wire = v1::Evidence {
        kvm_exits: None,
        msr_writes: None,
        ..v1::Evidence::from(evidence())
    };
    let evidence = TenantEvidence::try_from(wire).unwrap();
    assert_eq!((evidence.kvm_exits, evidence.msr_writes), (None, None));
}

#[test]
fn bad_figures_of_guests_are_refused_by_name() {
    let refusal = |change: &dyn Fn(&mut v1::KvmExits)| {
        let mut wire = v1::KvmExits::from(&exits());
        change(&mut wire);
        KvmExits::try_from(&wire).unwrap_err().to_string()
    };
    assert_eq!(
        refusal(&|exits| exits.state = 0),
        "evidence.kvm_exits.state is missing"
    );
    assert_eq!(
        refusal(&|exits| exits.source = 9),
        "evidence.kvm_exits.source has the unknown value 9"
    );
    assert_eq!(
        refusal(&|exits| exits.isa = -1),
        "evidence.kvm_exits.isa has the unknown value -1"
    );
    assert_eq!(
        refusal(&|exits| exits.reasons = vec![v1::ExitReason::default(); 5]),
        "evidence.kvm_exits.reasons has 5 entries; at most 4 are allowed"
    );
    let error = MsrWrites::try_from(&v1::MsrWrites::default()).unwrap_err();
    assert_eq!(error.to_string(), "evidence.msr_writes.state is missing");
}

#[test]
fn absent_parts_are_refused() {
    let whole = v1::Evidence::from(evidence());
    let no_fp = v1::Evidence {
        fp_rounding: None,
        ..whole
    };
    assert_eq!(
        TenantEvidence::try_from(no_fp).unwrap_err().to_string(),
        "evidence.fp_rounding is missing"
    );
    let whole = v1::Evidence::from(evidence());
    let no_rr = v1::Evidence {
        register_randomness: None,
        ..whole
    };
    assert_eq!(
        TenantEvidence::try_from(no_rr).unwrap_err().to_string(),
        "evidence.register_randomness is missing"
    );
}

#[test]
fn bad_figures_are_refused_by_name() {
    assert_eq!(
        refusal(|fp, _| fp.modes.truncate(3)),
        "evidence.fp_rounding.modes has 3 entries; exactly 4 are allowed"
    );
    assert_eq!(
        refusal(|fp, _| fp.llr.push(0.0)),
        "evidence.fp_rounding.llr has 5 entries; exactly 4 are allowed"
    );
    assert_eq!(
        refusal(|fp, _| fp.llr[2] = f64::NAN),
        "evidence.fp_rounding.llr is NaN, which is not within 0 to 1000"
    );
    assert_eq!(
        refusal(|fp, _| fp.duty = -0.5),
        "evidence.fp_rounding.duty is -0.5, which is not within 0 to 8192"
    );
    assert_eq!(
        refusal(|fp, _| fp.state = 0),
        "evidence.fp_rounding.state is missing"
    );
    assert_eq!(
        refusal(|_, rr| rr.state = 99),
        "evidence.register_randomness.state has the unknown value 99"
    );
    assert_eq!(
        refusal(|_, rr| rr.any_llr = f64::INFINITY),
        "evidence.register_randomness.any_llr is inf, which is not within 0 to 1000"
    );
    assert_eq!(
        refusal(|_, rr| rr.directed_llr = -1.0),
        "evidence.register_randomness.directed_llr is -1, which is not within 0 to 1000"
    );
}

#[test]
fn bad_verdicts_are_refused_by_name() {
    let good = v1::Verdict {
        level: v1::VerdictLevel::Suspect.into(),
        reasons: vec!["ä".repeat(REASON_CHARS_MAX)],
        families: vec!["RandomX".to_owned()],
    };
    assert!(Verdict::try_from(&good).is_ok());
    let refusal = |change: &dyn Fn(&mut v1::Verdict)| {
        let mut wire = good.clone();
        change(&mut wire);
        Verdict::try_from(wire).unwrap_err().to_string()
    };
    assert_eq!(refusal(&|v| v.level = 0), "verdict.level is missing");
    assert_eq!(
        refusal(&|v| v.level = 7),
        "verdict.level has the unknown value 7"
    );
    assert_eq!(
        refusal(&|v| v.reasons.clear()),
        "verdict.reasons has 0 entries; 1 to 32 are allowed"
    );
    assert_eq!(
        refusal(&|v| v.reasons = vec!["x".to_owned(); REASONS_MAX + 1]),
        "verdict.reasons has 33 entries; 1 to 32 are allowed"
    );
    let bad_reason = "verdict.reasons must have 1 to 500 characters and no control characters";
    for reason in ["", "\u{1b}[2J", &"x".repeat(REASON_CHARS_MAX + 1)] {
        assert_eq!(
            refusal(&|v| v.reasons = vec![reason.to_owned()]),
            bad_reason
        );
    }
    assert_eq!(
        refusal(&|v| v.families = vec!["RandomX".to_owned(); FAMILIES_MAX + 1]),
        "verdict.families has 9 entries; at most 8 are allowed"
    );
    assert_eq!(
        refusal(&|v| v.families = vec!["alchemy".to_owned()]),
        "verdict.families has the unknown name \"alchemy\""
    );
}
