//! Proofs of work over well-kept hash crates: a block header's hash again and again, with another nonce each time.
//!
//! What coins compute (or have computed) with these: sha256d Bitcoin, scrypt Litecoin, yescrypt and its kin CPU coins, argon2d and
//! argon2id memory-hard coins, blake2b Sia, blake2s and blake3 newer ones, keccak256 Maxcoin, groestl512 Groestlcoin,
//! skein512, jh512, whirlpool and shabal512 parts of the X family; `chain` puts six of them in a row, as X11 does.
//!
//! Every algorithm is checked against a published value before it is used: [`Algorithm::check_known_hash`].

use std::fmt;

use anyhow::{Context as _, Result, anyhow, ensure};
use argon2::{Argon2, AssociatedData, ParamsBuilder, Version};
use clap::ValueEnum;
use digest::Digest;

use crate::sha256::{GENESIS, GENESIS_HASH, HEADER_BYTES};

/// Length of a result, bytes; longer hashes are cut to it.
pub const HASH_BYTES: usize = 32;
/// Memory of one Argon2 hash, KiB.
const ARGON2_KIB: u32 = 4096;
/// Base 2 logarithm of scrypt's N; Litecoin has N = 1024, r = 1, p = 1.
const SCRYPT_LOG_N: u8 = 10;
/// N and r of yescrypt, as in yespower's first coins.
const YESCRYPT_N_R: (u64, u32) = (2048, 8);

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
#[expect(missing_docs, reason = "named as the algorithms are")]
pub enum Algorithm {
    Sha256d,
    Scrypt,
    Yescrypt,
    Argon2d,
    Argon2id,
    Blake2b,
    Blake2s,
    Blake3,
    Keccak256,
    Groestl512,
    Skein512,
    Jh512,
    Whirlpool,
    Shabal512,
    /// groestl512, skein512, jh512, keccak512, shabal512, whirlpool, one after the other.
    Chain,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

/// A header that is hashed with one nonce after the other.
#[derive(Debug, Clone)]
pub struct Work {
    algorithm: Algorithm,
    header: [u8; HEADER_BYTES],
    nonce: u32,
}

impl Work {
    /// Work of a thread: it has a header of its own.
    #[must_use]
    pub fn new(algorithm: Algorithm, thread: u16) -> Self {
        let mut header = GENESIS;
        header[4..6].copy_from_slice(&thread.to_le_bytes());
        Self {
            algorithm,
            header,
            nonce: 0,
        }
    }

    /// Hashes tried between two looks at the clock: about 2 ms' worth.
    #[must_use]
    pub fn batch(&self) -> u32 {
        match self.algorithm {
            Algorithm::Argon2d | Algorithm::Argon2id | Algorithm::Yescrypt => 1,
            Algorithm::Scrypt => 4,
            Algorithm::Chain => 128,
            _ => 1024,
        }
    }

    /// The hash at the next nonce.
    ///
    /// # Errors
    /// If a memory-hard hash gets no memory.
    pub fn step(&mut self) -> Result<[u8; HASH_BYTES]> {
        let at = HEADER_BYTES - size_of::<u32>();
        self.header[at..].copy_from_slice(&self.nonce.to_le_bytes());
        self.nonce = self.nonce.wrapping_add(1);
        self.algorithm.hash(&self.header)
    }
}

impl Algorithm {
    /// The proof of work of a header.
    ///
    /// # Errors
    /// If a memory-hard hash gets no memory.
    pub fn hash(self, header: &[u8]) -> Result<[u8; HASH_BYTES]> {
        let mut out = [0; HASH_BYTES];
        match self {
            Self::Scrypt => scrypt_into(header, header, SCRYPT_LOG_N, &mut out)?,
            Self::Yescrypt => yescrypt_into(header, header, YESCRYPT_N_R, &mut out)?,
            Self::Argon2d | Self::Argon2id => {
                let params = ParamsBuilder::new().m_cost(ARGON2_KIB).t_cost(1).build();
                Argon2::new(self.argon2(), Version::V0x13, params.map_err(words)?)
                    .hash_password_into(header, header, &mut out)
                    .map_err(words)?;
            }
            Self::Chain => {
                let mut whole = digest::<groestl::Groestl512>(header);
                whole = digest::<skein::Skein512_512>(&whole);
                whole = digest::<jh::Jh512>(&whole);
                whole = digest::<sha3::Keccak512>(&whole);
                whole = digest::<shabal::Shabal512>(&whole);
                whole = digest::<whirlpool::Whirlpool>(&whole);
                out.copy_from_slice(&whole[..HASH_BYTES]);
            }
            plain => out.copy_from_slice(&plain.digest(header)[..HASH_BYTES]),
        }
        Ok(out)
    }

