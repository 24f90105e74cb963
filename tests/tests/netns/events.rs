//! Explanations of events, compared with the real causes.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::{signal::Signal, socket::setsockopt};
use serde_json::Value;
use tfo_common::{class::Class, cookie, keyring::Key, segment::Family};
use tfo_tests::{
    listener::{Listener, TcpFastOpenKey},
    netns::{
        Counts, IFACE, Running, StopOnDrop, eventually, failure, ip, key, server_and_client, set_keys, tfo,
    },
};
use tfo_userspace::{
    lab::{
        client::{Syn, fast_open},
        net::{Namespace, SERVERS, server, source},
        server::Listeners,
    },
    model::keys::addresses,
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// Number of SYNs of each kind. They are sent slowly enough for all to be events.
const EACH: u16 = 100;

fn events(args: &[&str]) -> Vec<Value> {
    let output = tfo(&[&["events", "--json"], args].concat());
    assert!(output.status.success(), "{:?}", failure(&output));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn cookie_of(key: &Key, source: IpAddr, server: IpAddr) -> [u8; 8] {
    cookie::make(key, &addresses(source, server).expect("of one family")).to_le_bytes()
}

/// Returns the address with another last byte.
fn neighbour(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() ^ 0x80).into()),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() ^ 0x80).into()),
    }
}

/// Sends a SYN, waits until it is counted, and then some milliseconds, since a CPU reports a limited number of events
/// per jiffy.
fn send(client: &Namespace, syn: &Syn, source: IpAddr, server: IpAddr) {
    client.run(|| syn.send(source, server)).expect("a raw socket sends");
    thread::sleep(Duration::from_millis(4));
}

/// NAT churn, a retired key, a wrong address of the server and forgeries: a hundred of each, with their explanations.
#[test]
fn every_kind_of_event_is_explained() {
    server_and_client(|client| {
        // The host has another address, for which some clients have cookies.
        let others = ["198.18.0.77", "2001:db8::77"].map(|text| text.parse::<IpAddr>().unwrap());
        ip(&format!("address add {}/16 dev {IFACE}", others[0]));
        ip(&format!("address add {}/64 dev {IFACE} nodad", others[1]));
        let _tfo = Running::start(&["-i", IFACE, "--service", "lab=7413"]);
        for n in 1..=3 {
            set_keys(IFACE, key(n), None);
        }
        for n in 0..EACH {
            let family = Family::ALL[usize::from(n) % 2];
            let (from, to) = (source(family, n), server(family).ip());
            let port = server(family).port();
            let syn = |offset: u16| Syn::new(10_000 + 100 * offset + n, port, 1).data(DATA);
            let other = neighbour(from);
            // In IPv6, a source that has lately used its own cookie is remembered.
            send(&client, &syn(0).fast_open(&cookie_of(&key(3), other, to)), other, to);
            send(&client, &syn(1).fast_open(&cookie_of(&key(3), other, to)), from, to);
            send(&client, &syn(2).fast_open(&cookie_of(&key(2), from, to)), from, to);
            send(&client, &syn(3).fast_open(&cookie_of(&key(1), from, to)), from, to);
            send(&client, &syn(4).fast_open(&cookie_of(&key(3), from, others[family.index()])), from, to);
            send(&client, &syn(5).fast_open(&cookie_of(&key(9), from, to)), from, to);
            send(&client, &syn(6).fast_open(&[7; 6]), from, to);
            send(&client, &syn(7).fast_open(&[7; 5]), from, to);
        }
        eventually("all have come", || Counts::of(IFACE).total() == 8 * u64::from(EACH));
        let mut by_port = BTreeMap::<u64, Vec<Value>>::new();
        let all = events(&[]);
        for event in &all {
            by_port
                .entry((event["source_port"].as_u64().unwrap() - 10_000) / 100)
                .or_default()
                .push(event.clone());
        }
        let expected = [
            (1, "neighbour_address", "cookie_unknown"),
            (2, "retired_key", "cookie_retired"),
            (3, "retired_key", "cookie_retired"),
            (4, "wrong_destination", "cookie_unknown"),
            (5, "forged", "cookie_unknown"),
            (6, "wrong_length", "cookie_bad_length"),
            (7, "ignored_option", "option_ignored"),
        ];
        for (kind, why, class) in expected {
            let events = by_port.remove(&kind).unwrap_or_default();
            let right = events.iter().filter(|event| event["why"] == why && event["what"] == class);
            let right = right
                .filter(|event| match kind {
                    1 => {
                        let from: IpAddr = event["source"].as_str().unwrap().parse().unwrap();
                        event["neighbour"] == neighbour(from).to_string()
                    }
                    2 => event["generation"] == 1,
                    3 => event["generation"] == 2,
                    4 => others.iter().any(|other| event["made_by"] == other.to_string()),
                    _ => true,
                })
                .filter(|event| event["service"] == "lab" && event["packets"] == 1)
                .count();
            assert!(right >= 99, "{right} of {EACH} are {why}: {events:#?}");
            assert!(events.len() <= usize::from(EACH));
        }
        // A good cookie is no event.
        assert!(by_port.is_empty(), "{by_port:#?}");

        // With --anonymize no address is shown in full, and text and JSON agree.
        let cut = events_text(&["--anonymize"]);
        assert!(cut.contains(" 198.19.0.0 -> 198.18.0.1:7413") && cut.contains(" 2001:db8:1:: -> "), "{cut}");
        assert!(!cut.contains("198.19.0.1") && !cut.contains("2001:db8:1::1"), "{cut}");
        assert!(events_text(&[]).contains("a cookie of the key 2 changes ago"));
    });
}

