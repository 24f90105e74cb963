//! Services: groups of ports and addresses. Each has its own counters, mode and protections.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
};

use clap::ValueEnum;
use ipnet::{IpNet, Ipv4Net};
use tfo_common::{
    service::{ADDRESSES, NAME_LEN},
    verdict::Mode,
};

use crate::model::guards::{Guards, Same};

/// Name of the service for all traffic outside the configured services.
pub const OTHER_NAME: &str = "other";
/// Name for the counts of removed services.
pub const REMOVED_NAME: &str = "removed";
/// Largest number of services. The program has counters for each of them on each CPU.
pub const MAX_SERVICES: usize = 4095;

/// A configured service; on the command line `web=80,443,8000-8010`.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Name of the service.
    pub name: String,
    /// Ports and ranges of ports.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Local addresses of the service; empty means all.
    pub addresses: Vec<IpNet>,
    /// Mode for its packets.
    pub mode: Mode,
    /// Protections of the service. They act in [`Mode::Shield`], and only count in other modes.
    pub guards: Guards,
    /// Treatment of frames that tfo does not follow.
    pub unfollowed: Unfollowed,
    /// Whether its cookies are portable: the same whatever the destination. Not in [`Mode::Observe`].
    pub portable: bool,
    /// Length of the Fast Open queue that its listeners get, in connections; `None` leaves them as their servers make them.
    pub fast_open: Option<u32>,
}

/// Lengths of Fast Open queues that can be asked for. The kernel cuts them to `net.core.somaxconn`.
pub const QUEUES: RangeInclusive<u32> = 1..=65_536;

/// Treatment of frames that tfo does not follow, and that may bring a SYN past all protections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Unfollowed {
    /// Passes them, and the kernel may serve them.
    #[default]
    Pass,
    /// Drops them. Only for services in [`Mode::Shield`].
    Drop,
}

impl Named {
    /// Whether its SYNs may be answered.
    pub fn answers(&self) -> bool {
        self.guards.answer.is_some()
    }

    /// Whether its SYNs are answered when a flood comes, and not only counted.
    pub fn answers_indeed(&self) -> bool {
        self.mode == Mode::Shield && self.guards.answer.is_some_and(|answer| !answer.dry_run)
    }

    /// Whether the service is that of `port` at a local address, or of a listener on all addresses if that is `None`.
    pub fn is_at(&self, address: Option<IpAddr>, port: u16) -> bool {
        let is_there = |address: IpAddr| self.addresses.iter().any(|prefix| prefix.contains(&address));
        self.ports.iter().any(|range| range.contains(&port))
            && (self.addresses.is_empty() || address.is_none_or(is_there))
    }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "it is NAME=PORTS, such as web=80,443,8000-8010";
        let (name, ports) = text.split_once('=').ok_or(form)?;
        let ports =
            ports.split(',').map(|range| parse_ports(range).map_err(|what| format!("{what}; {form}")));
        Ok(Self {
            name: parse_name(name)?,
            ports: ports.collect::<Result<_, _>>()?,
            addresses: Vec::new(),
            mode: Mode::Observe,
            guards: Guards::default(),
            unfollowed: Unfollowed::default(),
            portable: false,
            fast_open: None,
        })
    }
}

/// Checks the name of a service.
pub fn parse_name(name: &str) -> Result<String, String> {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > NAME_LEN || !name.chars().all(is_fit) {
        return Err(format!("a name has 1 to {NAME_LEN} letters, digits, or . _ -"));
    }
    if name == OTHER_NAME {
        return Err(format!("{OTHER_NAME} is the name of traffic that belongs to no service"));
    }
    if name == REMOVED_NAME {
        return Err(format!("{REMOVED_NAME} is the name of what removed services have counted"));
    }
    Ok(name.to_owned())
}

