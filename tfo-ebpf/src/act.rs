//! The only place that writes to a packet, or drops one: it carries out what was decided. The ways to write stand in
//! `tfo_common::rewrite`.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    programs::XdpContext,
};
use tfo_common::{keyring::KeyRing, rewrite, segment::Segment, verdict::Verdict};

use crate::frame::Frame;

/// Carries out `verdict` and returns the XDP action.
#[inline(always)]
pub(crate) fn act(ctx: &XdpContext, verdict: Verdict, segment: &Segment, ring: &KeyRing) -> u32 {
    let mut frame = Frame::new(ctx);
    match verdict {
        Verdict::Pass => {}
        Verdict::Rewrite => {
            if let Some(key) = ring.translation() {
                rewrite::translate(&mut frame, segment, key.cookie(&segment.addresses));
            }
        }
        Verdict::Hide => hide(ctx.ctx, segment.tcp),
        Verdict::Drop => return xdp_action::XDP_DROP,
    }
    xdp_action::XDP_PASS
}

/// Makes `most` the window of the SYN at `tcp`: no verdict, for it goes with any.
#[inline(always)]
pub(crate) fn clamp(mut frame: Frame, tcp: usize, most: u16) {
    rewrite::clamp(&mut frame, tcp, most);
}

/// A function of its own: what is hidden is not in a hurry, and it is a walk through all options.
#[inline(never)]
fn hide(ctx: *mut xdp_md, tcp: u32) {
    rewrite::hide(&mut Frame::anew(ctx), (tcp & 0xffff) as usize);
}
