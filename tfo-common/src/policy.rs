//! Policies of services, and the decision on a SYN.
//!
//! A protection is a [`Guard`]. A guard concerns some classes of SYN. If what the program knows or remembers gives it a
//! reason, it acts or, in a dry run, is only counted. The first guard that acts decides. [`clamp`](Guard::Clamp) goes
//! with any verdict by which the kernel takes the data.

use core::cell::Cell;

use crate::{
    class::Class,
    segment::{Addresses, Family},
    verdict::{Mode, Verdict},
};

named! {
    /// Guards of a service, in the order in which they are asked.
    pub enum Guard {
        /// Hides Fast Open from the stack: the kill switch.
        Hide = "hide",
        /// Hides Fast Open from the stack for a replay: a SYN that comes again after the end of its connection.
        Once = "once",
        /// Hides Fast Open from the stack for a source that has had more than its share of the listener's queue.
        Fair = "fair",
        /// Lets the kernel send an unproved source no more than a multiple of what came from it.
        Clamp = "clamp",
        /// Keeps cookies that no known key made from the stack once there are too many.
        Shed = "shed",
        /// Answers a SYN in the kernel's place, so that it takes no place in the listener's SYN queue.
        Answer = "answer",
    }
}

/// Number of places for guards in counters and in [`Policy::flags`].
pub const GUARD_SLOTS: usize = 8;
/// Number of source prefixes that can be hidden by order.
pub const HIDDEN: usize = 1 << 12;
/// Number of bits of a [`hidden_key`] before the address.
pub const FAMILY_BITS: u32 = 32;

/// Returns the key of a source in the map of hidden sources: the [`Family`] index, then the address as in
/// [`Addresses::source_v6`]. A prefix of one family never matches a source of the other.
#[inline(always)]
pub const fn hidden_key(family: Family, [a0, a1, a2, a3]: [u32; 4]) -> [u32; 5] {
    [family as u32, a0, a1, a2, a3]
}

/// Number of seats in a [`Row`]: half a cache line.
pub const SEATS: usize = 2;

impl Guard {
    const fn bit(self) -> u64 {
        1 << self as u32
    }
}

/// Policy of a service. In maps that a program uses, only [`flags`](Self::flags) changes: one word, for orders of `tfo
/// hide`. Any other change goes into new maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Policy {
    /// Bits for guards at `ACTS` and `COUNTS`, and the flags below.
    pub flags: u64,
    /// Number of jiffies after its end for which a connection's SYN is remembered.
    pub once: u64,
    /// Number of bytes that may be sent for each byte of data in a SYN.
    pub clamp: u64,
    /// Rate limit of a source for good cookies, which take places in the listener's queue.
    pub fair: Limit,
    /// Address bits that make a source for `fair`.
    pub fair_source: SourceMask,
    /// Rate limit of the service for all unknown cookies.
    pub shed: Limit,
    /// Rate limit of a source for unknown cookies.
    pub shed_per_source: Limit,
    /// Address bits that make a source for `shed_per_source`.
    pub shed_source: SourceMask,
}

impl Policy {
    /// Position in `flags` of the bits for guards that act, by guard index.
    const ACTS: u32 = 0;
    /// Position in `flags` of the bits for guards that are only counted, by guard index.
    const COUNTS: u32 = 8;
    /// Flag that cookies may be translated.
    pub const TRANSLATES: u64 = 1 << 16;
    /// Flag that the service is hidden by order of `tfo hide`, whatever else is configured.
    pub const HIDDEN_SERVICE: u64 = 1 << 17;
    /// Flag that all services are hidden by order.
    pub const HIDDEN_ALL: u64 = 1 << 22;
    const HIDDEN: u64 = Self::HIDDEN_SERVICE | Self::HIDDEN_ALL;
    /// Flag that some sources are hidden by order.
    pub const HIDES_SOURCES: u64 = 1 << 18;
    /// Flag that [`Guard::Shed`] drops SYNs instead of hiding their option.
    pub const DROPS: u64 = 1 << 19;
    /// Flag that [`shed`](Self::shed) is in force.
    pub const SHEDS_ALL: u64 = 1 << 20;
    /// Flag that [`shed_per_source`](Self::shed_per_source) is in force.
    pub const SHEDS_SOURCES: u64 = 1 << 21;

