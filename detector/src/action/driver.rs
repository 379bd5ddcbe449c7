//! What carries an order to the control plane, and asks what became of it.
//!
//! A driver never fails: what it does not understand (no answer, a broken one, an answer to something else) is in doubt, with the
//! reason in words, and is queried later. It sends an order as often as it likes under the same key, never under another.

use davy_decision::{action::Outcome, order::Order};

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the state machine learns.
    pub outcome: Outcome,
    /// In words, for the log.
    pub detail: String,
}

impl Answer {
    /// Not known.
    #[must_use]
    pub fn doubtful(why: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Doubtful,
            detail: why.into(),
        }
    }
}

/// See the module.
#[tonic::async_trait]
pub trait Driver: Send + Sync + 'static {
    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// Asks for an order to be done.
    async fn perform(&self, order: &Order) -> Answer;

    /// Asks what became of the order with this key.
    async fn query(&self, key: &str) -> Answer;
}
