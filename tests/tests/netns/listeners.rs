//! `tfo listeners`: settings of sockets in other processes.

use std::net::{Ipv6Addr, TcpStream};

use serde_json::{Value, json};
use tfo_common::{
    cookie,
    keyring::Key,
    listener::{NO_COOKIE, OWN_KEYS, REUSE_PORT, Record},
    segment::Family,
};
use tfo_tests::{
    fault::{self, Bpf, Fault},
    forger::{forge, forged, with_forger},
    listener::{Holder, Listener},
    netns::{eventually, failure, ip, key, sandbox, tfo, tfo_as_nobody},
};
use tfo_userspace::{
    kernel::{
        listeners::Walk,
        sysctl::{CLIENT, EVERY_LISTENER, KeySysctl, SERVER, write_mode},
    },
    lab::net::{Namespace, server},
    model::keys::{addresses, fingerprint},
};

/// Runs `test` in a sandbox with a loopback interface, and with these bits of net.ipv4.tcp_fastopen.
fn host(bits: u32, test: impl FnOnce() + Send) {
    sandbox(|| {
        ip("link set lo up");
        write_mode(bits).expect("a namespace of our own");
        test();
    });
}

/// Returns the output of `tfo listeners --json`.
fn listeners() -> Value {
    let output = tfo(&["listeners", "--json"]);
    assert!(output.status.success(), "{:?}", failure(&output));
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

/// Returns the listener on `address`.
fn listener(address: &str) -> Value {
    let all = listeners();
    let mut found = all["listeners"].as_array().expect("rows").iter().filter(|row| row["address"] == address);
    let listener = found.next().unwrap_or_else(|| panic!("{address} is not in {all}"));
    assert!(found.next().is_none(), "{address} is there twice: {all}");
    listener.clone()
}

fn warning(address: &str) -> String {
    listener(address)["warning"].as_str().unwrap_or_default().to_owned()
}

/// Returns the expected processes of a listener that only `holder` has.
fn held_by(holder: &Holder) -> Value {
    json!([{"pid": holder.id(), "name": "sleep"}])
}

/// Waits until only `holder` has the listener: children of other tests inherit all descriptors for an instant.
fn wait_until_held_by(holder: &Holder, address: &str) {
    eventually("only sleep holds it", || listener(address)["processes"] == held_by(holder));
}

#[test]
fn settings_of_another_process_are_shown() {
    host(CLIENT | SERVER, || {
        let plain = Listener::on("127.0.0.1:80").fast_open(5).backlog(3).held();
        let own = *b"sixteen bytes!!!";
        let odd = Listener::on("[::]:81").fast_open(7).own_key(own).no_cookie().backlog(9).held();
        let off = Listener::on("127.0.0.1:82").backlog(4).held();
        let six = Listener::on("[::1]:83").fast_open(2).held();

        let all = [("127.0.0.1:80", &plain), ("[::]:81", &odd), ("127.0.0.1:82", &off), ("[::1]:83", &six)];
        all.into_iter().for_each(|(address, holder)| wait_until_held_by(holder, address));
        let expected = json!({
            "address": "127.0.0.1:80", "ipv6_only": null, "processes": held_by(&plain),
            "backlog": {"waiting": 0, "limit": 3},
            "queues": {"syn": 0, "fast_open": 0, "overflow_seconds": null, "reuse_port": false},
            "fast_open": {"queue": 5, "has_own_keys": false, "own_keys": [], "no_cookie": false},
            "unknown": null, "warning": null,
        });
        assert_eq!(listener("127.0.0.1:80"), expected);

        let shown = listener("[::]:81");
        let half = |at: usize| u64::from_le_bytes(own[at..at + 8].try_into().unwrap());
        let print = fingerprint(Key { k0: half(0), k1: half(8) });
        let expected = json!({"queue": 7, "has_own_keys": true, "own_keys": [print], "no_cookie": true});
        assert_eq!(shown["fast_open"], expected);
        assert_eq!(shown["ipv6_only"], false);
        assert!(warning("[::]:81").contains("its own key"), "{shown}");
        assert!(warning("[::]:81").contains("without a cookie"), "{shown}");

        let shown = listener("127.0.0.1:82");
        assert_eq!(shown["fast_open"]["queue"], 0);
        assert!(warning("127.0.0.1:82").starts_with("off: the server does not set TCP_FASTOPEN"), "{shown}");
        assert_eq!(listener("[::1]:83")["warning"], Value::Null);

        // The key is not shown, neither as bytes nor as digits.
        let text = String::from_utf8(tfo(&["listeners"]).stdout).unwrap();
        for said in [text.clone(), listeners().to_string()] {
            let hex: String = own.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(
                !said.contains("sixteen") && !said.contains(&hex[..16]) && said.contains(&print),
                "{said}"
            );
        }
        assert!(text.starts_with("net.ipv4.tcp_fastopen = 0x3: 0x1 client, 0x2 server\n"), "{text}");
        assert_eq!(text.lines().count(), 2 + 4 + 1, "{text}");
        let way = "data is taken without a cookie: TCP_FASTOPEN_NO_COOKIE on [::]:81 (sleep)";
        assert_eq!(text.lines().last(), Some(way));
        assert!(text.contains(&format!("sleep ({})", plain.id())), "{text}");
    });
}

#[test]
fn one_socket_of_two_processes_is_one_listener() {
    host(CLIENT | SERVER, || {
        let socket = Listener::on("127.0.0.1:80").fast_open(5).listen();
        let holders = [Holder::of(socket.try_clone().unwrap()), Holder::of(socket)];
        let mut ids = holders.map(|holder| {
            let id = holder.id();
            (id, holder)
        });
        ids.sort_by_key(|(id, _)| *id);
        let [(first, _a), (second, _b)] = ids;
        let expected = json!([{"pid": first, "name": "sleep"}, {"pid": second, "name": "sleep"}]);
        eventually("both hold it", || {
            let mut shown = listener("127.0.0.1:80")["processes"].as_array().unwrap().clone();
            shown.sort_by_key(|process| process["pid"].as_u64());
            Value::from(shown) == expected
        });
    });
}

#[test]
fn a_listener_for_multipath_tcp_is_asked_too() {
    host(CLIENT | SERVER, || {
        let holder = Listener::multipath("127.0.0.1:80").backlog(4).held();
        wait_until_held_by(&holder, "127.0.0.1:80");
        let shown = listener("127.0.0.1:80");
        // Before Linux 6.2 an MPTCP socket does not pass this option on, but its TCP socket can be read.
        let expected = json!({"queue": 0, "has_own_keys": false, "own_keys": [], "no_cookie": false});
        assert_eq!(shown["fast_open"], expected);
    });
}

#[test]
fn the_bits_of_the_sysctl_decide() {
    host(CLIENT | SERVER, || {
        let _before = Listener::on("127.0.0.1:80").held();
        write_mode(CLIENT | SERVER | EVERY_LISTENER).unwrap();
        let _after = Listener::on("127.0.0.1:81").backlog(6).held();
        assert_eq!(listeners()["every_listener"], true);
        assert_eq!(listener("127.0.0.1:81")["fast_open"]["queue"], 6, "as long as its backlog");
        assert_eq!(warning("127.0.0.1:81"), "");
        assert!(warning("127.0.0.1:80").starts_with("off: it listened before bit 0x400 was set"));

        write_mode(CLIENT).unwrap();
        assert_eq!(listeners()["every_listener"], false);
        assert!(warning("127.0.0.1:81").starts_with("off: net.ipv4.tcp_fastopen lacks bit 0x2"));
        assert_eq!(warning("127.0.0.1:80"), "", "it never asked");
    });
}

#[test]
fn a_full_accept_queue_is_seen() {
    host(CLIENT | SERVER, || {
        let _full = Listener::on("127.0.0.1:80").fast_open(5).backlog(1).held();
        // The queue takes one connection more than its limit.
        let _one = TcpStream::connect("127.0.0.1:80").unwrap();
        eventually("one waits", || listener("127.0.0.1:80")["backlog"]["waiting"] == 1);
        assert_eq!(warning("127.0.0.1:80"), "");
        let _two = TcpStream::connect("127.0.0.1:80").unwrap();
        eventually("two wait", || listener("127.0.0.1:80")["backlog"] == json!({"waiting": 2, "limit": 1}));
        assert_eq!(warning("127.0.0.1:80"), "accept queue full: connections are dropped");
    });
}

#[test]
fn other_namespaces_are_not_ours() {
    host(CLIENT | SERVER, || {
        let other = Namespace::new().unwrap();
        let _there = other.run(|| Ok(Listener::on("0.0.0.0:80").fast_open(5).held())).unwrap();
        assert_eq!(listeners()["listeners"], json!([]));
        let text = String::from_utf8(tfo(&["listeners"]).stdout).unwrap();
        assert!(text.ends_with("nobody listens\n"), "{text}");
        let seen = other.run(|| Ok(listener("0.0.0.0:80"))).unwrap();
        assert_eq!(seen["fast_open"]["queue"], 5);
    });
}

/// Runs `work` as in a container without the right to trace: no socket of another process can be asked.
fn without_the_right_to_trace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    fault::with_call(libc::SYS_pidfd_getfd, Fault::Fails(libc::EPERM), work)
}

