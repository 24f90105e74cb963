//! Hosts of a fleet that share an anycast address, and clients that reach another of them each time.
//!
//! Each host is a thread with namespaces of its own, in which the calls of [`Host::run`] are made. All hosts are joined to
//! one namespace of clients, and have the same address there.

use std::{
    any::Any,
    fs,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{getsockopt_impl, sockopt_impl, sys::socket::getsockopt};
use socket2::{Domain, Socket, Type};
use tfo_userspace::{
    kernel::sysctl::write_mode,
    lab::{net::Namespace, server::Listeners},
};

use crate::netns::{IFACE, ip, sandbox};

/// Address and port of every host.
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 7413);
/// Data of each connection.
const DATA: &[u8] = b"data in the SYN";
/// Number of clients, each with an address of its own. The kernel keeps the cookies of no more for one server
/// (TCP_METRICS_RECLAIM_DEPTH).
const CLIENTS: u64 = 4;
/// Longest time of a connection.
const PATIENCE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;
type Outcome<T> = Result<T, Box<dyn Any + Send>>;

/// Host with an echo server on [`SERVER`], behind its interface [`IFACE`].
#[derive(Debug)]
pub struct Host {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Starts host `number`, which is joined to `clients`.
    fn start(number: usize, clients: &Namespace) -> Self {
        let (jobs, todo) = channel::<Job>();
        let (ready, is_ready) = channel();
        let thread = thread::spawn(move || {
            sandbox(|| {
                ready.send(Namespace::current().expect("a namespace")).expect("somebody waits");
                for job in todo {
                    job();
                }
            });
        });
        let namespace = is_ready.recv().expect("a host");
        let host = Self { jobs: Some(jobs), thread: Some(thread) };
        let joined = clients.run(|| {
            ip(&format!("link add c{number} type veth peer name {IFACE} netns {}", namespace.path()));
            ip(&format!("link set c{number} up"));
            Ok(())
        });
        joined.expect("a link to the host");
        host.run(|| {
            ip(&format!("address add {}/32 dev {IFACE}", SERVER.ip()));
            ip("link set lo up");
            ip(&format!("link set {IFACE} up"));
            ip(&format!("route add 198.19.0.0/16 dev {IFACE}"));
            write_mode(3).expect("Fast Open for clients and servers");
            // It lives as long as the namespace, since its threads do.
            std::mem::forget(Listeners::start(&[SERVER, SERVER]).expect("a server"));
        });
        clients
            .run(|| {
                ip(&format!("route add {}/32 dev c{number} metric {}", SERVER.ip(), number + 1));
                Ok(())
            })
            .expect("a route to the host");
        host
    }

    /// Does `work` on the host, and waits for it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, outcome) = channel::<Outcome<T>>();
        let job = move || {
            // Only a caller that is gone does not want the outcome.
            let _: Result<(), _> = sender.send(catch_unwind(AssertUnwindSafe(work)));
        };
        self.jobs.as_ref().expect("it has not ended").send(Box::new(job)).expect("the host runs");
        outcome.recv().expect("the host runs").unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _: thread::Result<()> = thread.join();
        }
    }
}

/// Hosts and their clients.
#[derive(Debug)]
pub struct Fleet {
    /// The hosts.
    pub hosts: Vec<Host>,
    clients: Namespace,
}

/// Connections that were made.
#[derive(Debug, Default)]
pub struct Made {
    /// Number of connections.
    pub all: AtomicU64,
    /// Number of those whose server had the data before the handshake was complete.
    pub early: AtomicU64,
}

impl Fleet {
    /// Starts a fleet of `number` hosts.
    pub fn start(number: usize) -> Self {
        let clients = Namespace::new().expect("a namespace for the clients");
        clients
            .run(|| {
                ip("link set lo up");
                // Answers come from an address to which the first route leads elsewhere.
                for name in ["all", "default"] {
                    let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
                    fs::write(path, "0").expect("a sysctl of the clients' namespace");
                }
                ip("route add local 198.19.0.0/16 dev lo");
                write_mode(1)?;
                Ok(())
            })
            .expect("clients");
        Self { hosts: (0..number).map(|number| Host::start(number, &clients)).collect(), clients }
    }

    /// Does `work` among the clients.
    pub fn among_clients<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.clients.run(|| Ok(work())).expect("the clients' namespace")
    }

    /// Makes about `rate` connections a second, each to the host that `choose` names, until `stop`. It panics if a
    /// connection fails.
    pub fn visit(&self, rate: u32, stop: &AtomicBool, made: &Made, choose: impl Fn() -> usize + Sync) {
        const THREADS: u32 = 6;
        let next = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    self.clients.enter().expect("the clients' namespace");
                    let mut due = Instant::now();
                    while !stop.load(Ordering::Relaxed) {
                        let client = next.fetch_add(1, Ordering::Relaxed) % CLIENTS;
                        let is_early = connect(choose(), client as u8).expect("a connection");
                        made.all.fetch_add(1, Ordering::Relaxed);
                        made.early.fetch_add(is_early.into(), Ordering::Relaxed);
                        // What a busy machine can't do in time is not made up for.
                        due = (due + Duration::from_secs(1) * THREADS / rate).max(Instant::now());
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                    }
                });
            }
        });
    }
}

/// Connects to a host, and waits until the data comes back. Returns whether the server took the data of the SYN.
fn connect(host: usize, client: u8) -> io::Result<bool> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind_device(Some(format!("c{host}").as_bytes()))?;
    socket.set_freebind_v4(true)?;
    socket.bind(&SocketAddr::from(([198, 19, 0, client], 0)).into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let sent = socket.send_to_with_flags(DATA, &SERVER.into(), libc::MSG_FASTOPEN)?;
    assert_eq!(sent, DATA.len(), "all data fit into the SYN");
    let mut stream = TcpStream::from(socket);
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    assert_eq!(answer, DATA, "what came back");
    took_syn_data(&stream)
}

sockopt_impl!(
    /// First bytes of `struct tcp_info` (linux/tcp.h).
    TcpInfo, GetOnly, libc::IPPROTO_TCP, libc::TCP_INFO, [u8; 8]
);

/// Whether the server has acknowledged the data of the SYN (TCPI_OPT_SYN_DATA).
fn took_syn_data(stream: &TcpStream) -> io::Result<bool> {
    const SYN_DATA: u8 = 32;
    let [_, _, _, _, _, options, ..] = getsockopt(stream, TcpInfo)?;
    Ok(options & SYN_DATA != 0)
}
