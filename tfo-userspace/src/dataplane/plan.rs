//! Plans the entries of services in the maps of names, ports, addresses and policies.

use std::{collections::BTreeMap, net::Ipv6Addr};

use anyhow::{Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tfo_common::{
    limit::Limit,
    policy::{Guard, Policy},
    segment::Family,
    service::{ADDRESSES, BY_ADDRESS, NO_PORT, OTHER, PORT_BITS, PORTS, Service, address_key},
    table::SourceMask,
    verdict::Mode,
};

use crate::model::{
    guards::{self, Guards, Same, SourceLen},
    services::{Named, Services, Unfollowed},
};

/// Planned contents of these maps.
pub(super) struct Plan {
    /// Name of the service at each index. [`OTHER`] has no name, and the last index is kept free for
    /// [`REMOVED_NAME`](crate::model::services::REMOVED_NAME).
    pub(super) places: Vec<Option<Service>>,
    /// Entry of each port in the map of ports.
    pub(super) ports: Vec<u32>,
    /// Index of the service of a port at an address, by the length in bits of the key's prefix, and the key.
    pub(super) addresses: BTreeMap<(u32, [u32; 5]), u32>,
    /// Policy at each index, without orders.
    pub(super) policies: Vec<Policy>,
}

impl Plan {
    /// Plans the maps for `services`. A service that is in `before` keeps its index. `hz` is the number of jiffies in
    /// a second.
    pub(super) fn new(services: &Services, before: &[Option<String>], hz: u64) -> Result<Self> {
        let places = place(services, before)?;
        let index = |named: &Named| {
            let is_its =
                |place: &Option<Service>| place.is_some_and(|place| place.name() == Some(&named.name));
            places.iter().position(is_its).unwrap_or(OTHER as usize)
        };
        let mut ports = vec![OTHER; PORTS];
        let mut addresses = BTreeMap::new();
        let mut policies = vec![Policy::of_mode(services.other()); places.len()];
        for named in services.named() {
            let at = index(named);
            policies[at] = policy(named, hz);
            // Without a port, a frame is told by its address only.
            let without_port = if drops_unfollowed(named) { &named.addresses[..] } else { &[] };
            for (family, len, words) in without_port.iter().map(|address| words(*address)) {
                addresses.insert((PORT_BITS + len, address_key(NO_PORT, family, words)), at as u32);
            }
            for port in named.ports.iter().cloned().flatten() {
                let entry = &mut ports[usize::from(port)];
                if named.addresses.is_empty() {
                    *entry = at as u32 | *entry & BY_ADDRESS;
                } else {
                    *entry |= BY_ADDRESS;
                }
                for address in &named.addresses {
                    let (family, len, words) = words(*address);
                    addresses.insert((PORT_BITS + len, address_key(port, family, words)), at as u32);
                }
            }
        }
        // The map has room for as many entries without a port.
        let pairs = addresses.keys().filter(|(_, key)| key[0] & PORT_MASK != 0).count();
        if pairs > ADDRESSES {
            bail!(
                "the services have {pairs} pairs of a port and an address, and there may be {ADDRESSES}: name fewer \
                 ports where addresses are named"
            );
        }
        Ok(Self { places, ports, addresses, policies })
    }
}

/// Whether frames that may bring a SYN to this service past its protections are dropped.
fn drops_unfollowed(named: &Named) -> bool {
    named.mode == Mode::Shield && named.unfollowed == Unfollowed::Drop
}

/// Gives each service an index. Services in `before` keep their index. The others take indices that were free
/// before, then those of removed services.
fn place(services: &Services, before: &[Option<String>]) -> Result<Vec<Option<Service>>> {
    let last = before.len().saturating_sub(1);
    if services.len() + 2 > before.len() {
        bail!(
            "the maps have room for {} services, but these are {}: end tfo and start it again, which makes larger maps",
            before.len().saturating_sub(2),
            services.len()
        );
    }
    let mut places = vec![None; before.len()];
    let is_at = |named: &Named, place: &Option<String>| place.as_ref() == Some(&named.name);
    let (stay, come): (Vec<_>, Vec<_>) =
        services.named().iter().partition(|named| before[..last].iter().any(|place| is_at(named, place)));
    for named in stay {
        if let Some(index) = before.iter().position(|place| is_at(named, place)) {
            places[index] = Service::new(&named.name);
        }
    }
    let inner = OTHER as usize + 1..last;
    let mut free: Vec<_> = inner.filter(|index| places[*index].is_none()).collect();
    free.sort_by_key(|index| before[*index].is_some());
    for (named, index) in come.into_iter().zip(free) {
        places[index] = Service::new(&named.name);
    }
    Ok(places)
}

/// Returns the family of `prefix`, its length in bits and its address, in the form of [`Addresses::source_v6`].
///
/// [`Addresses::source_v6`]: tfo_common::segment::Addresses::source_v6
pub(super) fn words(prefix: IpNet) -> (Family, u32, [u32; 4]) {
    let (family, len, address) = match prefix {
        IpNet::V4(net) => {
            (Family::Ipv4, MAPPED_BITS + u32::from(net.prefix_len()), net.network().to_ipv6_mapped())
        }
        IpNet::V6(net) => (Family::Ipv6, net.prefix_len().into(), net.network()),
    };
    let octets = address.octets();
    let (words, _) = octets.as_chunks();
    (family, len, std::array::from_fn(|i| u32::from_le_bytes(words[i])))
}

/// Returns the prefix that [`words`] turns into these values. `family` is the index of a [`Family`].
pub(super) fn prefix(family: u32, len: u32, words: [u32; 4]) -> Option<IpNet> {
    let octets: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?);
    if family == Family::Ipv6 as u32 {
        return Some(IpNet::V6(Ipv6Net::new(address, len.try_into().ok()?).ok()?));
    }
    let len = len.checked_sub(MAPPED_BITS)?.try_into().ok()?;
    Some(IpNet::V4(Ipv4Net::new(address.to_ipv4_mapped()?, len).ok()?))
}

