//! A source of readings that a test writes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
};

use davy_abi::{FLAG_ENDED, FLAG_LIVE, FLAG_VCPU, Slot, SlotIndex, TenantIndex, Vcpu, Waits};
use davy_evidence::SensorState;

use super::ThreadSource;
use crate::{
    kernel::{ProgramCost, Reading, WatchedThreads},
    tenant::{discover::Processes, identity::ProcessFacts},
};

/// Slots by index, and what was asked.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) slots: BTreeMap<SlotIndex, Slot>,
    pub(crate) waits: BTreeMap<SlotIndex, Waits>,
    pub(crate) now_ns: u64,
    pub(crate) watched_processes: Vec<(u32, TenantIndex)>,
    pub(crate) watched_trees: Vec<(u32, TenantIndex)>,
    pub(crate) watched_cgroups: HashMap<PathBuf, TenantIndex>,
    pub(crate) gone_cgroups: Vec<PathBuf>,
    pub(crate) unwatchable: HashSet<u32>,
    /// Processes whose threads find no free slot.
    pub(crate) full_for: HashSet<u32>,
    /// Threads (slot, process) that are found only when their process is watched.
    pub(crate) later_threads: Vec<(SlotIndex, u32)>,
    pub(crate) vcpus_unsupported: Option<String>,
    pub(crate) released: Vec<SlotIndex>,
    /// What KVM counted of each slot's thread.
    pub(crate) vcpus: BTreeMap<SlotIndex, Vcpu>,
    /// What was said about guests, at each look.
    pub(crate) guests_said: Vec<bool>,
    pub(crate) pace: Option<std::time::Duration>,
}

impl Script {
    /// A vCPU thread the kernel half found by itself.
    pub(crate) fn vcpu(&mut self, index: SlotIndex, tgid: u32) {
        self.thread(index, tgid, 0);
        self.slot(index).flags |= FLAG_VCPU;
    }

    pub(crate) fn thread(&mut self, index: SlotIndex, tgid: u32, tenant: TenantIndex) {
        let slot = Slot {
            tid: 1_000 + index,
            tgid,
            flags: FLAG_LIVE,
            tenant,
            start_boottime_ns: self.now_ns,
            ..Slot::default()
        };
        self.slots.insert(index, slot);
    }

    pub(crate) fn slot(&mut self, index: SlotIndex) -> &mut Slot {
        self.slots
            .get_mut(&index)
            .expect("the script has this slot")
    }

    pub(crate) fn end(&mut self, index: SlotIndex) {
        self.slot(index).flags |= FLAG_ENDED;
    }

    pub(crate) fn all(&self) -> Vec<Reading> {
        let mut out = Vec::new();
        self.readings(&mut out);
        out
    }

    fn watch(&mut self, tgid: u32, tenant: TenantIndex) -> io::Result<WatchedThreads> {
        if self.unwatchable.contains(&tgid) {
            return Err(io::Error::other("scripted to fail"));
        }
        let mut watched = WatchedThreads::default();
        if self.full_for.contains(&tgid) {
            watched.refused = 1;
            return Ok(watched);
        }
        for (index, of) in std::mem::take(&mut self.later_threads) {
            self.thread(index, of, 0);
        }
        for slot in self.slots.values_mut().filter(|slot| slot.tgid == tgid) {
            watched.added += u32::from(slot.tenant != tenant);
            slot.tenant = tenant;
        }
        Ok(watched)
    }
}

impl ThreadSource for Script {
    type Error = io::Error;

    fn readings(&self, out: &mut Vec<Reading>) {
        out.clear();
        out.extend(
            self.slots
                .iter()
                .map(|(&index, &slot)| Reading { index, slot }),
        );
    }

    fn waits(&self, slot: SlotIndex) -> Option<Waits> {
        Some(self.waits.get(&slot).copied().unwrap_or_default())
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn watch_process(&mut self, tgid: u32, tenant: TenantIndex) -> io::Result<WatchedThreads> {
        self.watched_processes.push((tgid, tenant));
        self.watch(tgid, tenant)
    }

    fn watch_tree(&mut self, tgid: u32, tenant: TenantIndex) -> io::Result<WatchedThreads> {
        self.watched_trees.push((tgid, tenant));
        self.watch(tgid, tenant)
    }

    fn watch_cgroup(&mut self, dir: &Path, tenant: TenantIndex) -> io::Result<WatchedThreads> {
        self.watched_cgroups.insert(dir.to_owned(), tenant);
        Ok(WatchedThreads::default())
    }

    fn refresh_cgroups(&mut self) -> Vec<PathBuf> {
        let gone = std::mem::take(&mut self.gone_cgroups);
        for dir in &gone {
            self.watched_cgroups.remove(dir);
        }
        gone
    }

    fn assign(&mut self, slot: SlotIndex, tenant: TenantIndex) {
        self.slot(slot).tenant = tenant;
    }

    fn release(&mut self, reading: &Reading) {
        self.slots.remove(&reading.index);
        self.released.push(reading.index);
    }

    fn counted(&self, reading: &Reading) -> Option<Vcpu> {
        self.vcpus.get(&reading.index).copied()
    }

    fn follow_guests(&mut self, guests: bool) {
        self.guests_said.push(guests);
    }

    fn sensors(&self) -> Vec<(&'static str, SensorState, String)> {
        vec![
            ("cpu", SensorState::Live, String::new()),
            ("fp_rounding", SensorState::Live, String::new()),
            (
                "register_randomness",
                SensorState::Unsupported,
                "scripted to be absent".to_owned(),
            ),
            ("kvm_exits", SensorState::Live, "scripted".to_owned()),
            ("msr_writes", SensorState::Live, "scripted".to_owned()),
        ]
    }

    fn vcpus_unsupported(&self) -> Option<String> {
        self.vcpus_unsupported.clone()
    }

    fn boottime_ns(&self) -> u64 {
        self.now_ns
    }

    fn pace(&mut self, least: std::time::Duration) -> io::Result<()> {
        self.pace = Some(least);
        Ok(())
    }

    fn overhead(&self) -> Vec<ProgramCost> {
        Vec::new()
    }

    fn counters(&self) -> Vec<u64> {
        Vec::new()
    }
}

/// Processes and control groups a test writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScriptedProcesses {
    pub(crate) facts: HashMap<u32, ProcessFacts>,
    pub(crate) workers: HashMap<u32, Vec<u32>>,
    pub(crate) cgroups: HashSet<PathBuf>,
    pub(crate) without_kvm: bool,
}

impl ScriptedProcesses {
    pub(crate) fn run(&mut self, tgid: u32, line: &str) {
        let facts = ProcessFacts {
            argv: line.split(' ').map(str::to_owned).collect(),
            exe: String::new(),
            start_ticks: 55,
        };
        self.facts.insert(tgid, facts);
    }
}

impl Processes for ScriptedProcesses {
    fn facts(&self, tgid: u32) -> Option<ProcessFacts> {
        self.facts.get(&tgid).cloned()
    }

    fn kernel_workers(&self, tgid: u32) -> Vec<u32> {
        self.workers.get(&tgid).cloned().unwrap_or_default()
    }

    fn command(&self, tgid: u32) -> String {
        let facts = self.facts.get(&tgid);
        facts
            .and_then(|facts| facts.argv.first().cloned())
            .unwrap_or_default()
    }

    fn cgroup_exists(&self, dir: &Path) -> bool {
        self.cgroups.contains(dir)
    }

    fn kvm_present(&self) -> bool {
        !self.without_kvm
    }
}
