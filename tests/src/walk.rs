//! A random walk of an operator: the steps, and a model of what `tfo` must have done after each.

use std::{collections::BTreeSet, net::IpAddr};

use fastrand::Rng;
use nix::sys::signal::Signal;
use tfo_common::{
    class::Class,
    policy::{Guard, Limit, Policy, SourceMask},
    verdict::Mode,
};
use tfo_userspace::model::{guards::Hidden, services::OTHER_NAME};

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

/// A service of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// Its only port.
    pub port: u16,
    /// What may be done to its packets.
    pub mode: Mode,
    guards: [Setting; Guard::COUNT],
    drops: bool,
    has_limit_for_all: bool,
}

/// A configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Its services.
    pub services: Vec<Service>,
    /// Numbers of entries of the tables for sources and for replays.
    sizes: [u32; 2],
}

impl Service {
    fn random(rng: &mut Rng, name: &'static str, port: u16) -> Self {
        let mode =
            [Mode::Shield, Mode::Shield, Mode::Shield, Mode::Accelerate, Mode::Observe][rng.usize(..5)];
        let mut guards = [Setting::Off; Guard::COUNT];
        for (guard, setting) in Guard::ALL.iter().zip(&mut guards) {
            // The first one leaves nothing to the others.
            let most = if *guard == Guard::Hide { 8 } else { 4 };
            *setting = match rng.usize(..most) {
                0 => Setting::Dry,
                1 => Setting::Acts,
                2 if *guard != Guard::Hide => Setting::Acts,
                _ => Setting::Off,
            };
        }
        Self { name, port, mode, guards, drops: rng.bool(), has_limit_for_all: rng.bool() }
    }

    /// Setting of `guard`: without mode shield, all are dry runs.
    pub fn setting(&self, guard: Guard) -> Setting {
        match self.guards[guard.index()] {
            Setting::Acts if self.mode != Mode::Shield => Setting::Dry,
            setting => setting,
        }
    }

    fn text(&self) -> String {
        let Self { name, port, mode, .. } = self;
        let mut text = format!("[[service]]\nname = \"{name}\"\nports = [{port}]\nmode = \"{mode}\"\n");
        let each = "source_v6 = 128";
        for guard in Guard::ALL {
            let dry_run = match self.guards[guard.index()] {
                Setting::Off => continue,
                Setting::Dry => true,
                Setting::Acts => false,
            };
            let all = if self.has_limit_for_all { "limit = \"1000000/s\", " } else { "" };
            let more = match guard {
                Guard::Hide => String::new(),
                Guard::Once => "remember = \"1h\", ".to_owned(),
                Guard::Fair => format!("limit = \"1/h\", burst = {BURST}, {each}, "),
                Guard::Clamp => "factor = 3, ".to_owned(),
                Guard::Shed => format!(
                    "{all}per_source = \"1/h\", per_source_burst = {BURST}, {each}, drop = {}, ",
                    self.drops
                ),
            };
            text += &format!("{guard} = {{ {more}dry_run = {dry_run} }}\n");
        }
        text
    }
}

impl Desired {
    /// One with any services.
    fn random(rng: &mut Rng, sizes: [u32; 2]) -> Self {
        let mut ports = PORTS;
        rng.shuffle(&mut ports);
        let mut services = Vec::new();
        for (name, port) in NAMES.into_iter().zip(ports) {
            if rng.usize(..4) > 0 {
                services.push(Service::random(rng, name, port));
            }
        }
        Self { services, sizes }
    }

    fn with_other_sizes(rng: &mut Rng) -> Self {
        let size = |rng: &mut Rng| [1 << 15, 1 << 16, 1 << 17][rng.usize(..3)];
        let sizes = [size(rng), size(rng)];
        Self::random(rng, sizes)
    }

    /// The file, behind the interfaces.
    pub fn text(&self) -> String {
        let services: String = self.services.iter().map(Service::text).collect();
        format!("[maps]\nsources = {}\nreplays = {}\n{services}", self.sizes[0], self.sizes[1])
    }

    /// The service on `port`, if one has it.
    pub fn on(&self, port: u16) -> Option<&Service> {
        self.services.iter().find(|service| service.port == port)
    }

    /// The most that may be done to any packet.
    pub fn mode(&self) -> Mode {
        self.services.iter().map(|service| service.mode).max().unwrap_or_default()
    }

    fn mode_of(&self, name: &str) -> Option<Mode> {
        let mode = self.services.iter().find(|service| service.name == name).map(|service| service.mode);
        mode.or((name == OTHER_NAME).then_some(Mode::Observe))
    }

