//! Requirements of RFC 7413 that are left to the kernel, shown of the real one with tfo in front of it: observing, and with
//! all protections. `cargo xtask rfc` makes a table of the quotes here and elsewhere.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::net::Ipv4Addr;

use tfo_common::{cookie, parse::LinkLayer};
use tfo_tests::{
    config::Config,
    listener::Listener,
    netns::{eventually, ip, key, sandbox, tfo},
    packet::{Carry as _, Tcp, eth, flag},
    server::Server,
    tap::Tap,
    two_hosts::{self, TwoHosts},
    wire::Seen,
};
use tfo_userspace::{
    kernel::{
        sysctl::{CLIENT, KeySysctl, SERVER, read_mode, write_mode},
        tcp_ext::TcpExt,
    },
    model::keys::addresses,
};

const PORT: u16 = 7413;
const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// Sequence number of each SYN.
const ISN: u32 = 0x0102_0304;

/// Services: one that is observed, and one with all protections, none of which has a reason to act.
const OBSERVED: &str = "[[service]]\nname = \"web\"\nports = [7413]\n";
const PROTECTED: &str = "[[service]]\nname = \"web\"\nports = [7413]\nmode = \"shield\"\nonce = true\n\
                         fair = { limit = \"1000/s\" }\nclamp = { factor = 100 }\n\
                         shed = { limit = \"1000/s\", drop = true }\nanswer = true\n";

/// Server's host, whose wire is the test.
struct Host(Tap);

impl Host {
    const AT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

    /// Runs `test` in a sandbox, once with each service.
    fn behind_tfo(test: impl Fn(&mut Self) + Sync) {
        for service in [OBSERVED, PROTECTED] {
            sandbox(|| {
                let mut host = Self(Tap::new("nic0", LinkLayer::Ethernet));
                ip(&format!("address add {}/24 dev nic0", Self::AT));
                ip(&format!(
                    "neighbour add {} lladdr 02:00:00:00:00:01 dev nic0 nud permanent",
                    Self::CLIENT
                ));
                // The kernel's default, before anybody has written the sysctl.
                assert_eq!(read_mode().unwrap(), CLIENT);
                let _tfo = Config::new("nic0", service).run();
                assert_eq!(read_mode().unwrap(), CLIENT, "tfo turns nothing on");
                write_mode(CLIENT | SERVER).unwrap();
                set_keys(1, None);
                test(&mut host);
            });
        }
    }

    /// Returns a SYN from `port` of the client.
    fn syn(port: u16) -> Tcp {
        let syn = eth().ipv4(Self::CLIENT, Self::AT).syn().ports(port, PORT).sequence(ISN);
        syn.window(u16::MAX).mss(1460)
    }

    /// Returns a SYN with data and the cookie that key `number` makes.
    fn syn_with_cookie(port: u16, number: u32) -> Tcp {
        let addresses = addresses(Self::CLIENT.into(), Self::AT.into()).unwrap();
        let cookie = cookie::make(&key(number), &addresses).to_le_bytes();
        Self::syn(port).fast_open(&cookie).data(DATA)
    }

    /// Sends `segment`, which is no SYN.
    fn send(&mut self, segment: Tcp) {
        self.0.receive(&segment.build()).unwrap();
    }

    /// Sends `syn` and returns its SYN-ACK.
    fn answer(&mut self, syn: Tcp) -> Seen {
        let syn = syn.build();
        self.0.receive(&syn).unwrap();
        self.next_syn_ack(Seen::of(&syn).unwrap().from.port())
    }

    /// Waits for a SYN-ACK to `port`.
    fn next_syn_ack(&mut self, port: u16) -> Seen {
        let mut answer = None;
        eventually("a SYN-ACK", || {
            answer = self.sent_to(port).into_iter().find(Seen::is_syn_ack);
            answer.is_some()
        });
        answer.unwrap()
    }

    /// Returns what the server has sent to `port` since the last call.
    fn sent_to(&mut self, port: u16) -> Vec<Seen> {
        let frames = std::iter::from_fn(|| self.0.sent());
        frames.filter_map(|frame| Seen::of(&frame)).filter(|seen| seen.to.port() == port).collect()
    }
}

fn set_keys(current: u32, backup: Option<u32>) {
    KeySysctl::open().and_then(|sysctl| sysctl.write(key(current), backup.map(key))).unwrap();
}

