//! Random walk of an operator: the steps, and a model of the state of `tfo` after each.
//!
//! This file has the model. [`desired`] makes the configurations, [`step`] draws the steps, [`visit`] predicts the
//! outcome of SYNs, and [`topology`] has the interfaces.

pub mod desired;
pub mod step;
pub mod topology;
pub mod visit;

use std::{collections::BTreeSet, net::IpAddr};

use fastrand::Rng;
use nix::sys::signal::Signal;
use tfo_common::{
    class::Class,
    limit::Limit,
    policy::{Guard, Policy},
    table::SourceMask,
    verdict::Mode,
};
use tfo_userspace::{
    keys::state::REMEMBERED,
    model::{guards::Hidden, services::OTHER_NAME},
};

pub use self::{
    desired::{Desired, Service},
    step::{Death, Deck, FileFault, Step},
    topology::{INTERFACES, RENAMED, SECOND, Topology},
    visit::{Keys, Visit, Visitor, counts_by_service},
};
use crate::guards::{ServiceSettings, Setting};

/// Ports with a listener. A service has one port, and some ports have no service.
pub const PORTS: [u16; 3] = [7413, 7414, 7415];
/// Names of services.
const NAMES: [&str; 3] = ["web", "shop", "dns"];
/// Number of SYNs that a source may send at once under `fair`, and of forged ones under `shed`. Their rates allow no
/// more for an hour.
pub const BURST: u32 = 2;
/// Largest number of keys that the kernel no longer holds and that the programs still know.
const RETIRED: usize = 8;
/// Prefixes that an order may hide.
const PREFIXES: [&str; 4] = ["198.19.128.0/17", "198.19.0.0/16", "2001:db8:1::8000/113", "2001:db8:1::/112"];

/// State of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Present and up.
    Up,
    /// Present and down.
    Down,
    /// Up, under another name.
    Renamed,
    /// Absent.
    Gone,
}

/// Keys that a program knows, by number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ring {
    /// Current and backup key of the kernel.
    pub held: Option<(u32, Option<u32>)>,
    /// Earlier keys, the newest first.
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

    /// Adds keys of a state file, the newest first, as retired ones, while there is room.
    fn remember(&mut self, earlier: &[u32]) {
        for key in earlier {
            if self.class(*key) == Class::CookieUnknown && self.retired.len() < RETIRED {
                self.retired.push(*key);
            }
        }
    }

    /// Returns the class of a cookie of `key`.
    pub fn class(&self, key: u32) -> Class {
        match self.held {
            Some((current, _)) if current == key => Class::CookieCurrent,
            Some((_, Some(backup))) if backup == key => Class::CookieBackup,
            _ if self.retired.contains(&key) => Class::CookieRetired,
            _ => Class::CookieUnknown,
        }
    }

    /// Returns the key into whose cookies those of retired keys are translated.
    pub fn translation(&self) -> Option<u32> {
        self.held.map(|(current, backup)| backup.unwrap_or(current))
    }
}

/// Expected state. Clients connect through the first of two interfaces.
#[derive(Clone, Debug)]
pub struct Model {
    /// Configuration of the last good file.
    pub desired: Desired,
    /// Configuration in force on each interface, attached or not.
    pub in_force: [Option<Desired>; 2],
    /// Whether the configuration in force is certain. It is not after a controller was killed during a change, or an
    /// interface went away during one: then the old or the new one is in force.
    pub is_known: [bool; 2],
    /// Whether a controller runs.
    pub controller: bool,
    /// Services and sources that are hidden by order on each interface.
    pub orders: [BTreeSet<Hidden>; 2],
    /// States of the interfaces.
    pub links: [Link; 2],
    /// Whether each interface has the program. `None` if that is uncertain.
    pub attached: [Option<bool>; 2],
    /// Current and backup key of the kernel.
    pub kernel: (u32, Option<u32>),
    /// Keys that the programs know.
    pub ring: Ring,
    /// Keys that `tfo` has made and remembers, the newest first.
    pub made_keys: Vec<u32>,
    /// Key that an emergency has removed.
    pub leaked: Option<u32>,
    newest_key: u32,
}

impl Model {
    /// Returns a host on which nothing runs yet. The kernel has key 1.
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

    /// Whether programs and maps are present.
    pub fn is_installed(&self) -> bool {
        self.in_force[0].is_some()
    }

    /// Whether both interfaces exist under their own names, as a start requires.
    pub fn has_both_links(&self) -> bool {
        self.links.iter().all(|link| matches!(link, Link::Up | Link::Down))
    }

    /// Returns whether packets come through an interface.
    fn carries(&self, interface: usize) -> bool {
        matches!(self.links[interface], Link::Up | Link::Renamed)
    }

    /// Returns whether SYNs reach a program on the interface whose behaviour is certain.
    pub fn is_certain(&self, interface: usize) -> bool {
        self.is_known[interface] && self.attached[interface] == Some(true) && self.carries(interface)
    }

    /// Returns whether clients may connect. If a program is installed, it must see them.
    pub fn serves(&self) -> bool {
        self.carries(0) && (!self.is_installed() || self.attached[0] == Some(true))
    }

