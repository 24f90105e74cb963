//! Changing a packet without reading all of it: the arithmetic of checksums.

/// The TCP checksum, its two bytes read as a little-endian word, after eight bytes of the segment were `old` and are `new`
/// (little-endian words too). `odd` where they begin at an odd offset from the TCP header's first byte.
///
/// RFC 1624, equation 3. The one's complement sum is the same in either byte order as long as all words are read in one
/// (RFC 1071, 2 B); bytes at odd places stand in the other half of their words, so their sum is swapped.
#[inline(always)]
pub const fn checksum(checksum: u16, old: u64, new: u64, odd: bool) -> u16 {
    let change = fold(halves(!old) + halves(new));
    let change = if odd { change.swap_bytes() } else { change };
    !fold(!checksum as u64 + change as u64)
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
