//! Parsing of a frame into the facts about its SYN.
//!
//! Each layer reads its header, checks what the kernel checks before it looks at the TCP options, and says where the
//! next header begins. A frame that the kernel would drop is malformed. A frame that the parser does not follow is
//! unsupported. Both are passed on and counted once.

mod eth;
mod fault;
mod ip;
mod options;
mod tcp;
mod unfollowed;
mod usual;

pub use eth::{LinkLayer, network_offset};
pub use fault::{Fault, Malformed, Unsupported};
pub use options::{MAX as MAX_OPTIONS, area as option_area, fast_open_places};
pub use unfollowed::{Unfollowed, unfollowed};

use crate::{
    bytes::Bytes,
    segment::{Family, Segment},
};

/// Returns the SYN in `frame`, or `None` for anything else that the kernel may accept.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(frame: &B, link: LinkLayer) -> Result<Option<Segment>, Fault> {
    match usual(frame, link, |_, segment| *segment) {
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

impl<T> Usual<T> {
    /// Result for a frame that was `parsed`: `None` needs a walk, `Some(None)` is no SYN.
    #[inline(always)]
    fn new(parsed: Option<Option<Segment>>, then: impl FnOnce(&Segment) -> T) -> Self {
        match parsed {
            Some(Some(segment)) => Self::Syn(then(&segment)),
            Some(None) => Self::NotSyn,
            None => Self::NeedsWalk,
        }
    }
}

/// Parses a frame at fixed offsets if it is laid out like nearly all are, and calls `then` with its SYN.
///
/// There is a copy of `then` for each family, in which the family is a constant. This makes the program fast.
#[inline(always)]
pub fn usual<B: Bytes + ?Sized, T>(frame: &B, link: LinkLayer, then: impl Fn(&B, &Segment) -> T) -> Usual<T> {
    if link != LinkLayer::Ethernet {
        return Usual::NeedsWalk;
    }
    match usual::family(frame) {
        Some(Family::Ipv4) => Usual::new(usual::ipv4(frame), |segment| then(frame, segment)),
        Some(Family::Ipv6) => Usual::new(usual::ipv6(frame), |segment| then(frame, segment)),
        None => Usual::NeedsWalk,
    }
}

/// Parses any frame like [`parse`], header by header and option by option.
#[inline(always)]
pub fn walk<B: Bytes + ?Sized>(frame: &B, link: LinkLayer) -> Result<Option<Segment>, Fault> {
    let Some(network) = eth::parse(frame, link)? else {
        return Ok(None);
    };
    let Some(packet) = ip::parse(frame, network)? else {
        return Ok(None);
    };
    let Some(syn) = tcp::parse(frame, &packet)? else {
        return Ok(None);
    };
    let options = options::walk(frame, syn.options, syn.data);
    Ok(Some(Segment {
        addresses: packet.addresses,
        fast_open: options.fast_open,
        is_signed: packet.is_authenticated || options.is_signed,
        is_fragment: packet.fragment,
        tcp: packet.transport as u32,
        data_len: (packet.end - syn.data) as u32,
    }))
}