/// Parses a port or a range of ports: `80`, `8000-8010`.
pub fn parse_ports(range: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    // `parse` would accept a sign.
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let port = |text: &str| text.parse().ok().filter(|port| *port != 0 && is_number(text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(format!("`{range}` is not a port or a range of ports (1 to 65535)")),
    }
}

/// Parses an address or a prefix. Bits beyond the prefix length must be zero. An IPv4-mapped IPv6 prefix (RFC 4291,
/// 2.5.5.2) becomes an IPv4 prefix.
pub fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let host = text.parse::<IpAddr>().map(IpNet::from);
    let prefix: IpNet = host.or_else(|_| text.parse()).map_err(|_| {
        format!(
            "`{text}` is not an address or a prefix; write, for example, 192.0.2.1, 192.0.2.0/24 or 2001:db8::/64"
        )
    })?;
    match prefix.trunc() {
        trunc if trunc != prefix => {
            Err(format!("`{text}` has bits beyond its prefix length; write {} or {trunc}", prefix.addr()))
        }
        IpNet::V6(net) => {
            let mapped = net.network().to_ipv4_mapped().zip(net.prefix_len().checked_sub(96));
            let mapped = mapped.and_then(|(address, len)| Ipv4Net::new(address, len).ok());
            Ok(mapped.map_or(IpNet::V6(net), IpNet::V4))
        }
        trunc => Ok(trunc),
    }
}

/// Services of a configuration, without conflicts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Services {
    named: Vec<Named>,
    /// Mode for packets that belong to no service.
    other: Mode,
}

impl Services {
    /// Checks `named` for conflicts. Returns the services, or all conflicts.
    pub fn new(named: Vec<Named>, other: Mode) -> Result<Self, Conflicts> {
        let conflicts = conflicts(&named);
        if conflicts.is_empty() { Ok(Self { named, other }) } else { Err(Conflicts(conflicts)) }
    }

    /// Returns the number of services.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// Returns the configured services.
    pub fn named(&self) -> &[Named] {
        &self.named
    }

    /// Returns the mode for packets that belong to no service.
    pub fn other(&self) -> Mode {
        self.other
    }

    /// Returns the highest mode of all services.
    pub fn mode(&self) -> Mode {
        self.named.iter().map(|named| named.mode).fold(self.other, Mode::max)
    }

    /// Returns the mode of the program that is needed: [`Mode::Shield`] if services differ in mode, have protections, even
    /// dry runs, or have portable cookies.
    pub(crate) fn program(&self) -> Mode {
        let is_plain =
            |named: &Named| named.mode == self.other && named.guards == Guards::default() && !named.portable;
        if self.named.iter().all(is_plain) { self.other } else { Mode::Shield }
    }

    /// Returns the mode of the service called `name`; `None` for an unknown name.
    pub fn mode_of(&self, name: &str) -> Option<Mode> {
        let named = self.named.iter().find(|named| named.name == name).map(|named| named.mode);
        named.or((name == OTHER_NAME).then_some(self.other))
    }

    /// Whether `once` compares the data of SYNs to any service.
    pub fn compare_data(&self) -> bool {
        self.named.iter().any(|named| named.guards.once.is_some_and(|once| once.same == Same::Data))
    }

    /// Whether any service has portable cookies.
    pub fn has_portable(&self) -> bool {
        self.named.iter().any(|named| named.portable)
    }

    /// Whether any service has Fast Open kept on.
    pub fn has_fast_open(&self) -> bool {
        self.named.iter().any(|named| named.fast_open.is_some())
    }

    /// Returns the length of the Fast Open queue for a listener with this local address: the longest that one of its services
    /// asks for.
    pub fn fast_open_at(&self, listener: SocketAddr) -> Option<u32> {
        let address = listener.ip().to_canonical();
        let address = Some(address).filter(|address| !address.is_unspecified());
        let its = self.named.iter().filter(|named| named.is_at(address, listener.port()));
        its.filter_map(|named| named.fast_open).max()
    }

    /// Describes the numbers of services, ports and protections.
    pub fn summary(&self) -> String {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let ports: BTreeSet<u16> =
            self.named.iter().flat_map(|named| named.ports.iter().cloned().flatten()).collect();
        let acts = |named: &Named| {
            let is_shield = named.mode == Mode::Shield;
            named.guards.dry_runs().map(move |dry_run| is_shield && !dry_run).collect::<Vec<_>>()
        };
        let (acting, dry): (Vec<bool>, Vec<bool>) = self.named.iter().flat_map(acts).partition(|acts| *acts);
        let verb = if acting.len() == 1 { "acts" } else { "act" };
        let protections = match (acting.len(), dry.len()) {
            (0, 0) => "no protections".to_owned(),
            (acting, dry) => format!("{} {verb}, {}", count(acting, "protection"), count(dry, "dry run")),
        };
        let drops = self.named.iter().filter(|named| named.unfollowed == Unfollowed::Drop).count();
        let drops = match drops {
            0 => String::new(),
            1 => "; 1 service drops frames that are not followed".to_owned(),
            n => format!("; {n} services drop frames that are not followed"),
        };
        let portable = match self.named.iter().filter(|named| named.portable).count() {
            0 => String::new(),
            n => format!("; {} with portable cookies", count(n, "service")),
        };
        let fast_open = match self.named.iter().filter(|named| named.fast_open.is_some()).count() {
            0 => String::new(),
            n => format!("; Fast Open kept on for {}", count(n, "service")),
        };
        format!(
            "{} on {}; {protections}{drops}{portable}{fast_open}",
            count(self.len(), "service"),
            count(ports.len(), "port")
        )
    }

