//! Outcomes of SYNs with a good cookie: accepted, refused, and the round trips saved.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    sys::{signal::Signal, socket::setsockopt},
    unistd::Pid,
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tfo_common::{class::Class, cookie, keyring::Key, parse::LinkLayer, segment::Family};
use tfo_tests::{
    listener::{Listener, TcpFastOpenKey},
    netns::{Counts, IFACE, Running, eventually, ip, key, sandbox, server_and_client, set_keys, tfo},
    tap::Tap,
};
use tfo_userspace::{
    kernel::tcp_ext::TcpExt,
    lab::{
        client::{Syn, fast_open, ordinary},
        net::{Namespace, SERVERS, server, source},
        server::{Listeners, TcpFastOpen},
    },
    model::keys::addresses,
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// Sends a SYN with a cookie of `key` and data, from a source of its own.
fn forged(client: &Namespace, family: Family, number: u16, server_port: u16, key: &Key) {
    let (source, server) = (source(family, number), server(family).ip());
    let addresses = addresses(source, server).expect("of one family");
    let cookie = cookie::make(key, &addresses).to_le_bytes();
    let syn = Syn::new(2000 + number, server_port, 1).fast_open(&cookie).data(DATA);
    client.run(|| syn.send(source, server)).expect("a raw socket sends");
}

fn service(counts: &Counts, name: &str) -> Value {
    let services = counts.field("services").as_array().expect("services").clone();
    services.into_iter().find(|service| service["name"] == name).unwrap_or(Value::Null)
}

/// Real connections of both families and both kinds, also to a socket for both families, are counted for their service.
#[test]
fn accepted_is_what_the_kernel_counts() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let both = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        both.set_only_v6(false).unwrap();
        both.bind(&"[::]:7500".parse::<SocketAddr>().unwrap().into()).unwrap();
        setsockopt(&both, TcpFastOpen, &64).unwrap();
        both.listen(64).unwrap();

        let before = TcpExt::read().unwrap();
        let _tfo = Running::start(&["-i", IFACE, "--service", "lab=7413", "--service", "both=7499-7501"]);
        set_keys(IFACE, key(1), None);
        client
            .run(|| {
                for family in Family::ALL {
                    for n in 0..4 {
                        for _ in 0..3 {
                            fast_open(source(*family, n), server(*family), DATA)?;
                        }
                        ordinary(source(*family, n), server(*family), DATA)?;
                    }
                }
                Ok(())
            })
            .unwrap();
        for family in Family::ALL {
            forged(&client, *family, 20, 7500, &key(1));
        }
        // A good cookie without data also makes a child.
        let (from, to) = (source(Family::Ipv4, 30), server(Family::Ipv4));
        let good = cookie::make(&key(1), &addresses(from, to.ip()).unwrap()).to_le_bytes();
        client.run(|| Syn::new(3000, to.port(), 1).fast_open(&good).send(from, to.ip())).unwrap();

        eventually("the kernel has made all children", || {
            TcpExt::read().unwrap().passive - before.passive == 19
        });
        let counts = Counts::of(IFACE);
        counts.assert_agree(before);
        assert_eq!(service(&counts, "lab")["accepted"], 17);
        assert_eq!(service(&counts, "both")["accepted"], 2);
        assert_eq!(service(&counts, "other")["accepted"], 0);
        assert_eq!(counts.outcome("refused"), 0);
        // The handshakes of the real clients have ended. The forged ones were answered with a reset.
        let saved = &service(&counts, "lab")["rtt_saved"];
        eventually("all handshakes have ended", || {
            service(&Counts::of(IFACE), "lab")["rtt_saved"]["connections"] == 16
        });
        assert!(saved["seconds"].as_f64().unwrap() > 0.0);
        let text = String::from_utf8(tfo(&["counters"]).stdout).unwrap();
        assert!(text.contains("19 connections began with Fast Open, which saved "), "{text}");
    });
}

/// The port determines the service of a SYN, for every class.
#[test]
fn syns_are_counted_by_service() {
    server_and_client(|client| {
        let _tfo = Running::start(&["-i", IFACE, "--service", "a=80", "--service", "b=81-83,90"]);
        let (from, to) = (source(Family::Ipv6, 1), server(Family::Ipv6).ip());
        let ports =
            [(80, "a"), (81, "b"), (83, "b"), (90, "b"), (84, "other"), (65_535, "other"), (1, "other")];
        for (n, (port, _)) in ports.iter().enumerate() {
            client.run(|| Syn::new(4000 + n as u16, *port, 1).fast_open(&[]).send(from, to)).unwrap();
        }
        eventually("all are counted", || Counts::of(IFACE).total() == ports.len() as u64);
        let counts = Counts::of(IFACE);
        for name in ["a", "b", "other"] {
            let expected = ports.iter().filter(|(_, service)| *service == name).count();
            let packets: u64 = service(&counts, name)["syn"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row["packets"].as_u64().unwrap())
                .sum();
            assert_eq!(packets, expected as u64, "{name}");
        }
    });
}

