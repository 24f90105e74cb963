//! `cargo xtask kernels`: runs the real `tfo` on other kernels, in QEMU.
//!
//! [`packages`] fetches the kernels, [`image`] packs some of the in-kernel and namespace tests for them, [`guest`] runs
//! these, and [`budget`] has the number of instructions that the verifier may need.

mod budget;
mod guest;
mod image;
mod packages;

use std::{
    fmt::Write as _,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use self::{
    budget::Budget,
    guest::{Results, Verified},
    packages::Series,
};
use crate::{
    build, packages as programs,
    test::FEATURES,
    workspace::{cargo, output, step},
};

/// Programs that this task runs.
const PROGRAMS: [programs::Program; 2] = [("qemu-system-x86_64", "qemu-system-x86"), ("ip", "iproute2")];

/// Tests that run on every kernel: test programs, and tests in them. They are few, since QEMU emulates the processor, and
/// together they go once through all that `tfo` does.
const TESTS: [(&str, &[&str]); 3] = [
    ("verifier", &["verification_costs"]),
    (
        "kernel",
        &[
            "cases::every_case_is_counted_as_expected",
            "cases::every_case_without_ethernet_is_counted_as_expected",
            "rewrite::old_cookies_become_the_backup_keys",
            "unfollowed::only_what_may_be_a_syn_to_the_service_is_dropped",
        ],
    ),
    (
        "netns",
        &[
            "lifecycle::several_interfaces_have_their_own_state",
            "lifecycle::falls_back_to_generic_where_the_driver_cannot",
            "protect::both_families_are_protected",
            "keys::a_client_that_comes_back_is_served_by_accelerate",
            "lab::the_lab_sees_every_class_and_agrees_with_the_kernel",
        ],
    ),
];

/// Arguments of `cargo xtask kernels`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only on this series of kernels, such as 6.1; may be repeated
    #[arg(long = "kernel", value_name = "SERIES", value_parser = series)]
    kernels: Vec<Series>,
    /// Write what the verifier needs now into the budget (xtask/src/kernels/budget.txt)
    #[arg(long)]
    update: bool,
    /// Run guests with /dev/kvm, if it works here, instead of emulating a processor
    #[arg(long)]
    kvm: bool,
}

fn series(name: &str) -> Result<Series, String> {
    let names = packages::ALL.map(|series| series.name).join(", ");
    let found = packages::ALL.into_iter().find(|series| series.name == name);
    found.ok_or_else(|| format!("the kernels are {names}"))
}

/// Runs the tests on the chosen kernels and prints the results; the last line is the sum.
pub(crate) fn kernels(args: &Args) -> Result<ExitCode> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "`cargo xtask kernels` knows Debian's kernels for x86-64 only, and has to run on x86-64"
    );
    programs::ensure(&PROGRAMS)?;
    let tfo = build::build(&build::Args::default())?;
    let mut programs = build_tests()?;
    programs.push(("tfo".to_owned(), tfo));

    let mut budget = Budget::read()?;
    let chosen = packages::ALL.into_iter();
    let chosen = chosen.filter(|series| args.kernels.is_empty() || args.kernels.contains(series));
    let reports: Vec<_> = chosen.map(|series| Report::of(series, &programs, args.kvm)).collect();
    if args.update {
        for report in &reports {
            for verified in report.verified() {
                budget.set(report.series.name, &verified.form, verified.instructions);
            }
        }
        budget.write()?;
    }
    Ok(summarize(&reports, &budget))
}

/// Builds the tests. Returns the name and the path of each file.
fn build_tests() -> Result<Vec<(String, PathBuf)>> {
    step("building the tests");
    let mut command = cargo();
    // The same packages and features as for `cargo xtask test`, so that both share one build.
    command.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]).args(FEATURES);
    command.args(TESTS.iter().flat_map(|(program, _)| ["--test", program]));
    let messages = output(command.stderr(std::process::Stdio::inherit()))?;
    TESTS.iter().map(|(program, _)| Ok(((*program).to_owned(), executable(&messages, program)?))).collect()
}

/// Returns the path that cargo prints for the program of the target `name`.
fn executable(messages: &str, name: &str) -> Result<PathBuf> {
    let mut messages =
        messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let path = messages.find_map(|message| {
        let path = message["executable"].as_str()?;
        (message["target"]["name"] == name).then(|| path.into())
    });
    path.with_context(|| format!("cargo built no {name}"))
}

/// Result of one kernel.
struct Report {
    series: Series,
    time: Duration,
    results: Result<Results>,
}

impl Report {
    fn of(series: Series, programs: &[(String, PathBuf)], kvm: bool) -> Self {
        step(&format!("Linux {}", series.name));
        let start = Instant::now();
        let results = Self::run(series, programs, kvm);
        Self { series, time: start.elapsed(), results }
    }

    fn run(series: Series, programs: &[(String, PathBuf)], kvm: bool) -> Result<Results> {
        let kernel = series.fetch()?;
        let initramfs = image::make(&kernel, programs, &plan())?;
        guest::run(&kernel, &initramfs, kvm)
    }

