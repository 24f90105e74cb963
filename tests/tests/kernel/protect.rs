//! Mode `shield` in the kernel: the real program, run by BPF_PROG_TEST_RUN, does exactly what the guards of a policy
//! say. Needs root.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
    thread,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use tfo_common::{
    class::Class,
    counters::Counters,
    keyring::KeyRing,
    limit::Limit,
    names,
    parse::{LinkLayer, parse},
    policy::{Guard, Policy},
    segment::{Addresses, Family},
    service::OTHER,
    table::{Remembered, SEATS, Seed, SourceMask},
    verdict::{Mode, Verdict},
};
use tfo_tests::{
    cases::{CLIENT_V4, CLIENT_V6, Expected, Keys, SERVER_V4, SERVER_V6, all, rows, signed},
    host,
    kernel::{Kernel, fits, sum},
    keys::{self, BACKUP, CURRENT, RETIRED, STRANGER},
    netns::{BPFFS, ip, sandbox},
    packet::{Carry as _, Ip, MORE_FRAGMENTS, Tcp, eth},
};
use tfo_userspace::{
    dataplane::{
        LoadOptions, SharedMaps,
        pins::{Bpffs, MAPS},
    },
    model::{
        guards::Hidden,
        services::{Named, Services, parse_prefix},
        settings::Sizes,
    },
};

/// Returns the number of SYNs of each service, by name.
fn by_service(kernel: &Kernel) -> Vec<(String, u64)> {
    let packets = |counters: &Counters| Class::ALL.iter().map(|class| counters.class(*class).packets).sum();
    kernel.by_service().iter().map(|it| (it.name.clone(), packets(&it.counters))).collect()
}

/// Addresses of one family do not match the other, even with short prefixes.
#[test]
fn a_service_has_the_family_of_its_addresses() {
    for mode in [Mode::Observe, Mode::Shield] {
        for (addresses, expected) in [
            (&["::/0"][..], [3, 2]),
            (&["8000::/1"], [3, 2]),
            (&["::/1"], [5, 0]),
            (&["::/80"], [5, 0]),
            (&["::/80", "fd00::/8"], [3, 2]),
            (&["0.0.0.0/0"], [2, 3]),
            (&["::/0", "0.0.0.0/0"], [0, 5]),
        ] {
            let options = LoadOptions { services: 1, ..LoadOptions::new(LinkLayer::Ethernet, mode) };
            let mut kernel = Kernel::with(&options, None);
            kernel.publish(&keys::ring());
            let mut web: Named = "web=80".parse().expect("a service");
            web.addresses = addresses.iter().map(|text| parse_prefix(text).expect("a prefix")).collect();
            kernel.serve(&Services::new(vec![web], mode).expect("services"));
            for (ip, repeat) in [(v4(1), 3), (v6(1), 2)] {
                for option in [Option_::Of(CURRENT), Option_::Request] {
                    kernel.run("a SYN", &Syn::new(&ip, 1, option).frame, repeat);
                }
            }
            let [other, web] = expected.map(|packets| 2 * packets);
            let expected = [("other".to_owned(), other), ("web".to_owned(), web)];
            assert_eq!(by_service(&kernel), expected, "{mode}, {addresses:?}");
        }
    }
}

/// Hidden sources of one family do not match the other.
#[test]
fn sources_of_one_family_are_hidden() {
    let low: Ip = eth().ipv6([0, 0, 0, 0, 0, 7, 0, 1].into(), SERVER_V6).into();
    let mut shield = Shield::with(LinkLayer::Ethernet, &shield());
    for (prefix, hidden) in [
        ("::/0", [false, true, true]),
        ("::/1", [false, true, true]),
        ("::/80", [false, false, true]),
        ("2001:db8::/32", [false, true, false]),
        ("0.0.0.0/0", [true, false, false]),
        ("192.0.2.0/31", [true, false, false]),
        ("192.0.2.0/32", [false, false, false]),
    ] {
        let order = Hidden::Source(parse_prefix(prefix).expect("a prefix"));
        shield.kernel.set_hidden(std::slice::from_ref(&order));
        for (ip, is_hidden) in [v4(1), v6(1), low.clone()].iter().zip(hidden) {
            let syn = Syn::new(ip, 1, Option_::Of(CURRENT));
            if is_hidden {
                shield.expect(prefix, &syn, Verdict::Hide, Some(Guard::Hide), Some(&syn.hidden));
            } else {
                shield.expect(prefix, &syn, Verdict::Pass, None, Some(&syn.frame));
            }
        }
        shield.kernel.set_hidden(&[]);
    }
}

/// Destinations that [`only_syns_to_listeners_of_this_host_are_shed`] routes to another host.
const FORWARDED_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const FORWARDED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 9);

/// A prefix of any length hides its sources and no other, also beside another order that has the same bit in the filter
/// of sources.
#[test]
fn prefixes_of_every_length_are_hidden() {
    let mut shield = Shield::with(LinkLayer::Ethernet, &shield());
    for (source, neighbour) in [("198.51.100.7", "182.51.1.1"), ("2001:db8:0:7::1", "2a0f:fdb8::9")] {
        let [source, neighbour]: [IpAddr; 2] =
            [source, neighbour].map(|text| text.parse().expect("an address"));
        let bits = if source.is_ipv4() { 32 } else { 128 };
        for len in 0..=bits {
            let [prefix, other] = [prefix_of(source, len), prefix_of(neighbour, bits)];
            let mut expect = |orders: &[Hidden], source: IpAddr, is_hidden| {
                shield.kernel.set_hidden(orders);
                let syn = Syn::new(&from(source), 1, Option_::Of(CURRENT));
                let name = format!("{source} under {orders:?}");
                if is_hidden {
                    shield.expect(&name, &syn, Verdict::Hide, Some(Guard::Hide), Some(&syn.hidden));
                } else {
                    shield.expect(&name, &syn, Verdict::Pass, None, Some(&syn.frame));
                }
            };
            let (one, both) = ([prefix.clone()], [prefix, other.clone()]);
            expect(&one, source, true);
            if len > 0 {
                expect(&one, without_last_bit_of(source, len), false);
            }
            expect(&both, neighbour, true);
            expect(&both, source, true);
            expect(std::slice::from_ref(&other), source, false);
            expect(&[other], neighbour, true);
            expect(&[], neighbour, false);
        }
    }
}

