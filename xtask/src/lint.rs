//! `cargo xtask lint`: formatting and clippy, for the host crates and for the eBPF crate.

use anyhow::Result;

use crate::{
    setup,
    workspace::{EBPF_TARGET, cargo, run, step, target_dir},
};

/// Stops at the first complaint.
pub(crate) fn lint() -> Result<()> {
    step("formatting");
    run(cargo().args(["fmt", "--all", "--check"]))?;

    setup::ensure()?;
    step("clippy, host");
    run(cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))?;

    step("clippy, eBPF");
    let mut clippy = cargo();
    clippy
        .args(["clippy", "--package", "tfo-ebpf", "--release", "--target", EBPF_TARGET, "-Z", "build-std=core"])
        // Of its own, because RUSTC_BOOTSTRAP would invalidate what the others have cached.
        .arg("--target-dir")
        .arg(target_dir()?.join("ebpf-lint"))
        .args(["--", "-D", "warnings"])
        // `core` for BPF has to be built from source, which a stable toolchain does only with this.
        .env("RUSTC_BOOTSTRAP", "1");
    run(setup::use_rust_src(&mut clippy)?)
}
