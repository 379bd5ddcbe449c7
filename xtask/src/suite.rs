//! What a suite of tests comes to: the figures every suite reports in, whatever runs it.

use serde::Serialize;

/// The outcome of one suite.
///
/// A suite that could not run has `passed == 0`, `failed == 0` and at least one `skipped`,
/// with the reason among the notes: it can never be mistaken for one that passed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SuiteResult {
    /// The suite's name, as given on the command line (`unit`, `host`, `vm`, `tidy`).
    pub name: String,
    /// Tests that ran and passed.
    pub passed: u64,
    /// Tests that ran and failed; a suite that broke before its tests ran counts one.
    pub failed: u64,
    /// Tests that did not run.
    pub skipped: u64,
    /// Wall-clock time of the suite, in seconds.
    pub seconds: f64,
    /// Reasons of what was skipped or failed, one sentence each.
    pub notes: Vec<String>,
}

impl SuiteResult {
    /// A suite in which nothing has run yet.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            passed: 0,
            failed: 0,
            skipped: 0,
            seconds: 0.0,
            notes: Vec::new(),
        }
    }

    /// A suite that could not run, and why.
    pub fn skipped(name: &str, reason: &str) -> Self {
        let mut result = Self::new(name);
        result.skip(reason);
        result
    }

    /// Counts one test that could not run.
    pub fn skip(&mut self, reason: &str) {
        self.skipped += 1;
        self.notes.push(format!("skipped: {reason}"));
    }

    /// Where every suite is meant to run, turns one that did not into a failure: a suite in which nothing ran,
    /// or one of a kernel each (`vm`) in which a kernel was left out.
    pub fn require_run(&mut self) {
        let nothing_ran = self.passed == 0 && self.failed == 0;
        if self.skipped > 0 && (nothing_ran || self.name == "vm") {
            self.fail(
                "it may not be skipped on a build machine (CI is set); the reason is above, \
                 and `cargo xtask doctor` says what mends it",
            );
        }
    }

    /// Counts one test that failed.
    pub fn fail(&mut self, reason: &str) {
        self.failed += 1;
        self.notes.push(format!("failed: {reason}"));
    }
}

/// Reads what `cargo test` prints, line by line.
///
/// Counts come from libtest's `test result:` lines, names from its closing list of failures and its
/// `test … ignored` lines. A test that finds in the middle that it cannot run prints a line beginning with
/// `SKIPPED` (seen because the host tests run with `--nocapture`); it is then counted as skipped, not as passed.
#[derive(Debug, Default)]
pub struct CargoTestOutput {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Reasons of tests that said themselves that they could not run.
    own_skips: Vec<String>,
    failures: Vec<String>,
    /// The list of failures being read: libtest prints one with outputs first, the bare one last.
    listing: Option<Vec<String>>,
    ignores: Vec<String>,
}

impl CargoTestOutput {
    /// Takes one line.
    pub fn line(&mut self, line: &str) {
        let line = line.trim();
        if line == "failures:" {
            self.listing = Some(Vec::new());
        } else if let Some((_, reason)) = line.split_once("SKIPPED: ") {
            self.own_skips.push(reason.to_owned());
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.failures
                .extend(self.listing.take().unwrap_or_default());
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
            self.ignored += count(result, "ignored");
        } else if let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|test| test.split_once(" ... "))
        {
            if let Some(reason) = outcome.strip_prefix("ignored") {
                self.ignores.push(format!("{name}{reason}"));
            }
        } else if let Some(listing) = &mut self.listing
            && !line.is_empty()
        {
            listing.push(line.to_owned());
        }
    }

    /// What the suite came to, given whether cargo ended with success.
    pub fn result(self, name: &str, success: bool) -> SuiteResult {
        let mut result = SuiteResult::new(name);
        let own_skips = u64::try_from(self.own_skips.len()).unwrap_or(u64::MAX);
        result.passed = self.passed.saturating_sub(own_skips);
        result.failed = self.failed;
        result.skipped = self.ignored + own_skips;
        result
            .notes
            .extend(self.failures.iter().map(|test| format!("failed: {test}")));
        result
            .notes
            .extend(self.ignores.iter().map(|test| format!("skipped: {test}")));
        result
            .notes
            .extend(self.own_skips.iter().map(|why| format!("skipped: {why}")));
        if !success && result.failed == 0 {
            result.fail(
                "cargo test ended with an error before all tests had run; its words are above",
            );
        }
        if success && result.passed + result.failed + result.skipped == 0 {
            result.fail("no test ran");
        }
        result
    }
}

/// The number before `word` in `ok. 5 passed; 0 failed; …`.
fn count(result: &str, word: &str) -> u64 {
    result
        .split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
        .unwrap_or(0)
}

