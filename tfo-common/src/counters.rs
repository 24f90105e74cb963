//! Counters of the program: one struct, one look-up, and no locks, since each CPU has its own.

use core::hint::black_box;

use crate::{
    class::{Class, Classified},
    description::{Description, Kind},
    keyring::{KeyRing, TRACKS},
    parse::{Malformed, Unsupported},
    policy::{Decision, GUARD_SLOTS},
    segment::{Family, Segment},
    verdict::Verdict,
};

/// Number of places for verdicts in [`Counters::syn`]. This and the other numbers of places are powers of two, so that
/// a mask shows the kernel's verifier that an index fits. Spare places take new variants without a new layout.
pub const VERDICT_SLOTS: usize = 8;
/// Number of places for malformed reasons.
pub const MALFORMED_SLOTS: usize = 16;
/// Number of places for unsupported reasons.
pub const UNSUPPORTED_SLOTS: usize = 8;

/// Counts of the SYNs of one family, class and verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// Number of SYNs.
    pub packets: u64,
    /// Number of SYNs with data.
    pub with_data: u64,
    /// Number of bytes of data in these SYNs.
    pub data_bytes: u64,
}

/// Count of packets of one kind, and the count at which the next one is looked at more closely.
///
/// Each packet uses both, so they stand side by side. The rest of the sampler is in
/// [`Samplers`](crate::sample::Samplers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sampled<T> {
    /// The count.
    pub count: T,
    /// Count of packets at which the next closer look is due.
    pub due: u64,
}

impl Sampled<Tally> {
    const EMPTY: Self = Self { count: Tally::EMPTY, due: 0 };
}

impl Sampled<u64> {
    const EMPTY: Self = Self { count: 0, due: 0 };
}

/// Counts of one CPU for one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Cell {
    /// See [`Counters::syn`].
    pub syn: [[[Sampled<Tally>; VERDICT_SLOTS]; Class::COUNT]; Family::COUNT],
    /// See [`Counters::malformed`].
    pub malformed: [Sampled<u64>; MALFORMED_SLOTS],
    /// See [`Counters::unsupported`].
    pub unsupported: [Sampled<u64>; UNSUPPORTED_SLOTS],
    /// See [`Counters::hits`].
    pub hits: [u64; TRACKS],
    /// See [`Counters::guards`].
    pub guards: [GuardCounts; GUARD_SLOTS],
    /// See [`Counters::dropped`].
    pub dropped: [u64; UNSUPPORTED_SLOTS],
}