/// Runs `work` where the kernel refuses every BPF program.
fn without_bpf<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    fault::with(Bpf::ProgLoad, Fault::Fails(libc::EPERM), work)
}

#[test]
fn what_no_socket_can_be_asked_the_kernel_says() {
    host(CLIENT | SERVER, || {
        let plain = Listener::on("127.0.0.1:80").fast_open(5).held();
        let _odd = Listener::on("[::]:81").fast_open(7).own_key(*b"sixteen bytes!!!").no_cookie().held();
        let _off = Listener::on("[::1]:82").held();
        wait_until_held_by(&plain, "127.0.0.1:80");
        without_the_right_to_trace(|| {
            let shown = |address: &str| listener(address)["fast_open"].clone();
            let row = |queue, keys, open| json!({"queue": queue, "has_own_keys": keys, "own_keys": [], "no_cookie": open});
            assert_eq!(shown("127.0.0.1:80"), row(5, false, false));
            assert_eq!(shown("[::]:81"), row(7, true, true));
            assert_eq!(shown("[::1]:82"), row(0, false, false));
            let unknown = |address| listener(address)["unknown"].clone();
            assert_eq!([unknown("127.0.0.1:80"), unknown("[::1]:82")], [Value::Null, Value::Null]);
            let why = unknown("[::]:81");
            let expected = "fingerprints of its keys are unknown: cannot get the socket from sleep";
            assert!(why.as_str().unwrap().starts_with(expected), "{why}");
            let text = String::from_utf8(tfo(&["listeners"]).stdout).unwrap();
            assert!(text.contains(" its own "), "{text}");
        });
    });
}

