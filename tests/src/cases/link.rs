//! Link layer: Ethernet with VLAN tags (`eth_type_vlan`, include/linux/if_vlan.h), or none.

use tfo_common::{class::Class::*, parse::Malformed::*, parse::Unsupported::*, segment::Family};

use super::{CLIENT_V4, CLIENT_V6, Expected, SERVER_V4, SERVER_V6, Table};
use crate::{
    keys::CURRENT,
    packet::{Carry, Eth, Ip, eth, ether_type, ipv4, ipv6},
};

const LINK_CUT: Expected = Expected::Malformed(LinkTruncated);
const IP_CUT: Expected = Expected::Malformed(IpTruncated);

/// Largest number of VLAN tags that is followed.
const LIMIT: usize = 365;

/// Returns an Ethernet header with this number of tags.
fn tagged(tags: usize, id: u16) -> Eth {
    (0..tags).fold(eth(), |eth, _| eth.vlan(id))
}

fn hello(ip: impl Into<Ip>) -> Vec<u8> {
    ip.into().syn().linux_options().cookie_of(CURRENT).nops(2).data(b"hello").build()
}

fn counted(family: Family) -> Expected {
    Expected::of_class(family, CookieCurrent, 5)
}

pub(super) fn add(table: &mut Table) {
    tags(table);
    other_frames(table);
    without_ethernet(table);
}

fn tags(table: &mut Table) {
    let mut both = |name: &str, tagged: fn(Eth) -> Eth, expected: &dyn Fn(Family) -> Expected| {
        let (v4, v6) = (tagged(eth()).ipv4(CLIENT_V4, SERVER_V4), tagged(eth()).ipv6(CLIENT_V6, SERVER_V6));
        table.frame(format!("{name} (IPv4)"), hello(v4), expected(Family::Ipv4));
        table.frame(format!("{name} (IPv6)"), hello(v6), expected(Family::Ipv6));
    };
    both("no tag", |eth| eth, &counted);
    both("802.1Q", |eth| eth.vlan(5), &counted);
    both("802.1Q, priority only", |eth| eth.vlan(0xe000), &counted);
    both("802.1Q, all bits set", |eth| eth.vlan(0xffff), &counted);
    both("802.1ad", |eth| eth.service_vlan(5), &counted);
    both("802.1ad around 802.1Q", |eth| eth.service_vlan(100).vlan(5), &counted);
    both("802.1Q twice", |eth| eth.vlan(100).vlan(5), &counted);
    both("802.1ad twice", |eth| eth.service_vlan(100).service_vlan(5), &counted);

    both("802.1Q three times", |eth| eth.vlan(1).vlan(2).vlan(3), &counted);
    both("802.1ad around 802.1Q twice", |eth| eth.service_vlan(1).vlan(2).vlan(3), &counted);
    both("802.1ad three times", |eth| eth.service_vlan(1).service_vlan(2).service_vlan(3), &counted);
    both("four tags", |eth| eth.vlan(1).vlan(2).vlan(3).vlan(4), &counted);
    for tags in [3, 4, 5, 364] {
        let name = format!("VLAN 0, {tags} times");
        let (v4, v6) =
            (tagged(tags, 0).ipv4(CLIENT_V4, SERVER_V4), tagged(tags, 0).ipv6(CLIENT_V6, SERVER_V6));
        table.frame(format!("{name} (IPv4)"), hello(v4), counted(Family::Ipv4));
        table.frame(format!("{name} (IPv6)"), hello(v6), counted(Family::Ipv6));
    }
    for (tags, expected) in [
        (LIMIT, counted(Family::Ipv4)),
        (LIMIT + 1, Expected::Unsupported(VlanDepth)),
        (500, Expected::Unsupported(VlanDepth)),
    ] {
        let frame = hello(tagged(tags, 1).ipv4(CLIENT_V4, SERVER_V4));
        table.frame(format!("{tags} tags"), frame, expected);
    }
    let mut both = |name: &str, tagged: fn(Eth) -> Eth, expected: &dyn Fn(Family) -> Expected| {
        let (v4, v6) = (tagged(eth()).ipv4(CLIENT_V4, SERVER_V4), tagged(eth()).ipv6(CLIENT_V6, SERVER_V6));
        table.frame(format!("{name} (IPv4)"), hello(v4), expected(Family::Ipv4));
        table.frame(format!("{name} (IPv6)"), hello(v6), expected(Family::Ipv6));
    };
    // To Linux this number is no tag, but an unknown EtherType.
    both("0x9100", |eth| eth.tag(ether_type::OLD_QINQ, 5), &|_| Expected::NotSyn);
    both("0x9100 inside 802.1Q", |eth| eth.vlan(1).tag(ether_type::OLD_QINQ, 5), &|_| Expected::NotSyn);

    // A tag is complete if its EtherType is there, as with the header itself.
    for (name, tagged) in [("802.1Q", eth().vlan(5)), ("two tags", eth().service_vlan(5).vlan(6))] {
        let frame = tagged.carrying(ether_type::ARP, &[]);
        for len in 14..frame.len() {
            table.frame(format!("{name} cut to {len} bytes"), &frame[..len], LINK_CUT);
        }
        table.frame(format!("{name}, ARP"), frame, Expected::NotSyn);
    }
    let third = eth().vlan(1).vlan(2).carrying(ether_type::VLAN, &[]);
    table.frame("third tag cut short", third, LINK_CUT);
}

