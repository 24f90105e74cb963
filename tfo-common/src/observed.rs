//! Records of the programs besides counters: sources of SYNs, outcomes of connections, and events.

use crate::{
    class::Class,
    keyring::{Confirmed, Searches},
    policy::Guard,
    sample::{Budget, EVENT_BUDGET},
    segment::{Addresses, Family},
    verdict::Verdict,
};

/// Number of buckets in [`Outcomes::rtt_saved`], up to half an hour.
pub const RTT_BUCKETS: usize = 32;
/// Greatest number of bytes of a frame in an event.
pub const HEAD_LEN: usize = 128;
/// Number of source prefixes that are remembered. The one not seen for longest makes room.
pub const PREFIXES: usize = 1 << 14;
/// Number of sources that are remembered of a prefix.
pub const RECENT_SOURCES: usize = 8;
/// Number of SYNs with a good cookie that are remembered until the outcome of their connection is known.
pub const PENDING: usize = 1 << 14;
/// Size of the ring buffer of events, in bytes: a power of two, and whole pages.
pub const EVENT_BYTES: usize = 1 << 20;

/// Outcomes of the connections to one service, in the whole network namespace. Several CPUs add to them at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Outcomes {
    /// Number of Fast Open children that the kernel made. Their data went to the application without waiting.
    pub accepted: u64,
    /// Number of SYNs whose cookie the kernel should have accepted, but which it answered with an ordinary handshake.
    pub refused: u64,
    /// Number of refused SYNs without an event, because of the rate or a full ring.
    pub events_skipped: u64,
    /// Jiffy of the last event about a refused SYN, and number of these events in that jiffy.
    pub event_budget: [u64; 2],
    /// Number of SYNs that the guard against replays forgot too early, to make room for others.
    pub replays_forgotten: u64,
    /// Round trips that accepted connections did not wait for, by [`rtt_bucket`].
    pub rtt_saved: [RttBucket; RTT_BUCKETS],
}

impl Outcomes {
    /// Counts that are all zero.
    pub const EMPTY: Self = Self {
        accepted: 0,
        refused: 0,
        events_skipped: 0,
        event_budget: [0; 2],
        replays_forgotten: 0,
        rtt_saved: [RttBucket { connections: 0, us: 0 }; RTT_BUCKETS],
    };

    /// Adds the outcomes of other connections.
    pub fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.events_skipped += other.events_skipped;
        self.replays_forgotten += other.replays_forgotten;
        for (sum, bucket) in self.rtt_saved.iter_mut().zip(&other.rtt_saved) {
            sum.connections += bucket.connections;
            sum.us += bucket.us;
        }
    }

    /// Returns `event_budget` with one more event counted, or `None` if the rate does not allow one more in this jiffy. CPUs
    /// that call it at the same time may get the same answer.
    #[inline(always)]
    pub const fn count_event(event_budget: [u64; 2], jiffies: u64) -> Option<[u64; 2]> {
        let [jiffy, count] = event_budget;
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
    /// Number of connections.
    pub connections: u64,
    /// Sum of their round trips, in microseconds.
    pub us: u64,
}

/// Returns the bucket of a round trip of `us` microseconds: bucket `n` is for 2^(n-1) to below 2^n microseconds.
#[inline(always)]
pub const fn rtt_bucket(us: u32) -> usize {
    // `leading_zeros` would be a loop or a call on BPF.
    let mut bucket = 0;
    let mut step = 0;
    while step < RTT_BUCKETS - 1 {
        bucket += (us >> step != 0) as usize;
        step += 1;
    }
    bucket
}

/// A TCP connection, with source and destination as in its client's packets.
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
    /// Placeholder for a frame that could not be parsed.
    pub const NONE: Self = Self { words: [0; 4], ports: 0, family: 0 };

    /// Returns the connection from and to `addresses`. `ports` are the first four bytes of its TCP header.
    #[inline(always)]
    pub const fn new(addresses: &Addresses, ports: [u8; 4]) -> Self {
        Self {
            words: addresses.words,
            ports: u32::from_ne_bytes(ports),
            family: addresses.family.index() as u32,
        }
    }

    /// Returns the source and the destination port, in host byte order.
    pub const fn ports(&self) -> [u16; 2] {
        let [s0, s1, d0, d1] = self.ports.to_ne_bytes();
        [u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])]
    }

    /// Returns the addresses.
    pub fn addresses(&self) -> Addresses {
        let family = if self.family == Family::Ipv4.index() as u32 { Family::Ipv4 } else { Family::Ipv6 };
        Addresses { family, words: self.words }
    }
}

