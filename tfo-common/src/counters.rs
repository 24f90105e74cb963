//! What the program counts: one struct, one look-up, no locks (each CPU has its own).

use core::hint::black_box;

use crate::{
    class::{Class, Classified},
    keyring::{KeyRing, TRACKS},
    parse::{Fault, Malformed, Unsupported},
    sample::Sampler,
    segment::{Family, Segment},
    verdict::Verdict,
};

/// Places for verdicts in [`Counters::syn`]. Like the other numbers of places it is a power of two, so that a mask
/// shows the kernel's verifier that an index fits, and has room for more without a new layout.
pub const VERDICT_SLOTS: usize = 8;
/// Places for malformed reasons.
pub const MALFORMED_SLOTS: usize = 16;
/// Places for unsupported reasons.
pub const UNSUPPORTED_SLOTS: usize = 8;

/// SYNs of one family, class and verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// SYNs.
    pub packets: u64,
    /// Those that carried data.
    pub with_data: u64,
    /// The bytes of data that they carried.
    pub data_bytes: u64,
}

/// What the program writes on one CPU for one service: one struct, one look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Cell {
    /// What it counts.
    pub counters: Counters,
    /// When the next SYN is looked at more closely, for each place of [`Counters::syn`].
    pub syn_samplers: [[[Sampler; VERDICT_SLOTS]; Class::COUNT]; Family::COUNT],
    /// The same for [`Counters::malformed`].
    pub malformed_samplers: [Sampler; MALFORMED_SLOTS],
    /// The same for [`Counters::unsupported`].
    pub unsupported_samplers: [Sampler; UNSUPPORTED_SLOTS],
}

impl Cell {
    /// Nothing counted yet.
    pub const EMPTY: Self = Self {
        counters: Counters::EMPTY,
        syn_samplers: [[[Sampler::NEW; VERDICT_SLOTS]; Class::COUNT]; Family::COUNT],
        malformed_samplers: [Sampler::NEW; MALFORMED_SLOTS],
        unsupported_samplers: [Sampler::NEW; UNSUPPORTED_SLOTS],
    };

    /// Counts one SYN: how many of its kind there are now, and their sampler.
    #[inline(always)]
    pub fn count_syn(
        &mut self,
        segment: &Segment,
        found: Classified,
        verdict: Verdict,
        ring: &KeyRing,
    ) -> (u64, &mut Sampler) {
        let packets = self.counters.count_syn(segment, found, verdict, ring);
        let (family, class, verdict) = indices(segment, found.class, verdict);
        (packets, &mut self.syn_samplers[family][class][verdict])
    }

    /// Counts one frame that is passed unclassified, as [`count_syn`](Self::count_syn) does.
    #[inline(always)]
    pub fn count_fault(&mut self, fault: Fault) -> (u64, &mut Sampler) {
        let packets = self.counters.count_fault(fault);
        let sampler = match fault {
            Fault::Malformed(reason) => &mut self.malformed_samplers[place(reason.index(), MALFORMED_SLOTS)],
            Fault::Unsupported(reason) => {
                &mut self.unsupported_samplers[place(reason.index(), UNSUPPORTED_SLOTS)]
            }
        };
        (packets, sampler)
    }
}

/// `index`, which is below `slots`, and the verifier sees that. LLVM knows it from the enum and would leave the mask out,
/// whatever it is needed for.
#[inline(always)]
fn place(index: usize, slots: usize) -> usize {
    black_box(index) & (slots - 1)
}

/// The place of a SYN in [`Counters::syn`]. The masks change nothing: they tell the verifier that the index fits.
#[inline(always)]
fn indices(segment: &Segment, class: Class, verdict: Verdict) -> (usize, usize, usize) {
    let family = segment.addresses.family.index() & (Family::COUNT - 1);
    (family, class.index() & (Class::COUNT - 1), verdict.index() & (VERDICT_SLOTS - 1))
}

impl Tally {
    const EMPTY: Self = Self { packets: 0, with_data: 0, data_bytes: 0 };
}

/// Everything the program counts, on one CPU or, once [summed](Self::add), on all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// By [`Family`], [`Class`] and [`Verdict`] index.
    pub syn: [[[Tally; VERDICT_SLOTS]; Class::COUNT]; Family::COUNT],
    /// By [`Malformed`] index.
    pub malformed: [u64; MALFORMED_SLOTS],
    /// By [`Unsupported`] index.
    pub unsupported: [u64; UNSUPPORTED_SLOTS],
    /// Cookies of known keys, by [`KeyRing::tracks`].
    pub hits: [u64; TRACKS],
}

impl Default for Counters {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Counters {
    /// Nothing counted yet.
    pub const EMPTY: Self = Self {
        syn: [[[Tally::EMPTY; VERDICT_SLOTS]; Class::COUNT]; Family::COUNT],
        malformed: [0; MALFORMED_SLOTS],
        unsupported: [0; UNSUPPORTED_SLOTS],
        hits: [0; TRACKS],
    };

    /// Counts one SYN: how many of its kind there are now.
    #[inline(always)]
    pub fn count_syn(
        &mut self,
        segment: &Segment,
        found: Classified,
        verdict: Verdict,
        ring: &KeyRing,
    ) -> u64 {
        let (family, class, verdict) = indices(segment, found.class, verdict);
        let tally = &mut self.syn[family][class][verdict];
        tally.packets += 1;
        let packets = tally.packets;
        if segment.data_len > 0 {
            tally.with_data += 1;
            tally.data_bytes += u64::from(segment.data_len);
        }
        if let Some(slot) = found.slot {
            let track = ring.tracks[slot & (TRACKS - 1)];
            self.hits[usize::from(track) & (TRACKS - 1)] += 1;
        }
        packets
    }

    /// Counts one frame that is passed unclassified: how many there are now for that reason.
    #[inline(always)]
    pub fn count_fault(&mut self, fault: Fault) -> u64 {
        let count = match fault {
            Fault::Malformed(reason) => &mut self.malformed[place(reason.index(), MALFORMED_SLOTS)],
            Fault::Unsupported(reason) => &mut self.unsupported[place(reason.index(), UNSUPPORTED_SLOTS)],
        };
        *count += 1;
        *count
    }

    /// Adds `other`, such as the counters of another CPU.
    pub fn add(&mut self, other: &Self) {
        let pairs = self.syn.as_flattened_mut().as_flattened_mut().iter_mut();
        for (sum, tally) in pairs.zip(other.syn.as_flattened().as_flattened()) {
            sum.packets += tally.packets;
            sum.with_data += tally.with_data;
            sum.data_bytes += tally.data_bytes;
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
    }

    /// The SYNs of `class`, over both families and all verdicts.
    pub fn class(&self, class: Class) -> Tally {
        let mut sum = Tally::default();
        for family in &self.syn {
            for tally in &family[class.index()] {
                sum.packets += tally.packets;
                sum.with_data += tally.with_data;
                sum.data_bytes += tally.data_bytes;
            }
        }
        sum
    }

    /// The SYNs of `class` and `verdict`, over both families.
    pub fn verdict(&self, class: Class, verdict: Verdict) -> u64 {
        self.syn.iter().map(|family| family[class.index()][verdict.index()].packets).sum()
    }

    /// All frames passed because they are malformed.
    pub fn malformed_total(&self) -> u64 {
        self.malformed[..Malformed::COUNT].iter().sum()
    }

    /// All frames passed because the program does not support what they use.
    pub fn unsupported_total(&self) -> u64 {
        self.unsupported[..Unsupported::COUNT].iter().sum()
    }
}
