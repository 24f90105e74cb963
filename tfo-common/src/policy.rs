//! What may be done to the SYNs of a service, and what protects it.
//!
//! A protection is a [`Guard`]. It concerns some classes of SYN, trips over what the program knows or remembers, and then
//! either acts or, in a dry run, is only counted. The first that acts decides; [`clamp`](Guard::Clamp) goes with any verdict
//! by which the kernel takes the data.

use core::cell::Cell;

use crate::{
    class::Class,
    segment::{Addresses, Family},
    verdict::{Mode, Verdict},
};

named! {
    /// The protections, in the order in which they are asked.
    pub enum Guard {
        /// Keeps Fast Open from the stack: the kill switch.
        Hide = "hide",
        /// Keeps it from the stack where a SYN comes again whose connection is over: a replay.
        Once = "once",
        /// Keeps it from the stack where a source has had more than its share of the listener's queue.
        Fair = "fair",
        /// Lets the kernel send an unproved source no more than a multiple of what came from it.
        Clamp = "clamp",
        /// Keeps cookies that no key made from the stack once there are too many.
        Shed = "shed",
    }
}

/// Places for guards in counters and in [`Policy::flags`].
pub const GUARD_SLOTS: usize = 8;
/// The prefixes of sources that can be hidden by order.
pub const HIDDEN: usize = 1 << 12;
/// The bits of a [`hidden_key`] before the address.
pub const FAMILY_BITS: u32 = 32;

/// A source, as the map of hidden sources knows it: the [`Family`] index, then the address as [`Addresses::source_v6`] has it. No
/// prefix of either family has sources of the other.
#[inline(always)]
pub const fn hidden_key(family: Family, [a0, a1, a2, a3]: [u32; 4]) -> [u32; 5] {
    [family as u32, a0, a1, a2, a3]
}

/// Seats in a [`Row`]: half a cache line.
pub const SEATS: usize = 2;

impl Guard {
    /// Whether it has to do with a SYN of `class`; `is_good` where the kernel would take its cookie.
    #[inline(always)]
    const fn concerns(self, class: Class, is_good: bool) -> bool {
        match self {
            Self::Hide => !matches!(class, Class::PlainSyn | Class::OptionIgnored),
            // Only a good cookie takes a place in the listener's queue or has its data served; what a forger sends in somebody
            // else's name is not to be held against that one.
            Self::Once | Self::Fair | Self::Clamp => is_good,
            Self::Shed => matches!(class, Class::CookieUnknown | Class::CookieBadLength),
        }
    }

    const fn bit(self) -> u64 {
        1 << self as u32
    }
}

/// What holds for a service. Every field is a word that is read alone: while user space writes it, a packet may be judged by
/// some fields of the old and some of the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Policy {
    /// `ACTS` and the rest.
    pub flags: u64,
    /// For how many jiffies after its end a connection's SYN is remembered.
    pub once: u64,
    /// How many bytes may be sent for each byte of data in a SYN.
    pub clamp: u64,
    /// What a source may have of the listener's queue.
    pub fair: Limit,
    /// What a source is to `fair`.
    pub fair_source: SourceMask,
    /// What there may be of unknown cookies in all.
    pub shed: Limit,
    /// What there may be of them from a source.
    pub shed_per_source: Limit,
    /// What a source is to `shed_per_source`.
    pub shed_source: SourceMask,
}

impl Policy {
    /// Where in `flags` the guards stand that act, by index.
    const ACTS: u32 = 0;
    /// Where those stand that are only counted.
    const COUNTS: u32 = 8;
    /// Cookies may be translated.
    pub const TRANSLATES: u64 = 1 << 16;
    /// The service is hidden by order of `tfo hide`, whatever else is configured.
    pub const HIDDEN_SERVICE: u64 = 1 << 17;
    /// All are.
    pub const HIDDEN_ALL: u64 = 1 << 22;
    const HIDDEN: u64 = Self::HIDDEN_SERVICE | Self::HIDDEN_ALL;
    /// Some sources are hidden by such an order.
    pub const HIDES_SOURCES: u64 = 1 << 18;
    /// What is shed is dropped.
    pub const DROPS: u64 = 1 << 19;
    /// There is a limit for all unknown cookies.
    pub const SHEDS_ALL: u64 = 1 << 20;
    /// There is one for those of a source.
    pub const SHEDS_SOURCES: u64 = 1 << 21;

