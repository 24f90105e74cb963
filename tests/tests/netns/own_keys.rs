//! Listeners with Fast Open keys of their own (TCP_FASTOPEN_KEY): real listeners, real clients, the kernel's counters.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    net::{IpAddr, TcpListener},
    os::fd::AsFd,
    time::Instant,
};

use nix::{
    setsockopt_impl, sockopt_impl,
    sys::{signal::Signal, socket::setsockopt},
};
use tfo_common::{
    class::Class,
    cookie::{self, Key},
    parse::LinkLayer,
    policy::Guard,
    segment::Family,
    verdict::Verdict,
};
use tfo_tests::{
    config::{Config, guarded},
    layout_0_1::downgrade_pins,
    listener::Listener,
    netns::{
        Counts, IFACE, Running, eventually, has_no_connections, ip, key, keys_status, rotate, sandbox,
        server_and_client, tfo,
    },
    packet::{Carry as _, eth},
    server::Server,
    tap::Tap,
};
use tfo_userspace::{
    kernel::{
        sysctl::{CLIENT, KeySysctl, SERVER, write_mode},
        tcp_ext::TcpExt,
    },
    lab::{
        client::{Syn, fast_open},
        net::{Namespace, server, source},
    },
    model::keys::{addresses, key_text},
};

sockopt_impl!(
    /// TCP_FASTOPEN_KEY: primary and backup key of one listener (tcp(7)).
    TwoKeys, SetOnly, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_KEY, [u8; 32]
);
sockopt_impl!(
    /// TCP_FASTOPEN_KEY: the primary key of one listener.
    OneKey, SetOnly, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_KEY, [u8; 16]
);

const PORT: u16 = 7413;
/// Port of another listener of the same service, which uses the sysctl's keys.
const USUAL: u16 = 7414;
const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

fn bytes(key: Key) -> [u8; 16] {
    [key.k0.to_le_bytes(), key.k1.to_le_bytes()].concat().try_into().unwrap()
}

/// Gives `listener` the key `primary`, and perhaps a backup.
fn give(listener: &impl AsFd, primary: Key, backup: Option<Key>) {
    match backup {
        None => setsockopt(listener, OneKey, &bytes(primary)).unwrap(),
        Some(backup) => {
            let both = [bytes(primary), bytes(backup)].concat().try_into().unwrap();
            setsockopt(listener, TwoKeys, &both).unwrap();
        }
    }
}

fn on(port: u16) -> Listener {
    Listener::on(&format!("[::]:{port}")).fast_open(64)
}

/// Starts an echo server at [`PORT`] with the key `own`, and returns its listener, too.
fn start(own: Key) -> (Server, TcpListener) {
    let listener = on(PORT).own_key(bytes(own)).listen();
    let same = listener.try_clone().unwrap();
    (Server::echo(listener), same)
}

fn service(mode: &str, more: &str) -> String {
    format!("[[service]]\nname = \"web\"\nports = [{PORT}, {USUAL}]\nmode = \"{mode}\"\n{more}\n")
}

/// Sends a SYN with data and the cookie that `key` makes. Returns its class and verdict, and whether the kernel served it.
fn judged(client: &Namespace, port: u16, family: Family, key: Key) -> (Class, Verdict, bool) {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(10_000);
    let (from, to): (IpAddr, IpAddr) = (source(family, 1), server(family).ip());
    let cookie = cookie::make(&key, &addresses(from, to).unwrap()).to_le_bytes();
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let (before, kernel) = (Counts::of(IFACE), TcpExt::read().unwrap());
    client.run(|| Syn::new(number, port, 1).fast_open(&cookie).data(DATA).send(from, to)).unwrap();
    eventually("it is counted", || Counts::of(IFACE).total() == before.total() + 1);
    eventually("the connection is over", has_no_connections);
    let (after, kernel) = (Counts::of(IFACE), TcpExt::read().unwrap() - kernel);
    let class = Class::ALL.iter().find(|class| after.class(**class) > before.class(**class)).unwrap();
    let more = |verdict: &&Verdict| after.verdict(*class, **verdict) > before.verdict(*class, **verdict);
    (*class, *Verdict::ALL.iter().find(more).unwrap(), kernel.passive == 1)
}

