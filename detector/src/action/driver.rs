//! What carries an order to the control plane, and asks what became of it.
//!
//! A driver never fails: what it does not understand (no answer, a broken one, an answer to something else) is in doubt, with the
//! reason in words, and is queried later. It sends an order as often as it likes under the same key, never under another.

use std::time::Duration;

use davy_decision::{action::Outcome, order::Order, time::Time};

/// Longest text of a control plane's that is kept, characters.
const WORDS_MAX: usize = 300;

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

    /// It will not be done. The control plane's words, or that it gave none.
    #[must_use]
    pub fn refused(why: String) -> Self {
        let why = if why.is_empty() {
            "refused, and no reason was given".to_owned()
        } else {
            why
        };
        Self {
            outcome: Outcome::Refused { why: why.clone() },
            detail: why,
        }
    }

    /// Too late to be sent.
    #[must_use]
    pub fn too_late(order: &Order) -> Self {
        Self::doubtful(format!(
            "not sent: it was to leave by {}",
            order.leaves_by()
        ))
    }
}

/// A control plane's words, fit for a log and a record: without control characters, and not without end.
#[must_use]
pub fn words(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().map(clean).take(WORDS_MAX).collect()
}

/// How long an answer may take: `timeout`, and not beyond `not_after`. None: that has passed.
#[must_use]
pub fn time_left(not_after: Time, now: Time, timeout: Duration) -> Option<Duration> {
    let left = Duration::from_millis((not_after - now).as_ms());
    (!left.is_zero()).then(|| left.min(timeout))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_not_awaited_beyond_the_orders_own_end() {
        let (now, second) = (Time::from_unix_ms(10_000), Duration::from_secs(1));
        let left = |end_ms| time_left(Time::from_unix_ms(end_ms), now, second);
        assert_eq!(left(10_300), Some(Duration::from_millis(300)));
        assert_eq!(left(99_000), Some(second));
        assert_eq!((left(10_000), left(9_000)), (None, None));
    }

    #[test]
    fn words_end_and_cannot_steer_a_terminal() {
        assert_eq!(words(" a\u{1b}[2J\nb "), "a [2J b");
        assert_eq!(words(&"é".repeat(1_000)).chars().count(), WORDS_MAX);
    }

    #[test]
    fn a_refusal_without_words_says_so() {
        assert_eq!(
            Answer::refused(String::new()).detail,
            "refused, and no reason was given"
        );
    }
}
