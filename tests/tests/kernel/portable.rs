//! Portable cookies in the kernel: both programs, run by BPF_PROG_TEST_RUN. The expected cookies are those of the harness, and
//! the expected frames those of the packet builder. Needs root.

use std::net::IpAddr;

use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};
use tfo_common::{
    class::Class,
    counters::Counters,
    parse::LinkLayer,
    policy::Policy,
    service::OTHER,
    verdict::{Mode, Verdict},
};
use tfo_tests::{
    cases::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6},
    kernel::{Kernel, fits},
    keys::{self, BACKUP, CURRENT, STRANGER, TestKey, portable},
    packet::{Carry, Ip, Tcp, checksum, eth, flag, ipv4, ipv6},
    random::frame,
};
use tfo_userspace::dataplane::LoadOptions;

/// Tag of the service.
const TAG: u64 = 0x0123_4567_89ab_cdef;

/// Loads a program for frames of `link` whose only service has portable cookies.
fn load(link: LinkLayer) -> Kernel {
    let options = LoadOptions { portable: true, searches: u32::MAX, ..LoadOptions::new(link, Mode::Shield) };
    let mut kernel = Kernel::with(&options, None);
    kernel.publish(&keys::ring());
    kernel.set_policy(OTHER, &Policy { portable: TAG, ..Policy::of_mode(Mode::Accelerate) });
    kernel
}

/// Returns headers in front of a client's TCP header.
fn packets(link: LinkLayer) -> Vec<(&'static str, Ip)> {
    match link {
        LinkLayer::Ethernet => vec![
            ("IPv4", eth().ipv4(CLIENT_V4, SERVER_V4).into()),
            ("IPv6", eth().ipv6(CLIENT_V6, SERVER_V6).into()),
            ("VLAN, IPv4", eth().vlan(5).ipv4(CLIENT_V4, SERVER_V4).into()),
            ("VLAN, IPv6", eth().vlan(5).ipv6(CLIENT_V6, SERVER_V6).into()),
            ("two tags, IPv4", eth().service_vlan(5).vlan(6).ipv4(CLIENT_V4, SERVER_V4).into()),
            ("IPv4 with options", eth().ipv4(CLIENT_V4, SERVER_V4).options(&[1; 8]).into()),
            ("IPv6, hop by hop", eth().ipv6(CLIENT_V6, SERVER_V6).hop_by_hop().into()),
        ],
        LinkLayer::Ip => vec![
            ("tun, IPv4", ipv4(CLIENT_V4, SERVER_V4).into()),
            ("tun, IPv6", ipv6(CLIENT_V6, SERVER_V6).into()),
        ],
    }
}

/// Returns the same headers on the way back.
fn replies(link: LinkLayer) -> Vec<(&'static str, Ip)> {
    match link {
        LinkLayer::Ethernet => vec![
            ("IPv4", eth().ipv4(SERVER_V4, CLIENT_V4).into()),
            ("IPv6", eth().ipv6(SERVER_V6, CLIENT_V6).into()),
            ("VLAN, IPv4", eth().vlan(5).ipv4(SERVER_V4, CLIENT_V4).into()),
            ("VLAN, IPv6", eth().vlan(5).ipv6(SERVER_V6, CLIENT_V6).into()),
            ("two tags, IPv6", eth().service_vlan(5).vlan(6).ipv6(SERVER_V6, CLIENT_V6).into()),
        ],
        LinkLayer::Ip => vec![
            ("tun, IPv4", ipv4(SERVER_V4, CLIENT_V4).into()),
            ("tun, IPv6", ipv6(SERVER_V6, CLIENT_V6).into()),
        ],
    }
}

/// Options around a cookie.
type Options = fn(Tcp, &[u8]) -> Tcp;