    /// Whether there is no configured service.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

/// Position in the configuration: the index of a service, and the index of a range in its ports.
pub type Place = (usize, Option<usize>);

/// A reason why services can't exist together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Position of the service that is in conflict.
    pub at: Place,
    /// Earlier position with which it is in conflict.
    pub earlier: Option<Place>,
    /// Description of the conflict.
    pub what: String,
    /// Advice on what to do.
    pub advice: String,
}

/// Conflicts between services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(|it| format!("{}: {}", it.what, it.advice)).collect();
        f.write_str(&all.join("; "))
    }
}

impl std::error::Error for Conflicts {}

/// Finds all conflicts: services with the same name, or with the same port at the same addresses, too many services,
/// and too many pairs of a port and an address.
///
/// A prefix inside another one is no conflict: the longest prefix wins. A service without addresses gets the rest.
fn conflicts(named: &[Named]) -> Vec<Conflict> {
    let mut found = Vec::new();
    if named.len() > MAX_SERVICES {
        found.push(Conflict {
            at: (MAX_SERVICES, None),
            earlier: None,
            what: format!("there may be at most {MAX_SERVICES} services, but these are {}", named.len()),
            advice: "put some of them together".to_owned(),
        });
    }
    let mut names = HashMap::new();
    for (service, Named { name, .. }) in named.iter().enumerate() {
        if let Some(earlier) = names.insert(name, service) {
            found.push(Conflict {
                at: (service, None),
                earlier: Some((earlier, None)),
                what: format!("there are two services {name}"),
                advice: "give one of them all the ports, or the other another name".to_owned(),
            });
        }
    }
    let sites: Vec<_> = (0..named.len()).map(|service| Site::of(named, service, &mut found)).collect();
    // With far too many claims, overlaps at addresses are not searched, to bound the memory.
    let is_bounded = sites.iter().map(Site::claims).sum::<usize>() <= 8 * ADDRESSES;
    let searched = sites.iter().filter(|site| is_bounded || !site.has_addresses());
    let taken = overlaps(named, searched, &mut found);
    let pairs = if is_bounded { taken } else { sites.iter().map(Site::pairs).sum() };
    if pairs > ADDRESSES as u64
        && let Some(most) = sites.iter().max_by_key(|site| site.pairs())
    {
        let name = &named[most.service].name;
        found.push(Conflict {
            at: (most.service, None),
            earlier: None,
            what: format!(
                "the services have {pairs} pairs of a port and an address, {} of them in service {name}, and there may be \
                 {ADDRESSES}",
                most.pairs()
            ),
            advice: "name fewer ports where addresses are named, or a prefix in place of many addresses"
                .to_owned(),
        });
    }
    found
}

/// Ports and addresses of a service, without duplicates.
struct Site {
    service: usize,
    /// Ranges that do not overlap: first port, last port, and index of the range in the service's ports.
    ports: Vec<(u16, u16, usize)>,
    /// Prefixes of the service; `None` stands for all addresses.
    prefixes: BTreeSet<Option<IpNet>>,
}

impl Site {
    /// Collects the ports and addresses of a service. Duplicate ports become conflicts in `found`.
    fn of(named: &[Named], service: usize, found: &mut Vec<Conflict>) -> Self {
        let Named { ports, addresses, .. } = &named[service];
        let mut ranges: Vec<_> =
            ports.iter().enumerate().map(|(at, range)| (*range.start(), *range.end(), at)).collect();
        ranges.sort_unstable();
        let mut ports: Vec<(u16, u16, usize)> = Vec::new();
        for (first, last, at) in ranges {
            match ports.last() {
                Some(&(_, end, before)) if first <= end => {
                    let both = [at.min(before), at.max(before)];
                    found.push(overlap(named, first, None, both.map(|at| (service, at))));
                    if last > end {
                        ports.push((end + 1, last, at));
                    }
                }
                _ => ports.push((first, last, at)),
            }
        }
        let prefixes = match addresses.as_slice() {
            [] => [None].into(),
            addresses => addresses.iter().map(|address| Some(address.trunc())).collect(),
        };
        Self { service, ports, prefixes }
    }

