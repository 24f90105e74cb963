//! A random walk of an operator: the steps, and a model of what `tfo` must have done after each.
//!
//! Here is the model. [`desired`] makes the configurations, [`step`] draws the steps, [`visit`] says what must come of
//! SYNs, and [`topology`] has the interfaces.

pub mod desired;
pub mod step;
pub mod topology;
pub mod visit;

use std::{collections::BTreeSet, net::IpAddr};

use fastrand::Rng;
use nix::sys::signal::Signal;
use tfo_common::{
    class::Class,
    policy::{Guard, Limit, Policy, SourceMask},
    verdict::Mode,
};
use tfo_userspace::{
    keys::state::REMEMBERED,
    model::{guards::Hidden, services::OTHER_NAME},
};

pub use self::{
    desired::{Desired, Service},
    step::{Bad, Death, Deck, Step},
    topology::{INTERFACES, RENAMED, SECOND, Topology},
    visit::{Keys, Visit, Visitor, counts_by_service},
};
use crate::guards::{Setting, Wanted};

/// Ports with a listener. A service has one of them, or none has it.
pub const PORTS: [u16; 3] = [7413, 7414, 7415];
/// Names of services.
const NAMES: [&str; 3] = ["web", "shop", "dns"];
/// Number of SYNs that a source may send at once under `fair`, and of forged ones under `shed`. None is due for an hour then.
pub const BURST: u32 = 2;
/// Keys that the kernel holds no longer and that are still known.
const RETIRED: usize = 8;
/// Prefixes that may be hidden.
const PREFIXES: [&str; 4] = ["198.19.128.0/17", "198.19.0.0/16", "2001:db8:1::8000/113", "2001:db8:1::/112"];

/// Where an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// There, and up.
    Up,
    /// There, and down.
    Down,
    /// There under another name, and up.
    Renamed,
    /// Nowhere.
    Gone,
}

/// Keys by their number, as a program knows them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ring {
    /// The kernel's.
    pub held: Option<(u32, Option<u32>)>,
    /// Those before, the newest first.
    pub retired: Vec<u32>,
}

impl Ring {
    fn follow(&mut self, current: u32, backup: Option<u32>) {
        if self.held == Some((current, backup)) {
            return;
        }
        let before = self.held.into_iter().flat_map(|(current, backup)| [Some(current), backup]).flatten();
        let all: Vec<u32> = before.chain(self.retired.iter().copied()).collect();
        self.retired = all.into_iter().filter(|key| *key != current && Some(*key) != backup).collect();
        self.retired.truncate(RETIRED);
        self.held = Some((current, backup));
    }

    /// Keys of a state file, the newest first, are retired ones as far as there is room.
    fn remember(&mut self, earlier: &[u32]) {
        for key in earlier {
            if self.class(*key) == Class::CookieUnknown && self.retired.len() < RETIRED {
                self.retired.push(*key);
            }
        }
    }

    /// Class of a cookie of `key`.
    pub fn class(&self, key: u32) -> Class {
        match self.held {
            Some((current, _)) if current == key => Class::CookieCurrent,
            Some((_, Some(backup))) if backup == key => Class::CookieBackup,
            _ if self.retired.contains(&key) => Class::CookieRetired,
            _ => Class::CookieUnknown,
        }
    }

    /// The key into whose cookies those of retired ones are translated.
    pub fn translation(&self) -> Option<u32> {
        self.held.map(|(current, backup)| backup.unwrap_or(current))
    }
}

/// What there must be. Clients connect by the first of two interfaces.
#[derive(Clone, Debug)]
pub struct Model {
    /// What the last good file says.
    pub desired: Desired,
    /// What is in force on either interface, attached or not.
    pub in_force: [Option<Desired>; 2],
    /// Whether that is known: a controller that was killed in a change leaves what was before or what was to come. So does an
    /// interface that goes in one.
    pub is_known: [bool; 2],
    /// Whether there is a controller.
    pub controller: bool,
    /// What is hidden by order on either interface.
    pub orders: [BTreeSet<Hidden>; 2],
    /// Where the interfaces are.
    pub links: [Link; 2],
    /// Whether either has the program, if that is known.
    pub attached: [Option<bool>; 2],
    /// The kernel's keys.
    pub kernel: (u32, Option<u32>),
    /// Those that the programs know.
    pub ring: Ring,
    /// Those that `tfo` has made and remembers, the newest first.
    pub made_keys: Vec<u32>,
    /// A key that an emergency had forgotten.
    pub leaked: Option<u32>,
    newest_key: u32,
}

