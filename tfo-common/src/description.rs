//! Description of one packet, which the steps of the slow path hand on to each other.
//!
//! The program keeps it in the one entry of a map, which each CPU has for itself. Scalars that are read from there are
//! unknown to the kernel's verifier, so it checks the next step once, instead of once for each path that leads to it.
//! They take no room on the stack, either.

use crate::{
    class::{Class, Classified},
    keyring::KeyRing,
    parse::Fault,
    policy::{Decision, Guard},
    segment::{Addresses, Cookie, Family, FastOpen, Segment},
    service::OTHER,
    verdict::Verdict,
};

named! {
    /// Kinds of packets that are looked at more closely, and of events.
    pub enum Kind {
        /// A SYN. The detail is its class.
        Syn = "syn",
        /// A malformed frame. The detail is the reason.
        Malformed = "malformed",
        /// An unsupported frame. The detail is the reason.
        Unsupported = "unsupported",
        /// A SYN that the kernel should have accepted, but did not. The detail is its class. For events only.
        Refused = "refused",
    }
}

/// A packet and the decision on it, in plain numbers. Any bytes are a valid value. Fields that a packet does not have
/// keep the values of an earlier packet.
///
/// Fields that are usually zero are not adjacent. LLVM would write sixteen bytes of zeros in a row by a call of
/// `memset`, byte by byte, which takes longer than the rest of a description.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Description {
    /// [`Addresses::words`]; only the first for IPv4.
    pub words: [u64; 4],
    /// [`Cookie::value`].
    pub cookie: u64,
    /// [`Cookie::offset`].
    pub cookie_offset: u32,
    /// Tag of the data, if the service compares it; 0 if there is nothing to compare.
    pub request: u64,
    /// Tag of the SYN itself, beside that of its data.
    pub same_syn: u64,
    /// [`Segment::tcp`].
    pub tcp: u32,
    /// [`Kind`] index.
    pub kind: u32,
    /// [`Segment::data_len`].
    pub data_len: u32,
    /// 1 if the SYN is signed ([`Segment::is_signed`]), else 0.
    pub signed: u32,
    /// [`Family`] index.
    pub family: u32,
    /// 1 if more fragments of the packet follow ([`Segment::is_fragment`]), else 0.
    pub fragment: u32,
    /// Index of the class, or of the reason for which the frame can't be parsed.
    pub detail: u32,
    /// [`Verdict`] index.
    pub verdict: u32,
    /// 1 if the window is cut, else 0.
    pub clamps: u32,
    /// Index of the service.
    pub service: u32,
    /// Index of the guard that decided, plus one; 0 if no guard did.
    pub guard: u32,
    /// [`Decision::would`].
    pub would: u32,
    /// 1 if the data repeats that of an earlier SYN, else 0.
    pub repeats: u32,
    /// Guards that concern the SYN ([`Concern`](crate::policy::Concern)).
    pub concern: u32,
    /// Whether the kernel serves the SYN without a good cookie: see [`set_no_cookie`](Self::set_no_cookie). In mode `shield`
    /// only.
    pub no_cookie: u32,
    /// Index of the counter for the hits of the cookie's key ([`KeyRing::tracks`]), plus one; 0 without a known key.
    pub track: u32,
    /// 1 if the cookie is a portable one ([`Classified::is_portable`]), else 0.
    pub portable: u32,
    /// Index in the key map of the keys under which the SYN was classified: 0 for the sysctl's, else a key domain.
    pub domain: u32,
}

impl Description {
    /// Describes a frame that can't be parsed.
    #[inline(always)]
    pub fn set_fault(&mut self, fault: Fault) {
        let (kind, detail) = match fault {
            Fault::Malformed(reason) => (Kind::Malformed, reason as u32),
            Fault::Unsupported(reason) => (Kind::Unsupported, reason as u32),
        };
        (self.kind, self.detail) = (kind as u32, detail);
        self.set_decision(Decision::PASS, OTHER);
    }

