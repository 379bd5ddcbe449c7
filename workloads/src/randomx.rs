//! RandomX by Debian's `librandomx` (`randomx.h`, package `librandomx-dev`): light mode, compiled programs (JIT), not
//! the W^X mode.
//!
//! Light mode needs 256 MiB for the cache, shared by all threads, and 2 MiB per thread (`RANDOMX_ARGON_MEMORY` and
//! `RANDOMX_SCRATCHPAD_L3`, RandomX specification, table 1.2.1). Compiled programs need memory that is writable and executable.

use std::{
    ffi::{c_int, c_void},
    marker::PhantomData,
    ptr::NonNull,
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
const FLAG_FULL_MEM: c_int = 4;
const FLAG_JIT: c_int = 8;
const FLAG_SECURE: c_int = 16;

/// `struct randomx_cache`, known to the library alone.
#[repr(C)]
struct RawCache {
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
    fn randomx_create_vm(flags: c_int, cache: *mut RawCache, dataset: *mut c_void) -> *mut RawVm;
    fn randomx_destroy_vm(machine: *mut RawVm);
    fn randomx_calculate_hash(
        machine: *mut RawVm,
        input: *const c_void,
        input_size: usize,
        output: *mut c_void,
    );
}

/// What this CPU does best (`randomx_get_flags`: hardware AES, Argon2 by SSSE3 or AVX2), compiled, in light mode.
fn flags() -> c_int {
    (randomx_get_flags() | FLAG_JIT) & !(FLAG_SECURE | FLAG_FULL_MEM | FLAG_LARGE_PAGES)
}

/// The memory all hashes of one key need; filled once, then only read.
#[derive(Debug)]
pub struct Cache(NonNull<RawCache>);

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
    pub fn new(key: &[u8]) -> Result<Self> {
        let cache = NonNull::new(randomx_alloc_cache(flags())).context(
            "RandomX has no cache: 256 MiB of memory, or memory that may be executed, cannot be had",
        )?;
        let cache = Self(cache);
        // SAFETY: FFI; the cache was just allocated and is not shared yet, and the key is readable for its length.
        unsafe { randomx_init_cache(cache.0.as_ptr(), key.as_ptr().cast(), key.len()) };
        Ok(cache)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: FFI; allocated by `randomx_alloc_cache`, released once, and every `Vm` borrows this value.
        unsafe { randomx_release_cache(self.0.as_ptr()) };
    }
}

/// A virtual machine that hashes. It stays in its thread (a raw pointer is not `Send`).
#[derive(Debug)]
pub struct Vm<'cache> {
    raw: NonNull<RawVm>,
    _cache: PhantomData<&'cache Cache>,
}

impl<'cache> Vm<'cache> {
    /// Allocates the scratchpad (2 MiB) and memory for compiled programs.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(cache: &'cache Cache) -> Result<Self> {
        // SAFETY: FFI; the cache is initialised and outlives the machine, and light mode takes no dataset.
        let raw = unsafe { randomx_create_vm(flags(), cache.0.as_ptr(), std::ptr::null_mut()) };
        let raw = NonNull::new(raw)
            .context("RandomX has no virtual machine: 2 MiB of memory, or memory that may be executed, cannot be had")?;
        Ok(Self {
            raw,
            _cache: PhantomData,
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
        let cache = Cache::new(KEY).unwrap();
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
}