    fn has_addresses(&self) -> bool {
        !self.prefixes.contains(&None)
    }

    /// Returns the number of pairs of a range and a configured address.
    fn claims(&self) -> usize {
        if self.has_addresses() { self.ports.len() * self.prefixes.len() } else { 0 }
    }

    /// Returns the number of pairs of a port and an address. Each takes a map entry.
    fn pairs(&self) -> u64 {
        let ports: u64 = self.ports.iter().map(|(first, last, _)| u64::from(last - first) + 1).sum();
        if self.has_addresses() { ports * self.prefixes.len() as u64 } else { 0 }
    }
}

/// Adds a conflict to `found` for each two of `sites` with the same port at the same addresses. Returns the total
/// number of pairs of a port and an address.
fn overlaps<'a>(named: &[Named], sites: impl Iterator<Item = &'a Site>, found: &mut Vec<Conflict>) -> u64 {
    // Each claim is a prefix, a range of ports and their position. In sorted order, overlapping claims are adjacent.
    let mut claims = Vec::new();
    for Site { service, ports, prefixes } in sites {
        let all = prefixes.iter().flat_map(|prefix| ports.iter().map(move |range| (*prefix, *range)));
        claims.extend(all.map(|(prefix, (first, last, at))| (prefix, first, last, (*service, at))));
    }
    claims.sort_unstable();
    let mut reported = BTreeSet::new();
    let mut pairs = 0;
    // The claim of the present prefix with the highest last port: its prefix, last port and position.
    let mut widest: Option<(Option<IpNet>, u16, (usize, usize))> = None;
    for (prefix, first, last, at) in claims {
        let new: u16 = match widest {
            Some((same, end, before)) if same == prefix && first <= end => {
                let both = [at.min(before), at.max(before)];
                // Two services with many common addresses are reported once.
                if reported.insert(both) {
                    found.push(overlap(named, first, prefix, both));
                }
                last.saturating_sub(end)
            }
            // This does not overflow, since no range begins with port 0.
            _ => last - first + 1,
        };
        if new > 0 {
            widest = Some((prefix, last, at));
        }
        pairs += if prefix.is_some() { u64::from(new) } else { 0 };
    }
    pairs
}

