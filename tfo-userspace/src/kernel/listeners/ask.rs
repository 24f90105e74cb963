//! What a socket of another process is set to: asked of the socket itself, through pidfd_getfd(2).

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

/// A process, and its descriptor of a socket.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    /// The process.
    pub process: Process,
    descriptor: i32,
}

/// Who holds the sockets with these inodes, each process once. Processes that can't be looked into are left out.
///
/// Inodes of sockets are of no namespace: whoever holds one of them holds that very socket.
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

/// What the socket with `inode` is set to, asked through the first of its holders that lets us.
pub(super) fn ask(inode: u64, holders: &[Holder]) -> Result<FastOpen> {
    let mut outcome = None;
    for holder in holders {
        match holder.socket(inode).and_then(|socket| fast_open(&socket)) {
            Ok(found) => return Ok(found),
            Err(error) => outcome = Some(error),
        }
    }
    match outcome {
        Some(error) => Err(error),
        None if geteuid().is_root() => bail!(
            "no process that we may look into holds it: it is the kernel's own, of another PID namespace, or it takes \
             CAP_SYS_PTRACE"
        ),
        None => bail!("who holds it is for root to see: run it with sudo"),
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
        // The descriptor may have become another file's meanwhile.
        let socket = File::from(socket);
        let metadata = socket.metadata().context("cannot examine the socket")?;
        if metadata.ino() != inode {
            bail!("{name} ({pid}) has just closed it");
        }
        Ok(socket.into())
    }
}

/// What a listening socket says of itself (`do_tcp_getsockopt`). The keys read are wiped, and returned as fingerprints.
fn fast_open(socket: &OwnedFd) -> Result<FastOpen> {
    let number = |option, name| -> Result<u32> {
        let mut bytes = [0; 4];
        get(socket, option, &mut bytes).with_context(|| format!("the socket does not tell its {name}"))?;
        Ok(u32::from_ne_bytes(bytes))
    };
    Ok(FastOpen {
        queue: number(libc::TCP_FASTOPEN, "TCP_FASTOPEN")?,
        own_keys: leaving_no_trace(|| own_keys(socket))
            .context("the socket does not tell its TCP_FASTOPEN_KEY")?,
        no_cookie: number(libc::TCP_FASTOPEN_NO_COOKIE, "TCP_FASTOPEN_NO_COOKIE")? != 0,
    })
}

/// Fingerprints of the keys that the socket has for itself: current, and backup.
fn own_keys(socket: &OwnedFd) -> io::Result<Vec<String>> {
    /// The bytes of one key, and of half of it.
    const KEY: usize = 16;
    const HALF: usize = 8;
    let mut bytes = Zeroizing::new([0; 2 * KEY]);
    let length = get(socket, libc::TCP_FASTOPEN_KEY, &mut *bytes)?;
    let half = |key: &[u8], at| u64::from_le_bytes(key[at..at + HALF].try_into().expect("eight bytes"));
    let keys = bytes[..length].chunks_exact(KEY).map(|key| Key { k0: half(key, 0), k1: half(key, HALF) });
    Ok(keys.map(fingerprint).collect())
}

/// getsockopt(2) of TCP; how many of the bytes it has written.
fn get(socket: impl AsFd, option: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: `value` is `length` bytes that may be written, and `length` may be, too, for as long as the call takes.
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
