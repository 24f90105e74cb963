//! The kernel's own side of Fast Open: its sysctls and its TcpExt counters, of the calling thread's network namespace.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    getsockopt_impl, sockopt_impl,
    sys::socket::getsockopt,
    time::{ClockId, clock_getres},
};
use procfs::process::Process;
use serde::{Deserialize, Serialize};
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

/// How many jiffies there are in a second. No file says it; the coarse clocks tick with them (`posix_get_coarse_res`).
pub fn jiffies_per_second() -> Result<u64> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("cannot ask how long a jiffy is")?;
    let nanoseconds = tick.tv_sec() * 1_000_000_000 + tick.tv_nsec();
    u64::try_from(nanoseconds)
        .ok()
        .and_then(|tick| 1_000_000_000_u64.checked_div(tick))
        .context("a jiffy of no time")
}

/// Bit of `net.ipv4.tcp_fastopen`: connections from here may use Fast Open.
pub const CLIENT: u32 = 0x1;
/// Bit of `net.ipv4.tcp_fastopen`: listeners with TCP_FASTOPEN take it.
pub const SERVER: u32 = 0x2;
/// Bit of `net.ipv4.tcp_fastopen`: connections from here send data in the SYN without a cookie, too.
pub const CLIENT_NO_COOKIE: u32 = 0x4;
/// Bit of `net.ipv4.tcp_fastopen`: data in the SYN is taken without a cookie.
pub const SERVER_NO_COOKIE: u32 = 0x200;
/// Bit of `net.ipv4.tcp_fastopen`: whoever begins to listen gets Fast Open without asking for it (`inet_listen`).
pub const EVERY_LISTENER: u32 = 0x400;

/// The bits of `net.ipv4.tcp_fastopen`.
pub fn read_mode() -> Result<u32> {
    // The kernel's type for it is int.
    Ok(read_sysctl(MODE)?.cast_unsigned())
}

/// Sets the bits of `net.ipv4.tcp_fastopen`.
pub fn write_mode(bits: u32) -> Result<()> {
    fs::write(MODE, bits.cast_signed().to_string()).with_context(|| format!("cannot write {MODE}"))
}

/// `net.ipv4.tcp_syncookies`: 0 never, 1 when a listener's queue is full, 2 always. With 2, Fast Open is off
/// (`tcp_conn_request`).
pub fn syncookies() -> Result<i32> {
    read_sysctl("/proc/sys/net/ipv4/tcp_syncookies")
}

/// `net.ipv4.tcp_fastopen_blackhole_timeout_sec`: how long clients go without Fast Open once it seems that its packets are
/// lost on the way, in seconds; doubled each time (`tcp_fastopen_active_should_disable`). 0 for never.
pub fn blackhole_timeout() -> Result<i32> {
    read_sysctl("/proc/sys/net/ipv4/tcp_fastopen_blackhole_timeout_sec")
}

fn read_sysctl(path: &str) -> Result<i32> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.trim_end().parse().with_context(|| format!("{path} holds no number"))
}

/// The cgroup file system of version 2, as far as it is in sight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup2 {
    /// The root of the hierarchy, in which all processes are.
    Root(PathBuf),
    /// Only a part of it, as in a container: the root of a cgroup namespace.
    Part(PathBuf),
    /// It is mounted nowhere.
    Absent,
}

impl Cgroup2 {
    /// Looks at every mount: on hosts that have version 1, too, it is /sys/fs/cgroup/unified.
    pub fn find() -> Result<Self> {
        /// A file that each cgroup has but the root (Documentation/admin-guide/cgroup-v2.rst).
        const NOT_IN_ROOT: &str = "cgroup.events";

        let mounts = Process::myself()
            .and_then(|myself| myself.mountinfo())
            .context("cannot read /proc/self/mountinfo")?;
        let mut found = Self::Absent;
        for mount in mounts.into_iter().filter(|mount| mount.fs_type == "cgroup2") {
            if !mount.mount_point.join(NOT_IN_ROOT).exists() {
                return Ok(Self::Root(mount.mount_point));
            }
            found = Self::Part(mount.mount_point);
        }
        Ok(found)
    }

    /// The root, where programs see all connections; else why there is none, and what to do.
    pub fn root(self) -> Result<PathBuf, [String; 2]> {
        match self {
            Self::Root(mount) => Ok(mount),
            Self::Part(mount) => Err([
                format!("{} shows a part of the hierarchy only, as in a container", mount.display()),
                "run tfo in the host's cgroup namespace, with the host's /sys/fs/cgroup".to_owned(),
            ]),
            Self::Absent => Err([
                "no cgroup2 is mounted".to_owned(),
                "mount -t cgroup2 cgroup2 /sys/fs/cgroup".to_owned(),
            ]),
        }
    }
}

