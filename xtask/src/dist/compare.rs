//! A second build in another folder, whose results must be the same, bit by bit.

use std::{fs, os::unix::fs::symlink};

use anyhow::{Context as _, Result, bail};

use super::{Release, packages::names};
use crate::workspace::{command, output, step, tools};

/// Copies the tracked files, builds them there and compares.
pub(super) fn compare(first: &Release) -> Result<()> {
    step("a second build, in another folder");
    // Outside of this workspace, whose configuration cargo would find, too. The path has another length than the first, so
    // that none of the same length hides.
    let folder = tempfile::Builder::new().prefix("a-second-build-of-tfo-").tempdir()?;
    let root = folder.path().to_owned();
    let files = output(command("git").args(["ls-files", "-z"]))?;
    for file in files.split('\0').filter(|file| !file.is_empty()) {
        let (from, to) = (first.root.join(file), root.join(file));
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(&from, &to).with_context(|| format!("cannot copy {file}"))?;
    }
    fs::create_dir_all(root.join("target"))?;
    symlink(tools(), root.join("target/tools"))?;

    let (version, epoch) = (first.version.clone(), first.epoch.clone());
    let second = Release { dir: root.join("target/dist"), root, version, epoch, is_next: first.is_next };
    second.make()?;
    let names = names(first)?;
    let sums = |release: &Release| {
        let sums = output(command("sha256sum").current_dir(&release.dir).args(&names))?;
        Ok::<_, anyhow::Error>(sums.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let (one, two) = (sums(first)?, sums(&second)?);
    let differ: Vec<_> = one.iter().zip(&two).filter(|(one, two)| one != two).collect();
    if !differ.is_empty() {
        bail!("these differ, and are kept in {}: {differ:#?}", folder.keep().display());
    }
    one.iter().for_each(|sum| println!("{sum}"));
    println!("both builds have made the same {} files", one.len());
    folder.close().context("cannot remove the second build")
}
