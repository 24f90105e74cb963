//! Events: single packets that show what goes wrong, each with an explanation. `tfo run` reads them from the program's
//! ring buffer and keeps the latest in memory, for `tfo events` and `tfo top`.

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

/// Maximum number of events kept for each class or reason. A flood of one does not evict the others.
const KEPT_PER_KIND: usize = 500;
/// Maximum number of events in one answer to `tfo events`.
pub const MAX_ANSWERED: usize = 1000;
/// Maximum number of events of one kind that are explained at a time. Thousands of cookies are computed before a cookie
/// is called forged.
pub const EXPLAINED_PER_KIND: usize = 100;

/// Event with its explanation; see `tfo events --json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Event {
    /// Sequence number among the events of the interface, from 1.
    pub number: u64,
    /// Time at which the event was read, at most 200 ms after the packet (RFC 3339, UTC).
    pub time: Timestamp,
    /// Name of the interface.
    pub interface: String,
    /// Number of packets of the same kind that the event stands for: those since the last packet that was sampled.
    pub packets: u64,
    /// Class of the SYN, or the reason why the frame has no class.
    pub what: String,
    /// Name of the verdict.
    pub verdict: String,
    /// Name of the service.
    pub service: String,
    /// Source address; `None` if it can't be read from the frame.
    pub source: Option<IpAddr>,
    /// Source port.
    pub source_port: Option<u16>,
    /// Destination address; `None` if it can't be read from the frame.
    pub destination: Option<IpAddr>,
    /// Destination port.
    pub destination_port: Option<u16>,
    /// Whether the option has the experimental kind, 254.
    pub experimental: bool,
    /// Name of the protection that acted on the SYN, or would have in a dry run; `None` if no protection did.
    pub guard: Option<String>,
    /// Whether the protection was a dry run and did not act.
    pub dry_run: bool,
    /// Explanation of the event.
    #[serde(flatten)]
    pub why: Why,
}

/// Explanation of an event: the origin of the cookie, or the reason why the data of the SYN was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Why {
    /// Cookie of the current or the backup key.
    GoodCookie,
    /// Request for a cookie.
    Request,
    /// Cookie of a key that the kernel does not hold any more.
    RetiredKey {
        /// Age of the key in rotations: 1 for the key that the kernel held last.
        generation: usize,
    },
    /// Cookie of the key that the kernel will hold next. Another host of the fleet is ahead.
    NextKey,
    /// Cookie of a key that came into the map only after the SYN had arrived.
    KeyLearned,
    /// Cookie for another address of the same network. The client's address has changed, as behind a NAT.
    NeighbourAddress {
        /// Address for which the cookie was made.
        neighbour: IpAddr,
    },
    /// Cookie that another address of this host gave out.
    WrongDestination {
        /// Address that gave out the cookie.
        made_by: IpAddr,
    },
    /// Cookie of 4 to 16 bytes, but not 8.
    WrongLength,
    /// Option that the kernel ignores: it has an odd length, or a cookie of 2 or of more than 16 bytes.
    IgnoredOption,
    /// Cookie that no known key makes for any address that was tried.
    Forged,
    /// Malformed frame, which the kernel drops.
    Malformed,
    /// Frame that tfo does not parse.
    Unsupported,
    /// Good cookie that the kernel answered with an ordinary handshake.
    Refused,
    /// Refused good cookie: the listener has no Fast Open.
    ListenerWithoutFastOpen,
    /// Refused good cookie: the listener has its own keys.
    OwnKey,
    /// Refused good cookie: Fast Open is off for servers on this host.
    ServerOff,
    /// Refused good cookie without another known reason, where TCPFastOpenListenOverflow is not zero.
    QueueFull,
    /// No packet: the protection `answer` has engaged for the service.
    Engaged,
    /// No packet: it has let go.
    LetGo,
}

impl Event {
    /// Returns the event that the protection `answer` of `service` has engaged, or has let go.
    pub fn of_answering(interface: &str, service: &str, is_engaged: bool) -> Self {
        let verdict = if is_engaged { Verdict::Answer } else { Verdict::Pass };
        Self {
            number: 0,
            time: Timestamp::now(),
            interface: interface.to_owned(),
            packets: 0,
            what: Guard::Answer.name().to_owned(),
            verdict: verdict.name().to_owned(),
            service: service.to_owned(),
            source: None,
            source_port: None,
            destination: None,
            destination_port: None,
            experimental: false,
            guard: None,
            dry_run: false,
            why: if is_engaged { Why::Engaged } else { Why::LetGo },
        }
    }

