//! Table of the scenarios.

use tfo_common::{
    answer::Host,
    keyring::{KeyRing, NEWEST, SLOTS},
    limit::Limit,
    parse::LinkLayer,
    policy::{Guard, Policy},
    segment::Family,
    service::OTHER,
    table::SourceMask,
    verdict::Mode,
};
use tfo_tests::{
    cases::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6},
    kernel::Kernel,
    keys::{BACKUP, CURRENT, RETIRED, STRANGER, TestKey, portable},
    packet::{Carry as _, Eth, Ip, Tcp, eth, ether_type, flag, protocol},
};
use tfo_userspace::{
    dataplane::LoadOptions,
    model::{
        guards::Hidden,
        services::{Services, parse_prefix},
    },
};

/// Scenario: one line of the table.
//= RFC 7413 section 4.1.2
//# The generation and verification are fast relative to the rest of SYN
//# and SYN-ACK processing.
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) subject: Subject,
    pub(crate) frame: Vec<u8>,
}

/// Program under test.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Subject {
    /// Program of `tfo-ebpf/src/yardsticks.rs`.
    Yardstick(&'static str),
    /// The real program.
    Tfo(Setup),
    /// The real program behind one that gives the frame the next of `sources` source addresses before each run, with
    /// the cookie that `key` makes for it. That also restores a frame that was rewritten.
    Varied { setup: Setup, sources: u32, key: TestKey },
    /// The real program behind one that writes the whole frame anew before each run.
    Restored(Setup),
    /// A yardstick behind the same program.
    RestoredYardstick(&'static str),
    /// The real program on packets that leave.
    Leaving(Setup),
}

/// Options with which the real program is loaded.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Setup {
    pub(crate) mode: Mode,
    pub(crate) keys: usize,
    /// Policy of all packets, in [`Mode::Shield`].
    pub(crate) policy: Policy,
    /// Number of services among which all ports are divided.
    pub(crate) services: u16,
    /// Prefixes of sources that are hidden by order.
    pub(crate) hidden: &'static [&'static str],
    /// Whether SYNs are answered that bring no good cookie.
    pub(crate) answers: bool,
}

impl Setup {
    pub(crate) fn load(self) -> Kernel {
        let options = LoadOptions::new(LinkLayer::Ethernet, self.mode);
        let (services, answers) = (self.services.into(), self.answers);
        let portable = self.policy.portable != 0;
        let mut kernel = Kernel::with(&LoadOptions { services, answers, portable, ..options }, None);
        if portable {
            kernel.egress_load();
        }
        kernel.set_host(Host::new(Host::COOKIES | Host::FAST_OPEN, 0).at(Some([2, 0, 0, 0, 0, 2])));
        kernel.publish(&self.ring());
        kernel.serve(&self.services());
        (OTHER..=self.services.into()).for_each(|service| kernel.set_policy(service, &self.policy));
        if !self.hidden.is_empty() {
            let source = |text: &&str| Hidden::Source(parse_prefix(text).expect("a prefix"));
            kernel.set_hidden(&self.hidden.iter().map(source).collect::<Vec<_>>());
        }
        kernel
    }

    fn services(self) -> Services {
        let ports = |number: u16| {
            let each = u16::MAX / self.services;
            let service = format!("s{number}={}-{}", number * each + 1, (number + 1) * each);
            service.parse().expect("a service")
        };
        let named = (0..self.services).map(ports).collect();
        Services::new(named, Mode::Observe).expect("the services have no port in common")
    }

    /// Returns a ring of the kernel's keys, followed by retired ones.
    pub(crate) fn ring(self) -> KeyRing {
        let mut ring = KeyRing::EMPTY;
        let keys = [CURRENT, BACKUP].into_iter().chain(RETIRED);
        let slots = [0, 1].into_iter().chain(NEWEST..SLOTS);
        for (slot, key) in slots.zip(keys).take(self.keys) {
            ring.set(slot, Some(key.key()));
        }
        ring
    }
}

/// Setup with the most keys that a ring can hold without a next key.
pub(crate) const ALL_KEYS: Setup = Setup {
    mode: Mode::Observe,
    keys: 10,
    policy: Policy::of_mode(Mode::Observe),
    services: 0,
    hidden: &[],
    answers: false,
};

/// Prefixes that have nothing in common with the client's addresses.
const OTHERS: &[&str] = &["198.51.100.0/24", "203.0.113.7/32", "2001:db8::/32", "2001:db8:7::1/128"];
/// Prefixes that begin like the client's addresses.
const NEIGHBOURS: &[&str] = &["1.0.255.0/24", "fd3d:fa7b:d17e::/48"];

