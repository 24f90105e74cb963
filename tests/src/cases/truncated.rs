//! SYN cut at every byte: received short, sent short, and sent short with the rest as padding.

use tfo_common::{class::Class::*, parse::Malformed::*, segment::Family};

use super::{CLIENT_V4, CLIENT_V6, Expected, SERVER_V4, SERVER_V6, Table};
use crate::{
    keys::CURRENT,
    packet::{Carry, Ip, eth},
};

const DATA: &[u8] = b"hello";
/// Length of the header, 20 bytes, and of the options, 32.
const TCP_HEADER: usize = 52;

pub(super) fn add(table: &mut Table) {
    let v4 = |ip: fn() -> Ip| (Family::Ipv4, 20, ip);
    let v6 = |ip: fn() -> Ip| (Family::Ipv6, 40, ip);
    for (name, link, (family, ip_header, ip)) in [
        ("IPv4", 14, v4(|| eth().ipv4(CLIENT_V4, SERVER_V4).into())),
        ("IPv6", 14, v6(|| eth().ipv6(CLIENT_V6, SERVER_V6).into())),
        ("IPv4 in a VLAN", 18, v4(|| eth().vlan(5).ipv4(CLIENT_V4, SERVER_V4).into())),
        ("IPv6 in a VLAN", 18, v6(|| eth().vlan(5).ipv6(CLIENT_V6, SERVER_V6).into())),
    ] {
        let syn = || ip().syn().linux_options().cookie_of(CURRENT).nops(2).data(DATA);
        let whole = syn().build();
        let transport = link + ip_header;
        assert_eq!(whole.len(), transport + TCP_HEADER + DATA.len());

        for len in 0..whole.len() {
            let expected = match len {
                _ if len < link => LinkTruncated,
                _ if len < transport => IpTruncated,
                _ => IpTotalLength,
            };
            let name = format!("{name}, received {len} bytes");
            table.frame(name, &whole[..len], Expected::Malformed(expected));
        }
        for len in 0..=TCP_HEADER + DATA.len() {
            let expected = match len {
                0..20 => Expected::Malformed(TcpTruncated),
                20..TCP_HEADER => Expected::Malformed(TcpOptionsTruncated),
                _ => Expected::of_class(family, CookieCurrent, len - TCP_HEADER),
            };
            let short = syn().cut(len).build();
            let mut padded = short.clone();
            padded.extend(&whole[short.len()..]);
            table.frame(format!("{name}, sent {len} bytes of TCP"), short, expected);
            table.frame(format!("{name}, sent {len} bytes of TCP, the rest is padding"), padded, expected);
        }
    }
}
