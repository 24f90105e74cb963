//! Frames that tfo does not follow and the kernel serves, against each protection: with `unfollowed = "pass"` they pass by
//! it, with `unfollowed = "drop"` nothing of them reaches the server. Frames of others are not dropped.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tfo_common::{cookie, parse::LinkLayer, segment::Family};
use tfo_tests::{
    config::Config,
    listener::Listener,
    netns::{Counts, Running, eventually, ip, key, sandbox, tfo},
    packet::{Carry as _, Eth, Ip, MORE_FRAGMENTS, Tcp, eth, flag, protocol},
    scrape::{ADDRESS, Samples},
    server::Server,
    tap::Tap,
    wire::Seen,
};
use tfo_userspace::{
    kernel::{
        sysctl::{KeySysctl, write_mode},
        tcp_ext::TcpExt,
    },
    model::keys::addresses,
};

const PORT: u16 = 7413;
const NIC: &str = "nic0";
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
/// Sequence number of the SYNs, which is the builder's default.
const ISN: u32 = 0x0102_0304;
/// Length of the server's answer, in bytes.
const ANSWER: usize = 5000;

/// Way to send a SYN: its frames, in their order.
type Way = fn(&Attack) -> Vec<Vec<u8>>;

/// Ways that tfo does not follow.
const UNFOLLOWED: &[(&str, Family, Way)] = &[
    ("8 bytes, then the rest", Family::Ipv4, |syn| syn.cut_at(8)),
    ("the rest, then 8 bytes", Family::Ipv4, |syn| reversed(syn.cut_at(8))),
    ("24 bytes, then the rest", Family::Ipv4, |syn| syn.cut_at(24)),
    ("the rest, then 24 bytes", Family::Ipv4, |syn| reversed(syn.cut_at(24))),
    ("36 bytes, of which the kernel keeps 32, then the rest", Family::Ipv4, Attack::with_another_tail),
    ("8 bytes in VLAN 0, then the rest", Family::Ipv4, |syn| syn.in_vlan_0(1).cut_at(8)),
    ("24 bytes, then the rest", Family::Ipv6, |syn| syn.cut_at(24)),
    ("the rest, then 24 bytes", Family::Ipv6, |syn| reversed(syn.cut_at(24))),
    ("24 bytes behind an option, then the rest", Family::Ipv6, |syn| syn.behind(1).cut_at(24)),
    ("17 headers of options", Family::Ipv6, |syn| syn.behind(17).whole()),
    ("140 headers of options", Family::Ipv6, |syn| syn.behind(140).whole()),
];

/// Ways with many headers, which tfo follows.
const FOLLOWED: &[(&str, Family, Way)] = &[
    ("7 headers of options", Family::Ipv6, |syn| syn.behind(7).whole()),
    ("8 headers of options", Family::Ipv6, |syn| syn.behind(8).whole()),
    ("16 headers of options", Family::Ipv6, |syn| syn.behind(16).whole()),
    ("3 tags of VLAN 0", Family::Ipv4, |syn| syn.in_vlan_0(3).whole()),
    ("4 tags of VLAN 0", Family::Ipv4, |syn| syn.in_vlan_0(4).whole()),
    ("100 tags of VLAN 0", Family::Ipv4, |syn| syn.in_vlan_0(100).whole()),
    ("3 tags of VLAN 0", Family::Ipv6, |syn| syn.in_vlan_0(3).whole()),
    ("4 tags of VLAN 0", Family::Ipv6, |syn| syn.in_vlan_0(4).whole()),
    ("the header in a first fragment", Family::Ipv4, |syn| syn.cut_at(200)),
    ("the header in a first fragment", Family::Ipv6, |syn| syn.cut_at(200)),
];

fn reversed(mut frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    frames.reverse();
    frames
}

/// SYN of an attacker, with the headers in front of it.
#[derive(Clone)]
struct Attack {
    source: IpAddr,
    port: u16,
    to: u16,
    cookie: [u8; 8],
    data: Vec<u8>,
    tags: usize,
    options: usize,
}

impl Attack {
    /// Returns a SYN to the server with a good cookie, from the source `number`.
    fn new(family: Family, number: u16) -> Self {
        let (source, server): (IpAddr, IpAddr) = match family {
            Family::Ipv4 => (Ipv4Addr::from_bits(0x0a0a_0000 | u32::from(number)).into(), SERVER_V4.into()),
            Family::Ipv6 => (Ipv6Addr::new(0xfd0a, number, 0, 0, 0, 0, 0, 1).into(), SERVER_V6.into()),
        };
        let cookie = cookie::make(&key(1), &addresses(source, server).unwrap()).to_le_bytes();
        // The kernel fills no window of less than 48 bytes.
        let data = format!("{:<200}", format!("order {number} over {family}")).into_bytes();
        Self { source, port: 5000, to: PORT, cookie, data, tags: 0, options: 0 }
    }

    fn in_vlan_0(&self, tags: usize) -> Self {
        Self { tags, ..self.clone() }
    }

    fn behind(&self, options: usize) -> Self {
        Self { options, ..self.clone() }
    }