/// Describes the conflict of two positions that both have `port` at `prefix`. The earlier position comes first in
/// `both`.
fn overlap(named: &[Named], port: u16, prefix: Option<IpNet>, both: [(usize, usize); 2]) -> Conflict {
    let [owner, name] = both.map(|(service, _)| &named[service].name);
    let [earlier, at] = both.map(|(service, ports)| (service, Some(ports)));
    let place = prefix.map_or(String::new(), |prefix| format!(" at {prefix}"));
    let (what, advice) = if at.0 == earlier.0 {
        (format!("service {name} has port {port} twice"), "leave one out")
    } else {
        let what = format!("port {port} of service {name} belongs to service {owner} already{place}");
        (what, "take it from one of them, or give them different addresses")
    };
    Conflict { at, earlier: Some(earlier), what, advice: advice.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::guards::{Clamp, Hide};

    fn named(text: &str) -> Named {
        text.parse().expect("a service")
    }

    #[test]
    fn ports_and_ranges() {
        let web = named("web=80,443,8000-8010");
        assert_eq!(web.name, "web");
        assert_eq!(web.ports, [80..=80, 443..=443, 8000..=8010]);
        for wrong in [
            "web",
            "=80",
            "web=",
            "web=+1",
            "web=0",
            "web=2-1",
            "web=65536",
            "web=80,",
            "we b=80",
            "other=80",
            "web=a",
        ] {
            assert!(wrong.parse::<Named>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_listener_gets_the_longest_queue_of_its_services() {
        let service = |name: &str, ports: &str, addresses: &[&str], fast_open| Named {
            addresses: addresses.iter().map(|text| parse_prefix(text).expect("a prefix")).collect(),
            fast_open,
            ..named(&format!("{name}={ports}"))
        };
        let services = Services::new(
            vec![
                service("web", "80,443", &[], Some(256)),
                service("api", "443", &["192.0.2.0/24", "2001:db8::1"], Some(512)),
                service("dns", "53", &[], None),
            ],
            Mode::Observe,
        );
        let services = services.expect("no conflicts");
        let at = |listener: &str| services.fast_open_at(listener.parse().expect("an address and a port"));
        assert_eq!(at("198.51.100.1:443"), Some(256));
        assert_eq!(at("192.0.2.1:443"), Some(512));
        assert_eq!(at("[::ffff:192.0.2.1]:443"), Some(512));
        assert_eq!(at("[2001:db8::1]:443"), Some(512));
        assert_eq!(at("[::]:443"), Some(512), "it takes what comes to any address");
        assert_eq!(at("192.0.2.1:80"), Some(256));
        assert_eq!([at("0.0.0.0:53"), at("0.0.0.0:81")], [None, None]);
        assert!(services.has_fast_open());
        assert!(services.summary().ends_with("; Fast Open kept on for 2 services"), "{}", services.summary());
    }

    #[test]
    fn prefixes() {
        for (text, expected) in [
            ("192.0.2.1", "192.0.2.1/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("::/80", "::/80"),
            ("::/96", "::/96"),
            ("::fffe:0:0/95", "::fffe:0:0/95"),
            ("::fffe:10.0.0.0/104", "::fffe:10.0.0.0/104"),
            ("2001:db8::/32", "2001:db8::/32"),
        ] {
            assert_eq!(parse_prefix(text), Ok(expected.parse().expect("a prefix")), "{text}");
        }
        for wrong in ["", "a", "10.0.0.1/8", "::ffff:10.0.0.1/104", "10.0.0.0/33", "::/129"] {
            assert!(parse_prefix(wrong).is_err(), "{wrong}");
        }
    }

    /// Returns the later service and its range, and the earlier service, of each conflict.
    fn found(named: Vec<Named>) -> Vec<(usize, Option<usize>, usize)> {
        let conflicts = Services::new(named, Mode::Observe).err().map_or(Vec::new(), |conflicts| conflicts.0);
        conflicts.iter().map(|it| (it.at.0, it.at.1, it.earlier.map_or(0, |(service, _)| service))).collect()
    }

    #[test]
    fn duplicates_are_conflicts() {
        assert_eq!(found(vec![named("a=1-10"), named("b=11")]), []);
        assert_eq!(found(vec![named("a=1-10"), named("b=10")]), [(1, Some(0), 0)]);
        assert_eq!(found(vec![named("a=10"), named("b=12,1-10")]), [(1, Some(1), 0)]);
        assert_eq!(found(vec![named("a=1"), named("a=2")]), [(1, None, 0)]);
        assert_eq!(found(vec![named("a=1,1")]), [(0, Some(1), 0)]);
        // A narrow range inside a wide one does not hide the end of the wide one.
        let all = vec![named("a=1-100"), named("b=5"), named("c=50")];
        assert_eq!(found(all), [(1, Some(0), 0), (2, Some(0), 0)]);
        let many: Vec<_> = (1..=MAX_SERVICES + 1).map(|port| named(&format!("s{port}={port}"))).collect();
        assert_eq!(found(many[..MAX_SERVICES].to_vec()), []);
        assert_eq!(found(many), [(MAX_SERVICES, None, 0)]);
    }

    #[test]
    fn the_same_port_at_other_addresses() {
        let at = |text: &str, addresses: &[&str]| Named {
            addresses: addresses.iter().map(|address| address.parse().expect("a prefix")).collect(),
            ..named(text)
        };
        let (net, host) = ("192.0.2.0/24", "192.0.2.1/32");
        assert_eq!(found(vec![at("a=80", &[net]), at("b=80", &[])]), []);
        assert_eq!(found(vec![at("a=80", &[net]), at("b=80", &[host])]), []);
        assert_eq!(found(vec![at("a=80", &[net]), at("b=80", &["2001:db8::/32"])]), []);
        assert_eq!(found(vec![at("a=80", &[host]), at("b=81", &[host])]), []);
        assert_eq!(found(vec![at("a=80", &[]), at("b=80", &[])]), [(1, Some(0), 0)]);
        assert_eq!(found(vec![at("a=80", &[net]), at("b=80", &[host, net])]), [(1, Some(0), 0)]);
        let both = [net, "2001:db8::/32"];
        assert_eq!(found(vec![at("a=80", &both), at("b=80", &both)]), [(1, Some(0), 0)]);
        assert_eq!(found(vec![at("a=80", &[net, net])]), []);
    }

    /// The limit is checked before map entries are made. For these services, they would take a gigabyte.
    #[test]
    fn pairs_of_a_port_and_an_address_have_a_limit() {
        let prefixes = |count: u32| (0..count).map(|n| IpNet::from(IpAddr::from((n << 8).to_be_bytes())));
        let at = |text: &str, count: u32| Named { addresses: prefixes(count).collect(), ..named(text) };
        let pairs = |named: Vec<Named>| {
            let Conflicts(conflicts) = Services::new(named, Mode::Observe).err()?;
            let [conflict] = &conflicts[..] else { panic!("{conflicts:?}") };
            assert_eq!((conflict.at.1, conflict.earlier), (None, None));
            Some((conflict.at.0, conflict.what.clone()))
        };
        assert_eq!(pairs(vec![at("a=1-64", 256)]), None);
        assert_eq!(pairs(vec![at("a=1-65535", 0), at("b=1", 256)]), None);
        let expected = |service, all, own| {
            let name = ["a", "b"][service];
            let what = format!(
                "the services have {all} pairs of a port and an address, {own} of them in service {name}, and there may \
                 be 16384"
            );
            Some((service, what))
        };
        assert_eq!(pairs(vec![at("a=1-64", 256), at("b=65", 1)]), expected(0, 16385, 16384));
        assert_eq!(pairs(vec![at("a=1", 1), at("b=2-66", 256)]), expected(1, 16641, 16640));
        assert_eq!(pairs(vec![at("a=1-65535", 300)]), expected(0, 19_660_500, 19_660_500));
        // Each port is a range of its own.
        let ports: Vec<_> = (1..=u16::MAX).map(|port| port..=port).collect();
        assert_eq!(pairs(vec![Named { ports, ..at("a=1", 300) }]), expected(0, 19_660_500, 19_660_500));
        // A pair that two services have in common counts once.
        let twice = Services::new(vec![at("a=1-64", 256), at("b=1-64", 256)], Mode::Observe).err();
        assert_eq!(twice.map(|Conflicts(found)| found.len()), Some(1));
        let double = Named { addresses: prefixes(256).chain(prefixes(256)).collect(), ..named("a=1-64") };
        assert_eq!(pairs(vec![double]), None);
    }

    #[test]
    fn modes() {
        let shield = Named { mode: Mode::Shield, ..named("a=1") };
        let services = Services::new(vec![shield, named("b=2")], Mode::Accelerate).expect("services");
        let modes = ["a", "b", "other", "c"].map(|name| services.mode_of(name));
        assert_eq!(modes, [Some(Mode::Shield), Some(Mode::Observe), Some(Mode::Accelerate), None]);
        assert_eq!(services.mode(), Mode::Shield);
    }

    #[test]
    fn a_summary_counts_what_acts() {
        let summary = |named, other| Services::new(named, other).expect("services").summary();
        assert_eq!(summary(Vec::new(), Mode::Shield), "0 services on 0 ports; no protections");
        let guards = Guards {
            hide: Some(Hide { dry_run: false }),
            clamp: Some(Clamp { factor: 3, dry_run: true }),
            ..Guards::default()
        };
        let shield = Named { mode: Mode::Shield, guards: guards.clone(), ..named("a=1") };
        assert_eq!(
            summary(vec![shield.clone()], Mode::Observe),
            "1 service on 1 port; 1 protection acts, 1 dry run"
        );
        // Outside of mode shield, every protection counts as a dry run.
        let observe = Named { guards, ..named("b=2-4") };
        assert_eq!(
            summary(vec![shield, observe], Mode::Observe),
            "2 services on 4 ports; 1 protection acts, 3 dry runs"
        );
        let drops = Named { mode: Mode::Shield, unfollowed: Unfollowed::Drop, ..named("c=5") };
        assert_eq!(
            summary(vec![drops], Mode::Observe),
            "1 service on 1 port; no protections; 1 service drops frames that are not followed"
        );
    }
}
