//! Reasons of the sensors that are told beside a verdict and never decide it.

use crate::{ExitSource, KvmExits, MsrWrites, SensorState, kvm_exits::reason_name};

/// Below this many halts a second, averaged over the vCPUs, a guest computes without a pause.
const HARDLY_HALTS_PER_S: f64 = 1.0;

/// What the guest left its vCPUs for.
pub(super) fn kvm_exits(exits: &KvmExits) -> String {
    if let Some(nothing) = nothing_said(exits.state) {
        return format!("kvm_exits: {nothing}");
    }
    let rate = |count: u64| per_second(count, exits.observed_ns);
    let counted = [
        ("halts", exits.halts),
        ("port I/O", exits.io),
        ("device memory", exits.mmio),
        ("host interrupts", exits.interrupts),
        ("hypercalls", exits.hypercalls),
    ];
    let counted: Vec<String> = counted
        .iter()
        .filter_map(|&(what, count)| Some((what, count?)))
        // That it does not halt says something.
        .filter(|&(what, count)| count > 0 || what == "halts")
        .map(|(what, count)| format!("{what} {:.1}/s", rate(count)))
        .collect();
    let mut text = format!(
        "kvm_exits: each vCPU left {:.1} times a second ({})",
        rate(exits.exits),
        if counted.is_empty() {
            "what for is not known".to_owned()
        } else {
            counted.join(", ")
        }
    );
    if let Some(isa) = exits.isa {
        let named: Vec<String> = exits
            .reasons
            .iter()
            .filter(|reason| reason.count > 0)
            .map(|reason| format!("{} {}", reason_name(isa, reason.code), reason.count))
            .collect();
        if !named.is_empty() {
            text += &format!("; most often {}", named.join(", "));
        }
    }
    match exits.halts.map(rate) {
        Some(halts) if halts < HARDLY_HALTS_PER_S => {
            text += "; hardly a halt, as with all that computes without a pause, miners too";
        }
        Some(_) => text += "; it halts, which a miner at full speed does not",
        None => {}
    }
    text += match exits.source {
        Some(ExitSource::Counters) => "; by KVM's own counters",
        Some(ExitSource::Tracepoint) => "; by the tracepoint kvm:kvm_exit",
        None => "",
    };
    text
}

/// Whether the guest wrote to the prefetcher's registers.
pub(super) fn msr_writes(msrs: &MsrWrites) -> String {
    if msrs.prefetcher_writes_watched > 0 {
        return format!(
            "msr_writes: to the prefetcher's registers {} in this window, {} since it is watched, as miners make them to gain \
             speed: corroborates, and is no evidence by itself",
            msrs.prefetcher_writes, msrs.prefetcher_writes_watched
        );
    }
    match nothing_said(msrs.state) {
        Some(nothing) => format!("msr_writes: {nothing}"),
        None => "msr_writes: none to the prefetcher's registers since it is watched".to_owned(),
    }
}

fn nothing_said(state: SensorState) -> Option<&'static str> {
    match state {
        SensorState::Live => None,
        SensorState::Stalled => Some("nothing new in this window"),
        SensorState::NeverRan => Some("never ran, so it says nothing"),
        SensorState::Unsupported => Some("unsupported here, so it says nothing"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn per_second(count: u64, observed_ns: u64) -> f64 {
    if observed_ns == 0 {
        return 0.0;
    }
    count as f64 / (observed_ns as f64 / 1e9)
}
