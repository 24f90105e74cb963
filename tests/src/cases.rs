//! Table of cases: a frame, the keys in force, and how the frame must be counted.
//!
//! `tests/host/cases.rs` and `tests/kernel/cases.rs` use it. A case is one line in the module of its subject. Its
//! expectation follows from what Linux does with such a packet, not from what our code does.

mod cookies;
mod ipv4;
mod ipv6;
mod link;
mod options;
mod signed;
mod tcp;
mod truncated;

use std::{
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr},
};

pub use self::signed::signed;

use tfo_common::{
    class::Class,
    counters::{Counters, GuardCounts, Tally},
    keyring::{KeyRing, SLOTS},
    parse::{LinkLayer, Malformed, Unsupported},
    policy::Guard,
    segment::Family,
    verdict::Verdict,
};

use crate::{
    keys,
    oracle::reference,
    packet::{ETHERNET, Ip, Ipv4, Ipv6, eth, ether_type},
};

/// The client of most cases, over IPv4.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The server of most cases, over IPv4.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
/// The client of most cases, over IPv6.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd3d, 0xfa7b, 0xd17d, 0, 0, 0, 0, 1);
/// The server of most cases, over IPv6.
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd3d, 0x0a0b, 0x17d6, 0, 0, 0, 0, 1);

/// Frame with its expected outcome.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name, which is unique and says what is special about the case.
    pub name: String,
    /// Header with which the frame begins.
    pub link: LinkLayer,
    /// The keys in force.
    pub keys: Keys,
    /// The frame.
    pub frame: Vec<u8>,
    /// Expected outcome.
    pub expected: Expected,
}

impl Case {
    /// Whether the frame is a signed SYN, which must stay as it is.
    pub fn is_signed(&self) -> bool {
        matches!(reference(&self.frame, self.link), Ok(Some(segment)) if segment.is_signed)
    }
}

/// The keys in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Keys of [`keys::ring_without_next`], as if tfo follows the kernel.
    Known,
    /// Keys of [`keys::ring`], as if a schedule tells the next key.
    WithNext,
    /// Empty ring, as if no listener has made the kernel choose a key yet.
    None,
}

impl Keys {
    /// Returns the ring that holds these keys.
    pub fn ring(self) -> KeyRing {
        match self {
            Self::Known => keys::ring_without_next(),
            Self::WithNext => keys::ring(),
            Self::None => KeyRing::EMPTY,
        }
    }
}

/// Expected count of a frame in mode `observe`, which passes every frame unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Counted nowhere.
    NotSyn,
    /// Counted as a SYN.
    Syn {
        /// Family of the IP header.
        family: Family,
        /// Class of the SYN.
        class: Class,
        /// Slot of the key that made the cookie, if any did.
        slot: Option<usize>,
        /// Length of the data, in bytes.
        data_len: usize,
    },
    /// Counted as a packet that the kernel drops.
    Malformed(Malformed),
    /// Counted as a packet that tfo does not follow.
    Unsupported(Unsupported),
}

impl Expected {
    /// Returns the count of a SYN whose class determines the slot of its key.
    ///
    /// # Panics
    ///
    /// Panics for classes that do not determine it. Retired keys take [`of_key`](Self::of_key).
    pub fn of_class(family: Family, class: Class, data_len: usize) -> Self {
        let slot = match class {
            Class::CookieCurrent => Some(0),
            Class::CookieBackup => Some(1),
            Class::CookieRetired => panic!("a retired cookie is that of one key among several"),
            _ => None,
        };
        Self::Syn { family, class, slot, data_len }
    }

    /// Returns the count of a SYN with a cookie of the key in `slot`.
    pub fn of_key(family: Family, slot: usize, data_len: usize) -> Self {
        let class = match slot {
            0 => Class::CookieCurrent,
            1 => Class::CookieBackup,
            _ => Class::CookieRetired,
        };
        Self::Syn { family, class, slot: Some(slot), data_len }
    }

