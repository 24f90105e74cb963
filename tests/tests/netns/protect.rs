//! Effects of the protections: attacks on a real listener, without and with them. Each test prints its result:
//! `cargo test -p tfo-tests --test netns protect:: -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};
use tfo_common::{
    class::Class, cookie, counters::GuardCounts, parse::LinkLayer, policy::Guard, segment::Family,
    verdict::Verdict,
};
use tfo_tests::{
    config::{Config, guarded, protected},
    listener::Listener,
    netns::{Counts, IFACE, StopOnDrop, eventually, has_no_connections, ip, key, sandbox, server_and_client},
    packet::{Carry as _, Tcp, eth, eth_between, flag},
    server::Server,
    tap::Tap,
    wire::{Seen, Wire},
};
use tfo_userspace::{
    kernel::{
        sysctl::{KeySysctl, write_mode},
        tcp_ext::TcpExt,
    },
    lab::{
        client::{Syn, fast_open},
        net::{Namespace, server, source},
        server::listen,
    },
    model::keys::addresses,
};

const PORT: u16 = 7413;
const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// Client's end of the veth pair.
const CLIENT: &str = "tfo-client";
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Runs `test` with a network of the attacker's behind the client, which drops packets to that network. The server has
/// a further network, since a client's kernel remembers only a few of its own addresses' cookies for each address of
/// the server (TCP_METRICS_RECLAIM_DEPTH).
fn with_attacker(test: impl FnOnce(Namespace) + Send) {
    server_and_client(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        ip("route add local 198.18.128.0/24 dev lo");
        ip("route add 198.20.0.0/16 via 198.18.0.2");
        client
            .run(|| {
                fs::write("/proc/sys/net/ipv4/ip_forward", "0")?;
                ip("route add 198.18.128.0/24 via 198.18.0.1");
                Ok(())
            })
            .unwrap();
        test(client);
    });
}

/// Returns an address of the attacker.
fn attacker(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 20, 0, 0).to_bits() | u32::from(number))
}

/// Returns the `number`-th address of the server that [`with_attacker`] adds.
fn another_server(number: u8) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(198, 18, 128, number).into(), PORT)
}

fn good_cookie(from: IpAddr, to: IpAddr) -> [u8; 8] {
    cookie::make(&key(1), &addresses(from, to).unwrap()).to_le_bytes()
}

/// Returns a SYN of the attacker to the server, across the veth pair.
fn attack(from: Ipv4Addr, port: u16, cookie: &[u8]) -> Tcp {
    let IpAddr::V4(to) = server(Family::Ipv4).ip() else { unreachable!("it is IPv4's") };
    eth_between(CLIENT_MAC, SERVER_MAC)
        .ipv4(from, to)
        .syn()
        .ports(port, PORT)
        .mss(1460)
        .fast_open(cookie)
        .data(DATA)
}

/// Sequence number of the attacker's SYNs, which is the builder's default.
const ISN: u32 = 0x0102_0304;

/// Returns whether the SYN-ACK shows that the data of the SYN from `client` was accepted.
fn is_taken(wire: &Wire, client: SocketAddr, data: &[u8]) -> bool {
    let mut answer = None;
    eventually("the SYN is answered", || {
        answer = std::iter::from_fn(|| wire.seen())
            .filter_map(|frame| Seen::of(&frame))
            .find(|seen| seen.to == client && seen.is_syn_ack());
        answer.is_some()
    });
    answer.unwrap().acknowledged == ISN + 1 + data.len() as u32
}

/// Returns the number of connections of `client` whose SYN data was accepted.
fn taken_from(client: &Namespace) -> u64 {
    client.run(TcpExt::read).unwrap().active
}

/// Numbers of connections, and of those with Fast Open.
#[derive(Clone, Copy, Debug)]
struct Served {
    connections: u64,
    with_fast_open: u64,
    kernel: TcpExt,
}

impl Served {
    fn percent(self) -> f64 {
        self.with_fast_open as f64 * 100.0 / self.connections as f64
    }
}

