//! The protection `answer`: handshakes whose SYN-ACK the program sends, with the real kernel at both ends. Figures are
//! printed: `cargo test -p tfo-tests --test netns answer:: -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use nix::{getsockopt_impl, sockopt_impl, sys::socket::getsockopt};
use tfo_common::{
    class::Class,
    parse::LinkLayer,
    segment::Family,
    verdict::{Mode, Verdict},
};
use tfo_tests::{
    config::{Config, protected},
    flood::Flood,
    kernel::Kernel,
    listener::Listener,
    netns::{Counts, IFACE, eventually, ip, key, server_and_client, status, tfo},
    packet::{Carry as _, Tcp, eth_between},
    random::is_long,
    server::Server,
};
use tfo_userspace::{
    dataplane::LoadOptions,
    kernel::{
        sysctl::{KeySysctl, syncookies},
        tcp_ext::TcpExt,
    },
    lab::{
        client::{fast_open, ordinary},
        net::{Namespace, server, source},
    },
};

sockopt_impl!(
    /// TCP_INFO: the first bytes of `struct tcp_info`.
    TcpInfo, GetOnly, libc::IPPROTO_TCP, libc::TCP_INFO, [u8; 8]
);

const PORT: u16 = 7413;
const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// Client's end of the veth pair.
const CLIENT: &str = "tfo-client";

/// Runs `test` with a server whose key is [`key`]`(1)`, and a client to which XDP can send: veth demands a program at the
/// other end.
fn with_client(test: impl FnOnce(Namespace) + Send) {
    server_and_client(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let _receiver = client
            .run(|| {
                let mut kernel = Kernel::with(&LoadOptions::new(LinkLayer::Ethernet, Mode::Observe), None);
                kernel.attach(CLIENT, LinkLayer::Ethernet);
                Ok(kernel)
            })
            .unwrap();
        test(client);
    });
}

const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Kinds of SYNs that a flood consists of.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    Request,
    BadCookie,
}

/// Returns the SYNs of a flood, each as Linux sends it, from an address of its own. Nobody has these addresses.
fn forged(kind: Kind, family: Family) -> Vec<Vec<u8>> {
    let one = |number: u32| -> Vec<u8> {
        let to = server(family).ip();
        let syn: Tcp = match to {
            IpAddr::V4(to) => {
                let from = Ipv4Addr::from_bits(Ipv4Addr::new(198, 20, 0, 0).to_bits() | number);
                eth_between(CLIENT_MAC, SERVER_MAC).ipv4(from, to).syn()
            }
            IpAddr::V6(to) => {
                let from = Ipv6Addr::from_bits(
                    "2001:db8:6666::".parse::<Ipv6Addr>().unwrap().to_bits() | u128::from(number),
                );
                eth_between(CLIENT_MAC, SERVER_MAC).ipv6(from, to).syn()
            }
        };
        let syn = syn.ports(1024 + number as u16 % 50_000, PORT).sequence(number * 77).linux_options();
        match kind {
            Kind::Plain => syn,
            Kind::Request => syn.request().nops(2),
            Kind::BadCookie => syn.fast_open(&[7; 8]).nops(2).data(DATA),
        }
        .build()
    };
    (1..20_000).map(one).collect()
}

/// Routes the answers to forged SYNs to the client, which drops them.
fn route_forged() {
    ip("route add 198.20.0.0/16 via 198.18.0.2");
    ip(&format!("route add 2001:db8:6666::/48 via 2001:db8::2 dev {IFACE}"));
}

/// Numbers of clients with a Fast Open cookie, of those whose data was taken with the SYN, of ordinary ones, and of those
/// of either kind whose connection failed.
#[derive(Debug)]
struct Served {
    clients: u64,
    at_0_rtt: u64,
    ordinary: u64,
    failed: u64,
}

