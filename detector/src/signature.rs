//! Signatures of webhooks, in and out: HMAC-SHA-256 over time and body, with a shared secret.
//!
//! ```text
//! Davy-Timestamp: 1559148180                      seconds since the Unix epoch
//! Davy-Signature: v1=<64 hex digits>              HMAC-SHA-256(secret, timestamp "." body)
//! ```
//!
//! The time is signed too, and one more than five minutes off is refused: a request that was overheard cannot be sent again later.
//! Compared in constant time.

use std::path::{Path, PathBuf};

use davy_decision::time::{Span, Time};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Header of the time.
pub const TIMESTAMP: &str = "davy-timestamp";
/// Header of the signature.
pub const SIGNATURE: &str = "davy-signature";
/// Least bytes of a secret.
const SECRET_BYTES_MIN: usize = 16;
/// How far a request's time may be off.
const OFF_MAX: Span = Span::minutes(5);

/// A shared secret. Never shown.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("the secret {path} cannot be read: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others can read it.
    #[error("the secret {path} can be read by others (mode {mode:o}); run: chmod 600 {path}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is too short.
    #[error(
        "the secret {path} has {bytes} bytes, fewer than {SECRET_BYTES_MIN}; make one with: head -c 32 /dev/urandom | base64",
        path = path.display()
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
}

/// Why a request is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// A header is missing, or is none.
    #[error(
        "the headers Davy-Timestamp and Davy-Signature must be there, as `v1=` and 64 hex digits"
    )]
    Headers,
    /// The time is too far off.
    #[error(
        "Davy-Timestamp is more than 5 minutes off; set the clock right, or sign the request anew"
    )]
    Time,
    /// The signature is another's.
    #[error("Davy-Signature does not fit the body and the secret")]
    Wrong,
}

impl Secret {
    /// From a file that only its owner can read; spaces and line ends around it do not count.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        use std::os::unix::fs::PermissionsExt;
        let unreadable = |source| SecretError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let mode = std::fs::metadata(path)
            .map_err(unreadable)?
            .permissions()
            .mode()
            & 0o777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Open {
                path: path.to_owned(),
                mode,
            });
        }
        let bytes = std::fs::read(path)
            .map_err(unreadable)?
            .trim_ascii()
            .to_vec();
        if bytes.len() < SECRET_BYTES_MIN {
            return Err(SecretError::Short {
                path: path.to_owned(),
                bytes: bytes.len(),
            });
        }
        Ok(Self(bytes))
    }

    /// Of bytes, however many.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    #[expect(
        clippy::expect_used,
        reason = "HMAC takes keys of any length (RFC 2104 §2)"
    )]
    fn mac(&self, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("a key of any length");
        mac.update(timestamp.as_bytes());
        mac.update(b".");
        mac.update(body);
        mac
    }

    /// The two headers of a body that is sent at `at`: time and signature.
    #[must_use]
    pub fn sign(&self, at: Time, body: &[u8]) -> (String, String) {
        let timestamp = (at.unix_ms() / 1_000).to_string();
        let bytes = self.mac(&timestamp, body).finalize().into_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        (timestamp, format!("v1={hex}"))
    }

    /// Whether a body with these headers comes from who knows the secret, now.
    ///
    /// # Errors
    /// [`Unsigned`].
    pub fn verify(
        &self,
        timestamp: Option<&str>,
        signature: Option<&str>,
        body: &[u8],
        now: Time,
    ) -> Result<(), Unsigned> {
        let (Some(timestamp), Some(signature)) = (timestamp, signature) else {
            return Err(Unsigned::Headers);
        };
        let seconds: u64 = timestamp.parse().map_err(|_| Unsigned::Headers)?;
        let bytes = signature
            .strip_prefix("v1=")
            .and_then(unhex)
            .ok_or(Unsigned::Headers)?;
        let said = Time::from_unix_ms(seconds.saturating_mul(1_000));
        // One of the two is nothing.
        if (said - now).max(now - said) > OFF_MAX {
            return Err(Unsigned::Time);
        }
        let mac = self.mac(timestamp, body);
        mac.verify_slice(&bytes).map_err(|_| Unsigned::Wrong)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_unix_ms(1_559_148_180_000);

    #[test]
    fn a_signature_is_what_openssl_makes_of_it() {
        // printf '1559148180.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
        let (timestamp, signature) = Secret::new(b"0123456789abcdef").sign(NOW, br#"{"a":1}"#);
        assert_eq!(timestamp, "1559148180");
        assert_eq!(
            signature,
            "v1=441795d1a80ad0a8346a91f58e093de3538122dddaec81af10a1e36c04289c38"
        );
    }

    #[test]
    fn what_was_signed_is_believed_and_nothing_else() {
        let secret = Secret::new(b"0123456789abcdef");
        let (timestamp, signature) = secret.sign(NOW, b"body");
        let verify = |timestamp: &str, signature: &str, body: &[u8], now| {
            secret.verify(Some(timestamp), Some(signature), body, now)
        };
        assert_eq!(verify(&timestamp, &signature, b"body", NOW), Ok(()));
        assert_eq!(
            verify(&timestamp, &signature, b"bodY", NOW),
            Err(Unsigned::Wrong)
        );
        assert_eq!(
            verify("1559148181", &signature, b"body", NOW),
            Err(Unsigned::Wrong)
        );
        let later = NOW.after(Span::minutes(6));
        assert_eq!(
            verify(&timestamp, &signature, b"body", later),
            Err(Unsigned::Time)
        );
        let earlier = NOW.before(Span::minutes(6));
        assert_eq!(
            verify(&timestamp, &signature, b"body", earlier),
            Err(Unsigned::Time)
        );
        for odd in ["v1=zz", "v2=00", "", "v1=é"] {
            assert!(verify(&timestamp, odd, b"body", NOW).is_err(), "{odd}");
        }
        assert_eq!(secret.verify(None, None, b"", NOW), Err(Unsigned::Headers));
    }

    #[test]
    fn a_secret_that_others_can_read_or_that_is_short_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let read = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Secret::read(&path).map_err(|error| error.to_string())
        };
        assert!(read("0123456789abcdef\n", 0o600).is_ok());
        assert!(
            read("0123456789abcdef", 0o644)
                .unwrap_err()
                .contains("chmod 600")
        );
        assert!(read("short", 0o600).unwrap_err().contains("5 bytes"));
    }
}