/// Runs a listener with a queue of 16, a hostile source with a good cookie, and 120 clients. Each time the source's SYN
/// is accepted, it waits for the connection to be accepted and resets it. The kernel then keeps the place in the queue
/// occupied for a minute.
fn beside_a_hostile_source(guards: Option<&str>) -> (Served, Option<[u64; 2]>) {
    const CLIENTS: u8 = 120;
    const ATTACKS: u16 = 48;
    let mut result = None;
    with_attacker(|client| {
        let server_at = Server::echo(Listener::on(&format!("0.0.0.0:{PORT}")).fast_open(16).listen());
        let _tfo = protected(IFACE, PORT, guards);
        let connect = |number: u8| {
            let from = source(Family::Ipv4, number.into());
            client.run(|| fast_open(from, another_server(number), DATA)).unwrap();
        };
        // Each client gets a cookie.
        (1..=CLIENTS).for_each(connect);
        let (wire, hostile) = client.run(|| Ok((Wire::at(CLIENT), attacker(1)))).unwrap();
        let cookie = good_cookie(hostile.into(), server(Family::Ipv4).ip());
        let before = TcpExt::read().unwrap();
        let already = taken_from(&client);
        let mut taken = 0;
        for port in 5000..5000 + ATTACKS {
            let from = SocketAddr::new(hostile.into(), port);
            wire.send(&attack(hostile, port, &cookie).build());
            if is_taken(&wire, from, DATA) {
                taken += 1;
                eventually("it is accepted", || server_at.has_heard_from(from));
                let IpAddr::V4(to) = server(Family::Ipv4).ip() else { unreachable!("it is IPv4's") };
                let reset = eth_between(CLIENT_MAC, SERVER_MAC).ipv4(hostile, to).tcp(flag::RST);
                wire.send(&reset.ports(port, PORT).sequence(ISN + 1 + DATA.len() as u32).build());
            }
        }
        (1..=CLIENTS).for_each(connect);
        let with_fast_open = taken_from(&client) - already;
        let kernel = TcpExt::read().unwrap() - before;
        assert_eq!(kernel.passive, taken + with_fast_open, "what was taken, on either side");
        let acted = guards.map(|_| {
            let hidden = Counts::of(IFACE).verdict(Class::CookieCurrent, Verdict::Hide);
            assert_eq!(hidden, u64::from(ATTACKS) - taken);
            [guarded(IFACE, Guard::Fair).acted, hidden]
        });
        result = Some((Served { connections: CLIENTS.into(), with_fast_open, kernel }, acted));
    });
    result.unwrap()
}

/// RFC 7413, section 5.1: resource exhaustion.
//= RFC 7413 section 5.1
//# For this reason, a TFO server needs to monitor the connections in
//# SYN-RCVD being reset in addition to imposing a reasonable max queue
//# length.
#[test]
fn fair_keeps_the_queue_for_the_others() {
    let (without, _) = beside_a_hostile_source(None);
    println!("fair: off: {:.1} % of others' connections with Fast Open; {without:?}", without.percent());
    assert_eq!(without.with_fast_open, 0, "{without:?}");
    assert!(without.kernel.listen_overflow >= without.connections, "{without:?}");

    let (with, acted) = beside_a_hostile_source(Some("fair = { limit = \"6/min\", burst = 4 }"));
    println!("fair: on: {:.1} % of others' connections with Fast Open; {with:?}", with.percent());
    assert!(with.percent() >= 99.0, "{with:?}");
    assert_eq!(with.kernel.listen_overflow, 0, "{with:?}");
    let [acted, hidden] = acted.unwrap();
    assert_eq!(acted, hidden);
    assert!(acted >= 40, "{acted}");
}

/// Results of a flood.
struct Flood {
    served: Served,
    sent: u64,
    lasted: Duration,
}

