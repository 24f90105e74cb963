//! IPv4 header: `ip_rcv_core` (net/ipv4/ip_input.c), and fragments, which the kernel reassembles before TCP sees them.

use tfo_common::{class::Class::*, parse::Malformed::*, parse::Unsupported::*};

use super::{Table, malformed, not_syn, syn, unsupported};
use crate::{
    keys::CURRENT,
    packet::{Carry, Ipv4, MORE_FRAGMENTS, Tcp, flag, protocol},
};

/// Returns a packet with 20 bytes of IP header, 32 of TCP and 5 of data.
fn hello(ip: Ipv4) -> Tcp {
    ip.syn().cookie_of(CURRENT).data(b"hello")
}

pub(super) fn add(table: &mut Table) {
    header_length(table);
    total_length(table);
    fragments(table);
    for version in (0..16).filter(|version| *version != 4) {
        table.ipv4(format!("version {version}"), |ip| hello(ip.version(version)), malformed(IpVersion));
    }
}

fn header_length(table: &mut Table) {
    for words in 0..5 {
        let name = format!("header length {words}");
        table.ipv4(&name, |ip| hello(ip.ihl(words)), malformed(IpHeaderLength));
        // The kernel drops it, too, but tfo looks at TCP only.
        let udp = |ip: Ipv4| ip.ihl(words).carrying(protocol::UDP, b"");
        table.ipv4(format!("{name}, UDP"), udp, not_syn());
    }
    table.ipv4("header longer than the packet", |ip| hello(ip.ihl(15)), malformed(IpTotalLength));
    let padded = |ip: Ipv4| hello(ip.ihl(15)).trailer(60);
    table.ipv4("header longer than the packet, padded", padded, malformed(IpTotalLength));
    let no_tcp = |ip: Ipv4| ip.options(&[1; 40]).carrying(protocol::TCP, b"");
    table.ipv4("nothing behind the longest header", no_tcp, malformed(TcpTruncated));
    for words in 1..=10 {
        let name = format!("{words} words of options");
        table.ipv4(&name, |ip| hello(ip.options(&vec![1; words * 4])), syn(CookieCurrent, 5));
    }
    let router_alert = |ip: Ipv4| hello(ip.options(&[148, 4, 0, 0]));
    table.ipv4("router alert", router_alert, syn(CookieCurrent, 5));
    // If the IP options were not skipped, the last ones would read as the cookie request of another SYN.
    let alike = |ip: Ipv4| hello(ip.options(&[34, 2, 34, 2, 34, 2, 34, 2]));
    table.ipv4("options that look like TCP's", alike, syn(CookieCurrent, 5));
}

fn total_length(table: &mut Table) {
    for bytes in [0, 1, 19] {
        let name = format!("total length {bytes}");
        table.ipv4(name, |ip| hello(ip.total_length(bytes)), malformed(IpTotalLength));
    }
    let within_options = |ip: Ipv4| hello(ip.options(&[1; 8]).total_length(27));
    table.ipv4("total length ends in the options", within_options, malformed(IpTotalLength));
    for bytes in [58, 1500, 0xffff] {
        let name = format!("total length {bytes}, but 57 bytes");
        table.ipv4(name, |ip| hello(ip.total_length(bytes)), malformed(IpTotalLength));
    }
    table.ipv4("total length of the header alone", |ip| hello(ip.total_length(20)), malformed(TcpTruncated));
    // Bytes behind the packet's end are padding.
    table.ipv4("total length leaves 4 bytes of data", |ip| hello(ip.total_length(56)), syn(CookieCurrent, 4));
    table.ipv4("total length leaves no data", |ip| hello(ip.total_length(52)), syn(CookieCurrent, 0));
    let cut = |ip: Ipv4| hello(ip.total_length(51));
    table.ipv4("total length cuts the TCP header", cut, malformed(TcpOptionsTruncated));
}

fn fragments(table: &mut Table) {
    const DONT_FRAGMENT: u16 = 0x4000;
    const RESERVED: u16 = 0x8000;

    table.ipv4("don't fragment", |ip| hello(ip.fragment(DONT_FRAGMENT)), syn(CookieCurrent, 5));
    table.ipv4("reserved bit", |ip| hello(ip.fragment(RESERVED)), syn(CookieCurrent, 5));
    // Only the data in this fragment is counted. The kernel keeps whole units of eight bytes of it (ip_frag_queue).
    let first = |ip: Ipv4| ip.fragment(MORE_FRAGMENTS);
    table.ipv4("first fragment, five bytes too long", |ip| hello(first(ip)), syn(CookieCurrent, 0));
    for (data, kept) in [(7, 0), (8, 8), (15, 8), (16, 16)] {
        let name = format!("first fragment with {data} bytes of data");
        table.ipv4(name, |ip| hello(first(ip)).data(&[b'x'; 16][..data]), syn(CookieCurrent, kept));
    }
    // The kernel reads the last four bytes of the options from the next fragment.
    let tail = |ip: Ipv4| first(ip).syn().nops(16).data(b"");
    table.ipv4("first fragment, four bytes of options too long", tail, unsupported(FragmentedHeader));
    table.ipv4("first fragment, header only", |ip| hello(first(ip)).cut(32), syn(CookieCurrent, 0));
    for len in [0, 8, 16, 24, 31] {
        let name = format!("first fragment ends {len} bytes into TCP");
        table.ipv4(name, |ip| hello(first(ip)).cut(len), unsupported(FragmentedHeader));
    }
    // Too short for a whole SYN, but long enough to see that it is not a SYN.
    let ack = |ip: Ipv4| first(ip).tcp(flag::ACK).nops(12);
    table.ipv4("first fragment cuts the options of an ACK", |ip| ack(ip).cut(24), not_syn());
    let bad = |ip: Ipv4| first(ip).syn().data_offset(4).data(b"data");
    table.ipv4("first fragment, data offset 4", bad, malformed(TcpDataOffset));
    let udp = |ip: Ipv4| first(ip).carrying(protocol::UDP, b"");
    table.ipv4("first fragment of UDP", udp, not_syn());

    for field in [1, 2, 0x1000, 0x1fff, MORE_FRAGMENTS | 1, DONT_FRAGMENT | 1] {
        let name = format!("later fragment {field:#06x}");
        table.ipv4(&name, |ip| hello(ip.fragment(field)), unsupported(LaterFragment));
        let empty = |ip: Ipv4| ip.fragment(field).carrying(protocol::TCP, b"");
        table.ipv4(format!("{name}, empty"), empty, unsupported(LaterFragment));
        let udp = |ip: Ipv4| ip.fragment(field).carrying(protocol::UDP, b"");
        table.ipv4(format!("{name} of UDP"), udp, not_syn());
    }
}
