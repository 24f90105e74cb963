//! SYNs to ports whose listeners are special, in mode `shield`: the real program, run by BPF_PROG_TEST_RUN. Needs root.

use std::collections::BTreeSet;

use tfo_common::{
    class::Class,
    counters::Counters,
    limit::Limit,
    parse::LinkLayer,
    policy::{Guard, Policy},
    service::OTHER,
    table::SourceMask,
    verdict::{Mode, Verdict},
};
use tfo_tests::{
    cases::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6},
    guards::{Open, ServiceSettings, Setting},
    kernel::Kernel,
    keys::{self, BACKUP, CURRENT, RETIRED, STRANGER, TestKey},
    packet::{Carry as _, Ip, MORE_FRAGMENTS, Tcp, eth},
};
use tfo_userspace::model::{guards::SpecialPorts, keys::PortKeys};

/// Port of the special listeners, and one of others.
const SPECIAL: u16 = 443;
const USUAL: u16 = 442;
/// More jiffies than any of these tests takes.
const FOREVER: u64 = 1 << 30;

/// Step that adds an option to a SYN.
type Add = fn(Tcp) -> Tcp;

/// A SYN of each class.
const SYNS: [(Class, Add); 8] = [
    (Class::PlainSyn, |tcp| tcp.nops(2)),
    (Class::OptionIgnored, |tcp| tcp.fast_open(&[7; 3]).nop()),
    (Class::CookieRequest, |tcp| tcp.request()),
    (Class::CookieCurrent, |tcp| tcp.cookie_of(CURRENT)),
    (Class::CookieBackup, |tcp| tcp.cookie_of(BACKUP)),
    (Class::CookieRetired, |tcp| tcp.cookie_of(RETIRED[0])),
    (Class::CookieUnknown, |tcp| tcp.cookie_of(STRANGER)),
    (Class::CookieBadLength, |tcp| tcp.fast_open(&[7; 6])),
];

fn families() -> [Ip; 2] {
    [eth().ipv4(CLIENT_V4, SERVER_V4).into(), eth().ipv6(CLIENT_V6, SERVER_V6).into()]
}

fn frame(ip: &Ip, port: u16, fast_open: Add, data: &[u8]) -> Vec<u8> {
    fast_open(ip.clone().syn().ports(5000, port).linux_options_without_timestamps()).data(data).build()
}

/// Loads a program in which `special` are the ports of special listeners.
fn load(special: SpecialPorts) -> Kernel {
    let mut kernel = Kernel::load(LinkLayer::Ethernet, Mode::Shield, &keys::ring());
    kernel.set_special(special);
    kernel
}

fn port(port: u16) -> BTreeSet<u16> {
    BTreeSet::from([port])
}

/// Returns how one SYN was counted: its verdict, the guard that acted, and bits of those that would have.
fn difference(before: &Counters, after: &Counters, class: Class) -> (Verdict, Option<Guard>, u8) {
    let more = |verdict: &Verdict| after.verdict(class, *verdict) > before.verdict(class, *verdict);
    let verdicts: Vec<_> = Verdict::ALL.iter().filter(|verdict| more(verdict)).collect();
    assert_eq!(verdicts.len(), 1, "{class}: {verdicts:?}");
    let guards = Guard::ALL.iter().zip(before.guards.iter().zip(&after.guards));
    let acted = guards.clone().find(|(_, (before, after))| after.acted > before.acted);
    let would = guards.filter(|(_, (before, after))| after.would > before.would);
    let would = would.fold(0, |bits, (guard, _)| bits | 1 << guard.index());
    (*verdicts[0], acted.map(|(guard, _)| *guard), would)
}

