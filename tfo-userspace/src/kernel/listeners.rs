//! The listening sockets, and the state of Fast Open on each.

mod diag;
mod enable;
mod ledger;
mod monitor;
mod no_cookie;
mod sockopt;
mod walk;

use std::{collections::HashMap, net::SocketAddr};

use anyhow::Result;
use diag::{ListeningSocket, listening_sockets};
pub use enable::{Demand, Outcome, carry_out, has_changed_any};
pub use ledger::{Party, Wish};
pub use monitor::{ByAddress, Monitor, Totals};
pub use no_cookie::NoCookie;
use serde::Serialize;
use sockopt::{Holder, fast_open, holders};
use tfo_common::listener::{NO_COOKIE, OWN_KEYS, REUSE_PORT, Record};
pub use walk::{Walk, makes_cookies, places, shows_clients, shows_multi_buffers};

use crate::kernel::{
    clock::jiffies_per_second,
    sysctl::{self, EVERY_LISTENER, SERVER},
};

/// Listening TCP sockets of a network namespace, as `tfo listeners --json` shows them.
#[derive(Clone, Debug, Serialize)]
pub struct Listeners {
    /// Value of `net.ipv4.tcp_fastopen`.
    pub tcp_fastopen: u32,
    /// Whether bit 0x400 of `tcp_fastopen` turns Fast Open on for each new listener.
    pub every_listener: bool,
    /// The sockets, by port.
    pub listeners: Vec<Listener>,
    /// Reason why no socket has its [`Queues`]; `None` if they could be read.
    pub queues_unknown: Option<String>,
    /// Ways in which data is taken without a cookie, as text; `None` if there are none. Routes are among them if the caller
    /// has [added](Self::add_routes) them.
    pub no_cookie: Option<String>,
}

/// A listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// Local address and port.
    pub address: SocketAddr,
    /// Whether an IPv6 socket refuses IPv4; `None` for an IPv4 socket.
    pub ipv6_only: Option<bool>,
    /// Processes that hold the socket. An inherited socket has several, for example nginx's workers.
    pub processes: Vec<Process>,
    /// The accept queue.
    pub backlog: Backlog,
    /// The queues of handshakes; `None` if they can't be read.
    pub queues: Option<Queues>,
    /// Settings of Fast Open; `None` if they can't be read.
    pub fast_open: Option<FastOpen>,
    /// Reason why they can't be read, or not all of them.
    pub unknown: Option<String>,
    /// Problem with Fast Open on this listener.
    pub warning: Option<String>,
}

/// A process that holds a listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Name of the process, of at most 15 characters.
    pub name: String,
}

/// A listener's accept queue, in connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Backlog {
    /// Number of connections that wait to be accepted.
    pub waiting: u32,
    /// Limit on waiting connections; the kernel takes one more.
    pub limit: u32,
}

impl Backlog {
    /// Whether the kernel drops new connections (`sk_acceptq_is_full`).
    pub fn is_full(self) -> bool {
        self.waiting > self.limit
    }
}

/// A listener's queues of handshakes, and whether it shares its port. Only the walk over all sockets shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Queues {
    /// Number of ordinary handshakes that have not ended. Their limit is that of the accept queue
    /// (`inet_csk_reqsk_queue_is_full`).
    pub syn: u32,
    /// Number of Fast Open connections in their handshake, or reset in it less than 60 s ago.
    pub fast_open: u32,
    /// Seconds since the SYN queue last overflowed; `None` if it did not within two minutes, for which the kernel takes
    /// SYN cookies. With SO_REUSEPORT, the time is that of the whole group.
    pub overflow_seconds: Option<u32>,
    /// Whether the listener has SO_REUSEPORT.
    pub reuse_port: bool,
}

impl Queues {
    fn of(record: &Record) -> Self {
        let hz = jiffies_per_second().ok().and_then(|hz| u32::try_from(hz).ok());
        Self {
            syn: record.syn_queue,
            fast_open: record.fast_open_queue,
            overflow_seconds: hz.and_then(|hz| Some(record.overflow_age(hz)? / hz)),
            reuse_port: record.flags & REUSE_PORT != 0,
        }
    }
}

