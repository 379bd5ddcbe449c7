//! What the checks inside the hypervisor say on its console, and what it comes to. Pure.
//!
//! | line | means |
//! |---|---|
//! | `davy-checks: begin` | the checks run now |
//! | `davy-check: ok NAME: DETAIL` | a check passed |
//! | `davy-check: FAILED NAME: DETAIL` | a check failed |
//! | `davy-progress: TEXT` | what is being waited for |
//! | `davy-checks: N passed, M failed` | the last line; both figures must agree with what was counted |
//! | `davy-vm: TEXT` | the hypervisor's own start and end |

/// What a line of the console was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// Of the checks or the hypervisor's init, from this byte on: shown to people.
    Ours(usize),
    /// The kernel is dying; `true`: before the checks began, so that a new start may help.
    Dying(bool),
    /// Anything else.
    Other,
}

/// What the checks said so far.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The checks have begun.
    pub(super) begun: bool,
    /// Checks passed.
    pub(super) passed: u64,
    /// The failed checks: `NAME: DETAIL`.
    pub(super) failed: Vec<String>,
    /// The figures of the last line: passed, failed.
    last: Option<(u64, u64)>,
}

impl Outcome {
    /// Takes one line of the console.
    pub(super) fn take(&mut self, line: &str) -> Line {
        // The kernel may have written before the checks' words, on the same line.
        let Some(at) = line.find("davy-") else {
            return self.kernel_line(line);
        };
        let line = &line[at..];
        if line.starts_with("davy-check: ok ") {
            self.passed += 1;
        } else if let Some(failed) = line.strip_prefix("davy-check: FAILED ") {
            self.failed.push(failed.to_owned());
        } else if let Some(rest) = line.strip_prefix("davy-checks: ") {
            if rest == "begin" {
                self.begun = true;
            } else {
                self.last = last_line(rest);
            }
        } else if line.starts_with("davy-vm: checks ended") {
            // Nothing of the emulation's: a new start would not help.
            self.begun = true;
        } else if !line.starts_with("davy-progress: ") && !line.starts_with("davy-vm: ") {
            return Line::Other;
        }
        Line::Ours(at)
    }

    /// Whether the last line came.
    pub(super) const fn complete(&self) -> bool {
        self.last.is_some()
    }

    /// Why the last line does not agree with what was counted, if so.
    pub(super) fn contradiction(&self) -> Option<String> {
        let failed = u64::try_from(self.failed.len()).unwrap_or(u64::MAX);
        match self.last {
            Some((0, 0)) => Some("no check ran".to_owned()),
            Some((p, f)) if (p, f) != (self.passed, failed) => Some(format!(
                "the checks counted {p} passed and {f} failed, but {} and {failed} came through",
                self.passed
            )),
            _ => None,
        }
    }

    fn kernel_line(&self, line: &str) -> Line {
        if line.contains("Kernel panic") || line.contains("Oops: ") {
            Line::Dying(!self.begun)
        } else {
            Line::Other
        }
    }
}

/// `N passed, M failed`.
fn last_line(rest: &str) -> Option<(u64, u64)> {
    let (passed, failed) = rest.split_once(" passed, ")?;
    let failed = failed.strip_suffix(" failed")?;
    Some((passed.parse().ok()?, failed.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::default();
        for line in lines {
            outcome.take(line);
        }
        outcome
    }

    #[test]
    fn checks_are_counted_and_the_last_line_completes() {
        let outcome = after(&[
            "davy-checks: begin",
            "davy-check: ok one: fine",
            "davy-check: FAILED two: 3 of 4",
            "davy-checks: 1 passed, 1 failed",
        ]);
        assert!(outcome.begun && outcome.complete());
        assert_eq!(outcome.passed, 1);
        assert_eq!(outcome.failed, ["two: 3 of 4"]);
        assert_eq!(outcome.contradiction(), None);
    }

    #[test]
    fn a_lost_line_and_an_empty_run_are_contradictions() {
        let lost = after(&["davy-check: ok one: x", "davy-checks: 2 passed, 0 failed"]);
        assert!(lost.contradiction().is_some());
        assert!(
            after(&["davy-checks: 0 passed, 0 failed"])
                .contradiction()
                .is_some()
        );
    }

    #[test]
    fn a_panic_counts_as_early_only_before_the_checks() {
        let mut outcome = Outcome::default();
        assert_eq!(outcome.take("[ 1.0] Oops: int3: 0000"), Line::Dying(true));
        outcome.take("davy-checks: begin");
        assert_eq!(
            outcome.take("Kernel panic - not syncing"),
            Line::Dying(false)
        );
        assert_eq!(outcome.take("some line"), Line::Other);
    }

    #[test]
    fn kernel_text_before_a_marker_does_not_hide_it() {
        let mut outcome = Outcome::default();
        let line = "\u{1b}[0m[ 2.0] x davy-check: ok one: fine";
        assert_eq!(outcome.take(line), Line::Ours(13));
        assert_eq!(outcome.passed, 1);
    }
}
