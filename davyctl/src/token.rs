//! `davyctl token`: makes tokens. Nothing is sent anywhere.

use anyhow::{Context, bail};
use clap::Subcommand;
use davy_decision::case::{IDENTITY_BYTES_MAX, Person};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// What can be done with tokens.
#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a new random token for a person or a service, and print it once with its stanza for the detector's configuration.
    ///
    /// The configuration holds the token's SHA-256 only: keep the token itself where only its owner can read it. Several tokens of one
    /// identity are one person. A service reads, asks the safeties and may stop automation; it decides no case.
    New {
        /// Whose: the identity, as it will stand in cases and in the audit log
        #[arg(value_name = "NAME")]
        name: String,
        /// It is a program, not a person
        #[arg(long)]
        service: bool,
    },
}

/// `davyctl token new --json`.
#[derive(Debug, Serialize)]
pub struct NewToken {
    version: u32,
    identity: String,
    kind: &'static str,
    token: String,
    sha256: String,
}

impl NewToken {
    /// Of random bytes.
    ///
    /// # Errors
    /// If the name is no identity, or the system has no randomness.
    pub fn new(identity: String, service: bool) -> anyhow::Result<Self> {
        if !Person::is_name(&identity) {
            bail!(
                "{identity:?} is no identity: give 1 to {IDENTITY_BYTES_MAX} printable characters without spaces"
            );
        }
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).context("the system gives no random bytes")?;
        let token = format!("davy_{}", hex(&bytes));
        Ok(Self {
            version: crate::model::VERSION,
            identity,
            kind: if service { "service" } else { "person" },
            sha256: hex(&Sha256::digest(&token)),
            token,
        })
    }

    /// For people.
    pub fn in_words(&self) -> String {
        let Self {
            version: _,
            identity,
            kind,
            token,
            sha256,
        } = self;
        format!(
            "The token, shown this once; keep it in a file that only its owner can read:\n\n{token}\n\nFor the detector's configuration \
             (then start the detector again):\n\n[[tokens]]\nidentity = {}\nkind = \"{kind}\"\nsha256 = \"{sha256}\"\n\nTo use it: \
             DAVY_TOKEN in the environment, or --token-file FILE.\n",
            serde_json::Value::from(identity.as_str())
        )
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_is_another_and_its_stanza_has_its_hash() {
        let tokens = [(); 2].map(|()| NewToken::new("ann".to_owned(), false).unwrap());
        assert_ne!(tokens[0].token, tokens[1].token);
        let words = tokens[0].in_words();
        let hash = hex(&Sha256::digest(&tokens[0].token));
        assert!(words.contains(&format!("sha256 = \"{hash}\"")), "{words}");
        assert_eq!(words.matches(&tokens[0].token).count(), 1);
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        assert!(NewToken::new("ann lee".to_owned(), false).is_err());
    }
}
