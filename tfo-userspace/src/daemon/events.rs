//! Reader of the program's events.

use std::{collections::HashMap, net::IpAddr};

use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
use tracing::warn;

use crate::{
    dataplane::Datapath,
    util::secrecy::leaving_no_trace,
    view::events::{EXPLAINED_PER_KIND, EventLog, Explainer},
};

/// Takes the new events of `datapath`, and adds them to `log` with their explanations.
pub(super) fn take(datapath: &mut Datapath, log: &mut EventLog) {
    let (mut events, mut of_kind) = (Vec::new(), HashMap::<_, usize>::new());
    while let Some(event) = datapath.next_event() {
        let count = of_kind.entry((event.subject.kind, event.subject.detail)).or_default();
        *count += 1;
        if *count <= EXPLAINED_PER_KIND { events.push(event) } else { log.count_lost(event.weight) }
    }
    if events.is_empty() {
        return;
    }
    let own: Vec<_> = getifaddrs().into_iter().flatten().filter_map(|own| ip(own.address?)).collect();
    leaving_no_trace(|| {
        let interface = &datapath.interface;
        let ring = match datapath.key_ring() {
            Ok(ring) => ring,
            Err(error) => return warn!("{}: cannot explain events: {error:#}", interface.name),
        };
        let explainer = Explainer {
            interface: &interface.name,
            link: interface.link_layer,
            ring: &ring,
            own: &own,
            service: &|index| datapath.service_name(index),
            recent_sources: &|prefix| datapath.recent_sources(prefix),
        };
        events.iter().for_each(|event| log.add(explainer.explain(event)));
    });
}

/// Returns the IP address in `address`, if it has one.
fn ip(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}
