//! Context of the programs at tcx: a packet that the stack has received, and not looked at yet. `xdp.rs` has the same items for
//! XDP.
//!
//! The kernel has taken the outermost VLAN tag out of the packet, and puts it back into one that is sent back. Segments may
//! have been merged, but no SYN.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail, bpf_skb_pull_data},
    programs::TcContext,
};

/// Context as the kernel passes it. Arguments of global functions have this type, and the verifier knows it by its name.
pub(crate) type Raw = __sk_buff;
/// The same for aya.
pub(crate) type Context = TcContext;

/// Action for a packet that goes on, to the next program.
pub(crate) const PASS: u32 = TC_ACT_UNSPEC as u32;
/// Action for a packet that is dropped.
pub(crate) const DROP: u32 = TC_ACT_SHOT as u32;

/// Length of the longest packet that can be a SYN: longer ones are merged (BIG TCP), and their headers do not have the length.
const LONGEST: u32 = u16::MAX as u32 + 64;
/// Number of bytes that [`pull`] makes readable: at least all headers of a packet.
const HEADERS: u32 = 1536;

/// Returns `data` and `data_end`.
#[inline(always)]
pub(crate) fn bounds(ctx: *mut Raw) -> (usize, usize) {
    let ctx = TcContext::new(ctx);
    (ctx.data(), ctx.data_end())
}

/// Whether the packet can be a SYN at all.
#[inline(always)]
pub(crate) fn may_be_syn(ctx: *mut Raw) -> bool {
    all(ctx) <= LONGEST
}

#[inline(always)]
fn all(ctx: *mut Raw) -> u32 {
    // SAFETY: the kernel gives a valid context.
    unsafe { (&raw const (*ctx).len).read_volatile() }
}

/// Returns the length of the packet. Its data may lie in pages, behind what can be read.
#[inline(always)]
pub(crate) fn len(ctx: *mut Raw, _readable: usize) -> usize {
    all(ctx) as usize
}

/// Returns the same.
#[inline(always)]
pub(crate) fn whole_len(ctx: *mut Raw, readable: usize) -> usize {
    len(ctx, readable)
}

/// Makes the headers of the packet readable, and the data of a SYN.
#[inline(always)]
pub(crate) fn pull(ctx: *mut Raw) {
    let (data, data_end) = bounds(ctx);
    if data + HEADERS as usize > data_end {
        let all = all(ctx);
        // SAFETY: the context is the kernel's. The verifier lets nobody use a pointer into the packet after this. If it fails,
        // less can be read.
        unsafe { bpf_skb_pull_data(ctx, if all < HEADERS { all } else { HEADERS }) };
    }
}

/// Whether [`correct`] is needed after a change. Then no pointer into the packet is valid afterwards.
pub(crate) const CORRECTS: bool = true;

/// Corrects the checksum at `offset` by `change`. Where the checksum is not made yet (CHECKSUM_PARTIAL), the kernel leaves its
/// field alone. Where it has summed up the packet (CHECKSUM_COMPLETE), that sum stays right, since the checksum makes up for the
/// change.
#[inline(always)]
pub(crate) fn correct(ctx: *mut Raw, offset: usize, change: u16) {
    // SAFETY: the context is the kernel's, which checks the offset. No pointer into the packet is used after this.
    unsafe { bpf_l4_csum_replace(ctx, offset as u32, 0, change.into(), 0) };
}

/// Makes the packet longer or shorter. Returns whether that worked.
#[inline(always)]
pub(crate) fn adjust_tail(ctx: *mut Raw, change: i32) -> bool {
    let len = all(ctx).wrapping_add(change as u32);
    // SAFETY: the context is the kernel's. The verifier lets nobody use a pointer into the packet after this.
    unsafe { bpf_skb_change_tail(ctx, len, 0) == 0 }
}

/// Returns the action that sends the packet back from where it came.
#[inline(always)]
pub(crate) fn send_back(ctx: *mut Raw) -> u32 {
    // SAFETY: the helper takes numbers only.
    match unsafe { bpf_redirect(interface(ctx), 0) } as i32 {
        TC_ACT_REDIRECT => TC_ACT_REDIRECT as u32,
        _ => PASS,
    }
}

/// Returns the index of the interface.
#[inline(always)]
pub(crate) fn interface(ctx: *mut Raw) -> u32 {
    // SAFETY: the kernel gives a valid context.
    unsafe { (*ctx).ifindex }
}