    /// The whole digest of a plain hash function (blake3: 256 bits of it; sha256d: of two passes).
    fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256d => digest::<sha2::Sha256>(&digest::<sha2::Sha256>(data)),
            Self::Blake2b => digest::<blake2::Blake2b512>(data),
            Self::Blake2s => digest::<blake2::Blake2s256>(data),
            Self::Blake3 => blake3::hash(data).as_bytes().to_vec(),
            Self::Keccak256 => digest::<sha3::Keccak256>(data),
            Self::Groestl512 => digest::<groestl::Groestl512>(data),
            Self::Skein512 => digest::<skein::Skein512_512>(data),
            Self::Jh512 => digest::<jh::Jh512>(data),
            Self::Whirlpool => digest::<whirlpool::Whirlpool>(data),
            Self::Shabal512 => digest::<shabal::Shabal512>(data),
            Self::Scrypt | Self::Yescrypt | Self::Argon2d | Self::Argon2id | Self::Chain => {
                Vec::new()
            }
        }
    }

    fn argon2(self) -> argon2::Algorithm {
        match self {
            Self::Argon2id => argon2::Algorithm::Argon2id,
            _ => argon2::Algorithm::Argon2d,
        }
    }

    /// Checks the code against a published value.
    ///
    /// # Errors
    /// If it computes something else.
    pub fn check_known_hash(self) -> Result<()> {
        let (found, known) = match self {
            Self::Scrypt => (known_scrypt()?, SCRYPT_RFC_7914.to_owned()),
            Self::Yescrypt => (known_yescrypt()?, YESCRYPT_KAT.to_owned()),
            Self::Argon2d => (self.known_argon2()?, ARGON2D_RFC_9106.to_owned()),
            Self::Argon2id => (self.known_argon2()?, ARGON2ID_RFC_9106.to_owned()),
            Self::Sha256d => (self.digest(&GENESIS), genesis_hash()),
            Self::Chain => {
                for part in [
                    Self::Groestl512,
                    Self::Skein512,
                    Self::Jh512,
                    Self::Shabal512,
                    Self::Whirlpool,
                ] {
                    part.check_known_hash()?;
                }
                (digest::<sha3::Keccak512>(b""), KECCAK512_EMPTY.to_owned())
            }
            plain => {
                let (message, known) = plain.known_digest();
                (plain.digest(message), known.to_owned())
            }
        };
        let found = hex(&found);
        ensure!(
            found == known,
            "{self} of a known message is {found}, not {known}: this build hashes wrongly, do not use it"
        );
        Ok(())
    }

    /// RFC 9106, 5.1 and 5.3: 32 KiB, 3 passes, 4 lanes.
    fn known_argon2(self) -> Result<Vec<u8>> {
        let data = AssociatedData::new(&[4; 12]).map_err(words)?;
        let params = ParamsBuilder::new()
            .m_cost(32)
            .t_cost(3)
            .p_cost(4)
            .data(data)
            .build()
            .map_err(words)?;
        let mut out = vec![0; 32];
        Argon2::new_with_secret(&[3; 8], self.argon2(), Version::V0x13, params)
            .and_then(|argon2| argon2.hash_password_into(&[1; 32], &[2; 16], &mut out))
            .map_err(words)?;
        Ok(out)
    }

    /// A message and its published digest: RFC 7693 for blake2, the BLAKE3 specification's test vectors, the
    /// submissions to the SHA-3 competition, and ISO/IEC 10118-3 for Whirlpool.
    fn known_digest(self) -> (&'static [u8], &'static str) {
        match self {
            Self::Blake2b => (
                b"abc",
                "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1\
                 7d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923",
            ),
            Self::Blake2s => (
                b"abc",
                "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982",
            ),
            Self::Blake3 => (
                b"",
                "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
            ),
            Self::Keccak256 => (
                b"",
                "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470",
            ),
            Self::Groestl512 => (
                b"",
                "6d3ad29d279110eef3adbd66de2a0345a77baede1557f5d099fce0c03d6dc2ba\
                 8e6d4a6633dfbd66053c20faa87d1a11f39a7fbe4a6c2f009801370308fc4ad8",
            ),
            Self::Skein512 => (
                b"",
                "bc5b4c50925519c290cc634277ae3d6257212395cba733bbad37a4af0fa06af4\
                 1fca7903d06564fea7a2d3730dbdb80c1f85562dfcc070334ea4d1d9e72cba7a",
            ),
            Self::Jh512 => (
                b"",
                "90ecf2f76f9d2c8017d979ad5ab96b87d58fc8fc4b83060f3f900774faa2c8fa\
                 be69c5f4ff1ec2b61d6b316941cedee117fb04b1f4c5bc1b919ae841c50eec4f",
            ),
            Self::Whirlpool => (
                b"",
                "19fa61d75522a4669b44e39c1d2e1726c530232130d407f89afee0964997f7a7\
                 3e83be698b288febcf88e3e03c4f0757ea8964e59b63d93708b138cc42a66eb3",
            ),
            _ => (
                b"",
                "fc2d5dff5d70b7f6b1f8c2fcc8c1f9fe9934e54257eded0cf2b539a2ef0a19cc\
                 ffa84f8d9fa135e4bd3c09f590f3a927ebd603ac29eb729e6f2a9af031ad8dc6",
            ),
        }
    }
}

