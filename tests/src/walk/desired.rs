//! Configurations of the walk: random ones, and their text.

use fastrand::Rng;
use tfo_common::{policy::Guard, verdict::Mode};
use tfo_userspace::model::services::OTHER_NAME;

use super::{BURST, NAMES, PORTS};
use crate::guards::Setting;

/// Service of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Name of the service.
    pub name: &'static str,
    /// Only port of the service.
    pub port: u16,
    /// Mode of the service.
    pub mode: Mode,
    guards: [Setting; Guard::COUNT],
    /// Whether `shed` drops SYNs.
    pub(super) drops: bool,
    /// Whether forged SYNs of all sources together have a limit.
    pub(super) has_limit_for_all: bool,
}

/// Configuration of the walk.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Services of the configuration.
    pub services: Vec<Service>,
    /// Numbers of entries in the tables of sources and replays. Only a start can change them.
    sizes: [u32; 2],
    /// Whether `tfo` makes the kernel's keys. Only a start can change it.
    pub makes_keys: bool,
}

impl Service {
    fn random(rng: &mut Rng, name: &'static str, port: u16) -> Self {
        let mode =
            [Mode::Shield, Mode::Shield, Mode::Shield, Mode::Accelerate, Mode::Observe][rng.usize(..5)];
        let mut guards = [Setting::Off; Guard::COUNT];
        for (guard, setting) in Guard::ALL.iter().zip(&mut guards) {
            // The first guard is mostly off, since it leaves no SYN to the others.
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

    /// Returns the setting of `guard`. Outside of mode shield, every guard is a dry run.
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
                    "{all}per_source = \"1/h\", per_source_burst = {BURST}, {each}, drop = {}, others = true, ",
                    self.drops
                ),
                Guard::Answer => "above = 1000000, ".to_owned(),
            };
            text += &format!("{guard} = {{ {more}dry_run = {dry_run} }}\n");
        }
        text
    }
}

impl Desired {
    /// Returns a random configuration.
    pub(super) fn random(rng: &mut Rng) -> Self {
        let size = |rng: &mut Rng| [1 << 15, 1 << 16, 1 << 17][rng.usize(..3)];
        Self { services: services(rng), sizes: [size(rng), size(rng)], makes_keys: rng.usize(..3) > 0 }
    }

    /// Returns a configuration to which a running `tfo` can change from this one: it has other services.
    pub(super) fn with_other_services(&self, rng: &mut Rng) -> Self {
        Self { services: services(rng), ..*self }
    }

    /// Returns the text of the file, without the interfaces.
    pub fn text(&self) -> String {
        let source = if self.makes_keys { "random" } else { "kernel" };
        let [sources, replays] = self.sizes;
        let services: String = self.services.iter().map(Service::text).collect();
        let keys = format!("[keys]\nsource = \"{source}\"\nrotate = \"1w\"\n");
        format!("{keys}[maps]\nsources = {sources}\nreplays = {replays}\n{services}")
    }

    /// Returns the service on `port`, if there is one.
    pub fn on(&self, port: u16) -> Option<&Service> {
        self.services.iter().find(|service| service.port == port)
    }

    /// Returns the highest mode of all services.
    pub fn mode(&self) -> Mode {
        self.services.iter().map(|service| service.mode).max().unwrap_or_default()
    }

    pub(super) fn mode_of(&self, name: &str) -> Option<Mode> {
        let mode = self.services.iter().find(|service| service.name == name).map(|service| service.mode);
        mode.or((name == OTHER_NAME).then_some(Mode::Observe))
    }

    /// Returns the names of all services, and of `other`.
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