    /// Describes a SYN, except for its cookie.
    #[inline(always)]
    pub fn set_syn(&mut self, segment: &Segment, class: Class) {
        (self.kind, self.detail) = (Kind::Syn as u32, class as u32);
        (self.tcp, self.data_len) = (segment.tcp, segment.data_len);
        self.signed = segment.is_signed.into();
        self.fragment = segment.is_fragment.into();
        self.set_addresses(&segment.addresses);
    }

    #[inline(always)]
    fn set_addresses(&mut self, addresses: &Addresses) {
        self.family = addresses.family as u32;
        match addresses.family {
            Family::Ipv4 => self.words[0] = addresses.words[0],
            Family::Ipv6 => self.words = addresses.words,
        }
    }

    /// Describes what a search for the key of a cookie needs.
    #[inline(always)]
    pub fn set_search(&mut self, addresses: &Addresses, cookie: u64) {
        self.set_addresses(addresses);
        self.cookie = cookie;
    }

    /// Describes the cookie of a SYN that was classified under `ring`.
    #[inline(always)]
    pub fn set_cookie(&mut self, segment: &Segment, found: Classified, ring: &KeyRing) {
        if let FastOpen::Cookie(Cookie { value, offset }) = segment.fast_open {
            (self.cookie, self.cookie_offset) = (value, offset);
        }
        self.portable = found.is_portable.into();
        self.track = found.slot.map_or(0, |slot| u32::from(ring.track(slot)) + 1);
    }

    /// Describes the keys under which the SYN was classified. Hits are counted of the sysctl's keys only.
    #[inline(always)]
    pub fn set_domain(&mut self, domain: u32) {
        self.domain = domain;
        if domain != 0 {
            self.track = 0;
        }
    }

    /// Value of [`no_cookie`](Self::no_cookie) for a SYN that is served for its option.
    const FOR_OPTION: u32 = 1;
    /// Value of [`no_cookie`](Self::no_cookie) for a SYN that is served for its data, with or without an option.
    const FOR_DATA: u32 = 2;

    /// Describes whether the kernel serves the SYN without a good cookie. `is_open` says that a listener on its port needs
    /// none ([`NO_COOKIE`](crate::ports::NO_COOKIE)). A fragment may have data in a later frame.
    #[inline(always)]
    pub fn set_no_cookie(&mut self, is_open: bool) {
        self.no_cookie = if !is_open {
            0
        } else if self.data_len != 0 || self.fragment != 0 {
            Self::FOR_DATA
        } else if self.class().is_some_and(Class::has_option) {
            Self::FOR_OPTION
        } else {
            0
        };
    }

    /// Turns the decision to hide Fast Open into one to drop the SYN, if the kernel would serve its data all the same. The
    /// client sends it again without data.
    #[inline(always)]
    pub fn drop_served(&mut self) {
        if self.no_cookie == Self::FOR_DATA && self.verdict == Verdict::Hide as u32 {
            self.verdict = Verdict::Drop as u32;
        }
    }

    /// Describes the decision, and the service that it is for.
    #[inline(always)]
    pub fn set_decision(&mut self, decision: Decision, service: u32) {
        self.service = service;
        self.verdict = decision.verdict as u32;
        self.clamps = decision.clamps.into();
        self.guard = decision.guard.map_or(0, |guard| guard as u32 + 1);
        self.would = decision.would.into();
    }

    /// Describes the service that the frame may be for, and whether it is dropped.
    #[inline(always)]
    pub fn set_unfollowed(&mut self, service: u32, drops: bool) {
        self.service = service;
        self.verdict = if drops { Verdict::Drop } else { Verdict::Pass } as u32;
    }

    /// Takes a decision on a signed SYN back: it passes as it came, and no guard is counted, not even in a dry run. Returns
    /// whether it would have been changed or dropped if it were not signed.
    #[inline(always)]
    pub fn spare_signed(&mut self) -> bool {
        if self.signed == 0 {
            return false;
        }
        let would_change = self.verdict != Verdict::Pass as u32 || self.clamps != 0;
        let service = self.service;
        self.set_decision(Decision::PASS, service);
        would_change
    }

