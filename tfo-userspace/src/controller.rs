//! The controller: the program on one or more interfaces, with keys that follow the kernel's.

use std::time::Duration;

use anyhow::Result;
use log::{LevelFilter, warn};
use tfo_common::counters::Counters;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::{
    cli::AttachMode,
    counters::Report,
    datapath::{Datapath, preflight},
    interface::Interface,
    keys::Follower,
    pins::{Bpffs, MountGuard},
};

/// How often the kernel's keys are read: several times within the second that a change may take to arrive.
pub const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// The program on one or more interfaces, with keys that follow the kernel's.
pub struct Controller {
    datapaths: Vec<Datapath>,
    follower: Follower,
    // Last: unmounts after the pins are gone.
    _mount: MountGuard,
}

impl Controller {
    /// Attaches to every one of `interfaces`, or to none; each has the kernel's keys before it sees a packet.
    pub async fn start(
        interfaces: &[String],
        bpffs: &Bpffs,
        mode: AttachMode,
        log_level: LevelFilter,
    ) -> Result<Self> {
        preflight()?;
        let mut found: Vec<Interface> = Vec::new();
        for name in interfaces {
            if !found.iter().any(|interface| interface.name == *name) {
                found.push(Interface::find(name).await?);
            }
        }
        let mut controller =
            Self { _mount: bpffs.mount()?, datapaths: Vec::new(), follower: Follower::default() };
        for interface in found {
            if let Err(error) = controller.attach(interface, bpffs, mode, log_level) {
                controller.stop().await?;
                return Err(error);
            }
        }
        Ok(controller)
    }

    fn attach(
        &mut self,
        interface: Interface,
        bpffs: &Bpffs,
        mode: AttachMode,
        log_level: LevelFilter,
    ) -> Result<()> {
        // aya numbers levels as log does: 0 is off, and the program's rare events are at debug.
        let level = if log_level >= LevelFilter::Debug { log_level as u8 } else { 0 };
        self.follower.poll();
        let datapath = Datapath::attach(interface, bpffs, mode, level, self.follower.keys())?;
        self.datapaths.push(datapath);
        Ok(())
    }

    /// Keeps the keys in step and passes the program's own log on; to be called every [`FOLLOW_EVERY`]. Lets go of
    /// interfaces that somebody else unloaded.
    pub fn step(&mut self) -> Result<()> {
        self.datapaths.retain(|datapath| {
            let pinned = datapath.is_pinned();
            if !pinned {
                warn!("{}: unloaded by somebody else", datapath.interface.name);
            }
            pinned
        });
        if let Some(keys) = self.follower.poll() {
            self.datapaths.iter_mut().try_for_each(|datapath| datapath.follow(keys))?;
        }
        self.datapaths.iter_mut().for_each(Datapath::flush_log);
        Ok(())
    }

    /// Whether it controls nothing any more.
    pub fn is_idle(&self) -> bool {
        self.datapaths.is_empty()
    }

    /// What was counted on each interface.
    pub fn counters(&self) -> Result<Vec<Counters>> {
        self.datapaths.iter().map(Datapath::counters).collect()
    }

    /// The same as users see it.
    pub fn reports(&self) -> Result<Vec<Report>> {
        self.datapaths.iter().map(Datapath::report).collect()
    }

    /// Detaches everything and removes its state; where that fails for one, still for the others.
    pub async fn stop(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(datapath) = self.datapaths.pop() {
            outcome = outcome.and(datapath.detach().await);
        }
        outcome
    }
}

/// A ticker that never tries to catch up.
pub fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
