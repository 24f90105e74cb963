//! IPv6 header and extension headers: `ip6_rcv_core` (net/ipv6/ip6_input.c), exthdrs.c, reassembly.c.

use tfo_common::{class::Class::*, parse::Malformed::*, parse::Unsupported::*};

use super::{Expected, Family, Table, malformed, not_syn, syn, unsupported};
use crate::{
    keys::CURRENT,
    packet::{Carry, Ipv6, Tcp, flag, protocol},
};

/// Returns a packet with 40 bytes of IP header, 32 of TCP and 5 of data.
fn hello(ip: Ipv6) -> Tcp {
    ip.syn().cookie_of(CURRENT).data(b"hello")
}

fn hello_counted() -> impl Fn(Family) -> Expected {
    syn(CookieCurrent, 5)
}

type Extension = fn(Ipv6) -> Ipv6;

/// Extension headers that are followed. Each is eight bytes long, except the authentication header.
const FOLLOWED: [(&str, Extension); 5] = [
    ("hop-by-hop", Ipv6::hop_by_hop),
    ("routing, no stop left", |ip| ip.routing(0)),
    ("atomic fragment", Ipv6::atomic_fragment),
    ("destination options", Ipv6::destination_options),
    ("authentication", Ipv6::authentication),
];

/// Largest number of extension headers that is followed.
const LIMIT: usize = 16;

pub(super) fn add(table: &mut Table) {
    lengths(table);
    single_extensions(table);
    chains(table);
    fragments(table);
    for version in (0..16).filter(|version| *version != 6) {
        table.ipv6(format!("version {version}"), |ip| hello(ip.version(version)), malformed(IpVersion));
    }
}

fn lengths(table: &mut Table) {
    for bytes in [38, 1500, 0xffff] {
        let name = format!("payload length {bytes}, but 37 bytes");
        table.ipv6(name, |ip| hello(ip.payload_length(bytes)), malformed(IpTotalLength));
    }
    // Bytes behind the packet's end are padding.
    let less = |len| move |ip: Ipv6| hello(ip.payload_length(len));
    table.ipv6("payload length leaves 4 bytes of data", less(36), syn(CookieCurrent, 4));
    table.ipv6("payload length leaves no data", less(32), syn(CookieCurrent, 0));
    table.ipv6("payload length cuts the TCP options", less(31), malformed(TcpOptionsTruncated));
    table.ipv6("payload length 0", less(0), malformed(TcpTruncated));

    // With hop-by-hop options in front, the kernel takes the rest of the frame, padding included: only the option of a
    // jumbogram could tell the length, and that is for more than 64 KiB.
    let rest = |ip: Ipv6| hello(ip.hop_by_hop().payload_length(0));
    table.ipv6("payload length 0 with hop-by-hop", rest, hello_counted());
    let padded = |ip: Ipv6| hello(ip.hop_by_hop().payload_length(0)).trailer(3);
    table.ipv6("payload length 0 with hop-by-hop, padded", padded, syn(CookieCurrent, 8));
    let short = |ip: Ipv6| hello(ip.hop_by_hop().payload_length(0)).cut(19);
    table.ipv6("payload length 0 with hop-by-hop, cut", short, malformed(TcpTruncated));
    let destination = |ip: Ipv6| hello(ip.destination_options().payload_length(0));
    table.ipv6("payload length 0 with destination options", destination, malformed(ExtensionTruncated));
}

