//! The sequential tests of threads' mixes of floating-point operations, and a tenant's standing made of them. Pure.
//!
//! As with the other sensors, every thread has a test of its own. A thread that ended counts while its conclusion is younger
//! than the duty's span; what a detector had stored of a tenant stands until a thread goes on with it, at most an hour.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use davy_abi::TenantIndex;
use davy_evidence::{Pmu, ResumeError, pmu::Test};

use crate::{
    evidence::{CARRIED_NS_MAX, DUTY_SPAN_NS, InAllModes, Mixing},
    window::ThreadKey,
};

/// A thread's turn: every kind counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Which thread.
    pub thread: ThreadKey,
    /// Whose.
    pub tenant: TenantIndex,
    /// Whether the mix was `RandomX`'s.
    pub matched: bool,
}

/// Where a tenant's tests stand at the end of a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Turns in the window.
    pub turns: u64,
    /// Those that matched.
    pub matches: u64,
    /// Whether there ever was a turn.
    pub ever: bool,
    /// The test nearest to a conclusion.
    pub nearest: Test,
    /// Threads whose own test stands concluded.
    pub concluded: BTreeSet<ThreadKey>,
}

#[derive(Debug, Default)]
struct Thread {
    test: Test,
    /// Spans of the windows closed since it ended, ns; `None` while it lives.
    ended_for_ns: Option<u64>,
}

#[derive(Debug, Default)]
struct Tenant {
    threads: HashMap<ThreadKey, Thread>,
    turns: u64,
    matches: u64,
    ever: bool,
    carried: Option<Carried>,
}

#[derive(Clone, Copy, Debug)]
struct Carried {
    test: Test,
    age_ns: u64,
}

/// The tests of all tenants.
#[derive(Debug, Default)]
pub struct Mixes {
    tenants: BTreeMap<TenantIndex, Tenant>,
}

impl Mixes {
    /// Takes up where a detector has a tenant's test stored.
    ///
    /// # Errors
    /// If the stored state is out of range or contradicts itself; nothing is changed then.
    pub fn resume(&mut self, tenant: TenantIndex, stored: &Pmu) -> Result<(), ResumeError> {
        let test = Test::resume(stored.mix_llr, stored.mix_turns, stored.mix_concluded)?;
        self.tenants.entry(tenant).or_default().carried = Some(Carried { test, age_ns: 0 });
        Ok(())
    }

    /// Which of the tenant's threads have `RandomX`'s mix now.
    #[must_use]
    pub fn mixing(&self, tenant: TenantIndex) -> Mixing {
        let Some(tenant) = self.tenants.get(&tenant) else {
            return Mixing::default();
        };
        Mixing {
            threads: tenant.concluded(),
            carried: (tenant.carried.as_ref()).is_some_and(|carried| carried.test.concluded()),
        }
    }

    /// Gives a turn to its thread's test.
    pub fn add(&mut self, turn: &Turn) {
        let tenant = self.tenants.entry(turn.tenant).or_default();
        let thread = tenant.threads.entry(turn.thread).or_default();
        if thread.test.turns() == 0
            && turn.matched
            && let Some(carried) = tenant.carried.take()
        {
            thread.test = carried.test;
        }
        thread
            .test
            .add(u64::from(turn.matched), u64::from(!turn.matched));
        tenant.turns = tenant.turns.saturating_add(1);
        tenant.matches = tenant.matches.saturating_add(u64::from(turn.matched));
        tenant.ever = true;
    }

    /// The thread has ended, or left the tenant.
    pub fn end(&mut self, thread: ThreadKey, tenant: TenantIndex) {
        if let Some(thread) = self
            .tenants
            .get_mut(&tenant)
            .and_then(|tenant| tenant.threads.get_mut(&thread))
        {
            thread.ended_for_ns.get_or_insert(0);
        }
    }

    /// Where the tenant's tests stand at the end of the window of `span_ns`; a new window begins. The test nearest to a
    /// conclusion is one of those that `all_modes` admits.
    pub fn close(&mut self, tenant: TenantIndex, span_ns: u64, all_modes: &InAllModes) -> Standing {
        let Some(tenant) = self.tenants.get_mut(&tenant) else {
            return Standing::default();
        };
        tenant.drop_carried(span_ns);
        let concluded = tenant.concluded();
        let nearest = tenant
            .threads
            .iter()
            .filter(|&(&key, _)| all_modes.admits(key))
            .map(|(_, thread)| &thread.test)
            .chain(
                (tenant.carried.as_ref())
                    .filter(|_| all_modes.admits_carried())
                    .map(|carried| &carried.test),
            )
            .max_by(|a, b| {
                (a.concluded().cmp(&b.concluded()))
                    .then(a.llr().total_cmp(&b.llr()))
                    .then(a.turns().cmp(&b.turns()))
            })
            .copied()
            .unwrap_or_default();
        tenant.threads.retain(|_, thread| {
            let Some(ended_for_ns) = &mut thread.ended_for_ns else {
                return true;
            };
            *ended_for_ns = ended_for_ns.saturating_add(span_ns);
            thread.test.concluded() && *ended_for_ns <= DUTY_SPAN_NS
        });
        Standing {
            turns: std::mem::take(&mut tenant.turns),
            matches: std::mem::take(&mut tenant.matches),
            ever: tenant.ever,
            nearest,
            concluded,
        }
    }