/// Connects `clients` times with Fast Open, for which the client has a cookie, and a tenth as often without.
fn serve(client: &Namespace, family: Family, clients: u64) -> Served {
    let (from, to) = (source(family, 1), server(family));
    let before = client.run(TcpExt::read).unwrap().active;
    let (mut ordinary_ones, mut failed) = (0, 0);
    for number in 0..clients {
        failed += u64::from(client.run(|| fast_open(from, to, DATA)).is_err());
        if number % 10 == 0 {
            failed += u64::from(client.run(|| ordinary(from, to, DATA)).is_err());
            ordinary_ones += 1;
        }
    }
    let at_0_rtt = client.run(TcpExt::read).unwrap().active - before;
    Served { clients, at_0_rtt, ordinary: ordinary_ones, failed }
}

/// Returns the number of SYNs of `class` that were answered.
fn answered(class: Class) -> u64 {
    Counts::of(IFACE).verdict(class, Verdict::Answer)
}

#[test]
fn clients_connect_through_answered_handshakes() {
    connect_through_answers("native");
}

#[test]
fn clients_connect_through_answered_handshakes_at_tcx() {
    connect_through_answers("tcx");
}

fn connect_through_answers(attach: &str) {
    with_client(|client| {
        let _server = Server::echo(Listener::on(&format!("[::]:{PORT}")).fast_open(128).listen());
        let answer = "mode = \"shield\"\nanswer = { when = \"always\" }";
        let service = format!("[[service]]\nname = \"web\"\nports = [{PORT}]\n{answer}\n");
        let config = Config::new(IFACE, &format!("attach = {attach:?}\n{service}"));
        let _tfo = config.run();
        assert_eq!(status(IFACE)["attach"], attach);
        eventually("the listener is marked", || {
            client.run(|| ordinary(source(Family::Ipv4, 1), server(Family::Ipv4), DATA)).unwrap();
            answered(Class::PlainSyn) > 0
        });
        for family in [Family::Ipv4, Family::Ipv6] {
            let (before, plain) = (TcpExt::read().unwrap(), answered(Class::PlainSyn));
            let (from, to) = (source(family, 2), server(family));
            client.run(|| ordinary(from, to, DATA)).unwrap();
            assert_eq!(answered(Class::PlainSyn), plain + 1, "{family}");
            // The first asks for a cookie, and the second has it.
            client.run(|| fast_open(from, to, DATA)).unwrap();
            client.run(|| fast_open(from, to, DATA)).unwrap();
            let now = TcpExt::read().unwrap();
            assert_eq!(now.cookies_received - before.cookies_received, 2, "{family}");
            assert_eq!(now.passive - before.passive, 1, "{family}");
            assert_eq!(now.cookies_sent, 0, "the kernel itself sent none");
        }
        assert_eq!(answered(Class::CookieRequest), 2);
        assert_eq!(syncookies().unwrap(), 1);
    });
}

/// A SYN whose data lies in several buffers is answered by one that fits into the first. The client sends the data again.
#[test]
fn a_jumbo_syn_with_a_bad_cookie_is_answered() {
    with_client(|client| {
        ip(&format!("link set {IFACE} mtu 9000"));
        client
            .run(|| {
                ip(&format!("link set {CLIENT} mtu 9000"));
                Ok(())
            })
            .unwrap();
        let data = vec![b'x'; 8000];
        let _server = Server::echo(Listener::on(&format!("[::]:{PORT}")).fast_open(128).listen());
        let connect = |family| client.run(|| fast_open(source(family, 1), server(family), &data)).unwrap();
        // The client learns a cookie and the server's segment size, and then the key changes.
        Family::ALL.iter().for_each(|family| connect(*family));
        KeySysctl::open().unwrap().write(key(2), None).unwrap();
        let _tfo = protected(IFACE, PORT, Some("answer = { when = \"always\" }"));
        assert_eq!(status(IFACE)["attach"], "native");
        eventually("the listener is marked", || {
            client.run(|| ordinary(source(Family::Ipv4, 2), server(Family::Ipv4), DATA)).unwrap();
            answered(Class::PlainSyn) > 0
        });
        for (number, family) in (1..).zip(Family::ALL) {
            let cookies = TcpExt::read().unwrap().cookies_received;
            connect(*family);
            let counts = Counts::of(IFACE).syn(*family, Class::CookieUnknown);
            assert_eq!((counts.with_data, counts.data_bytes), (1, data.len() as u64), "{family}");
            assert_eq!(answered(Class::CookieUnknown), number, "{family}");
            assert_eq!(TcpExt::read().unwrap().cookies_received, cookies + 1, "{family}");
        }
    });
}

