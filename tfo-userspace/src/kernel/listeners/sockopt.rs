//! Socket options of other processes' sockets. pidfd_getfd(2) duplicates the socket, getsockopt(2) reads its options.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;
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
    for process in all_processes().into_iter().flatten().flatten() {
        let mut name = None;
        for descriptor in process.fd().into_iter().flatten().flatten() {
            let FDTarget::Socket(inode) = descriptor.target else { continue };
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
            of_socket.push(Holder { process, descriptor: descriptor.fd });
        }
    }
    holders
}

/// Reads the Fast Open settings of the socket with `inode`, through the first holder that permits it.
pub(super) fn fast_open(inode: u64, holders: &[Holder]) -> Result<FastOpen> {
    let mut outcome = None;
    for holder in holders {
        match holder.socket(inode).and_then(|socket| read_options(&socket)) {
            Ok(found) => return Ok(found),
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
    let number = |option, name| -> Result<u32> {
        let mut bytes = [0; 4];
        get(socket, option, &mut bytes).with_context(|| format!("cannot read the socket's {name}"))?;
        Ok(u32::from_ne_bytes(bytes))
    };
    let queue = number(libc::TCP_FASTOPEN, "TCP_FASTOPEN")?;
    let own_keys =
        leaving_no_trace(|| own_keys(socket)).context("cannot read the socket's TCP_FASTOPEN_KEY")?;
    Ok(FastOpen {
        queue,
        has_own_keys: !own_keys.is_empty(),
        own_keys,
        no_cookie: number(libc::TCP_FASTOPEN_NO_COOKIE, "TCP_FASTOPEN_NO_COOKIE")? != 0,
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
