//! Visits of the walk: SYNs of one source, and the expected outcome of each.

use std::{collections::BTreeMap, net::IpAddr};

use fastrand::Rng;
use tfo_common::{
    class::Class, cookie, counters::GuardCounts, keyring::Key, policy::Guard, segment::Family,
    verdict::Verdict,
};
use tfo_userspace::{
    dataplane::Pinned,
    kernel::{sysctl::KernelKeys, tcp_ext::TcpExt},
    lab::net::{server, source},
    model::{keys::addresses, services::OTHER_NAME},
};

use super::{BURST, Desired, Model};
use crate::{
    guards::{Open, Setting},
    netns::{eventually, has_no_connections, key},
    packet::{Carry as _, Ip, Tcp, eth_between},
    wire::Wire,
};

const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Keys by number: those that `tfo` has made, and those of the test.
#[derive(Default)]
pub struct Keys(BTreeMap<u32, Key>);

impl Keys {
    /// Returns the key with that number.
    pub fn get(&self, number: u32) -> Key {
        self.0.get(&number).copied().unwrap_or_else(|| key(number))
    }

    /// Reads the kernel's current key if `tfo` has just made it.
    pub fn learn(&mut self, model: &Model) {
        let current = model.kernel.0;
        if model.made_keys.first() == Some(&current) {
            let read = || KernelKeys::read().ok().and_then(|keys| keys.current).expect("tfo has set a key");
            self.0.entry(current).or_insert_with(read);
        }
    }
}

/// Source that has sent SYNs, and the state that guards must have of it.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// Name of the service it visits, and the port.
    pub to: (String, u16),
    family: Family,
    /// Address of the source.
    pub from: IpAddr,
    /// Next source port.
    port: u16,
    /// Number of good cookies under `fair`, and of forged ones under `shed`.
    spent: [u32; 2],
    /// Key and SYN of its first cookie, and whether `once` must know that SYN.
    first: Option<(u32, Vec<u8>)>,
    is_remembered: bool,
}

/// Sequence of SYNs from one visitor.
pub struct Visit<'a> {
    model: &'a Model,
    keys: &'a Keys,
    interface: usize,
    wire: &'a Wire,
    visitor: Visitor,
    expected: Expected,
}

impl<'a> Visit<'a> {
    /// Prepares a visit of `visitor` over `wire` to an interface.
    pub fn new(model: &'a Model, keys: &'a Keys, interface: usize, wire: &'a Wire, visitor: Visitor) -> Self {
        Self { model, keys, interface, wire, visitor, expected: Expected::default() }
    }

    /// Sends the SYNs. Returns the visitor's new state, and the expected outcome.
    pub fn make(mut self) -> (Visitor, Expected) {
        let Some((current, backup)) = self.model.ring.held else { unreachable!("there was a controller") };
        let earlier = self.visitor.first.clone();
        if let Some((key, frame)) = &earlier {
            self.send(self.class(*key), Some(*key), true, frame);
        }
        let request = self.visitor.syn().request().build();
        self.send(Class::CookieRequest, None, false, &request);
        let plain = self.visitor.syn().build();
        self.send(Class::PlainSyn, None, false, &plain);
        for number in 0..=BURST {
            let frame = self.visitor.with_cookie_of(self.keys.get(current));
            let is_first = earlier.is_none() && number == 0;
            self.send(self.class(current), Some(current), is_first, &frame);
            if is_first {
                self.visitor.first = Some((current, frame));
            }
        }
        // Guards that need confirmed keys are uncertain without a controller.
        if self.model.controller {
            let retired = self.model.ring.retired.first().copied();
            let forged = [FORGED; BURST as usize + 1];
            let others = backup.into_iter().chain(retired).chain(self.model.leaked).chain(forged);
            for key in others {
                let frame = self.visitor.with_cookie_of(self.keys.get(key));
                self.send(self.class(key), Some(key), false, &frame);
            }
        }
        if let Some((key, frame)) = self.visitor.first.clone().filter(|_| self.interface == 0) {
            eventually("its connections are over", has_no_connections);
            self.send(self.class(key), Some(key), true, &frame);
        }
        (self.visitor, self.expected)
    }

    fn class(&self, key: u32) -> Class {
        self.model.ring.class(key)
    }

