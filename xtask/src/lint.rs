//! `cargo xtask lint`: formatting, layers, links, spelling, clippy and rustdoc.

mod layers;
mod links;

use anyhow::Result;

use crate::{
    packages::{self, Program},
    setup::{self, ebpf_cargo},
    workspace::{cargo, command, output, run, step},
};

/// The program that knows how words are misspelt.
const SPELLING: [Program; 1] = [("codespell", "codespell")];
/// Files that are not written by hand, or not in words.
const NOT_TEXT: [&str; 4] = [":!Cargo.lock", ":!tests/corpus", ":!*.svg", ":!*.png"];

/// Stops at the first complaint.
pub(crate) fn lint() -> Result<()> {
    step("formatting");
    run(cargo().args(["fmt", "--all", "--check"]))?;

    step("layers");
    layers::check()?;

    step("links");
    links::check()?;

    step("spelling");
    packages::ensure(&SPELLING)?;
    let files = output(command("git").args(["ls-files", "--", "."]).args(NOT_TEXT))?;
    // Words that it takes for others are in the file.
    run(command("codespell").args(["--ignore-words", "xtask/src/lint/words.txt"]).args(files.lines()))?;

    setup::ensure()?;
    step("clippy, host");
    run(cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))?;

    step("clippy, eBPF");
    run(ebpf_cargo("clippy")?.args(["--", "-D", "warnings"]))?;

    step("rustdoc");
    run(cargo()
        .args(["doc", "--no-deps", "--document-private-items", "--quiet"])
        .args(["--package", "tfo-common", "--package", "tfo-userspace", "--package", "xtask"])
        .env("RUSTDOCFLAGS", "-D warnings"))
}
