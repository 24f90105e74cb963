//! Kernels from Debian's packages, kept under `target/kernels`.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{architecture::Architecture, modules};
use crate::{
    apt::Apt,
    workspace::{empty_dir, remove_dir, rename, root, step},
};

/// Series of kernels, and the suite of Debian that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    suite: &'static str,
}

/// Oldest kernel that we support, those of Debian's releases, and the newest that Debian has.
pub(crate) const ALL: [Series; 5] = [
    Series { name: "5.10", suite: "bullseye" },
    Series { name: "6.1", suite: "bookworm" },
    Series { name: "6.12", suite: "trixie" },
    Series { name: "6.18", suite: "trixie-backports" },
    Series { name: "7.3", suite: "trixie-backports" },
];

/// Flavour of Debian's kernels: one configuration of the same source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Flavour {
    /// Only the drivers of virtual machines
    Cloud,
    /// All drivers
    Generic,
    /// All drivers, and PREEMPT_RT
    Rt,
}

impl Flavour {
    pub(super) const ALL: [Self; 3] = [Self::Cloud, Self::Generic, Self::Rt];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
            Self::Rt => "rt",
        }
    }

    /// Returns the ending of the packages' names.
    fn ending(self, architecture: Architecture) -> String {
        let architecture = architecture.name();
        match self {
            Self::Cloud => format!("-cloud-{architecture}"),
            Self::Generic => format!("-{architecture}"),
            Self::Rt => format!("-rt-{architecture}"),
        }
    }
}

/// Suite with the busybox of all guests.
const BUSYBOX: &str = "trixie";

/// Modules that the tests need.
pub(crate) const FOR_TESTS: [&str; 2] = ["veth", "tun"];

/// Returns the folder of the kernels.
pub(crate) fn dir() -> PathBuf {
    root().join("target/kernels")
}

/// Kernel of Debian, by what it was built from and for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Build {
    pub(crate) series: Series,
    pub(crate) flavour: Flavour,
    pub(crate) architecture: Architecture,
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { series, flavour, architecture } = self;
        write!(f, "Linux {} ({}, {})", series.name, flavour.name(), architecture.name())
    }
}

/// Kernel and its modules.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Bootable image.
    pub(crate) image: PathBuf,
    pub(crate) architecture: Architecture,
    /// Uncompressed modules, in the order in which they have to be loaded.
    pub(crate) modules: Vec<PathBuf>,
}

impl Build {
    /// Returns the kernel that was the newest when it was first fetched, with the modules of these names and those that
    /// they depend on.
    pub(crate) fn fetch(self, modules: &[&str]) -> Result<Kernel> {
        let Self { series, flavour, architecture } = self;
        let name = format!("{}{}", series.name, flavour.ending(architecture));
        let dir = dir().join(&name);
        if !dir.is_dir() {
            self.install(&name, &dir)
                .with_context(|| format!("cannot get {self} from Debian's {}", series.suite))?;
        }
        let modules = modules::with_dependencies(&dir.join("modules"), modules)?;
        Ok(Kernel { image: dir.join("vmlinuz"), architecture, modules })
    }

    fn install(self, name: &str, dir: &Path) -> Result<()> {
        let Self { series, flavour, architecture } = self;
        let aside = Aside::new(name)?;
        let apt = aside.apt(series.suite, architecture)?;
        let ending = flavour.ending(architecture);
        let packages = choose(&apt.names("linux-")?, series.name, &ending);
        let packages =
            packages.with_context(|| format!("no package linux-image-{}.*{ending}", series.name))?;
        step(&format!("fetching {}, from {}", packages.join(" and "), series.suite));
        for package in packages {
            apt.unpack(&package, &aside.files())?;
        }
        let ready = aside.ready()?;
        copy(&find(&aside.files(), "vmlinuz")?, &ready.join("vmlinuz"))?;
        modules::keep(&aside.files(), &ready.join("modules"))?;
        aside.finish(dir)
    }
}

/// Returns a busybox that needs no library, for the guests and to pack their file system.
pub(super) fn busybox(architecture: Architecture) -> Result<PathBuf> {
    let name = format!("busybox-{}", architecture.name());
    let dir = dir().join(&name);
    if !dir.is_dir() {
        let aside = Aside::new(&name)?;
        aside.apt(BUSYBOX, architecture)?.unpack("busybox-static", &aside.files())?;
        copy(&aside.files().join("usr/bin/busybox"), &aside.ready()?.join("busybox"))?;
        aside.finish(&dir)?;
    }
    Ok(dir.join("busybox"))
}

