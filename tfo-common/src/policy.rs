//! Policies of services, and the decision on a SYN.
//!
//! A protection is a [`Guard`]. A guard concerns some classes of SYN. If what the program knows or remembers gives it a
//! reason, it acts or, in a dry run, is only counted. The first guard that acts decides. [`clamp`](Guard::Clamp) goes
//! with any verdict by which the kernel takes the data.

use crate::{
    class::Class,
    limit::Limit,
    segment::Family,
    table::SourceMask,
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
/// [`Addresses::source_v6`](crate::segment::Addresses::source_v6). A prefix of one family never matches a source of the other.
#[inline(always)]
pub const fn hidden_key(family: Family, [a0, a1, a2, a3]: [u32; 4]) -> [u32; 5] {
    [family as u32, a0, a1, a2, a3]
}

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
    /// Tag of the service's portable cookies ([`ExpandedKey::portable`]); 0 if it has none. It is no secret.
    ///
    /// [`ExpandedKey::portable`]: crate::cookie::ExpandedKey::portable
    pub portable: u64,
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
            portable: 0,
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
    /// Decision to translate a cookie, made without a guard.
    pub const REWRITE: Self = Self::without_guard(Verdict::Rewrite);

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
    /// or portable cookie that may be translated, and for no other SYN.
    fn has_translation(&self) -> bool;

    /// Whether the cookie is a portable one, which the kernel takes only in translation.
    #[inline(always)]
    fn is_portable(&self) -> bool {
        false
    }

    /// Whether an order may hide the source. If not, [`triggers`](Self::triggers) would find no order, either, and take
    /// longer.
    fn may_be_hidden(&self) -> bool;

    /// Whether the kernel serves the SYN without a good cookie: a listener on its port needs none, and it has data or a Fast
    /// Open option (`tcp_try_fastopen`).
    fn needs_no_cookie(&self) -> bool;

    /// Whether the limit for all unknown cookies is the only one that [`Guard::Shed`] may hold against the SYN, which is for a
    /// listener of this host.
    fn is_one_of_all(&self) -> bool {
        false
    }

    /// Counts the SYN against that limit. Returns what [`triggers`](Self::triggers) does for [`Guard::Shed`].
    fn is_one_too_many(&mut self) -> bool {
        false
    }

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
        let is_portable = facts.is_portable();
        let translates = (matches!(class, Class::CookieRetired) || is_portable)
            && policy.has(Policy::TRANSLATES)
            && facts.has_translation();
        let is_kernels = matches!(class, Class::CookieCurrent | Class::CookieBackup) && !is_portable;
        let is_good = is_kernels || translates;
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
    let mut ask = |guard: Guard| {
        if policy.is_on(guard) && concern.asks(guard, decision) {
            if matches!(guard, Guard::Shed) {
                decision = facts.anew(decision);
            }
            decision = judge(policy, guard, decision, &mut facts);
        }
    };
    ask(Guard::Hide);
    ask(Guard::Once);
    ask(Guard::Fair);
    ask(Guard::Clamp);
    ask(Guard::Shed);
    ask(Guard::Answer);
    decision
}

/// Decides quickly on a cookie of one of the kernel's keys, and gives the decision to `then`. Returns false if a guard
/// would stop the SYN: then no limit is touched, and the caller must call [`decide`].
///
/// The caller has made sure that a portable cookie can be translated.
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
    let unguarded = if facts.is_portable() { Decision::REWRITE } else { Decision::PASS };
    // There is a copy of `then` for each decision, in which the decision is a constant.
    if !clamps {
        then(unguarded);
    } else if policy.acts(Guard::Clamp) {
        then(Decision { clamps: true, guard: Some(Guard::Clamp), ..unguarded });
    } else {
        then(Decision { would: Guard::Clamp.bit() as u8, ..unguarded });
    }
    true
}

/// Decides quickly on a SYN of `class` that has no good cookie and goes to a listener that needs one. Returns `None` where
/// that takes more than a look: then no limit is touched, and the caller must call [`decide`].
#[inline(always)]
pub fn decide_refused(policy: &Policy, class: Class, mut facts: impl Facts) -> Option<Decision> {
    let asks_shed = match class {
        Class::CookieRequest => false,
        Class::CookieUnknown | Class::CookieBadLength => policy.is_on(Guard::Shed),
        // The kernel serves their data, or a cookie may be translated.
        Class::PlainSyn
        | Class::OptionIgnored
        | Class::CookieCurrent
        | Class::CookieBackup
        | Class::CookieRetired => return None,
    };
    let may_be_hidden = policy.is_on(Guard::Hide) && (policy.hides_all() || facts.may_be_hidden());
    if may_be_hidden || policy.is_on(Guard::Answer) || asks_shed && !facts.is_one_of_all() {
        return None;
    }
    let is_shed = asks_shed && facts.is_one_too_many();
    Some(if is_shed {
        apply(policy, Guard::Shed, policy.acts(Guard::Shed), Decision::PASS)
    } else {
        Decision::PASS
    })
}

/// Applies `guard` to `decision`, if it has a reason.
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
    apply(policy, guard, acts, decision)
}

/// Applies `guard`, which has a reason to act, to `decision`. Without `acts` it is only counted, if it is in a dry run.
#[inline(always)]
fn apply(policy: &Policy, guard: Guard, acts: bool, decision: Decision) -> Decision {
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
