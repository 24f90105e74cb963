//! A balancer that gives each connection to one of several hosts at random, by address translation (nftables), and clients
//! behind it. All are namespaces.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    ops::Range,
    process::{Command, Stdio},
};

use tfo_common::{keyring::Key, segment::Family};
use tfo_userspace::{
    kernel::{
        sysctl::{KeySysctl, write_mode},
        tcp_ext::TcpExt,
    },
    lab::{client::fast_open, net::Namespace, server::Listeners},
};

use crate::{
    config::Config,
    netns::{Running, ip},
};

/// Port of the service.
pub const PORT: u16 = 7413;
/// Addresses that clients connect to. No host has them.
const VIRTUAL: [&str; 2] = ["198.18.0.1", "2001:db8::1"];

/// One of the hosts that serve.
pub struct Host {
    namespace: Namespace,
    /// Number, which its interface and its addresses have.
    number: usize,
    _listeners: Listeners,
}

/// The whole network. The calling thread is in the balancer's namespace.
pub struct Network {
    /// The hosts that serve.
    pub hosts: Vec<Host>,
    client: Namespace,
}

/// Returns the address of host `number`.
fn address(family: Family, number: usize) -> IpAddr {
    let text = match family {
        Family::Ipv4 => format!("10.9.{number}.2"),
        Family::Ipv6 => format!("2001:db8:9:{number}::2"),
    };
    text.parse().expect("an address")
}

/// Returns the address of client `number`.
fn source(family: Family, number: u16) -> IpAddr {
    let text = match family {
        Family::Ipv4 => format!("198.19.{}.{}", number >> 8, number & 0xff),
        Family::Ipv6 => format!("2001:db8:1::{number:x}"),
    };
    text.parse().expect("an address")
}

/// Runs `command` with `input`, and panics if it fails.
fn feed(command: &str, args: &[&str], input: &str) {
    let mut child = Command::new(command).args(args).stdin(Stdio::piped()).spawn().expect("it is installed");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "{command} {args:?}: {input}");
}

/// Writes sysctls of the calling thread's namespace.
fn sysctls(settings: &[(&str, &str)]) {
    for (name, value) in settings {
        let path = format!("/proc/sys/net/{name}");
        std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

impl Network {
    /// Makes a balancer in front of `hosts` hosts, all of which hold `key`, and have Fast Open on.
    pub fn start(hosts: usize, key: Key) -> Self {
        sysctls(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]);
        ip("link set lo up");
        let client = Namespace::new().expect("a namespace");
        join(&client, "client0", ("10.9.100", "2001:db8:9:100:"));
        ip("route add 198.19.0.0/16 via 10.9.100.2");
        ip("route add 2001:db8:1::/112 via 2001:db8:9:100::2");
        let prepare = || {
            prepare_host("client0", "10.9.100.1", "2001:db8:9:100::1");
            ip("route add local 198.19.0.0/16 dev lo");
            ip("route add local 2001:db8:1::/112 dev lo");
            Ok(())
        };
        client.run(prepare).expect("the client's namespace");
        let hosts: Vec<_> = (0..hosts).map(|number| Host::start(number, key)).collect();
        let [v4, v6] = [Family::Ipv4, Family::Ipv6].map(|family| {
            let map: Vec<_> =
                (0..hosts.len()).map(|number| format!("{number} : {}", address(family, number))).collect();
            map.join(", ")
        });
        let n = hosts.len();
        feed(
            "nft",
            &["-f", "-"],
            &format!(
                "table inet balancer {{\nchain in {{\ntype nat hook prerouting priority dstnat\n                 ip daddr {} tcp dport {PORT} dnat ip to numgen random mod {n} map {{ {v4} }}\n                 ip6 daddr {} tcp dport {PORT} dnat ip6 to numgen random mod {n} map {{ {v6} }}\n}}\n}}\n",
                VIRTUAL[0], VIRTUAL[1]
            ),
        );
        Self { hosts, client }
    }

    /// Has each client with a number in `clients` connect to the virtual address, twice in a row. Returns how many of them the
    /// hosts have served at once when they came back, from the data in the SYN.
    ///
    /// A client must not have been here before. The kernel remembers cookies of six clients at one address, since the place
    /// in its table depends on the server's only (`tcp_get_metrics`).
    pub fn visit(&self, family: Family, clients: Range<u16>) -> u64 {
        self.visit_at(family, clients, SocketAddr::new(VIRTUAL[family.index()].parse().expect("one"), PORT))
    }

    /// Has clients connect as [`visit`](Self::visit) does, to `port` of host `number` itself.
    pub fn visit_host(&self, family: Family, clients: Range<u16>, number: usize, port: u16) -> u64 {
        self.visit_at(family, clients, SocketAddr::new(address(family, number), port))
    }

    fn visit_at(&self, family: Family, clients: Range<u16>, to: SocketAddr) -> u64 {
        let before = self.served();
        let connect =
            || clients.flat_map(|n| [n; 2]).try_for_each(|n| fast_open(source(family, n), to, b"request"));
        self.client.run(connect).expect("every client is served");
        self.served() - before
    }

    /// Returns the number of connections that began with Fast Open, on all hosts.
    fn served(&self) -> u64 {
        self.hosts.iter().map(|host| host.run(|| TcpExt::read().expect("TcpExt").passive)).sum()
    }
}

impl Host {
    fn start(number: usize, key: Key) -> Self {
        let namespace = Namespace::new().expect("a namespace");
        let interface = interface(number);
        let (v4, v6) = (format!("10.9.{number}"), format!("2001:db8:9:{number}:"));
        join(&namespace, &interface, (&v4, &v6));
        let listeners = namespace.run(|| {
            prepare_host(&interface, &format!("{v4}.1"), &format!("{v6}:1"));
            KeySysctl::open()?.write(key, None)?;
            Listeners::start(
                &[Family::Ipv4, Family::Ipv6].map(|family| SocketAddr::new(address(family, number), PORT)),
            )
        });
        Self { namespace, number, _listeners: listeners.expect("the host's namespace") }
    }

    /// Returns the name of its interface.
    pub fn interface(&self) -> String {
        interface(self.number)
    }

    /// Runs `work` in its namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(|| Ok(work())).expect("the host's namespace")
    }

    /// Starts `tfo run` on it, with `config`.
    pub fn tfo(&self, config: &Config) -> Running {
        self.run(|| config.run())
    }
}

