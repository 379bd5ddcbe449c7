//! Golden outputs.

use davy_proto::v1;

use super::*;
use crate::model::{Droplets, OneDroplet, Status};

/// The reader's clock.
const NOW: u64 = 1_800_000_000 * SECOND_NS;

fn before(seconds: u64) -> u64 {
    NOW - seconds * SECOND_NS
}

fn evidence(modes: [u64; 4], duty: Option<f64>) -> v1::Evidence {
    v1::Evidence {
        fp_rounding: Some(v1::FpRounding {
            state: v1::SensorState::Live.into(),
            modes: modes.to_vec(),
            llr: vec![40.0; 4],
            concluded: duty.is_some(),
            duty: duty.unwrap_or(0.0),
            ..v1::FpRounding::default()
        }),
        ..v1::Evidence::default()
    }
}

fn droplet_of(
    name: &str,
    on_cpu_ns: u64,
    evidence: v1::Evidence,
    level: v1::VerdictLevel,
    planned: &str,
) -> v1::Droplet {
    v1::Droplet {
        host: "hv-ams3-0117".into(),
        current: Some(v1::TenantWindow {
            key: format!("qemu:{name}"),
            kind: v1::TenantKind::Droplet.into(),
            name: name.into(),
            vmm: "qemu".into(),
            vcpus: 2,
            cpu: Some(v1::Cpu {
                threads: 6,
                on_cpu_ns,
                vcpu_on_cpu_ns: on_cpu_ns / 2,
                guest_ns: on_cpu_ns / 4,
                run_queue_wait_ns: 250_000_000,
                voluntary_switches: 12,
                involuntary_switches: 345,
                halt_poll_ns: None,
            }),
            evidence: Some(evidence),
            verdict: Some(v1::Verdict {
                level: level.into(),
                reasons: vec![
                    "fp_rounding concluded: 112, 104, 81 and 87 samples in the rounding modes 0 to 3, where ordinary software stays in mode 0".into(),
                    "register_randomness is unsupported".into(),
                ],
                families: Vec::new(),
            }),
            waits: Some(v1::Waits {
                behind: vec![v1::WaitedBehind {
                    command: "qemu-system-x86".into(),
                    pid: 77,
                    ns: 200_000_000,
                    ..v1::WaitedBehind::default()
                }],
                idle_ns: 50_000_000,
                ..v1::Waits::default()
            }),
            ..v1::TenantWindow::default()
        }),
        first_seen_unix_ns: before(90_000),
        last_seen_unix_ns: before(3),
        verdict_since_unix_ns: before(754),
        window_ns: 10 * SECOND_NS,
        planned: planned.into(),
    }
}

fn miner() -> v1::Droplet {
    let evidence = evidence([112, 104, 81, 87], Some(1.97));
    droplet_of(
        "droplet-4711",
        19_730_000_000,
        evidence,
        v1::VerdictLevel::Suspect,
        "closer look",
    )
}

fn three() -> Droplets {
    let honest = droplet_of(
        "x264",
        20_000_000_000,
        evidence([409, 0, 0, 1], None),
        v1::VerdictLevel::Quiet,
        "observe",
    );
    let mut idle = droplet_of(
        "idle",
        40_000_000,
        v1::Evidence::default(),
        v1::VerdictLevel::Quiet,
        "observe",
    );
    let current = idle.current.as_mut().unwrap();
    current.name.clear();
    current.cpu = None;
    Droplets::new(v1::ListDropletsResponse {
        droplets: vec![miner(), honest, idle],
    })
}

fn fits(text: &str, width: usize) {
    for line in text.lines() {
        assert!(
            line.chars().count() <= width,
            "{} > {width}: {line}",
            line.chars().count()
        );
    }
}

#[track_caller]
fn golden(text: &str, expected: &str) {
    assert_eq!(
        text,
        expected.trim_start_matches('\n'),
        "the output was:\n{text}"
    );
}

#[test]
fn all_columns_without_a_width() {
    golden(
        &droplets(&three(), NOW, None),
        r"
 HOST          TENANT        VCPUS      CPU  MODES 0/1/2/3   DUTY  SAMPLES  VERDICT   SINCE  PLANNED         SEEN
 hv-ams3-0117  droplet-4711      2  197.3 %  29/27/21/23 %  197 %      384  suspect  12 min  closer look  3 s ago
 hv-ams3-0117  x264              2  200.0 %   >99/0/0/<1 %      -      410  quiet    12 min  observe      3 s ago
 hv-ams3-0117  qemu:idle         2  unknown        unknown      -  unknown  quiet    12 min  observe      3 s ago

3 tenants: 0 mining, 1 suspect, 2 quiet
",
    );
}

