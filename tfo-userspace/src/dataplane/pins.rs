//! Pins of maps and links in the BPF file system, in folders `BPFFS/tfo/IFACE/N/`, and the controller's lock.
//!
//! The state outlives the controller. The process that holds the lock on an interface's folder is its controller.
//!
//! A [`Generation`] is a set of maps with the links of the programs that use it, in a folder of its own. A change makes
//! the next generation and moves the links there, the XDP program's link last. The generation with this link is in
//! force, and all its other pins are there.

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

/// Path at which systemd, bpftool and libbpf mount the BPF file system, too.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
/// Name of our folder in it.
const OURS: &str = "tfo";
/// Name of the folder with one for each network namespace that `--netns` has named. Interfaces of different namespaces
/// may have the same name.
const OTHERS: &str = "tfo-netns";
/// File name of the XDP program's link, beside the maps.
const LINK: &str = "link";
/// File name of a link that is about to replace it.
const NEXT_LINK: &str = "link-next";
/// File name of the link of the program that follows connections.
const OUTCOMES_LINK: &str = "outcomes-link";
/// File names of the XDP program, of the program that follows connections, and of the one that hands out portable cookies. A
/// link shows only the id of its program, and
/// opening a program by its id takes CAP_SYS_ADMIN. By these pins a change can be taken back without it.
const PROGRAMS: [&str; 3] = ["program", "outcomes-program", "egress-program"];
/// File name of the link of the program that hands out portable cookies (tcx).
const EGRESS_LINK: &str = "egress-link";
/// File name of a second pin of this program. It says that a filter on the qdisc clsact attaches the program, which no link
/// does before Linux 6.6.
const EGRESS_FILTER: &str = "egress-filter";
/// File name of a second pin of the program for packets that arrive, where a filter attaches it instead of a link at tcx. It
/// stands for that link.
const INGRESS_FILTER: &str = "ingress-filter";
/// Names of the maps that are pinned.
pub const MAPS: [&str; 25] = [
    names::COUNTERS,
    names::SAMPLERS,
    names::KEYS,
    names::INFO,
    names::SERVICES,
    names::PORTS,
    names::WATCH,
    names::PREFIXES,
    names::PENDING,
    names::CHILDREN,
    names::OUTCOMES,
    names::CLIENT,
    names::NETWORKS,
    names::CALLERS,
    names::CARRIED,
    names::EVENTS,
    names::POLICIES,
    names::ADDRESSES,
    names::HIDDEN,
    names::HIDE_FILTER,
    names::SOURCES,
    names::FORGERS,
    names::UNKNOWN,
    names::REPLAYS,
    names::REQUESTS,
];

/// A BPF file system, and which of our pins in it are meant.
#[derive(Clone, Debug)]
pub struct Bpffs {
    root: PathBuf,
    scope: Scope,
}

/// Network namespaces whose pins are meant.
#[derive(Clone, Debug)]
enum Scope {
    /// The one in which nobody named it.
    Unnamed,
    /// The one of this name.
    Named(String),
    /// All that have pins.
    All,
}