/// A real client connects with Fast Open, and has its data echoed. Returns whether the server got it with the SYN.
fn is_served(client: &Namespace, family: Family, number: u16, port: u16) -> bool {
    let before = TcpExt::read().unwrap();
    let to = std::net::SocketAddr::new(server(family).ip(), port);
    client.run(|| fast_open(source(family, number), to, DATA)).unwrap();
    eventually("the connection is over", has_no_connections);
    (TcpExt::read().unwrap() - before).passive == 1
}

/// A listener with its own keys under rotation: its cookies are `cookie_current`, and none is unknown.
#[test]
fn its_cookies_are_current_under_rotation() {
    const TURNS: u64 = 5;
    for mode in ["observe", "accelerate", "shield"] {
        server_and_client(|client| {
            let dir = tempfile::tempdir().unwrap();
            let state = dir.path().join("keys.json").display().to_string();
            let (_server, _listener) = start(key(70));
            let _usual = Server::echo(on(USUAL).listen());
            let running = Running::start(&[
                "-i",
                IFACE,
                "--mode",
                mode,
                "--keys",
                "random",
                "--rotate",
                "1w",
                "--key-state",
                &state,
            ]);
            eventually("kernel and map are in step", || {
                let status = keys_status(IFACE);
                status["source"] == "random" && status["in_step"] == true
            });
            for family in Family::ALL {
                assert!(!is_served(&client, *family, 1, PORT), "no cookie yet");
                assert!(!is_served(&client, *family, 2, USUAL), "no cookie yet");
            }
            for _ in 0..TURNS {
                rotate(&[]);
                for family in Family::ALL {
                    assert!(is_served(&client, *family, 1, PORT), "{mode}, {family}");
                    assert!(is_served(&client, *family, 2, USUAL), "{mode}, {family}");
                }
            }
            let counts = Counts::of(IFACE);
            let classes: Vec<_> = Class::ALL.iter().map(|class| (class, counts.class(*class))).collect();
            println!("{mode}: {classes:?}");
            assert_eq!(counts.class(Class::CookieUnknown), 0);
            assert_eq!(counts.class(Class::CookieCurrent), 2 * TURNS, "all of its cookies");
            assert_eq!(counts.class(Class::CookieBackup), 2 * TURNS, "those of the sysctl's keys");
            assert_eq!(counts.class(Class::CookieRetired), 0);
            // Its key is shown nowhere.
            let shown = ["status", "counters", "listeners"].map(|command| tfo(&[command]).stdout);
            let json = ["status", "counters", "listeners"].map(|command| tfo(&[command, "--json"]).stdout);
            let log = running.end(Signal::SIGTERM);
            let secret = key_text(key(70));
            for text in shown.iter().chain(&json).map(|text| String::from_utf8_lossy(text)) {
                assert!(!text.contains(&**secret));
            }
            assert!(log.contains(&format!("keys of the listeners on port {PORT}: ")), "{log}");
            assert!(!log.contains(&**secret) && !log.contains("can't be read"), "{log}");
        });
    }
}