/// Returns an order for the sources with the first `len` bits of `address`.
fn prefix_of(address: IpAddr, len: u8) -> Hidden {
    let first: IpAddr = match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    };
    Hidden::Source(parse_prefix(&format!("{first}/{len}")).expect("a prefix"))
}

/// Returns `address` with another bit at the end of its first `len` bits.
fn without_last_bit_of(address: IpAddr, len: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() ^ 1 << (32 - len)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() ^ 1 << (128 - len)).into(),
    }
}

/// Returns an IP header with this source.
fn from(source: IpAddr) -> Ip {
    match source {
        IpAddr::V4(source) => eth().ipv4(source, SERVER_V4).into(),
        IpAddr::V6(source) => eth().ipv6(source, SERVER_V6).into(),
    }
}

/// More jiffies than any of these tests takes.
const FOREVER: u64 = 1 << 30;

/// Returns a policy without guards. A test run has no listener, so `shed` judges any destination.
fn shield() -> Policy {
    let policy = Policy::of_mode(Mode::Shield);
    Policy { flags: policy.flags | Policy::SHEDS_OTHERS, ..policy }
}

/// Program in mode `shield`, with one policy for all services.
struct Shield {
    kernel: Kernel,
    counters: Counters,
}

impl Shield {
    fn with(link: LinkLayer, policy: &Policy) -> Self {
        let mut kernel = Kernel::load(link, Mode::Shield, &keys::ring());
        kernel.set_policy(OTHER, policy);
        Self { kernel, counters: Counters::default() }
    }

    /// Sends a frame. Returns the resulting frame, and its counts alone.
    fn run(&mut self, name: &str, frame: &[u8]) -> (Option<Vec<u8>>, Counted) {
        let out = self.kernel.run_or_drop(name, frame, 1);
        let before = std::mem::replace(&mut self.counters, self.kernel.counters());
        (out, Counted { before, after: self.counters })
    }

    /// Sends `syn`. Panics unless `verdict` and `guard` are counted and the result is `expected`.
    fn expect(
        &mut self,
        name: &str,
        syn: &Syn,
        verdict: Verdict,
        guard: Option<Guard>,
        expected: Option<&[u8]>,
    ) {
        let (out, counted) = self.run(name, &syn.frame);
        assert_eq!(out.as_deref(), expected, "{name}");
        let mut more = syn.counted.counted(verdict, &keys::ring());
        if let Some(guard) = guard {
            more.guards[guard.index()].acted = 1;
        }
        counted.assert(name, &more);
    }
}

/// Counts before and after a frame.
struct Counted {
    before: Counters,
    after: Counters,
}

impl Counted {
    fn assert(&self, name: &str, more: &Counters) {
        let expected = sum(&self.before, more);
        assert!(self.after == expected, "{name}: {:#?}, expected {:#?}", rows(&self.after), rows(&expected));
    }
}

/// SYN with its expected count.
struct Syn {
    frame: Vec<u8>,
    /// The same frame without Fast Open.
    hidden: Vec<u8>,
    counted: Expected,
}

/// Fast Open option of a SYN.
#[derive(Clone, Copy)]
enum Option_ {
    Request,
    Of(keys::TestKey),
    BadLength,
}

impl Syn {
    fn new(ip: &Ip, port: u16, option: Option_) -> Self {
        const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
        let syn = |add: &dyn Fn(Tcp) -> Tcp| {
            add(ip.clone().syn().ports(port, 80).linux_options()).nops(2).data(DATA).build()
        };
        let family = match ip {
            Ip::V4(_) => Family::Ipv4,
            Ip::V6(_) => Family::Ipv6,
        };
        let of_class = |class| Expected::of_class(family, class, DATA.len());
        let (frame, len, counted) = match option {
            Option_::Request => (syn(&Tcp::request), 2, of_class(Class::CookieRequest)),
            Option_::BadLength => (syn(&|tcp| tcp.fast_open(&[7; 6])), 8, of_class(Class::CookieBadLength)),
            Option_::Of(key) => {
                let slot = keys::all().iter().position(|known| *known == key);
                let unknown = || of_class(Class::CookieUnknown);
                let counted = slot.map_or_else(unknown, |slot| Expected::of_key(family, slot, DATA.len()));
                (syn(&|tcp| tcp.cookie_of(key)), 10, counted)
            }
        };
        Self { frame, hidden: syn(&|tcp| tcp.nops(len)), counted }
    }
}

fn v4(last: u8) -> Ip {
    eth().ipv4([192, 0, 2, last].into(), SERVER_V4).into()
}

fn v6(last: u16) -> Ip {
    eth().ipv6([0x2001, 0xdb8, 0, last, 0, 0, 0, 1].into(), SERVER_V6).into()
}

/// Checks the cases of a link layer that the kernel accepts, each with its keys.
fn check_cases(
    link: LinkLayer,
    policy: &Policy,
    mut check: impl FnMut(&str, &[u8], &[u8], &Counted, &KeyRing),
) {
    let mut shield = Shield::with(link, policy);
    let mut keys = None;
    for case in all().into_iter().filter(|case| case.link == link && fits(&case.frame)) {
        let ring = case.keys.ring();
        if keys.replace(case.keys) != Some(case.keys) {
            shield.kernel.publish(&ring);
        }
        let (out, counted) = shield.run(&case.name, &case.frame);
        let out = out.unwrap_or_else(|| panic!("{}: it was dropped", case.name));
        check(&case.name, &case.frame, &out, &counted, &ring);
    }
}

