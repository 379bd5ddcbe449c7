//! From absolute per-thread figures to sums per tenant and window. Pure.
//!
//! [`Accountant::update`] takes a set of readings and returns what each thread did since the previous set;
//! [`Accountant::close`] returns the sums since the previous close. Limits:
//! - a thread is named by slot, thread id and start time, so neither a reused slot nor a reused id mixes two threads;
//! - a thread that is older than the watch counts from the first look at it, one born since from its birth;
//! - the open interval of a running thread counts up to the reading, and never twice ([`CpuFigures::advance`]);
//! - an ended thread's last part counts once; then it is forgotten, and its slot may be handed back.

use std::collections::{BTreeMap, HashMap};

use davy_abi::{FLAG_CONFIDENTIAL, SlotIndex, TENANT_GONE, TenantIndex};

use crate::{
    kernel::Reading,
    sensor::{
        cpu::CpuFigures,
        fp_rounding::{self, Modes},
        register_randomness,
    },
};

/// Names a thread for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadKey {
    /// Its slot.
    pub slot: SlotIndex,
    /// Its id.
    pub tid: u32,
    /// When it started, `CLOCK_BOOTTIME`, ns.
    pub start_boottime_ns: u64,
}

/// What one thread did between two sets of readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadDelta {
    /// Which thread.
    pub thread: ThreadKey,
    /// Whose.
    pub tenant: TenantIndex,
    /// Whether it is a vCPU.
    pub is_vcpu: bool,
    /// Whether its registers are encrypted.
    pub is_confidential: bool,
    /// Whether this is its last part.
    pub ended: bool,
    /// The CPU it last ran on.
    pub cpu_number: u32,
    /// The scheduler's books.
    pub cpu: CpuFigures,
    /// Looks at its registers.
    pub looks: u64,
    /// Samples by rounding mode.
    pub modes: Modes,
    /// Random samples by rounding mode.
    pub random: Modes,
}

/// Sums over a tenant's threads within a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSums {
    /// Threads that were watched at any time in it.
    pub threads: u32,
    /// Over all threads; `guest_ns` never exceeds `vcpu_on_cpu_ns`.
    pub cpu: CpuFigures,
    /// On-CPU time of vCPU threads, ns.
    pub vcpu_on_cpu_ns: u64,
}

/// From when the figures of a tenant's threads count. An older thread counts from the first look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountFrom {
    /// Threads started at or after this time (`CLOCK_BOOTTIME`, ns) count from their birth.
    Birth(u64),
    /// The same, but only those born since the previous look: an older one that turns up now was moved in, and did
    /// its earlier work elsewhere.
    RecentBirth(u64),
}

/// When a set of readings was taken.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// `CLOCK_MONOTONIC`, ns.
    pub now_ns: u64,
    /// `CLOCK_BOOTTIME`, ns, read before the readings were taken.
    pub boottime_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Thread {
    tenant: TenantIndex,
    cpu: CpuFigures,
    looks: u64,
    modes: Modes,
    random: Modes,
    window: u64,
    round: u64,
}

/// Keeps each thread's last figures and each tenant's sums.
#[derive(Debug, Default)]
pub struct Accountant {
    threads: HashMap<ThreadKey, Thread>,
    sums: BTreeMap<TenantIndex, WindowSums>,
    /// Guest time that ran ahead of on-CPU time (it is booked by another clock) and waits for a later window.
    guest_ahead_ns: BTreeMap<TenantIndex, u64>,
    window: u64,
    round: u64,
    previous_boottime_ns: u64,
}

