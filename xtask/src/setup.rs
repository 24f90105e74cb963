//! `cargo xtask setup`: fetches what the eBPF build needs beyond the pinned toolchain.
//!
//! It needs two things, each with a module: the sources of `core` ([`rust_src`]), since the BPF target has no prebuilt
//! one, and the linker ([`bpf_linker`]). Only rust-src is installed globally, since it belongs to the toolchain.
//!
//! A tool is ready when its files are there and its stamp says that they were made for this toolchain. The stamp is
//! written last, so that an interrupted installation is done again.

mod bpf_linker;
pub(crate) mod cargo_deny;
pub(crate) mod kubectl;
mod rust_src;

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::workspace::{
    EBPF_TARGET, cargo, command, empty_dir, ignore_missing, output, remove_dir, rename, run, step,
    target_dir, tools,
};

/// Installs what is missing. Costs one call of rustc if nothing is.
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

/// Returns a cargo command on `tfo-ebpf`, for what is not part of `tfo`; `tfo-userspace/build.rs` builds the rest.
pub(crate) fn ebpf_cargo(subcommand: &str) -> Result<Command> {
    let mut cargo = cargo();
    cargo
        .args([subcommand, "--package", "tfo-ebpf", "--release", "--target", EBPF_TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        // A separate folder, since RUSTC_BOOTSTRAP would invalidate what the other builds have cached.
        .arg(ebpf_target_dir()?)
        // `core` for BPF has to be built from source, which a stable toolchain does only with this.
        .env("RUSTC_BOOTSTRAP", "1");
    rust_src::configure(&mut cargo)?;
    Ok(cargo)
}

/// Returns the folder into which [`ebpf_cargo`] builds.
pub(crate) fn ebpf_target_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("ebpf"))
}

/// Builds the program `name` by `cargo install`, aside, and moves it into target/tools/bin when it is complete. The stamp
/// is written then. `configure` adds to the command.
fn cargo_install(
    name: &str,
    version: &str,
    stamp: &Stamp,
    configure: impl FnOnce(&mut Command),
) -> Result<()> {
    stamp.clear()?;
    let build = tools().join("build");
    empty_dir(&build)?;
    let mut cargo = cargo();
    cargo
        .args(["install", name, "--version", version, "--locked", "--no-default-features", "--no-track"])
        .arg("--root")
        .arg(&build)
        .arg("--target-dir")
        .arg(build.join("target"))
        // Otherwise cargo advises to add the folder to PATH, which is soon removed.
        .env("PATH", with_folder(&build.join("bin"))?)
        // The program runs on this machine, even if the workspace is built for another one.
        .env_remove("CARGO_BUILD_TARGET");
    configure(&mut cargo);
    run(&mut cargo).with_context(|| {
        format!("cannot build {name}; the first time this needs the network, for crates from the registry")
    })?;

    let bin = tools().join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    rename(&build.join("bin").join(name), &bin.join(name))?;
    stamp.write()?;
    remove_dir(&build)
}

/// Returns PATH with one more folder.
fn with_folder(folder: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([folder.to_owned()]);
    env::join_paths(folders).with_context(|| format!("PATH cannot hold {}", folder.display()))
}

/// Rust toolchain that compiles the workspace.
struct Toolchain {
    sysroot: PathBuf,
}

impl Toolchain {
    fn detect() -> Result<Self> {
        let sysroot = output(command("rustc").args(["--print", "sysroot"]))
            .context("cannot ask rustc where its toolchain lies: install Rust with rustup")?;
        Ok(Self { sysroot: sysroot.trim().into() })
    }

    /// Returns the release, such as `1.95.0`.
    fn version(&self) -> Result<String> {
        let version = output(command("rustc").arg("--version"))?;
        let release = version.split_whitespace().nth(1);
        Ok(release.with_context(|| format!("`rustc --version` says {version:?}"))?.to_owned())
    }
}

/// Locks the setup, so that a second one waits. Dropping the file ends the lock.
pub(crate) fn lock() -> Result<File> {
    let path = tools().join("lock");
    let lock = || {
        fs::create_dir_all(tools())?;
        let file = File::create(&path)?;
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    };
    lock().with_context(|| format!("cannot lock {}", path.display()))
}

/// File that says for which toolchain and version a tool under `target/tools` was made.
pub(crate) struct Stamp {
    path: PathBuf,
    content: String,
}

impl Stamp {
    pub(crate) fn new(tool: &str, content: String) -> Self {
        Self { path: tools().join(format!("{tool}.stamp")), content }
    }

    pub(crate) fn is_current(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|content| content == self.content)
    }

    pub(crate) fn write(&self) -> Result<()> {
        fs::write(&self.path, &self.content).with_context(|| format!("cannot write {}", self.path.display()))
    }

    pub(crate) fn clear(&self) -> Result<()> {
        ignore_missing(fs::remove_file(&self.path))
            .with_context(|| format!("cannot remove {}", self.path.display()))
    }
}
