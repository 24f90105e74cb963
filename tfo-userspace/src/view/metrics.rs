//! Metrics for Prometheus: what a scrape shows, as plain values, and as text.

mod format;
mod labels;
mod text;

pub use format::Format;
use tfo_common::{info::Info, keyring::Role, observed::Watch};

use crate::{
    dataplane::{Entries, Pinned, ServiceCounters, pins::Pins},
    kernel::tcp_ext::TcpExt,
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
    /// Number of log lines that were not written: there were too many, or nobody read them.
    pub log_lines_dropped: u64,
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
    /// Where its maps are pinned.
    pub pins: Pins,
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

impl Program {
    /// How many entries its maps have, now. They are counted one by one: not on the controller's thread. `None` where the maps
    /// are gone.
    pub fn entries(&self) -> Option<Entries> {
        Pinned::open(&self.pins).map(|pinned| pinned.entries()).ok()
    }
}
