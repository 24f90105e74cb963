//! What lies in the BPF file system: `BPFFS/tfo/IFACE/` with the pinned maps and the link, and the controller's lock.
//!
//! The state outlives the controller. Whoever holds the lock on an interface's directory is its controller.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use log::debug;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount, umount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use tfo_common::names;

/// Where systemd, bpftool and libbpf mount the BPF file system, too.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
/// Our directory in it.
const OURS: &str = "tfo";
/// The pinned link, beside the maps.
const LINK: &str = "link";
/// The maps that are pinned.
pub const MAPS: [&str; 3] = [names::COUNTERS, names::KEYS, names::INFO];

/// A BPF file system.
#[derive(Clone, Debug)]
pub struct Bpffs {
    root: PathBuf,
}

impl Bpffs {
    /// The one at `root`, which need not be mounted yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Makes sure that it is mounted: the one at the usual place is mounted where it isn't, as libbpf and bpftool do.
    /// The guard undoes that.
    pub fn mount(&self) -> Result<MountGuard> {
        let root = self.root.display();
        match statfs(&self.root) {
            Ok(stat) if stat.filesystem_type() == BPF_FS_MAGIC => return Ok(MountGuard(None)),
            Ok(_) if self.root == Path::new(DEFAULT_BPFFS) => {}
            Ok(_) => bail!("{root} is not a BPF file system: mount one there (mount -t bpf bpf {root})"),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot use {root} as the BPF file system"));
            }
        }
        mount(Some("bpf"), &self.root, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("cannot mount a BPF file system at {root}"))?;
        debug!("mounted a BPF file system at {root}");
        Ok(MountGuard(Some(self.root.clone())))
    }

    /// The pins of `interface`.
    pub fn pins(&self, interface: &str) -> Pins {
        Pins { interface: interface.to_owned(), dir: self.root.join(OURS).join(encode(interface)) }
    }

    /// Every interface that has pins, in the order of their names. None where nothing is mounted.
    pub fn all(&self) -> Result<Vec<Pins>> {
        let ours = self.root.join(OURS);
        let entries = match fs::read_dir(&ours) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", ours.display())),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", ours.display()))?;
            names.extend(entry.file_name().to_str().map(decode));
        }
        names.sort();
        Ok(names.iter().map(|name| self.pins(name)).collect())
    }
}

/// Unmounts what [`Bpffs::mount`] mounted, if nobody has put anything into it since.
#[derive(Debug)]
#[must_use]
pub struct MountGuard(Option<PathBuf>);

impl Drop for MountGuard {
    fn drop(&mut self) {
        if let Some(root) = &self.0
            && is_unused(root)
            && let Err(error) = umount(root)
        {
            debug!("leaving the BPF file system mounted at {}: {error}", root.display());
        }
    }
}

/// Whether a BPF file system holds nothing but what the kernel itself puts into a new one (`maps.debug` …).
fn is_unused(root: &Path) -> bool {
    let is_kernels = |entry: fs::DirEntry| entry.path().extension().is_some_and(|end| end == "debug");
    fs::read_dir(root).is_ok_and(|entries| entries.flatten().all(is_kernels))
}

/// The pins of one interface.
#[derive(Clone, Debug)]
pub struct Pins {
    interface: String,
    dir: PathBuf,
}

impl Pins {
    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the map called `name` is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where the link is pinned.
    pub fn link(&self) -> PathBuf {
        self.dir.join(LINK)
    }

    /// Whether a link is pinned: once it is gone, the program is detached.
    pub fn has_link(&self) -> bool {
        self.link().exists()
    }

    /// Makes the directory, if need be, and takes the controller's lock on it.
    pub fn lock(&self) -> Result<Locked> {
        let dir = self.dir.display();
        let created = !self.dir.exists();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .with_context(|| format!("cannot make the pin folder {dir}"))?;
        // A command that asks whether a controller runs holds the lock for an instant.
        let patience = Instant::now() + Duration::from_millis(500);
        loop {
            match self.try_lock(FlockArg::LockExclusiveNonblock)? {
                Some(lock) => {
                    return Ok(Locked { pins: self.clone(), keep: !created, _lock: lock });
                }
                None if Instant::now() < patience => std::thread::sleep(Duration::from_millis(20)),
                None => bail!("another tfo already runs on {} (it holds {dir})", self.interface),
            }
        }
    }

    /// Whether a controller holds the lock.
    pub fn has_controller(&self) -> Result<bool> {
        Ok(self.dir.exists() && self.try_lock(FlockArg::LockSharedNonblock)?.is_none())
    }

    fn try_lock(&self, how: FlockArg) -> Result<Option<Flock<File>>> {
        let dir = File::open(&self.dir).with_context(|| format!("cannot open {}", self.dir.display()))?;
        match Flock::lock(dir, how) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", self.dir.display())),
        }
    }

    /// Removes the link, which detaches the program, then the rest.
    pub fn remove(&self) -> Result<()> {
        remove_if_there(&self.link())?;
        self.remove_maps()?;
        for dir in [Some(self.dir.as_path()), self.dir.parent()].into_iter().flatten() {
            match fs::remove_dir(dir) {
                Ok(()) => {}
                // Ours, but not only ours: another interface is in it.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && dir != self.dir => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot remove {}", dir.display())),
            }
        }
        Ok(())
    }

    /// Removes the pinned maps. A program that runs keeps its own.
    pub fn remove_maps(&self) -> Result<()> {
        MAPS.iter().try_for_each(|name| remove_if_there(&self.map(name)))
    }
}

/// The pins of an interface whose controller we are. Unless [kept](Self::keep), what was made is removed on drop.
#[derive(Debug)]
pub struct Locked {
    pins: Pins,
    keep: bool,
    _lock: Flock<File>,
}

impl Locked {
    /// From now on the pins outlive this value.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl std::ops::Deref for Locked {
    type Target = Pins;

    fn deref(&self) -> &Pins {
        &self.pins
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.pins.remove()
        {
            debug!("{error:#}");
        }
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// An interface's name as a file name: the BPF file system reserves names with a dot (`bpf_lookup`), which VLAN
/// interfaces have.
fn encode(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn decode(file: &str) -> String {
    file.replace("%2e", ".").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_vlan_interfaces_survive() {
        for name in ["eth0", "eth0.100", "a%2eb", "%", "..."] {
            assert_eq!(decode(&encode(name)), name);
            assert!(!encode(name).contains('.'));
        }
    }
}
