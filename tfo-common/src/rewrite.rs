//! Changing a packet without reading all of it: each way to do it, and the arithmetic of checksums.
//!
//! Whatever can't be read or written leaves the packet as it came: the kernel then does what it would have done without us.

use network_types::tcp::TcpHdr;

use crate::{
    bytes::BytesMut,
    parse,
    segment::{FastOpen, Segment},
};

/// Where they stand in a TCP header.
const WINDOW: usize = 14;
const CHECKSUM: usize = 16;

/// Puts `cookie` in the place of the one that the client has.
#[inline(always)]
pub fn translate<B: BytesMut + ?Sized>(frame: &mut B, segment: &Segment, cookie: u64) {
    let FastOpen::Cookie(old) = segment.fast_open else { return };
    if (old.offset as usize) < TcpHdr::LEN {
        return;
    }
    let tcp = segment.tcp as usize;
    let Some(sum) = frame.read(tcp + CHECKSUM) else { return };
    // Both or neither: the checksum is written only once the cookie could be.
    if frame.write(tcp + old.offset as usize, cookie.to_le_bytes()) {
        // Cookies are little-endian words here; the sum is the same in either order, if all are read in one.
        let sum = checksum(u16::from_le_bytes(sum), old.value, cookie, old.offset & 1 == 1);
        frame.write(tcp + CHECKSUM, sum.to_le_bytes());
    }
}

/// The window of the SYN at `tcp`: in bytes, for no scale is in force in a SYN (RFC 7323, 2.2).
#[inline(always)]
pub fn window<B: BytesMut + ?Sized>(frame: &B, tcp: usize) -> Option<u16> {
    frame.read(tcp + WINDOW).map(u16::from_be_bytes)
}

/// Makes `most` the window of the SYN at `tcp`.
#[inline(always)]
pub fn clamp<B: BytesMut + ?Sized>(frame: &mut B, tcp: usize, most: u16) {
    let (Some(old), Some(sum)) = (frame.read(tcp + WINDOW), frame.read(tcp + CHECKSUM)) else { return };
    let new = most.to_be_bytes();
    if frame.write(tcp + WINDOW, new) {
        let change = Change::NONE.word(u16::from_le_bytes(old).into(), u16::from_le_bytes(new).into());
        frame.write(tcp + CHECKSUM, change.apply(u16::from_le_bytes(sum)).to_le_bytes());
    }
}

/// Puts no-operations where Fast Open options stand, each of them: where the last is gone, the kernel would take another.
#[inline(always)]
pub fn hide<B: BytesMut + ?Sized>(frame: &mut B, tcp: usize) {
    const NO_OPERATIONS: u32 = 0x0101_0101;
    const WORD: usize = size_of::<u32>();

    let Some(area) = parse::option_area(frame, tcp) else { return };
    let Some(sum) = frame.read(tcp + CHECKSUM) else { return };
    let places = parse::fast_open_places(frame, tcp + TcpHdr::LEN, area);
    let mut change = Change::NONE;
    // The area is whole words.
    for word in 0..parse::MAX_OPTIONS / WORD {
        let at = word * WORD;
        if at >= area {
            break;
        }
        let Some(old) = frame.read(tcp + TcpHdr::LEN + at).map(u32::from_le_bytes) else { return };
        let here = bytes((places >> at) as u32);
        let new = old & !here | NO_OPERATIONS & here;
        frame.write(tcp + TcpHdr::LEN + at, new.to_le_bytes());
        change = change.word(old.into(), new.into());
    }
    frame.write(tcp + CHECKSUM, change.apply(u16::from_le_bytes(sum)).to_le_bytes());
}

/// All ones in those bytes of a word whose bit is among the lowest four of `places`.
#[inline(always)]
const fn bytes(places: u32) -> u32 {
    // A copy of the four bits for each byte, and of each copy the bit that is at the byte's beginning.
    ((places & 0xf).wrapping_mul(0x0020_4081) & 0x0101_0101).wrapping_mul(0xff)
}

/// The TCP checksum, its two bytes read as a little-endian word, after eight bytes of the segment were `old` and are `new`
/// (little-endian words too). `odd` where they begin at an odd offset from the TCP header's first byte.
///
/// Bytes at odd places stand in the other half of their words, so their sum is swapped.
#[inline(always)]
pub const fn checksum(checksum: u16, old: u64, new: u64, odd: bool) -> u16 {
    let change = fold(Change::NONE.word(old, new).0);
    Change(if odd { change.swap_bytes() } else { change } as u64).apply(checksum)
}

/// By how much bytes of a segment have changed: the sum of some 16-bit words, far below 2^32.
///
/// RFC 1624, equation 3. The one's complement sum is the same in either byte order as long as all words are read in one
/// (RFC 1071, 2 B).
#[derive(Clone, Copy)]
struct Change(u64);

impl Change {
    const NONE: Self = Self(0);

    /// With a word of up to eight bytes that begins at an even place: it was `old` and is `new`.
    #[inline(always)]
    const fn word(self, old: u64, new: u64) -> Self {
        // Halves that a smaller word does not have add nothing: all ones are a zero.
        Self(self.0 + halves(!old) + halves(new))
    }

    /// What becomes of `checksum`.
    #[inline(always)]
    const fn apply(self, checksum: u16) -> u16 {
        !fold(!checksum as u64 + self.0)
    }
}

/// The sum of the four 16-bit words.
#[inline(always)]
const fn halves(word: u64) -> u64 {
    (word & 0xffff) + (word >> 16 & 0xffff) + (word >> 32 & 0xffff) + (word >> 48)
}

/// A sum with its carries added back in. Two rounds are enough for sums below 2^32.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}