    /// Flag that [`Guard::Shed`] also judges SYNs that are not for a listener of this host.
    pub const SHEDS_OTHERS: u64 = 1 << 23;
    /// Flag that [`Guard::Shed`] also judges SYNs to ports where a listener has keys of its own.
    pub const SHEDS_OWN_KEYS: u64 = 1 << 25;
    /// Flag that [`Guard::Answer`] is engaged: by the controller when a flood has come, or for good.
    pub const ANSWERS: u64 = 1 << 24;
    /// Flag that frames that may bring a SYN past all guards are dropped ([`unfollowed`](crate::parse::unfollowed())).
    pub const DROPS_UNFOLLOWED: u64 = 1 << 28;
    /// Flag that [`Guard::Once`] also compares the data of SYNs.
    pub const COMPARES_DATA: u64 = 1 << 29;

    /// Returns the policy of `mode`, without protections.
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

    /// Adds `guard`, which acts if `acts`, and else is only counted.
    pub const fn with(mut self, guard: Guard, acts: bool) -> Self {
        self.flags |= guard.bit() << if acts { Self::ACTS } else { Self::COUNTS };
        self
    }

    /// Whether any bit of `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Returns the largest window allowed to a SYN with `data_len` bytes of data.
    #[inline(always)]
    pub const fn max_window(&self, data_len: u32) -> u16 {
        if self.allows_window(u16::MAX, data_len) { u16::MAX } else { (self.clamp * data_len as u64) as u16 }
    }

    /// Whether `window` is allowed to a SYN with `data_len` bytes of data.
    #[inline(always)]
    pub const fn allows_window(&self, window: u16, data_len: u32) -> bool {
        window as u64 <= self.clamp * data_len as u64
    }

    /// Whether `guard` acts, is counted, or has an order to carry out.
    #[inline(always)]
    const fn is_on(&self, guard: Guard) -> bool {
        let is_set = self.acts(guard) || self.counts(guard);
        match guard {
            Guard::Hide => is_set || self.has(Self::HIDDEN | Self::HIDES_SOURCES),
            Guard::Answer => is_set && self.has(Self::ANSWERS),
            Guard::Once | Guard::Fair | Guard::Clamp | Guard::Shed => is_set,
        }
    }

    /// Whether [`Guard::Hide`] acts on every source, or is counted for every source.
    #[inline(always)]
    const fn hides_all(&self) -> bool {
        self.has(Self::HIDDEN) || self.acts(Guard::Hide) || self.counts(Guard::Hide)
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

/// Decision on a SYN, with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// Verdict on the SYN.
    pub verdict: Verdict,
    /// Whether the window is cut.
    pub clamps: bool,
    /// Guard that decided.
    pub guard: Option<Guard>,
    /// Bitmap of the guards that would have acted but for a dry run, by [`Guard`] index.
    pub would: u8,
}

impl Decision {
    /// Decision to pass a SYN as it came, made without a guard.
    pub const PASS: Self = Self::without_guard(Verdict::Pass);

    #[inline(always)]
    const fn without_guard(verdict: Verdict) -> Self {
        Self { verdict, clamps: false, guard: None, would: 0 }
    }

    /// Whether the SYN goes on as it came.
    #[inline(always)]
    pub const fn changes_nothing(self) -> bool {
        matches!(self.verdict, Verdict::Pass) && !self.clamps
    }

    /// Whether the verdict is final, so that no further guard but [`Guard::Answer`] is asked.
    #[inline(always)]
    const fn is_final(self) -> bool {
        matches!(self.verdict, Verdict::Hide | Verdict::Drop | Verdict::Answer)
    }
}

/// Facts about the packet at hand that [`decide`] asks for.
pub trait Facts {
    /// Whether the kernel is confirmed to hold a key to translate cookies into. [`decide`] asks once for each retired
    /// cookie that may be translated, and for no other SYN.
    fn has_translation(&self) -> bool;

    /// Whether an order may hide the source. If not, [`triggers`](Self::triggers) would find no order, either, and take
    /// longer.
    fn may_be_hidden(&self) -> bool;

    /// Whether the kernel serves the SYN without a good cookie: a listener on its port needs none, and it has data or a Fast
    /// Open option (`tcp_try_fastopen`).
    fn needs_no_cookie(&self) -> bool;

    /// Returns `decision`. The program hides it from the verifier, which would verify [`Guard::Shed`] anew for each decision of
    /// the guards before it.
    #[inline(always)]
    fn anew(&self, decision: Decision) -> Decision {
        decision
    }

    /// Checks whether `guard` has a reason to act. [`Guard::Fair`] and [`Guard::Shed`] count the SYN in their limits.
    ///
    /// For [`Guard::Hide`], the reason is an order that hides the source. [`Guard::Shed`] has no reason while the keys
    /// are not confirmed, since it can't tell then which cookies are unknown.
    fn triggers(&mut self, guard: Guard) -> bool;
}

/// Facts for a policy without guards. The field says whether the kernel holds a key to translate cookies into.
#[derive(Clone, Copy, Debug)]
pub struct WithoutGuards(pub bool);

impl Facts for WithoutGuards {
    #[inline(always)]
    fn has_translation(&self) -> bool {
        self.0
    }

