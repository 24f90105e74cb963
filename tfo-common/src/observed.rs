//! What the programs remember and report besides counters: who sends what, what has become of it, and events.

use crate::{
    class::Class,
    keyring::Confirmed,
    policy::Guard,
    sample::{Budget, EVENT_BUDGET},
    segment::{Addresses, Family},
    verdict::Verdict,
};

/// Places in [`Outcomes::rtt_saved`]: up to half an hour, in microseconds.
pub const RTT_BUCKETS: usize = 32;
/// The first bytes of a frame that an event has.
pub const HEAD_LEN: usize = 128;
/// The prefixes of sources that are remembered; the ones not seen for longest make room.
pub const PREFIXES: usize = 1 << 14;
/// The sources that are remembered of a prefix.
pub const LATELY: usize = 8;
/// The SYNs of which it is remembered that their cookie is good, until their connection has come or not.
pub const PENDING: usize = 1 << 14;
/// The bytes of events that wait for the controller: a power of two, and whole pages.
pub const EVENT_BYTES: usize = 1 << 20;

/// What became of the connections to one service, in the whole network namespace. Several CPUs add to it at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Outcomes {
    /// Fast Open children that the kernel made: their data went to the application without waiting.
    pub accepted: u64,
    /// SYNs with a cookie that the kernel should have taken, and which it answered with an ordinary handshake.
    pub refused: u64,
    /// Number of refused SYNs without an event, because of the rate or a full ring.
    pub untold: u64,
    /// The jiffy of the last event, and how many there were in it.
    pub told: [u64; 2],
    /// SYNs that the guard against replays forgot before their time, to make room for others.
    pub replays_forgotten: u64,
    /// The round trips that accepted connections did not wait for, by [`rtt_bucket`].
    pub rtt_saved: [RttBucket; RTT_BUCKETS],
}

impl Outcomes {
    /// No outcomes.
    pub const EMPTY: Self = Self {
        accepted: 0,
        refused: 0,
        untold: 0,
        told: [0; 2],
        replays_forgotten: 0,
        rtt_saved: [RttBucket { connections: 0, us: 0 }; RTT_BUCKETS],
    };

    /// Adds what became of other connections.
    pub fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.untold += other.untold;
        self.replays_forgotten += other.replays_forgotten;
        for (sum, bucket) in self.rtt_saved.iter_mut().zip(&other.rtt_saved) {
            sum.connections += bucket.connections;
            sum.us += bucket.us;
        }
    }

    /// Whether there may be one more event in this jiffy; if so, it is counted. Where two CPUs ask at once, both may get the
    /// same answer.
    #[inline(always)]
    pub const fn may_tell(told: [u64; 2], jiffies: u64) -> Option<[u64; 2]> {
        let [jiffy, count] = told;
        if jiffy != jiffies {
            Some([jiffies, 1])
        } else if count < EVENT_BUDGET {
            Some([jiffy, count + 1])
        } else {
            None
        }
    }
}

/// Round trips of similar length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RttBucket {
    /// How many there were.
    pub connections: u64,
    /// Their sum, in microseconds.
    pub us: u64,
}

/// The place of a round trip of `us` microseconds: in place `n` it is below 2^n, and not below half of that.
#[inline(always)]
pub const fn rtt_bucket(us: u32) -> usize {
    // Without the count of leading zeros, which is a loop or a call on BPF.
    let mut bucket = 0;
    let mut step = 0;
    while step < RTT_BUCKETS - 1 {
        bucket += (us >> step != 0) as usize;
        step += 1;
    }
    bucket
}

/// A TCP connection, as its client's packets have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Connection {
    /// [`Addresses::words`].
    pub words: [u64; 4],
    /// The first four bytes of the TCP header, as they stand in memory: source and destination port.
    pub ports: u32,
    /// [`Family`] index.
    pub family: u32,
}

impl Connection {
    /// That of a frame which could not be parsed.
    pub const NONE: Self = Self { words: [0; 4], ports: 0, family: 0 };

    /// The connection from and to `addresses`, with the first four bytes of its TCP header.
    #[inline(always)]
    pub const fn new(addresses: &Addresses, ports: [u8; 4]) -> Self {
        Self {
            words: addresses.words,
            ports: u32::from_ne_bytes(ports),
            family: addresses.family.index() as u32,
        }
    }

    /// The source and the destination port.
    pub const fn ports(&self) -> [u16; 2] {
        let [s0, s1, d0, d1] = self.ports.to_ne_bytes();
        [u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])]
    }

    /// The addresses.
    pub fn addresses(&self) -> Addresses {
        let family = if self.family == Family::Ipv4.index() as u32 { Family::Ipv4 } else { Family::Ipv6 };
        Addresses { family, words: self.words }
    }
}

/// A SYN with a good cookie that has not become a connection yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pending {
    /// For how many SYNs it stands; 0 once it has become a Fast Open child.
    pub weight: u64,
    /// [`Class`] index.
    pub class: u64,
}

/// The network that a source is in: of an IPv4 address the first three bytes, of an IPv6 address the first eight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Prefix {
    /// Those bytes, in the order of a little-endian word; zeros behind them.
    pub bytes: u64,
    /// [`Family`] index.
    pub family: u64,
}

impl Prefix {
    /// The prefix of the source of `connection`.
    #[inline(always)]
    pub const fn of(connection: &Connection) -> Self {
        const V4: u64 = 0x00ff_ffff;
        let is_v4 = connection.family == Family::Ipv4.index() as u32;
        let bytes = if is_v4 { connection.words[0] & V4 } else { connection.words[0] };
        Self { bytes, family: connection.family as u64 }
    }
}

