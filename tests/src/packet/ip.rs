//! IPv4 and IPv6 headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Tcp, checksum, flag};

/// Protocol and next-header numbers.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// IPsec encapsulation, which encrypts what follows.
    pub const ESP: u8 = 50;
    /// IPsec authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// End of the headers, without a payload.
    pub const NONE: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
}

/// IPv4 flag for further fragments.
pub const MORE_FRAGMENTS: u16 = 0x2000;

/// Option that a receiver skips if it does not know it (RFC 4727: for experiments).
const SKIPPED_OPTION: u8 = 0x1e;

/// IP header of either family, with the link layer in front.
#[derive(Clone, Debug)]
pub enum Ip {
    /// IPv4.
    V4(Ipv4),
    /// IPv6.
    V6(Ipv6),
}

impl From<Ipv4> for Ip {
    fn from(ip: Ipv4) -> Self {
        Self::V4(ip)
    }
}

impl From<Ipv6> for Ip {
    fn from(ip: Ipv6) -> Self {
        Self::V6(ip)
    }
}

impl Ip {
    /// Returns the addresses of source and destination.
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        match self {
            Self::V4(ip) => (ip.source.into(), ip.destination.into()),
            Self::V6(ip) => (ip.source.into(), ip.destination.into()),
        }
    }

    /// Returns the checksum of `segment` with the pseudo header in front of it.
    pub(super) fn checksum(&self, protocol: u8, segment: &[u8]) -> u16 {
        let addresses = match self {
            Self::V4(ip) => [ip.source.octets(), ip.destination.octets()].concat(),
            Self::V6(ip) => [ip.source.octets(), ip.destination.octets()].concat(),
        };
        // The pseudo headers of both families differ in the place of the zeros only, which does not affect the sum.
        let length = (segment.len() as u32).to_be_bytes();
        checksum(&[&addresses, &length[..], &[0, protocol], segment].concat())
    }

    fn assemble(self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match self {
            Self::V4(ip) => ip.assemble(protocol, payload),
            Self::V6(ip) => ip.assemble(protocol, payload),
        }
    }
}

/// Payloads of an IP header of either family.
pub trait Carry: Into<Ip> {
    /// Adds a TCP SYN.
    fn syn(self) -> Tcp {
        self.tcp(flag::SYN)
    }

    /// Adds a TCP segment with these flags.
    fn tcp(self, flags: u16) -> Tcp {
        Tcp::new(self.into(), flags)
    }

    /// Returns the frame with any payload.
    fn carrying(self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.into().assemble(protocol, payload)
    }
}

impl<T: Into<Ip>> Carry for T {}

/// IPv4 header.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    link: Vec<u8>,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    options: Vec<u8>,
    fragment: u16,
    version: u8,
    ihl: Option<u8>,
    total_length: Option<u16>,
}

impl Ipv4 {
    pub(super) fn new(link: Vec<u8>, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        let (options, fragment, version, ihl, total_length) = (Vec::new(), 0, 4, None, None);
        Self { link, source, destination, options, fragment, version, ihl, total_length }
    }

