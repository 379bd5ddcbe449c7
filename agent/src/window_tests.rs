//! Window sums, on readings made by hand.

use davy_abi::{FLAG_ENDED, FLAG_LIVE, FLAG_VCPU, Slot};
use proptest::prelude::*;

use super::*;

const TENANT: TenantIndex = 3;

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

fn known(tenant: TenantIndex) -> bool {
    tenant == TENANT
}

#[test]
fn a_thread_counts_from_its_base() {
    let mut accountant = Accountant::default();
    let older = Slot {
        base_on_cpu_ns: 430,
        base_guest_ns: 7,
        base_run_queue_wait_ns: 40,
        base_voluntary_switches: 5,
        base_involuntary_switches: 6,
        guest_ns: 7,
        run_queue_wait_ns: 42,
        voluntary_switches: 8,
        involuntary_switches: 10,
        ..slot(10, 1, 500)
    };
    let readings = [reading(1, older), reading(2, slot(11, 1_900, 1_000))];
    let deltas = accountant.update(&readings, 2_000, known);
    let cpu = CpuFigures {
        on_cpu_ns: 70,
        guest_ns: 0,
        run_queue_wait_ns: 2,
        voluntary_switches: 3,
        involuntary_switches: 4,
    };
    assert_eq!(deltas[0].cpu, cpu);
    let sums = accountant.close();
    assert_eq!(sums[&TENANT].cpu.on_cpu_ns, 1_070);
    assert_eq!(sums[&TENANT].threads, 2);

    let later = Slot {
        on_cpu_ns: 530,
        ..older
    };
    accountant.update(&[reading(1, later)], 3_000, known);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 30);
}

#[test]
fn the_open_interval_of_a_running_thread_counts_once() {
    let mut accountant = Accountant::default();
    let mut running = slot(10, 2_000, 0);
    running.running_since_ns = 10_000;
    accountant.update(&[reading(1, running)], 10_400, known);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 400);
    accountant.update(&[reading(1, running)], 10_900, known);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 500);
    // Switched out after 950, of which an interrupt took 100: the book says 850.
    accountant.update(&[reading(1, slot(10, 2_000, 850))], 11_000, known);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 0);
    accountant.update(&[reading(1, slot(10, 2_000, 1_000))], 12_000, known);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 100);
}

#[test]
fn a_reused_slot_is_another_thread() {
    let mut accountant = Accountant::default();
    accountant.update(&[reading(1, slot(10, 2_000, 300))], 3_000, known);
    accountant.update(&[reading(1, slot(11, 2_500, 40))], 4_000, known);
    accountant.update(&[reading(1, slot(11, 3_500, 5))], 5_000, known);
    let sums = accountant.close()[&TENANT];
    assert_eq!(sums.cpu.on_cpu_ns, 345);
    assert_eq!(sums.threads, 3);
    assert_eq!(accountant.threads(), 1);
}

#[test]
fn an_ended_threads_last_part_counts_once() {
    let mut accountant = Accountant::default();
    accountant.update(&[reading(1, slot(10, 2_000, 300))], 3_000, known);
    let mut ended = slot(10, 2_000, 450);
    ended.flags = FLAG_ENDED;
    let deltas = accountant.update(&[reading(1, ended)], 4_000, known);
    assert!(deltas[0].ended);
    assert_eq!(deltas[0].cpu.on_cpu_ns, 150);
    assert_eq!(accountant.close()[&TENANT].cpu.on_cpu_ns, 450);
    assert_eq!(accountant.threads(), 0);
}

/// A thread that ran 300 for the tenant, and 80 more until it was seen to have left.
fn one_that_left(accountant: &mut Accountant) -> Slot {
    accountant.update(&[reading(1, slot(10, 2_000, 300))], 3_000, known);
    let mut left = slot(10, 2_000, 380);
    left.modes = [4, 0, 0, 0];
    left.tenant = TENANT_GONE;
    let deltas = accountant.update(&[reading(1, left)], 4_000, known);
    assert_eq!((deltas[0].tenant, deltas[0].ended), (TENANT, true));
    assert_eq!((deltas[0].cpu.on_cpu_ns, deltas[0].modes), (80, left.modes));
    left
}

#[test]
fn a_thread_that_left_has_its_last_part_counted_for_the_tenant_it_left() {
    let mut accountant = Accountant::default();
    let mut left = one_that_left(&mut accountant);
    assert_eq!(accountant.threads(), 0);
    let sums = accountant.close()[&TENANT];
    assert_eq!((sums.cpu.on_cpu_ns, sums.threads), (380, 1));
    // It lives on, and then the kernel half ends the slot; nothing of that is the tenant's.
    for flags in [FLAG_LIVE, FLAG_ENDED] {
        left.on_cpu_ns += 500;
        left.flags = flags;
        let deltas = accountant.update(&[reading(1, left)], 5_000, known);
        assert!(deltas.is_empty(), "{deltas:?}");
        assert!(accountant.close().is_empty());
    }
}