/// Returns the number of bytes that `answer` acknowledges besides the SYN.
fn taken(answer: &Seen) -> usize {
    answer.acknowledged.wrapping_sub(ISN + 1) as usize
}

/// Returns the cookie in the last Fast Open option (kind 34) of `seen`, which may be empty.
fn cookie_in(seen: &Seen) -> Option<Vec<u8>> {
    let (mut rest, mut cookie) = (&seen.options[..], None);
    while let [kind, after @ ..] = rest
        && *kind != 0
    {
        let len = if *kind == 1 { 1 } else { usize::from(after[0]) };
        if *kind == 34 {
            cookie = Some(rest[2..len].to_vec());
        }
        rest = &rest[len..];
    }
    cookie
}

/// A listener that did not ask for Fast Open, and one that asked in vain, since the sysctl has it off.
//= RFC 7413 section 2
//# Therefore, TCP implementations MUST NOT use TFO by default, but only
//# use TFO if requested explicitly by the application on a per-service-
//# port basis.
//= RFC 7413 section 4.2
//# FastOpenEnabled: default is off. It MUST be turned on explicitly by
//# the application.
//= RFC 7413 section 4.2
//# When this flag is off, the server does not
//# perform any TFO-related operations and MUST ignore all cookie
//# options.
//= RFC 7413 section 4.2.2
//# If FastOpenEnabled is false, go to step 5.
#[test]
fn it_is_off_until_somebody_asks() {
    Host::behind_tfo(|host| {
        let at = format!("{}:{PORT}", Host::AT);
        for (mode, queue) in [(CLIENT | SERVER, None), (CLIENT, Some(16))] {
            write_mode(mode).unwrap();
            let listener = Listener::on(&at);
            let listener = if let Some(queue) = queue { listener.fast_open(queue) } else { listener };
            let server_at = Server::echo(listener.listen());
            let before = TcpExt::read().unwrap();
            let port = 5000 + mode as u16 * 10;
            let syns = [Host::syn(port).request(), Host::syn_with_cookie(port + 1, 1)];
            for answer in syns.map(|syn| host.answer(syn)) {
                assert_eq!((taken(&answer), answer.has_fast_open()), (0, false), "{mode:#x} {queue:?}");
            }
            let kernel = TcpExt::read().unwrap() - before;
            assert_eq!((kernel.passive, kernel.passive_fail), (0, 0));
            assert!(server_at.received().is_empty());
            assert_eq!(read_mode().unwrap(), mode, "tfo turns nothing on");
        }
    });
}

//= RFC 7413 section 4.2.2
//# Buffer the data and notify the application.
//= RFC 7413 section 4.2.2
//# If the FastOpened flag is set, the packet acknowledges
//# the SYN and data sequence.
//= RFC 7413 section 4.2.2
//# If IsCookieValid() (in Section 4.1.2) returns false, go to step 5.
//= RFC 7413 section 4.2.2
//# Otherwise, it acknowledges only the SYN sequence.
#[test]
fn data_with_a_good_cookie_reaches_the_application_before_the_handshake_ends() {
    Host::behind_tfo(|host| {
        let listener = Listener::on(&format!("{}:{PORT}", Host::AT)).fast_open(16).listen();
        let server_at = Server::echo(listener);
        let answer = host.answer(Host::syn_with_cookie(5000, 2));
        assert_eq!(taken(&answer), 0);
        assert!(answer.has_fast_open(), "a cookie that is right comes with it");
        let answer = host.answer(Host::syn_with_cookie(5001, 1));
        assert_eq!(taken(&answer), DATA.len());
        // The client has sent no more than its SYN.
        eventually("the application has it", || server_at.times(DATA) == 1);
        assert_eq!(server_at.received()[0].0.port(), 5001, "of the SYN with the right cookie");
    });
}

