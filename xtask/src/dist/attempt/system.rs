//! File systems of Debian's releases, made once and kept below `target/try`.

use std::{
    fmt::{self, Display},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::dir;
use crate::{
    apt::{KEYRING, mirror},
    workspace::{command, empty_dir, remove_dir, rename, run, step},
};

/// Release of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Debian {
    number: &'static str,
    suite: &'static str,
}

/// Releases on which the package is tried.
pub(super) const ALL: [Debian; 2] =
    [Debian { number: "12", suite: "bookworm" }, Debian { number: "13", suite: "trixie" }];

/// Packages beside the essential ones and apt.
const PACKAGES: &str = "systemd-sysv,udev,dbus,linux-image-cloud-amd64,initramfs-tools,kmod,iproute2";

/// Service of the guest that starts the operator.
const UNIT: &str = include_str!("operator.service");
const UNIT_PLACE: &str = "etc/systemd/system/operator.service";
const WANTED: &str = "etc/systemd/system/multi-user.target.wants";
/// File without which the operator does nothing.
const PERMISSION: &str = "etc/tfo-may-be-tried-here";

/// Size of a file system. The blocks that nobody has written take no room.
const SIZE: &str = "2G";

/// Returns the release of this number.
pub(crate) fn release(number: &str) -> Result<Debian, String> {
    let found = ALL.into_iter().find(|debian| debian.number == number);
    found.ok_or_else(|| format!("the releases are {}", ALL.map(|debian| debian.number).join(" and ")))
}

impl Display for Debian {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number, self.suite)
    }
}

/// Bootable Debian.
pub(super) struct System {
    pub(super) disk: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// Log of its console.
    pub(super) console: PathBuf,
}

impl Debian {
    /// Returns this Debian, made as it is described here: a change makes it anew.
    pub(super) fn make(self) -> Result<System> {
        let place = dir().join(self.suite);
        let recipe = format!("{PACKAGES}\n{SIZE}\n{UNIT}");
        if fs::read_to_string(place.join("recipe")).is_ok_and(|made| made == recipe) {
            return Ok(System::in_folder(&place));
        }
        step(&format!("making a Debian {self} (once, some minutes)"));
        let aside = dir().join(format!("{}.part", self.suite));
        empty_dir(&aside)?;
        let tree = aside.join("tree");
        self.bootstrap(&tree).context("cannot make it; this needs the network, for Debian's packages")?;

        fs::write(tree.join(UNIT_PLACE), UNIT)?;
        fs::create_dir_all(tree.join(WANTED))?;
        std::os::unix::fs::symlink(
            Path::new("/").join(UNIT_PLACE),
            tree.join(WANTED).join("operator.service"),
        )?;
        fs::write(tree.join(PERMISSION), "")?;
        // The guest has no name server, and should not wait for one.
        fs::write(tree.join("etc/resolv.conf"), "")?;
        let system = System::in_folder(&aside);
        // Links at the root of the file system to the newest, which is the only one.
        for (link, to) in [("vmlinuz", &system.kernel), ("initrd.img", &system.initrd)] {
            fs::copy(tree.join(link), to).with_context(|| format!("the new Debian has no {link}"))?;
        }
        image(&tree, &system.disk, SIZE)?;
        remove_dir(&tree)?;
        fs::write(aside.join("recipe"), recipe)?;
        remove_dir(&place)?;
        rename(&aside, &place)?;
        Ok(System::in_folder(&place))
    }

    fn bootstrap(self, tree: &Path) -> Result<()> {
        run(command("mmdebstrap")
            .args(["--quiet", "--mode=root", "--variant=apt", "--format=directory"])
            .args([&format!("--keyring={KEYRING}"), &format!("--include={PACKAGES}"), self.suite])
            .arg(tree)
            .arg(mirror()?))
    }
}

impl System {
    fn in_folder(folder: &Path) -> Self {
        let [disk, kernel, initrd, console] =
            ["disk.img", "vmlinuz", "initrd.img", "console.log"].map(|name| folder.join(name));
        Self { disk, kernel, initrd, console }
    }
}

/// Makes a file system with the content of `folder`, without mounting it.
pub(super) fn image(folder: &Path, image: &Path, size: &str) -> Result<()> {
    drop(fs::remove_file(image));
    run(command("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(folder).arg(image).arg(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_a_number() {
        assert_eq!(release("13"), Ok(ALL[1]));
        assert_eq!(release("11"), Err("the releases are 12 and 13".to_owned()));
    }
}
