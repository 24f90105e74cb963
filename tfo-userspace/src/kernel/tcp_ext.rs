//! The kernel's Fast Open counters.

use std::{collections::HashMap, fs};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

// The path goes through thread-self, since a thread may be in another network namespace than its process.
const NETSTAT: &str = "/proc/thread-self/net/netstat";

/// Declares the counters, each with its name in /proc/net/netstat.
macro_rules! tcp_ext {
    ($($(#[$doc:meta])* $counter:ident = $name:literal,)+) => {
        /// The kernel's Fast Open counters: TcpExt in /proc/net/netstat, per network namespace, both families together.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
        pub struct TcpExt { $($(#[$doc])* pub $counter: u64,)+ }

        impl TcpExt {
            /// Parses the text of /proc/net/netstat; `None` if a counter is missing.
            pub fn parse(text: &str) -> Option<Self> {
                let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
                let (names, values) = (lines.next()?, lines.next()?);
                let counters: HashMap<_, _> = names.split(' ').zip(values.split(' ')).collect();
                let get = |name| counters.get(name)?.parse().ok();
                Some(Self { $($counter: get($name)?,)+ })
            }

            /// Returns the kernel's name and the value of each counter.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$(($name, self.$counter)),+].into_iter()
            }
        }

        impl std::ops::Sub for TcpExt {
            type Output = Self;

            /// Returns the increase since `earlier`.
            fn sub(self, earlier: Self) -> Self {
                Self { $($counter: self.$counter - earlier.$counter,)+ }
            }
        }
    };
}

tcp_ext! {
    /// Outgoing connections whose data was accepted with the SYN.
    active = "TCPFastOpenActive",
    /// Outgoing connections whose data was not accepted with the SYN, or whose SYN with data was lost.
    active_fail = "TCPFastOpenActiveFail",
    /// SYNs with an empty option.
    cookie_reqd = "TCPFastOpenCookieReqd",
    /// SYNs whose cookie was accepted.
    passive = "TCPFastOpenPassive",
    /// SYNs whose cookie was accepted by the backup key.
    passive_alt_key = "TCPFastOpenPassiveAltKey",
    /// SYNs whose cookie was refused.
    passive_fail = "TCPFastOpenPassiveFail",
    /// SYN cookies that the kernel itself has sent.
    cookies_sent = "SyncookiesSent",
    /// ACKs with a right SYN cookie, of the kernel or of the protection `answer`.
    cookies_received = "SyncookiesRecv",
    /// ACKs with a wrong SYN cookie.
    cookies_failed = "SyncookiesFailed",
    /// SYNs for which the listener's Fast Open queue had no room.
    listen_overflow = "TCPFastOpenListenOverflow",
    /// Number of times that clients on this host paused Fast Open, since its packets seemed to be lost on the way.
    blackhole = "TCPFastOpenBlackhole",
}

impl TcpExt {
    /// Reads the counters.
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
                    TCPFastOpenListenOverflow TCPFastOpenCookieReqd TCPFastOpenBlackhole TCPFastOpenPassiveAltKey SyncookiesSent SyncookiesRecv \
                    SyncookiesFailed Z\nTcpExt: 9 1 2 3 4 5 6 7 8 9 10 11 9\nIpExt: X\nIpExt: 7\n";
        let expected = TcpExt {
            active: 1,
            active_fail: 2,
            passive: 3,
            passive_fail: 4,
            listen_overflow: 5,
            cookie_reqd: 6,
            blackhole: 7,
            passive_alt_key: 8,
            cookies_sent: 9,
            cookies_received: 10,
            cookies_failed: 11,
        };
        assert_eq!(TcpExt::parse(text), Some(expected));
        assert_eq!(TcpExt::parse("TcpExt: A\nTcpExt: 1\n"), None);
    }
}
