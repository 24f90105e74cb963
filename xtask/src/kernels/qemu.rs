//! QEMU: the one that is installed, or a newer one from Debian's backports, unpacked under `target/tools`.

use std::{ffi::OsString, path::PathBuf};

use anyhow::{Result, ensure};

use crate::{
    apt::Apt,
    libraries, packages,
    workspace::{command, output, remove_dir, rename, step, tools},
};

/// Program, and the package that has it.
const PROGRAM: packages::Program = ("qemu-system-x86_64", "qemu-system-x86");

/// Suite of Debian with the newer QEMU, which needs no other libraries than that of Debian 12.
const SUITE: &str = "bookworm-backports";

/// Packages of the newer QEMU: programs, and the firmware that they load.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];

/// Emulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Qemu {
    /// The one in `PATH`.
    Installed,
    /// The one that is unpacked in this folder.
    Unpacked(PathBuf),
}

impl Qemu {
    /// Returns the one that is installed; it installs Debian's where there is none.
    pub(crate) fn installed() -> Result<Self> {
        packages::ensure(&[PROGRAM])?;
        Ok(Self::Installed)
    }

    /// Returns one that has a model of `device`.
    pub(crate) fn with_device(device: &str) -> Result<Self> {
        let installed = Self::installed()?;
        if installed.has(device)? {
            return Ok(installed);
        }
        let unpacked = Self::unpacked()?;
        ensure!(
            unpacked.has(device)?,
            "neither QEMU knows {device}: the one that is installed, nor that of {SUITE}"
        );
        Ok(unpacked)
    }

    fn unpacked() -> Result<Self> {
        let place = tools().join("qemu");
        if !place.is_dir() {
            step(&format!("unpacking QEMU of {SUITE} under target/tools"));
            let aside = tools().join("qemu.part");
            remove_dir(&aside)?;
            let apt = Apt::new(aside.join("apt"), SUITE)?;
            let files = aside.join("files");
            PACKAGES.iter().try_for_each(|package| apt.unpack(package, &files))?;
            // It fails where a library is missing.
            libraries::of(&files.join("usr/bin").join(PROGRAM.0))?;
            rename(&files, &place)?;
            remove_dir(&aside)?;
        }
        Ok(Self::Unpacked(place))
    }

    /// Returns the program with its first arguments.
    pub(super) fn command(&self) -> Vec<OsString> {
        match self {
            Self::Installed => vec![PROGRAM.0.into()],
            Self::Unpacked(dir) => {
                let mut words = vec![dir.join("usr/bin").join(PROGRAM.0).into_os_string()];
                for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                    words.extend(["-L".into(), dir.join(firmware).into_os_string()]);
                }
                words
            }
        }
    }

    /// Whether it has a model of `device`.
    ///
    /// It asks for this device alone. For a list of all, an unpacked QEMU would load the modules of an installed one.
    fn has(&self, device: &str) -> Result<bool> {
        let words = self.command();
        let help = output(command(&words[0]).args(["-device", &format!("{device},help")]))?;
        // Where it has none, it says so on its standard error, and ends with status 0.
        Ok(help.starts_with(&format!("{device} options:")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_lies_beside_an_unpacked_program() {
        let words = Qemu::Unpacked("/q".into()).command();
        assert_eq!(words[0], "/q/usr/bin/qemu-system-x86_64");
        assert_eq!(words[1..3], ["-L", "/q/usr/share/qemu"]);
        assert_eq!(Qemu::Installed.command(), ["qemu-system-x86_64"]);
    }
}