/// Floods the listener, and serves clients meanwhile. With tfo, waits until Fast Open is back.
fn under_flood(kind: Kind, family: Family, guards: Option<&str>, clients: u64) -> (Served, f64, Duration) {
    let mut result = None;
    with_client(|client| {
        route_forged();
        let _server =
            Server::echo(Listener::on(&format!("[::]:{PORT}")).fast_open(1024).backlog(128).listen());
        let _tfo = protected(IFACE, PORT, guards);
        let (from, to) = (source(family, 1), server(family));
        // The first gets the cookie.
        client.run(|| fast_open(from, to, DATA)).unwrap();
        let port = if family == Family::Ipv4 { 14 + 20 } else { 14 + 40 };
        let flood = Flood::start(&client, CLIENT, forged(kind, family), port, 100_000);
        let begun = Instant::now();
        let mut back = Duration::ZERO;
        if guards.is_some() {
            eventually("Fast Open is back", || {
                serve(&client, family, 1).at_0_rtt == 1 && serve(&client, family, 20).at_0_rtt == 20
            });
            back = begun.elapsed();
        } else {
            thread::sleep(Duration::from_secs(1));
        }
        let served = serve(&client, family, clients);
        result = Some((served, flood.rate(), back));
    });
    result.unwrap()
}

//= RFC 7413 section 8.2
//# The best defense may be simply to disable TFO when a host is suspected
//# to be under a SYN flood attack, e.g., the SYN backlog is filled.
#[test]
fn clients_have_0_rtt_during_a_flood() {
    let all = [Kind::Plain, Kind::Request, Kind::BadCookie];
    let (kinds, clients) = if is_long() { (&all[..], 800) } else { (&all[..1], 300) };
    for kind in kinds {
        for family in [Family::Ipv4, Family::Ipv6] {
            let (alone, rate, _) = under_flood(*kind, family, None, 40);
            println!(
                "{kind:?}, {family}: kernel alone: {} of {} at 0-RTT, {} failed ({rate:.0}/s)",
                alone.at_0_rtt, alone.clients, alone.failed
            );
            let (served, rate, back) = under_flood(*kind, family, Some("answer = true"), clients);
            println!(
                "{kind:?}, {family}: answer: {} of {} at 0-RTT, {} ordinary ones, {} failed ({rate:.0}/s; back after {back:.1?})",
                served.at_0_rtt, served.clients, served.ordinary, served.failed
            );
            assert_eq!(served.failed, 0, "{kind:?}, {family}: {served:?}");
            assert!(served.at_0_rtt * 1000 >= served.clients * 999, "{kind:?}, {family}: {served:?}");
        }
    }
}

/// Options of a connection: timestamps, SACK, scale of the peer's window and of ours (`struct tcp_info`).
fn options(connection: &TcpStream) -> (bool, bool, Option<(u8, u8)>) {
    const TIMESTAMPS: u8 = 1;
    const SACK: u8 = 2;
    const SCALE: u8 = 4;

    let [_, _, _, _, _, options, scales, _] = getsockopt(connection, TcpInfo).unwrap();
    let has = |bit: u8| options & bit != 0;
    (has(TIMESTAMPS), has(SACK), has(SCALE).then_some((scales & 0xf, scales >> 4)))
}

