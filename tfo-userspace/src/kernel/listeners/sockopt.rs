//! Socket options of other processes' sockets. pidfd_getfd(2) duplicates the socket, getsockopt(2) reads its options.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirEntry, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    getsockopt_impl, setsockopt_impl, sockopt_impl,
    sys::socket::{getsockopt, setsockopt},
    unistd::geteuid,
};
use procfs::process::{FDTarget, all_processes};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tfo_common::keyring::Key;
use zeroize::Zeroizing;

use super::{FastOpen, Process};
use crate::{model::keys::fingerprint, util::secrecy::leaving_no_trace};

/// A process and its descriptor of a socket.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    /// The process that holds the socket.
    pub process: Process,
    descriptor: i32,
}

/// Finds the processes that hold the sockets with these inodes, each process once. It skips processes that it can't
/// read.
///
/// Inode numbers of sockets are unique across namespaces, so an equal inode means the same socket.
pub(super) fn holders(inodes: &HashSet<u64>) -> HashMap<u64, Vec<Holder>> {
    let mut holders: HashMap<u64, Vec<Holder>> = HashMap::new();
    let mount = mount_of_sockets();
    for process in all_processes().into_iter().flatten().flatten() {
        let mut name = None;
        for (descriptor, inode) in sockets(&process, mount) {
            if !inodes.contains(&inode) {
                continue;
            }
            let of_socket = holders.entry(inode).or_default();
            if of_socket.last().is_some_and(|last| last.process.pid == process.pid()) {
                continue;
            }
            let name =
                name.get_or_insert_with(|| process.stat().map_or_else(|_| "?".to_owned(), |stat| stat.comm));
            let process = Process { pid: process.pid(), name: name.clone() };
            of_socket.push(Holder { process, descriptor });
        }
    }
    holders
}

/// Returns the descriptors of `process` that are sockets, with the inodes of these. `mount` is the number of the mount that all
/// sockets are in.
fn sockets(process: &procfs::process::Process, mount: Option<u64>) -> Vec<(i32, u64)> {
    match process.fd() {
        Ok(all) => all.flatten().filter_map(|found| socket(found.fd, &found.target)).collect(),
        Err(_) => mount.and_then(|mount| sockets_by_info(process.pid(), mount)).unwrap_or_default(),
    }
}

fn socket(descriptor: i32, target: &FDTarget) -> Option<(i32, u64)> {
    match target {
        FDTarget::Socket(inode) => Some((descriptor, *inode)),
        _ => None,
    }
}

/// Returns the same from `/proc/PID/fdinfo`, which takes CAP_SYS_PTRACE for the process of another user, and not
/// CAP_DAC_READ_SEARCH, too, as `/proc/PID/fd` does. It needs Linux 5.14 (`proc_fdinfo_access_allowed`).
fn sockets_by_info(process: i32, mount: u64) -> Option<Vec<(i32, u64)>> {
    let entries = fs::read_dir(format!("/proc/{process}/fdinfo")).ok()?;
    let socket = |entry: DirEntry| {
        let info = info(&entry.path())?;
        let descriptor = entry.file_name().to_str()?.parse().ok()?;
        (info.mount == mount).then_some((descriptor, info.inode))
    };
    Some(entries.flatten().filter_map(socket).collect())
}

/// Number of the mount and of the inode of an open file. An inode is unique only in its mount.
struct Info {
    mount: u64,
    inode: u64,
}

fn info(path: &Path) -> Option<Info> {
    let text = fs::read_to_string(path).ok()?;
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Some(Info { mount: field("mnt_id:")?, inode: field("ino:")? })
}

/// Returns the number of the mount that all sockets of the host are in (`sock_mnt` in net/socket.c).
fn mount_of_sockets() -> Option<u64> {
    let any = UnixDatagram::unbound().ok()?;
    info(Path::new(&format!("/proc/thread-self/fdinfo/{}", any.as_raw_fd()))).map(|info| info.mount)
}

sockopt_impl!(
    /// TCP_FASTOPEN: limit on the Fast Open connections of a listener that are in their handshake (tcp(7)). The kernel takes
    /// an int (`do_tcp_setsockopt`).
    Queue, Both, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, u32
);

/// Reads the limit on the Fast Open connections of a listener; 0 means off.
pub(super) fn queue(socket: &OwnedFd) -> Result<u32> {
    getsockopt(socket, Queue).context("cannot read the socket's TCP_FASTOPEN")
}

