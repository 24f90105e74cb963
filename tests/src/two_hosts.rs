//! Client and server in two namespaces, joined by a wire that the test controls. It can lose, repeat and replay
//! segments.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use tfo_common::parse::LinkLayer;
use tfo_userspace::{
    kernel::sysctl::{KeySysctl, write_mode},
    lab::{client::fast_open, net::Namespace},
};

use crate::{
    netns::{StopOnDrop, eventually, has_no_connections, ip, key},
    tap::Tap,
    wire::Seen,
};

/// The server's port.
pub const PORT: u16 = 7413;

/// Two hosts and the wire between them.
pub struct TwoHosts {
    near: Tap,
    far: Tap,
    client: Namespace,
}

/// The server's address.
pub const SERVER: &str = "10.9.0.1:7413";

impl TwoHosts {
    /// Makes both hosts, with Fast Open on, and [`key`]`(1)` as the server's.
    pub fn start() -> Self {
        write_mode(3).expect("Fast Open for clients and servers");
        KeySysctl::open().and_then(|sysctl| sysctl.write(key(1), None)).expect("the sysctl takes keys");
        let client = Namespace::new().expect("a namespace");
        let far = client
            .run(|| {
                write_mode(3)?;
                let far = Tap::new("far", LinkLayer::Ethernet);
                ip("link set far address 02:00:00:00:00:03");
                ip("address add 10.9.0.2/24 dev far");
                Ok(far)
            })
            .expect("the far end");
        let near = Tap::new("near", LinkLayer::Ethernet);
        ip("address add 10.9.0.1/24 dev near");
        Self { near, far, client }
    }

    /// Connects from the client's namespace, sends `data` and waits for the answer. The wire delivers each segment as
    /// many times as `copies` says.
    pub fn connect(&mut self, data: &[u8], mut copies: impl FnMut(&Seen, &[u8]) -> usize) {
        let done = AtomicBool::new(false);
        let Self { near, far, client } = self;
        let to: SocketAddr = SERVER.parse().expect("an address");
        thread::scope(|scope| {
            let connection = scope.spawn(|| {
                let _done = StopOnDrop(&done);
                client.run(|| fast_open("10.9.0.2".parse()?, to, data))
            });
            let mut carry = || {
                let mut carried = 0;
                for is_answer in [false, true] {
                    let (from, to) =
                        if is_answer { (&mut *near, &mut *far) } else { (&mut *far, &mut *near) };
                    while let Some(frame) = from.sent() {
                        carried += 1;
                        for _ in 0..Seen::of(&frame).map_or(1, |seen| copies(&seen, &frame)) {
                            to.receive(&frame).expect("the wire takes it");
                        }
                    }
                }
                if carried == 0 {
                    thread::sleep(Duration::from_micros(200));
                }
            };
            while !done.load(Ordering::Relaxed) {
                carry();
            }
            connection.join().expect("no panic").expect("a connection");
            eventually("the server has closed, too", || {
                carry();
                has_no_connections()
            });
        });
    }

    /// Connects once with `data` in the SYN. Returns that SYN and its frame.
    pub fn capture(&mut self, data: &[u8]) -> (Seen, Vec<u8>) {
        let mut syn = None;
        self.connect(data, |seen, frame| {
            if seen.data == data && seen.syn {
                syn = Some((seen.clone(), frame.to_vec()));
            }
            1
        });
        syn.expect("the data went with the SYN")
    }

    /// Sends `frame` to the server.
    pub fn send(&mut self, frame: &[u8]) {
        self.near.receive(frame).expect("the wire takes it");
    }

    /// Sends `frame` to the server, and returns the SYN-ACK that answers it. The client gets none.
    pub fn replay(&mut self, frame: &[u8]) -> Seen {
        while self.near.sent().is_some() {}
        self.near.receive(frame).expect("the wire takes it");
        let mut answer = None;
        eventually("it is answered", || {
            answer = self.near.sent().and_then(|frame| Seen::of(&frame)).filter(Seen::is_syn_ack);
            answer.is_some()
        });
        answer.expect("an answer")
    }
}
