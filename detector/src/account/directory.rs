//! The account directory: facts about accounts, and whose a droplet is, asked of the provider.
//!
//! Whatever cannot be had is an error that says why, and an error is `unknown_standing`: a safety.

use std::time::Duration;

use davy_decision::{
    account::{AccountId, DropletId, Facts},
    time::Time,
};
use davy_proto::v1;
use davy_proto::v1::account_directory_client::AccountDirectoryClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use davy_proto::accounts as wire;

/// Largest answer read, bytes: an account with all the droplets that are kept.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// How often a connection that is in use is asked whether it lives, and how long it may take to answer: one to a host that died is
/// then made anew, and not kept until TCP gives up.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A text that is no URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a URL such as http://127.0.0.1:7800")]
pub struct BadUrl(pub String);

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

/// The provider's `AccountDirectory` over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcDirectory {
    client: AccountDirectoryClient<Channel>,
    url: String,
    clock: fn() -> Time,
}

impl GrpcDirectory {
    /// Of the directory at `url` (`http://HOST:PORT`), each question answered within `timeout`. It connects when it is first asked.
    ///
    /// # Errors
    /// If the URL is none.
    pub fn open(url: &str, timeout: Duration) -> Result<Self, BadUrl> {
        let channel = lazy_channel(url, timeout, timeout)?;
        Ok(Self {
            client: AccountDirectoryClient::new(channel)
                .max_decoding_message_size(ANSWER_BYTES_MAX),
            url: url.to_owned(),
            clock: || Time::from_unix_ns(crate::unix_now_ns()),
        })
    }

    fn rubbish(&self, why: &dyn std::fmt::Display) -> DirectoryError {
        DirectoryError::Rubbish {
            url: self.url.clone(),
            why: why.to_string(),
        }
    }

    fn unreachable(&self, status: &Status) -> DirectoryError {
        DirectoryError::Unreachable {
            url: self.url.clone(),
            why: said(status),
        }
    }
}

/// A status in words: its message, or its code's name.
pub(crate) fn said(status: &Status) -> String {
    if status.message().is_empty() {
        format!("{:?}", status.code())
    } else {
        format!("{:?}: {}", status.code(), status.message())
    }
}

/// A channel that connects when it is first used, and again when it broke.
pub(crate) fn lazy_channel(
    url: &str,
    connect_within: Duration,
    timeout: Duration,
) -> Result<Channel, BadUrl> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .ok()
        .filter(|endpoint| {
            endpoint.uri().scheme_str() == Some("http") && endpoint.uri().host().is_some()
        });
    let endpoint = endpoint.ok_or_else(|| BadUrl(url.to_owned()))?;
    Ok(endpoint
        .connect_timeout(connect_within)
        .timeout(timeout)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .connect_lazy())
}

#[tonic::async_trait]
impl Directory for GrpcDirectory {
    async fn facts(&self, account: &AccountId) -> Result<Facts, DirectoryError> {
        let request = v1::LookUpAccountRequest {
            account: account.to_string(),
        };
        let answer = self.client.clone().look_up_account(request).await;
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::NotFound => {
                return Err(DirectoryError::Unknown {
                    account: account.clone(),
                });
            }
            Err(status) => return Err(self.unreachable(&status)),
        };
        if answer.account != account.as_str() {
            return Err(self.rubbish(&format!(
                "asked for account {account}, it answered for {:?}",
                answer.account
            )));
        }
        let facts =
            wire::facts(answer.facts.unwrap_or_default()).map_err(|error| self.rubbish(&error))?;
        facts
            .check((self.clock)())
            .map_err(|error| self.rubbish(&error))?;
        Ok(facts)
    }

    async fn owner(&self, droplet: &DropletId) -> Result<Option<AccountId>, DirectoryError> {
        let request = v1::FindDropletRequest {
            droplet: droplet.to_string(),
        };
        match self.client.clone().find_droplet(request).await {
            Ok(answer) => {
                let account = AccountId::try_from(answer.into_inner().account);
                account.map(Some).map_err(|error| self.rubbish(&error))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.unreachable(&status)),
        }
    }
}