/// Sets the limit on the Fast Open connections of a listener; 0 turns Fast Open off. The kernel cuts it to
/// `net.core.somaxconn` (`fastopen_queue_tune`). Connections stay as they are. A socket of Multipath TCP takes the option since
/// Linux 6.2.
pub(super) fn set_queue(socket: &OwnedFd, queue: u32) -> Result<()> {
    setsockopt(socket, Queue, &queue).context("cannot set the socket's TCP_FASTOPEN")
}

/// Reads the Fast Open settings of the socket with `inode`.
pub(super) fn fast_open(inode: u64, holders: &[Holder]) -> Result<FastOpen> {
    with_socket(inode, holders, read_options)
}

/// Calls `work` with a copy of the socket with `inode`, from the first holder that permits it. Tries the next one if that
/// fails. The error is that of the last.
pub(super) fn with_socket<T>(
    inode: u64,
    holders: &[Holder],
    mut work: impl FnMut(&OwnedFd) -> Result<T>,
) -> Result<T> {
    let mut outcome = None;
    for holder in holders {
        match holder.socket(inode).and_then(|socket| work(&socket)) {
            Ok(done) => return Ok(done),
            Err(error) => outcome = Some(error),
        }
    }
    match outcome {
        Some(error) => Err(error),
        None if geteuid().is_root() => bail!(
            "no process that tfo can read holds it: it belongs to the kernel or to another PID namespace, or reading \
             it takes CAP_SYS_PTRACE"
        ),
        None => bail!("only root sees which process holds it: run it with sudo"),
    }
}

impl Holder {
    fn socket(&self, inode: u64) -> Result<OwnedFd> {
        let Process { pid, name } = &self.process;
        let id = Pid::from_raw(*pid).context("a process has a number above zero")?;
        let process =
            pidfd_open(id, PidfdFlags::empty()).with_context(|| format!("{name} ({pid}) has ended"))?;
        let socket = pidfd_getfd(process, self.descriptor, PidfdGetfdFlags::empty())
            .with_context(|| format!("cannot get the socket from {name} ({pid}): it takes CAP_SYS_PTRACE"))?;
        // The process may have closed the descriptor meanwhile, and opened another file with the same number.
        let socket = File::from(socket);
        let metadata = socket.metadata().context("cannot examine the socket")?;
        if metadata.ino() != inode {
            bail!("{name} ({pid}) has just closed it");
        }
        Ok(socket.into())
    }
}

/// Reads the Fast Open options of a listening socket (`do_tcp_getsockopt`). Its keys are wiped and returned as
/// fingerprints.
fn read_options(socket: &OwnedFd) -> Result<FastOpen> {
    let mut no_cookie = [0; 4];
    get(socket, libc::TCP_FASTOPEN_NO_COOKIE, &mut no_cookie)
        .context("cannot read the socket's TCP_FASTOPEN_NO_COOKIE")?;
    let own_keys =
        leaving_no_trace(|| own_keys(socket)).context("cannot read the socket's TCP_FASTOPEN_KEY")?;
    Ok(FastOpen {
        queue: queue(socket)?,
        has_own_keys: !own_keys.is_empty(),
        own_keys,
        no_cookie: u32::from_ne_bytes(no_cookie) != 0,
    })
}

/// Returns the fingerprints of the socket's own current and backup key.
fn own_keys(socket: &OwnedFd) -> io::Result<Vec<String>> {
    /// Length of a key, in bytes.
    const KEY: usize = 16;
    /// Length of half a key, in bytes.
    const HALF: usize = 8;
    let mut bytes = Zeroizing::new([0; 2 * KEY]);
    let length = get(socket, libc::TCP_FASTOPEN_KEY, &mut *bytes)?;
    let half = |key: &[u8], at| u64::from_le_bytes(key[at..at + HALF].try_into().expect("eight bytes"));
    let keys = bytes[..length].chunks_exact(KEY).map(|key| Key { k0: half(key, 0), k1: half(key, HALF) });
    Ok(keys.map(fingerprint).collect())
}

/// Calls getsockopt(2) for a TCP option. Returns the number of bytes that it has written.
fn get(socket: impl AsFd, option: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: `value` is valid for writes of `length` bytes, and `length` for writes, during the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok((length as usize).min(value.len())) } else { Err(io::Error::last_os_error()) }
}
