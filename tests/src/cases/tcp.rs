//! TCP header, and protocols other than TCP: `tcp_v4_rcv`, `tcp_v6_rcv`, `tcp_rcv_state_process`.

use tfo_common::{class::Class::*, parse::Malformed::*};

use super::{Table, malformed, not_syn, syn};
use crate::{
    keys::CURRENT,
    packet::{Carry, Ip, flag::*, protocol},
};

pub(super) fn add(table: &mut Table) {
    flags(table);
    data_offset(table);
    data(table);
    other_protocols(table);
}

/// Adds all combinations of flags. A listener takes a SYN without ACK, RST and FIN, whatever the other flags.
fn flags(table: &mut Table) {
    for flags in 0..=0x1ff {
        let name = format!("flags {flags:#05x}");
        let packet = |ip: Ip| ip.tcp(flags).cookie_of(CURRENT).data(b"hello");
        if flags & SYN == 0 || flags & ACK != 0 {
            table.both(name, packet, not_syn());
        } else if flags & (RST | FIN) != 0 {
            table.both(name, packet, malformed(TcpFlags));
        } else {
            table.both(name, packet, syn(CookieCurrent, 5));
        }
    }
}

/// Adds header lengths. There must be at least five words, and all of them must be there.
fn data_offset(table: &mut Table) {
    for words in 0..5 {
        let name = format!("data offset {words}");
        let packet = |ip: Ip| ip.syn().request().data_offset(words).data(b"hello");
        table.both(&name, packet, malformed(TcpDataOffset));
        table.both(format!("{name}, no SYN"), |ip| ip.tcp(ACK).data_offset(words), not_syn());
    }
    for words in 6..=15 {
        let name = format!("data offset {words}, but five words");
        table.both(&name, |ip| ip.syn().data_offset(words), malformed(TcpOptionsTruncated));
        table.both(format!("{name}, no SYN"), |ip| ip.tcp(ACK).data_offset(words), not_syn());
        // The padding lies behind the packet, so the header is still cut short.
        let padded = |ip: Ip| ip.syn().data_offset(words).trailer(60);
        table.both(format!("{name}, and padding"), padded, malformed(TcpOptionsTruncated));
    }
    let one_short = |ip: Ip| ip.syn().data_offset(15).nops(36).data(b"abc");
    table.both("data offset one byte past the end", one_short, malformed(TcpOptionsTruncated));
    // The header says that the data belongs to the options.
    let swallowed = |ip: Ip| ip.syn().data_offset(6).data(&[34, 2, 1, 1]);
    table.both("data offset over the data", swallowed, syn(CookieRequest, 0));
}

/// Adds lengths of data, which lies between the TCP header's end and the IP packet's.
fn data(table: &mut Table) {
    for len in [1, 2, 535, 1400, 3000] {
        let name = format!("{len} bytes of data");
        table.both(name, |ip| ip.syn().cookie_of(CURRENT).data(&vec![0xaa; len]), syn(CookieCurrent, len));
    }
    for padding in [1, 6, 46, 500] {
        let name = format!("{padding} bytes of Ethernet padding");
        table.both(&name, |ip| ip.syn().trailer(padding), syn(PlainSyn, 0));
        let with_data = |ip: Ip| ip.syn().cookie_of(CURRENT).data(b"x").trailer(padding);
        table.both(format!("{name} behind data"), with_data, syn(CookieCurrent, 1));
    }
}

/// Adds other protocols, such as UDP. Nothing of them is parsed.
fn other_protocols(table: &mut Table) {
    for (name, number) in [
        ("ICMP", protocol::ICMP),
        ("UDP", protocol::UDP),
        ("ESP", protocol::ESP),
        ("ICMPv6", protocol::ICMPV6),
        ("no next header", protocol::NONE),
        ("SCTP", 132),
        ("an unknown protocol", 253),
    ] {
        let payload = |ip: Ip| ip.clone().carrying(number, &ip.syn().cookie_of(CURRENT).segment());
        table.both(name, payload, not_syn());
        table.both(format!("{name}, empty"), |ip| ip.carrying(number, &[]), not_syn());
    }
}