/// Sends SYNs with random cookies from random sources as fast as possible, while clients connect one after the other.
fn under_a_flood(connections: u64, guards: Option<&str>, look: impl FnOnce(&Flood) + Send) {
    const FORGED: usize = 20_000;
    with_attacker(|client| {
        let _server =
            Server::echo(Listener::on(&format!("0.0.0.0:{PORT}")).fast_open(256).backlog(1024).listen());
        let _tfo = protected(IFACE, PORT, guards);
        let connect = |n: u64| {
            let from = source(Family::Ipv4, (n % 4) as u16);
            client.run(|| fast_open(from, server(Family::Ipv4), DATA)).unwrap();
        };
        (0..4).for_each(connect);
        let mut random = fastrand::Rng::with_seed(7413);
        let forged: Vec<_> = (0..FORGED)
            .map(|_| {
                attack(attacker(random.u16(..)), random.u16(1024..), &random.u64(..).to_le_bytes()).build()
            })
            .collect();
        let before = TcpExt::read().unwrap();
        let already = taken_from(&client);
        let start = Instant::now();
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let flood = || {
            let wire = Wire::blind(CLIENT);
            for frame in forged.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                wire.send(frame);
                sent.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        thread::scope(|scope| {
            scope.spawn(|| client.run(flood));
            let _stop = StopOnDrop(&stop);
            eventually("it is a flood", || sent.load(Ordering::Relaxed) > FORGED as u64);
            (0..connections).for_each(connect);
        });
        let lasted = start.elapsed();
        let with_fast_open = taken_from(&client) - already;
        let kernel = TcpExt::read().unwrap() - before;
        let served = Served { connections, with_fast_open, kernel };
        look(&Flood { served, sent: sent.into_inner(), lasted });
    });
}

/// RFC 7413, section 5: a flood of forged cookies.
#[test]
fn shed_serves_clients_under_a_flood() {
    under_a_flood(100, None, |flood| {
        let served = flood.served;
        println!("shed: off: {:.2} % with Fast Open; {} forged; {served:?}", served.percent(), flood.sent);
        assert!(served.percent() < 10.0, "{served:?}");
    });
    under_a_flood(2000, Some("shed = { limit = \"50/s\", burst = 50, drop = true }"), |flood| {
        let (Flood { served, sent, lasted }, counts) = (flood, Counts::of(IFACE));
        let [passed, dropped] =
            [Verdict::Pass, Verdict::Drop].map(|verdict| counts.verdict(Class::CookieUnknown, verdict));
        println!(
            "shed: on: {:.2} % with Fast Open; {sent} forged in {lasted:.1?}, {dropped} dropped, {passed} passed; {served:?}",
            served.percent()
        );
        assert!(served.percent() >= 99.9, "{served:?}");
        let most = 50 + 50 * (lasted.as_secs() + 1);
        assert!(passed <= most, "{passed} passed, of at most {most}");
        // The kernel does not count a forged SYN that repeats another one while it still answers that.
        assert!(served.kernel.passive_fail <= passed, "{served:?}");
        assert_eq!(guarded(IFACE, Guard::Shed).acted, dropped);
        assert!(dropped > 10_000, "{dropped}");
    });
}

/// Length of the answer of the server's application, however short the request.
const ANSWER: usize = 100_000;

fn answer(_: &[u8]) -> Vec<u8> {
    (0..ANSWER).map(|at| (at % 251) as u8).collect()
}

/// Bytes sent to a client that uses a good cookie once and is silent then. Its address may be someone else's.
#[derive(Clone, Copy, Debug, Default)]
struct Amplified {
    /// Length of the SYN from its IP header on.
    received: usize,
    /// Length of the first SYN-ACK and all data behind it.
    sent: usize,
    /// Length of the data alone.
    data: usize,
    /// Length of all repeated SYN-ACKs.
    repeated: usize,
}

impl Amplified {
    fn factor(self) -> f64 {
        self.sent as f64 / self.received as f64
    }
}

fn amplified(guards: Option<&str>, request: &[u8]) -> Amplified {
    /// Number of repeated SYN-ACKs, which come after 1 s and after 3 s. By then all immediate data has been sent.
    const REPEATED: usize = 2;
    let mut result = Amplified::default();
    sandbox(|| {
        write_mode(3).unwrap();
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let mut nic = Tap::new("nic0", LinkLayer::Ethernet);
        ip("address add 10.9.0.1/24 dev nic0");
        let (victim, at) = (Ipv4Addr::new(10, 9, 0, 2), Ipv4Addr::new(10, 9, 0, 1));
        ip("neighbour add 10.9.0.2 lladdr 02:00:00:00:00:01 dev nic0 nud permanent");
        let server_at = Server::start(Listener::on(&format!("{at}:{PORT}")).fast_open(16).listen(), answer);
        let _tfo = protected("nic0", PORT, guards);
        let cookie = good_cookie(victim.into(), at.into());
        let syn = eth().ipv4(victim, at).syn().ports(5000, PORT).mss(1460).fast_open(&cookie).data(request);
        let syn = syn.build();
        nic.receive(&syn).unwrap();
        let mut syn_acks = 0;
        eventually("its SYN-ACK is repeated", || {
            while let Some(frame) = nic.sent() {
                let Some(seen) = Seen::of(&frame).filter(|seen| seen.to.ip() == victim) else { continue };
                if seen.is_syn_ack() {
                    syn_acks += 1;
                    if syn_acks > 1 {
                        result.repeated += seen.ip_len;
                        continue;
                    }
                }
                result.sent += seen.ip_len;
                result.data += seen.data.len();
            }
            syn_acks == 1 + REPEATED
        });
        result.received = Seen::of(&syn).unwrap().ip_len;
        // The application got the request, and has much more to send.
        assert_eq!(server_at.times(request), usize::from(!request.is_empty()));
        if guards.is_some() {
            assert_eq!(guarded("nic0", Guard::Clamp).acted, 1);
        }
    });
    result
}

/// RFC 7413, section 5.2: amplified reflection.
//= RFC 7413 section 5.2
//# The best defense is for the server not to respond with data until the
//# handshake finishes.
#[test]
fn clamp_bounds_what_an_unproved_source_is_sent() {
    let request = [b'x'; 400];
    let without = amplified(None, &request);
    println!("clamp: off: {:.1} times the SYN; {without:?}", without.factor());
    assert!(without.sent >= 14_000, "{without:?}");
    let with = amplified(Some("clamp = true"), &request);
    println!("clamp: on: {:.2} times the SYN; {with:?}", with.factor());
    assert_eq!(with.data, 3 * request.len());
    assert!(with.factor() <= 3.0, "{with:?}");
    let with = amplified(Some("clamp = { factor = 1 }"), &request);
    println!("clamp: factor 1: {:.2} times the SYN; {with:?}", with.factor());
    assert_eq!(with.data, request.len());
}

/// Connects to `to` with Fast Open, sends `data`, and returns the whole answer.
fn ask(to: SocketAddr, data: &[u8], len: usize) -> anyhow::Result<Vec<u8>> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.send_to_with_flags(data, &to.into(), libc::MSG_FASTOPEN)?;
    let mut connection = TcpStream::from(socket);
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut answer = vec![0; len];
    connection.read_exact(&mut answer)?;
    Ok(answer)
}

