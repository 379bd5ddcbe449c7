//! What the checks say, and how they wait: lines on standard output that the runner reads.

use std::time::{Duration, Instant};

/// All waiting ends by then, so that what failed is said before the runner's own limit of 14 minutes.
const TOTAL: Duration = Duration::from_secs(700);
/// What a wait is given even after that, so that one failure does not make failures of all that follow.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at a state; what they cost, the guests on the same emulated CPU lack.
const POLL: Duration = Duration::from_millis(500);
/// Between two lines that say what is being waited for.
const PROGRESS: Duration = Duration::from_secs(10);

/// What a look at a state found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// As it should be; the detail for the report.
    Reached(String),
    /// Not yet; what it is now.
    NotYet(String),
    /// It cannot come right any more.
    Wrong(String),
}

/// Counts checks and says each result.
#[derive(Debug)]
pub(crate) struct Report {
    passed: u32,
    failed: u32,
    started: Instant,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            passed: 0,
            failed: 0,
            started: Instant::now(),
        }
    }

    /// Says and counts one check; `true` if it passed.
    pub(crate) fn record(&mut self, name: &str, result: Result<String, String>) -> bool {
        let ok = result.is_ok();
        let (word, detail) = match result {
            Ok(detail) => ("ok", detail),
            Err(detail) => ("FAILED", detail),
        };
        // One line, whatever an error's text holds.
        let detail = detail.split_whitespace().collect::<Vec<_>>().join(" ");
        println!("davy-check: {word} {name}: {detail}");
        if ok {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        ok
    }

    /// Looks at a state until it is reached, gone wrong, or `patience` ended.
    pub(crate) async fn until<F>(
        &self,
        what: &str,
        patience: Duration,
        mut look: F,
    ) -> Result<String, String>
    where
        F: AsyncFnMut() -> State,
    {
        let begun = Instant::now();
        let total = (self.started + TOTAL).max(begun + GRACE);
        let deadline = (begun + patience).min(total);
        let mut said = begun;
        loop {
            let now = match look().await {
                State::Reached(detail) => return Ok(detail),
                State::Wrong(detail) => return Err(detail),
                State::NotYet(now) => now,
            };
            if Instant::now() >= deadline {
                let waited = begun.elapsed().as_secs();
                return Err(format!("not so within {waited} s: {now}"));
            }
            if said.elapsed() >= PROGRESS {
                said = Instant::now();
                println!("davy-progress: {what}: {now}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Says the figures; `true` if nothing failed.
    pub(crate) fn finish(&self) -> bool {
        println!(
            "davy-checks: {} passed, {} failed",
            self.passed, self.failed
        );
        self.failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_ends_when_the_state_is_reached() {
        let mut looks = 0;
        let got = Report::new()
            .until("x", Duration::from_secs(60), async || {
                looks += 1;
                if looks == 3 {
                    State::Reached("three".to_owned())
                } else {
                    State::NotYet(String::new())
                }
            })
            .await;
        assert_eq!(got, Ok("three".to_owned()));
    }

    #[tokio::test]
    async fn waiting_fails_with_the_last_state_seen() {
        let got = Report::new()
            .until("x", Duration::ZERO, async || {
                State::NotYet("2 of 3".to_owned())
            })
            .await;
        assert!(got.unwrap_err().ends_with("2 of 3"));
    }

    #[test]
    fn a_failed_check_fails_the_report() {
        let mut report = Report::new();
        assert!(report.record("a", Ok("fine".to_owned())));
        assert!(!report.record("b", Err("not".to_owned())));
        assert!(!report.finish());
    }
}
