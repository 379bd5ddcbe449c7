//! Why something an agent sent is refused: the label of the metric, and one sentence for the agent's log.

use std::fmt;

/// The kinds of refusal, one label value each in `davy_detector_rejected_total{reason}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A `Hello` with a field out of range, or another first message than `Hello`.
    BadHello,
    /// A second `Hello` within one stream.
    UnexpectedHello,
    /// A message that holds neither `Hello` nor `Window`.
    EmptyMessage,
    /// Bytes that are no message of ours, or too many of them for one message.
    Undecodable,
    /// A window larger than [`crate::ingest::WINDOW_BYTES_MAX`].
    TooLarge,
    /// A sequence of 0, or one too far ahead of the last.
    BadSequence,
    /// A window that ends before it starts, or is too long.
    BadSpan,
    /// A window that ends too far in the future.
    Future,
    /// A window that ended too long ago.
    Past,
    /// More tenants than one window may have.
    TooManyTenants,
    /// A tenant whose identity is not usable, or who occurs twice.
    BadTenant,
    /// CPU figures that cannot be.
    BadCpu,
    /// Evidence that is absent or cannot be.
    BadEvidence,
    /// A proposed verdict of no known level.
    BadVerdict,
    /// Sensor states that cannot be.
    BadSensors,
    /// Another agent of the same host is connected and stays.
    SecondAgent,
}

impl Reason {
    /// All reasons, for readers of the counters.
    pub const ALL: [Self; 16] = [
        Self::BadHello,
        Self::UnexpectedHello,
        Self::EmptyMessage,
        Self::Undecodable,
        Self::TooLarge,
        Self::BadSequence,
        Self::BadSpan,
        Self::Future,
        Self::Past,
        Self::TooManyTenants,
        Self::BadTenant,
        Self::BadCpu,
        Self::BadEvidence,
        Self::BadVerdict,
        Self::BadSensors,
        Self::SecondAgent,
    ];

    /// The metric's label value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadHello => "bad_hello",
            Self::UnexpectedHello => "unexpected_hello",
            Self::EmptyMessage => "empty_message",
            Self::Undecodable => "undecodable",
            Self::TooLarge => "too_large",
            Self::BadSequence => "bad_sequence",
            Self::BadSpan => "bad_span",
            Self::Future => "future",
            Self::Past => "past",
            Self::TooManyTenants => "too_many_tenants",
            Self::BadTenant => "bad_tenant",
            Self::BadCpu => "bad_cpu",
            Self::BadEvidence => "bad_evidence",
            Self::BadVerdict => "bad_verdict",
            Self::BadSensors => "bad_sensors",
            Self::SecondAgent => "second_agent",
        }
    }
}

/// A refusal: its kind and the sentence sent to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The kind, for counting.
    pub reason: Reason,
    /// What is wrong, with the offending value.
    pub detail: String,
}

impl Malformed {
    /// A refusal of `reason`, saying `detail`.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.label(), self.detail)
    }
}

impl std::error::Error for Malformed {}
