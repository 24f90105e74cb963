//! `cargo xtask lint`: formatting, layers, and clippy for the host crates and for the eBPF crate.

mod layers;

use anyhow::Result;

use crate::{
    setup::{self, ebpf_cargo},
    workspace::{cargo, run, step},
};

/// Stops at the first complaint.
pub(crate) fn lint() -> Result<()> {
    step("formatting");
    run(cargo().args(["fmt", "--all", "--check"]))?;

    step("layers");
    layers::check()?;

    setup::ensure()?;
    step("clippy, host");
    run(cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))?;

    step("clippy, eBPF");
    run(ebpf_cargo("clippy")?.args(["--", "-D", "warnings"]))
}
