//! An array map, mapped into the agent: its elements are read without a system call.
//!
//! One element per index, `size_of::<T>()` bytes each (`BPF_F_MMAPABLE` arrays round elements up to 8 bytes,
//! `array_map_alloc`, kernel/bpf/arraymap.c). The kernel half writes while the agent reads, so every access is volatile.

use std::{os::fd::AsFd, ptr::NonNull};

use aya::maps::MapData;
use rustix::mm::{MapFlags, ProtFlags};

use super::LoadError;

/// A mapping of an array map of `T`: plain integers, with a size of a multiple of 8 bytes.
pub(super) struct Mapping<T> {
    base: NonNull<T>,
    len: u32,
    /// Keeps the map alive.
    _map: MapData,
}

// SAFETY: the mapping belongs to the process, not to a thread, and every access is a volatile load or store
// of memory that another party writes anyway.
unsafe impl<T> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapping<T> {}

impl<T> Mapping<T> {
    /// Maps `len` elements; `what` is for messages.
    pub(super) fn map(map: MapData, len: u32, what: &str) -> Result<Self, LoadError> {
        let bytes = len as usize * size_of::<T>();
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
        .map_err(LoadError::refused(format!("mapping {what}")))?;
        let base = NonNull::new(base.cast::<T>()).ok_or_else(|| LoadError::Refused {
            what: format!("mapping {what}"),
            reason: "it was mapped at address zero".to_owned(),
        })?;
        Ok(Self {
            base,
            len,
            _map: map,
        })
    }

    /// Elements.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The element's address, within the mapping; `None` past its end.
    pub(super) fn pointer(&self, index: u32) -> Option<*mut T> {
        // SAFETY: within the mapping, since index < len.
        (index < self.len).then(|| unsafe { self.base.as_ptr().add(index as usize) })
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        let bytes = self.len as usize * size_of::<T>();
        // SAFETY: exactly the mapping made in `map`; no copy of the pointer outlives self.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), bytes) };
    }
}
