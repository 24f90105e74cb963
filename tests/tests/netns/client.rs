//! Connections from here: each end that their Fast Open can take, made by real kernels on both sides.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
};

use nix::{setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tfo_common::{client::DESTINATIONS, segment::Family};
use tfo_tests::netns::{Counts, Running, eventually, ip, key, server_and_client, status, tfo};
use tfo_userspace::{
    kernel::{
        sysctl::{KeySysctl, write_mode},
        tcp_ext::TcpExt,
    },
    lab::{
        client::fast_open,
        net::{CLIENT_INTERFACE, Namespace, SERVERS, server, source},
        server::Listeners,
    },
};

/// Data that makes a SYN longer than any without data.
const DATA: &[u8] = &[b'x'; 200];

/// Starts tfo at the client's end.
fn start(client: &Namespace, args: &[&str]) -> Running {
    let args = [&["-i", CLIENT_INTERFACE], args].concat();
    client.run(|| Ok(Running::start(&args))).expect("the client's namespace")
}

/// Connects to the server as client `number`, with Fast Open and data.
fn connect(client: &Namespace, family: Family, number: u16) {
    connect_to(client, source(family, number), server(family));
}

fn connect_to(client: &Namespace, from: IpAddr, to: SocketAddr) {
    client.run(|| fast_open(from, to, DATA)).expect("the data comes back");
}

/// Returns what tfo has counted.
fn counted() -> Value {
    Counts::of(CLIENT_INTERFACE).field("client").clone()
}

/// Returns granted, withheld, accepted, refused, lost and paused connections in `row`.
fn numbers(row: &Value) -> [u64; 6] {
    ["granted", "withheld", "accepted", "refused", "lost", "paused"]
        .map(|name| row[name].as_u64().expect("a number"))
}

/// Returns these numbers for all connections of `family`.
fn of(family: Family) -> [u64; 6] {
    let client = counted();
    let rows = client["families"].as_array().expect("they are followed");
    rows.iter().find(|row| row["family"] == family.name()).map_or([0; 6], numbers)
}

/// Panics unless the numbers of `family` are these. The kernel counts before it lets the server's data through.
fn expect(family: Family, what: &str, expected: [u64; 6]) {
    assert_eq!(of(family), expected, "{family}: {what}");
}

/// Returns the kernel's counters in the client's namespace.
fn kernel(client: &Namespace) -> TcpExt {
    client.run(TcpExt::read).expect("TcpExt")
}

/// Runs nft in the calling thread's namespace.
fn nft(args: &str) {
    let status = Command::new("nft").args(args.split(' ')).status().expect("nftables is installed");
    assert!(status.success(), "nft {args}: {status}");
}

/// Drops SYNs that match `also` at the server, until it is dropped.
struct Eaten;

impl Eaten {
    fn new(also: &str) -> Self {
        nft("add table inet eater");
        nft("add chain inet eater in { type filter hook prerouting priority raw ; }");
        nft(&format!("add rule inet eater in tcp flags & (syn | ack) == syn {also}drop"));
        Self
    }

    /// Eats SYNs that are longer than those without data: both headers have 80 bytes at most over IPv4, and 100 over IPv6.
    fn with_data() -> Self {
        Self::new("meta length > 120 ")
    }
}

impl Drop for Eaten {
    fn drop(&mut self) {
        nft("delete table inet eater");
    }
}

/// Writes a sysctl of the calling thread's namespace.
fn sysctl(name: &str, value: &str) -> anyhow::Result<()> {
    Ok(fs::write(format!("/proc/sys/net/ipv4/{name}"), value)?)
}

/// A cookie is asked for and held; its key goes; the server has no Fast Open; the way eats SYNs with data.
#[test]
fn each_end_is_counted_as_the_kernel_counts_it() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let keys = KeySysctl::open().unwrap();
        keys.write(key(1), None).unwrap();
        let _tfo = start(&client, &[]);
        let before = kernel(&client);
        for family in [Family::Ipv4, Family::Ipv6] {
            keys.write(key(1), None).unwrap();
            write_mode(3).unwrap();
            connect(&client, family, 1);
            expect(family, "it asks and gets a cookie", [1, 0, 0, 0, 0, 0]);
            connect(&client, family, 1);
            connect(&client, family, 1);
            expect(family, "it has a cookie", [1, 0, 2, 0, 0, 0]);

            keys.write(key(2), None).unwrap();
            connect(&client, family, 1);
            expect(family, "the key is gone", [1, 0, 2, 1, 0, 0]);
            connect(&client, family, 1);
            expect(family, "the refusal brought a new cookie", [1, 0, 3, 1, 0, 0]);
            keys.write(key(3), Some(key(2))).unwrap();
            connect(&client, family, 1);
            expect(family, "the key is the backup", [1, 0, 4, 1, 0, 0]);

            write_mode(0).unwrap();
            connect(&client, family, 1);
            expect(family, "the server has no Fast Open any more", [1, 0, 4, 2, 0, 0]);
            connect(&client, family, 2);
            expect(family, "a client without a cookie gets none", [1, 1, 4, 2, 0, 0]);
            write_mode(3).unwrap();
            // After an answer without a cookie, Linux asks by the experimental option (`tcp_fastopen_cache_set`).
            connect(&client, family, 2);
            expect(family, "the experimental option", [2, 1, 4, 2, 0, 0]);
            connect(&client, family, 2);
            expect(family, "its cookie is used", [2, 1, 5, 2, 0, 0]);

            let eaten = Eaten::with_data();
            connect(&client, family, 1);
            expect(family, "the way eats the data", [2, 1, 5, 2, 1, 0]);
            drop(eaten);
        }

        let since = kernel(&client) - before;
        assert_eq!((since.active, since.active_fail), (10, 6), "accepted, and refused with lost");
        let counted = counted();
        assert_eq!(counted["rtt_saved"]["connections"], 10);
        // The kernel repeats a SYN after a second (RFC 6298, 2.1).
        assert!(counted["lost_seconds"].as_f64() > Some(2.0), "{counted}");
        let networks: Vec<_> = counted["destinations"].as_array().unwrap().iter().collect();
        let expected = [("198.18.0.0/24", 7413), ("2001:db8::/48", 7413)];
        assert_eq!(networks.len(), expected.len(), "{networks:?}");
        for (network, port) in expected {
            let found = networks.iter().find(|row| row["network"] == network && row["port"] == port);
            assert_eq!(numbers(found.unwrap()), [2, 1, 5, 2, 1, 0]);
        }
        let text = String::from_utf8(tfo(&["counters", "-i", CLIENT_INTERFACE]).stdout).unwrap();
        let sentence = "Fast Open from here: 6 asked for a cookie, and 4 got one; 16 sent data with the SYN: 10 accepted, 4 \
                        refused, 2 lost. It saved ";
        assert!(text.contains(sentence), "{text}");
        assert!(text.lines().any(|line| line.contains("2001:db8::/48") && line.contains("7413")), "{text}");
    });
}

