//! The signed webhook: orders as JSON, for a provider without gRPC.
//!
//! `POST` of the order ([`Order`] as JSON), or of `{"query": KEY}`, with the headers of [`crate::signature`] and `Idempotency-Key`. The answer
//! is JSON, `{"outcome": "done" | "refused" | "under_way" | "never_seen", "detail": …}`. A connection that fails, a 5xx or a 429 is
//! tried again under the same key while the order may still arrive; other 4xx are a refusal. What is not understood is in doubt.

use std::time::Duration;

use davy_decision::{
    action::Outcome,
    order::Order,
    time::{Span, Time},
};
use serde::Deserialize;

use super::driver::{Answer, Driver};
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
    attempts_max: u32,
    clock: Clock,
}

#[derive(Deserialize)]
struct Said {
    outcome: String,
    #[serde(default)]
    detail: String,
}

/// One attempt's end.
enum Attempt {
    Answered(Answer),
    /// Worth another attempt.
    Failed(String),
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
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .build()
            .new_agent();
        Self {
            agent,
            url,
            secret,
            attempts_max,
            clock,
        }
    }

    async fn post(&self, key: &str, body: String, not_after: Time, asked: bool) -> Answer {
        let mut pause = PAUSE;
        let mut last = String::new();
        for attempt in 1..=self.attempts_max {
            let (this, key, body) = (self.clone(), key.to_owned(), body.clone());
            let tried = tokio::task::spawn_blocking(move || this.attempt(&key, &body, asked)).await;
            match tried {
                Ok(Attempt::Answered(answer)) => return answer,
                Ok(Attempt::Failed(why)) => last = why,
                Err(error) => last = error.to_string(),
            }
            let now = (self.clock)();
            let rest = Span::ms(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
            if attempt == self.attempts_max || now.after(rest) >= not_after {
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Answer::doubtful(format!("{}: {last}", self.url))
    }

    fn attempt(&self, key: &str, body: &str, asked: bool) -> Attempt {
        let (timestamp, signature) = self.secret.sign((self.clock)(), body.as_bytes());
        let sent = (self.agent.post(&self.url))
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .header(TIMESTAMP, &timestamp)
            .header(SIGNATURE, &signature)
            .send(body);
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => return Attempt::Failed(error.to_string()),
        };
        let status = response.status().as_u16();
        let text = (response.body_mut().with_config().limit(ANSWER_BYTES_MAX)).read_to_string();
        let text = match text {
            Ok(text) => text,
            Err(error) => return Attempt::Failed(format!("HTTP {status}, but {error}")),
        };
        match status {
            200..=299 => Attempt::Answered(understood(&text, asked)),
            429 | 500..=599 => Attempt::Failed(format!("HTTP {status}")),
            // A query that is refused says nothing about the order.
            400..=499 if !asked => {
                let why = format!(
                    "HTTP {status}: {}",
                    text.chars().take(300).collect::<String>()
                );
                Attempt::Answered(Answer {
                    outcome: Outcome::Refused { why: why.clone() },
                    detail: why,
                })
            }
            _ => Attempt::Answered(Answer::doubtful(format!("HTTP {status}"))),
        }
    }
}

fn understood(text: &str, asked: bool) -> Answer {
    let Ok(Said { outcome, detail }) = serde_json::from_str(text) else {
        let shown: String = text.chars().take(100).collect();
        return Answer::doubtful(format!("the answer is not understood: {shown:?}"));
    };
    let outcome = match outcome.as_str() {
        "done" => Outcome::Done,
        "refused" => Outcome::Refused {
            why: detail.clone(),
        },
        "never_seen" if asked => Outcome::NeverSeen,
        other => return Answer::doubtful(format!("outcome {other:?}: {detail}")),
    };
    Answer { outcome, detail }
}

#[tonic::async_trait]
impl Driver for Webhook {
    fn name(&self) -> &'static str {
        "webhook"
    }

    async fn perform(&self, order: &Order) -> Answer {
        match serde_json::to_string(order) {
            Ok(body) => self.post(&order.key, body, order.not_after, false).await,
            Err(error) => Answer::doubtful(format!("the order cannot be written: {error}")),
        }
    }

    async fn query(&self, key: &str) -> Answer {
        let body = serde_json::json!({ "query": key }).to_string();
        // A query does nothing, however late it comes.
        let far = Time::from_unix_ms(u64::MAX);
        self.post(key, body, far, true).await
    }
}