    fn link(&self) -> Eth {
        (0..self.tags).fold(eth(), |eth, _| eth.vlan(0))
    }

    /// Returns the IP header of a fragment at `offset`, in bytes.
    fn ip(&self, fragment: Option<(usize, bool)>) -> Ip {
        match self.source {
            IpAddr::V4(source) => {
                let ip = self.link().ipv4(source, SERVER_V4);
                let field = fragment
                    .map_or(0, |(offset, more)| (offset / 8) as u16 | if more { MORE_FRAGMENTS } else { 0 });
                ip.fragment(field).into()
            }
            IpAddr::V6(source) => {
                let ip = self.link().ipv6(source, SERVER_V6);
                let ip = (0..self.options).fold(ip, |ip, _| ip.destination_options());
                match fragment {
                    Some((offset, more)) => ip.fragment((offset / 8) as u16, more).into(),
                    None => ip.into(),
                }
            }
        }
    }

    fn tcp(&self, flags: u16) -> Tcp {
        self.ip(None).tcp(flags).ports(self.port, self.to)
    }

    fn syn(&self) -> Tcp {
        self.tcp(flag::SYN).mss(1460).fast_open(&self.cookie).nops(2).data(&self.data)
    }

    /// Returns the SYN in one frame.
    fn whole(&self) -> Vec<Vec<u8>> {
        vec![self.syn().build()]
    }

    /// Returns the SYN in two fragments.
    fn cut_at(&self, at: usize) -> Vec<Vec<u8>> {
        let segment = self.syn().segment();
        let (first, rest) = segment.split_at(at);
        vec![
            self.ip(Some((0, true))).carrying(protocol::TCP, first),
            self.ip(Some((at, false))).carrying(protocol::TCP, rest),
        ]
    }

    /// Returns the SYN in two fragments. The first has the whole TCP header, with another cookie. The kernel cuts the end of
    /// that cookie off, and takes it from the second.
    fn with_another_tail(&self) -> Vec<Vec<u8>> {
        let segment = self.syn().segment();
        let mut first = segment[..36].to_vec();
        first[33] ^= 0xff;
        vec![
            self.ip(Some((0, true))).carrying(protocol::TCP, &first),
            self.ip(Some((32, false))).carrying(protocol::TCP, &segment[32..]),
        ]
    }

    /// Returns a reset of the connection that the kernel has made from the SYN.
    fn reset(&self) -> Vec<u8> {
        self.tcp(flag::RST).sequence(ISN + 1 + self.data.len() as u32).build()
    }
}

/// Server behind an interface whose wire is the test, with `tfo run`.
struct Host {
    nic: Tap,
    server: Server,
    _running: (Config, Running),
}

impl Host {
    /// Starts `tfo run` with a service in mode shield that has these keys.
    fn start(service: &str) -> Self {
        let nic = Tap::new(NIC, LinkLayer::Ethernet);
        ip("link set lo up");
        ip(&format!("address add {SERVER_V4}/8 dev {NIC}"));
        ip(&format!("address add {SERVER_V6}/64 dev {NIC} nodad"));
        ip(&format!("-6 route add default dev {NIC}"));
        write_mode(3).unwrap();
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let listener = Listener::on(&format!("[::]:{PORT}")).fast_open(1024).backlog(1024);
        let server = Server::start(listener.listen(), |_| vec![b'a'; ANSWER]);
        let web = format!("[[service]]\nname = \"web\"\nports = [{PORT}]\nmode = \"shield\"\n{service}\n");
        let config = Config::new(NIC, &format!("metrics = \"{ADDRESS}\"\n{web}"));
        let running = config.run();
        Self { nic, server, _running: (config, running) }
    }

    /// Sends frames. Returns how many SYNs with a cookie the kernel's TCP has seen since.
    fn send(&mut self, frames: &[Vec<u8>]) -> u64 {
        let before = TcpExt::read().unwrap();
        for frame in frames {
            self.nic.receive(frame).unwrap();
        }
        let TcpExt { passive, passive_fail, .. } = TcpExt::read().unwrap() - before;
        passive + passive_fail
    }

    /// Lets the kernel answer `syn`, without asking the neighbour first.
    fn know(&self, syn: &Attack) {
        ip(&format!("neighbour replace {} lladdr 02:00:00:00:00:01 dev {NIC} nud permanent", syn.source));
    }

    /// Returns the data that was sent to `syn` since, as bytes of the stream.
    fn sent_to(&mut self, syn: &Attack) -> usize {
        let mut end = 0;
        while let Some(frame) = self.nic.sent() {
            let Some(seen) = Seen::of(&frame).filter(|seen| seen.to.ip() == syn.source) else { continue };
            end = end.max(seen.data.len());
        }
        end
    }