#[test]
fn without_bpf_the_sockets_are_asked() {
    host(CLIENT | SERVER, || {
        let holder = Listener::on("127.0.0.1:80").fast_open(5).held();
        wait_until_held_by(&holder, "127.0.0.1:80");
        without_bpf(|| {
            assert_eq!(listener("127.0.0.1:80")["fast_open"]["queue"], 5);
            assert_eq!(listener("127.0.0.1:80")["queues"], Value::Null);
            let expected = "cannot load the program that reads them (Linux 5.9, CAP_BPF, CAP_PERFMON)";
            let all = listeners();
            assert!(all["queues_unknown"].as_str().unwrap().starts_with(expected), "{all}");
            let text = String::from_utf8(tfo(&["listeners"]).stdout).unwrap();
            let said = format!("SYN queues, and Fast Open connections in use, are unknown: {expected}");
            assert!(text.lines().last().unwrap().starts_with(&said), "{text}");
        });
        assert_eq!(listeners()["queues_unknown"], Value::Null);
    });
}

#[test]
fn a_socket_that_cannot_be_asked_says_why() {
    host(CLIENT | SERVER, || {
        let holder = Listener::on("127.0.0.1:80").fast_open(5).held();
        wait_until_held_by(&holder, "127.0.0.1:80");
        let shown = without_bpf(|| without_the_right_to_trace(|| listener("127.0.0.1:80")));
        assert_eq!(shown["fast_open"], Value::Null);
        assert_eq!(shown["processes"], held_by(&holder));
        let expected = format!("cannot get the socket from sleep ({}): it takes CAP_SYS_PTRACE", holder.id());
        assert!(shown["unknown"].as_str().unwrap().starts_with(&expected), "{shown}");
        // This shows that the queue's length comes from the process, and is no guess.
        assert_eq!(without_bpf(|| listener("127.0.0.1:80"))["fast_open"]["queue"], 5);
    });
}

