//! The keys against which a cookie is checked, and how a whole set of them is published at once.

use crate::cookie::ExpandedKey;
pub use crate::cookie::Key;

/// Keys that the kernel no longer holds and that are still recognised.
pub const RETIRED: usize = 8;
/// Keys in a ring: see [`Role::of_slot`].
pub const SLOTS: usize = OLDEST + 1;
/// The slot of the kernel's primary key.
pub const CURRENT: usize = 0;
/// The slot of the kernel's backup key.
pub const BACKUP: usize = 1;
/// The slot of the key that the kernel will hold next.
pub const NEXT: usize = 2;
/// The slot of the key that the kernel held last; older ones follow.
pub const NEWEST: usize = 3;
const OLDEST: usize = NEWEST + RETIRED - 1;
/// Counters for the hits of keys: a power of two, and more than [`SLOTS`], so that a key which leaves does not share its
/// counter with the one that comes.
pub const TRACKS: usize = 16;

/// When a ring is made: what its new keys begin with.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// Seconds since 1970 (UTC).
    pub seconds: u64,
    /// Where [`Counters::hits`](crate::counters::Counters::hits) stand.
    pub hits: &'a [u64; TRACKS],
}

/// The keys that are not retired.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// The kernel's primary key.
    pub current: Option<Key>,
    /// The kernel's backup key.
    pub backup: Option<Key>,
    /// The key that the kernel will hold next, where that is known.
    pub next: Option<Key>,
}

/// What a key is to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The kernel's primary key: it makes new cookies with it and takes those that it made.
    Current,
    /// The kernel's backup key: it takes its cookies and hands out fresh ones.
    Backup,
    /// The kernel does not hold it yet, but another host of the fleet may.
    Next,
    /// The kernel held it once and refuses its cookies now.
    Retired,
}

impl Role {
    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Backup => "backup",
            Self::Next => "next",
            Self::Retired => "retired",
        }
    }

    /// The role of the key in `slot` of [`KeyRing::slots`].
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

/// One consistent set of keys. Its size, like that of [`KeyStore`], is a power of two: SipHash can't begin before the ring is found,
/// which takes a shift for each instead of a multiplication.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct KeyRing {
    /// Counts publications, so that a reader sees that the keys have changed without seeing a key.
    pub generation: u64,
    /// Bit `n` is set where `slots[n]` holds a key. A key of zeros can be a real one, so zero cannot mean "empty".
    pub present: u64,
    /// The keys, each in the place of its role.
    pub slots: [ExpandedKey; SLOTS],
    /// For each slot, since when its key has been in the ring, in seconds since 1970 (UTC).
    pub since: [u64; SLOTS],
    /// For each slot, where the counter of its key stood then.
    pub base: [u64; SLOTS],
    /// For each slot, which counter has the hits of its key: an index into [`Counters::hits`].
    ///
    /// [`Counters::hits`]: crate::counters::Counters::hits
    pub tracks: [u8; TRACKS],
    /// Zeros.
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

    /// [`tracks`](Self::tracks) of `slot`.
    #[inline(always)]
    pub const fn track(&self, slot: usize) -> u8 {
        self.tracks[slot & (TRACKS - 1)]
    }

    /// Whether `slot` holds a key.
    #[inline(always)]
    pub const fn holds(&self, slot: usize) -> bool {
        self.present >> slot & 1 == 1
    }

    /// Whether `slot` or one behind it holds a key.
    #[inline(always)]
    pub const fn holds_from(&self, slot: usize) -> bool {
        self.present >> slot != 0
    }

    /// The key in `slot`, if it holds one.
    pub fn get(&self, slot: usize) -> Option<Key> {
        let key = self.slots.get(slot)?;
        self.holds(slot).then(|| key.key())
    }

    /// Puts `key` into `slot`, or empties it. For making a ring by hand: ages and counters are [`follow`](Self::follow)'s.
    ///
    /// # Panics
    ///
    /// Where `slot` is not below [`SLOTS`].
    pub fn set(&mut self, slot: usize, key: Option<Key>) {
        self.slots[slot] = ExpandedKey::new(&key.unwrap_or_default());
        self.present = self.present & !(1 << slot) | u64::from(key.is_some()) << slot;
        self.tracks[slot] = slot as u8;
    }

    /// How many cookies of the key in `slot` have come since it came into the ring, where the counters stand at `hits`.
    pub fn hits(&self, slot: usize, hits: &[u64; TRACKS]) -> u64 {
        hits[usize::from(self.tracks[slot]) % TRACKS].saturating_sub(self.base[slot])
    }

    /// The keys that are not retired.
    pub fn held(&self) -> Held {
        Held { current: self.get(CURRENT), backup: self.get(BACKUP), next: self.get(NEXT) }
    }

    /// The slot that holds `key`.
    pub fn find(&self, key: Key) -> Option<usize> {
        (0..SLOTS).find(|slot| self.get(*slot) == Some(key))
    }

    /// The retired keys, newest first.
    pub fn retired(&self) -> impl Iterator<Item = Key> + '_ {
        (NEWEST..SLOTS).filter_map(|slot| self.get(slot))
    }

    /// The key into whose cookie an old one is to be translated, so that the kernel takes it: the backup key, since then
    /// the kernel hands out a fresh cookie by itself, or else the primary one.
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

    /// The ring in which the keys of `held` have their roles: whatever this one holds besides is retired, newest first,
    /// and the oldest beyond [`RETIRED`] fall out.
    ///
    /// The kernel's two keys are always in the result, whatever was there before: the set never refuses what the
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

    /// The same ring without the retired keys for which `keep` says no; it is given their slots.
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

    /// The same ring with one more retired key, the oldest, in it since `moment`; without it where there is no room for it,
    /// or where the ring has it already.
    #[must_use]
    pub fn with_oldest(&self, key: Key, moment: Moment<'_>) -> Self {
        let mut ring = *self;
        if let (None, Some(free)) = (self.find(key), (NEWEST..SLOTS).find(|slot| !self.holds(*slot))) {
            ring.generation += 1;
            ring.put(free, key, self, moment);
        }
        ring
    }

    /// Puts `key` into `slot`, with the age and the counter that it has in `before`; a new one gets a counter that none in
    /// `before` or in this ring has.
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

    /// A counter that is nobody's: the keys of a ring and three new ones do not take all.
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