sockopt_impl!(
    /// TCP_FASTOPEN_CONNECT: connect() leaves the SYN to the first write (tcp(7)).
    TcpFastOpenConnect, SetOnly, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, bool
);

/// connect() with TCP_FASTOPEN_CONNECT, and IPv4 by a socket for both families. Ordinary connections are not counted, nor are
/// those of other namespaces.
#[test]
fn every_way_to_ask_for_fast_open_is_seen() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let _tfo = start(&client, &[]);
        let deferred = |to: SocketAddr| {
            client
                .run(|| {
                    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                    setsockopt(&socket, TcpFastOpenConnect, &true)?;
                    socket.connect(&to.into())?;
                    let mut stream = TcpStream::from(socket);
                    stream.write_all(DATA)?;
                    let mut answer = [0; DATA.len()];
                    Ok(stream.read_exact(&mut answer)?)
                })
                .unwrap();
        };
        deferred(server(Family::Ipv6));
        expect(Family::Ipv6, "connect asks", [1, 0, 0, 0, 0, 0]);
        deferred(server(Family::Ipv6));
        expect(Family::Ipv6, "connect waits for data", [1, 0, 1, 0, 0, 0]);
        let IpAddr::V4(v4) = server(Family::Ipv4).ip() else { panic!("it is IPv4") };
        let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), server(Family::Ipv4).port());
        deferred(mapped);
        deferred(mapped);
        expect(Family::Ipv4, "a socket for both families", [1, 0, 1, 0, 0, 0]);

        // Both ends may agree on data without a cookie. Then the SYN has no option.
        client.run(|| write_mode(5)).unwrap();
        write_mode(0x203).unwrap();
        connect(&client, Family::Ipv6, 5);
        expect(Family::Ipv6, "no cookie is needed", [1, 0, 2, 0, 0, 0]);
        client.run(|| write_mode(1)).unwrap();
        write_mode(3).unwrap();

        // No namespace but the client's counts, and no connection that does not want Fast Open.
        fast_open(server(Family::Ipv4).ip(), server(Family::Ipv4), DATA).unwrap();
        client
            .run(|| {
                let stream = TcpStream::connect(server(Family::Ipv4))?;
                drop(stream);
                Ok(())
            })
            .unwrap();
        deferred(mapped);
        expect(Family::Ipv4, "only one more", [1, 0, 2, 0, 0, 0]);
        assert_eq!(kernel(&client).active, 4);
    });
}