#[test]
fn clamp_leaves_a_real_client_its_answer() {
    server_and_client(|client| {
        let to = server(Family::Ipv4);
        let _server = Server::start(Listener::on(&to.to_string()).fast_open(16).listen(), answer);
        let _tfo = protected(IFACE, PORT, Some("clamp = true"));
        for connection in 0..8 {
            let start = Instant::now();
            assert_eq!(client.run(|| ask(to, DATA, ANSWER)).unwrap(), answer(&[]));
            println!(
                "clamp: {ANSWER} bytes to a real client, connection {connection}: {:?}",
                start.elapsed()
            );
        }
        // The first connection has no cookie yet.
        assert_eq!(taken_from(&client), 7);
        assert_eq!(guarded(IFACE, Guard::Clamp).acted, 7);
        assert_eq!(Counts::of(IFACE).verdict(Class::CookieCurrent, Verdict::Pass), 7);
    });
}

/// Guards that keep state, over both families in turn, until the state expires.
#[test]
fn both_families_are_protected() {
    server_and_client(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let _servers = Family::ALL.iter().map(|family| Server::echo(listen(server(*family)).unwrap()));
        let _servers: Vec<_> = _servers.collect();
        // An emulated processor takes seconds for what follows.
        let guards = "once = { remember = \"8s\" }\nfair = { limit = \"1/h\" }\nclamp = true\nshed = { limit = \"2/h\", burst = 2 }";
        let _tfo = protected(IFACE, PORT, Some(guards));
        // Before Linux 5.15 connections can't be followed, so replays are not recognized.
        let follows = *Counts::of(IFACE).field("outcomes") == true;
        let replay = if follows { Guard::Once } else { Guard::Fair };
        println!("connections are followed: {follows}");
        let mut sent = 0;
        for family in Family::ALL {
            let (from, to) = (source(*family, 1), server(*family).ip());
            let mut send = |port, cookie: &[u8]| {
                let before = (TcpExt::read().unwrap(), Guard::ALL.iter().map(|guard| guarded(IFACE, *guard)));
                let (kernel, acted): (_, Vec<_>) = (before.0, before.1.map(|it| it.acted).collect());
                client.run(|| Syn::new(port, PORT, 1).fast_open(cookie).data(DATA).send(from, to)).unwrap();
                sent += 1;
                eventually("it is counted", || Counts::of(IFACE).total() == sent);
                // The client answers with a reset.
                eventually("the connection is over", has_no_connections);
                let kernel = TcpExt::read().unwrap() - kernel;
                let new = |guard: &Guard| guarded(IFACE, *guard).acted > acted[guard.index()];
                let acted: Vec<_> = Guard::ALL.iter().copied().filter(new).collect();
                (kernel, acted)
            };
            let ordinary = TcpExt::default();
            let good = good_cookie(from, to);
            assert_eq!(
                send(3000, &good),
                (TcpExt { passive: 1, ..ordinary }, vec![Guard::Clamp]),
                "{family}"
            );
            let replayed = Instant::now();
            assert_eq!(send(3000, &good), (ordinary, vec![replay]), "{family}");
            assert_eq!(send(3001, &good), (ordinary, vec![Guard::Fair]), "{family}");
            let refused = TcpExt { passive_fail: 1, ..ordinary };
            assert_eq!(send(3002, &[7; 8]), (refused, vec![]), "{family}");
            // Two SYNs of both families together pass.
            if *family == Family::Ipv6 {
                assert_eq!(send(3003, &[8; 8]), (ordinary, vec![Guard::Shed]), "{family}");
            }
            thread::sleep(Duration::from_secs(9).saturating_sub(replayed.elapsed()));
            // The state has expired, so `once` lets the SYN pass.
            assert_eq!(send(3000, &good), (ordinary, vec![Guard::Fair]), "{family}");
        }
    });
}

