//! Sampling of packets for a closer look: all while they are few, one in many while they are many.
//!
//! To remember a source or to report an event costs more than all other work for a SYN. So each kind of SYN has a
//! [`Sampler`], which decides when the next look is due. That count stands beside the counter. A sampled SYN stands for
//! all that have come since the last sample; their number is its weight. So no SYN is missing from a sum. Only the
//! source of a SYN is a guess, and only at rates at which one in many is enough to see who sends them.

use crate::{
    counters::{MALFORMED_SLOTS, SYN_PLACES, UNSUPPORTED_SLOTS, place, syn_place_of},
    description::{Description, Kind},
};

/// Number of closer looks that a CPU may take in a jiffy (1 to 10 ms), over all kinds.
pub const BUDGET: u64 = 64;
/// Number of these looks that a CPU may report as events.
pub const EVENT_BUDGET: u64 = 4;
/// Number of additional looks, and of additional events, each for the first packet of its kind in a jiffy. So a flood
/// of one kind does not hide another.
pub const FIRSTS: u64 = 16;
/// Largest stride of a sampler: at least one packet in so many is tried. A try without budget costs only a few
/// instructions. After a flood, a larger stride would hide the few packets that still come for longer.
pub const SPARSEST: u64 = 128;

/// Sampler of one kind of SYN, which decides when the next look is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sampler {
    /// Number of SYNs from one try to the next.
    stride: u64,
    /// Count of SYNs when the last one was taken.
    taken: u64,
    /// Jiffy in which the last one was taken.
    jiffy: u64,
}

/// A SYN that was sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Number of SYNs that it stands for.
    pub weight: u64,
    /// Whether it is the first of its kind in this jiffy.
    pub is_first: bool,
}

impl Sampler {
    /// Sampler that takes the first SYN.
    pub const NEW: Self = Self { stride: 0, taken: 0, jiffy: 0 };

    /// Takes the last of `packets` if the budget allows it, and sets `due` to the count of the next try.
    #[inline(always)]
    pub fn take(&mut self, packets: u64, due: &mut u64, jiffies: u64, budget: &mut Budget) -> Option<Sample> {
        let was_idle = budget.renew(jiffies);
        let is_first = self.jiffy != jiffies;
        let can_afford = budget.looks.spend(is_first);
        self.stride = match (can_afford, was_idle) {
            (false, _) if self.stride < SPARSEST => self.stride.max(1) * 2,
            (true, true) if self.stride > 1 => self.stride / 2,
            (_, _) => self.stride.max(1),
        };
        *due = packets + self.stride;
        if !can_afford {
            return None;
        }
        let weight = packets - self.taken;
        (self.taken, self.jiffy) = (packets, jiffies);
        Some(Sample { weight, is_first })
    }
}

/// Samplers of one CPU for one service. Only the closer look touches them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Samplers {
    /// Samplers by place in [`Counters::syn`](crate::counters::Counters::syn).
    syn: [Sampler; SYN_PLACES],
    /// Samplers by [`Malformed`](crate::parse::Malformed) index.
    malformed: [Sampler; MALFORMED_SLOTS],
    /// Samplers by [`Unsupported`](crate::parse::Unsupported) index.
    unsupported: [Sampler; UNSUPPORTED_SLOTS],
}

impl Samplers {
    /// Samplers that take the first packet of each kind.
    pub const NEW: Self = Self {
        syn: [Sampler::NEW; SYN_PLACES],
        malformed: [Sampler::NEW; MALFORMED_SLOTS],
        unsupported: [Sampler::NEW; UNSUPPORTED_SLOTS],
    };

    /// Returns the sampler of packets of the same kind as `packet`.
    #[inline(always)]
    pub fn of(&mut self, packet: &Description) -> &mut Sampler {
        let at = packet.detail as usize;
        match Kind::from_index(packet.kind) {
            Some(Kind::Malformed) => &mut self.malformed[place(at, MALFORMED_SLOTS)],
            Some(Kind::Unsupported) => &mut self.unsupported[place(at, UNSUPPORTED_SLOTS)],
            _ => &mut self.syn[syn_place_of(packet)],
        }
    }
}

/// Budget of a CPU for the present jiffy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    jiffy: u64,
    looks: Allowance,
    /// Allowance of events.
    pub events: Allowance,
}

impl Budget {
    /// Budget that has never been renewed.
    pub const NEW: Self = {
        const NOTHING: Allowance = Allowance { left: 0, firsts: 0 };
        Self { jiffy: 0, looks: NOTHING, events: NOTHING }
    };

    /// Renews the budget in a new jiffy. Returns whether less than half of the last one was used, or a jiffy was
    /// skipped.
    #[inline(always)]
    fn renew(&mut self, jiffies: u64) -> bool {
        if self.jiffy == jiffies {
            return false;
        }
        let was_idle = self.looks.left > BUDGET / 2 || jiffies.wrapping_sub(self.jiffy) > 1;
        *self = Self {
            jiffy: jiffies,
            looks: Allowance { left: BUDGET, firsts: FIRSTS },
            events: Allowance { left: EVENT_BUDGET, firsts: FIRSTS },
        };
        was_idle
    }
}

/// Number of looks or events that are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Allowance {
    /// Number left for any packet.
    left: u64,
    /// Additional number left for packets that are the first of their kind.
    firsts: u64,
}

impl Allowance {
    /// Takes one if there is one left. Returns false if there is none.
    #[inline(always)]
    pub const fn spend(&mut self, is_first: bool) -> bool {
        if self.left > 0 {
            self.left -= 1;
            true
        } else if is_first && self.firsts > 0 {
            self.firsts -= 1;
            true
        } else {
            false
        }
    }
}
