//! The bounded queue: order, limits, losses.

use proptest::prelude::*;

use super::*;

fn queue(windows_max: usize) -> Queue {
    Queue::new(Limits {
        windows_max,
        bytes_max: usize::MAX,
    })
}

fn fill(queue: &mut Queue, windows: u64) {
    for _ in 0..windows {
        queue.push(v1::Window::default());
    }
}

/// Sequence and declared losses of all that can be sent.
fn send_all(queue: &mut Queue) -> Vec<(u64, u64)> {
    std::iter::from_fn(|| queue.next_to_send())
        .map(|window| (window.sequence, window.lost_windows))
        .collect()
}

#[test]
fn windows_leave_when_they_are_settled() {
    let mut q = queue(10);
    fill(&mut q, 3);
    assert_eq!(send_all(&mut q), vec![(1, 0), (2, 0), (3, 0)]);
    assert!(q.awaits_answer());
    q.acknowledge(2);
    assert_eq!(q.len(), 1);
    q.acknowledge(3);
    assert!(q.is_empty() && !q.awaits_answer());
    assert_eq!((q.bytes(), q.counts().acknowledged), (0, 3));
}

#[test]
fn the_oldest_goes_first_and_is_declared() {
    let mut q = queue(3);
    fill(&mut q, 5);
    assert_eq!(send_all(&mut q), vec![(3, 2), (4, 0), (5, 0)]);
    assert_eq!(q.counts().lost, 2);
}

#[test]
fn what_is_under_way_is_not_dropped_before_what_is_not() {
    let mut q = queue(3);
    fill(&mut q, 2);
    assert_eq!(send_all(&mut q), vec![(1, 0), (2, 0)]);
    fill(&mut q, 2);
    // 3 had to go: 1 and 2 may have arrived already.
    assert_eq!(send_all(&mut q), vec![(4, 1)]);
    fill(&mut q, 1);
    // Everything before it is under way: the oldest goes.
    assert_eq!(send_all(&mut q), vec![(5, 1)]);
    assert_eq!(q.counts().lost, 2);
}

#[test]
fn a_broken_connections_windows_are_sent_again_unchanged() {
    let mut q = queue(3);
    fill(&mut q, 5);
    let first = send_all(&mut q);
    q.connection_lost();
    assert!(!q.awaits_answer());
    q.acknowledge(3);
    assert_eq!(send_all(&mut q), first[1..]);
    assert_eq!(q.counts().resent, 2);
}

#[test]
fn losses_of_a_window_that_is_lost_itself_are_declared_by_the_next() {
    let mut q = queue(2);
    fill(&mut q, 3);
    assert_eq!(send_all(&mut q), vec![(2, 1), (3, 0)]);
    q.connection_lost();
    fill(&mut q, 1);
    assert_eq!(send_all(&mut q), vec![(3, 2), (4, 0)]);
}

#[test]
fn what_was_dropped_but_had_arrived_is_not_declared() {
    let mut q = queue(4);
    fill(&mut q, 4);
    send_all(&mut q);
    q.connection_lost();
    fill(&mut q, 3);
    assert_eq!(q.counts().lost, 3);
    // The detector had stored 1 and 2; only 3 is lost.
    q.acknowledge(2);
    assert_eq!(send_all(&mut q), vec![(4, 1), (5, 0), (6, 0), (7, 0)]);
    assert_eq!(q.counts().lost, 3);
    q.acknowledge(7);
    assert_eq!((q.bytes(), q.counts().acknowledged), (0, 4));
}

#[test]
fn a_rejected_window_leaves_alone() {
    let mut q = queue(9);
    fill(&mut q, 3);
    send_all(&mut q);
    q.reject(2);
    q.reject(7);
    assert_eq!((q.len(), q.counts().rejected), (2, 1));
    q.acknowledge(3);
    assert!(q.is_empty() && !q.awaits_answer());
    assert_eq!(q.counts().acknowledged, 2);
}

#[test]
fn bytes_are_bounded_and_the_newest_is_kept() {
    let window = || v1::Window {
        tenants: vec![v1::TenantWindow {
            name: "x".repeat(1_000),
            ..v1::TenantWindow::default()
        }],
        ..v1::Window::default()
    };
    let mut q = Queue::new(Limits {
        windows_max: 100,
        bytes_max: 2_500,
    });
    for _ in 0..5 {
        q.push(window());
    }
    assert_eq!(q.len(), 2);
    assert!(q.bytes() <= 2_500);
    let mut q = Queue::new(Limits {
        windows_max: 100,
        bytes_max: 10,
    });
    q.push(window());
    q.push(window());
    assert_eq!(send_all(&mut q), vec![(2, 1)]);
}

#[test]
fn a_window_too_large_to_send_is_declared_lost() {
    let mut q = queue(9);
    q.push(v1::Window {
        tenants: vec![v1::TenantWindow {
            name: "x".repeat(WINDOW_BYTES_MAX),
            ..v1::TenantWindow::default()
        }],
        ..v1::Window::default()
    });
    assert!(q.is_empty());
    fill(&mut q, 1);
    assert_eq!(send_all(&mut q), vec![(2, 1)]);
    assert_eq!(q.counts().lost, 1);
}

#[test]
fn only_so_many_are_under_way() {
    let mut q = queue(1_000);
    fill(&mut q, 200);
    assert_eq!(send_all(&mut q).len(), IN_FLIGHT_MAX);
    q.acknowledge(10);
    assert_eq!(send_all(&mut q).len(), 10);
}

#[derive(Clone, Debug)]
enum Step {
    Push,
    Send,
    Acknowledge(u64),
    Reject(u64),
    Break,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Push),
        2 => Just(Step::Send),
        1 => (0_u64..4).prop_map(Step::Acknowledge),
        1 => (0_u64..4).prop_map(Step::Reject),
        1 => Just(Step::Break),
    ]
}

proptest! {
    /// No window vanishes without being counted, and memory is bounded, whatever happens.
    #[test]
    fn every_window_is_accounted_for(steps in proptest::collection::vec(step(), 0..120)) {
        let mut q = queue(5);
        for step in steps {
            let front = q.entries.front().map_or(0, |entry| entry.window.sequence);
            match step {
                Step::Push => { q.push(v1::Window::default()); }
                Step::Send => { q.next_to_send(); }
                Step::Acknowledge(ahead) if q.awaits_answer() => q.acknowledge(front + ahead),
                Step::Reject(ahead) => q.reject(front + ahead),
                Step::Acknowledge(_) => {}
                Step::Break => q.connection_lost(),
            }
            let counts = q.counts();
            let held = u64::try_from(q.len()).unwrap();
            prop_assert_eq!(counts.closed, counts.acknowledged + counts.rejected + counts.lost + held);
            prop_assert!(q.len() <= 5 && q.in_flight <= q.len());
            prop_assert_eq!(q.bytes(), q.entries.iter().map(|entry| entry.bytes).sum::<usize>());
            prop_assert!(q.entries.iter().is_sorted_by_key(|entry| entry.window.sequence));
        }
    }
}