impl Cell {
    /// Counts that are all zero. The first packet of each kind is due for a closer look.
    pub const EMPTY: Self = Self {
        syn: [[[Sampled::<Tally>::EMPTY; VERDICT_SLOTS]; Class::COUNT]; Family::COUNT],
        malformed: [Sampled::<u64>::EMPTY; MALFORMED_SLOTS],
        unsupported: [Sampled::<u64>::EMPTY; UNSUPPORTED_SLOTS],
        hits: [0; TRACKS],
        guards: [GuardCounts { acted: 0, would: 0 }; GUARD_SLOTS],
        dropped: [0; UNSUPPORTED_SLOTS],
    };

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        let pairs = self.syn.as_flattened_mut().as_flattened_mut().iter_mut();
        for (sum, sampled) in pairs.zip(other.syn.as_flattened().as_flattened()) {
            sum.count.add(&sampled.count);
        }
        let reasons = self.malformed.iter_mut().zip(&other.malformed);
        for (sum, sampled) in reasons.chain(self.unsupported.iter_mut().zip(&other.unsupported)) {
            sum.count += sampled.count;
        }
        for (sum, count) in self.hits.iter_mut().zip(other.hits) {
            *sum += count;
        }
        for (sum, count) in self.guards.iter_mut().zip(other.guards) {
            sum.acted += count.acted;
            sum.would += count.would;
        }
        for (sum, count) in self.dropped.iter_mut().zip(other.dropped) {
            *sum += count;
        }
    }

    /// Returns the counts, without the sampling.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::EMPTY;
        counters.add_cell(self);
        counters
    }

    /// Counts one SYN, and returns whether a closer look at it is due.
    ///
    /// For callers in which class, verdict and family are constants. Elsewhere the verifier does not see that the
    /// indices fit: use [`count_described`](Self::count_described).
    #[inline(always)]
    pub fn count_syn(
        &mut self,
        segment: &Segment,
        found: Classified,
        verdict: Verdict,
        ring: &KeyRing,
    ) -> bool {
        let at = syn_place(segment.addresses.family.index(), found.class.index(), verdict.index());
        if let Some(slot) = found.slot {
            self.hits[usize::from(ring.track(slot)) & (TRACKS - 1)] += 1;
        }
        self.count_at(at & (SYN_PLACES - 1), segment.data_len)
    }

    /// Counts a SYN that is opaque to the verifier, and what guards did to it. Returns whether a closer look at it is
    /// due.
    #[inline(always)]
    pub fn count_described(&mut self, syn: &Description) -> bool {
        self.count_guards(syn.decision());
        if syn.track != 0 {
            self.hits[place(syn.track as usize - 1, TRACKS)] += 1;
        }
        self.count_at(syn_place_of(syn), syn.data_len)
    }

    /// Counts what guards did to a SYN, or would have done.
    #[inline(always)]
    pub fn count_guards(&mut self, decision: Decision) {
        if let Some(guard) = decision.guard {
            self.guards[place(guard.index(), GUARD_SLOTS)].acted += 1;
        }
        if decision.would != 0 {
            for (guard, counts) in self.guards.iter_mut().enumerate() {
                counts.would += u64::from(decision.would >> guard & 1);
            }
        }
    }

    #[inline(always)]
    fn count_at(&mut self, at: usize, data_len: u32) -> bool {
        let Sampled { count: tally, due } = &mut self.syn.as_flattened_mut().as_flattened_mut()[at];
        tally.packets += 1;
        if data_len > 0 {
            tally.with_data += 1;
            tally.data_bytes += u64::from(data_len);
        }
        tally.packets >= *due
    }

    /// Counts one frame that is not classified, and whether it is dropped. Returns whether a closer look at it is due.
    #[inline(always)]
    pub fn count_fault(&mut self, frame: &Description) -> bool {
        let at = frame.detail as usize;
        let Sampled { count, due } = if frame.kind == Kind::Malformed as u32 {
            &mut self.malformed[place(at, MALFORMED_SLOTS)]
        } else {
            &mut self.unsupported[place(at, UNSUPPORTED_SLOTS)]
        };
        *count += 1;
        let is_due = *count >= *due;
        if frame.verdict == Verdict::Drop as u32 {
            self.dropped[place(at, UNSUPPORTED_SLOTS)] += 1;
        }
        is_due
    }

    /// Returns the number of packets of the same kind as `packet`, and the count at which the next closer look is due.
    #[inline(always)]
    pub fn due(&mut self, packet: &Description) -> (u64, &mut u64) {
        let at = packet.detail as usize;
        let Sampled { count, due } = match Kind::from_index(packet.kind) {
            Some(Kind::Malformed) => &mut self.malformed[place(at, MALFORMED_SLOTS)],
            Some(Kind::Unsupported) => &mut self.unsupported[place(at, UNSUPPORTED_SLOTS)],
            _ => {
                let syn = &mut self.syn.as_flattened_mut().as_flattened_mut()[syn_place_of(packet)];
                return (syn.count.packets, &mut syn.due);
            }
        };
        (*count, due)
    }
}

/// Masks `index`, which is below `slots`, so that the verifier sees it. LLVM knows the range from the enum, and would
/// leave the mask out without `black_box`.
#[inline(always)]
pub(crate) fn place(index: usize, slots: usize) -> usize {
    black_box(index) & (slots - 1)
}

/// Number of places in [`Counters::syn`].
pub(crate) const SYN_PLACES: usize = Family::COUNT * Class::COUNT * VERDICT_SLOTS;

/// Returns the place of a SYN in [`Counters::syn`], masked for the verifier.
#[inline(always)]
pub(crate) fn syn_place_of(syn: &Description) -> usize {
    place(syn_place(syn.family as usize, syn.detail as usize, syn.verdict as usize), SYN_PLACES)
}

/// Returns the place of a SYN in [`Counters::syn`], by the indices of its family, class and verdict.
#[inline(always)]
const fn syn_place(family: usize, class: usize, verdict: usize) -> usize {
    (family * Class::COUNT + class) * VERDICT_SLOTS + verdict
}

impl Tally {
    const EMPTY: Self = Self { packets: 0, with_data: 0, data_bytes: 0 };

    fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.with_data += other.with_data;
        self.data_bytes += other.data_bytes;
    }
}

