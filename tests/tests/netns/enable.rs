//! `tfo enable`, `tfo disable`, and `fast_open` of a service: Fast Open for servers that know nothing of it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tfo_common::segment::Family;
use tfo_tests::{
    config::Config,
    fault::{self, Fault},
    listener::{Holder, Listener},
    netns::{
        Counts, IFACE, Running, assert_clean, eventually, failure, ip, sandbox, server_and_client, status,
        tfo, tfo_as_nobody,
    },
    program::Program,
    wire::{Seen, Wire},
};
use tfo_userspace::{
    control::FOLDER,
    kernel::{
        sysctl::{CLIENT, SERVER, write_mode},
        tcp_ext::TcpExt,
    },
    lab::{
        client,
        net::{Namespace, server, source},
    },
};

/// Data of a client.
const HELLO: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

fn address() -> SocketAddr {
    server(Family::Ipv4)
}

fn port() -> String {
    address().port().to_string()
}

/// Runs `tfo ARGS --json`, which must end with the status `code`, and returns its object.
fn said(args: &[&str], code: i32) -> Value {
    let output = tfo(&[args, &["--json"]].concat());
    let (status, error) = failure(&output);
    assert_eq!(status, Some(code), "tfo {args:?}: {error}{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|wrong| panic!("tfo {args:?}: {wrong}: {error}"))
}

/// Runs `tfo ARGS`, which must succeed, and returns what it prints.
fn text(args: &[&str]) -> String {
    let output = tfo(args);
    assert!(output.status.success(), "tfo {args:?}: {:?}", failure(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// Returns the queues of all listeners at `address`, as the kernel has them.
fn queues(address: SocketAddr) -> Vec<u64> {
    let all = said(&["listeners"], 0);
    let rows = all["listeners"].as_array().expect("rows").iter();
    let its = rows.filter(|row| row["address"] == address.to_string());
    its.map(|row| row["fast_open"]["queue"].as_u64().unwrap_or_else(|| panic!("{row}"))).collect()
}

/// Returns the files of tfo that say what was changed.
fn ledgers() -> Vec<PathBuf> {
    let files = fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|end| end == "json")).collect()
}

/// Visit with Fast Open, as it looked on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Visit {
    /// Number of bytes in the SYN.
    sent: usize,
    /// Whether the SYN-ACK acknowledges them.
    taken: bool,
}

/// Visit at 0-RTT: the whole request goes with the SYN, and the server has it.
const ZERO_RTT: Visit = Visit { sent: HELLO.len(), taken: true };

/// Visits the server, as a client that has been there before if `family` has.
fn visit(client: &Namespace, family: Family) -> Visit {
    let (from, to) = (source(family, 1), server(family));
    let wire = Wire::at(IFACE);
    client.run(|| client::fast_open(from, to, HELLO)).expect("its data comes back");
    let frames: Vec<_> = std::iter::from_fn(|| wire.seen()).filter_map(|frame| Seen::of(&frame)).collect();
    let syn = frames.iter().find(|seen| seen.to == to && seen.syn && !seen.ack).expect("a SYN");
    let answer = frames.iter().find(|seen| seen.from == to && seen.is_syn_ack()).expect("a SYN-ACK");
    let taken = answer.acknowledged.wrapping_sub(syn.sequence).wrapping_sub(1);
    Visit { sent: syn.data.len(), taken: taken > 0 && taken as usize == syn.data.len() }
}

/// Visits twice, so that the client has a cookie if it can get one. Returns the second visit, and by how much the kernel's
/// counter of connections that were accepted with Fast Open has risen.
fn second_visit(client: &Namespace, family: Family) -> (Visit, u64) {
    let passive = || TcpExt::read().expect("TcpExt").passive;
    visit(client, family);
    let before = passive();
    (visit(client, family), passive() - before)
}

/// Enables and disables Fast Open for a server, and looks at clients before, meanwhile and afterwards.
fn try_with(family: Family, start: impl Fn(SocketAddr) -> Program + Sync) {
    server_and_client(|client| {
        let (address, port) = (server(family), port());
        let program = start(address);
        let without = second_visit(&client, family);
        assert_eq!(without, (Visit { sent: 0, taken: false }, 0), "the client gets no cookie");

        let dry = said(&["enable", "--port", &port, "--dry-run"], 0);
        assert_eq!((&dry["listeners"][0]["before"], &dry["listeners"][0]["after"]), (&json!(0), &json!(256)));
        assert_eq!((queues(address), ledgers()), (vec![0], Vec::new()), "nothing is changed");

        let enabled = said(&["enable", "--port", &port, "--queue", "16"], 0);
        let rows = enabled["listeners"].as_array().expect("rows");
        let expected = json!({
            "address": address.to_string(), "process": {"pid": program.id(), "name": rows[0]["process"]["name"]},
            "before": 0, "after": 16, "server": 0, "interfaces": [], "failure": null,
        });
        assert_eq!(rows, &[expected]);
        assert!(enabled["warnings"].to_string().contains("RFC 7413, sections 2.1 and 6.1"), "{enabled}");
        assert_eq!(queues(address), [16]);
        assert_eq!(second_visit(&client, family), (ZERO_RTT, 1));

        let disabled = text(&["disable", "--port", &port]);
        assert!(disabled.ends_with("16 -> off\n"), "{disabled}");
        assert_eq!((queues(address), ledgers()), (vec![0], Vec::new()));
        // The client has its cookie still, and sends its request with it. The server does not take it, as before.
        let after = second_visit(&client, family);
        assert_eq!((after.0.taken, after.1), (false, 0), "{after:?}");
        assert!(text(&["disable", "--port", &port]).starts_with("nothing to undo"));
    });
}

#[test]
fn a_server_in_python() {
    try_with(Family::Ipv4, Program::python);
}

#[test]
fn a_server_in_javascript() {
    try_with(Family::Ipv6, Program::node);
}

#[test]
fn a_server_in_rust() {
    try_with(Family::Ipv4, |address| Program::rust(env!("CARGO_BIN_EXE_echo"), address));
}

/// Returns the text of a service on the port of the server, with `more` lines.
fn service(more: &str) -> String {
    format!("[[service]]\nname = \"web\"\nports = [{}]\n{more}\n", port())
}

#[test]
fn a_service_keeps_it_on_while_its_server_restarts() {
    server_and_client(|client| {
        let file = Config::new(IFACE, &service("fast_open = 16"));
        let first = Program::python(address());
        let running = file.run();
        eventually("it is on", || queues(address()) == [16]);
        assert_eq!(second_visit(&client, Family::Ipv4), (ZERO_RTT, 1));
        drop(first);
        let second = Program::python(address());
        eventually("it is on again", || queues(address()) == [16]);
        assert_eq!(second_visit(&client, Family::Ipv4), (ZERO_RTT, 1));

        file.write(&service(""));
        text(&["reload"]);
        eventually("a reload without the line undoes it", || queues(address()) == [0]);
        assert!(!second_visit(&client, Family::Ipv4).0.taken);
        assert_eq!(ledgers(), Vec::<PathBuf>::new());
        file.write(&service("fast_open = 32"));
        assert!(text(&["reload"]).ends_with("; Fast Open kept on for 1 service\n"));
        eventually("a reload with the line does it", || queues(address()) == [32]);
        drop(second);

        let log = running.end(Signal::SIGTERM);
        assert!(log.contains("Fast Open is on, with a queue of 16 (its server asked for 0)"), "{log}");
        assert!(log.contains("Fast Open is off again, since its server does not ask for it"), "{log}");
    });
}

/// A reload with a mistake changes nothing.
#[test]
fn a_change_that_fails_leaves_listeners_as_they_are() {
    server_and_client(|_client| {
        let file = Config::new(IFACE, &service("fast_open = 16"));
        let _listener = Listener::on(&address().to_string()).held();
        let running = file.run();
        eventually("it is on", || queues(address()) == [16]);
        file.write("nonsense");
        assert_eq!(tfo(&["reload"]).status.code(), Some(1));
        let _new = Listener::on("127.0.0.1:7413").held();
        eventually("it is followed still", || queues("127.0.0.1:7413".parse().unwrap()) == [16]);
        assert_eq!(queues(address()), [16]);
        running.end(Signal::SIGINT);
        assert_eq!(queues(address()), [0]);
    });
}

/// A queue outlives the controller, as its program does, and goes with it.
#[test]
fn it_stays_on_until_somebody_takes_it_back() {
    server_and_client(|_client| {
        let with = Config::new(IFACE, &service("fast_open = 16"));
        let without = Config::new(IFACE, &service(""));
        let _listener = Listener::on(&address().to_string()).held();
        let is = |queue| eventually(&format!("the queue is {queue}"), || queues(address()) == [queue]);
        let run = |file: &Config| {
            let running = file.run();
            is(16);
            running
        };
        run(&with).end(Signal::SIGTERM);
        assert_eq!(queues(address()), [16], "after SIGTERM");
        run(&with).kill();
        assert_eq!(queues(address()), [16], "after a crash");
        text(&["unload"]);
        assert_eq!(queues(address()), [0], "after an unload without a controller");

        let running = run(&with);
        text(&["unload"]);
        is(0);
        drop(running);
        run(&with).end(Signal::SIGINT);
        assert_eq!(queues(address()), [0], "after Ctrl-C");
        assert_clean(IFACE);

        // A listener that comes while nobody looks, and a line that goes.
        run(&with).kill();
        let other: SocketAddr = "127.0.0.1:7413".parse().unwrap();
        let _other = Listener::on(&other.to_string()).held();
        let running = run(&with);
        eventually("both are on", || queues(other) == [16]);
        running.kill();
        let running = without.run();
        is(0);
        eventually("both are off", || queues(other) == [0]);
        running.end(Signal::SIGINT);
        assert_eq!(ledgers(), Vec::<PathBuf>::new());
    });
}

/// Listeners are of the network namespace: an interface that goes away undoes nothing, and one that comes back does not do it
/// twice.
#[test]
fn an_interface_that_comes_back_changes_no_listener() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        ip("link set lo up");
        let at: SocketAddr = "127.0.0.1:7413".parse().unwrap();
        let _asked = Listener::on(&at.to_string()).fast_open(4).held();
        let running = Config::new("v0", &service("fast_open = 16")).run();
        eventually("it is on", || queues(at) == [16]);
        ip("link delete v0");
        eventually("it is noticed", || status("v0")["attached"] == false);
        let other: SocketAddr = "127.0.0.2:7413".parse().unwrap();
        let _other = Listener::on(&other.to_string()).held();
        eventually("a new listener gets it without the interface", || queues(other) == [16]);
        assert_eq!(queues(at), [16]);
        ip("link add v0 type veth peer name v1");
        eventually("the interface is back", || tfo(&["status", "-i", "v0"]).status.success());
        assert_eq!((queues(at), queues(other)), (vec![16], vec![16]));
        running.end(Signal::SIGINT);
        assert_eq!((queues(at), queues(other)), (vec![4], vec![0]), "as their servers made them");
        assert_eq!(ledgers(), Vec::<PathBuf>::new());
    });
}

