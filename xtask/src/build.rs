//! `cargo xtask build`: builds the `tfo` binary, with the XDP program inside (see `tfo-userspace/build.rs`).

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    setup,
    workspace::{cargo, run, target_dir},
};

/// Options of `cargo xtask build`.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Build with optimizations (the default)
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Build without optimizations; the XDP program always has them
    #[arg(long)]
    debug: bool,
}

impl Args {
    /// Returns the options of a build without optimizations.
    pub(crate) fn debug() -> Self {
        Self { debug: true, ..Self::default() }
    }
}

/// Builds `tfo` and returns its path.
pub(crate) fn build(args: &Args) -> Result<PathBuf> {
    setup::ensure()?;
    let (profile, dir) = if args.debug { ("dev", "debug") } else { ("release", "release") };
    run(cargo().args(["build", "--package", "tfo-userspace", "--profile", profile]))?;
    Ok(target_dir()?.join(dir).join("tfo"))
}
