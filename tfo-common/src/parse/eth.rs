//! The link layer: Ethernet with VLAN tags, or no link-layer header at all.

use core::mem::size_of;

use network_types::{
    eth::{EthHdr, EtherType},
    ip::Ipv4Hdr,
    vlan::VlanHdr,
};

use super::fault::{Fault, Malformed, Unsupported};
use crate::{bytes::Bytes, segment::Family};

/// Number of VLAN tags that are followed. The kernel removes any number of tags with VLAN 0
/// (`__netif_receive_skb_core`, net/core/dev.c). With more tags than these, no SYN fits into a frame of 1518 bytes.
const VLAN_TAGS: usize = 365;
/// Mask for the offset behind so many tags.
const OFFSET_MASK: u64 = 0x7ff;
const _: () = assert!((EthHdr::LEN + VLAN_TAGS * VlanHdr::LEN) as u64 <= OFFSET_MASK);

// network-types keeps EtherTypes as they stand in memory.
pub(super) const IPV4: [u8; 2] = (EtherType::Ipv4 as u16).to_ne_bytes();
pub(super) const IPV6: [u8; 2] = (EtherType::Ipv6 as u16).to_ne_bytes();
/// The two TPIDs that Linux accepts for a VLAN tag (`eth_type_vlan`).
pub(super) const VLAN: [[u8; 2]; 2] =
    [(EtherType::Ieee8021q as u16).to_ne_bytes(), (EtherType::Ieee8021ad as u16).to_ne_bytes()];

named! {
    /// Header with which the frames of an interface begin.
    pub enum LinkLayer {
        /// An Ethernet header.
        Ethernet = "ethernet",
        /// An IP header, as on tun.
        Ip = "ip",
    }
}

/// Family and offset of the IP header.
#[derive(Clone, Copy)]
pub(super) struct Network {
    pub(super) family: Family,
    pub(super) offset: usize,
}

#[inline(always)]
pub(super) fn parse<B: Bytes + ?Sized>(frame: &B, link: LinkLayer) -> Result<Option<Network>, Fault> {
    match link {
        LinkLayer::Ethernet => ethernet(frame),
        LinkLayer::Ip => ip(frame),
    }
}

/// Finds the IP header behind an Ethernet header and its tags. Its offset is opaque at the head of the loop: see
/// [`Bytes::opaque`].
#[inline(always)]
fn ethernet<B: Bytes + ?Sized>(frame: &B) -> Result<Option<Network>, Fault> {
    let mut next = EthHdr::LEN as u64;
    for _ in 0..=VLAN_TAGS {
        let offset = (frame.opaque(next) & OFFSET_MASK) as usize;
        // The EtherType is the last field of the Ethernet header, and of each tag.
        let kind = frame.read(offset - size_of::<EtherType>()).ok_or(Malformed::LinkTruncated)?;
        match kind {
            IPV4 => {
                return Ok(Some(Network { family: Family::Ipv4, offset }));
            }
            IPV6 => {
                return Ok(Some(Network { family: Family::Ipv6, offset }));
            }
            kind if !VLAN.contains(&kind) => return Ok(None),
            _ => next = (offset + VlanHdr::LEN) as u64,
        }
    }
    Err(Unsupported::VlanDepth.into())
}

/// Returns the offset of the IP header of an Ethernet frame with at most four VLAN tags.
#[inline(always)]
pub fn network_offset<B: Bytes + ?Sized>(frame: &B) -> Option<usize> {
    const MOST: usize = 4;

    let mut offset = EthHdr::LEN;
    for _ in 0..=MOST {
        let kind = frame.read(offset - size_of::<EtherType>())?;
        if kind == IPV4 || kind == IPV6 {
            return Some(offset);
        }
        offset += VlanHdr::LEN;
    }
    None
}

#[inline(always)]
fn ip<B: Bytes + ?Sized>(frame: &B) -> Result<Option<Network>, Fault> {
    // No IP header is shorter than this. To read the first byte alone would not do: the kernel's verifier learns
    // nothing from a packet that is known to be longer than 0 bytes (`find_good_pkt_pointers`), and would refuse the
    // read.
    let [first, ..]: [u8; Ipv4Hdr::LEN] = frame.read(0).ok_or(Malformed::IpTruncated)?;
    let family = match first >> 4 {
        4 => Family::Ipv4,
        6 => Family::Ipv6,
        _ => return Ok(None),
    };
    Ok(Some(Network { family, offset: 0 }))
}
