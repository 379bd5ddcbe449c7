//! Who calls: tokens, and the identities behind them.
//!
//! ```toml
//! [[tokens]]
//! identity = "ann"          # several tokens of one identity are one person
//! kind = "person"           # or "service": it may read, ask the safeties and stop automation, and decides nothing
//! sha256 = "9f86d081…"      # SHA-256 of the token, 64 hex digits; `davyctl token new NAME` makes both
//! ```
//!
//! A token comes as metadata `authorization: Bearer TOKEN`. The configuration has only its hash: who reads it cannot sign in with it.
//! All hashes are compared, each in constant time. Without any token configured nobody is let in: there is no default.

use davy_decision::{
    audit::Actor,
    case::{IDENTITY_BYTES_MAX, Person},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tonic::{Status, metadata::MetadataMap};

/// Most tokens.
const TOKENS_MAX: usize = 10_000;

/// What is behind a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A person of the provider's.
    Person,
    /// A program of the provider's.
    Service,
}

/// `[[tokens]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// Whose.
    pub identity: String,
    /// What.
    pub kind: Kind,
    /// SHA-256 of the token, 64 hex digits.
    pub sha256: String,
}

/// A token's configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not an identity.
    #[error(
        "tokens: {identity:?} is no identity: give 1 to {IDENTITY_BYTES_MAX} printable characters without spaces"
    )]
    Identity {
        /// What was given.
        identity: String,
    },
    /// No hash.
    #[error(
        "tokens: the sha256 of {identity} is not 64 hex digits; `davyctl token new {identity}` makes a token and its stanza"
    )]
    Hash {
        /// Whose.
        identity: String,
    },
    /// One hash for two.
    #[error("tokens: {identity} and {other} have the same token; give each their own")]
    Shared {
        /// The one.
        identity: String,
        /// The other.
        other: String,
    },
    /// One name for a person and a service.
    #[error(
        "tokens: {identity} is both a person and a service; a service cannot decide, so give it another name"
    )]
    Both {
        /// Who.
        identity: String,
    },
    /// Names that readers take for one.
    #[error(
        "tokens: {identity} and {other} differ only in case, so that nobody could tell two people from one; write them the same, or \
         apart"
    )]
    Alike {
        /// The one.
        identity: String,
        /// The other.
        other: String,
    },
    /// Too many.
    #[error("tokens: {count} are configured, at most {TOKENS_MAX} are taken")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    identity: String,
    kind: Kind,
}

impl Caller {
    /// As the audit log names them.
    #[must_use]
    pub fn actor(&self) -> Actor {
        match self.kind {
            Kind::Person => Actor::Person(self.identity.clone()),
            Kind::Service => Actor::Service(self.identity.clone()),
        }
    }

    /// The person, if it is one.
    #[must_use]
    pub fn person(&self) -> Option<Person> {
        (self.kind == Kind::Person).then(|| Person(self.identity.clone()))
    }

    /// Their name.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }
}

#[derive(Clone, Debug)]
struct Token {
    hash: [u8; 32],
    caller: Caller,
}

/// Knows callers by their tokens.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    tokens: Vec<Token>,
}

impl Gate {
    /// Of configured tokens.
    ///
    /// # Errors
    /// [`TokenError`]: the first that cannot be used.
    pub fn new(tokens: &[TokenConfig]) -> Result<Self, TokenError> {
        if tokens.len() > TOKENS_MAX {
            let count = tokens.len();
            return Err(TokenError::TooMany { count });
        }
        let mut gate = Self::default();
        for token in tokens {
            let (identity, kind) = (token.identity.clone(), token.kind);
            if !Person::is_name(&identity) {
                return Err(TokenError::Identity { identity });
            }
            let Some(hash) = hash_of_hex(&token.sha256) else {
                return Err(TokenError::Hash { identity });
            };
            for held in &gate.tokens {
                let other = held.caller.identity.clone();
                if held.hash == hash {
                    return Err(TokenError::Shared { identity, other });
                }
                if other != identity && other.to_lowercase() == identity.to_lowercase() {
                    return Err(TokenError::Alike { identity, other });
                }
                if other == identity && held.caller.kind != kind {
                    return Err(TokenError::Both { identity });
                }
            }
            let caller = Caller { identity, kind };
            gate.tokens.push(Token { hash, caller });
        }
        Ok(gate)
    }

