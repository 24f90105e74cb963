//! Explains events from the keys, the addresses of this host, and the latest sources.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{LaxNetSlice, LaxSlicedPacket};
use jiff::Timestamp;
use tfo_common::{
    bytes::Bytes,
    class::Class,
    description::Kind,
    keyring::{KeyRing, NEWEST, Role, SLOTS},
    observed::{self, Connection, EventGuard, Prefix},
    parse::{Headers, LinkLayer, Malformed, Unsupported, parse},
    segment::{Addresses, Cookie, Family, FastOpen},
    verdict::Verdict,
};

use super::{Event, Why};

/// Facts from which events are explained.
pub struct Explainer<'a> {
    /// Name of the interface.
    pub interface: &'a str,
    /// Link layer of the interface.
    pub link: LinkLayer,
    /// Keys in the map.
    pub ring: &'a KeyRing,
    /// Addresses of this host.
    pub own: &'a [IpAddr],
    /// Returns the name of a service by its index.
    pub service: &'a dyn Fn(u32) -> String,
    /// Returns the last 64 bits of the latest sources of an IPv6 prefix, as little-endian words of the packet's bytes.
    pub recent_sources: &'a dyn Fn(Prefix) -> Vec<u64>,
}

impl Explainer<'_> {
    /// Explains `event`. Handles keys: call it within [`leaving_no_trace`](crate::util::secrecy::leaving_no_trace).
    pub fn explain(&self, event: &observed::Event) -> Event {
        let subject = &event.subject;
        let head = Head::new(&event.head[..event.head.len().min(event.head_len as usize)]);
        let (kind, detail) = (Kind::ALL.get(subject.kind as usize), subject.detail as usize);
        let (what, why, experimental) = match kind {
            Some(Kind::Malformed) => (name(Malformed::ALL, detail, Malformed::name), Why::Malformed, false),
            Some(Kind::Unsupported) => {
                (name(Unsupported::ALL, detail, Unsupported::name), Why::Unsupported, false)
            }
            Some(Kind::Refused) | None => (name(Class::ALL, detail, Class::name), Why::Refused, false),
            Some(Kind::Syn) => {
                let (why, experimental) = self.explain_syn(&subject.connection, detail, &head);
                (name(Class::ALL, detail, Class::name), why, experimental)
            }
        };
        let guard = EventGuard::from_number(subject.guard);
        let is_parsed = matches!(kind, Some(Kind::Syn | Kind::Refused));
        let ends = if is_parsed { ends(&subject.connection) } else { self.ends_of_frame(head.bytes) };
        Event {
            number: 0,
            time: Timestamp::now(),
            interface: self.interface.to_owned(),
            packets: event.weight,
            what,
            verdict: name(Verdict::ALL, subject.verdict as usize, Verdict::name),
            service: (self.service)(subject.service),
            source: ends.map(|[source, _]| source),
            source_port: is_parsed.then(|| subject.connection.ports()[0]),
            destination: ends.map(|[_, destination]| destination),
            destination_port: is_parsed.then(|| subject.connection.ports()[1]),
            experimental,
            guard: guard.map(|(guard, _)| guard.name().to_owned()),
            dry_run: guard.is_some_and(|(_, acted)| !acted),
            why,
        }
    }

    fn explain_syn(&self, connection: &Connection, class: usize, head: &Head<'_>) -> (Why, bool) {
        let why = match Class::ALL.get(class) {
            // These classes become events only if a protection acts, or would in a dry run.
            Some(Class::CookieCurrent | Class::CookieBackup) => Why::GoodCookie,
            Some(Class::CookieRequest) => Why::Request,
            Some(Class::OptionIgnored) => Why::IgnoredOption,
            Some(Class::CookieBadLength) => Why::WrongLength,
            _ => Why::Forged,
        };
        let Ok(Some(segment)) = parse(*head, self.link) else { return (why, false) };
        let FastOpen::Cookie(cookie) = segment.fast_open else { return (why, false) };
        let why = if why == Why::GoodCookie { why } else { self.explain_cookie(connection, cookie) };
        (why, is_experimental(head, segment.tcp, cookie))
    }

    /// Finds out why the kernel did not take `cookie`.
    fn explain_cookie(&self, connection: &Connection, cookie: Cookie) -> Why {
        let addresses = connection.addresses();
        if let Some(slot) = self.slot_of(&addresses, cookie) {
            return match Role::of_slot(slot) {
                Role::Next => Why::NextKey,
                Role::Retired => Why::RetiredKey { generation: slot - NEWEST + 1 },
                Role::Current | Role::Backup => Why::KeyLearned,
            };
        }
        let [source, destination] = source_and_destination(&addresses);
        let is_made_for = |source, destination| {
            let addresses = crate::model::keys::addresses(source, destination);
            addresses.is_ok_and(|addresses| self.slot_of(&addresses, cookie).is_some())
        };
        let mut own = self.own.iter().filter(|own| **own != destination && own.is_ipv4() == source.is_ipv4());
        if let Some(made_by) = own.find(|own| is_made_for(source, **own)) {
            return Why::WrongDestination { made_by: *made_by };
        }
        match self.neighbours(connection).into_iter().find(|neighbour| is_made_for(*neighbour, destination)) {
            Some(neighbour) => Why::NeighbourAddress { neighbour },
            None => Why::Forged,
        }
    }

    /// Finds the slot of the key that makes `cookie` for `addresses`.
    fn slot_of(&self, addresses: &Addresses, cookie: Cookie) -> Option<usize> {
        let makes = |slot: &usize| self.ring.slots[*slot].cookie(addresses) == cookie.value;
        (0..SLOTS).filter(|slot| self.ring.holds(*slot)).find(makes)
    }

    /// Lists addresses in the source's network: all of an IPv4 /24, or the latest sources of an IPv6 /64.
    fn neighbours(&self, connection: &Connection) -> Vec<IpAddr> {
        match source_and_destination(&connection.addresses())[0] {
            IpAddr::V4(source) => {
                (0..=0xff).map(|last| IpAddr::V4((source.to_bits() & !0xff | last).into())).collect()
            }
            IpAddr::V6(source) => {
                let network = source.to_bits() >> 64 << 64;
                let recent = (self.recent_sources)(Prefix::of(connection)).into_iter();
                // The bytes of each word are in network byte order.
                recent.map(|last| IpAddr::V6((network | u128::from(last.swap_bytes())).into())).collect()
            }
        }
    }

    /// Reads source and destination of a frame that `parse` has refused; `None` if its IP header can't be read.
    fn ends_of_frame(&self, head: &[u8]) -> Option<[IpAddr; 2]> {
        let packet = match self.link {
            LinkLayer::Ethernet => LaxSlicedPacket::from_ethernet(head).ok()?,
            LinkLayer::Ip => LaxSlicedPacket::from_ip(head).ok()?,
        };
        match packet.net? {
            LaxNetSlice::Ipv4(ip) => {
                Some([ip.header().source_addr().into(), ip.header().destination_addr().into()])
            }
            LaxNetSlice::Ipv6(ip) => {
                Some([ip.header().source_addr().into(), ip.header().destination_addr().into()])
            }
            LaxNetSlice::Arp(_) => None,
        }
    }
}

