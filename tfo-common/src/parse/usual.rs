//! Parsing of usual frames at fixed offsets: an Ethernet frame without VLAN tags, or seen without them, and TCP right behind an
//! IP header without options.
//!
//! The result is the same as that of the walk through all headers ([`super::walk`]), or `None` if only the walk can
//! tell. Tests prove it.

use core::mem::{offset_of, size_of};

use network_types::{
    eth::{EthHdr, EtherType},
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use super::{Headers, options, tcp};
use crate::{
    bytes::Bytes,
    segment::{Addresses, FastOpen, Segment},
};

const IP: usize = EthHdr::LEN;
const TCP_V4: usize = IP + Ipv4Hdr::LEN;
const TCP_V6: usize = IP + Ipv6Hdr::LEN;

// network-types keeps EtherTypes as they stand in memory.
const IPV6: u16 = EtherType::Ipv6 as u16;
const VLAN: [u16; 2] =
    [u16::from_le(EtherType::Ieee8021q as u16), u16::from_le(EtherType::Ieee8021ad as u16)];

const TCP: u8 = IpProto::Tcp as u8;
const UDP: u8 = IpProto::Udp as u8;

/// Number of VLAN tags behind which a frame is still usual.
pub(super) const VLAN_TAGS: usize = 1;

/// Contents of a usual frame, as the Ethernet header tells.
pub(super) enum Network {
    /// [`ipv4`] parses it.
    Ipv4,
    /// [`ipv6`] parses it.
    Ipv6,
    /// A VLAN tag.
    Tag,
}

/// Returns what stands behind the Ethernet header.
#[inline(always)]
pub(super) fn network<B: Bytes + ?Sized>(frame: &B) -> Option<Network> {
    /// Mask for EtherType, version and header length.
    const MASK: u32 = u32::from_le_bytes([0xff, 0xff, 0xff, 0]);
    const WITHOUT_OPTIONS: u32 = u32::from_le_bytes([0x08, 0x00, 0x45, 0]);

    // One bounds check for all reads below: theirs are folded into it.
    let _: [u8; TCP_V4 + TcpHdr::LEN] = frame.read(0)?;
    let first = u32::from_le_bytes(frame.read(IP - size_of::<EtherType>())?);
    if first & MASK == WITHOUT_OPTIONS {
        Some(Network::Ipv4)
    } else if first as u16 == u16::from_le(IPV6) {
        Some(Network::Ipv6)
    } else if VLAN.contains(&(first as u16)) {
        Some(Network::Tag)
    } else {
        None
    }
}

/// Parses the headers of an IPv4 frame. Returns `None` if only the walk can tell, and `Some(None)` if it is not a SYN.
#[inline(always)]
pub(super) fn ipv4<B: Headers>(frame: B) -> Option<Option<Syn<TCP_V4, B>>> {
    /// Offset of the fragment field, which the time to live and the protocol follow.
    const FRAGMENT: usize = IP + offset_of!(Ipv4Hdr, frags);
    /// Mask for the protocol, and for the fragment field without its reserved bit and "don't fragment".
    const MASK: u32 = u32::from_le_bytes([0x3f, 0xff, 0, 0xff]);
    const WHOLE_TCP: u32 = u32::from_le_bytes([0, 0, 0, TCP]);

    if u32::from_le_bytes(frame.read(FRAGMENT)?) & MASK != WHOLE_TCP {
        let [protocol] = frame.read(IP + offset_of!(Ipv4Hdr, proto))?;
        return if protocol == TCP { None } else { Some(None) };
    }
    let len = word(&frame, IP + offset_of!(Ipv4Hdr, tot_len))?;
    Syn::new(frame, IP + usize::from(u16::from_be(len)))
}

/// Returns the addresses of an IPv4 frame.
#[inline(always)]
pub(super) fn addresses_v4<B: Bytes>(frame: &B) -> Option<Addresses> {
    frame.read(IP + offset_of!(Ipv4Hdr, src_addr)).map(Addresses::from_ipv4)
}

/// Parses the headers of an IPv6 frame, with results like those of [`ipv4`].
#[inline(always)]
pub(super) fn ipv6<B: Headers>(frame: B) -> Option<Option<Syn<TCP_V6, B>>> {
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
    let len = word(&frame, IP + offset_of!(Ipv6Hdr, payload_len))?;
    Syn::new(frame, TCP_V6 + usize::from(u16::from_be(len)))
}

/// Returns the addresses of an IPv6 frame.
#[inline(always)]
pub(super) fn addresses_v6<B: Bytes>(frame: &B) -> Option<Addresses> {
    frame.read(IP + offset_of!(Ipv6Hdr, src_addr)).map(Addresses::from_ipv6)
}

/// SYN with its TCP header at `AT`, of which the options are not read yet.
pub(super) struct Syn<const AT: usize, B> {
    frame: B,
    /// The data offset, in the upper four bits.
    data_offset: u8,
    /// Number of bytes behind the fixed part of the header.
    left: usize,
}

impl<const AT: usize, B: Headers> Syn<AT, B> {
    /// Offset of the options.
    const OPTIONS: usize = AT + TcpHdr::LEN;

    /// Parses the TCP header of a packet that ends at `end`.
    #[inline(always)]
    fn new(frame: B, end: usize) -> Option<Option<Self>> {
        let _: [u8; TcpHdr::LEN] = frame.read(AT)?;
        // One comparison for two checks: if the packet ends inside the header, `left` wraps to a huge number.
        let left = end.wrapping_sub(Self::OPTIONS);
        if left > frame.len().wrapping_sub(Self::OPTIONS) {
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
        Some(Some(Self { frame, data_offset, left }))
    }

    /// Returns the SYN if its options are laid out as by a real system.
    #[inline(always)]
    pub(super) fn usual(&self, addresses: impl Fn(&B) -> Option<Addresses>) -> Option<Segment> {
        match self.data_offset & 0xf0 {
            0x50 => self.of_length::<0>(addresses),
            0x60 => self.of_length::<4>(addresses),
            0x80 => self.of_length::<12>(addresses),
            0x90 => self.of_length::<16>(addresses),
            0xa0 => self.of_length::<20>(addresses),
            0xb0 => self.of_length::<24>(addresses),
            0xd0 => self.of_length::<32>(addresses),
            _ => None,
        }
    }

    /// Returns the SYN if its `AREA` bytes of options are laid out so.
    #[inline(always)]
    fn of_length<const AREA: usize>(&self, addresses: impl Fn(&B) -> Option<Addresses>) -> Option<Segment> {
        if self.left < AREA {
            return None;
        }
        self.with(options::usual::<AREA, B>(&self.frame, Self::OPTIONS)?, AREA, addresses)
    }

    /// Returns the SYN, with options in any order. Returns `None` for a signed one, so that `is_signed` is a constant here,
    /// too, and if only the walk can tell.
    #[inline(always)]
    pub(super) fn in_any_order(&self, addresses: impl Fn(&B) -> Option<Addresses>) -> Option<Segment> {
        let area = (usize::from(self.data_offset >> 4) * 4).checked_sub(TcpHdr::LEN)?;
        if self.left < area {
            return None;
        }
        let options = self.frame.behind(Self::OPTIONS);
        let found = options::options(&options, area);
        if found.is_signed() {
            return None;
        }
        self.with(found.fast_open(&options), area, addresses)
    }

    /// Returns the SYN with this option in its `area` bytes of options, none of which is a signature: no usual layout has room
    /// for one.
    #[inline(always)]
    fn with(
        &self,
        fast_open: FastOpen,
        area: usize,
        addresses: impl Fn(&B) -> Option<Addresses>,
    ) -> Option<Segment> {
        Some(Segment {
            fast_open,
            is_signed: false,
            is_fragment: false,
            addresses: addresses(&self.frame)?,
            tcp: AT as u32,
            data_len: (self.left - area) as u32,
        })
    }
}

/// Reads two bytes, as they stand in memory.
#[inline(always)]
fn word<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<u16> {
    frame.read(at).map(u16::from_ne_bytes)
}