    #[inline(always)]
    fn may_be_hidden(&self) -> bool {
        false
    }

    #[inline(always)]
    fn needs_no_cookie(&self) -> bool {
        false
    }

    #[inline(always)]
    fn triggers(&mut self, _guard: Guard) -> bool {
        false
    }
}

/// Guards that concern a SYN, before any has decided, and the verdict without them. It is a plain word, so that the slow
/// path can keep it in a map: the verifier then knows nothing of the class any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concern(u32);

impl Concern {
    /// Flag that the cookie is translated. The bits below are those of guards, by index.
    const TRANSLATES: u32 = 1 << GUARD_SLOTS;

    /// Returns the guards that concern a SYN of `class` under `policy`.
    ///
    /// Where no cookie is needed, a SYN of any class is judged as one with a good cookie. To hide its option does not keep
    /// the kernel from serving data there: see
    /// [`Description::drop_served`](crate::description::Description::drop_served).
    #[inline(always)]
    pub fn of(policy: &Policy, class: Class, facts: &impl Facts) -> Self {
        let translates = matches!(class, Class::CookieRetired)
            && policy.has(Policy::TRANSLATES)
            && facts.has_translation();
        let is_good = matches!(class, Class::CookieCurrent | Class::CookieBackup) || translates;
        let is_served = is_good || facts.needs_no_cookie();
        let mut word = if translates { Self::TRANSLATES } else { 0 };
        if is_served || class.has_option() {
            word |= bits(&[Guard::Hide]);
        }
        // Only a SYN that is served takes a place in the listener's queue or has its data served. A forger's SYN must not
        // count against the address that it claims.
        if is_served {
            word |= bits(&[Guard::Once, Guard::Fair, Guard::Clamp]);
        }
        if matches!(class, Class::CookieUnknown | Class::CookieBadLength) {
            word |= bits(&[Guard::Shed]);
        }
        if !is_good {
            word |= bits(&[Guard::Answer]);
        }
        Self(word)
    }

