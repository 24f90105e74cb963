//! The network layer: IPv4 with options, IPv6 with a chain of extension headers, fragments of both.

use core::mem::offset_of;

use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};

use super::{
    eth::Network,
    fault::{Fault, Malformed, Unsupported},
};
use crate::{
    bytes::Bytes,
    segment::{Addresses, Family},
};

/// Number of IPv6 extension headers that are followed. The kernel sets no limit, and nobody sends more than three. Each costs
/// the verifier some three thousand instructions.
const EXTENSION_HEADERS: usize = 16;
/// Number of IPv6 extension headers that are [skipped](skip). With more than these, no SYN fits into a frame of 1518 bytes.
const SKIPPED_HEADERS: usize = 180;
/// Mask for the offset of an extension header.
const OFFSET_MASK: u32 = 0x7fff;
/// Largest offset of a header that is followed. A TCP header there ends below the largest offset that the program can read.
const FARTHEST: usize = 0x7f00;

const TCP: u8 = IpProto::Tcp as u8;
const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
const ROUTING: u8 = IpProto::Ipv6Route as u8;
const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
const AUTHENTICATION: u8 = IpProto::Ah as u8;
const DESTINATION: u8 = IpProto::Ipv6Opts as u8;

/// Bits of the IPv4 fragment field: the offset, and the flag that more fragments follow.
const IPV4_OFFSET: u16 = 0x1fff;
const IPV4_MORE: u16 = 0x2000;
/// Bits of the IPv6 fragment header with the same meanings.
const IPV6_OFFSET: u16 = 0xfff8;
const IPV6_MORE: u16 = 0x0001;

/// An IP packet that carries TCP.
#[derive(Clone, Copy)]
pub(super) struct Packet {
    pub(super) addresses: Addresses,
    /// Offset of the TCP header.
    pub(super) transport: usize,
    /// Offset of the packet's end. The frame may be padded beyond.
    pub(super) end: usize,
    /// Whether it is the first of several fragments.
    pub(super) fragment: bool,
    /// Whether it has an authentication header.
    pub(super) is_authenticated: bool,
}

#[inline(always)]
pub(super) fn parse<B: Bytes + ?Sized>(frame: &B, network: Network) -> Result<Option<Packet>, Fault> {
    match network.family {
        Family::Ipv4 => ipv4(frame, network.offset),
        Family::Ipv6 => ipv6(frame, network.offset),
    }
}

/// Returns the addresses of a packet.
#[inline(always)]
pub(super) fn addresses<B: Bytes + ?Sized>(frame: &B, network: Network) -> Option<Addresses> {
    match network.family {
        Family::Ipv4 => frame.read(network.offset + offset_of!(Ipv4Hdr, src_addr)).map(Addresses::from_ipv4),
        Family::Ipv6 => frame.read(network.offset + offset_of!(Ipv6Hdr, src_addr)).map(Addresses::from_ipv6),
    }
}

/// Parses an IPv4 header, with the checks of lengths of `ip_rcv_core` (net/ipv4/ip_input.c). Checksum, options and
/// addresses are left to the kernel.
#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(frame: &B, start: usize) -> Result<Option<Packet>, Fault> {
    let header: [u8; Ipv4Hdr::LEN] = frame.read(start).ok_or(Malformed::IpTruncated)?;
    if header[offset_of!(Ipv4Hdr, proto)] != TCP {
        return Ok(None);
    }
    let [version, header_len] = [header[0] >> 4, (header[0] & 0xf) * 4];
    if version != 4 {
        return Err(Malformed::IpVersion.into());
    }
    let header_len = usize::from(header_len);
    if header_len < Ipv4Hdr::LEN {
        return Err(Malformed::IpHeaderLength.into());
    }
    let total = usize::from(be16(&header, offset_of!(Ipv4Hdr, tot_len)));
    if total < header_len || start + total > frame.whole_len() {
        return Err(Malformed::IpTotalLength.into());
    }
    let fragment = be16(&header, offset_of!(Ipv4Hdr, frags));
    if fragment & IPV4_OFFSET != 0 {
        return Err(Unsupported::LaterFragment.into());
    }
    let is_first_fragment = fragment & IPV4_MORE != 0;
    // The kernel cuts the data of a fragment to a multiple of eight bytes, unless it is the last one (`ip_frag_queue`,
    // net/ipv4/ip_fragment.c). The bytes behind that come with the next fragment.
    let rest = if is_first_fragment { (total - header_len) % 8 } else { 0 };
    let addresses = frame.read(start + offset_of!(Ipv4Hdr, src_addr)).ok_or(Malformed::IpTruncated)?;
    Ok(Some(Packet {
        addresses: Addresses::from_ipv4(addresses),
        transport: start + header_len,
        end: start + total - rest,
        fragment: is_first_fragment,
        // Behind an authentication header, the protocol of the IPv4 header is not TCP.
        is_authenticated: false,
    }))
}