/// After losses, the kernel sends SYNs without Fast Open for a while.
#[test]
fn connections_in_a_pause_are_counted() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let _tfo = start(&client, &[]);
        client
            .run(|| {
                sysctl("tcp_fastopen_blackhole_timeout_sec", "3600")?;
                sysctl("tcp_syn_retries", "1")
            })
            .unwrap();
        let family = Family::Ipv4;
        connect(&client, family, 1);
        expect(family, "it has a cookie", [1, 0, 0, 0, 0, 0]);
        let eaten = Eaten::new("");
        client.run(|| Ok(fast_open(source(family, 1), server(family), DATA).unwrap_err())).unwrap();
        drop(eaten);
        assert_eq!(kernel(&client).blackhole, 1);
        connect(&client, family, 1);
        expect(family, "Fast Open is paused", [1, 0, 0, 0, 0, 1]);
        let text = String::from_utf8(tfo(&["counters", "-i", CLIENT_INTERFACE]).stdout).unwrap();
        assert!(text.contains("1 went without, since the kernel pauses Fast Open"), "{text}");
    });
}

/// A controller dies, another takes over with other services, and a reload follows: no count is lost, and connections meanwhile
/// are counted.
#[test]
fn counts_survive_the_controller() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let family = Family::Ipv6;
        let first = start(&client, &[]);
        connect(&client, family, 1);
        connect(&client, family, 1);
        first.kill();
        connect(&client, family, 1);
        expect(family, "without a controller", [1, 0, 2, 0, 0, 0]);
        let second = start(&client, &["--service", "web=443", "--mode", "accelerate"]);
        connect(&client, family, 1);
        expect(family, "after a take-over", [1, 0, 3, 0, 0, 0]);
        second.kill();

        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("tfo.toml");
        let write = |services: &str| {
            fs::write(&config, format!("interfaces = [{CLIENT_INTERFACE:?}]\n{services}")).unwrap();
        };
        write("");
        let path = config.to_str().unwrap();
        let third = client.run(|| {
            let running = Running::spawn(&["--config", path]);
            eventually("it is up", || tfo(&["status", "-i", CLIENT_INTERFACE]).status.success());
            Ok(running)
        });
        let _third = third.unwrap();
        write("[[service]]\nname = \"dns\"\nports = [853]\n");
        let reloaded = client.run(|| Ok(tfo(&["reload"]))).unwrap();
        assert!(reloaded.status.success(), "{reloaded:?}");
        connect(&client, family, 1);
        expect(family, "after a reload", [1, 0, 4, 0, 0, 0]);
        let destinations = counted()["destinations"].clone();
        assert_eq!(destinations.as_array().unwrap().len(), 1, "{destinations}");
        assert_eq!(numbers(&destinations[0]), [1, 0, 4, 0, 0, 0]);
    });
}

