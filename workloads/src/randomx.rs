//! RandomX by Debian's `librandomx` (`randomx.h`, package `librandomx-dev`), in the ways it can be computed on a CPU ([`Variant`]).
//!
//! Light mode needs 256 MiB for the cache, shared by all threads, and 2 MiB per thread (`RANDOMX_ARGON_MEMORY` and
//! `RANDOMX_SCRATCHPAD_L3`, RandomX specification, table 1.2.1); full mode 2080 MiB for the dataset instead (table 1.2.1, base and extra size).
//! Compiled programs need memory that is writable and executable, at once or (W^X) in turns. Coins with other parameters are other
//! builds of the library, which Debian does not have.

use std::{
    ffi::{c_int, c_ulong, c_void},
    marker::PhantomData,
    ptr::{NonNull, null_mut},
    thread,
};

use anyhow::{Context as _, Result, bail};

/// Length of a hash, bytes (`RANDOMX_HASH_SIZE`).
pub const HASH_BYTES: usize = 32;

/// Key of the known vector, and of the cache here. Source: `src/tests/tests.cpp` of RandomX, test "Hash test 1a".
pub const KEY: &[u8] = b"test key 000";
/// Input of the known vector.
pub const KNOWN_INPUT: &[u8] = b"This is a test";
/// Hash of the known vector.
pub const KNOWN_HASH: &str = "639183aae1bf4c9a35884cb46b09cad9175f04efd7684e7262a0ac1c2f0b4e3f";

const FLAG_LARGE_PAGES: c_int = 1;
const FLAG_HARD_AES: c_int = 2;
const FLAG_FULL_MEM: c_int = 4;
const FLAG_JIT: c_int = 8;
const FLAG_SECURE: c_int = 16;

/// `struct randomx_cache`, known to the library alone.
#[repr(C)]
struct RawCache {
    _opaque: [u8; 0],
}

/// `struct randomx_dataset`, known to the library alone.
#[repr(C)]
struct RawDataset {
    _opaque: [u8; 0],
}

/// `struct randomx_vm`, known to the library alone.
#[repr(C)]
struct RawVm {
    _opaque: [u8; 0],
}

#[link(name = "randomx")]
unsafe extern "C" {
    safe fn randomx_get_flags() -> c_int;
    safe fn randomx_alloc_cache(flags: c_int) -> *mut RawCache;
    fn randomx_init_cache(cache: *mut RawCache, key: *const c_void, key_size: usize);
    fn randomx_release_cache(cache: *mut RawCache);
    safe fn randomx_alloc_dataset(flags: c_int) -> *mut RawDataset;
    safe fn randomx_dataset_item_count() -> c_ulong;
    fn randomx_init_dataset(
        dataset: *mut RawDataset,
        cache: *mut RawCache,
        start: c_ulong,
        count: c_ulong,
    );
    fn randomx_release_dataset(dataset: *mut RawDataset);
    fn randomx_create_vm(
        flags: c_int,
        cache: *mut RawCache,
        dataset: *mut RawDataset,
    ) -> *mut RawVm;
    fn randomx_destroy_vm(machine: *mut RawVm);
    fn randomx_calculate_hash(
        machine: *mut RawVm,
        input: *const c_void,
        input_size: usize,
        output: *mut c_void,
    );
}

/// How hashes are computed. They are the same in every way, at another speed. The default: compiled programs in memory that is writable
/// and executable, AES by the CPU if it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Variant {
    /// Programs are interpreted, not compiled: about a tenth of the speed.
    pub interpreted: bool,
    /// AES by tables, not by the CPU's instructions.
    pub soft_aes: bool,
    /// Compiled programs are never writable and executable at the same time (W^X). Of no effect if interpreted.
    pub secure: bool,
}

impl Variant {
    /// `randomx_flags` without those of the memory (`randomx.h`). From `randomx_get_flags` comes what this CPU can do: AES, and Argon2 by
    /// SSSE3 or AVX2.
    fn flags(self) -> c_int {
        let Self {
            interpreted,
            soft_aes,
            secure,
        } = self;
        let mut flags =
            (randomx_get_flags() | FLAG_JIT) & !(FLAG_SECURE | FLAG_FULL_MEM | FLAG_LARGE_PAGES);
        if interpreted {
            flags &= !FLAG_JIT;
        }
        if soft_aes {
            flags &= !FLAG_HARD_AES;
        }
        if secure && !interpreted {
            flags |= FLAG_SECURE;
        }
        flags
    }
}

/// The memory all hashes of one key need; filled once, then only read.
#[derive(Debug)]
pub struct Cache {
    raw: NonNull<RawCache>,
    variant: Variant,
}