    /// Returns counters that have counted only this, with verdict pass, under a handmade ring, in which each key's
    /// counter is that of its slot.
    pub fn counters(self) -> Counters {
        self.counted(Verdict::Pass, &keys::ring())
    }

    /// Returns counters that have counted only this, under `ring`. A SYN is counted with `verdict`.
    pub fn counted(self, verdict: Verdict, ring: &KeyRing) -> Counters {
        let mut counters = Counters::default();
        match self {
            Self::NotSyn => {}
            Self::Syn { family, class, slot, data_len } => {
                counters.syn[family as usize][class as usize][verdict as usize] =
                    Tally { packets: 1, with_data: u64::from(data_len > 0), data_bytes: data_len as u64 };
                if let Some(slot) = slot {
                    counters.hits[usize::from(ring.tracks[slot])] = 1;
                }
            }
            Self::Malformed(reason) => counters.malformed[reason as usize] = 1,
            Self::Unsupported(reason) => counters.unsupported[reason as usize] = 1,
        }
        counters
    }
}

/// Expects no count, whatever the family.
fn not_syn() -> impl Fn(Family) -> Expected {
    |_| Expected::NotSyn
}

/// Expects a SYN of the packet's family.
fn syn(class: Class, data_len: usize) -> impl Fn(Family) -> Expected {
    move |family| Expected::of_class(family, class, data_len)
}

/// Expects a SYN of the packet's family with a cookie of the key in `slot`.
fn of_key(slot: usize, data_len: usize) -> impl Fn(Family) -> Expected {
    move |family| Expected::of_key(family, slot, data_len)
}

/// Expects a malformed packet, whatever the family.
fn malformed(reason: Malformed) -> impl Fn(Family) -> Expected {
    move |_| Expected::Malformed(reason)
}

/// Expects an unsupported packet, whatever the family.
fn unsupported(reason: Unsupported) -> impl Fn(Family) -> Expected {
    move |_| Expected::Unsupported(reason)
}

/// Returns all cases.
pub fn all() -> Vec<Case> {
    let mut table = Table { keys: Keys::Known, subject: "", cases: Vec::new() };
    for (subject, add) in [
        ("cookie", cookies::add as fn(&mut Table)),
        ("options", options::add),
        ("signed", signed::add),
        ("nearly signed", signed::add_nearly),
        ("tcp", tcp::add),
        ("ipv4", ipv4::add),
        ("ipv6", ipv6::add),
        ("link", link::add),
        ("truncated", truncated::add),
    ] {
        table.subject = subject;
        table.keys = Keys::Known;
        add(&mut table);
    }
    let without_link: Vec<Case> = table.cases.iter().filter_map(without_link_layer).collect();
    table.cases.into_iter().chain(without_link).collect()
}

/// Returns the case of the same packet as tun delivers it. Cases for untagged Ethernet frames hold for the IP packet
/// alone, too, unless the IP version contradicts the EtherType: without Ethernet, only the version counts.
fn without_link_layer(case: &Case) -> Option<Case> {
    let (header, packet) = case.frame.split_at_checked(ETHERNET)?;
    let ether_type = u16::from_be_bytes([header[12], header[13]]);
    let same = matches!(
        (case.link, ether_type, packet.first()? >> 4),
        (LinkLayer::Ethernet, ether_type::IPV4, 4) | (LinkLayer::Ethernet, ether_type::IPV6, 6)
    );
    let name = format!("{}, without Ethernet", case.name);
    same.then(|| Case { name, link: LinkLayer::Ip, frame: packet.to_vec(), ..case.clone() })
}

/// Table under construction.
struct Table {
    keys: Keys,
    subject: &'static str,
    cases: Vec<Case>,
}

impl Table {
    /// Adds a case over IPv4 and one over IPv6.
    fn both<P: Into<Vec<u8>>>(
        &mut self,
        name: impl Display,
        packet: impl Fn(Ip) -> P,
        expected: impl Fn(Family) -> Expected,
    ) {
        self.ipv4(format!("{name} (over IPv4)"), |ip| packet(ip.into()), &expected);
        self.ipv6(format!("{name} (over IPv6)"), |ip| packet(ip.into()), &expected);
    }