/// Whether something, such as NTP, keeps the clock right.
pub fn is_clock_synchronised() -> Result<bool> {
    // SAFETY: zeros are a `timex`, which is nothing but integers.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` may be written, and with modes 0 nothing is set.
    let clock = unsafe { libc::adjtimex(&raw mut state) };
    Errno::result(clock).context("cannot read the clock's state (adjtimex)")?;
    Ok(clock != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0)
}

/// The inode number of the network namespace: what tells one from another.
pub fn netns() -> Result<u64> {
    Ok(fs::metadata(NETNS).with_context(|| format!("cannot read {NETNS}"))?.ino())
}

sockopt_impl!(
    /// SO_NETNS_COOKIE, Linux 5.14 and later.
    NetnsCookie, GetOnly, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, u64
);

/// The cookie of the calling thread's network namespace, by which BPF programs tell one from another. Linux 5.14 and later.
pub fn netns_cookie() -> io::Result<u64> {
    Ok(getsockopt(&Socket::new(Domain::IPV4, Type::STREAM, None)?, NetnsCookie)?)
}

/// Declares the counters, each with its name in /proc/net/netstat.
macro_rules! tcp_ext {
    ($($(#[$doc:meta])* $counter:ident = $name:literal,)+) => {
        /// The kernel's Fast Open totals: TcpExt in /proc/net/netstat, per network namespace, both families together.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
        pub struct TcpExt { $($(#[$doc])* pub $counter: u64,)+ }

        impl TcpExt {
            /// Those in the text of /proc/net/netstat, where it has all of them.
            pub fn parse(text: &str) -> Option<Self> {
                let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
                let (names, values) = (lines.next()?, lines.next()?);
                let counters: HashMap<_, _> = names.split(' ').zip(values.split(' ')).collect();
                let get = |name| counters.get(name)?.parse().ok();
                Some(Self { $($counter: get($name)?,)+ })
            }

            /// Each by the kernel's name for it.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$(($name, self.$counter)),+].into_iter()
            }
        }

        impl std::ops::Sub for TcpExt {
            type Output = Self;

            /// What was counted since `earlier`.
            fn sub(self, earlier: Self) -> Self {
                Self { $($counter: self.$counter - earlier.$counter,)+ }
            }
        }
    };
}

tcp_ext! {
    /// Connections from here whose data was taken with the SYN.
    active = "TCPFastOpenActive",
    /// Connections from here whose data was not taken with the SYN, or whose SYN with data was lost.
    active_fail = "TCPFastOpenActiveFail",
    /// SYNs with an empty option.
    cookie_reqd = "TCPFastOpenCookieReqd",
    /// SYNs whose cookie was accepted.
    passive = "TCPFastOpenPassive",
    /// Those accepted by the backup key.
    passive_alt_key = "TCPFastOpenPassiveAltKey",
    /// SYNs whose cookie was refused.
    passive_fail = "TCPFastOpenPassiveFail",
    /// SYNs for which the listener's Fast Open queue had no room.
    listen_overflow = "TCPFastOpenListenOverflow",
    /// How often connections from here gave Fast Open up for a while, since its packets seemed to be lost on the way.
    blackhole = "TCPFastOpenBlackhole",
}

impl TcpExt {
    /// Reads them.
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string(NETSTAT).with_context(|| format!("cannot read {NETSTAT}"))?;
        Self::parse(&text).with_context(|| format!("{NETSTAT} has no TcpExt counters of Fast Open"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_ext_is_found_by_name() {
        let text = "TcpExt: A TCPFastOpenActive TCPFastOpenActiveFail TCPFastOpenPassive TCPFastOpenPassiveFail \
                    TCPFastOpenListenOverflow TCPFastOpenCookieReqd TCPFastOpenBlackhole TCPFastOpenPassiveAltKey Z\n\
                    TcpExt: 9 1 2 3 4 5 6 7 8 9\nIpExt: X\nIpExt: 7\n";
        let expected = TcpExt {
            active: 1,
            active_fail: 2,
            passive: 3,
            passive_fail: 4,
            listen_overflow: 5,
            cookie_reqd: 6,
            blackhole: 7,
            passive_alt_key: 8,
        };
        assert_eq!(TcpExt::parse(text), Some(expected));
        assert_eq!(TcpExt::parse("TcpExt: A\nTcpExt: 1\n"), None);
    }
}
