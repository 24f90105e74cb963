//! Parsing of a frame into the facts about its SYN.
//!
//! Each layer reads its header, checks what the kernel checks before it looks at the TCP options, and says where the
//! next header begins. A frame that the kernel would drop is malformed. A frame that the parser does not follow is
//! unsupported. Both are passed on and counted once.

mod eth;
mod fault;
mod ip;
mod options;
mod syn_ack;
mod tcp;
mod unfollowed;
mod usual;

pub use eth::{LinkLayer, network_offset};
pub use fault::{Fault, Malformed, Unsupported};
pub use options::{MAX as MAX_OPTIONS, Options, area as option_area, fast_open_places, options};
pub use syn_ack::{LONGEST as LONGEST_SYN_ACK, SynAck, syn_ack};
pub use unfollowed::{Unfollowed, unfollowed};

use crate::{
    bytes::Bytes,
    segment::{Addresses, Segment},
};
use network_types::vlan::VlanHdr;
use usual::{Network, Syn};

/// A frame that is parsed header by header.
pub trait Headers: Bytes + Copy {
    /// Returns the frame without its first `len` bytes, all of which it has.
    fn behind(self, len: usize) -> Self;

    /// Returns what [`options()`] finds in the `area` bytes of options from `start` on.
    fn options(self, start: usize, area: usize) -> Options {
        options(&self.behind(start), area)
    }
}

impl Headers for &[u8] {
    fn behind(self, len: usize) -> Self {
        self.get(len..).unwrap_or_default()
    }
}

/// Returns the SYN in `frame`, or `None` for anything else that the kernel may accept.
#[inline(always)]
pub fn parse<B: Headers>(frame: B, link: LinkLayer) -> Result<Option<Segment>, Fault> {
    match usual(frame, link, |untagged, segment| segment.further_in(frame.len() - untagged.len())) {
        Usual::Syn(segment) => Ok(Some(segment)),
        Usual::NotSyn => Ok(None),
        Usual::NeedsWalk => walk(frame, link),
    }
}

/// Result of [`usual()`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usual<T> {
    /// Result of `then` for the SYN.
    Syn(T),
    /// Usual frame without a SYN.
    NotSyn,
    /// Frame that only [`walk`] can parse.
    NeedsWalk,
}

/// Parses a frame at fixed offsets if it is laid out like nearly all are, and calls `then` with its SYN, and with the frame in
/// which this has its place: without VLAN tags, so that no offset depends on their number.
///
/// There is a copy of `then` for each family, in which the family is a constant. This makes the program fast.
#[inline(always)]
pub fn usual<B: Headers, T>(mut frame: B, link: LinkLayer, then: impl Fn(&B, &Segment) -> T) -> Usual<T> {
    if link != LinkLayer::Ethernet {
        return Usual::NeedsWalk;
    }
    for _ in 0..=usual::VLAN_TAGS {
        match usual::network(&frame) {
            Some(Network::Ipv4) => return serve(frame, usual::ipv4(frame), usual::addresses_v4, then),
            Some(Network::Ipv6) => return serve(frame, usual::ipv6(frame), usual::addresses_v6, then),
            // The addresses move on, too, but nobody reads them. So the frame looks as it would without the tag.
            Some(Network::Tag) => frame = frame.behind(VlanHdr::LEN),
            None => break,
        }
    }
    Usual::NeedsWalk
}

/// Calls `then` with a SYN whose headers are `parsed`: `None` needs a walk, `Some(None)` is no SYN. `then` has one copy for
/// options in a known order and one for any other, since what both need would take time from the first.
#[inline(always)]
fn serve<const AT: usize, B: Headers, T>(
    frame: B,
    parsed: Option<Option<Syn<AT, B>>>,
    addresses: impl Fn(&B) -> Option<Addresses>,
    then: impl Fn(&B, &Segment) -> T,
) -> Usual<T> {
    match parsed {
        Some(None) => Usual::NotSyn,
        None => Usual::NeedsWalk,
        Some(Some(syn)) => {
            if let Some(segment) = syn.usual(&addresses) {
                Usual::Syn(then(&frame, &segment))
            } else if let Some(segment) = syn.in_any_order(addresses) {
                Usual::Syn(then(&frame, &segment))
            } else {
                Usual::NeedsWalk
            }
        }
    }
}

/// Parses any frame like [`parse`], header by header and option by option.
#[inline(always)]
pub fn walk<B: Headers>(frame: B, link: LinkLayer) -> Result<Option<Segment>, Fault> {
    let Some(network) = eth::parse(&frame, link)? else {
        return Ok(None);
    };
    let Some(packet) = ip::parse(&frame, network)? else {
        return Ok(None);
    };
    let Some(syn) = tcp::parse(&frame, &packet)? else {
        return Ok(None);
    };
    let options = frame.options(syn.options, syn.data - syn.options);
    Ok(Some(Segment {
        addresses: packet.addresses,
        fast_open: options.fast_open(&frame.behind(syn.options)),
        is_signed: packet.is_authenticated || options.is_signed(),
        is_fragment: packet.fragment,
        tcp: packet.transport as u32,
        data_len: (packet.end - syn.data) as u32,
    }))
}