fn queues(address: &str) -> Value {
    listener(address)["queues"].clone()
}

#[test]
fn a_syn_queue_is_as_long_as_what_was_sent() {
    with_forger(|client| {
        let _four = Listener::on("198.18.0.1:80").backlog(100).listen();
        let _both = Listener::on("[::]:81").backlog(100).listen();
        forge(&client, Family::Ipv4, 1000..1005, 80, |syn| syn);
        forge(&client, Family::Ipv4, 1000..1007, 81, |syn| syn);
        forge(&client, Family::Ipv6, 1000..1004, 81, |syn| syn);
        let filled = |syn| json!({"syn": syn, "fast_open": 0, "overflow_seconds": null, "reuse_port": false});
        eventually("the queue of IPv4", || queues("198.18.0.1:80") == filled(5));
        eventually("the queue of both families", || queues("[::]:81") == filled(7 + 4));
        assert_eq!(listener("[::]:81")["backlog"], json!({"waiting": 0, "limit": 100}));
    });
}

#[test]
fn an_overflow_of_the_syn_queue_is_seen() {
    with_forger(|client| {
        let _alone = Listener::on("198.18.0.1:80").backlog(4).listen();
        let _idle = Listener::on("198.18.0.1:81").backlog(4).listen();
        // Of a group, each SYN goes to one member. The time of an overflow is the group's.
        let _group = [82, 82].map(|port| Listener::shared(&format!("198.18.0.1:{port}")).backlog(4).listen());
        for port in [80, 82] {
            forge(&client, Family::Ipv4, 1000..1060, port, |syn| syn);
        }
        let is_full = |record: &Record| record.overflow_age(u32::MAX / 120).is_some();
        let on = |port| records().into_iter().filter(move |record| record.port == port);
        eventually("the queue overflows", || on(80).all(|record| is_full(&record)));
        eventually("the group's queues overflow", || on(82).all(|record| is_full(&record)));
        let syn = on(80).next().unwrap().syn_queue;
        assert!((4..=5).contains(&syn), "the kernel takes one more than the limit, or not: {syn}");
        assert!(!is_full(&on(81).next().unwrap()));
        assert_eq!(on(82).filter(|record| record.flags & REUSE_PORT != 0).count(), 2);
        assert_eq!(on(80).filter(|record| record.flags & REUSE_PORT != 0).count(), 0);
        let shown = queues("198.18.0.1:80");
        assert!(shown["overflow_seconds"].as_u64().unwrap() < 60, "{shown}");
        assert_eq!(queues("198.18.0.1:81")["overflow_seconds"], Value::Null);
    });
}

#[test]
fn the_fast_open_queue_in_use_is_seen() {
    with_forger(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let _listener = Listener::on("[::]:80").fast_open(8).listen();
        for (family, ports) in [(Family::Ipv4, 1000..1003), (Family::Ipv6, 1000..1002)] {
            let addresses = addresses(forged(family), server(family).ip()).unwrap();
            let cookie = cookie::make(&key(1), &addresses).to_le_bytes();
            forge(&client, family, ports, 80, |syn| syn.fast_open(&cookie).data(b"data"));
        }
        // Without a good cookie, it is an ordinary handshake.
        forge(&client, Family::Ipv4, 2000..2001, 80, |syn| syn.fast_open(&[7; 8]).data(b"data"));
        let expected = json!({"syn": 1, "fast_open": 3 + 2, "overflow_seconds": null, "reuse_port": false});
        eventually("five in use", || queues("[::]:80") == expected);
        assert_eq!(listener("[::]:80")["fast_open"]["queue"], 8);
        let text = String::from_utf8(tfo(&["listeners"]).stdout).unwrap();
        let row: Vec<_> = text.lines().last().unwrap().split_whitespace().take(7).collect();
        assert_eq!(row, ["[::]:80", "8", "5", "sysctl", "1", "5", "128"], "{text}");
    });
}

