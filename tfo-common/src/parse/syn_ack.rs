//! SYN-ACKs that leave, as the kernel makes them. Whatever is laid out in another way is none.

use core::mem::offset_of;

use network_types::{
    eth::EthHdr,
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    vlan::VlanHdr,
};

use super::{
    Headers, LinkLayer,
    eth::{IPV4, IPV6, VLAN},
    options, tcp,
};
use crate::segment::{Addresses, Cookie, Family, FastOpen};

/// Number of VLAN tags that are followed.
const VLAN_TAGS: usize = 2;
/// Greatest length of such a frame: a SYN-ACK has no data.
pub const LONGEST: usize = EthHdr::LEN + VLAN_TAGS * VlanHdr::LEN + Ipv6Hdr::LEN + TcpHdr::LEN + options::MAX;

const TCP: u8 = IpProto::Tcp as u8;

/// A SYN-ACK.
#[derive(Clone, Copy, Debug)]
pub struct SynAck<B> {
    /// The frame in which it has its place: without VLAN tags.
    pub frame: B,
    /// Offset of the TCP header in that frame.
    pub tcp: usize,
    /// Addresses of the SYN that it answers: the client's comes first.
    pub addresses: Addresses,
    /// Port of the service, in host byte order.
    pub port: u16,
}

/// Returns the SYN-ACK in `frame`, or `None` for any other packet.
#[inline(always)]
pub fn syn_ack<B: Headers>(mut frame: B, link: LinkLayer) -> Option<SynAck<B>> {
    const IP: usize = EthHdr::LEN;
    match link {
        LinkLayer::Ethernet => {
            for _ in 0..=VLAN_TAGS {
                match frame.read(IP - size_of::<[u8; 2]>())? {
                    IPV4 => return ipv4::<IP, B>(frame),
                    IPV6 => return ipv6::<IP, B>(frame),
                    kind if VLAN.contains(&kind) => frame = frame.behind(VlanHdr::LEN),
                    _ => return None,
                }
            }
            None
        }
        LinkLayer::Ip => {
            let [first, ..]: [u8; Ipv4Hdr::LEN] = frame.read(0)?;
            match first >> 4 {
                4 => ipv4::<0, B>(frame),
                6 => ipv6::<0, B>(frame),
                _ => None,
            }
        }
    }
}

#[inline(always)]
fn ipv4<const IP: usize, B: Headers>(frame: B) -> Option<SynAck<B>> {
    const WITHOUT_OPTIONS: u8 = 0x45;
    /// Fragment field without "don't fragment", time to live, protocol.
    const MASK: u32 = u32::from_le_bytes([0x3f, 0xff, 0, 0xff]);
    const WHOLE_TCP: u32 = u32::from_le_bytes([0, 0, 0, TCP]);

    let tcp = IP + Ipv4Hdr::LEN;
    if !is_syn_ack(&frame, tcp)?
        || u32::from_le_bytes(frame.read(IP + offset_of!(Ipv4Hdr, frags))?) & MASK != WHOLE_TCP
        || frame.read(IP)? != [WITHOUT_OPTIONS]
    {
        return None;
    }
    let bytes: [u8; 8] = frame.read(IP + offset_of!(Ipv4Hdr, src_addr))?;
    let [word, ..] = Addresses::from_ipv4(bytes).words;
    let addresses = Addresses { family: Family::Ipv4, words: [word.rotate_left(32), 0, 0, 0] };
    Some(SynAck { port: port(&frame, tcp)?, frame, tcp, addresses })
}

#[inline(always)]
fn ipv6<const IP: usize, B: Headers>(frame: B) -> Option<SynAck<B>> {
    let tcp = IP + Ipv6Hdr::LEN;
    if !is_syn_ack(&frame, tcp)? || frame.read(IP + offset_of!(Ipv6Hdr, next_hdr))? != [TCP] {
        return None;
    }
    let bytes: [u8; 32] = frame.read(IP + offset_of!(Ipv6Hdr, src_addr))?;
    let [w0, w1, w2, w3] = Addresses::from_ipv6(bytes).words;
    let addresses = Addresses { family: Family::Ipv6, words: [w2, w3, w0, w1] };
    Some(SynAck { port: port(&frame, tcp)?, frame, tcp, addresses })
}

/// Whether the flags of a SYN-ACK stand where a TCP header at `tcp` has them.
#[inline(always)]
fn is_syn_ack<B: Headers>(frame: &B, tcp: usize) -> Option<bool> {
    frame.read(tcp + tcp::FLAGS).map(|[flags]| tcp::is_syn_ack(flags))
}

#[inline(always)]
fn port<B: Headers>(frame: &B, tcp: usize) -> Option<u16> {
    frame.read(tcp).map(u16::from_be_bytes)
}

impl<B: Headers> SynAck<B> {
    /// Returns its cookie of eight bytes. Returns `None` for a signed SYN-ACK (TCP-MD5, TCP-AO), which must not be changed.
    #[inline(always)]
    pub fn cookie(&self) -> Option<Cookie> {
        let area = options::area(&self.frame, self.tcp)?;
        let area_bytes = self.frame.behind(self.tcp + TcpHdr::LEN);
        let found = options::options(&area_bytes, area);
        let FastOpen::Cookie(cookie) = found.fast_open(&area_bytes) else { return None };
        (!found.is_signed()).then_some(cookie)
    }
}
