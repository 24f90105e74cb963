//! Data of a SYN: what tells a repeated request from a new one.

use crate::{
    bytes::Bytes,
    segment::Addresses,
    table::{SEED_WORDS, Tag, TagSum},
};

/// Number of bytes of data that are compared, besides its length.
pub const COMPARED: usize = 64;

/// Number of words that are compared.
const WORDS: usize = COMPARED / 8;
/// Offset of the byte with the data offset in a TCP header.
const DATA_OFFSET: usize = 12;

/// Entry for the data of a SYN that the kernel was given: the time, and a part of the tag of that SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request(u64);

impl Request {
    /// Number of bits of a SYN's tag. Above them is room for 34 years of jiffies, at a thousand a second.
    const SYN_BITS: u32 = 24;

    /// Returns the entry for a SYN that comes at `jiffies`. `syn` is the tag of its ports and its sequence number.
    #[inline(always)]
    pub const fn new(jiffies: u64, syn: Tag) -> Self {
        Self(jiffies << Self::SYN_BITS | syn.word() & Self::SYN_MASK)
    }

    const SYN_MASK: u64 = (1 << Self::SYN_BITS) - 1;

    /// Returns the word that stands in a seat.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Returns the entry for the word of a seat.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Whether the data is still remembered at `now`. It is remembered for `jiffies`.
    #[inline(always)]
    pub const fn is_remembered(self, now: u64, jiffies: u64) -> bool {
        self.0 != 0 && now.wrapping_sub(self.0 >> Self::SYN_BITS) < jiffies
    }

    /// Whether the same data in the SYN `syn` is a repeated request at `now`. Data is remembered for `jiffies`.
    ///
    /// The same SYN repeats nothing: it is a retransmission. If its connection has ended, it is a replay, which the table
    /// of ended connections tells.
    #[inline(always)]
    pub const fn is_repeated(self, now: u64, jiffies: u64, syn: Tag) -> bool {
        self.is_remembered(now, jiffies) && (self.0 ^ syn.word()) & Self::SYN_MASK != 0
    }
}

/// Returns the tag of the data in a SYN: of its source, its service, its length and its first [`COMPARED`] bytes. The TCP
/// header is at `tcp`. Bytes behind the data, such as padding, are left out. The result is `None` if the frame is shorter
/// than the headers say.
#[inline(always)]
pub fn request_tag<B: Bytes + ?Sized>(
    frame: &B,
    tcp: usize,
    addresses: &Addresses,
    (service, data_len): (u32, u32),
    seed: impl Fn(usize) -> u64,
) -> Option<Tag> {
    const { assert!(3 + WORDS == SEED_WORDS) };
    let [offset, _flags]: [u8; 2] = frame.read(tcp + DATA_OFFSET)?;
    let data = tcp + usize::from(offset >> 4) * 4;
    let [first, second, third, fourth] = addresses.source_v6();
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let mut sum = TagSum::default();
    sum.add(pair(service, data_len), seed(0));
    sum.add(pair(first, second), seed(1));
    sum.add(pair(third, fourth), seed(2));
    let len = (data_len as usize).min(COMPARED);
    // Written out, since LLVM would leave it a loop.
    sum.add(word::<0, _>(frame, data, len)?, seed(3));
    sum.add(word::<8, _>(frame, data, len)?, seed(4));
    sum.add(word::<16, _>(frame, data, len)?, seed(5));
    sum.add(word::<24, _>(frame, data, len)?, seed(6));
    sum.add(word::<32, _>(frame, data, len)?, seed(7));
    sum.add(word::<40, _>(frame, data, len)?, seed(8));
    sum.add(word::<48, _>(frame, data, len)?, seed(9));
    sum.add(word::<56, _>(frame, data, len)?, seed(10));
    Some(sum.tag())
}

/// Returns the eight bytes from `START` on of the `len` bytes at `data`, with zeros behind the last one.
#[inline(always)]
fn word<const START: usize, B: Bytes + ?Sized>(frame: &B, data: usize, len: usize) -> Option<u64> {
    if len >= START + 8 {
        return frame.read(data + START).map(u64::from_le_bytes);
    }
    if len <= START {
        return Some(0);
    }
    // The last eight bytes, of which the first are not of this word. The header is in front of short data.
    let last = frame.read(data + len - 8).map(u64::from_le_bytes)?;
    Some(last >> (8 * (START + 8 - len)))
}