#[test]
fn each_member_of_a_group_is_changed() {
    sandbox(|| {
        ip("link set lo up");
        write_mode(CLIENT | SERVER).unwrap();
        let group: Vec<Holder> = (0..3).map(|_| Listener::shared("127.0.0.1:80").held()).collect();
        let other = Listener::shared("127.0.0.1:81").held();
        let at = |address: &str| queues(address.parse().unwrap());
        let enabled = said(&["enable", "--port", "80"], 0);
        assert_eq!(enabled["listeners"].as_array().map(Vec::len), Some(3), "{enabled}");
        assert_eq!((at("127.0.0.1:80"), at("127.0.0.1:81")), (vec![256; 3], vec![0]));
        said(&["enable", "--port", "81", "--queue", "8"], 0);
        said(&["disable", "--port", "80"], 0);
        assert_eq!((at("127.0.0.1:80"), at("127.0.0.1:81")), (vec![0; 3], vec![8]), "one port at a time");
        // The ledger forgets what is gone.
        drop(other);
        eventually("the listener is gone", || at("127.0.0.1:81").is_empty());
        said(&["disable", "--port", "81"], 0);
        assert_eq!(ledgers(), Vec::<PathBuf>::new());
        drop(group);
    });
}

#[test]
fn what_a_server_asked_for_is_never_lowered() {
    sandbox(|| {
        ip("link set lo up");
        write_mode(CLIENT | SERVER).unwrap();
        let _more = Listener::on("127.0.0.1:80").fast_open(512).held();
        let _one = Listener::on("127.0.0.2:80").fast_open(1).held();
        let at = |address: &str| queues(address.parse().unwrap());
        let both = || [at("127.0.0.1:80"), at("127.0.0.2:80")].concat();
        let enabled = text(&["enable", "--port", "80"]);
        let lines: Vec<_> = enabled.lines().collect();
        assert_eq!(lines[0], "127.0.0.1:80 (sleep): 512, as it was (its server asked for 512)");
        let one = "127.0.0.2:80 (sleep): 1 -> 256 (its server asked for 1: one connection in its handshake turns Fast Open off \
                   for all others)";
        assert_eq!(lines[1], one);
        assert_eq!(both(), [512, 256]);
        // A shorter one than before, but not than the server's.
        text(&["enable", "--port", "80", "--queue", "20"]);
        assert_eq!(both(), [512, 20]);
        text(&["disable", "--port", "80"]);
        assert_eq!(both(), [512, 1]);
        fs::write("/proc/sys/net/core/somaxconn", "64").expect("a namespace of our own");
        let cut = text(&["enable", "--port", "80"]);
        assert!(cut.contains("1 -> 64") && cut.contains("net.core.somaxconn is 64"), "{cut}");
        assert_eq!(both(), [512, 64]);
    });
}

