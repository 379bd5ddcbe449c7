//! Trials on deltas made by hand.

use super::*;
use crate::evidence::Mixing;
use crate::trial::document::{self, Ended, Machine, TargetName, VERSION};

const SECOND_NS: u64 = 1_000_000_000;
const HOST: HostSensors = HostSensors {
    fp_rounding: SensorState::Live,
    register_randomness: SensorState::Live,
};

fn part(thread: u32, modes: [u64; 4], random: [u64; 4]) -> ThreadDelta {
    delta(
        1,
        &Part {
            thread,
            on_cpu_ns: SECOND_NS * 9 / 10,
            looks: modes.iter().sum(),
            modes,
            random,
            general_samples: modes.iter().sum(),
            general_random: 0,
            involuntary_looks: modes.iter().sum(),
            involuntary_directed: modes[1..].iter().sum(),
            vcpu: false,
            confidential: false,
            ended: false,
        },
    )
}

/// A trial of one-second windows, each of these deltas.
fn course(windows: &[Vec<ThreadDelta>]) -> Course {
    let (mut course, mut tests) = (Course::default(), Tests::default());
    for deltas in windows {
        tests.update(deltas, |_| false);
        course.take(deltas.iter().copied());
        let mut books = Books::default();
        for delta in deltas {
            books.cpu.add(delta.cpu);
        }
        course.close(
            SECOND_NS,
            &books,
            &tests.close(1, SECOND_NS, HOST, &Mixing::default()),
        );
    }
    course
}

/// The document of a trial, as far as replaying needs it.
pub(crate) fn document(course: Course) -> Document {
    let judged = course.judged();
    let (fp, rr) = (
        judged.evidence.fp_rounding,
        judged.evidence.register_randomness,
    );
    let (fraction, directed_fraction, general_fraction) = fractions(&rr);
    let (cpu_seconds, threads) = (course.cpu_seconds(), course.threads());
    let (windows, trace, trace_complete) = course.into_trace();
    Document {
        version: VERSION,
        agent_version: "0".to_owned(),
        machine: Machine {
            kernel_release: "6.1".to_owned(),
            cpu_model: "x".to_owned(),
            cpus: 2,
        },
        target: TargetName::Command(vec!["miner".to_owned(), "-t1".to_owned()]),
        ended: Ended::Time,
        exit_code: None,
        exit_signal: Some(15),
        left_running: 0,
        seconds: 1.0,
        cpu_seconds,
        threads,
        threads_unwatched: 0,
        samples: rr.samples,
        enough_samples: judged.enough_samples,
        fp_rounding: document::FpRounding {
            state: fp.state,
            reason: String::new(),
            modes: fp.modes,
            llr: fp.llr,
            test_samples: fp.test_samples,
            concluded: fp.concluded,
            duty: fp.duty,
        },
        register_randomness: document::RegisterRandomness {
            state: rr.state,
            reason: String::new(),
            samples: rr.samples,
            random: rr.random,
            fraction,
            directed_samples: rr.directed_samples,
            directed_random: rr.directed_random,
            directed_fraction,
            any_llr: rr.any_llr,
            any_concluded: rr.any_concluded,
            any_test_samples: rr.any_test_samples,
            directed_llr: rr.directed_llr,
            directed_concluded: rr.directed_concluded,
            directed_test_samples: rr.directed_test_samples,
            general_samples: rr.general_samples,
            general_random: rr.general_random,
            general_fraction,
            general_llr: rr.general_llr,
            general_concluded: rr.general_concluded,
            general_test_samples: rr.general_test_samples,
        },
        waits: None,
        kvm_exits: None,
        msr_writes: None,
        pmu: (judged.evidence.pmu).map(|pmu| pmu::document(&pmu, String::new(), trace)),
        verdict: judged.verdict.level,
        families: judged.verdict.families,
        reasons: judged.verdict.reasons,
        trace_complete,
        windows,
    }
}

/// A second of RandomX.
pub(crate) fn randomx() -> Vec<ThreadDelta> {
    vec![part(0, [64, 46, 44, 46], [64, 46, 44, 46])]
}

/// A second of floating-point work.
pub(crate) fn honest() -> Vec<ThreadDelta> {
    vec![part(0, [100, 0, 0, 0], [0; 4])]
}

pub(crate) fn document_of(windows: &[Vec<ThreadDelta>]) -> Document {
    document(course(windows))
}

#[test]
fn a_trial_is_judged_as_one_window() {
    let course = course(&[honest(), honest(), honest()]);
    let judged = course.judged();
    assert_eq!(judged.verdict.level, Level::Quiet);
    assert!(judged.enough_samples);
    assert_eq!(judged.evidence.fp_rounding.modes, [300, 0, 0, 0]);
    let reasons = judged.verdict.reasons.join("\n");
    assert!(reasons.contains("of 300 samples"), "{reasons}");
    assert!(!reasons.contains("window"), "{reasons}");
}

#[test]
fn too_few_samples_are_not_enough() {
    let judged = course(&[honest()]).judged();
    assert_eq!(judged.verdict.level, Level::Quiet);
    assert!(!judged.enough_samples);
    assert!(!course(&[]).judged().enough_samples);
}

#[test]
fn a_miner_is_found_and_its_trace_gives_the_same_verdict_again() {
    let document = document_of(&[randomx(), randomx(), randomx(), randomx(), randomx()]);
    assert_eq!(document.verdict, Level::Mining, "{:?}", document.reasons);
    let text = serde_json::to_string(&document).unwrap();
    let read: Document = serde_json::from_str(&text).unwrap();
    let judged = replay(&read);
    assert_eq!(judged.verdict.level, document.verdict);
    assert_eq!(judged.verdict.reasons, document.reasons);
    assert_eq!(judged.evidence.fp_rounding.llr, document.fp_rounding.llr);
}