/// Parses an IPv6 header, with the checks of lengths of `ip6_rcv_core` (net/ipv6/ip6_input.c), and walks the extension
/// headers. Addresses and the contents of options are left to the kernel.
#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(frame: &B, start: usize) -> Result<Option<Packet>, Fault> {
    let header: [u8; 8] = frame.read(start).ok_or(Malformed::IpTruncated)?;
    let addresses = frame.read(start + offset_of!(Ipv6Hdr, src_addr)).ok_or(Malformed::IpTruncated)?;
    let next = header[offset_of!(Ipv6Hdr, next_hdr)];
    if !is_followed(next) {
        return Ok(None);
    }
    if header[0] >> 4 != 6 {
        return Err(Malformed::IpVersion.into());
    }
    let end = end_of_v6(frame, start, &header);
    if end > frame.whole_len() {
        return Err(Malformed::IpTotalLength.into());
    }
    let Some(chain) = extensions(frame, next, start + Ipv6Hdr::LEN, end)? else {
        return Ok(None);
    };
    Ok(Some(Packet {
        addresses: Addresses::from_ipv6(addresses),
        transport: chain.transport,
        end,
        fragment: chain.fragment,
        is_authenticated: chain.is_authenticated,
    }))
}

/// Returns the end of an IPv6 packet, from the first bytes of its header at `start`.
#[inline(always)]
fn end_of_v6<B: Bytes + ?Sized>(frame: &B, start: usize, header: &[u8; 8]) -> usize {
    let payload = usize::from(be16(header, offset_of!(Ipv6Hdr, payload_len)));
    if payload == 0 && header[offset_of!(Ipv6Hdr, next_hdr)] == HOP_BY_HOP {
        // The kernel takes the frame's length here. It reads the length of a jumbogram only in the option.
        frame.whole_len()
    } else {
        start + Ipv6Hdr::LEN + payload
    }
}

/// End of the headers that [`skip`] has skipped.
pub(super) enum Skipped {
    /// TCP at the first offset, of which the packet or fragment has all bytes up to the second.
    Tcp(usize, usize),
    /// Something that tells neither port nor protocol.
    Unknown,
    /// No SYN that a host would take and that is not signed.
    NotSyn,
}

/// Skips the extension headers of an IPv6 packet up to TCP, in whatever order and number they are. It makes fewer checks than
/// [`parse`], so that the kernel's verifier takes many more turns.
#[inline(always)]
pub(super) fn skip<B: Bytes + ?Sized>(frame: &B, start: usize) -> Skipped {
    let Some(header) = frame.read(start) else { return Skipped::NotSyn };
    let end = end_of_v6(frame, start, &header);
    let mut state = pack(start + Ipv6Hdr::LEN, header[offset_of!(Ipv6Hdr, next_hdr)], Fragment::No, false);
    for _ in 0..=SKIPPED_HEADERS {
        state = frame.opaque(state.into()) as u32;
        let (offset, next, ..) = unpack(state);
        match next {
            TCP => return Skipped::Tcp(offset, end),
            AUTHENTICATION => return Skipped::NotSyn,
            next if !is_followed(next) => return Skipped::NotSyn,
            _ => {}
        }
        let header: [u8; 8] = match frame.read(offset) {
            Some(header) if offset + 8 <= end => header,
            _ => return Skipped::Unknown,
        };
        // The last condition is that of a later fragment.
        if next == ROUTING && is_source_route(header[2], header[3])
            || next == FRAGMENT && be16(&header, 2) & IPV6_OFFSET != 0
        {
            return Skipped::NotSyn;
        }
        let words = if next == FRAGMENT { 0 } else { usize::from(header[1]) };
        let behind = offset + (words + 1) * 8;
        if behind > FARTHEST {
            return Skipped::Unknown;
        }
        state = pack(behind, header[0], Fragment::No, false);
    }
    Skipped::Unknown
}

/// End of a chain of extension headers.
struct Chain {
    transport: usize,
    fragment: bool,
    is_authenticated: bool,
}

/// State of fragmentation, as the fragment header tells it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fragment {
    /// The packet has no fragment header.
    No,
    /// The fragment is the whole packet (RFC 6946).
    Atomic,
    /// More fragments follow.
    First,
}

