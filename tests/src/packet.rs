//! Builder of packets: `eth().vlan(5).ipv4(src, dst).syn().fast_open(&cookie).data(b"GET /").build()`.
//!
//! Lengths, next-header fields and checksums are right by default, so that a real kernel takes the packet. Faults are
//! set by explicit calls. The builder shares no code with the parser under test.

mod ip;
mod tcp;

use std::net::{Ipv4Addr, Ipv6Addr};

pub use ip::{Carry, Ip, Ipv4, Ipv6, MORE_FRAGMENTS, protocol};
pub use tcp::{Tcp, flag};

/// EtherTypes, in host order.
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// 802.1Q, a customer's VLAN tag.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// 802.1ad, a provider's VLAN tag.
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// Tag from before 802.1ad, which is no tag to Linux.
    pub const OLD_QINQ: u16 = 0x9100;
}

/// Length of an Ethernet header without tags, in bytes.
pub const ETHERNET: usize = 14;

/// Ethernet header up to its last EtherType.
#[derive(Clone, Debug)]
pub struct Eth(Vec<u8>);

/// Begins a frame with an Ethernet header.
pub fn eth() -> Eth {
    eth_between([0x02, 0, 0, 0, 0, 1], [0x02, 0, 0, 0, 0, 2])
}

/// Begins a frame from one MAC address to another.
pub fn eth_between(source: [u8; 6], destination: [u8; 6]) -> Eth {
    Eth([destination, source].concat())
}

/// Begins a frame with an IPv4 header, as on tun.
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr) -> Ipv4 {
    Ipv4::new(Vec::new(), source, destination)
}

/// Begins a frame with an IPv6 header, as on tun.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr) -> Ipv6 {
    Ipv6::new(Vec::new(), source, destination)
}

impl Eth {
    /// Adds an 802.1Q tag.
    pub fn vlan(self, id: u16) -> Self {
        self.tag(ether_type::VLAN, id)
    }

    /// Adds an 802.1ad tag.
    pub fn service_vlan(self, id: u16) -> Self {
        self.tag(ether_type::SERVICE_VLAN, id)
    }

    /// Adds a tag with any protocol identifier.
    pub fn tag(self, tpid: u16, id: u16) -> Self {
        Self([self.0, tpid.to_be_bytes().to_vec(), id.to_be_bytes().to_vec()].concat())
    }

    /// Adds an IPv4 packet.
    pub fn ipv4(self, source: Ipv4Addr, destination: Ipv4Addr) -> Ipv4 {
        Ipv4::new(self.carrying(ether_type::IPV4, &[]), source, destination)
    }

    /// Adds an IPv6 packet.
    pub fn ipv6(self, source: Ipv6Addr, destination: Ipv6Addr) -> Ipv6 {
        Ipv6::new(self.carrying(ether_type::IPV6, &[]), source, destination)
    }

    /// Returns the frame with any EtherType and payload.
    pub fn carrying(self, ether_type: u16, payload: &[u8]) -> Vec<u8> {
        [&self.0, &ether_type.to_be_bytes()[..], payload].concat()
    }
}

/// Returns the Internet checksum (RFC 1071) of `bytes`.
pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
