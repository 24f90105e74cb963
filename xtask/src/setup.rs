//! `cargo xtask setup`: what the eBPF build needs beyond the pinned toolchain.
//!
//! Two things, each a module: the sources of `core` ([`rust_src`]), since the BPF target has no prebuilt one, and the
//! linker ([`bpf_linker`]). Nothing is installed globally but rust-src, which belongs to the toolchain.
//!
//! A tool is ready when its files are there and its stamp says that they were made for this toolchain. The stamp is
//! written last, so that an installation that broke off is done again.

mod bpf_linker;
mod rust_src;

pub(crate) use rust_src::configure as use_rust_src;

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::workspace::{command, output, step, tools};

/// Makes sure that everything is there. Costs one call of rustc when it is.
pub(crate) fn ensure() -> Result<()> {
    let toolchain = Toolchain::detect()?;
    if rust_src::is_ready(&toolchain)? && bpf_linker::is_ready(&toolchain)? {
        return Ok(());
    }

    let _lock = lock()?;
    if !rust_src::is_ready(&toolchain)? {
        rust_src::install(&toolchain)?;
    }
    if !bpf_linker::is_ready(&toolchain)? {
        bpf_linker::install(&toolchain)?;
    }
    step("everything that the eBPF build needs is there");
    Ok(())
}

/// The Rust toolchain that compiles the workspace.
struct Toolchain {
    sysroot: PathBuf,
}

impl Toolchain {
    fn detect() -> Result<Self> {
        let sysroot = output(command("rustc").args(["--print", "sysroot"]))
            .context("cannot ask rustc where its toolchain lies: install Rust with rustup")?;
        Ok(Self { sysroot: sysroot.trim().into() })
    }

    /// The release, such as `1.95.0`.
    fn version(&self) -> Result<String> {
        let version = output(command("rustc").arg("--version"))?;
        let release = version.split_whitespace().nth(1);
        Ok(release.with_context(|| format!("`rustc --version` says {version:?}"))?.to_owned())
    }
}

/// Lets one setup work at a time; a second one waits. Released on drop.
fn lock() -> Result<File> {
    let path = tools().join("lock");
    let lock = || {
        fs::create_dir_all(tools())?;
        let file = File::create(&path)?;
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    };
    lock().with_context(|| format!("cannot lock {}", path.display()))
}

/// Says for which toolchain and version a tool under `target/tools` was made.
struct Stamp {
    path: PathBuf,
    content: String,
}

impl Stamp {
    fn new(tool: &str, content: String) -> Self {
        Self { path: tools().join(format!("{tool}.stamp")), content }
    }

    fn is_current(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|content| content == self.content)
    }

    fn write(&self) -> Result<()> {
        fs::write(&self.path, &self.content).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn clear(&self) -> Result<()> {
        ignore_missing(fs::remove_file(&self.path))
            .with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

/// Makes an empty folder, whatever was there before.
fn empty_dir(path: &Path) -> Result<()> {
    remove_dir(path)?;
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

/// Removes a folder and everything in it, if it is there.
fn remove_dir(path: &Path) -> Result<()> {
    ignore_missing(fs::remove_dir_all(path)).with_context(|| format!("cannot remove {}", path.display()))
}

/// Moves a finished file or folder to its place.
fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
