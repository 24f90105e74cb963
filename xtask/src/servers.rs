//! `cargo xtask servers`: visits servers from Debian with Fast Open, by the binary `servers` of the package tfo-tests.
//!
//! Their packages, with the dependencies that this host lacks, are unpacked under target/servers and not installed.

use std::{
    convert::Infallible,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{
    packages, setup, test,
    workspace::{cargo, command, empty_dir, is_root, output, rename, root, run, step, target_dir},
};

/// Programs that the clients and the set-up need.
const PROGRAMS: [packages::Program; 4] =
    [("curl", "curl"), ("ip", "iproute2"), ("openssl", "openssl"), ("unshare", "util-linux")];

/// Arguments of `cargo xtask servers`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Visit only servers with this in the name of their package
    filter: Option<String>,
}

/// Builds the program, unpacks the packages, and replaces this process with the program.
pub(crate) fn servers(args: &Args) -> Result<Infallible> {
    ensure!(is_root(), "`cargo xtask servers` makes namespaces and loads programs: run it as root");
    setup::ensure()?;
    packages::ensure(&PROGRAMS)?;
    packages::ensure(&packages::FOR_ETCD)?;
    // The same packages as for the tests, so that no crate is built twice because of its features.
    run(cargo().arg("build").args(test::FEATURES))?;
    let program = target_dir()?.join("debug/servers");
    let folder = root().join("target/servers");
    let mut list = command(&program);
    for package in output(list.arg("--list").args(&args.filter))?.lines() {
        unpack(package, &folder).with_context(|| format!("cannot unpack Debian's {package}"))?;
    }
    let err = command(&program).arg("--packages").arg(&folder).args(&args.filter).exec();
    Err(anyhow!(err).context("cannot start the program"))
}

/// Unpacks `package` and those of its dependencies that are not installed into a folder below `folder`, unless it is there.
fn unpack(package: &str, folder: &Path) -> Result<()> {
    let done = folder.join(package);
    if done.is_dir() {
        return Ok(());
    }
    step(&format!("unpacking Debian's {package} under target/servers"));
    let dir = folder.join(format!("{package}.new"));
    empty_dir(&dir)?;
    let archives = dir.join("cache/archives");
    empty_dir(&archives.join("partial"))?;
    let download = || {
        run(command("apt-get")
            .args(["install", "--download-only", "-qq", "--yes", "--no-install-recommends"])
            .args(["-o", &format!("Dir::Cache={}", dir.join("cache").display())])
            // apt's own user can't write below target/, and nothing is installed.
            .args(["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1"])
            .arg(package))
    };
    if download().is_err() {
        step("apt's lists are missing or old: updating them");
        run(command("apt-get").arg("update"))?;
        download()?;
    }
    for archive in debs(&archives)? {
        run(command("dpkg-deb").arg("--extract").arg(&archive).arg(&dir))?;
    }
    // On today's Debian, /lib is a link to /usr/lib.
    if dir.join("lib").is_dir() {
        run(command("cp").args(["--archive", "--force"]).arg(dir.join("lib/.")).arg(dir.join("usr/lib")))?;
    }
    fs::write(dir.join("version"), version(package, &archives)?)?;
    rename(&dir, &done)
}

fn debs(archives: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(archives).with_context(|| format!("cannot list {}", archives.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}

/// Returns the version of `package`: that of its archive, or of the installed package if none was downloaded.
fn version(package: &str, archives: &Path) -> Result<String> {
    let is_of = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&format!("{package}_"))
    };
    match debs(archives)?.iter().find(is_of) {
        Some(archive) => output(command("dpkg-deb").arg("--field").arg(archive).arg("Version")),
        None => output(command("dpkg-query").args(["--show", "--showformat", "${Version}", package])),
    }
}
