//! What lies in the BPF file system: `BPFFS/tfo/IFACE/N/` with the pinned maps and links, and the controller's lock.
//!
//! The state outlives the controller. Whoever holds the lock on an interface's folder is its controller.
//!
//! A set of maps with the links of the programs that use it is a [`Generation`], in a folder of its own. A change makes the next
//! one and moves the links there, last that of the XDP program: the generation that has it is in force, and whoever finds it
//! finds the rest complete.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount, umount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};
use tfo_common::names;
use tracing::{debug, warn};

/// Where systemd, bpftool and libbpf mount the BPF file system, too.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
/// Our directory in it.
const OURS: &str = "tfo";
/// The pinned link, beside the maps.
const LINK: &str = "link";
/// A link that is to take its place.
const NEXT_LINK: &str = "link-next";
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

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes sure that it is mounted: the one at the usual place is mounted where it isn't, as libbpf and bpftool do.
    /// The guard undoes that.
    pub fn mount(&self) -> Result<MountGuard> {
        let root = self.root.display();
        if self.is_mounted()? {
            return Ok(MountGuard(None));
        }
        if self.root != Path::new(DEFAULT_BPFFS) {
            bail!("{root} is not a BPF file system: mount one there (mount -t bpf -o mode=0700 bpf {root})");
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

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every generation, the oldest first.
    pub fn generations(&self) -> Result<Vec<Generation>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.dir.display())),
        };
        let mut numbers = Vec::new();
        let mut has_pins = false;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", self.dir.display()))?;
            match entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) {
                Some(number) => numbers.push(number),
                None => has_pins = true,
            }
        }
        numbers.sort_unstable();
        let flat = has_pins.then(|| Generation { number: 0, dir: self.dir.clone() });
        Ok(flat.into_iter().chain(numbers.into_iter().map(|number| self.generation(number))).collect())
    }

    /// The generation of this number, from 1 on. Number 0 is what tfo before 0.2 pinned, without a folder of its own.
    fn generation(&self, number: u32) -> Generation {
        Generation { number, dir: self.dir.join(number.to_string()) }
    }

    /// The generation in force: the newest that has the link of the XDP program.
    pub fn in_force(&self) -> Result<Option<Generation>> {
        let mut generations = self.generations()?;
        while let Some(generation) = generations.pop() {
            if generation.has_link()? {
                return Ok(Some(generation));
            }
        }
        Ok(None)
    }

    /// The generation in force; an error where there is none.
    pub fn current(&self) -> Result<Generation> {
        self.in_force()?.with_context(|| format!("there is no link in {}", self.dir.display()))
    }

    /// Whether a link is pinned: once it is gone, the program is detached.
    pub fn has_link(&self) -> Result<bool> {
        Ok(self.in_force()?.is_some())
    }

    /// Whether connections are followed.
    pub fn has_outcomes(&self) -> Result<bool> {
        self.in_force()?.map_or(Ok(false), |generation| exists(&generation.outcomes_link()))
    }

    /// Makes the folder, if need be, and takes the controller's lock on it; waits that long for whoever has it.
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
            self.is_trusted()?;
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

    /// Fails where somebody else than the user who runs this could have put into our folders what lies there.
    fn is_trusted(&self) -> Result<()> {
        for dir in [self.dir.parent(), Some(self.dir.as_path())].into_iter().flatten() {
            let shown = dir.display();
            let found = fs::symlink_metadata(dir).with_context(|| format!("cannot examine {shown}"))?;
            let mode = found.mode() & 0o7777;
            let wrong = if found.is_symlink() || !found.is_dir() {
                "is no folder".to_owned()
            } else if found.uid() != geteuid().as_raw() {
                format!("belongs to user {}", found.uid())
            } else if mode & 0o022 != 0 {
                format!("can be written by others (mode {mode:04o})")
            } else {
                continue;
            };
            bail!(
                "{shown} {wrong}: what is pinned there may be somebody else's; remove it, or give another BPF file system \
                 (--bpffs)"
            );
        }
        Ok(())
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

    /// Removes the links, which detaches the programs: that of the XDP program first.
    pub fn remove_links(&self) -> Result<()> {
        let generations = self.generations()?;
        generations.iter().rev().try_for_each(|generation| remove_if_there(&generation.link()))?;
        generations.iter().try_for_each(|generation| remove_if_there(&generation.outcomes_link()))
    }

    /// What names these pins for as long as the folder exists, and no other folder before or after: its file system and inode.
    pub fn identity(&self) -> Result<(u64, u64)> {
        let found =
            fs::metadata(&self.dir).with_context(|| format!("cannot examine {}", self.dir.display()))?;
        Ok((found.dev(), found.ino()))
    }
}

/// A set of maps, and the links of the programs that use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    number: u32,
    dir: PathBuf,
}

impl Generation {
    /// Its number: a later one has a higher number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the map called `name` is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where the link of the XDP program is pinned.
    pub fn link(&self) -> PathBuf {
        self.dir.join(LINK)
    }

    /// Where a link is pinned that is to take the place of [`link`](Self::link).
    pub fn next_link(&self) -> PathBuf {
        self.dir.join(NEXT_LINK)
    }

    /// Where the link of the program that follows connections is pinned.
    pub fn outcomes_link(&self) -> PathBuf {
        self.dir.join(OUTCOMES_LINK)
    }

    /// Whether it has the link of the XDP program.
    pub fn has_link(&self) -> Result<bool> {
        exists(&self.link())
    }

    /// Removes it, and whatever of it is there.
    pub fn remove(&self) -> Result<()> {
        remove_if_there(&self.link())?;
        remove_if_there(&self.next_link())?;
        remove_if_there(&self.outcomes_link())?;
        for name in MAPS {
            remove_if_there(&self.map(name))?;
            // Set aside by tfo before 0.2.
            remove_if_there(&self.dir.join(format!("{name}-old")))?;
        }
        // Without a folder of its own it leaves that to the others.
        if self.number == 0 { Ok(()) } else { remove_dir(&self.dir) }
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

    /// A new generation, which has a folder and nothing in it.
    pub fn next_generation(&self) -> Result<Generation> {
        let last = self.generations()?.last().map_or(0, Generation::number);
        let number =
            last.checked_add(1).with_context(|| format!("no number is left in {}", self.dir.display()))?;
        let next = self.generation(number);
        DirBuilder::new()
            .mode(0o700)
            .create(&next.dir)
            .with_context(|| format!("cannot make the pin folder {}", next.dir.display()))?;
        Ok(next)
    }

    /// Removes every generation but `kept`.
    pub fn remove_others(&self, kept: &Generation) -> Result<()> {
        self.generations()?.iter().filter(|other| *other != kept).try_for_each(Generation::remove)
    }

    /// Removes the links, which detaches the programs, then the rest.
    pub fn remove(&self) -> Result<()> {
        self.remove_links()?;
        self.generations()?.iter().try_for_each(Generation::remove)?;
        remove_dir(&self.dir)?;
        match self.dir.parent().map_or(Ok(()), fs::remove_dir) {
            // Ours, but not only ours: another interface is in it.
            Err(error)
                if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) =>
            {
                Err(error).with_context(|| format!("cannot remove the folder above {}", self.dir.display()))
            }
            _ => Ok(()),
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

/// Gives the file at `from` the name `to`, in one step, whatever had that; does nothing where there is none.
pub(crate) fn rename_if_there(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
        }
        _ => Ok(()),
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
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