/// Fast Open settings of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FastOpen {
    /// Limit on Fast Open connections in their handshake at once (TCP_FASTOPEN); 0 means off.
    pub queue: u32,
    /// Whether it has keys of its own (TCP_FASTOPEN_KEY), and does not use the sysctl's.
    pub has_own_keys: bool,
    /// Fingerprints of its own current and backup key. They may be unknown although there are such keys.
    pub own_keys: Vec<String>,
    /// Whether the listener accepts data without a cookie (TCP_FASTOPEN_NO_COOKIE).
    pub no_cookie: bool,
}

impl FastOpen {
    /// Returns what a record says. Fingerprints of keys are not in it.
    fn of(record: &Record) -> Self {
        Self {
            queue: record.fast_open_limit,
            has_own_keys: record.flags & OWN_KEYS != 0,
            own_keys: Vec::new(),
            no_cookie: record.flags & NO_COOKIE != 0,
        }
    }
}

impl Listeners {
    /// Reads the listeners of the calling thread's network namespace, without their [`Queues`]. A listener whose
    /// settings can't be read says why.
    pub fn read() -> Result<Self> {
        Self::new(listening_sockets()?, Ok(Vec::new()))
    }

    /// Reads them with their queues, as far as the kernel permits. It takes some 100 ms more.
    pub fn read_with_queues() -> Result<Self> {
        // The records are found by the cookies that sock_diag makes.
        let sockets = listening_sockets()?;
        Self::new(sockets, Walk::load().and_then(|mut walk| walk.read()))
    }

    fn new(sockets: Vec<ListeningSocket>, records: Result<Vec<Record>>) -> Result<Self> {
        let tcp_fastopen = sysctl::read_mode()?;
        let inodes = sockets.iter().map(|socket| socket.inode).filter(|inode| *inode != 0).collect();
        let holders = holders(&inodes);
        let queues_unknown = records.as_ref().err().map(|error| format!("{error:#}"));
        let records: HashMap<_, _> =
            records.unwrap_or_default().into_iter().map(|record| (record.cookie, record)).collect();
        let listeners = sockets
            .into_iter()
            .map(|socket| listener(socket, &holders, records.get(&socket.cookie), tcp_fastopen));
        let listeners = Self {
            tcp_fastopen,
            every_listener: tcp_fastopen & EVERY_LISTENER != 0,
            listeners: listeners.collect(),
            queues_unknown,
            no_cookie: None,
        };
        Ok(listeners.add_routes(&[]))
    }

    /// Adds `routes` to the ways in which data is taken without a cookie. They are the destinations of routes that allow it.
    pub fn add_routes(self, routes: &[String]) -> Self {
        Self { no_cookie: self.without_cookie(routes).text(), ..self }
    }

    /// Returns the ways in which data is taken without a cookie: these listeners, the sysctl, and `routes`.
    pub fn without_cookie(&self, routes: &[String]) -> NoCookie {
        let takes = |listener: &&Listener| {
            listener.fast_open.as_ref().is_some_and(|fast_open| fast_open.queue > 0 && fast_open.no_cookie)
        };
        NoCookie {
            sysctl: NoCookie::is_for_all(self.tcp_fastopen),
            listeners: self.listeners.iter().filter(takes).map(Listener::name).collect(),
            routes: routes.to_vec(),
        }
    }
}

impl Listener {
    /// Returns its address, and the first process that holds it.
    pub fn name(&self) -> String {
        match self.processes.first() {
            Some(process) => format!("{} ({})", self.address, process.name),
            None => self.address.to_string(),
        }
    }
}

fn listener(
    socket: ListeningSocket,
    holders: &HashMap<u64, Vec<Holder>>,
    record: Option<&Record>,
    tcp_fastopen: u32,
) -> Listener {
    let ListeningSocket { address, ipv6_only, backlog, inode, cookie: _ } = socket;
    let holders = holders.get(&inode).map(Vec::as_slice).unwrap_or_default();
    let (fast_open, unknown) = match (fast_open(inode, holders), record.map(FastOpen::of)) {
        (Ok(fast_open), _) => (Some(fast_open), None),
        (Err(error), Some(fast_open)) => {
            let why = || format!("fingerprints of its keys are unknown: {error:#}");
            let unknown = fast_open.has_own_keys.then(why);
            (Some(fast_open), unknown)
        }
        (Err(error), None) => (None, Some(format!("{error:#}"))),
    };
    let processes = holders.iter().map(|holder| holder.process.clone()).collect();
    let warning = warning(fast_open.as_ref(), backlog, tcp_fastopen);
    let queues = record.map(Queues::of);
    Listener { address, ipv6_only, processes, backlog, queues, fast_open, unknown, warning }
}