pub(crate) fn all() -> Vec<Scenario> {
    let mut table = Table::default();
    table.yardsticks();
    table.kinds();
    table.cookies();
    table.layouts();
    table.sources();
    table.services();
    table.guards();
    table.portable();
    table.0
}

/// Returns an IP header of this family, from the client of the tests to their server.
fn ip(eth: Eth, family: Family) -> Ip {
    match family {
        Family::Ipv4 => eth.ipv4(CLIENT_V4, SERVER_V4).into(),
        Family::Ipv6 => eth.ipv6(CLIENT_V6, SERVER_V6).into(),
    }
}

fn syn(family: Family) -> Tcp {
    ip(eth(), family).syn()
}

/// Returns the SYN of a Linux client with a cookie and data.
fn linux(tcp: Tcp, key: TestKey) -> Vec<u8> {
    tcp.linux_options().cookie_of(key).nops(2).data(DATA).build()
}

/// Data of the SYNs.
pub(crate) const DATA: &[u8] = b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n";

#[derive(Default)]
struct Table(Vec<Scenario>);

impl Table {
    fn add(&mut self, name: impl Into<String>, subject: Subject, frame: Vec<u8>) {
        self.0.push(Scenario { name: name.into(), subject, frame });
    }

    fn tfo(&mut self, name: impl Into<String>, setup: Setup, frame: Vec<u8>) {
        self.add(name, Subject::Tfo(setup), frame);
    }

    fn yardsticks(&mut self) {
        let (v4, v6) = (syn(Family::Ipv4).build(), syn(Family::Ipv6).build());
        for (name, program, frame) in [
            ("XDP_PASS", "pass", &v4),
            ("XDP_DROP", "drop", &v4),
            ("ipv4: SipHash alone", "siphash_v4", &v4),
            ("ipv4: SipHash alone, twice", "siphash_v4_twice", &v4),
            ("ipv6: SipHash alone", "siphash_v6", &v6),
            ("ipv6: SipHash alone, twice", "siphash_v6_twice", &v6),
        ] {
            self.add(name, Subject::Yardstick(program), frame.clone());
        }
    }

    /// Adds frames without a cookie.
    fn kinds(&mut self) {
        self.tfo("ARP", ALL_KEYS, eth().carrying(ether_type::ARP, &[0; 46]));
        for &family in Family::ALL {
            let udp = ip(eth(), family).carrying(protocol::UDP, &[0; 60]);
            self.tfo(format!("{family}: UDP"), ALL_KEYS, udp);
            let data = ip(eth(), family).tcp(flag::ACK).nops(2).timestamps(1, 2).data(&[0; 1000]).build();
            self.tfo(format!("{family}: TCP data"), ALL_KEYS, data);
            self.tfo(format!("{family}: plain SYN"), ALL_KEYS, syn(family).linux_options().build());
            let request = syn(family).linux_options().request().nops(2).build();
            self.tfo(format!("{family}: cookie request"), ALL_KEYS, request);
        }
    }

    fn cookies(&mut self) {
        for &family in Family::ALL {
            let frame = |key| linux(syn(family), key);
            self.tfo(format!("{family}: cookie current"), ALL_KEYS, frame(CURRENT));
            self.tfo(format!("{family}: cookie backup"), ALL_KEYS, frame(BACKUP));
            self.tfo(format!("{family}: cookie retired 1"), ALL_KEYS, frame(RETIRED[0]));
            self.tfo(format!("{family}: cookie retired 8"), ALL_KEYS, frame(RETIRED[7]));
            for (keys, name) in [(1, "one key"), (2, "two keys"), (10, "ten keys")] {
                let setup = Setup { keys, ..ALL_KEYS };
                self.tfo(format!("{family}: cookie unknown, {name}"), setup, frame(STRANGER));
            }
            let setup = Setup { mode: Mode::Accelerate, ..ALL_KEYS };
            self.tfo(format!("{family}: cookie current, accelerate"), setup, frame(CURRENT));
            let restored = Subject::Varied { setup, sources: 1, key: RETIRED[0] };
            self.add(format!("{family}: rewrite of retired 1"), restored, frame(RETIRED[0]));
        }
    }