/// Each change of a listener's keys is seen, and the cookies of its earlier keys stay good in translation.
#[test]
fn changes_are_followed_and_old_cookies_are_translated() {
    use Class::{CookieBackup, CookieCurrent, CookieRetired, CookieUnknown};
    use Verdict::{Pass, Rewrite};
    for mode in ["observe", "accelerate", "shield"] {
        server_and_client(|client| {
            KeySysctl::open().unwrap().write(key(1), None).unwrap();
            let _usual = Server::echo(on(USUAL).listen());
            let config = Config::new(IFACE, &service(mode, ""));
            let _tfo = config.run();
            let translates = mode != "observe";
            let old = (CookieRetired, if translates { Rewrite } else { Pass }, translates);
            // A listener that comes while tfo runs.
            let (_server, listener) = start(key(70));
            let begin = Instant::now();
            let seen = |number| {
                eventually("it is seen", || {
                    judged(&client, PORT, Family::Ipv4, key(number)).0 == CookieCurrent
                });
            };
            seen(70);
            println!("{mode}: a new listener is seen after {:.0?}", begin.elapsed());
            for family in Family::ALL {
                let judged = |port, number| judged(&client, port, *family, key(number));
                assert_eq!(judged(PORT, 70), (CookieCurrent, Pass, true), "{mode}, {family}");
                assert_eq!(judged(PORT, 1), (CookieUnknown, Pass, false), "the sysctl's key");
                assert_eq!(judged(USUAL, 1), (CookieCurrent, Pass, true));
                assert_eq!(judged(USUAL, 70), (CookieUnknown, Pass, false));
            }
            give(&listener, key(71), None);
            let begin = Instant::now();
            seen(71);
            println!("{mode}: a new key is seen after {:.0?}", begin.elapsed());
            for family in Family::ALL {
                let judged = |port, number| judged(&client, port, *family, key(number));
                assert_eq!(judged(PORT, 71), (CookieCurrent, Pass, true), "{mode}, {family}");
                assert_eq!(judged(PORT, 70), old, "{mode}, {family}");
            }
            give(&listener, key(72), Some(key(71)));
            seen(72);
            for family in Family::ALL {
                let judged = |port, number| judged(&client, port, *family, key(number));
                assert_eq!(judged(PORT, 72), (CookieCurrent, Pass, true), "{mode}, {family}");
                assert_eq!(judged(PORT, 71), (CookieBackup, Pass, true), "{mode}, {family}");
                assert_eq!(judged(PORT, 70), old, "{mode}, {family}");
                assert_eq!(judged(PORT, 99), (CookieUnknown, Pass, false), "{mode}, {family}");
            }
            // A real client with an old cookie is served in translation, and gets a fresh one.
            assert_eq!(Counts::of(IFACE).verdict(CookieRetired, Rewrite) > 0, translates);
        });
    }
}

/// Every way to a state keeps the keys that a listener had: its old cookies stay good.
#[test]
fn every_way_to_a_state_keeps_them() {
    server_and_client(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let (_server, listener) = start(key(70));
        let config = Config::new(IFACE, &service("accelerate", ""));
        let running = config.run();
        give(&listener, key(71), None);
        let judged = |number| judged(&client, PORT, Family::Ipv4, key(number));
        eventually("it is seen", || judged(71).0 == Class::CookieCurrent);
        let holds = |way: &str| {
            assert_eq!(judged(71), (Class::CookieCurrent, Verdict::Pass, true), "{way}");
            assert_eq!(judged(70), (Class::CookieRetired, Verdict::Rewrite, true), "{way}");
            assert_eq!(judged(99).0, Class::CookieUnknown, "{way}");
        };
        holds("a start");
        config.write(&service("shield", ""));
        assert!(tfo(&["reload"]).status.success());
        holds("another mode");
        let more = "[[service]]\nname = \"more\"\nports = [1]\nmode = \"accelerate\"\n";
        config.write(&format!("{}{more}", service("shield", "fair = { limit = \"1000/s\", burst = 1000 }")));
        assert!(tfo(&["reload"]).status.success());
        holds("more services and a protection");
        drop(running.end(Signal::SIGTERM));
        assert_eq!(judged(71).0, Class::CookieCurrent, "nobody runs");
        let running = config.run();
        holds("a take-over after SIGTERM");
        running.kill();
        let running = config.run();
        holds("a take-over after SIGKILL");
        // Meanwhile the server has another key.
        running.kill();
        give(&listener, key(72), None);
        let running = config.run();
        assert_eq!(judged(72), (Class::CookieCurrent, Verdict::Pass, true), "from the first packet on");
        assert_eq!(judged(70), (Class::CookieRetired, Verdict::Rewrite, true));
        give(&listener, key(71), None);
        eventually("it is seen", || judged(71).0 == Class::CookieCurrent);
        // Another layout of maps.
        running.kill();
        downgrade_pins(IFACE);
        let running = config.run();
        holds("an upgrade");
        drop(running);
    });
}

