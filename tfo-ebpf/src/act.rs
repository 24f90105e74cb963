//! The only place that writes to a packet. A verdict of `pass` leaves it as it came.

use aya_ebpf::bindings::xdp_action;
use tfo_common::{
    bytes::Bytes as _,
    keyring::KeyRing,
    rewrite::checksum,
    segment::{FastOpen, Segment},
    verdict::Verdict,
};

use crate::frame::Frame;

/// Where the checksum stands in a TCP header.
const CHECKSUM: usize = 16;

/// Carries out `verdict` and returns the XDP action.
#[inline(always)]
pub(crate) fn act(verdict: Verdict, frame: &Frame, segment: &Segment, ring: &KeyRing) -> u32 {
    match verdict {
        Verdict::Pass => {}
        Verdict::Rewrite => translate(frame, segment, ring),
    }
    xdp_action::XDP_PASS
}

/// Puts the kernel's own cookie in the place of the one that the client has, and corrects the checksum.
///
/// Whatever can't be read or written leaves the packet as it came: the kernel then refuses the cookie, and the
/// connection takes one round trip more.
#[inline(always)]
fn translate(frame: &Frame, segment: &Segment, ring: &KeyRing) {
    let (FastOpen::Cookie(old), Some(key)) = (segment.fast_open, ring.translation()) else { return };
    let (cookie_at, checksum_at) = ((segment.tcp + old.offset) as usize, segment.tcp as usize + CHECKSUM);
    let Some(before) = frame.read(checksum_at) else { return };
    let new = key.cookie(&segment.addresses);
    // Both or neither: the checksum is written only once the cookie could be.
    if frame.write(cookie_at, new.to_le_bytes()) {
        let odd = old.offset & 1 == 1;
        // Cookies are little-endian words here; the sum is the same in either order, if all are read in one.
        let after = checksum(u16::from_le_bytes(before), old.value, new, odd);
        frame.write(checksum_at, after.to_le_bytes());
    }
}
