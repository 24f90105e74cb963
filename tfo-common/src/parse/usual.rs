//! Parsing of usual frames at fixed offsets: an untagged Ethernet frame, TCP right behind an IP header without options,
//! and in a SYN the TCP options in an order in which real systems send them.
//!
//! The result is the same as that of the walk through all headers ([`super::walk`]), or `None` if only the walk can
//! tell. Tests prove it.

use core::mem::{offset_of, size_of};

use network_types::{
    eth::{EthHdr, EtherType},
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use super::{options, tcp};
use crate::{
    bytes::Bytes,
    segment::{Addresses, Family, Segment},
};

const IP: usize = EthHdr::LEN;
const TCP_V4: usize = IP + Ipv4Hdr::LEN;
const TCP_V6: usize = IP + Ipv6Hdr::LEN;

// network-types keeps EtherTypes as they stand in memory.
const IPV6: u16 = EtherType::Ipv6 as u16;

const TCP: u8 = IpProto::Tcp as u8;
const UDP: u8 = IpProto::Udp as u8;

/// Returns the family of a frame, and so which of [`ipv4`] and [`ipv6`] parses it.
#[inline(always)]
pub(super) fn family<B: Bytes + ?Sized>(frame: &B) -> Option<Family> {
    /// Mask for EtherType, version and header length.
    const MASK: u32 = u32::from_le_bytes([0xff, 0xff, 0xff, 0]);
    const WITHOUT_OPTIONS: u32 = u32::from_le_bytes([0x08, 0x00, 0x45, 0]);

    // One bounds check for all reads below: theirs are folded into it.
    let _: [u8; TCP_V4 + TcpHdr::LEN] = frame.read(0)?;
    let first = u32::from_le_bytes(frame.read(IP - size_of::<EtherType>())?);
    if first & MASK == WITHOUT_OPTIONS {
        Some(Family::Ipv4)
    } else if first as u16 == u16::from_le(IPV6) {
        Some(Family::Ipv6)
    } else {
        None
    }
}

/// Parses an IPv4 frame. Returns `None` if only the walk can tell, and `Some(None)` if it is not a SYN.
#[inline(always)]
pub(super) fn ipv4<B: Bytes + ?Sized>(frame: &B) -> Option<Option<Segment>> {
    /// Offset of the fragment field, which the time to live and the protocol follow.
    const FRAGMENT: usize = IP + offset_of!(Ipv4Hdr, frags);
    /// Mask for the protocol, and for the fragment field without its reserved bit and "don't fragment".
    const MASK: u32 = u32::from_le_bytes([0x3f, 0xff, 0, 0xff]);
    const WHOLE_TCP: u32 = u32::from_le_bytes([0, 0, 0, TCP]);

    if u32::from_le_bytes(frame.read(FRAGMENT)?) & MASK != WHOLE_TCP {
        let [protocol] = frame.read(IP + offset_of!(Ipv4Hdr, proto))?;
        return if protocol == TCP { None } else { Some(None) };
    }
    let len = word(frame, IP + offset_of!(Ipv4Hdr, tot_len))?;
    const SOURCE: usize = IP + offset_of!(Ipv4Hdr, src_addr);
    transport::<TCP_V4, B>(frame, IP + usize::from(u16::from_be(len)), || {
        frame.read(SOURCE).map(Addresses::from_ipv4)
    })
}

/// Parses an IPv6 frame, with results like those of [`ipv4`].
#[inline(always)]
pub(super) fn ipv6<B: Bytes + ?Sized>(frame: &B) -> Option<Option<Segment>> {
    let [next] = frame.read(IP + offset_of!(Ipv6Hdr, next_hdr))?;
    match next {
        TCP => {}
        UDP => return Some(None),
        _ => return None,
    }
    let [first] = frame.read(IP)?;
    if first >> 4 != 6 {
        return None;
    }
    let len = word(frame, IP + offset_of!(Ipv6Hdr, payload_len))?;
    const SOURCE: usize = IP + offset_of!(Ipv6Hdr, src_addr);
    transport::<TCP_V6, B>(frame, TCP_V6 + usize::from(u16::from_be(len)), || {
        frame.read(SOURCE).map(Addresses::from_ipv6)
    })
}

/// Parses the TCP header at `AT`, of a packet that ends at `end`.
#[inline(always)]
fn transport<const AT: usize, B: Bytes + ?Sized>(
    frame: &B,
    end: usize,
    addresses: impl Fn() -> Option<Addresses>,
) -> Option<Option<Segment>> {
    let options = AT + TcpHdr::LEN;
    let _: [u8; TcpHdr::LEN] = frame.read(AT)?;
    // One comparison for two checks: if the packet ends inside the header, `left` wraps to a huge number.
    let left = end.wrapping_sub(options);
    if left > frame.len().wrapping_sub(options) {
        return None;
    }
    let [flags] = frame.read(AT + tcp::FLAGS)?;
    if !tcp::is_syn(flags) {
        return Some(None);
    }
    // The walk finds the reason for which a listener drops this SYN.
    if !tcp::is_good_syn(flags) {
        return None;
    }
    let [data_offset] = frame.read(AT + tcp::DATA_OFFSET)?;
    let segment = match data_offset & 0xf0 {
        0x50 => syn::<AT, 0, B>(frame, left, addresses),
        0x60 => syn::<AT, 4, B>(frame, left, addresses),
        0x80 => syn::<AT, 12, B>(frame, left, addresses),
        0x90 => syn::<AT, 16, B>(frame, left, addresses),
        0xa0 => syn::<AT, 20, B>(frame, left, addresses),
        0xb0 => syn::<AT, 24, B>(frame, left, addresses),
        0xd0 => syn::<AT, 32, B>(frame, left, addresses),
        _ => None,
    };
    segment.map(Some)
}

/// Parses a SYN with `AREA` bytes of options. `left` bytes follow the fixed part of the TCP header.
#[inline(always)]
fn syn<const AT: usize, const AREA: usize, B: Bytes + ?Sized>(
    frame: &B,
    left: usize,
    addresses: impl Fn() -> Option<Addresses>,
) -> Option<Segment> {
    if left < AREA {
        return None;
    }
    Some(Segment {
        fast_open: options::usual::<AREA, B>(frame, AT + TcpHdr::LEN)?,
        // No usual layout has room for a signature.
        is_signed: false,
        is_fragment: false,
        addresses: addresses()?,
        tcp: AT as u32,
        data_len: (left - AREA) as u32,
    })
}

/// Reads two bytes, as they stand in memory.
#[inline(always)]
fn word<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<u16> {
    frame.read(at).map(u16::from_ne_bytes)
}