    /// Adds valid cookies in frames other than an ordinary Linux client's.
    fn layouts(&mut self) {
        for &family in Family::ALL {
            let without_timestamps = syn(family).linux_options_without_timestamps();
            let cookie_first =
                syn(family).cookie_of(CURRENT).wscale(7).mss(1460).nop().sackok().timestamps(1, 0);
            for (name, tcp) in [
                ("Linux", syn(family).linux_options().cookie_of(CURRENT).nops(2)),
                ("Linux without timestamps", without_timestamps.cookie_of(CURRENT).nops(2)),
                ("macOS", syn(family).macos_options().cookie_of(CURRENT)),
                ("Windows", syn(family).windows_options().cookie_of(CURRENT).nops(2)),
                ("FreeBSD", syn(family).freebsd_options().cookie_of(CURRENT).nops(2)),
                ("unknown order", cookie_first),
                ("thirty NOPs", syn(family).nops(30).cookie_of(CURRENT)),
                ("VLAN", ip(eth().vlan(5), family).syn().linux_options().cookie_of(CURRENT).nops(2)),
                // All its headers are walked.
                (
                    "two tags",
                    ip(eth().vlan(5).vlan(6), family).syn().linux_options().cookie_of(CURRENT).nops(2),
                ),
            ] {
                let frame = tcp.data(DATA).build();
                self.add(
                    format!("{family}: {name}, a plain walk"),
                    Subject::Yardstick("plain"),
                    frame.clone(),
                );
                self.tfo(format!("{family}: current, {name}"), ALL_KEYS, frame);
            }
        }
    }

    /// Adds different numbers of services.
    fn services(&mut self) {
        for services in [1, 1000] {
            let setup = Setup { services, ..ALL_KEYS };
            self.tfo(format!("ipv4: current, {services} services"), setup, linux(syn(Family::Ipv4), CURRENT));
        }
    }

    /// Adds protections that let the SYN pass.
    fn guards(&mut self) {
        let none = Policy::of_mode(Mode::Shield);
        let plenty = Limit::new(u64::from(u32::MAX), 1, 1 << 20);
        let once = Policy { once: 1 << 20, ..none }.with(Guard::Once, true);
        let fair =
            Policy { fair: plenty, fair_source: SourceMask::new(24, 64), ..none }.with(Guard::Fair, true);
        let clamp = Policy { clamp: 3, ..none }.with(Guard::Clamp, true);
        let all = Policy { clamp: 3, flags: once.flags | fair.flags | clamp.flags, once: once.once, ..fair };
        for &family in Family::ALL {
            for (name, policy, hidden) in [
                ("no protection", none, [].as_slice()),
                ("once", once, &[]),
                ("fair", fair, &[]),
                ("clamp", clamp, &[]),
                ("all protections", all, &[]),
                ("other sources hidden", none, OTHERS),
                ("neighbours hidden", none, NEIGHBOURS),
            ] {
                let setup = Setup { mode: Mode::Shield, policy, hidden, ..ALL_KEYS };
                let subject = Subject::Varied { setup, sources: 1, key: CURRENT };
                self.add(format!("{family}: current, shield, {name}"), subject, linux(syn(family), CURRENT));
            }
            let setup = Setup { mode: Mode::Shield, policy: all, ..ALL_KEYS };
            let data = ip(eth(), family).tcp(flag::ACK).nops(2).timestamps(1, 2).data(&[0; 1000]).build();
            self.tfo(format!("{family}: TCP data, shield, all protections"), setup, data);
            let plain = syn(family).linux_options().build();
            self.tfo(format!("{family}: plain SYN, shield, all protections"), setup, plain);
            let backup = linux(syn(family), BACKUP);
            self.add(
                format!("{family}: backup, shield, all protections"),
                Subject::Varied { setup, sources: 1, key: BACKUP },
                backup,
            );
            // These take the slow path: the cookie is not of the kernel's keys, or the frame is not a usual one.
            let request = syn(family).linux_options().request().nops(2).build();
            self.tfo(format!("{family}: cookie request, shield, all protections"), setup, request);
            let restored = Subject::Varied { setup, sources: 1, key: RETIRED[0] };
            let retired = linux(syn(family), RETIRED[0]);
            self.add(format!("{family}: rewrite of retired 1, shield, all protections"), restored, retired);
            let tagged =
                ip(eth().vlan(5), family).syn().linux_options().cookie_of(CURRENT).nops(2).data(DATA);
            self.tfo(format!("{family}: current, VLAN, shield, all protections"), setup, tagged.build());
            // The guard is a dry run. Otherwise the few SYNs that pass would be counted apart from the dropped ones.
            let sheds = Policy {
                flags: all.flags | Policy::SHEDS_ALL | Policy::SHEDS_OTHERS,
                shed: Limit::new(1, 1000, 1),
                ..all
            };
            let sheds = Setup { keys: 2, policy: sheds.with(Guard::Shed, false), ..setup };
            let forged = linux(syn(family), STRANGER);
            self.tfo(format!("{family}: unknown, two keys, shield, shed in a dry run"), sheds, forged);
            let answers = Policy { flags: none.flags | Policy::ANSWERS, ..none }.with(Guard::Answer, true);
            let setup = Setup { answers: true, policy: answers, ..setup };
            let plain = syn(family).linux_options().build();
            let least = if family == Family::Ipv4 { "least_v4" } else { "least_v6" };
            let name = format!("{family}: plain SYN, the kernel's part of an answer");
            self.add(name, Subject::RestoredYardstick(least), plain.clone());
            self.add(format!("{family}: plain SYN, answered"), Subject::Restored(setup), plain);
            let dry = Policy { flags: none.flags | Policy::ANSWERS, ..none }.with(Guard::Answer, false);
            let dry = Setup { policy: dry, ..setup };
            self.tfo(
                format!("{family}: plain SYN, answered in a dry run"),
                Setup { answers: true, ..dry },
                syn(family).linux_options().build(),
            );
            let request = syn(family).linux_options().request().nops(2).build();
            self.add(format!("{family}: cookie request, answered"), Subject::Restored(setup), request);
            let forged = Setup { keys: 2, ..setup };
            let unknown = syn(family).linux_options().cookie_of(STRANGER).nops(2).build();
            self.add(format!("{family}: unknown, two keys, answered"), Subject::Restored(forged), unknown);
            let setup = Setup { answers: false, policy: all, ..setup };
            // The table entries of the sources are spread over memory.
            for sources in [100, 60_000] {
                let subject = Subject::Varied { setup, sources, key: CURRENT };
                let name = format!("{family}: current, all protections, {sources} sources");
                self.add(name, subject, linux(syn(family), CURRENT));
            }
        }
    }

