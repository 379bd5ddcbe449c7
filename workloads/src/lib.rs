//! Real loads that Davy is shown: a RandomX miner, another vectorised hash, an honest vector load, and nothing at all.
//!
//! | program | computes | what Davy should say |
//! |---|---|---|
//! | `davy-randomx` | RandomX hashes by Debian's `librandomx`, light mode, compiled (JIT) | `mining` from 25 % duty up |
//! | `davy-sha256` | sha256d of block headers, 4 or 8 at once in SSE2 or AVX2 registers | `suspect`, at whatever speed |
//! | `davy-matrix` | products of f64 and f32 matrices | `quiet` |
//! | `davy-hash` | fifteen other proofs of work, over hash crates | `suspect` where the hash lives in vector registers, else `quiet` |
//! | `davy-rounding` | bounds of sums in directed rounding modes | `quiet`; `suspect` if told to use all four in turns |
//! | `davy-idle` | nothing; wakes once a second | `quiet` |
//!
//! Each prints `ready` when its set-up is done and its arithmetic was checked against known values, then (but for `davy-idle`)
//! one line per second. Each ends at `--seconds`, or on SIGTERM by the default action. They need the C library, and
//! `davy-randomx` also `librandomx.so.0` and `libstdc++.so.6`; they open no files and no sockets.

pub mod hash;
pub mod load;
pub mod matrix;
pub mod randomx;
pub mod rounding;
pub mod sha256;
