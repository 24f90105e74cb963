//! Echo server with Fast Open in the kernel's own stack.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    poll::{PollFd, PollFlags, poll},
    setsockopt_impl, sockopt_impl,
    sys::socket::setsockopt,
};
use socket2::{Domain, Socket, Type};

/// Length of the Fast Open queue, which neither the lab nor a test ever fills.
const FAST_OPEN_QUEUE: usize = 65_536;
const BACKLOG: i32 = 65_535;
/// Longest time until a thread sees that it has to end, in milliseconds.
const LOOK_EVERY: u16 = 100;
/// Longest silence of a connection. A forged client sends nothing after its SYN.
const PATIENCE: Duration = Duration::from_secs(2);

sockopt_impl!(
    /// Option TCP_FASTOPEN of a listener: number of Fast Open connections that may be pending (tcp(7)).
    TcpFastOpen, SetOnly, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, usize
);

/// Opens a listening socket with Fast Open.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listen = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        setsockopt(&socket, TcpFastOpen, &FAST_OPEN_QUEUE)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().with_context(|| format!("cannot listen with Fast Open on {address}"))
}

/// Echo servers on several addresses, each on a thread in the namespace of the thread that started them.
#[derive(Debug)]
pub struct Listeners {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Listeners {
    /// Starts an echo server on each of `addresses`.
    pub fn start(addresses: &[SocketAddr]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for address in addresses {
            let listener = listen(*address)?;
            let stop = Arc::clone(&stop);
            // Listeners may share an address, and the kernel chooses the one that a connection wakes. So no connection
            // can tell a certain thread to end, and threads must not block in accept().
            listener.set_nonblocking(true)?;
            threads.push(thread::Builder::new().name("server".to_owned()).spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // A client that went away is no failure of the server.
                    match listener.accept() {
                        Ok((connection, _)) => drop(echo(connection)),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(&listener),
                        Err(_) => {}
                    }
                }
            })?);
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _: thread::Result<()> = thread.join();
        }
    }
}

/// Waits for a connection, for at most [`LOOK_EVERY`].
fn wait(listener: &TcpListener) {
    let mut poll_for = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let _: nix::Result<i32> = poll(&mut poll_for, LOOK_EVERY);
}

/// Sends everything back until the client closes.
fn echo(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 4096];
    loop {
        let read = connection.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        connection.write_all(&buffer[..read])?;
    }
}