/// RFC 7914, 12: scrypt of "" and "" with N = 16, r = 1, p = 1, 64 bytes.
const SCRYPT_RFC_7914: &str = "77d6576238657b203b19ca42c18a0497f16b4844e3074ae8dfdffa3fede21442\
                               fcd0069ded0948f8326a753a0fc81f17e8d3e0fb2e0d3628cf35e20c38d18906";
/// yescrypt's reference implementation, `TESTS-OK`: "" and "", default flavour, N = 4, r = 1, p = 1.
const YESCRYPT_KAT: &str = "0cd5af76eb241df8119a9a122ae36920bcc7f414b9c0d58f45008060dade46b0\
                            c80922bdcc16a3ab5d201d4c6140c671be1f75272ca904739d5ad1ff672b0c21";
/// RFC 9106, 5.1.
const ARGON2D_RFC_9106: &str = "512b391b6f1162975371d30919734294f868e3be3984f3c1a13a4db9fabe4acb";
/// RFC 9106, 5.3.
const ARGON2ID_RFC_9106: &str = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659";
/// Keccak's submission to the SHA-3 competition: the empty message.
const KECCAK512_EMPTY: &str = "0eab42de4c3ceb9235fc91acffe746b29c29a8c366b7c60e4e67c466f36a4304\
                               c00fa9caf9d87976ba469bcbe06713b435f091ef2769fb160cdab33d3670680e";

/// sha256d of Bitcoin's first block.
fn genesis_hash() -> String {
    GENESIS_HASH
        .iter()
        .map(|word| format!("{word:08x}"))
        .collect()
}

fn digest<D: Digest>(data: &[u8]) -> Vec<u8> {
    D::digest(data).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn words(error: impl fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

fn scrypt_into(password: &[u8], salt: &[u8], log_n: u8, out: &mut [u8]) -> Result<()> {
    let params = scrypt::Params::new(log_n, 1, 1).map_err(words)?;
    scrypt::scrypt(password, salt, &params, out)
        .map_err(words)
        .context("scrypt")
}

fn yescrypt_into(password: &[u8], salt: &[u8], (n, r): (u64, u32), out: &mut [u8]) -> Result<()> {
    let params = yescrypt::Params::new(yescrypt::Mode::default(), n, r, 1).map_err(words)?;
    yescrypt::yescrypt(password, salt, &params, out)
        .map_err(words)
        .context("yescrypt")
}

fn known_scrypt() -> Result<Vec<u8>> {
    let mut out = vec![0; 64];
    scrypt_into(b"", b"", 4, &mut out)?;
    Ok(out)
}

fn known_yescrypt() -> Result<Vec<u8>> {
    let params = yescrypt::Params::new(yescrypt::Mode::default(), 4, 1, 1).map_err(words)?;
    let mut out = vec![0; 64];
    yescrypt::yescrypt(b"", b"", &params, &mut out).map_err(words)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_computes_its_published_value() {
        for algorithm in Algorithm::value_variants() {
            algorithm.check_known_hash().unwrap();
        }
    }

    #[test]
    fn each_nonce_has_its_own_hash() {
        for &algorithm in Algorithm::value_variants() {
            let mut work = Work::new(algorithm, 7);
            let (first, second) = (work.step().unwrap(), work.step().unwrap());
            assert_ne!(first, second, "{algorithm}");
            assert_eq!(first, Work::new(algorithm, 7).step().unwrap());
            assert_ne!(first, Work::new(algorithm, 8).step().unwrap());
        }
    }
}
