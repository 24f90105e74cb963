//! Access to the bytes of a frame: a packet in the kernel, a slice anywhere else.

/// A frame that can be read at any offset, each read checked.
pub trait Bytes {
    /// The frame's length in bytes, link-layer header included.
    fn len(&self) -> usize;

    /// The length in bytes of the frame that came. Only its first bytes, as many as [`len`](Self::len) says, can be read here:
    /// a jumbo frame may lie in several buffers.
    fn whole_len(&self) -> usize {
        self.len()
    }

    /// Whether the frame is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a copy of the `N` bytes from `offset` on, or `None` if they do not all lie inside the frame.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Returns the lowest six bits of `word`, as an offset for [`read_near`](Self::read_near).
    #[inline(always)]
    fn near(&self, word: u64) -> Near {
        Near(word as usize & Near::MASK)
    }

    /// Reads like [`read`](Self::read).
    #[inline(always)]
    fn read_near<const N: usize>(&self, offset: Near) -> Option<[u8; N]> {
        self.read(offset.0)
    }

    /// Returns `value`, and makes the kernel's verifier forget everything about it. On the host this is the identity.
    ///
    /// The verifier follows each path through each turn of a loop that carries state. If the whole state is in one
    /// word, and that word is opaque at the head of the loop, the turns look alike and the verifier prunes them.
    #[inline(always)]
    fn opaque(&self, value: u64) -> u64 {
        value
    }
}

/// Offset below 64. The kernel's verifier knows that it is, so a read there needs no mask.
#[derive(Clone, Copy, Debug)]
pub struct Near(pub usize);

impl Near {
    /// The bits of such an offset.
    pub const MASK: usize = 0x3f;
}

/// A frame that can also be written to at any offset.
pub trait BytesMut: Bytes {
    /// Writes `bytes` at `offset`. Returns false and changes nothing if they would not all lie inside the frame.
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> bool;

    /// Writes little-endian `words` at `offset`, with one check for all. Returns false and changes nothing if they would not all
    /// lie inside the frame.
    fn write_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> bool;

    /// Sets the checksum at `offset` to `sum`, which `change` has been added to. It is the last write of a change, and the frame
    /// must not be read afterwards: the kernel may know better how to correct a checksum, and move the packet for it.
    #[inline(always)]
    fn set_checksum(&mut self, offset: usize, sum: u16, change: u16) {
        let _: u16 = change;
        self.write(offset, sum.to_le_bytes());
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

impl Bytes for &[u8] {
    #[inline(always)]
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        (**self).read(offset)
    }
}

impl BytesMut for [u8] {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> bool {
        let place = self.get_mut(offset..).and_then(|rest| rest.first_chunk_mut());
        place.map(|place| *place = bytes).is_some()
    }

    fn write_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> bool {
        let Some((places, _)) = self.get_mut(offset..).map(|rest| rest.as_chunks_mut()) else { return false };
        let is_inside = places.len() >= N;
        if is_inside {
            places.iter_mut().zip(words).for_each(|(place, word)| *place = word.to_le_bytes());
        }
        is_inside
    }
}
