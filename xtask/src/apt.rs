//! Debian packages that are unpacked and not installed, by apt with separate lists and a separate cache.
//!
//! Neither root nor a change to the system's configuration is needed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::workspace::{command, empty_dir, is_installed, output, run};

/// Keys with which Debian signs its archive.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Packages of one suite and one architecture.
pub(crate) struct Apt {
    dir: PathBuf,
    /// Architecture, if it is not the host's.
    architecture: Option<&'static str>,
}

impl Apt {
    /// Fetches the lists of `suite` into the folder `dir`, which is emptied.
    pub(crate) fn new(dir: PathBuf, suite: &str) -> Result<Self> {
        Self::fetch(dir, suite, None)
    }

    /// Fetches them as [`new`](Self::new) does, for an architecture by Debian's name.
    pub(crate) fn of_architecture(dir: PathBuf, suite: &str, architecture: &'static str) -> Result<Self> {
        Self::fetch(dir, suite, Some(architecture))
    }

    fn fetch(dir: PathBuf, suite: &str, architecture: Option<&'static str>) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            ensure!(is_installed(program), "{program} is not installed");
        }
        ensure!(Path::new(KEYRING).is_file(), "{KEYRING} is missing: install debian-archive-keyring");
        empty_dir(&dir)?;
        empty_dir(&dir.join("lists/partial"))?;
        empty_dir(&dir.join("cache/archives/partial"))?;
        let sources = dir.join("sources.list");
        fs::write(&sources, format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()?))
            .with_context(|| format!("cannot write {}", sources.display()))?;

        let apt = Self { dir, architecture };
        run(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut apt = command(program);
        let option = |name: &str, file: &str| format!("{name}={}", self.dir.join(file).display());
        apt.current_dir(&self.dir)
            .args(["-o", &option("Dir::Etc::SourceList", "sources.list"), "-o", "Dir::Etc::SourceParts=/dev/null"])
            .args(["-o", &option("Dir::State::Lists", "lists"), "-o", &option("Dir::Cache", "cache")])
            // apt's own user can't write below target/.
            .args(["-o", "APT::Sandbox::User=root"])
            // No translated descriptions are needed.
            .args(["-o", "Acquire::Languages=none"]);
        for option in ["APT::Architecture", "APT::Architectures"] {
            apt.args(self.architecture.iter().flat_map(|name| ["-o".to_owned(), format!("{option}={name}")]));
        }
        apt
    }

    /// Returns the names of the packages that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Downloads one package, `NAME` or `NAME=VERSION`, and unpacks its files into the folder `into`.
    pub(crate) fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let download = self.dir.join("download");
        empty_dir(&download)?;
        run(self.command("apt-get").current_dir(&download).args(["--quiet", "download", package]))?;
        let entries =
            fs::read_dir(&download).with_context(|| format!("cannot list {}", download.display()))?;
        let file = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get downloaded no {package}"))?;
        run(command("dpkg-deb").arg("--extract").arg(&file).arg(into))
    }
}

/// Returns the mirror that this machine's apt already uses.
pub(crate) fn mirror() -> Result<String> {
    let uris = output(command("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
    ]))?;
    let mirror = archive(&uris).context("apt has no Debian mirror among its sources")?;
    Ok(mirror.to_owned())
}

/// Returns the first archive that is not the one for security updates, which has no backports.
fn archive(uris: &str) -> Option<&str> {
    uris.lines().map(str::trim).find(|uri| !uri.is_empty() && !uri.contains("security"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_security_archive_has_no_backports() {
        let uris = "http://mirror.example/debian-security/\nhttp://mirror.example/debian/\n";
        assert_eq!(archive(uris), Some("http://mirror.example/debian/"));
        assert_eq!(archive(""), None);
    }
}