/// Reads the records of the calling thread's namespace.
fn records() -> Vec<Record> {
    Walk::load().and_then(|mut walk| walk.read()).expect("this kernel has iter/tcp")
}

#[test]
fn a_thousand_listeners_are_all_shown() {
    host(CLIENT | SERVER, || {
        let ports = 2000..3000;
        let all: Vec<_> = ports
            .clone()
            .map(|port| Listener::on(&format!("127.0.0.1:{port}")).fast_open(port.into()).backlog(9).listen())
            .collect();
        let mut found: Vec<_> = records()
            .iter()
            .map(|record| (record.port, record.fast_open_limit, record.accept_limit))
            .collect();
        found.sort_unstable();
        assert_eq!(found, ports.map(|port| (port, port.into(), 9)).collect::<Vec<_>>());
        let shown = listeners();
        let rows = shown["listeners"].as_array().unwrap();
        assert_eq!(rows.iter().filter(|row| row["queues"]["syn"] == 0).count(), all.len());
    });
}

/// The walk ends at the first connection, but behind all listeners.
#[test]
fn a_walk_sees_the_listeners_of_its_namespace_and_no_connection() {
    host(CLIENT | SERVER, || {
        let mut walk = Walk::load().unwrap();
        assert_eq!(walk.read().unwrap(), []);
        let other = Namespace::new().unwrap();
        let _there = other.run(|| Ok(Listener::on("0.0.0.0:90").listen())).unwrap();
        let here = [80, 81, 82].map(|port| Listener::on(&format!("127.0.0.1:{port}")).listen());
        let _connections: Vec<_> =
            (0..100).map(|_| TcpStream::connect(here[0].local_addr().unwrap()).unwrap()).collect();
        let ports = |records: Vec<Record>| {
            let mut ports: Vec<_> = records.iter().map(|record| (record.port, record.accept_queue)).collect();
            ports.sort_unstable();
            ports
        };
        // The program is loaded once, and reads the namespace in which it is asked.
        for _ in 0..2 {
            assert_eq!(ports(walk.read().unwrap()), [(80, 100), (81, 0), (82, 0)]);
            assert_eq!(ports(other.run(|| walk.read()).unwrap()), [(90, 0)]);
        }
        drop(here);
        // Connections alone are no listener.
        let _client = TcpStream::connect("127.0.0.1:80").unwrap_err();
        assert_eq!(walk.read().unwrap(), []);
    });
}

#[test]
fn a_record_says_what_was_set() {
    host(CLIENT | SERVER, || {
        let _all = [
            Listener::on("127.0.0.1:80").fast_open(3).listen(),
            Listener::on("[::1]:81").fast_open(4).own_key(*b"sixteen bytes!!!").listen(),
            Listener::on("[::]:82").fast_open(5).no_cookie().listen(),
            Listener::shared("127.0.0.2:83").listen(),
        ];
        let mut records = records();
        records.sort_by_key(|record| record.port);
        let found =
            records.iter().map(|record| (record.port, record.address, record.fast_open_limit, record.flags));
        let four = |last| [127, 0, 0, last, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let expected = [
            (80, four(1), 3, 0),
            (81, Ipv6Addr::LOCALHOST.octets(), 4, OWN_KEYS),
            (82, Ipv6Addr::UNSPECIFIED.octets(), 5, NO_COOKIE),
            (83, four(2), 0, REUSE_PORT),
        ];
        assert_eq!(found.collect::<Vec<_>>(), expected);
    });
}

#[test]
fn without_root_every_listener_is_still_there() {
    host(CLIENT | SERVER, || {
        let _holder = Listener::on("127.0.0.1:80").fast_open(5).held();
        let output = tfo_as_nobody(&["listeners", "--json"]);
        assert!(output.status.success(), "{:?}", failure(&output));
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        let row = &shown["listeners"][0];
        assert_eq!((&row["address"], &row["fast_open"]), (&json!("127.0.0.1:80"), &Value::Null));
        assert_eq!(row["unknown"], "only root sees which process holds it: run it with sudo");
        assert_eq!(row["queues"], Value::Null);
        assert_eq!(shown["queues_unknown"], "only root can read them: run it with sudo");
    });
}
