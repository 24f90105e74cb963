//! Access to a packet that is about to leave, with the `unsafe` code for changing it.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_l4_csum_replace, bpf_skb_store_bytes},
    programs::TcContext,
};
use tfo_common::{
    bytes::{Bytes, Near},
    parse::Headers,
    rewrite,
};

use crate::frame::Frame;

/// Bytes of a packet that is about to leave, as far as they can be read in place.
#[derive(Clone, Copy)]
pub(crate) struct Sent {
    /// Bytes, without the context of an XDP program.
    frame: Frame,
    ctx: *mut __sk_buff,
}

impl Sent {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self { frame: Frame::between(ctx.data(), ctx.data_end()), ctx: ctx.skb.skb }
    }

    /// Replaces the eight bytes `old` at `offset` from the first byte of the TCP header at `tcp`, and corrects its checksum.
    /// The packet must not be read afterwards, hence the move.
    ///
    /// Where the checksum is not made yet (CHECKSUM_PARTIAL), its field has the sum of the addresses only, and the kernel leaves
    /// it alone (`inet_proto_csum_replace_by_diff`).
    #[inline(always)]
    pub(crate) fn replace(self, tcp: usize, offset: usize, old: u64, new: u64) -> bool {
        const CHECKSUM: usize = 16;
        let tcp = self.frame.skipped + tcp;
        let bytes = new.to_le_bytes();
        let change = rewrite::change(old, new, offset & 1 == 1);
        // SAFETY: the context is the kernel's, which checks the offsets, and the bytes are initialised. No pointer into the
        // packet is used after this. If the bytes could be written, the checksum in front of them can be, too.
        unsafe {
            bpf_skb_store_bytes(self.ctx, (tcp + offset) as u32, bytes.as_ptr().cast(), bytes.len() as u32, 0)
                == 0
                && bpf_l4_csum_replace(self.ctx, (tcp + CHECKSUM) as u32, 0, change.into(), 0) == 0
        }
    }
}

impl Headers for Sent {
    #[inline(always)]
    fn behind(self, len: usize) -> Self {
        Self { frame: self.frame.behind(len), ..self }
    }
}

impl Bytes for Sent {
    #[inline(always)]
    fn len(&self) -> usize {
        self.frame.readable()
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.frame.read(offset)
    }

    #[inline(always)]
    fn near(&self, word: u64) -> Near {
        self.frame.near(word)
    }

    #[inline(always)]
    fn read_near<const N: usize>(&self, offset: Near) -> Option<[u8; N]> {
        self.frame.read_near(offset)
    }

    #[inline(always)]
    fn opaque(&self, value: u64) -> u64 {
        self.frame.opaque(value)
    }
}
