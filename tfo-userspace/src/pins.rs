//! What lies in the BPF file system: `BPFFS/tfo/IFACE/` with the pinned maps and the link, and the controller's lock.
//!
//! The state outlives the controller. Whoever holds the lock on an interface's directory is its controller.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use log::{debug, warn};
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
/// The pinned link of the program that follows connections.
const OUTCOMES_LINK: &str = "outcomes-link";
/// The maps that are pinned.
pub const MAPS: [&str; 19] = [
    names::COUNTERS,
    names::SAMPLERS,
    names::KEYS,
    names::INFO,
    names::SERVICES,
    names::PORTS,
    names::WATCH,
    names::PREFIXES,
    names::PENDING,
    names::OUTCOMES,
    names::CARRIED,
    names::EVENTS,
    names::POLICIES,
    names::ADDRESSES,
    names::HIDDEN,
    names::SOURCES,
    names::FORGERS,
    names::UNKNOWN,
    names::REPLAYS,
];

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
        if self.is_mounted()? {
            return Ok(MountGuard(None));
        }
        if self.root != Path::new(DEFAULT_BPFFS) {
            bail!("{root} is not a BPF file system: mount one there (mount -t bpf bpf {root})");
        }
        mount(Some("bpf"), &self.root, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("cannot mount a BPF file system at {root}"))?;
        debug!("mounted a BPF file system at {root}");
        if fs::read_link("/proc/self/ns/mnt").ok() != fs::read_link("/proc/1/ns/mnt").ok() {
            warn!(
                "mounted a BPF file system at {root} in a mount namespace of its own, such as `ip netns exec` makes: other \
                 commands find this tfo only from within, and its state ends with it; `nsenter --net=…` avoids that"
            );
        }
        Ok(MountGuard(Some(self.root.clone())))
    }

    fn is_mounted(&self) -> Result<bool> {
        let stat = statfs(&self.root).map_err(io::Error::from);
        let stat =
            stat.with_context(|| format!("cannot use {} as the BPF file system", self.root.display()))?;
        Ok(stat.filesystem_type() == BPF_FS_MAGIC)
    }

    /// The pins of `interface`.
    pub fn pins(&self, interface: &str) -> Pins {
        Pins { interface: interface.to_owned(), dir: self.root.join(OURS).join(encode(interface)) }
    }

    /// What is attached, in the order of the interfaces' names. What is just being attached is not there yet.
    pub fn attached(&self) -> Result<impl Iterator<Item = Pins>> {
        Ok(self.all()?.into_iter().filter(|pins| pins.has_link().unwrap_or(false)))
    }

    /// Every interface that has pins, in the order of their names. None where nothing is mounted.
    pub fn all(&self) -> Result<Vec<Pins>> {
        let ours = self.root.join(OURS);
        let entries = match fs::read_dir(&ours) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // At the usual place nothing need be mounted yet; anywhere else it is a mistake.
                if self.root != Path::new(DEFAULT_BPFFS) && !self.is_mounted()? {
                    bail!("{} is not a BPF file system", self.root.display());
                }
                return Ok(Vec::new());
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                bail!("cannot read {}: run it with sudo", ours.display())
            }
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

    /// Where the link of the program that follows connections is pinned.
    pub fn outcomes_link(&self) -> PathBuf {
        self.dir.join(OUTCOMES_LINK)
    }

    /// Whether connections are followed.
    pub fn has_outcomes(&self) -> Result<bool> {
        exists(&self.outcomes_link())
    }

    /// Whether a link is pinned: once it is gone, the program is detached.
    pub fn has_link(&self) -> Result<bool> {
        exists(&self.link())
    }

    /// How many of [`MAPS`] are pinned.
    pub fn maps(&self) -> Result<usize> {
        MAPS.iter().try_fold(0, |sum, name| Ok(sum + usize::from(exists(&self.map(name))?)))
    }

    /// Makes the directory, if need be, and takes the controller's lock on it; waits that long for whoever has it.
    pub fn lock(&self, patience: Duration) -> Result<Locked> {
        let dir = self.dir.display();
        let end = Instant::now() + patience;
        let mut created = false;
        loop {
            created |= !exists(&self.dir)?;
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.dir)
                .with_context(|| format!("cannot make the pin folder {dir}"))?;
            // The folder may be removed, and another made, at any time before the lock is ours.
            match self.try_lock(FlockArg::LockExclusiveNonblock)? {
                Some(lock) if self.is_at_path(&lock) => {
                    return Ok(Locked { pins: self.clone(), keep: !created, lock });
                }
                _ if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
                _ => bail!("another tfo already runs on {} (it holds {dir})", self.interface),
            }
        }
    }

    /// Whether a controller holds the lock.
    pub fn has_controller(&self) -> Result<bool> {
        Ok(exists(&self.dir)? && self.try_lock(FlockArg::LockSharedNonblock)?.is_none())
    }

    /// `None` where somebody else has the lock, or the folder has gone.
    fn try_lock(&self, how: FlockArg) -> Result<Option<Flock<File>>> {
        let dir = match File::open(&self.dir) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", self.dir.display())),
        };
        match Flock::lock(dir, how) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", self.dir.display())),
        }
    }

    /// Whether the folder that is locked is still the one at the path.
    fn is_at_path(&self, lock: &Flock<File>) -> bool {
        let at_path = fs::metadata(&self.dir);
        let locked = lock.metadata();
        at_path.is_ok_and(|at_path| locked.is_ok_and(|locked| at_path.ino() == locked.ino()))
    }

    /// Removes the link, which detaches the program.
    pub fn remove_link(&self) -> Result<()> {
        remove_if_there(&self.link())
    }
}

