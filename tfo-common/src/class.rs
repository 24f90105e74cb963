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
    /// Whether the cookie is a portable one ([`ExpandedKey::portable`]), which the kernel does not know.
    ///
    /// [`ExpandedKey::portable`]: crate::cookie::ExpandedKey::portable
    pub is_portable: bool,
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

    /// Returns the result of [`find_portable`], likewise.
    #[inline(always)]
    fn find_portable(
        &self,
        addresses: &Addresses,
        cookie: u64,
        ring: &KeyRing,
        tag: u64,
        keys: Keys,
    ) -> Option<usize> {
        find_portable(addresses, cookie, ring, tag, keys)
    }
}

/// Keys among which that of a portable cookie is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// The kernel's backup key.
    Backup,
    /// All that the kernel does not hold.
    Others,
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
    classify_at(segment, ring, 0, budget)
}

/// Returns the class of `segment` like [`classify`], at a service whose portable cookies have `tag`. With a tag of 0, the
/// service has none.
///
/// The role of its key gives a portable cookie its class, as it does for the kernel's, although the kernel refuses it
/// unless it is translated. The current key is tried first, and those of the kernel's keys come before those of others.
#[inline(always)]
pub fn classify_at(segment: &Segment, ring: &KeyRing, tag: u64, budget: impl SearchBudget) -> Classified {
    let without_key = |class| Classified { class, slot: None, is_portable: false };
    match segment.fast_open {
        FastOpen::Absent => without_key(Class::PlainSyn),
        FastOpen::Ignored => without_key(Class::OptionIgnored),
        FastOpen::Request => without_key(Class::CookieRequest),
        FastOpen::BadLength => without_key(Class::CookieBadLength),
        FastOpen::Cookie(cookie) => match matching_slot(segment, cookie.value, ring, tag, budget) {
            None => without_key(Class::CookieUnknown),
            Some((slot, is_portable)) => {
                let class = match Role::of_slot(slot) {
                    Role::Current => Class::CookieCurrent,
                    Role::Backup => Class::CookieBackup,
                    Role::Next | Role::Retired => Class::CookieRetired,
                };
                Classified { class, slot: Some(slot), is_portable }
            }
        },
    }
}

/// Returns the slot of the key that made `cookie` for the segment's addresses, and whether the cookie is a portable one. The
/// likeliest are tried first. At a service with portable cookies, a search in vain costs twice of the budget, since it
/// makes twice as many hashes.
#[inline(always)]
fn matching_slot(
    segment: &Segment,
    cookie: u64,
    ring: &KeyRing,
    tag: u64,
    budget: impl SearchBudget,
) -> Option<(usize, bool)> {
    let addresses = &segment.addresses;
    // Nearly all cookies are of the kernel's keys. Their slots are constants here.
    if tag != 0 && is_portable_of(CURRENT, addresses, cookie, ring, tag) {
        return Some((CURRENT, true));
    }
    if is_made_by(CURRENT, addresses, cookie, ring) {
        return Some((CURRENT, false));
    }
    if is_made_by(BACKUP, addresses, cookie, ring) {
        return Some((BACKUP, false));
    }
    if tag != 0
        && let Some(slot) = budget.find_portable(addresses, cookie, ring, tag, Keys::Backup)
    {
        return Some((slot, true));
    }
    if !ring.holds_from(NEXT) || !budget.may_search() {
        return None;
    }
    if tag != 0
        && let Some(slot) = budget.find_portable(addresses, cookie, ring, tag, Keys::Others)
    {
        return Some((slot, true));
    }
    let found = budget.find(addresses, cookie, ring);
    if found.is_none() {
        budget.spend();
        if tag != 0 {
            budget.spend();
        }
    }
    found.map(|slot| (slot, false))
}

/// Returns the slot of the key that made `cookie`, among those that the kernel does not hold.
#[inline(always)]
pub fn find(addresses: &Addresses, cookie: u64, ring: &KeyRing) -> Option<usize> {
    let mut others = (NEXT..SLOTS).take_while(|slot| ring.holds_from(*slot));
    others.find(|slot| is_made_by(*slot, addresses, cookie, ring))
}

/// Returns the slot of the key among `keys` that made the portable cookie `cookie` of the services with `tag`.
#[inline(always)]
pub fn find_portable(
    addresses: &Addresses,
    cookie: u64,
    ring: &KeyRing,
    tag: u64,
    keys: Keys,
) -> Option<usize> {
    let (mut slot, mut left) = match keys {
        Keys::Backup => (BACKUP, ring.present >> BACKUP & 1),
        Keys::Others => (NEXT, ring.present >> NEXT),
    };
    while left != 0 && slot < SLOTS {
        if left & 1 == 1 && ring.slots[slot].portable(addresses, tag) == cookie {
            return Some(slot);
        }
        (slot, left) = (slot + 1, left >> 1);
    }
    None
}

#[inline(always)]
fn is_portable_of(slot: usize, addresses: &Addresses, cookie: u64, ring: &KeyRing, tag: u64) -> bool {
    ring.holds(slot) && ring.slots[slot].portable(addresses, tag) == cookie
}

#[inline(always)]
fn is_made_by(slot: usize, addresses: &Addresses, cookie: u64, ring: &KeyRing) -> bool {
    ring.holds(slot) && ring.slots[slot].cookie(addresses) == cookie
}
