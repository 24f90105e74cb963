//! The kill switch, and frequent reloads, both while clients connect. No client may notice.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use nix::sys::signal::Signal;
use tfo_common::{class::Class, policy::Guard, segment::Family, verdict::Verdict};
use tfo_tests::{
    config::{Config, guarded},
    netns::{
        self, Counts, IFACE, StopOnDrop, assert_clean, eventually, failure, linked, server_and_client, tfo,
    },
    packet::{Carry as _, eth_between},
    server::Server,
    wire::{Seen, Wire},
};
use tfo_userspace::{
    kernel::tcp_ext::TcpExt,
    lab::{
        client::{fast_open, ordinary},
        net::{Namespace, server, source},
        server::listen,
    },
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const WEB: &str = "[[service]]\nname = \"web\"\nports = [7413]\nmode = \"shield\"\n";
const SHOP: &str = "[[service]]\nname = \"shop\"\nports = [7414]\nmode = \"shield\"\n";
/// Client's end of the veth pair.
const CLIENT: &str = "tfo-client";

/// Source address of a client, and destination.
type Ends = (IpAddr, SocketAddr);

fn over(family: Family, number: u16, port: u16) -> Ends {
    (source(family, number), SocketAddr::new(server(family).ip(), port))
}

/// Starts an echo server for each of `addresses`.
fn servers(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<Server> {
    addresses.into_iter().map(|address| Server::echo(listen(address).unwrap())).collect()
}

/// Successful connections of background clients.
#[derive(Default)]
struct Traffic {
    stop: AtomicBool,
    done: AtomicU64,
}

impl Traffic {
    /// Runs `test` while each of `ends` connects with Fast Open again and again. Every connection must succeed. Returns
    /// their number.
    fn during(client: &Namespace, ends: &[Ends], test: impl FnOnce(&Self)) -> u64 {
        let traffic = Self::default();
        thread::scope(|scope| {
            let clients = scope.spawn(|| {
                client.run(|| {
                    for (from, to) in ends.iter().cycle() {
                        if traffic.stop.load(Ordering::Relaxed) {
                            break;
                        }
                        fast_open(*from, *to, DATA)?;
                        traffic.done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            });
            {
                let _stop = StopOnDrop(&traffic.stop);
                traffic.more(ends.len() as u64 * 2);
                test(&traffic);
            }
            clients.join().unwrap().expect("no connection is lost");
        });
        traffic.done.into_inner()
    }

    /// Waits for `count` more connections.
    fn more(&self, count: u64) {
        let enough = self.done.load(Ordering::Relaxed) + count;
        eventually("clients go on", || self.done.load(Ordering::Relaxed) >= enough);
    }
}

/// Returns the number of SYNs with Fast Open that the kernel's TCP has seen.
fn seen_by_the_kernel() -> u64 {
    let TcpExt { cookie_reqd, passive, passive_fail, .. } = TcpExt::read().unwrap();
    cookie_reqd + passive + passive_fail
}

/// Runs `tfo ARGS`, which must succeed.
fn order(args: &[&str]) -> String {
    let start = Instant::now();
    let output = tfo(args);
    assert!(output.status.success(), "{args:?}: {:?}", failure(&output));
    println!("hide: `tfo {}` took {:.1?}", args.join(" "), start.elapsed());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An order takes effect when its command returns, over both families. Each hidden SYN has a right checksum.
#[test]
fn hide_all_is_in_force_at_once() {
    server_and_client(|client| {
        checksums_as_on_a_wire(&client);
        let ends: Vec<Ends> = Family::ALL.iter().map(|family| over(*family, 1, 7413)).collect();
        let _servers = servers(ends.iter().map(|(_, to)| *to));
        let config = Config::new(IFACE, WEB);
        let _tfo = config.run();
        let program = linked(IFACE);
        Traffic::during(&client, &ends, |traffic| {
            assert!(TcpExt::read().unwrap().passive > 0);
            for _ in 0..5 {
                order(&["hide", "--all"]);
                let before = seen_by_the_kernel();
                let wire = Wire::at(IFACE);
                traffic.more(60);
                assert_eq!(seen_by_the_kernel(), before, "SYNs with Fast Open that got through");
                let syns = syns(&wire);
                assert!(syns.len() >= 50, "{}", syns.len());
                for syn in &syns {
                    assert!(!syn.has_fast_open() && syn.sum_is_right, "{syn:?}");
                    // The data stays in the SYN: the kernel ignores it, and the client sends it again.
                    assert_eq!(syn.data, DATA);
                }
                for (_, to) in &ends {
                    assert!(syns.iter().any(|syn| syn.to == *to), "none to {to}");
                }

                order(&["show", "--all"]);
                let before = TcpExt::read().unwrap();
                traffic.more(60);
                let kernel = TcpExt::read().unwrap() - before;
                assert!(kernel.passive >= 59 && kernel.passive_fail == 0, "{kernel:?}");
            }
            assert_eq!(linked(IFACE), program, "the same program all the time");
        });
        let hidden = Counts::of(IFACE).verdict(Class::CookieCurrent, Verdict::Hide);
        assert!(hidden >= 5 * 50, "{hidden}");
        assert_eq!(guarded(IFACE, Guard::Hide).acted, hidden);
    });
}

/// Disables checksum offload, so that the program sees complete checksums. Between veth ends, the kernel leaves them
/// out.
fn checksums_as_on_a_wire(client: &Namespace) {
    let off = || Ok(Command::new("ethtool").args(["-K", CLIENT, "tx", "off"]).output()?.status.success());
    assert!(client.run(off).unwrap());
}

/// Returns the SYNs that `wire` has seen.
fn syns(wire: &Wire) -> Vec<Seen> {
    let segments = std::iter::from_fn(|| wire.seen()).filter_map(|frame| Seen::of(&frame));
    segments.filter(|seen| seen.syn && !seen.ack).collect()
}

/// Frames with tags of VLANs that the kernel may not know. The frames behind the program have right checksums, too.
#[test]
fn what_is_in_a_vlan_is_hidden() {
    server_and_client(|client| {
        let config = Config::new(IFACE, WEB);
        let _tfo = config.run();
        let (behind, from) = (Wire::at(IFACE), client.run(|| Ok(Wire::blind(CLIENT))).unwrap());
        let link = || eth_between([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
        let (v4, v6) = ([198, 18, 0, 2].into(), "2001:db8::2".parse().unwrap());
        let (to_v4, to_v6) = ([198, 18, 0, 1].into(), "2001:db8::1".parse().unwrap());
        let frames = |port| {
            let syns = [
                link().vlan(5).ipv4(v4, to_v4).syn(),
                link().service_vlan(7).vlan(5).ipv4(v4, to_v4).syn(),
                link().vlan(5).ipv6(v6, to_v6).syn(),
                link().service_vlan(7).vlan(5).ipv6(v6, to_v6).destination_options().syn(),
            ];
            syns.map(|syn| syn.linux_options().fast_open(&[7; 8]).data(DATA).ports(port, 7413).build())
        };
        for (port, hides) in [(4000, false), (4001, true), (4002, false)] {
            order(&[if hides { "hide" } else { "show" }, "--all"]);
            for frame in frames(port) {
                from.send(&frame);
                let mut arrived = Vec::new();
                eventually("it arrives", || {
                    arrived = syns(&behind).into_iter().filter(|syn| syn.from.port() == port).collect();
                    !arrived.is_empty()
                });
                let [syn] = &arrived[..] else { panic!("{arrived:?}") };
                assert_eq!(syn.has_fast_open(), !hides, "{syn:?}");
                assert!(syn.sum_is_right && syn.data == DATA, "{syn:?}");
            }
        }
        assert_eq!(Counts::of(IFACE).verdict(Class::CookieUnknown, Verdict::Hide), 4);
        assert_eq!(Counts::of(IFACE).verdict(Class::CookieUnknown, Verdict::Pass), 8);
    });
}

/// Returns the number of accepted Fast Open connections of two attempts.
fn taken(client: &Namespace, ends: Ends) -> u64 {
    let before = TcpExt::read().unwrap().passive;
    client.run(|| (0..2).try_for_each(|_| fast_open(ends.0, ends.1, DATA))).unwrap();
    TcpExt::read().unwrap().passive - before
}

/// An order for a service or a source affects no other.
#[test]
fn a_service_or_a_source_is_hidden() {
    server_and_client(|client| {
        let of = |number, port| Family::ALL.iter().map(move |family| over(*family, number, port));
        let ports = [7413, 7414, 7415];
        let _servers = servers(ports.into_iter().flat_map(|port| of(1, port).map(|(_, to)| to)));
        let config = Config::new(IFACE, &format!("{WEB}{SHOP}"));
        let tfo_run = config.run();
        // Each client gets a cookie.
        for number in [1, 2] {
            of(number, 7413).for_each(|ends| assert!(taken(&client, ends) > 0));
        }
        let assert_taken = |expected: &[(u16, u16, u64)]| {
            for (number, port, expected) in expected {
                for ends in of(*number, *port) {
                    assert_eq!(taken(&client, ends), *expected, "{ends:?}");
                }
            }
        };
        order(&["hide", "--service", "web"]);
        assert_taken(&[(1, 7413, 0), (2, 7413, 0), (1, 7414, 2), (1, 7415, 2)]);
        order(&["show", "--service", "web"]);
        assert_taken(&[(1, 7413, 2), (1, 7414, 2), (1, 7415, 2)]);

        let sources = [format!("{}/32", source(Family::Ipv4, 1)), format!("{}/128", source(Family::Ipv6, 1))];
        for prefix in &sources {
            order(&["hide", "--source", prefix]);
        }
        assert_taken(&[(1, 7413, 0), (1, 7414, 0), (2, 7413, 2), (2, 7414, 2)]);
        let list = order(&["hide", "--list"]);
        assert!(sources.iter().all(|source| list.contains(&format!("source {source}"))), "{list}");
        // A shorter prefix is another order.
        order(&["hide", "--source", "198.19.0.0/16"]);
        assert_eq!(taken(&client, over(Family::Ipv4, 2, 7413)), 0);
        assert_eq!(taken(&client, over(Family::Ipv6, 2, 7413)), 2);
        order(&["show", "--source", "198.19.0.0/16"]);
        assert_taken(&[(1, 7413, 0), (2, 7413, 2)]);
        for prefix in &sources {
            order(&["show", "--source", prefix]);
        }
        assert_taken(&[(1, 7413, 2), (1, 7414, 2), (2, 7413, 2)]);
        assert!(order(&["hide", "--list"]).ends_with("hidden: nothing\n"));
        tfo_run.end(Signal::SIGINT);
        assert_clean(IFACE);
    });
}

/// An order stays in force without its controller, and under a new one, until it is taken back.
#[test]
fn an_order_outlives_its_controller() {
    server_and_client(|client| {
        let ends = over(Family::Ipv4, 1, 7413);
        let _servers = servers([ends.1]);
        let config = Config::new(IFACE, WEB);
        let tfo_run = config.run();
        taken(&client, ends);
        assert_eq!(taken(&client, ends), 2);
        order(&["hide", "--all"]);
        assert_eq!(taken(&client, ends), 0);
        tfo_run.kill();
        assert_eq!(taken(&client, ends), 0);
        let status = tfo(&["status"]);
        assert_eq!(status.status.code(), Some(3), "it has no controller");
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(
            status.contains("mode         shield\n  hidden       all: `tfo show` ends that\n"),
            "{status}"
        );
        config.write("");
        let tfo_run = config.run();
        assert_eq!(taken(&client, ends), 0);
        assert!(order(&["hide", "--list"]).contains("hidden: all"));
        let hidden = |expected: serde_json::Value| {
            let status = netns::status(IFACE);
            assert_eq!((&status["mode"], &status["hidden"]), (&"observe".into(), &expected), "{status}");
        };
        hidden(serde_json::json!(["all"]));
        order(&["show", "--all"]);
        hidden(serde_json::json!([]));
        assert_eq!(taken(&client, ends), 2);
        tfo_run.end(Signal::SIGINT);
        assert_clean(IFACE);
    });
}

/// A configuration file hides a service, also after a reload.
#[test]
fn a_file_hides_a_service() {
    server_and_client(|client| {
        let (web, shop) = (over(Family::Ipv6, 1, 7413), over(Family::Ipv6, 1, 7414));
        let _servers = servers([web.1, shop.1]);
        let config = Config::new(IFACE, &format!("{WEB}hide = true\n{SHOP}"));
        let _tfo = config.run();
        taken(&client, shop);
        assert_eq!([taken(&client, web), taken(&client, shop)], [0, 2]);
        config.write(&format!("{WEB}{SHOP}hide = true\n"));
        order(&["reload"]);
        assert_eq!([taken(&client, web), taken(&client, shop)], [2, 0]);
    });
}

/// A hundred reloads, a quarter of them with a wrong file.
#[test]
fn a_reload_loses_nothing() {
    server_and_client(|client| {
        let ends: Vec<Ends> = Family::ALL
            .iter()
            .flat_map(|family| [7413, 7414, 7415].map(|port| over(*family, 1, port)))
            .collect();
        let _servers = servers(ends.iter().map(|(_, to)| *to));
        let retransmitted = || client.run(retransmissions).unwrap();
        let already = retransmitted();
        let (before, others) = (TcpExt::read().unwrap(), 10);
        let config = Config::new(IFACE, WEB);
        let tfo_run = config.run();
        let link = linked(IFACE).link;
        let guards =
            "once = true\nclamp = true\nfair = { limit = \"100000/s\" }\nshed = { limit = \"1/s\" }\n";
        let files = [
            format!("{WEB}{guards}{SHOP}"),
            format!("{SHOP}{guards}"),
            format!("{WEB}clamp = 3\n"),
            format!("{WEB}{SHOP}mode = \"observe\"\n").replace("mode = \"shield\"\nmode", "mode"),
        ];
        let start = Instant::now();
        let mut wrong = 0;
        let connected = Traffic::during(&client, &ends, |_| {
            for (n, content) in files.iter().cycle().take(100).enumerate() {
                // Sometimes the file has no services, so that no program with guards is needed.
                let content = if n % 25 == 24 { "" } else { content };
                config.write(content);
                let is_wrong = content.contains("clamp = 3");
                wrong += u32::from(is_wrong);
                let reload = tfo(&["reload"]);
                assert_eq!(
                    reload.status.code(),
                    Some(i32::from(is_wrong)),
                    "{content}{:?}",
                    failure(&reload)
                );
            }
        });
        let elapsed = start.elapsed();
        client
            .run(|| (0..others).try_for_each(|n| ordinary(source(Family::Ipv4, n), ends[0].1, DATA)))
            .unwrap();
        let sent = connected + u64::from(others) + retransmitted() - already;
        let counts = Counts::of(IFACE);
        println!(
            "reload: 100 times in {elapsed:.1?}, {wrong} of them refused; {connected} connections, {sent} SYNs sent, {} counted",
            counts.total()
        );
        assert_eq!(counts.total(), sent);
        counts.assert_agree(before);
        // The program was replaced if the file was good. The link stayed attached.
        assert_eq!(linked(IFACE).link, link);
        tfo_run.end(Signal::SIGINT);
    });
}

/// Returns the number of repeated segments in the calling thread's namespace. Only SYNs may be repeated in these tests.
fn retransmissions() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut all = names.split(' ').zip(values.split(' '));
    Ok(all.find(|(name, _)| *name == "TCPSynRetrans").unwrap().1.parse()?)
}