    /// Names of all services, and of what is none's.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        [OTHER_NAME].into_iter().chain(self.services.iter().map(|service| service.name))
    }
}

/// Where the second interface is.
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

/// A step.
#[derive(Clone, Debug)]
pub enum Step {
    /// `tfo reload`, or SIGHUP.
    Reload {
        /// Whether by a signal.
        by_signal: bool,
        /// The configuration.
        desired: Desired,
    },
    /// A reload that must be refused.
    BadReload(Bad),
    /// SIGTERM.
    Stop,
    /// SIGKILL.
    Kill,
    /// A new configuration by SIGHUP, and a signal that ends it so many milliseconds later.
    KillInReload {
        /// The configuration.
        desired: Desired,
        /// SIGKILL, SIGTERM or SIGINT.
        by: Signal,
        /// How much later.
        after_ms: u64,
    },
    /// A reload, and another step so many milliseconds later, while it may be under way.
    InReload {
        /// The configuration.
        desired: Desired,
        /// How much later.
        after_ms: u64,
        /// The other step.
        then: Box<Step>,
    },
    /// `tfo run`.
    Start(Desired),
    /// `tfo run`, and a signal that ends it so many milliseconds later.
    KillInStart {
        /// The configuration.
        desired: Desired,
        /// SIGKILL, SIGTERM or SIGINT.
        by: Signal,
        /// How much later.
        after_ms: u64,
    },
    /// A `tfo run` that must be refused, since an interface is not there.
    StartWithout,
    /// `tfo hide` or `tfo show`.
    Order {
        /// Whether to hide.
        on: bool,
        /// What.
        what: Hidden,
        /// On which interface, or on both.
        only: Option<usize>,
    },
    /// Other keys for the kernel.
    Rotate {
        /// Whether the key before becomes the backup key.
        keeps: bool,
    },
    /// The second interface goes down.
    Down,
    /// It comes up, and has its own name.
    Up,
    /// It is deleted.
    Delete,
    /// It is made anew.
    Make,
    /// It is deleted and made anew at once.
    Remake,
    /// It is given another name.
    Rename,
    /// A second controller, which must be refused.
    SecondController,
    /// SIGINT, which leaves nothing.
    Interrupt,
    /// `tfo unload`, which leaves nothing, with a controller or without.
    Unload,
    /// SIGKILL, and nothing is left but files, as after a reboot.
    Reboot,
}

impl Step {
    /// Whether the second interface is another one after it.
    pub fn makes_anew(&self) -> bool {
        match self {
            Self::InReload { then, .. } => then.makes_anew(),
            _ => matches!(self, Self::Remake),
        }
    }
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It is no TOML.
    Form,
    /// A value is out of range.
    Value,
    /// It has what only a start can change.
    Fixed,
    /// It is not there.
    Missing,
}

/// A kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Card {
    Reload,
    BadReload,
    Stop,
    Kill,
    KillInReload,
    InReload,
    Start,
    StartOther,
    KillInStart,
    StartWithout,
    Hide,
    Show,
    Rotate,
    Down,
    Up,
    Delete,
    Make,
    Remake,
    Rename,
    SecondController,
    Interrupt,
    Unload,
    Reboot,
}

/// Cards to draw from, so that each kind comes round.
const DECK: [(Card, usize); 23] = [
    (Card::Reload, 7),
    (Card::BadReload, 1),
    (Card::Stop, 1),
    (Card::Kill, 1),
    (Card::KillInReload, 2),
    (Card::InReload, 3),
    (Card::Start, 2),
    (Card::StartOther, 2),
    (Card::KillInStart, 2),
    (Card::StartWithout, 1),
    (Card::Hide, 4),
    (Card::Show, 2),
    (Card::Rotate, 2),
    (Card::Down, 1),
    (Card::Up, 2),
    (Card::Delete, 1),
    (Card::Make, 1),
    (Card::Remake, 2),
    (Card::Rename, 1),
    (Card::SecondController, 1),
    (Card::Interrupt, 1),
    (Card::Unload, 1),
    (Card::Reboot, 1),
];

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

/// What there must be.
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
    /// Where the second interface is.
    pub link: Link,
    /// Whether the second interface has the program, if that is known.
    pub is_second_attached: Option<bool>,
    /// The kernel's keys.
    pub kernel: (u32, Option<u32>),
    /// Those that the programs know.
    pub ring: Ring,
    newest_key: u32,
    deck: Vec<Card>,
}

