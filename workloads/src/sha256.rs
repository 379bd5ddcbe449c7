//! sha256d (SHA-256 of SHA-256, FIPS 180-4) of 80-byte block headers that differ in their nonce, several at once: one
//! header per 32-bit lane, 4 lanes in SSE2 or 8 in AVX2 registers. A vectorised proof of work that is not RandomX.

use anyhow::{Result, bail};

/// Length of a block header, bytes. Its last four are the nonce, little-endian.
pub const HEADER_BYTES: usize = 80;

/// Bitcoin's first block, whose sha256d is [`GENESIS_HASH`].
pub const GENESIS: [u8; HEADER_BYTES] = *b"\x01\0\0\0\
    \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
    \x3b\xa3\xed\xfd\x7a\x7b\x12\xb2\x7a\xc7\x2c\x3e\x67\x76\x8f\x61\
    \x7f\xc8\x1b\xc3\x88\x8a\x51\x32\x3a\x9f\xb8\xaa\x4b\x1e\x5e\x4a\
    \x29\xab\x5f\x49\xff\xff\x00\x1d\x1d\xac\x2b\x7c";

/// Nonce of [`GENESIS`].
pub const GENESIS_NONCE: u32 = 0x7c2b_ac1d;

/// sha256d of [`GENESIS`], as big-endian words.
pub const GENESIS_HASH: [u32; 8] = [
    0x6fe2_8c0a,
    0xb6f1_b372,
    0xc1a6_a246,
    0xae63_f74f,
    0x931e_8365,
    0xe15a_089c,
    0x68d6_1900,
    0x0000_0000,
];

/// FIPS 180-4, 5.3.3.
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// FIPS 180-4, 4.2.2.
#[rustfmt::skip]
const K: [u32; 64] = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
];

/// The compression function of FIPS 180-4, 6.2.2, and sha256d on it, over vectors of 32-bit lanes.
macro_rules! lanes {
    (
        $module:ident, $feature:literal, $lanes:literal, $vector:ty,
        add $add:ident, xor $xor:ident, and $and:ident, andnot $andnot:ident, or $or:ident,
        right $right:ident, left $left:ident, splat $splat:ident
    ) => {
        mod $module {
            use std::arch::x86_64::*;

            use super::{INITIAL, K};

            /// Rotates right by `N`; `M` is 32 - `N`.
            #[target_feature(enable = $feature)]
            #[inline]
            fn rotate<const N: i32, const M: i32>(x: $vector) -> $vector {
                const { assert!(N + M == 32) };
                $or($right::<N>(x), $left::<M>(x))
            }

            #[target_feature(enable = $feature)]
            #[inline]
            fn sum(a: $vector, b: $vector, c: $vector, d: $vector) -> $vector {
                $add($add(a, b), $add(c, d))
            }

            #[target_feature(enable = $feature)]
            #[inline]
            fn word(value: u32) -> $vector {
                $splat(value.cast_signed())
            }

            #[target_feature(enable = $feature)]
            #[inline]
            fn compress(state: &mut [$vector; 8], mut w: [$vector; 16]) {
                let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
                for (round, &k) in K.iter().enumerate() {
                    let at = round % 16;
                    if round >= 16 {
                        let (early, late) = (w[(at + 1) % 16], w[(at + 14) % 16]);
                        let sigma0 = $xor(
                            $xor(rotate::<7, 25>(early), rotate::<18, 14>(early)),
                            $right::<3>(early),
                        );
                        let sigma1 = $xor(
                            $xor(rotate::<17, 15>(late), rotate::<19, 13>(late)),
                            $right::<10>(late),
                        );
                        w[at] = sum(w[at], sigma0, w[(at + 9) % 16], sigma1);
                    }
                    let sigma1 = $xor(
                        $xor(rotate::<6, 26>(e), rotate::<11, 21>(e)),
                        rotate::<25, 7>(e),
                    );
                    let choice = $xor($and(e, f), $andnot(e, g));
                    let t1 = $add(sum(h, sigma1, choice, word(k)), w[at]);
                    let sigma0 = $xor(
                        $xor(rotate::<2, 30>(a), rotate::<13, 19>(a)),
                        rotate::<22, 10>(a),
                    );
                    let majority = $or($and(a, b), $and(c, $or(a, b)));
                    let t2 = $add(sigma0, majority);
                    (h, g, f, e, d, c, b, a) = (g, f, e, $add(d, t1), c, b, a, $add(t1, t2));
                }
                for (old, new) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
                    *old = $add(*old, new);
                }
            }

            /// sha256d of headers: the state after their first 64 bytes, the three words that follow, and a nonce per
            /// lane (as big-endian words). Hashes as big-endian words, one vector per word.
            #[target_feature(enable = $feature)]
            pub(super) fn sha256d(
                midstate: &[u32; 8],
                tail: &[u32; 3],
                nonces: &[u32; $lanes],
            ) -> [[u32; $lanes]; 8] {
                // SAFETY: plain 32-bit lanes; both types have the same size and every bit pattern is valid.
                let nonces: $vector = unsafe { std::mem::transmute(*nonces) };
                let mut block = [word(0); 16];
                for (to, &from) in block.iter_mut().zip(tail) {
                    *to = word(from);
                }
                block[3] = nonces;
                block[4] = word(0x8000_0000);
                block[15] = word(80 * 8);
                let mut inner = [word(0); 8];
                for (to, &from) in inner.iter_mut().zip(midstate) {
                    *to = word(from);
                }
                compress(&mut inner, block);

                let mut block = [word(0); 16];
                block[..8].copy_from_slice(&inner);
                block[8] = word(0x8000_0000);
                block[15] = word(32 * 8);
                let mut outer = [word(0); 8];
                for (to, &from) in outer.iter_mut().zip(&INITIAL) {
                    *to = word(from);
                }
                compress(&mut outer, block);
                // SAFETY: as above, the other way round.
                unsafe { std::mem::transmute(outer) }
            }
        }
    };
}