/// Frames and counts equal those of mode `accelerate`.
#[test]
fn without_guards_it_accelerates() {
    for link in LinkLayer::ALL {
        let mut accelerate = Kernel::load(*link, Mode::Accelerate, &Keys::Known.ring());
        let mut before = Counters::default();
        check_cases(*link, &shield(), |name, frame, out, counted, ring| {
            if accelerate.key_ring().present != ring.present {
                accelerate.publish(ring);
            }
            assert_eq!(accelerate.run(name, frame, 1), out, "{name}");
            let after = accelerate.counters();
            let before = std::mem::replace(&mut before, after);
            assert!(
                before == counted.before && after == counted.after,
                "{name}: {:#?}",
                rows(&counted.after)
            );
        });
    }
}

/// Stateless policies on every case of the table: the result equals that of the host, byte for byte, passes its check,
/// and is counted.
#[test]
fn every_case_under_every_policy_that_remembers_nothing() {
    let policy = Policy { clamp: 3, ..shield() };
    for (policy, acts) in [
        (policy.with(Guard::Hide, true), Some(Guard::Hide)),
        (Policy { flags: policy.flags | Policy::HIDDEN_SERVICE, ..policy }, Some(Guard::Hide)),
        (Policy { flags: policy.flags | Policy::HIDDEN_ALL, ..policy }, Some(Guard::Hide)),
        (policy.with(Guard::Hide, false), None),
        (policy.with(Guard::Clamp, true), Some(Guard::Clamp)),
        (Policy { clamp: 0, ..policy }.with(Guard::Clamp, true), Some(Guard::Clamp)),
        (policy.with(Guard::Clamp, false), None),
    ] {
        for link in LinkLayer::ALL {
            let (mut acted, mut would) = (0, 0);
            check_cases(*link, &policy, |name, frame, out, counted, ring| {
                assert_eq!(out, host::carry_out(frame, *link, &policy, ring), "{name}");
                let checked = host::check(frame, out, *link, &policy, ring);
                checked.unwrap_or_else(|wrong| panic!("{name}: {wrong}: {out:02x?}"));
                let more = host::count(frame, *link, &policy, ring);
                counted.assert(name, &more);
                acted += more.guards.iter().map(|guard| guard.acted).sum::<u64>();
                would += more.guards.iter().map(|guard| guard.would).sum::<u64>();
            });
            assert_eq!((acted > 50, would > 50), (acts.is_some(), acts.is_none()), "{policy:?}");
        }
    }
}

/// Returns headers of many kinds in front of the TCP header.
fn packets() -> Vec<Ip> {
    vec![
        eth().ipv4(CLIENT_V4, SERVER_V4).into(),
        eth().ipv6(CLIENT_V6, SERVER_V6).into(),
        eth().ipv4(CLIENT_V4, SERVER_V4).options(&[1; 40]).into(),
        eth().ipv6(CLIENT_V6, SERVER_V6).hop_by_hop().routing(0).destination_options().into(),
        eth().vlan(5).ipv4(CLIENT_V4, SERVER_V4).into(),
        eth().vlan(5).ipv6(CLIENT_V6, SERVER_V6).into(),
        eth().service_vlan(5).vlan(6).ipv4(CLIENT_V4, SERVER_V4).options(&[1; 4]).into(),
        eth().service_vlan(5).vlan(6).ipv6(CLIENT_V6, SERVER_V6).atomic_fragment().into(),
    ]
}

/// The result equals a packet of the builder without the option, or with another window.
#[test]
fn the_bytes_of_a_client_without_fast_open() {
    let mut hides = Shield::with(LinkLayer::Ethernet, &shield().with(Guard::Hide, true));
    let mut clamps =
        Shield::with(LinkLayer::Ethernet, &Policy { clamp: 3, ..shield() }.with(Guard::Clamp, true));
    for ip in packets() {
        let keys = [CURRENT, BACKUP, RETIRED[3], STRANGER].map(Option_::Of);
        for option in keys.into_iter().chain([Option_::Request, Option_::BadLength]) {
            let syn = Syn::new(&ip, 40_000, option);
            hides.expect(&format!("{ip:?}"), &syn, Verdict::Hide, Some(Guard::Hide), Some(&syn.hidden));
        }
        for (key, into, verdict) in [
            (CURRENT, CURRENT, Verdict::Pass),
            (BACKUP, BACKUP, Verdict::Pass),
            (RETIRED[3], BACKUP, Verdict::Rewrite),
        ] {
            for (data, window, most) in [(100, 0xfaf0, 300), (100, 300, 300), (100, 301, 300), (0, 9, 0)] {
                let syn = |key, window| {
                    let syn = ip.clone().syn().nop().cookie_of(key).window(window);
                    syn.data(&vec![0xa5; data]).build()
                };
                let (out, counted) = clamps.run("clamp", &syn(key, window));
                assert_eq!(out, Some(syn(into, most)), "{ip:?}, {window} of {data} bytes");
                let slot = keys::all().iter().position(|known| *known == key).unwrap_or_default();
                let family = if matches!(ip, Ip::V4(_)) { Family::Ipv4 } else { Family::Ipv6 };
                let mut more = Expected::of_key(family, slot, data).counted(verdict, &keys::ring());
                more.guards[Guard::Clamp.index()].acted = u64::from(window > most);
                counted.assert("clamp", &more);
            }
        }
    }
}

