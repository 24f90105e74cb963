//! `cargo xtask dist`: makes in `target/dist` what is installed elsewhere.
//!
//! [`binary`] builds `tfo`, [`stage`] lays all files out as they are installed, [`bill`] lists the crates in the binary, and
//! [`packages`] packs. Each fails where the result is not what it should be: too large, a crate that is not listed, a unit
//! that systemd does not like ([`unit`](mod@unit)). The same commit makes the same bits in any folder: [`compare`] tries it.
//! [`attempt`](mod@attempt) tries the Debian package on a booted system.

mod attempt;
mod bill;
mod binary;
mod compare;
mod packages;
mod stage;
mod tools;
mod unit;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    packages as programs, setup,
    workspace::{command, empty_dir, output, root, step},
};

/// Programs that it runs.
const PROGRAMS: [programs::Program; 6] = [
    ("objcopy", "binutils"),
    ("systemd-analyze", "systemd"),
    ("man", "man-db"),
    ("tar", "tar"),
    ("gzip", "gzip"),
    ("dpkg-deb", "dpkg"),
];

/// Arguments of `cargo xtask dist`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build a second time in another folder, and compare every bit
    #[arg(long)]
    compare: bool,
    /// Install, use, upgrade and purge the Debian package on booted systems, in QEMU (needs root)
    #[arg(long = "try")]
    attempt: bool,
    /// Let the guests of --try use /dev/kvm, if it works here, instead of emulating a processor
    #[arg(long, requires = "attempt")]
    kvm: bool,
    /// Try only on this release of Debian, such as 12; may be repeated
    #[arg(long = "debian", value_name = "RELEASE", requires = "attempt", value_parser = attempt::release)]
    releases: Vec<attempt::Debian>,
}

/// Source that is packed, and the folders of the work.
struct Release {
    /// Root of the workspace that is built.
    root: PathBuf,
    /// Folder of the results.
    dir: PathBuf,
    version: String,
    /// Time of the commit, in seconds since 1970: the time of all that is packed.
    epoch: String,
    /// Whether it stands for the release after this one, with another layout of maps.
    is_next: bool,
}

impl Release {
    /// Returns the release of the sources in `root`, made in `dir`.
    fn new(root: &Path, dir: PathBuf) -> Result<Self> {
        let epoch = output(command("git").args(["log", "-1", "--format=%ct"]))
            .context("cannot ask git for the time of the commit")?;
        Ok(Self {
            root: root.to_owned(),
            dir,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: epoch.trim().to_owned(),
            is_next: false,
        })
    }

    /// Returns the folder with all files as they are installed.
    fn stage(&self) -> PathBuf {
        self.dir.join("stage")
    }

    /// Returns the installed binary in it.
    fn binary(&self) -> PathBuf {
        self.stage().join("usr/sbin/tfo")
    }

    /// Builds and packs everything.
    fn make(&self) -> Result<()> {
        empty_dir(&self.dir)?;
        binary::build(self)?;
        stage::fill(self)?;
        bill::write(self)?;
        packages::pack(self)
    }
}

/// Makes everything, checks it, and lists it.
pub(crate) fn dist(args: &Args) -> Result<()> {
    setup::ensure()?;
    programs::ensure(&PROGRAMS)?;
    tools::ensure()?;
    let release = Release::new(root(), root().join("target/dist"))?;
    // Before the release, since both are packed from the same folder.
    let next = if args.attempt && attempt::is_possible() { Some(attempt::next(&release)?) } else { None };
    release.make()?;
    unit::check(&release)?;
    if args.compare {
        compare::compare(&release)?;
    }
    list(&release.dir)?;
    match next {
        Some(next) => attempt::attempt(&release, &next, args),
        None => Ok(()),
    }
}

/// Prints the files of `dir`, each with its size.
fn list(dir: &Path) -> Result<()> {
    step(&format!("{}:", dir.display()));
    let mut files: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    files.sort_by_key(fs::DirEntry::file_name);
    for file in files {
        let found = file.metadata()?;
        if found.is_file() {
            println!("{:>12} {}", found.len(), file.file_name().display());
        }
    }
    Ok(())
}
