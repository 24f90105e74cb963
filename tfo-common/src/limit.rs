//! Rate limits.

use core::cell::Cell;

/// Rate limit: one SYN each `interval`, and some at once. It is the generic cell rate algorithm (ITU-T I.371), which
/// remembers only one time of a source. Times are in ticks: see [`TICKS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Limit {
    /// Time from one SYN to the next.
    pub interval: u64,
    /// Time that SYNs may run ahead: `interval` × (burst − 1).
    pub tolerance: u64,
}

/// Number of ticks in a jiffy, so that a limit may grant many SYNs in one jiffy.
pub const TICKS: u64 = 1 << 20;

impl Limit {
    /// Returns the limit of `count` SYNs in `jiffies`, of which `burst` may come at once. No argument is 0.
    pub const fn new(count: u64, jiffies: u64, burst: u64) -> Self {
        let interval = jiffies.saturating_mul(TICKS) / count;
        let interval = if interval == 0 { 1 } else { interval };
        Self { interval, tolerance: interval.saturating_mul(burst - 1) }
    }

    /// Returns the smallest burst with which a source that sends `count` SYNs in `jiffies` is granted all. Neither is 0.
    ///
    /// Time moves by whole jiffies here. No more than `burst` can be granted in one jiffy, so the burst must be at
    /// least the number that is due in a jiffy, rounded up. If that number is not whole, the rest at the end of a jiffy
    /// must also be kept for the next one, and the burst must be large enough for the largest rest. Let p / q be
    /// `count / jiffies` in lowest terms. Then times are multiples of a p-th of a jiffy, `interval` is q of these, and
    /// `tolerance` must be at least p - 1.
    pub const fn least_burst(count: u64, jiffies: u64) -> u64 {
        let (mut divisor, mut rest) = (count, jiffies);
        while rest != 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        (count / divisor - 1).div_ceil(jiffies / divisor) + 1
    }

    /// Returns the time to remember after one more SYN at `now`, if `last` was remembered; `None` beyond the limit.
    ///
    /// It is the time at which the SYN was due, had all come evenly: the next one is due an interval later.
    #[inline(always)]
    pub const fn grant(&self, last: u64, now: u64) -> Option<u64> {
        let due = last + self.interval;
        if due <= now {
            Some(now)
        } else if due - now <= self.tolerance {
            Some(due)
        } else {
            None
        }
    }

    /// Whether a source whose last SYN was due at `last` has left unused what so many intervals would have granted that
    /// one SYN too many does not matter.
    #[inline(always)]
    const fn was_idle(&self, last: u64, now: u64) -> bool {
        /// Power of two of the number of intervals.
        const SHIFT: u32 = 3;
        last < now && (now - last) >> SHIFT >= self.interval
    }

    /// Grants one SYN if the limit allows it, and stores the new time in `last`. Returns false if it does not. `add` adds to
    /// a word, in one step for all CPUs.
    #[inline(always)]
    pub fn spend(&self, last: &Cell<u64>, now: u64, add: impl Fn(&Cell<u64>, u64)) -> bool {
        self.spend_while(last, now, add, || true)
    }

    /// Grants one SYN as [`spend`](Self::spend) does. If `last` is no longer the caller's, as `is_mine` tells, it is left
    /// as it is, and the SYN is granted.
    ///
    /// A CPU adds its SYN to the word and then reads it. It takes the SYN back if others have added theirs, so that the
    /// limit does not allow for it any more. So CPUs that spend at the same instant are never granted too many, and
    /// sometimes one too few. Linux 5.10 has this addition, and no compare-and-swap.
    ///
    /// After a pause, a plain store saves the atomic addition. If several CPUs do so at the same instant, all are granted
    /// one SYN, and one is counted.
    #[inline(always)]
    pub(crate) fn spend_while(
        &self,
        last: &Cell<u64>,
        now: u64,
        add: impl Fn(&Cell<u64>, u64),
        is_mine: impl Fn() -> bool,
    ) -> bool {
        let before = last.get();
        let Some(next) = self.grant(before, now) else { return false };
        if self.was_idle(before, now) {
            // The same for any limit. So it harms nobody who has taken the word over meanwhile.
            last.set(now);
            return true;
        }
        let more = next - before;
        add(last, more);
        let is_mine = is_mine();
        if is_mine && last.get() <= now + self.tolerance {
            return true;
        }
        add(last, more.wrapping_neg());
        !is_mine
    }
}