/// A burst of good cookies from one source passes, and the next cookie is hidden. Other sources are not affected.
#[test]
fn fair_is_for_each_source() {
    const BURST: u16 = 3;
    let policy = Policy {
        fair: Limit::new(1, FOREVER, BURST.into()),
        fair_source: SourceMask::new(24, 56),
        ..shield()
    };
    let mut shield = Shield::with(LinkLayer::Ethernet, &policy.with(Guard::Fair, true));
    let fair = Some(Guard::Fair);
    for (mine, neighbour, other) in
        [(v4(1), v4(2), eth().ipv4([198, 51, 100, 1].into(), SERVER_V4).into()), (v6(1), v6(0xff), v6(0x100))]
    {
        // SYNs that take no place in the listener's queue do not use the limit.
        for option in [Option_::Request, Option_::Of(STRANGER), Option_::BadLength] {
            for port in 0..2 * BURST {
                let syn = Syn::new(&mine, port, option);
                shield.expect("free", &syn, Verdict::Pass, None, Some(&syn.frame));
            }
        }
        let served = [CURRENT, BACKUP, CURRENT];
        for (port, key) in (0..).zip(served) {
            let syn = Syn::new(if port == 1 { &neighbour } else { &mine }, port, Option_::Of(key));
            shield.expect("served", &syn, Verdict::Pass, None, Some(&syn.frame));
        }
        for (source, key) in [(&mine, CURRENT), (&neighbour, BACKUP), (&mine, RETIRED[0])] {
            let syn = Syn::new(source, BURST, Option_::Of(key));
            shield.expect("too many", &syn, Verdict::Hide, fair, Some(&syn.hidden));
        }
        for port in 0..BURST {
            let syn = Syn::new(&other, port, Option_::Of(CURRENT));
            shield.expect("another", &syn, Verdict::Pass, None, Some(&syn.frame));
        }
        let syn = Syn::new(&other, BURST, Option_::Of(CURRENT));
        shield.expect("the other, too many", &syn, Verdict::Hide, fair, Some(&syn.hidden));
    }
}

/// A used limit recovers with time.
#[test]
fn a_share_grows_again() {
    // The period is some hundredths of a second.
    let policy = Policy { fair: Limit::new(1, 10, 1), fair_source: SourceMask::new(32, 64), ..shield() };
    let mut shield = Shield::with(LinkLayer::Ethernet, &policy.with(Guard::Fair, true));
    let syn = Syn::new(&v4(1), 1, Option_::Of(CURRENT));
    let mut verdicts: Vec<bool> = Vec::new();
    while verdicts.iter().filter(|is_hidden| !**is_hidden).count() < 3 {
        assert!(verdicts.len() < 100_000, "nothing comes back");
        let (out, _) = shield.run("again", &syn.frame);
        verdicts.push(out == Some(syn.hidden.clone()));
        thread::sleep(Duration::from_millis(1));
    }
    assert!(!verdicts[0] && verdicts.contains(&true), "{verdicts:?}");
}

/// An eviction of another source's entry is counted if that entry still mattered.
#[test]
fn sources_that_are_forgotten_are_counted() {
    let sizes = Sizes { sources: 2, ..Sizes::default() };
    let options = LoadOptions { sizes, ..LoadOptions::new(LinkLayer::Ethernet, Mode::Shield) };
    let mut kernel = Kernel::with(&options, None);
    kernel.publish(&keys::ring());
    let policy = Policy { fair: Limit::new(1, FOREVER, 1), fair_source: SourceMask::new(32, 64), ..shield() };
    kernel.set_policy(OTHER, &policy.with(Guard::Fair, true));
    for (last, forgotten) in [(1, 0), (2, 0), (1, 0), (3, 1), (3, 1), (4, 2)] {
        kernel.run("a source", &Syn::new(&v4(last), 1, Option_::Of(CURRENT)).frame, 1);
        assert_eq!(kernel.watch().sources_forgotten, forgotten, "source {last}");
    }
}

fn sheds(policy: &Policy, drops: bool) {
    let flags = policy.flags | if drops { Policy::DROPS } else { 0 };
    let policy = Policy {
        flags,
        shed: Limit::new(1, FOREVER, 5),
        shed_per_source: Limit::new(1, FOREVER, 3),
        shed_source: SourceMask::new(32, 64),
        ..*policy
    };
    let mut shield = Shield::with(LinkLayer::Ethernet, &policy.with(Guard::Shed, true));
    let (in_all, of_sources) = (policy.has(Policy::SHEDS_ALL), policy.has(Policy::SHEDS_SOURCES));
    let (mut all, mut of_source) = (0, [0; 3]);
    for (port, source) in (0..).zip([0, 0, 0, 0, 1, 0, 1, 1, 1, 2, 2]) {
        let ip = if source == 2 { v6(1) } else { v4(source) };
        let option = if port % 2 == 0 { Option_::Of(STRANGER) } else { Option_::BadLength };
        let syn = Syn::new(&ip, port, option);
        let own = &mut of_source[usize::from(source)];
        // A SYN over its source's limit does not use the common limit.
        let (is_mine, is_ours) = (of_sources && *own >= 3, in_all && all >= 5);
        *own += u32::from(!is_mine);
        all += u32::from(!is_mine && !is_ours);
        let name = format!("{source}, {port}, {policy:?}");
        if is_mine || is_ours {
            let verdict = if drops { Verdict::Drop } else { Verdict::Hide };
            let out = (!drops).then_some(&syn.hidden[..]);
            shield.expect(&name, &syn, verdict, Some(Guard::Shed), out);
        } else {
            shield.expect(&name, &syn, Verdict::Pass, None, Some(&syn.frame));
        }
        // Good cookies and requests always pass.
        for option in [Option_::Request, Option_::Of(CURRENT), Option_::Of(BACKUP)] {
            let syn = Syn::new(&ip, port, option);
            shield.expect(&name, &syn, Verdict::Pass, None, Some(&syn.frame));
        }
    }
    assert!(shield.counters.guards[Guard::Shed.index()].acted > 0);
}

#[test]
fn unknown_cookies_are_shed() {
    let [all, sources] = [Policy::SHEDS_ALL, Policy::SHEDS_SOURCES]
        .map(|flag| Policy { flags: shield().flags | flag, ..shield() });
    let both = Policy { flags: all.flags | sources.flags, ..shield() };
    for policy in [all, sources, both] {
        sheds(&policy, false);
        sheds(&policy, true);
    }
}

