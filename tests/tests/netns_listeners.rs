//! `tfo listeners`: settings of sockets in other processes.

use std::net::TcpStream;

use serde_json::{Value, json};
use tfo_common::keyring::Key;
use tfo_tests::{
    fault::{self, Fault},
    listener::{Holder, Listener},
    netns::{eventually, failure, ip, sandbox, tfo, tfo_as_nobody},
};
use tfo_userspace::{
    kernel::sysctl::{CLIENT, EVERY_LISTENER, SERVER, write_mode},
    lab::net::Namespace,
    model::keys::fingerprint,
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
        let six = Listener::on("[::1]:83").fast_open(1).held();

        let all = [("127.0.0.1:80", &plain), ("[::]:81", &odd), ("127.0.0.1:82", &off), ("[::1]:83", &six)];
        all.into_iter().for_each(|(address, holder)| wait_until_held_by(holder, address));
        let expected = json!({
            "address": "127.0.0.1:80", "ipv6_only": null, "processes": held_by(&plain),
            "backlog": {"waiting": 0, "limit": 3},
            "fast_open": {"queue": 5, "own_keys": [], "no_cookie": false}, "unknown": null, "warning": null,
        });
        assert_eq!(listener("127.0.0.1:80"), expected);

        let shown = listener("[::]:81");
        let half = |at: usize| u64::from_le_bytes(own[at..at + 8].try_into().unwrap());
        let print = fingerprint(Key { k0: half(0), k1: half(8) });
        assert_eq!(shown["fast_open"], json!({"queue": 7, "own_keys": [print], "no_cookie": true}));
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
        assert_eq!(text.lines().count(), 2 + 4, "{text}");
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
        // Before Linux 6.2 an MPTCP socket does not pass this option on.
        let is_asked = shown["fast_open"] == json!({"queue": 0, "own_keys": [], "no_cookie": false});
        let refuses = "cannot read the socket's TCP_FASTOPEN: Operation not supported";
        let is_refused = shown["unknown"].as_str().is_some_and(|why| why.starts_with(refuses));
        assert!(is_asked || is_refused, "{shown}");
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

#[test]
fn a_socket_that_cannot_be_asked_says_why() {
    host(CLIENT | SERVER, || {
        let holder = Listener::on("127.0.0.1:80").fast_open(5).held();
        wait_until_held_by(&holder, "127.0.0.1:80");
        // EPERM is the error in a container without the right to trace.
        let refused = Fault::Fails(libc::EPERM);
        let shown = fault::with_call(libc::SYS_pidfd_getfd, refused, || listener("127.0.0.1:80"));
        assert_eq!(shown["fast_open"], Value::Null);
        assert_eq!(shown["processes"], held_by(&holder));
        let expected = format!("cannot get the socket from sleep ({}): it takes CAP_SYS_PTRACE", holder.id());
        assert!(shown["unknown"].as_str().unwrap().starts_with(&expected), "{shown}");
        // This shows that the queue's length comes from the process, and is no guess.
        assert_eq!(listener("127.0.0.1:80")["fast_open"]["queue"], 5);
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
    });
}
