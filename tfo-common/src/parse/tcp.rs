//! The TCP header.

use network_types::tcp::TcpHdr;

use super::{
    fault::{Fault, Malformed, Unsupported},
    ip::Packet,
};
use crate::bytes::Bytes;

/// Offsets in a TCP header of the byte with the data offset, and of the byte with the flags.
pub(super) const DATA_OFFSET: usize = 12;
pub(super) const FLAGS: usize = 13;
/// Number of bytes that both ports take, at the beginning of a TCP header.
pub(super) const PORTS: usize = 4;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Whether these flags are those of a client's first segment.
#[inline(always)]
pub(super) const fn is_syn(flags: u8) -> bool {
    flags & (SYN | ACK) == SYN
}

/// Whether these flags are those of a server's first segment.
#[inline(always)]
pub(super) const fn is_syn_ack(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN | ACK
}

/// Whether these flags are those of a SYN that a listener does not drop for its other flags.
#[inline(always)]
pub(super) const fn is_good_syn(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// A SYN's header.
pub(super) struct Syn {
    /// Offset of the options.
    pub(super) options: usize,
    /// Offset of the end of the options, where the data begins.
    pub(super) data: usize,
}

/// Parses a TCP header, with the checks that `tcp_v4_rcv` and a listener make before they look at the options, except
/// for the checksum.
#[inline(always)]
pub(super) fn parse<B: Bytes + ?Sized>(frame: &B, packet: &Packet) -> Result<Option<Syn>, Fault> {
    let options = packet.transport + TcpHdr::LEN;
    if options > packet.end {
        return Err(truncated(packet, Malformed::TcpTruncated));
    }
    let fields = frame.read(packet.transport + DATA_OFFSET).ok_or(Malformed::TcpTruncated)?;
    let [data_offset, flags]: [u8; FLAGS + 1 - DATA_OFFSET] = fields;
    //= RFC 7413 section 4.1.1
    //# Options with invalid Length values or without the SYN flag set MUST be
    //# ignored.
    if !is_syn(flags) {
        return Ok(None);
    }
    if !is_good_syn(flags) {
        return Err(Malformed::TcpFlags.into());
    }
    let header_len = usize::from(data_offset >> 4) * 4;
    if header_len < TcpHdr::LEN {
        return Err(Malformed::TcpDataOffset.into());
    }
    let data = packet.transport + header_len;
    if data > packet.end {
        return Err(truncated(packet, Malformed::TcpOptionsTruncated));
    }
    Ok(Some(Syn { options, data }))
}

/// Returns the fault of a header that its packet's end cuts short: broken, unless the rest follows in the next
/// fragment.
#[inline(always)]
fn truncated(packet: &Packet, reason: Malformed) -> Fault {
    if packet.fragment { Unsupported::FragmentedHeader.into() } else { reason.into() }
}