/// `shed` judges SYNs to listeners of this host only: not those to closed ports, and not those that it would forward, even
/// if a listener on all addresses has that port.
#[test]
fn only_syns_to_listeners_of_this_host_are_shed() {
    sandbox(|| {
        ip("link set lo up");
        ip("link add far type veth peer name other");
        ip("link set other up");
        ip("link set far up");
        for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{family}"), "1").expect("a namespace of our own");
        }
        for (command, address) in [
            ("address add", format!("{SERVER_V4}/32 dev lo")),
            ("address add", format!("{SERVER_V6}/128 dev lo nodad")),
            ("route add", format!("{FORWARDED_V4}/32 dev far")),
            ("-6 route add", format!("{FORWARDED_V6}/128 dev far")),
        ] {
            ip(&format!("{command} {address}"));
        }
        for drops in [false, true] {
            let flags = Policy::of_mode(Mode::Shield).flags | Policy::SHEDS_ALL;
            let flags = flags | if drops { Policy::DROPS } else { 0 };
            let none = Policy { flags, shed: Limit { interval: FOREVER << 20, tolerance: 0 }, ..shield() };
            let mut shield = Shield::with(LinkLayer::Ethernet, &none.with(Guard::Shed, true));
            // The first one is within the limit.
            let first = Syn::new(&v4(1), 1, Option_::Of(STRANGER));
            shield.expect("first", &first, Verdict::Pass, None, Some(&first.frame));
            let to =
                |v4, v6| -> [Ip; 2] { [eth().ipv4(CLIENT_V4, v4).into(), eth().ipv6(CLIENT_V6, v6).into()] };
            let mut check = |name: &str, ips: [Ip; 2], is_shed: [bool; 2]| {
                // An answer is kept for a jiffy.
                thread::sleep(Duration::from_millis(30));
                for (ip, is_shed) in ips.iter().zip(is_shed) {
                    for _ in 0..2 {
                        let syn = Syn::new(ip, 1, Option_::Of(STRANGER));
                        let (verdict, out) = match (is_shed, drops) {
                            (false, _) => (Verdict::Pass, Some(&syn.frame[..])),
                            (true, false) => (Verdict::Hide, Some(&syn.hidden[..])),
                            (true, true) => (Verdict::Drop, None),
                        };
                        shield.expect(name, &syn, verdict, is_shed.then_some(Guard::Shed), out);
                    }
                }
            };
            check("a closed port", to(SERVER_V4, SERVER_V6), [false; 2]);
            let v4 = TcpListener::bind((SERVER_V4, 80)).expect("a free port");
            check("a listener on IPv4", to(SERVER_V4, SERVER_V6), [true, false]);
            drop(v4);
            let v6 = TcpListener::bind((SERVER_V6, 80)).expect("a free port");
            check("a listener on IPv6", to(SERVER_V4, SERVER_V6), [false, true]);
            drop(v6);
            let _all = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).expect("a free port");
            check("a listener on all addresses", to(SERVER_V4, SERVER_V6), [true; 2]);
            check("a destination behind this host", to(FORWARDED_V4, FORWARDED_V6), [false; 2]);
        }
    });
}

/// Unknown cookies are shed only while the keys are confirmed. Publishing keys neither confirms them nor ends a
/// confirmation.
#[test]
fn nothing_is_shed_unless_the_keys_are_confirmed() {
    for (scope, drops) in
        [Policy::SHEDS_ALL, Policy::SHEDS_SOURCES].map(|scope| [(scope, false), (scope, true)]).concat()
    {
        let flags = shield().flags | scope | if drops { Policy::DROPS } else { 0 };
        let one = Limit::new(1, FOREVER, 1);
        let policy = Policy { flags, shed: one, shed_per_source: one, ..shield() }.with(Guard::Shed, true);
        let mut shield = Shield::with(LinkLayer::Ethernet, &policy);
        let (stranger, bad) =
            (Syn::new(&v4(1), 1, Option_::Of(STRANGER)), Syn::new(&v4(1), 1, Option_::BadLength));
        let acts = |shield: &mut Shield, unconfirmed| {
            for syn in [&stranger, &bad] {
                let verdict = if drops { Verdict::Drop } else { Verdict::Hide };
                let out = (!drops).then_some(&syn.hidden[..]);
                shield.expect("confirmed", syn, verdict, Some(Guard::Shed), out);
            }
            assert_eq!(shield.kernel.watch().unconfirmed, unconfirmed);
        };
        let passes = |shield: &mut Shield, unconfirmed| {
            for syn in [&stranger, &bad] {
                shield.expect("unconfirmed", syn, Verdict::Pass, None, Some(&syn.frame));
            }
            // These do not depend on the keys.
            for option in [Option_::Request, Option_::Of(CURRENT), Option_::Of(BACKUP)] {
                let syn = Syn::new(&v4(1), 1, option);
                shield.expect("no matter", &syn, Verdict::Pass, None, Some(&syn.frame));
            }
            assert_eq!(shield.kernel.watch().unconfirmed, unconfirmed);
        };
        shield.kernel.confirm_ago(6);
        shield.expect("the one that there may be", &stranger, Verdict::Pass, None, Some(&stranger.frame));
        assert_eq!(shield.kernel.watch().unconfirmed, 0);
        passes(&mut shield, 2);
        shield.kernel.publish(&keys::ring());
        passes(&mut shield, 4);
        shield.kernel.confirm();
        acts(&mut shield, 4);
        shield.kernel.publish(&keys::ring());
        acts(&mut shield, 4);
        shield.kernel.confirm_ago(6);
        passes(&mut shield, 6);
        shield.kernel.confirm_at(0);
        passes(&mut shield, 8);
        shield.kernel.confirm();
        acts(&mut shield, 8);
    }
}