/// Counts of the program, summed over CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// SYNs by [`Family`], [`Class`] and [`Verdict`] index.
    pub syn: [[[Tally; VERDICT_SLOTS]; Class::COUNT]; Family::COUNT],
    /// Malformed frames by [`Malformed`] index.
    pub malformed: [u64; MALFORMED_SLOTS],
    /// Unsupported frames by [`Unsupported`] index.
    pub unsupported: [u64; UNSUPPORTED_SLOTS],
    /// Cookies of known keys, by [`KeyRing::tracks`].
    pub hits: [u64; TRACKS],
    /// Counts of guards by [`Guard`](crate::policy::Guard) index.
    pub guards: [GuardCounts; GUARD_SLOTS],
    /// Unsupported frames that were dropped, by [`Unsupported`] index. They are among [`unsupported`](Self::unsupported).
    pub dropped: [u64; UNSUPPORTED_SLOTS],
}

/// Counts of one guard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GuardCounts {
    /// Number of SYNs on which it acted.
    pub acted: u64,
    /// Number of SYNs on which it would have acted, but for a dry run.
    pub would: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Counters {
    /// Counts that are all zero.
    pub const EMPTY: Self = Self {
        syn: [[[Tally::EMPTY; VERDICT_SLOTS]; Class::COUNT]; Family::COUNT],
        malformed: [0; MALFORMED_SLOTS],
        unsupported: [0; UNSUPPORTED_SLOTS],
        hits: [0; TRACKS],
        guards: [GuardCounts { acted: 0, would: 0 }; GUARD_SLOTS],
        dropped: [0; UNSUPPORTED_SLOTS],
    };

    /// Adds the counts of one CPU.
    pub fn add_cell(&mut self, cell: &Cell) {
        let sums = self.syn.as_flattened_mut().as_flattened_mut().iter_mut();
        for (sum, sampled) in sums.zip(cell.syn.as_flattened().as_flattened()) {
            sum.add(&sampled.count);
        }
        for (sum, sampled) in self.malformed.iter_mut().zip(&cell.malformed) {
            *sum += sampled.count;
        }
        for (sum, sampled) in self.unsupported.iter_mut().zip(&cell.unsupported) {
            *sum += sampled.count;
        }
        for (sum, count) in self.hits.iter_mut().zip(cell.hits) {
            *sum += count;
        }
        for (sum, count) in self.guards.iter_mut().zip(cell.guards) {
            sum.acted += count.acted;
            sum.would += count.would;
        }
        for (sum, count) in self.dropped.iter_mut().zip(cell.dropped) {
            *sum += count;
        }
    }

    /// Adds `other`, such as the counters of another service.
    pub fn add(&mut self, other: &Self) {
        let sums = self.syn.as_flattened_mut().as_flattened_mut().iter_mut();
        for (sum, tally) in sums.zip(other.syn.as_flattened().as_flattened()) {
            sum.add(tally);
        }
        for (sum, count) in self.malformed.iter_mut().zip(other.malformed) {
            *sum += count;
        }
        for (sum, count) in self.unsupported.iter_mut().zip(other.unsupported) {
            *sum += count;
        }
        for (sum, count) in self.hits.iter_mut().zip(other.hits) {
            *sum += count;
        }
        for (sum, count) in self.guards.iter_mut().zip(other.guards) {
            sum.acted += count.acted;
            sum.would += count.would;
        }
        for (sum, count) in self.dropped.iter_mut().zip(other.dropped) {
            *sum += count;
        }
    }

    /// Returns the counts of the SYNs of `class`, over both families and all verdicts.
    pub fn class(&self, class: Class) -> Tally {
        let mut sum = Tally::default();
        for family in &self.syn {
            for tally in &family[class.index()] {
                sum.add(tally);
            }
        }
        sum
    }

    /// Returns the number of SYNs of `class` and `verdict`, over both families.
    pub fn verdict(&self, class: Class, verdict: Verdict) -> u64 {
        self.syn.iter().map(|family| family[class.index()][verdict.index()].packets).sum()
    }

    /// Returns the number of frames passed because they are malformed.
    pub fn malformed_total(&self) -> u64 {
        self.malformed[..Malformed::COUNT].iter().sum()
    }

    /// Returns the number of frames that are not classified because the program does not support what they use.
    pub fn unsupported_total(&self) -> u64 {
        self.unsupported[..Unsupported::COUNT].iter().sum()
    }
}
