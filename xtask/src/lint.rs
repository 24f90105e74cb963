//! `cargo xtask lint`: formatting, layers, links, doc comments, the table of RFC 7413, spelling, crates, clippy and rustdoc.

mod docs;
mod layers;
mod links;

use anyhow::Result;

use crate::{
    packages::{self, Program},
    rfc,
    setup::{self, ebpf_cargo},
    workspace::{cargo, command, output, run, step},
};

/// Program that finds misspelt words.
const SPELLING: [Program; 1] = [("codespell", "codespell")];
/// Files that are not written by hand, or hold no words.
const NOT_TEXT: [&str; 4] = [":!Cargo.lock", ":!tests/corpus", ":!*.svg", ":!*.png"];

/// Runs all checks, and stops at the first that fails.
pub(crate) fn lint() -> Result<()> {
    step("formatting");
    run(cargo().args(["fmt", "--all", "--check"]))?;

    step("layers");
    layers::check()?;

    step("links");
    links::check()?;

    step("doc comments");
    docs::check()?;

    step("RFC 7413");
    rfc::check()?;

    step("spelling");
    packages::ensure(&SPELLING)?;
    let files = output(command("git").args(["ls-files", "--", "."]).args(NOT_TEXT))?;
    // The file lists right words that codespell takes for wrong ones.
    run(command("codespell").args(["--ignore-words", "xtask/src/lint/words.txt"]).args(files.lines()))?;

    step("licences, sources and duplicates of crates");
    setup::cargo_deny::check()?;

    setup::ensure()?;
    step("clippy, host");
    packages::ensure(&packages::FOR_ETCD)?;
    run(cargo().args(["clippy", "--all-targets", "--features", "tfo-tests/etcd", "--", "-D", "warnings"]))?;

    step("clippy, host, without etcd");
    run(cargo().args(["clippy", "--package", "tfo-userspace", "--", "-D", "warnings"]))?;

    step("clippy, eBPF");
    run(ebpf_cargo("clippy")?.args(["--", "-D", "warnings"]))?;

    step("rustdoc");
    run(cargo()
        .args(["doc", "--no-deps", "--document-private-items", "--quiet"])
        .args(["--package", "tfo-common", "--package", "tfo-userspace", "--package", "xtask"])
        .args(["--features", "tfo-userspace/etcd"])
        .env("RUSTDOCFLAGS", "-D warnings"))
}
