//! Protections of listeners that are special: with keys of their own, and where no cookie is needed. Each test prints its
//! result: `cargo test -p tfo-tests --test netns protect_special:: -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    time::Instant,
};

use nix::sys::{signal::Signal, socket::setsockopt};
use tfo_common::{
    class::Class, counters::GuardCounts, observed::Watch, parse::LinkLayer, policy::Guard, segment::Family,
    verdict::Verdict,
};
use tfo_tests::{
    config::{Config, guarded, protected},
    listener::{Listener, TcpFastOpenKey, TcpFastOpenNoCookie},
    netns::{
        BPFFS, Counts, IFACE, Running, eventually, has_no_connections, ip, key, sandbox, server_and_client,
        tfo,
    },
    packet::{Carry as _, eth},
    server::Server,
    tap::Tap,
    wire::Seen,
};
use tfo_userspace::{
    dataplane::{Pinned, pins::Bpffs},
    kernel::{
        sysctl::{CLIENT, CLIENT_NO_COOKIE, KeySysctl, SERVER, SERVER_NO_COOKIE, write_mode},
        tcp_ext::TcpExt,
    },
    lab::{
        client::{Syn, fast_open},
        net::{Namespace, server, source},
        server::TcpFastOpen,
    },
};

const PORT: u16 = 7413;
/// Port of another listener of the same service, without anything special.
const USUAL: u16 = 7414;
const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const OWN_KEY: [u8; 16] = [7; 16];

fn service(guards: &str) -> String {
    format!("[[service]]\nname = \"web\"\nports = [{PORT}, {USUAL}]\nmode = \"shield\"\n{guards}\n")
}

fn on(port: u16) -> Listener {
    Listener::on(&format!("0.0.0.0:{port}")).fast_open(64)
}

/// Binds a usual listener to [`PORT`] as soon as the one before is gone. Children of other tests may have it for an instant.
fn usual_again() -> TcpListener {
    let mut listener = None;
    eventually("the port is free", || {
        listener = TcpListener::bind(("0.0.0.0", PORT)).ok();
        listener.is_some()
    });
    let listener = listener.unwrap();
    setsockopt(&listener, TcpFastOpen, &64).unwrap();
    listener
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::new(server(Family::Ipv4).ip(), port)
}

fn watch() -> Watch {
    Pinned::open(&Bpffs::new(Path::new(BPFFS)).pins(IFACE)).unwrap().watch().unwrap()
}

/// Returns what `work` adds to the kernel's counters.
fn more(work: impl FnOnce()) -> TcpExt {
    let before = TcpExt::read().unwrap();
    work();
    TcpExt::read().unwrap() - before
}

/// Lets a real client connect with Fast Open, and have `DATA` echoed. Returns whether the server got it with the SYN.
fn is_served(client: &Namespace, number: u16, port: u16) -> bool {
    let start = Instant::now();
    let kernel = more(|| {
        client.run(|| fast_open(source(Family::Ipv4, number), at(port), DATA)).unwrap();
        eventually("the connection is over", has_no_connections);
    });
    println!("client {number}, port {port}: served {}, in {:.0?}", kernel.passive, start.elapsed());
    assert!(kernel.passive <= 1, "{kernel:?}");
    kernel.passive == 1
}

/// Sends a SYN that no client would send, and waits until it is counted. Returns whether its data was served.
fn is_syn_served(client: &Namespace, syn: &Syn) -> bool {
    let (from, to) = (source(Family::Ipv4, 1), server(Family::Ipv4).ip());
    let before = Counts::of(IFACE).total();
    let kernel = more(|| {
        client.run(|| syn.send(from, to)).unwrap();
        eventually("it is counted", || Counts::of(IFACE).total() == before + 1);
        // The client answers with a reset.
        eventually("the connection is over", has_no_connections);
    });
    kernel.passive == 1
}

/// Whether a forged cookie to `port` gets to the kernel, which refuses it.
fn is_forged_passed(client: &Namespace, port: u16, from: u16) -> bool {
    let dropped = Counts::of(IFACE).verdict(Class::CookieUnknown, Verdict::Drop);
    is_syn_served(client, &Syn::new(from, port, 1).fast_open(&[9; 8]).data(DATA));
    Counts::of(IFACE).verdict(Class::CookieUnknown, Verdict::Drop) == dropped
}