/// The Fast Open SYNs of a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixTally {
    /// Those that asked for a cookie.
    pub requests: u64,
    /// Those with a cookie of a known key.
    pub valid: u64,
    /// Those with another one.
    pub unknown: u64,
    /// Of IPv6, the last words of some sources that asked for a cookie or had a good one, as in [`Addresses::words`].
    pub lately: [u64; LATELY],
    /// How many were put there.
    pub seen: u64,
}

impl PrefixTally {
    /// Of a prefix that has sent none yet.
    pub const NEW: Self = Self { requests: 0, valid: 0, unknown: 0, lately: [0; LATELY], seen: 0 };

    /// Adds `weight` SYNs of `class`, of which one is that of `connection`.
    #[inline(always)]
    pub fn add(&mut self, class: Class, weight: u64, connection: &Connection) {
        match class {
            Class::PlainSyn | Class::OptionIgnored => return,
            Class::CookieRequest => self.requests += weight,
            Class::CookieCurrent | Class::CookieBackup | Class::CookieRetired => self.valid += weight,
            Class::CookieUnknown | Class::CookieBadLength => {
                self.unknown += weight;
                return;
            }
        }
        let source = connection.words[1];
        if connection.family == Family::Ipv6.index() as u32 && !self.lately.contains(&source) {
            self.lately[(self.seen & (LATELY as u64 - 1)) as usize] = source;
            self.seen += 1;
        }
    }
}

/// What of a CPU's observing is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Watch {
    /// What it can still afford.
    pub budget: Budget,
    /// Events that were reported.
    pub events: u64,
    /// Events for which there was no room.
    pub events_lost: u64,
    /// Packets that would have been events, but for the rate.
    pub events_skipped: u64,
    /// Prefixes that were put into the map; those that are not in it any more had to make room.
    pub prefixes: u64,
    /// Sources of which a guard forgot how much they had used, to make room for others.
    pub sources_forgotten: u64,
    /// The answer of this CPU to the question whether the keys are confirmed.
    pub confirmed: Confirmed,
    /// SYNs that were not shed, and retired cookies that were not translated, because the keys were not confirmed.
    pub unconfirmed: u64,
}

impl Watch {
    /// No counts.
    pub const EMPTY: Self = Self {
        budget: Budget::NEW,
        events: 0,
        events_lost: 0,
        events_skipped: 0,
        prefixes: 0,
        sources_forgotten: 0,
        confirmed: Confirmed::NEVER,
        unconfirmed: 0,
    };

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        let Self {
            budget: _,
            events,
            events_lost,
            events_skipped,
            prefixes,
            sources_forgotten,
            confirmed: _,
            unconfirmed,
        } = other;
        self.events += events;
        self.events_lost += events_lost;
        self.events_skipped += events_skipped;
        self.prefixes += prefixes;
        self.sources_forgotten += sources_forgotten;
        self.unconfirmed += unconfirmed;
    }
}

/// Whom and what an event is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Subject {
    /// [`Kind`](crate::description::Kind) index.
    pub kind: u32,
    /// The index of a class or of a reason.
    pub detail: u32,
    /// The connection; zeros where the frame could not be parsed.
    pub connection: Connection,
    /// [`Verdict`] index.
    pub verdict: u16,
    /// [`EventGuard::number`].
    pub guard: u16,
    /// The index of the service.
    pub service: u32,
}

impl Subject {
    /// Whether the kernel is to take the cookie, after what is done to it.
    #[inline(always)]
    pub const fn is_pending(class: Class, verdict: u16) -> bool {
        const PASS: u16 = Verdict::Pass as u16;
        matches!(class, Class::CookieCurrent | Class::CookieBackup) && verdict == PASS
            || verdict == Verdict::Rewrite as u16
    }
}

/// The guard of an event: the one that acted, or the first that would have in a dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventGuard(u16);

impl EventGuard {
    const DRY: u16 = 8;

    /// That of a packet, by [`Description::guard`] and [`Description::would`].
    ///
    /// [`Description::guard`]: crate::description::Description::guard
    /// [`Description::would`]: crate::description::Description::would
    #[inline(always)]
    pub const fn new(guard: u32, would: u32) -> Self {
        if guard != 0 || would == 0 {
            return Self(guard as u16);
        }
        let mut first = 0;
        while first < Guard::COUNT as u16 && would >> first & 1 == 0 {
            first += 1;
        }
        Self((first + 1) | Self::DRY)
    }

    /// Its number in [`Subject::guard`]; 0 for none.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The guard with this `number`, and whether it acted.
    pub fn from_number(number: u16) -> Option<(Guard, bool)> {
        let guard = Guard::ALL.get(usize::from(number & !Self::DRY).checked_sub(1)?)?;
        Some((*guard, number & Self::DRY == 0))
    }
}

/// Whether Fast Open SYNs of `class` are worth an event.
#[inline(always)]
pub const fn is_remarkable(class: Class) -> bool {
    match class {
        Class::PlainSyn | Class::CookieRequest | Class::CookieCurrent | Class::CookieBackup => false,
        Class::OptionIgnored | Class::CookieRetired | Class::CookieUnknown | Class::CookieBadLength => true,
    }
}

/// One event, as it goes to the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// Whom and what it is about.
    pub subject: Subject,
    /// For how many packets it stands.
    pub weight: u64,
    /// How many bytes of [`head`](Self::head) are of the frame.
    pub head_len: u64,
    /// How the frame begins, before anything is done to it.
    pub head: [u8; HEAD_LEN],
}