fn single_extensions(table: &mut Table) {
    for (name, extension) in FOLLOWED {
        table.ipv6(name, |ip| hello(extension(ip)), hello_counted());
        table.ipv6(format!("{name}, then an ACK"), |ip| extension(ip).tcp(flag::ACK), not_syn());
        for next in [protocol::UDP, protocol::ESP, protocol::NONE, protocol::ICMPV6] {
            let packet = |ip| extension(ip).carrying(next, b"\x22\x02\x22\x02");
            table.ipv6(format!("{name}, then protocol {next}"), packet, not_syn());
        }
        for len in 0..8 {
            // The next header is of the kind in its first byte, so it is cut short in any case.
            let packet = |ip| extension(ip).payload_length(len).carrying(protocol::TCP, b"");
            let reason = if len == 0 && name == "hop-by-hop" { TcpTruncated } else { ExtensionTruncated };
            table.ipv6(format!("{name}, {len} bytes of it"), packet, malformed(reason));
        }
    }
    for units in [2, 3, 31, 32, 33, 256] {
        for (name, kind) in [("hop-by-hop", protocol::HOP_BY_HOP), ("destination", protocol::DESTINATION)] {
            let name = format!("{name} options of {units} × 8 bytes");
            table.ipv6(&name, |ip| hello(ip.options(kind, units)), hello_counted());
            // The first eight bytes of the header, then a TCP header of 20.
            let short = |ip: Ipv6| ip.extension(kind, &[0, (units - 1) as u8, 1, 4, 0, 0, 0, 0]).syn();
            if units * 8 > 8 + 20 {
                table.ipv6(format!("{name}, cut"), short, malformed(ExtensionTruncated));
            }
        }
    }
    // Its length counts words of four bytes, less two. All others count units of eight bytes, less one.
    let longer = |ip: Ipv6| {
        let mut header = [0; 32];
        header[1] = 32 / 4 - 2;
        hello(ip.extension(protocol::AUTHENTICATION, &header))
    };
    table.ipv6("authentication, 32 bytes", longer, hello_counted());
    let cut = |ip: Ipv6| ip.extension(protocol::AUTHENTICATION, &[0, 6, 0, 0, 0, 0, 0, 1]).syn();
    table.ipv6("authentication, cut", cut, malformed(ExtensionTruncated));

    for stops in [1, 2, 3] {
        let name = format!("routing, {stops} stops left");
        table.ipv6(name, |ip| hello(ip.routing(stops)), unsupported(SourceRoute));
    }
    // RPL and segment routing. Both are refused even at the last stop, unless the interface is configured to accept
    // them.
    for kind in [3, 4] {
        let name = format!("routing of type {kind}, no stop left");
        table.ipv6(name, |ip| hello(ip.routing_of(kind, 0)), unsupported(SourceRoute));
    }
    for kind in [2, 253] {
        let name = format!("routing of type {kind}, no stop left");
        table.ipv6(name, |ip| hello(ip.routing_of(kind, 0)), hello_counted());
    }
    for kind in [135, 139, 140, 253] {
        let packet = |ip: Ipv6| hello(ip.extension(kind, &[0; 8]));
        table.ipv6(format!("extension header {kind}, not one that leads to TCP"), packet, not_syn());
    }
}

fn chains(table: &mut Table) {
    let all = |ip: Ipv6| FOLLOWED.into_iter().fold(ip, |ip, (_, extension)| extension(ip));
    table.ipv6("one of each", |ip| hello(all(ip)), hello_counted());

    let many = |ip: Ipv6, count| (0..count).fold(ip, |ip: Ipv6, _| ip.destination_options());
    for count in 2..=LIMIT {
        table.ipv6(format!("{count} headers"), |ip| hello(many(ip, count)), hello_counted());
        let with_hop = |ip: Ipv6| hello(many(ip.hop_by_hop(), count - 1));
        table.ipv6(format!("{count} headers, hop-by-hop first"), with_hop, hello_counted());
        let udp = |ip| many(ip, count).carrying(protocol::UDP, b"");
        table.ipv6(format!("{count} headers, then UDP"), udp, not_syn());
    }
    for count in [LIMIT + 1, LIMIT + 2, 40] {
        let name = format!("{count} headers");
        table.ipv6(&name, |ip| hello(many(ip, count)), unsupported(ExtensionChain));
        // The protocol behind the limit is not known.
        let udp = |ip| many(ip, count).carrying(protocol::UDP, b"");
        table.ipv6(format!("{name}, then UDP"), udp, unsupported(ExtensionChain));
    }
    // The kernel accepts hop-by-hop options right behind the IPv6 header only.
    for (name, extension) in FOLLOWED {
        let packet = |ip: Ipv6| hello(extension(ip).hop_by_hop());
        table.ipv6(format!("hop-by-hop behind {name}"), packet, unsupported(ExtensionChain));
    }
    let late = |ip: Ipv6| hello(ip.destination_options().routing(1));
    table.ipv6("routing with a stop left, second", late, unsupported(SourceRoute));
    let cut = |ip: Ipv6| hello(ip.routing(0).extension(protocol::DESTINATION, &[0, 9, 1, 4, 0, 0, 0, 0]));
    table.ipv6("second header cut", cut, malformed(ExtensionTruncated));
}