    /// Returns it as a word.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// Returns it for a word that [`word`](Self::word) has returned.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// Whether `guard` is asked after the decision `before` of the guards before it.
    #[inline(always)]
    const fn asks(self, guard: Guard, before: Decision) -> bool {
        let concerns = self.0 & guard.bit() as u32 != 0;
        match guard {
            // A hidden SYN is an ordinary one for the kernel, whatever cookie it came with.
            Guard::Answer => match before.verdict {
                Verdict::Drop => false,
                Verdict::Hide => true,
                Verdict::Pass | Verdict::Rewrite | Verdict::Answer => concerns,
            },
            Guard::Hide | Guard::Once | Guard::Fair | Guard::Clamp | Guard::Shed => {
                concerns && !before.is_final()
            }
        }
    }
}

/// Returns the bits of `guards`.
#[inline(always)]
const fn bits(guards: &[Guard]) -> u32 {
    let (mut bits, mut at) = (0, 0);
    while at < guards.len() {
        bits |= guards[at].bit() as u32;
        at += 1;
    }
    bits
}

/// Decides on a SYN of `class` under `policy`. Each guard is asked only if it can matter.
///
/// An invalid cookie is legal: the kernel answers it with a full handshake and a fresh cookie.
#[inline(always)]
pub fn decide(policy: &Policy, class: Class, facts: impl Facts) -> Decision {
    let concern = Concern::of(policy, class, &facts);
    decide_on(policy, concern, facts)
}

/// Decides as [`decide`] does on a SYN that concerns the guards in `concern`.
#[inline(always)]
pub fn decide_on(policy: &Policy, concern: Concern, mut facts: impl Facts) -> Decision {
    let translates = concern.0 & Concern::TRANSLATES != 0;
    let verdict = if translates { Verdict::Rewrite } else { Verdict::Pass };
    let mut decision = Decision::without_guard(verdict);
    // Each call is a copy in which the guard is a constant. LLVM would keep a loop as a loop.
    let mut apply = |guard: Guard| {
        if policy.is_on(guard) && concern.asks(guard, decision) {
            if matches!(guard, Guard::Shed) {
                decision = facts.anew(decision);
            }
            decision = judge(policy, guard, decision, &mut facts);
        }
    };
    apply(Guard::Hide);
    apply(Guard::Once);
    apply(Guard::Fair);
    apply(Guard::Clamp);
    apply(Guard::Shed);
    apply(Guard::Answer);
    decision
}

/// Decides quickly on a cookie of one of the kernel's keys, and gives the decision to `then`. Returns false if a guard
/// would stop the SYN: then no limit is touched, and the caller must call [`decide`].
#[inline(always)]
pub fn decide_good(policy: &Policy, mut facts: impl Facts, then: impl Fn(Decision)) -> bool {
    if policy.is_on(Guard::Hide) && (policy.hides_all() || facts.may_be_hidden()) {
        return false;
    }
    let mut triggers = |guard| policy.is_on(guard) && facts.triggers(guard);
    // Data is compared on the slow path.
    if policy.is_on(Guard::Once) && policy.has(Policy::COMPARES_DATA) || triggers(Guard::Once) {
        return false;
    }
    let clamps = triggers(Guard::Clamp);
    // Comes last, since it counts the SYN against a limit.
    if triggers(Guard::Fair) {
        return false;
    }
    // There is a copy of `then` for each decision, in which the decision is a constant.
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
        // An order acts even if the guard is in a dry run.
        Guard::Hide => {
            policy.acts(guard)
                || policy.has(Policy::HIDDEN)
                || policy.has(Policy::HIDES_SOURCES) && facts.triggers(guard)
        }
        // Whether the SYN can be answered is looked up later, when all else has been decided.
        Guard::Answer => policy.acts(guard),
        _ if facts.triggers(guard) => policy.acts(guard),
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
        // The guard that hides the cookie stays the reason.
        Guard::Answer => {
            let reason = match decision.guard {
                None => guard,
                Some(hiding) => hiding,
            };
            Decision { verdict: Verdict::Answer, guard: Some(reason), ..decision }
        }
        Guard::Hide | Guard::Once | Guard::Fair | Guard::Shed => {
            Decision { verdict: Verdict::Hide, guard: Some(guard), ..decision }
        }
    }
}

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
    fn spend_while(
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

/// Address bits that make a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SourceMask {
    /// Mask for an IPv4 source: the lower half of the first of [`Addresses::words`].
    pub v4: u64,
    /// Mask for an IPv6 source: the first two of [`Addresses::words`].
    pub v6: [u64; 2],
}

impl SourceMask {
    /// Returns the mask for the first `v4` bits of an IPv4 address, and the first `v6` bits of an IPv6 address.
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

    /// Returns the tag of the source of `addresses` at `service`, in a table with a secret seed: see [`Tag::of`].
    #[inline(always)]
    pub fn tag(&self, addresses: &Addresses, service: u32, seed: impl Fn(usize) -> u64) -> Tag {
        let ([first, second, ..], service) = (addresses.words, u64::from(service));
        match addresses.family {
            Family::Ipv4 => Tag::of(seed, [first & self.v4 | service << 32]),
            Family::Ipv6 => Tag::of(seed, [first & self.v6[0], second & self.v6[1], service]),
        }
    }
}

/// Number of words of a [`Seed`]: one for each word that a [`Tag`] is made of.
pub const SEED_WORDS: usize = 11;

/// Secret words of the [`Tag`]s in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub [u64; SEED_WORDS]);

impl Seed {
    /// Expands a random number (SplitMix64).
    pub const fn new(seed: u64) -> Self {
        let (mut words, mut state, mut at) = ([0; SEED_WORDS], seed, 0);
        while at < SEED_WORDS {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            words[at] = word ^ word >> 31;
            at += 1;
        }
        Self(words)
    }

    /// Returns a word. The index is below [`SEED_WORDS`].
    pub fn word(&self, at: usize) -> u64 {
        self.0[at]
    }
}

/// Hash that identifies an entry in a table of [`Row`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// Returns the tag of `words`, in a table with a secret seed: `seed` returns its word of an index below `N`.
    ///
    /// Any two different inputs have the same tag for one seed in 2^32, whatever their difference: the sum is NH, the hash
    /// of UMAC (RFC 4418, 5.2.2), which adds a secret to each half of a word and multiplies the halves. So nobody who does
    /// not know the seed can choose addresses that share an entry.
    #[inline(always)]
    pub fn of<const N: usize>(seed: impl Fn(usize) -> u64, words: [u64; N]) -> Self {
        let (mut sum, mut at) = (TagSum::default(), 0);
        while at < N {
            sum.add(words[at], seed(at));
            at += 1;
        }
        sum.tag()
    }

    /// Returns the tag as a word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Returns the tag of a word that [`word`](Self::word) has returned.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Returns the row of the tag. `last` is the index of the last row, one less than a power of two.
    #[inline(always)]
    pub const fn row(self, last: u32) -> u32 {
        (self.0 >> 32) as u32 & last
    }
}

