//! Multipath TCP (RFC 8684) with Fast Open, at either end or both: the SYN has one more option, and the connection that the
//! program holds is not the TCP socket. tfo counts what the kernel does, and nothing is lost.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

use socket2::{Domain, Protocol, Socket, Type};
use tfo_common::{class::Class, segment::Family, verdict::Verdict};
use tfo_tests::{
    config::Config,
    listener::Listener,
    netns::{Counts, IFACE, PATIENCE, eventually, key, server_and_client, set_keys},
    wire::{Seen, Wire},
};
use tfo_userspace::{
    kernel::tcp_ext::TcpExt,
    lab::net::{Namespace, SERVERS},
};

/// Kind of the options of Multipath TCP (RFC 8684, section 3).
const MULTIPATH: u8 = 30;
/// Length of what a client sends: more than fits into its SYN.
const LEN: usize = 50_000;

const OBSERVED: &str = "[[service]]\nname = \"web\"\nports = [7413]\n";
/// All protections, none of which has a reason to act but `clamp`.
const PROTECTED: &str = "[[service]]\nname = \"web\"\nports = [7413]\nmode = \"shield\"\nonce = true\n\
                         fair = { limit = \"1000/s\" }\nclamp = true\nshed = { limit = \"1000/s\", drop = true }\n\
                         answer = true\n";

/// Kind of TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Multipath,
}

/// The kernel's counters of Multipath TCP, of the calling thread's namespace.
fn multipath_counters() -> HashMap<String, u64> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("MPTcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let names = names.split(' ').map(str::to_owned);
    names.zip(values.split(' ').map(|value| value.parse().unwrap())).collect()
}

