//! From records to a tenant's windows.

use davy_abi::{FLAG_LIVE, FLAG_VCPU, Slot, SlotIndex};

use super::*;

const SECOND_NS: u64 = 1_000_000_000;
const TENANT: TenantIndex = 3;
const LIVE: HostStates = HostStates {
    kvm_exits: SensorState::Live,
    msr_writes: SensorState::Live,
};

fn reading(index: SlotIndex, tenant: TenantIndex) -> Reading {
    let slot = Slot {
        tid: 100 + index,
        tgid: 100,
        flags: FLAG_LIVE | FLAG_VCPU,
        tenant,
        start_boottime_ns: 7,
        ..Slot::default()
    };
    Reading { index, slot }
}

/// KVM's counters after so many seconds of a vCPU that halts 10 times a second.
fn counters(seconds: u64) -> Vcpu {
    Vcpu {
        source: SOURCE_KVM,
        read_ns: (100 + seconds) * SECOND_NS,
        exits: 5_000 + 50 * seconds,
        halts: 900 + 10 * seconds,
        io: 70 + seconds,
        mmio: NOT_COUNTED,
        interrupts: 7 + 3 * seconds,
        hypercalls: 1,
        halt_poll_success_ns: 1_000 + 20 * seconds,
        halt_poll_fail_ns: 500 + 5 * seconds,
        ..Vcpu::default()
    }
}

fn traced(exits: u64, reasons: &[(u32, u32)]) -> Vcpu {
    let mut vcpu = Vcpu {
        source: SOURCE_TRACEPOINT,
        isa: ISA_SVM,
        read_ns: (1 + exits) * SECOND_NS,
        exits,
        halt_poll_success_ns: NOT_COUNTED,
        halt_poll_fail_ns: NOT_COUNTED,
        ..Vcpu::default()
    };
    for (at, &(code, count)) in reasons.iter().enumerate() {
        (vcpu.reason_codes[at], vcpu.reason_counts[at]) = (code, count);
    }
    vcpu
}

fn update(guests: &mut Guests, vcpus: &[(SlotIndex, Option<Vcpu>)]) {
    let readings: Vec<_> = vcpus
        .iter()
        .map(|&(index, _)| reading(index, TENANT))
        .collect();
    let known = |tenant| tenant == TENANT;
    guests.update(&readings, known, |reading| {
        let of = vcpus.iter().find(|(index, _)| *index == reading.index);
        of.and_then(|(_, vcpu)| *vcpu)
    });
}

#[test]
fn a_window_has_what_came_since_the_last_one_and_the_first_reading_is_only_a_mark() {
    let mut guests = Guests::default();
    update(&mut guests, &[(1, Some(counters(0)))]);
    let first = guests.close(TENANT, LIVE).unwrap();
    assert_eq!(first.kvm_exits.state, SensorState::NeverRan);
    assert_eq!((first.kvm_exits.exits, first.halt_poll), (0, None));

    update(&mut guests, &[(1, Some(counters(4)))]);
    update(&mut guests, &[(1, Some(counters(9)))]);
    let window = guests.close(TENANT, LIVE).unwrap();
    let exits = window.kvm_exits;
    assert_eq!(exits.state, SensorState::Live);
    assert_eq!(exits.source, Some(ExitSource::Counters));
    assert_eq!((exits.exits, exits.observed_ns), (450, 9 * SECOND_NS));
    assert_eq!(
        (exits.halts, exits.io, exits.interrupts, exits.hypercalls),
        (Some(90), Some(9), Some(27), Some(0))
    );
    assert_eq!(exits.mmio, None, "this kernel does not count it");
    let poll = window.halt_poll.unwrap();
    assert_eq!(
        (poll.success_ns, poll.fail_ns, poll.total_ns()),
        (180, 45, 225)
    );

    let stalled = guests.close(TENANT, LIVE).unwrap();
    assert_eq!(stalled.kvm_exits.state, SensorState::Stalled);
    assert_eq!(stalled.halt_poll, None, "not known, not zero");
}

#[test]
fn vcpus_add_up_and_a_record_being_written_loses_nothing() {
    let mut guests = Guests::default();
    update(
        &mut guests,
        &[(1, Some(counters(0))), (2, Some(counters(0)))],
    );
    update(&mut guests, &[(1, Some(counters(1))), (2, None)]);
    update(
        &mut guests,
        &[(1, Some(counters(2))), (2, Some(counters(2)))],
    );
    let exits = guests.close(TENANT, LIVE).unwrap().kvm_exits;
    assert_eq!((exits.exits, exits.observed_ns), (200, 4 * SECOND_NS));
}

