//! Tiers of tests, from fast and harmless to slow and privileged, and the files of `tests/tests` in each.

use std::{fmt, fs, process::Command};

use anyhow::{Context as _, Result, bail};

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

    /// Returns the prefix of the names of its files in `tests/tests`.
    fn prefix(self) -> &'static str {
        match self {
            Self::Host => "host_",
            Self::Kernel => "kernel_",
            Self::Netns => "netns_",
        }
    }

    /// Returns the cargo commands that run the tier. Arguments that are added to them go to the test programs.
    ///
    /// All commands select the same packages, the default members, and so share one build of every dependency.
    pub(super) fn commands(self, files: &TestFiles) -> Vec<Command> {
        let mut targets: Vec<&str> = files.of(self).flat_map(|name| ["--test", name]).collect();
        if self == Self::Host {
            targets.extend(["--lib", "--bins"]);
        }
        if targets.is_empty() {
            return Vec::new();
        }
        match self {
            Self::Host => vec![cargo_test(&targets, &[]), cargo_test(&["--doc"], &[])],
            Self::Kernel => vec![cargo_test(&targets, &[])],
            // Each test starts its own servers and clients, and some measure time.
            Self::Netns => vec![cargo_test(&targets, &["--test-threads=2"])],
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

fn cargo_test(targets: &[&str], options: &[&str]) -> Command {
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]).args(FEATURES).args(targets).arg("--").args(options);
    command
}

/// Files of `tests/tests`, with the tier that their name begins with.
pub(super) struct TestFiles(Vec<(Tier, String)>);

impl TestFiles {
    /// Lists `tests/tests`. A file in no tier is an error, since it would never run.
    pub(super) fn discover() -> Result<Self> {
        let dir = root().join("tests/tests");
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
            }
        }
        names.sort();
        Self::sort_out(names)
    }

    fn sort_out(names: Vec<String>) -> Result<Self> {
        let in_tier = |name: String| match Tier::ALL.into_iter().find(|tier| name.starts_with(tier.prefix()))
        {
            Some(tier) => Ok((tier, name)),
            None => bail!(
                "tests/tests/{name}.rs is in no tier and would never run: let its name begin with {}",
                Tier::ALL.map(Tier::prefix).join(" or ")
            ),
        };
        Ok(Self(names.into_iter().map(in_tier).collect::<Result<_>>()?))
    }

    fn of(&self, tier: Tier) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(file_tier, _)| *file_tier == tier).map(|(_, name)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::describe;

    fn files(names: &[&str]) -> Result<TestFiles> {
        TestFiles::sort_out(names.iter().map(|&name| name.to_owned()).collect())
    }

    fn commands(tier: Tier, names: &[&str]) -> Vec<String> {
        let files = files(names).expect("every file is in a tier");
        tier.commands(&files).iter().map(describe).collect()
    }

    #[test]
    fn a_file_runs_in_the_tier_that_its_name_begins_with() {
        let names = ["host_table", "kernel_table", "netns_lab", "netns_nginx"];
        assert_eq!(
            commands(Tier::Host, &names),
            [
                "cargo test --no-fail-fast --features tfo-tests/etcd --test host_table --lib --bins --",
                "cargo test --no-fail-fast --features tfo-tests/etcd --doc --"
            ]
        );
        assert_eq!(
            commands(Tier::Kernel, &names),
            ["cargo test --no-fail-fast --features tfo-tests/etcd --test kernel_table --"]
        );
        assert_eq!(
            commands(Tier::Netns, &names),
            ["cargo test --no-fail-fast --features tfo-tests/etcd --test netns_lab --test netns_nginx -- \
                 --test-threads=2"]
        );
    }

    #[test]
    fn a_tier_without_files_runs_nothing_else_instead() {
        assert!(commands(Tier::Kernel, &["host_table"]).is_empty());
        assert!(commands(Tier::Netns, &[]).is_empty());
        assert_eq!(commands(Tier::Host, &[]).len(), 2);
    }

    #[test]
    fn a_file_in_no_tier_is_an_error() {
        let err = files(&["host_table", "misc"]).err().expect("misc is in no tier").to_string();
        assert!(err.starts_with("tests/tests/misc.rs is in no tier"), "{err}");
        assert!(err.ends_with("host_ or kernel_ or netns_"), "{err}");
    }
}
