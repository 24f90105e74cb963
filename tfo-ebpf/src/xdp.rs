//! Context of the XDP programs. `skb.rs` has the same items for programs at tcx.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};

use crate::maps;

/// Context as the kernel passes it. Arguments of global functions have this type, and the verifier knows it by its name.
pub(crate) type Raw = xdp_md;
/// The same for aya.
pub(crate) type Context = XdpContext;

/// Action for a frame that goes on.
pub(crate) const PASS: u32 = xdp_action::XDP_PASS;
/// Action for a frame that is dropped.
pub(crate) const DROP: u32 = xdp_action::XDP_DROP;

/// Returns `data` and `data_end`.
#[inline(always)]
pub(crate) fn bounds(ctx: *mut Raw) -> (usize, usize) {
    let ctx = XdpContext::new(ctx);
    (ctx.data(), ctx.data_end())
}

/// Whether the frame can be a SYN at all.
#[inline(always)]
pub(crate) fn may_be_syn(_ctx: *mut Raw) -> bool {
    true
}

/// Returns the length of the frame as far as it is a usual one, given the length between the bounds.
#[inline(always)]
pub(crate) fn len(_ctx: *mut Raw, readable: usize) -> usize {
    readable
}

/// Returns the length of the whole frame, given the length between the bounds.
#[inline(always)]
pub(crate) fn whole_len(ctx: *mut Raw, readable: usize) -> usize {
    if !maps::is_multi_buffer() {
        return readable;
    }
    // SAFETY: the context is the kernel's.
    unsafe { bpf_xdp_get_buff_len(ctx) as usize }
}

/// Makes more of the frame readable, where that is possible.
#[inline(always)]
pub(crate) fn pull(_ctx: *mut Raw) {}

/// Whether [`correct`] is needed after a change. Then no pointer into the packet is valid afterwards.
pub(crate) const CORRECTS: bool = false;

/// Corrects the checksum at `offset` by `change`. It is not called here: see [`CORRECTS`].
#[inline(always)]
pub(crate) fn correct(_ctx: *mut Raw, _offset: usize, _change: u16) {}

/// Makes the frame longer or shorter. Returns whether that worked.
#[inline(always)]
pub(crate) fn adjust_tail(ctx: *mut Raw, change: i32) -> bool {
    // SAFETY: the context is the kernel's. The verifier lets nobody use a pointer into the packet after this.
    unsafe { bpf_xdp_adjust_tail(ctx, change) == 0 }
}

/// Returns the action that sends the frame back from where it came.
#[inline(always)]
pub(crate) fn send_back(_ctx: *mut Raw) -> u32 {
    xdp_action::XDP_TX
}

/// Returns the index of the interface.
#[inline(always)]
pub(crate) fn interface(ctx: *mut Raw) -> u32 {
    // SAFETY: the kernel gives a valid context.
    unsafe { (*ctx).ingress_ifindex }
}
