//! `unfollowed = "drop"` in the kernel: it drops frames that may be a SYN to the service, and no others. Needs root.

use std::net::{Ipv4Addr, Ipv6Addr};

use tfo_common::{
    counters::Counters,
    parse::{LinkLayer, Unsupported},
    verdict::Mode,
};
use tfo_tests::{
    cases::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6, all},
    kernel::{Kernel, fits},
    keys::{self, CURRENT},
    packet::{Carry as _, Eth, Ip, Ipv4, Ipv6, MORE_FRAGMENTS, Tcp, eth, flag, protocol},
};
use tfo_userspace::{
    dataplane::LoadOptions,
    model::services::{Named, Services, Unfollowed::Drop, parse_prefix},
};

const OTHER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 7);

/// Port of the service `web`, which drops at the addresses of the server.
const WEB: u16 = 80;
/// Port of the service `any`, which drops at all addresses.
const ANY: u16 = 81;
/// Port of the service `shop`, which passes.
const SHOP: u16 = 82;
/// Port of no service.
const NONE: u16 = 83;

fn services() -> Services {
    let shield = |text: &str| Named { mode: Mode::Shield, ..text.parse().expect("a service") };
    let addresses = [SERVER_V4.to_string(), SERVER_V6.to_string()];
    let addresses = addresses.iter().map(|text| parse_prefix(text).expect("an address")).collect();
    let named = vec![
        Named { unfollowed: Drop, addresses, ..shield("web=80") },
        Named { unfollowed: Drop, ..shield("any=81") },
        shield("shop=82"),
    ];
    Services::new(named, Mode::Observe).expect("no conflict")
}

fn kernel() -> Kernel {
    let options = LoadOptions { services: 3, ..LoadOptions::new(LinkLayer::Ethernet, Mode::Shield) };
    let mut kernel = Kernel::with(&options, None);
    kernel.publish(&keys::ring());
    kernel.serve(&services());
    kernel
}

/// Returns the counters of the service called `name`.
fn counters(kernel: &Kernel, name: &str) -> Counters {
    let services = kernel.by_service();
    services.iter().find(|service| service.name == name).expect("a service").counters
}

/// Frame, and the service that drops it.
struct Case {
    name: String,
    frame: Vec<u8>,
    dropped: Option<&'static str>,
}

fn syn(ip: impl Into<Ip>, port: u16) -> Tcp {
    ip.into().syn().ports(4000, port).cookie_of(CURRENT).data(b"hello")
}

fn v4(link: Eth) -> Ipv4 {
    link.ipv4(CLIENT_V4, SERVER_V4)
}

fn v6(link: Eth) -> Ipv6 {
    link.ipv6(CLIENT_V6, SERVER_V6)
}

/// First fragments that end inside the TCP header, so that they have ports.
fn with_ports() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add =
        |name: &str, frame: Vec<u8>, dropped| cases.push(Case { name: name.to_owned(), frame, dropped });
    let first_v4 = |to| eth().ipv4(CLIENT_V4, to).fragment(MORE_FRAGMENTS);
    let first_v6 = |to| eth().ipv6(CLIENT_V6, to).fragment(0, true);
    for len in [8, 12, 16, 24] {
        for (port, dropped) in [(WEB, Some("web")), (ANY, Some("any")), (SHOP, None), (NONE, None)] {
            add(&format!("{len} bytes to {port}"), syn(first_v4(SERVER_V4), port).cut(len).build(), dropped);
            add(&format!("{len} bytes to {port}"), syn(first_v6(SERVER_V6), port).cut(len).build(), dropped);
        }
        for (port, dropped) in [(WEB, None), (ANY, Some("any")), (SHOP, None)] {
            add(
                &format!("{len} to {port} elsewhere"),
                syn(first_v4(OTHER_V4), port).cut(len).build(),
                dropped,
            );
            add(
                &format!("{len} to {port} elsewhere"),
                syn(first_v6(OTHER_V6), port).cut(len).build(),
                dropped,
            );
        }
    }
    let tagged = v4(eth().vlan(5)).fragment(MORE_FRAGMENTS);
    add("in a VLAN", syn(tagged, WEB).cut(8).build(), Some("web"));
    let with_options = v4(eth()).options(&[1; 8]).fragment(MORE_FRAGMENTS);
    add("behind IPv4 options", syn(with_options, WEB).cut(8).build(), Some("web"));
    let behind = v6(eth()).destination_options().fragment(0, true).destination_options();
    add("behind options", syn(behind, WEB).cut(24).build(), Some("web"));
    // A SYN that is signed is not dropped, and a segment that is no SYN passes by no guard.
    add("authenticated", syn(v6(eth()).authentication().fragment(0, true), WEB).cut(24).build(), None);
    for flags in [flag::ACK, flag::SYN | flag::ACK, flag::RST, flag::FIN, flag::SYN | flag::RST] {
        for len in [16, 24] {
            let tcp = |ip: Ip| ip.tcp(flags).ports(4000, WEB).nops(12).cut(len).build();
            add(&format!("flags {flags:#x}"), tcp(first_v4(SERVER_V4).into()), None);
            add(&format!("flags {flags:#x}"), tcp(first_v6(SERVER_V6).into()), None);
        }
    }
    cases
}

