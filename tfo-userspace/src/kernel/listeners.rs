//! The listening sockets, and what the kernel does with Fast Open on each.

mod ask;
mod diag;

use std::{collections::HashMap, net::SocketAddr};

use anyhow::Result;
use ask::{ask, holders};
use diag::{Listening, listening};
use serde::Serialize;

use crate::kernel::sysctl::{self, EVERY_LISTENER, SERVER};

/// All listening TCP sockets of a network namespace; see `tfo listeners --json`.
#[derive(Clone, Debug, Serialize)]
pub struct Listeners {
    /// `net.ipv4.tcp_fastopen`.
    pub tcp_fastopen: u32,
    /// Whether its bit 0x400 gives Fast Open to whoever begins to listen.
    pub every_listener: bool,
    /// The sockets, by port.
    pub listeners: Vec<Listener>,
}

/// A listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// Of an IPv6 socket: whether IPv4 is not for it.
    pub ipv6_only: Option<bool>,
    /// Who holds it: more than one where it is inherited, as nginx's workers do.
    pub processes: Vec<Process>,
    /// Connections that wait to be accepted.
    pub backlog: Backlog,
    /// What it is set to; `None` where it can't be asked.
    pub fast_open: Option<FastOpen>,
    /// Why it can't be asked.
    pub unknown: Option<String>,
    /// What is wrong with it.
    pub warning: Option<String>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its name, of at most 15 characters.
    pub name: String,
}

/// A listener's accept queue, in connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Backlog {
    /// How many wait to be accepted.
    pub waiting: u32,
    /// How many may wait; the kernel takes one more.
    pub limit: u32,
}

impl Backlog {
    /// Whether connections are dropped (`sk_acceptq_is_full`).
    pub fn is_full(self) -> bool {
        self.waiting > self.limit
    }
}

/// What a listener is set to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FastOpen {
    /// How many Fast Open connections may be in their handshake at once (TCP_FASTOPEN); 0 where it is off.
    pub queue: u32,
    /// Fingerprints of its own current and backup key (TCP_FASTOPEN_KEY). Usually none: the sysctl's keys are its keys.
    pub own_keys: Vec<String>,
    /// Whether it takes data without a cookie (TCP_FASTOPEN_NO_COOKIE).
    pub no_cookie: bool,
}

impl Listeners {
    /// Asks for those of the calling thread's network namespace. One that can't be asked has its reason.
    pub fn read() -> Result<Self> {
        let tcp_fastopen = sysctl::read_mode()?;
        let listening = listening()?;
        let inodes = listening.iter().map(|listening| listening.inode).filter(|inode| *inode != 0).collect();
        let holders = holders(&inodes);
        let listeners = listening.into_iter().map(|listening| listener(listening, &holders, tcp_fastopen));
        Ok(Self {
            tcp_fastopen,
            every_listener: tcp_fastopen & EVERY_LISTENER != 0,
            listeners: listeners.collect(),
        })
    }
}

fn listener(listening: Listening, holders: &HashMap<u64, Vec<ask::Holder>>, tcp_fastopen: u32) -> Listener {
    let Listening { address, ipv6_only, backlog, inode } = listening;
    let holders = holders.get(&inode).map(Vec::as_slice).unwrap_or_default();
    let (fast_open, unknown) = match ask(inode, holders) {
        Ok(fast_open) => (Some(fast_open), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let processes = holders.iter().map(|holder| holder.process.clone()).collect();
    let warning = warning(fast_open.as_ref(), backlog, tcp_fastopen);
    Listener { address, ipv6_only, processes, backlog, fast_open, unknown, warning }
}

/// What keeps a listener from Fast Open, or its cookies from being counted for what they are.
fn warning(fast_open: Option<&FastOpen>, backlog: Backlog, tcp_fastopen: u32) -> Option<String> {
    let has = |bit| tcp_fastopen & bit != 0;
    let mut warnings = Vec::new();
    match fast_open {
        Some(FastOpen { queue: 0, .. }) if has(SERVER) && has(EVERY_LISTENER) => {
            warnings.push("off: it listened before bit 0x400 was set; restart it");
        }
        Some(FastOpen { queue: 0, .. }) if has(SERVER) => {
            warnings.push("off: the server does not set TCP_FASTOPEN")
        }
        Some(FastOpen { queue: 1.., .. }) if !has(SERVER) => {
            warnings.push("off: net.ipv4.tcp_fastopen lacks bit 0x2 (`tfo check --fix`)");
        }
        _ => {}
    }
    if let Some(FastOpen { queue: 1.., own_keys, no_cookie }) = fast_open {
        if !own_keys.is_empty() {
            warnings.push("its own key, not the sysctl's: tfo does not know its cookies");
        }
        if *no_cookie {
            warnings.push("takes data without a cookie: from forged addresses, too");
        }
    }
    if backlog.is_full() {
        warnings.push("accept queue full: connections are dropped");
    }
    (!warnings.is_empty()).then(|| warnings.join("; "))
}

/// The bits of `net.ipv4.tcp_fastopen`, each with what it does.
pub fn bits(tcp_fastopen: u32) -> String {
    let known = [
        (sysctl::CLIENT, "client"),
        (SERVER, "server"),
        (sysctl::CLIENT_NO_COOKIE, "client sends data without a cookie"),
        (sysctl::SERVER_NO_COOKIE, "server takes data without a cookie"),
        (EVERY_LISTENER, "every new listener, unasked"),
    ];
    let set = known.iter().filter(|(bit, _)| tcp_fastopen & bit != 0);
    let set: Vec<_> = set.map(|(bit, what)| format!("{bit:#x} {what}")).collect();
    if set.is_empty() { "off".to_owned() } else { set.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Backlog = Backlog { waiting: 0, limit: 128 };

    fn with_queue(queue: u32) -> FastOpen {
        FastOpen { queue, own_keys: Vec::new(), no_cookie: false }
    }

    #[test]
    fn each_thing_that_is_wrong_is_said() {
        let said = |fast_open: &FastOpen, bits| warning(Some(fast_open), EMPTY, bits).unwrap_or_default();
        assert_eq!(said(&with_queue(1), SERVER), "");
        assert_eq!(said(&with_queue(0), sysctl::CLIENT), "", "who does not ask misses nothing");
        assert!(said(&with_queue(0), SERVER).starts_with("off: the server does not set"));
        assert!(said(&with_queue(0), SERVER | EVERY_LISTENER).starts_with("off: it listened before"));
        assert!(said(&with_queue(5), sysctl::CLIENT).starts_with("off: net.ipv4.tcp_fastopen lacks bit 0x2"));

        let own = FastOpen { own_keys: vec!["1".to_owned()], ..with_queue(1) };
        assert!(said(&own, SERVER).starts_with("its own key"));
        assert!(!said(&FastOpen { queue: 0, ..own }, SERVER).contains("key"), "a key that nobody uses");
        assert!(said(&FastOpen { no_cookie: true, ..with_queue(1) }, SERVER).contains("without a cookie"));
    }

    #[test]
    fn a_queue_is_full_beyond_its_limit() {
        let said = |waiting| warning(Some(&with_queue(1)), Backlog { waiting, limit: 2 }, SERVER);
        assert_eq!(said(2), None, "the kernel takes one more than the limit");
        assert_eq!(said(3).as_deref(), Some("accept queue full: connections are dropped"));
    }

    #[test]
    fn bits_are_explained() {
        assert_eq!(bits(0), "off");
        assert_eq!(bits(0x403), "0x1 client, 0x2 server, 0x400 every new listener, unasked");
    }
}