#[test]
fn a_narrow_terminal_keeps_what_matters() {
    let text = droplets(&three(), NOW, Some(80));
    fits(&text, 80);
    golden(
        &text,
        r"
 TENANT            CPU  MODES 0/1/2/3   DUTY  VERDICT   SINCE  PLANNED
 droplet-4711  197.3 %  29/27/21/23 %  197 %  suspect  12 min  closer look
 x264          200.0 %   >99/0/0/<1 %      -  quiet    12 min  observe
 qemu:idle     unknown        unknown      -  quiet    12 min  observe

3 tenants: 0 mining, 1 suspect, 2 quiet
",
    );
}

#[test]
fn a_very_narrow_terminal_wraps() {
    fits(&droplets(&three(), NOW, Some(50)), 50);
}

#[test]
fn words_stay_whole_in_a_very_narrow_terminal() {
    let whole = droplets(&three(), NOW, None);
    let narrow = droplets(&three(), NOW, Some(40));
    fits(&narrow, 40);
    let known: Vec<&str> = whole.split_whitespace().collect();
    for word in narrow.split_whitespace() {
        assert!(
            known.contains(&word),
            "{word:?} is a part of a word in\n{narrow}"
        );
    }
}

#[test]
fn hosts_and_what_is_stale_stay_in_a_narrow_terminal() {
    let (mut here, mut there) = (miner(), miner());
    here.host = "a".into();
    there.host = "b".into();
    there.last_seen_unix_ns = before(7_300);
    let document = Droplets::new(v1::ListDropletsResponse {
        droplets: vec![here, there],
    });
    let text = droplets(&document, NOW, Some(88));
    fits(&text, 88);
    golden(
        &text,
        r"
 HOST  TENANT            CPU  MODES 0/1/2/3  VERDICT   SINCE  PLANNED         SEEN
 a     droplet-4711  197.3 %  29/27/21/23 %  suspect  12 min  closer look  3 s ago
 b     droplet-4711  197.3 %  29/27/21/23 %  suspect  12 min  closer look  2 h ago

2 tenants: 0 mining, 2 suspect, 0 quiet; 1 not seen for over a minute
",
    );
}

#[test]
fn nobody_there() {
    let document = Droplets::new(v1::ListDropletsResponse::default());
    golden(
        &droplets(&document, NOW, None),
        "No tenant matches. `davyctl status` shows which hosts report.\n",
    );
}

#[test]
fn one_droplet_in_full() {
    let of = miner();
    let entry = |ended: u64| v1::HistoryEntry {
        start_unix_ns: before(ended + 10),
        end_unix_ns: before(ended),
        window: of.current.clone(),
    };
    let answer = v1::GetDropletResponse {
        history: vec![entry(3), entry(13)],
        droplet: Some(of.clone()),
    };
    let text = droplet(&OneDroplet::new(answer).unwrap(), NOW, Some(80));
    fits(&text, 80);
    golden(
        &text,
        r"
 Host           hv-ams3-0117
 Key            qemu:droplet-4711
 Name           droplet-4711
 Droplet id     -
 Kind           droplet
 VMM            qemu
 vCPUs          2
 Window         10 s, ended 3 s ago
 First seen     25 h ago
 CPU            197.3 % of one CPU by 6 threads (vCPUs 98.7 %, in the guest
                49.3 %), waited 2.5 %; switches: 12 voluntary, 345 involuntary
 Waited behind  qemu-system-x86 (pid 77) 2.0 %, an idle CPU 0.5 %
 Modes 0/1/2/3  29/27/21/23 % of 384 samples
 Duty           197 %
 Verdict        suspect, for 12 min
 Planned        closer look
 Reasons        fp_rounding concluded: 112, 104, 81 and 87 samples in the
                rounding modes 0 to 3, where ordinary software stays in mode 0
                register_randomness is unsupported

    ENDED  SPAN      CPU  MODES 0/1/2/3  SAMPLES   DUTY  VERDICT
  3 s ago  10 s  197.3 %  29/27/21/23 %      384  197 %  suspect
 13 s ago  10 s  197.3 %  29/27/21/23 %      384  197 %  suspect
",
    );
}

