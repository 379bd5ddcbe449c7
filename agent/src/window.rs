//! From absolute per-thread figures to sums per tenant and window. Pure.
//!
//! [`Accountant::update`] takes a set of readings and returns what each thread did since the previous set;
//! [`Accountant::close`] returns the sums since the previous close. Limits:
//! - a thread is named by slot, process and start time, so neither a reused slot nor a reused id mixes two threads;
//! - a thread counts from its base: from where it was watched, which is its birth if it was born to a watched one;
//! - the open interval of a running thread counts up to the reading, and never twice ([`CpuFigures::advance`]);
//! - an ended thread's last part counts once; then it is forgotten, and its slot may be handed back;
//! - so does the last part of a thread that left its tenant but lives on; what it does until a tenant takes it up
//!   again is nobody's;
//! - a thread that a tenant has no more, because another has it or it is in no reading, has a last part of nothing there.

use std::collections::{BTreeMap, HashMap};

use davy_abi::{FLAG_CONFIDENTIAL, FLAG_ENDED, SlotIndex, TENANT_GONE, TenantIndex};

use crate::{
    kernel::Reading,
    sensor::{
        cpu::CpuFigures,
        fp_rounding::{self, Involuntary, Modes},
        register_randomness::{self, General},
    },
};

/// Names a thread for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadKey {
    /// Its slot.
    pub slot: SlotIndex,
    /// Its process. Its own id may change: a thread that execs takes over its leader's.
    pub tgid: u32,
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
    /// Samples of general registers.
    pub general: General,
    /// Looks after an involuntary switch.
    pub involuntary: Involuntary,
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

impl WindowSums {
    /// Adds `other`, saturating.
    pub fn add(&mut self, other: &Self) {
        self.threads = self.threads.saturating_add(other.threads);
        self.cpu.add(other.cpu);
        self.vcpu_on_cpu_ns = self.vcpu_on_cpu_ns.saturating_add(other.vcpu_on_cpu_ns);
    }
}

#[derive(Clone, Copy, Debug)]
struct Thread {
    /// Whose it was at the last reading; `None`: nobody's, it had left.
    tenant: Option<TenantIndex>,
    cpu: CpuFigures,
    looks: u64,
    modes: Modes,
    random: Modes,
    general: General,
    involuntary: Involuntary,
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
}

impl Accountant {
    /// Threads that belong to a tenant.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
            .values()
            .filter(|thread| thread.tenant.is_some())
            .count()
    }

    /// Takes a set of readings of the time `now_ns` (`CLOCK_MONOTONIC`). `known` says whether there is such a tenant.
    pub fn update(
        &mut self,
        readings: &[Reading],
        now_ns: u64,
        known: impl Fn(TenantIndex) -> bool,
    ) -> Vec<ThreadDelta> {
        self.round += 1;
        let mut deltas = Vec::with_capacity(readings.len());
        for reading in readings {
            // A vCPU that no tenant has taken up yet: all of it will be that tenant's.
            if reading.slot.tenant == 0 {
                continue;
            }
            let key = ThreadKey {
                slot: reading.index,
                tgid: reading.slot.tgid,
                start_boottime_ns: reading.slot.start_boottime_ns,
            };
            let before = self.threads.get(&key).copied();
            // A thread that left its tenant has its last part still to be counted, for the tenant it left.
            let tenant = match reading.slot.tenant {
                TENANT_GONE => before.and_then(|thread| thread.tenant),
                tenant => Some(tenant),
            }
            .filter(|&tenant| known(tenant));
            let (mut thread, delta) = self.advance(key, reading, before, tenant, now_ns);
            // Another tenant has it now.
            if let Some(left) = before.and_then(|thread| thread.tenant)
                && tenant != Some(left)
                && known(left)
            {
                deltas.push(nothing_more(key, left, reading.slot.cpu));
            }
            if let Some(delta) = delta {
                let first_in_window =
                    thread.window != self.window || before.and_then(|b| b.tenant) != tenant;
                thread.window = self.window;
                self.add(&delta, first_in_window);
                deltas.push(delta);
            }
            if reading.slot.flags & FLAG_ENDED == 0 {
                self.threads.insert(key, thread);
            } else {
                self.threads.remove(&key);
            }
        }
        // What is in no reading any more was handed back; forgetting it bounds the table by the slots.
        let round = self.round;
        self.threads.retain(|&key, thread| {
            let stays = thread.round == round;
            if let Some(tenant) = thread.tenant.filter(|&tenant| !stays && known(tenant)) {
                deltas.push(nothing_more(key, tenant, 0));
            }
            stays
        });
        deltas
    }

    /// The thread's new marks, and what it did for `tenant` since the old ones (`before`), if it is a tenant's.
    fn advance(
        &self,
        key: ThreadKey,
        reading: &Reading,
        before: Option<Thread>,
        tenant: Option<TenantIndex>,
        now_ns: u64,
    ) -> (Thread, Option<ThreadDelta>) {
        let slot = &reading.slot;
        // Samples are only ever taken of a watched thread: all of them count.
        let before = before.unwrap_or(Thread {
            tenant: None,
            cpu: CpuFigures::base(slot),
            looks: 0,
            modes: [0; 4],
            random: [0; 4],
            general: General::default(),
            involuntary: Involuntary::default(),
            window: u64::MAX,
            round: 0,
        });
        let (cpu, mark) = CpuFigures::absolute(reading, now_ns).advance(before.cpu);
        let modes = fp_rounding::since(slot, &before.modes);
        let delta = tenant.map(|tenant| ThreadDelta {
            thread: key,
            tenant,
            is_vcpu: reading.is_vcpu(),
            is_confidential: slot.flags & FLAG_CONFIDENTIAL != 0,
            ended: reading.ended(),
            cpu_number: slot.cpu,
            cpu,
            looks: slot.looks.saturating_sub(before.looks),
            modes,
            random: register_randomness::since(slot, &before.random, &modes),
            general: General::of(slot).since(before.general),
            involuntary: Involuntary::of(slot).since(before.involuntary),
        });
        let thread = Thread {
            tenant: tenant.filter(|_| !reading.ended()),
            cpu: mark,
            looks: slot.looks,
            modes: slot.modes,
            random: slot.random,
            general: General::of(slot),
            involuntary: Involuntary::of(slot),
            window: before.window,
            round: self.round,
        };
        (thread, delta)
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

/// The last part of a thread that did nothing for `tenant` any more.
fn nothing_more(thread: ThreadKey, tenant: TenantIndex, cpu_number: u32) -> ThreadDelta {
    ThreadDelta {
        thread,
        tenant,
        is_vcpu: false,
        is_confidential: false,
        ended: true,
        cpu_number,
        cpu: CpuFigures::default(),
        looks: 0,
        modes: [0; 4],
        random: [0; 4],
        general: General::default(),
        involuntary: Involuntary::default(),
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
