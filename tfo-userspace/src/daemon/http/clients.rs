//! Connections of clients. If there are too many, slow clients are cut off to make room.

use std::{
    cmp::Reverse,
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tracing::debug;

/// Maximum number of connections at once. One more cuts off the slowest.
pub(crate) const CONNECTIONS: usize = 128;
/// Maximum number of answers with metrics in memory at once. Each has megabytes with a thousand services.
const ANSWERS: usize = 16;
/// Time for which a client may read nothing of its answer.
const STALL: Duration = Duration::from_secs(2);
/// The same time while other clients wait for their answers.
const STALL_AMONG_OTHERS: Duration = Duration::from_millis(100);

/// Connections of all clients.
pub(super) struct Clients {
    all: Mutex<Vec<Arc<Client>>>,
    answers: Arc<Semaphore>,
}

/// Connection of one client.
pub(super) struct Client {
    address: IpAddr,
    state: Mutex<State>,
    cut: Notify,
}

/// State of a connection.
pub(super) struct State {
    /// Time since which we wait for the client; `None` while the client waits for us.
    waits_since: Option<Instant>,
    /// Place among the answers in memory.
    answer: Option<OwnedSemaphorePermit>,
}

impl Clients {
    pub(super) fn new() -> Self {
        Self { all: Mutex::default(), answers: Arc::new(Semaphore::new(ANSWERS)) }
    }

    /// Adds a connection from `address`. If there is no room, the slowest client is cut off for it. Returns `None` if
    /// all clients wait for us.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Arc<Client>> {
        let is_full = locked(&self.all).len() >= CONNECTIONS;
        if is_full && !self.cut_slowest(|_| true) {
            return None;
        }
        let state = State { waits_since: Some(Instant::now()), answer: None };
        let client =
            Arc::new(Client { address: host(address), state: Mutex::new(state), cut: Notify::new() });
        locked(&self.all).push(Arc::clone(&client));
        Some(client)
    }

    /// Removes a connection that has ended.
    pub(super) fn remove(&self, client: &Arc<Client>) {
        locked(&self.all).retain(|other| !Arc::ptr_eq(other, client));
        client.state().answer = None;
    }

    /// Waits for a place among the answers in memory. `client` keeps it until its connection ends.
    pub(super) async fn place(&self, client: &Client) {
        let mut place = pin!(Arc::clone(&self.answers).acquire_owned());
        loop {
            tokio::select! {
                place = &mut place => {
                    // The semaphore is never closed, so there is a place.
                    client.state().answer = place.ok();
                    return;
                }
                () = sleep(STALL_AMONG_OTHERS / 4) => {
                    let stalls = |state: &State| {
                        let is_long = |since: Instant| since.elapsed() >= STALL_AMONG_OTHERS;
                        state.answer.is_some() && state.waits_since.is_some_and(is_long)
                    };
                    self.cut_slowest(stalls);
                }
            }
        }
    }

    /// Cuts off the slowest of the clients that we wait for and whose state fits `among`: the one that makes us wait
    /// longest, of the host with most such clients. Returns false if there is none.
    pub(super) fn cut_slowest(&self, among: impl Fn(&State) -> bool) -> bool {
        let mut all = locked(&self.all);
        let waited_for = |(place, client): (usize, &Arc<Client>)| {
            let state = client.state();
            let since = state.waits_since.filter(|_| among(&state))?;
            Some((place, client.address, since))
        };
        let slow: Vec<_> = all.iter().enumerate().filter_map(waited_for).collect();
        let mut of_host: HashMap<IpAddr, usize> = HashMap::new();
        slow.iter().for_each(|(_, host, _)| *of_host.entry(*host).or_default() += 1);
        let slowest = slow.iter().max_by_key(|(_, host, since)| (of_host[host], Reverse(*since)));
        let Some((place, host, since)) = slowest else { return false };
        debug!("metrics: a client at {host} is cut off: it made us wait for {:?}", since.elapsed());
        all.swap_remove(*place).cut.notify_one();
        true
    }
}

impl Client {
    /// Notes that the client has sent its request.
    pub(super) fn request_received(&self) {
        self.state().waits_since = None;
    }

    /// Waits until the client is cut off.
    pub(super) async fn cut(&self) {
        self.cut.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

/// Returns the address that stands for the host of `address`. An IPv6 host has a /64 to itself.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & u128::MAX << 64).into(),
        v4 => v4,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stream of a client. Writing fails after the client has read nothing for [`STALL`].
pub(super) struct Stream {
    stream: TcpStream,
    client: Arc<Client>,
    stalls: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    pub(super) fn new(stream: TcpStream, client: Arc<Client>) -> Self {
        Self { stream, client, stalls: None }
    }

    /// Writes with `write`, and measures how long the client stalls.
    fn timed<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let written = write(Pin::new(&mut self.stream), cx);
        if written.is_ready() {
            self.client.state().waits_since = None;
            self.stalls = None;
            return written;
        }
        self.client.state().waits_since.get_or_insert_with(Instant::now);
        let stalls = self.stalls.get_or_insert_with(|| Box::pin(sleep(STALL)));
        stalls.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.timed(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.timed(cx, |stream, cx| stream.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    /// The oldest connection of the host with most connections is cut off, and no client that waits for us.
    #[test]
    fn the_slowest_of_the_busiest_host_makes_room() {
        let clients = Clients::new();
        let first = clients.admit(address(1)).expect("room");
        let others: Vec<_> = (1..CONNECTIONS).filter_map(|_| clients.admit(address(2))).collect();
        assert_eq!(others.len(), CONNECTIONS - 1);
        let is_there = |client| locked(&clients.all).iter().any(|other| Arc::ptr_eq(other, client));
        others[0].request_received();
        let new = clients.admit(address(3)).expect("room is made");
        let gone: Vec<_> = (0..others.len()).filter(|n| !is_there(&others[*n])).collect();
        assert_eq!(gone, [1], "{}", is_there(&first));
        assert!(is_there(&first) && is_there(&new));

        locked(&clients.all).iter().for_each(|client| client.request_received());
        assert!(clients.admit(address(4)).is_none(), "all wait for us");
        clients.remove(&first);
        assert!(clients.admit(address(4)).is_some());
    }

    #[test]
    fn a_host_is_an_address_or_a_network_of_its_own() {
        let host = |text: &str| host(text.parse().expect("an address")).to_string();
        assert_eq!(host("192.0.2.1"), "192.0.2.1");
        assert_eq!(host("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(host("2001:db8::1:2:3:4"), "2001:db8::");
    }
}
