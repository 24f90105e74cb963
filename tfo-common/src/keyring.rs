//! Keys against which a cookie is checked, and the publication of a whole set of them at once.

use crate::cookie::ExpandedKey;
pub use crate::cookie::Key;

/// Number of retired keys in a ring. The kernel no longer holds them, but their cookies are still recognised.
pub const RETIRED: usize = 8;
/// Number of keys in a ring: see [`Role::of_slot`].
pub const SLOTS: usize = OLDEST + 1;
/// The slot of the kernel's primary key.
pub const CURRENT: usize = 0;
/// The slot of the kernel's backup key.
pub const BACKUP: usize = 1;
/// The slot of the key that the kernel will hold next.
pub const NEXT: usize = 2;
/// The slot of the newest retired key. Older ones follow.
pub const NEWEST: usize = 3;
const OLDEST: usize = NEWEST + RETIRED - 1;
/// Number of entries of the key map: one for the sysctl's keys, and one for each key domain.
pub const STORES: usize = 32;
/// Index of the entry for the sysctl's keys.
pub const SYSCTL: u32 = 0;
/// Number of counters for the hits of keys: a power of two, and more than [`SLOTS`], so that a new key does not share a
/// counter with one that leaves.
pub const TRACKS: usize = 16;

/// Time at which a ring is made, and the hits at that time. New keys in the ring begin with them.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// Seconds since 1970 (UTC).
    pub seconds: u64,
    /// Values of [`Counters::hits`](crate::counters::Counters::hits).
    pub hits: &'a [u64; TRACKS],
}

/// The keys that are not retired.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// The kernel's primary key.
    pub current: Option<Key>,
    /// The kernel's backup key.
    pub backup: Option<Key>,
    /// The key that the kernel will hold next, if it is known.
    pub next: Option<Key>,
}

/// Role of a key for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The kernel's primary key. The kernel makes new cookies with it, and accepts its cookies.
    Current,
    /// The kernel's backup key. The kernel accepts its cookies, and hands out fresh ones.
    Backup,
    /// A key that the kernel does not hold yet, but another host of the fleet may.
    Next,
    /// A key that the kernel held once. The kernel refuses its cookies now.
    Retired,
}

impl Role {
    /// Returns the name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Backup => "backup",
            Self::Next => "next",
            Self::Retired => "retired",
        }
    }

    /// Returns the role of the key in `slot` of [`KeyRing::slots`].
    #[inline(always)]
    pub const fn of_slot(slot: usize) -> Self {
        match slot {
            CURRENT => Self::Current,
            BACKUP => Self::Backup,
            NEXT => Self::Next,
            _ => Self::Retired,
        }
    }
}

/// A consistent set of keys.
///
/// The sizes of this and of [`KeyStore`] are powers of two, so that the ring is found with shifts instead of
/// multiplications. SipHash can't begin before that.
//= RFC 7413 section 4.1.2
//# A server may encode other information in the cookie and accept more
//# than one valid cookie per client at any given time.
//= RFC 7413 section 4.1.2
//# To gradually invalidate cookies over time, the server can implement
//# key rotation to generate and verify cookies using multiple keys.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct KeyRing {
    /// Number of publications. It shows a reader that the keys have changed, without showing a key.
    pub generation: u64,
    /// Bitmap of the slots that hold a key. A key of zeros can be a real one, so zero cannot mean "empty".
    pub present: u64,
    /// The keys, each in the slot of its role.
    pub slots: [ExpandedKey; SLOTS],
    /// Time since which the key of each slot has been in the ring, in seconds since 1970 (UTC).
    pub since: [u64; SLOTS],
    /// Value of the hit counter of each slot's key at that time.
    pub base: [u64; SLOTS],
    /// Index into [`Counters::hits`] of the hit counter of each slot's key.
    ///
    /// [`Counters::hits`]: crate::counters::Counters::hits
    pub tracks: [u8; TRACKS],
    /// Zeros, which fill the ring up to its size.
    pub reserved: [u64; 58],
}