/// First bytes of a frame. Zeros stand for the rest, which the event does not contain and no explanation needs.
#[derive(Clone, Copy)]
struct Head<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl<'a> Head<'a> {
    /// More than the length field of any IP header can say.
    const LEN: usize = 1 << 20;

    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, len: Self::LEN }
    }
}

impl Bytes for Head<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        Some(std::array::from_fn(|i| self.bytes.get(offset + i).copied().unwrap_or_default()))
    }
}

impl Headers for Head<'_> {
    fn behind(self, len: usize) -> Self {
        Self { bytes: self.bytes.get(len..).unwrap_or_default(), len: self.len - len }
    }
}

/// Returns whether the option with `cookie` has kind 254 (RFC 6994): kind, length and magic are the 4 bytes before it.
fn is_experimental(head: &Head<'_>, tcp: u32, cookie: Cookie) -> bool {
    const EXPERIMENTAL: [u8; 4] = [254, 12, 0xf9, 0x89];
    head.read((tcp + cookie.offset) as usize - EXPERIMENTAL.len()) == Some(EXPERIMENTAL)
}

fn name<T: Copy>(all: &[T], index: usize, name: impl Fn(T) -> &'static str) -> String {
    all.get(index).map_or("unknown", |one| name(*one)).to_owned()
}

fn ends(connection: &Connection) -> Option<[IpAddr; 2]> {
    Some(source_and_destination(&connection.addresses()))
}

/// Returns the source and the destination address.
fn source_and_destination(addresses: &Addresses) -> [IpAddr; 2] {
    let words = addresses.words.map(u64::to_le_bytes);
    match addresses.family {
        Family::Ipv4 => {
            let [s0, s1, s2, s3, d0, d1, d2, d3] = words[0];
            [Ipv4Addr::new(s0, s1, s2, s3).into(), Ipv4Addr::new(d0, d1, d2, d3).into()]
        }
        Family::Ipv6 => {
            let address = |high: [u8; 8], low: [u8; 8]| {
                let bits = u128::from(u64::from_be_bytes(high)) << 64 | u128::from(u64::from_be_bytes(low));
                IpAddr::V6(Ipv6Addr::from_bits(bits))
            };
            [address(words[0], words[1]), address(words[2], words[3])]
        }
    }
}
