//! Budget of the verifier: its usual number of instructions for each kernel and each form of the program, in
//! `budget.txt`.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::workspace::root;

/// Tolerated excess over the budget, in percent.
const TOLERANCE: u32 = 10;

/// Form of the program, as the test program `verifier` prints it, such as `observe ethernet`.
pub(super) type Form = String;

/// Measured instructions, by series of kernels and form.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Budget(BTreeMap<(String, Form), u32>);

fn path() -> PathBuf {
    root().join("xtask/src/kernels/budget.txt")
}

impl Budget {
    /// Reads the committed budget.
    pub(super) fn read() -> Result<Self> {
        let path = path();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}", path.display()))
    }

    pub(super) fn write(&self) -> Result<()> {
        let path = path();
        fs::write(&path, self.text()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Parses lines of the form `SERIES MODE LINK INSTRUCTIONS`.
    fn parse(text: &str) -> Result<Self> {
        let entry = |line: &str| {
            let (rest, instructions) = line.rsplit_once(' ')?;
            let (series, form) = rest.split_once(' ')?;
            Some(((series.to_owned(), form.to_owned()), instructions.parse().ok()?))
        };
        let lines =
            text.lines().map(|line| entry(line).with_context(|| format!("no entry of a budget: {line}")));
        Ok(Self(lines.collect::<Result<_>>()?))
    }

    fn text(&self) -> String {
        self.0
            .iter()
            .map(|((series, form), instructions)| format!("{series} {form} {instructions}\n"))
            .collect()
    }

    pub(super) fn set(&mut self, series: &str, form: &str, instructions: u32) {
        self.0.insert((series.to_owned(), form.to_owned()), instructions);
    }

    /// Returns the forms that have been measured on a series.
    pub(super) fn forms(&self, series: &str) -> impl Iterator<Item = &str> {
        self.0.keys().filter(move |(measured, _)| measured == series).map(|(_, form)| form.as_str())
    }

    /// Returns the excess of `instructions` over the budget in percent, and whether it is too much; `None` without a
    /// budget.
    pub(super) fn compare(&self, series: &str, form: &str, instructions: u32) -> Option<(f64, bool)> {
        let usual = *self.0.get(&(series.to_owned(), form.to_owned()))?;
        let more = (f64::from(instructions) / f64::from(usual) - 1.0) * 100.0;
        Some((more, u64::from(instructions) * 100 > u64::from(usual) * u64::from(100 + TOLERANCE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_more_is_too_much() {
        let budget = Budget::parse("5.10 observe ethernet 1000\n5.10 observe ip 10\n").expect("two lines");
        let is_over =
            |instructions| budget.compare("5.10", "observe ethernet", instructions).map(|(_, over)| over);
        assert_eq!(is_over(500), Some(false));
        assert_eq!(is_over(1100), Some(false));
        assert_eq!(is_over(1101), Some(true));
        assert_eq!(budget.compare("6.1", "observe ethernet", 1), None);
        assert_eq!(budget.forms("5.10").collect::<Vec<_>>(), ["observe ethernet", "observe ip"]);
    }

    #[test]
    fn a_written_budget_can_be_read() {
        let mut budget = Budget::default();
        budget.set("6.1", "accelerate ip", 7);
        budget.set("6.1", "accelerate ip", 8);
        assert_eq!(budget.text(), "6.1 accelerate ip 8\n");
        assert_eq!(Budget::parse(&budget.text()).expect("one line"), budget);
        assert!(Budget::parse("6.1 accelerate ip many\n").is_err());
    }

    #[test]
    fn the_committed_budget_can_be_read() {
        assert!(Budget::read().is_ok());
    }
}