#[test]
fn a_thread_that_told_enough_may_end_before_the_trial() {
    let mut last = honest();
    last[0].ended = true;
    let idle = vec![part(1, [5, 0, 0, 0], [0; 4])];
    let mut windows = vec![honest(); 5];
    windows.extend([last, idle.clone(), idle]);
    let document = document_of(&windows);
    assert!(document.enough_samples);
    assert_eq!(document.fp_rounding.test_samples, 600);
    assert_eq!(document.threads, 2);
    assert_eq!(replay(&document).verdict.reasons, document.reasons);
}

#[test]
fn a_sensor_that_measured_once_measured_in_the_trial() {
    let nothing = Vec::new();
    let document = document_of(&[honest(), nothing.clone(), nothing.clone()]);
    assert_eq!(document.fp_rounding.state, SensorState::Live);
    let document = document_of(&[nothing]);
    assert_eq!(document.fp_rounding.state, SensorState::NeverRan);
    assert_eq!(document.register_randomness.fraction, None);
}

#[test]
fn a_higher_verdict_on_the_way_is_known() {
    let mut windows = vec![randomx(); 5];
    assert_eq!(course(&windows).higher(), None);
    windows.extend(vec![honest(); 60]);
    let course = course(&windows);
    assert!(course.level() < Level::Mining, "{:?}", course.level());
    let (level, seconds) = course.higher().unwrap();
    assert_eq!(level, Level::Mining);
    assert!((1.0..65.0).contains(&seconds), "{seconds}");
}

#[test]
fn the_documents_shape_is_what_its_readers_expect() {
    let document = document_of(&[randomx()]);
    let value = serde_json::to_value(&document).unwrap();
    assert_eq!(value["version"], 1);
    assert_eq!(value["command"], serde_json::json!(["miner", "-t1"]));
    assert_eq!(value["ended"], "time");
    assert_eq!(value["exit_signal"], 15);
    assert!(value.get("exit_code").is_none());
    assert_eq!(value["fp_rounding"]["state"], "live");
    assert_eq!(
        value["fp_rounding"]["modes"],
        serde_json::json!([64, 46, 44, 46])
    );
    assert_eq!(value["register_randomness"]["fraction"], 1.0);
    assert_eq!(
        value["windows"][0]["by_thread"][0],
        serde_json::json!({
            "thread": 0, "on_cpu_ns": 900_000_000, "looks": 200,
            "modes": [64, 46, 44, 46], "random": [64, 46, 44, 46],
            "general_samples": 200,
            "involuntary_looks": 200, "involuntary_directed": 136
        })
    );
    for name in ["seconds", "cpu_seconds", "threads", "samples", "verdict"] {
        assert!(value.get(name).is_some(), "{name}");
    }
}

/// A trial of RandomX's modes without random registers, in which each second completes a mix.
fn counted(matched: bool) -> Document {
    let (mut course, mut tests) = (Course::default(), Tests::default());
    let mut mixes = crate::sensor::pmu::mixes::Mixes::default();
    for _ in 0..30 {
        let deltas = vec![part(0, [64, 46, 44, 46], [0; 4])];
        tests.update(&deltas, |_| false);
        course.take(deltas.iter().copied());
        let turn = Turn {
            thread: deltas[0].thread,
            tenant: 1,
            matched,
        };
        mixes.add(&turn);
        course.take_turns([&turn].into_iter());
        let mixing = mixes.mixing(1);
        let standing = mixes.close(1, SECOND_NS, &tests.in_all_modes(1));
        let mut evidence = tests.close(1, SECOND_NS, HOST, &mixing);
        evidence.pmu = Some(davy_evidence::Pmu {
            state: SensorState::Live,
            mix_state: SensorState::Live,
            instructions: 7,
            turns: standing.turns,
            matches: standing.matches,
            mix_llr: standing.nearest.llr(),
            mix_turns: standing.nearest.turns(),
            mix_concluded: standing.nearest.concluded(),
            ..davy_evidence::Pmu::default()
        });
        let mut books = Books::default();
        books.cpu.add(deltas[0].cpu);
        course.close(SECOND_NS, &books, &evidence);
    }
    document(course)
}

#[test]
fn mixes_are_part_of_the_trace_and_of_the_verdict() {
    let document = counted(true);
    assert_eq!(document.verdict, Level::Mining, "{:?}", document.reasons);
    let pmu = document.pmu.as_ref().unwrap();
    assert_eq!(
        (pmu.turns, pmu.matches, pmu.instructions),
        (30, 30, Some(210))
    );
    assert_eq!(pmu.trace.len(), 30);
    let json = serde_json::to_string(&document).unwrap();
    let again = replay(&serde_json::from_str(&json).unwrap());
    assert_eq!(again.verdict.level, Level::Mining);
    assert_eq!(again.evidence.pmu.unwrap().mix_turns, 30);
}

#[test]
fn mixes_that_do_not_match_leave_four_modes_a_suspect() {
    let document = counted(false);
    assert_eq!(document.verdict, Level::Suspect);
    assert_eq!(replay(&document).verdict.level, Level::Suspect);
}

#[test]
fn a_document_from_before_the_counters_is_still_read() {
    let old = serde_json::to_value(document_of(&[honest()])).unwrap();
    assert!(old.get("pmu").is_none());
    let document: Document = serde_json::from_value(old).unwrap();
    assert_eq!(replay(&document).evidence.pmu, None);
}