    /// Whether [`Guard::Shed`] decided on the SYN, or would have but for a dry run.
    #[inline(always)]
    pub const fn is_shed(&self) -> bool {
        self.guard == Guard::Shed as u32 + 1 || self.would >> Guard::Shed as u32 & 1 != 0
    }

    /// Takes a decision of [`Guard::Shed`] back, as for a SYN to another host: it passes, and the guard is not counted. A clamp
    /// stays.
    #[inline(always)]
    pub fn spare_shed(&mut self) {
        self.would &= !(1 << Guard::Shed as u32);
        if self.guard == Guard::Shed as u32 + 1 {
            let clamp = if self.clamps != 0 { Guard::Clamp as u32 + 1 } else { 0 };
            (self.verdict, self.guard) = (Verdict::Pass as u32, clamp);
        }
    }

    /// Whether the kernel is about to serve the SYN, since it needs no cookie.
    #[inline(always)]
    pub const fn passes_without_cookie(&self) -> bool {
        self.no_cookie != 0 && self.verdict == Verdict::Pass as u32
    }

    /// Whether the SYN is to be answered, or would be but for a dry run.
    #[inline(always)]
    pub const fn is_answered(&self) -> bool {
        self.verdict == Verdict::Answer as u32 || self.would >> Guard::Answer as u32 & 1 != 0
    }

    /// Whether the answer has a Fast Open cookie, if the listener gives any: the client has asked for one or brought a
    /// bad one, and no guard hides Fast Open.
    #[inline(always)]
    pub fn wants_cookie(&self) -> bool {
        let is_reason = self.guard == Guard::Answer as u32 + 1;
        match self.class() {
            None | Some(Class::PlainSyn | Class::OptionIgnored) => false,
            Some(
                Class::CookieRequest
                | Class::CookieCurrent
                | Class::CookieBackup
                | Class::CookieRetired
                | Class::CookieUnknown
                | Class::CookieBadLength,
            ) => is_reason,
        }
    }

    /// Turns the decision to answer a SYN into one to drop it, since a handshake of the same connection is in the SYN queue.
    #[inline(always)]
    pub fn drop_repeated(&mut self) {
        if self.verdict == Verdict::Answer as u32 {
            self.verdict = Verdict::Drop as u32;
        }
    }

    /// Takes the decision to answer back: the SYN goes to the kernel as the guards before have decided.
    #[inline(always)]
    pub fn leave_to_kernel(&mut self) {
        self.would &= !(1 << Guard::Answer as u32);
        if self.verdict != Verdict::Answer as u32 {
            return;
        }
        if self.guard == Guard::Answer as u32 + 1 {
            (self.verdict, self.guard) = (Verdict::Pass as u32, 0);
        } else {
            self.verdict = Verdict::Hide as u32;
        }
    }

    /// Returns the class of a SYN, or `None` for another packet.
    #[inline(always)]
    pub fn class(&self) -> Option<Class> {
        if self.kind == Kind::Syn as u32 { Class::from_index(self.detail) } else { None }
    }

    /// Returns the source and destination address of a SYN.
    #[inline(always)]
    pub fn addresses(&self) -> Addresses {
        if self.family == Family::Ipv4 as u32 {
            Addresses { family: Family::Ipv4, words: [self.words[0], 0, 0, 0] }
        } else {
            Addresses { family: Family::Ipv6, words: self.words }
        }
    }

    /// Returns the SYN as it was parsed. If it has no cookie, `fast_open` is left over from an earlier packet.
    #[inline(always)]
    pub fn segment(&self) -> Segment {
        Segment {
            addresses: self.addresses(),
            fast_open: FastOpen::Cookie(Cookie { value: self.cookie, offset: self.cookie_offset }),
            is_signed: self.signed != 0,
            is_fragment: self.fragment != 0,
            tcp: self.tcp,
            data_len: self.data_len,
        }
    }

    /// Returns the decision on a SYN.
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