const SHED: &str = "shed = { limit = \"1/h\", burst = 1, drop = true }";

#[test]
fn shed_knows_the_cookies_of_a_listener_with_a_key_of_its_own() {
    server_and_client(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let _own = Server::echo(on(PORT).own_key(OWN_KEY).listen());
        let _usual = Server::echo(on(USUAL).listen());
        let config = Config::new(IFACE, &service(SHED));
        let running = config.run();
        assert!(!is_served(&client, 1, PORT), "the client has no cookie yet");
        for _ in 0..3 {
            assert!(is_served(&client, 1, PORT), "its cookie is known");
        }
        assert_eq!(Counts::of(IFACE).verdict(Class::CookieCurrent, Verdict::Pass), 3);
        // The limit is used up, and forged cookies to both listeners are shed.
        assert!(is_forged_passed(&client, USUAL, 3001), "within the limit");
        assert!(!is_forged_passed(&client, USUAL, 3002));
        assert!(!is_forged_passed(&client, PORT, 3003));
        assert_eq!(guarded(IFACE, Guard::Shed), GuardCounts { acted: 2, would: 0 });
        assert_eq!(watch().own_keys_spared, 0);

        // A take-over after SIGTERM and after SIGKILL, with no second to wait for.
        let log = running.end(Signal::SIGTERM);
        assert!(!log.contains("keys of their own"), "{log}");
        for ends in [Running::kill, |running: Running| drop(running.end(Signal::SIGTERM))] {
            let running = config.run();
            assert!(is_served(&client, 1, PORT));
            // New maps, so a first one is within the limit.
            is_forged_passed(&client, PORT, 3004);
            assert!(!is_forged_passed(&client, USUAL, 3005) && !is_forged_passed(&client, PORT, 3006));
            ends(running);
        }
    });
}

/// Without `drop`, the option is hidden, or not.
#[test]
fn a_listener_gets_and_loses_its_key_while_tfo_runs() {
    server_and_client(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let listener = on(PORT).listen();
        let same = listener.try_clone().unwrap();
        let server_at = Server::echo(listener);
        let _tfo = protected(IFACE, PORT, Some("shed = { limit = \"1/h\", burst = 1 }"));
        let mut port = 3000;
        let mut refused = |cookie: [u8; 8]| {
            port += 1;
            more(|| {
                is_syn_served(&client, &Syn::new(port, PORT, 1).fast_open(&cookie).data(DATA));
            })
            .passive_fail
        };
        assert_eq!(refused([1; 8]), 1, "within the limit");
        assert_eq!(refused([2; 8]), 0, "beyond");
        setsockopt(&same, TcpFastOpenKey, &OWN_KEY).unwrap();
        // A real client: a cookie of the listener's key, and then 0-RTT.
        assert!(!is_served(&client, 5, PORT));
        eventually("the listener is known", || is_served(&client, 5, PORT));
        assert_eq!(refused([3; 8]), 0, "its forged cookies are known, too");
        assert!(is_served(&client, 5, PORT));
        // The port gets a listener without a key.
        drop((server_at, same));
        let _server_at = Server::echo(usual_again());
        eventually("the listener is gone", || refused([4; 8]) == 0);
    });
}

/// Ways in which no cookie is needed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Sysctl,
    Listener,
}

impl Way {
    const ALL: [Self; 2] = [Self::Sysctl, Self::Listener];

    fn listen(self, port: u16) -> TcpListener {
        match self {
            Self::Sysctl => {
                write_mode(CLIENT | SERVER | SERVER_NO_COOKIE).unwrap();
                on(port).listen()
            }
            Self::Listener => on(port).no_cookie().listen(),
        }
    }
}

/// Runs `test` for each way, with an echo server at [`PORT`] that needs no cookie, and a client that sends data without one.
/// The first argument is the way.
fn where_no_cookie_is_needed(test: impl Fn(Way, &Namespace, &Server) + Sync) {
    for way in Way::ALL {
        server_and_client(|client| {
            KeySysctl::open().unwrap().write(key(1), None).unwrap();
            client.run(|| write_mode(CLIENT | CLIENT_NO_COOKIE)).unwrap();
            let server_at = Server::echo(way.listen(PORT));
            println!("{way:?}");
            assert!(is_served(&client, 9, PORT), "{way:?}: without tfo");
            test(way, &client, &server_at);
        });
    }
}

