//! Replays over a wire that the test controls, which also loses and repeats SYNs.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{fs, net::Ipv4Addr};

use nix::sys::signal::Signal;
use tfo_common::{class::Class, cookie, policy::Guard, verdict::Verdict};
use tfo_tests::{
    config::{Config, guarded, protected},
    listener::Listener,
    netns::{Counts, Running, eventually, has_no_connections, key, sandbox, tfo},
    packet::{Carry as _, Ip, Tcp, eth, flag},
    server::Server,
    two_hosts::{PORT, SERVER, TwoHosts},
    wire::Seen,
};
use tfo_userspace::{kernel::tcp_ext::TcpExt, model::keys::addresses};

/// Replays a captured SYN. Returns how often the application got its data.
fn replayed(guards: Option<&str>) -> usize {
    let mut times = 0;
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let _tfo = protected("near", PORT, guards);
        hosts.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let mut syn = None;
        hosts.connect(order, |seen, frame| {
            if seen.data == order && seen.syn {
                syn = Some((seen.clone(), frame.to_vec()));
            }
            1
        });
        let (seen, frame) = syn.expect("the order went with the SYN");
        assert_eq!(server_at.times(order), 1);
        let answer = hosts.replay(&frame);
        // The answer acknowledges the data, so the application gets it again.
        if answer.acknowledged == seen.sequence + 1 + order.len() as u32 {
            eventually("it is served again", || server_at.times(order) == 2);
        } else {
            assert_eq!(answer.acknowledged, seen.sequence + 1);
        }
        times = server_at.times(order);
        if guards.is_some() {
            assert_eq!(guarded("near", Guard::Once).acted, 1);
            // The same client still gets Fast Open.
            let before = TcpExt::read().unwrap().passive;
            hosts.connect(b"order two", |_, _| 1);
            assert_eq!(TcpExt::read().unwrap().passive, before + 1);
            assert_eq!((server_at.times(b"order two"), guarded("near", Guard::Once).acted), (1, 1));
        }
    });
    times
}

/// RFC 7413, sections 2.1 and 6.1: replayed data.
//= RFC 7413 section 6.1
//# Similarly, a server that cannot accept receiving the same SYN data
//# more than once MUST NOT enable TFO to receive data in a SYN.
#[test]
fn once_serves_a_replay_no_second_time() {
    let without = replayed(None);
    let with = replayed(Some("once = true"));
    println!("once: a SYN and its replay are served {without} times without it, {with} times with it");
    assert_eq!((without, with), (2, 1));
}

/// A SYN-ACK is lost, and the client's kernel repeats the SYN without option and data. The network may also deliver the
/// first SYN twice. Neither is a replay while the connection lives.
//= RFC 7413 section 4.2.2
//# To deal with network or servers dropping SYN packets with payload or
//# unknown options, when the SYN timer fires, the client SHOULD
//# retransmit a SYN packet without data and Fast Open options.
//= RFC 7413 section 4.2.1
//# We RECOMMEND both the client and the server to retransmit SYN and
//# SYN-ACK packets without the cookie options on timeouts.
#[test]
fn once_knows_a_retransmission() {
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let _tfo = protected("near", PORT, Some("once = true"));
        hosts.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let mut syns: Vec<(Seen, Vec<u8>)> = Vec::new();
        let mut lost = 0;
        hosts.connect(order, |seen, frame| {
            if seen.syn && !seen.ack {
                syns.push((seen.clone(), frame.to_vec()));
            }
            // No answer is delivered until the SYN is repeated.
            let is_lost = seen.is_syn_ack() && syns.len() == 1;
            lost += usize::from(is_lost);
            usize::from(!is_lost)
        });
        assert!(lost > 0);
        let [(first, frame), (second, _)] = &syns[..] else { panic!("{} SYNs", syns.len()) };
        assert!(first.has_fast_open() && first.data == order);
        assert!(!second.has_fast_open() && second.data.is_empty());
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 0));
        // The connection is over, so the same SYN is a replay now.
        let answer = hosts.replay(frame);
        assert_eq!(answer.acknowledged, first.sequence + 1);
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 1));
    });
}

/// The same SYN twice at once is one connection to the kernel.
#[test]
fn once_lets_a_duplicate_be() {
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let _tfo = protected("near", PORT, Some("once = true"));
        hosts.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let before = TcpExt::read().unwrap().passive;
        hosts.connect(order, |seen, _| if seen.syn && seen.data == order { 2 } else { 1 });
        assert_eq!(TcpExt::read().unwrap().passive, before + 1);
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 0));
        assert_eq!(Counts::of("near").verdict(Class::CookieCurrent, Verdict::Pass), 2);
    });
}

