//! What is handed on of a frame within the program, in a word each: words need no place on the stack, and the verifier can be made to
//! forget what it knows of them (see [`Bytes::opaque`]).

use crate::{
    bytes::Bytes,
    class::{Class, Classified},
    keyring::KeyRing,
    observed::{Kind, Told},
    parse::{Fault, Malformed, Unsupported},
    policy::Decision,
    segment::{Addresses, Cookie, Family, FastOpen, Segment},
    verdict::Verdict,
};

/// All that has to be known of a frame once it is parsed and classified.
///
/// | bits | of a SYN |
/// |---|---|
/// | 0..17 | bytes of data |
/// | 17..23 | where its cookie stands in the TCP header; 0 for none |
/// | 23..28 | which counter has the hits of its key, and one; 0 for none |
/// | 28 | set |
/// | 32..64 | [`Place`] |
///
/// Of a frame that can't be parsed, the reason, and a bit for its kind; zero of any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handed(u64);

/// What a [`Handed`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing that is counted.
    Nothing,
    /// A frame that can't be parsed.
    Fault(Fault),
    /// A SYN: the same word.
    Syn(Handed),
}

impl Handed {
    /// That of a frame that is not counted.
    pub const NOTHING: Self = Self(0);
    const SYN: u64 = 1 << 28;
    const MALFORMED: u64 = 1 << 29;
    const UNSUPPORTED: u64 = 1 << 30;

    /// That of a SYN, classified under `ring`.
    #[inline(always)]
    pub fn syn(segment: &Segment, found: Classified, ring: &KeyRing) -> Self {
        let cookie = match segment.fast_open {
            FastOpen::Cookie(cookie) => u64::from(cookie.offset) & 0x3f,
            _ => 0,
        };
        let track = found.slot.map_or(0, |slot| (u64::from(ring.track(slot)) + 1) & 0x1f);
        let place = Place::new(segment, found.class).0;
        Self(u64::from(segment.data_len) & 0x1_ffff | cookie << 17 | track << 23 | Self::SYN | place)
    }

    /// That of a frame that can't be parsed.
    #[inline(always)]
    pub const fn fault(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(reason) => Self(Self::MALFORMED | reason as u64),
            Fault::Unsupported(reason) => Self(Self::UNSUPPORTED | reason as u64),
        }
    }

    /// As a number, and back.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// What [`word`](Self::word) gave.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// What it is about.
    #[inline(always)]
    pub fn found(self) -> Found {
        if self.0 & Self::SYN != 0 {
            return Found::Syn(self);
        }
        let reason = (self.0 & 0x1f) as usize;
        let fault = if self.0 & Self::MALFORMED != 0 {
            Malformed::ALL.get(reason).map(|reason| Fault::Malformed(*reason))
        } else if self.0 & Self::UNSUPPORTED != 0 {
            Unsupported::ALL.get(reason).map(|reason| Fault::Unsupported(*reason))
        } else {
            None
        };
        fault.map_or(Found::Nothing, Found::Fault)
    }

    /// [`Segment::data_len`].
    #[inline(always)]
    pub const fn data_len(self) -> u32 {
        (self.0 & 0x1_ffff) as u32
    }

    /// Where its cookie stands in the TCP header; 0 for none.
    #[inline(always)]
    pub const fn cookie(self) -> u32 {
        (self.0 >> 17 & 0x3f) as u32
    }

    /// [`KeyRing::tracks`] of its key, and one; 0 where its cookie is of no known key.
    #[inline(always)]
    pub const fn track(self) -> usize {
        (self.0 >> 23 & 0x1f) as usize
    }

    /// Where it stands, and what it is.
    #[inline(always)]
    pub const fn place(self) -> Place {
        Place(self.0 & Place::BITS)
    }

    /// What is needed of it to act on it.
    #[inline(always)]
    pub fn read<B: Bytes + ?Sized>(self, frame: &B) -> Option<Segment> {
        // Where there is none, of no use to anybody: but the verifier does not follow that it is not used.
        let value = frame.read(self.place().tcp() + self.cookie() as usize)?;
        let cookie = Cookie { value: u64::from_le_bytes(value), offset: self.cookie() };
        Some(Segment {
            addresses: self.place().addresses(frame)?,
            fast_open: FastOpen::Cookie(cookie),
            source: self.place().source() as u32,
            tcp: self.place().tcp() as u32,
            data_len: self.data_len(),
        })
    }

    /// What the closer look at it is told, with what was decided.
    #[inline(always)]
    pub const fn hint(self, decision: Decision, service: u32) -> Hint {
        Hint(self.place().0 | Hint::decided(decision, service))
    }
}