    /// Makes the threads of `ended`, a tenant that ended in this window, threads of `successor`, which began in it.
    pub fn merge(&mut self, ended: TenantIndex, successor: TenantIndex) {
        let Some(ended) = self.tenants.remove(&ended) else {
            return;
        };
        let successor = self.tenants.entry(successor).or_default();
        for (key, mut thread) in ended.threads {
            thread.ended_for_ns.get_or_insert(0);
            successor.threads.entry(key).or_insert(thread);
        }
        successor.turns = successor.turns.saturating_add(ended.turns);
        successor.matches = successor.matches.saturating_add(ended.matches);
        successor.ever |= ended.ever;
        successor.carried = successor.carried.take().or(ended.carried);
    }

    /// Forgets a tenant that has ended.
    pub fn forget(&mut self, tenant: TenantIndex) {
        self.tenants.remove(&tenant);
    }
}

impl Tenant {
    fn concluded(&self) -> BTreeSet<ThreadKey> {
        (self.threads.iter())
            .filter(|(_, thread)| thread.test.concluded())
            .map(|(&key, _)| key)
            .collect()
    }

    /// Drops what was carried if it is too old, or threads have come to the same by themselves.
    fn drop_carried(&mut self, span_ns: u64) {
        let Some(carried) = &mut self.carried else {
            return;
        };
        carried.age_ns = carried.age_ns.saturating_add(span_ns);
        let own = self.threads.values().any(|thread| {
            thread.test.turns() > 0 && (thread.test.concluded() || !carried.test.concluded())
        });
        if own || carried.age_ns > CARRIED_NS_MAX {
            self.carried = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantIndex = 3;
    const SECOND_NS: u64 = 1_000_000_000;

    fn key(slot: u32) -> ThreadKey {
        ThreadKey {
            slot,
            tgid: 7,
            start_boottime_ns: 1,
        }
    }

    fn turns(mixes: &mut Mixes, slot: u32, matched: bool, count: u32) {
        for _ in 0..count {
            mixes.add(&Turn {
                thread: key(slot),
                tenant: TENANT,
                matched,
            });
        }
    }

    fn close(mixes: &mut Mixes, tenant: TenantIndex, span_ns: u64) -> Standing {
        mixes.close(tenant, span_ns, &InAllModes::default())
    }

    #[test]
    fn a_mix_counts_on_the_thread_that_is_in_all_modes() {
        let mut mixes = Mixes::default();
        turns(&mut mixes, 1, true, 20);
        turns(&mut mixes, 2, false, 20);
        let on = |slot| InAllModes::of([key(slot)], false);
        assert!(!mixes.close(TENANT, SECOND_NS, &on(2)).nearest.concluded());
        assert!(mixes.close(TENANT, SECOND_NS, &on(1)).nearest.concluded());
    }

    #[test]
    fn turns_of_different_threads_are_never_added_up() {
        let mut mixes = Mixes::default();
        for slot in 0..4 {
            turns(&mut mixes, slot, true, 5);
        }
        let standing = close(&mut mixes, TENANT, SECOND_NS);
        assert_eq!((standing.turns, standing.matches), (20, 20));
        assert!(!standing.nearest.concluded());
        turns(&mut mixes, 2, true, 6);
        let standing = close(&mut mixes, TENANT, SECOND_NS);
        assert_eq!(standing.turns, 6);
        assert_eq!(standing.concluded, BTreeSet::from([key(2)]));
    }

    #[test]
    fn an_ended_threads_conclusion_stands_for_a_minute() {
        let mut mixes = Mixes::default();
        turns(&mut mixes, 1, true, 20);
        mixes.end(key(1), TENANT);
        for _ in 0..6 {
            assert!(
                close(&mut mixes, TENANT, 10 * SECOND_NS)
                    .nearest
                    .concluded()
            );
        }
        close(&mut mixes, TENANT, 10 * SECOND_NS);
        assert!(!close(&mut mixes, TENANT, SECOND_NS).nearest.concluded());
    }

    #[test]
    fn a_stored_conclusion_stands_until_a_thread_goes_on_with_it() {
        let stored = Pmu {
            mix_llr: 50.0,
            mix_turns: 30,
            mix_concluded: true,
            ..Pmu::default()
        };
        let mut mixes = Mixes::default();
        mixes.resume(TENANT, &stored).unwrap();
        turns(&mut mixes, 1, false, 1);
        let standing = close(&mut mixes, TENANT, SECOND_NS);
        assert!(standing.nearest.concluded() && standing.concluded.is_empty());
        turns(&mut mixes, 2, true, 1);
        let standing = close(&mut mixes, TENANT, SECOND_NS);
        assert_eq!(standing.nearest.turns(), 31);
        assert_eq!(standing.concluded, BTreeSet::from([key(2)]));
    }

    #[test]
    fn a_stored_conclusion_without_a_thread_is_dropped_after_an_hour() {
        let stored = Pmu {
            mix_llr: 50.0,
            mix_concluded: true,
            ..Pmu::default()
        };
        let mut mixes = Mixes::default();
        mixes.resume(TENANT, &stored).unwrap();
        assert!(
            close(&mut mixes, TENANT, CARRIED_NS_MAX)
                .nearest
                .concluded()
        );
        assert!(!close(&mut mixes, TENANT, SECOND_NS).nearest.concluded());
    }

    #[test]
    fn a_tenant_made_anew_takes_over_what_stood() {
        let mut mixes = Mixes::default();
        turns(&mut mixes, 1, true, 20);
        mixes.merge(TENANT, 9);
        let standing = close(&mut mixes, 9, SECOND_NS);
        assert!(standing.nearest.concluded());
        assert_eq!(standing.turns, 20);
        mixes.forget(9);
        assert_eq!(close(&mut mixes, 9, SECOND_NS), Standing::default());
    }
}
