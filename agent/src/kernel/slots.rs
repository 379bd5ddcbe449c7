//! The slot table, mapped into the agent: windows are read from it without a system call.
//!
//! One element per slot, `size_of::<Slot>()` bytes each (`BPF_F_MMAPABLE` arrays round elements up to 8 bytes,
//! `array_map_alloc`, kernel/bpf/arraymap.c). The kernel half writes while the agent reads, so every field is
//! loaded volatile, and a copy that a switch cut in two is read again.

use std::{os::fd::AsFd, ptr::NonNull};

use aya::maps::MapData;
use davy_abi::{FLAG_ENDED, FLAG_LIVE, Slot, SlotIndex, TenantIndex};
use rustix::mm::{MapFlags, ProtFlags};

use super::{LoadError, Reading};

/// A mapping of the array map `SLOTS`.
pub(super) struct SlotTable {
    base: NonNull<Slot>,
    len: u32,
    /// Keeps the map alive.
    _map: MapData,
}

// SAFETY: the mapping belongs to the process, not to a thread, and every access is a volatile load or store
// of memory that another party writes anyway.
unsafe impl Send for SlotTable {}
// SAFETY: as above.
unsafe impl Sync for SlotTable {}

impl SlotTable {
    pub(super) fn map(map: MapData, len: u32) -> Result<Self, LoadError> {
        let bytes = len as usize * size_of::<Slot>();
        // SAFETY: a new shared mapping of the map's memory at an address the kernel chooses.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map.fd().as_fd(),
                0,
            )
        }
        .map_err(LoadError::refused("mapping the slot table"))?;
        let base = NonNull::new(base.cast::<Slot>()).ok_or_else(|| LoadError::Refused {
            what: "mapping the slot table".to_owned(),
            reason: "it was mapped at address zero".to_owned(),
        })?;
        Ok(Self {
            base,
            len,
            _map: map,
        })
    }

    fn pointer(&self, index: SlotIndex) -> Option<*mut Slot> {
        // SAFETY: within the mapping, since index < len.
        (index < self.len).then(|| unsafe { self.base.as_ptr().add(index as usize) })
    }

    /// A copy of a slot, in use or not.
    pub(super) fn get(&self, index: SlotIndex) -> Option<Slot> {
        const TRIES_MAX: u32 = 8;
        let pointer = self.pointer(index)?;
        let mut copy = Slot::default();
        for _ in 0..TRIES_MAX {
            // SAFETY: points into the mapping; Slot is plain integers, so any bytes are a value.
            let (before, after) = unsafe {
                let before = (&raw const (*pointer).switch_ins).read_volatile();
                copy = pointer.read_volatile();
                (before, pointer.read_volatile())
            };
            // No switch in between, neither in nor out.
            if before == after.switch_ins
                && copy.on_cpu_ns == after.on_cpu_ns
                && copy.running_since_ns == after.running_since_ns
                && copy.flags == after.flags
            {
                break;
            }
        }
        Some(copy)
    }

    /// All slots in use. Flags are looked at first, so a free slot costs one load.
    pub(super) fn in_use(&self) -> impl Iterator<Item = Reading> + '_ {
        (1..self.len).filter_map(|index| {
            let pointer = self.pointer(index)?;
            // SAFETY: points into the mapping.
            let flags = unsafe { (&raw const (*pointer).flags).read_volatile() };
            if flags & (FLAG_LIVE | FLAG_ENDED) == 0 {
                return None;
            }
            let slot = self.get(index)?;
            Some(Reading { index, slot })
        })
    }

    /// Sets the one field that is the agent's.
    pub(super) fn set_tenant(&self, index: SlotIndex, tenant: TenantIndex) {
        if let Some(pointer) = self.pointer(index) {
            // SAFETY: points into the mapping; an aligned u32 store is not torn.
            unsafe { (&raw mut (*pointer).tenant).write_volatile(tenant) };
        }
    }

    /// Writes a whole slot that the kernel half does not know yet, or has let go of.
    pub(super) fn fill(&self, index: SlotIndex, slot: &Slot) {
        if let Some(pointer) = self.pointer(index) {
            // SAFETY: points into the mapping, and nobody else uses this slot now.
            unsafe { pointer.write_volatile(*slot) };
        }
    }

    /// Marks a slot as ended whose thread does not exist any more, so that nobody else writes to it.
    pub(super) fn end(&self, index: SlotIndex, slot: &Slot) {
        if let Some(pointer) = self.pointer(index) {
            let flags = (slot.flags & !FLAG_LIVE) | FLAG_ENDED;
            // SAFETY: points into the mapping; aligned stores are not torn.
            unsafe {
                (&raw mut (*pointer).running_since_ns).write_volatile(0);
                (&raw mut (*pointer).flags).write_volatile(flags);
            }
        }
    }

    /// The whole table's bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let bytes = self.len as usize * size_of::<Slot>();
        let base = self.base.as_ptr().cast::<u8>();
        // SAFETY: each byte lies within the mapping.
        (0..bytes)
            .map(|at| unsafe { base.add(at).read_volatile() })
            .collect()
    }
}

impl Drop for SlotTable {
    fn drop(&mut self) {
        let bytes = self.len as usize * size_of::<Slot>();
        // SAFETY: exactly the mapping made in `map`; no copy of the pointer outlives self.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), bytes) };
    }
}