/// Sum that becomes a [`Tag`]: see [`Tag::of`].
#[derive(Clone, Copy, Debug, Default)]
pub struct TagSum(u64);

impl TagSum {
    /// Adds `word`. Each word of a tag has a `secret` of its own.
    #[inline(always)]
    pub fn add(&mut self, word: u64, secret: u64) {
        let low = (word as u32).wrapping_add(secret as u32);
        let high = ((word >> 32) as u32).wrapping_add((secret >> 32) as u32);
        self.0 = self.0.wrapping_add(u64::from(low) * u64::from(high));
    }

    /// Returns the tag of the words.
    #[inline(always)]
    pub fn tag(self) -> Tag {
        // Reversible, so it adds no collision. It mixes the upper half, which selects the row.
        Tag((self.0 ^ self.0 >> 32).wrapping_mul(0x94d0_49bb_1331_11eb))
    }
}

/// Entry of a [`Row`].
#[derive(Debug, Default)]
#[repr(C)]
pub struct Seat {
    tag: Cell<u64>,
    /// Remembered time, with or without something else in its low bits.
    pub value: Cell<u64>,
}

/// Row of a hash table: the entries in which a [`Tag`] may be.
///
/// An array of rows costs a fraction of the kernel's hash map. Two CPUs seldom take a seat at once. If they do, something is
/// remembered twice or not at all, which does no harm.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Row {
    seats: [Seat; SEATS],
}

impl Row {
    /// Returns the seat of `tag`.
    #[inline(always)]
    pub fn find(&self, tag: Tag) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.tag.get() == tag.0)
    }

    /// Grants `tag` one SYN at `now` if `limit` allows it, and gives a new tag a seat. `add` is as for [`Limit::spend`]. A tag
    /// whose seat another one takes over meanwhile is forgotten, as by any eviction.
    #[inline(always)]
    pub fn spend(&self, tag: Tag, limit: &Limit, now: u64, add: impl Fn(&Cell<u64>, u64)) -> Spent {
        match self.find(tag) {
            Some(seat) if limit.spend_while(&seat.value, now, add, || seat.tag.get() == tag.0) => {
                Spent::Granted
            }
            Some(_) => Spent::Denied,
            // The tag that made room had used some of its limit.
            None if self.seat(tag, now) + limit.interval > now => Spent::GrantedEvicting,
            None => Spent::Granted,
        }
    }

    /// Frees the seat of `tag`, if it has one.
    #[inline(always)]
    pub fn forget(&self, tag: Tag) {
        if let Some(seat) = self.find(tag) {
            seat.tag.set(0);
            seat.value.set(0);
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

/// Result of [`Row::spend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// The SYN is granted.
    Granted,
    /// The SYN is granted, and another tag that had used some of its limit was forgotten for it.
    GrantedEvicting,
    /// The limit is used up.
    Denied,
}

/// Entry for the SYN of a connection that has ended: the time of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered(u64);

impl Remembered {
    /// Bit of every entry. tfo 0.1 also has entries without it, for connections that have not ended.
    const OVER: u64 = 1;

    /// Returns the entry of a connection that ended at `jiffies`.
    #[inline(always)]
    pub const fn new(jiffies: u64) -> Self {
        Self(jiffies << 1 | Self::OVER)
    }

    /// Returns the word that stands in a seat.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Returns the entry for the word of a seat.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Whether the same SYN is a replay if it comes at `now`. SYNs are remembered for `jiffies` after the end of their
    /// connection.
    #[inline(always)]
    pub const fn is_replay(self, now: u64, jiffies: u64) -> bool {
        self.0 & Self::OVER != 0 && now.wrapping_sub(self.0 >> 1) < jiffies
    }
}

/// Returns the tag of a SYN, made from its addresses and the first eight bytes of its TCP header: its ports and its
/// sequence number. The cookie is left out, since it follows from the addresses and the key.
#[inline(always)]
pub fn syn_tag(addresses: &Addresses, tcp: [u8; 8], seed: impl Fn(usize) -> u64) -> Tag {
    let ([w0, w1, w2, w3], tcp) = (addresses.words, u64::from_le_bytes(tcp));
    match addresses.family {
        Family::Ipv4 => Tag::of(seed, [tcp, w0]),
        Family::Ipv6 => Tag::of(seed, [tcp, w0, w1, w2, w3]),
    }
}