/// Where a SYN stands in the frame, and what it is: half of a word.
///
/// | bits | meaning |
/// |---|---|
/// | 32..46 | where its source address stands in the frame |
/// | 46..60 | where its TCP header does |
/// | 60..63 | [`Class`] index |
/// | 63 | [`Family`] index |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u64);

impl Place {
    const BITS: u64 = 0xffff_ffff << 32;

    #[inline(always)]
    const fn new(segment: &Segment, class: Class) -> Self {
        let places = (segment.source as u64 & 0x3fff) << 32 | (segment.tcp as u64 & 0x3fff) << 46;
        Self(places | (class as u64) << 60 | (segment.addresses.family as u64) << 63)
    }

    /// [`Segment::source`].
    #[inline(always)]
    pub const fn source(self) -> usize {
        (self.0 >> 32 & 0x3fff) as usize
    }

    /// [`Segment::tcp`].
    #[inline(always)]
    pub const fn tcp(self) -> usize {
        (self.0 >> 46 & 0x3fff) as usize
    }

    /// [`Class`] index.
    #[inline(always)]
    pub const fn class(self) -> u64 {
        self.0 >> 60 & 0x7
    }

    /// Its address family.
    #[inline(always)]
    pub const fn family(self) -> Family {
        if self.0 >> 63 == 0 { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// [`Segment::addresses`], read anew.
    #[inline(always)]
    pub fn addresses<B: Bytes + ?Sized>(self, frame: &B) -> Option<Addresses> {
        match self.family() {
            Family::Ipv4 => frame.read(self.source()).map(Addresses::from_ipv4),
            Family::Ipv6 => frame.read(self.source()).map(Addresses::from_ipv6),
        }
    }
}

/// What the closer look at a packet is told: most of it is constant where it is made.
///
/// | bits | meaning |
/// |---|---|
/// | 0..13 | the index of the service |
/// | 13..15 | [`Verdict`] index |
/// | 15..19 | [`Told`] |
/// | 19..21 | [`Kind`] index |
/// | 21..26 | the index of the reason, where it can't be parsed |
/// | 32..64 | [`Place`], of a SYN |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint(u64);

impl Hint {
    /// Of a SYN.
    #[inline(always)]
    pub const fn syn(segment: &Segment, class: Class, decision: Decision, service: u32) -> Self {
        Self(Place::new(segment, class).0 | Self::decided(decision, service))
    }

    #[inline(always)]
    const fn decided(decision: Decision, service: u32) -> u64 {
        let told = Told::of(decision).word() as u64;
        service as u64 & 0x1fff | decision.verdict_place() << 13 | told << 15 | (Kind::Syn as u64) << 19
    }

    /// Of a frame that can't be parsed.
    #[inline(always)]
    pub const fn fault(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(reason) => Self((Kind::Malformed as u64) << 19 | (reason as u64) << 21),
            Fault::Unsupported(reason) => Self((Kind::Unsupported as u64) << 19 | (reason as u64) << 21),
        }
    }

    /// As a number, and back.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// What [`word`](Self::word) gave.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The index of the service.
    #[inline(always)]
    pub const fn service(self) -> u32 {
        (self.0 & 0x1fff) as u32
    }

    /// [`Verdict`] index.
    #[inline(always)]
    pub const fn verdict(self) -> u16 {
        (self.0 >> 13 & 0x3) as u16
    }

    /// [`Told`].
    #[inline(always)]
    pub const fn guard(self) -> u16 {
        (self.0 >> 15 & 0xf) as u16
    }

    /// [`Kind`] index.
    #[inline(always)]
    pub const fn kind(self) -> u32 {
        (self.0 >> 19 & 0x3) as u32
    }

    /// The index of a class or of a reason.
    #[inline(always)]
    pub const fn detail(self) -> u32 {
        if self.kind() == Kind::Syn as u32 {
            self.place().class() as u32
        } else {
            (self.0 >> 21 & 0x1f) as u32
        }
    }

    /// Where it stands, and what it is.
    #[inline(always)]
    pub const fn place(self) -> Place {
        Place(self.0 & Place::BITS)
    }

    /// The place of a SYN in [`Counters::syn`](crate::counters::Counters::syn), by family, class and verdict. The verifier sees that it
    /// is one.
    #[inline(always)]
    pub(crate) const fn syn_place(self) -> usize {
        (self.0 >> 60 << 2 | self.0 >> 13 & 0x3) as usize
    }
}

const _: () = assert!(Verdict::COUNT == 4 && Class::COUNT == 8 && Family::COUNT == 2);