/// Follows extension headers from `next`, at `offset`, to TCP. Returns `None` if they lead to anything else.
///
/// The state of a turn is in one word ([`pack`]), which is opaque at the head of the loop: see [`Bytes::opaque`].
#[inline(always)]
fn extensions<B: Bytes + ?Sized>(
    frame: &B,
    next: u8,
    offset: usize,
    end: usize,
) -> Result<Option<Chain>, Fault> {
    let mut state = pack(offset, next, Fragment::No, false);
    for turn in 0..=EXTENSION_HEADERS {
        state = frame.opaque(state.into()) as u32;
        let (offset, next, fragment, is_authenticated) = unpack(state);
        if next == TCP {
            let fragment = fragment == Fragment::First;
            return Ok(Some(Chain { transport: offset, fragment, is_authenticated }));
        }
        if !is_followed(next) {
            return Ok(None);
        }
        // The kernel accepts hop-by-hop options only right behind the IPv6 header, and only one fragment header.
        let is_misplaced = next == HOP_BY_HOP && turn > 0 || next == FRAGMENT && fragment != Fragment::No;
        if turn == EXTENSION_HEADERS || is_misplaced {
            return Err(Unsupported::ExtensionChain.into());
        }
        if offset + 8 > end {
            return Err(truncated(fragment));
        }
        let header: [u8; 8] = frame.read(offset).ok_or(Malformed::ExtensionTruncated)?;
        let words = usize::from(header[1]);
        let (len, fragment) = match next {
            FRAGMENT => {
                let field = be16(&header, 2);
                if field & IPV6_OFFSET != 0 {
                    // A later fragment tells only the kind of its first header, which may be another extension.
                    return if is_followed(header[0]) {
                        Err(Unsupported::LaterFragment.into())
                    } else {
                        Ok(None)
                    };
                }
                (8, if field & IPV6_MORE == 0 { Fragment::Atomic } else { Fragment::First })
            }
            ROUTING if is_source_route(header[2], header[3]) => return Err(Unsupported::SourceRoute.into()),
            // RFC 4302, 2.2: the length counts words of four bytes, less two. The others count words of eight, less
            // one.
            AUTHENTICATION => ((words + 2) * 4, fragment),
            _ => ((words + 1) * 8, fragment),
        };
        if offset + len > end {
            return Err(truncated(fragment));
        }
        if offset + len > FARTHEST {
            return Err(Unsupported::ExtensionChain.into());
        }
        state = pack(offset + len, header[0], fragment, is_authenticated || next == AUTHENTICATION);
    }
    Ok(None)
}

/// Whether a routing header of this type, with this many segments left, keeps a host from taking the packet as its own.
///
/// RPL and segment routing headers do so even at their last stop, unless they were switched on for the interface
/// (`ipv6_rpl_srh_rcv`, `ipv6_srh_rcv`, net/ipv6/exthdrs.c).
#[inline(always)]
const fn is_source_route(kind: u8, segments_left: u8) -> bool {
    const RPL: u8 = 3;
    const SEGMENTS: u8 = 4;
    segments_left != 0 || matches!(kind, RPL | SEGMENTS)
}

/// Packs the state of [`extensions`] into one word.
///
/// | bits | meaning |
/// |---|---|
/// | 0..15 | offset of the next header |
/// | 16..24 | its kind |
/// | 24..26 | [`Fragment`] |
/// | 26 | an authentication header was seen |
#[inline(always)]
const fn pack(offset: usize, next: u8, fragment: Fragment, is_authenticated: bool) -> u32 {
    let flags = fragment as u32 | (is_authenticated as u32) << 2;
    (offset as u32 & OFFSET_MASK) | (next as u32) << 16 | flags << 24
}

#[inline(always)]
const fn unpack(state: u32) -> (usize, u8, Fragment, bool) {
    let fragment = match state >> 24 & 3 {
        0 => Fragment::No,
        1 => Fragment::Atomic,
        _ => Fragment::First,
    };
    ((state & OFFSET_MASK) as usize, (state >> 16) as u8, fragment, state >> 26 & 1 != 0)
}

/// Returns the fault of a header that its packet's end cuts short: broken, unless the rest follows in the next
/// fragment.
#[inline(always)]
fn truncated(fragment: Fragment) -> Fault {
    if fragment == Fragment::First {
        Unsupported::FragmentedHeader.into()
    } else {
        Malformed::ExtensionTruncated.into()
    }
}

/// Whether a next-header value is TCP or may lead to it.
#[inline(always)]
const fn is_followed(next: u8) -> bool {
    matches!(next, TCP | HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

#[inline(always)]
const fn be16<const N: usize>(header: &[u8; N], offset: usize) -> u16 {
    u16::from_be_bytes([header[offset], header[offset + 1]])
}
