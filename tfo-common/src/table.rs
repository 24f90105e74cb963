//! Tables of what a program remembers of sources and SYNs: rows of a few seats, found by a seeded tag.

use core::cell::Cell;

use crate::{
    limit::Limit,
    segment::{Addresses, Family},
};

/// Number of seats in a [`Row`]: half a cache line.
pub const SEATS: usize = 2;

/// Address bits that make a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SourceMask {
    /// Mask for an IPv4 source: the lower half of the first of [`Addresses::words`].
    pub v4: u64,
    /// Mask for an IPv6 source: the first two of [`Addresses::words`].
    pub v6: [u64; 2],
}

impl SourceMask {
    /// Returns the mask for the first `v4` bits of an IPv4 address, and the first `v6` bits of an IPv6 address.
    pub fn new(v4: u8, v6: u8) -> Self {
        let bits = |len: u8| u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        let v6 = bits(v6).to_be_bytes();
        let (words, _) = v6.as_chunks();
        let v4 = (bits(v4) >> 96) as u32;
        Self {
            v4: u64::from(u32::from_le_bytes(v4.to_be_bytes())),
            v6: core::array::from_fn(|i| u64::from_le_bytes(words[i])),
        }
    }

    /// Returns the tag of the source of `addresses` at `service`, in a table with a secret seed: see [`Tag::of`].
    #[inline(always)]
    pub fn tag(&self, addresses: &Addresses, service: u32, seed: impl Fn(usize) -> u64) -> Tag {
        let ([first, second, ..], service) = (addresses.words, u64::from(service));
        match addresses.family {
            Family::Ipv4 => Tag::of(seed, [first & self.v4 | service << 32]),
            Family::Ipv6 => Tag::of(seed, [first & self.v6[0], second & self.v6[1], service]),
        }
    }
}

/// Number of words of a [`Seed`]: one for each word that a [`Tag`] is made of.
pub const SEED_WORDS: usize = 11;

/// Secret words of the [`Tag`]s in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub [u64; SEED_WORDS]);

impl Seed {
    /// Expands a random number (SplitMix64).
    pub const fn new(seed: u64) -> Self {
        let (mut words, mut state, mut at) = ([0; SEED_WORDS], seed, 0);
        while at < SEED_WORDS {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            words[at] = word ^ word >> 31;
            at += 1;
        }
        Self(words)
    }

    /// Returns a word. The index is below [`SEED_WORDS`].
    pub fn word(&self, at: usize) -> u64 {
        self.0[at]
    }
}

/// Hash that identifies an entry in a table of [`Row`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// Returns the tag of `words`, in a table with a secret seed: `seed` returns its word of an index below `N`.
    ///
    /// Any two different inputs have the same tag for one seed in 2^32, whatever their difference: the sum is NH, the hash
    /// of UMAC (RFC 4418, 5.2.2), which adds a secret to each half of a word and multiplies the halves. So nobody who does
    /// not know the seed can choose addresses that share an entry.
    #[inline(always)]
    pub fn of<const N: usize>(seed: impl Fn(usize) -> u64, words: [u64; N]) -> Self {
        let (mut sum, mut at) = (TagSum::default(), 0);
        while at < N {
            sum.add(words[at], seed(at));
            at += 1;
        }
        sum.tag()
    }

    /// Returns the tag as a word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Returns the tag of a word that [`word`](Self::word) has returned.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Returns the row of the tag. `last` is the index of the last row, one less than a power of two.
    #[inline(always)]
    pub const fn row(self, last: u32) -> u32 {
        (self.0 >> 32) as u32 & last
    }
}

/// Sum that becomes a [`Tag`]: see [`Tag::of`].
#[derive(Clone, Copy, Debug, Default)]
pub struct TagSum(u64);

impl TagSum {
    /// Adds `word`. Each word of a tag has a `secret` of its own.
    #[inline(always)]
    pub fn add(&mut self, word: u64, secret: u64) {
        let low = (word as u32).wrapping_add(secret as u32);
        let high = ((word >> 32) as u32).wrapping_add((secret >> 32) as u32);
        self.0 = self.0.wrapping_add(u64::from(low) * u64::from(high));
    }