/// A new SYN is no replay, and neither is one whose connection was never made.
#[test]
fn what_was_not_served_is_no_replay() {
    let policy = Policy { once: FOREVER, ..shield() }.with(Guard::Once, true);
    let mut shield = Shield::with(LinkLayer::Ethernet, &policy);
    let syn = Syn::new(&v4(1), 1, Option_::Of(CURRENT));
    for _ in 0..3 {
        shield.expect("the same", &syn, Verdict::Pass, None, Some(&syn.frame));
    }
}

/// Returns a policy that compares the data of SYNs for ever.
fn comparing(acts: bool) -> Policy {
    let policy = Policy { once: FOREVER, ..shield() }.with(Guard::Once, acts);
    Policy { flags: policy.flags | Policy::COMPARES_DATA, ..policy }
}

/// Loads the program with `policy`, and with room for the data of many SYNs.
fn comparing_shield(policy: &Policy, sizes: Sizes) -> Shield {
    let options =
        LoadOptions { compares_data: true, sizes, ..LoadOptions::new(LinkLayer::Ethernet, Mode::Shield) };
    let mut kernel = Kernel::with(&options, None);
    kernel.publish(&keys::ring());
    kernel.set_policy(OTHER, policy);
    Shield { kernel, counters: Counters::default() }
}

/// The first SYN with some data passes, as often as it comes. Another SYN of the source with the same data is hidden,
/// whatever the headers. Other data passes.
#[test]
fn the_same_data_is_served_once() {
    let once = Some(Guard::Once);
    let mut shield = comparing_shield(&comparing(true), Sizes::default());
    for (n, ip) in (0..).zip(packets()) {
        for (m, key) in (0..).zip([CURRENT, BACKUP, RETIRED[3]]) {
            let verdict = if m == 2 { Verdict::Rewrite } else { Verdict::Pass };
            for len in [1, 7, 8, 9, 63, 64, 65, 600] {
                // Each combination has data of its own: its length, and its first byte.
                let mut data = vec![0xa5; len];
                data[0] = n << 4 | m;
                let of = |port, key| {
                    let syn = |add: &dyn Fn(Tcp) -> Tcp| {
                        add(ip.clone().syn().ports(port, 80)).sequence(u32::from(port)).data(&data).build()
                    };
                    let family = if matches!(ip, Ip::V4(_)) { Family::Ipv4 } else { Family::Ipv6 };
                    let slot = keys::all().iter().position(|known| *known == key).unwrap_or_default();
                    let counted = Expected::of_key(family, slot, data.len());
                    Syn { frame: syn(&|tcp| tcp.cookie_of(key)), hidden: syn(&|tcp| tcp.nops(10)), counted }
                };
                let name = format!("{ip:?}, {key:?}, {len} bytes");
                let first = of(1, key);
                let out = of(1, if m == 2 { BACKUP } else { key });
                for _ in 0..2 {
                    shield.expect(&name, &first, verdict, None, Some(&out.frame));
                }
                for other in [of(2, key), of(3, BACKUP), of(2, key)] {
                    shield.expect(&name, &other, Verdict::Hide, once, Some(&other.hidden));
                }
                shield.expect(&name, &first, verdict, None, Some(&out.frame));
            }
        }
    }
    // Without data there is nothing to repeat.
    for port in 0..3 {
        let frame = eth().ipv4(CLIENT_V4, SERVER_V4).syn().ports(port, 80).cookie_of(CURRENT).build();
        assert_eq!(shield.run("no data", &frame).0, Some(frame));
    }
}

/// A dry run counts exactly those SYNs on which the protection would have acted.
#[test]
fn a_dry_run_counts_repeated_data_as_it_would_act() {
    let counts = [true, false].map(|acts| {
        let mut shield = comparing_shield(&comparing(acts), Sizes::default());
        for port in [1, 1, 2, 1, 2, 2, 3, 1] {
            shield.run("a SYN", &Syn::new(&v4(1), port, Option_::Of(CURRENT)).frame);
        }
        let once = shield.counters.guards[Guard::Once.index()];
        if acts { once.acted } else { once.would }
    });
    assert_eq!(counts, [4, 4]);
}

/// Data is forgotten after its time, counted from the SYN that was served.
#[test]
fn data_is_forgotten_in_time() {
    let policy = Policy { once: 20, ..comparing(true) };
    let mut shield = comparing_shield(&policy, Sizes::default());
    let mut verdicts: Vec<bool> = Vec::new();
    while verdicts.iter().filter(|is_hidden| !**is_hidden).count() < 3 {
        assert!(verdicts.len() < 60_000, "it is remembered for ever");
        let syn = Syn::new(&v4(1), verdicts.len() as u16, Option_::Of(CURRENT));
        let (out, _) = shield.run("again", &syn.frame);
        verdicts.push(out == Some(syn.hidden));
        thread::sleep(Duration::from_millis(1));
    }
    assert!(!verdicts[0] && verdicts.contains(&true), "{verdicts:?}");
}

/// Only SYNs that the kernel is given are remembered. An eviction of data that could still be repeated is counted.
#[test]
fn data_that_is_not_served_takes_no_room() {
    // There is one row, of two seats.
    let fair =
        Policy { fair: Limit::new(1, FOREVER, 3), fair_source: SourceMask::new(32, 64), ..comparing(true) };
    let sizes = Sizes { replays: 2, ..Sizes::default() };
    let mut shield = comparing_shield(&fair.with(Guard::Fair, true), sizes);
    let forgotten = |shield: &Shield| shield.kernel.by_service()[0].outcomes.replays_forgotten;
    let mut send = |data: &[u8], is_hidden: bool, expected| {
        let frame = |add: &dyn Fn(Tcp) -> Tcp| add(v4(1).syn()).data(data).build();
        let out = if is_hidden { frame(&|tcp| tcp.nops(10)) } else { frame(&|tcp| tcp.cookie_of(CURRENT)) };
        assert_eq!(shield.run("data", &frame(&|tcp| tcp.cookie_of(CURRENT))).0, Some(out));
        assert_eq!(forgotten(&shield), expected);
    };
    send(b"one", false, 0);
    send(b"two", false, 0);
    send(b"three", false, 1);
    send(b"four, above the limit", true, 1);
    send(b"five", true, 1);
}