/// Sends SYNs that trip every guard of `service`, and panics unless all are only counted.
fn assert_only_counted(service: &str) {
    server_and_client(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let _server = Server::echo(Listener::on(&format!("0.0.0.0:{PORT}")).fast_open(64).listen());
        let config = Config::new(IFACE, &format!("[[service]]\nname = \"web\"\nports = [{PORT}]\n{service}"));
        let _tfo = config.run();
        let before = TcpExt::read().unwrap();
        let (from, to) = (source(Family::Ipv4, 1), server(Family::Ipv4).ip());
        let mut sent = 0;
        let mut send = |port, cookie: &[u8]| {
            let syn = Syn::new(port, PORT, 1).fast_open(cookie).data(DATA);
            client.run(|| syn.send(from, to)).unwrap();
            sent += 1;
            eventually("it is counted", || Counts::of(IFACE).total() == sent);
            // The client answers with a reset.
            eventually("the connection is over", has_no_connections);
        };
        let good = good_cookie(from, to);
        send(3000, &good);
        // The same SYN is sent again, and more than one SYN in an hour.
        send(3000, &good);
        send(3001, &[7; 8]);
        send(3002, &[8; 8]);
        send(3003, &[]);
        let kernel = TcpExt::read().unwrap() - before;
        let expected = TcpExt { passive: 2, passive_fail: 2, cookie_reqd: 1, ..TcpExt::default() };
        assert_eq!(kernel, expected, "the kernel got all of them as they were");
        let counts = Counts::of(IFACE);
        for class in [Class::CookieCurrent, Class::CookieUnknown, Class::CookieRequest] {
            assert_eq!(counts.verdict(class, Verdict::Pass), counts.class(class), "{class}");
        }
        let would =
            [(Guard::Hide, 5), (Guard::Once, 1), (Guard::Fair, 1), (Guard::Clamp, 2), (Guard::Shed, 1)];
        for (guard, would) in would {
            assert_eq!(guarded(IFACE, guard), GuardCounts { acted: 0, would }, "{guard}");
        }
    });
}

const DRY: &str = "{ dry_run = true }";

#[test]
fn dry_runs_are_only_counted() {
    let limits = "fair = { limit = \"1/h\", dry_run = true }\nshed = { limit = \"1/h\", drop = true, others = true, dry_run = true }";
    assert_only_counted(&format!("mode = \"shield\"\nhide = {DRY}\nonce = {DRY}\nclamp = {DRY}\n{limits}"));
}

/// Protections are dry runs in the other modes.
#[test]
fn observers_only_count() {
    let limits = "fair = { limit = \"1/h\" }\nshed = { limit = \"1/h\", drop = true, others = true }";
    assert_only_counted(&format!("mode = \"observe\"\nhide = true\nonce = true\nclamp = true\n{limits}"));
}
