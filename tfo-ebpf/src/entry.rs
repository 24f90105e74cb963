//! Entry points that both objects have: for XDP (`main.rs`) and for tcx (`tcx.rs`).

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{classifier, sock_ops},
    programs::{SockOpsContext, TcContext},
};
use tfo_common::{
    parse::{Usual, usual},
    segment::Segment,
};

use crate::{client, context, egress, fast::Served, frame::Frame, maps, outcome, slow, unfollowed};

/// Serves a frame and returns its action. `fast` gets the SYN of a usual frame (see [`usual`]). The slow path gets the SYNs that
/// `fast` leaves to it, and the frames that need a walk.
#[inline(always)]
pub(crate) fn serve(ctx: *mut context::Raw, fast: impl Fn(&Frame, &Segment) -> Served) -> u32 {
    if !context::may_be_syn(ctx) {
        return context::PASS;
    }
    let is_described = match usual(Frame::new(ctx), maps::link_layer(), fast) {
        Usual::Syn(Served::Done(action)) => return action,
        Usual::Syn(Served::NeedsSlowPath) => true,
        Usual::NotSyn => false,
        Usual::Syn(Served::NeedsWalk) | Usual::NeedsWalk => match slow::describe_any(ctx) {
            slow::SYN => true,
            slow::FAULT => return unfollowed::tfo_unfollowed(ctx),
            _ => false,
        },
    };
    let action = if is_described { slow::finish(ctx) } else { None };
    action.unwrap_or(context::PASS)
}

/// Program on packets that leave: see [`egress`]. It leaves the verdict on all of them to others (`TCX_NEXT` and
/// `TC_ACT_UNSPEC` are the same).
#[classifier]
pub fn tfo_egress(ctx: TcContext) -> i32 {
    egress::exchange(&ctx);
    TC_ACT_UNSPEC
}

/// sock_ops program that counts the outcomes of connections to this host: see [`outcome`].
#[sock_ops]
pub fn tfo_outcomes(ctx: SockOpsContext) -> u32 {
    outcome::report(&ctx);
    outcome::DONE
}

/// sock_ops program that also counts connections from this host: see [`client`]. Where the kernel refuses it,
/// [`tfo_outcomes`] takes its place.
#[sock_ops]
pub fn tfo_both_ends(ctx: SockOpsContext) -> u32 {
    if !client::report(&ctx) {
        outcome::report(&ctx);
    }
    outcome::DONE
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // An endless loop has no exit, so the verifier refuses a program that can reach it.
    loop {}
}

/// License of the program, which lets it use the helpers that the kernel keeps for GPL-compatible programs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
