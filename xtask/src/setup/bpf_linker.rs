//! bpf-linker, built against the LLVM of the toolchain, so that bitcode and linker always agree.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::{Stamp, Toolchain, cargo_install};
use crate::workspace::{empty_dir, is_installed, step, tools};

const VERSION: &str = "0.13.0";

/// Returns the file that `.cargo/config.toml` names as the linker.
fn linker() -> PathBuf {
    tools().join("bin/bpf-linker")
}

pub(super) fn is_ready(toolchain: &Toolchain) -> Result<bool> {
    Ok(linker().is_file() && stamp(&LibLlvm::find(toolchain)?).is_current())
}

/// Builds the linker.
pub(super) fn install(toolchain: &Toolchain) -> Result<()> {
    ensure!(
        is_installed("cc"),
        "bpf-linker needs a C compiler to link with: install one (Debian, Ubuntu: apt-get install gcc libc6-dev)"
    );
    let llvm = LibLlvm::find(toolchain)?;
    step(&format!(
        "building bpf-linker {VERSION} with the toolchain's own LLVM {} into target/tools (once, about a minute)",
        llvm.major
    ));

    let prefix = link_llvm(&llvm)?;
    cargo_install("bpf-linker", VERSION, &stamp(&llvm), |cargo| {
        cargo.args(["--features", &format!("llvm-{}", llvm.major)]).env("LLVM_PREFIX", &prefix);
    })
}

/// Returns the stamp of the linker. The linker finds its LLVM by the absolute path of [`link_llvm`]'s folder, so that
/// path is part of the stamp.
fn stamp(llvm: &LibLlvm) -> Stamp {
    let content =
        format!("bpf-linker {VERSION}\nlibLLVM {}\ntools {}\n", llvm.path.display(), tools().display());
    Stamp::new("bpf-linker", content)
}

/// Makes the folder that bpf-linker takes for an installation of LLVM; it only looks into `lib`.
fn link_llvm(llvm: &LibLlvm) -> Result<PathBuf> {
    let prefix = tools().join("llvm");
    let lib = prefix.join("lib");
    empty_dir(&lib)?;
    for name in ["libLLVM.so", llvm.name()] {
        symlink(&llvm.path, lib.join(name))
            .with_context(|| format!("cannot link {name} into {}", lib.display()))?;
    }
    Ok(prefix)
}

/// Shared library of LLVM that comes with the toolchain.
struct LibLlvm {
    path: PathBuf,
    major: u32,
}

impl LibLlvm {
    fn find(toolchain: &Toolchain) -> Result<Self> {
        let dir = toolchain.sysroot.join("lib");
        let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        entries.filter_map(|entry| Self::from_path(&entry.ok()?.path())).next().with_context(|| {
            format!(
                "no libLLVM.so.* in {}: bpf-linker needs a toolchain that was installed by rustup",
                dir.display()
            )
        })
    }

    /// Parses a path, such as `libLLVM.so.22.1-rust-1.95.0-stable` for LLVM 22. Other files are `None`.
    fn from_path(path: &Path) -> Option<Self> {
        let version = path.file_name()?.to_str()?.strip_prefix("libLLVM.so.")?;
        let major = version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        Some(Self { path: path.to_owned(), major })
    }

    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).expect("from_path took only UTF-8 names")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_in_the_file_name() {
        let major = |name: &str| LibLlvm::from_path(Path::new(name)).map(|llvm| llvm.major);
        assert_eq!(major("/lib/libLLVM.so.22.1-rust-1.95.0-stable"), Some(22));
        assert_eq!(major("/lib/libLLVM.so.23"), Some(23));
    }

    #[test]
    fn other_files_are_no_libllvm() {
        for name in
            ["libLLVM-22-rust-1.95.0-stable.so", "librustc_driver-61.so", "libLLVM.so.rust", "libLLVM.so"]
        {
            assert!(LibLlvm::from_path(Path::new(name)).is_none(), "{name}");
        }
    }
}