    /// Sets the IP options, padded to whole words with end-of-list bytes.
    pub fn options(mut self, bytes: &[u8]) -> Self {
        self.options = bytes.to_vec();
        self.options.resize(bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Sets the fragment field: three flags, and the offset in units of eight bytes.
    pub fn fragment(mut self, field: u16) -> Self {
        self.fragment = field;
        self
    }

    /// Sets a version other than 4.
    pub fn version(mut self, version: u8) -> Self {
        self.version = version;
        self
    }

    /// Sets a wrong header length, in words.
    pub fn ihl(mut self, words: u8) -> Self {
        self.ihl = Some(words);
        self
    }

    /// Sets a wrong total length, in bytes.
    pub fn total_length(mut self, bytes: u16) -> Self {
        self.total_length = Some(bytes);
        self
    }

    fn assemble(self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let ihl = self.ihl.unwrap_or((header_len / 4) as u8);
        let total = self.total_length.unwrap_or((header_len + payload.len()) as u16).to_be_bytes();
        let fragment = self.fragment.to_be_bytes();
        let mut header = vec![self.version << 4 | ihl, 0, total[0], total[1]];
        header.extend([0x12, 0x34, fragment[0], fragment[1]]);
        header.extend([64, protocol, 0, 0]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        header.extend(self.options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [&self.link, &header, payload].concat()
    }
}

/// IPv6 header with its extension headers.
#[derive(Clone, Debug)]
pub struct Ipv6 {
    link: Vec<u8>,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    /// Kind and bytes of each extension header. The first byte is later set to the kind of the next one.
    extensions: Vec<(u8, Vec<u8>)>,
    version: u8,
    payload_length: Option<u16>,
}

impl Ipv6 {
    pub(super) fn new(link: Vec<u8>, source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self { link, source, destination, extensions: Vec::new(), version: 6, payload_length: None }
    }

    /// Sets a version other than 6.
    pub fn version(mut self, version: u8) -> Self {
        self.version = version;
        self
    }

    /// Sets a wrong payload length, in bytes.
    pub fn payload_length(mut self, bytes: u16) -> Self {
        self.payload_length = Some(bytes);
        self
    }

    /// Adds an extension header with these bytes. The first byte is replaced by the kind of the next header.
    pub fn extension(mut self, kind: u8, bytes: &[u8]) -> Self {
        self.extensions.push((kind, bytes.to_vec()));
        self
    }

    /// Adds hop-by-hop options: eight bytes of padding.
    pub fn hop_by_hop(self) -> Self {
        self.options(protocol::HOP_BY_HOP, 1)
    }

    /// Adds destination options: eight bytes of padding.
    pub fn destination_options(self) -> Self {
        self.options(protocol::DESTINATION, 1)
    }

    /// Adds a header of hop-by-hop or destination options, `units` times eight bytes long. A receiver may skip all of
    /// its options.
    pub fn options(self, kind: u8, units: usize) -> Self {
        let mut bytes = vec![0, (units - 1) as u8];
        while bytes.len() < units * 8 {
            // The first option makes the rest a multiple of eight.
            let len = (units * 8 - bytes.len()).min(if bytes.len() == 2 { 6 } else { 248 });
            // Linux accepts at most seven bytes of PadN.
            let option = if len < 8 { 1 } else { SKIPPED_OPTION };
            bytes.extend([option, (len - 2) as u8]);
            bytes.resize(bytes.len() + len - 2, 0);
        }
        self.extension(kind, &bytes)
    }

    /// Adds a routing header of type 0 with `segments_left` further stops.
    pub fn routing(self, segments_left: u8) -> Self {
        self.routing_of(0, segments_left)
    }

    /// Adds a routing header of any type.
    pub fn routing_of(self, kind: u8, segments_left: u8) -> Self {
        let mut bytes = vec![0, segments_left * 2, kind, segments_left, 0, 0, 0, 0];
        for _ in 0..segments_left {
            bytes.extend(self.destination.octets());
        }
        self.extension(protocol::ROUTING, &bytes)
    }

    /// Adds a fragment header. The offset is in units of eight bytes, `more` says whether more fragments follow.
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        self.extension(protocol::FRAGMENT, &[0, 0, high, low, 0x12, 0x34, 0x56, 0x78])
    }

    /// Adds a fragment header to a packet that is complete (RFC 6946).
    pub fn atomic_fragment(self) -> Self {
        self.fragment(0, false)
    }

    /// Adds an authentication header with a check value of twelve bytes.
    pub fn authentication(self) -> Self {
        let mut bytes = [0; 24];
        bytes[1] = 24 / 4 - 2;
        bytes[7] = 1;
        self.extension(protocol::AUTHENTICATION, &bytes)
    }

    fn assemble(self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let kinds: Vec<u8> = self.extensions.iter().map(|(kind, _)| *kind).chain([protocol]).collect();
        let mut body = Vec::new();
        for ((_, bytes), next) in self.extensions.iter().zip(&kinds[1..]) {
            let start = body.len();
            body.extend(bytes);
            body[start] = *next;
        }
        body.extend(payload);
        let length = self.payload_length.unwrap_or(body.len() as u16).to_be_bytes();
        let mut header = vec![self.version << 4, 0, 0, 0, length[0], length[1], kinds[0], 64];
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        [self.link, header, body].concat()
    }
}