/// A SYN with a good cookie that has not become a connection yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pending {
    /// Number of SYNs that it stands for.
    pub weight: u64,
    /// [`Class`] index.
    pub class: u64,
}

/// The network that a source is in: of an IPv4 address the first three bytes, of an IPv6 address the first eight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Prefix {
    /// Bytes of the prefix, in the order of a little-endian word, with zeros behind them.
    pub bytes: u64,
    /// [`Family`] index.
    pub family: u64,
}

impl Prefix {
    /// Number of bits of the prefix, by [`Family`] index.
    pub const BITS: [u8; Family::COUNT] = [24, 64];

    /// Returns the prefix of the source of `connection`.
    #[inline(always)]
    pub const fn of(connection: &Connection) -> Self {
        const V4: u64 = 0x00ff_ffff;
        let is_v4 = connection.family == Family::Ipv4.index() as u32;
        let bytes = if is_v4 { connection.words[0] & V4 } else { connection.words[0] };
        Self { bytes, family: connection.family as u64 }
    }
}

/// Counts of the Fast Open SYNs of a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixTally {
    /// Number of SYNs that asked for a cookie.
    pub requests: u64,
    /// Number of SYNs with a cookie of a known key.
    pub valid: u64,
    /// Number of SYNs with another cookie.
    pub unknown: u64,
    /// Second words of some IPv6 source addresses that asked for a cookie or had one of a known key, as in
    /// [`Addresses::words`].
    pub recent_sources: [u64; RECENT_SOURCES],
    /// Number of sources that were put there.
    pub seen: u64,
}

impl PrefixTally {
    /// Counts of a prefix that has sent no SYN yet.
    pub const NEW: Self =
        Self { requests: 0, valid: 0, unknown: 0, recent_sources: [0; RECENT_SOURCES], seen: 0 };

    /// Adds `weight` SYNs of `class`. One of them is the SYN of `connection`.
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
        if connection.family == Family::Ipv6.index() as u32 && !self.recent_sources.contains(&source) {
            self.recent_sources[(self.seen & (RECENT_SOURCES as u64 - 1)) as usize] = source;
            self.seen += 1;
        }
    }
}

/// Destination of a SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Destination {
    /// Last two of [`Addresses::words`] for IPv6; the first one and 0 for IPv4, without the source.
    address: [u64; 2],
    /// Port in the byte order of the packet, and the [`Family`] index in the upper half.
    port: u64,
}

impl Destination {
    /// Returns the destination of `addresses` and of `ports`, the first four bytes of a TCP header.
    #[inline(always)]
    pub const fn new(addresses: &Addresses, ports: [u8; 4]) -> Self {
        let ([first, _, third, fourth], [.., high, low]) = (addresses.words, ports);
        let address = match addresses.family {
            Family::Ipv4 => [first >> 32, 0],
            Family::Ipv6 => [third, fourth],
        };
        Self { address, port: (addresses.family as u64) << 32 | (high as u64) << 8 | low as u64 }
    }
}

/// Cached answer of a CPU to the question whether a destination is a listener of this host. It is kept for a jiffy: most
/// SYNs of a flood have the same destination, and the look-ups cost more than all other work for a forged cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Local {
    to: Destination,
    jiffy: u64,
    is_local: u64,
}

impl Local {
    /// State before the first answer. No CPU's clock shows jiffy 0 (`INITIAL_JIFFIES`, linux/jiffies.h).
    pub const NEVER: Self = Self { to: Destination { address: [0; 2], port: 0 }, jiffy: 0, is_local: 0 };

    /// Returns the answer for `to` at `jiffy`.
    #[inline(always)]
    pub const fn new(to: Destination, jiffy: u64, is_local: bool) -> Self {
        Self { to, jiffy, is_local: is_local as u64 }
    }

    /// Returns the answer, if it is that for `to` in this jiffy.
    #[inline(always)]
    pub fn get(&self, to: Destination, jiffy: u64) -> Option<bool> {
        (self.jiffy == jiffy && self.to == to).then_some(self.is_local != 0)
    }
}

