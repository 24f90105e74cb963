//! Network namespaces: which one a thread is in, and the way into another one.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    getsockopt_impl,
    sched::{CloneFlags, setns},
    sockopt_impl,
    sys::socket::getsockopt,
};
use socket2::{Domain, Socket, Type};

const NETNS: &str = "/proc/thread-self/ns/net";
/// Namespace of the host, or of the container in which we are.
const FIRST: &str = "/proc/1/ns/net";
/// Folder in which ip-netns(8) keeps namespaces by name.
const NAMED: &str = "/run/netns";

/// Namespace from which [`Netns::enter`] has come.
static CAME_FROM: OnceLock<File> = OnceLock::new();

/// Returns the inode number of the calling thread's network namespace, which identifies it.
pub fn netns() -> Result<u64> {
    inode(Path::new(NETNS))
}

fn inode(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.ino())
}

sockopt_impl!(
    /// SO_NETNS_COOKIE, Linux 5.14 and later.
    NetnsCookie, GetOnly, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, u64
);

/// Returns the cookie of the calling thread's network namespace, which identifies it in BPF programs. Linux 5.14 and
/// later.
pub fn netns_cookie() -> io::Result<u64> {
    Ok(getsockopt(&Socket::new(Domain::IPV4, Type::STREAM, None)?, NetnsCookie)?)
}

/// Network namespace other than the host's.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    inode: u64,
}

impl Netns {
    /// Finds the namespace that `text` means: a name of ip-netns(8), a path, or the ID of a process in it. Returns `None`
    /// for the namespace of process 1.
    pub fn find(text: &str) -> Result<Option<Self>> {
        let path = path_of(text)?;
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        // Opening the file follows it into the file system of namespaces, so this is the namespace's own number.
        let inode = file.metadata().with_context(|| format!("cannot examine {}", path.display()))?.ino();
        if self::inode(Path::new(FIRST)).is_ok_and(|first| first == inode) {
            return Ok(None);
        }
        Ok(Some(Self { name: name_of(inode), file, inode }))
    }

    /// Returns the name by which ip-netns(8) knows it, or else the number of its inode.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread there. Threads that it starts later are there, too.
    pub fn enter(&self) -> Result<()> {
        if netns()? == self.inode {
            return Ok(());
        }
        let home = File::open(NETNS).with_context(|| format!("cannot open {NETNS}"))?;
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the network namespace {}: it takes root", self.name))?;
        CAME_FROM.get_or_init(|| home);
        Ok(())
    }
}

/// Calls `work` in the namespace from which [`Netns::enter`] has come, or right here if nothing was entered.
pub fn outside<T>(work: impl FnOnce() -> T) -> Result<T> {
    let Some(home) = CAME_FROM.get() else { return Ok(work()) };
    let here = File::open(NETNS).with_context(|| format!("cannot open {NETNS}"))?;
    setns(home, CloneFlags::CLONE_NEWNET).context("cannot go back to the network namespace before")?;
    let done = work();
    setns(&here, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace again")?;
    Ok(done)
}

/// Returns the path of the namespace that `text` means.
fn path_of(text: &str) -> Result<PathBuf> {
    let named = Path::new(NAMED).join(text);
    if text.contains('/') {
        Ok(text.into())
    } else if !text.is_empty() && !text.starts_with('.') && named.exists() {
        Ok(named)
    } else if text.bytes().all(|letter| letter.is_ascii_digit()) && !text.is_empty() {
        Ok(format!("/proc/{text}/ns/net").into())
    } else {
        bail!(
            "there is no network namespace {text:?}: `ip netns` lists those with a name; for others, give a path or the ID of a \
             process"
        )
    }
}

/// Returns the name of the namespace with this inode.
fn name_of(inode: u64) -> String {
    let entries = fs::read_dir(NAMED).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter(|entry| self::inode(&entry.path()).is_ok_and(|its| its == inode))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names.into_iter().next().unwrap_or_else(|| inode.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_found_by_path_and_process() {
        let ours = std::process::id().to_string();
        let first = Netns::find("1");
        for text in [NETNS, &ours] {
            match Netns::find(text).unwrap() {
                // Where the tests run in the host's namespace.
                None => assert_eq!(inode(Path::new(FIRST)).unwrap(), netns().unwrap()),
                Some(found) => assert_eq!(found.inode, netns().unwrap()),
            }
        }
        // Only root may look at process 1.
        assert!(first.is_err() || first.unwrap().is_none());
        for text in ["", "no-such-name", ".."] {
            let error = Netns::find(text).unwrap_err().to_string();
            assert!(error.contains("`ip netns` lists"), "{text:?}: {error}");
        }
        assert!(Netns::find("/no/such/path").is_err());
    }
}