    /// Whoever calls.
    ///
    /// # Errors
    /// UNAUTHENTICATED, with a sentence that says what to do.
    pub fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let refused = |why: &str| Err(Status::unauthenticated(why.to_owned()));
        if self.tokens.is_empty() {
            return refused(
                "no token is configured, so nobody is let in: `davyctl token new NAME` makes one; put its stanza into the detector's \
                 configuration and start it again",
            );
        }
        let Some(value) = metadata.get("authorization") else {
            return refused(
                "this needs a token: set DAVY_TOKEN or give --token-file (`davyctl token new NAME` makes one)",
            );
        };
        let token = (value.as_bytes()).strip_prefix(b"Bearer ");
        let Some(caller) = token.and_then(|token| self.find(token)) else {
            return refused(
                "the token is not known here: check DAVY_TOKEN or --token-file, or make another with `davyctl token new NAME`",
            );
        };
        Ok(caller)
    }

    /// Looks at every token, whichever it is.
    fn find(&self, token: &[u8]) -> Option<Caller> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let mut found = u32::MAX;
        for (index, held) in (0_u32..).zip(&self.tokens) {
            let same: Choice = held.hash.ct_eq(&hash);
            found.conditional_assign(&index, same);
        }
        let index = usize::try_from(found).ok()?;
        self.tokens.get(index).map(|token| token.caller.clone())
    }

    /// The person who calls.
    ///
    /// # Errors
    /// As [`Gate::caller`]; PERMISSION_DENIED for a service.
    pub fn person(&self, metadata: &MetadataMap) -> Result<(Person, Actor), Status> {
        let caller = self.caller(metadata)?;
        match caller.person() {
            Some(person) => Ok((person, caller.actor())),
            None => Err(Status::permission_denied(format!(
                "{} is a service: only a person decides; use a person's token",
                caller.identity
            ))),
        }
    }
}

fn hash_of_hex(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (place, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stanza(identity: &str, kind: Kind, token: &str) -> TokenConfig {
        let hash = Sha256::digest(token);
        TokenConfig {
            identity: identity.to_owned(),
            kind,
            sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    fn with(value: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", value.parse().unwrap());
        metadata
    }

    #[test]
    fn two_tokens_of_one_identity_are_one_person() {
        let tokens = ["a", "b"].map(|token| stanza("ann", Kind::Person, token));
        let gate = Gate::new(&tokens).unwrap();
        let people = ["Bearer a", "Bearer b"].map(|value| gate.person(&with(value)).unwrap().0);
        assert_eq!(people[0], people[1]);
    }

    #[test]
    fn nobody_is_let_in_without_a_token_that_is_configured() {
        let none = Gate::default().caller(&with("Bearer ")).unwrap_err();
        assert!(none.message().contains("davyctl token new"), "{none}");
        let gate = Gate::new(&[stanza("ann", Kind::Person, "a")]).unwrap();
        for metadata in [
            MetadataMap::new(),
            with("Bearer c"),
            with("a"),
            with("Bearer a "),
        ] {
            let refused = gate.caller(&metadata).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        }
    }

    #[test]
    fn a_service_is_no_person() {
        let gate = Gate::new(&[stanza("billing", Kind::Service, "s")]).unwrap();
        assert_eq!(
            gate.caller(&with("Bearer s")).unwrap().identity(),
            "billing"
        );
        let refused = gate.person(&with("Bearer s")).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }

    #[test]
    fn stanzas_that_blur_who_somebody_is_are_refused() {
        let ann = stanza("ann", Kind::Person, "a");
        for (other, said) in [
            (stanza("bob", Kind::Person, "a"), "same token"),
            (stanza("ann", Kind::Service, "b"), "both a person"),
            (stanza("a b", Kind::Person, "b"), "no identity"),
            (stanza("bob\u{202e}", Kind::Person, "b"), "no identity"),
            (stanza("Ann", Kind::Person, "b"), "differ only in case"),
            (
                TokenConfig {
                    sha256: "a".to_owned(),
                    ..ann.clone()
                },
                "64 hex",
            ),
        ] {
            let error = Gate::new(&[ann.clone(), other]).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