/// Returns the problems of a listener: Fast Open is off, or its queue too short for more than one connection; its cookies are
/// unknown to tfo; it takes data without a cookie; or its accept queue is full.
fn warning(fast_open: Option<&FastOpen>, backlog: Backlog, tcp_fastopen: u32) -> Option<String> {
    let has = |bit| tcp_fastopen & bit != 0;
    let mut warnings = Vec::new();
    match fast_open {
        Some(FastOpen { queue: 0, .. }) if has(SERVER) && has(EVERY_LISTENER) => {
            warnings.push("off: it listened before bit 0x400 was set; restart it");
        }
        Some(FastOpen { queue: 0, .. }) if has(SERVER) => {
            warnings.push("off: the server does not set TCP_FASTOPEN (`tfo enable` can)")
        }
        Some(FastOpen { queue: 1.., .. }) if !has(SERVER) => {
            warnings.push("off: net.ipv4.tcp_fastopen lacks bit 0x2 (`tfo check --fix`)");
        }
        _ => {}
    }
    if let Some(FastOpen { queue: queue @ 1.., has_own_keys, own_keys: _, no_cookie }) = fast_open {
        // Some servers have that as their default (`tcp_fastopen_queue_check`).
        if *queue == 1 {
            warnings.push("a queue of 1: one connection in its handshake turns Fast Open off for all others");
        }
        if *has_own_keys {
            warnings.push("its own key, not the sysctl's: no rotation changes it");
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

/// Describes the bits of `net.ipv4.tcp_fastopen`.
pub fn bits(tcp_fastopen: u32) -> String {
    let known = [
        (sysctl::CLIENT, "client"),
        (SERVER, "server"),
        (sysctl::CLIENT_NO_COOKIE, "client sends data without a cookie"),
        (sysctl::SERVER_NO_COOKIE, "server takes data without a cookie"),
        (EVERY_LISTENER, "on for every new listener"),
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
        FastOpen { queue, has_own_keys: false, own_keys: Vec::new(), no_cookie: false }
    }

    #[test]
    fn each_problem_has_a_warning() {
        let said = |fast_open: &FastOpen, bits| warning(Some(fast_open), EMPTY, bits).unwrap_or_default();
        assert_eq!(said(&with_queue(2), SERVER), "");
        assert!(said(&with_queue(1), SERVER).starts_with("a queue of 1: "));
        assert_eq!(said(&with_queue(0), sysctl::CLIENT), "", "no warning without the server bit");
        assert!(said(&with_queue(0), SERVER).starts_with("off: the server does not set"));
        assert!(said(&with_queue(0), SERVER | EVERY_LISTENER).starts_with("off: it listened before"));
        assert!(said(&with_queue(5), sysctl::CLIENT).starts_with("off: net.ipv4.tcp_fastopen lacks bit 0x2"));

        let own = FastOpen { has_own_keys: true, ..with_queue(5) };
        assert!(said(&own, SERVER).starts_with("its own key"));
        assert!(!said(&FastOpen { queue: 0, ..own }, SERVER).contains("key"), "an unused key");
        assert!(said(&FastOpen { no_cookie: true, ..with_queue(1) }, SERVER).contains("without a cookie"));
    }

    #[test]
    fn a_queue_is_full_beyond_its_limit() {
        let said = |waiting| warning(Some(&with_queue(5)), Backlog { waiting, limit: 2 }, SERVER);
        assert_eq!(said(2), None, "the kernel takes one more than the limit");
        assert_eq!(said(3).as_deref(), Some("accept queue full: connections are dropped"));
    }

    #[test]
    fn bits_are_explained() {
        assert_eq!(bits(0), "off");
        assert_eq!(bits(0x403), "0x1 client, 0x2 server, 0x400 on for every new listener");
    }
}
