//! Identifiers of network namespaces.

use std::{fs, io, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, Result};
use nix::{getsockopt_impl, sockopt_impl, sys::socket::getsockopt};
use socket2::{Domain, Socket, Type};

const NETNS: &str = "/proc/thread-self/ns/net";

/// Returns the inode number of the calling thread's network namespace, which identifies it.
pub fn netns() -> Result<u64> {
    Ok(fs::metadata(NETNS).with_context(|| format!("cannot read {NETNS}"))?.ino())
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