/// The program of an interface that comes back knows the listeners from the first packet on.
#[test]
fn an_interface_that_comes_back_knows_them() {
    sandbox(|| {
        write_mode(CLIENT | SERVER).unwrap();
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let (_server, _listener) = start(key(70));
        let made = || {
            let nic = Tap::new("nic0", LinkLayer::Ethernet);
            ip("address add 10.9.0.1/24 dev nic0");
            ip("neighbour add 10.9.0.2 lladdr 02:00:00:00:00:01 dev nic0 nud permanent");
            nic
        };
        let mut nic = made();
        let config = Config::new("nic0", &service("accelerate", ""));
        let _tfo = config.run();
        let (from, to) = (IpAddr::from([10, 9, 0, 2]), IpAddr::from([10, 9, 0, 1]));
        let cookie = cookie::make(&key(70), &addresses(from, to).unwrap()).to_le_bytes();
        let send = |nic: &mut Tap, port| {
            let syn = eth().ipv4([10, 9, 0, 2].into(), [10, 9, 0, 1].into()).syn().ports(port, PORT);
            nic.receive(&syn.fast_open(&cookie).nops(2).data(DATA).build()).unwrap();
            eventually("it is counted", || Counts::of("nic0").total() == u64::from(port) - 4999);
            Counts::of("nic0").class(Class::CookieCurrent)
        };
        assert_eq!(send(&mut nic, 5000), 1);
        drop(nic);
        eventually("it is seen to be gone", || !tfo(&["status"]).status.success());
        let mut nic = made();
        eventually("it is back", || tfo(&["status"]).status.success());
        assert_eq!(send(&mut nic, 5001), 2);
    });
}

/// Listeners on one port that differ: all their cookies are known, none is translated or shed, and there is a warning.
#[test]
fn members_of_a_group_that_differ_are_warned_about() {
    server_and_client(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let member = || Listener::shared(&format!("[::]:{PORT}")).fast_open(64);
        let [first, second] = [70, 71].map(|number| member().own_key(bytes(key(number))).listen());
        let same = second.try_clone().unwrap();
        let _servers = [Server::echo(first), Server::echo(second)];
        let shed = "shed = { limit = \"1/h\", burst = 1, drop = true }";
        let config = Config::new(IFACE, &service("shield", shed));
        let running = config.run();
        let warning = format!("listeners on port {PORT} have different Fast Open keys");
        let warns = || String::from_utf8_lossy(&tfo(&["reload"]).stdout).contains(&warning);
        assert!(warns());
        let judged = |number| judged(&client, PORT, Family::Ipv4, key(number));
        for number in [70, 71] {
            let (class, verdict, _) = judged(number);
            assert!(class != Class::CookieUnknown && verdict == Verdict::Pass, "{class}, {verdict}");
        }
        for _ in 0..4 {
            assert_eq!(judged(99).1, Verdict::Pass, "nothing is shed");
        }
        assert_eq!(guarded(IFACE, Guard::Shed).acted, 0);
        // They agree again.
        give(&same, key(70), None);
        eventually("it is seen", || judged(99).1 == Verdict::Drop);
        eventually("the old cookie is translated", || {
            judged(71) == (Class::CookieRetired, Verdict::Rewrite, true)
        });
        assert_eq!(judged(70), (Class::CookieCurrent, Verdict::Pass, true));
        assert!(!warns());
        // One without keys of its own.
        let _third = Server::echo(member().listen());
        eventually("it is seen", warns);
        assert_ne!(judged(1).0, Class::CookieUnknown, "the sysctl's key is known there");
        assert_eq!(judged(99).1, Verdict::Pass, "nothing is shed");
        let log = running.end(Signal::SIGTERM);
        assert!(log.contains(&warning), "{log}");
    });
}

/// An emergency drops the retired keys of listeners, too.
#[test]
fn an_emergency_forgets_retired_keys_of_listeners() {
    server_and_client(|client| {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json").display().to_string();
        let (_server, listener) = start(key(70));
        let _tfo = Running::start(&[
            "-i",
            IFACE,
            "--mode",
            "accelerate",
            "--keys",
            "random",
            "--rotate",
            "1w",
            "--key-state",
            &state,
        ]);
        give(&listener, key(71), None);
        let judged = |number| judged(&client, PORT, Family::Ipv4, key(number));
        eventually("it is seen", || judged(71).0 == Class::CookieCurrent);
        assert_eq!(judged(70), (Class::CookieRetired, Verdict::Rewrite, true));
        rotate(&["--emergency"]);
        assert_eq!(judged(70), (Class::CookieUnknown, Verdict::Pass, false));
        assert_eq!(judged(71), (Class::CookieCurrent, Verdict::Pass, true));
    });
}
