//! `cargo xtask dist --try`: an operator's life with the Debian package, on booted systems in QEMU.
//!
//! [`system`] makes the file system of a Debian once, and [`guest`] boots it. There the program `operator` of the tests takes
//! all steps under traffic, and says how each went. The upgrade is to a build with another layout of maps. lintian looks at
//! the package.

mod guest;
mod lintian;
mod system;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

pub(crate) use self::system::{Debian, release};
use super::{Args, Release, binary, packages, stage};
use crate::{
    packages as programs,
    workspace::{cargo, command, empty_dir, is_root, root, run, step, target_dir},
};

/// Programs that it runs.
const PROGRAMS: [programs::Program; 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("lintian", "lintian"),
];

/// Returns the folder of what it makes and keeps.
fn dir() -> PathBuf {
    root().join("target/try")
}

/// Whether this machine can boot guests. Where it can't, that is said.
pub(super) fn is_possible() -> bool {
    let ready = || {
        ensure!(cfg!(target_arch = "x86_64"), "the guests are of x86-64");
        ensure!(is_root(), "making a Debian takes root");
        programs::ensure(&PROGRAMS)
    };
    ready()
        .inspect_err(|error| step(&format!("SKIPPED: nothing is tried on a booted Debian: {error:#}")))
        .is_ok()
}

/// Makes the package of a release after this one, with another layout of maps. Returns its path.
pub(super) fn next(release: &Release) -> Result<PathBuf> {
    step("the release after this one, with another layout of maps");
    let next = Release {
        root: release.root.clone(),
        dir: release.dir.clone(),
        version: release.version.clone(),
        epoch: release.epoch.clone(),
        is_next: true,
    };
    empty_dir(&next.dir)?;
    binary::build(&next)?;
    stage::fill(&next)?;
    let made = packages::deb(&next)?;
    let kept = dir().join("second.deb");
    fs::create_dir_all(dir())?;
    fs::copy(&made, &kept).with_context(|| format!("cannot copy {}", made.display()))?;
    Ok(kept)
}

/// Tries the package of `release`, and the upgrade to `next`.
pub(super) fn attempt(release: &Release, next: &Path, args: &Args) -> Result<()> {
    let package = release.dir.join(packages::find(release, ".deb")?);
    lintian::check(&package)?;
    let goods = goods(&package, next)?;
    let chosen = system::ALL.into_iter();
    for debian in chosen.filter(|debian| args.releases.is_empty() || args.releases.contains(debian)) {
        let system = debian.make()?;
        step(&format!("Debian {debian}, booted"));
        let steps = guest::run(&system, &goods, args.kvm)?;
        println!("Debian {debian}: {steps} steps, none failed");
    }
    Ok(())
}

/// Makes the disk with what the guest needs of us: both packages, and the operator.
fn goods(first: &Path, second: &Path) -> Result<PathBuf> {
    run(cargo().args(["build", "--package", "tfo-tests", "--bin", "operator"]))?;
    let folder = dir().join("goods");
    empty_dir(&folder)?;
    for (from, name) in [(first, "first.deb"), (second, "second.deb")] {
        fs::copy(from, folder.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    run(command("strip").arg("-o").arg(folder.join("operator")).arg(target_dir()?.join("debug/operator")))?;
    let disk = dir().join("goods.img");
    system::image(&folder, &disk, "256M")?;
    Ok(disk)
}
