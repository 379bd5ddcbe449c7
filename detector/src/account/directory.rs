//! The account directory: facts about accounts, and whose a droplet is, asked of the provider.
//!
//! Whatever cannot be had is an error that says why, and an error is `unknown_standing`: a safety.

use davy_decision::account::{AccountId, DropletId, Facts};

/// Why the directory did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// None is configured.
    #[error("no account directory is configured: give [directory] url")]
    None,
    /// It knows no such account.
    #[error("the account directory knows no account {account}")]
    Unknown {
        /// Which.
        account: AccountId,
    },
    /// It cannot be reached, is too slow, or fails.
    #[error("the account directory at {url} does not answer: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// In its words.
        why: String,
    },
    /// Its answer cannot be.
    #[error("the account directory at {url} answered what cannot be: {why}")]
    Rubbish {
        /// Where.
        url: String,
        /// What is wrong.
        why: String,
    },
}

/// Where facts come from.
#[tonic::async_trait]
pub trait Directory: Send + Sync + 'static {
    /// All facts about an account, as of now; checked ([`Facts::check`]).
    ///
    /// # Errors
    /// [`DirectoryError`].
    async fn facts(&self, account: &AccountId) -> Result<Facts, DirectoryError>;

    /// Whose a droplet is; none if the provider knows no such droplet.
    ///
    /// # Errors
    /// [`DirectoryError`].
    async fn owner(&self, droplet: &DropletId) -> Result<Option<AccountId>, DirectoryError>;
}

/// No directory: facts come by push alone, and are never fresh enough for an automated action.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDirectory;

#[tonic::async_trait]
impl Directory for NoDirectory {
    async fn facts(&self, _: &AccountId) -> Result<Facts, DirectoryError> {
        Err(DirectoryError::None)
    }

    async fn owner(&self, _: &DropletId) -> Result<Option<AccountId>, DirectoryError> {
        Ok(None)
    }
}
