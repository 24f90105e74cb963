//! `cargo xtask agree`: compares the program in the kernel with the host's parser on millions of frames.

use std::ffi::OsString;

use anyhow::{Result, ensure};

use crate::{
    setup,
    workspace::{cargo, is_root, run},
};

/// Arguments of `cargo xtask agree`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `--frames N`, `--seed S`, `--for SECONDS`; `-- --help` says more
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

/// Builds `tests/src/bin/agree.rs` and runs it to its end.
pub(crate) fn agree(args: &Args) -> Result<()> {
    ensure!(
        is_root(),
        "`cargo xtask agree` loads programs into the kernel and makes namespaces: run it as root"
    );
    setup::ensure()?;
    run(cargo().args(["run", "--release", "--package", "tfo-tests", "--bin", "agree", "--"]).args(&args.args))
}
