//! Window sums, on readings made by hand.

use davy_abi::{FLAG_ENDED, FLAG_LIVE, FLAG_VCPU, Slot};
use proptest::prelude::*;

use super::*;

const TENANT: TenantIndex = 3;
const WATCHED_SINCE: u64 = 1_000;

fn slot(tid: u32, start_boottime_ns: u64, on_cpu_ns: u64) -> Slot {
    Slot {
        tid,
        tgid: 1,
        flags: FLAG_LIVE,
        tenant: TENANT,
        start_boottime_ns,
        on_cpu_ns,
        ..Slot::default()
    }
}

fn reading(index: SlotIndex, slot: Slot) -> Reading {
    Reading { index, slot }
}

fn at(now_ns: u64) -> Moment {
    Moment {
        now_ns,
        boottime_ns: now_ns,
    }
}

fn counts(tenant: TenantIndex) -> Option<CountFrom> {
    (tenant == TENANT).then_some(CountFrom::Birth(WATCHED_SINCE))
}

fn recent(tenant: TenantIndex) -> Option<CountFrom> {
    (tenant == TENANT).then_some(CountFrom::RecentBirth(WATCHED_SINCE))
}

#[test]
fn an_older_thread_counts_from_the_first_look_and_a_younger_one_from_birth() {
    let mut accountant = Accountant::default();
    let readings = [
        reading(1, slot(10, WATCHED_SINCE - 1, 500)),
        reading(2, slot(11, WATCHED_SINCE, 70)),
    ];
    accountant.update(&readings, at(2_000), counts);
    let sums = accountant.close();
    assert_eq!(sums[&TENANT].cpu.on_cpu_ns, 70);
    assert_eq!(sums[&TENANT].threads, 2);

    accountant.update(
        &[reading(1, slot(10, WATCHED_SINCE - 1, 530))],
        at(3_000),
        counts,
    );
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 30);
}

#[test]
fn a_thread_moved_into_a_group_leaves_its_earlier_work_outside() {
    let mut accountant = Accountant::default();
    accountant.update(&[], at(5_000), recent);
    // Born after the watch began, but before the previous look: it was elsewhere then.
    let readings = [
        reading(1, slot(10, 4_000, 900)),
        reading(2, slot(11, 5_500, 20)),
    ];
    accountant.update(&readings, at(6_000), recent);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 20);
}

#[test]
fn the_open_interval_of_a_running_thread_counts_once() {
    let mut accountant = Accountant::default();
    let mut running = slot(10, 2_000, 0);
    running.running_since_ns = 10_000;
    accountant.update(&[reading(1, running)], at(10_400), counts);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 400);
    accountant.update(&[reading(1, running)], at(10_900), counts);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 500);
    // Switched out after 950, of which an interrupt took 100: the book says 850.
    accountant.update(&[reading(1, slot(10, 2_000, 850))], at(11_000), counts);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 0);
    accountant.update(&[reading(1, slot(10, 2_000, 1_000))], at(12_000), counts);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 100);
}

#[test]
fn a_reused_slot_is_another_thread() {
    let mut accountant = Accountant::default();
    accountant.update(&[reading(1, slot(10, 2_000, 300))], at(3_000), counts);
    accountant.update(&[reading(1, slot(11, 2_500, 40))], at(4_000), counts);
    accountant.update(&[reading(1, slot(11, 3_500, 5))], at(5_000), counts);
    let sums = accountant.close()[&TENANT];
    assert_eq!(sums.cpu.on_cpu_ns, 345);
    assert_eq!(sums.threads, 3);
    assert_eq!(accountant.threads(), 1);
}

#[test]
fn an_ended_threads_last_part_counts_once() {
    let mut accountant = Accountant::default();
    accountant.update(&[reading(1, slot(10, 2_000, 300))], at(3_000), counts);
    let mut ended = slot(10, 2_000, 450);
    ended.flags = FLAG_ENDED;
    let deltas = accountant.update(&[reading(1, ended)], at(4_000), counts);
    assert!(deltas[0].ended);
    assert_eq!(deltas[0].cpu.on_cpu_ns, 150);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 450);
    assert_eq!(accountant.threads(), 0);
}

