//! What a scrape shows, read from the maps and the kernel at that moment.

use anyhow::Result;
use log::debug;
use tfo_common::{
    info::Info,
    keyring::{KeyRing, Role, SLOTS},
    observed::Watch,
};

use crate::{
    daemon::controller::Controller,
    datapath::{Datapath, Entries, Pinned, ServiceCounters, unix_seconds},
    kernel::TcpExt,
    pins::Pins,
    secrecy::leaving_no_trace,
};

/// What a scrape shows, as plain values.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Each interface that `tfo run` was given, once.
    pub interfaces: Vec<OnInterface>,
    /// The kernel's own counters, of the network namespace.
    pub kernel: TcpExt,
    /// How often the kernel's keys could not be read or written, or were changed by somebody else.
    pub key_failures: u64,
    /// How often the key changes, in seconds; `None` where that is the kernel's to decide.
    pub rotation_interval: Option<u64>,
}

/// One interface.
#[derive(Clone, Debug)]
pub struct OnInterface {
    /// Its name.
    pub name: String,
    /// The program on it; `None` where it is not attached, or can't be read.
    pub program: Option<Program>,
    /// Whether there is a program that can't be read.
    pub is_unreadable: bool,
}

/// The program on one interface.
#[derive(Clone, Debug)]
pub struct Program {
    /// What its controller says of it.
    pub info: Info,
    /// What it has counted, by service.
    pub services: Vec<ServiceCounters>,
    /// Whether it is known what becomes of connections.
    pub knows_outcomes: bool,
    /// What it has observed besides.
    pub watch: Watch,
    /// For how many packets there was an event that this controller could not keep.
    pub dropped_events: u64,
    /// Its keys, by role.
    pub keys: Vec<RoleKeys>,
    /// Whether they are the kernel's and the schedule's; `None` where neither could be asked.
    pub in_step: Option<bool>,
    pins: Pins,
}

/// The keys of one role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleKeys {
    /// The role.
    pub role: Role,
    /// How many there are.
    pub count: u64,
    /// Seconds since the oldest of them came into the map.
    pub age: Option<u64>,
}

impl Snapshot {
    /// That of `controller`, which is to be attached to `interfaces`.
    pub fn take(controller: &Controller, interfaces: &[String]) -> Result<Self> {
        let rotation_interval = controller.keeper().rotate_seconds();
        // One that can't be read is missing, and keeps no other from being shown.
        let on_interface = |(name, datapath): (&str, Option<&Datapath>)| {
            let program = datapath.map(Program::of).transpose();
            let is_unreadable = program.is_err();
            let failed = |error| debug!("{name}: cannot read the program for a scrape: {error:#}");
            OnInterface {
                name: name.to_owned(),
                program: program.map_err(failed).ok().flatten(),
                is_unreadable,
            }
        };
        Ok(Self {
            interfaces: each(controller, interfaces).map(on_interface).collect(),
            kernel: TcpExt::read()?,
            key_failures: controller.keeper().failures(),
            rotation_interval: (rotation_interval > 0).then_some(rotation_interval),
        })
    }
}

impl Program {
    fn of(datapath: &Datapath) -> Result<Self> {
        let (keys, in_step) = leaving_no_trace(|| {
            let (ring, attestation) = datapath.keys()?;
            anyhow::Ok((roles(&ring, unix_seconds()), attestation.in_step()))
        })?;
        let pins = datapath.pins().clone();
        Ok(Self {
            info: *datapath.info(),
            services: datapath.by_service()?,
            knows_outcomes: pins.has_outcomes()?,
            watch: datapath.watch()?,
            dropped_events: datapath.dropped_events(),
            keys,
            in_step,
            pins,
        })
    }

    /// How many entries its maps have, now. They are counted one by one: not on the controller's thread. `None` where the maps
    /// are gone.
    pub fn entries(&self) -> Option<Entries> {
        Pinned::open(&self.pins).map(|pinned| pinned.entries()).ok()
    }
}

/// The keys of `ring` at `now`, seconds since 1970.
fn roles(ring: &KeyRing, now: u64) -> Vec<RoleKeys> {
    let of_role = |role| {
        let slots = (0..SLOTS).filter(|slot| ring.holds(*slot) && Role::of_slot(*slot) == role);
        let ages = slots.map(|slot| now.saturating_sub(ring.since[slot]));
        RoleKeys { role, count: ages.clone().count() as u64, age: ages.max() }
    };
    [Role::Current, Role::Backup, Role::Next, Role::Retired].map(of_role).into()
}

/// Each of `interfaces` once, in their order, with the program that is attached to it.
fn each<'a>(
    controller: &'a Controller,
    interfaces: &'a [String],
) -> impl Iterator<Item = (&'a str, Option<&'a Datapath>)> {
    let is_first = |(place, name): &(usize, &String)| !interfaces[..*place].contains(name);
    interfaces.iter().enumerate().filter(is_first).map(|(_, name)| {
        (name.as_str(), controller.datapaths().find(|datapath| datapath.interface.name == *name))
    })
}

/// Whether `controller` is attached to all of `interfaces` with keys in step, or why that isn't so.
pub(super) fn health(controller: &Controller, interfaces: &[String]) -> Result<(), String> {
    let mut reasons: Vec<String> = each(controller, interfaces)
        .filter_map(|(name, datapath)| {
            let Some(datapath) = datapath else {
                return Some(format!(
                    "{name}: not attached: the interface is gone, or the program was unloaded"
                ));
            };
            match leaving_no_trace(|| datapath.keys().map(|(_, attestation)| attestation.in_step())) {
                Ok(Some(false)) => {
                    Some(format!("{name}: keys are out of step (`tfo keys status` shows them)"))
                }
                Ok(Some(true) | None) => None,
                Err(error) => Some(format!("{name}: cannot read the keys: {error:#}")),
            }
        })
        .collect();
    reasons.extend(controller.keeper().failure().map(|failure| format!("keys: {failure}")));
    if reasons.is_empty() { Ok(()) } else { Err(reasons.join("\n")) }
}