    /// Sends a SYN of `class`, with a cookie of `key` if it has one, and updates the expected outcome. `is_first` marks
    /// the SYN that is replayed later.
    fn send(&mut self, class: Class, key: Option<u32>, is_first: bool, frame: &[u8]) {
        let Self { model, interface, visitor, expected, .. } = self;
        let interface = *interface;
        let service = model.in_force[interface].as_ref().and_then(|desired| desired.on(visitor.to.1));
        let service_settings = model.service_settings(interface, service);
        let decided = service_settings.expected(class, Open::No, model.controller, |guard| match guard {
            Guard::Hide => model.is_hidden(interface, visitor.from),
            Guard::Once => is_first && visitor.is_remembered,
            Guard::Fair => visitor.spent[0] >= BURST,
            Guard::Clamp => true,
            Guard::Shed => visitor.spent[1] >= BURST,
            // No flood comes in the walk.
            Guard::Answer => false,
        });
        for (guard, spent) in [Guard::Fair, Guard::Shed].into_iter().zip(&mut visitor.spent) {
            if decided.asked & 1 << guard.index() != 0 {
                *spent += 1;
            }
        }
        let mut count = |what: String| *expected.counts.entry((visitor.to.0.clone(), what)).or_default() += 1;
        count(format!("{} {} {}", visitor.family.name(), class.name(), decided.verdict.name()));
        if let Some(guard) = decided.guard {
            count(format!("{} acted", guard.name()));
        }
        for guard in Guard::ALL.iter().filter(|guard| decided.would & 1 << guard.index() != 0) {
            count(format!("{} would", guard.name()));
        }
        let arrives = interface == 0 && matches!(decided.verdict, Verdict::Pass | Verdict::Rewrite);
        let seen = if decided.verdict == Verdict::Rewrite { model.ring.translation() } else { key };
        let kernel = &mut expected.kernel;
        match seen {
            _ if !arrives => {}
            Some(key) if key == model.kernel.0 || Some(key) == model.kernel.1 => {
                kernel.passive += 1;
                kernel.passive_alt_key += u64::from(key != model.kernel.0);
                let is_set = service.is_some_and(|service| service.setting(Guard::Once) != Setting::Off);
                visitor.is_remembered |= is_first && is_set;
            }
            Some(_) => kernel.passive_fail += 1,
            None => kernel.cookie_reqd += u64::from(class == Class::CookieRequest),
        }
        self.wire.send(frame);
        expected.sent += 1;
    }
}

/// Number of a key that the kernel never has.
const FORGED: u32 = u32::MAX;

impl Visitor {
    /// Returns a new visitor of `port` on an interface.
    pub fn new(model: &Model, interface: usize, port: u16, rng: &mut Rng) -> Self {
        let family = Family::ALL[rng.usize(..2)];
        let service = model.in_force[interface].as_ref().and_then(|desired| desired.on(port));
        Self {
            to: (service.map_or(OTHER_NAME, |service| service.name).to_owned(), port),
            family,
            from: source(family, rng.u16(1024..)),
            port: rng.u16(1024..60_000),
            spent: [0; 2],
            first: None,
            is_remembered: false,
        }
    }

    /// Begins a SYN from the next source port.
    fn syn(&mut self) -> Tcp {
        self.port += 1;
        let link = eth_between(CLIENT_MAC, SERVER_MAC);
        let ip: Ip = match (self.from, server(self.family).ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from, to).into(),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from, to).into(),
            _ => unreachable!("both are of one family"),
        };
        ip.syn().ports(self.port, self.to.1).mss(1460)
    }

    /// Returns whether its service in `desired` is still the same, on the same port.
    pub fn visits_service_of(&self, desired: &Desired) -> bool {
        desired.on(self.to.1).map_or(OTHER_NAME, |service| service.name) == self.to.0
    }

    fn with_cookie_of(&mut self, key: Key) -> Vec<u8> {
        let addresses = addresses(self.from, server(self.family).ip()).expect("both are of one family");
        let cookie = cookie::make(&key, &addresses).to_le_bytes();
        self.syn().fast_open(&cookie).data(b"data").build()
    }
}

/// Expected outcome of a visit.
#[derive(Debug, Default)]
pub struct Expected {
    /// Counts of its SYNs.
    pub counts: ByService,
    /// Counts of the kernel.
    pub kernel: TcpExt,
    /// Number of its SYNs.
    pub sent: u64,
}

/// Counts by service, and by class and verdict or by guard.
pub type ByService = BTreeMap<(String, String), u64>;

/// Reads these counts from the maps.
pub fn counts_by_service(pinned: &Pinned) -> ByService {
    let mut all = ByService::new();
    for service in pinned.by_service().expect("counters can be read") {
        let mut add =
            |what: String, count: u64| *all.entry((service.name.clone(), what)).or_default() += count;
        for family in Family::ALL {
            for class in Class::ALL {
                for verdict in Verdict::ALL {
                    let tally = service.counters.syn[family.index()][class.index()][verdict.index()];
                    add(format!("{} {} {}", family.name(), class.name(), verdict.name()), tally.packets);
                }
            }
        }
        for guard in Guard::ALL {
            let GuardCounts { acted, would } = service.counters.guards[guard.index()];
            add(format!("{} acted", guard.name()), acted);
            add(format!("{} would", guard.name()), would);
        }
    }
    all
}