    fn verified(&self) -> &[Verified] {
        self.results.as_ref().map_or(&[], |results| &results.verified)
    }

    /// Returns the complaints, a line for each.
    fn complaints(&self, budget: &Budget) -> Vec<String> {
        let results = match &self.results {
            Ok(results) => results,
            Err(err) => return vec![format!("{err:#}")],
        };
        let mut complaints: Vec<_> = results.tally.remarks().map(str::to_owned).collect();
        let expected: usize = TESTS.iter().map(|(_, tests)| tests.len()).sum();
        if results.tally.passed() != expected {
            complaints.push(format!("{} tests should have passed: {}", expected, results.tally));
        }
        let name = self.series.name;
        for Verified { form, instructions, .. } in &results.verified {
            match budget.compare(name, form, *instructions) {
                None => complaints.push(format!("there is no budget for {form}: add it by --update")),
                Some((more, true)) => complaints.push(format!(
                    "{form}: the verifier needs {instructions} instructions, {more:.1} % over the budget; if that is \
                     worth it, make it the budget by --update"
                )),
                Some((_, false)) => {}
            }
        }
        let missing =
            budget.forms(name).filter(|form| results.verified.iter().all(|verified| verified.form != *form));
        complaints.extend(missing.map(|form| format!("{form} was not measured")));
        complaints
    }
}

/// Returns the plan of the guest: one line for each program to run.
fn plan() -> String {
    TESTS.iter().fold(String::new(), |mut plan, (program, tests)| {
        writeln!(plan, "{program} {}", tests.join(" ")).expect("a String takes everything");
        plan
    })
}

/// Prints the table, the complaints and the sum.
fn summarize(reports: &[Report], budget: &Budget) -> ExitCode {
    println!();
    println!(
        "{:<28}{:<22}{:>12}{:>10}{:>7}{:>9}",
        "kernel", "program", "verified", "budget", "stack", "seconds"
    );
    let mut failed = 0;
    for report in reports {
        let release = report.results.as_ref().map_or(report.series.name, |results| &results.release);
        let seconds = report.time.as_secs();
        for Verified { form, instructions, stack } in report.verified() {
            let compared = budget.compare(report.series.name, form, *instructions);
            let more = compared.map_or_else(|| "none".to_owned(), |(more, _)| format!("{more:+.1} %"));
            println!("{release:<28}{form:<22}{instructions:>12}{more:>10}{stack:>7}{seconds:>9}");
        }
        if report.verified().is_empty() {
            println!("{release:<28}{:<22}{:>12}{:>10}{:>7}{seconds:>9}", "-", "-", "-", "-");
        }
    }
    for report in reports {
        let complaints = report.complaints(budget);
        complaints.iter().for_each(|complaint| println!("Linux {}: {complaint}", report.series.name));
        failed += usize::from(!complaints.is_empty());
    }
    println!("{} kernels passed, {failed} failed", reports.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_test_is_found() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"tfo_tests\"},\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"netns\"},\"executable\":\"/t/netns-1\"}\n";
        assert_eq!(executable(messages, "netns").expect("it is there"), PathBuf::from("/t/netns-1"));
        assert!(executable(messages, "tfo_tests").is_err());
    }

    /// Returns the complaints if the verifier needed that many instructions and that many tests passed.
    fn complaints(instructions: u32, passed: usize) -> Vec<String> {
        let mut results = Results::default();
        results.verified.push(Verified { form: "observe ip".to_owned(), instructions, stack: 8 });
        results.tally.read(&format!("test result: ok. {passed} passed; 0 failed"));
        let mut budget = Budget::default();
        budget.set("5.10", "observe ip", 1000);
        Report { series: packages::ALL[0], time: Duration::ZERO, results: Ok(results) }.complaints(&budget)
    }

    #[test]
    fn faults_are_complaints() {
        let all = TESTS.iter().map(|(_, tests)| tests.len()).sum();
        assert!(complaints(1100, all).is_empty());
        let over = complaints(1101, all).join("\n");
        assert!(
            over.starts_with("observe ip: the verifier needs 1101 instructions, 10.1 % over the budget"),
            "{over}"
        );
        let expected = format!("{all} tests should have passed: {} passed, 0 failed, 0 skipped", all - 1);
        assert_eq!(complaints(1000, all - 1), [expected]);

        let report = Report {
            series: packages::ALL[0],
            time: Duration::ZERO,
            results: Err(anyhow::anyhow!("no mirror")),
        };
        assert_eq!(report.complaints(&Budget::default()), ["no mirror"]);
    }

    #[test]
    fn a_missing_measurement_is_a_complaint() {
        let mut budget = Budget::default();
        budget.set("5.10", "observe ip", 1000);
        let report =
            Report { series: packages::ALL[0], time: Duration::ZERO, results: Ok(Results::default()) };
        assert!(report.complaints(&budget).contains(&"observe ip was not measured".to_owned()));
    }

    #[test]
    fn a_series_has_a_name() {
        assert_eq!(series("6.1"), Ok(packages::ALL[1]));
        assert!(series("2.4").is_err());
    }
}
