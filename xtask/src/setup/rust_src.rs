//! The sources of `core`, which `-Z build-std` compiles for the BPF target.
//!
//! They belong into the toolchain, where rustup puts them. Where rustup can't (not installed, or its server out of
//! reach), Debian's package of exactly the same version is unpacked under `target/tools`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{Stamp, Toolchain, empty_dir, remove_dir, rename};
use crate::workspace::{command, is_installed, output, run, step, tools};

/// Where Debian carries the Rust releases that its own release is too old for.
const SUITE: &str = "trixie-backports";

/// The keys that Debian signs its archive with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Tells a cargo that builds `core` where its sources lie, unless they are where it looks anyway.
pub(super) fn configure(cargo: &mut Command) -> Result<()> {
    if !in_toolchain(&Toolchain::detect()?) {
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", unpacked().join("library"));
    }
    Ok(())
}

pub(super) fn is_ready(toolchain: &Toolchain) -> Result<bool> {
    Ok(in_toolchain(toolchain) || unpacked().is_dir() && stamp(&toolchain.version()?).is_current())
}

/// Asks rustup, then Debian.
pub(super) fn install(toolchain: &Toolchain) -> Result<()> {
    let version = toolchain.version()?;
    stamp(&version).clear()?;
    remove_dir(&unpacked())?;

    step(&format!("adding rust-src to the Rust {version} toolchain"));
    let Err(rustup) = add_component(toolchain) else {
        return Ok(());
    };
    step(&format!("{rustup:#}"));

    step(&format!("unpacking Debian's rust-src {version} under target/tools instead"));
    unpack_package(&version).with_context(|| {
        format!(
            "the eBPF build needs rust-src {version}, and neither way to get it worked; \
             `rustup component add rust-src`: {rustup:#}; Debian's package rust-src from {SUITE}"
        )
    })
}

fn add_component(toolchain: &Toolchain) -> Result<()> {
    run(command("rustup").args(["component", "add", "rust-src"]))?;
    ensure!(
        in_toolchain(toolchain),
        "rustup added rust-src, but not to the toolchain in {}",
        toolchain.sysroot.display()
    );
    Ok(())
}

fn in_toolchain(toolchain: &Toolchain) -> bool {
    toolchain.sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
}

/// The sources from Debian's package; `tfo-userspace/build.rs` looks here too.
fn unpacked() -> PathBuf {
    tools().join("rust-src")
}

fn stamp(version: &str) -> Stamp {
    Stamp::new("rust-src", format!("rust-src {version}\n"))
}

fn unpack_package(version: &str) -> Result<()> {
    for program in ["apt-get", "dpkg-deb"] {
        ensure!(is_installed(program), "{program} is not installed");
    }
    let apt = Apt::new(tools().join("apt"))?;
    let package = apt.download(&format!("rust-src={version}+*"))?;

    let files = apt.dir.join("files");
    run(command("dpkg-deb").arg("--extract").arg(&package).arg(&files))?;
    let source = files.join(format!("usr/src/rustc-{version}"));
    ensure!(source.join("library/core").is_dir(), "{} holds no sources of core", package.display());

    // Nothing but the library is needed.
    let aside = apt.dir.join("rust-src");
    empty_dir(&aside)?;
    rename(&source.join("library"), &aside.join("library"))?;
    rename(&aside, &unpacked())?;
    stamp(version).write()?;
    remove_dir(&apt.dir)
}

/// apt with lists and a cache of its own: neither root nor a change to the system's configuration is needed.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: PathBuf) -> Result<Self> {
        ensure!(Path::new(KEYRING).is_file(), "{KEYRING} is missing: install debian-archive-keyring");
        empty_dir(&dir)?;
        empty_dir(&dir.join("lists/partial"))?;
        empty_dir(&dir.join("cache/archives/partial"))?;
        let sources = dir.join("sources.list");
        fs::write(&sources, format!("deb [signed-by={KEYRING}] {} {SUITE} main\n", mirror()?))
            .with_context(|| format!("cannot write {}", sources.display()))?;

        let apt = Self { dir };
        run(apt.get().arg("update"))?;
        Ok(apt)
    }

    fn get(&self) -> Command {
        let mut apt_get = command("apt-get");
        let option = |name: &str, file: &str| format!("{name}={}", self.dir.join(file).display());
        apt_get
            .current_dir(&self.dir)
            .args(["-o", &option("Dir::Etc::SourceList", "sources.list"), "-o", "Dir::Etc::SourceParts=/dev/null"])
            .args(["-o", &option("Dir::State::Lists", "lists"), "-o", &option("Dir::Cache", "cache")])
            // apt's own user can't write below target/.
            .args(["-o", "APT::Sandbox::User=root"]);
        apt_get
    }

    /// Downloads one package and returns its file.
    fn download(&self, package: &str) -> Result<PathBuf> {
        run(self.get().args(["download", package]))?;
        let entries =
            fs::read_dir(&self.dir).with_context(|| format!("cannot list {}", self.dir.display()))?;
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get downloaded no {package}"))
    }
}

/// The mirror that this machine's apt already uses.
fn mirror() -> Result<String> {
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

/// The first archive that is more than security updates, which lie in one of their own, without backports.
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
