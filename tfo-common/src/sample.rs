//! Which SYNs are looked at more closely: each one while they are few, one in many while they are many.
//!
//! To remember a source or to report an event costs more than all that is done for a SYN otherwise. So each kind of SYN has
//! a [`Sampler`], which says when the next one is due; that stands beside their count. What is taken then stands for all that have come since the last one:
//! its weight. No SYN is left out of a sum, then; only whom it is attributed to is a guess, and that only at rates at
//! which one in many is enough to see who sends them.

use crate::{
    counters::{MALFORMED_SLOTS, SYN_PLACES, UNSUPPORTED_SLOTS, place, syn_place_of},
    description::{Description, Kind},
};

/// How many a CPU takes in a jiffy (1 to 10 ms), of all kinds together.
pub const BUDGET: u64 = 64;
/// How many of them a CPU reports as events.
pub const EVENT_BUDGET: u64 = 4;
/// How many of either it can do besides, each the first of its kind in the jiffy: a flood of one kind does not hide another.
pub const FIRSTS: u64 = 16;
/// One in so many is at least asked for. That there is no budget for it is found out in a few instructions, and the fewer
/// come after a flood, the longer this would keep them from being seen.
pub const SPARSEST: u64 = 128;

/// What decides when the next SYN of one kind is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sampler {
    /// One in how many is asked for.
    stride: u64,
    /// The count of SYNs when the last one was taken.
    taken: u64,
    /// The jiffy in which that was.
    jiffy: u64,
}

/// A SYN that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// For how many it stands.
    pub weight: u64,
    /// Whether it is the first of its kind in this jiffy.
    pub is_first: bool,
}

impl Sampler {
    /// One that takes the first SYN.
    pub const NEW: Self = Self { stride: 0, taken: 0, jiffy: 0 };

    /// Takes the last of `packets`, if that can be afforded, and says at how many the next one is `due`.
    #[inline(always)]
    pub fn take(&mut self, packets: u64, due: &mut u64, jiffies: u64, budget: &mut Budget) -> Option<Taken> {
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
        Some(Taken { weight, is_first })
    }
}

/// The samplers of one CPU for one service: what only the closer look touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Samplers {
    /// By the place in [`Counters::syn`](crate::counters::Counters::syn).
    syn: [Sampler; SYN_PLACES],
    /// By [`Malformed`](crate::parse::Malformed) index.
    malformed: [Sampler; MALFORMED_SLOTS],
    /// By [`Unsupported`](crate::parse::Unsupported) index.
    unsupported: [Sampler; UNSUPPORTED_SLOTS],
}

impl Samplers {
    /// Those that take the first of each kind.
    pub const NEW: Self = Self {
        syn: [Sampler::NEW; SYN_PLACES],
        malformed: [Sampler::NEW; MALFORMED_SLOTS],
        unsupported: [Sampler::NEW; UNSUPPORTED_SLOTS],
    };

    /// Sampler of the packets that are of the kind of `packet`.
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

/// What a CPU can still do in this jiffy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    jiffy: u64,
    looks: Allowance,
    /// Events to be reported.
    pub events: Allowance,
}

impl Budget {
    /// One that has never been renewed.
    pub const NEW: Self = {
        const NOTHING: Allowance = Allowance { left: 0, firsts: 0 };
        Self { jiffy: 0, looks: NOTHING, events: NOTHING }
    };

    /// Begins a new jiffy where there is one, and tells whether the one before had something left.
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

/// How often something can still be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Allowance {
    /// For whatever comes.
    left: u64,
    /// Besides, for what is the first of its kind.
    firsts: u64,
}

impl Allowance {
    /// Takes one, if there is one left.
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
