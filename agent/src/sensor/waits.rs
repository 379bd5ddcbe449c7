//! `waits`: behind whom a tenant's threads waited for a CPU.
//!
//! Kernel half: `agent-ebpf/src/sensor/waits.rs`. It books a wait when the stint that followed it ends, so what is
//! reported of a window are the waits whose stints ended in it; `cpu`'s `run_queue_wait_ns` counts a wait from the
//! switch-in that ends it. The sums of both are the same in the end. Not evidence: it says whose doing a wait was.
//!
//! [`Ledger`] adds up per tenant and process; [`Waited::top`] gives the most important ones. Pure. Limits: processes
//! beyond [`CULPRITS_MAX`] in one tenant's window, and those the kernel half's table had no room for, are *others*.

use std::collections::{BTreeMap, HashMap};

use davy_abi::{BEHIND, IDLE, TenantIndex, Waits};
use davy_proto::v1;

use crate::{kernel::Reading, window::ThreadKey};

/// Processes kept apart in one tenant's window.
pub const CULPRITS_MAX: usize = 1_024;
/// Longest command on the wire, characters.
const COMMAND_CHARS_MAX: usize = 16;
/// Processes named in a window.
pub const TOP: usize = 5;

/// Where the threads of a tenant waited in a window. The four parts add up to all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// Behind processes, by their ids (their own tenant's included), ns.
    pub behind: BTreeMap<u32, u64>,
    /// Behind processes that are not known any more, ns.
    pub others_ns: u64,
    /// Beside an idle CPU: it was waking up, or a quota was used up, ns.
    pub idle_ns: u64,
    /// Behind nobody knows whom: too brief, on another CPU before a move, or too long ago, ns.
    pub unknown_ns: u64,
}

/// A window's waits with only the most important processes named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Top {
    /// Process and ns, the most first; at most [`TOP`].
    pub behind: Vec<(u32, u64)>,
    /// Behind all other processes, ns.
    pub others_ns: u64,
    /// As [`Waited::idle_ns`].
    pub idle_ns: u64,
    /// As [`Waited::unknown_ns`].
    pub unknown_ns: u64,
}

