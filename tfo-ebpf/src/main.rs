//! Entry points of the eBPF programs. [`fast`] and [`slow`] are the two paths of a SYN, [`frame`] reads and writes the
//! packet, and [`maps`] has the maps. Parsing, classes and policies are in `tfo_common`.
// A match without `_` makes the compiler point to the places that a new class, verdict or reason concerns. It does not
// point to a `matches!`.
#![warn(clippy::wildcard_enum_match_arm)]
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "the only way to ask LLVM whether it knows an offset")]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the kernel calls in by section name; nothing here is Rust API"
)]

mod act;
mod answer;
mod client;
mod egress;
mod fast;
mod fields;
mod frame;
mod guards;
mod local;
mod maps;
mod once;
mod outcome;
mod sent;
mod slow;
mod tcp_sock;
mod unfollowed;
mod watch;

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, sock_ops, xdp},
    programs::{SockOpsContext, TcContext, XdpContext},
};
use tfo_common::{
    parse::{Usual, usual},
    segment::Segment,
};

use crate::{fast::Served, frame::Frame};

/// XDP program for interfaces whose services have no protections and share one mode.
#[xdp(frags)]
pub fn tfo_ingress(ctx: XdpContext) -> u32 {
    serve(&ctx, fast::unguarded)
}

/// XDP program for interfaces whose services have protections or differ in mode. [`maps::mode`] is then shield,
/// whatever the modes of the services.
#[xdp(frags)]
pub fn tfo_shield(ctx: XdpContext) -> u32 {
    serve(&ctx, fast::guarded)
}

/// Serves a frame and returns its XDP action. `fast` gets the SYN of a usual frame (see [`usual`]). The slow path gets the SYNs that
/// `fast` leaves to it, and the frames that need a walk.
#[inline(always)]
fn serve(ctx: &XdpContext, fast: impl Fn(&Frame, &Segment) -> Served) -> u32 {
    let is_described = match usual(Frame::new(ctx), maps::link_layer(), fast) {
        Usual::Syn(Served::Done(action)) => return action,
        Usual::Syn(Served::NeedsSlowPath) => true,
        Usual::NotSyn => false,
        Usual::Syn(Served::NeedsWalk) | Usual::NeedsWalk => match slow::tfo_walk(ctx.ctx) {
            slow::SYN => true,
            slow::FAULT => return unfollowed::tfo_unfollowed(ctx.ctx),
            _ => false,
        },
    };
    let action = if is_described { slow::finish(ctx.ctx) } else { None };
    action.unwrap_or(xdp_action::XDP_PASS)
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
