//! The kernel's own side of Fast Open: its sysctls and its TcpExt counters, of the calling thread's network namespace.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};
use tfo_common::keyring::Key;
use zeroize::Zeroizing;

use crate::keys::key_text;

/// `net.ipv4.tcp_fastopen_key`.
const KEY: &str = "/proc/sys/net/ipv4/tcp_fastopen_key";
/// More than two keys have as text, in bytes.
const KEYS: usize = 128;
/// `net.ipv4.tcp_fastopen`.
const MODE: &str = "/proc/sys/net/ipv4/tcp_fastopen";
// Through thread-self: a thread may live in another namespace than its process.
const NETSTAT: &str = "/proc/thread-self/net/netstat";
const NETNS: &str = "/proc/thread-self/ns/net";

/// The text of `net.ipv4.tcp_fastopen_key`: one key or, with a comma, two.
pub fn read_key() -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(KEYS));
    fs::File::open(KEY)?.read_to_string(&mut text)?;
    Ok(text)
}

/// `net.ipv4.tcp_fastopen_key` of the network namespace in which it was opened, from whichever thread.
#[derive(Debug)]
pub struct KeySysctl(fs::File);

impl KeySysctl {
    /// That of the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let file = fs::OpenOptions::new().write(true).open(KEY);
        Ok(Self(file.with_context(|| format!("cannot open {KEY} for writing"))?))
    }

    /// Sets the primary and the backup key.
    pub fn write(&self, current: Key, backup: Option<Key>) -> Result<()> {
        // It is not to grow, which would leave a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(KEYS));
        text.push_str(&key_text(current));
        if let Some(backup) = backup {
            text.push(',');
            text.push_str(&key_text(backup));
        }
        self.0.write_all_at(text.as_bytes(), 0).with_context(|| format!("cannot write {KEY}"))
    }
}

/// Bit of `net.ipv4.tcp_fastopen`: connections from here may use Fast Open.
pub const CLIENT: u32 = 0x1;
/// Bit of `net.ipv4.tcp_fastopen`: listeners with TCP_FASTOPEN take it.
pub const SERVER: u32 = 0x2;

/// Sets the bits of `net.ipv4.tcp_fastopen`.
pub fn write_mode(bits: u32) -> Result<()> {
    fs::write(MODE, bits.to_string()).with_context(|| format!("cannot write {MODE}"))
}

/// The inode number of the network namespace: what tells one from another.
pub fn netns() -> Result<u64> {
    Ok(fs::metadata(NETNS).with_context(|| format!("cannot read {NETNS}"))?.ino())
}

/// The cookie of the calling thread's network namespace, by which BPF programs tell one from another. Linux 5.14 and later.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    let (mut cookie, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes `len` bytes at most, which is what `cookie` has.
    let result = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, value, &raw mut len)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The kernel's Fast Open totals: TcpExt in /proc/net/netstat, per network namespace, both families together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpExt {
    /// `TCPFastOpenCookieReqd`: SYNs with an empty option.
    pub cookie_reqd: u64,
    /// `TCPFastOpenPassive`: SYNs whose cookie was accepted.
    pub passive: u64,
    /// `TCPFastOpenPassiveAltKey`: those accepted by the backup key.
    pub passive_alt_key: u64,
    /// `TCPFastOpenPassiveFail`: SYNs whose cookie was refused.
    pub passive_fail: u64,
    /// `TCPFastOpenListenOverflow`: SYNs for which the listener's Fast Open queue had no room.
    pub listen_overflow: u64,
}

impl TcpExt {
    /// Reads them.
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string(NETSTAT).with_context(|| format!("cannot read {NETSTAT}"))?;
        Self::parse(&text).with_context(|| format!("{NETSTAT} has no TcpExt counters of Fast Open"))
    }

    /// Those in the text of /proc/net/netstat, where it has all of them.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
        let (names, values) = (lines.next()?, lines.next()?);
        let counters: HashMap<_, _> = names.split(' ').zip(values.split(' ')).collect();
        let get = |name| counters.get(name)?.parse().ok();
        Some(Self {
            cookie_reqd: get("TCPFastOpenCookieReqd")?,
            passive: get("TCPFastOpenPassive")?,
            passive_alt_key: get("TCPFastOpenPassiveAltKey")?,
            passive_fail: get("TCPFastOpenPassiveFail")?,
            listen_overflow: get("TCPFastOpenListenOverflow")?,
        })
    }
}

impl std::ops::Sub for TcpExt {
    type Output = Self;

    /// What was counted since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self {
            cookie_reqd: self.cookie_reqd - earlier.cookie_reqd,
            passive: self.passive - earlier.passive,
            passive_alt_key: self.passive_alt_key - earlier.passive_alt_key,
            passive_fail: self.passive_fail - earlier.passive_fail,
            listen_overflow: self.listen_overflow - earlier.listen_overflow,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_ext_is_found_by_name() {
        let text = "TcpExt: A TCPFastOpenCookieReqd TCPFastOpenPassive TCPFastOpenPassiveAltKey \
                    TCPFastOpenPassiveFail TCPFastOpenListenOverflow Z\nTcpExt: 9 1 2 3 4 5 9\nIpExt: X\nIpExt: 7\n";
        let expected =
            TcpExt { cookie_reqd: 1, passive: 2, passive_alt_key: 3, passive_fail: 4, listen_overflow: 5 };
        assert_eq!(TcpExt::parse(text), Some(expected));
        assert_eq!(TcpExt::parse("TcpExt: A\nTcpExt: 1\n"), None);
    }
}
