//! XDP programs. [`entry`] has the programs beside them, [`fast`] and [`slow`] are the two paths of a SYN, [`frame`] reads and
//! writes the packet, and [`maps`] has the maps. Parsing, classes and policies are in `tfo_common`.
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
#[path = "xdp.rs"]
mod context;
mod egress;
mod entry;
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

use aya_ebpf::{macros::xdp, programs::XdpContext};

/// XDP program for interfaces whose services have no protections and share one mode.
#[xdp(frags)]
pub fn tfo_ingress(ctx: XdpContext) -> u32 {
    entry::serve(ctx.ctx, fast::unguarded)
}

/// XDP program for interfaces whose services have protections or differ in mode. [`maps::mode`] is then shield,
/// whatever the modes of the services.
#[xdp(frags)]
pub fn tfo_shield(ctx: XdpContext) -> u32 {
    entry::serve(ctx.ctx, fast::guarded)
}
