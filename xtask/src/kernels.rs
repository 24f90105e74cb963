//! `cargo xtask kernels`: runs the real `tfo` on other kernels, in QEMU.
//!
//! [`packages`] fetches the kernels and [`modules`] what they load, [`image`] packs some of the in-kernel and namespace tests
//! for them, [`guest`] runs
//! these, and [`budget`] has the number of instructions that the verifier may need.

mod architecture;
mod budget;
mod guest;
mod image;
mod modules;
mod packages;

use std::{
    fmt::Write as _,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use self::{
    architecture::Architecture,
    budget::Budget,
    guest::{Guest, Results, Verified},
    packages::{Build, Flavour, Series},
};
use crate::{
    build, packages as programs,
    test::FEATURES,
    workspace::{cargo, output, step},
};

/// Programs that this task runs.
const PROGRAMS: [programs::Program; 2] = [("qemu-system-x86_64", "qemu-system-x86"), ("ip", "iproute2")];

/// Tests of a guest: test programs, and tests in them.
type Tests = [(&'static str, &'static [&'static str])];

/// Tests that run on every cloud kernel. They are few, since QEMU emulates the processor, and together they go once through
/// all that `tfo` does.
const TESTS: &Tests = &[
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

/// Tests that run on other flavours. Frames are parsed and judged there as in the cloud kernel, which has the same code. What may
/// differ is the verifier, whose limits depend on the configuration, and under PREEMPT_RT all that waits for a lock: programs on
/// real traffic, the program that follows connections, and its storage of sockets.
const TESTS_OF_FLAVOURS: &Tests = &[
    ("verifier", &["verification_costs"]),
    (
        "netns",
        &[
            "lifecycle::several_interfaces_have_their_own_state",
            "protect::both_families_are_protected",
            "keys::a_client_that_comes_back_is_served_by_accelerate",
            "lab::the_lab_sees_every_class_and_agrees_with_the_kernel",
        ],
    ),
];

/// Returns the tests that run on a kernel.
fn tests_on(build: Build) -> &'static Tests {
    match build.flavour {
        Flavour::Cloud => TESTS,
        Flavour::Generic | Flavour::Rt => TESTS_OF_FLAVOURS,
    }
}

/// Arguments of `cargo xtask kernels`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only on this series of kernels, such as 6.1; may be repeated
    #[arg(long = "kernel", value_name = "SERIES", value_parser = series)]
    kernels: Vec<Series>,
    /// Run only on kernels of this flavour; may be repeated
    #[arg(long = "flavour", value_name = "FLAVOUR")]
    flavours: Vec<Flavour>,
    /// Write what the verifier needs now into the budget (xtask/src/kernels/budget.txt)
    #[arg(long)]
    update: bool,
    /// Run guests with /dev/kvm, if it works here, instead of emulating a processor
    #[arg(long)]
    kvm: bool,
}

impl Args {
    /// Returns the kernels to run on.
    fn builds(&self) -> Vec<Build> {
        let series =
            packages::ALL.iter().filter(|series| self.kernels.is_empty() || self.kernels.contains(series));
        let flavours = |&series| {
            let all = Flavour::ALL.into_iter();
            all.filter(|flavour| self.flavours.is_empty() || self.flavours.contains(flavour))
                .map(move |flavour| Build { series, flavour, architecture: Architecture::X86_64 })
        };
        series.flat_map(flavours).collect()
    }
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
    let mut programs = build_tests(TESTS)?;
    programs.push(("tfo".to_owned(), tfo));

    let mut budget = Budget::read()?;
    let reports: Vec<_> =
        args.builds().into_iter().map(|build| Report::of(build, &programs, args.kvm)).collect();
    if args.update {
        // One budget holds for all flavours of a series.
        for report in reports.iter().filter(|report| report.build.flavour == Flavour::Cloud) {
            for verified in report.verified() {
                budget.set(report.build.series.name, &verified.form, verified.instructions);
            }
        }
        budget.write()?;
    }
    Ok(summarize(&reports, &budget))
}

/// Builds the tests of these test programs. Returns the name and the path of each file.
fn build_tests(tests: &Tests) -> Result<Vec<(String, PathBuf)>> {
    step("building the tests");
    let mut command = cargo();
    // The same packages and features as for `cargo xtask test`, so that both share one build.
    command.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]).args(FEATURES);
    command.args(tests.iter().flat_map(|(program, _)| ["--test", program]));
    let messages = output(command.stderr(std::process::Stdio::inherit()))?;
    tests.iter().map(|(program, _)| Ok(((*program).to_owned(), executable(&messages, program)?))).collect()
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
    build: Build,
    time: Duration,
    results: Result<Results>,
}

impl Report {
    fn of(build: Build, programs: &[(String, PathBuf)], kvm: bool) -> Self {
        step(&build.to_string());
        let start = Instant::now();
        let results = Self::run(build, programs, kvm);
        Self { build, time: start.elapsed(), results }
    }

    fn run(build: Build, programs: &[(String, PathBuf)], kvm: bool) -> Result<Results> {
        let kernel = build.fetch(&packages::FOR_TESTS)?;
        let initramfs = image::make(&kernel, programs, &plan(tests_on(build)))?;
        Guest { kernel: &kernel, initramfs: &initramfs, kvm }.run()
    }

    fn verified(&self) -> &[Verified] {
        self.results.as_ref().map_or(&[], |results| &results.verified)
    }

    fn release(&self) -> &str {
        self.results.as_ref().map_or(self.build.series.name, |results| &results.release)
    }

    /// Returns the line of the table.
    fn line(&self) -> String {
        let numbers = match &self.results {
            Ok(Results { tally, .. }) => {
                [tally.passed(), tally.failed(), tally.skipped()].map(|n| n.to_string())
            }
            Err(_) => ["-"; 3].map(str::to_owned),
        };
        let [passed, failed, skipped] = numbers;
        let Build { flavour, architecture, .. } = self.build;
        format!(
            "{:<28}{:<10}{:<14}{passed:>7}{failed:>8}{skipped:>9}{:>9}",
            self.release(),
            flavour.name(),
            architecture.name(),
            self.time.as_secs()
        )
    }

    /// Returns the complaints, a line for each.
    fn complaints(&self, budget: &Budget) -> Vec<String> {
        let results = match &self.results {
            Ok(results) => results,
            Err(err) => return vec![format!("{err:#}")],
        };
        let mut complaints: Vec<_> = results.tally.remarks().map(str::to_owned).collect();
        let expected: usize = tests_on(self.build).iter().map(|(_, tests)| tests.len()).sum();
        if results.tally.passed() != expected {
            complaints.push(format!("{} tests should have passed: {}", expected, results.tally));
        }
        let name = self.build.series.name;
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
fn plan(tests: &Tests) -> String {
    tests.iter().fold(String::new(), |mut plan, (program, tests)| {
        writeln!(plan, "{program} {}", tests.join(" ")).expect("a String takes everything");
        plan
    })
}

/// Prints the tables, the complaints and the sum.
fn summarize(reports: &[Report], budget: &Budget) -> ExitCode {
    println!("\n{:<28}{:<22}{:>12}{:>10}{:>7}", "kernel", "program", "verified", "budget", "stack");
    for report in reports {
        for Verified { form, instructions, stack } in report.verified() {
            let compared = budget.compare(report.build.series.name, form, *instructions);
            let more = compared.map_or_else(|| "none".to_owned(), |(more, _)| format!("{more:+.1} %"));
            println!("{:<28}{form:<22}{instructions:>12}{more:>10}{stack:>7}", report.release());
        }
    }
    println!(
        "\n{:<28}{:<10}{:<14}{:>7}{:>8}{:>9}{:>9}",
        "kernel", "flavour", "architecture", "passed", "failed", "skipped", "seconds"
    );
    for report in reports {
        println!("{}", report.line());
    }
    let mut failed = 0;
    for report in reports {
        let complaints = report.complaints(budget);
        complaints.iter().for_each(|complaint| println!("{}: {complaint}", report.build));
        failed += usize::from(!complaints.is_empty());
    }
    println!("{} kernels passed, {failed} failed", reports.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a build of the first series.
    fn build(flavour: Flavour) -> Build {
        Build { series: packages::ALL[0], flavour, architecture: Architecture::X86_64 }
    }

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
        Report { build: build(Flavour::Cloud), time: Duration::ZERO, results: Ok(results) }
            .complaints(&budget)
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
            build: build(Flavour::Cloud),
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
            Report { build: build(Flavour::Rt), time: Duration::ZERO, results: Ok(Results::default()) };
        assert!(report.complaints(&budget).contains(&"observe ip was not measured".to_owned()));
    }

    #[test]
    fn kernels_are_chosen_by_series_and_flavour() {
        let chosen = |kernels: &[Series], flavours: &[Flavour]| {
            Args { kernels: kernels.to_vec(), flavours: flavours.to_vec(), update: false, kvm: false }
                .builds()
        };
        assert_eq!(chosen(&[], &[]).len(), 15);
        assert_eq!(chosen(&packages::ALL[..1], &[Flavour::Rt]), [build(Flavour::Rt)]);
        assert_eq!(chosen(&[], &[Flavour::Generic]).len(), 5);
    }

    #[test]
    fn a_line_names_kernel_and_results() {
        let mut results = Results::default();
        results.release.push_str("5.10.0-32-rt-amd64");
        results.tally.read("test result: FAILED. 3 passed; 1 failed; 2 ignored");
        let report =
            Report { build: build(Flavour::Rt), time: Duration::from_secs(71), results: Ok(results) };
        let words: Vec<_> = report.line().split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["5.10.0-32-rt-amd64", "rt", "amd64", "3", "1", "2", "71"]);
    }

    #[test]
    fn a_series_has_a_name() {
        assert_eq!(series("6.1"), Ok(packages::ALL[1]));
        assert!(series("2.4").is_err());
    }
}