impl Default for KeyRing {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl KeyRing {
    /// The ring that holds no key.
    pub const EMPTY: Self = Self {
        generation: 0,
        present: 0,
        slots: [ExpandedKey::new(&Key { k0: 0, k1: 0 }); SLOTS],
        since: [0; SLOTS],
        base: [0; SLOTS],
        tracks: [0; TRACKS],
        reserved: [0; 58],
    };

    /// Returns the entry of [`tracks`](Self::tracks) for `slot`.
    #[inline(always)]
    pub const fn track(&self, slot: usize) -> u8 {
        self.tracks[slot & (TRACKS - 1)]
    }

    /// Whether `slot` holds a key.
    #[inline(always)]
    pub const fn holds(&self, slot: usize) -> bool {
        self.present >> slot & 1 == 1
    }

    /// Whether `slot` or a later one holds a key.
    #[inline(always)]
    pub const fn holds_from(&self, slot: usize) -> bool {
        self.present >> slot != 0
    }

    /// Returns the key in `slot`, if it holds one.
    pub fn get(&self, slot: usize) -> Option<Key> {
        let key = self.slots.get(slot)?;
        self.holds(slot).then(|| key.key())
    }

    /// Puts `key` into `slot`, or empties it. It is for making a ring by hand: [`follow`](Self::follow) sets ages and
    /// counters, too.
    ///
    /// # Panics
    ///
    /// Panics if `slot` is not below [`SLOTS`].
    pub fn set(&mut self, slot: usize, key: Option<Key>) {
        self.slots[slot] = ExpandedKey::new(&key.unwrap_or_default());
        self.present = self.present & !(1 << slot) | u64::from(key.is_some()) << slot;
        self.tracks[slot] = slot as u8;
    }

    /// Returns the number of cookies of the key in `slot` since it came into the ring. `hits` are the present counters.
    pub fn hits(&self, slot: usize, hits: &[u64; TRACKS]) -> u64 {
        hits[usize::from(self.tracks[slot]) % TRACKS].saturating_sub(self.base[slot])
    }

    /// Returns the keys that are not retired.
    pub fn held(&self) -> Held {
        Held { current: self.get(CURRENT), backup: self.get(BACKUP), next: self.get(NEXT) }
    }

    /// Returns the slot that holds `key`.
    pub fn find(&self, key: Key) -> Option<usize> {
        (0..SLOTS).find(|slot| self.get(*slot) == Some(key))
    }

    /// Returns the retired keys, newest first.
    pub fn retired(&self) -> impl Iterator<Item = Key> + '_ {
        (NEWEST..SLOTS).filter_map(|slot| self.get(slot))
    }

    /// Returns the key into whose cookie a retired one is translated, so that the kernel accepts it.
    ///
    /// It is the backup key, since the kernel answers its cookies with a fresh one, or else the primary key.
    #[inline(always)]
    pub fn translation(&self) -> Option<&ExpandedKey> {
        if self.holds(BACKUP) {
            Some(&self.slots[BACKUP])
        } else if self.holds(CURRENT) {
            Some(&self.slots[CURRENT])
        } else {
            None
        }
    }

    /// Returns the ring in which the keys of `held` have their roles. The other keys of this ring are retired, newest
    /// first, and the oldest beyond [`RETIRED`] are dropped.
    ///
    /// The kernel's two keys are always in the result, whatever this ring holds, so a ring never refuses what the
    /// kernel accepts. A key that stays keeps its age and its counter.
    #[must_use]
    pub fn follow(&self, held: Held, moment: Moment<'_>) -> Self {
        let mut ring = Self { generation: self.generation + 1, ..Self::EMPTY };
        for (slot, key) in [(CURRENT, held.current), (BACKUP, held.backup), (NEXT, held.next)] {
            if let Some(key) = key {
                ring.put(slot, key, self, moment);
            }
        }
        let mut free = NEWEST;
        for key in (0..SLOTS).filter_map(|slot| self.get(slot)) {
            if free < SLOTS && ring.find(key).is_none() {
                ring.put(free, key, self, moment);
                free += 1;
            }
        }
        ring
    }