/// Options at odd and even offsets, in both forms.
const OPTIONS: [(&str, Options); 6] = [
    ("of Linux", |tcp, cookie| tcp.linux_options().fast_open(cookie).nops(2)),
    ("alone", |tcp, cookie| tcp.fast_open(cookie)),
    ("behind a NOP", |tcp, cookie| tcp.nop().fast_open(cookie)),
    ("of FreeBSD", |tcp, cookie| tcp.freebsd_options().fast_open(cookie)),
    ("experimental", |tcp, cookie| tcp.linux_options().experimental(Tcp::MAGIC, cookie)),
    ("at the very end", |tcp, cookie| tcp.nops(30).fast_open(cookie)),
];

/// Runs one SYN, and returns the bytes afterwards and what has been counted meanwhile.
fn run(kernel: &mut Kernel, name: &str, frame: &[u8]) -> (Vec<u8>, Counters) {
    let before = kernel.counters();
    let out = kernel.run(name, frame, 1);
    let mut after = kernel.counters();
    for (now, before) in after
        .syn
        .as_flattened_mut()
        .as_flattened_mut()
        .iter_mut()
        .zip(before.syn.as_flattened().as_flattened())
    {
        now.packets -= before.packets;
    }
    (out, after)
}

/// Whether exactly one SYN of `class` and `verdict` is counted.
fn counts(counters: &Counters, class: Class, verdict: Verdict) -> bool {
    let all: u64 = counters.syn.as_flattened().as_flattened().iter().map(|tally| tally.packets).sum();
    let these: u64 = counters.syn.iter().map(|family| family[class.index()][verdict.index()].packets).sum();
    all == 1 && these == 1
}

/// Cookie of the kernel for the client of `ip`.
fn kernels(key: TestKey, ip: &Ip) -> [u8; 8] {
    let (source, destination) = ip.addresses();
    key.cookie(source, destination)
}

fn portable_of(key: TestKey, ip: &Ip) -> [u8; 8] {
    portable(key, TAG, ip.addresses().0)
}

#[test]
fn portable_cookies_of_every_key_become_the_kernels() {
    for link in [LinkLayer::Ethernet, LinkLayer::Ip] {
        let mut kernel = load(link);
        for (kind, ip) in packets(link) {
            for (layout, options) in OPTIONS {
                for (slot, key) in keys::all().into_iter().enumerate() {
                    for data in [&b""[..], b"GET / HTTP/1.1\r\n\r\n"] {
                        let name = format!("{kind}, {layout}, slot {slot}, {} bytes", data.len());
                        let syn = |cookie: [u8; 8]| options(ip.clone().syn(), &cookie).data(data).build();
                        // The current key needs no fresh cookie, all others do.
                        let (class, into) = match slot {
                            0 => (Class::CookieCurrent, CURRENT),
                            1 => (Class::CookieBackup, BACKUP),
                            _ => (Class::CookieRetired, BACKUP),
                        };
                        let (out, counted) = run(&mut kernel, &name, &syn(portable_of(key, &ip)));
                        assert_eq!(out, syn(kernels(into, &ip)), "{name}");
                        assert!(counts(&counted, class, Verdict::Rewrite), "{name}");
                        // Cookies of the kernel go on as before.
                        let (out, counted) = run(&mut kernel, &name, &syn(kernels(key, &ip)));
                        let (expected, verdict) = match slot {
                            0 | 1 => (key, Verdict::Pass),
                            _ => (BACKUP, Verdict::Rewrite),
                        };
                        assert_eq!(out, syn(kernels(expected, &ip)), "{name}, the kernel's");
                        assert!(counts(&counted, class, verdict), "{name}, the kernel's");
                    }
                }
            }
        }
    }
}