    /// That of `mode`, without protections.
    #[inline(always)]
    pub const fn of_mode(mode: Mode) -> Self {
        let flags = match mode {
            Mode::Observe => 0,
            Mode::Accelerate | Mode::Shield => Self::TRANSLATES,
        };
        const OFF: Limit = Limit { interval: 0, tolerance: 0 };
        const ONE: SourceMask = SourceMask { v4: 0, v6: [0; 2] };
        Self {
            flags,
            once: 0,
            clamp: 0,
            fair: OFF,
            fair_source: ONE,
            shed: OFF,
            shed_per_source: OFF,
            shed_source: ONE,
        }
    }

    /// With `guard`, which acts or is only counted.
    pub const fn with(mut self, guard: Guard, acts: bool) -> Self {
        self.flags |= guard.bit() << if acts { Self::ACTS } else { Self::COUNTS };
        self
    }

    /// Whether `flag`, or any of several, is set.
    #[inline(always)]
    pub const fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// How large the window of a SYN with so many bytes of data may be.
    #[inline(always)]
    pub const fn most(&self, data_len: u32) -> u16 {
        if self.allows(u16::MAX, data_len) { u16::MAX } else { (self.clamp * data_len as u64) as u16 }
    }

    /// Whether `window` is no larger.
    #[inline(always)]
    pub const fn allows(&self, window: u16, data_len: u32) -> bool {
        window as u64 <= self.clamp * data_len as u64
    }

    /// Whether `guard` has anything to say.
    #[inline(always)]
    const fn asks(&self, guard: Guard) -> bool {
        let ordered = matches!(guard, Guard::Hide) && self.has(Self::HIDDEN | Self::HIDES_SOURCES);
        ordered || self.acts(guard) || self.counts(guard)
    }

    #[inline(always)]
    const fn acts(&self, guard: Guard) -> bool {
        self.flags >> Self::ACTS & guard.bit() != 0
    }

    #[inline(always)]
    const fn counts(&self, guard: Guard) -> bool {
        self.flags >> Self::COUNTS & guard.bit() != 0
    }
}

/// What is done with a SYN, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// Verdict on the SYN.
    pub verdict: Verdict,
    /// Whether its window is cut.
    pub clamps: bool,
    /// The guard that decided.
    pub guard: Option<Guard>,
    /// The guards that would have acted, if this were no dry run: a bit for each, by [`Guard`] index.
    pub would: u8,
}

impl Decision {
    /// Nothing, by no guard.
    pub const PASS: Self = Self::by_nobody(Verdict::Pass);

    #[inline(always)]
    const fn by_nobody(verdict: Verdict) -> Self {
        Self { verdict, clamps: false, guard: None, would: 0 }
    }

    /// Whether the SYN goes on as it came.
    #[inline(always)]
    pub const fn changes_nothing(self) -> bool {
        matches!(self.verdict, Verdict::Pass) && !self.clamps
    }

    /// Whether there is nothing more to decide.
    #[inline(always)]
    const fn is_last(self) -> bool {
        matches!(self.verdict, Verdict::Hide | Verdict::Drop)
    }
}

/// What [`decide`] asks of the packet at hand.
pub trait Facts {
    /// Whether the kernel holds a key to translate cookies into, as far as that is confirmed. It is asked once for each retired cookie
    /// that may be translated, and of no other SYN.
    fn has_translation(&self) -> bool;

    /// Whether `guard` has a reason to act; of [`Guard::Hide`], whether the source is one that is to be hidden. [`Guard::Shed`] has none
    /// while the keys are not confirmed: which cookies are unknown is not known then.
    fn trips(&mut self, guard: Guard) -> bool;
}

