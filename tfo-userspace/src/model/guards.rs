//! Protections of a service, as an operator configures them. `tfo_common::policy` describes what each does.

use std::{collections::BTreeSet, fmt, time::Duration};

use clap::ValueEnum;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Protections of one service; `None` means that one is off.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Guards {
    /// Hides the Fast Open option from the stack.
    pub hide: Option<Hide>,
    /// Prevents a SYN from being served twice.
    pub once: Option<Once>,
    /// Limits each source to its share of the listener's queue.
    pub fair: Option<Fair>,
    /// Limits the answer to an unproved source to a multiple of the data that it sent.
    pub clamp: Option<Clamp>,
    /// Keeps excess cookies that no key made from the stack.
    pub shed: Option<Shed>,
    /// Answers SYNs without a good cookie in the kernel's place.
    pub answer: Option<Answer>,
}

impl Guards {
    /// Returns, for each protection that is on, whether it is a dry run.
    pub fn dry_runs(&self) -> impl Iterator<Item = bool> {
        let Self { hide, once, fair, clamp, shed, answer } = self;
        let all = [
            hide.map(|it| it.dry_run),
            once.map(|it| it.dry_run),
            fair.map(|it| it.dry_run),
            clamp.map(|it| it.dry_run),
            shed.map(|it| it.dry_run),
            answer.map(|it| it.dry_run),
        ];
        all.into_iter().flatten()
    }
}

/// The kill switch `hide`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hide {
    /// Whether the protection only counts.
    pub dry_run: bool,
}

/// The protection `once` against replays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Once {
    /// Time for which a SYN is remembered after the end of its connection: 1 s to 1 h.
    pub remember: Duration,
    /// Fields that make a SYN the same as an earlier one.
    pub same: Same,
    /// Whether the protection only counts.
    pub dry_run: bool,
}

/// Fields of two SYNs that `once` compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Same {
    /// Addresses, ports and sequence number: the whole SYN is a copy.
    #[default]
    Syn,
    /// Also the source and the data alone, whatever the ports and the sequence number.
    Data,
}

impl Once {
    /// Default of [`remember`](Self::remember).
    pub const DEFAULT_REMEMBER: Duration = Duration::from_secs(60);
}

/// The protection `fair`: a rate limit for each source on SYNs with a good cookie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fair {
    /// Rate limit of one source.
    pub limit: Limit,
    /// Prefix length of a source.
    pub source: SourceLen,
    /// Whether the protection only counts.
    pub dry_run: bool,
}

/// The protection `clamp`: a limit on the bytes that are sent to an unproved source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// Bytes that may be sent for each byte of data in the SYN: 1 to 100.
    pub factor: u16,
    /// Whether the protection only counts.
    pub dry_run: bool,
}

impl Clamp {
    /// Default of [`factor`](Self::factor), the same as in QUIC (RFC 9000, section 8.1).
    pub const DEFAULT_FACTOR: u16 = 3;
}

/// The protection `shed`: rate limits on unknown cookies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shed {
    /// Rate limit of all sources together.
    pub limit: Option<Limit>,
    /// Rate limit of one source.
    pub per_source: Option<Limit>,
    /// Prefix length of a source.
    pub source: SourceLen,
    /// Whether excess SYNs are dropped, instead of having their Fast Open option hidden.
    pub drop: bool,
    /// Whether it also acts on SYNs that are not for a listener of this host.
    pub others: bool,
    /// Whether it also acts on SYNs to ports where a listener has keys of its own.
    pub own_keys: bool,
    /// Whether the protection only counts.
    pub dry_run: bool,
}

/// The protection `answer`: SYN-ACKs with SYN cookies, sent by XDP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Whether it waits for a flood. If not, it is always engaged.
    pub waits: bool,
    /// Number of SYNs without a good cookie in a second at which it engages, in addition to a filling SYN queue.
    pub above: Option<u32>,
    /// Time that a flood must be over before it lets go: 1 s to 1 h.
    pub release: Duration,
    /// Whether the protection only counts.
    pub dry_run: bool,
}

impl Answer {
    /// Default of [`release`](Self::release).
    pub const DEFAULT_RELEASE: Duration = Duration::from_secs(60);
}

/// Rate limit with a burst.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Number of SYNs in the time `per`: at least 1.
    pub count: u32,
    /// Unit of time: 1 s, 1 min or 1 h.
    pub per: Duration,
    /// Number of SYNs that may come at once after a pause: at least 1.
    pub burst: u32,
}

/// Prefix lengths that define a source, in bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SourceLen {
    /// Length for IPv4: 8 to 32.
    pub v4: u8,
    /// Length for IPv6: 16 to 128.
    pub v6: u8,
}

impl Default for SourceLen {
    /// Returns one host for IPv4, and one /64 for IPv6, the usual network of one host (RFC 7421).
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

/// Target of a `tfo hide` order: SYNs whose Fast Open option is hidden, in addition to the configured ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hidden {
    /// SYNs to all services, from all sources.
    All,
    /// SYNs to the service of this name.
    Service(String),
    /// SYNs from this prefix.
    Source(IpNet),
}

/// Local ports whose listeners judge a SYN by something else than the kernel's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialPorts {
    /// Ports on which a listener has keys of its own.
    pub own_keys: BTreeSet<u16>,
    /// Ports among them whose keys are known. They are key domains in the maps.
    pub known: BTreeSet<u16>,
    /// Ports on which a listener needs no cookie.
    pub no_cookie: BTreeSet<u16>,
    /// Whether no listener needs a cookie.
    pub all_no_cookie: bool,
}

/// State of services that changes while their program stays: by orders, by floods, and by their listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// Orders of `tfo hide`.
    pub hidden: BTreeSet<Hidden>,
    /// Names of the services whose protection `answer` is engaged.
    pub answering: BTreeSet<String>,
    /// Ports whose listeners are special.
    pub special: SpecialPorts,
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Service(name) => write!(f, "service {name}"),
            Self::Source(prefix) => write!(f, "source {prefix}"),
        }
    }
}