    /// Adds portable cookies, on their way in and out.
    fn portable(&mut self) {
        const TAG: u64 = 7;
        let policy = Policy { portable: TAG, ..Policy::of_mode(Mode::Shield) };
        let setup = Setup { mode: Mode::Shield, policy, services: 1, ..ALL_KEYS };
        for &family in Family::ALL {
            let client = ip(eth(), family).addresses().0;
            // Short enough to be written anew before each run.
            let with = |cookie: &[u8]| {
                syn(family).linux_options().fast_open(cookie).nops(2).data(&DATA[..20]).build()
            };
            for (name, key) in [("current", CURRENT), ("backup", BACKUP), ("retired 1", RETIRED[0])] {
                let frame = with(&portable(key, TAG, client));
                self.add(format!("{family}: portable, {name}"), Subject::Restored(setup), frame);
            }
            let none = Setup { policy: Policy { portable: 0, ..policy }, ..setup };
            let [good, forged] = [CURRENT, STRANGER].map(|key| with(&syn(family).cookie(key)));
            self.add(format!("{family}: portable off, current"), Subject::Restored(none), good.clone());
            self.add(format!("{family}: portable, the kernel's current"), Subject::Restored(setup), good);
            self.tfo(format!("{family}: portable off, unknown"), none, forged.clone());
            self.tfo(format!("{family}: portable, unknown"), setup, forged);
            let out = |tcp: Tcp| tcp.build();
            let reply = || match family {
                Family::Ipv4 => Ip::from(eth().ipv4(SERVER_V4, CLIENT_V4)),
                Family::Ipv6 => eth().ipv6(SERVER_V6, CLIENT_V6).into(),
            };
            let syn_ack = || reply().tcp(flag::SYN | flag::ACK).linux_options();
            for (name, frame) in [
                ("UDP", reply().carrying(protocol::UDP, &[0; 60])),
                ("ACK", out(reply().tcp(flag::ACK).nops(2).timestamps(1, 2))),
                ("TCP data", out(reply().tcp(flag::ACK).nops(2).timestamps(1, 2).data(&[0; 1000]))),
                ("SYN-ACK without a cookie", out(syn_ack())),
                ("SYN-ACK with a cookie of another key", out(syn_ack().fast_open(&[7; 8]).nops(2))),
            ] {
                self.add(format!("{family}: portable, {name} leaves"), Subject::Leaving(setup), frame);
            }
        }
    }

    /// Adds different numbers of clients.
    fn sources(&mut self) {
        for sources in [1, 100, 60_000] {
            let subject = Subject::Varied { setup: ALL_KEYS, sources, key: CURRENT };
            let name = format!("ipv4: current, {sources} source addresses");
            self.add(name, subject, linux(syn(Family::Ipv4), CURRENT));
        }
    }
}
