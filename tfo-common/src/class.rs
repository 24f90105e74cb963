//! Classes of SYNs, and the classification of a segment.

use crate::{
    keyring::{BACKUP, CURRENT, KeyRing, NEXT, Role, SLOTS},
    segment::{Addresses, FastOpen, Segment},
};

named! {
    /// Class of a SYN. Each TCP SYN without ACK that can be parsed has exactly one.
    pub enum Class {
        /// A SYN without a Fast Open option.
        PlainSyn = "plain_syn",
        /// A Fast Open option that the kernel treats as absent: of odd length, or with a cookie of 2 or of more than
        /// 16 bytes (`tcp_parse_fastopen_option`).
        OptionIgnored = "option_ignored",
        /// An empty option: the client asks for a cookie.
        CookieRequest = "cookie_request",
        /// A cookie of the kernel's primary key.
        CookieCurrent = "cookie_current",
        /// A cookie of the kernel's backup key.
        CookieBackup = "cookie_backup",
        /// A cookie of a key that the kernel no longer holds or does not hold yet. The kernel refuses it.
        CookieRetired = "cookie_retired",
        /// A cookie of eight bytes that no known key made.
        CookieUnknown = "cookie_unknown",
        /// A cookie of an even length from 4 to 16 other than 8: legal on the wire, and refused by Linux.
        CookieBadLength = "cookie_bad_length",
    }
}

impl Class {
    /// Whether the SYN has a Fast Open option, even one that the kernel ignores.
    #[inline(always)]
    pub const fn is_fast_open(self) -> bool {
        !matches!(self, Self::PlainSyn)
    }

    /// Whether the kernel finds a Fast Open option in the SYN.
    #[inline(always)]
    pub const fn has_option(self) -> bool {
        !matches!(self, Self::PlainSyn | Self::OptionIgnored)
    }
}

/// A SYN's class, and the key that made its cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classified {
    /// The class.
    pub class: Class,
    /// Slot in [`KeyRing::slots`] of the key that made the cookie; `None` without a known key.
    pub slot: Option<usize>,
}

/// Budget for comparing cookies with the keys that the kernel does not hold: up to nine hashes for a forged cookie.
pub trait SearchBudget {
    /// Checks whether these keys may be tried for one more cookie. If not, counts the cookie as not tried.
    fn may_search(&self) -> bool;

    /// Spends from the budget, for a cookie that none of these keys made.
    fn spend(&self);

    /// Returns the result of [`find`]. The kernel program makes it a function of its own, which the verifier checks once.
    #[inline(always)]
    fn find(&self, addresses: &Addresses, cookie: u64, ring: &KeyRing) -> Option<usize> {
        find(addresses, cookie, ring)
    }
}

/// Budget without a limit.
#[derive(Clone, Copy, Debug)]
pub struct Unlimited;

impl SearchBudget for Unlimited {
    #[inline(always)]
    fn may_search(&self) -> bool {
        true
    }

    #[inline(always)]
    fn spend(&self) {}
}

/// Returns the class of `segment` under `ring`. The keys that the kernel does not hold are tried within `budget`. Beyond
/// it, a cookie of such a key is [`Class::CookieUnknown`]. The kernel refuses it in any case.
///
/// Mirrors `tcp_try_fastopen` and `tcp_fastopen_cookie_gen_check` (net/ipv4/tcp_fastopen.c): the kernel compares all
/// eight bytes with the primary key's cookie, then with the backup key's.
#[inline(always)]
pub fn classify(segment: &Segment, ring: &KeyRing, budget: impl SearchBudget) -> Classified {
    let without_key = |class| Classified { class, slot: None };
    match segment.fast_open {
        FastOpen::Absent => without_key(Class::PlainSyn),
        FastOpen::Ignored => without_key(Class::OptionIgnored),
        FastOpen::Request => without_key(Class::CookieRequest),
        FastOpen::BadLength => without_key(Class::CookieBadLength),
        FastOpen::Cookie(cookie) => match matching_slot(segment, cookie.value, ring, budget) {
            None => without_key(Class::CookieUnknown),
            Some(slot) => {
                let class = match Role::of_slot(slot) {
                    Role::Current => Class::CookieCurrent,
                    Role::Backup => Class::CookieBackup,
                    Role::Next | Role::Retired => Class::CookieRetired,
                };
                Classified { class, slot: Some(slot) }
            }
        },
    }
}

/// Returns the slot of the key that made `cookie` for the segment's addresses. The likeliest are tried first.
#[inline(always)]
fn matching_slot(segment: &Segment, cookie: u64, ring: &KeyRing, budget: impl SearchBudget) -> Option<usize> {
    // Nearly all cookies are of the kernel's keys. Their slots are constants here.
    if is_made_by(CURRENT, &segment.addresses, cookie, ring) {
        return Some(CURRENT);
    }
    if is_made_by(BACKUP, &segment.addresses, cookie, ring) {
        return Some(BACKUP);
    }
    if !ring.holds_from(NEXT) || !budget.may_search() {
        return None;
    }
    let found = budget.find(&segment.addresses, cookie, ring);
    if found.is_none() {
        budget.spend();
    }
    found
}

/// Returns the slot of the key that made `cookie`, among those that the kernel does not hold.
#[inline(always)]
pub fn find(addresses: &Addresses, cookie: u64, ring: &KeyRing) -> Option<usize> {
    let mut others = (NEXT..SLOTS).take_while(|slot| ring.holds_from(*slot));
    others.find(|slot| is_made_by(*slot, addresses, cookie, ring))
}

#[inline(always)]
fn is_made_by(slot: usize, addresses: &Addresses, cookie: u64, ring: &KeyRing) -> bool {
    ring.holds(slot) && ring.slots[slot].cookie(addresses) == cookie
}
