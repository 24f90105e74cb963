//! Protections of a service, as an operator asks for them. What each does is told in `tfo_common::policy`.

use std::{fmt, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The protections of one service; `None` where one is off.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Guards {
    /// The Fast Open option is hidden from the stack.
    pub hide: Option<Hide>,
    /// The same SYN is not served twice.
    pub once: Option<Once>,
    /// No source gets more than its share.
    pub fair: Option<Fair>,
    /// No more is sent to an unproved source than a multiple of what came from it.
    pub clamp: Option<Clamp>,
    /// Cookies that no key made are kept from the stack.
    pub shed: Option<Shed>,
}

impl Guards {
    /// Of each protection that is asked for, whether it only counts.
    pub fn dry_runs(&self) -> impl Iterator<Item = bool> {
        let Self { hide, once, fair, clamp, shed } = self;
        let all = [
            hide.map(|it| it.dry_run),
            once.map(|it| it.dry_run),
            fair.map(|it| it.dry_run),
            clamp.map(|it| it.dry_run),
            shed.map(|it| it.dry_run),
        ];
        all.into_iter().flatten()
    }
}

/// The kill switch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hide {
    /// Only count what would be done.
    pub dry_run: bool,
}

/// The replay guard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Once {
    /// For how long a SYN is remembered once its connection is over: 1 s to 1 h.
    pub remember: Duration,
    /// Only count what would be done.
    pub dry_run: bool,
}

impl Once {
    /// For how long, where nothing else is said.
    pub const DEFAULT_REMEMBER: Duration = Duration::from_secs(60);
}

/// The limit on SYNs with a good cookie, for each source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fair {
    /// How many.
    pub limit: Limit,
    /// What counts as one source.
    pub source: SourceLen,
    /// Only count what would be done.
    pub dry_run: bool,
}

/// The limit on answers to an unproved source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// How many times the data of the SYN may be answered: 1 to 100.
    pub factor: u16,
    /// Only count what would be done.
    pub dry_run: bool,
}

impl Clamp {
    /// The factor where no other is said: what RFC 9000, section 8.1, allows QUIC.
    pub const DEFAULT_FACTOR: u16 = 3;
}

/// The limit on unknown cookies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shed {
    /// From all sources together.
    pub limit: Option<Limit>,
    /// From each source.
    pub per_source: Option<Limit>,
    /// What counts as one source.
    pub source: SourceLen,
    /// Whether the excess is dropped rather than hidden.
    pub drop: bool,
    /// Only count what would be done.
    pub dry_run: bool,
}

/// So many in a time, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// How many: at least 1.
    pub count: u32,
    /// In what time: 1 s, 1 min or 1 h.
    pub per: Duration,
    /// How many may come at once, after a pause: at least 1.
    pub burst: u32,
}

/// How many bits of an address make a source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SourceLen {
    /// Of an IPv4 address: 8 to 32.
    pub v4: u8,
    /// Of an IPv6 address: 16 to 128.
    pub v6: u8,
}

impl Default for SourceLen {
    /// One host, or the network that one IPv6 host has to itself (RFC 7421).
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

/// Whose Fast Open options `tfo hide` keeps from the stack, besides what the configuration says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hidden {
    /// Everybody's.
    All,
    /// Those to the service of this name.
    Service(String),
    /// Those from these addresses.
    Source(IpNet),
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
