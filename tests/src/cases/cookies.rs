//! Classes of SYNs, by the cookie and the key ring.

use tfo_common::{
    class::Class::*,
    segment::Family::{self, *},
};

use super::{Expected, Keys, Table, of_key, syn};
use crate::{
    keys::{self, CURRENT, RETIRED, STRANGER, ZERO},
    packet::{Carry, Ip, Tcp, eth},
};

const DATA: [&[u8]; 3] = [b"", b"x", b"GET / HTTP/1.1\r\n\r\n"];

pub(super) fn add(table: &mut Table) {
    classes(table, "");
    table.keys = Keys::WithNext;
    classes(table, ", next known");
    table.keys = Keys::Known;
    next(table);
    vectors(table);
    near_misses(table);
    empty_ring(table);
}

/// Adds every class over both families, with and without data. A valid cookie without data makes a child, too.
fn classes(table: &mut Table, keys: &str) {
    for data in DATA {
        let len = data.len();
        let mut case = |name: &str, options: &dyn Fn(Tcp) -> Tcp, class| {
            let name = format!("{name}, {len} bytes of data{keys}");
            table.both(name, |ip| options(ip.syn().linux_options()).data(data), syn(class, len));
        };
        case("no option", &|tcp| tcp, PlainSyn);
        case("odd length", &|tcp| tcp.fast_open(&[7; 7]), OptionIgnored);
        case("request", &|tcp| tcp.request().nops(2), CookieRequest);
        case("a stranger's", &|tcp| tcp.cookie_of(STRANGER).nops(2), CookieUnknown);
        case("half as long", &|tcp| tcp.fast_open(&[4; 4]).nops(2), CookieBadLength);
        for (slot, key) in keys::all().into_iter().enumerate() {
            if table.keys.ring().holds(slot) {
                let name = format!("the cookie of slot {slot}, {len} bytes of data{keys}");
                let cookie = |ip: Ip| ip.syn().linux_options().cookie_of(key).nops(2).data(data);
                table.both(name, cookie, of_key(slot, len));
            }
        }
    }
}

/// Adds cookies of the next key. Without a schedule, that key is as unknown as a stranger's.
fn next(table: &mut Table) {
    let cookie = |ip: Ip| ip.syn().cookie_of(keys::NEXT);
    table.both("the next key's, which is not known", cookie, syn(CookieUnknown, 0));
}

/// Adds cookies that a real kernel made. The words of the last row's key differ in the two byte orders, those of the
/// others don't.
fn vectors(table: &mut Table) {
    let v4 = |source: [u8; 4], destination: [u8; 4]| eth().ipv4(source.into(), destination.into()).syn();
    let v6 = |source: [u16; 8], destination: [u16; 8]| eth().ipv6(source.into(), destination.into()).syn();
    let expect = |family: Family, class| Expected::of_class(family, class, 5);

    let syn = v4([192, 0, 2, 1], [192, 168, 0, 1]).fast_open(&0x3021_b9d8_8901_7eeb_u64.to_be_bytes());
    table.frame("from Linux, backup key", syn.data(b"hello"), expect(Ipv4, CookieBackup));

    let syn = v6([0xfd3d, 0xfa7b, 0xd17d, 0, 0, 0, 0, 1], [0xfd3d, 0x0a0b, 0x17d6, 0, 0, 0, 0, 1])
        .fast_open(&0xc1d1_e974_2a47_a9bc_u64.to_be_bytes());
    table.frame("from Linux, backup key over IPv6", syn.data(b"hello"), expect(Ipv6, CookieBackup));

    let syn = v4([10, 248, 0, 2], [192, 168, 0, 2]).fast_open(&0x00ab_aaab_e8e9_54c2_u64.to_be_bytes());
    table.frame("from Linux, primary key", syn.data(b"hello"), expect(Ipv4, CookieCurrent));
}

/// Adds cookies with one difference. All eight bytes and both addresses count, in their order. Ports and sequence
/// number do not.
fn near_misses(table: &mut Table) {
    for byte in 0..8 {
        let flip = |tcp: Tcp| {
            let mut cookie = tcp.cookie(CURRENT);
            cookie[byte] ^= 1;
            tcp.fast_open(&cookie)
        };
        table.both(format!("one bit off in byte {byte}"), |ip| flip(ip.syn()), syn(CookieUnknown, 0));
    }
    let reversed = |tcp: Tcp| {
        let mut cookie = tcp.cookie(CURRENT);
        cookie.reverse();
        tcp.fast_open(&cookie)
    };
    table.both("bytes reversed", |ip| reversed(ip.syn()), syn(CookieUnknown, 0));
    table.both("eight zeros", |ip| ip.syn().fast_open(&[0; 8]), syn(CookieUnknown, 0));
    let elsewhere = |ip: Ip| {
        let (source, destination) = ip.addresses();
        ip.syn().fast_open(&CURRENT.cookie(destination, source))
    };
    table.both("of the way back", elsewhere, syn(CookieUnknown, 0));
    let other_ports = |ip: Ip| ip.syn().ports(1, 65_535).sequence(0).window(0).cookie_of(CURRENT);
    table.both("other ports, sequence and window", other_ports, syn(CookieCurrent, 0));
}

/// Adds cookies under an empty ring. Its slots hold zeros, which must not be taken for a key of zeros.
fn empty_ring(table: &mut Table) {
    table.keys = Keys::None;
    let data = b"hello";
    let both = |table: &mut Table, name: &str, option: fn(Tcp) -> Tcp, class| {
        table.both(format!("{name}, no key known"), |ip| option(ip.syn()).data(data), syn(class, data.len()));
    };
    both(table, "no option", |tcp| tcp, PlainSyn);
    both(table, "request", Tcp::request, CookieRequest);
    both(table, "the primary key's", |tcp| tcp.cookie_of(CURRENT), CookieUnknown);
    both(table, "a retired key's", |tcp| tcp.cookie_of(RETIRED[0]), CookieUnknown);
    both(table, "the zero key's", |tcp| tcp.cookie_of(ZERO), CookieUnknown);
    both(table, "sixteen bytes", |tcp| tcp.fast_open(&[7; 16]), CookieBadLength);
    both(table, "seventeen bytes", |tcp| tcp.fast_open(&[7; 17]), OptionIgnored);
}