/// Whether the kernel holds a key to translate cookies into, where there are no guards.
#[derive(Clone, Copy, Debug)]
pub struct Unguarded(pub bool);

impl Facts for Unguarded {
    #[inline(always)]
    fn has_translation(&self) -> bool {
        self.0
    }

    #[inline(always)]
    fn trips(&mut self, _guard: Guard) -> bool {
        false
    }
}

/// What is to be done with a SYN of `class` under `policy`. The guards are asked in their order, and only where it matters.
///
/// An invalid cookie is legal: the kernel answers it with a full handshake and a fresh cookie.
#[inline(always)]
pub fn decide(policy: &Policy, class: Class, mut facts: impl Facts) -> Decision {
    let translates =
        matches!(class, Class::CookieRetired) && policy.has(Policy::TRANSLATES) && facts.has_translation();
    let is_good = matches!(class, Class::CookieCurrent | Class::CookieBackup) || translates;
    let verdict = if translates { Verdict::Rewrite } else { Verdict::Pass };
    let mut decision = Decision::by_nobody(verdict);
    // Each a copy of its own, in which the guard is a constant: LLVM leaves a loop one.
    let mut ask = |guard: Guard| {
        if !decision.is_last() && policy.asks(guard) && guard.concerns(class, is_good) {
            decision = judge(policy, guard, decision, &mut facts);
        }
    };
    ask(Guard::Hide);
    ask(Guard::Once);
    ask(Guard::Fair);
    ask(Guard::Clamp);
    ask(Guard::Shed);
    decision
}

/// Decides quickly on a cookie of one of the kernel's keys, and gives the decision to `then`. Returns false where a
/// guard would stop the SYN: nothing is spent, and [`decide`] is to be called.
#[inline(always)]
pub fn decide_good(policy: &Policy, mut facts: impl Facts, then: impl Fn(Decision)) -> bool {
    let mut minds = |guard| policy.asks(guard) && facts.trips(guard);
    if policy.asks(Guard::Hide) || minds(Guard::Once) {
        return false;
    }
    let clamps = minds(Guard::Clamp);
    // The one that takes something comes last.
    if minds(Guard::Fair) {
        return false;
    }
    // A copy for each decision, in which it is a constant.
    if !clamps {
        then(Decision::PASS);
    } else if policy.acts(Guard::Clamp) {
        then(Decision { clamps: true, guard: Some(Guard::Clamp), ..Decision::PASS });
    } else {
        then(Decision { would: Guard::Clamp.bit() as u8, ..Decision::PASS });
    }
    true
}

/// Applies `guard` to `decision`.
#[inline(always)]
fn judge(policy: &Policy, guard: Guard, decision: Decision, facts: &mut impl Facts) -> Decision {
    let acts = match guard {
        // What is ordered is no dry run.
        Guard::Hide => {
            policy.acts(guard)
                || policy.has(Policy::HIDDEN)
                || policy.has(Policy::HIDES_SOURCES) && facts.trips(guard)
        }
        _ if facts.trips(guard) => policy.acts(guard),
        Guard::Once | Guard::Fair | Guard::Clamp | Guard::Shed => return decision,
    };
    match guard {
        _ if !acts && policy.counts(guard) => {
            Decision { would: decision.would | guard.bit() as u8, ..decision }
        }
        _ if !acts => decision,
        Guard::Clamp => Decision { clamps: true, guard: Some(guard), ..decision },
        Guard::Shed if policy.has(Policy::DROPS) => {
            Decision { verdict: Verdict::Drop, guard: Some(guard), ..decision }
        }
        Guard::Hide | Guard::Once | Guard::Fair | Guard::Shed => {
            Decision { verdict: Verdict::Hide, guard: Some(guard), ..decision }
        }
    }
}

/// How much there may be of something: one each `interval`, and some at once. The generic cell rate algorithm (ITU-T I.371), in
/// which all that is remembered of a source is one time. Times are in [`TICKS`] of a jiffy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Limit {
    /// The time for one.
    pub interval: u64,
    /// Time that it may run ahead: `interval` × (burst − 1).
    pub tolerance: u64,
}

