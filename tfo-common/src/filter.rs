//! Filter in front of the map of hidden sources. Nearly all SYNs come from sources that no order hides, and for these
//! the filter spares a look-up of the longest prefix.

use crate::segment::{Addresses, Family};

/// A bit for each value of twelve bits of a source's address. While a bit is not set, no order hides a source with this
/// value.
///
/// The twelve bits end where the network of one owner often ends: they are bits 4 to 15 of an IPv4 address, and bits 20
/// to 31 of an IPv6 address, counted from its first bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SourceFilter {
    /// Bits by [`Family`] index.
    words: [[u64; WORDS]; Family::COUNT],
}

/// Number of address bits that select a bit of the filter.
const BITS: u32 = 12;
/// Number of bits of the filter in a word, and of words for a family.
const WORD: usize = u64::BITS as usize;
const WORDS: usize = (1 << BITS) / WORD;

impl SourceFilter {
    /// Filter for no source.
    pub const EMPTY: Self = Self { words: [[0; WORDS]; Family::COUNT] };

    /// Adds the sources with the first `len` bits of `source`, an address as in [`Addresses::source_v6`]. In IPv4, `len`
    /// includes the 96 bits in front of the address.
    pub fn add(&mut self, family: Family, len: u32, source: [u32; 4]) {
        let (half, end) = match family {
            Family::Ipv4 => (source[3] as u16, 96 + 16),
            Family::Ipv6 => ((source[0] >> 16) as u16, 32),
        };
        // The sources differ in so many of the twelve bits.
        let open = BITS.min(u32::saturating_sub(end, len));
        let first = place(half) >> open << open;
        for place in first..first + (1 << open) {
            self.words[family.index()][place / WORD] |= 1 << (place % WORD);
        }
    }

    /// Whether an order may hide the source of `addresses`.
    #[inline(always)]
    pub const fn may_have(&self, addresses: &Addresses) -> bool {
        let first = addresses.words[0];
        let half = match addresses.family {
            Family::Ipv4 => first as u16,
            Family::Ipv6 => (first >> 16) as u16,
        };
        let place = place(half);
        self.words[addresses.family.index()][place / WORD] >> (place % WORD) & 1 != 0
    }
}

/// Returns the place of an address's bit. `half` has the two bytes, as on the wire, that end with the twelve bits.
#[inline(always)]
const fn place(half: u16) -> usize {
    u16::from_be(half) as usize % (1 << BITS)
}
