//! Tiers of tests, from fast and harmless to slow and privileged. Each has one program, whose files are in a folder of
//! `tests/tests`: so it is linked once, and a test that waits does not keep the next file waiting.

use std::{fmt, fs, io, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::workspace::{cargo, root};

/// Features with which everything is tested. That of the tests turns on the one of `tfo`.
pub(crate) const FEATURES: [&str; 2] = ["--features", "tfo-tests/etcd"];

/// Tier of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Tier {
    /// Host: unit, table, property and doc tests
    #[value(name = "1")]
    Host,
    /// In-kernel: the XDP program under BPF_PROG_TEST_RUN (needs root)
    #[value(name = "2")]
    Kernel,
    /// Network namespaces: real clients and servers (needs root)
    #[value(name = "3")]
    Netns,
}

impl Tier {
    /// Tiers, in the order in which they run.
    pub(super) const ALL: [Self; 3] = [Self::Host, Self::Kernel, Self::Netns];

    pub(super) fn needs_root(self) -> bool {
        match self {
            Self::Host => false,
            Self::Kernel | Self::Netns => true,
        }
    }

    /// Names of its test programs, and of the folders of their files in `tests/tests`.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Host => &["host"],
            // The verifier's costs are measured under a limit that holds for the whole process.
            Self::Kernel => &["kernel", "verifier"],
            Self::Netns => &["netns"],
        }
    }

    /// Returns the cargo commands that run the tier. Arguments that are added to them go to the test programs.
    ///
    /// All commands select the same packages, the default members, and so share one build of every dependency.
    pub(super) fn commands(self) -> Vec<Command> {
        let mut targets: Vec<_> = self.programs().iter().flat_map(|program| ["--test", program]).collect();
        match self {
            Self::Host => {
                targets.extend(["--lib", "--bins"]);
                vec![cargo_test(&targets), cargo_test(&["--doc"])]
            }
            Self::Kernel | Self::Netns => vec![cargo_test(&targets)],
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "tier 1 host",
            Self::Kernel => "tier 2 in-kernel",
            Self::Netns => "tier 3 namespaces",
        })
    }
}

fn cargo_test(targets: &[&str]) -> Command {
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]).args(FEATURES).args(targets).arg("--");
    command
}

/// Checks that each file of `tests/tests` belongs to the program of a tier. Any other would never run.
pub(super) fn check_files() -> Result<()> {
    let dir = root().join("tests/tests");
    let programs = Tier::ALL.map(Tier::programs).concat();
    for name in names(&dir)? {
        ensure!(
            programs.contains(&name.as_str()),
            "tests/tests/{name} is in no tier: move it into a folder of tests/tests: {}",
            programs.join(", ")
        );
        let main = dir.join(&name).join("main.rs");
        let text = fs::read_to_string(&main).with_context(|| format!("cannot read {}", main.display()))?;
        for file in names(&dir.join(&name))? {
            ensure!(
                has_module(&text, &file),
                "tests/tests/{name}/{file} would never run: make it a module of main.rs"
            );
        }
    }
    Ok(())
}

/// Whether the program `main` has the module of `file`, or is that file.
fn has_module(main: &str, file: &str) -> bool {
    let module = file.strip_suffix(".rs").unwrap_or(file);
    module == "main" || main.lines().any(|line| line == format!("mod {module};"))
}

/// Names of what is in `dir`, sorted.
fn names(dir: &Path) -> Result<Vec<String>> {
    let list = || {
        let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<Vec<_>>>()
    };
    let mut names = list().with_context(|| format!("cannot list {}", dir.display()))?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::describe;

    fn commands(tier: Tier) -> Vec<String> {
        tier.commands().iter().map(describe).collect()
    }

    #[test]
    fn a_tier_runs_its_program() {
        assert_eq!(
            commands(Tier::Host),
            [
                "cargo test --no-fail-fast --features tfo-tests/etcd --test host --lib --bins --",
                "cargo test --no-fail-fast --features tfo-tests/etcd --doc --"
            ]
        );
        assert_eq!(
            commands(Tier::Netns),
            ["cargo test --no-fail-fast --features tfo-tests/etcd --test netns --"]
        );
    }

    #[test]
    fn every_file_of_the_tests_is_run() {
        check_files().expect("each file has a tier");
        let main = "mod cases;\n#[cfg(feature = \"etcd\")]\nmod fleet;\n// mod lab;\n";
        assert!(["main.rs", "cases.rs", "fleet.rs", "fleet"].into_iter().all(|file| has_module(main, file)));
        assert!(!has_module(main, "lab.rs") && !has_module(main, "case.rs"));
    }
}