/// Service in mode `observe`, and one with `once`.
const OBSERVED: &str = "[[service]]\nname = \"web\"\nports = [7413]\n";
const ONCE: &str = "[[service]]\nname = \"web\"\nports = [7413]\nmode = \"shield\"\nonce = true\n";

/// Starts `tfo run` with `once` by `go`, captures a SYN and replays it. Panics if its data is served again.
fn assert_served_once_after(way: &str, go: impl FnOnce(&Config) -> Running + Send) {
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let config = Config::new("near", OBSERVED);
        let _tfo = go(&config);
        hosts.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let (seen, frame) = hosts.capture(order);
        let answer = hosts.replay(&frame);
        assert_eq!(answer.acknowledged, seen.sequence + 1, "{way}: its data is served again");
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 1), "{way}");
    });
}

#[test]
fn once_is_in_force_on_every_way_to_it() {
    assert_served_once_after("start", |config| {
        config.write(ONCE);
        config.run()
    });
    assert_served_once_after("reload", |config| {
        let running = config.run();
        config.write(ONCE);
        assert!(tfo(&["reload"]).status.success());
        running
    });
    assert_served_once_after("kill -9 and take-over", |config| {
        config.write(ONCE);
        config.run().kill();
        config.run()
    });
    assert_served_once_after("kill -9 of an observer, and take-over", |config| {
        config.run().kill();
        config.write(ONCE);
        config.run()
    });
    assert_served_once_after("stop and start in another mode", |config| {
        config.run().end(Signal::SIGTERM);
        config.write(ONCE);
        config.run()
    });
    assert_served_once_after("other sizes of maps", |config| {
        config.write(ONCE);
        config.run().end(Signal::SIGTERM);
        config.write(&format!("{ONCE}[maps]\nreplays = 131072\nsources = 4096\n"));
        config.run()
    });
}

/// The next controller knows the captured SYN, after a restart and after a change of the map's size.
#[test]
fn once_remembers_over_restarts_and_other_sizes() {
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let config = Config::new("near", ONCE);
        let running = config.run();
        hosts.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let (_, frame) = hosts.capture(order);
        let mut acted = 0;
        let mut assert_known = |way: &str| {
            acted += 1;
            // Not every SYN is answered, since the kernel takes them for repeated ordinary SYNs.
            hosts.send(&frame);
            eventually(&format!("{way}: it is known"), || guarded("near", Guard::Once).acted == acted);
            assert_eq!(server_at.times(order), 1, "{way}: its data is served again");
        };
        assert_known("at once");
        running.kill();
        assert_known("without a controller");
        let running = config.run();
        assert_known("take-over");
        running.end(Signal::SIGTERM);
        config.write(&format!("{ONCE}[maps]\nreplays = 131072\nsources = 4096\n"));
        let running = config.run();
        assert_known("more room");
        running.end(Signal::SIGTERM);
        config.write(&format!("{ONCE}[maps]\nreplays = 1024\n"));
        let _running = config.run();
        assert_known("less room");
        config.write(&format!("{ONCE}[maps]\nreplays = 1024\n[[service]]\nname = \"dns\"\nports = [53]\n"));
        assert!(tfo(&["reload"]).status.success());
        assert_known("one more service");
    });
}

/// Client without a kernel: its SYNs have good cookies, and nothing else comes from it unless the test sends it.
struct Raw {
    from: Ipv4Addr,
    port: u16,
    sequence: u32,
}

impl Raw {
    const TO: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

    fn new(port: u16) -> Self {
        Self { from: Ipv4Addr::new(10, 9, 0, 2), port, sequence: u32::from(port) << 8 }
    }

    fn tcp(&self, flags: u16) -> Tcp {
        Ip::from(eth().ipv4(self.from, Self::TO)).tcp(flags).ports(self.port, PORT)
    }

    /// Returns the SYN with a good cookie and `data`.
    fn syn(&self, data: &[u8]) -> Tcp {
        let addresses = addresses(self.from.into(), Self::TO.into()).unwrap();
        let cookie = cookie::make(&key(1), &addresses).to_le_bytes();
        self.tcp(flag::SYN).sequence(self.sequence).mss(1460).fast_open(&cookie).data(data)
    }

    /// Returns the reset that ends the connection of that SYN at once.
    fn reset(&self, data: &[u8]) -> Vec<u8> {
        self.tcp(flag::RST).sequence(self.sequence + 1 + data.len() as u32).build()
    }
}

