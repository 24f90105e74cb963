//! What stands where in the maps, so that each service gets what is its.

use std::{collections::BTreeMap, net::Ipv6Addr};

use anyhow::{Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tfo_common::{
    policy::{Guard, Limit, Policy, SourceMask},
    segment::Family,
    service::{ADDRESSES, BY_ADDRESS, OTHER, PORT_BITS, PORTS, Service, address_key},
    verdict::Mode,
};

use crate::model::{
    guards::{self, SourceLen},
    services::{Named, Services},
};

/// What the maps are to hold.
pub(super) struct Plan {
    /// At which index each service stands; [`OTHER`] has no name, and the last is for
    /// [`REMOVED_NAME`](crate::model::services::REMOVED_NAME).
    pub(super) places: Vec<Option<Service>>,
    /// The entry of each port.
    pub(super) ports: Vec<u32>,
    /// The service of each port at an address: by the bits of the key that count, and the key.
    pub(super) addresses: BTreeMap<(u32, [u32; 5]), u32>,
    /// The policy at each index, without what is hidden by order.
    pub(super) policies: Vec<Policy>,
}

impl Plan {
    /// Plans the maps for `services`. A service that is in `before` keeps its place. `hz` is the number of jiffies in
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
        if addresses.len() > ADDRESSES {
            bail!(
                "the services have {} pairs of a port and an address, and there may be {ADDRESSES}: name fewer ports \
                 where addresses are named",
                addresses.len()
            );
        }
        Ok(Self { places, ports, addresses, policies })
    }
}

/// Where each is to stand, so that those which were there `before` keep their place and their counters; the rest take what has
/// been free, and then what comes free.
fn place(services: &Services, before: &[Option<String>]) -> Result<Vec<Option<Service>>> {
    let last = before.len().saturating_sub(1);
    if services.len() + 2 > before.len() {
        bail!(
            "there is room for {} services in the maps, and these are {}: end tfo and start it again, which makes larger ones",
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

/// The family of `prefix`, how many of the address' bits count, and the address, as [`Addresses::source_v6`] has it.
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

/// The prefix of which [`words`] makes these; the family by its index.
pub(super) fn prefix(family: u32, len: u32, words: [u32; 4]) -> Option<IpNet> {
    let octets: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?);
    if family == Family::Ipv6 as u32 {
        return Some(IpNet::V6(Ipv6Net::new(address, len.try_into().ok()?).ok()?));
    }
    let len = len.checked_sub(MAPPED_BITS)?.try_into().ok()?;
    Some(IpNet::V4(Ipv4Net::new(address.to_ipv4_mapped()?, len).ok()?))
}

/// The prefix that stood as these in the layout of tfo 0.1, where families were not apart.
pub(super) fn prefix_0_1(len: u32, words: [u32; 4]) -> Option<IpNet> {
    let is_mapped = words[0] | words[1] == 0 && words[2] == 0xffff_u32.to_be();
    let family = if is_mapped && len >= MAPPED_BITS { Family::Ipv4 } else { Family::Ipv6 };
    prefix(family as u32, len, words)
}

/// The bits before an IPv4 address, where it stands as an IPv6 one.
const MAPPED_BITS: u32 = 96;

/// What holds for the packets of `named`.
fn policy(named: &Named, hz: u64) -> Policy {
    let acts = |dry_run: bool| named.mode == Mode::Shield && !dry_run;
    let limit =
        |limit: guards::Limit| Limit::new(limit.count.into(), limit.per.as_secs() * hz, limit.burst.into());
    let source = |SourceLen { v4, v6 }| SourceMask::new(v4, v6);
    let mut policy = Policy::of_mode(named.mode);
    let guards = &named.guards;
    if let Some(hide) = guards.hide {
        policy = policy.with(Guard::Hide, acts(hide.dry_run));
    }
    if let Some(once) = guards.once {
        policy =
            Policy { once: once.remember.as_secs() * hz, ..policy }.with(Guard::Once, acts(once.dry_run));
    }
    if let Some(fair) = guards.fair {
        policy = Policy { fair: limit(fair.limit), fair_source: source(fair.source), ..policy }
            .with(Guard::Fair, acts(fair.dry_run));
    }
    if let Some(clamp) = guards.clamp {
        policy = Policy { clamp: clamp.factor.into(), ..policy }.with(Guard::Clamp, acts(clamp.dry_run));
    }
    if let Some(shed) = guards.shed {
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
    }
    policy
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
        // What was free before what comes free.
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