/// Returns the prefix that tfo 0.1 stored as these values, without its family.
pub(super) fn prefix_0_1(len: u32, words: [u32; 4]) -> Option<IpNet> {
    let is_mapped = words[0] | words[1] == 0 && words[2] == 0xffff_u32.to_be();
    let family = if is_mapped && len >= MAPPED_BITS { Family::Ipv4 } else { Family::Ipv6 };
    prefix(family as u32, len, words)
}

/// Bits of the first word of a key that have the port.
const PORT_MASK: u32 = u16::MAX as u32;
/// Number of bits before the IPv4 address in an IPv4-mapped IPv6 address.
const MAPPED_BITS: u32 = 96;

/// Returns the policy of the service `named`.
fn policy(named: &Named, hz: u64) -> Policy {
    let acts = |dry_run: bool| named.mode == Mode::Shield && !dry_run;
    let limit =
        |limit: guards::Limit| Limit::new(limit.count.into(), limit.per.as_secs() * hz, limit.burst.into());
    let source = |SourceLen { v4, v6 }| SourceMask::new(v4, v6);
    let mut policy = Policy::of_mode(named.mode);
    policy.flags |= if drops_unfollowed(named) { Policy::DROPS_UNFOLLOWED } else { 0 };
    policy.portable = if named.portable { portable_tag(&named.name) } else { 0 };
    // Without `..`, so that a new guard can't be forgotten here.
    let Guards { hide, once, fair, clamp, shed, answer } = &named.guards;
    if let Some(hide) = hide {
        policy = policy.with(Guard::Hide, acts(hide.dry_run));
    }
    if let Some(once) = once {
        policy =
            Policy { once: once.remember.as_secs() * hz, ..policy }.with(Guard::Once, acts(once.dry_run));
        policy.flags |= if once.same == Same::Data { Policy::COMPARES_DATA } else { 0 };
    }
    if let Some(fair) = fair {
        policy = Policy { fair: limit(fair.limit), fair_source: source(fair.source), ..policy }
            .with(Guard::Fair, acts(fair.dry_run));
    }
    if let Some(clamp) = clamp {
        policy = Policy { clamp: clamp.factor.into(), ..policy }.with(Guard::Clamp, acts(clamp.dry_run));
    }
    if let Some(shed) = shed {
        policy = policy.with(Guard::Shed, acts(shed.dry_run));
        policy.shed_source = source(shed.source);
        if let Some(all) = shed.limit {
            policy.shed = limit(all);
            policy.flags |= Policy::SHEDS_ALL;
        }
        if let Some(each) = shed.per_source {
            policy.shed_per_source = limit(each);
            policy.flags |= Policy::SHEDS_SOURCES;
        }
        if shed.drop {
            policy.flags |= Policy::DROPS;
        }
        if shed.others {
            policy.flags |= Policy::SHEDS_OTHERS;
        }
        if shed.own_keys {
            policy.flags |= Policy::SHEDS_OWN_KEYS;
        }
    }
    if let Some(answer) = answer {
        policy = policy.with(Guard::Answer, acts(answer.dry_run));
    }
    policy
}

