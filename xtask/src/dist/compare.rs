//! A second build in another folder, whose results must be the same, bit by bit.

use std::{fs, os::unix::fs::symlink};

use anyhow::{Context as _, Result, ensure};

use super::{Release, packages::names};
use crate::workspace::{command, empty_dir, output, remove_dir, step, tools};

/// Copies the tracked files, builds them there and compares.
pub(super) fn compare(first: &Release) -> Result<()> {
    step("a second build, in another folder");
    // A longer path than the first, so that no path of the same length hides.
    let root = first.root.join("target/dist-compare/a-folder-of-another-length");
    empty_dir(&root)?;
    let files = output(command("git").args(["ls-files", "-z"]))?;
    for file in files.split('\0').filter(|file| !file.is_empty()) {
        let (from, to) = (first.root.join(file), root.join(file));
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(&from, &to).with_context(|| format!("cannot copy {file}"))?;
    }
    fs::create_dir_all(root.join("target"))?;
    symlink(tools(), root.join("target/tools"))?;

    let second = Release::new(&root, root.join("target/dist"))?;
    second.make()?;
    let names = names(first)?;
    let sums = |release: &Release| {
        let sums = output(command("sha256sum").current_dir(&release.dir).args(&names))?;
        Ok::<_, anyhow::Error>(sums.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let (one, two) = (sums(first)?, sums(&second)?);
    let differ: Vec<_> = one.iter().zip(&two).filter(|(one, two)| one != two).collect();
    ensure!(differ.is_empty(), "these differ, and are kept in {}: {differ:#?}", second.dir.display());
    one.iter().for_each(|sum| println!("{sum}"));
    println!("both builds have made the same {} files", one.len());
    remove_dir(root.parent().expect("it is below target"))
}