#[test]
fn both_ends_agree_on_options() {
    with_client(|client| {
        let listener = Listener::on(&format!("[::]:{PORT}")).fast_open(128).listen();
        let _tfo = protected(IFACE, PORT, Some("answer = { when = \"always\" }"));
        let connect = |family: Family| {
            let near = client.run(|| Ok(TcpStream::connect(server(family))?)).unwrap();
            (near, listener.accept().unwrap().0)
        };
        eventually("the listener is marked", || {
            drop(connect(Family::Ipv4));
            answered(Class::PlainSyn) > 0
        });
        let kernels = {
            // A port without the protection shows what the kernel itself offers.
            let other = Listener::on(&format!("[::]:{}", PORT + 1)).listen();
            let to = SocketAddr::new(server(Family::Ipv4).ip(), PORT + 1);
            let _near = client.run(|| Ok(TcpStream::connect(to)?)).unwrap();
            options(&other.accept().unwrap().0)
        };
        assert!(kernels.0 && kernels.1 && kernels.2.is_some(), "{kernels:?}");
        for (timestamps, expected) in [(1, (false, false, None)), (2, kernels), (0, (false, false, None))] {
            fs::write("/proc/sys/net/ipv4/tcp_timestamps", timestamps.to_string()).unwrap();
            // The controller reads it five times a second.
            thread::sleep(Duration::from_millis(500));
            for family in [Family::Ipv4, Family::Ipv6] {
                let before = answered(Class::PlainSyn);
                let (near, far) = connect(family);
                assert_eq!(answered(Class::PlainSyn), before + 1);
                assert_eq!(options(&far), expected, "{family}, tcp_timestamps {timestamps}");
                let swapped = expected.2.map(|(snd, rcv)| (rcv, snd));
                assert_eq!(
                    options(&near),
                    (expected.0, expected.1, swapped),
                    "{family}, tcp_timestamps {timestamps}"
                );
                // More than a window of 64 KiB, so that a wrong scale would show.
                let sent = vec![7; 300_000];
                let (mut writer, data) = (near, sent.clone());
                let writing = thread::spawn(move || writer.write_all(&data));
                let mut received = Vec::new();
                (&far).take(300_000).read_to_end(&mut received).unwrap();
                writing.join().unwrap().unwrap();
                assert!(received == sent);
            }
        }
    });
}

#[test]
fn it_engages_and_lets_go_and_no_client_is_lost() {
    with_client(|client| {
        route_forged();
        let _server =
            Server::echo(Listener::on(&format!("[::]:{PORT}")).fast_open(1024).backlog(128).listen());
        let _tfo = protected(IFACE, PORT, Some("answer = { release = \"2s\" }"));
        let connect =
            || client.run(|| ordinary(source(Family::Ipv4, 1), server(Family::Ipv4), DATA)).unwrap();
        let is_engaged = || status(IFACE)["answering"] == serde_json::json!(["web"]);
        for round in 0..2 {
            (0..20).for_each(|_| connect());
            assert!(!is_engaged(), "round {round}: a few clients are no flood");
            let flood = Flood::start(&client, CLIENT, forged(Kind::Plain, Family::Ipv4), 14 + 20, 5_000);
            let begun = Instant::now();
            eventually("it engages", || {
                connect();
                is_engaged()
            });
            println!("engaged after {:.1?}", begun.elapsed());
            let before = answered(Class::PlainSyn);
            (0..50).for_each(|_| connect());
            assert!(answered(Class::PlainSyn) >= before + 50);
            drop(flood);
            let over = Instant::now();
            eventually("it lets go", || {
                connect();
                !is_engaged()
            });
            println!("let go after {:.1?}", over.elapsed());
            assert!(over.elapsed() >= Duration::from_secs(2));
            let before = answered(Class::PlainSyn);
            (0..20).for_each(|_| connect());
            assert_eq!(answered(Class::PlainSyn), before, "the kernel answers again");
        }
        let text = String::from_utf8(tfo(&["events", "--json"]).stdout).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let why: Vec<_> =
            events.filter(|event| event["what"] == "answer").map(|event| event["why"].clone()).collect();
        assert_eq!(why, ["engaged", "let_go", "engaged", "let_go"]);
    });
}
