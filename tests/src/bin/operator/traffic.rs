//! Visitors: 200 connections a second with Fast Open, from a network namespace to an interface of this machine.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use tfo_userspace::lab::{client::fast_open, server::Listeners};

use crate::machine::run;

/// Interface that tfo observes, of a veth pair.
pub(crate) const INTERFACE: &str = "site";
/// Namespace of the visitors.
const NAMESPACE: &str = "visitors";
const VISITOR: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2));
/// The server's address.
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), PORT);
/// The server's port.
pub(crate) const PORT: u16 = 7413;

const THREADS: u32 = 8;
/// Connections in a second, of all threads.
const RATE: u32 = 200;

/// Makes the interface and the namespace. Fast Open needs no more there than the defaults of the kernel.
pub(crate) fn make_network() -> Result<()> {
    for line in [
        "ip netns add visitors",
        "ip link add site type veth peer name visitor netns visitors",
        "ip address add 198.18.0.1/24 dev site",
        "ip link set site up",
        "ip -n visitors address add 198.18.0.2/24 dev visitor",
        "ip -n visitors link set lo up",
        "ip -n visitors link set visitor up",
    ] {
        run(line)?;
    }
    Ok(())
}

/// Visitors that come until this is dropped.
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    _server: Listeners,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    /// Number of threads that pause.
    idle: AtomicUsize,
    made: AtomicU64,
    /// Errors of the connections that were not made.
    lost: Mutex<Vec<String>>,
}

impl Traffic {
    /// Starts the server and the visitors.
    pub(crate) fn start() -> Result<Self> {
        // Two listeners, so that one slow connection keeps nobody waiting.
        let server = Listeners::start(&[SERVER, SERVER])?;
        let shared = Arc::new(Shared::default());
        let visit = |number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.visit(number))
        };
        let threads = (0..THREADS).map(visit).collect();
        Ok(Self { shared, threads, _server: server })
    }

    /// Returns the number of connections so far, all of which were served, or the error of the first that was not.
    pub(crate) fn served(&self) -> Result<u64> {
        let lost = self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let made = self.shared.made.load(Ordering::Relaxed);
        ensure!(lost.is_empty(), "{} of {} connections were lost: {}", lost.len(), made, lost[0]);
        Ok(made)
    }

    /// Lets no connection be under way while `look` runs.
    pub(crate) fn paused<T>(&self, look: impl FnOnce() -> Result<T>) -> Result<T> {
        self.shared.pause.store(true, Ordering::Relaxed);
        while self.shared.idle.load(Ordering::Relaxed) < THREADS as usize {
            thread::sleep(Duration::from_millis(10));
        }
        let seen = look();
        self.shared.pause.store(false, Ordering::Relaxed);
        seen
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _: thread::Result<()> = thread.join();
        }
    }
}

impl Shared {
    /// Visits the server, again and again.
    fn visit(&self, number: u32) {
        if let Err(error) = enter() {
            self.lose(&error);
        }
        let period = Duration::from_secs(1) * THREADS / RATE;
        let mut next = Instant::now() + period * number / THREADS;
        while !self.stop.load(Ordering::Relaxed) {
            if self.pause.load(Ordering::Relaxed) {
                self.idle.fetch_add(1, Ordering::Relaxed);
                while self.pause.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(5));
                }
                self.idle.fetch_sub(1, Ordering::Relaxed);
                next = Instant::now();
            }
            thread::sleep(next.saturating_duration_since(Instant::now()));
            // What an emulated processor can't do in time is not made up for.
            next = (next + period).max(Instant::now());
            match fast_open(VISITOR, SERVER, b"data in the SYN") {
                Ok(()) => drop(self.made.fetch_add(1, Ordering::Relaxed)),
                Err(error) => self.lose(&error),
            }
        }
    }

    fn lose(&self, error: &anyhow::Error) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
    }
}

/// Moves the calling thread to the visitors.
fn enter() -> Result<()> {
    let path = format!("/run/netns/{NAMESPACE}");
    let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace of the visitors")
}

/// Returns the number of SYNs that the visitors have sent, by the kernel's own counters: connections that were opened, and
/// SYNs that were sent again.
pub(crate) fn syns_sent() -> Result<u64> {
    let read = || {
        enter()?;
        let snmp = fs::read_to_string("/proc/thread-self/net/snmp")?;
        let netstat = fs::read_to_string("/proc/thread-self/net/netstat")?;
        Ok(counter(&snmp, "Tcp: ", "ActiveOpens")? + counter(&netstat, "TcpExt: ", "TCPSynRetrans")?)
    };
    thread::spawn(read).join().map_err(|_| anyhow!("a thread among the visitors panicked"))?
}

/// Returns a counter of a table with one line of names and one of values.
fn counter(text: &str, table: &str, name: &str) -> Result<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(table));
    let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(one, _)| *one == name).with_context(|| format!("there is no {name}"))?;
    Ok(value.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_name() {
        let text = "Ip: Forwarding\nIp: 2\nTcp: RtoMin ActiveOpens\nTcp: 200 7\n";
        assert_eq!(counter(text, "Tcp: ", "ActiveOpens").ok(), Some(7));
        assert!(counter(text, "Tcp: ", "PassiveOpens").is_err());
    }
}