/// Returns the tag of the portable cookies of the service called `name`. Hosts agree on it by the name. It is no secret, and
/// never 0.
pub(super) fn portable_tag(name: &str) -> u64 {
    let mut params = blake2b_simd::Params::new();
    let hash = params.hash_length(size_of::<u64>()).personal(b"tfo portable\0\0\0\0").hash(name.as_bytes());
    let tag = hash.as_bytes().iter().rev().fold(0, |tag, byte| tag << 8 | u64::from(*byte));
    tag.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(named: &[&str]) -> Services {
        let named = named.iter().map(|text| text.parse().expect("a service")).collect();
        Services::new(named, Mode::Observe).expect("services")
    }

    fn before(names: &[&str]) -> Vec<Option<String>> {
        names.iter().map(|name| Some((*name).to_owned()).filter(|name| !name.is_empty())).collect()
    }

    fn names(plan: &Plan) -> Vec<Option<&str>> {
        plan.places.iter().map(|place| place.as_ref().and_then(Service::name)).collect()
    }

    #[test]
    fn a_service_that_stays_keeps_its_place() {
        let plan = Plan::new(&services(&["c=3", "b=2", "d=4"]), &before(&["", "a", "b", "", "", ""]), 100);
        let plan = plan.expect("there is room");
        // Free indices are taken before the one that `a` had.
        assert_eq!(names(&plan), [None, None, Some("b"), Some("c"), Some("d"), None]);
        assert_eq!(plan.ports[1..=4], [OTHER, 2, 3, 4]);
        assert!(Plan::new(&services(&["a=1", "b=2"]), &before(&["", "", ""]), 100).is_err());
    }

    #[test]
    fn a_place_that_comes_free_is_taken_last() {
        let plan = Plan::new(&services(&["c=3", "d=4"]), &before(&["", "a", "", ""]), 100).expect("room");
        assert_eq!(names(&plan), [None, Some("d"), Some("c"), None]);
    }

    #[test]
    fn addresses_decide_where_they_are_named() {
        let mut web: Named = "web=80".parse().expect("a service");
        web.addresses =
            vec!["192.0.2.0/24".parse().expect("a prefix"), "2001:db8::/32".parse().expect("one")];
        let rest: Named = "rest=80".parse().expect("a service");
        let services = Services::new(vec![web, rest], Mode::Observe).expect("services");
        let plan = Plan::new(&services, &before(&["", "", "", "", ""]), 100).expect("room");
        assert_eq!(plan.ports[80], BY_ADDRESS | 2);
        let v4 = (32 + 96 + 24, [80_u32.swap_bytes() >> 16, 0, 0, 0xffff_0000, 0x0002_00c0]);
        assert_eq!(plan.addresses.get(&v4), Some(&1));
        let v6 = (32 + 32, [80_u32.swap_bytes() >> 16 | 1 << 16, 0xb80d_0120, 0, 0, 0]);
        assert_eq!(plan.addresses.get(&v6), Some(&1));
        assert_eq!(plan.addresses.len(), 2);
    }

    #[test]
    fn a_prefix_and_back() {
        for text in [
            "192.0.2.0/24",
            "0.0.0.0/0",
            "192.0.2.1/32",
            "2001:db8::/32",
            "::/0",
            "::/80",
            "::ffff:0.0.0.0/96",
            "::ffff:192.0.2.1/128",
            "2001:db8::1/128",
        ] {
            let net: IpNet = text.parse().expect("a prefix");
            let (family, len, words) = words(net);
            assert_eq!(prefix(family as u32, len, words), Some(net), "{text}");
        }
    }
}
