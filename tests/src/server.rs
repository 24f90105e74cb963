//! A server that keeps what it was told: what an application sees of what came over the wire.

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

/// How long a client may stay silent.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to see that this is the end, in milliseconds.
const LOOK_EVERY: u16 = 20;

/// Who said what, in the order in which they were accepted.
type Heard = Arc<Mutex<Vec<(SocketAddr, Vec<u8>)>>>;

/// A server that gives each client one answer, on a thread of its own.
#[derive(Debug)]
pub struct Server {
    heard: Heard,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `listener`: what a client says first is answered with what `answer` makes of it, and then the client closes.
    pub fn start(listener: TcpListener, answer: fn(&[u8]) -> Vec<u8>) -> Self {
        let (heard, stop) = (Heard::default(), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (heard, stop) = (Arc::clone(&heard), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut poll_for = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut poll_for, LOOK_EVERY) != Ok(1) {
                        continue;
                    }
                    if let Ok((connection, client)) = listener.accept() {
                        let heard = Arc::clone(&heard);
                        thread::spawn(move || serve(connection, client, &heard, answer));
                    }
                }
            }
        });
        Self { heard, stop, thread: Some(thread) }
    }

    /// One that sends back what it gets.
    pub fn echo(listener: TcpListener) -> Self {
        Self::start(listener, <[u8]>::to_vec)
    }

    /// What it was told, by whom.
    pub fn heard(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often it was told `data`.
    pub fn times(&self, data: &[u8]) -> usize {
        self.heard().iter().filter(|(_, heard)| heard == data).count()
    }

    /// Whether `client` has said anything.
    pub fn knows(&self, client: SocketAddr) -> bool {
        self.heard().iter().any(|(heard, _)| *heard == client)
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

/// A client that goes away is no failure of the server.
fn serve(mut connection: TcpStream, client: SocketAddr, heard: &Heard, answer: fn(&[u8]) -> Vec<u8>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let _: std::io::Result<()> = connection.set_read_timeout(Some(PATIENCE));
    let Ok(read @ 1..) = connection.read(&mut buffer) else { return };
    heard.lock().unwrap_or_else(PoisonError::into_inner).push((client, buffer[..read].to_vec()));
    let _: std::io::Result<()> = connection.write_all(&answer(&buffer[..read]));
    // The client closes first: the server keeps nothing of the connection then, as after a day.
    while let Ok(1..) = connection.read(&mut buffer) {}
}