/// Budget of one CPU's observing, and its counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Watch {
    /// Budget for closer looks and events.
    pub budget: Budget,
    /// Number of events that were reported.
    pub events: u64,
    /// Number of packets whose event found no room in the ring buffer.
    pub events_lost: u64,
    /// Number of packets whose event was left out because of the rate.
    pub events_skipped: u64,
    /// Number of prefixes that were put into the map. Those that are no longer in it had to make room.
    pub prefixes: u64,
    /// Number of sources whose use of a rate limit a guard forgot, to make room for others.
    pub sources_forgotten: u64,
    /// Cached answer of this CPU to the question whether the keys are confirmed.
    pub confirmed: Confirmed,
    /// Number of SYNs that were not shed or answered, and of retired cookies that were not translated, because of
    /// unconfirmed keys.
    pub unconfirmed: u64,
    /// Number of signed SYNs that passed as they came although a guard, an order or a translation had a reason to act.
    pub signed_spared: u64,
    /// Budget for trying keys that the kernel does not hold.
    pub searches: Searches,
    /// Cached answer of this CPU to the question whether a destination is a listener of this host.
    pub local: Local,
    /// Number of SYNs that were left to the kernel although [`Guard::Answer`] was engaged.
    pub unanswered: u64,
    /// Number of SYNs on which [`Guard::Shed`] had decided, acting or in a dry run, and which it left alone since a listener
    /// on their port has keys of its own.
    pub own_keys_spared: u64,
    /// Number of SYN-ACKs in which the kernel's cookie was replaced by a portable one.
    pub exchanged: u64,
}

impl Watch {
    /// Counts that are all zero.
    pub const EMPTY: Self = Self {
        budget: Budget::NEW,
        events: 0,
        events_lost: 0,
        events_skipped: 0,
        prefixes: 0,
        sources_forgotten: 0,
        confirmed: Confirmed::NEVER,
        unconfirmed: 0,
        signed_spared: 0,
        searches: Searches::NEW,
        local: Local::NEVER,
        unanswered: 0,
        own_keys_spared: 0,
        exchanged: 0,
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
            signed_spared,
            searches,
            local: _,
            unanswered,
            own_keys_spared,
            exchanged,
        } = other;
        self.events += events;
        self.events_lost += events_lost;
        self.events_skipped += events_skipped;
        self.prefixes += prefixes;
        self.sources_forgotten += sources_forgotten;
        self.unconfirmed += unconfirmed;
        self.signed_spared += signed_spared;
        self.searches.skipped += searches.skipped;
        self.unanswered += unanswered;
        self.own_keys_spared += own_keys_spared;
        self.exchanged += exchanged;
    }
}

/// Subject of an event: a connection, and what was found and decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Subject {
    /// [`Kind`](crate::description::Kind) index.
    pub kind: u32,
    /// Index of a class or of a reason.
    pub detail: u32,
    /// The connection; zeros if the frame could not be parsed.
    pub connection: Connection,
    /// [`Verdict`] index.
    pub verdict: u16,
    /// [`EventGuard::number`].
    pub guard: u16,
    /// Index of the service.
    pub service: u32,
}

impl Subject {
    /// Whether the kernel should accept the cookie of the SYN that leaves the program.
    #[inline(always)]
    pub const fn is_pending(class: Class, verdict: u16) -> bool {
        const PASS: u16 = Verdict::Pass as u16;
        matches!(class, Class::CookieCurrent | Class::CookieBackup) && verdict == PASS
            || verdict == Verdict::Rewrite as u16
    }
}

/// The guard of an event: the one that acted, or the first that would have acted but for a dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventGuard(u16);

impl EventGuard {
    const DRY: u16 = 8;

    /// Returns the guard for a packet's [`Description::guard`] and [`Description::would`].
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

    /// Returns the number in [`Subject::guard`]; 0 for no guard.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Returns the guard with this `number`, and whether it acted; `None` for no guard.
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

/// An event, as it goes to the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// Subject of the event.
    pub subject: Subject,
    /// Number of packets that it stands for.
    pub weight: u64,
    /// Number of bytes of the frame in [`head`](Self::head).
    pub head_len: u64,
    /// First bytes of the frame, before anything is done to it.
    pub head: [u8; HEAD_LEN],
}