#[test]
fn other_cookies_stay_as_they_are() {
    let mut kernel = load(LinkLayer::Ethernet);
    for (kind, ip) in packets(LinkLayer::Ethernet) {
        let source = ip.addresses().0;
        let foreign: IpAddr = match source {
            IpAddr::V4(_) => "192.0.2.99".parse().expect("one"),
            IpAddr::V6(_) => "2001:db8::99".parse().expect("one"),
        };
        for (what, cookie) in [
            ("of a stranger's key", portable(STRANGER, TAG, source)),
            ("of another service", portable(CURRENT, TAG + 1, source)),
            ("of another client", portable(CURRENT, TAG, foreign)),
            ("forged", *b"forged!!"),
        ] {
            let frame = ip.clone().syn().linux_options().fast_open(&cookie).nops(2).data(b"x").build();
            let (out, counted) = run(&mut kernel, what, &frame);
            assert_eq!(out, frame, "{kind}, {what}");
            assert!(counts(&counted, Class::CookieUnknown, Verdict::Pass), "{kind}, {what}");
        }
        let good = portable_of(CURRENT, &ip);
        // A signed SYN is never changed.
        let signed = ip.clone().syn().fast_open(&good).md5().build();
        let (out, counted) = run(&mut kernel, "signed", &signed);
        assert_eq!(out, signed, "{kind}");
        assert!(counts(&counted, Class::CookieCurrent, Verdict::Pass), "{kind}");
    }
    assert!(kernel.watch().signed_spared > 0);
}

#[test]
fn nothing_is_translated_or_handed_out_without_a_confirmation() {
    let mut kernel = load(LinkLayer::Ethernet);
    kernel.egress_load();
    kernel.confirm_ago(6);
    for (kind, ip) in packets(LinkLayer::Ethernet) {
        let frame = ip.clone().syn().fast_open(&portable_of(CURRENT, &ip)).build();
        let before = kernel.watch().unconfirmed;
        let (out, counted) = run(&mut kernel, kind, &frame);
        assert_eq!(out, frame, "{kind}");
        assert!(counts(&counted, Class::CookieCurrent, Verdict::Pass), "{kind}");
        assert_eq!(kernel.watch().unconfirmed - before, 1, "{kind}");
    }
    for (kind, ip) in replies(LinkLayer::Ethernet) {
        let frame = syn_ack(&ip, |tcp| tcp.fast_open(&reply_cookie(CURRENT, &ip)));
        assert_eq!(sent(&mut kernel, kind, &frame), frame);
    }
}

#[test]
fn a_flood_of_forged_cookies_is_searched_within_the_budget() {
    let options =
        LoadOptions { portable: true, searches: 4, ..LoadOptions::new(LinkLayer::Ethernet, Mode::Shield) };
    let mut kernel = Kernel::with(&options, None);
    kernel.publish(&keys::ring());
    kernel.set_policy(OTHER, &Policy { portable: TAG, ..Policy::of_mode(Mode::Accelerate) });
    let ip = Ip::from(eth().ipv4(CLIENT_V4, SERVER_V4));
    let frame = ip.clone().syn().linux_options().fast_open(b"forged!!").nops(2).build();
    kernel.run("forged", &frame, 10_000);
    // Each search costs two of the budget, so most of them are left out.
    let skipped = kernel.watch().searches.skipped;
    assert!(skipped > 5_000, "{skipped}");
    // Portable cookies of the kernel's keys are known all the same.
    for key in [CURRENT, BACKUP] {
        let frame = ip.clone().syn().linux_options().fast_open(&portable_of(key, &ip)).nops(2).build();
        let out = kernel.run("good", &frame, 1);
        let expected = ip.clone().syn().linux_options().fast_open(&kernels(key, &ip)).nops(2).build();
        assert_eq!(out, expected);
    }
}

/// Returns the cookie that the kernel puts into its SYN-ACK with the headers `ip`.
fn reply_cookie(key: TestKey, ip: &Ip) -> [u8; 8] {
    let (source, destination) = ip.addresses();
    key.cookie(destination, source)
}

/// Returns a SYN-ACK with `options`.
fn syn_ack(ip: &Ip, options: impl Fn(Tcp) -> Tcp) -> Vec<u8> {
    options(ip.clone().tcp(flag::SYN | flag::ACK)).build()
}

/// Returns `frame` as it leaves.
fn sent(kernel: &mut Kernel, name: &str, frame: &[u8]) -> Vec<u8> {
    kernel.send(name, frame, 1)
}

