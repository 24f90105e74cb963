//! Against replays: two kernels with a wire between them that the test holds, by which SYNs come again, get lost, or come twice.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use tfo_common::{class::Class, parse::LinkLayer, policy::Guard, verdict::Verdict};
use tfo_tests::{
    config::{guarded, protected},
    listener::Listener,
    netns::{Counts, StopOnDrop, eventually, ip, is_idle, key, sandbox},
    server::Server,
    tap::Tap,
    wire::Seen,
};
use tfo_userspace::{
    kernel::{KeySysctl, TcpExt, write_mode},
    lab::{client::fast_open, net::Namespace},
};

const PORT: u16 = 7413;

/// Two kernels, and between them a wire that is the test.
struct Between {
    near: Tap,
    far: Tap,
    client: Namespace,
}

const NEAR: &str = "10.9.0.1:7413";

impl Between {
    fn new() -> Self {
        write_mode(3).unwrap();
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let client = Namespace::new().unwrap();
        let far = client
            .run(|| {
                write_mode(3)?;
                let far = Tap::new("far", LinkLayer::Ethernet);
                ip("link set far address 02:00:00:00:00:03");
                ip("address add 10.9.0.2/24 dev far");
                Ok(far)
            })
            .unwrap();
        let near = Tap::new("near", LinkLayer::Ethernet);
        ip("address add 10.9.0.1/24 dev near");
        Self { near, far, client }
    }

    /// A client in the far namespace connects, says `data` and is answered, while the wire delivers each segment as many times
    /// as `copies` says.
    fn connect(&mut self, data: &[u8], mut copies: impl FnMut(&Seen, &[u8]) -> usize) {
        let done = AtomicBool::new(false);
        let Self { near, far, client } = self;
        let to: SocketAddr = NEAR.parse().unwrap();
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
                            to.receive(&frame).unwrap();
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
            connection.join().unwrap().unwrap();
            eventually("the server has closed, too", || {
                carry();
                is_idle()
            });
        });
    }

    /// Sends `frame` to the server, and sees how it answers; which nobody else does.
    fn replay(&mut self, frame: &[u8]) -> Seen {
        while self.near.sent().is_some() {}
        self.near.receive(frame).unwrap();
        let mut answer = None;
        eventually("it is answered", || {
            answer = self.near.sent().and_then(|frame| Seen::of(&frame)).filter(Seen::is_syn_ack);
            answer.is_some()
        });
        answer.unwrap()
    }
}

/// What a replayed SYN's data does: how often the application gets it, and what `once` has done.
fn replayed(guards: Option<&str>) -> usize {
    let mut times = 0;
    sandbox(|| {
        let mut between = Between::new();
        let server_at = Server::echo(Listener::on(NEAR).fast_open(16).listen());
        let _tfo = protected("near", PORT, guards);
        between.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let mut syn = None;
        between.connect(order, |seen, frame| {
            if seen.data == order && seen.syn {
                syn = Some((seen.clone(), frame.to_vec()));
            }
            1
        });
        let (seen, frame) = syn.expect("the order went with the SYN");
        assert_eq!(server_at.times(order), 1);
        let answer = between.replay(&frame);
        // Where the answer says so, the application has got it, or will.
        if answer.acknowledged == seen.sequence + 1 + order.len() as u32 {
            eventually("it is served again", || server_at.times(order) == 2);
        } else {
            assert_eq!(answer.acknowledged, seen.sequence + 1);
        }
        times = server_at.times(order);
        if guards.is_some() {
            assert_eq!(guarded("near", Guard::Once).acted, 1);
            // The same client goes on as before, with Fast Open.
            let before = TcpExt::read().unwrap().passive;
            between.connect(b"order two", |_, _| 1);
            assert_eq!(TcpExt::read().unwrap().passive, before + 1);
            assert_eq!((server_at.times(b"order two"), guarded("near", Guard::Once).acted), (1, 1));
        }
    });
    times
}

/// RFC 7413, 2.1 and 6.1: data that comes again.
#[test]
fn once_serves_a_replay_no_second_time() {
    let without = replayed(None);
    let with = replayed(Some("once = true"));
    println!("once: a SYN and its replay are served {without} times without it, {with} times with it");
    assert_eq!((without, with), (2, 1));
}

/// A SYN-ACK gets lost, and the client's kernel sends the SYN again, without option and data. A network may also deliver the
/// first one twice. Neither is a replay, while the connection lives.
#[test]
fn once_knows_a_retransmission() {
    sandbox(|| {
        let mut between = Between::new();
        let server_at = Server::echo(Listener::on(NEAR).fast_open(16).listen());
        let _tfo = protected("near", PORT, Some("once = true"));
        between.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let mut syns: Vec<(Seen, Vec<u8>)> = Vec::new();
        let mut lost = 0;
        between.connect(order, |seen, frame| {
            if seen.syn && !seen.ack {
                syns.push((seen.clone(), frame.to_vec()));
            }
            // Nothing comes back until the SYN was sent again.
            let is_lost = seen.is_syn_ack() && syns.len() == 1;
            lost += usize::from(is_lost);
            usize::from(!is_lost)
        });
        assert!(lost > 0);
        let [(first, frame), (second, _)] = &syns[..] else { panic!("{} SYNs", syns.len()) };
        assert!(first.has_fast_open() && first.data == order);
        assert!(!second.has_fast_open() && second.data.is_empty());
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 0));
        // Now it is over, and the same once more is a replay.
        let answer = between.replay(frame);
        assert_eq!(answer.acknowledged, first.sequence + 1);
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 1));
    });
}

/// The very same SYN, twice at once: the kernel knows that it is one connection.
#[test]
fn once_lets_a_duplicate_be() {
    sandbox(|| {
        let mut between = Between::new();
        let server_at = Server::echo(Listener::on(NEAR).fast_open(16).listen());
        let _tfo = protected("near", PORT, Some("once = true"));
        between.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let before = TcpExt::read().unwrap().passive;
        between.connect(order, |seen, _| if seen.syn && seen.data == order { 2 } else { 1 });
        assert_eq!(TcpExt::read().unwrap().passive, before + 1);
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 0));
        assert_eq!(Counts::of("near").verdict(Class::CookieCurrent, Verdict::Pass), 2);
    });
}
