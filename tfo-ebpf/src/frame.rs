//! Access to packet memory, with all of the program's `unsafe` code for it.

use core::{arch::asm, intrinsics::is_val_statically_known, ptr::null_mut};

use tfo_common::{
    bytes::{Bytes, BytesMut, Near},
    parse::{self, Headers, Options},
};

use crate::context;

/// Largest offset into a frame, and mask of offsets. The verifier follows a variable offset only while it knows it to
/// be small. The mask loses nothing: no header that is parsed ends beyond 32 KiB.
const MAX_OFFSET: usize = 0x7fff;

/// Bytes of the frame between `data` and `data_end`: all of it, or those in the first of its buffers.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    /// Context of the program.
    pub(crate) ctx: *mut context::Raw,
    /// Number of bytes in front of this part of the frame.
    pub(crate) skipped: usize,
    data: usize,
    data_end: usize,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn new(ctx: *mut context::Raw) -> Self {
        let (data, data_end) = context::bounds(ctx);
        Self { ctx, ..Self::between(data, data_end) }
    }

    /// Bytes between two pointers into a packet, without a context.
    #[inline(always)]
    pub(crate) fn between(data: usize, data_end: usize) -> Self {
        Self { ctx: null_mut(), skipped: 0, data, data_end }
    }

    /// Reads the bounds of the frame, for a function that is not inlined.
    ///
    /// LLVM does not see that they are read from `ctx`. Otherwise it would have the caller read them and pass them as
    /// arguments, which the verifier takes for numbers and not for pointers into a packet.
    #[inline(always)]
    pub(crate) fn anew(ctx: *mut context::Raw) -> Self {
        let mut same = ctx as usize;
        // SAFETY: moves a register to itself, and touches neither memory nor the stack.
        unsafe {
            asm!("{same} = {same}", same = inout(reg) same, options(pure, nomem, nostack, preserves_flags));
        }
        Self::new(same as *mut context::Raw)
    }

    /// Returns the frame after a change to it, which may have moved it.
    #[inline(always)]
    pub(crate) fn renewed(self) -> Self {
        if context::CORRECTS { Self::anew(self.ctx).behind(self.skipped) } else { self }
    }

    /// Returns `data_end - data`, computed in assembly so that LLVM does not see that it is a difference.
    ///
    /// Otherwise LLVM concludes that a later bounds check can be left out once a length in a header is known to lie
    /// inside the frame, and the verifier can't follow that.
    #[inline(always)]
    pub(crate) fn readable(&self) -> usize {
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
}

impl Headers for Frame {
    #[inline(always)]
    fn behind(self, len: usize) -> Self {
        let len = if is_val_statically_known(len) { len } else { small(len) };
        Self { skipped: self.skipped + len, data: self.data + len, ..self }
    }

    #[inline(always)]
    fn options(self, start: usize, area: usize) -> Options {
        Options::from_word(tfo_options(self.ctx, (start + self.skipped) as u32, area as u32))
    }
}

/// Walks through the `area` bytes of TCP options that begin at `start`, and returns the word of what it finds. It is a global
/// function, so the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_options(ctx: *mut context::Raw, start: u32, area: u32) -> u64 {
    parse::options(&Frame::anew(ctx).behind(start as usize), area as usize).word()
}

impl Frame {
    /// Address of the `len` bytes at `offset`, or `None` if they do not all lie inside the frame. LLVM knows `len`.
    #[inline(always)]
    fn place(&self, offset: usize, len: usize) -> Option<usize> {
        let offset = if is_val_statically_known(offset) { offset } else { small(offset) };
        let start = self.data + offset;
        if start + len > self.data_end { None } else { Some(start) }
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
    #[inline(always)]
    fn len(&self) -> usize {
        context::len(self.ctx, self.readable() + self.skipped).wrapping_sub(self.skipped)
    }

    #[inline(always)]
    fn whole_len(&self) -> usize {
        context::whole_len(self.ctx, self.readable() + self.skipped).wrapping_sub(self.skipped)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.place(offset, N)?;
        // SAFETY: `start..start + N` lies between `data` and `data_end`, which the kernel keeps readable while the
        // program runs; `[u8; N]` has no alignment and takes any bytes.
        Some(unsafe { *(start as *const [u8; N]) })
    }

    #[inline(always)]
    fn near(&self, word: u64) -> Near {
        let mut offset = word as usize;
        // SAFETY: works on one register and touches neither memory nor the stack.
        unsafe {
            asm!(
                "{offset} &= {MASK}",
                offset = inout(reg) offset,
                MASK = const Near::MASK,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        Near(offset)
    }

    #[inline(always)]
    fn read_near<const N: usize>(&self, offset: Near) -> Option<[u8; N]> {
        let start = self.data + offset.0;
        if start + N > self.data_end {
            return None;
        }
        // SAFETY: as in `read`.
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
                unknown = in(reg) self.readable(),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        word
    }
}

impl BytesMut for Frame {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> bool {
        let Some(start) = self.place(offset, N) else { return false };
        // SAFETY: `place` has checked the range; XDP may write to the packet, which nobody else has while it runs.
        unsafe { *(start as *mut [u8; N]) = bytes };
        true
    }

    #[inline(always)]
    fn write_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> bool {
        let Some(start) = self.place(offset, 4 * N) else { return false };
        for (at, word) in words.into_iter().enumerate() {
            // SAFETY: as in `write`. The write is an unaligned one.
            unsafe { ((start + 4 * at) as *mut u32).write_unaligned(word.to_le()) };
        }
        true
    }

    #[inline(always)]
    fn set_checksum(&mut self, offset: usize, sum: u16, change: u16) {
        if context::CORRECTS {
            context::correct(self.ctx, self.skipped + offset, change);
        } else {
            self.write(offset, sum.to_le_bytes());
        }
    }
}
