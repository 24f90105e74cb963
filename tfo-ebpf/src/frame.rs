//! Access to packet memory, with all of the program's `unsafe` code for it.

use core::{arch::asm, intrinsics::is_val_statically_known};

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use tfo_common::bytes::{Bytes, BytesMut};

/// Largest offset into a frame, and mask of offsets. The verifier follows a variable offset only while it knows it to
/// be small. The mask loses nothing: no header that is parsed ends beyond 32 KiB.
const MAX_OFFSET: usize = 0x7fff;

/// Bytes of the frame between `data` and `data_end`.
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

    /// Reads the bounds of the frame, for a function that is not inlined.
    ///
    /// LLVM does not see that they are read from `ctx`. Otherwise it would have the caller read them and pass them as
    /// arguments, which the verifier takes for numbers and not for pointers into a packet.
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
    /// Address of the `N` bytes at `offset`, or `None` if they do not all lie inside the frame.
    #[inline(always)]
    fn place<const N: usize>(&self, offset: usize) -> Option<usize> {
        let offset = if is_val_statically_known(offset) { offset } else { small(offset) };
        let start = self.data + offset;
        if start + N > self.data_end { None } else { Some(start) }
    }
}

/// Masks `offset`, which is small already, so that the verifier sees it.
///
/// The mask is in assembly, because LLVM knows that the offset is small and would remove a mask in Rust. The verifier
/// does not know it: before Linux 6.10 it forgets the bounds of a number at an `or` (`adjust_scalar_min_max_vals`,
/// kernel/bpf/verifier.c).
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
    /// Returns `data_end - data`, computed in assembly so that LLVM does not see that it is a difference.
    ///
    /// Otherwise LLVM concludes that a later bounds check can be left out once a length in a header is known to lie
    /// inside the frame, and the verifier can't follow that.
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

    /// Returns `value` after two exclusive-ors with a word that the verifier knows nothing about. They cancel out,
    /// which the verifier does not see.
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