/// Every guard, acting and in a dry run, on every class with and without data, where a cookie is needed and where not: as the
/// second implementation says. Limits are used up, and each window is too wide.
#[test]
fn where_no_cookie_is_needed_every_syn_that_is_served_is_judged() {
    let special = SpecialPorts { no_cookie: port(SPECIAL), ..SpecialPorts::default() };
    let mut kernel = load(special);
    let mut sent = 0;
    let judged = [Guard::Hide, Guard::Fair, Guard::Clamp, Guard::Shed];
    let settings = [Setting::Off, Setting::Dry, Setting::Acts];
    for combination in 0..3_usize.pow(4) * 2 {
        let mut guards = [Setting::Off; Guard::COUNT];
        for (place, guard) in judged.iter().enumerate() {
            guards[guard.index()] = settings[combination / 3_usize.pow(place as u32) % 3];
        }
        let wanted =
            ServiceSettings { translates: true, drops: combination >= 81, ..ServiceSettings::of(guards) };
        let mut policy = wanted.policy();
        policy.flags |= Policy::SHEDS_OTHERS | Policy::SHEDS_ALL;
        // Nothing is left of either limit after its first SYN.
        let one = Limit::new(1, FOREVER, 1);
        policy = Policy { fair: one, fair_source: SourceMask::new(32, 64), shed: one, ..policy };
        kernel.set_policy(OTHER, &policy);
        for (ip, (class, fast_open)) in families().iter().flat_map(|ip| SYNS.map(|syn| (ip, syn))) {
            for (to, data) in [(SPECIAL, "data"), (SPECIAL, ""), (USUAL, "data"), (USUAL, "")] {
                let open = match (to, data) {
                    (USUAL, _) => Open::No,
                    (_, "") => Open::WithoutData,
                    _ => Open::WithData,
                };
                let syn = frame(ip, to, fast_open, data.as_bytes());
                let name = format!("{wanted:?}, {class} to {to}, data {data:?}");
                // The first one uses up what is left.
                kernel.run_or_drop(&name, &syn, 1);
                let before = kernel.counters();
                let out = kernel.run_or_drop(&name, &syn, 1);
                let expected = wanted.expected(class, open, true, |_| true).last(open);
                let counted = difference(&before, &kernel.counters(), class);
                assert_eq!(counted, (expected.verdict, expected.guard, expected.would), "{name}");
                let changes = expected.clamps || expected.verdict != Verdict::Pass;
                match out {
                    None => assert_eq!(expected.verdict, Verdict::Drop, "{name}"),
                    Some(out) => {
                        assert_ne!(expected.verdict, Verdict::Drop, "{name}");
                        assert_eq!(out != syn, changes, "{name}");
                    }
                }
                sent += 1;
            }
        }
    }
    assert_eq!(sent, 162 * 2 * 8 * 4);
}

/// Each way to the slow path knows of the listener: usual frames, and those that need a walk. A fragment may have its data in
/// a later frame.
#[test]
fn any_frame_with_data_is_dropped_where_it_would_be_hidden_in_vain() {
    let hide = |policy: Policy| policy.with(Guard::Hide, true);
    for special in [
        SpecialPorts { no_cookie: port(80), ..SpecialPorts::default() },
        SpecialPorts { all_no_cookie: true, ..SpecialPorts::default() },
    ] {
        let is_for_all = special.all_no_cookie;
        let mut kernel = load(special);
        kernel.set_policy(OTHER, &hide(Policy::of_mode(Mode::Shield)));
        let [v4, v6] = families();
        let fragment: Ip = eth().ipv4(CLIENT_V4, SERVER_V4).fragment(MORE_FRAGMENTS).into();
        let tagged: Ip = eth().vlan(7).ipv6(CLIENT_V6, SERVER_V6).into();
        for (name, ip, data, is_dropped) in [
            ("IPv4", &v4, "data", true),
            ("IPv6", &v6, "data", true),
            ("a VLAN", &tagged, "data", true),
            ("a fragment", &fragment, "data8888", true),
            ("no data", &v4, "", false),
            ("a VLAN, no data", &tagged, "", false),
        ] {
            for (class, fast_open) in SYNS {
                let syn = frame(ip, 80, fast_open, data.as_bytes());
                let is_dropped_now = kernel.run_or_drop(name, &syn, 1).is_none();
                assert_eq!(is_dropped_now, is_dropped, "{name}: {class}");
            }
        }
        // All of its header in whole units of eight bytes, and no data yet.
        let empty = fragment.clone().syn().ports(5000, 80).mss(1460).build();
        assert_eq!(kernel.run_or_drop("a fragment without data yet", &empty, 1), None);
        // The map is of the port that a SYN goes to, and signed SYNs are never touched.
        let signed = v4.clone().syn().ports(5000, 80).md5().data(b"data").build();
        assert_eq!(kernel.run("signed", &signed, 1), signed);
        let from_there = v4.clone().syn().ports(80, 81).data(b"data").build();
        assert_eq!(kernel.run_or_drop("from that port", &from_there, 1).is_none(), is_for_all);
        kernel.set_special(SpecialPorts::default());
        let syn = frame(&v4, 80, |tcp| tcp.nops(2), b"data");
        assert_eq!(kernel.run("a usual listener again", &syn, 1), syn);
    }
}

