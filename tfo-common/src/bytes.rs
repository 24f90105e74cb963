//! Where the parser reads from: a packet in the kernel, a slice anywhere else.

/// A frame that can be read at any offset, each read checked.
pub trait Bytes {
    /// The frame's length in bytes, link-layer header included.
    fn len(&self) -> usize;

    /// Whether the frame has no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `N` bytes from `offset` on, copied; `None` where they do not all lie inside the frame.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The same value, of which the kernel's verifier is made to forget everything.
    ///
    /// A loop that carries state makes the verifier follow each path through each turn anew. Where all that a turn
    /// knows is in one word, and that word is opaque at its head, the turns look alike and it prunes them. On the
    /// host this is the identity.
    #[inline(always)]
    fn opaque(&self, value: u32) -> u32 {
        value
    }
}

impl Bytes for [u8] {
    #[inline(always)]
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}
