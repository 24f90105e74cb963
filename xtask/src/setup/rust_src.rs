//! Sources of `core`, which `-Z build-std` compiles for the BPF target.
//!
//! They belong in the toolchain, where rustup puts them. If rustup can't (not installed, or its server out of reach),
//! Debian's package of exactly the same version is unpacked under `target/tools`.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{Stamp, Toolchain};
use crate::{
    apt::Apt,
    workspace::{command, empty_dir, remove_dir, rename, run, step, tools},
};

/// Suite of Debian with Rust releases that are newer than the one of its stable release.
const SUITE: &str = "trixie-backports";

/// Gives a cargo that builds `core` the path of the sources, unless they are in the toolchain, where cargo looks.
pub(super) fn configure(cargo: &mut Command) -> Result<()> {
    if !in_toolchain(&Toolchain::detect()?) {
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", unpacked().join("library"));
    }
    Ok(())
}

pub(super) fn is_ready(toolchain: &Toolchain) -> Result<bool> {
    Ok(in_toolchain(toolchain) || unpacked().is_dir() && stamp(&toolchain.version()?).is_current())
}

/// Installs the sources by rustup or, if that fails, from Debian.
pub(super) fn install(toolchain: &Toolchain) -> Result<()> {
    let version = toolchain.version()?;
    stamp(&version).clear()?;
    remove_dir(&unpacked())?;

    step(&format!("adding rust-src to the Rust {version} toolchain"));
    let Err(rustup) = add_component(toolchain) else {
        return Ok(());
    };
    step(&format!("{rustup:#}"));

    step(&format!("unpacking Debian's rust-src {version} under target/tools instead"));
    unpack_package(&version).with_context(|| {
        format!(
            "the eBPF build needs rust-src {version}, and neither way to get it worked; \
             `rustup component add rust-src`: {rustup:#}; Debian's package rust-src from {SUITE}"
        )
    })
}

fn add_component(toolchain: &Toolchain) -> Result<()> {
    run(command("rustup").args(["component", "add", "rust-src"]))?;
    ensure!(
        in_toolchain(toolchain),
        "rustup added rust-src, but not to the toolchain in {}",
        toolchain.sysroot.display()
    );
    Ok(())
}

fn in_toolchain(toolchain: &Toolchain) -> bool {
    toolchain.sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
}

/// Returns the folder of the sources from Debian's package; `tfo-userspace/build.rs` looks here, too.
fn unpacked() -> PathBuf {
    tools().join("rust-src")
}

fn stamp(version: &str) -> Stamp {
    Stamp::new("rust-src", format!("rust-src {version}\n"))
}

fn unpack_package(version: &str) -> Result<()> {
    let dir = tools().join("apt");
    let files = dir.join("files");
    Apt::new(dir.join("lists"), SUITE)?.unpack(&format!("rust-src={version}+*"), &files)?;
    let source = files.join(format!("usr/src/rustc-{version}"));
    ensure!(source.join("library/core").is_dir(), "Debian's rust-src {version} holds no sources of core");

    // Nothing but the library is needed.
    let aside = dir.join("rust-src");
    empty_dir(&aside)?;
    rename(&source.join("library"), &aside.join("library"))?;
    rename(&aside, &unpacked())?;
    stamp(version).write()?;
    remove_dir(&dir)
}