/// `shed` spares ports where a listener has keys of its own, unless it is told to shed those, too.
#[test]
fn shed_spares_listeners_with_keys_of_their_own() {
    for (drops, acts) in [(true, true), (false, true), (true, false)] {
        for sheds_own_keys in [false, true] {
            let mut kernel = load(SpecialPorts { own_keys: port(SPECIAL), ..SpecialPorts::default() });
            let mut flags = Policy::of_mode(Mode::Shield).flags | Policy::SHEDS_OTHERS | Policy::SHEDS_ALL;
            flags |= if drops { Policy::DROPS } else { 0 };
            flags |= if sheds_own_keys { Policy::SHEDS_OWN_KEYS } else { 0 };
            // Not even one SYN is within the limit.
            let shed = Limit { interval: FOREVER << 20, tolerance: 0 };
            let policy = Policy { flags, shed, ..Policy::of_mode(Mode::Shield) }.with(Guard::Shed, acts);
            kernel.set_policy(OTHER, &policy);
            kernel.run("the first one", &frame(&families()[0], USUAL, |tcp| tcp.cookie_of(STRANGER), b""), 1);
            for (ip, to) in families().iter().flat_map(|ip| [(ip, SPECIAL), (ip, USUAL)]) {
                let syn = frame(ip, to, |tcp| tcp.cookie_of(STRANGER), b"data");
                let (before, spared) = (kernel.counters(), kernel.watch().own_keys_spared);
                let out = kernel.run_or_drop("a stranger's", &syn, 1);
                let is_shed = to == USUAL || sheds_own_keys;
                let expected = match (is_shed, acts, drops) {
                    (false, ..) => (Verdict::Pass, None, 0),
                    (true, false, _) => (Verdict::Pass, None, 1 << Guard::Shed.index()),
                    (true, true, true) => (Verdict::Drop, Some(Guard::Shed), 0),
                    (true, true, false) => (Verdict::Hide, Some(Guard::Shed), 0),
                };
                let counted = difference(&before, &kernel.counters(), Class::CookieUnknown);
                assert_eq!(counted, expected, "drop {drops}, own_keys {sheds_own_keys}, port {to}");
                assert_eq!(out.as_ref() == Some(&syn), expected.0 == Verdict::Pass);
                assert_eq!(kernel.watch().own_keys_spared - spared, u64::from(!is_shed));
            }
        }
    }
}