fn acted(guard: Guard) -> u64 {
    guarded(IFACE, guard).acted
}

/// A real client's SYN with data is dropped. The client sends it again without data, and is served.
#[test]
fn hide_keeps_data_from_a_listener_that_needs_no_cookie() {
    where_no_cookie_is_needed(|way, client, server_at| {
        let config = Config::new(IFACE, &service("hide = true"));
        let running = config.run();
        let times = server_at.times(DATA);
        // Known from the first packet on.
        assert!(!is_served(client, 1, PORT), "{way:?}");
        assert_eq!(server_at.times(DATA), times + 1, "the connection is not broken");
        let counts = Counts::of(IFACE);
        assert_eq!(counts.verdict(Class::PlainSyn, Verdict::Drop), 1, "the SYN with data");
        assert_eq!(counts.verdict(Class::PlainSyn, Verdict::Pass), 1, "the SYN without");
        assert_eq!(acted(Guard::Hide), 1);
        // Any option is no better. Without data, it is hidden.
        for (number, cookie) in [(3001, &[][..]), (3002, &[9; 8]), (3003, &[9; 6])] {
            let syn = Syn::new(number, PORT, 1).fast_open(cookie);
            let before = Counts::of(IFACE).total_of(Verdict::Hide);
            assert!(!is_syn_served(client, &syn), "{way:?}: {cookie:?} without data");
            assert_eq!(Counts::of(IFACE).total_of(Verdict::Hide), before + 1);
            let syn = Syn::new(number + 10, PORT, 1).fast_open(cookie).data(DATA);
            let before = Counts::of(IFACE).total_of(Verdict::Drop);
            assert!(!is_syn_served(client, &syn), "{way:?}: {cookie:?} with data");
            assert_eq!(Counts::of(IFACE).total_of(Verdict::Drop), before + 1);
        }
        // Take-overs and a reload, each known from the first packet on.
        drop(running.end(Signal::SIGTERM));
        let running = config.run();
        assert!(!is_syn_served(client, &Syn::new(4001, PORT, 1).data(DATA)), "{way:?}: after SIGTERM");
        running.kill();
        assert!(!is_syn_served(client, &Syn::new(4002, PORT, 1).data(DATA)), "{way:?}: nobody runs");
        let _running = config.run();
        assert!(!is_syn_served(client, &Syn::new(4003, PORT, 1).data(DATA)), "{way:?}: after SIGKILL");
        config.write(&service("hide = { dry_run = true }"));
        assert!(tfo(&["reload"]).status.success());
        assert!(is_syn_served(client, &Syn::new(4004, PORT, 1).data(DATA)), "{way:?}: a dry run");
        assert!(guarded(IFACE, Guard::Hide).would > 0);
        config.write(&service("hide = true"));
        assert!(tfo(&["reload"]).status.success());
        assert!(!is_syn_served(client, &Syn::new(4005, PORT, 1).data(DATA)), "{way:?}: after a reload");
    });
}

/// An order of `tfo hide` on a source, without any service.
#[test]
fn an_order_hides_where_no_cookie_is_needed() {
    where_no_cookie_is_needed(|way, client, _| {
        let _tfo = Running::start(&["-i", IFACE, "--mode", "shield"]);
        assert!(is_syn_served(client, &Syn::new(3001, PORT, 1).data(DATA)), "{way:?}");
        let from = source(Family::Ipv4, 1).to_string();
        let output = tfo(&["hide", "--source", &from]);
        assert!(output.status.success(), "{output:?}");
        eventually("the order is carried out", || {
            !is_syn_served(client, &Syn::new(3002, PORT, 1).data(DATA))
        });
        assert!(is_served(client, 2, PORT), "{way:?}: another source");
        assert!(tfo(&["show", "--source", &from]).status.success());
        eventually("it is taken back", || is_syn_served(client, &Syn::new(3003, PORT, 1).data(DATA)));
    });
}

