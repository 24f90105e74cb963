//! Frames that the walk does not follow, and from which the kernel may all the same get a SYN.

use super::{
    eth::{self, LinkLayer},
    ip::{self, Packet, Skipped},
    tcp,
};
use crate::{
    bytes::Bytes,
    segment::{Addresses, Family},
};

/// Facts about an unsupported frame that may be a SYN, or the beginning of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfollowed {
    /// Source and destination address.
    pub addresses: Addresses,
    /// Offset of the TCP header, of which at least the ports are in the frame. `None` if they are not, or were not found.
    pub tcp: Option<u32>,
}

/// Returns the facts about a frame for which [`walk`](super::walk) has returned an
/// [`Unsupported`](super::Unsupported).
///
/// Returns `None` if the frame is no SYN, and if that can't be told:
/// - A later fragment is not needed, since the kernel makes no packet without the first one.
/// - Behind too many VLAN tags, the addresses are not known.
/// - A source route may end elsewhere. A host refuses it unless it was told otherwise.
/// - Behind an authentication header, a SYN is signed.
#[inline(always)]
pub fn unfollowed<B: Bytes + ?Sized>(frame: &B, link: LinkLayer) -> Option<Unfollowed> {
    let network = eth::parse(frame, link).ok()??;
    let (transport, end) = match network.family {
        Family::Ipv4 => {
            let Packet { transport, end, .. } = ip::parse(frame, network).ok()??;
            (transport, end)
        }
        Family::Ipv6 => match ip::skip(frame, network.offset) {
            Skipped::Tcp(transport, end) => (transport, end),
            Skipped::Unknown => (0, 0),
            Skipped::NotSyn => return None,
        },
    };
    let has = |len| transport + len <= end;
    // The flags, if they are there, can show that it is no SYN.
    let is_other = |[flags]: [u8; 1]| !tcp::is_good_syn(flags);
    if has(tcp::FLAGS + 1) && frame.read(transport + tcp::FLAGS).is_some_and(is_other) {
        return None;
    }
    let tcp = has(tcp::PORTS).then_some(transport as u32);
    Some(Unfollowed { addresses: ip::addresses(frame, network)?, tcp })
}
