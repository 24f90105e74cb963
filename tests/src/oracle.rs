//! Parsers for comparison: a plain one of our own, and etherparse.
//!
//! They share no code with the parser under test except the types of its results.

use ::etherparse::{Ipv6ExtensionSlice, NetSlice, SlicedPacket, TcpSlice, err::packet::SliceError};
use tfo_common::{
    parse::{Fault, LinkLayer, Malformed, Unsupported},
    segment::{Addresses, Cookie, FastOpen, Segment},
};

use crate::packet::{ether_type, flag, protocol};

/// Result of parsing a frame.
pub type Parsed = Result<Option<Segment>, Fault>;

/// Result of parsing one layer. `None` means a frame that tfo does not look at.
type Found<T> = Result<Option<T>, Fault>;

/// Parses `frame` by the plain parser, with the reason of a fault.
pub fn reference(frame: &[u8], link: LinkLayer) -> Parsed {
    let Some((version, packet)) = network(frame, link)? else { return Ok(None) };
    let Some(inner) = (if version == 4 { ipv4(packet)? } else { ipv6(packet, offset_in(frame, packet))? })
    else {
        return Ok(None);
    };
    let cut = |reason| cut_short(inner.is_first_fragment, reason);
    let Some(fixed) = inner.tcp.first_chunk::<20>() else { return Err(cut(Malformed::TcpTruncated)) };
    let has = |flag: u16| u16::from(fixed[13]) & flag != 0;
    if !has(flag::SYN) || has(flag::ACK) {
        return Ok(None);
    }
    if has(flag::RST) || has(flag::FIN) {
        return Err(Malformed::TcpFlags.into());
    }
    let length = usize::from(fixed[12] >> 4) * 4;
    if length < fixed.len() {
        return Err(Malformed::TcpDataOffset.into());
    }
    let header_and_data = inner.tcp.split_at_checked(length);
    let (header, data) = header_and_data.ok_or(cut(Malformed::TcpOptionsTruncated))?;
    Ok(Some(Segment {
        addresses: inner.addresses,
        fast_open: kernel_walk(&header[fixed.len()..]),
        is_signed: inner.is_authenticated || has_signature(&header[fixed.len()..]),
        is_fragment: inner.is_first_fragment,
        tcp: offset_in(frame, inner.tcp),
        data_len: data.len() as u32,
    }))
}

/// Largest numbers of VLAN tags and of IPv6 extension headers that are followed.
const MOST_TAGS: usize = 365;
const MOST_EXTENSIONS: usize = 16;
/// Largest offset of a header behind extension headers.
const FARTHEST: u32 = 0x7f00;
/// Number of tags up to which etherparse goes.
const ETHERPARSE_TAGS: usize = 3;

/// Returns the IP version that the frame announces, and the bytes behind the link layer.
pub(crate) fn network(frame: &[u8], link: LinkLayer) -> Found<(u8, &[u8])> {
    if link == LinkLayer::Ip {
        let [first, ..] = frame.first_chunk::<20>().ok_or(Malformed::IpTruncated)?;
        return Ok(matches!(first >> 4, 4 | 6).then_some((first >> 4, frame)));
    }
    let mut rest = frame.get(12..).ok_or(Malformed::LinkTruncated)?;
    for tags in 0.. {
        let (ether_type, behind) = rest.split_first_chunk().ok_or(Malformed::LinkTruncated)?;
        match u16::from_be_bytes(*ether_type) {
            ether_type::IPV4 => return Ok(Some((4, behind))),
            ether_type::IPV6 => return Ok(Some((6, behind))),
            ether_type::VLAN | ether_type::SERVICE_VLAN if tags == MOST_TAGS => break,
            ether_type::VLAN | ether_type::SERVICE_VLAN => {
                rest = behind.get(2..).ok_or(Malformed::LinkTruncated)?;
            }
            _ => return Ok(None),
        }
    }
    Err(Unsupported::VlanDepth.into())
}

/// TCP segment, or its beginning, with the data of its IP header.
struct Inner<'a> {
    addresses: Addresses,
    tcp: &'a [u8],
    is_first_fragment: bool,
    is_authenticated: bool,
}

fn ipv4(packet: &[u8]) -> Found<Inner<'_>> {
    let header: &[u8; 20] = packet.first_chunk().ok_or(Malformed::IpTruncated)?;
    if header[9] != protocol::TCP {
        return Ok(None);
    }
    if header[0] >> 4 != 4 {
        return Err(Malformed::IpVersion.into());
    }
    let length = usize::from(header[0] & 15) * 4;
    if length < header.len() {
        return Err(Malformed::IpHeaderLength.into());
    }
    let packet = packet.get(..be16(&header[2..])).ok_or(Malformed::IpTotalLength)?;
    let tcp = packet.get(length..).ok_or(Malformed::IpTotalLength)?;
    let fragment = be16(&header[6..]);
    if fragment & 0x1fff != 0 {
        return Err(Unsupported::LaterFragment.into());
    }
    let addresses = Addresses::from_ipv4(header[12..].try_into().expect("eight bytes"));
    let is_first_fragment = fragment & 0x2000 != 0;
    let tcp = if is_first_fragment { whole_units(tcp) } else { tcp };
    Ok(Some(Inner { addresses, tcp, is_first_fragment, is_authenticated: false }))
}