/// Cookies to a port whose listeners have keys of their own are judged by these, in each mode and on each way through the
/// program, and cookies to any other port by the sysctl's.
#[test]
fn cookies_are_judged_by_the_keys_of_their_listeners() {
    let (own, next) = (STRANGER, TestKey([9, 8, 7, 6]));
    for mode in [Mode::Observe, Mode::Accelerate, Mode::Shield] {
        let mut kernel = Kernel::load(LinkLayer::Ethernet, mode, &keys::ring());
        let usual = [eth().ipv4(CLIENT_V4, SERVER_V4).into(), eth().ipv6(CLIENT_V6, SERVER_V6).into()];
        let tagged = [
            eth().vlan(7).ipv4(CLIENT_V4, SERVER_V4).into(),
            eth().vlan(7).vlan(8).ipv6(CLIENT_V6, SERVER_V6).into(),
        ];
        let all: Vec<Ip> = usual.into_iter().chain(tagged).collect();
        let judge = |kernel: &mut Kernel, ip: &Ip, port: u16, key: TestKey| {
            let syn = ip.clone().syn().ports(5000, port).linux_options_without_timestamps();
            let frame = syn.clone().cookie_of(key).data(b"data").build();
            let (before, hits) = (kernel.counters(), kernel.counters().hits);
            let out = kernel.run("a cookie", &frame, 1);
            let after = kernel.counters();
            let is_more = |class: &&Class| {
                Verdict::ALL.iter().any(|it| after.verdict(**class, *it) > before.verdict(**class, *it))
            };
            let class = *Class::ALL.iter().find(is_more).expect("it is counted");
            let expected = if out == frame { None } else { Some(out) };
            (class, expected, after.hits != hits)
        };
        let special = SpecialPorts { own_keys: port(SPECIAL), ..SpecialPorts::default() };
        kernel.set_special(special.clone());
        for ip in &all {
            assert_eq!(
                judge(&mut kernel, ip, SPECIAL, own),
                (Class::CookieUnknown, None, false),
                "not known"
            );
        }
        kernel.hold_own_keys(&PortKeys::new(SPECIAL, Some(own.key()), None));
        kernel.set_special(SpecialPorts { known: port(SPECIAL), ..special });
        for ip in &all {
            // Hits are those of the sysctl's keys.
            assert_eq!(judge(&mut kernel, ip, SPECIAL, own), (Class::CookieCurrent, None, false), "{mode:?}");
            assert_eq!(judge(&mut kernel, ip, SPECIAL, CURRENT), (Class::CookieUnknown, None, false));
            assert_eq!(judge(&mut kernel, ip, SPECIAL, BACKUP), (Class::CookieUnknown, None, false));
            assert_eq!(judge(&mut kernel, ip, USUAL, CURRENT), (Class::CookieCurrent, None, true));
            assert_eq!(judge(&mut kernel, ip, USUAL, own), (Class::CookieUnknown, None, false));
        }
        kernel.hold_own_keys(&PortKeys::new(SPECIAL, Some(next.key()), None));
        for ip in &all {
            let (class, out, _) = judge(&mut kernel, ip, SPECIAL, own);
            let syn = ip.clone().syn().ports(5000, SPECIAL).linux_options_without_timestamps();
            let translated = syn.cookie_of(next).data(b"data").build();
            let expected = if mode == Mode::Observe { None } else { Some(translated) };
            assert_eq!((class, out), (Class::CookieRetired, expected), "{mode:?}");
            assert_eq!(judge(&mut kernel, ip, SPECIAL, next).0, Class::CookieCurrent);
        }
        // Where listeners differ, all keys are known, and nothing is translated.
        let mut differing = PortKeys::new(SPECIAL, Some(next.key()), None);
        differing.add(Some(RETIRED[0].key()), Some(own.key()));
        kernel.hold_own_keys(&differing);
        for ip in &all {
            for (key, class) in [
                (next, Class::CookieCurrent),
                (own, Class::CookieRetired),
                (RETIRED[0], Class::CookieRetired),
                (RETIRED[1], Class::CookieUnknown),
            ] {
                assert_eq!(judge(&mut kernel, ip, SPECIAL, key), (class, None, false), "{mode:?}");
            }
        }
    }
}
