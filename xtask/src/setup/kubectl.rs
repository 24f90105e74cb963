//! kubectl, which renders the manifests of `dist/kubernetes` for the tests, as `kubectl apply --kustomize` does.
//!
//! It asks no cluster. Debian's package is unpacked under `target/tools`, since older releases of Debian have no kustomize
//! in theirs.

use anyhow::Result;

use super::{Stamp, lock};
use crate::{
    apt::Apt,
    workspace::{remove_dir, rename, step, tools},
};

const VERSION: &str = "1.32.3";
/// Suite of Debian that has this version.
const SUITE: &str = "trixie";

/// Unpacks kubectl if it is missing.
pub(crate) fn ensure() -> Result<()> {
    let program = tools().join("bin/kubectl");
    let stamp = Stamp::new("kubectl", format!("kubectl {VERSION}\n"));
    if program.is_file() && stamp.is_current() {
        return Ok(());
    }
    let _lock = lock()?;
    step(&format!("unpacking Debian's kubectl {VERSION} under target/tools"));
    stamp.clear()?;
    let dir = tools().join("apt");
    let files = dir.join("files");
    Apt::new(dir.join("lists"), SUITE)?.unpack(&format!("kubectl={VERSION}+*"), &files)?;
    std::fs::create_dir_all(tools().join("bin"))?;
    rename(&files.join("usr/bin/kubectl"), &program)?;
    stamp.write()?;
    remove_dir(&dir)
}