/// Returns what the kernel keeps of a fragment that is not the last: whole units of eight bytes (`ip_frag_queue`).
fn whole_units(fragment: &[u8]) -> &[u8] {
    &fragment[..fragment.len() / 8 * 8]
}

fn ipv6(packet: &[u8], start: u32) -> Found<Inner<'_>> {
    let (header, mut rest) = packet.split_first_chunk::<40>().ok_or(Malformed::IpTruncated)?;
    let mut next = header[6];
    if !may_lead_to_tcp(next) {
        return Ok(None);
    }
    if header[0] >> 4 != 6 {
        return Err(Malformed::IpVersion.into());
    }
    match be16(&header[4..]) {
        0 if next == protocol::HOP_BY_HOP => {}
        length => rest = rest.get(..length).ok_or(Malformed::IpTotalLength)?,
    }
    let mut is_fragment = false;
    let mut is_first_fragment = false;
    let mut is_authenticated = false;
    for place in 0.. {
        if next == protocol::TCP {
            let addresses = Addresses::from_ipv6(header[8..].try_into().expect("32 bytes"));
            return Ok(Some(Inner { addresses, tcp: rest, is_first_fragment, is_authenticated }));
        }
        if !may_lead_to_tcp(next) {
            return Ok(None);
        }
        if place == MOST_EXTENSIONS
            || place > 0 && next == protocol::HOP_BY_HOP
            || is_fragment && next == protocol::FRAGMENT
        {
            break;
        }
        let cut = cut_short(is_first_fragment, Malformed::ExtensionTruncated);
        let extension: &[u8; 8] = rest.first_chunk().ok_or(cut)?;
        let words = usize::from(extension[1]);
        let length = match next {
            protocol::FRAGMENT => {
                let field = be16(&extension[2..]);
                if field >= 8 {
                    let is_ours = may_lead_to_tcp(extension[0]);
                    return if is_ours { Err(Unsupported::LaterFragment.into()) } else { Ok(None) };
                }
                is_fragment = true;
                is_first_fragment = field & 1 != 0;
                8
            }
            protocol::ROUTING if extension[3] > 0 || matches!(extension[2], 3 | 4) => {
                return Err(Unsupported::SourceRoute.into());
            }
            protocol::AUTHENTICATION => {
                is_authenticated = true;
                4 * words + 8
            }
            _ => 8 * words + 8,
        };
        rest = rest.get(length..).ok_or(cut)?;
        if start + offset_in(packet, rest) > FARTHEST {
            break;
        }
        next = extension[0];
    }
    Err(Unsupported::ExtensionChain.into())
}

/// Returns the fault of a header that the packet's end cuts short. In a first fragment, that is no mistake.
fn cut_short(is_first_fragment: bool, reason: Malformed) -> Fault {
    if is_first_fragment { Unsupported::FragmentedHeader.into() } else { reason.into() }
}

fn may_lead_to_tcp(next: u8) -> bool {
    use protocol::*;
    [TCP, HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION].contains(&next)
}

/// Returns the first two bytes as a number.
fn be16(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

/// Parses `frame`, which begins with an Ethernet header, by etherparse. Returns `None` if etherparse refuses the frame.
pub fn etherparse(frame: &[u8]) -> Option<Parsed> {
    let packet = match SlicedPacket::from_ethernet(frame) {
        Ok(packet) => packet,
        // etherparse refuses an authentication header of eight bytes. That is up to IPsec, so the plain parser decides.
        Err(SliceError::Ipv6Exts(_)) => return Some(reference(frame, LinkLayer::Ethernet)),
        Err(_) => return None,
    };
    if packet.link_exts.len() >= ETHERPARSE_TAGS {
        return Some(reference(frame, LinkLayer::Ethernet));
    }
    for tag in frame[12..].chunks(4).take(packet.link_exts.len()) {
        match u16::from_be_bytes([tag[0], tag[1]]) {
            ether_type::VLAN | ether_type::SERVICE_VLAN => {}
            // etherparse knows more kinds of tags than Linux.
            _ => return Some(Ok(None)),
        }
    }
    let mut is_authenticated = false;
    let mut is_first_fragment_v4 = false;
    let (ip, addresses) = match packet.net.as_ref() {
        None | Some(NetSlice::Arp(_)) => return Some(Ok(None)),
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            if header.protocol().0 != protocol::TCP {
                return Some(Ok(None));
            }
            if header.fragments_offset().value() > 0 {
                return Some(Err(Unsupported::LaterFragment.into()));
            }
            is_first_fragment_v4 = header.more_fragments();
            (ip.payload(), Addresses::from_ipv4(concat(header.source(), header.destination())))
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            // etherparse takes any length of zero for a jumbogram's. The kernel requires hop-by-hop options.
            if header.payload_length() == 0 && header.next_header().0 != protocol::HOP_BY_HOP {
                return None;
            }
            if let Some(parsed) = not_followed(ip.extensions().clone()) {
                return Some(parsed);
            }
            let mut extensions = ip.extensions().clone().into_iter();
            is_authenticated = extensions.any(|it| matches!(it, Ipv6ExtensionSlice::Authentication(_)));
            (ip.payload(), Addresses::from_ipv6(concat(header.source(), header.destination())))
        }
    };
    if ip.ip_number.0 != protocol::TCP {
        return Some(Ok(None));
    }
    // etherparse does not look into a first fragment, so TCP is parsed by this call.
    let payload = if is_first_fragment_v4 { whole_units(ip.payload) } else { ip.payload };
    let tcp = TcpSlice::from_slice(payload).ok()?;
    Some(match (tcp.syn() && !tcp.ack(), tcp.rst() || tcp.fin()) {
        (false, _) => Ok(None),
        (true, true) => Err(Malformed::TcpFlags.into()),
        (true, false) => Ok(Some(Segment {
            addresses,
            fast_open: kernel_walk(tcp.options()),
            is_signed: is_authenticated || has_signature(tcp.options()),
            is_fragment: ip.fragmented,
            tcp: offset_in(frame, tcp.slice()),
            data_len: tcp.payload().len() as u32,
        })),
    })
}