/// The last line of a run: `N passed, N failed, N skipped`.
pub fn closing_line(results: &[SuiteResult]) -> String {
    let sum = |field: fn(&SuiteResult) -> u64| results.iter().map(field).sum::<u64>();
    format!(
        "{} passed, {} failed, {} skipped",
        sum(|r| r.passed),
        sum(|r| r.failed),
        sum(|r| r.skipped)
    )
}

/// Whether a run counts as good: nothing failed, and something ran.
pub fn is_success(results: &[SuiteResult]) -> bool {
    results.iter().all(|r| r.failed == 0) && results.iter().any(|r| r.passed > 0)
}

/// The table of a run, with the reasons of what failed or was skipped beneath.
pub fn table(results: &[SuiteResult]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["suite", "passed", "failed", "skipped", "seconds"]);
    for result in results {
        table.add_row([
            result.name.clone(),
            result.passed.to_string(),
            result.failed.to_string(),
            result.skipped.to_string(),
            format!("{:.0}", result.seconds),
        ]);
    }
    let mut text = table.to_string();
    for result in results {
        for note in &result.notes {
            text.push_str(&format!("\n{}: {note}", result.name));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> CargoTestOutput {
        let mut counts = CargoTestOutput::default();
        for line in output.lines() {
            counts.line(line);
        }
        counts
    }

    const GOOD: &str = "running 2 tests\n\
        test a ... ok\n\
        test b ... ignored, needs a PMU\n\
        test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
        running 3 tests\n\
        test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";

    #[test]
    fn counts_of_all_binaries_are_summed() {
        let result = read(GOOD).result("unit", true);
        assert_eq!((result.passed, result.failed, result.skipped), (4, 0, 1));
        assert_eq!(result.notes, ["skipped: b, needs a PMU"]);
    }

    #[test]
    fn failures_are_counted_and_named() {
        let output = "test a::b ... FAILED\n\n\
            failures:\n\n---- a::b stdout ----\nthread panicked\n\n\
            failures:\n    a::b\n\n\
            test result: FAILED. 7 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let result = read(output).result("unit", false);
        assert_eq!((result.passed, result.failed), (7, 1));
        assert_eq!(result.notes, ["failed: a::b"]);
    }

    #[test]
    fn a_broken_build_is_a_failure() {
        let result = read("error: could not compile `x`\n").result("unit", false);
        assert_eq!((result.passed, result.failed), (0, 1));
        assert!(!is_success(&[result]));
    }

    #[test]
    fn a_binary_that_died_is_a_failure_beside_the_passes() {
        let result = read(GOOD).result("unit", false);
        assert_eq!((result.passed, result.failed), (4, 1));
    }

    #[test]
    fn no_test_at_all_is_a_failure() {
        assert_eq!(read("").result("unit", true).failed, 1);
    }

    #[test]
    fn a_test_that_could_not_run_is_not_passed() {
        let output = "SKIPPED: no XSAVE on this CPU\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let result = read(output).result("host", true);
        assert_eq!((result.passed, result.failed, result.skipped), (2, 0, 1));
        assert_eq!(result.notes, ["skipped: no XSAVE on this CPU"]);
    }

    #[test]
    fn only_skips_are_no_success() {
        let skipped = SuiteResult::skipped("host", "not root");
        assert_eq!(
            closing_line(std::slice::from_ref(&skipped)),
            "0 passed, 0 failed, 1 skipped"
        );
        assert!(!is_success(std::slice::from_ref(&skipped)));
        assert!(!is_success(&[]));
        let good = read(GOOD).result("unit", true);
        assert!(is_success(&[good.clone(), skipped.clone()]));
        assert_eq!(
            closing_line(&[good, skipped]),
            "4 passed, 0 failed, 2 skipped"
        );
    }

    #[test]
    fn where_a_suite_must_run_a_skipped_one_fails() {
        let mut host = SuiteResult::skipped("host", "not root");
        host.require_run();
        assert_eq!((host.failed, host.skipped), (1, 1));
        assert!(!is_success(&[read(GOOD).result("unit", true), host]));

        let mut one_kernel_short = SuiteResult::skipped("vm", "kernel 6.1: no package");
        one_kernel_short.passed = 20;
        one_kernel_short.require_run();
        assert_eq!(one_kernel_short.failed, 1);

        // A single test that cannot run here is said, and is no failure.
        let mut unit = read(GOOD).result("unit", true);
        unit.require_run();
        assert_eq!((unit.failed, unit.skipped), (0, 1));
    }

    #[test]
    fn the_table_gives_the_reasons() {
        let text = table(&[SuiteResult::skipped("vm", "no QEMU")]);
        assert!(text.contains("vm: skipped: no QEMU"), "{text}");
    }
}