/// Frames in which tfo finds no ports, and frames of other kinds.
fn without_ports() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add =
        |name: &str, frame: Vec<u8>, dropped| cases.push(Case { name: name.to_owned(), frame, dropped });
    let misplaced = |to| eth().ipv6(CLIENT_V6, to).destination_options().hop_by_hop();
    add("misplaced options", syn(misplaced(SERVER_V6), WEB).build(), Some("web"));
    add("misplaced options, to none", syn(misplaced(SERVER_V6), NONE).build(), None);
    add("misplaced options, elsewhere", syn(misplaced(OTHER_V6), WEB).build(), None);
    let cut = |to| {
        let ip = eth().ipv6(CLIENT_V6, to).fragment(0, true);
        ip.extension(protocol::DESTINATION, &[0, 1, 1, 4, 0, 0, 0, 0]).carrying(protocol::TCP, b"")
    };
    let long = |to, count| (0..count).fold(eth().ipv6(CLIENT_V6, to), |ip: Ipv6, _| ip.destination_options());
    for count in [17, 40, 180] {
        for (port, dropped) in [(WEB, Some("web")), (ANY, Some("any")), (SHOP, None), (NONE, None)] {
            add(&format!("{count} headers, {port}"), syn(long(SERVER_V6, count), port).build(), dropped);
        }
        add(&format!("{count} headers, elsewhere"), syn(long(OTHER_V6, count), WEB).build(), None);
        let ack = long(SERVER_V6, count).tcp(flag::ACK).ports(4000, WEB);
        add(&format!("{count} headers, an ACK"), ack.build(), None);
        add(&format!("{count} headers, UDP"), long(SERVER_V6, count).carrying(protocol::UDP, &[0; 8]), None);
    }
    // The port and the protocol behind so many headers are not looked for.
    add("181 headers", syn(long(SERVER_V6, 181), SHOP).build(), Some("web"));
    add("181 headers, elsewhere", syn(long(OTHER_V6, 181), ANY).build(), None);
    add("first fragment ends in an option", cut(SERVER_V6), Some("web"));
    add("first fragment ends in an option, elsewhere", cut(OTHER_V6), None);

    for (offset, field) in [(1, 1 | MORE_FRAGMENTS), (3, 3)] {
        add("later fragment", syn(v4(eth()).fragment(field), WEB).build(), None);
        add(
            "later fragment",
            syn(v6(eth()).fragment(offset, field & MORE_FRAGMENTS != 0), WEB).build(),
            None,
        );
    }
    for kind in [protocol::UDP, protocol::ICMP, protocol::ESP] {
        add("another protocol", v4(eth()).fragment(MORE_FRAGMENTS).carrying(kind, &[0; 8]), None);
        add("another protocol", v6(eth()).fragment(0, true).carrying(kind, &[0; 8]), None);
    }
    add("source route", syn(v6(eth()).routing(1), WEB).build(), None);
    add("segment routing", syn(v6(eth()).routing_of(4, 0), WEB).build(), None);
    add("cut, and no fragment", syn(v4(eth()), WEB).cut(8).build(), None);
    add("whole", syn(v4(eth()), WEB).build(), None);
    add("whole", syn(v6(eth()), WEB).build(), None);
    cases
}

#[test]
fn only_what_may_be_a_syn_to_the_service_is_dropped() {
    let mut kernel = kernel();
    for Case { name, frame, dropped } in with_ports().into_iter().chain(without_ports()) {
        let sum = |kernel: &Kernel, name| counters(kernel, name).dropped.iter().sum::<u64>();
        let before = ["web", "any", "shop", "other"].map(|service| sum(&kernel, service));
        let out = kernel.run_or_drop(&name, &frame, 1);
        assert_eq!(out, dropped.is_none().then_some(frame), "{name}");
        for (service, before) in ["web", "any", "shop", "other"].into_iter().zip(before) {
            let more = u64::from(dropped == Some(service));
            assert_eq!(sum(&kernel, service) - before, more, "{name}: {service}");
        }
    }
    let reasons = |name| counters(&kernel, name).dropped;
    assert!(reasons("web")[Unsupported::FragmentedHeader as usize] > 0);
    assert!(reasons("web")[Unsupported::ExtensionChain as usize] > 0);
    assert_eq!(reasons("other"), [0; 8]);
    // What passes is counted by service, too.
    assert!(counters(&kernel, "shop").unsupported[Unsupported::FragmentedHeader as usize] > 0);
}

/// A service in mode shield that passes them drops nothing of the whole case table.
#[test]
fn nothing_is_dropped_by_default() {
    let mut kernel = Kernel::load(LinkLayer::Ethernet, Mode::Shield, &keys::ring());
    for case in all().iter().filter(|case| case.link == LinkLayer::Ethernet && fits(&case.frame)) {
        kernel.run(&case.name, &case.frame, 1);
    }
    assert_eq!(counters(&kernel, "other").dropped, [0; 8]);
}