/// Answer of a CPU to the question whether the keys in the map are the kernel's. It is kept for a jiffy, since a clock in nanoseconds
/// costs more than all else that is done for a cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Confirmed {
    /// The jiffy in which the clock was read.
    jiffy: u64,
    /// [`KeyStore::confirmed_ns`] at that moment.
    confirmed_ns: u64,
    /// 1 where that was recent, else 0.
    is_recent: u64,
}

impl Confirmed {
    /// Before the first answer: no CPU's clock shows jiffy 0 (`INITIAL_JIFFIES`, linux/jiffies.h).
    pub const NEVER: Self = Self { jiffy: 0, confirmed_ns: 0, is_recent: 0 };

    /// Whether the keys were confirmed within [`CONFIRMED_FOR_NS`]. It asks `clock`, CLOCK_MONOTONIC in nanoseconds, once in a jiffy
    /// and for each confirmation.
    #[inline(always)]
    pub fn is_recent(&mut self, confirmed_ns: u64, jiffy: u64, clock: impl FnOnce() -> u64) -> bool {
        if self.jiffy != jiffy || self.confirmed_ns != confirmed_ns {
            let is_recent = KeyStore::is_recent(confirmed_ns, clock()).into();
            *self = Self { jiffy, confirmed_ns, is_recent };
        }
        self.is_recent != 0
    }
}

/// The one entry of the keys map: two rings, and which of them is in force.
///
/// A writer fills the ring that is not in force, then flips [`active`](Self::active), one aligned word, and waits
/// until no program can still be reading the old ring before it touches that one again.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct KeyStore {
    /// The index of the ring in force: 0 or 1.
    pub active: u64,
    /// When the controller last confirmed that these keys are the kernel's: CLOCK_MONOTONIC in nanoseconds.
    pub confirmed_ns: u64,
    _rest: [u64; 126],
    /// The two rings.
    pub rings: [KeyRing; 2],
    _end: [u64; 128],
}

impl Default for KeyStore {
    fn default() -> Self {
        Self { active: 0, confirmed_ns: 0, _rest: [0; 126], rings: [KeyRing::EMPTY; 2], _end: [0; 128] }
    }
}

impl KeyStore {
    /// The index of the ring that [`active`](Self::active) names.
    #[inline(always)]
    pub const fn index(active: u64) -> usize {
        (active & 1) as usize
    }

    /// Whether a confirmation at `confirmed_ns` holds at `now_ns`. One from the future does.
    #[inline(always)]
    pub const fn is_recent(confirmed_ns: u64, now_ns: u64) -> bool {
        now_ns.saturating_sub(confirmed_ns) <= CONFIRMED_FOR_NS
    }

    /// The ring in force.
    pub fn current(&self) -> &KeyRing {
        &self.rings[Self::index(self.active)]
    }
}