impl Bpffs {
    /// Returns the file system at `root`, which need not be mounted yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), scope: Scope::Unnamed }
    }

    /// Returns the pins for the network namespace called `name`.
    pub fn of_netns(&self, name: &str) -> Self {
        Self { root: self.root.clone(), scope: Scope::Named(name.to_owned()) }
    }

    /// Returns the pins for all network namespaces.
    pub fn of_all(&self) -> Self {
        Self { root: self.root.clone(), scope: Scope::All }
    }

    /// Returns the name of the network namespace; `None` for the one in which nobody named it.
    pub fn netns(&self) -> Option<&str> {
        match &self.scope {
            Scope::Named(name) => Some(name),
            Scope::Unnamed | Scope::All => None,
        }
    }

    /// Returns the folder with those of the interfaces.
    fn ours(&self) -> PathBuf {
        match self.netns() {
            None => self.root.join(OURS),
            Some(name) => self.root.join(OTHERS).join(encode(name)),
        }
    }

    /// Returns the path of its root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Mounts the file system if it is missing at the usual path, as libbpf and bpftool do; fails if it is missing at
    /// another path. Dropping the result unmounts it again.
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

    /// Returns the pins of `interface`.
    pub fn pins(&self, interface: &str) -> Pins {
        Pins {
            interface: interface.to_owned(),
            netns: self.netns().map(str::to_owned),
            dir: self.ours().join(encode(interface)),
        }
    }

    /// Returns the pins with this [full name](Pins::full_name).
    pub fn named(&self, full_name: &str) -> Pins {
        match full_name.split_once('/') {
            Some((netns, interface)) => self.of_netns(netns).pins(interface),
            None => Self::new(&self.root).pins(full_name),
        }
    }

    /// Returns the pins of interfaces with an attached program, sorted by name. An attachment in progress is left out.
    pub fn attached(&self) -> Result<impl Iterator<Item = Pins>> {
        Ok(self.all()?.into_iter().filter(|pins| pins.has_link().unwrap_or(false)))
    }

    /// Returns the pins of every interface, sorted by namespace and name. The list is empty if nothing is mounted at the usual path.
    pub fn all(&self) -> Result<Vec<Pins>> {
        let ours = self.ours();
        let found = names(&ours)?;
        // At the usual path, nothing need be mounted yet. At another path, that is a mistake.
        if found.is_none() && self.root != Path::new(DEFAULT_BPFFS) && !self.is_mounted()? {
            bail!("{} is not a BPF file system", self.root.display());
        }
        let mut names = found.unwrap_or_default();
        names.sort();
        let mut all: Vec<_> = names.iter().map(|name| self.pins(name)).collect();
        if matches!(self.scope, Scope::All) {
            let mut others = self::names(&self.root.join(OTHERS))?.unwrap_or_default();
            others.sort();
            for name in others {
                all.extend(self.of_netns(&name).all()?);
            }
        }
        Ok(all)
    }
}

/// Returns the decoded names in the folder `dir`; `None` if there is none.
fn names(dir: &Path) -> Result<Option<Vec<String>>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            bail!("cannot read {}: run it with sudo", dir.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", dir.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
        names.extend(entry.file_name().to_str().map(decode));
    }
    Ok(Some(names))
}

/// Result of [`Bpffs::mount`]. Dropping it unmounts what that mounted, if the file system is still unused.
#[derive(Debug)]
#[must_use]
pub struct MountGuard(Option<PathBuf>);

impl MountGuard {
    /// Whether its end unmounts the file system.
    pub fn is_ours(&self) -> bool {
        self.0.is_some()
    }
}

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

/// Whether a BPF file system holds only files that the kernel puts into a new one (`maps.debug` …).
fn is_unused(root: &Path) -> bool {
    let is_kernels = |entry: fs::DirEntry| entry.path().extension().is_some_and(|end| end == "debug");
    fs::read_dir(root).is_ok_and(|entries| entries.flatten().all(is_kernels))
}

/// The pins of one interface.
#[derive(Clone, Debug)]
pub struct Pins {
    interface: String,
    netns: Option<String>,
    dir: PathBuf,
}

impl Pins {
    /// Returns the interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Returns the name of the network namespace; `None` for the one in which nobody named it.
    pub fn netns(&self) -> Option<&str> {
        self.netns.as_deref()
    }

    /// Returns the interface's name behind that of its network namespace, if that has one: `web/eth0`. Neither has a slash.
    pub fn full_name(&self) -> String {
        match &self.netns {
            Some(netns) => format!("{netns}/{}", self.interface),
            None => self.interface.clone(),
        }
    }

    /// Returns the path of the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns all generations, the oldest first.
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

    /// Returns the generation with this number, from 1 on. Number 0 stands for the pins of tfo before 0.2, which had no
    /// folder of their own.
    fn generation(&self, number: u32) -> Generation {
        Generation { number, dir: self.dir.join(number.to_string()) }
    }

