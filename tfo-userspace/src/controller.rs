//! The controller: the program on one or more interfaces, with keys that follow the kernel's.

use std::time::Duration;

use anyhow::Result;
use log::{LevelFilter, info, warn};
use tfo_common::counters::Counters;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::{
    cli::AttachMode,
    counters::Report,
    datapath::{Datapath, Presence, preflight, unload},
    interface::Interface,
    keys::Follower,
    pins::{Bpffs, MountGuard},
};

/// How often the kernel's keys are read: several times within the second that a change may take to arrive.
pub const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// The program on one or more interfaces, with keys that follow the kernel's.
pub struct Controller {
    datapaths: Vec<Datapath>,
    /// Interfaces that are gone, and may come back.
    gone: Vec<Gone>,
    follower: Follower,
    how: How,
    // Last: unmounts after the pins are gone.
    _mount: MountGuard,
}

/// How interfaces are attached.
struct How {
    bpffs: Bpffs,
    mode: AttachMode,
    log_level: u8,
}

struct Gone {
    name: String,
    /// Why the last try to attach again failed, so that it is said once.
    failure: Option<String>,
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
        for name in interfaces {
            Interface::find(name).await?;
        }
        // aya numbers levels as log does: 0 is off, and the program's rare events are at debug.
        let log_level = if log_level >= LevelFilter::Debug { log_level as u8 } else { 0 };
        let mut controller = Self {
            _mount: bpffs.mount()?,
            datapaths: Vec::new(),
            gone: Vec::new(),
            follower: Follower::default(),
            how: How { bpffs: bpffs.clone(), mode, log_level },
        };
        for name in interfaces {
            if controller.datapaths.iter().any(|datapath| datapath.interface.name == *name) {
                continue;
            }
            if let Err(error) = controller.attach(name).await {
                for datapath in controller.datapaths.drain(..) {
                    if let Err(error) = datapath.give_back().await {
                        warn!("{error:#}");
                    }
                }
                return Err(error);
            }
        }
        Ok(controller)
    }

    async fn attach(&mut self, name: &str) -> Result<()> {
        let How { bpffs, mode, log_level } = &self.how;
        let keys = self.follower.poll();
        self.datapaths.push(Datapath::attach(name, bpffs, *mode, *log_level, keys).await?);
        Ok(())
    }

    /// Keeps keys and attachments as they should be, and passes the program's own log on; to be called every
    /// [`FOLLOW_EVERY`]. What fails is said and tried again; it ends nothing.
    pub async fn step(&mut self) {
        self.attach_again().await;
        for datapath in std::mem::take(&mut self.datapaths) {
            let name = &datapath.interface.name;
            match datapath.presence().await {
                Presence::Attached => self.datapaths.push(datapath),
                Presence::Unloaded => warn!("{name}: unloaded, by `tfo unload` or by hand"),
                Presence::InterfaceGone => {
                    warn!("{name}: the interface is gone; it is attached again when it comes back");
                    self.gone.push(Gone { name: name.clone(), failure: None });
                }
            }
        }
        let keys = self.follower.poll();
        for datapath in &mut self.datapaths {
            if let Some(keys) = keys
                && let Err(error) = datapath.follow(keys)
            {
                warn!("{}: cannot follow the kernel's keys: {error:#}", datapath.interface.name);
            }
            datapath.flush_log();
        }
    }

    async fn attach_again(&mut self) {
        for mut gone in std::mem::take(&mut self.gone) {
            if Interface::find(&gone.name).await.is_err() {
                self.gone.push(gone);
                continue;
            }
            match self.attach(&gone.name).await {
                Ok(()) => info!("{}: the interface is back", gone.name),
                Err(error) => {
                    let failure = format!("{error:#}");
                    if gone.failure.as_ref() != Some(&failure) {
                        warn!("{}: cannot attach again, still trying: {failure}", gone.name);
                    }
                    gone.failure = Some(failure);
                    self.gone.push(gone);
                }
            }
        }
    }

    /// Whether it controls nothing any more, and will not again.
    pub fn is_idle(&self) -> bool {
        self.datapaths.is_empty() && self.gone.is_empty()
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
        for gone in self.gone.drain(..) {
            outcome = outcome.and(unload(&self.how.bpffs.pins(&gone.name)).await);
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