#[test]
fn cookies_that_leave_become_portable() {
    for link in [LinkLayer::Ethernet, LinkLayer::Ip] {
        let mut kernel = load(link);
        kernel.egress_load();
        let mut exchanged = 0;
        for (kind, ip) in replies(link) {
            for (layout, options) in OPTIONS {
                for (slot, key) in keys::all().into_iter().enumerate() {
                    let name = format!("{kind}, {layout}, slot {slot}");
                    let frame = syn_ack(&ip, |tcp| options(tcp, &reply_cookie(key, &ip)));
                    let cookie = portable(key, TAG, ip.addresses().1);
                    let expected = syn_ack(&ip, |tcp| options(tcp, &cookie));
                    assert_eq!(sent(&mut kernel, &name, &frame), expected, "{name}");
                    exchanged += 1;
                    assert_eq!(kernel.watch().exchanged, exchanged, "{name}");
                }
            }
        }
    }
}

#[test]
fn other_packets_leave_as_they_came() {
    for link in [LinkLayer::Ethernet, LinkLayer::Ip] {
        let mut kernel = load(link);
        kernel.egress_load();
        for (kind, ip) in replies(link) {
            let good = reply_cookie(CURRENT, &ip);
            let (source, destination) = ip.addresses();
            let with = |flags: u16| ip.clone().tcp(flags).linux_options().fast_open(&good).nops(2);
            let frames = [
                ("a SYN", with(flag::SYN).build()),
                ("an ACK", with(flag::ACK).build()),
                ("SYN, ACK and RST", with(flag::SYN | flag::ACK | flag::RST).build()),
                ("with data", with(flag::SYN | flag::ACK).data(&[7; 100]).build()),
                ("a listener's own key", syn_ack(&ip, |tcp| tcp.fast_open(&reply_cookie(STRANGER, &ip)))),
                (
                    "addresses in the wrong order",
                    syn_ack(&ip, |tcp| tcp.fast_open(&CURRENT.cookie(source, destination))),
                ),
                ("without an option", syn_ack(&ip, Tcp::linux_options)),
                ("an empty option", syn_ack(&ip, |tcp| tcp.linux_options().request())),
                ("another length", syn_ack(&ip, |tcp| tcp.fast_open(&[1; 6]))),
                ("signed", syn_ack(&ip, |tcp| tcp.fast_open(&good).md5())),
                ("data", ip.clone().tcp(flag::ACK).data(&[7; 1400]).build()),
            ];
            for (what, frame) in frames {
                assert_eq!(sent(&mut kernel, what, &frame), frame, "{kind}, {what}");
            }
        }
        // A service without portable cookies.
        kernel.set_policy(OTHER, &Policy::of_mode(Mode::Accelerate));
        for (kind, ip) in replies(link) {
            let frame = syn_ack(&ip, |tcp| tcp.fast_open(&reply_cookie(CURRENT, &ip)));
            assert_eq!(sent(&mut kernel, kind, &frame), frame, "{kind}");
        }
        assert_eq!(kernel.watch().exchanged, 0);
    }
}

#[test]
fn random_packets_leave_as_they_came() {
    let mut kernel = load(LinkLayer::Ethernet);
    kernel.egress_load();
    let mut runner = TestRunner::default();
    for _ in 0..3000 {
        let frame = frame().new_tree(&mut runner).expect("a frame");
        let frame = frame.current();
        if fits(&frame) {
            assert_eq!(sent(&mut kernel, "random", &frame), frame);
        }
    }
}

#[test]
fn the_checksum_of_a_changed_syn_ack_is_right() {
    let mut kernel = load(LinkLayer::Ethernet);
    kernel.egress_load();
    for (kind, ip) in replies(LinkLayer::Ethernet) {
        for (layout, options) in OPTIONS {
            let frame = syn_ack(&ip, |tcp| options(tcp, &reply_cookie(CURRENT, &ip)));
            let out = sent(&mut kernel, kind, &frame);
            assert_ne!(out, frame);
            let tcp = frame.len() - options(ip.clone().tcp(flag::SYN | flag::ACK), &[0; 8]).segment().len();
            assert_eq!(checksum(&out[tcp..]) % 0xffff, checksum(&frame[tcp..]) % 0xffff, "{kind}, {layout}");
        }
    }
}