fn events_text(args: &[&str]) -> String {
    String::from_utf8(tfo(&[&["events"], args].concat()).stdout).expect("text")
}

/// The experimental kind is reported, and packets that the kernel drops have a reason and a source.
#[test]
fn the_rare_kinds() {
    server_and_client(|client| {
        let _tfo = Running::start(&["-i", IFACE]);
        set_keys(IFACE, key(1), None);
        for family in Family::ALL {
            let (from, to) = (source(*family, 5), server(*family).ip());
            send(&client, &Syn::new(2000, 80, 1).experimental(&[3; 8]), from, to);
            send(&client, &Syn::new(2001, 80, 1).fast_open(&[3; 8]).fin(), from, to);
            eventually("both are events", || events(&[]).len() == 2 + 2 * family.index());
            let events = events(&[]);
            let [.., experimental, malformed] = events.as_slice() else { panic!("{events:#?}") };
            assert_eq!(
                (&experimental["why"], &experimental["experimental"]),
                (&"forged".into(), &true.into())
            );
            assert_eq!((&malformed["why"], &malformed["what"]), (&"malformed".into(), &"tcp_flags".into()));
            assert_eq!(malformed["source"], from.to_string());
            assert_eq!(malformed["destination"], to.to_string());
        }
    });
}

/// Good cookies that the kernel refuses, explained from the state of listener and host.
#[test]
fn refusals_are_explained() {
    server_and_client(|client| {
        let (from, to) = (source(Family::Ipv4, 1), server(Family::Ipv4).ip());
        let on = |port: u16| Listener::on(&format!("{to}:{port}"));
        let _without = on(100).listen();
        let own = on(101).fast_open(16).listen();
        let _full = Listener::on("[::]:102").fast_open(1).listen();
        let tfo_run = Running::start(&["-i", IFACE]);
        set_keys(IFACE, key(1), None);
        // The server's answers are lost, so a child keeps its place in the queue.
        ip(&format!("neighbour replace 198.18.0.2 lladdr 02:00:00:00:00:99 dev {IFACE} nud permanent"));
        let mut port = 3000;
        let mut good = |server_port| {
            port += 1;
            let syn = Syn::new(port, server_port, 1).fast_open(&cookie_of(&key(1), from, to)).data(DATA);
            send(&client, &syn, from, to);
        };
        // The listener gets its key while the controller does not look: else its cookies would be known.
        tfo_run.signal(Signal::SIGSTOP);
        setsockopt(&own, TcpFastOpenKey, &[7; 16]).unwrap();
        [100, 101, 102, 102].into_iter().for_each(&mut good);
        tfo_run.signal(Signal::SIGCONT);
        eventually("three are refused", || Counts::of(IFACE).outcome("refused") == 3);
        let why = || -> BTreeMap<u64, String> {
            let of = |event: &Value| {
                (event["destination_port"].as_u64().unwrap(), event["why"].as_str().unwrap().to_owned())
            };
            events(&[]).iter().map(of).collect()
        };
        eventually("all are reported", || why().len() == 3);
        let expected = [(100, "listener_without_fast_open"), (101, "own_key"), (102, "queue_full")];
        assert_eq!(why(), expected.map(|(port, why)| (port, why.to_owned())).into());

        tfo_userspace::kernel::sysctl::write_mode(1).unwrap();
        good(102);
        eventually("it is reported", || events(&[]).len() == 4);
        assert!(why().values().all(|why| why == "server_off"), "{:?}", why());
    });
}

