//! `cargo xtask bench`: measures what the XDP program costs, with the binary `bench` of the package tfo-tests.

use std::{convert::Infallible, ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Result, anyhow, ensure};

use crate::{
    setup::{self, ebpf_cargo, ebpf_target_dir},
    workspace::{EBPF_TARGET, cargo, command, is_root, run, target_dir},
};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of the benchmark; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

/// Builds the benchmark and replaces this process with it.
pub(crate) fn bench(args: &Args) -> Result<Infallible> {
    setup::ensure()?;
    run(ebpf_cargo("build")?.args(["--bin", "yardsticks"]))?;
    let packages = ["--package", "tfo-tests", "--package", "tfo-userspace"];
    run(cargo().args(["build", "--release"]).args(packages).args(["--bin", "bench", "--bin", "tfo"]))?;
    ensure!(is_root(), "the benchmark loads programs into the kernel: run it as root");
    let yardsticks = ebpf_target_dir()?.join(EBPF_TARGET).join("release/yardsticks");
    let mut bench = command(target_dir()?.join("release/bench"));
    let err = bench.arg("--yardsticks").arg(yardsticks).args(&args.args).exec();
    Err(anyhow!(err).context("cannot start the benchmark"))
}
