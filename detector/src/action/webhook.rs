//! The signed webhook: orders as JSON, for a provider without gRPC.
//!
//! `POST` of the order ([`Order`] as JSON), or of `{"query": KEY}`, with the headers of [`crate::signature`] and `Idempotency-Key`. The answer
//! is JSON, `{"outcome": "done" | "refused" | "under_way" | "never_seen", "detail": …}`.
//!
//! What was not taken (no connection, 429, 503) is tried again under the same key while the order may leave ([`Order::leaves_by`]: a
//! second for an automated step). What may have been taken (nothing heard, a connection that closed, another 5xx) is not: it is in doubt
//! at once, and is asked about. Other 4xx are a refusal, but not if an earlier attempt may have arrived all the same: that one may have
//! been done, and the error be about its copy. A query does nothing, and is tried again after any failure. What is not understood is in
//! doubt. Redirects are not followed: a signed order goes where it was configured to go.

use std::time::Duration;

use davy_decision::{
    action::Outcome,
    order::Order,
    time::{Span, Time},
};
use serde::Deserialize;

use super::driver::{Answer, Driver, time_left, words};
use crate::desk::Clock;
use crate::signature::{SIGNATURE, Secret, TIMESTAMP};

/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// First pause between two attempts; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Clone)]
pub struct Webhook {
    agent: ureq::Agent,
    url: String,
    secret: Secret,
    timeout: Duration,
    attempts_max: u32,
    clock: Clock,
}

/// A request with its key.
#[derive(Clone)]
struct Letter {
    key: String,
    body: String,
    /// Whether it only asks what became of an order.
    asked: bool,
}

#[derive(Deserialize)]
struct Said {
    outcome: String,
    #[serde(default)]
    detail: String,
}

/// One attempt's end.
enum Attempt {
    /// What stands, or is to be queried.
    Answered(Answer),
    /// A client error to an order, in words.
    Rejected(String),
    /// Worth another attempt.
    Failed {
        /// Whether somebody answered, so that it may have been done whatever they said.
        arrived: bool,
        why: String,
    },
}

/// Until when a request is of use.
#[derive(Clone, Copy)]
struct Until {
    /// It is not sent after this.
    leaves_by: Time,
    /// Its answer is not awaited beyond this.
    not_after: Time,
}