/// A flood of forgeries: every packet is counted, and events and prefixes account for all of them. Rare events and
/// requests for cookies are still seen.
#[test]
fn a_flood_hides_nothing() {
    const FLOOD: u64 = 20_000;

    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let _tfo = Running::start(&["-i", IFACE]);
        set_keys(IFACE, key(1), None);
        set_keys(IFACE, key(2), None);
        let (from, to) = (source(Family::Ipv4, 1), server(Family::Ipv4).ip());
        let syn = Syn::new(1024, 7413, 1).fast_open(&[9; 8]);
        // Not a retired cookie: its key is tried within a budget, which the flood has spent.
        let rare = Syn::new(1025, 7413, 1).fast_open(&[9; 6]);
        client
            .run(|| {
                for n in 0..FLOOD {
                    syn.send(from, to)?;
                    if n == FLOOD / 2 {
                        rare.send(from, to)?;
                    }
                }
                Ok(())
            })
            .unwrap();
        client
            .run(|| (0..2).try_for_each(|_| fast_open(source(Family::Ipv6, 1), server(Family::Ipv6), DATA)))
            .unwrap();
        eventually("all are counted", || Counts::of(IFACE).class(Class::CookieUnknown) == FLOOD);
        assert!(events(&[]).iter().any(|event| event["why"] == "wrong_length"));

        let output = tfo(&["top", "--json"]);
        let state: Value = serde_json::from_slice(&output.stdout).unwrap();
        let prefix = |name: &str| {
            let all = state["prefixes"].as_array().unwrap();
            all.iter().find(|prefix| prefix["prefix"] == name).unwrap_or_else(|| panic!("{state:#}")).clone()
        };
        // Packets since the last look are still missing: some of the last jiffy, and those before the next look is due.
        let unknown = prefix("198.19.0.0/24")["unknown"].as_u64().unwrap();
        // The rare one is among them.
        assert!((FLOOD * 9 / 10..=FLOOD + 1).contains(&unknown), "{unknown}");
        let asked = prefix("2001:db8:1::/64");
        assert_eq!((&asked["requests"], &asked["valid"]), (&1.into(), &1.into()));
    });
}

/// Events are explained by the host's addresses. However many there are, a new key of the kernel is followed.
#[test]
fn keys_arrive_among_events_at_many_addresses() {
    const ADDRESSES: u16 = 5000;

    server_and_client(|client| {
        let batch = tempfile::NamedTempFile::new().unwrap();
        let lines: String = (0..ADDRESSES)
            .map(|n| format!("address add 10.77.{}.{}/32 dev {IFACE}\n", n / 250, 1 + n % 250))
            .collect();
        fs::write(batch.path(), lines).unwrap();
        ip(&format!("-batch {}", batch.path().display()));
        let _tfo = Running::start(&["-i", IFACE]);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| {
                let (from, to) = (source(Family::Ipv4, 1), server(Family::Ipv4).ip());
                let syn = Syn::new(1024, 7413, 1).fast_open(&[9; 8]);
                while !stop.load(Ordering::Relaxed) {
                    send(&client, &syn, from, to);
                }
            });
            eventually("events come", || !events(&[]).is_empty());
            for n in 1..=5 {
                let start = Instant::now();
                set_keys(IFACE, key(n), None);
                println!(
                    "key {n} arrived after {:?}, among events at {ADDRESSES} addresses",
                    start.elapsed()
                );
            }
        });
    });
}

/// Without a controller nothing is shown.
#[test]
fn without_a_controller_there_are_no_events() {
    server_and_client(|_client| {
        let output = tfo(&["events"]);
        assert_eq!(output.status.code(), Some(3), "{:?}", failure(&output));
        let tfo_run = Running::start(&["-i", IFACE]);
        tfo_run.kill();
        let output = tfo(&["events", "-i", IFACE]);
        assert_eq!(output.status.code(), Some(3), "{:?}", failure(&output));
    });
}
