//! Listening sockets as sentences, and processes that hold them.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
};

use nix::{setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tfo_userspace::lab::server::TcpFastOpen;

sockopt_impl!(
    /// TCP_FASTOPEN_KEY: a key of the listener's own (tcp(7)).
    TcpFastOpenKey, SetOnly, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_KEY, [u8; 16]
);
sockopt_impl!(
    /// TCP_FASTOPEN_NO_COOKIE: data is taken without a cookie.
    TcpFastOpenNoCookie, SetOnly, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, bool
);

/// A socket that is to listen, in the calling thread's network namespace.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    backlog: i32,
}

impl Listener {
    /// On `address`, without Fast Open.
    pub fn on(address: &str) -> Self {
        Self::with(address, None)
    }

    /// The same for Multipath TCP, as Go's servers do: what the process holds is not the TCP socket that listens.
    pub fn multipath(address: &str) -> Self {
        Self::with(address, Some(Protocol::MPTCP))
    }

    fn with(address: &str, protocol: Option<Protocol>) -> Self {
        let address: SocketAddr = address.parse().expect("an address and a port");
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, protocol).expect("a socket");
        socket.set_reuse_address(true).expect("an option that every socket has");
        socket.bind(&address.into()).unwrap_or_else(|error| panic!("cannot bind to {address}: {error}"));
        Self { socket, backlog: 128 }
    }

    /// With Fast Open, for so many connections in their handshake.
    pub fn fast_open(self, queue: usize) -> Self {
        setsockopt(&self.socket, TcpFastOpen, &queue).expect("TCP_FASTOPEN");
        self
    }

    /// With a key of its own.
    pub fn own_key(self, key: [u8; 16]) -> Self {
        setsockopt(&self.socket, TcpFastOpenKey, &key).expect("TCP_FASTOPEN_KEY");
        self
    }

    /// For data without a cookie, too.
    pub fn no_cookie(self) -> Self {
        setsockopt(&self.socket, TcpFastOpenNoCookie, &true).expect("TCP_FASTOPEN_NO_COOKIE");
        self
    }

    /// With so much room in its accept queue.
    pub fn backlog(mut self, backlog: i32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Listens.
    pub fn listen(self) -> TcpListener {
        self.socket.listen(self.backlog).expect("a bound socket listens");
        self.socket.into()
    }

    /// Listens, and leaves the socket to another process.
    pub fn held(self) -> Holder {
        Holder::of(self.listen())
    }
}

/// A process that does nothing but hold a listening socket, as its standard input. It is ended when dropped.
#[derive(Debug)]
pub struct Holder(Child);

impl Holder {
    /// It gets `listener`, which this process then has no more, save what it has cloned.
    pub fn of(listener: TcpListener) -> Self {
        let child = Command::new("sleep").arg("infinity").stdin(Stdio::from(OwnedFd::from(listener))).spawn();
        Self(child.expect("sleep can be started"))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().expect("it runs until it is killed");
        self.0.wait().expect("it ends");
    }
}
