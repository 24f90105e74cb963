//! Kernels from Debian's packages, kept under `target/kernels`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    apt::Apt,
    workspace::{command, empty_dir, is_installed, remove_dir, rename, root, run, step},
};

/// Series of kernels, and the suite of Debian that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Series {
    pub(super) name: &'static str,
    suite: &'static str,
}

/// Oldest kernel that we support, those of Debian's releases, and the newest that Debian has.
pub(super) const ALL: [Series; 5] = [
    Series { name: "5.10", suite: "bullseye" },
    Series { name: "6.1", suite: "bookworm" },
    Series { name: "6.12", suite: "trixie" },
    Series { name: "6.18", suite: "trixie-backports" },
    Series { name: "7.3", suite: "trixie-backports" },
];

/// Suite with the busybox of all guests.
const BUSYBOX: &str = "trixie";

/// Ending of Debian's names for kernels that have only the drivers of virtual machines.
const FLAVOUR: &str = "-cloud-amd64";

/// Modules that the tests need.
const MODULES: [&str; 2] = ["veth", "tun"];

/// Returns the folder of the kernels.
pub(super) fn dir() -> PathBuf {
    root().join("target/kernels")
}

/// Kernel and its modules.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Bootable image.
    pub(super) image: PathBuf,
    /// Uncompressed modules, in the order in which they have to be loaded.
    pub(super) modules: Vec<PathBuf>,
}

impl Series {
    /// Returns the kernel of the series that was the newest when it was first fetched.
    pub(super) fn fetch(self) -> Result<Kernel> {
        let dir = dir().join(self.name);
        if !dir.is_dir() {
            self.install(&dir)
                .with_context(|| format!("cannot get a kernel {} from Debian's {}", self.name, self.suite))?;
        }
        let modules = MODULES.map(|module| dir.join(format!("{module}.ko"))).to_vec();
        Ok(Kernel { image: dir.join("vmlinuz"), modules })
    }

    fn install(self, dir: &Path) -> Result<()> {
        let aside = Aside::new(self.name)?;
        let apt = aside.apt(self.suite)?;
        let packages = choose(&apt.names("linux-")?, self.name);
        let packages =
            packages.with_context(|| format!("no package linux-image-{}.*{FLAVOUR}", self.name))?;
        step(&format!("fetching {}, from {}", packages.join(" and "), self.suite));
        for package in packages {
            apt.unpack(&package, &aside.files())?;
        }
        let ready = aside.ready()?;
        copy(&find(&aside.files(), "vmlinuz")?, &ready.join("vmlinuz"))?;
        for module in MODULES.map(|module| format!("{module}.ko")) {
            let file = find(&aside.files(), &module)?;
            decompress(&file, &ready.join(module))?;
        }
        aside.finish(dir)
    }
}

/// Returns a busybox that needs no library, for the guests and to pack their file system.
pub(super) fn busybox() -> Result<PathBuf> {
    let dir = dir().join("busybox");
    if !dir.is_dir() {
        let aside = Aside::new("busybox")?;
        aside.apt(BUSYBOX)?.unpack("busybox-static", &aside.files())?;
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

    fn apt(&self, suite: &str) -> Result<Apt> {
        Apt::new(self.0.join("apt"), suite)
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

/// Returns the packages of the newest kernel of a series: one, or, since Debian splits kernels, one with the image and
/// one with the modules.
fn choose(names: &[String], series: &str) -> Option<Vec<String>> {
    let prefix = format!("linux-image-{series}.");
    let is_one = |name: &&String| name.starts_with(&prefix) && name.ends_with(FLAVOUR);
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

/// Returns the file under `dir` that is called `name`, with any suffix (`vmlinuz-6.1…`, `veth.ko.xz`).
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

/// Decompresses a module, or copies it if it is not compressed.
fn decompress(from: &Path, to: &Path) -> Result<()> {
    let program = match from.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        _ => return copy(from, to),
    };
    let (program, package) = program;
    anyhow::ensure!(is_installed(program), "{program} is not installed: apt-get install {package}");
    let file = File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    run(command(program).args(["--decompress", "--stdout"]).arg(from).stdout(file))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], series: &str) -> Option<Vec<String>> {
        choose(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>(), series)
    }

    #[test]
    fn the_newest_of_a_series_is_chosen() {
        let names = [
            "linux-image-6.12.94+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64-dbg",
            "linux-image-6.12.200+deb13-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.18.15+deb13-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        let one = |name: &str| Some(vec![name.to_owned()]);
        assert_eq!(chosen(&names, "6.12"), one("linux-image-6.12.107+deb13-cloud-amd64"));
        assert_eq!(chosen(&names, "6.1"), one("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(chosen(&names, "5.10"), None);
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
        assert_eq!(chosen(&names, "7.3"), Some(expected.map(str::to_owned).to_vec()));
    }
}
