//! The slot table, mapped into the agent ([`Mapping`]): windows are read from it without a system call.
//!
//! The kernel half writes while the agent reads: a copy that a switch cut in two is read again.
//! Beside it the waits of each slot's thread.

use aya::maps::MapData;
use davy_abi::{FLAG_ENDED, FLAG_LIVE, Slot, SlotIndex, TenantIndex, Waits};

use super::{LoadError, Reading, mapping::Mapping};

/// Mappings of the array maps `SLOTS` and `WAITS`.
pub(super) struct SlotTable {
    slots: Mapping<Slot>,
    waits: Mapping<Waits>,
}

impl SlotTable {
    pub(super) fn map(slots: MapData, waits: MapData, len: u32) -> Result<Self, LoadError> {
        Ok(Self {
            slots: Mapping::map(slots, len, "the slot table")?,
            waits: Mapping::map(waits, len, "the table of waits")?,
        })
    }

    fn pointer(&self, index: SlotIndex) -> Option<*mut Slot> {
        self.slots.pointer(index)
    }

    /// Who ran while a slot's thread waited.
    pub(super) fn waits(&self, index: SlotIndex) -> Option<Waits> {
        const TRIES_MAX: u32 = 8;
        let pointer = self.waits.pointer(index)?;
        let mut copy = Waits::default();
        for _ in 0..TRIES_MAX {
            // SAFETY: points into the mapping; Waits is plain integers, so any bytes are a value.
            let named_ns = unsafe {
                copy = pointer.read_volatile();
                (&raw const (*pointer).named_ns).read_volatile()
            };
            if named_ns == copy.named_ns {
                break;
            }
        }
        Some(copy)
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
        (1..self.slots.len()).filter_map(|index| {
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

    /// Writes a whole slot that the kernel half does not know yet, or has let go of; its thread has not waited yet.
    pub(super) fn fill(&self, index: SlotIndex, slot: &Slot) {
        if let (Some(pointer), Some(waits)) = (self.pointer(index), self.waits.pointer(index)) {
            // SAFETY: both point into the mappings, and nobody else uses this slot now.
            unsafe {
                waits.write_volatile(Waits::default());
                pointer.write_volatile(*slot);
            }
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
}