impl Model {
    /// A host on which nothing runs yet; the kernel has key 1.
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            desired: Desired::with_other_sizes(rng),
            in_force: [None, None],
            is_known: [true; 2],
            controller: false,
            orders: Default::default(),
            link: Link::Up,
            is_second_attached: Some(false),
            kernel: (1, None),
            ring: Ring::default(),
            newest_key: 1,
            deck: Vec::new(),
        }
    }

    /// Draws the next step.
    pub fn draw(&mut self, rng: &mut Rng) -> Step {
        // Most steps need a controller.
        if !self.controller && rng.bool() {
            let card = if rng.bool() { Card::Start } else { Card::StartOther };
            if let Some(step) = self.step(rng, card) {
                return step;
            }
        }
        loop {
            for at in 0..self.deck.len() {
                if let Some(step) = self.step(rng, self.deck[at]) {
                    self.deck.remove(at);
                    return step;
                }
            }
            self.deck = DECK.iter().flat_map(|(card, count)| std::iter::repeat_n(*card, *count)).collect();
            rng.shuffle(&mut self.deck);
        }
    }

    /// A step of that kind, where there can be one now.
    fn step(&self, rng: &mut Rng, card: Card) -> Option<Step> {
        let (runs, link) = (self.controller, self.link);
        // Two controllers, and a start, need both by their names.
        let is_whole = matches!(link, Link::Up | Link::Down);
        let can_be = match card {
            Card::Reload | Card::BadReload | Card::Hide | Card::Show | Card::Stop | Card::Kill => runs,
            Card::KillInReload | Card::InReload | Card::Interrupt => runs,
            Card::Unload | Card::Reboot => self.in_force[0].is_some(),
            // What a program knows of keys is known only with a start behind it.
            Card::KillInStart => !runs && is_whole && self.in_force[0].is_some(),
            Card::SecondController => runs && is_whole,
            Card::Start | Card::StartOther => !runs && is_whole,
            Card::StartWithout => !runs && !is_whole,
            Card::Rotate => self.is_known[0],
            Card::Down | Card::Rename | Card::Remake => link == Link::Up,
            Card::Up => matches!(link, Link::Down | Link::Renamed),
            Card::Delete => link != Link::Gone,
            Card::Make => link == Link::Gone,
        };
        let random = |rng: &mut Rng| Desired::random(rng, self.desired.sizes);
        can_be.then(|| match card {
            Card::Reload => Step::Reload { by_signal: rng.usize(..4) == 0, desired: random(rng) },
            Card::BadReload => {
                Step::BadReload([Bad::Form, Bad::Value, Bad::Fixed, Bad::Missing][rng.usize(..4)])
            }
            Card::Stop => Step::Stop,
            Card::Kill => Step::Kill,
            Card::KillInReload => {
                let (desired, by) = (random(rng), ending(rng));
                Step::KillInReload { desired, by, after_ms: rng.u64(..1500) }
            }
            Card::KillInStart => {
                let (desired, by) = (Desired::with_other_sizes(rng), ending(rng));
                Step::KillInStart { desired, by, after_ms: rng.u64(..2000) }
            }
            Card::InReload => {
                let desired = random(rng);
                let then = Box::new(self.in_reload(rng, &desired));
                Step::InReload { desired, after_ms: rng.u64(..800), then }
            }
            Card::Start => Step::Start(self.desired.clone()),
            Card::StartOther => Step::Start(Desired::with_other_sizes(rng)),
            Card::StartWithout => Step::StartWithout,
            Card::Hide => Step::Order { on: true, what: hidden(rng), only: only(rng) },
            Card::Show => {
                let there: Vec<&Hidden> = self.orders.iter().flatten().collect();
                let what = if there.is_empty() || rng.usize(..4) == 0 {
                    hidden(rng)
                } else {
                    there[rng.usize(..there.len())].clone()
                };
                Step::Order { on: false, what, only: only(rng) }
            }
            Card::Rotate => Step::Rotate { keeps: rng.usize(..4) > 0 },
            Card::Down => Step::Down,
            Card::Up => Step::Up,
            Card::Delete => Step::Delete,
            Card::Make => Step::Make,
            Card::Remake => Step::Remake,
            Card::Rename => Step::Rename,
            Card::SecondController => Step::SecondController,
            Card::Interrupt => Step::Interrupt,
            Card::Unload => Step::Unload,
            Card::Reboot => Step::Reboot,
        })
    }

    /// A step that can be made in a reload to `desired`, and has the same outcome before it and behind it.
    fn in_reload(&self, rng: &mut Rng, desired: &Desired) -> Step {
        let cards = [
            Card::Hide,
            Card::Show,
            Card::Rotate,
            Card::Down,
            Card::Up,
            Card::Delete,
            Card::Make,
            Card::Remake,
            Card::Rename,
        ];
        let after = Self { desired: desired.clone(), ..self.clone() };
        loop {
            let card = cards[rng.usize(..cards.len())];
            match self.step(rng, card) {
                Some(Step::Order { on, what, .. })
                    if self.obeys(0, on, &what) != after.obeys(0, on, &what) => {}
                Some(Step::Order { on, what, .. }) => return Step::Order { on, what, only: Some(0) },
                Some(step) => return step,
                None => {}
            }
        }
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
            Step::InReload { desired, then, .. } => {
                if is_done {
                    self.made(&Step::Reload { by_signal: false, desired: desired.clone() }, true);
                }
                self.made(then, true);
                self.is_known[1] &= !matches!(**then, Step::Delete);
            }
            Step::KillInStart { desired, by: Signal::SIGKILL, .. } => {
                self.is_known = [false; 2];
                self.is_second_attached = self.is_second_attached.filter(|is_attached| *is_attached);
                self.desired = desired.clone();
            }
            // It heeds a signal when it has started, or has not heard of it.
            Step::KillInStart { desired, by, .. } => {
                if is_done {
                    self.made(&Step::Start(desired.clone()), true);
                    self.made(if *by == Signal::SIGINT { &Step::Interrupt } else { &Step::Stop }, true);
                }
                self.desired = desired.clone();
            }
            Step::KillInReload { desired, by: Signal::SIGINT, .. } => {
                self.made(&Step::Interrupt, true);
                self.desired = desired.clone();
            }
            Step::Reload { desired, .. } => {
                self.desired = desired.clone();
                self.in_force[0] = Some(desired.clone());
                // What is not there gets it when it comes.
                if self.link != Link::Gone {
                    self.in_force[1] = Some(desired.clone());
                }
            }
            Step::BadReload(_) | Step::StartWithout | Step::SecondController => {}
            Step::Stop | Step::Kill => self.controller = false,
            Step::KillInReload { desired, .. } => {
                self.controller = false;
                self.is_known = [false; 2];
                self.desired = desired.clone();
            }
            Step::Start(desired) => {
                self.controller = true;
                self.is_known = [true; 2];
                self.is_second_attached = Some(true);
                self.desired = desired.clone();
                self.in_force = [Some(desired.clone()), Some(desired.clone())];
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
            Step::Rotate { .. } => {
                (self.newest_key, self.kernel) = (self.newest_key + 1, self.rotated(step));
            }
            Step::Down => self.link = Link::Down,
            Step::Up => self.link = Link::Up,
            Step::Rename => self.link = Link::Renamed,
            Step::Delete => (self.link, self.is_second_attached) = (Link::Gone, Some(false)),
            Step::Remake => {
                self.made(&Step::Delete, true);
                self.made(&Step::Make, true);
            }
            Step::Make => {
                self.link = Link::Up;
                if self.controller {
                    self.is_second_attached = Some(true);
                    self.is_known[1] = true;
                    self.in_force[1] = Some(self.desired.clone());
                }
            }
            Step::Interrupt | Step::Unload | Step::Reboot => {
                self.controller = false;
                self.is_known = [true; 2];
                self.is_second_attached = Some(false);
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

    /// The kernel's keys after `step`.
    pub fn rotated(&self, step: &Step) -> (u32, Option<u32>) {
        match step {
            Step::InReload { then, .. } => self.rotated(then),
            Step::Rotate { keeps } => (self.newest_key + 1, keeps.then_some(self.kernel.0)),
            _ => self.kernel,
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

fn hidden(rng: &mut Rng) -> Hidden {
    match rng.usize(..5) {
        0 => Hidden::All,
        1 | 2 => Hidden::Service(NAMES[rng.usize(..NAMES.len())].to_owned()),
        _ => Hidden::Source(PREFIXES[rng.usize(..PREFIXES.len())].parse().expect("a prefix")),
    }
}

fn ending(rng: &mut Rng) -> Signal {
    [Signal::SIGKILL, Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT][rng.usize(..4)]
}

fn only(rng: &mut Rng) -> Option<usize> {
    [None, None, Some(0), Some(1)][rng.usize(..4)]
}