    /// Returns the number of unfollowed frames with a verdict, as the metrics and `tfo counters` both have it.
    fn unfollowed(&self, what: &str, verdict: &str) -> u64 {
        let samples = Samples::now();
        let rows = samples.rows_of("tfo_unfollowed_total");
        let rows = rows.filter(|row| row.ends_with(&format!("verdict=\"{verdict}\"}}")));
        let in_metrics: u64 = rows.map(|row| samples.number(row)).sum();
        let services = Counts::of(NIC).field("services").clone();
        let web =
            services.as_array().unwrap().iter().find(|service| service["name"] == "web").unwrap().clone();
        let rows = web["unfollowed"].as_array().unwrap().iter();
        let counted: u64 = rows.map(|row| row[what].as_u64().unwrap()).sum();
        assert_eq!(in_metrics, counted, "{what}");
        let text = String::from_utf8(tfo(&["counters"]).stdout).unwrap();
        assert!(counted == 0 || text.contains("not followed"), "{text}");
        counted
    }
}

/// Protection, and the way in which an attacker has it act on his next SYN.
struct Protection {
    name: &'static str,
    config: &'static str,
    prepare: fn(&mut Host, &mut Attack),
}

const PROTECTIONS: &[Protection] = &[
    Protection { name: "hide", config: "hide = true", prepare: |_, _| {} },
    Protection {
        name: "fair",
        config: "fair = { limit = \"1/h\" }",
        prepare: |host, syn| {
            let first = Attack { port: 4000, ..syn.clone() };
            assert_eq!(host.send(&first.whole()), 1, "the share of this source");
        },
    },
    Protection { name: "clamp", config: "clamp = { factor = 1 }", prepare: |_, _| {} },
    Protection {
        name: "once",
        config: "once = true",
        prepare: |host, syn| {
            assert_eq!(host.send(&syn.whole()), 1, "the connection to be replayed");
            eventually("its data is served", || host.server.times(&syn.data) == 1);
            host.nic.receive(&syn.reset()).unwrap();
        },
    },
    Protection {
        name: "shed",
        config: "shed = { limit = \"1/h\", drop = true }",
        prepare: |host, syn| {
            syn.cookie = [7; 8];
            let first = Attack { port: 4000, ..syn.clone() };
            // Only the first of all uses the limit.
            host.send(&first.whole());
        },
    },
];

/// Sends a SYN in one frame, over both families, and then one in each of `ways`, all of which the protection has to act on.
/// Returns for each of them whether it keeps its promise, and the numbers of frames that were counted as passed and as
/// dropped although tfo does not follow them.
fn attack(protection: &Protection, unfollowed: &str, ways: &[(&str, Family, Way)]) -> (Vec<bool>, [u64; 2]) {
    let (mut results, mut counted) = (Vec::new(), [0; 2]);
    sandbox(|| {
        let mut host = Host::start(&format!("{}\nunfollowed = \"{unfollowed}\"", protection.config));
        let all = [
            ("in one frame", Family::Ipv4, Attack::whole as Way),
            ("in one frame", Family::Ipv6, Attack::whole),
        ];
        for (number, (name, family, way)) in (1..).zip(all.iter().chain(ways)) {
            let mut syn = Attack::new(*family, number);
            host.know(&syn);
            (protection.prepare)(&mut host, &mut syn);
            let served = host.server.times(&syn.data);
            host.sent_to(&syn);
            let seen = host.send(&way(&syn));
            let holds = if protection.name == "clamp" && seen > 0 {
                eventually("it is served", || host.server.times(&syn.data) > served);
                let mut sent = 0;
                eventually("it is answered", || {
                    sent = sent.max(host.sent_to(&syn));
                    sent > 0
                });
                sent <= syn.data.len()
            } else {
                seen == 0
            };
            println!(
                "{} against {family}, {name}: {}",
                protection.name,
                if holds { "holds" } else { "does not hold" }
            );
            results.push(holds);
        }
        counted = [host.unfollowed("passed", "pass"), host.unfollowed("dropped", "drop")];
    });
    (results, counted)
}

#[test]
fn what_is_not_followed_passes_by_every_protection() {
    for protection in PROTECTIONS {
        let (holds, counted) = attack(protection, "pass", UNFOLLOWED);
        assert_eq!(holds, [&[true; 2][..], &[false; UNFOLLOWED.len()]].concat(), "{}", protection.name);
        assert_eq!(counted, [UNFOLLOWED.len() as u64, 0], "{}", protection.name);
    }
}

#[test]
fn what_is_not_followed_is_dropped_for_every_protection() {
    for protection in PROTECTIONS {
        let (holds, counted) = attack(protection, "drop", UNFOLLOWED);
        assert_eq!(holds, [true; 2 + UNFOLLOWED.len()], "{}", protection.name);
        assert_eq!(counted, [0, UNFOLLOWED.len() as u64], "{}", protection.name);
    }
}

/// Many tags and headers make no difference, nor does a first fragment with the whole TCP header.
#[test]
fn what_is_followed_is_held_by_every_protection() {
    for protection in PROTECTIONS {
        let (holds, counted) = attack(protection, "pass", FOLLOWED);
        assert_eq!(holds, [true; 2 + FOLLOWED.len()], "{}", protection.name);
        assert_eq!(counted, [0; 2], "{}", protection.name);
    }
}