lanes!(
    sse2, "sse2", 4, __m128i,
    add _mm_add_epi32, xor _mm_xor_si128, and _mm_and_si128, andnot _mm_andnot_si128, or _mm_or_si128,
    right _mm_srli_epi32, left _mm_slli_epi32, splat _mm_set1_epi32
);

lanes!(
    avx2, "avx2", 8, __m256i,
    add _mm256_add_epi32, xor _mm256_xor_si256, and _mm256_and_si256, andnot _mm256_andnot_si256, or _mm256_or_si256,
    right _mm256_srli_epi32, left _mm256_slli_epi32, splat _mm256_set1_epi32
);

/// The compression function for one message, the measure of the others.
fn compress_scalar(state: &mut [u32; 8], mut w: [u32; 16]) {
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (round, &k) in K.iter().enumerate() {
        let at = round % 16;
        if round >= 16 {
            let (early, late) = (w[(at + 1) % 16], w[(at + 14) % 16]);
            let sigma0 = early.rotate_right(7) ^ early.rotate_right(18) ^ (early >> 3);
            let sigma1 = late.rotate_right(17) ^ late.rotate_right(19) ^ (late >> 10);
            w[at] = w[at]
                .wrapping_add(sigma0)
                .wrapping_add(w[(at + 9) % 16])
                .wrapping_add(sigma1);
        }
        let sigma1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = (e & f) ^ (!e & g);
        let t1 = h
            .wrapping_add(sigma1)
            .wrapping_add(choice)
            .wrapping_add(k)
            .wrapping_add(w[at]);
        let sigma0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let majority = (a & b) ^ (a & c) ^ (b & c);
        let t2 = sigma0.wrapping_add(majority);
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    for (old, new) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *old = old.wrapping_add(new);
    }
}

/// A block header but for its nonce, with what can be computed beforehand.
#[derive(Debug, Clone)]
pub struct Header {
    midstate: [u32; 8],
    tail: [u32; 3],
}

impl Header {
    /// Takes the first 76 bytes of `header`.
    #[must_use]
    pub fn new(header: &[u8; HEADER_BYTES]) -> Self {
        let mut words = [0; HEADER_BYTES / 4];
        for (word, bytes) in words.iter_mut().zip(header.as_chunks().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        let mut first = [0; 16];
        first.copy_from_slice(&words[..16]);
        let mut midstate = INITIAL;
        compress_scalar(&mut midstate, first);
        Self {
            midstate,
            tail: [words[16], words[17], words[18]],
        }
    }

    /// sha256d with `nonce`, as big-endian words, one header alone.
    #[must_use]
    pub fn hash_scalar(&self, nonce: u32) -> [u32; 8] {
        let mut block = [0; 16];
        block[..3].copy_from_slice(&self.tail);
        block[3] = nonce.swap_bytes();
        block[4] = 0x8000_0000;
        block[15] = 80 * 8;
        let mut inner = self.midstate;
        compress_scalar(&mut inner, block);
        let mut block = [0; 16];
        block[..8].copy_from_slice(&inner);
        block[8] = 0x8000_0000;
        block[15] = 32 * 8;
        let mut outer = INITIAL;
        compress_scalar(&mut outer, block);
        outer
    }
}

/// Which registers hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vectors {
    /// 4 lanes in XMM registers; every x86-64 CPU.
    Sse2,
    /// 8 lanes in YMM registers.
    Avx2,
}

