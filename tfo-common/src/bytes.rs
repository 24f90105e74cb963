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
    fn opaque(&self, value: u64) -> u64 {
        value
    }
}

/// A frame that can be written to at any offset, too.
pub trait BytesMut: Bytes {
    /// Puts `bytes` at `offset`; false, and nothing is changed, where they would not all lie inside the frame.
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> bool;
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

impl BytesMut for [u8] {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> bool {
        let place = self.get_mut(offset..).and_then(|rest| rest.first_chunk_mut());
        place.map(|place| *place = bytes).is_some()
    }
}