    /// Returns the ring without the retired keys for whose slots `keep` returns false.
    #[must_use]
    pub fn without_retired(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let mut ring = Self { generation: self.generation + 1, ..Self::EMPTY };
        let mut free = NEWEST;
        for from in 0..SLOTS {
            let Some(key) = self.get(from) else { continue };
            let to = if from < NEWEST { from } else { free };
            if from < NEWEST || keep(from) {
                ring.copy(to, key, self, from);
                free += usize::from(from >= NEWEST);
            }
        }
        ring
    }

    /// Returns the ring with `key` as its oldest retired key, since `moment`. The ring stays the same if it has no room
    /// for the key, or already holds it.
    #[must_use]
    pub fn with_oldest(&self, key: Key, moment: Moment<'_>) -> Self {
        let mut ring = *self;
        if let (None, Some(free)) = (self.find(key), (NEWEST..SLOTS).find(|slot| !self.holds(*slot))) {
            ring.generation += 1;
            ring.put(free, key, self, moment);
        }
        ring
    }

    /// Returns the ring with `key` as its newest retired key, since `moment`. If it has no room, the oldest is dropped. The ring
    /// stays the same if it already holds the key.
    #[must_use]
    pub fn with_newest(&self, key: Key, moment: Moment<'_>) -> Self {
        if self.find(key).is_some() {
            return *self;
        }
        let mut ring = Self { generation: self.generation + 1, ..Self::EMPTY };
        for slot in [CURRENT, BACKUP, NEXT] {
            if let Some(key) = self.get(slot) {
                ring.copy(slot, key, self, slot);
            }
        }
        ring.put(NEWEST, key, self, moment);
        let retired = (NEWEST..SLOTS).filter_map(|slot| self.get(slot).map(|key| (slot, key)));
        for (to, (from, key)) in (NEWEST + 1..SLOTS).zip(retired) {
            ring.copy(to, key, self, from);
        }
        ring
    }

    /// Puts `key` into `slot`. A key that is in `before` keeps its age and counter. A new one gets a counter that no
    /// key of `before` or of this ring has.
    fn put(&mut self, slot: usize, key: Key, before: &Self, moment: Moment<'_>) {
        if let Some(from) = before.find(key) {
            self.copy(slot, key, before, from);
            return;
        }
        let track = self.free_track(before);
        self.set(slot, Some(key));
        self.since[slot] = moment.seconds;
        self.base[slot] = moment.hits[usize::from(track)];
        self.tracks[slot] = track;
    }

    fn copy(&mut self, to: usize, key: Key, before: &Self, from: usize) {
        self.set(to, Some(key));
        self.since[to] = before.since[from];
        self.base[to] = before.base[from];
        self.tracks[to] = before.tracks[from];
    }

    /// Returns a counter that no key has. The keys of a ring and three new ones do not take all counters.
    fn free_track(&self, before: &Self) -> u8 {
        let is_taken = |track: u8| {
            [self, before]
                .iter()
                .any(|ring| (0..SLOTS).any(|slot| ring.holds(slot) && ring.tracks[slot] == track))
        };
        (0..TRACKS as u8).find(|track| !is_taken(*track)).unwrap_or_default()
    }
}

/// Time for which a confirmation of the keys holds, in nanoseconds. The controller confirms them more often.
pub const CONFIRMED_FOR_NS: u64 = 5_000_000_000;

/// Cached answer of a CPU to the question whether the keys in the map are the kernel's. It is kept for a jiffy, since
/// reading a clock in nanoseconds costs more than all other work for a cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Confirmed {
    /// The jiffy in which the clock was read.
    jiffy: u64,
    /// [`KeyStore::confirmed_ns`] at that moment.
    confirmed_ns: u64,
    /// 1 if the confirmation was recent then, else 0.
    is_recent: u64,
}

impl Confirmed {
    /// State before the first answer. No CPU's clock shows jiffy 0 (`INITIAL_JIFFIES`, linux/jiffies.h).
    pub const NEVER: Self = Self { jiffy: 0, confirmed_ns: 0, is_recent: 0 };

