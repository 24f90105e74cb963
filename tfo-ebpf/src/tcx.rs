//! Programs at tcx, with the same code as those of XDP (`main.rs`): only [`context`] is another one.
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
#[path = "skb.rs"]
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

use aya_ebpf::{macros::classifier, programs::TcContext};

/// Program on packets that arrive, for interfaces whose services have no protections and share one mode.
#[classifier]
pub fn tfo_ingress(ctx: TcContext) -> i32 {
    entry::serve(ctx.skb.skb, fast::unguarded) as i32
}

/// Program on packets that arrive, for interfaces whose services have protections or differ in mode. [`maps::mode`] is then
/// shield, whatever the modes of the services.
#[classifier]
pub fn tfo_shield(ctx: TcContext) -> i32 {
    entry::serve(ctx.skb.skb, fast::guarded) as i32
}
