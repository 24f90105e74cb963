//! The packet, as a byte source. All of the program's access to packet memory, and so all of its `unsafe` on it.

use core::{arch::asm, intrinsics::is_val_statically_known};

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use tfo_common::bytes::{Bytes, BytesMut};

/// No offset is larger: no header that is parsed can begin beyond 16 KiB. Bits above are taken for zero, since the
/// verifier follows a variable offset only while it is known to be small.
const MAX_OFFSET: usize = 0x7fff;

/// The bytes of the frame between `data` and `data_end`.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    data: usize,
    data_end: usize,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self { data: ctx.data(), data_end: ctx.data_end() }
    }

    /// In a function that is not inlined: LLVM would have the caller read what the context has, and hand over numbers that the
    /// verifier does not know as a packet, if it saw where it is read.
    #[inline(always)]
    pub(crate) fn anew(ctx: *mut xdp_md) -> Self {
        let mut same = ctx as usize;
        // SAFETY: moves a register to itself, and touches neither memory nor the stack.
        unsafe {
            asm!("{same} = {same}", same = inout(reg) same, options(pure, nomem, nostack, preserves_flags));
        }
        Self::new(&XdpContext::new(same as *mut xdp_md))
    }
}

impl Frame {
    /// The address of the `N` bytes at `offset`, where they all lie inside the frame.
    #[inline(always)]
    fn place<const N: usize>(&self, offset: usize) -> Option<usize> {
        let offset = if is_val_statically_known(offset) { offset } else { small(offset) };
        let start = self.data + offset;
        if start + N > self.data_end { None } else { Some(start) }
    }
}

/// The same number, and the verifier sees that it is small.
///
/// LLVM knows that, too, and would leave a check in Rust out. The verifier can't follow it: before Linux 6.10 it knows
/// nothing at all of what an `or` of two small numbers makes (`adjust_scalar_min_max_vals`, kernel/bpf/verifier.c).
#[inline(always)]
fn small(mut offset: usize) -> usize {
    // SAFETY: works on one register and touches neither memory nor the stack.
    unsafe {
        asm!(
            "{offset} &= {MAX_OFFSET}",
            offset = inout(reg) offset,
            MAX_OFFSET = const MAX_OFFSET,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    offset
}

impl Bytes for Frame {
    /// In a way that hides from the compiler what it is the difference of: else it concludes from a length in a header, once
    /// that is known to be inside the frame, that a later bounds check can be left out, and the verifier can't follow.
    #[inline(always)]
    fn len(&self) -> usize {
        let mut len = self.data_end;
        // SAFETY: works on two registers and touches neither memory nor the stack.
        unsafe {
            asm!(
                "{len} -= {data}",
                len = inout(reg) len,
                data = in(reg) self.data,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        len
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.place::<N>(offset)?;
        // SAFETY: `start..start + N` lies between `data` and `data_end`, which the kernel keeps readable while the
        // program runs; `[u8; N]` has no alignment and takes any bytes.
        Some(unsafe { *(start as *const [u8; N]) })
    }

    /// Two exclusive-ors with a word of which the verifier knows nothing: nothing changes, and it does not see that.
    #[inline(always)]
    fn opaque(&self, value: u64) -> u64 {
        let mut word = value;
        // SAFETY: works on two registers and touches neither memory nor the stack.
        unsafe {
            asm!(
                "{word} ^= {unknown}",
                "{word} ^= {unknown}",
                word = inout(reg) word,
                unknown = in(reg) self.len(),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        word
    }
}

impl BytesMut for Frame {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> bool {
        let Some(start) = self.place::<N>(offset) else { return false };
        // SAFETY: `place` has checked the range; XDP may write to the packet, which nobody else has while it runs.
        unsafe { *(start as *mut [u8; N]) = bytes };
        true
    }
}