/// SYNs of earlier services stay counted after a restart with other services.
#[test]
fn services_change_over_a_restart() {
    server_and_client(|client| {
        // On one CPU, a service would find the leftovers of another in its counters.
        let mut one = CpuSet::new();
        one.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        let (from, to) = (source(Family::Ipv4, 1), server(Family::Ipv4).ip());
        let mut port = 5000;
        let mut send = |server_port| {
            port += 1;
            let total = Counts::of(IFACE).total();
            client.run(|| Syn::new(port, server_port, 1).fast_open(&[]).send(from, to)).unwrap();
            eventually("it is counted", || Counts::of(IFACE).total() == total + 1);
        };
        // This sums up the looks. A new service starts its sampling afresh, too.
        let requests = || {
            let state: Value = serde_json::from_slice(&tfo(&["top", "--json"]).stdout).unwrap();
            state["prefixes"][0]["requests"].clone()
        };
        let packets = |name| match &service(&Counts::of(IFACE), name)["syn"] {
            Value::Array(rows) => Some(rows.iter().map(|row| row["packets"].as_u64().unwrap()).sum::<u64>()),
            _ => None,
        };
        let first = Running::start(&["-i", IFACE, "--service", "a=1", "--service", "b=2"]);
        send(1);
        send(2);
        send(2);
        first.kill();
        let second = Running::start(&["-i", IFACE, "--service", "b=2", "--service", "c=1"]);
        // During the change of generations, services of both are shown.
        eventually("the services are the second's", || packets("a").is_none() && packets("c").is_some());
        send(1);
        send(2);
        assert_eq!(
            [packets("a"), packets("b"), packets("c"), packets("other")],
            [None, Some(3), Some(1), Some(0)]
        );
        assert_eq!(requests(), 5);
        second.kill();
        let _third = Running::start(&["-i", IFACE]);
        eventually("the services are the third's", || packets("c").is_none());
        send(1);
        assert_eq!([packets("b"), packets("c"), packets("other")], [None, None, Some(1)]);
    });
}

/// A good cookie, and a kernel with reasons to answer by an ordinary handshake.
#[test]
fn a_good_cookie_that_is_refused() {
    server_and_client(|client| {
        let on = |port| Listener::on(&SocketAddr::new(server(Family::Ipv4).ip(), port).to_string());
        let _without = on(100).listen();
        let own = on(101).fast_open(16).listen();
        let _full = on(102).fast_open(1).listen();
        let before = TcpExt::read().unwrap();
        let services = ["--service", "without=100", "--service", "own=101", "--service", "full=102"];
        let tfo_run = Running::start(&[&["-i", IFACE], &services[..]].concat());
        set_keys(IFACE, key(1), None);

        // The listener gets its key while the controller does not look: else its cookies would be known.
        tfo_run.signal(Signal::SIGSTOP);
        setsockopt(&own, TcpFastOpenKey, &[7; 16]).unwrap();
        forged(&client, Family::Ipv4, 1, 100, &key(1));
        forged(&client, Family::Ipv4, 2, 101, &key(1));
        // The server's answers are lost, so the first child keeps the only place.
        ip("neighbour replace 198.18.0.2 lladdr 02:00:00:00:00:99 dev srv0 nud permanent");
        for number in 3..=6 {
            forged(&client, Family::Ipv4, number, 102, &key(1));
            eventually("it is counted", || {
                Counts::of(IFACE).class(Class::CookieCurrent) == u64::from(number)
            });
        }
        tfo_run.signal(Signal::SIGCONT);
        let outcome = |name: &str| {
            let service = service(&Counts::of(IFACE), name);
            (service["accepted"].as_u64().unwrap(), service["refused"].as_u64().unwrap())
        };
        eventually("all are refused", || {
            [outcome("without"), outcome("own")] == [(0, 1), (0, 1)] && outcome("full").1 > 0
        });
        let kernel = TcpExt::read().unwrap() - before;
        assert_eq!(outcome("full"), (kernel.passive, kernel.listen_overflow));
        assert_eq!((kernel.passive, kernel.listen_overflow), (1, 3));
    });
}

/// Connections of another process in its own namespace are not counted.
#[test]
fn other_namespaces_are_left_alone() {
    server_and_client(|_client| {
        let _tfo = Running::start(&["-i", IFACE]);
        sandboxed_connections();
        let counts = Counts::of(IFACE);
        assert_eq!([counts.outcome("accepted"), counts.outcome("refused")], [0, 0]);
    });
}

