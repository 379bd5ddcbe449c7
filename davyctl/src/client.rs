//! The way to the detector: the connection, the token, and its errors in one sentence.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use davy_proto::v1::account_intake_client::AccountIntakeClient;
use davy_proto::v1::automation_client::AutomationClient;
use davy_proto::v1::cases_client::CasesClient;
use davy_proto::v1::safety_service_client::SafetyServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::{Interceptor, interceptor::InterceptedService};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Largest answer read, bytes: the detector's largest list is below it.
pub const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Where the token is if no file is given.
pub const TOKEN_VARIABLE: &str = "DAVY_TOKEN";
/// Longest token read from a file, bytes.
const TOKEN_BYTES_MAX: u64 = 4 << 10;

/// Adds the token to each call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Bearer {
    /// Of a file, which nobody else may read, or of the environment; without either the detector says what to do.
    ///
    /// # Errors
    /// If the file cannot be read or others can read it, or the token holds what a header cannot.
    pub fn find(file: Option<&Path>) -> anyhow::Result<Self> {
        let token = match file {
            Some(path) => Some(read_token(path)?),
            None => std::env::var(TOKEN_VARIABLE)
                .ok()
                .filter(|token| !token.trim().is_empty()),
        };
        let value = token.map(|token| {
            let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
                .parse()
                .map_err(|_| anyhow!("the token holds characters that no token has; make another with `davyctl token new NAME`"))?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        });
        Ok(Self(value.transpose()?))
    }

    /// Whether there is one.
    pub fn is_given(&self) -> bool {
        self.0.is_some()
    }
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let shown = path.display();
    let cannot = || format!("the token file {shown} cannot be read");
    let file = std::fs::File::open(path).with_context(cannot)?;
    let mode = file.metadata().with_context(cannot)?.permissions().mode();
    if mode & 0o077 != 0 {
        bail!(
            "others can read the token file {shown} (mode {:o}); `chmod 600 {shown}`",
            mode & 0o777
        );
    }
    let mut token = String::new();
    file.take(TOKEN_BYTES_MAX)
        .read_to_string(&mut token)
        .with_context(cannot)?;
    if token.trim().is_empty() {
        bail!("the token file {shown} is empty; `davyctl token new NAME` makes a token");
    }
    Ok(token)
}

/// A channel with a token.
pub type Signed = InterceptedService<Channel, Bearer>;

/// A connected detector.
pub struct Detector {
    /// The connection.
    pub channel: Channel,
    /// The token.
    pub bearer: Bearer,
}

impl Detector {
    /// Connects.
    ///
    /// # Errors
    /// If the URL is none, or nobody answers there.
    pub async fn connect(url: &str, token_file: Option<&Path>) -> anyhow::Result<Self> {
        let bearer = Bearer::find(token_file)?;
        let endpoint = Endpoint::from_shared(url.to_owned())
            .ok()
            .filter(|endpoint| {
                endpoint.uri().scheme_str() == Some("http") && endpoint.uri().host().is_some()
            })
            .ok_or_else(|| {
                anyhow!("--detector {url:?} is not a URL such as http://127.0.0.1:7700")
            })?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        let channel = endpoint.connect().await.map_err(|error| {
            let why = root_cause(&error);
            anyhow!("no detector answers at {url} ({why}); start `davy-detector serve`, or say where it is with --detector")
        })?;
        Ok(Self { channel, bearer })
    }

    /// Cases.
    pub fn cases(&self) -> CasesClient<Signed> {
        CasesClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Kill switch, audit log, decisions.
    pub fn automation(&self) -> AutomationClient<Signed> {
        AutomationClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Facts.
    pub fn intake(&self) -> AccountIntakeClient<Signed> {
        AccountIntakeClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Safeties.
    pub fn safeties(&self) -> SafetyServiceClient<Signed> {
        SafetyServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }
}

/// The innermost error's words: a transport error itself says only that it is one.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The detector's own sentence, or what kept it from saying one.
pub fn said(status: &Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unimplemented => {
            anyhow!("what answers there is no Davy detector, or one of another release")
        }
        _ if status.message().is_empty() => anyhow!("the detector answered {:?}", status.code()),
        _ => anyhow!("{}", davy_decision::words::plain(status.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "davy_1\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_token(&path).unwrap_err().to_string();
        assert!(
            error.contains("mode 640") && error.contains("chmod 600"),
            "{error}"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_token(&path).unwrap(), "davy_1\n");
    }
}