    /// Returns the tag of the words.
    #[inline(always)]
    pub fn tag(self) -> Tag {
        // Reversible, so it adds no collision. It mixes the upper half, which selects the row.
        Tag((self.0 ^ self.0 >> 32).wrapping_mul(0x94d0_49bb_1331_11eb))
    }
}

/// Entry of a [`Row`].
#[derive(Debug, Default)]
#[repr(C)]
pub struct Seat {
    tag: Cell<u64>,
    /// Remembered time, with or without something else in its low bits.
    pub value: Cell<u64>,
}

/// Row of a hash table: the entries in which a [`Tag`] may be.
///
/// An array of rows costs a fraction of the kernel's hash map. Two CPUs seldom take a seat at once. If they do, something is
/// remembered twice or not at all, which does no harm.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Row {
    seats: [Seat; SEATS],
}

impl Row {
    /// Returns the seat of `tag`.
    #[inline(always)]
    pub fn find(&self, tag: Tag) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.tag.get() == tag.0)
    }

    /// Grants `tag` one SYN at `now` if `limit` allows it, and gives a new tag a seat. `add` is as for [`Limit::spend`]. A tag
    /// whose seat another one takes over meanwhile is forgotten, as by any eviction.
    #[inline(always)]
    pub fn spend(&self, tag: Tag, limit: &Limit, now: u64, add: impl Fn(&Cell<u64>, u64)) -> Spent {
        match self.find(tag) {
            Some(seat) if limit.spend_while(&seat.value, now, add, || seat.tag.get() == tag.0) => {
                Spent::Granted
            }
            Some(_) => Spent::Denied,
            // The tag that made room had used some of its limit.
            None if self.seat(tag, now) + limit.interval > now => Spent::GrantedEvicting,
            None => Spent::Granted,
        }
    }

    /// Frees the seat of `tag`, if it has one.
    #[inline(always)]
    pub fn forget(&self, tag: Tag) {
        if let Some(seat) = self.find(tag) {
            seat.tag.set(0);
            seat.value.set(0);
        }
    }

    /// Puts `tag` and `value` into the seat with the smallest value, and returns the value that was replaced; 0 for a
    /// free seat.
    #[inline(always)]
    pub fn seat(&self, tag: Tag, value: u64) -> u64 {
        let [first, rest @ ..] = &self.seats;
        let (mut oldest, mut least) = (first, first.value.get());
        for seat in rest {
            let value = seat.value.get();
            if value < least {
                (oldest, least) = (seat, value);
            }
        }
        oldest.tag.set(tag.0);
        oldest.value.set(value);
        least
    }
}

/// Result of [`Row::spend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// The SYN is granted.
    Granted,
    /// The SYN is granted, and another tag that had used some of its limit was forgotten for it.
    GrantedEvicting,
    /// The limit is used up.
    Denied,
}

/// Entry for the SYN of a connection that has ended: the time of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered(u64);

impl Remembered {
    /// Bit of every entry. tfo 0.1 also has entries without it, for connections that have not ended.
    const OVER: u64 = 1;

    /// Returns the entry of a connection that ended at `jiffies`.
    #[inline(always)]
    pub const fn new(jiffies: u64) -> Self {
        Self(jiffies << 1 | Self::OVER)
    }

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

    /// Whether the same SYN is a replay if it comes at `now`. SYNs are remembered for `jiffies` after the end of their
    /// connection.
    #[inline(always)]
    pub const fn is_replay(self, now: u64, jiffies: u64) -> bool {
        self.0 & Self::OVER != 0 && now.wrapping_sub(self.0 >> 1) < jiffies
    }
}

/// Returns the tag of a SYN, made from its addresses and the first eight bytes of its TCP header: its ports and its
/// sequence number. The cookie is left out, since it follows from the addresses and the key.
#[inline(always)]
pub fn syn_tag(addresses: &Addresses, tcp: [u8; 8], seed: impl Fn(usize) -> u64) -> Tag {
    let ([w0, w1, w2, w3], tcp) = (addresses.words, u64::from_le_bytes(tcp));
    match addresses.family {
        Family::Ipv4 => Tag::of(seed, [tcp, w0]),
        Family::Ipv6 => Tag::of(seed, [tcp, w0, w1, w2, w3]),
    }
}
