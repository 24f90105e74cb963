//! Changes to a packet that need not read all of it, and the arithmetic of checksums.
//!
//! If something can't be read or written, the packet stays as it came. Then the kernel does what it would have done
//! without tfo.

use network_types::tcp::TcpHdr;

use crate::{
    bytes::BytesMut,
    parse,
    segment::{FastOpen, Segment},
};

/// Offsets of window and checksum in a TCP header.
const WINDOW: usize = 14;
const CHECKSUM: usize = 16;

/// Replaces the client's cookie with `cookie`.
#[inline(always)]
pub fn translate<B: BytesMut + ?Sized>(frame: &mut B, segment: &Segment, cookie: u64) {
    let FastOpen::Cookie(old) = segment.fast_open else { return };
    if (old.offset as usize) < TcpHdr::LEN {
        return;
    }
    let tcp = segment.tcp as usize;
    let Some(sum) = frame.read(tcp + CHECKSUM) else { return };
    // The checksum is written only if the cookie could be written.
    if frame.write(tcp + old.offset as usize, cookie.to_le_bytes()) {
        // Cookies are little-endian words here. The sum is the same in either byte order, if all words are read in one.
        let change = Change(change(old.value, cookie, old.offset & 1 == 1).into());
        change.correct(frame, tcp, sum);
    }
}

/// Returns the window of the SYN at `tcp`, in bytes: no scale is in force in a SYN (RFC 7323, 2.2).
#[inline(always)]
pub fn window<B: BytesMut + ?Sized>(frame: &B, tcp: usize) -> Option<u16> {
    frame.read(tcp + WINDOW).map(u16::from_be_bytes)
}

/// Sets the window of the SYN at `tcp` to `most`.
#[inline(always)]
pub fn clamp<B: BytesMut + ?Sized>(frame: &mut B, tcp: usize, most: u16) {
    let (Some(old), Some(sum)) = (frame.read(tcp + WINDOW), frame.read(tcp + CHECKSUM)) else { return };
    let new = most.to_be_bytes();
    if frame.write(tcp + WINDOW, new) {
        let change = Change::NONE.word(u16::from_le_bytes(old).into(), u16::from_le_bytes(new).into());
        change.correct(frame, tcp, sum);
    }
}

/// Overwrites every Fast Open option with no-operations. If only the last were gone, the kernel would take an earlier
/// one.
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
    change.correct(frame, tcp, sum);
}

/// Returns a mask with all ones in those bytes of a word whose bit is set in the lowest four bits of `places`.
#[inline(always)]
const fn bytes(places: u32) -> u32 {
    // Each byte gets a copy of the four bits, shifted so that its own bit is the lowest.
    ((places & 0xf).wrapping_mul(0x0020_4081) & 0x0101_0101).wrapping_mul(0xff)
}

/// Returns the TCP checksum after eight bytes of the segment have changed from `old` to `new`. All three are
/// little-endian words. `odd` says that the bytes begin at an odd offset from the TCP header's first byte.
///
/// Bytes at odd offsets stand in the other half of their words, so their sum is swapped.
#[inline(always)]
pub const fn checksum(checksum: u16, old: u64, new: u64, odd: bool) -> u16 {
    Change(change(old, new, odd) as u64).apply(checksum)
}

/// Returns what that change adds to the sum of the segment, before it is inverted: the difference that
/// `bpf_l4_csum_replace` takes.
#[inline(always)]
pub const fn change(old: u64, new: u64, odd: bool) -> u16 {
    let change = fold(Change::NONE.word(old, new).0);
    if odd { change.swap_bytes() } else { change }
}

/// Change of some bytes of a segment: a sum of 16-bit words, far below 2^32.
///
/// RFC 1624, equation 3. The one's complement sum is the same in either byte order as long as all words are read in one
/// (RFC 1071, 2 B).
#[derive(Clone, Copy)]
struct Change(u64);

impl Change {
    const NONE: Self = Self(0);

    /// Adds the change of a word of up to eight bytes from `old` to `new`. The word begins at an even offset.
    #[inline(always)]
    const fn word(self, old: u64, new: u64) -> Self {
        // Each half above a shorter word adds 0xffff, which is a zero in one's complement.
        Self(self.0 + halves(!old) + halves(new))
    }

    /// Corrects the checksum of the segment at `tcp`, which was `sum`.
    #[inline(always)]
    fn correct<B: BytesMut + ?Sized>(self, frame: &mut B, tcp: usize, sum: [u8; 2]) {
        frame.set_checksum(tcp + CHECKSUM, self.apply(u16::from_le_bytes(sum)), fold(self.0));
    }

    /// Returns `checksum` after the change.
    #[inline(always)]
    const fn apply(self, checksum: u16) -> u16 {
        !fold(!checksum as u64 + self.0)
    }
}

/// Returns the sum of the four 16-bit words.
#[inline(always)]
const fn halves(word: u64) -> u64 {
    (word & 0xffff) + (word >> 16 & 0xffff) + (word >> 32 & 0xffff) + (word >> 48)
}

/// Adds the carries of a sum back in. Two rounds are enough for sums below 2^32.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}