// SAFETY: the memory belongs to this value alone and is not bound to the thread that allocated it.
unsafe impl Send for Cache {}
// SAFETY: after `Cache::new` nothing writes to the cache: virtual machines only read it, as the library's own multi-threaded
// benchmark does (RandomX, src/tests/benchmark.cpp).
unsafe impl Sync for Cache {}

impl Cache {
    /// Allocates 256 MiB and fills them for `key`: about a second of one CPU.
    ///
    /// # Errors
    /// If the memory, or compiled programs, cannot be had.
    pub fn new(key: &[u8], variant: Variant) -> Result<Self> {
        let raw = NonNull::new(randomx_alloc_cache(variant.flags())).context(
            "RandomX has no cache: 256 MiB of memory, or memory that may be executed, cannot be had",
        )?;
        let cache = Self { raw, variant };
        // SAFETY: FFI; the cache was just allocated and is not shared yet, and the key is readable for its length.
        unsafe { randomx_init_cache(cache.raw.as_ptr(), key.as_ptr().cast(), key.len()) };
        Ok(cache)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: FFI; allocated by `randomx_alloc_cache`, released once, and every `Vm` borrows this value.
        unsafe { randomx_release_cache(self.raw.as_ptr()) };
    }
}

/// What miners keep in memory instead of the cache: every item that a hash may ask for, computed beforehand.
#[derive(Debug)]
pub struct Dataset {
    raw: NonNull<RawDataset>,
    variant: Variant,
}

/// Lets a thread fill its part of the dataset.
struct Shared<T>(*mut T);

// SAFETY: used by `Dataset::new` alone, whose threads read the cache and write to parts of the dataset that do not overlap, as
// `randomx_init_dataset` allows ("may be called by several threads", randomx.h).
unsafe impl<T> Send for Shared<T> {}

// SAFETY: the memory belongs to this value alone and is not bound to the thread that allocated it.
unsafe impl Send for Dataset {}
// SAFETY: after `Dataset::new` nothing writes to it, as of the cache.
unsafe impl Sync for Dataset {}

impl Dataset {
    /// Allocates 2080 MiB and fills them from the cache, in `threads` threads: one to two minutes of CPU time.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(cache: &Cache, threads: u16) -> Result<Self> {
        let raw = NonNull::new(randomx_alloc_dataset(cache.variant.flags() | FLAG_FULL_MEM))
            .context("RandomX has no dataset: 2080 MiB of memory cannot be had; use light mode")?;
        let dataset = Self {
            raw,
            variant: cache.variant,
        };
        let (items, threads) = (randomx_dataset_item_count(), c_ulong::from(threads.max(1)));
        thread::scope(|scope| {
            for part in 0..threads {
                let (start, end) = (items * part / threads, items * (part + 1) / threads);
                let (to, from) = (Shared(raw.as_ptr()), Shared(cache.raw.as_ptr()));
                scope.spawn(move || {
                    let (Shared(to), Shared(from)) = ({ to }, { from });
                    // SAFETY: FFI; both are alive until the scope ends, and the parts lie within the dataset and do not overlap.
                    unsafe { randomx_init_dataset(to, from, start, end - start) };
                });
            }
        });
        Ok(dataset)
    }
}

impl Drop for Dataset {
    fn drop(&mut self) {
        // SAFETY: FFI; allocated by `randomx_alloc_dataset`, released once, and every `Vm` borrows this value.
        unsafe { randomx_release_dataset(self.raw.as_ptr()) };
    }
}

/// A virtual machine that hashes. It stays in its thread (a raw pointer is not `Send`).
#[derive(Debug)]
pub struct Vm<'memory> {
    raw: NonNull<RawVm>,
    _memory: PhantomData<&'memory ()>,
}