/// The pins of an interface whose controller we are. Unless [kept](Self::keep), what was made is removed on drop.
#[derive(Debug)]
pub struct Locked {
    pins: Pins,
    keep: bool,
    lock: Flock<File>,
}

impl Locked {
    /// From now on the pins outlive this value.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Whether we still are the controller: nobody has removed the folder under us.
    pub fn is_current(&self) -> bool {
        self.pins.is_at_path(&self.lock)
    }

    /// Removes the link, which detaches the program, then the rest.
    pub fn remove(&self) -> Result<()> {
        let dir = self.dir.as_path();
        self.remove_link()?;
        remove_if_there(&self.outcomes_link())?;
        for name in MAPS {
            remove_if_there(&self.map(name))?;
            remove_if_there(&self.old_map(name))?;
        }
        for dir in [Some(dir), dir.parent()].into_iter().flatten() {
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

    /// Moves the pinned maps out of the way, until it is clear that they are needed no more.
    pub fn set_maps_aside(&self) -> Result<SetAside> {
        let aside = SetAside { pins: self.pins.clone(), restore: true };
        for name in MAPS {
            rename_if_there(&self.map(name), &self.old_map(name))?;
        }
        Ok(aside)
    }
}

impl Pins {
    fn old_map(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-old"))
    }
}

/// Maps that were moved out of the way: put back on drop, over whatever was pinned in their place, unless they were
/// [replaced](Self::replace).
#[derive(Debug)]
pub struct SetAside {
    pins: Pins,
    restore: bool,
}

impl SetAside {
    /// Removes them: the new ones are in force. A program that runs keeps its own.
    pub fn replace(mut self) -> Result<()> {
        self.restore = false;
        MAPS.iter().try_for_each(|name| remove_if_there(&self.pins.old_map(name)))
    }
}

impl Drop for SetAside {
    fn drop(&mut self) {
        for name in MAPS.iter().filter(|_| self.restore) {
            if let Err(error) = rename_if_there(&self.pins.old_map(name), &self.pins.map(name)) {
                warn!("{error:#}");
            }
        }
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
            && let Err(error) = self.remove()
        {
            debug!("{error:#}");
        }
    }
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().with_context(|| format!("cannot look for {}", path.display()))
}

fn rename_if_there(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the file at `path`, if there is one.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
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