/// Changes of a listener's option and of the sysctl, in both directions.
#[test]
fn a_listener_that_changes_is_noticed() {
    server_and_client(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let listener = on(PORT).listen();
        let same = listener.try_clone().unwrap();
        let _server = Server::echo(listener);
        let _tfo = protected(IFACE, PORT, Some("hide = true"));
        let mut from = 3000;
        let mut verdict = |cookie: &[u8]| {
            from += 1;
            let before = Counts::of(IFACE);
            let served = is_syn_served(&client, &Syn::new(from, PORT, 1).fast_open(cookie).data(DATA));
            let after = Counts::of(IFACE);
            assert!(!served, "{cookie:?}");
            after.total_of(Verdict::Drop) - before.total_of(Verdict::Drop)
        };
        assert_eq!(verdict(&[]), 0, "hidden");
        setsockopt(&same, TcpFastOpenNoCookie, &true).unwrap();
        let mut from_then = 5000;
        eventually("the listener is known", || {
            from_then += 1;
            !is_syn_served(&client, &Syn::new(from_then, PORT, 1).data(DATA))
        });
        assert_eq!(verdict(&[]), 1, "dropped");
        setsockopt(&same, TcpFastOpenNoCookie, &false).unwrap();
        eventually("it is usual again", || verdict(&[]) == 0);
        write_mode(CLIENT | SERVER | SERVER_NO_COOKIE).unwrap();
        eventually("the sysctl is known", || {
            from_then += 1;
            !is_syn_served(&client, &Syn::new(from_then, PORT, 1).data(DATA))
        });
        assert_eq!(verdict(&[]), 1, "dropped");
        write_mode(CLIENT | SERVER).unwrap();
        eventually("the sysctl is as before", || verdict(&[]) == 0);
    });
}

/// `fair` counts SYNs that the kernel serves without a cookie.
#[test]
fn fair_counts_data_without_a_cookie() {
    where_no_cookie_is_needed(|way, client, server_at| {
        let _tfo = protected(IFACE, PORT, Some("fair = { limit = \"2/h\", burst = 2 }"));
        let times = server_at.times(DATA);
        let served: Vec<_> = (0..4).map(|_| is_served(client, 1, PORT)).collect();
        assert_eq!(served, [true, true, false, false], "{way:?}");
        assert_eq!(server_at.times(DATA), times + 4, "no connection is broken");
        assert_eq!(acted(Guard::Fair), 2);
        assert!(is_served(client, 2, PORT), "{way:?}: another source");
        // An option without data takes a place in the queue, too, and a forged cookie with data.
        assert!(!is_syn_served(client, &Syn::new(3001, PORT, 1).fast_open(&[])));
        assert!(!is_syn_served(client, &Syn::new(3002, PORT, 1).fast_open(&[9; 8]).data(DATA)));
        assert_eq!(acted(Guard::Fair), 4);
    });
}

/// `once` knows replays of SYNs without a cookie, and repeated data.
#[test]
fn once_knows_replays_without_a_cookie() {
    for (same, is_repeated) in [("syn", false), ("data", true)] {
        where_no_cookie_is_needed(|way, client, server_at| {
            let _tfo = protected(IFACE, PORT, Some(&format!("once = {{ match = \"{same}\" }}")));
            let order = b"order one";
            let send = |port: u16| is_syn_served(client, &Syn::new(port, PORT, 1).data(order));
            assert!(send(3001), "{way:?}, {same}");
            eventually("the order has arrived", || server_at.times(order) <= 1);
            assert!(!send(3001), "{way:?}, {same}: a replay");
            assert_eq!(acted(Guard::Once), 1);
            assert_eq!(send(3002), !is_repeated, "{way:?}, {same}: another port");
            assert_eq!(acted(Guard::Once), 1 + u64::from(is_repeated));
            assert_eq!(Counts::of(IFACE).verdict(Class::PlainSyn, Verdict::Drop), acted(Guard::Once));
        });
    }
}

