//! Events: the few packets that say what is wrong, each explained. `tfo run` takes them from the program's ring and keeps the
//! last of them in memory, for `tfo events` and the screen.

mod explain;
mod refused;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    net::IpAddr,
};

use anyhow::Result;
pub use explain::Explainer;
use jiff::Timestamp;
pub use refused::Host;
use serde::{Deserialize, Serialize};
use tfo_common::{policy::Guard, verdict::Verdict};

/// How many are kept of each class or reason, so that a flood of one does not push the others out.
const KEPT: usize = 500;
/// How many a viewer gets at most.
pub const SHOWN: usize = 1000;
/// How many of one kind are explained at a time: it takes thousands of cookies to say that one is nobody's.
pub const AT_ONCE: usize = 100;

/// An explained event; see `tfo events --json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Event {
    /// Which it is of its interface's, from 1 on.
    pub number: u64,
    /// When it was read, at most a fifth of a second after the packet (RFC 3339, UTC).
    pub time: Timestamp,
    /// The interface.
    pub interface: String,
    /// For how many packets of its kind it stands: all since the last such event that there was room for.
    pub packets: u64,
    /// The class of the SYN, or the reason why the frame has none.
    pub what: String,
    /// What was done with it.
    pub verdict: String,
    /// The service that it was for.
    pub service: String,
    /// Where it came from; `None` where the frame does not say.
    pub source: Option<IpAddr>,
    /// The port there.
    pub source_port: Option<u16>,
    /// Where it was to go.
    pub destination: Option<IpAddr>,
    /// The port there.
    pub destination_port: Option<u16>,
    /// Whether the option is of the experimental kind, 254.
    pub experimental: bool,
    /// The protection that acted on it, or would have; `None` where none had anything to say.
    pub guard: Option<String>,
    /// Whether that one only would have.
    pub dry_run: bool,
    /// The explanation.
    #[serde(flatten)]
    pub why: Why,
}

/// What is to be said of a SYN's cookie, or why it got no data through, as far as can be told from outside.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Why {
    /// The cookie is one that the kernel takes.
    GoodCookie,
    /// There is none: one is asked for.
    Request,
    /// The cookie is of a key that the kernel does not hold any more.
    RetiredKey {
        /// 1 for the one that it held last.
        generation: usize,
    },
    /// The cookie is of the key that the kernel will hold next: a host of the fleet is ahead.
    NextKey,
    /// The cookie is of a key that was not known yet when it came.
    KeyLearned,
    /// The cookie was made for another address of the same network: the client's address has changed, as behind a NAT.
    NeighbourAddress {
        /// That address.
        neighbour: IpAddr,
    },
    /// The cookie was made by another address of this host.
    WrongDestination {
        /// That address.
        made_by: IpAddr,
    },
    /// The cookie has 4 to 16 bytes, but not 8.
    WrongLength,
    /// The kernel takes the option for absent: it has an odd length, or a cookie of 2 or of more than 16 bytes.
    IgnoredOption,
    /// No key that is known here makes this cookie, for no address that it could have been made for.
    Forged,
    /// The kernel drops the frame.
    Malformed,
    /// It is not followed.
    Unsupported,
    /// The cookie was good, and the kernel answered with an ordinary handshake.
    Refused,
    /// The same: the listener has no Fast Open.
    ListenerWithoutFastOpen,
    /// The same: the listener has keys of its own.
    OwnKey,
    /// The same: the host has Fast Open off for servers.
    ServerOff,
    /// The same, and queues of listeners have run over since they were made.
    QueueFull,
}

impl Event {
    /// The same, with the addresses of clients cut to their network.
    #[must_use]
    pub fn anonymized(mut self) -> Self {
        self.source = self.source.map(network);
        self.source_port = None;
        if let Why::NeighbourAddress { neighbour } = &mut self.why {
            *neighbour = network(*neighbour);
        }
        self
    }

