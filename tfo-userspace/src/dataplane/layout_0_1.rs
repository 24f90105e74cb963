//! Layout of the maps of tfo 0.1, as far as it differs from ours.

use aya::Pod;
use tfo_common::{
    class::Class,
    counters::{Cell, GuardCounts, MALFORMED_SLOTS, Sampled, Tally, UNSUPPORTED_SLOTS},
    keyring::TRACKS,
    observed::Watch,
    policy::GUARD_SLOTS,
    segment::Family,
};

/// Layout version of these maps.
pub(super) const VERSION: u32 = 6;

/// Number of places for verdicts in a [`CellWords`].
const VERDICTS: usize = 4;

/// Counts of one CPU for one service: a [`Cell`] with fewer places for verdicts, and without dropped frames.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct CellWords {
    syn: [[[Sampled<Tally>; VERDICTS]; Class::COUNT]; Family::COUNT],
    malformed: [Sampled<u64>; MALFORMED_SLOTS],
    unsupported: [Sampled<u64>; UNSUPPORTED_SLOTS],
    hits: [u64; TRACKS],
    guards: [GuardCounts; GUARD_SLOTS],
}

// SAFETY: it is repr(C) and made of integers of 64 bits, so it has no padding, and any bytes are a value.
unsafe impl Pod for CellWords {}

impl CellWords {
    /// Counts that are all zero.
    pub(super) const EMPTY: Self = Self {
        syn: [[[Cell::EMPTY.syn[0][0][0]; VERDICTS]; Class::COUNT]; Family::COUNT],
        malformed: Cell::EMPTY.malformed,
        unsupported: Cell::EMPTY.unsupported,
        hits: Cell::EMPTY.hits,
        guards: Cell::EMPTY.guards,
    };

    /// Returns the same counts in our layout.
    pub(super) fn cell(&self) -> Cell {
        let Self { syn, malformed, unsupported, hits, guards } = *self;
        let mut cell = Cell { malformed, unsupported, hits, guards, ..Cell::EMPTY };
        for (to, from) in cell.syn.as_flattened_mut().iter_mut().zip(syn.as_flattened()) {
            to[..VERDICTS].copy_from_slice(from);
        }
        cell
    }
}

/// State of observing on one CPU: five words of a budget, then five counters.
pub(super) type WatchWords = [u64; 10];

/// Adds the counters of `words` to `sum`.
pub(super) fn add_watch(sum: &mut Watch, words: &WatchWords) {
    let [.., events, lost, skipped, prefixes, forgotten] = words;
    sum.events += events;
    sum.events_lost += lost;
    sum.events_skipped += skipped;
    sum.prefixes += prefixes;
    sum.sources_forgotten += forgotten;
}
