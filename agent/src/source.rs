//! Where readings of threads come from.
//!
//! The agent's deciding code sees the kernel half only through [`ThreadSource`], so that it can be driven
//! by a script in tests. The one real source is [`Kernel`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use davy_abi::{SlotIndex, TenantIndex, Vcpu, Waits};
use davy_evidence::SensorState;

use crate::kernel::{Kernel, KernelError, ProgramCost, Reading, WatchedThreads};

/// A source of absolute per-thread figures.
pub trait ThreadSource {
    /// Why a request was refused.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Replaces `out` by the figures of every live or ended thread.
    fn readings(&self, out: &mut Vec<Reading>);
    /// Who ran while the thread of a slot waited; `None` if there is no such slot.
    fn waits(&self, slot: SlotIndex) -> Option<Waits>;
    /// `CLOCK_MONOTONIC`, ns: the clock of `Slot::running_since_ns`.
    fn now_ns(&self) -> u64;
    /// Watches all threads of a process, present and future.
    ///
    /// # Errors
    /// If the process is gone or cannot be watched.
    fn watch_process(
        &mut self,
        tgid: u32,
        tenant: TenantIndex,
    ) -> Result<WatchedThreads, Self::Error>;
    /// Watches a process and its descendants.
    ///
    /// # Errors
    /// If the process is gone or cannot be watched.
    fn watch_tree(&mut self, tgid: u32, tenant: TenantIndex)
    -> Result<WatchedThreads, Self::Error>;
    /// Watches a control group and its descendants; who moves in or out follows at [`ThreadSource::refresh_cgroups`].
    ///
    /// # Errors
    /// If it is no control group or cannot be watched.
    fn watch_cgroup(
        &mut self,
        dir: &Path,
        tenant: TenantIndex,
    ) -> Result<WatchedThreads, Self::Error>;
    /// Looks again who is in the watched control groups; those that are gone are forgotten and returned.
    fn refresh_cgroups(&mut self) -> Vec<PathBuf>;
    /// Gives a vCPU thread that was found by itself to a tenant.
    fn assign(&mut self, slot: SlotIndex, tenant: TenantIndex);
    /// Hands an ended slot back after its last figures were used.
    fn release(&mut self, reading: &Reading);
    /// What KVM counted of a vCPU thread; `None` if there was no reading yet.
    fn counted(&self, reading: &Reading) -> Option<Vcpu>;
    /// Says whether there are guests: KVM's tracepoints are attached only then.
    fn follow_guests(&mut self, guests: bool);
    /// What each sensor can do on this host, with the reason if it cannot.
    fn sensors(&self) -> Vec<(&'static str, SensorState, String)>;
    /// Why vCPU threads are not found by themselves on this host, if they are not.
    fn vcpus_unsupported(&self) -> Option<String>;
    /// `CLOCK_BOOTTIME`, ns: the clock of `Slot::start_boottime_ns`.
    fn boottime_ns(&self) -> u64;
    /// Lets at least so much time lie between two looks at one thread's registers, beyond what was configured;
    /// [`Duration::MAX`]: no looks.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn pace(&mut self, least: Duration) -> Result<(), Self::Error>;
    /// What each program of the kernel half has cost.
    fn overhead(&self) -> Vec<ProgramCost>;
    /// The kernel half's counters, by [`davy_abi::Counter`].
    fn counters(&self) -> Vec<u64>;
}

impl ThreadSource for Kernel {
    type Error = KernelError;

    fn readings(&self, out: &mut Vec<Reading>) {
        Kernel::readings(self, out);
    }

    fn waits(&self, slot: SlotIndex) -> Option<Waits> {
        Kernel::waits(self, slot)
    }

    fn now_ns(&self) -> u64 {
        Kernel::now_ns(self)
    }

    fn watch_process(
        &mut self,
        tgid: u32,
        tenant: TenantIndex,
    ) -> Result<WatchedThreads, KernelError> {
        Kernel::watch_process(self, tgid, tenant)
    }

    fn watch_tree(
        &mut self,
        tgid: u32,
        tenant: TenantIndex,
    ) -> Result<WatchedThreads, KernelError> {
        Kernel::watch_tree(self, tgid, tenant)
    }

    fn watch_cgroup(
        &mut self,
        dir: &Path,
        tenant: TenantIndex,
    ) -> Result<WatchedThreads, KernelError> {
        Kernel::watch_cgroup(self, dir, tenant)
    }

    fn refresh_cgroups(&mut self) -> Vec<PathBuf> {
        Kernel::refresh_cgroups(self)
    }

    fn assign(&mut self, slot: SlotIndex, tenant: TenantIndex) {
        Kernel::assign(self, slot, tenant);
    }

    fn release(&mut self, reading: &Reading) {
        Kernel::release(self, reading);
    }

    fn counted(&self, reading: &Reading) -> Option<Vcpu> {
        Kernel::vcpu(self, reading)
    }

    fn follow_guests(&mut self, guests: bool) {
        Kernel::follow_guests(self, guests);
    }

    fn sensors(&self) -> Vec<(&'static str, SensorState, String)> {
        Kernel::sensors(self)
    }

    fn vcpus_unsupported(&self) -> Option<String> {
        Kernel::vcpus_unsupported(self).map(str::to_owned)
    }

    fn boottime_ns(&self) -> u64 {
        clock_ns(rustix::time::ClockId::Boottime)
    }

    fn pace(&mut self, least: Duration) -> Result<(), KernelError> {
        Kernel::pace(self, least)
    }

    fn overhead(&self) -> Vec<ProgramCost> {
        Kernel::overhead(self)
    }

    fn counters(&self) -> Vec<u64> {
        Kernel::counters(self).to_vec()
    }
}

/// Reads a clock, ns. Clocks that only count up from boot never go below 0.
#[must_use]
pub fn clock_ns(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

#[cfg(test)]
#[path = "source_script.rs"]
pub(crate) mod script;