impl Accountant {
    /// Threads whose figures are kept.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Takes a set of readings. `counts` says from when a tenant's threads count; `None` for a tenant that
    /// is not known, whose readings are left out.
    pub fn update(
        &mut self,
        readings: &[Reading],
        at: Moment,
        counts: impl Fn(TenantIndex) -> Option<CountFrom>,
    ) -> Vec<ThreadDelta> {
        self.round += 1;
        let mut deltas = Vec::with_capacity(readings.len());
        for reading in readings {
            let slot = &reading.slot;
            let key = ThreadKey {
                slot: reading.index,
                tid: slot.tid,
                start_boottime_ns: slot.start_boottime_ns,
            };
            // A thread that left its tenant has its last part still to be counted, for the tenant it left.
            let tenant = if slot.tenant == TENANT_GONE {
                self.threads.get(&key).map_or(0, |thread| thread.tenant)
            } else {
                slot.tenant
            };
            let Some(counts) = counts(tenant) else {
                continue;
            };
            let counted_from_ns = match counts {
                CountFrom::Birth(from_ns) => from_ns,
                CountFrom::RecentBirth(from_ns) => from_ns.max(self.previous_boottime_ns),
            };
            let now = CpuFigures::absolute(reading, at.now_ns);
            let window = self.window;
            let thread = self.threads.entry(key).or_insert_with(|| {
                let born_watched = slot.start_boottime_ns >= counted_from_ns;
                Thread {
                    tenant,
                    cpu: if born_watched {
                        CpuFigures::default()
                    } else {
                        now
                    },
                    // Samples are only ever taken of a watched thread: all of them count.
                    looks: 0,
                    modes: [0; 4],
                    random: [0; 4],
                    window: u64::MAX,
                    round: 0,
                }
            });
            let (cpu, mark) = now.advance(thread.cpu);
            let modes = fp_rounding::since(slot, &thread.modes);
            let random = register_randomness::since(slot, &thread.random, &modes);
            let delta = ThreadDelta {
                thread: key,
                tenant,
                is_vcpu: reading.is_vcpu(),
                is_confidential: slot.flags & FLAG_CONFIDENTIAL != 0,
                ended: reading.ended(),
                cpu_number: slot.cpu,
                cpu,
                looks: slot.looks.saturating_sub(thread.looks),
                modes,
                random,
            };
            let first_in_window = thread.window != window;
            *thread = Thread {
                tenant,
                cpu: mark,
                looks: slot.looks,
                modes: slot.modes,
                random: slot.random,
                window,
                round: self.round,
            };
            if delta.ended {
                self.threads.remove(&key);
            }
            self.add(&delta, first_in_window);
            deltas.push(delta);
        }
        // What is in no reading any more was handed back; forgetting it bounds the table by the slots.
        let round = self.round;
        self.threads.retain(|_, thread| thread.round == round);
        self.previous_boottime_ns = at.boottime_ns;
        deltas
    }

    /// The sums of the window that ends now, by tenant; a new window begins.
    pub fn close(&mut self) -> BTreeMap<TenantIndex, WindowSums> {
        self.window += 1;
        let mut sums = std::mem::take(&mut self.sums);
        for (tenant, sum) in &mut sums {
            let ahead = self.guest_ahead_ns.remove(tenant).unwrap_or(0);
            let guest_ns = sum.cpu.guest_ns.saturating_add(ahead);
            sum.cpu.guest_ns = guest_ns.min(sum.vcpu_on_cpu_ns);
            if guest_ns > sum.cpu.guest_ns {
                self.guest_ahead_ns
                    .insert(*tenant, guest_ns - sum.cpu.guest_ns);
            }
        }
        sums
    }

    /// Forgets a tenant that has ended.
    pub fn forget(&mut self, tenant: TenantIndex) {
        self.guest_ahead_ns.remove(&tenant);
    }

    fn add(&mut self, delta: &ThreadDelta, first_in_window: bool) {
        let sum = self.sums.entry(delta.tenant).or_default();
        sum.threads += u32::from(first_in_window);
        sum.cpu.add(delta.cpu);
        if delta.is_vcpu {
            sum.vcpu_on_cpu_ns = sum.vcpu_on_cpu_ns.saturating_add(delta.cpu.on_cpu_ns);
        }
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