/// Data that is cut by fragmentation can't be compared, so the option is hidden. Unless a service compares data, it is not.
#[test]
fn data_in_fragments_is_not_served() {
    let fragments: [Ip; 2] = [
        eth().ipv4(CLIENT_V4, SERVER_V4).fragment(MORE_FRAGMENTS).into(),
        eth().ipv6(CLIENT_V6, SERVER_V6).fragment(0, true).into(),
    ];
    let by_syn = Policy { once: FOREVER, ..shield() }.with(Guard::Once, true);
    for (policy, is_hidden) in [(comparing(true), true), (comparing(false), false), (by_syn, false)] {
        let mut shield = comparing_shield(&policy, Sizes::default());
        for ip in &fragments {
            let syn = Syn::new(ip, 1, Option_::Of(CURRENT));
            let (out, _) = shield.run("a fragment", &syn.frame);
            assert_eq!(out, Some(if is_hidden { syn.hidden } else { syn.frame }), "{ip:?}");
            let whole = Syn::new(&packets()[0], 1, Option_::Of(CURRENT));
            assert_eq!(shield.run("a whole one", &whole.frame).0, Some(whole.frame));
        }
        let once = shield.counters.guards[Guard::Once.index()];
        let counts_them = policy.has(Policy::COMPARES_DATA);
        assert_eq!(once.acted + once.would, if counts_them { 2 } else { 0 });
    }
}

/// Dry runs of all guards: every SYN comes out as in mode `accelerate`, and the would-be effects are counted. A dry run
/// uses a source's limit, too.
#[test]
fn a_dry_run_changes_nothing() {
    const ONE: Limit = Limit::new(1, FOREVER, 1);
    let flags = shield().flags | Policy::DROPS | Policy::SHEDS_ALL | Policy::SHEDS_SOURCES;
    let policy = Policy { flags, fair: ONE, shed: ONE, shed_per_source: ONE, ..shield() };
    let policy = Guard::ALL.iter().fold(policy, |policy, guard| policy.with(*guard, false));
    let mut shield = Shield::with(LinkLayer::Ethernet, &policy);
    for ip in [v4(1), v6(1)] {
        for (option, would) in [
            (Option_::Request, [Guard::Hide].as_slice()),
            (Option_::Of(CURRENT), &[Guard::Hide, Guard::Fair, Guard::Clamp]),
            (Option_::Of(RETIRED[0]), &[Guard::Hide, Guard::Fair, Guard::Clamp]),
            (Option_::Of(STRANGER), &[Guard::Hide, Guard::Shed]),
            (Option_::BadLength, &[Guard::Hide, Guard::Shed]),
        ] {
            let syn = Syn::new(&ip, 1, option);
            shield.run("the one that there may be", &syn.frame);
            let (out, counted) = shield.run("one too many", &syn.frame);
            let ring = keys::ring();
            let expected = host::carry_out(&syn.frame, LinkLayer::Ethernet, &self::shield(), &ring);
            assert_eq!(out, Some(expected));
            let mut more = host::count(&syn.frame, LinkLayer::Ethernet, &self::shield(), &ring);
            would.iter().for_each(|guard| more.guards[guard.index()].would = 1);
            counted.assert("a dry run", &more);
        }
    }
}

/// Data of the signed SYNs.
const DATA: &[u8] = b"some data";

/// Sends each SYN of `fast_open` signed in every way. It must come out as it came, without a guard in the counts. `spares`
/// says whether it counts as spared.
fn expect_untouched(shield: &mut Shield, name: &str, fast_open: &dyn Fn(Tcp) -> Tcp, spares: bool) {
    for (way, tcp) in signed(fast_open) {
        let (name, frame) = (format!("{name}: {way}"), tcp.data(DATA).build());
        let before = shield.kernel.watch().signed_spared;
        let (out, counted) = shield.run(&name, &frame);
        assert_eq!(out, Some(frame.clone()), "{name}");
        let accepts = Policy::default();
        counted.assert(&name, &host::count(&frame, LinkLayer::Ethernet, &accepts, &keys::ring()));
        assert_eq!(shield.kernel.watch().signed_spared - before, u64::from(spares), "{name}");
    }
}

/// Returns the same SYNs, with no-operations in place of the signature or of the header. They use up the limits, too.
fn unsigned(fast_open: &dyn Fn(Tcp) -> Tcp) -> [Vec<u8>; 2] {
    let (v4, v6) = (eth().ipv4(CLIENT_V4, SERVER_V4), eth().ipv6(CLIENT_V6, SERVER_V6));
    [Ip::from(v4), v6.into()].map(|ip| fast_open(ip.syn().nops(18)).data(DATA).build())
}