fn fragments(table: &mut Table) {
    // Only the data in this fragment is counted.
    let first = |ip: Ipv6| ip.fragment(0, true);
    table.ipv6("first fragment", |ip| hello(first(ip)), hello_counted());
    table.ipv6("first fragment, header only", |ip| hello(first(ip)).cut(32), syn(CookieCurrent, 0));
    // The kernel drops these since RFC 7112. Older kernels reassemble them.
    for len in [0, 8, 16, 24, 31] {
        let name = format!("first fragment ends {len} bytes into TCP");
        table.ipv6(name, |ip| hello(first(ip)).cut(len), unsupported(FragmentedHeader));
    }
    let in_extension = |ip: Ipv6| first(ip).extension(protocol::DESTINATION, &[0, 1, 1, 4, 0, 0, 0, 0]);
    let cut = |ip| in_extension(ip).carrying(protocol::TCP, b"");
    table.ipv6("first fragment ends in an extension header", cut, unsupported(FragmentedHeader));
    let nothing = |ip: Ipv6| first(ip).carrying(protocol::DESTINATION, b"");
    table.ipv6("first fragment ends before an extension header", nothing, unsupported(FragmentedHeader));
    let first_then = |ip: Ipv6| hello(first(ip).destination_options());
    table.ipv6("first fragment, then destination options", first_then, hello_counted());
    let not_cut = |ip: Ipv6| hello(ip.atomic_fragment()).cut(24);
    table.ipv6("atomic fragment, cut", not_cut, malformed(TcpOptionsTruncated));
    let first_then_atomic = |ip: Ipv6| hello(first(ip).atomic_fragment()).cut(24);
    table.ipv6("first fragment around an atomic one, cut", first_then_atomic, unsupported(ExtensionChain));
    let twice = |ip: Ipv6| hello(ip.atomic_fragment().atomic_fragment());
    table.ipv6("two atomic fragment headers", twice, unsupported(ExtensionChain));
    let apart = |ip: Ipv6| hello(ip.atomic_fragment().destination_options().atomic_fragment());
    table.ipv6("two atomic fragment headers, apart", apart, unsupported(ExtensionChain));
    let udp = |ip: Ipv6| first(ip).carrying(protocol::UDP, b"");
    table.ipv6("first fragment of UDP", udp, not_syn());

    for (offset, more) in
        [(1, false), (1, true), (2, false), (0x1000, false), (0x1fff, false), (0x1fff, true)]
    {
        let name = format!("later fragment at {offset} × 8, more follow: {more}");
        table.ipv6(&name, |ip| hello(ip.fragment(offset, more)), unsupported(LaterFragment));
        let behind = |ip: Ipv6| hello(ip.hop_by_hop().fragment(offset, more));
        table.ipv6(format!("{name}, behind hop-by-hop"), behind, unsupported(LaterFragment));
        // The fragment header names the kind of the first fragmented header, which may lead to TCP.
        let extension = |ip: Ipv6| hello(ip.fragment(offset, more).destination_options());
        table.ipv6(format!("{name}, of an extension header"), extension, unsupported(LaterFragment));
        let udp = |ip: Ipv6| ip.fragment(offset, more).carrying(protocol::UDP, b"");
        table.ipv6(format!("{name}, of UDP"), udp, not_syn());
    }
    // The two bits between the offset and the flag are reserved.
    let reserved = |ip: Ipv6| hello(ip.extension(protocol::FRAGMENT, &[0, 0xff, 0, 0b110, 1, 2, 3, 4]));
    table.ipv6("atomic fragment, reserved bits set", reserved, hello_counted());
}