/// Parts of a jiffy, so that there may be many in one.
pub const TICKS: u64 = 1 << 20;

impl Limit {
    /// `count` in `jiffies`, of which `burst` may come at once. Neither is 0.
    pub const fn new(count: u64, jiffies: u64, burst: u64) -> Self {
        let interval = jiffies.saturating_mul(TICKS) / count;
        let interval = if interval == 0 { 1 } else { interval };
        Self { interval, tolerance: interval.saturating_mul(burst - 1) }
    }

    /// Smallest burst with which `count` in `jiffies` are granted in full to whoever asks for as many. Neither is 0.
    ///
    /// Time moves by whole jiffies here. In one of them no more than `burst` can be granted, so there must be at least as many as are due
    /// in a jiffy, rounded up. Where what is due is no whole number, what is left over at the end of a jiffy has to be kept for the next
    /// one besides, and the burst must be large enough for the largest rest. With `count / jiffies` = p / q in lowest terms, times are
    /// multiples of a p-th of a jiffy, of which `interval` has q, and `tolerance` must not be less than p - 1.
    pub const fn least_burst(count: u64, jiffies: u64) -> u64 {
        let (mut divisor, mut rest) = (count, jiffies);
        while rest != 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        (count / divisor - 1).div_ceil(jiffies / divisor) + 1
    }

    /// Time to remember after one more at `now`, when `until` was remembered; `None` where that exceeds the limit.
    #[inline(always)]
    pub const fn grant(&self, until: u64, now: u64) -> Option<u64> {
        if until <= now {
            Some(now + self.interval)
        } else if until - now <= self.tolerance {
            Some(until + self.interval)
        } else {
            None
        }
    }

    /// Takes one if the limit allows it, and stores the new time in `until`. CPUs that ask at the same instant may
    /// all be granted one.
    #[inline(always)]
    pub fn spend(&self, until: &Cell<u64>, now: u64) -> bool {
        let next = self.grant(until.get(), now);
        if let Some(next) = next {
            until.set(next);
        }
        next.is_some()
    }
}

/// Which bits of an address make a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SourceMask {
    /// Of the first half of an IPv4 [`Addresses::words`]' first word.
    pub v4: u64,
    /// Of an IPv6 address' two words.
    pub v6: [u64; 2],
}

impl SourceMask {
    /// The first so many bits of an IPv4 and of an IPv6 address.
    pub fn new(v4: u8, v6: u8) -> Self {
        let bits = |len: u8| u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        let v6 = bits(v6).to_be_bytes();
        let (words, _) = v6.as_chunks();
        let v4 = (bits(v4) >> 96) as u32;
        Self {
            v4: u64::from(u32::from_le_bytes(v4.to_be_bytes())),
            v6: core::array::from_fn(|i| u64::from_le_bytes(words[i])),
        }
    }

    /// What stands for the source of `addresses` at `service`, in a table whose `seed` nobody else knows.
    #[inline(always)]
    pub const fn tag(&self, addresses: &Addresses, service: u32, seed: u64) -> Tag {
        let ([first, second, ..], service) = (addresses.words, service as u64);
        match addresses.family {
            Family::Ipv4 => Tag::of(seed, [first & self.v4 | service << 32]),
            Family::Ipv6 => Tag::of(seed, [first & self.v6[0], second & self.v6[1], service]),
        }
    }
}

/// Hash that identifies an entry in a table of [`Row`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// That of `words`, in a table whose `seed` nobody else knows. If one word is another, the tag is; two may collide, once in 2^64.
    #[inline(always)]
    pub const fn of<const N: usize>(seed: u64, words: [u64; N]) -> Self {
        // SplitMix64's finalizer, which takes in a word at each turn of its first half, up to its second multiplication: the upper half
        // is mixed well by then, and says the row.
        let (mut tag, mut at) = (seed, 0);
        while at < N {
            tag = (tag ^ words[at]).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            tag ^= tag >> 32;
            at += 1;
        }
        Self(tag.wrapping_mul(0x94d0_49bb_1331_11eb))
    }

    /// Its row, of those up to the `last`, whose number is one less than a power of two.
    #[inline(always)]
    pub const fn row(self, last: u32) -> u32 {
        (self.0 >> 32) as u32 & last
    }
}

