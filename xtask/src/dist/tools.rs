//! The cargo commands that pack, in fixed versions below `target/tools`.

use std::{env, ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    setup::{Stamp, lock},
    workspace::{cargo, remove_dir, run, step, tools},
};

/// Name and version of each.
const TOOLS: [&str; 4] =
    ["cargo-auditable@0.7.7", "cargo-cyclonedx@0.5.9", "cargo-deb@3.8.0", "cargo-generate-rpm@0.21.1"];

/// Folder in which they are installed.
fn folder() -> PathBuf {
    tools().join("dist")
}

/// Installs them, unless these versions are there.
pub(super) fn ensure() -> Result<()> {
    let stamp = Stamp::new("dist", format!("{}\n", TOOLS.join("\n")));
    if stamp.is_current() {
        return Ok(());
    }
    let _lock = lock()?;
    step(&format!("building {} into target/tools (once, some minutes)", TOOLS.join(", ")));
    stamp.clear()?;
    remove_dir(&folder())?;
    let build = tools().join("build-dist");
    run(cargo()
        .args(["install", "--locked", "--no-track"])
        .args(TOOLS)
        // They pack a few megabytes: to optimize them would take longer than they ever run. One folder for all lets them
        // share crates.
        .args(["--profile", "dev", "--target-dir"])
        .arg(&build)
        .arg("--root")
        .arg(folder())
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_INCREMENTAL", "0")
        .env("PATH", path()?)
        .env_remove("CARGO_BUILD_TARGET"))
    .context("cannot build the tools; the first time this needs the network, for crates from the registry")?;
    remove_dir(&build)?;
    stamp.write()
}

/// Returns PATH with these tools before the others.
fn path() -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [folder().join("bin")].into_iter().chain(env::split_paths(&path));
    env::join_paths(folders).context("PATH cannot hold the folder of the tools")
}

/// Returns a command of cargo that finds these tools.
pub(super) fn tool(name: &str) -> Result<Command> {
    let mut cargo = cargo();
    cargo.arg(name).env("PATH", path()?);
    Ok(cargo)
}