#[test]
fn a_thread_with_another_vcpu_begins_anew() {
    let mut guests = Guests::default();
    update(&mut guests, &[(1, Some(counters(5)))]);
    let other = Vcpu {
        exits: 10,
        halts: 1,
        read_ns: 200 * SECOND_NS,
        ..counters(0)
    };
    update(&mut guests, &[(1, Some(other))]);
    assert_eq!(guests.close(TENANT, LIVE).unwrap().kvm_exits.exits, 0);
    let later = Vcpu {
        exits: 14,
        read_ns: 201 * SECOND_NS,
        ..other
    };
    update(&mut guests, &[(1, Some(later))]);
    assert_eq!(guests.close(TENANT, LIVE).unwrap().kvm_exits.exits, 4);
}

#[test]
fn the_tracepoints_reasons_are_the_windows_and_halt_polling_is_not_known() {
    let mut guests = Guests::default();
    update(
        &mut guests,
        &[(1, Some(traced(10, &[(0x78, 4), (0x60, 6)])))],
    );
    update(
        &mut guests,
        &[(1, Some(traced(30, &[(0x78, 5), (0x60, 20), (0x7b, 5)])))],
    );
    let window = guests.close(TENANT, LIVE).unwrap();
    let exits = window.kvm_exits;
    assert_eq!(exits.source, Some(ExitSource::Tracepoint));
    assert_eq!((exits.exits, exits.isa), (20, Some(Isa::Svm)));
    let named: Vec<_> = exits
        .reasons
        .iter()
        .map(|one| (one.code, one.count))
        .collect();
    assert_eq!(named, [(0x60, 14), (0x7b, 5), (0x78, 1), (0, 0)]);
    assert_eq!(exits.mmio, None, "AMD's CPUs do not tell");
    assert_eq!(window.halt_poll, None);
}

#[test]
fn of_exits_nobody_can_read_only_the_number_is_known() {
    let mut guests = Guests::default();
    update(&mut guests, &[(1, Some(traced(10, &[])))]);
    let foreign = Vcpu {
        foreign: 20,
        isa: 9,
        ..traced(30, &[])
    };
    update(&mut guests, &[(1, Some(foreign))]);
    let exits = guests.close(TENANT, LIVE).unwrap().kvm_exits;
    assert_eq!((exits.exits, exits.halts, exits.isa), (20, None, None));
}

#[test]
fn unsupported_is_never_a_zero_of_a_live_sensor() {
    let host = HostStates {
        kvm_exits: SensorState::Unsupported,
        msr_writes: SensorState::Unsupported,
    };
    let mut guests = Guests::default();
    update(&mut guests, &[(1, None)]);
    let window = guests.close(TENANT, host).unwrap();
    assert_eq!(window.kvm_exits.state, SensorState::Unsupported);
    assert_eq!(window.msr_writes.state, SensorState::Unsupported);
    assert_eq!(window.halt_poll, None);
}

#[test]
fn a_tenant_without_vcpus_has_no_figures() {
    let mut guests = Guests::default();
    let mut thread = reading(1, TENANT);
    thread.slot.flags = FLAG_LIVE;
    guests.update(
        &[thread, reading(2, 0), reading(3, 77)],
        |tenant| tenant == TENANT,
        |_| Some(counters(1)),
    );
    assert_eq!(guests.close(TENANT, LIVE), None);
    assert_eq!(guests.close(77, LIVE), None, "nobody knows that tenant");
}

#[test]
fn register_writes_count_from_the_first_record_on_and_for_as_long_as_the_tenant_is_watched() {
    let wrote = |amd, events| Vcpu {
        msr_events: events,
        prefetcher_writes_amd: amd,
        ..Vcpu::default()
    };
    let mut guests = Guests::default();
    update(&mut guests, &[(1, Some(wrote(0, 0)))]);
    let found = guests.close(TENANT, LIVE).unwrap().msr_writes;
    assert_eq!(
        found.state,
        SensorState::NeverRan,
        "the tracepoint was not met yet"
    );
    update(&mut guests, &[(1, Some(wrote(3, 8)))]);
    update(&mut guests, &[(1, Some(wrote(4, 9)))]);
    let found = guests.close(TENANT, LIVE).unwrap().msr_writes;
    assert_eq!(
        (found.state, found.prefetcher_writes),
        (SensorState::Live, 4)
    );
    let found = guests.close(TENANT, LIVE).unwrap().msr_writes;
    assert_eq!(
        (found.prefetcher_writes, found.prefetcher_writes_watched),
        (0, 4)
    );
}

#[test]
fn a_successor_goes_on_with_what_its_predecessor_did() {
    let wrote = |amd, seconds| Vcpu {
        msr_events: amd,
        prefetcher_writes_amd: amd,
        ..counters(seconds)
    };
    let mut guests = Guests::default();
    update(&mut guests, &[(1, Some(wrote(0, 0)))]);
    update(&mut guests, &[(1, Some(wrote(2, 1)))]);
    guests.merge(TENANT, 9);
    assert_eq!(guests.close(TENANT, LIVE), None);
    let window = guests.close(9, LIVE).unwrap();
    assert_eq!(window.kvm_exits.exits, 50);
    assert_eq!(window.msr_writes.prefetcher_writes_watched, 2);
    guests.forget(9);
    assert_eq!(guests.close(9, LIVE), None);
}