impl Model {
    /// A host on which nothing runs yet; the kernel has key 1.
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            desired: Desired::random(rng),
            in_force: [None, None],
            is_known: [true; 2],
            controller: false,
            orders: Default::default(),
            links: [Link::Up; 2],
            attached: [Some(false); 2],
            kernel: (1, None),
            ring: Ring::default(),
            made_keys: Vec::new(),
            leaked: None,
            newest_key: 1,
        }
    }

    /// Whether programs and maps are there.
    pub fn is_installed(&self) -> bool {
        self.in_force[0].is_some()
    }

    /// Whether both interfaces are there by their names, as a start needs them.
    pub fn is_whole(&self) -> bool {
        self.links.iter().all(|link| matches!(link, Link::Up | Link::Down))
    }

    /// Whether packets come by an interface.
    fn carries(&self, interface: usize) -> bool {
        matches!(self.links[interface], Link::Up | Link::Renamed)
    }

    /// Whether SYNs get to a program there, and it is known what that does.
    pub fn is_certain(&self, interface: usize) -> bool {
        self.is_known[interface] && self.attached[interface] == Some(true) && self.carries(interface)
    }

    /// Whether clients may connect: where there is a program, it sees them.
    pub fn serves(&self) -> bool {
        self.carries(0) && (!self.is_installed() || self.attached[0] == Some(true))
    }

    /// Whether such an order is carried out on an interface.
    pub fn obeys(&self, interface: usize, on: bool, what: &Hidden) -> bool {
        let mode = match what {
            Hidden::Service(name) => self.desired.mode_of(name),
            Hidden::All | Hidden::Source(_) => Some(self.desired.mode()),
        };
        if on {
            return mode == Some(Mode::Shield);
        }
        let is_hidden = self.orders[interface].contains(what);
        is_hidden
            || match what {
                Hidden::All => true,
                Hidden::Service(_) => mode.is_some(),
                Hidden::Source(_) => false,
            }
    }

    /// Notes that `step` was made; `is_done` where a reload or a start in it succeeded.
    pub fn made(&mut self, step: &Step, is_done: bool) {
        match step {
            Step::BadReload(_) | Step::FailingReload(_) | Step::StartWithout | Step::SecondController => {}
            Step::Reload { desired, .. } => {
                self.desired = desired.clone();
                for (in_force, link) in self.in_force.iter_mut().zip(self.links) {
                    // What is not there gets it when it comes.
                    if link != Link::Gone {
                        *in_force = Some(desired.clone());
                    }
                }
            }
            Step::InReload { desired, then, .. } => {
                if is_done {
                    self.made(&Step::Reload { by_signal: false, desired: desired.clone() }, true);
                }
                self.made(then, true);
                if let Step::Delete(at) = **then {
                    self.is_known[at] = false;
                }
            }
            Step::KillInReload(desired, Death { by, .. }) => {
                if *by == Signal::SIGINT {
                    self.made(&Step::Interrupt, true);
                } else {
                    self.controller = false;
                    self.is_known = [false; 2];
                }
                self.desired = desired.clone();
            }
            Step::KillInStart(desired, Death { by: Signal::SIGKILL, .. }) => {
                self.is_known = [false; 2];
                self.attached = self.attached.map(|attached| attached.filter(|is_attached| *is_attached));
                self.desired = desired.clone();
            }
            // It heeds a signal when it has started, or has not heard of it.
            Step::KillInStart(desired, Death { by, .. }) => {
                if is_done {
                    self.made(&Step::Start(desired.clone()), true);
                    self.made(if *by == Signal::SIGINT { &Step::Interrupt } else { &Step::Stop }, true);
                }
                self.desired = desired.clone();
            }
            Step::Stop | Step::Kill => self.controller = false,
            Step::Start(desired) => {
                self.controller = true;
                self.is_known = [true; 2];
                self.attached = [Some(true); 2];
                self.desired = desired.clone();
                self.in_force = [Some(desired.clone()), Some(desired.clone())];
                if desired.makes_keys {
                    self.take_keys_from_file();
                }
            }
            Step::Upgrade(_, desired) => {
                // There were no files then: what waits for its service is lost.
                self.orders = [0, 1].map(|interface| self.hidden(interface));
                self.made(&Step::Start(desired.clone()), true);
            }
            Step::Order { on, what, only } => {
                for interface in (0..2).filter(|interface| only.is_none_or(|only| only == *interface)) {
                    if !self.obeys(interface, *on, what) {
                        continue;
                    }
                    if *on {
                        self.orders[interface].insert(what.clone());
                    } else {
                        self.orders[interface].remove(what);
                    }
                }
            }
            Step::SetKeys { keeps } => self.kernel = (self.new_key(), keeps.then_some(self.kernel.0)),
            Step::Rotate if self.desired.makes_keys => self.rotate(),
            Step::Rotate => {}
            Step::Emergency => {
                // The kernel's own keys stay.
                self.leaked = self.ring.retired.first().copied();
                if self.desired.makes_keys {
                    self.leaked = Some(self.kernel.0);
                    self.made_keys.clear();
                    self.rotate();
                }
                self.ring = Ring::default();
            }
            Step::Down(at) => self.links[*at] = Link::Down,
            Step::Up(at) => self.links[*at] = Link::Up,
            Step::Rename(at) => self.links[*at] = Link::Renamed,
            Step::Delete(at) => (self.links[*at], self.attached[*at]) = (Link::Gone, Some(false)),
            Step::Remake(at) => {
                self.made(&Step::Delete(*at), true);
                self.made(&Step::Make(*at), true);
            }
            Step::Make(at) => {
                self.links[*at] = Link::Up;
                if self.controller {
                    self.attached[*at] = Some(true);
                    self.is_known[*at] = true;
                    self.in_force[*at] = Some(self.desired.clone());
                }
            }
            Step::Interrupt | Step::Unload | Step::Reboot => {
                self.controller = false;
                self.is_known = [true; 2];
                self.attached = [Some(false); 2];
                self.in_force = [None, None];
                if !matches!(step, Step::Reboot) {
                    self.orders = Default::default();
                }
                self.ring = Ring::default();
            }
        }
        if self.controller {
            self.ring.follow(self.kernel.0, self.kernel.1);
        }
    }

    fn new_key(&mut self) -> u32 {
        self.newest_key += 1;
        self.newest_key
    }

    /// A key that `tfo` makes becomes the kernel's.
    fn rotate(&mut self) {
        let key = self.new_key();
        self.made_keys.insert(0, key);
        self.made_keys.truncate(REMEMBERED);
        self.kernel = (key, self.made_keys.get(1).copied());
    }

    /// A start that makes keys goes on with those in its file, and retires what the kernel had.
    fn take_keys_from_file(&mut self) {
        self.ring.follow(self.kernel.0, self.kernel.1);
        self.ring.remember(self.made_keys.get(2..).unwrap_or_default());
        match self.made_keys[..] {
            [] => self.rotate(),
            [current, ref earlier @ ..] => self.kernel = (current, earlier.first().copied()),
        }
    }

    /// What must be hidden by order in the maps of an interface: services that are not there wait.
    pub fn hidden(&self, interface: usize) -> BTreeSet<Hidden> {
        let names: Vec<_> = self.in_force[interface].iter().flat_map(Desired::names).collect();
        let is_there = |hidden: &&Hidden| match hidden {
            Hidden::Service(name) => names.contains(&name.as_str()),
            Hidden::All | Hidden::Source(_) => true,
        };
        self.orders[interface].iter().filter(is_there).cloned().collect()
    }

    /// What must hold on an interface for `service`, or for what is none's.
    pub fn wanted(&self, interface: usize, service: Option<&Service>) -> Wanted {
        let orders = &self.orders[interface];
        let name = service.map_or(OTHER_NAME, |service| service.name);
        let mut guards = [Setting::Off; Guard::COUNT];
        for (guard, setting) in Guard::ALL.iter().zip(&mut guards) {
            *setting = service.map_or(Setting::Off, |service| service.setting(*guard));
        }
        Wanted {
            guards,
            translates: service.is_some_and(|service| service.mode != Mode::Observe),
            hidden: orders.contains(&Hidden::Service(name.to_owned())),
            all_hidden: orders.contains(&Hidden::All),
            hides_sources: orders.iter().any(|hidden| matches!(hidden, Hidden::Source(_))),
            drops: service
                .is_some_and(|service| service.drops && service.setting(Guard::Shed) != Setting::Off),
        }
    }

    /// Whether `source` is hidden by order on an interface.
    pub fn is_hidden(&self, interface: usize, source: IpAddr) -> bool {
        let is_in = |hidden: &Hidden| matches!(hidden, Hidden::Source(net) if net.contains(&source));
        self.orders[interface].iter().any(is_in)
    }

    /// The policies that an interface must have, by the names of services, where there are `hz` jiffies in a second.
    pub fn policies(&self, interface: usize, hz: u64) -> Vec<(String, Policy)> {
        let Some(desired) = &self.in_force[interface] else { return Vec::new() };
        let hour = 60 * 60 * hz;
        let rate = Limit::new(1, hour, BURST.into());
        let source = SourceMask::new(32, 128);
        let none = Policy::of_mode(Mode::Observe);
        let services = [None].into_iter().chain(desired.services.iter().map(Some));
        let mut policies: Vec<_> = services
            .map(|service| {
                let flags = self.wanted(interface, service).policy().flags;
                let mut policy = Policy { flags, ..none };
                let has = |guard| service.is_some_and(|service| service.setting(guard) != Setting::Off);
                if has(Guard::Once) {
                    policy.once = hour;
                }
                if has(Guard::Fair) {
                    (policy.fair, policy.fair_source) = (rate, source);
                }
                if has(Guard::Clamp) {
                    policy.clamp = 3;
                }
                if has(Guard::Shed) {
                    (policy.shed_per_source, policy.shed_source) = (rate, source);
                    policy.flags |= Policy::SHEDS_SOURCES;
                    if service.is_some_and(|service| service.has_limit_for_all) {
                        policy.shed = Limit::new(1_000_000, hz, 1_000_000);
                        policy.flags |= Policy::SHEDS_ALL;
                    }
                }
                (service.map_or(OTHER_NAME, |service| service.name).to_owned(), policy)
            })
            .collect();
        policies.sort_by(|(a, _), (b, _)| a.cmp(b));
        policies
    }
}