/// Wishes of an operator and of a configuration hold both, and neither takes the other's back.
#[test]
fn two_who_want_it_do_not_disturb_each_other() {
    server_and_client(|_client| {
        let file = Config::new(IFACE, &service("fast_open = 16"));
        let _listener = Listener::on(&address().to_string()).fast_open(4).held();
        let running = file.run();
        eventually("it is on", || queues(address()) == [16]);
        text(&["enable", "--port", &port(), "--queue", "32"]);
        assert_eq!(queues(address()), [32]);
        let disabled = text(&["disable", "--port", &port()]);
        let kept = format!(
            "32 -> 16 (its server asked for 4); the configuration of {IFACE} keeps it on: take fast_open out"
        );
        assert!(disabled.contains(&kept), "{disabled}");
        assert_eq!(queues(address()), [16]);
        text(&["enable", "--port", &port(), "--queue", "8"]);
        running.end(Signal::SIGINT);
        assert_eq!(queues(address()), [8], "what the operator wants stays");
        text(&["disable", "--port", &port()]);
        assert_eq!(queues(address()), [4]);
    });
}

#[test]
fn other_namespaces_are_left_alone() {
    sandbox(|| {
        write_mode(CLIENT | SERVER).unwrap();
        let other = Namespace::new().unwrap();
        let _there = other.run(|| Ok(Listener::on("0.0.0.0:80").held())).unwrap();
        let nobody = said(&["enable", "--port", "80"], 1);
        assert_eq!(nobody["listeners"], json!([]));
        let expected = "nobody listens on port 80 in this network namespace";
        assert_eq!(nobody["warnings"], json!([expected]));
        other
            .run(|| {
                assert_eq!(queues("0.0.0.0:80".parse().unwrap()), [0]);
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn a_listener_for_multipath_tcp_is_changed_too() {
    sandbox(|| {
        ip("link set lo up");
        write_mode(CLIENT | SERVER).unwrap();
        let _held = Listener::multipath("127.0.0.1:80").held();
        said(&["enable", "--port", "80", "--queue", "9"], 0);
        assert_eq!(queues("127.0.0.1:80".parse().unwrap()), [9]);
        said(&["disable", "--port", "80"], 0);
        assert_eq!(queues("127.0.0.1:80".parse().unwrap()), [0]);
    });
}

#[test]
fn what_cannot_be_changed_is_said_once_and_costs_no_packet() {
    server_and_client(|client| {
        let file = Config::new(IFACE, &service("fast_open = 16"));
        let _program = Program::python(address());
        let why = "it takes CAP_SYS_PTRACE";
        let running = fault::with_call(libc::SYS_pidfd_getfd, Fault::Fails(libc::EPERM), || {
            let failed = said(&["enable", "--port", &port()], 1);
            let row = &failed["listeners"][0];
            assert!(row["failure"].as_str().expect("a reason").contains(why), "{row}");
            assert_eq!((&row["before"], &row["after"]), (&Value::Null, &Value::Null));
            assert_eq!(ledgers(), Vec::<PathBuf>::new());
            file.run()
        });
        for _ in 0..3 {
            assert_eq!(visit(&client, Family::Ipv4), Visit { sent: 0, taken: false });
        }
        eventually("they are counted", || Counts::of(IFACE).total() == 3);
        let log = running.end(Signal::SIGINT);
        let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(why), "{log}");
        assert!(warnings[0].contains("docs/enable.md"), "{log}");
    });
}

#[test]
fn listeners_without_it_are_pointed_out() {
    server_and_client(|_client| {
        let file = Config::new(IFACE, &service(""));
        let _off = Listener::on(&address().to_string()).held();
        let _one = Listener::on("127.0.0.1:7413").fast_open(1).held();
        let check = || text(&["check", "--config", &file.path()]);
        let checked = check();
        for (what, at) in [
            ("no Fast Open", address().to_string()),
            ("only one Fast Open connection may be in its handshake", "127.0.0.1:7413".to_owned()),
        ] {
            let hint = format!(
                "\nwarning: service web: {what} on {at} (sleep): let the server ask for a longer queue"
            );
            assert!(checked.contains(&hint), "{hint}: {checked}");
        }
        file.write(&service("fast_open = 16"));
        assert!(!check().contains("warning"), "tfo will see to it");
        let warning = |row: usize| said(&["listeners"], 0)["listeners"][row]["warning"].to_string();
        assert!(warning(0).contains("a queue of 1: one connection in its handshake turns Fast Open off"));
        assert!(warning(1).contains("off: the server does not set TCP_FASTOPEN (`tfo enable` can)"));
    });
}

#[test]
fn only_root_may_change_listeners() {
    sandbox(|| {
        for command in ["enable", "disable"] {
            let expected = "error: only root may change the listeners of other processes: run it with sudo\n";
            assert_eq!(failure(&tfo_as_nobody(&[command, "--port", "80"])), (Some(1), expected.to_owned()));
        }
        assert!(!Path::new(FOLDER).exists());
        for wrong in
            [&["enable"][..], &["enable", "--port", "0"], &["enable", "--port", "80", "--queue", "0"]]
        {
            assert_eq!(tfo(wrong).status.code(), Some(2), "{wrong:?}");
        }
    });
}

#[test]
fn a_ledger_of_another_version_is_refused() {
    sandbox(|| {
        ip("link set lo up");
        let _held = Listener::on("127.0.0.1:80").held();
        text(&["enable", "--port", "80"]);
        let ledger = ledgers().remove(0);
        let new = fs::read_to_string(&ledger).unwrap().replace("\"version\":1", "\"version\":2");
        fs::write(&ledger, &new).unwrap();
        let (code, error) = failure(&tfo(&["disable", "--port", "80"]));
        let expected = "is of version 2, and this tfo reads version 1: move it away";
        assert!(code == Some(1) && error.contains(expected), "{error}");
        assert_eq!(queues("127.0.0.1:80".parse().unwrap()), [256]);
        // It keeps tfo from nothing else.
        ip("link add v0 type veth peer name v1");
        let log = Running::start(&["-i", "v0"]).end(Signal::SIGINT);
        assert!(log.contains(expected), "{log}");
        assert_eq!(fs::read_to_string(&ledger).unwrap(), new, "it is left as it is");
    });
}
