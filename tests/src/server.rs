//! Server that remembers the data that its clients have sent, as an application sees it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, poll};

/// Longest silence of a client.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest delay before the server notices that it must end, in milliseconds.
const POLL_MS: u16 = 20;

/// Data of each client, in the order in which the server has read it.
type Received = Arc<Mutex<Vec<(SocketAddr, Vec<u8>)>>>;

/// Server that gives each client one answer, on a thread of its own.
#[derive(Debug)]
pub struct Server {
    received: Received,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `listener`. The first data of a client is answered with `answer(data)`, and then the client closes.
    pub fn start(listener: TcpListener, answer: fn(&[u8]) -> Vec<u8>) -> Self {
        let (received, stop) = (Received::default(), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (received, stop) = (Arc::clone(&received), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut poll_for = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut poll_for, POLL_MS) != Ok(1) {
                        continue;
                    }
                    if let Ok((connection, client)) = listener.accept() {
                        let received = Arc::clone(&received);
                        thread::spawn(move || serve(connection, client, &received, answer));
                    }
                }
            }
        });
        Self { received, stop, thread: Some(thread) }
    }

    /// Serves `listener` and sends back what each client sends.
    pub fn echo(listener: TcpListener) -> Self {
        Self::start(listener, <[u8]>::to_vec)
    }

    /// Returns the data of each client.
    pub fn received(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the number of clients that have sent `data`.
    pub fn times(&self, data: &[u8]) -> usize {
        self.received().iter().filter(|(_, received)| received == data).count()
    }

    /// Returns whether `client` has sent anything.
    pub fn has_heard_from(&self, client: SocketAddr) -> bool {
        self.received().iter().any(|(received, _)| *received == client)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _: thread::Result<()> = thread.join();
        }
    }
}

/// Serves one connection. A client that goes away is no failure of the server.
fn serve(mut connection: TcpStream, client: SocketAddr, received: &Received, answer: fn(&[u8]) -> Vec<u8>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let _: std::io::Result<()> = connection.set_read_timeout(Some(PATIENCE));
    let Ok(read @ 1..) = connection.read(&mut buffer) else { return };
    received.lock().unwrap_or_else(PoisonError::into_inner).push((client, buffer[..read].to_vec()));
    let _: std::io::Result<()> = connection.write_all(&answer(&buffer[..read]));
    // The client closes first, so that the server keeps no state of the connection, as after a day.
    while let Ok(1..) = connection.read(&mut buffer) {}
}
