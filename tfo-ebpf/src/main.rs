//! The XDP program. Entry points only: see `tfo_common` for the journey, [`frame`] for the packet, [`maps`] for the
//! maps.
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
mod confirmed;
mod frame;
mod maps;
mod outcome;
mod shield;
mod watch;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::{sock_ops, xdp},
    programs::{SockOpsContext, XdpContext},
};
use aya_log_ebpf::debug;
use tfo_common::{
    class::{Classified, classify},
    counters::Cell,
    handed::{Handed, Hint},
    keyring::KeyRing,
    parse::{Fault, usual, walk},
    policy::{Policy, decide},
    segment::Segment,
    service::OTHER,
};

use crate::{confirmed::Unguarded, frame::Frame};

/// Sees every frame of the interface.
#[xdp]
pub fn tfo_ingress(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    match usual(&frame, maps::link_layer(), |frame, segment| serve(&ctx, frame, segment)) {
        Some(action) => action.unwrap_or(xdp_action::XDP_PASS),
        None => unusual(ctx.ctx),
    }
}

/// The same where services are protected: see [`shield`].
#[xdp]
pub fn tfo_shield(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let found = match usual(&frame, maps::link_layer(), |frame, segment| shield::usual(&ctx, frame, segment))
    {
        Some(None | Some(None)) => return xdp_action::XDP_PASS,
        Some(Some(Some(found))) => found,
        None => Handed::from_word(shield::unusual(ctx.ctx)),
    };
    shield::serve(&ctx, found)
}

/// What is not one of the usual frames. A function of its own: those would have to keep more on the stack.
#[inline(never)]
fn unusual(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    let frame = Frame::new(&ctx);
    match walk(&frame, maps::link_layer()) {
        Ok(Some(segment)) => serve(&ctx, &frame, &segment),
        Ok(None) => xdp_action::XDP_PASS,
        Err(fault) => unclassified(&ctx, fault),
    }
}

/// From a SYN on: a copy for each kind of frame (see [`usual`]), and of its end for each class.
#[inline(always)]
fn serve(ctx: &XdpContext, frame: &Frame, segment: &Segment) -> u32 {
    let ring = maps::key_ring(segment);
    let found = classify(segment, ring);
    found.class.constant(|class| end(ctx, frame, segment, ring, Classified { class, ..found }))
}

/// What is done once the class is known, which is a constant here.
#[inline(always)]
fn end(ctx: &XdpContext, frame: &Frame, segment: &Segment, ring: &KeyRing, found: Classified) -> u32 {
    let policy = Policy::of_mode(maps::mode());
    let decision = decide(&policy, found.class, Unguarded(ring));
    let count = |service| {
        let hint = Hint::syn(segment, found.class, decision, service);
        count(ctx.ctx, found.class.is_fast_open(), hint, service, |cell| {
            cell.count_syn(segment, found, decision.verdict(), ring)
        });
    };
    if maps::has_services() {
        count(maps::service(frame, segment.tcp as usize, || Some(segment.addresses)))
    } else {
        count(OTHER)
    }
    act::act(ctx, decision.verdict(), segment, ring)
}

/// Counts the SYN, as `add` does it, and looks at it more closely where that is due.
#[inline(always)]
fn count(
    ctx: *mut xdp_md,
    is_fast_open: bool,
    hint: Hint,
    service: u32,
    add: impl for<'a> FnOnce(&'a mut Cell) -> (u64, &'a mut u64),
) {
    let Some(cell) = maps::cell(service) else { return };
    let (packets, due) = add(cell);
    if is_fast_open && packets >= *due {
        watch::look(ctx, due, packets, hint);
    }
}

/// What can't be parsed is counted and passed: only a policy may cost anyone a packet.
#[inline(always)]
fn unclassified(ctx: &XdpContext, fault: Fault) -> u32 {
    if let Some(cell) = maps::cell(OTHER) {
        let (packets, due) = cell.count_fault(fault);
        if packets >= *due {
            watch::look(ctx.ctx, due, packets, Hint::fault(fault));
        }
    }
    debug!(ctx, "unclassified frame: {}", fault.name());
    xdp_action::XDP_PASS
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