fn interface(number: usize) -> String {
    format!("host{number}")
}

/// Joins `namespace` to the calling thread's by a veth pair, with `interface` at its end. Our end has the addresses `.1`, and
/// its end `.2`.
fn join(namespace: &Namespace, interface: &str, (v4, v6): (&str, &str)) {
    let ours = format!("to-{interface}");
    ip(&format!("link add {ours} type veth peer name {interface}"));
    // Moved by a process in it, since the namespace has no name.
    let holder = namespace.run(|| Ok(Command::new("sleep").arg("60").spawn()?)).expect("a process in it");
    let mut holder = holder;
    ip(&format!("link set {interface} netns {}", holder.id()));
    holder.kill().expect("it runs");
    holder.wait().expect("it ends");
    ip(&format!("address add {v4}.1/24 dev {ours}"));
    ip(&format!("address add {v6}:1/64 dev {ours} nodad"));
    ip(&format!("link set {ours} up"));
    // Frames that arrive at the other end have complete checksums, as from a wire.
    let status = Command::new("ethtool").args(["-K", &ours, "tx", "off"]).stdout(Stdio::null()).status();
    assert!(status.expect("ethtool is installed").success());
    let (v4, v6, interface) = (v4.to_owned(), v6.to_owned(), interface.to_owned());
    namespace
        .run(|| {
            ip("link set lo up");
            ip(&format!("address add {v4}.2/24 dev {interface}"));
            ip(&format!("address add {v6}:2/64 dev {interface} nodad"));
            ip(&format!("link set {interface} up"));
            Ok(())
        })
        .expect("the namespace");
}

/// Sets up the calling thread's namespace, whose `interface` leads to these gateways.
fn prepare_host(interface: &str, v4: &str, v6: &str) {
    write_mode(3).expect("Fast Open for clients and servers");
    sysctls(&[
        ("ipv4/tcp_fastopen_blackhole_timeout_sec", "0"),
        ("ipv4/tcp_max_syn_backlog", "65536"),
        ("core/somaxconn", "65536"),
    ]);
    ip(&format!("route add default via {v4} dev {interface}"));
    ip(&format!("-6 route add default via {v6} dev {interface}"));
}