/// Folder in which something is made before it moves to its place, so that it is complete there.
struct Aside(PathBuf);

impl Aside {
    fn new(name: &str) -> Result<Self> {
        let dir = dir().join(format!("{name}.part"));
        empty_dir(&dir)?;
        Ok(Self(dir))
    }

    fn apt(&self, suite: &str, architecture: Architecture) -> Result<Apt> {
        Apt::of_architecture(self.0.join("apt"), suite, architecture.name())
    }

    fn files(&self) -> PathBuf {
        self.0.join("files")
    }

    fn ready(&self) -> Result<PathBuf> {
        let ready = self.0.join("ready");
        fs::create_dir_all(&ready).with_context(|| format!("cannot create {}", ready.display()))?;
        Ok(ready)
    }

    fn finish(self, place: &Path) -> Result<()> {
        rename(&self.ready()?, place)?;
        remove_dir(&self.0)
    }
}

/// Returns the packages of the newest kernel of a series and a flavour, whose names end with `ending`: one, or, since Debian
/// splits kernels, one with the image and one with the modules.
fn choose(names: &[String], series: &str, ending: &str) -> Option<Vec<String>> {
    let prefix = format!("linux-image-{series}.");
    // Between them stands the version, and no other flavour.
    let is_version = |rest: &str| !rest.contains("-cloud") && !rest.contains("-rt");
    let is_one = |name: &&String| {
        name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(ending)).is_some_and(is_version)
    };
    let newest = names.iter().filter(is_one).max_by_key(|name| version(name))?;
    let split = ["linux-binary-", "linux-modules-"].map(|kind| newest.replacen("linux-image-", kind, 1));
    if split.iter().all(|name| names.contains(name)) {
        Some(split.to_vec())
    } else {
        Some(vec![newest.clone()])
    }
}

/// Returns the numbers in a package's name, in their order.
fn version(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Returns the file under `dir` that is called `name`, with any suffix (`vmlinuz-6.1…`).
fn find(dir: &Path, name: &str) -> Result<PathBuf> {
    search(dir, name)
        .with_context(|| format!("cannot search {}", dir.display()))?
        .with_context(|| format!("the package has no {name}"))
}

fn search(dir: &Path, name: &str) -> std::io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let found = if kind.is_dir() {
            search(&entry.path(), name)?
        } else {
            let file = entry.file_name();
            let rest = file.to_str().and_then(|file| file.strip_prefix(name));
            let is_it = rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()));
            (kind.is_file() && is_it).then(|| entry.path())
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], series: &str, flavour: Flavour) -> Option<Vec<String>> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        choose(&names, series, &flavour.ending(Architecture::X86_64))
    }

    #[test]
    fn the_newest_of_a_series_is_chosen() {
        let names = [
            "linux-image-6.12.94+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64-dbg",
            "linux-image-6.12.200+deb13-amd64",
            "linux-image-6.12.201+deb13-rt-amd64",
            "linux-image-6.12.202+deb13-cloud-arm64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.18.15+deb13-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        let one = |name: &str| Some(vec![name.to_owned()]);
        assert_eq!(chosen(&names, "6.12", Flavour::Cloud), one("linux-image-6.12.107+deb13-cloud-amd64"));
        assert_eq!(chosen(&names, "6.12", Flavour::Generic), one("linux-image-6.12.200+deb13-amd64"));
        assert_eq!(chosen(&names, "6.12", Flavour::Rt), one("linux-image-6.12.201+deb13-rt-amd64"));
        assert_eq!(chosen(&names, "6.1", Flavour::Cloud), one("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(chosen(&names, "6.1", Flavour::Generic), None);
        assert_eq!(chosen(&names, "5.10", Flavour::Cloud), None);
    }

    #[test]
    fn a_split_kernel_is_two_packages() {
        let names = [
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.9+deb13-cloud-amd64",
        ];
        let expected = ["linux-binary-7.3.4+deb13-cloud-amd64", "linux-modules-7.3.4+deb13-cloud-amd64"];
        assert_eq!(chosen(&names, "7.3", Flavour::Cloud), Some(expected.map(str::to_owned).to_vec()));
    }
}
