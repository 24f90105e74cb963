//! Tarball, packages and checksums. All times in them are that of the commit.

use std::{env::consts::ARCH, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{Release, tools::tool};
use crate::workspace::{command, output, run, step};

/// Packs the stage.
pub(super) fn pack(release: &Release) -> Result<()> {
    tarball(release)?;
    deb(release)?;
    rpm(release)?;
    checksums(release)
}

fn tarball(release: &Release) -> Result<()> {
    step("tarball");
    let name = format!("tfo-{}-{ARCH}-linux", release.version);
    let tar = release.dir.join(format!("{name}.tar"));
    run(command("tar")
        .args(["--create", "--format=gnu", "--sort=name", "--numeric-owner", "--owner=0", "--group=0"])
        .arg(format!("--mtime=@{}", release.epoch))
        .args(["--mode=u+rw,go+r,go-w", &format!("--transform=s,^\\.,{name},"), "--file"])
        .arg(&tar)
        .arg("--directory")
        .arg(release.stage())
        .arg("."))?;
    run(command("gzip").args(["-9", "--no-name"]).arg(&tar))
}

/// Makes the Debian package from `[package.metadata.deb]` of `tfo-userspace/Cargo.toml`. Returns its path.
pub(super) fn deb(release: &Release) -> Result<PathBuf> {
    step("Debian package");
    run(tool("deb")?
        .current_dir(&release.root)
        // Quiet, since it warns that it will not build what is built.
        .args(["--quiet", "--package", "tfo-userspace", "--no-build", "--no-strip", "--profile", "shipped", "--output"])
        .arg(&release.dir)
        .args(release.is_next.then(|| format!("--deb-version={}-2~next", release.version)))
        .env("SOURCE_DATE_EPOCH", &release.epoch))?;
    let file = find(release, ".deb")?;
    let listed = output(command("dpkg-deb").arg("--contents").arg(release.dir.join(&file)))?;
    for path in ["./usr/sbin/tfo", "./etc/tfo/tfo.toml", "./usr/share/man/man8/tfo-run.8.gz", "/tfo.service"]
    {
        ensure!(listed.contains(path), "{file} has no {path}:\n{listed}");
    }
    Ok(release.dir.join(file))
}

/// Makes the package for RPM from `[package.metadata.generate-rpm]` of `tfo-userspace/Cargo.toml`.
fn rpm(release: &Release) -> Result<()> {
    step("RPM package");
    run(tool("generate-rpm")?
        .current_dir(&release.root)
        .args(["--package", "tfo-userspace", "--auto-req", "builtin", "--output"])
        .arg(&release.dir)
        .args(["--source-date", &release.epoch]))?;
    find(release, ".rpm").map(drop)
}

/// Returns the name of the only result that ends like this.
pub(super) fn find(release: &Release, end: &str) -> Result<String> {
    let mut names = names(release)?;
    names.retain(|name| name.ends_with(end));
    ensure!(names.len() == 1, "there should be one file *{end} in {}: {names:?}", release.dir.display());
    Ok(names.remove(0))
}

/// Returns the names of all results, in order.
pub(super) fn names(release: &Release) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(&release.dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            names.push(entry.file_name().into_string().ok().context("a name that is no text")?);
        }
    }
    names.sort();
    Ok(names)
}

fn checksums(release: &Release) -> Result<()> {
    let names = names(release)?;
    let sums = output(command("sha256sum").current_dir(&release.dir).args(&names))?;
    fs::write(release.dir.join("SHA256SUMS"), sums).context("cannot write SHA256SUMS")
}