    /// Returns whether an interface carries out an order to hide (`on`) or to show `what`.
    pub fn carries_out(&self, interface: usize, on: bool, what: &Hidden) -> bool {
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

    /// Updates the model after `step`. `is_done` says whether a reload or a start in it succeeded.
    pub fn apply(&mut self, step: &Step, is_done: bool) {
        match step {
            Step::BadReload(_) | Step::FailingReload(_) | Step::StartWithout | Step::SecondController => {}
            Step::Reload { desired, .. } => {
                self.desired = desired.clone();
                for (in_force, link) in self.in_force.iter_mut().zip(self.links) {
                    // An absent interface gets the configuration when it comes back.
                    if link != Link::Gone {
                        *in_force = Some(desired.clone());
                    }
                }
            }
            Step::InReload { desired, then, .. } => {
                if is_done {
                    self.apply(&Step::Reload { by_signal: false, desired: desired.clone() }, true);
                }
                self.apply(then, true);
                if let Step::Delete(at) = **then {
                    self.is_known[at] = false;
                }
            }
            Step::KillInReload(desired, Death { by, .. }) => {
                if *by == Signal::SIGINT {
                    self.apply(&Step::Interrupt, true);
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
            // The controller ends in order if the signal comes after the start, or before it handles signals.
            Step::KillInStart(desired, Death { by, .. }) => {
                if is_done {
                    self.apply(&Step::Start(desired.clone()), true);
                    self.apply(if *by == Signal::SIGINT { &Step::Interrupt } else { &Step::Stop }, true);
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
                // tfo 0.1 had no files for orders, so orders for services that do not exist are lost.
                self.orders = [0, 1].map(|interface| self.hidden(interface));
                self.apply(&Step::Start(desired.clone()), true);
            }
            Step::Order { on, what, only } => {
                for interface in (0..2).filter(|interface| only.is_none_or(|only| only == *interface)) {
                    if !self.carries_out(interface, *on, what) {
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
                self.apply(&Step::Delete(*at), true);
                self.apply(&Step::Make(*at), true);
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

    /// Makes a new key the kernel's, as `tfo` does.
    fn rotate(&mut self) {
        let key = self.new_key();
        self.made_keys.insert(0, key);
        self.made_keys.truncate(REMEMBERED);
        self.kernel = (key, self.made_keys.get(1).copied());
    }

    /// Follows a start that makes keys: it continues with those in its file, and retires the kernel's.
    fn take_keys_from_file(&mut self) {
        self.ring.follow(self.kernel.0, self.kernel.1);
        self.ring.remember(self.made_keys.get(2..).unwrap_or_default());
        match self.made_keys[..] {
            [] => self.rotate(),
            [current, ref earlier @ ..] => self.kernel = (current, earlier.first().copied()),
        }
    }

    /// Returns the orders in the maps of an interface. Those for services that do not exist are not in the maps.
    pub fn hidden(&self, interface: usize) -> BTreeSet<Hidden> {
        let names: Vec<_> = self.in_force[interface].iter().flat_map(Desired::names).collect();
        let is_there = |hidden: &&Hidden| match hidden {
            Hidden::Service(name) => names.contains(&name.as_str()),
            Hidden::All | Hidden::Source(_) => true,
        };
        self.orders[interface].iter().filter(is_there).cloned().collect()
    }

    /// Returns the expected settings of `service` on an interface, or of `other`.
    pub fn service_settings(&self, interface: usize, service: Option<&Service>) -> ServiceSettings {
        let orders = &self.orders[interface];
        let name = service.map_or(OTHER_NAME, |service| service.name);
        let mut guards = [Setting::Off; Guard::COUNT];
        for (guard, setting) in Guard::ALL.iter().zip(&mut guards) {
            *setting = service.map_or(Setting::Off, |service| service.setting(*guard));
        }
        ServiceSettings {
            guards,
            translates: service.is_some_and(|service| service.mode != Mode::Observe),
            hidden: orders.contains(&Hidden::Service(name.to_owned())),
            all_hidden: orders.contains(&Hidden::All),
            hides_sources: orders.iter().any(|hidden| matches!(hidden, Hidden::Source(_))),
            drops: service
                .is_some_and(|service| service.drops && service.setting(Guard::Shed) != Setting::Off),
            answers: false,
        }
    }

    /// Returns whether `source` is hidden by order on an interface.
    pub fn is_hidden(&self, interface: usize, source: IpAddr) -> bool {
        let is_in = |hidden: &Hidden| matches!(hidden, Hidden::Source(net) if net.contains(&source));
        self.orders[interface].iter().any(is_in)
    }

    /// Returns the expected policies of an interface, by the names of services. `hz` is the number of jiffies per
    /// second.
    pub fn policies(&self, interface: usize, hz: u64) -> Vec<(String, Policy)> {
        let Some(desired) = &self.in_force[interface] else { return Vec::new() };
        let hour = 60 * 60 * hz;
        let rate = Limit::new(1, hour, BURST.into());
        let source = SourceMask::new(32, 128);
        let none = Policy::of_mode(Mode::Observe);
        let services = [None].into_iter().chain(desired.services.iter().map(Some));
        let mut policies: Vec<_> = services
            .map(|service| {
                let flags = self.service_settings(interface, service).policy().flags;
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
                    policy.flags |= Policy::SHEDS_SOURCES | Policy::SHEDS_OTHERS;
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