/// Returns the offset of `part`, a slice of `whole`.
fn offset_in(whole: &[u8], part: &[u8]) -> u32 {
    (part.as_ptr().addr() - whole.as_ptr().addr()) as u32
}

fn concat<const N: usize, const M: usize>(source: [u8; N], destination: [u8; N]) -> [u8; M] {
    [source, destination].concat().try_into().expect("two addresses are twice as long as one")
}

/// Returns the result for extension headers that etherparse follows and tfo does not.
fn not_followed(extensions: ::etherparse::Ipv6ExtensionsSlice<'_>) -> Option<Parsed> {
    let mut fragments = 0;
    for (place, extension) in extensions.into_iter().enumerate() {
        if place == MOST_EXTENSIONS {
            return Some(Err(Unsupported::ExtensionChain.into()));
        }
        match extension {
            Ipv6ExtensionSlice::Routing(header)
                if header.slice()[3] > 0 || matches!(header.slice()[2], 3 | 4) =>
            {
                return Some(Err(Unsupported::SourceRoute.into()));
            }
            Ipv6ExtensionSlice::Fragment(_) if fragments > 0 => {
                return Some(Err(Unsupported::ExtensionChain.into()));
            }
            Ipv6ExtensionSlice::Fragment(header) if header.fragment_offset().value() > 0 => {
                let is_ours = may_lead_to_tcp(header.next_header().0);
                return Some(if is_ours { Err(Unsupported::LaterFragment.into()) } else { Ok(None) });
            }
            Ipv6ExtensionSlice::Fragment(_) => fragments += 1,
            _ => {}
        }
    }
    None
}

/// Finds the Fast Open option as `tcp_parse_options` and `tcp_parse_fastopen_option` do (net/ipv4/tcp_input.c).
pub fn kernel_walk(area: &[u8]) -> FastOpen {
    let mut options = area;
    let mut seen = false;
    let mut found: Option<&[u8]> = None;
    loop {
        match options {
            [1, rest @ ..] => options = rest,
            [kind, len, ..] if *kind != 0 && *len >= 2 && usize::from(*len) <= options.len() => {
                let (option, rest) = options.split_at(usize::from(*len));
                if let (34, cookie) | (254, [0xf9, 0x89, cookie @ ..]) = (kind, &option[2..]) {
                    seen = true;
                    match cookie.len() {
                        len if len % 2 == 1 => {}
                        0 | 4..=16 => found = Some(cookie),
                        _ => found = None,
                    }
                }
                options = rest;
            }
            _ => break,
        }
    }
    match found {
        None if seen => FastOpen::Ignored,
        None => FastOpen::Absent,
        Some([]) => FastOpen::Request,
        Some(cookie) => match cookie.try_into() {
            Ok(bytes) => FastOpen::Cookie(Cookie {
                value: u64::from_le_bytes(bytes),
                offset: 20 + offset_in(area, cookie),
            }),
            Err(_) => FastOpen::BadLength,
        },
    }
}

/// Returns whether the options up to the end of the list or to a broken option have a signature: TCP-MD5 of its one length
/// (RFC 2385, 3.0), or TCP-AO of at least four bytes (RFC 5925, 2.2).
pub fn has_signature(options: &[u8]) -> bool {
    match options {
        [1, rest @ ..] => has_signature(rest),
        [0, ..] | [] | [_] => false,
        [kind, len, ..] => {
            let behind = options.get(usize::from(*len)..).filter(|_| *len >= 2);
            let is_signature = matches!((kind, len), (19, 18) | (29, 4..));
            behind.is_some_and(|rest| is_signature || has_signature(rest))
        }
    }
}
