//! `cargo xtask test`: runs every tier of tests in order, even if one fails, and prints one sum at the end.
//!
//! [`tier`] says what belongs to which tier, [`tally`] reads what the tests print.

pub(crate) mod tally;
mod tier;

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

pub(crate) use self::tier::FEATURES;
use self::{
    tally::Tally,
    tier::{Tier, check_files},
};
use crate::{
    packages, setup,
    workspace::{cargo, describe, for_each_line, is_root, run, step},
};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run this tier only; may be repeated
    #[arg(long = "tier", value_name = "N")]
    tiers: Vec<Tier>,
    /// Test more than 100,000 random SYNs instead of 3,000, and 500 random steps instead of 24
    #[arg(long)]
    long: bool,
    /// Run only the tests whose name contains this
    filter: Option<String>,
}

/// Runs the chosen tiers and prints the results. The last line is only the sum.
pub(crate) fn test(args: &Args) -> Result<ExitCode> {
    check_files()?;
    let filter = args.filter.as_deref();
    let tiers: Vec<Tier> =
        Tier::ALL.into_iter().filter(|tier| args.tiers.is_empty() || args.tiers.contains(tier)).collect();

    setup::ensure()?;
    if is_root() && tiers.iter().any(|tier| tier.needs_root()) {
        // Tests that need a missing package will fail, and the others count.
        if let Err(err) = packages::ensure(&packages::FOR_TESTS) {
            step(&format!("{err:#}"));
        }
    }
    if tiers.iter().any(|tier| !tier.needs_root())
        && let Err(err) = setup::kubectl::ensure()
    {
        step(&format!("{err:#}"));
    }
    build()?;

    let mut reports: Vec<Report> = tiers.into_iter().map(|tier| Report::of(tier, args)).collect();
    // A filter may leave a tier without tests, but not all tiers.
    if filter.is_none() || reports.iter().all(|report| report.tally.is_empty()) {
        reports.iter_mut().for_each(Report::expect_tests);
    }
    Ok(summarize(&reports))
}

/// Builds `tfo`, which the tests run, and then all tests at once.
fn build() -> Result<()> {
    step("building");
    packages::ensure(&packages::FOR_ETCD)?;
    // The same packages as for the tests, so that no crate is built twice because of its features.
    run(cargo().arg("build").args(FEATURES))?;
    // If a test does not compile, its tier will report and count it; the other tiers still run.
    if let Err(err) = run(cargo().args(["test", "--no-run"]).args(FEATURES)) {
        step(&format!("{err:#}"));
    }
    Ok(())
}

/// Result of one tier.
struct Report {
    tier: Tier,
    time: Duration,
    tally: Tally,
}

impl Report {
    fn of(tier: Tier, args: &Args) -> Self {
        let can_run = is_root() || !tier.needs_root();
        step(&format!("{tier}{}", if can_run { "" } else { " needs root: skipped" }));

        let start = Instant::now();
        let mut tally = Tally::default();
        for mut command in tier.commands() {
            command.args(&args.filter);
            if args.long {
                // Read by `is_long` of tests/src/random.rs.
                command.env("TFO_TEST_LONG", "1");
            }
            let outcome =
                if can_run { execute(&mut command, &mut tally) } else { skip(&mut command, &mut tally) };
            if let Err(err) = outcome {
                tally.add_broken(format!("{err:#}"));
            }
        }
        Self { tier, time: start.elapsed(), tally }
    }

    /// Counts a failure if no test was run: a tier without tests must not look like one that passed.
    fn expect_tests(&mut self) {
        if self.tally.is_empty() {
            self.tally.add_broken("no test was run".to_owned());
        }
    }
}

/// Runs one `cargo test` and shows its output as it comes.
fn execute(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let before = tally.failed();
    let status = for_each_line(command, |line| {
        println!("{line}");
        tally.read(line);
    })?;
    ensure!(
        tally.take_unfinished() == 0,
        "`{}`: a test program ended without a result ({status})",
        describe(command)
    );
    // The status is a failure after failed tests, too, but those are counted already.
    ensure!(status.success() || tally.failed() > before, "`{}` failed ({status})", describe(command));
    Ok(())
}

/// Counts the tests of one `cargo test` as skipped, by name.
fn skip(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let status = for_each_line(command.arg("--list"), |line| tally.skip_listed(line, "needs root"))?;
    ensure!(status.success(), "`{}` failed ({status})", describe(command));
    Ok(())
}

/// Prints the remarks on tests that did not pass, then a line for each tier, then the sum.
fn summarize(reports: &[Report]) -> ExitCode {
    println!();
    for Report { tier, tally, .. } in reports {
        tally.remarks().for_each(|remark| println!("{tier}: {remark}"));
    }
    for Report { tier, time, tally } in reports {
        println!("{tier}: {tally} ({:.1} s)", time.as_secs_f64());
    }
    let sum: Tally = reports.iter().map(|report| &report.tally).sum();
    println!("{sum}");
    if sum.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
