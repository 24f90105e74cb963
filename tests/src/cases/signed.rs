//! Signed SYNs: with an authentication header (RFC 4302), a TCP-MD5 option (RFC 2385) or a TCP-AO option (RFC 5925). Their
//! class is that of any other SYN. Nothing may change or drop them.

use tfo_common::{class::Class::*, keyring::NEWEST};

use super::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6, Table, not_syn, of_key, syn};
use crate::{
    keys::{BACKUP, CURRENT, RETIRED, STRANGER, TestKey},
    packet::{Carry, Ip, Ipv4, Ipv6, Tcp, eth, protocol},
};

const DATA: &[u8] = b"some data";
/// Slot of the key `RETIRED[0]`.
const OLD: usize = NEWEST;

/// Signs a SYN to which the function adds a Fast Open option.
type Sign = fn(Tcp, &dyn Fn(Tcp) -> Tcp) -> Tcp;

/// Adds a Fast Open option.
type Option_ = fn(Tcp) -> Tcp;

/// Signatures in the TCP options.
const SIGNATURES: [(&str, Sign); 6] = [
    ("TCP-MD5 before it", |tcp, fast_open| fast_open(tcp.md5())),
    ("TCP-MD5 behind it", |tcp, fast_open| fast_open(tcp).md5()),
    ("TCP-MD5 before it, behind a NOP", |tcp, fast_open| fast_open(tcp.nop().md5()).nop()),
    ("TCP-AO before it", |tcp, fast_open| fast_open(tcp.mss(1460).ao(12))),
    ("TCP-AO behind it", |tcp, fast_open| fast_open(tcp.mss(1460)).ao(12)),
    ("TCP-AO without a code, behind it", |tcp, fast_open| fast_open(tcp).ao(0)),
];

/// Adds extension headers.
type Chain = fn(Ipv6) -> Ipv6;

/// Chains of IPv6 headers with an authentication header.
const CHAINS: [(&str, Chain); 4] = [
    ("authentication", Ipv6::authentication),
    ("authentication, destination options", |ip| ip.authentication().destination_options()),
    ("hop by hop, authentication", |ip| ip.hop_by_hop().authentication()),
    ("authentication, atomic fragment", |ip| ip.authentication().atomic_fragment()),
];

/// Returns SYNs that are signed in each way, with the Fast Open option that `fast_open` adds, and without data.
pub fn signed(fast_open: &dyn Fn(Tcp) -> Tcp) -> Vec<(String, Tcp)> {
    let (v4, v6) = (eth().ipv4(CLIENT_V4, SERVER_V4), eth().ipv6(CLIENT_V6, SERVER_V6));
    let packets: [(&str, Ip); 5] = [
        ("IPv4", v4.clone().into()),
        ("IPv4 with options", v4.options(&[1; 4]).into()),
        ("IPv4, VLAN", eth().vlan(5).ipv4(CLIENT_V4, SERVER_V4).into()),
        ("IPv6", v6.clone().into()),
        ("IPv6, destination options", v6.clone().destination_options().into()),
    ];
    let by_option = packets.iter().flat_map(|(packet, ip)| {
        SIGNATURES
            .iter()
            .map(move |(name, sign)| (format!("{packet}, {name}"), sign(ip.clone().syn(), fast_open)))
    });
    let by_header = CHAINS
        .iter()
        .map(|(name, chain)| (format!("IPv6, {name}"), fast_open(chain(v6.clone()).syn().linux_options())));
    by_option.chain(by_header).collect()
}

