//! Configurations of the walk: at random, and as the text of a file.

use fastrand::Rng;
use tfo_common::{policy::Guard, verdict::Mode};
use tfo_userspace::model::services::OTHER_NAME;

use super::{BURST, NAMES, PORTS};
use crate::guards::Setting;

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
    /// Whether what is shed is dropped.
    pub(super) drops: bool,
    /// Whether forged SYNs of all sources have a limit, too.
    pub(super) has_limit_for_all: bool,
}

/// A configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Its services.
    pub services: Vec<Service>,
    /// Numbers of entries of the tables for sources and for replays. Only a start can change them.
    sizes: [u32; 2],
    /// Whether `tfo` makes the kernel's keys, which only a start can change, too.
    pub makes_keys: bool,
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
    /// Any.
    pub(super) fn random(rng: &mut Rng) -> Self {
        let size = |rng: &mut Rng| [1 << 15, 1 << 16, 1 << 17][rng.usize(..3)];
        Self { services: services(rng), sizes: [size(rng), size(rng)], makes_keys: rng.usize(..3) > 0 }
    }

    /// One to which a running `tfo` can change from this one: with any services.
    pub(super) fn with_other_services(&self, rng: &mut Rng) -> Self {
        Self { services: services(rng), ..*self }
    }

    /// The file, behind the interfaces.
    pub fn text(&self) -> String {
        let source = if self.makes_keys { "random" } else { "kernel" };
        let [sources, replays] = self.sizes;
        let services: String = self.services.iter().map(Service::text).collect();
        let keys = format!("[keys]\nsource = \"{source}\"\nrotate = \"1w\"\n");
        format!("{keys}[maps]\nsources = {sources}\nreplays = {replays}\n{services}")
    }

    /// The service on `port`, if one has it.
    pub fn on(&self, port: u16) -> Option<&Service> {
        self.services.iter().find(|service| service.port == port)
    }

    /// The most that may be done to any packet.
    pub fn mode(&self) -> Mode {
        self.services.iter().map(|service| service.mode).max().unwrap_or_default()
    }

    pub(super) fn mode_of(&self, name: &str) -> Option<Mode> {
        let mode = self.services.iter().find(|service| service.name == name).map(|service| service.mode);
        mode.or((name == OTHER_NAME).then_some(Mode::Observe))
    }

    /// Names of all services, and of what is none's.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        [OTHER_NAME].into_iter().chain(self.services.iter().map(|service| service.name))
    }
}

fn services(rng: &mut Rng) -> Vec<Service> {
    let mut ports = PORTS;
    rng.shuffle(&mut ports);
    let mut services = Vec::new();
    for (name, port) in NAMES.into_iter().zip(ports) {
        if rng.usize(..4) > 0 {
            services.push(Service::random(rng, name, port));
        }
    }
    services
}