    /// Whether the keys were confirmed within [`CONFIRMED_FOR_NS`]. `clock`, CLOCK_MONOTONIC in nanoseconds, is read
    /// once for each jiffy and confirmation.
    #[inline(always)]
    pub fn is_recent(&mut self, confirmed_ns: u64, jiffy: u64, clock: impl FnOnce() -> u64) -> bool {
        if self.jiffy != jiffy || self.confirmed_ns != confirmed_ns {
            let is_recent = KeyStore::is_recent(confirmed_ns, clock()).into();
            *self = Self { jiffy, confirmed_ns, is_recent };
        }
        self.is_recent != 0
    }
}

/// Number of cookies in a jiffy that each CPU may compare in vain with the keys that the kernel does not hold. A flood of
/// forged cookies then costs two hashes for a SYN instead of up to eleven. A cookie that is found spends nothing, so a
/// rush of clients with retired cookies is served as long as nobody forges.
pub const SEARCHES_PER_JIFFY: u32 = 64;

/// State of one CPU's budget for such searches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Searches {
    /// The jiffy of the last search.
    jiffy: u64,
    /// Number of searches in vain in that jiffy.
    in_vain: u64,
    /// Number of cookies for which there was no search, because the budget was spent.
    pub skipped: u64,
}

impl Searches {
    /// State before the first search.
    pub const NEW: Self = Self { jiffy: 0, in_vain: 0, skipped: 0 };

    /// Checks whether there may be one more search at `jiffy`, of which `limit` may be in vain. If not, counts the
    /// cookie as skipped.
    #[inline(always)]
    pub fn may_search(&mut self, jiffy: u64, limit: u32) -> bool {
        if self.jiffy != jiffy {
            (self.jiffy, self.in_vain) = (jiffy, 0);
        }
        let is_left = self.in_vain < u64::from(limit);
        self.skipped += u64::from(!is_left);
        is_left
    }

    /// Counts a search in vain.
    #[inline(always)]
    pub fn spend(&mut self) {
        self.in_vain += 1;
    }
}

/// Entry of the key map: two rings, and the index of the one in force.
///
/// The first entry, [`SYSCTL`], has the keys of the namespace. Each other one belongs to a key domain: a port whose listeners
/// have Fast Open keys of their own.
///
/// A writer fills the ring that is not in force, then flips [`active`](Self::active), one aligned word, and waits
/// until no program can still be reading the old ring before it touches that one again.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct KeyStore {
    /// The index of the ring in force: 0 or 1.
    pub active: u64,
    /// Time at which the controller last confirmed that these keys are the kernel's: CLOCK_MONOTONIC in nanoseconds.
    pub confirmed_ns: u64,
    /// Number of key domains, in the first entry. If it is 0, no other entry is looked at.
    pub domains: u64,
    /// Port of the key domain, in any other entry; 0 if it has none.
    pub port: u64,
    _rest: [u64; 124],
    /// The two rings.
    pub rings: [KeyRing; 2],
    _end: [u64; 128],
}

impl Default for KeyStore {
    fn default() -> Self {
        Self {
            active: 0,
            confirmed_ns: 0,
            domains: 0,
            port: 0,
            _rest: [0; 124],
            rings: [KeyRing::EMPTY; 2],
            _end: [0; 128],
        }
    }
}

impl KeyStore {
    /// Returns the index of the ring that [`active`](Self::active) names.
    #[inline(always)]
    pub const fn index(active: u64) -> usize {
        (active & 1) as usize
    }

    /// Whether a confirmation at `confirmed_ns` holds at `now_ns`. A confirmation from the future does.
    #[inline(always)]
    pub const fn is_recent(confirmed_ns: u64, now_ns: u64) -> bool {
        now_ns.saturating_sub(confirmed_ns) <= CONFIRMED_FOR_NS
    }

    /// Returns the ring in force.
    pub fn current(&self) -> &KeyRing {
        &self.rings[Self::index(self.active)]
    }
}