fn other_frames(table: &mut Table) {
    table.frame("empty", [], LINK_CUT);
    let arp = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2];
    table.frame("ARP", eth().carrying(ether_type::ARP, &arp), Expected::NotSyn);
    // The last three are LLDP, MPLS and PPPoE.
    for ether_type in [0, 46, 1500, 0x0600, 0xffff, 0x88cc, 0x8847, 0x8864] {
        let frame = eth().carrying(ether_type, &hello(ipv4(CLIENT_V4, SERVER_V4)));
        table.frame(format!("EtherType {ether_type:#06x}"), frame, Expected::NotSyn);
    }
    let swapped = eth().carrying(ether_type::IPV4.swap_bytes(), &hello(ipv4(CLIENT_V4, SERVER_V4)));
    table.frame("EtherType of IPv4, swapped", swapped, Expected::NotSyn);
    // The other family's header has another field at the place that tells whether TCP follows: an empty fragment field
    // reads as hop-by-hop options, an address as a protocol other than TCP.
    let v4 = eth().carrying(ether_type::IPV6, &hello(ipv4(CLIENT_V4, SERVER_V4)));
    table.frame("IPv4 under the EtherType of IPv6", v4, Expected::Malformed(IpVersion));
    let v6 = eth().carrying(ether_type::IPV4, &hello(ipv6(CLIENT_V6, SERVER_V6)));
    table.frame("IPv6 under the EtherType of IPv4", v6, Expected::NotSyn);
    table.frame("IPv4, nothing behind", eth().carrying(ether_type::IPV4, &[]), IP_CUT);
    table.frame("IPv6, nothing behind", eth().carrying(ether_type::IPV6, &[]), IP_CUT);
}

/// Adds frames as on tun, where the version tells the family. Those of the other subjects are added automatically.
fn without_ethernet(table: &mut Table) {
    table.ip_frame("IPv4 at once", hello(ipv4(CLIENT_V4, SERVER_V4)), counted(Family::Ipv4));
    table.ip_frame("IPv6 at once", hello(ipv6(CLIENT_V6, SERVER_V6)), counted(Family::Ipv6));
    table.ip_frame("nothing at once", [], IP_CUT);
    for version in (0..16).filter(|version| ![4, 6].contains(version)) {
        let frame = hello(ipv4(CLIENT_V4, SERVER_V4).version(version));
        table.ip_frame(format!("version {version} at once"), frame, Expected::NotSyn);
    }
    // The MAC addresses are read as an IP header, whose first nibble is 0.
    let ethernet = hello(eth().ipv4(CLIENT_V4, SERVER_V4));
    table.ip_frame("Ethernet where there is none", ethernet, Expected::NotSyn);
}
