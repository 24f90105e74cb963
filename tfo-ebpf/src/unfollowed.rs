//! Frames without a class. The kernel may serve a SYN from those that are not followed. So a service may have these
//! dropped.

use tfo_common::{
    description::{Description, Kind},
    parse::{Unfollowed, Unsupported, unfollowed},
    policy::Policy,
    verdict::Mode,
};

use crate::{act, context::Raw, frame::Frame, maps, watch};

/// Counts the described frame, which has no class, and returns its action.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_unfollowed(ctx: *mut Raw) -> u32 {
    if maps::mode() == Mode::Shield {
        judge(ctx);
    }
    if let Some(frame) = maps::packet()
        && maps::cell(frame.service).is_some_and(|cell| cell.count_fault(frame))
    {
        watch::tfo_look(ctx);
    }
    act::unfollowed(maps::packet())
}

/// Finds the service that the described frame may bring a SYN to, and whether its policy drops such frames.
///
/// It is not inlined, so that its stack is not in use during the closer look.
#[inline(never)]
fn judge(ctx: *mut Raw) {
    let Some(packet) = maps::packet() else { return };
    if !may_be_syn(packet) {
        return;
    }
    let frame = &Frame::anew(ctx);
    let Some(Unfollowed { addresses, tcp }) = unfollowed(frame, maps::link_layer()) else { return };
    let service = match tcp {
        Some(tcp) => maps::service_at(frame, tcp as usize, &addresses),
        None => maps::service_without_port(&addresses),
    };
    let drops = maps::policy(service).is_some_and(|policy| policy.has(Policy::DROPS_UNFOLLOWED));
    if let Some(packet) = maps::packet() {
        packet.set_unfollowed(service, drops);
    }
}

/// Whether [`unfollowed`] can find anything in a frame of this fault. Later fragments are many, so they are not looked at.
#[inline(always)]
fn may_be_syn(packet: &Description) -> bool {
    packet.kind == Kind::Unsupported as u32 && packet.detail != Unsupported::LaterFragment as u32
}
