//! The kernel-facing half of the agent: everything that loads, maps or interprets what `agent-ebpf` writes, and the
//! performance counters ([`perf`]).
//!
//! [`Kernel::load`] resolves offsets from BTF, loads and attaches the programs and maps the slot table. From
//! then on every watched thread has a slot, and [`Kernel::readings`] is plain memory reads.
//! Dropping a [`Kernel`] detaches everything.
//!
//! Limits: `slots_max` threads at once; what finds no free slot is counted ([`davy_abi::Counter`]). Thread ids
//! are those of the initial pid namespace, so the agent refuses to run in another one.

mod btf;
mod error;
mod kvm;
mod loader;
mod mapping;
mod offsets;
mod overhead;
pub mod perf;
mod requirements;
mod search;
mod slots;
mod threads;
mod vcpus;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{self, MapData, PerCpuArray, Queue},
};
use davy_abi::{
    COUNTERS, FLAG_ENDED, FLAG_VCPU, Slot, SlotIndex, TENANT_GONE, TenantIndex, Vcpu, Waits,
};
use davy_evidence::SensorState;

pub use self::{
    error::{KernelError, LoadError},
    overhead::{Meter, ProgramCost},
    requirements::{Requirement, requirements},
};
use self::{kvm::Kvm, slots::SlotTable, threads::Books};

/// How the kernel half is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// Threads that can be watched at once, 2..=1,048,576. Each takes 728 bytes of kernel memory, and a hash entry.
    pub slots_max: u32,
    /// Least time between two looks at one thread's registers.
    pub sample_interval: Duration,
    /// Whether vCPU threads are to be found by themselves.
    pub find_vcpus: bool,
    /// From where the exits of vCPUs are to be counted.
    pub exits: ExitsFrom,
}

/// From where the exits of vCPUs are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExitsFrom {
    /// KVM's own counters; the tracepoint `kvm:kvm_exit` where they cannot be had.
    #[default]
    Best,
    /// The tracepoint, whatever else there is.
    Tracepoint,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self {
            slots_max: 16_384,
            sample_interval: Duration::from_millis(5),
            find_vcpus: true,
            exits: ExitsFrom::Best,
        }
    }
}

/// A copy of one slot in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Which slot.
    pub index: SlotIndex,
    /// Its content.
    pub slot: Slot,
}

impl Reading {
    /// The thread has been seen with a guest's registers.
    #[must_use]
    pub fn is_vcpu(&self) -> bool {
        self.slot.flags & FLAG_VCPU != 0
    }

    /// The thread has died or left its tenant, and its figures are final.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.slot.flags & FLAG_ENDED != 0 || self.slot.tenant == TENANT_GONE
    }

    /// CPU time up to `now_ns` (CLOCK_MONOTONIC): the scheduler's books, and the open stint of a thread that
    /// is running. The open part is wall time and may exceed what will be booked for it (interrupts, steal).
    #[must_use]
    pub fn on_cpu_ns_at(&self, now_ns: u64) -> u64 {
        let open = match self.slot.running_since_ns {
            0 => 0,
            since => now_ns.saturating_sub(since),
        };
        self.slot.on_cpu_ns + open
    }
}

/// Slots whose thread is looked for at each [`Kernel::refresh_cgroups`]: three short files of /proc for each.
const SWEPT_AT_ONCE: usize = 64;

/// What watching a group of threads gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchedThreads {
    /// Threads that are watched now because of this call.
    pub added: u32,
    /// Threads that were watched before.
    pub already: u32,
    /// Threads for which no slot was free.
    pub refused: u32,
}

/// The loaded programs and their maps.
pub struct Kernel {
    slots: SlotTable,
    free: Queue<MapData, SlotIndex>,
    threads: maps::HashMap<MapData, u32, SlotIndex>,
    counters: PerCpuArray<MapData, u64>,
    pace: maps::Array<MapData, u64>,
    groups: HashMap<PathBuf, TenantIndex>,
    /// Slots whose thread was not found at the last sweep, with the thread's id.
    absent: HashMap<SlotIndex, u32>,
    /// Live slots passed by the sweeps of this round.
    swept: usize,
    registers_unsupported: Option<String>,
    vcpus_unsupported: Option<String>,
    kvm: Kvm,
    ebpf: Ebpf,
}