/// `clamp` bounds what an address is sent that has not even a cookie.
#[test]
fn clamp_bounds_answers_to_data_without_a_cookie() {
    const ANSWER: usize = 100_000;
    for way in Way::ALL {
        sandbox(|| {
            write_mode(CLIENT | SERVER).unwrap();
            KeySysctl::open().unwrap().write(key(1), None).unwrap();
            let mut nic = Tap::new("nic0", LinkLayer::Ethernet);
            ip("address add 10.9.0.1/24 dev nic0");
            let (victim, at) = (Ipv4Addr::new(10, 9, 0, 2), Ipv4Addr::new(10, 9, 0, 1));
            ip("neighbour add 10.9.0.2 lladdr 02:00:00:00:00:01 dev nic0 nud permanent");
            let _server = Server::start(way.listen(PORT), |_| vec![b'x'; ANSWER]);
            let _tfo = protected("nic0", PORT, Some("clamp = true"));
            let request = [b'r'; 400];
            let syn = eth().ipv4(victim, at).syn().ports(5000, PORT).mss(1460).data(&request).build();
            nic.receive(&syn).unwrap();
            let (mut syn_acks, mut data) = (0, 0);
            eventually("its SYN-ACK is repeated", || {
                while let Some(frame) = nic.sent() {
                    let Some(seen) = Seen::of(&frame).filter(|seen| seen.to.ip() == victim) else { continue };
                    syn_acks += usize::from(seen.is_syn_ack());
                    data += seen.data.len();
                }
                syn_acks == 3
            });
            println!("{way:?}: {data} bytes for a SYN of {}", request.len());
            assert_eq!(data, 3 * request.len(), "{way:?}");
            assert_eq!(guarded("nic0", Guard::Clamp).acted, 1);
        });
    }
}

/// `shed` judges forged cookies with data, and drops them with and without `drop`.
#[test]
fn shed_drops_forged_cookies_where_none_is_needed() {
    where_no_cookie_is_needed(|way, client, _| {
        let config = Config::new(IFACE, &service("shed = { limit = \"1/h\", burst = 1 }"));
        let _tfo = config.run();
        let send = |port| is_syn_served(client, &Syn::new(port, PORT, 1).fast_open(&[9; 8]).data(DATA));
        assert!(send(3001), "{way:?}: within the limit, the kernel serves it");
        assert!(!send(3002), "{way:?}");
        assert_eq!(Counts::of(IFACE).verdict(Class::CookieUnknown, Verdict::Drop), 1);
        assert!(is_served(client, 1, PORT), "{way:?}: a SYN without the option is not its business");
    });
}

/// `tfo run`, `reload`, `listeners` and `check` warn of each way; `hide` is one protection that can't stop clients behind a
/// route.
#[test]
fn each_way_is_a_warning() {
    server_and_client(|_client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let _open = on(PORT).no_cookie().held();
        write_mode(CLIENT | SERVER | SERVER_NO_COOKIE).unwrap();
        ip(&format!("route add 198.19.0.0/24 via 198.18.0.2 dev {IFACE} fastopen_no_cookie 1"));
        let ways = |listener: &str| {
            format!(
                "data is taken without a cookie: net.ipv4.tcp_fastopen has bit 0x200; TCP_FASTOPEN_NO_COOKIE on \
                 {listener}; fastopen_no_cookie on the route to 198.19.0.0/24"
            )
        };
        let said = |args: &[&str]| String::from_utf8_lossy(&tfo(args).stdout).into_owned();
        let (named, plain) = (ways(&format!("0.0.0.0:{PORT} (sleep)")), ways(&format!("0.0.0.0:{PORT}")));
        assert!(said(&["listeners"]).contains(&named), "{}", said(&["listeners"]));
        let json: serde_json::Value = serde_json::from_slice(&tfo(&["listeners", "--json"]).stdout).unwrap();
        assert_eq!(json["no_cookie"], named);
        assert!(said(&["check"]).contains(&named));
        let config = Config::new(IFACE, &service("hide = true"));
        let running = config.run();
        assert!(said(&["reload"]).contains(&plain), "{}", said(&["reload"]));
        let check = said(&["check", "--config", &config.path()]);
        assert!(check.contains(&named), "{check}");
        assert!(check.contains("can't stop clients behind such a route"), "{check}");
        let log = running.end(Signal::SIGTERM);
        assert!(log.contains(&plain), "{log}");
        let _own = on(USUAL).own_key(OWN_KEY).held();
        config.write(&service(SHED));
        let check = said(&["check", "--config", &config.path()]);
        assert!(!check.contains("keys of their own"), "they can be read: {check}");
    });
}