/// `tfo check` names the network to which SYNs with data are lost, once three were.
#[test]
fn a_way_that_eats_data_is_named() {
    server_and_client(|client| {
        let other = SocketAddr::new(server(Family::Ipv4).ip(), 7414);
        let _listeners = Listeners::start(&[server(Family::Ipv4), other]).unwrap();
        let check = |name: &str| {
            let output = client.run(|| Ok(tfo(&["check", "--json"]))).unwrap();
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let checks = report["checks"].as_array().unwrap();
            let line = checks.iter().find(|line| line["name"] == name).unwrap();
            ["status", "found"].map(|field| line[field].as_str().unwrap().to_owned())
        };
        assert_eq!(check("client"), ["ok", "not followed: no tfo runs here"]);
        let _tfo = start(&client, &[]);
        let expected = "No connection from here has used Fast Open yet. Cookies held: 0.";
        assert_eq!(check("client"), ["ok", expected]);
        connect(&client, Family::Ipv4, 1);
        let eaten = Eaten::with_data();
        for lost in 1..=3 {
            assert_eq!(check("syn_data")[0], "ok", "{lost}");
            connect_to(&client, source(Family::Ipv4, 1), other);
            expect(Family::Ipv4, "it is lost", [1, 0, 0, 0, lost, 0]);
        }
        drop(eaten);
        let expected = "SYNs with data may not arrive: to 198.18.0.0/24 port 7414, 3 of 3 were lost";
        assert_eq!(check("syn_data"), ["warn", expected]);
        let [_, found] = check("client");
        assert!(
            found.contains("3 lost. It saved nothing, and ") && found.ends_with("Cookies held: 1."),
            "{found}"
        );
        // One that arrives is enough: the others may have been lost by chance.
        connect_to(&client, source(Family::Ipv4, 1), other);
        assert_eq!(check("syn_data")[0], "ok", "it is no longer named");
    });
}

/// More destinations than the map has room for: the totals stay right, and memory stays the same.
#[test]
fn destinations_make_room_for_others() {
    const MANY: usize = DESTINATIONS + 1000;

    server_and_client(|client| {
        ip("route add local 10.0.0.0/8 dev lo");
        let port = server(Family::Ipv4).port();
        let _listeners = Listeners::start(&[format!("0.0.0.0:{port}").parse().unwrap()]).unwrap();
        let _tfo = start(&client, &[]);
        client
            .run(|| {
                ip("route add 10.0.0.0/8 via 198.18.0.1");
                Ok(())
            })
            .unwrap();
        let memory = status(CLIENT_INTERFACE)["map_bytes"].as_u64();
        client
            .run(|| {
                (0..MANY).try_for_each(|n| {
                    let [.., high, low] = (n as u32).to_be_bytes();
                    fast_open(
                        source(Family::Ipv4, 1),
                        SocketAddr::new([10, high, low, 1].into(), port),
                        b"data",
                    )
                })
            })
            .unwrap();
        let client = counted();
        let known = client["destinations"].as_array().unwrap().len();
        assert!(known <= DESTINATIONS && known > DESTINATIONS / 2, "{known} of {MANY}");
        assert_eq!(client["destinations_forgotten"], MANY - known);
        assert_eq!(numbers(&client["families"][0]).iter().sum::<u64>(), MANY as u64);
        assert_eq!(status(CLIENT_INTERFACE)["map_bytes"].as_u64(), memory);
    });
}