    /// Cuts client addresses to their /24 or /64, and removes the source port.
    #[must_use]
    pub fn anonymized(mut self) -> Self {
        self.source = self.source.map(network);
        self.source_port = None;
        if let Why::NeighbourAddress { neighbour } = &mut self.why {
            *neighbour = network(*neighbour);
        }
        self
    }

    /// Returns the event as one line for a terminal.
    pub fn text(&self) -> String {
        if let Why::Engaged | Why::LetGo = self.why {
            let Self { time, interface, what, service, .. } = self;
            return format!("{time:.3} {interface} {what} {service}: {}", self.why.text());
        }
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
        // The other verdicts but `pass` come from a protection, which has been named already.
        let is_dropped = self.why == Why::Unsupported && self.verdict == Verdict::Drop.name();
        if self.verdict == Verdict::Rewrite.name() || is_dropped {
            say(format_args!(" [{}]", self.verdict));
        }
        line
    }

    /// Describes what a protection did to the SYN, or would have done.
    fn guarded(&self) -> Option<String> {
        let guard = self.guard.as_deref()?;
        let done = if self.dry_run {
            match guard {
                _ if guard == Guard::Clamp.name() => "its window would be cut by",
                _ if guard == Guard::Shed.name() => "would be hidden or dropped by",
                _ if guard == Guard::Answer.name() => "would be answered by",
                _ => "would be hidden by",
            }
        } else {
            match &self.verdict {
                verdict if verdict == Verdict::Hide.name() => "hidden by",
                verdict if verdict == Verdict::Drop.name() => "dropped by",
                verdict if verdict == Verdict::Answer.name() && guard == Guard::Answer.name() => {
                    "answered by"
                }
                verdict if verdict == Verdict::Answer.name() => "answered without a cookie because of",
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
            Self::KeyLearned => "a cookie of a key that came into the map just after the SYN".to_owned(),
            Self::NeighbourAddress { neighbour } => {
                format!("a cookie made for {neighbour}: the client's address has changed")
            }
            Self::WrongDestination { made_by } => format!("a cookie that this host gave out at {made_by}"),
            Self::WrongLength => "a cookie that is not 8 bytes long".to_owned(),
            Self::IgnoredOption => "an option that the kernel ignores".to_owned(),
            Self::Forged => "no key here makes this cookie: forged, or made elsewhere".to_owned(),
            Self::Malformed => "the kernel drops it".to_owned(),
            Self::Unsupported => "tfo does not parse it".to_owned(),
            Self::Refused => "a good cookie, answered with an ordinary handshake".to_owned(),
            Self::ListenerWithoutFastOpen => "a good cookie, for a listener without Fast Open".to_owned(),
            Self::OwnKey => "a good cookie, for a listener with a key of its own".to_owned(),
            Self::Engaged => "SYNs without a good cookie are answered from now on".to_owned(),
            Self::LetGo => "the flood is over, and SYNs are the kernel's again".to_owned(),
            Self::ServerOff => "a good cookie, but net.ipv4.tcp_fastopen has no bit 0x2".to_owned(),
            Self::QueueFull => "a good cookie, but the listener's Fast Open queue was full".to_owned(),
        }
    }
}

/// Returns the /24 or /64 that contains `address`.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() & !0xff).into()),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
    }
}

/// Latest events of an interface.
#[derive(Debug, Default)]
pub struct EventLog {
    by_what: BTreeMap<String, VecDeque<Event>>,
    last: u64,
    /// Number of packets whose event was not kept, because too many came at once.
    lost: u64,
}

/// Answer to a request for events; see [`EventLog::json`].
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Recent {
    /// Number of packets whose event was lost.
    pub lost: u64,
    /// Events, oldest first.
    pub events: Vec<Event>,
}

impl EventLog {
    /// Adds an event and numbers it.
    pub fn add(&mut self, event: Event) {
        self.last += 1;
        let events = self.by_what.entry(event.what.clone()).or_default();
        if events.len() == KEPT_PER_KIND {
            events.pop_front();
        }
        events.push_back(Event { number: self.last, ..event });
    }

    /// Counts packets whose event was not kept.
    pub fn count_lost(&mut self, packets: u64) {
        self.lost += packets;
    }

    /// Returns the number of packets whose event was not kept.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Returns the newest events after number `after`, at most `most` of them, as JSON of [`Recent`]. `lost` is the
    /// number of packets whose event the program lost.
    pub fn json(&self, after: u64, most: usize, lost: u64) -> Result<String> {
        let all = self.by_what.values().flatten();
        let mut events: Vec<_> = all.filter(|event| event.number > after).cloned().collect();
        events.sort_by_key(|event| event.number);
        events.drain(..events.len().saturating_sub(most));
        Ok(serde_json::to_string(&Recent { lost: self.lost + lost, events })?)
    }
}