    /// Returns the generation in force, which is the newest with the link of the XDP program.
    pub fn in_force(&self) -> Result<Option<Generation>> {
        let mut generations = self.generations()?;
        while let Some(generation) = generations.pop() {
            if generation.has_link()? {
                return Ok(Some(generation));
            }
        }
        Ok(None)
    }

    /// Returns the generation in force, or an error if there is none.
    pub fn current(&self) -> Result<Generation> {
        self.in_force()?.with_context(|| format!("there is no link in {}", self.dir.display()))
    }

    /// Returns whether a link of the XDP program is pinned. Without it, the program is detached.
    pub fn has_link(&self) -> Result<bool> {
        Ok(self.in_force()?.is_some())
    }

    /// Returns whether connections are followed.
    pub fn has_outcomes(&self) -> Result<bool> {
        self.in_force()?.map_or(Ok(false), |generation| exists(&generation.outcomes_link()))
    }

    /// Returns whether portable cookies are handed out.
    pub fn has_egress(&self) -> Result<bool> {
        self.in_force()?.map_or(Ok(false), |generation| generation.has_egress())
    }

    /// Returns whether filters on the qdisc clsact are ours, for packets that leave and for those that arrive.
    pub fn has_filters(&self) -> Result<[bool; 2]> {
        let generations = self.generations()?;
        let filters = [Generation::egress_filter, Generation::ingress_filter];
        Ok(filters.map(|filter| generations.iter().any(|generation| filter(generation).exists())))
    }