#[test]
fn a_thread_that_left_has_its_last_part_counted_for_the_tenant_it_left() {
    let mut accountant = Accountant::default();
    accountant.update(&[reading(1, slot(10, 2_000, 300))], at(3_000), counts);
    let mut left = slot(10, 2_000, 380);
    left.tenant = TENANT_GONE;
    accountant.update(&[reading(1, left)], at(4_000), counts);
    // The kernel half ends the slot a moment later; nothing of that is the tenant's.
    left.on_cpu_ns = 999;
    left.flags |= FLAG_ENDED;
    assert!(
        accountant
            .update(&[reading(1, left)], at(5_000), counts)
            .is_empty()
    );
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 380);
}

#[test]
fn threads_of_no_known_tenant_are_left_out() {
    let mut accountant = Accountant::default();
    let mut stranger = slot(10, 2_000, 300);
    stranger.tenant = 0;
    assert!(
        accountant
            .update(&[reading(1, stranger)], at(3_000), counts)
            .is_empty()
    );
    assert!(accountant.close().is_empty());
}

#[test]
fn guest_time_is_part_of_the_vcpus_time_and_what_ran_ahead_comes_later() {
    let mut accountant = Accountant::default();
    let mut vcpu = slot(10, 2_000, 100);
    vcpu.flags |= FLAG_VCPU;
    vcpu.guest_ns = 130;
    accountant.update(&[reading(1, vcpu)], at(3_000), counts);
    let sums = accountant.close()[&TENANT];
    assert_eq!((sums.vcpu_on_cpu_ns, sums.cpu.guest_ns), (100, 100));
    vcpu.on_cpu_ns = 200;
    vcpu.guest_ns = 190;
    accountant.update(&[reading(1, vcpu)], at(4_000), counts);
    assert_eq!(accountant.close()[&TENANT].cpu.guest_ns, 90);
}

#[test]
fn samples_of_a_thread_found_late_all_count() {
    let mut accountant = Accountant::default();
    let mut vcpu = slot(10, 1, 100);
    vcpu.modes = [9, 2, 0, 1];
    vcpu.random = [0, 2, 0, 1];
    vcpu.looks = 20;
    let deltas = accountant.update(&[reading(1, vcpu)], at(3_000), counts);
    assert_eq!(
        (deltas[0].modes, deltas[0].random, deltas[0].looks),
        ([9, 2, 0, 1], [0, 2, 0, 1], 20)
    );
}

proptest! {
    /// Whatever the readings and wherever the windows end: the windows of one thread add up to what it ran.
    #[test]
    fn windows_add_up_to_the_books(steps in proptest::collection::vec((0_u64..1_000, any::<bool>(), any::<bool>()), 1..60)) {
        let mut accountant = Accountant::default();
        let (mut now_ns, mut booked_ns, mut since_ns, mut total_ns) = (10_000, 0, 0, 0);
        for (pass_ns, switch, close) in steps {
            now_ns += pass_ns;
            if switch {
                if since_ns == 0 {
                    since_ns = now_ns;
                } else {
                    booked_ns += now_ns - since_ns;
                    since_ns = 0;
                }
            }
            let mut s = slot(10, 2_000, booked_ns);
            s.running_since_ns = since_ns;
            accountant.update(&[reading(1, s)], at(now_ns), counts);
            if close {
                total_ns += accountant.close().get(&TENANT).map_or(0, |sums| sums.cpu.on_cpu_ns);
            }
        }
        total_ns += accountant.close().get(&TENANT).map_or(0, |sums| sums.cpu.on_cpu_ns);
        let open_ns = if since_ns == 0 { 0 } else { now_ns - since_ns };
        prop_assert_eq!(total_ns, booked_ns + open_ns);
    }
}