fn sandboxed_connections() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).expect("servers");
        let before = TcpExt::read().expect("TcpExt");
        let (from, to) = (source(Family::Ipv4, 1), server(Family::Ipv4));
        client.run(|| (0..3).try_for_each(|_| fast_open(from, to, DATA))).expect("connections");
        assert_eq!((TcpExt::read().expect("TcpExt") - before).passive, 2);
    });
}

/// A controller is killed and another starts, and later ends: nothing is counted twice or after the end.
#[test]
fn outcomes_survive_the_controller() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let before = TcpExt::read().unwrap();
        let connect = || {
            let (from, to) = (source(Family::Ipv6, 1), server(Family::Ipv6));
            client.run(|| fast_open(from, to, DATA)).unwrap();
        };
        let mut tfo = Running::start(&["-i", IFACE]);
        set_keys(IFACE, key(1), None);
        connect();
        for _ in 0..3 {
            connect();
            tfo.kill();
            connect();
            tfo = Running::start(&["-i", IFACE]);
            connect();
        }
        let counts = Counts::of(IFACE);
        counts.assert_agree(before);
        assert_eq!(counts.outcome("accepted"), 9);
        drop(tfo);
    });
}

/// A thread carries frames between both ends of a slow wire, each after a delay.
#[test]
fn the_round_trip_saved_is_the_wires() {
    const ONE_WAY: Duration = Duration::from_millis(15);
    const CONNECTIONS: u64 = 20;

    sandbox(|| {
        tfo_userspace::kernel::sysctl::write_mode(3).unwrap();
        let (at_server, at_client) = ("10.9.0.1/24", "10.9.0.2/24");
        let client = Namespace::new().unwrap();
        let far = client
            .run(|| {
                tfo_userspace::kernel::sysctl::write_mode(3)?;
                let far = Tap::new("far", LinkLayer::Ethernet);
                ip("link set far address 02:00:00:00:00:03");
                ip(&format!("address add {at_client} dev far"));
                Ok(far)
            })
            .unwrap();
        let near = Tap::new("near", LinkLayer::Ethernet);
        ip(&format!("address add {at_server} dev near"));
        let server: SocketAddr = "10.9.0.1:7413".parse().unwrap();
        let _listeners = Listeners::start(&[server]).unwrap();

        let stop = Arc::new(AtomicBool::new(false));
        let wire = thread::spawn({
            let stop = Arc::clone(&stop);
            move || carry([near, far], ONE_WAY, &stop)
        });
        let _tfo = Running::start(&["-i", "near"]);
        client
            .run(|| {
                let from = "10.9.0.2".parse()?;
                (0..=CONNECTIONS).try_for_each(|_| fast_open(from, server, DATA))
            })
            .unwrap();
        eventually("all handshakes have ended", || {
            service(&Counts::of("near"), "other")["rtt_saved"]["connections"] == CONNECTIONS
        });
        stop.store(true, Ordering::Relaxed);
        wire.join().unwrap();

        // The median connection is in one bucket, so the bucket's mean is the median.
        let saved = service(&Counts::of("near"), "other")["rtt_saved"].clone();
        let round_trip = 2.0 * ONE_WAY.as_secs_f64();
        let bucket =
            saved["buckets"].as_array().unwrap().iter().max_by_key(|bucket| bucket["connections"].as_u64());
        let bucket = bucket.unwrap();
        let median = bucket["seconds"].as_f64().unwrap() / bucket["connections"].as_f64().unwrap();
        assert!(bucket["connections"].as_u64().unwrap() > CONNECTIONS / 2, "{saved}");
        // A busy machine is late, but never early.
        let ratio = median / round_trip;
        assert!((1.0..2.0).contains(&ratio), "{median} s, where the wire takes {round_trip} s");
    });
}

/// Carries frames between the two ends, until `stop`.
fn carry(mut ends: [Tap; 2], one_way: Duration, stop: &AtomicBool) {
    let mut under_way: [VecDeque<(Instant, Vec<u8>)>; 2] = Default::default();
    while !stop.load(Ordering::Relaxed) {
        for from in 0..2 {
            while let Some(frame) = ends[from].sent() {
                under_way[from].push_back((Instant::now() + one_way, frame));
            }
            while under_way[from].front().is_some_and(|(due, _)| *due <= Instant::now()) {
                let (_, frame) = under_way[from].pop_front().expect("it has a first");
                ends[1 - from].receive(&frame).expect("the other end is up");
            }
        }
        thread::sleep(Duration::from_micros(200));
    }
}