/// Adds signed SYNs of each class.
pub(super) fn add(table: &mut Table) {
    let slots = [(0, CURRENT), (1, BACKUP), (OLD, RETIRED[0])];
    let classes: [(&str, Option_, _); 4] = [
        ("no option", |tcp| tcp, PlainSyn),
        ("request", Tcp::request, CookieRequest),
        ("a stranger's", |tcp| tcp.cookie_of(STRANGER), CookieUnknown),
        ("six bytes", |tcp| tcp.fast_open(&[7; 6]), CookieBadLength),
    ];
    for (signature, sign) in SIGNATURES {
        for (slot, key) in slots {
            let packet = |ip: Ip| sign(ip.syn(), &|tcp| tcp.cookie_of(key)).data(DATA);
            table.both(format!("slot {slot}, {signature}"), packet, of_key(slot, DATA.len()));
        }
        for (name, fast_open, class) in classes {
            let packet = |ip: Ip| sign(ip.syn(), &fast_open).data(DATA);
            table.both(format!("{name}, {signature}"), packet, syn(class, DATA.len()));
        }
    }
    for (chain, headers) in CHAINS {
        for (slot, key) in slots {
            let packet = |ip| headers(ip).syn().linux_options().cookie_of(key).nops(2).data(DATA);
            table.ipv6(format!("slot {slot}, {chain}"), packet, of_key(slot, DATA.len()));
        }
        for (name, fast_open, class) in classes {
            let packet = |ip| fast_open(headers(ip).syn()).data(DATA);
            table.ipv6(format!("{name}, {chain}"), packet, syn(class, DATA.len()));
        }
    }
    // The signature stays one if a later Fast Open option discards an earlier one.
    let discards = |ip: Ip| ip.syn().request().md5().fast_open(&[7; 2]);
    table.both("TCP-MD5, then two bytes that discard a request", discards, syn(OptionIgnored, 0));
    let forgets = |ip: Ip| ip.syn().fast_open(&[7; 2]).md5().cookie_of(RETIRED[0]);
    table.both("TCP-MD5 between two bytes and a cookie", forgets, of_key(OLD, 0));
    let both = |ip: Ip| ip.syn().md5().ao(4).cookie_of(RETIRED[0]);
    table.both("TCP-MD5 and TCP-AO", both, of_key(OLD, 0));
}

/// Adds SYNs that are not signed, but nearly so, and authenticated IPv4, which is not followed.
pub(super) fn add_nearly(table: &mut Table) {
    let mut case = |name: &str, options: fn(Tcp) -> Tcp| {
        let packet = |ip: Ip| options(ip.syn()).data(DATA);
        table.both(name, packet, of_key(OLD, DATA.len()));
    };
    case("TCP-MD5 of 17 bytes", |tcp| tcp.option(19, &[0x5a; 15]).cookie_of(RETIRED[0]));
    case("TCP-MD5 of 19 bytes", |tcp| tcp.option(19, &[0x5a; 17]).cookie_of(RETIRED[0]));
    case("TCP-AO of 3 bytes", |tcp| tcp.option(29, &[1]).cookie_of(RETIRED[0]));
    case("TCP-MD5 behind the end of the list", |tcp| tcp.cookie_of(RETIRED[0]).eol().md5());
    case("TCP-MD5 behind a broken option", |tcp| tcp.cookie_of(RETIRED[0]).option_bytes(&[77, 0]).md5());
    case("TCP-AO inside another option", |tcp| tcp.option(77, &[29, 4, 1, 1]).cookie_of(RETIRED[0]));
    for key in [CURRENT, RETIRED[0], STRANGER] {
        let name = format!("IPv4 with an authentication header, key {key:?}");
        table.ipv4(name, |ip| authenticated(ip, key), not_syn());
    }
}

/// Returns an IPv4 packet with an authentication header and a cookie of `key`.
fn authenticated(ip: Ipv4, key: TestKey) -> Vec<u8> {
    let segment = Ip::from(ip.clone()).syn().cookie_of(key).data(DATA).segment();
    let mut header = [0; 24];
    (header[0], header[1], header[7]) = (protocol::TCP, 24 / 4 - 2, 1);
    ip.carrying(protocol::AUTHENTICATION, &[&header, &segment[..]].concat())
}