/// One of the places in a [`Row`].
#[derive(Debug, Default)]
#[repr(C)]
pub struct Seat {
    tag: Cell<u64>,
    /// What is remembered: a time, or one and something besides in its low bits.
    pub value: Cell<u64>,
}

/// The places that a [`Tag`] may have. A table of rows costs a fraction of what a map of the kernel's does, for it is an array,
/// and what is seldom right here, that two CPUs write at once, does no harm: something is then remembered twice or not at all.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Row {
    seats: [Seat; SEATS],
}

impl Row {
    /// The seat of `tag`.
    #[inline(always)]
    pub fn find(&self, tag: Tag) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.tag.get() == tag.0)
    }

    /// Whether `tag` may have one more under `limit`, at `now`.
    #[inline(always)]
    pub fn spend(&self, tag: Tag, limit: &Limit, now: u64) -> Spent {
        match self.find(tag) {
            Some(seat) if limit.spend(&seat.value, now) => Spent::Granted,
            Some(_) => Spent::Denied,
            // Somebody who had used up his share, and would not now.
            None if self.seat(tag, now + limit.interval) > now => Spent::GrantedForgetting,
            None => Spent::Granted,
        }
    }

    /// Puts `tag` and `value` into the seat with the smallest value, and returns the value that was replaced; 0 for a
    /// free seat.
    #[inline(always)]
    pub fn seat(&self, tag: Tag, value: u64) -> u64 {
        let [first, rest @ ..] = &self.seats;
        let (mut oldest, mut least) = (first, first.value.get());
        for seat in rest {
            let value = seat.value.get();
            if value < least {
                (oldest, least) = (seat, value);
            }
        }
        oldest.tag.set(tag.0);
        oldest.value.set(value);
        least
    }
}

/// What [`Row::spend`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// There was one left.
    Granted,
    /// There was, and what somebody else had used has been forgotten for it.
    GrantedForgetting,
    /// There was none.
    Denied,
}

/// What is remembered of a connection's SYN: when, and whether the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered(u64);

impl Remembered {
    const OVER: u64 = 1;

    /// Of a connection that began or ended at `jiffies`.
    #[inline(always)]
    pub const fn new(jiffies: u64, is_over: bool) -> Self {
        Self(jiffies << 1 | is_over as u64)
    }

    /// As it stands in a seat, and back.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// What stands in a seat.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Whether a replay could be missed now that this is forgotten.
    #[inline(always)]
    pub const fn is_missed(self, now: u64, jiffies: u64) -> bool {
        self.0 != 0 && (self.0 & Self::OVER == 0 || self.is_replay(now, jiffies))
    }

    /// Whether the same SYN once more is a replay at `now`, if it is remembered for so many jiffies. While its connection lives
    /// it is not: then it is a retransmission, or one that the kernel can't tell from it, and it serves nothing twice.
    #[inline(always)]
    pub const fn is_replay(self, now: u64, jiffies: u64) -> bool {
        self.0 & Self::OVER != 0 && now.wrapping_sub(self.0 >> 1) < jiffies
    }
}

/// What stands for one SYN: its addresses, and the first eight bytes of its TCP header, which are its ports and its sequence number. The
/// cookie is the addresses' and the key's.
#[inline(always)]
pub const fn syn_tag(addresses: &Addresses, tcp: [u8; 8], seed: u64) -> Tag {
    let ([w0, w1, w2, w3], tcp) = (addresses.words, u64::from_le_bytes(tcp));
    match addresses.family {
        Family::Ipv4 => Tag::of(seed, [tcp, w0]),
        Family::Ipv6 => Tag::of(seed, [tcp, w0, w1, w2, w3]),
    }
}
