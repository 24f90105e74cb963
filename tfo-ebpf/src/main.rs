//! The XDP program. Entry points only: see `tfo_common` for the journey, [`frame`] for the packet, [`maps`] for the
//! maps.
// Whoever adds a class, a verdict or a reason is led to all that decides by one.
#![warn(clippy::wildcard_enum_match_arm)]
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "whether LLVM knows an offset is not to be asked otherwise")]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the kernel calls in by section name; nothing here is Rust API"
)]

mod act;
mod fast;
mod frame;
mod guards;
mod maps;
mod outcome;
mod slow;
mod watch;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{sock_ops, xdp},
    programs::{SockOpsContext, XdpContext},
};
use tfo_common::{parse::usual, segment::Segment};

use crate::frame::Frame;

/// Sees every frame of the interface.
#[xdp]
pub fn tfo_ingress(ctx: XdpContext) -> u32 {
    serve(&ctx, |frame, segment| fast::unguarded(&ctx, frame, segment))
}

/// Sees every frame where services have protections, or differ in mode. [`maps::mode`] is shield then, whatever their
/// modes.
#[xdp]
pub fn tfo_shield(ctx: XdpContext) -> u32 {
    serve(&ctx, |frame, segment| fast::guarded(&ctx, frame, segment))
}

/// Serves a frame: one of the usual ones by `fast`, unless that leaves it to the slow path.
#[inline(always)]
fn serve(ctx: &XdpContext, fast: impl Fn(&Frame, &Segment) -> Option<u32>) -> u32 {
    let is_described = match usual(&Frame::new(ctx), maps::link_layer(), fast) {
        Some(Some(Some(action))) => return action,
        Some(Some(None)) => true,
        // No SYN.
        Some(None) => false,
        None => slow::tfo_walk(ctx.ctx) != 0,
    };
    let action = if is_described { slow::finish(ctx.ctx) } else { None };
    action.unwrap_or(xdp_action::XDP_PASS)
}

/// Sees what becomes of connections: see [`outcome`].
#[sock_ops]
pub fn tfo_outcomes(ctx: SockOpsContext) -> u32 {
    outcome::report(&ctx);
    outcome::DONE
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program from which this can be reached: an endless loop has no exit.
    loop {}
}

/// The parts of the kernel's API that are open to GPL-compatible programs only may be used.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
