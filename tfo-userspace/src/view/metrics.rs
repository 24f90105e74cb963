//! Metrics for Prometheus: a snapshot of plain values, and its text.

mod format;
mod labels;
mod listeners;
mod text;

pub use format::Format;
use tfo_common::{client::Client, info::Info, keyring::Role, observed::Watch};

use crate::{
    dataplane::{Entries, Pinned, ServiceCounters, pins::Pins},
    fleet::feed::State,
    kernel::{listeners::ByAddress, tcp_ext::TcpExt},
};

/// Values of one scrape.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Name of the network namespace, if `--netns` named it: a label of all metrics.
    pub netns: Option<String>,
    /// Interfaces of `tfo run`, without duplicates.
    pub interfaces: Vec<InterfaceSnapshot>,
    /// Kernel's counters of the network namespace.
    pub kernel: TcpExt,
    /// Queues of the namespace's listeners; `None` if they can't be read.
    pub listeners: Option<ByAddress>,
    /// Number of times the kernel's keys could not be read or written, or were changed by somebody else.
    pub key_failures: u64,
    /// Number of log lines that were not written, because there were too many or nobody read them.
    pub log_lines_dropped: u64,
    /// Interval between key rotations, in seconds; `None` if the kernel decides.
    pub rotation_interval: Option<u64>,
    /// State of this host in its fleet; `None` without etcd.
    pub fleet: Option<State>,
}

/// Values of one interface.
#[derive(Clone, Debug)]
pub struct InterfaceSnapshot {
    /// Name of the interface.
    pub name: String,
    /// Values of the attached program; `None` if no program is attached, or it can't be read.
    pub program: Option<Program>,
    /// Whether a program is attached that can't be read.
    pub is_unreadable: bool,
}

/// Values of the program on one interface.
#[derive(Clone, Debug)]
pub struct Program {
    /// Facts that the controller has written for readers.
    pub info: Info,
    /// Counters and outcomes of each service.
    pub services: Vec<ServiceCounters>,
    /// Whether outcomes of connections are reported.
    pub has_outcomes: bool,
    /// Connections from here; `None` if they are not followed.
    pub client: Option<Client>,
    /// Counters of sampling, events, sources and unconfirmed keys.
    pub watch: Watch,
    /// For each service with the protection `answer`, whether it is engaged, and the number of times that it engaged.
    pub answering: Vec<Answering>,
    /// Number of packets whose event the controller could not keep.
    pub dropped_events: u64,
    /// Keys in the map, by role.
    pub keys: Vec<RoleKeys>,
    /// Result of comparing the map's keys with the kernel's and the schedule's; `None` if neither is known.
    pub in_step: Option<bool>,
    /// Pin folder of the maps.
    pub pins: Pins,
}

/// State of the protection `answer` of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answering {
    /// Name of the service.
    pub service: String,
    /// Whether it is engaged.
    pub is_engaged: bool,
    /// Number of times that it engaged since the controller began.
    pub engaged: u64,
}

/// Keys of one role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleKeys {
    /// Role of the keys.
    pub role: Role,
    /// Number of keys with this role.
    pub count: u64,
    /// Seconds since the oldest of these keys came into the map; `None` if there are none.
    pub age: Option<u64>,
}

impl Program {
    /// Counts the map entries; `None` if the maps are gone. Each entry takes a system call, so don't call this on the
    /// controller's thread.
    pub fn entries(&self) -> Option<Entries> {
        Pinned::open(&self.pins).map(|pinned| pinned.entries()).ok()
    }
}
