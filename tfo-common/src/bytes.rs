//! Access to the bytes of a frame: a packet in the kernel, a slice anywhere else.

/// A frame that can be read at any offset, each read checked.
pub trait Bytes {
    /// The frame's length in bytes, link-layer header included.
    fn len(&self) -> usize;

    /// Whether the frame is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a copy of the `N` bytes from `offset` on, or `None` if they do not all lie inside the frame.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Returns `value`, and makes the kernel's verifier forget everything about it. On the host this is the identity.
    ///
    /// The verifier follows each path through each turn of a loop that carries state. If the whole state is in one
    /// word, and that word is opaque at the head of the loop, the turns look alike and the verifier prunes them.
    #[inline(always)]
    fn opaque(&self, value: u64) -> u64 {
        value
    }
}

/// A frame that can also be written to at any offset.
pub trait BytesMut: Bytes {
    /// Writes `bytes` at `offset`. Returns false and changes nothing if they would not all lie inside the frame.
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