    /// One line for a terminal.
    pub fn text(&self) -> String {
        let end = |address: Option<IpAddr>, port: Option<u16>| match (address, port) {
            (Some(IpAddr::V6(address)), Some(port)) => format!("[{address}]:{port}"),
            (Some(address), Some(port)) => format!("{address}:{port}"),
            (Some(address), None) => address.to_string(),
            (None, _) => "?".to_owned(),
        };
        let mut line = format!(
            "{:.3} {} {} {} -> {}",
            self.time,
            self.interface,
            self.what,
            end(self.source, self.source_port),
            end(self.destination, self.destination_port)
        );
        let mut say = |text: std::fmt::Arguments<'_>| line.write_fmt(text).expect("a String takes all");
        if self.packets > 1 {
            say(format_args!(" (one of {})", self.packets));
        }
        if let Some(guarded) = self.guarded() {
            say(format_args!(": {guarded}"));
        }
        say(format_args!(": {}", self.why.text()));
        if self.experimental {
            say(format_args!(" (experimental option, kind 254)"));
        }
        // Whatever else is done, a protection does.
        if self.verdict == Verdict::Rewrite.name() {
            say(format_args!(" [{}]", self.verdict));
        }
        line
    }

    /// What a protection did to it, or would have done.
    fn guarded(&self) -> Option<String> {
        let guard = self.guard.as_deref()?;
        let done = if self.dry_run {
            match guard {
                _ if guard == Guard::Clamp.name() => "its window would be cut by",
                _ if guard == Guard::Shed.name() => "would be hidden or dropped by",
                _ => "would be hidden by",
            }
        } else {
            match &self.verdict {
                verdict if verdict == Verdict::Hide.name() => "hidden by",
                verdict if verdict == Verdict::Drop.name() => "dropped by",
                _ => "its window cut by",
            }
        };
        Some(format!("{done} {guard}"))
    }
}

impl Why {
    fn text(&self) -> String {
        match self {
            Self::GoodCookie => "a good cookie".to_owned(),
            Self::Request => "a request for a cookie".to_owned(),
            Self::RetiredKey { generation: 1 } => "a cookie of the key before the last change".to_owned(),
            Self::RetiredKey { generation } => format!("a cookie of the key {generation} changes ago"),
            Self::NextKey => "a cookie of the next key: another host of the fleet is ahead".to_owned(),
            Self::KeyLearned => "a cookie of a key that came into the map just behind it".to_owned(),
            Self::NeighbourAddress { neighbour } => {
                format!("a cookie made for {neighbour}: the client's address has changed")
            }
            Self::WrongDestination { made_by } => format!("a cookie that this host gave at {made_by}"),
            Self::WrongLength => "a cookie of another length than 8 bytes".to_owned(),
            Self::IgnoredOption => "an option that the kernel ignores".to_owned(),
            Self::Forged => "no key here makes this cookie: forged, or made elsewhere".to_owned(),
            Self::Malformed => "the kernel drops it".to_owned(),
            Self::Unsupported => "tfo does not parse it".to_owned(),
            Self::Refused => "a good cookie, answered with an ordinary handshake".to_owned(),
            Self::ListenerWithoutFastOpen => "a good cookie, for a listener without Fast Open".to_owned(),
            Self::OwnKey => "a good cookie, for a listener with a key of its own".to_owned(),
            Self::ServerOff => "a good cookie, but net.ipv4.tcp_fastopen has no bit 0x2".to_owned(),
            Self::QueueFull => "a good cookie, but the listener's Fast Open queue was full".to_owned(),
        }
    }
}

/// The /24 or /64 that `address` is in.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() & !0xff).into()),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
    }
}

/// The last events of an interface.
#[derive(Debug, Default)]
pub struct EventLog {
    by_what: BTreeMap<String, VecDeque<Event>>,
    last: u64,
    /// Packets of which nobody was told: there was no room, or no time.
    lost: u64,
}

/// What a viewer gets; see [`EventLog::json`].
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Recent {
    /// Packets of which nobody was told.
    pub lost: u64,
    /// The events, oldest first.
    pub events: Vec<Event>,
}

impl EventLog {
    /// Adds an event, which gets its number.
    pub fn add(&mut self, event: Event) {
        self.last += 1;
        let events = self.by_what.entry(event.what.clone()).or_default();
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(Event { number: self.last, ..event });
    }

    /// Counts packets of which nobody will be told.
    pub fn lose(&mut self, packets: u64) {
        self.lost += packets;
    }

    /// Packets of which nobody was told.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The events behind number `after`, or the newest `most` of them, as JSON of [`Recent`], where `lost` more were lost by
    /// the program.
    pub fn json(&self, after: u64, most: usize, lost: u64) -> Result<String> {
        let all = self.by_what.values().flatten();
        let mut events: Vec<_> = all.filter(|event| event.number > after).cloned().collect();
        events.sort_by_key(|event| event.number);
        events.drain(..events.len().saturating_sub(most));
        Ok(serde_json::to_string(&Recent { lost: self.lost + lost, events })?)
    }
}