#[test]
fn a_thread_that_comes_back_counts_from_then_on() {
    let mut accountant = Accountant::default();
    let mut left = one_that_left(&mut accountant);
    accountant.close();
    left.on_cpu_ns = 1_000;
    left.modes = [9, 0, 0, 0];
    accountant.update(&[reading(1, left)], 5_000, known);
    let mut back = left;
    back.tenant = TENANT;
    back.on_cpu_ns = 1_030;
    back.modes = [9, 1, 0, 0];
    let deltas = accountant.update(&[reading(1, back)], 6_000, known);
    assert_eq!(
        (deltas[0].cpu.on_cpu_ns, deltas[0].modes, deltas[0].ended),
        (30, [0, 1, 0, 0], false)
    );
    let sums = accountant.close()[&TENANT];
    assert_eq!((sums.cpu.on_cpu_ns, sums.threads), (30, 1));
}

#[test]
fn a_thread_that_changes_tenants_counts_for_each_its_own_part() {
    let mut accountant = Accountant::default();
    let mut moved = slot(10, 2_000, 300);
    accountant.update(&[reading(1, moved)], 3_000, |_| true);
    moved.tenant = TENANT + 1;
    moved.on_cpu_ns = 350;
    let deltas = accountant.update(&[reading(1, moved)], 4_000, |_| true);
    let parts: Vec<_> = deltas
        .iter()
        .map(|d| (d.tenant, d.ended, d.cpu.on_cpu_ns))
        .collect();
    assert_eq!(parts, [(TENANT, true, 0), (TENANT + 1, false, 50)]);
    let sums = accountant.close();
    let of = |tenant| (sums[&tenant].cpu.on_cpu_ns, sums[&tenant].threads);
    assert_eq!((of(TENANT), of(TENANT + 1)), ((300, 1), (50, 1)));
}

#[test]
fn a_thread_in_no_reading_any_more_has_ended() {
    let mut accountant = Accountant::default();
    accountant.update(&[reading(1, slot(10, 2_000, 300))], 3_000, known);
    let deltas = accountant.update(&[], 4_000, known);
    assert_eq!(
        (deltas.len(), deltas[0].ended, deltas[0].tenant),
        (1, true, TENANT)
    );
    assert!(accountant.update(&[], 5_000, known).is_empty());
    // A tenant that is forgotten hears nothing any more.
    accountant.update(&[reading(1, slot(10, 2_000, 300))], 6_000, known);
    assert!(accountant.update(&[], 7_000, |_| false).is_empty());
}

#[test]
fn threads_of_no_known_tenant_are_left_out() {
    let mut accountant = Accountant::default();
    let mut stranger = slot(10, 2_000, 300);
    stranger.tenant = 0;
    assert!(
        accountant
            .update(&[reading(1, stranger)], 3_000, known)
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
    accountant.update(&[reading(1, vcpu)], 3_000, known);
    let sums = accountant.close()[&TENANT];
    assert_eq!((sums.vcpu_on_cpu_ns, sums.cpu.guest_ns), (100, 100));
    vcpu.on_cpu_ns = 200;
    vcpu.guest_ns = 190;
    accountant.update(&[reading(1, vcpu)], 4_000, known);
    assert_eq!(accountant.close()[&TENANT].cpu.guest_ns, 90);
}

#[test]
fn samples_of_a_thread_found_late_all_count() {
    let mut accountant = Accountant::default();
    let mut vcpu = slot(10, 1, 100);
    vcpu.modes = [9, 2, 0, 1];
    vcpu.random = [0, 2, 0, 1];
    vcpu.looks = 20;
    let deltas = accountant.update(&[reading(1, vcpu)], 3_000, known);
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
            accountant.update(&[reading(1, s)], now_ns, known);
            if close {
                total_ns += accountant.close().get(&TENANT).map_or(0, |sums| sums.cpu.on_cpu_ns);
            }
        }
        total_ns += accountant.close().get(&TENANT).map_or(0, |sums| sums.cpu.on_cpu_ns);
        let open_ns = if since_ns == 0 { 0 } else { now_ns - since_ns };
        prop_assert_eq!(total_ns, booked_ns + open_ns);
    }
}

#[test]
fn a_thread_that_takes_another_id_goes_on_where_it_was() {
    let mut accountant = Accountant::default();
    accountant.update(&[reading(1, slot(10, 5, 300))], 1_000, known);
    accountant.update(&[reading(1, slot(1, 5, 340))], 2_000, known);
    let sums = accountant.close();
    assert_eq!(sums[&TENANT].cpu.on_cpu_ns, 340);
    assert_eq!(sums[&TENANT].threads, 1);
}