/// Opens a listening socket of `kind` with Fast Open.
fn listen(kind: Kind, at: SocketAddr) -> TcpListener {
    let listener = match kind {
        Kind::Tcp => Listener::on(&at.to_string()),
        Kind::Multipath => Listener::multipath(&at.to_string()),
    };
    let listener = listener.fast_open(64).listen();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// Sends back everything until the client closes.
fn echo(mut connection: TcpStream) {
    connection.set_nonblocking(false).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut received = Vec::new();
    connection.read_to_end(&mut received).unwrap();
    connection.write_all(&received).unwrap();
}

/// Connects from the client's namespace with Fast Open, sends `LEN` bytes, and checks that `listener` gets them and that they
/// come back.
fn connect(client: &Namespace, kind: Kind, listener: &TcpListener) {
    let data: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
    let to = listener.local_addr().unwrap();
    let family = if to.is_ipv6() { Family::Ipv6 } else { Family::Ipv4 };
    let protocol = match kind {
        Kind::Tcp => Protocol::TCP,
        Kind::Multipath => Protocol::MPTCP,
    };
    let visit = || -> anyhow::Result<Vec<u8>> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
        let sent = socket.send_to_with_flags(&data, &to.into(), libc::MSG_FASTOPEN)?;
        let mut connection = TcpStream::from(socket);
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(&data[sent..])?;
        connection.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = thread::scope(|scope| {
        let visitor = scope.spawn(|| client.run(visit));
        let mut accepted = None;
        eventually("the client comes", || {
            accepted = listener.accept().ok();
            // The client ends only after its answer. Its error is shown below.
            accepted.is_some() || visitor.is_finished()
        });
        if let Some((connection, _)) = accepted {
            echo(connection);
        }
        visitor.join().unwrap().unwrap()
    });
    assert!(answer == data, "{kind:?} {family}: what comes back is something else");
}

/// Returns whether the option of Multipath TCP is in `seen`.
fn is_multipath(seen: &Seen) -> bool {
    let mut rest = &seen.options[..];
    while let [kind, after @ ..] = rest
        && *kind != 0
    {
        if *kind == MULTIPATH {
            return true;
        }
        rest = &rest[if *kind == 1 { 1 } else { usize::from(after[0]) }..];
    }
    false
}

/// Connects under every key that matters, and compares tfo's counts with the kernel's.
fn check(client_kind: Kind, server_kind: Kind, service: &str) {
    server_and_client(|client| {
        let listeners = SERVERS.map(|server| listen(server_kind, server));
        let before = (TcpExt::read().unwrap(), multipath_counters());
        let _tfo = Config::new(IFACE, service).run();
        // Beyond the program, as the kernel gets them, and on the way back.
        let wire = Wire::at(IFACE);
        let what = format!("client {client_kind:?}, server {server_kind:?}");
        for (family, listener) in Family::ALL.iter().zip(&listeners) {
            set_keys(IFACE, key(1), None);
            for (class, with_data, taken) in [
                (Class::CookieRequest, 0, false),
                (Class::CookieCurrent, 1, true),
                (Class::CookieBackup, 1, true),
                (Class::CookieCurrent, 2, true),
            ] {
                if class == Class::CookieBackup {
                    set_keys(IFACE, key(2), Some(key(1)));
                }
                let active = client.run(TcpExt::read).unwrap().active;
                connect(&client, client_kind, listener);
                let tally = Counts::of(IFACE).syn(*family, class);
                assert_eq!(tally.with_data, with_data, "{what}, {family} {class}: data in the SYN");
                let active = client.run(TcpExt::read).unwrap().active - active;
                assert_eq!(active, u64::from(taken), "{what}, {family} {class}: it was taken at 0-RTT");
            }
        }
        let counts = Counts::of(IFACE);
        counts.assert_agree(before.0);
        assert_eq!(counts.total(), 8, "no SYN was sent twice");
        assert_eq!(counts.total_of(Verdict::Pass), 8);

        let seen = std::iter::from_fn(|| wire.seen()).filter_map(|frame| Seen::of(&frame));
        let (answers, syns): (Vec<_>, Vec<_>) = seen.filter(|seen| seen.syn).partition(|seen| seen.ack);
        assert_eq!((syns.len(), answers.len()), (8, 8), "{what}");
        let both = client_kind == Kind::Multipath && server_kind == Kind::Multipath;
        for syn in syns {
            assert_eq!(is_multipath(&syn), client_kind == Kind::Multipath, "{what}: {syn:?}");
            assert!(syn.has_fast_open(), "{what}: {syn:?}");
        }
        let accepted = multipath_counters()["MPCapableACKRX"] - before.1["MPCapableACKRX"];
        let asked = multipath_counters()["MPCapableSYNRX"] - before.1["MPCapableSYNRX"];
        println!(
            "{what}: {} SYN-ACKs of 8 with Multipath TCP; {asked} MPCapableSYNRX, {accepted} MPCapableACKRX",
            answers.iter().filter(|answer| is_multipath(answer)).count()
        );
        assert_eq!(answers.iter().all(is_multipath), both, "{what}: {answers:?}");
    });
}

#[test]
fn observed() {
    for client in [Kind::Multipath, Kind::Tcp] {
        for server in [Kind::Multipath, Kind::Tcp] {
            check(client, server, OBSERVED);
        }
    }
}

#[test]
fn protected() {
    for client in [Kind::Multipath, Kind::Tcp] {
        for server in [Kind::Multipath, Kind::Tcp] {
            check(client, server, PROTECTED);
        }
    }
}

/// A cookie of a key that the kernel no longer holds is translated beside the option of Multipath TCP.
#[test]
fn translated() {
    server_and_client(|client| {
        let listeners = SERVERS.map(|server| listen(Kind::Multipath, server));
        let service = "[[service]]\nname = \"web\"\nports = [7413]\nmode = \"accelerate\"\n";
        let _tfo = Config::new(IFACE, service).run();
        set_keys(IFACE, key(1), None);
        listeners.iter().for_each(|listener| connect(&client, Kind::Multipath, listener));
        set_keys(IFACE, key(2), Some(key(1)));
        set_keys(IFACE, key(3), Some(key(2)));
        let before = TcpExt::read().unwrap();
        listeners.iter().for_each(|listener| connect(&client, Kind::Multipath, listener));
        assert_eq!(Counts::of(IFACE).verdict(Class::CookieRetired, Verdict::Rewrite), 2);
        let kernel = TcpExt::read().unwrap() - before;
        assert_eq!((kernel.passive, kernel.passive_alt_key), (2, 2));
    });
}