    /// Adds a case over IPv4.
    fn ipv4<P: Into<Vec<u8>>>(
        &mut self,
        name: impl Display,
        packet: impl FnOnce(Ipv4) -> P,
        expected: impl Fn(Family) -> Expected,
    ) {
        self.frame(name, packet(eth().ipv4(CLIENT_V4, SERVER_V4)), expected(Family::Ipv4));
    }

    /// Adds a case over IPv6.
    fn ipv6<P: Into<Vec<u8>>>(
        &mut self,
        name: impl Display,
        packet: impl FnOnce(Ipv6) -> P,
        expected: impl Fn(Family) -> Expected,
    ) {
        self.frame(name, packet(eth().ipv6(CLIENT_V6, SERVER_V6)), expected(Family::Ipv6));
    }

    /// Adds a case of an Ethernet frame.
    fn frame(&mut self, name: impl Display, frame: impl Into<Vec<u8>>, expected: Expected) {
        self.add(name, LinkLayer::Ethernet, frame.into(), expected);
    }

    /// Adds a case of a frame that begins with its IP header.
    fn ip_frame(&mut self, name: impl Display, frame: impl Into<Vec<u8>>, expected: Expected) {
        self.add(name, LinkLayer::Ip, frame.into(), expected);
    }

    fn add(&mut self, name: impl Display, link: LinkLayer, frame: Vec<u8>, expected: Expected) {
        let name = format!("{}: {name}", self.subject);
        self.cases.push(Case { name, link, keys: self.keys, frame, expected });
    }
}

/// Returns the outcomes for which `cases` has no case.
pub fn uncovered(cases: &[Case]) -> Vec<String> {
    let mut missing = Vec::new();
    let mut need = |what: String, is: &dyn Fn(Expected) -> bool| {
        if !cases.iter().any(|case| is(case.expected)) {
            missing.push(what);
        }
    };
    need("not a SYN".into(), &|expected| expected == Expected::NotSyn);
    for reason in Malformed::ALL {
        need(format!("malformed: {reason}"), &|expected| expected == Expected::Malformed(*reason));
    }
    for reason in Unsupported::ALL {
        need(format!("unsupported: {reason}"), &|expected| expected == Expected::Unsupported(*reason));
    }
    for family in Family::ALL {
        for class in Class::ALL {
            for with_data in [false, true] {
                need(format!("{family} {class}, with data: {with_data}"), &|expected| {
                    matches!(expected, Expected::Syn { family: f, class: c, data_len, .. }
                        if f == *family && c == *class && (data_len > 0) == with_data)
                });
            }
        }
    }
    for slot in 0..SLOTS {
        need(
            format!("a cookie of the key in slot {slot}"),
            &|expected| matches!(expected, Expected::Syn { slot: s, .. } if s == Some(slot)),
        );
    }
    missing
}

/// Returns a line for each counter that is not zero, for messages.
pub fn rows(counters: &Counters) -> Vec<String> {
    let mut rows = Vec::new();
    for family in Family::ALL {
        for class in Class::ALL {
            for (verdict, tally) in counters.syn[*family as usize][*class as usize].iter().enumerate() {
                if *tally != Tally::default() {
                    rows.push(format!("{family} {class} verdict {verdict}: {tally:?}"));
                }
            }
        }
    }
    let others = [
        ("malformed reason", &counters.malformed[..]),
        ("unsupported reason", &counters.unsupported[..]),
        ("unsupported and dropped, reason", &counters.dropped[..]),
        ("hits", &counters.hits[..]),
    ];
    for (kind, counts) in others {
        for (index, count) in counts.iter().enumerate().filter(|(_, count)| **count != 0) {
            rows.push(format!("{kind} {index}: {count}"));
        }
    }
    for (guard, count) in Guard::ALL.iter().zip(counters.guards) {
        if count != GuardCounts::default() {
            rows.push(format!("{guard}: {count:?}"));
        }
    }
    rows
}
