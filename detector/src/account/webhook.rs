//! The signed webhook for what customers say: `POST /v1/customer-messages`, JSON, with the headers of [`crate::signature`].
//!
//! ```json
//! {"key": "ticket-77/3", "account": "acct-1", "channel": "ticket", "text": "That is our build farm."}
//! ```
//!
//! Answers `{"new": true, "case": "acct-1/1"}`. Whoever signed it is believed to bring a customer's word: only a body without its key or
//! account is refused. A text that is missing or `null` counts as empty, one that is no string is taken as the JSON it is, and further
//! fields are named in the answer as `ignored`. The same key again changes nothing, so a request that was overheard and sent again
//! within the five minutes that its signature holds does no harm.

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::intake::{HearError, Heard, Intake};
use crate::desk::Clock;
use crate::signature::{SIGNATURE, Secret, TIMESTAMP};

/// Largest body, bytes: a customer may send a log with their answer, of which the beginning is kept.
const BODY_BYTES_MAX: usize = 1 << 20;

#[derive(Clone)]
struct Hook {
    intake: Intake,
    secret: Secret,
    clock: Clock,
}

#[derive(Deserialize)]
struct Message {
    key: String,
    account: String,
    #[serde(default)]
    channel: Value,
    #[serde(default)]
    text: Value,
    #[serde(flatten)]
    further: Map<String, Value>,
}

/// What stands there, as text.
fn words(value: Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// The routes of the webhook.
pub fn routes(intake: Intake, secret: Secret, clock: Clock) -> Router {
    Router::new()
        .route("/v1/customer-messages", post(take))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Hook {
            intake,
            secret,
            clock,
        })
}

fn refused(status: StatusCode, why: &dyn std::fmt::Display) -> Response {
    let body = serde_json::json!({ "error": why.to_string() });
    (status, Json(body)).into_response()
}

async fn take(State(hook): State<Hook>, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let signed = hook
        .secret
        .verify(header(TIMESTAMP), header(SIGNATURE), &body, (hook.clock)());
    if let Err(error) = signed {
        return refused(StatusCode::UNAUTHORIZED, &error);
    }
    let Message {
        key,
        account,
        channel,
        text,
        further,
    } = match serde_json::from_slice(&body) {
        Ok(message) => message,
        Err(error) => {
            let why =
                format!("the body is no message: {error}; send key, account, channel and text");
            return refused(StatusCode::BAD_REQUEST, &why);
        }
    };
    let (channel, text) = (words(channel), words(text));
    match hook.intake.hear(key, &account, channel, text).await {
        Ok(Heard { is_new, case }) => {
            let mut answer = serde_json::json!({ "new": is_new, "case": case });
            if !further.is_empty() {
                answer["ignored"] = further.keys().cloned().collect();
            }
            Json(answer).into_response()
        }
        Err(error @ HearError::Bad(_)) => refused(StatusCode::BAD_REQUEST, &error),
        Err(error @ HearError::Unknown(_)) => refused(StatusCode::NOT_FOUND, &error),
        Err(error @ HearError::Failed(_)) => refused(StatusCode::SERVICE_UNAVAILABLE, &error),
    }
}
