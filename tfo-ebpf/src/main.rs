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
mod frame;
mod maps;
mod outcome;
mod watch;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{sock_ops, xdp},
    programs::{SockOpsContext, XdpContext},
};
use aya_log_ebpf::debug;
use tfo_common::{
    class::{Classified, classify},
    parse::{Fault, on_syn},
    segment::Segment,
    service::OTHER,
    verdict::decide,
};

use crate::frame::Frame;

/// Sees every frame of the interface.
#[xdp]
pub fn tfo_ingress(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    match on_syn(&frame, maps::link_layer(), |frame, segment| serve(&ctx, frame, segment)) {
        Ok(Some(action)) => action,
        Ok(None) => xdp_action::XDP_PASS,
        Err(fault) => unclassified(&ctx, fault),
    }
}

/// From a SYN on: a copy for each kind of frame (see [`on_syn`]), and of its end for each class.
#[inline(always)]
fn serve(ctx: &XdpContext, frame: &Frame, segment: &Segment) -> u32 {
    let ring = maps::key_ring(segment);
    let found = classify(segment, ring);
    found.class.constant(|class| {
        let found = Classified { class, ..found };
        let verdict = decide(maps::mode(), class, ring.translation().is_some());
        maps::with_service(frame, segment, |service| {
            maps::cell(service, |cell| {
                let (packets, sampler) = cell.count_syn(segment, found, verdict, ring);
                if class.is_fast_open() && sampler.is_due(packets) {
                    watch::syn(ctx, sampler, packets, segment, class, verdict, service);
                }
            });
        });
        act::act(verdict, frame, segment, ring)
    })
}

/// What can't be parsed is counted and passed: only a policy may cost anyone a packet.
#[inline(always)]
fn unclassified(ctx: &XdpContext, fault: Fault) -> u32 {
    maps::cell(OTHER, |cell| {
        let (packets, sampler) = cell.count_fault(fault);
        if sampler.is_due(packets) {
            watch::fault(ctx, sampler, packets, fault);
        }
    });
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
