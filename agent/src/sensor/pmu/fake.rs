//! Counters that a test writes: threads that run at given rates, on a CPU with so many counters.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    counters::{Counters, Group, OpenError},
    family::{Cpu, Event, Vendor, What},
};
use crate::kernel::perf::{Counts, Scope};

/// What the fake CPU and its threads are like, and what was done with it.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    /// What each thread has done, in guest mode or user space.
    done: BTreeMap<u32, Done>,
    /// How many of the fake's groups are open.
    pub(crate) open_groups: usize,
    /// The most events that one open group had.
    pub(crate) events_max: usize,
    /// Every scope that was asked for, by thread.
    pub(crate) scopes: BTreeMap<u32, Scope>,
    /// Why opening fails, if it does, for groups with more than so many events.
    pub(crate) refusal: Option<(usize, OpenError)>,
    /// Share of the time that groups are on the counters, per cent; 100 if not set.
    pub(crate) running_percent: Option<u64>,
}

#[derive(Debug, Default, Clone)]
struct Done {
    ran_ns: u64,
    counts: BTreeMap<What, u64>,
}

/// How many of each a thread does per second.
pub(crate) type Rates = BTreeMap<What, u64>;

/// The fake, and its handle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake(Arc<Mutex<Machine>>);

impl Fake {
    pub(crate) fn with<T>(&self, what: impl FnOnce(&mut Machine) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The thread runs for `ns`.
    pub(crate) fn run(&self, tid: u32, ns: u64, rates: &Rates) {
        self.with(|machine| {
            let done = machine.done.entry(tid).or_default();
            done.ran_ns += ns;
            for (&what, &per_s) in rates {
                let more = u128::from(per_s) * u128::from(ns) / 1_000_000_000;
                *done.counts.entry(what).or_default() += u64::try_from(more).unwrap();
            }
        });
    }
}

#[derive(Debug)]
struct FakeGroup {
    fake: Fake,
    tid: u32,
    whats: Vec<What>,
    base: Done,
}

impl Counters for Fake {
    fn open(
        &mut self,
        tid: u32,
        events: &[Event],
        scope: Scope,
    ) -> Result<Box<dyn Group>, OpenError> {
        let base = self.with(|machine| {
            if let Some((above, error)) = &machine.refusal
                && events.len() > *above
            {
                return Err(error.clone());
            }
            machine.open_groups += 1;
            machine.events_max = machine.events_max.max(events.len());
            machine.scopes.insert(tid, scope);
            Ok(machine.done.get(&tid).cloned().unwrap_or_default())
        })?;
        Ok(Box::new(FakeGroup {
            fake: self.clone(),
            tid,
            whats: events.iter().map(|event| event.what).collect(),
            base,
        }))
    }
}

impl Group for FakeGroup {
    fn read(&self) -> io::Result<Counts> {
        self.fake.with(|machine| {
            let share = machine.running_percent.unwrap_or(100);
            let done = machine.done.get(&self.tid).cloned().unwrap_or_default();
            let enabled_ns = done.ran_ns - self.base.ran_ns;
            let of = |done: &Done, what| done.counts.get(what).copied().unwrap_or(0);
            Ok(Counts {
                time_enabled_ns: enabled_ns,
                time_running_ns: enabled_ns * share / 100,
                values: self
                    .whats
                    .iter()
                    .map(|what| (of(&done, what) - of(&self.base, what)) * share / 100)
                    .collect(),
            })
        })
    }
}

impl Drop for FakeGroup {
    fn drop(&mut self) {
        self.fake.with(|machine| machine.open_groups -= 1);
    }
}

pub(crate) fn zen_3() -> Cpu {
    Cpu {
        vendor: Vendor::Amd,
        family: 0x19,
        model: 0x01,
        general_counters: 6,
        has_fixed_counters: false,
        is_hybrid: false,
    }
}

pub(crate) fn zen_4() -> Cpu {
    Cpu {
        model: 0x11,
        ..zen_3()
    }
}

/// A `RandomX` miner of 600 H/s (v1), as counters of every family would see it: 65,536 divisions a hash, the other kinds by
/// the specified frequencies.
pub(crate) fn randomx() -> Rates {
    const HASHES: u64 = 600;
    let of_256 = |frequency: u64| HASHES * 8 * 2_048 * frequency;
    Rates::from([
        (What::Cycles, 3_000_000_000),
        (What::Instructions, 4_500_000_000),
        (What::CacheMisses, 9_000_000),
        (What::BranchMisses, 3_000_000),
        (What::FpAdd, of_256(21)),
        (What::FpSub, of_256(21)),
        (What::FpAddSub, 2 * of_256(42)),
        (What::FpDiv, of_256(4)),
        (What::FpSqrt, of_256(6)),
        (What::FpDivSqrt, 2 * of_256(10)),
        (What::ControlWordTraps, 5_000_000),
        (What::Aes, 80_000_000),
    ])
}

/// The kind that is operations on one CPU and FLOPs on another.
pub(crate) fn randomx_on(cpu: &Cpu) -> Rates {
    let mut rates = randomx();
    let flops_per_op = if *cpu == zen_3() { 2 } else { 1 };
    rates.insert(What::FpMul, flops_per_op * 600 * 8 * 2_048 * 32);
    rates
}

/// Matrix products: multiplications and additions, hardly anything else.
pub(crate) fn matrices() -> Rates {
    Rates::from([
        (What::Cycles, 3_000_000_000),
        (What::Instructions, 6_000_000_000),
        (What::FpAdd, 1_000_000_000),
        (What::FpAddSub, 2_000_000_000),
        (What::FpMul, 1_000_000_000),
        (What::FpDiv, 20_000),
        (What::FpDivSqrt, 40_000),
    ])
}
