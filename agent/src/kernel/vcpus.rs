//! The table of what KVM counted of vCPU threads, mapped read-only into the agent: one record per slot.

use std::{os::fd::AsFd, ptr::NonNull};

use aya::maps::MapData;
use davy_abi::{Slot, SlotIndex, Vcpu};
use rustix::mm::{MapFlags, ProtFlags};

use super::LoadError;

/// A mapping of the array map `VCPUS`.
pub(super) struct VcpuTable {
    base: NonNull<Vcpu>,
    len: u32,
    /// Keeps the map alive.
    _map: MapData,
}

// SAFETY: the mapping belongs to the process, not to a thread, and every access is a volatile load of memory that
// another party writes anyway.
unsafe impl Send for VcpuTable {}
// SAFETY: as above.
unsafe impl Sync for VcpuTable {}

impl VcpuTable {
    pub(super) fn map(map: MapData, len: u32) -> Result<Self, LoadError> {
        // SAFETY: a new shared mapping of the map's memory at an address the kernel chooses.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len as usize * size_of::<Vcpu>(),
                ProtFlags::READ,
                MapFlags::SHARED,
                map.fd().as_fd(),
                0,
            )
        }
        .map_err(LoadError::refused("mapping the table of vCPUs"))?;
        let base = NonNull::new(base.cast::<Vcpu>()).ok_or_else(|| LoadError::Refused {
            what: "mapping the table of vCPUs".to_owned(),
            reason: "it was mapped at address zero".to_owned(),
        })?;
        Ok(Self {
            base,
            len,
            _map: map,
        })
    }

    /// The record of the thread that has the slot; `None` if nothing was counted of it, or the kernel half wrote all
    /// the time.
    pub(super) fn get(&self, index: SlotIndex, slot: &Slot) -> Option<Vcpu> {
        const TRIES_MAX: u32 = 8;
        if index >= self.len {
            return None;
        }
        for _ in 0..TRIES_MAX {
            // SAFETY: within the mapping, since index < len; Vcpu is plain integers, so any bytes are a value.
            let (before, copy, after) = unsafe {
                let pointer = self.base.as_ptr().add(index as usize);
                let sequence = &raw const (*pointer).sequence;
                let before = sequence.read_volatile();
                (before, pointer.read_volatile(), sequence.read_volatile())
            };
            if before != after || before % 2 != 0 {
                continue;
            }
            let same = copy.tid == slot.tid && copy.start_boottime_ns == slot.start_boottime_ns;
            return same.then_some(copy);
        }
        None
    }
}

impl Drop for VcpuTable {
    fn drop(&mut self) {
        let bytes = self.len as usize * size_of::<Vcpu>();
        // SAFETY: exactly the mapping made in `map`; no copy of the pointer outlives self.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), bytes) };
    }
}
