//! From a frame to the facts about its SYN.
//!
//! Each layer reads its header, checks what the kernel checks before it looks at the TCP options, and says where the
//! next one begins. What the kernel would drop is malformed; what we do not follow is unsupported; all of it is
//! passed on and counted once.

mod eth;
mod fault;
mod ip;
mod options;
mod tcp;
mod usual;

pub use eth::LinkLayer;
pub use fault::{Fault, Malformed, Unsupported};
pub use options::{MAX as MAX_OPTIONS, area as option_area, fast_open_places};

use crate::{
    bytes::Bytes,
    segment::{Family, Segment},
};

/// The SYN in `frame`; `None` where it is anything else that the kernel may take.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(frame: &B, link: LinkLayer) -> Result<Option<Segment>, Fault> {
    match usual(frame, link, |_, segment| *segment) {
        Some(found) => Ok(found),
        None => walk(frame, link),
    }
}

/// [`parse`] for frames such as nearly all are, and what `then` makes of a SYN; `None` where it is another frame.
///
/// There is a copy of `then` for either family, in which that is a constant: that is what makes the program fast.
#[inline(always)]
pub fn usual<B: Bytes + ?Sized, T>(
    frame: &B,
    link: LinkLayer,
    then: impl Fn(&B, &Segment) -> T,
) -> Option<Option<T>> {
    if link != LinkLayer::Ethernet {
        return None;
    }
    Some(match usual::family(frame)? {
        Family::Ipv4 => usual::ipv4(frame)?.map(|segment| then(frame, &segment)),
        Family::Ipv6 => usual::ipv6(frame)?.map(|segment| then(frame, &segment)),
    })
}

/// [`parse`] for every frame there is: header by header, option by option.
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
    Ok(Some(Segment {
        addresses: packet.addresses,
        fast_open: options::fast_open(frame, syn.options, syn.data),
        tcp: packet.transport as u32,
        data_len: (packet.end - syn.data) as u32,
    }))
}