//= RFC 7413 section 4.2
//# If this variable goes over a preset system limit, the
//# server MUST disable TFO for all new connection requests until
//# PendingFastOpenRequests drops below the system limit.
//= RFC 7413 section 4.2.2
//# If PendingFastOpenRequests is over the system limit, go to step 5.
//= RFC 7413 section 5.1
//# To protect the server, it is important to limit the maximum number of
//# total pending TFO connection requests, i.e., PendingFastOpenRequests
//# (Section 4.2).
#[test]
fn a_full_queue_turns_it_off_until_there_is_room() {
    Host::behind_tfo(|host| {
        let listener = Listener::on(&format!("{}:{PORT}", Host::AT)).fast_open(1).listen();
        let server_at = Server::echo(listener);
        let before = TcpExt::read().unwrap();
        let first = host.answer(Host::syn_with_cookie(5000, 1));
        assert_eq!(taken(&first), DATA.len());
        for port in [5001, 5002] {
            let answer = host.answer(Host::syn_with_cookie(port, 1));
            assert_eq!((taken(&answer), answer.has_fast_open()), (0, false));
        }
        // The client ends the first handshake.
        let ack = eth().ipv4(Host::CLIENT, Host::AT).tcp(flag::ACK).ports(5000, PORT);
        host.send(ack.sequence(first.acknowledged).acknowledging(first.sequence + 1));
        let answer = host.answer(Host::syn_with_cookie(5003, 1));
        assert_eq!(taken(&answer), DATA.len());
        eventually("both are served", || server_at.times(DATA) == 2);
        let kernel = TcpExt::read().unwrap() - before;
        assert_eq!((kernel.passive, kernel.listen_overflow), (2, 2));
    });
}

/// The first SYN-ACK has an option, for a cookie was asked for, or was of the backup key.
//= RFC 7413 section 4.2.2
//# If the SYN-ACK timer fires, the server SHOULD retransmit a SYN-ACK
//# segment with neither data nor Fast Open options for compatibility
//# reasons.
//= RFC 7413 section 4.2.1
//# We RECOMMEND both the client and the server to retransmit SYN and SYN-
//# ACK packets without the cookie options on timeouts.
#[test]
fn a_repeated_syn_ack_has_neither_data_nor_option() {
    Host::behind_tfo(|host| {
        let listener = Listener::on(&format!("{}:{PORT}", Host::AT)).fast_open(16).listen();
        let _server = Server::echo(listener);
        set_keys(2, Some(1));
        for (syn, port, len) in
            [(Host::syn(5000).request(), 5000, 0), (Host::syn_with_cookie(5001, 1), 5001, DATA.len())]
        {
            let first = host.answer(syn);
            assert_eq!((taken(&first), first.has_fast_open()), (len, true));
            let second = host.next_syn_ack(port);
            assert_eq!((taken(&second), second.has_fast_open(), &second.data[..]), (len, false, &[][..]));
            assert_eq!(second.sequence, first.sequence);
        }
    });
}

/// Length of the answer of the server's application.
const ANSWER: usize = 100_000;

/// Sends as many segments as the congestion window of a new connection has, after an ordinary handshake and before the
/// end of one with Fast Open.
//= RFC 7413 section 4.2.2
//# If the FastOpened flag is set, the
//# server MUST follow [RFC5681] (based on [RFC3390]) to set the
//# initial congestion window for sending more data packets.
#[test]
fn the_first_window_is_that_of_any_connection() {
    Host::behind_tfo(|host| {
        let listener = Listener::on(&format!("{}:{PORT}", Host::AT)).fast_open(16).listen();
        let _server = Server::start(listener, |_| vec![b'x'; ANSWER]);
        // The window is large enough: the congestion window is the limit. Bytes that are sent again don't count.
        let flight = |host: &mut Host, port| {
            let mut sent: Vec<(u32, usize)> = Vec::new();
            eventually("the SYN-ACK or data are repeated", || {
                sent.extend(host.sent_to(port).iter().map(|seen| (seen.sequence, seen.data.len())));
                let mut repeated = sent.iter().enumerate();
                repeated.any(|(at, segment)| sent[..at].contains(segment))
            });
            sent.sort_unstable();
            sent.dedup();
            sent.iter().map(|(_, len)| len).sum::<usize>()
        };
        host.0.receive(&Host::syn_with_cookie(5000, 1).data(&[b'x'; 900]).build()).unwrap();
        let fast = flight(host, 5000);
        let answer = host.answer(Host::syn(5001));
        let ack = eth().ipv4(Host::CLIENT, Host::AT).tcp(flag::ACK | flag::PSH).ports(5001, PORT);
        let ack = ack.sequence(answer.acknowledged).acknowledging(answer.sequence + 1);
        host.send(ack.window(u16::MAX).data(&[b'x'; 900]));
        let ordinary = flight(host, 5001);
        println!("first window: {fast} bytes with Fast Open, {ordinary} after an ordinary handshake");
        // TCP_INIT_CWND: ten segments (RFC 6928).
        assert_eq!((fast, ordinary), (10 * 1460, 10 * 1460));
    });
}