#[test]
fn hosts_and_their_sensors() {
    let sensor = |name: &str, state: v1::SensorState, reason: &str| v1::SensorStatus {
        sensor: name.into(),
        state: state.into(),
        reason: reason.into(),
    };
    let host = |name: &str, connected| v1::HostStatus {
        host: name.into(),
        instance: "0f8fad5b-d9cb-469f-a165-70867728950e".into(),
        connected,
        last_sequence: 8_640,
        windows: 8_638,
        lost_windows: 2,
        last_seen_unix_ns: before(if connected { 4 } else { 4_000 }),
        agent_version: "0.1.0".into(),
        kernel_release: "6.12.43+deb13-amd64".into(),
        sensors: vec![
            sensor("cpu", v1::SensorState::Live, ""),
            sensor(
                "fp_rounding",
                v1::SensorState::Unsupported,
                "struct fpstate has no is_guest: needs Linux 5.16",
            ),
        ],
    };
    let answer = v1::GetIngestStatusResponse {
        hosts: vec![host("hv-ams3-0117", true), host("hv-ams3-0118", false)],
        rejected: [("past".to_owned(), 3), ("bad_span".to_owned(), 1)].into(),
        duplicates: 7,
    };
    let text = status(&Status::new(answer), NOW, Some(80));
    fits(&text, 80);
    golden(
        &text,
        r"
 HOST          AGENT      VERSION  WINDOWS  LOST  SENSORS LIVE        SEEN
 hv-ams3-0117  connected  0.1.0       8638     2        1 of 2     4 s ago
 hv-ams3-0118  gone       0.1.0       8638     2        1 of 2  66 min ago

Sensors that cannot measure:
 hv-ams3-0117 fp_rounding  unsupported: struct fpstate has no is_guest: needs
                           Linux 5.16
 hv-ams3-0118 fp_rounding  unsupported: struct fpstate has no is_guest: needs
                           Linux 5.16

Since the detector's start: rejected bad_span 1, past 3; duplicates 7
",
    );
}

#[test]
fn nothing_reports() {
    let text = status(
        &Status::new(v1::GetIngestStatusResponse::default()),
        NOW,
        Some(80),
    );
    golden(
        &text,
        r"
No host has reported yet: start `davy-agent run` on one.

Since the detector's start: rejected none; duplicates 0
",
    );
}

#[test]
fn ages_in_the_largest_unit_that_says_enough() {
    let ages =
        [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(|seconds| age(before(seconds), NOW));
    assert_eq!(
        ages,
        ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]
    );
    // The hosts' clocks are not the reader's.
    assert_eq!(age(NOW + SECOND_NS, NOW), "0 s");
}

#[test]
fn what_is_not_known_is_not_zero() {
    let unknown = v1::Droplet {
        current: Some(v1::TenantWindow::default()),
        ..v1::Droplet::default()
    };
    let of = |state: v1::SensorState| {
        let mut evidence = evidence([0; 4], None);
        evidence.fp_rounding.as_mut().unwrap().state = state.into();
        let droplet = droplet_of("x", 0, evidence, v1::VerdictLevel::Quiet, "observe");
        let document = Droplets::new(v1::ListDropletsResponse {
            droplets: vec![droplet],
        });
        modes(document.droplets[0].window.fp_rounding.as_ref())
    };
    assert_eq!(of(v1::SensorState::Unsupported), "unsupported");
    assert_eq!(of(v1::SensorState::NeverRan), "never ran");
    assert_eq!(of(v1::SensorState::Stalled), "stalled");
    assert_eq!(of(v1::SensorState::Live), "no samples");
    let document = Droplets::new(v1::ListDropletsResponse {
        droplets: vec![unknown],
    });
    let window = &document.droplets[0].window;
    assert_eq!(
        [cpu(window), modes(None), samples(None), verdict(window)],
        ["unknown"; 4]
    );
}

#[test]
fn an_agents_text_does_not_steer_the_terminal() {
    let mut evil = miner();
    evil.current.as_mut().unwrap().name = "\u{1b}[2Jgone".into();
    let document = Droplets::new(v1::ListDropletsResponse {
        droplets: vec![evil],
    });
    let text = droplets(&document, NOW, Some(80));
    assert!(!text.contains('\u{1b}'), "{text:?}");
}