    /// Takes the controller's lock on the folder, which it creates if need be. If another process has the lock, it
    /// waits for up to `patience`.
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
            self.ensure_trusted()?;
            // Until we have the lock, the folder may be removed and another one made.
            match self.try_lock(FlockArg::LockExclusiveNonblock)? {
                Some(lock) if self.is_at_path(&lock) => {
                    return Ok(Locked { pins: self.clone(), keep: !created, lock });
                }
                _ if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
                _ => bail!("another tfo already runs on {} (it holds {dir})", self.interface),
            }
        }
    }

    /// Fails if another user could have put files into our folders.
    fn ensure_trusted(&self) -> Result<()> {
        // The folder of the file system itself is the mount's.
        let depth = if self.netns.is_some() { 3 } else { 2 };
        for dir in self.dir.ancestors().take(depth) {
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

    /// Returns whether a controller holds the lock.
    pub fn has_controller(&self) -> Result<bool> {
        Ok(exists(&self.dir)? && self.try_lock(FlockArg::LockSharedNonblock)?.is_none())
    }

    /// Takes a lock on the folder. Returns `None` if somebody else has the lock, or the folder is gone.
    fn try_lock(&self, kind: FlockArg) -> Result<Option<Flock<File>>> {
        let dir = match File::open(&self.dir) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", self.dir.display())),
        };
        match Flock::lock(dir, kind) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", self.dir.display())),
        }
    }

    /// Whether the locked folder is still the one at the path.
    fn is_at_path(&self, lock: &Flock<File>) -> bool {
        let at_path = fs::metadata(&self.dir);
        let locked = lock.metadata();
        at_path.is_ok_and(|at_path| locked.is_ok_and(|locked| at_path.ino() == locked.ino()))
    }

    /// Removes the links, the XDP program's first, which detaches the programs.
    pub fn remove_links(&self) -> Result<()> {
        let generations = self.generations()?;
        // No portable cookie is handed out that is not translated any more.
        generations.iter().try_for_each(|generation| remove_if_there(&generation.egress_link()))?;
        for generation in generations.iter().rev() {
            remove_if_there(&generation.link())?;
            remove_if_there(&generation.ingress_filter())?;
        }
        generations.iter().try_for_each(|generation| remove_if_there(&generation.outcomes_link()))
    }

    /// Returns the folder's device and inode numbers, which no folder before or after it has.
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
    /// Returns the number. Later generations have higher numbers.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns the path of the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the pin path of the map called `name`.
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the pin path of the XDP program's link.
    pub fn link(&self) -> PathBuf {
        self.dir.join(LINK)
    }

    /// Returns the path of the pin that says that a filter attaches the program for packets that arrive.
    pub fn ingress_filter(&self) -> PathBuf {
        self.dir.join(INGRESS_FILTER)
    }

    /// Returns the pin path of a link that is about to replace the one at [`link`](Self::link).
    pub fn next_link(&self) -> PathBuf {
        self.dir.join(NEXT_LINK)
    }

    /// Returns the pin path of the link of the program that follows connections.
    pub fn outcomes_link(&self) -> PathBuf {
        self.dir.join(OUTCOMES_LINK)
    }

    /// Returns the pin path of the XDP program.
    pub fn program(&self) -> PathBuf {
        self.dir.join(PROGRAMS[0])
    }

    /// Returns the pin path of the program that follows connections.
    pub fn outcomes_program(&self) -> PathBuf {
        self.dir.join(PROGRAMS[1])
    }

    /// Returns the pin path of the program that hands out portable cookies.
    pub fn egress_program(&self) -> PathBuf {
        self.dir.join(PROGRAMS[2])
    }

    /// Returns the pin path of its link.
    pub fn egress_link(&self) -> PathBuf {
        self.dir.join(EGRESS_LINK)
    }

    /// Returns the path of the pin that says that a filter attaches it.
    pub fn egress_filter(&self) -> PathBuf {
        self.dir.join(EGRESS_FILTER)
    }

    /// Returns whether the XDP program's link is pinned in this generation, or what stands for it.
    pub fn has_link(&self) -> Result<bool> {
        Ok(exists(&self.link())? || exists(&self.ingress_filter())?)
    }

    /// Returns whether portable cookies are handed out by a link or a filter that is pinned in this generation.
    pub fn has_egress(&self) -> Result<bool> {
        Ok(exists(&self.egress_link())? || exists(&self.egress_filter())?)
    }

    /// Removes all pins of the generation, and its folder.
    pub fn remove(&self) -> Result<()> {
        remove_if_there(&self.link())?;
        remove_if_there(&self.ingress_filter())?;
        remove_if_there(&self.next_link())?;
        remove_if_there(&self.outcomes_link())?;
        remove_if_there(&self.egress_link())?;
        remove_if_there(&self.egress_filter())?;
        for name in PROGRAMS {
            remove_if_there(&self.dir.join(name))?;
        }
        for name in MAPS {
            remove_if_there(&self.map(name))?;
            // tfo before 0.2 set maps aside under this name.
            remove_if_there(&self.dir.join(format!("{name}-old")))?;
        }
        // Number 0 lies in the interface's folder, which has the folders of the others.
        if self.number == 0 { Ok(()) } else { remove_dir(&self.dir) }
    }
}

/// The pins of an interface whose controller we are. If [`Pins::lock`] created the folder, all is removed on drop,
/// unless [kept](Self::keep).
#[derive(Debug)]
pub struct Locked {
    pins: Pins,
    keep: bool,
    lock: Flock<File>,
}

impl Locked {
    /// Lets the pins outlive this value.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Whether the locked folder is still the one at the path, so that we still are the controller.
    pub fn is_current(&self) -> bool {
        self.pins.is_at_path(&self.lock)
    }

    /// Makes a new generation with an empty folder.
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

    /// Removes the links, which detaches the programs, then all other pins.
    pub fn remove(&self) -> Result<()> {
        self.remove_links()?;
        self.generations()?.iter().try_for_each(Generation::remove)?;
        remove_dir(&self.dir)?;
        let above = if self.netns.is_some() { 2 } else { 1 };
        for folder in self.dir.ancestors().skip(1).take(above) {
            match fs::remove_dir(folder) {
                // It may have the pins of other interfaces.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => break,
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
                }
                _ => {}
            }
        }
        Ok(())
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

/// Renames `from` to `to` in one step, and replaces a file that is there. Does nothing if `from` does not exist.
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

/// Encodes an interface's name as a file name. The BPF file system reserves names with a dot (`bpf_lookup`), which VLAN
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