/// Connections that live longer than a thousand others are remembered when they end, also under another generation of
/// maps. Ended ones alone take room.
#[test]
fn once_remembers_a_connection_when_it_ends() {
    sandbox(|| {
        fs::write("/proc/sys/net/core/somaxconn", "16384").unwrap();
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(8192).backlog(8192).listen());
        let config = Config::new("near", &format!("{ONCE}[maps]\nreplays = 1024\n"));
        let _tfo = config.run();
        hosts.connect(b"a cookie, please", |_, _| 1);
        let (long, order) = (Raw::new(10_000), b"order one");
        let syn = long.syn(order).build();
        hosts.send(&syn);
        eventually("it is served", || server_at.times(order) == 1);
        // Each place in the table is taken several times. Nobody else's connection lives.
        for port in 20_000..22_500 {
            let short = Raw::new(port);
            hosts.send(&short.syn(b"short").build());
            hosts.send(&short.reset(b"short"));
        }
        // While the connection lives, the kernel takes the copy for a retransmission.
        hosts.send(&syn);
        assert_eq!(guarded("near", Guard::Once).acted, 0);
        config.write(&format!("{ONCE}[maps]\nreplays = 1024\n[[service]]\nname = \"dns\"\nports = [53]\n"));
        assert!(tfo(&["reload"]).status.success());
        hosts.send(&long.reset(order));
        eventually("all connections are over", has_no_connections);
        let answer = hosts.replay(&syn);
        assert_eq!(answer.acknowledged, long.sequence + 1, "its data is served again");
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 1));
    });
}

/// Connections that began before the service had `once` are remembered when they end.
#[test]
fn once_remembers_connections_that_began_without_it() {
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let config = Config::new("near", OBSERVED);
        let _tfo = config.run();
        hosts.connect(b"a cookie, please", |_, _| 1);
        let (client, order) = (Raw::new(10_000), b"order one");
        let syn = client.syn(order).build();
        hosts.send(&syn);
        eventually("it is served", || server_at.times(order) == 1);
        config.write(ONCE);
        assert!(tfo(&["reload"]).status.success());
        hosts.send(&client.reset(order));
        eventually("the connection is over", has_no_connections);
        let answer = hosts.replay(&syn);
        assert_eq!(answer.acknowledged, client.sequence + 1, "its data is served again");
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 1));
    });
}

/// Sends the same data from another port, with another sequence number. Returns how often the application got it.
fn repeated(once: &str) -> usize {
    let mut times = 0;
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let _tfo = protected("near", PORT, Some(once));
        hosts.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        for port in [10_000, 10_001] {
            let client = Raw::new(port);
            let answer = hosts.replay(&client.syn(order).build());
            if answer.acknowledged == client.sequence + 1 {
                assert_eq!(guarded("near", Guard::Once).acted, 1, "port {port}");
                continue;
            }
            times += 1;
            eventually("it is served", || server_at.times(order) == times);
            hosts.send(&client.reset(order));
            eventually("the connection is over", has_no_connections);
        }
        assert_eq!(server_at.times(order), times);
    });
    times
}

#[test]
fn once_by_data_serves_a_repeated_request_no_second_time() {
    let (syn, data) = (repeated("once = true"), repeated("once = { match = \"data\" }"));
    println!(
        "once: the same data from two ports is served {syn} times with \"syn\", {data} times with \"data\""
    );
    assert_eq!((syn, data), (2, 1));
}

/// A real client that sends the same request twice is served twice: the second time after an ordinary handshake. Other data
/// has Fast Open, and neither a lost answer nor a copy of a SYN counts as a repeated request.
#[test]
fn once_by_data_costs_a_client_no_connection() {
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let _tfo = protected("near", PORT, Some("once = { match = \"data\" }"));
        hosts.connect(b"a cookie, please", |_, _| 1);
        let before = TcpExt::read().unwrap().passive;
        let served = || TcpExt::read().unwrap().passive - before;
        let is_first_syn = |seen: &Seen| seen.syn && !seen.data.is_empty();
        hosts.connect(b"order one", |seen, _| if is_first_syn(seen) { 2 } else { 1 });
        assert_eq!((served(), guarded("near", Guard::Once).acted), (1, 0), "a SYN that comes twice");
        let frame = hosts.capture(b"order one").1;
        assert_eq!((served(), guarded("near", Guard::Once).acted), (1, 1), "the same again");
        assert_eq!(server_at.times(b"order one"), 2, "its connection is served");
        hosts.connect(b"order two", |_, _| 1);
        assert_eq!((served(), guarded("near", Guard::Once).acted), (2, 1), "another request");
        // The copy of the hidden SYN has the same data, too.
        hosts.replay(&frame);
        assert_eq!((server_at.times(b"order one"), guarded("near", Guard::Once).acted), (2, 2));
    });
}
