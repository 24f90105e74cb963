//! Builder of listening sockets, and processes that hold them.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
};

use nix::{setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tfo_userspace::lab::server::TcpFastOpen;

use crate::netns::eventually;

sockopt_impl!(
    /// TCP_FASTOPEN_KEY: the key of one listener (tcp(7)).
    TcpFastOpenKey, SetOnly, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_KEY, [u8; 16]
);
sockopt_impl!(
    /// TCP_FASTOPEN_NO_COOKIE: data is taken without a cookie.
    TcpFastOpenNoCookie, SetOnly, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, bool
);

/// Socket before it listens, in the calling thread's network namespace.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    backlog: i32,
}

impl Listener {
    /// Binds a TCP socket to `address`, without Fast Open.
    pub fn on(address: &str) -> Self {
        Self::with(address, None)
    }

    /// Binds a socket of Multipath TCP to `address`, as Go's servers do. The TCP socket that listens is not the one
    /// that the process holds.
    pub fn multipath(address: &str) -> Self {
        Self::with(address, Some(Protocol::MPTCP))
    }

    /// Binds a TCP socket with SO_REUSEPORT to `address`, without Fast Open.
    pub fn shared(address: &str) -> Self {
        let address: SocketAddr = address.parse().expect("an address and a port");
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        socket.set_reuse_port(true).expect("an option that every socket has");
        Self::bind(socket, address)
    }

    fn with(address: &str, protocol: Option<Protocol>) -> Self {
        let address: SocketAddr = address.parse().expect("an address and a port");
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, protocol).expect("a socket");
        socket.set_reuse_address(true).expect("an option that every socket has");
        Self::bind(socket, address)
    }

    fn bind(socket: Socket, address: SocketAddr) -> Self {
        // A server that was there a moment ago may not have closed its socket yet.
        eventually(&format!("{address} is free"), || match socket.bind(&address.into()) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => false,
            bound => bound.map(|()| true).unwrap_or_else(|error| panic!("cannot bind to {address}: {error}")),
        });
        Self { socket, backlog: 128 }
    }

    /// Enables Fast Open, with this many connections in their handshake at most.
    pub fn fast_open(self, queue: usize) -> Self {
        setsockopt(&self.socket, TcpFastOpen, &queue).expect("TCP_FASTOPEN");
        self
    }

    /// Sets a key for this listener alone.
    pub fn own_key(self, key: [u8; 16]) -> Self {
        setsockopt(&self.socket, TcpFastOpenKey, &key).expect("TCP_FASTOPEN_KEY");
        self
    }

    /// Accepts data without a cookie, too.
    pub fn no_cookie(self) -> Self {
        setsockopt(&self.socket, TcpFastOpenNoCookie, &true).expect("TCP_FASTOPEN_NO_COOKIE");
        self
    }

    /// Sets the length of the accept queue.
    pub fn backlog(mut self, backlog: i32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Makes the socket listen.
    pub fn listen(self) -> TcpListener {
        self.socket.listen(self.backlog).expect("a bound socket listens");
        self.socket.into()
    }

    /// Makes the socket listen, and moves it to another process.
    pub fn held(self) -> Holder {
        Holder::of(self.listen())
    }
}

/// Process that holds a listening socket as its standard input and does nothing else. It is killed when dropped.
#[derive(Debug)]
pub struct Holder(Child);

impl Holder {
    /// Starts the process with `listener`, which this process closes. Clones of it stay open.
    pub fn of(listener: TcpListener) -> Self {
        let child = Command::new("sleep").arg("infinity").stdin(Stdio::from(OwnedFd::from(listener))).spawn();
        Self(child.expect("sleep can be started"))
    }

    /// Returns the process id.
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