impl Waited {
    /// Adds `other`, saturating.
    pub fn add(&mut self, other: &Self) {
        for (&tgid, &ns) in &other.behind {
            self.book(tgid, ns);
        }
        for (sum, more) in [
            (&mut self.others_ns, other.others_ns),
            (&mut self.idle_ns, other.idle_ns),
            (&mut self.unknown_ns, other.unknown_ns),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// The [`TOP`] processes; the rest are others.
    #[must_use]
    pub fn top(&self) -> Top {
        let mut behind: Vec<_> = self.behind.iter().map(|(&tgid, &ns)| (tgid, ns)).collect();
        behind.sort_by_key(|&(tgid, ns)| (std::cmp::Reverse(ns), tgid));
        let rest = behind.split_off(behind.len().min(TOP));
        Top {
            behind,
            others_ns: rest
                .iter()
                .fold(self.others_ns, |sum, &(_, ns)| sum.saturating_add(ns)),
            idle_ns: self.idle_ns,
            unknown_ns: self.unknown_ns,
        }
    }

    /// As the wire has it; `name` gives a process's tenant's key and its command, empty where there is none.
    #[must_use]
    pub fn message(&self, name: impl Fn(u32) -> (String, String)) -> v1::Waits {
        let Top {
            behind,
            others_ns,
            idle_ns,
            unknown_ns,
        } = self.top();
        let behind = behind.into_iter().map(|(pid, ns)| {
            let (tenant_key, command) = name(pid);
            let command = command.chars().filter(|c| !c.is_control());
            v1::WaitedBehind {
                tenant_key,
                command: command.take(COMMAND_CHARS_MAX).collect(),
                pid,
                ns,
            }
        });
        v1::Waits {
            behind: behind.collect(),
            others_ns,
            idle_ns,
            unknown_ns,
        }
    }

    fn book(&mut self, tgid: u32, ns: u64) {
        if ns == 0 {
            return;
        }
        let sum = if tgid == IDLE {
            &mut self.idle_ns
        } else if self.behind.len() >= CULPRITS_MAX && !self.behind.contains_key(&tgid) {
            &mut self.others_ns
        } else {
            self.behind.entry(tgid).or_default()
        };
        *sum = sum.saturating_add(ns);
    }
}

/// What is between two states of one thread's table.
fn since(before: &Waits, now: &Waits) -> Waited {
    let mut waited = Waited::default();
    let waited_ns = now.waited_ns.saturating_sub(before.waited_ns);
    // The table is read while it is written: its parts are held to the sums.
    let named_ns = now.named_ns.saturating_sub(before.named_ns).min(waited_ns);
    let mut left_ns = named_ns;
    for behind in now.behind.iter().take(BEHIND).filter(|b| b.tgid != 0) {
        let was = before.behind.iter().find(|b| b.tgid == behind.tgid);
        // One that holds less than before has left the table and come back meanwhile.
        let ns = match was {
            Some(was) if was.ns <= behind.ns => behind.ns - was.ns,
            _ => behind.ns,
        };
        let ns = ns.min(left_ns);
        waited.book(behind.tgid, ns);
        left_ns -= ns;
    }
    waited.others_ns = waited.others_ns.saturating_add(left_ns);
    waited.unknown_ns = waited_ns - named_ns;
    waited
}

#[derive(Debug)]
struct Thread {
    waits: Waits,
    round: u64,
}

/// The waits of all tenants.
#[derive(Debug, Default)]
pub struct Ledger {
    threads: HashMap<ThreadKey, Thread>,
    sums: BTreeMap<TenantIndex, Waited>,
    round: u64,
}

impl Ledger {
    /// Takes a set of readings; `waits_of` gives the table of a reading's slot, `known` says whether there is such a tenant.
    /// What a thread waited for last before it left its tenant is nobody's.
    pub fn update(
        &mut self,
        readings: &[Reading],
        waits_of: impl Fn(&Reading) -> Option<Waits>,
        known: impl Fn(TenantIndex) -> bool,
    ) {
        self.round += 1;
        for reading in readings {
            let slot = &reading.slot;
            // A vCPU that no tenant has taken up yet: all of it will be that tenant's.
            if slot.tenant == 0 {
                continue;
            }
            let Some(now) = waits_of(reading) else {
                continue;
            };
            let thread = self
                .threads
                .entry(ThreadKey {
                    slot: reading.index,
                    tgid: slot.tgid,
                    start_boottime_ns: slot.start_boottime_ns,
                })
                .or_insert_with(|| Thread {
                    waits: Waits {
                        waited_ns: slot.base_run_queue_wait_ns,
                        ..Waits::default()
                    },
                    round: 0,
                });
            thread.round = self.round;
            // Not at its first switch-out yet, or nothing new.
            if now.waited_ns <= thread.waits.waited_ns {
                continue;
            }
            let waited = since(&thread.waits, &now);
            thread.waits = now;
            if known(slot.tenant) {
                self.sums.entry(slot.tenant).or_default().add(&waited);
            }
        }
        let round = self.round;
        self.threads.retain(|_, thread| thread.round == round);
    }

    /// The waits of the window that ends now, by tenant; a new window begins.
    pub fn close(&mut self) -> BTreeMap<TenantIndex, Waited> {
        std::mem::take(&mut self.sums)
    }
}

#[cfg(test)]
mod tests {
    use davy_abi::{Behind, Slot};

    use super::*;

    fn waits(waited_ns: u64, entries: &[(u32, u64)], evicted_ns: u64) -> Waits {
        let mut waits = Waits {
            waited_ns,
            named_ns: entries.iter().map(|&(_, ns)| ns).sum::<u64>() + evicted_ns,
            ..Waits::default()
        };
        for (place, &(tgid, ns)) in waits.behind.iter_mut().zip(entries) {
            *place = Behind {
                tgid,
                ns,
                weight: 0,
            };
        }
        waits
    }

    fn total(waited: &Waited) -> u64 {
        waited.behind.values().sum::<u64>() + waited.others_ns + waited.idle_ns + waited.unknown_ns
    }

    #[test]
    fn differences_are_by_process_and_add_up() {
        let before = waits(100, &[(7, 60), (8, 20)], 0);
        let now = waits(300, &[(7, 90), (8, 20), (IDLE, 40), (9, 50)], 30);
        let waited = since(&before, &now);
        assert_eq!(waited.behind, BTreeMap::from([(7, 30), (9, 50)]));
        assert_eq!(waited.idle_ns, 40);
        assert_eq!(waited.others_ns, 30, "who has left the table");
        assert_eq!(waited.unknown_ns, 50);
        assert_eq!(total(&waited), 200);
    }

    #[test]
    fn who_left_the_table_and_came_back_counts_anew() {
        let before = waits(100, &[(7, 60)], 40);
        let now = waits(200, &[(7, 10)], 130);
        let waited = since(&before, &now);
        assert_eq!(waited.behind, BTreeMap::from([(7, 10)]));
        assert_eq!(waited.others_ns, 30);
        assert_eq!(total(&waited), 40 + waited.unknown_ns);
    }

    #[test]
    fn a_table_read_while_it_is_written_never_exceeds_the_wait() {
        let mut now = waits(150, &[(7, 500), (8, 500)], 0);
        now.named_ns = 140;
        let waited = since(&Waits::default(), &now);
        assert_eq!(total(&waited), 150);
    }

    #[test]
    fn only_the_most_important_are_named() {
        let mut waited = Waited {
            others_ns: 1,
            ..Waited::default()
        };
        for tgid in 1..=7 {
            waited.book(tgid, u64::from(tgid) * 10);
        }
        let top = waited.top();
        assert_eq!(top.behind, [(7, 70), (6, 60), (5, 50), (4, 40), (3, 30)]);
        assert_eq!(top.others_ns, 1 + 20 + 10);
    }

    #[test]
    fn processes_without_number_become_others() {
        let mut waited = Waited::default();
        for tgid in (1..).take(CULPRITS_MAX + 5) {
            waited.book(tgid, 2);
        }
        assert_eq!(waited.behind.len(), CULPRITS_MAX);
        assert_eq!(waited.others_ns, 10);
    }

    #[test]
    fn a_thread_counts_from_its_base_and_for_its_tenant() {
        let mut ledger = Ledger::default();
        let reading = |tenant| Reading {
            index: 3,
            slot: Slot {
                tgid: 50,
                tenant,
                base_run_queue_wait_ns: 1_000,
                ..Slot::default()
            },
        };
        let table = |waited_ns, ns| move |_: &Reading| Some(waits(waited_ns, &[(7, ns)], 0));
        // No switch-out yet.
        ledger.update(&[reading(1)], |_| Some(Waits::default()), |_| true);
        assert!(ledger.close().is_empty());
        ledger.update(&[reading(1)], table(1_300, 200), |_| true);
        let sums = ledger.close();
        assert_eq!(sums[&1].behind, BTreeMap::from([(7, 200)]));
        assert_eq!(sums[&1].unknown_ns, 100);
        // In another tenant now; what was counted stays counted.
        ledger.update(&[reading(2)], table(1_350, 250), |_| true);
        assert_eq!(ledger.close()[&2].behind, BTreeMap::from([(7, 50)]));
        // Gone: another thread may have the slot.
        ledger.update(&[], |_| None, |_| true);
        assert!(ledger.threads.is_empty());
    }
}