impl Kernel {
    /// Loads, attaches and maps.
    ///
    /// # Errors
    /// Whatever is missing, in one sentence with what to do.
    pub fn load(options: &KernelOptions) -> Result<Self, LoadError> {
        loader::load(options)
    }

    /// Every slot in use, live or ended, without a system call. `out` is cleared first.
    pub fn readings(&self, out: &mut Vec<Reading>) {
        out.clear();
        out.extend(self.slots.in_use());
    }

    /// Who ran while the thread of a slot waited for a CPU; `None` past the table's end.
    #[must_use]
    pub fn waits(&self, index: SlotIndex) -> Option<Waits> {
        self.slots.waits(index)
    }

    /// CLOCK_MONOTONIC, the clock of `running_since_ns`.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
    }

    /// Watches all threads of a process; threads and processes it makes from now on follow by themselves.
    ///
    /// # Errors
    /// If the process does not exist.
    pub fn watch_process(
        &mut self,
        tgid: u32,
        tenant: TenantIndex,
    ) -> Result<WatchedThreads, KernelError> {
        self.watch_processes(&|| threads::of_processes(&[tgid]), tenant)?
            .ok_or(KernelError::NoSuchProcess { tgid })
    }

    /// Watches the calling thread alone: what it starts from now on is watched from birth, in this tenant.
    ///
    /// # Errors
    /// If no slot is free for it.
    pub fn watch_this_thread(
        &mut self,
        tenant: TenantIndex,
    ) -> Result<WatchedThreads, KernelError> {
        let tid = rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        let mut sum = WatchedThreads::default();
        self.watch_thread(tid, tenant, &mut sum)?;
        Ok(sum)
    }

    /// Watches all threads of a process and of its present descendants.
    ///
    /// # Errors
    /// If the process does not exist.
    pub fn watch_tree(
        &mut self,
        tgid: u32,
        tenant: TenantIndex,
    ) -> Result<WatchedThreads, KernelError> {
        self.watch_processes(&|| threads::of_processes(&threads::tree(tgid)), tenant)?
            .ok_or(KernelError::NoSuchProcess { tgid })
    }

    /// Watches all threads of a control group and of the groups below it. Threads born to them follow by
    /// themselves; threads moved in or out follow at the next [`Kernel::refresh_cgroups`].
    ///
    /// # Errors
    /// If the directory is not a control group.
    pub fn watch_cgroup(
        &mut self,
        directory: &Path,
        tenant: TenantIndex,
    ) -> Result<WatchedThreads, KernelError> {
        threads::of_cgroup(directory)?;
        self.groups.insert(directory.to_owned(), tenant);
        self.refresh_cgroup(directory, tenant)
    }

    /// Watches a control group no longer; its threads end their part in the tenant.
    pub fn unwatch_cgroup(&mut self, directory: &Path) {
        let Some(tenant) = self.groups.remove(directory) else {
            return;
        };
        for reading in self.slots.in_use() {
            if reading.slot.tenant == tenant && !reading.ended() {
                self.slots.set_tenant(reading.index, TENANT_GONE);
            }
        }
    }

    /// Looks again who is in the watched control groups. A group that is gone is forgotten and returned.
    /// Also looks whether some of the watched threads still exist ([`SWEPT_AT_ONCE`]).
    pub fn refresh_cgroups(&mut self) -> Vec<PathBuf> {
        self.sweep();
        let groups: Vec<_> = self.groups.clone().into_iter().collect();
        let mut gone = Vec::new();
        for (directory, tenant) in groups {
            if self.refresh_cgroup(&directory, tenant).is_err() {
                self.unwatch_cgroup(&directory);
                gone.push(directory);
            }
        }
        gone
    }

    /// Ends slots whose thread is gone though the kernel half never met its end: it may have died in the moment in
    /// which it was entered, or exchanged its id while dying. Each must be found gone twice, since a thread shows as
    /// dead a moment before it leaves its CPU for the last time.
    fn sweep(&mut self) {
        let live: Vec<_> = self.slots.in_use().filter(|r| !r.ended()).collect();
        let start = self.swept % live.len().max(1);
        self.swept = start + SWEPT_AT_ONCE;
        for reading in live
            .iter()
            .cycle()
            .skip(start)
            .take(SWEPT_AT_ONCE.min(live.len()))
        {
            let slot = &reading.slot;
            let exists = Books::read(slot.tid).is_some_and(|now| now.is_of(slot));
            if exists {
                self.absent.remove(&reading.index);
            } else if self.absent.insert(reading.index, slot.tid) == Some(slot.tid) {
                self.absent.remove(&reading.index);
                let _ = self.threads.remove(&slot.tid);
                self.slots.end(reading.index, slot);
            }
        }
    }

    fn refresh_cgroup(
        &mut self,
        directory: &Path,
        tenant: TenantIndex,
    ) -> Result<WatchedThreads, KernelError> {
        let mut sum = WatchedThreads::default();
        let members = threads::of_cgroup(directory)?;
        for &tid in &members {
            self.watch_thread(tid, tenant, &mut sum)?;
        }
        let absent: Vec<_> = self
            .slots
            .in_use()
            .filter(|reading| {
                reading.slot.tenant == tenant
                    && !reading.ended()
                    && members.binary_search(&reading.slot.tid).is_err()
            })
            .collect();
        if !absent.is_empty() {
            // One may have been born a moment ago: then it is in the group by now.
            let members = threads::of_cgroup(directory)?;
            for reading in absent {
                if members.binary_search(&reading.slot.tid).is_err() {
                    self.slots.set_tenant(reading.index, TENANT_GONE);
                }
            }
        }
        Ok(sum)
    }

    /// Adds the listed threads, and lists again until a listing has nobody new: a thread born to a thread
    /// not yet watched is missed by the kernel half, but is in the next listing. `None`: the listing is empty.
    fn watch_processes(
        &mut self,
        list: &dyn Fn() -> Vec<u32>,
        tenant: TenantIndex,
    ) -> Result<Option<WatchedThreads>, KernelError> {
        const ROUNDS_MAX: u32 = 64;
        let mut sum = WatchedThreads::default();
        for round in 0..ROUNDS_MAX {
            let before = sum.added;
            let listed = list();
            if listed.is_empty() && round == 0 {
                return Ok(None);
            }
            (sum.already, sum.refused) = (0, 0);
            for tid in listed {
                self.watch_thread(tid, tenant, &mut sum)?;
            }
            if sum.added == before {
                break;
            }
        }
        Ok(Some(sum))
    }

    fn watch_thread(
        &mut self,
        tid: u32,
        tenant: TenantIndex,
        sum: &mut WatchedThreads,
    ) -> Result<(), KernelError> {
        if let Ok(index) = self.threads.get(&tid, 0) {
            sum.already += 1;
            if self
                .slots
                .get(index)
                .is_some_and(|slot| slot.tid == tid && slot.tenant != tenant)
            {
                self.slots.set_tenant(index, tenant);
            }
            return Ok(());
        }
        let Some(books) = Books::read(tid) else {
            return Ok(());
        };
        let Ok(index) = self.free.pop(0) else {
            sum.refused += 1;
            return Ok(());
        };
        self.slots.fill(index, &books.to_slot(tenant));
        match self.threads.insert(tid, index, bpf_noexist()) {
            Ok(()) if Books::read(tid).is_some_and(|now| now.same_thread(&books)) => {
                sum.added += 1;
            }
            Ok(()) => {
                // It ended meanwhile, and the kernel half may not have met its end: nobody else would hand the slot
                // back, and another thread may get its id.
                let _ = self.threads.remove(&tid);
                if self
                    .slots
                    .get(index)
                    .is_some_and(|slot| slot.flags & FLAG_ENDED == 0)
                {
                    self.slots.fill(index, &Slot::default());
                    self.hand_back(index)?;
                }
            }
            Err(_) => {
                // The kernel half was faster: the thread was born to a watched one, or was found as a vCPU.
                self.slots.fill(index, &Slot::default());
                self.hand_back(index)?;
                if let Ok(index) = self.threads.get(&tid, 0) {
                    self.slots.set_tenant(index, tenant);
                    sum.already += 1;
                } else {
                    sum.refused += 1;
                }
            }
        }
        Ok(())
    }

    /// What KVM counted of a vCPU thread, as of its last entry; `None` if there was no reading yet.
    #[must_use]
    pub fn vcpu(&self, reading: &Reading) -> Option<Vcpu> {
        self.kvm.vcpu(reading.index, &reading.slot)
    }

    /// Says whether there are guests: KVM's tracepoints are attached only then.
    pub fn follow_guests(&mut self, guests: bool) {
        self.kvm.follow(guests, &mut self.ebpf);
    }

    /// The programs at KVM's tracepoints that are attached now.
    #[must_use]
    pub fn attached(&self) -> Vec<&'static str> {
        self.kvm.attached()
    }

    /// Gives a vCPU that was found by itself (a reading with tenant 0) to a tenant.
    pub fn assign(&mut self, index: SlotIndex, tenant: TenantIndex) {
        self.slots.set_tenant(index, tenant);
    }

    /// Hands the slot of an ended thread back, once its last figures were used. A slot whose thread left its
    /// tenant but lives on is kept until the kernel half has let go of it.
    pub fn release(&mut self, reading: &Reading) {
        let same = self.slots.get(reading.index).is_some_and(|slot| {
            slot.flags & FLAG_ENDED != 0
                && slot.tid == reading.slot.tid
                && slot.start_boottime_ns == reading.slot.start_boottime_ns
        });
        if same {
            self.slots.fill(reading.index, &Slot::default());
            // A queue with room for every slot cannot be full.
            let _ = self.hand_back(reading.index);
        }
    }

    /// Enters a thread as it was once, whether it exists or not: for tests of what must never be left behind.
    ///
    /// # Panics
    /// If no slot is free.
    #[doc(hidden)]
    pub fn enter_missed(&mut self, reading: &Reading) {
        let Ok(index) = self.free.pop(0) else {
            panic!("no slot is free");
        };
        let slot = Slot {
            flags: davy_abi::FLAG_LIVE,
            ..reading.slot
        };
        self.slots.fill(index, &slot);
        let entered = self.threads.insert(slot.tid, index, bpf_noexist());
        assert!(entered.is_ok(), "{entered:?}");
    }

    fn hand_back(&mut self, index: SlotIndex) -> Result<(), KernelError> {
        self.free.push(index, 0).map_err(KernelError::map("FREE"))
    }

    /// Each sensor's state as far as this kernel decides it, and why.
    #[must_use]
    pub fn sensors(&self) -> Vec<(&'static str, SensorState, String)> {
        let registers = |name| match &self.registers_unsupported {
            Some(reason) => (name, SensorState::Unsupported, reason.clone()),
            None => (name, SensorState::Live, String::new()),
        };
        let mut sensors = vec![
            ("cpu", SensorState::Live, String::new()),
            registers("fp_rounding"),
            registers("register_randomness"),
        ];
        sensors.extend(self.kvm.sensors());
        sensors
    }

    /// From now on at least so much time lies between two looks at one thread's registers; less than was configured
    /// changes nothing, [`Duration::MAX`] means no looks.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn pace(&mut self, least: Duration) -> Result<(), KernelError> {
        let least_ns = u64::try_from(least.as_nanos()).unwrap_or(davy_abi::NEVER_NS);
        self.pace
            .set(0, least_ns, 0)
            .map_err(KernelError::map("PACE"))
    }

    /// Why vCPU threads are not found by themselves here, if they are not.
    #[must_use]
    pub fn vcpus_unsupported(&self) -> Option<&str> {
        self.vcpus_unsupported.as_deref()
    }

    /// What the kernel has counted of each program since it was loaded, while it kept account ([`Meter`]); zeros never stand for
    /// "not measured".
    #[must_use]
    pub fn overhead(&self) -> Vec<ProgramCost> {
        overhead::costs(&self.ebpf)
    }

    /// What went wrong in the kernel half, by [`davy_abi::Counter`], summed over CPUs.
    #[must_use]
    pub fn counters(&self) -> [u64; COUNTERS as usize] {
        let mut sums = [0; COUNTERS as usize];
        for (sum, index) in sums.iter_mut().zip(0..) {
            if let Ok(values) = self.counters.get(&index, 0) {
                *sum = values.iter().sum();
            }
        }
        sums
    }

    /// Every byte of every map that the programs can reach, for tests that search them.
    ///
    /// # Errors
    /// If a map cannot be read, or is of a kind that cannot be searched.
    pub fn memory(&self) -> Result<Vec<u8>, KernelError> {
        search::everything(&self.ebpf)
    }
}

/// `BPF_NOEXIST`, include/uapi/linux/bpf.h.
const fn bpf_noexist() -> u64 {
    1
}