impl<'memory> Vm<'memory> {
    /// A machine in light mode. Allocates the scratchpad (2 MiB) and memory for compiled programs.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(cache: &'memory Cache) -> Result<Self> {
        // SAFETY: FFI; the cache is initialised and outlives the machine, and light mode takes no dataset.
        Self::of(unsafe {
            randomx_create_vm(cache.variant.flags(), cache.raw.as_ptr(), null_mut())
        })
    }

    /// A machine in full mode; otherwise as [`Vm::new`].
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn on_dataset(dataset: &'memory Dataset) -> Result<Self> {
        let flags = dataset.variant.flags() | FLAG_FULL_MEM;
        // SAFETY: FFI; the dataset is initialised and outlives the machine, and full mode takes no cache.
        Self::of(unsafe { randomx_create_vm(flags, null_mut(), dataset.raw.as_ptr()) })
    }

    fn of(raw: *mut RawVm) -> Result<Self> {
        let raw = NonNull::new(raw)
            .context("RandomX has no virtual machine: 2 MiB of memory, or memory that may be executed, cannot be had")?;
        Ok(Self {
            raw,
            _memory: PhantomData,
        })
    }

    /// The RandomX hash of `input`. The thread's rounding mode is as before afterwards.
    pub fn hash(&mut self, input: &[u8]) -> [u8; HASH_BYTES] {
        let mut output = [0; HASH_BYTES];
        // SAFETY: FFI; the machine is alive and used by this thread alone (`&mut`), the input is readable for its length,
        // the output writable for the 32 bytes the library writes. The library restores the floating-point environment
        // (`fesetenv` at the end of `randomx_calculate_hash`, src/randomx.cpp), which Rust code relies on; a test holds it to that.
        unsafe {
            randomx_calculate_hash(
                self.raw.as_ptr(),
                input.as_ptr().cast(),
                input.len(),
                output.as_mut_ptr().cast(),
            );
        }
        output
    }

    /// Refuses a library that does not compute RandomX. Only for a machine on a cache of [`KEY`].
    ///
    /// # Errors
    /// If the hash of [`KNOWN_INPUT`] is not [`KNOWN_HASH`].
    pub fn check_known_hash(&mut self) -> Result<()> {
        let hash = hex(&self.hash(KNOWN_INPUT));
        if hash != KNOWN_HASH {
            bail!(
                "librandomx does not compute RandomX: it gives {hash} instead of {KNOWN_HASH}; reinstall librandomx0"
            );
        }
        Ok(())
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        // SAFETY: FFI; created by `randomx_create_vm` and destroyed once.
        unsafe { randomx_destroy_vm(self.raw.as_ptr()) };
    }
}

/// Lower-case hexadecimal digits of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mxcsr() -> u32 {
        let mut mxcsr = 0u32;
        // SAFETY: `stmxcsr` stores the control word to 4 writable bytes; there is no safe way to read it.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags));
        }
        mxcsr
    }

    /// One test, because each cache takes 256 MiB.
    #[test]
    fn hashes_are_randomx_and_leave_the_rounding_mode_alone() {
        let cache = Cache::new(KEY, Variant::default()).unwrap();
        let mut vm = Vm::new(&cache).unwrap();
        let rounding_control = 0b11 << 13;
        assert_eq!(mxcsr() & rounding_control, 0);
        vm.check_known_hash().unwrap();
        assert_eq!(mxcsr() & rounding_control, 0);
        // "Hash test 1b" of the library's own tests.
        assert_eq!(
            hex(&vm.hash(b"Lorem ipsum dolor sit amet")),
            "300a0adb47603dedb42228ccb2b211104f4da45af709cd7547cd049e9489c969"
        );
        // Two machines on one cache agree, from another thread too.
        let first = vm.hash(b"x");
        let second = std::thread::scope(|scope| {
            scope
                .spawn(|| Vm::new(&cache).unwrap().hash(b"x"))
                .join()
                .unwrap()
        });
        assert_eq!(first, second);
    }

    /// Full mode is not in it: its dataset takes minutes. `davy-randomx --full` checks the known hash when it starts.
    #[test]
    fn every_variant_computes_the_known_hash() {
        let variant = Variant::default();
        for variant in [
            Variant {
                interpreted: true,
                ..variant
            },
            Variant {
                soft_aes: true,
                ..variant
            },
            Variant {
                secure: true,
                ..variant
            },
            Variant {
                interpreted: true,
                soft_aes: true,
                secure: true,
            },
        ] {
            let cache = Cache::new(KEY, variant).unwrap();
            let checked = Vm::new(&cache).unwrap().check_known_hash();
            assert!(checked.is_ok(), "{variant:?}: {checked:?}");
        }
    }

    #[test]
    fn a_variant_changes_its_flags_alone() {
        let usual = Variant::default().flags();
        let differs = |variant: Variant| variant.flags() ^ usual;
        let variant = Variant::default();
        assert_eq!(usual & FLAG_JIT, FLAG_JIT);
        assert_eq!(
            differs(Variant {
                interpreted: true,
                ..variant
            }),
            FLAG_JIT
        );
        assert_eq!(
            differs(Variant {
                secure: true,
                ..variant
            }),
            FLAG_SECURE
        );
        let soft = Variant {
            soft_aes: true,
            ..variant
        }
        .flags();
        assert_eq!(soft, usual & !FLAG_HARD_AES);
    }
}
