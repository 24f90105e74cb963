//! Description of the packet at hand, as one step of the slow path leaves it to the next.
//!
//! The program keeps it in one entry of a map for each CPU. Scalars that are read from there are unknown to the kernel's verifier, so
//! it follows the next step once, and not once for each way that leads to it. Nor do they take any room on the stack.

use crate::{
    class::{Class, Classified},
    keyring::KeyRing,
    parse::Fault,
    policy::{Decision, Guard},
    segment::{Addresses, Cookie, Family, FastOpen, Segment},
    verdict::Verdict,
};

named! {
    /// Kinds of packets that are looked at more closely, and of events.
    pub enum Kind {
        /// A SYN: its class is the detail.
        Syn = "syn",
        /// A malformed frame: the detail is the reason.
        Malformed = "malformed",
        /// An unsupported frame: the detail is the reason.
        Unsupported = "unsupported",
        /// A SYN that the kernel should have taken and has not: its class is the detail. For events only.
        Refused = "refused",
    }
}

/// A packet, and what was decided on it. Plain numbers: any bytes make one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Description {
    /// [`Addresses::words`].
    pub words: [u64; 4],
    /// [`Cookie::value`]; 0 without a cookie.
    pub cookie: u64,
    /// [`Cookie::offset`]; 0 without a cookie.
    pub cookie_offset: u32,
    /// Number of the counter for the hits of its key ([`KeyRing::tracks`]), plus one; 0 without a known key.
    pub track: u32,
    /// [`Kind`] index.
    pub kind: u32,
    /// Index of the class, or of the reason for which the frame can't be parsed.
    pub detail: u32,
    /// [`Family`] index.
    pub family: u32,
    /// [`Segment::tcp`].
    pub tcp: u32,
    /// [`Segment::data_len`].
    pub data_len: u32,
    /// Index of the service.
    pub service: u32,
    /// [`Verdict`] index.
    pub verdict: u32,
    /// 1 where the window is cut, else 0.
    pub clamps: u32,
    /// Index of the guard that decided, plus one; 0 where none did.
    pub guard: u32,
    /// [`Decision::would`].
    pub would: u32,
}

impl Description {
    /// Describes a frame that can't be parsed.
    #[inline(always)]
    pub fn fault(fault: Fault) -> Self {
        let (kind, detail) = match fault {
            Fault::Malformed(reason) => (Kind::Malformed, reason as u32),
            Fault::Unsupported(reason) => (Kind::Unsupported, reason as u32),
        };
        Self { kind: kind as u32, detail, ..Self::default() }
    }

    /// Describes a SYN as far as the closer look needs it, without its cookie.
    #[inline(always)]
    pub fn syn(segment: &Segment, class: Class) -> Self {
        Self {
            words: segment.addresses.words,
            kind: Kind::Syn as u32,
            detail: class as u32,
            family: segment.addresses.family as u32,
            tcp: segment.tcp,
            data_len: segment.data_len,
            ..Self::default()
        }
    }

    /// Describes a SYN with its cookie, classified under `ring`.
    #[inline(always)]
    pub fn classified(segment: &Segment, found: Classified, ring: &KeyRing) -> Self {
        let Cookie { value, offset } = match segment.fast_open {
            FastOpen::Cookie(cookie) => cookie,
            FastOpen::Absent | FastOpen::Ignored | FastOpen::Request | FastOpen::BadLength => {
                Cookie { value: 0, offset: 0 }
            }
        };
        let track = found.slot.map_or(0, |slot| u32::from(ring.track(slot)) + 1);
        Self { cookie: value, cookie_offset: offset, track, ..Self::syn(segment, found.class) }
    }

    /// Adds what was decided, for which service.
    #[inline(always)]
    #[must_use]
    pub fn decided(self, decision: Decision, service: u32) -> Self {
        Self {
            service,
            verdict: decision.verdict as u32,
            clamps: decision.clamps.into(),
            guard: decision.guard.map_or(0, |guard| guard as u32 + 1),
            would: decision.would.into(),
            ..self
        }
    }

    /// Class of a SYN.
    #[inline(always)]
    pub fn class(&self) -> Option<Class> {
        if self.kind == Kind::Syn as u32 { Class::from_index(self.detail) } else { None }
    }

    /// Source and destination address of a SYN.
    #[inline(always)]
    pub fn addresses(&self) -> Addresses {
        let family = if self.family == Family::Ipv4 as u32 { Family::Ipv4 } else { Family::Ipv6 };
        Addresses { family, words: self.words }
    }

    /// The SYN as it was parsed, where it has a cookie.
    #[inline(always)]
    pub fn segment(&self) -> Segment {
        Segment {
            addresses: self.addresses(),
            fast_open: FastOpen::Cookie(Cookie { value: self.cookie, offset: self.cookie_offset }),
            tcp: self.tcp,
            data_len: self.data_len,
        }
    }

    /// Decision on a SYN.
    #[inline(always)]
    pub fn decision(&self) -> Decision {
        Decision {
            verdict: Verdict::from_index(self.verdict).unwrap_or(Verdict::Pass),
            clamps: self.clamps != 0,
            guard: Guard::from_index(self.guard.wrapping_sub(1)),
            would: self.would as u8,
        }
    }
}