impl Vectors {
    /// The widest this CPU has.
    #[must_use]
    pub fn detect() -> Self {
        if is_x86_feature_detected!("avx2") {
            Self::Avx2
        } else {
            Self::Sse2
        }
    }

    /// Headers hashed at once.
    #[must_use]
    pub fn lanes(self) -> u32 {
        match self {
            Self::Sse2 => 4,
            Self::Avx2 => 8,
        }
    }

    /// sha256d of `header` with the nonces `nonce`, `nonce` + 1, … (wrapping), passed to `each` with their nonce.
    ///
    /// # Panics
    /// If the CPU lacks the registers.
    pub fn hash(self, header: &Header, nonce: u32, mut each: impl FnMut(u32, [u32; 8])) {
        match self {
            Self::Sse2 => {
                let nonces = std::array::from_fn(|lane| nth(nonce, lane).swap_bytes());
                // SAFETY: SSE2 is part of x86-64.
                let words = unsafe { sse2::sha256d(&header.midstate, &header.tail, &nonces) };
                for lane in 0..4 {
                    each(nth(nonce, lane), words.map(|word| word[lane]));
                }
            }
            Self::Avx2 => {
                assert!(is_x86_feature_detected!("avx2"), "the CPU has no AVX2");
                let nonces = std::array::from_fn(|lane| nth(nonce, lane).swap_bytes());
                // SAFETY: the CPU has AVX2, as was just asked.
                let words = unsafe { avx2::sha256d(&header.midstate, &header.tail, &nonces) };
                for lane in 0..8 {
                    each(nth(nonce, lane), words.map(|word| word[lane]));
                }
            }
        }
    }

    /// Refuses a CPU or compiler that does not compute sha256d: the known hash of Bitcoin's first block in each lane, and its neighbours' by
    /// the scalar code.
    ///
    /// # Errors
    /// If any differs.
    pub fn check_known_hash(self) -> Result<()> {
        let header = Header::new(&GENESIS);
        if header.hash_scalar(GENESIS_NONCE) != GENESIS_HASH {
            bail!("the scalar sha256d of Bitcoin's first block is wrong");
        }
        for before in 0..self.lanes() {
            let mut wrong = None;
            self.hash(&header, GENESIS_NONCE - before, |nonce, hash| {
                if hash != header.hash_scalar(nonce) {
                    wrong = Some(nonce);
                }
            });
            if let Some(nonce) = wrong {
                bail!("the sha256d in {self:?} registers is wrong for nonce {nonce}");
            }
        }
        Ok(())
    }
}

fn nth(nonce: u32, lane: usize) -> u32 {
    // At most 8 lanes.
    nonce.wrapping_add(u32::try_from(lane).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_compression_is_that_of_the_standard() {
        // FIPS 180-4's example "abc": one padded block.
        let mut block = [0; 16];
        block[0] = 0x6162_6380;
        block[15] = 24;
        let mut state = INITIAL;
        compress_scalar(&mut state, block);
        assert_eq!(
            state,
            [
                0xba78_16bf,
                0x8f01_cfea,
                0x4141_40de,
                0x5dae_2223,
                0xb003_61a3,
                0x9617_7a9c,
                0xb410_ff61,
                0xf200_15ad
            ]
        );
    }

    #[test]
    fn the_first_block_has_its_known_hash() {
        assert_eq!(
            Header::new(&GENESIS).hash_scalar(GENESIS_NONCE),
            GENESIS_HASH
        );
    }

    #[test]
    fn every_lane_agrees_with_the_scalar_code() {
        Vectors::Sse2.check_known_hash().unwrap();
        // On a CPU without AVX2 this is SSE2 once more.
        Vectors::detect().check_known_hash().unwrap();
    }

    #[test]
    fn nonces_wrap() {
        let header = Header::new(&GENESIS);
        let mut seen = Vec::new();
        Vectors::Sse2.hash(&header, u32::MAX - 1, |nonce, hash| {
            assert_eq!(hash, header.hash_scalar(nonce));
            seen.push(nonce);
        });
        assert_eq!(seen, [u32::MAX - 1, u32::MAX, 0, 1]);
    }
}