impl Webhook {
    /// Of the receiver at `url`, each attempt answered within `timeout`.
    #[must_use]
    pub fn new(
        url: String,
        secret: Secret,
        timeout: Duration,
        attempts_max: u32,
        clock: Clock,
    ) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .build()
            .new_agent();
        Self {
            agent,
            url,
            secret,
            timeout,
            attempts_max,
            clock,
        }
    }

    async fn post(&self, letter: Letter, until: Until) -> Answer {
        let (mut pause, mut last, mut in_doubt) = (PAUSE, String::new(), false);
        for attempt in 1..=self.attempts_max {
            let now = (self.clock)();
            let (Some(connect), Some(timeout)) = (
                time_left(until.leaves_by, now, self.timeout),
                time_left(until.not_after, now, self.timeout),
            ) else {
                break;
            };
            let (this, copy) = (self.clone(), letter.clone());
            let tried = move || this.attempt(&copy, connect, timeout);
            let tried = tokio::task::spawn_blocking(tried).await;
            match tried {
                Ok(Attempt::Answered(answer)) => return answer,
                Ok(Attempt::Rejected(why)) if in_doubt => return Answer::doubtful(why),
                Ok(Attempt::Rejected(why)) => return Answer::refused(why),
                Ok(Attempt::Failed { arrived, why }) => {
                    in_doubt |= arrived;
                    last = why;
                }
                Err(error) => return Answer::doubtful(error.to_string()),
            }
            tracing::warn!(
                key = letter.key,
                attempt,
                why = last,
                "the webhook did not take a request"
            );
            let rest = Span::ms(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
            if attempt == self.attempts_max || (self.clock)().after(rest) >= until.leaves_by {
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        let sent = if in_doubt { "" } else { "nothing was sent: " };
        Answer::doubtful(format!("{}: {sent}{last}", self.url))
    }

    fn attempt(&self, letter: &Letter, connect: Duration, timeout: Duration) -> Attempt {
        let Letter { key, body, asked } = letter;
        // Signed anew each time: a receiver refuses what was signed long ago.
        let (timestamp, signature) = self.secret.sign((self.clock)(), body.as_bytes());
        let sent = (self.agent.post(&self.url))
            .config()
            .timeout_global(Some(timeout))
            // Together no more than there is.
            .timeout_resolve(Some(connect / 2))
            .timeout_connect(Some(connect / 2))
            .build()
            .header("content-type", "application/json")
            .header("idempotency-key", header_of(key))
            .header(TIMESTAMP, &timestamp)
            .header(SIGNATURE, &signature)
            .send(body.as_str());
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => return broken(&error, *asked),
        };
        let status = response.status().as_u16();
        if matches!(status, 429 | 503) || (*asked && status >= 500) {
            let why = format!("HTTP {status}");
            return Attempt::Failed { arrived: true, why };
        }
        let text = (response.body_mut().with_config().limit(ANSWER_BYTES_MAX)).read_to_string();
        let text = match text {
            Ok(text) => text,
            // It came, and was answered: what it became is to be asked, not sent again.
            Err(error) => {
                return Attempt::Answered(Answer::doubtful(format!("HTTP {status}, but {error}")));
            }
        };
        match status {
            200..=299 => Attempt::Answered(understood(&text, *asked)),
            // These say that it was late, or came before, not that it will not be done.
            408 | 409 | 425 => {
                Attempt::Answered(Answer::doubtful(format!("HTTP {status}: {}", words(&text))))
            }
            // A query that is refused says nothing about the order.
            400..=499 if !asked => Attempt::Rejected(format!("HTTP {status}: {}", words(&text))),
            _ => Attempt::Answered(Answer::doubtful(format!("HTTP {status}: {}", words(&text)))),
        }
    }
}

/// Of an attempt without an answer.
fn broken(error: &ureq::Error, asked: bool) -> Attempt {
    use ureq::{Error, Timeout};
    let why = error.to_string();
    let sent = match error {
        Error::HostNotFound
        | Error::ConnectionFailed
        | Error::Timeout(Timeout::Resolve | Timeout::Connect) => false,
        Error::Io(error) => error.kind() != std::io::ErrorKind::ConnectionRefused,
        _ => true,
    };
    let arrived = false;
    match error {
        Error::Timeout(_) if sent => Attempt::Answered(Answer::doubtful(why)),
        _ if sent && !asked => Attempt::Answered(Answer::doubtful(why)),
        _ => Attempt::Failed { arrived, why },
    }
}

/// A key as a header can hold it: what is not visible ASCII, and `%`, as `%` and two hexadecimal digits.
fn header_of(key: &str) -> String {
    let mut text = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn understood(text: &str, asked: bool) -> Answer {
    // An object alone: serde would also take a list for the members in their order. A member said twice is an error: which one counts
    // cannot be told.
    let said = (text.trim_start().starts_with('{')).then(|| serde_json::from_str(text));
    let Some(Ok(Said { outcome, detail })) = said else {
        return Answer::doubtful(format!("the answer is not understood: {:?}", words(text)));
    };
    let detail = words(&detail);
    let outcome = match outcome.as_str() {
        "done" => Outcome::Done,
        "refused" => return Answer::refused(detail),
        "never_seen" if asked => Outcome::NeverSeen,
        other => return Answer::doubtful(format!("outcome {:?}: {detail}", words(other))),
    };
    Answer { outcome, detail }
}

#[tonic::async_trait]
impl Driver for Webhook {
    fn name(&self) -> &'static str {
        "webhook"
    }

    async fn perform(&self, order: &Order) -> Answer {
        if time_left(order.leaves_by(), (self.clock)(), self.timeout).is_none() {
            return Answer::too_late(order);
        }
        let body = match serde_json::to_string(order) {
            Ok(body) => body,
            Err(error) => {
                return Answer::doubtful(format!("the order cannot be written: {error}"));
            }
        };
        let key = order.key.clone();
        let asked = false;
        let until = Until {
            leaves_by: order.leaves_by(),
            not_after: order.not_after,
        };
        self.post(Letter { key, body, asked }, until).await
    }

    async fn query(&self, key: &str) -> Answer {
        let letter = Letter {
            key: key.to_owned(),
            body: serde_json::json!({ "query": key }).to_string(),
            asked: true,
        };
        // A query does nothing, however late it comes.
        let never = Time::from_unix_ms(u64::MAX);
        let until = Until {
            leaves_by: never,
            not_after: never,
        };
        self.post(letter, until).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_no_header_is_written_as_one() {
        assert_eq!(header_of("acct-1/2/throttle/0"), "acct-1/2/throttle/0");
        assert_eq!(header_of("é%\n"), "%C3%A9%25%0A");
    }
}