/// Client and server in the kernel, with tfo before the server. The client asks once, and uses each new cookie.
//= RFC 7413 section 4.1.3
//# The client MUST cache cookies from servers for later Fast Open
//# connections.
//= RFC 7413 section 4.2.1
//# Any client attempting TFO MUST first request a cookie from the server
//# with the following steps:
//= RFC 7413 section 4.2.2
//# To open a TFO connection, the client MUST have obtained a cookie from
//# the server:
//= RFC 7413 section 4.2.2
//# The client SHOULD perform the following steps upon receiving the SYN-
//# ACK:
//= RFC 7413 section 4.2.2
//# If the SYN-ACK has a Fast Open option, an MSS option, or both,
//# update the corresponding cookie and MSS information in the cookie
//# cache.
//= RFC 7413 section 4.2.2
//# The client SHOULD retransmit
//# any unacknowledged data in the first ACK packet in step 2.
//= RFC 7413 section 9
//# Current and new
//# implementations SHOULD use option (34).
#[test]
fn a_client_asks_first_and_uses_each_new_cookie() {
    for service in [OBSERVED, PROTECTED] {
        sandbox(|| {
            let mut hosts = TwoHosts::start();
            let server_at = Server::echo(Listener::on(two_hosts::SERVER).fast_open(16).listen());
            let _tfo = Config::new("near", service).run();
            let mut connect = |data: &[u8]| {
                let mut seen = Vec::new();
                hosts.connect(data, |segment, _| {
                    seen.push(segment.clone());
                    1
                });
                assert_eq!(server_at.times(data), 1, "nothing is lost");
                Connection::of(seen)
            };

            let asked = connect(b"one");
            assert_eq!((cookie_in(&asked.syn), asked.syn.data.len()), (Some(Vec::new()), 0));
            let first = cookie_in(&asked.syn_ack).expect("a cookie");

            let used = connect(b"two");
            assert_eq!((cookie_in(&used.syn), &used.syn.data[..]), (Some(first.clone()), &b"two"[..]));
            assert_eq!((used.taken(), cookie_in(&used.syn_ack)), (3, None));

            set_keys(2, Some(1));
            let renewed = connect(b"three");
            assert_eq!(cookie_in(&renewed.syn), Some(first));
            let second = cookie_in(&renewed.syn_ack).expect("a fresh cookie");
            assert_eq!(renewed.taken(), 5);

            // The data is refused: the key is gone, or the option is hidden, since tfo would translate the cookie.
            let is_hidden = service == PROTECTED;
            if is_hidden {
                assert!(tfo(&["hide", "--all", "-i", "near"]).status.success());
            } else {
                set_keys(3, None);
            }
            let refused = connect(b"four");
            assert_eq!((cookie_in(&refused.syn), refused.taken()), (Some(second.clone()), 0));
            assert!(refused.next.ack && refused.next.data == b"four", "{:?}", refused.next);
            let third = cookie_in(&refused.syn_ack);
            assert_eq!(third.is_none(), is_hidden);

            let last = connect(b"five");
            assert_eq!(cookie_in(&last.syn), Some(third.unwrap_or(second)));
        });
    }
}

/// First segments of a connection.
struct Connection {
    syn: Seen,
    syn_ack: Seen,
    /// The client's first segment after the SYN-ACK.
    next: Seen,
}

impl Connection {
    fn of(seen: Vec<Seen>) -> Self {
        let at = seen.iter().position(Seen::is_syn_ack).expect("a SYN-ACK");
        let syn = seen.iter().find(|seen| seen.syn && !seen.ack).expect("a SYN");
        let next = seen[at..].iter().find(|seen| seen.from == syn.from).expect("the client's ACK");
        Self { syn: syn.clone(), syn_ack: seen[at].clone(), next: next.clone() }
    }

    /// Returns the number of bytes of the SYN's data that the SYN-ACK acknowledges.
    fn taken(&self) -> usize {
        self.syn_ack.acknowledged.wrapping_sub(self.syn.sequence + 1) as usize
    }
}
