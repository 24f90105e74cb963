//! Counts of test results, from the output of libtest.

use std::{fmt, iter::Sum, mem};

/// Numbers of tests that passed, failed and were skipped, with remarks on those that did not pass.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
    remarks: Vec<String>,
    /// Number of test programs that announced their tests and have given no result yet.
    open: usize,
}

impl Tally {
    /// Counts one line of a test program's output.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
            self.skipped += count(result, "ignored");
            self.open = self.open.saturating_sub(1);
        } else if announces_tests(line) {
            self.open += 1;
        } else if let Some((name, outcome)) =
            line.strip_prefix("test ").and_then(|test| test.split_once(" ... "))
        {
            match outcome.split_once(", ") {
                None if outcome == "FAILED" => self.remarks.push(format!("failed: {name}")),
                None if outcome == "ignored" => self.remarks.push(format!("skipped: {name}")),
                Some(("ignored", reason)) => self.remarks.push(format!("skipped: {name} ({reason})")),
                _ => {}
            }
        }
    }

    /// Counts one line of a test program's list as a skipped test.
    pub(crate) fn skip_listed(&mut self, line: &str, reason: &str) {
        if let Some(name) = line.strip_suffix(": test") {
            self.skipped += 1;
            self.remarks.push(format!("skipped: {name} ({reason})"));
        }
    }

    /// Counts a failure that is not a test's, so that the sum does not look like success.
    pub(crate) fn add_broken(&mut self, what: String) {
        self.failed += 1;
        self.remarks.push(format!("broken: {what}"));
    }

    pub(crate) fn passed(&self) -> usize {
        self.passed
    }

    pub(crate) fn failed(&self) -> usize {
        self.failed
    }

    pub(crate) fn skipped(&self) -> usize {
        self.skipped
    }

    /// Whether nothing was counted at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed + self.skipped == 0
    }

    /// Returns the number of test programs that gave no result, and resets it. After the programs have ended, these
    /// crashed or were killed.
    pub(crate) fn take_unfinished(&mut self) -> usize {
        mem::take(&mut self.open)
    }

    /// Returns one line for each test that failed or was skipped, and for every other failure.
    pub(crate) fn remarks(&self) -> impl Iterator<Item = &str> {
        self.remarks.iter().map(String::as_str)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl<'a> Sum<&'a Self> for Tally {
    fn sum<I: Iterator<Item = &'a Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |sum, tally| Self {
            passed: sum.passed + tally.passed,
            failed: sum.failed + tally.failed,
            skipped: sum.skipped + tally.skipped,
            ..sum
        })
    }
}

/// Returns the number before a word in a result.
/// A result is `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s`.
fn count(result: &str, word: &str) -> usize {
    let mut parts = result.split(['.', ';']).filter_map(|part| part.trim().split_once(' '));
    parts.find(|(_, what)| *what == word).and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
}

/// Whether this is the line `running 3 tests`.
fn announces_tests(line: &str) -> bool {
    line.strip_prefix("running ")
        .and_then(|rest| rest.strip_suffix(" tests").or(rest.strip_suffix(" test")))
        .is_some_and(|number| number.parse::<usize>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        tally
    }

    fn remarks(tally: &Tally) -> Vec<&str> {
        tally.remarks().collect()
    }

    const MIXED: &str = "
running 5 tests
test parse::empty ... ok
test parse::needs_a_nic ... ignored
test parse::slow ... ignored, takes an hour
test parse::wrong ... FAILED
test parse::panics - should panic ... ok

failures:

---- parse::wrong stdout ----
assertion failed: running 9 tests ... FAILED

failures:
    parse::wrong

test result: FAILED. 2 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.02s
";

    #[test]
    fn results_are_counted_and_named() {
        let mut tally = tally(MIXED);
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 2 skipped");
        assert_eq!(tally.take_unfinished(), 0);
        assert_eq!(
            remarks(&tally),
            ["skipped: parse::needs_a_nic", "skipped: parse::slow (takes an hour)", "failed: parse::wrong"]
        );
    }

    #[test]
    fn several_test_programs_add_up() {
        let both = [
            "running 1 test",
            "test a ... ok",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
            "running 0 tests",
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ];
        let tally = tally(&both.join("\n"));
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 0 skipped");
        assert!(remarks(&tally).is_empty());
    }

    #[test]
    fn a_doc_test_that_is_ignored_is_skipped() {
        let tally = tally("test src/lib.rs - parse (line 7) ... ignored");
        assert_eq!(remarks(&tally), ["skipped: src/lib.rs - parse (line 7)"]);
    }

    #[test]
    fn a_crash_is_noticed_even_if_the_next_program_is_fine() {
        let crash = "running 2 tests\ntest a ... ok\n";
        assert_eq!(tally(crash).take_unfinished(), 1);
        assert_eq!(tally(&format!("{crash}{MIXED}")).take_unfinished(), 1);
    }

    #[test]
    fn listed_tests_are_skipped() {
        let mut tally = Tally::default();
        for line in ["netns::cookie: test", "netns::speed: benchmark", "", "1 test, 1 benchmark"] {
            tally.skip_listed(line, "needs root");
        }
        assert_eq!(tally.to_string(), "0 passed, 0 failed, 1 skipped");
        assert_eq!(remarks(&tally), ["skipped: netns::cookie (needs root)"]);
    }

    #[test]
    fn what_is_broken_counts_as_failed() {
        let mut tally = Tally::default();
        assert!(tally.is_empty());
        tally.add_broken("no test was run".to_owned());
        let sum: Tally = [&tally, &self::tally(MIXED)].into_iter().sum();
        assert_eq!(sum.to_string(), "2 passed, 2 failed, 2 skipped");
        assert_eq!(remarks(&tally), ["broken: no test was run"]);
    }
}