/// No guard and no order changes or drops a signed SYN, although each acts on the same SYN without a signature.
#[test]
fn signed_syns_pass_by_every_guard() {
    const ONE: Limit = Limit::new(1, FOREVER, 1);
    let with = |flags| Policy { flags: shield().flags | flags, ..shield() };
    let fair = Policy { fair: ONE, fair_source: SourceMask::new(32, 64), ..shield() };
    let shed = Policy { shed: ONE, ..with(Policy::SHEDS_ALL) };
    let drops = Policy { flags: shed.flags | Policy::DROPS, ..shed };
    let per_source = Policy {
        shed_per_source: ONE,
        shed_source: SourceMask::new(32, 64),
        ..with(Policy::SHEDS_SOURCES | Policy::DROPS)
    };
    let good: &[keys::TestKey] = &[CURRENT, BACKUP, RETIRED[0]];
    for (name, policy, keys) in [
        ("hide", shield().with(Guard::Hide, true), &[CURRENT, RETIRED[0], STRANGER][..]),
        ("hidden service", with(Policy::HIDDEN_SERVICE), &[CURRENT, RETIRED[0], STRANGER]),
        ("all hidden", with(Policy::HIDDEN_ALL), &[CURRENT, RETIRED[0], STRANGER]),
        ("fair", fair.with(Guard::Fair, true), good),
        ("clamp", Policy { clamp: 3, ..shield() }.with(Guard::Clamp, true), good),
        ("shed", shed.with(Guard::Shed, true), &[STRANGER]),
        ("shed, drop", drops.with(Guard::Shed, true), &[STRANGER]),
        ("shed, each source", per_source.with(Guard::Shed, true), &[STRANGER]),
    ] {
        let mut shield = Shield::with(LinkLayer::Ethernet, &policy);
        for key in keys {
            let fast_open = |tcp: Tcp| tcp.cookie_of(*key);
            for frame in unsigned(&fast_open) {
                shield.run("the one that there may be", &frame);
                let (out, _) = shield.run("one too many", &frame);
                assert_ne!(out, Some(frame), "{name} acts on {key:?}");
            }
            expect_untouched(&mut shield, name, &fast_open, true);
        }
    }
}

/// An order that hides sources spares signed SYNs, too.
#[test]
fn signed_syns_of_hidden_sources_pass() {
    let mut shield = Shield::with(LinkLayer::Ethernet, &shield());
    let order = |prefix| Hidden::Source(parse_prefix(prefix).expect("a prefix"));
    shield.kernel.set_hidden(&[order("0.0.0.0/0"), order("::/0")]);
    for fast_open in [|tcp: Tcp| tcp.cookie_of(CURRENT), Tcp::request, |tcp: Tcp| tcp.cookie_of(STRANGER)] {
        for frame in unsigned(&fast_open) {
            assert_ne!(shield.run("hidden", &frame).0, Some(frame));
        }
        expect_untouched(&mut shield, "a hidden source", &fast_open, true);
    }
    // No guard concerns these.
    expect_untouched(&mut shield, "no option", &|tcp| tcp, false);
    expect_untouched(&mut shield, "odd", &|tcp| tcp.fast_open(&[7; 3]), false);
}

/// Without a reason to act, and in a dry run, signed SYNs are counted by their class alone.
#[test]
fn signed_syns_are_not_spared_from_nothing() {
    let policy = Policy { clamp: 0, ..shield() };
    let dry = Guard::ALL.iter().fold(policy, |policy, guard| policy.with(*guard, false));
    for policy in [shield(), dry] {
        let mut shield = Shield::with(LinkLayer::Ethernet, &policy);
        for key in [CURRENT, BACKUP, STRANGER] {
            expect_untouched(&mut shield, "nothing to do", &|tcp| tcp.cookie_of(key), false);
        }
    }
}

/// A signed replay passes `once`. The same SYN without a signature is hidden.
#[test]
fn signed_replays_pass() {
    sandbox(|| {
        let pins = Bpffs::new(BPFFS.as_ref()).pins("replays");
        let lock = pins.lock(Duration::ZERO).expect("nobody else is here");
        let generation = lock.next_generation().expect("a folder");
        let options = LoadOptions::new(LinkLayer::Ethernet, Mode::Shield);
        let mut kernel = Kernel::with(&options, Some(SharedMaps { generation: &generation, maps: &MAPS }));
        kernel.publish(&keys::ring());
        kernel.set_policy(OTHER, &Policy { once: u64::MAX, ..shield() }.with(Guard::Once, true));
        let mut shield = Shield { kernel, counters: Counters::default() };

        let map = MapData::from_pin(generation.map(names::REPLAYS)).expect("the map is pinned");
        let mut rows: Array<_, [u64; 2 * SEATS]> = Map::Array(map).try_into().expect("an array");
        let last = rows.len() - 1;
        let mut remember = |frame: &[u8]| {
            let segment = parse(frame, LinkLayer::Ethernet).expect("it is whole").expect("it is a SYN");
            let first = frame[segment.tcp as usize..].first_chunk().expect("it has a header");
            let tag = replay_tag(&segment.addresses, u64::from_le_bytes(*first));
            let row = (tag >> 32) as u32 & last;
            rows.set(row, [tag, Remembered::new(0).word(), 0, 0], 0).expect("the map can be written");
        };
        let fast_open = |tcp: Tcp| tcp.cookie_of(CURRENT);
        for frame in unsigned(&fast_open) {
            assert_eq!(shield.run("the first", &frame).0, Some(frame.clone()));
            remember(&frame);
            let (out, counted) = shield.run("a replay", &frame);
            assert_ne!(out, Some(frame));
            let acted = |counters: &Counters| counters.guards[Guard::Once.index()].acted;
            assert_eq!(acted(&counted.after) - acted(&counted.before), 1);
        }
        // Ports and sequence number are the same, so these are replays of the same two SYNs.
        expect_untouched(&mut shield, "a replay", &fast_open, true);
    });
}

/// Returns the tag of a SYN as `Tag::of` makes it, with the seed 0.
fn replay_tag(addresses: &Addresses, first: u64) -> u64 {
    let used = if addresses.family == Family::Ipv4 { 1 } else { 4 };
    let words = [first].into_iter().chain(addresses.words.into_iter().take(used));
    let half = |word: u64, secret: u64| u64::from((word as u32).wrapping_add(secret as u32));
    let products = words
        .zip(Seed::new(0).0)
        .map(|(word, secret)| half(word, secret).wrapping_mul(half(word >> 32, secret >> 32)));
    let sum = products.fold(0, u64::wrapping_add);
    (sum ^ sum >> 32).wrapping_mul(0x94d0_49bb_1331_11eb)
}
