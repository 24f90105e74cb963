//! The keys against which a cookie is checked, and how a whole set of them is published at once.

/// Keys that the kernel no longer holds and that are still recognised.
pub const RETIRED: usize = 8;
/// Keys in a ring: the kernel's primary and backup, then the retired, newest first.
pub const SLOTS: usize = 2 + RETIRED;

/// A SipHash key: the kernel's 16 bytes as two little-endian words.
///
/// `tcp_fastopen_reset_cipher` (net/ipv4/tcp_fastopen.c). It has no `Debug`: a key is never printed.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Key {
    /// The first eight bytes, little-endian.
    pub k0: u64,
    /// The last eight bytes, little-endian.
    pub k1: u64,
}

impl Key {
    /// The key whose four words are written `%08x-%08x-%08x-%08x` in `net.ipv4.tcp_fastopen_key`.
    ///
    /// `proc_tcp_fastopen_key` (net/ipv4/sysctl_net_ipv4.c) stores each word little-endian, in order.
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { k0: words[0] as u64 | (words[1] as u64) << 32, k1: words[2] as u64 | (words[3] as u64) << 32 }
    }

    /// The four words, as the sysctl writes them.
    pub const fn to_words(self) -> [u32; 4] {
        [self.k0 as u32, (self.k0 >> 32) as u32, self.k1 as u32, (self.k1 >> 32) as u32]
    }

    /// Whether this is the key of zeros that the sysctl shows before any key was set: it means "none yet".
    pub const fn is_zero(self) -> bool {
        self.k0 == 0 && self.k1 == 0
    }
}

/// What a key is to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The kernel's primary key: it makes new cookies with it and takes those that it made.
    Current,
    /// The kernel's backup key: it takes its cookies and hands out fresh ones.
    Backup,
    /// The kernel held it once and refuses its cookies now.
    Retired,
}

impl Role {
    /// The role of the key in `slot` of [`KeyRing::slots`].
    #[inline(always)]
    pub const fn of_slot(slot: usize) -> Self {
        match slot {
            0 => Self::Current,
            1 => Self::Backup,
            _ => Self::Retired,
        }
    }
}

/// One consistent set of keys.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KeyRing {
    /// Counts publications, so that a reader sees that the keys have changed without seeing a key.
    pub generation: u64,
    /// Bit `n` is set where `slots[n]` holds a key. A key of zeros can be a real one, so zero cannot mean "empty".
    pub present: u64,
    /// Current, backup, then the retired ones, newest first.
    pub slots: [Key; SLOTS],
}

impl KeyRing {
    /// The ring that holds no key.
    pub const EMPTY: Self = Self { generation: 0, present: 0, slots: [Key { k0: 0, k1: 0 }; SLOTS] };

    /// Whether `slot` holds a key.
    #[inline(always)]
    pub const fn holds(&self, slot: usize) -> bool {
        self.present >> slot & 1 == 1
    }

    /// The key in `slot`, if it holds one.
    pub fn get(&self, slot: usize) -> Option<Key> {
        let key = self.slots.get(slot)?;
        self.holds(slot).then_some(*key)
    }

    /// Puts `key` into `slot`, or empties it.
    ///
    /// # Panics
    ///
    /// Where `slot` is not below [`SLOTS`].
    pub fn set(&mut self, slot: usize, key: Option<Key>) {
        self.slots[slot] = key.unwrap_or_default();
        self.present = self.present & !(1 << slot) | u64::from(key.is_some()) << slot;
    }

    /// The retired keys, newest first.
    pub fn retired(&self) -> impl Iterator<Item = Key> + '_ {
        (2..SLOTS).filter_map(|slot| self.get(slot))
    }

    /// The ring after the kernel's keys have become `current` and `backup`: whatever it held before and holds no
    /// more is retired, newest first, and the oldest beyond [`RETIRED`] fall out.
    ///
    /// The two kernel keys are always in the result, whatever was there before: the set never refuses what the
    /// kernel accepts.
    #[must_use]
    pub fn follow(&self, current: Option<Key>, backup: Option<Key>) -> Self {
        let mut next = Self { generation: self.generation + 1, ..Self::default() };
        next.set(0, current);
        next.set(1, backup);
        let mut free = 2;
        for key in (0..SLOTS).filter_map(|slot| self.get(slot)) {
            let known = (0..free).any(|slot| next.get(slot) == Some(key));
            if free < SLOTS && !known {
                next.set(free, Some(key));
                free += 1;
            }
        }
        next
    }
}

/// The one entry of the keys map: two rings, and which of them is in force.
///
/// A writer fills the ring that is not in force, then flips [`active`](Self::active), one aligned word, and waits
/// until no program can still be reading the old ring before it touches that one again.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct KeyStore {
    /// The index of the ring in force: 0 or 1.
    pub active: u64,
    /// The two rings.
    pub rings: [KeyRing; 2],
}

impl KeyStore {
    /// The index of the ring that [`active`](Self::active) names.
    #[inline(always)]
    pub const fn index(active: u64) -> usize {
        (active & 1) as usize
    }

    /// The ring in force.
    pub fn current(&self) -> &KeyRing {
        &self.rings[Self::index(self.active)]
    }
}
