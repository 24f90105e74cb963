//! One interface: what is there, and the steps to what is desired.

use std::{
    collections::BTreeSet,
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use tfo_common::info::Attach;
use tracing::{info, warn};

use super::{
    events,
    order_file::OrderFile,
    reconcile::{Actual, Desired, Device, Step, next_step},
    wake::Wake,
};
use crate::{
    dataplane::{
        self, Built, Datapath, Enforced, OnDevice, Presence, Program, Publish, on_device, pins::Locked,
    },
    kernel::{interface::Interface, sysctl::KernelKeys},
    model::{guards::Hidden, keys::Made, settings::AttachMode},
    util::secrecy::leaving_no_trace,
    view::events::EventLog,
};

/// An interface, whose controller we are.
pub struct Site {
    name: String,
    pins: Locked,
    /// What is in force, whether the interface is there or not.
    pub(super) datapath: Option<Datapath>,
    /// The last events.
    events: EventLog,
    /// What is to be hidden by order.
    pub(super) orders: OrderFile,
    /// What is hidden in the maps in force.
    hidden: BTreeSet<Hidden>,
    device: Device,
    interface: Option<Interface>,
    built: Option<Built>,
    building: Option<Receiver<Result<Built>>>,
    /// Why the last step failed, so that it is said once.
    failure: Option<String>,
    retry: Retry,
}

/// When a step that has failed is tried again.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Option<Instant>,
    pause: Duration,
}

impl Retry {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(10);
    const NOW: Self = Self { at: None, pause: Self::FIRST };

    fn is_due(self) -> bool {
        self.at.is_none_or(|at| Instant::now() >= at)
    }

    /// Later, and the next time later still.
    fn later(self) -> Self {
        Self { at: Some(Instant::now() + self.pause), pause: (self.pause * 2).min(Self::LONGEST) }
    }
}

/// What has become of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Stays,
    /// Somebody has removed its pins: it is nobody's any more.
    Unloaded,
}

impl Site {
    /// The site of `interface`, whose pins are locked.
    pub fn new(interface: Interface, pins: Locked, orders: OrderFile) -> Self {
        Self {
            name: interface.name.clone(),
            pins,
            datapath: None,
            events: EventLog::default(),
            orders,
            hidden: BTreeSet::new(),
            device: Device::Bare,
            interface: Some(interface),
            built: None,
            building: None,
            failure: None,
            retry: Retry::NOW,
        }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its state lies.
    pub fn pins(&self) -> &Locked {
        &self.pins
    }

    /// Whether the program sees the packets of the interface.
    pub fn is_attached(&self) -> bool {
        self.datapath.is_some() && self.device == Device::Ours
    }

    /// Whether the interface is not there.
    pub fn is_absent(&self) -> bool {
        self.device == Device::Absent
    }

    /// Why the last step failed, if it did.
    pub fn take_failure(&self) -> Option<anyhow::Error> {
        self.failure.as_ref().map(|failure| anyhow!("{failure}"))
    }

    /// Tries at once again what has failed.
    pub fn retry_now(&mut self) {
        self.failure = None;
        self.retry = Retry::NOW;
    }

    /// Why the last step failed, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Program that this interface is to have: `program`, made for the interface's link layer.
    pub fn desired(&self, program: impl FnOnce(tfo_common::parse::LinkLayer) -> Program) -> Program {
        let link = self.interface.as_ref().map(|interface| interface.link_layer);
        let link = link.or(self.datapath.as_ref().map(|datapath| datapath.program().options.link));
        program(link.unwrap_or(tfo_common::parse::LinkLayer::Ethernet))
    }

    /// Looks at what is there.
    pub async fn observe(&mut self) -> Fate {
        let before = self.device;
        if let Some(datapath) = &self.datapath {
            match datapath.presence(&self.pins).await {
                Presence::Attached => {
                    self.device = Device::Ours;
                    return Fate::Stays;
                }
                Presence::Unloaded => {
                    warn!("{}: unloaded, by `tfo unload` or by hand", self.name);
                    return Fate::Unloaded;
                }
                Presence::Detached => {}
            }
        }
        match Interface::find(&self.name).await {
            Ok(interface) => {
                self.device = match on_device(&interface, &self.pins).await {
                    Ok(OnDevice::Nothing) => Device::Bare,
                    Ok(OnDevice::Ours(_)) => Device::Ours,
                    Err(error) => {
                        self.fail(&error);
                        Device::Refused
                    }
                };
                self.interface = Some(interface);
            }
            Err(_) => {
                self.device = Device::Absent;
                self.interface = None;
            }
        }
        if before == Device::Ours && self.device != Device::Ours && self.datapath.is_some() {
            warn!(
                "{}: the interface is gone, or was detached by force; it is attached again when it is there",
                self.name
            );
        }
        if before != self.device {
            self.retry = Retry::NOW;
        }
        Fate::Stays
    }

    /// Takes what has been loaded.
    pub fn take_built(&mut self) {
        let Some(building) = &self.building else { return };
        let outcome = match building.try_recv() {
            Ok(outcome) => outcome,
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => Err(anyhow!("loading the program ended without an outcome")),
        };
        self.building = None;
        match outcome {
            Ok(built) => self.built = Some(built),
            Err(error) => self.fail(&error),
        }
    }

    /// The next step towards `program`; `None` where there is nothing to be done now.
    pub fn next_step(&self, program: &Program) -> Option<Step> {
        let desired = Desired { program, hidden: self.orders.hidden() };
        let actual = Actual {
            device: self.device,
            in_force: self.datapath.as_ref().map(Datapath::program),
            hidden: &self.hidden,
            built: self.built.as_ref().map(|built| &built.program),
            is_building: self.building.is_some(),
        };
        next_step(desired, actual).filter(|step| *step == Step::Hide || self.retry.is_due())
    }

    /// Whether `program` waits for nothing but to be put in force, or is in force.
    pub fn is_ready(&self, program: &Program) -> bool {
        let in_force = self.datapath.as_ref().map(Datapath::program);
        in_force == Some(program) || self.built.as_ref().is_some_and(|built| built.program == *program)
    }

    /// Begins to load `program`. `wake` is woken when that is done.
    pub fn build(&mut self, program: Program, wake: &Wake) {
        let begin = || {
            let (name, generations, wake) = (self.name.clone(), self.pins.generations()?, wake.clone());
            let (sender, receiver) = channel();
            let work = move || {
                // Whoever does not wait for it any more does without.
                drop(sender.send(Built::new(&name, program, &generations)));
                wake.up();
            };
            thread::Builder::new().name("loader".to_owned()).spawn(work).context("cannot start a thread")?;
            anyhow::Ok(receiver)
        };
        self.built = None;
        match begin() {
            Ok(receiver) => self.building = Some(receiver),
            Err(error) => self.fail(&error),
        }
    }

    /// Takes the program's events, and explains them.
    pub fn take_events(&mut self) {
        if let Some(datapath) = &mut self.datapath {
            events::take(datapath, &mut self.events);
        }
    }

    /// The events behind number `after`, or the newest `most` of them, as JSON: see [`EventLog::json`].
    pub fn events(&self, after: u64, most: usize) -> Result<String> {
        let lost =
            self.datapath.as_ref().map_or(Ok(0), |datapath| anyhow::Ok(datapath.watch()?.events_lost))?;
        self.events.json(after, most, lost)
    }

    /// Number of packets with an event that could not be kept.
    pub fn dropped_events(&self) -> u64 {
        self.events.lost()
    }

    /// The program in force, where it is attached.
    pub fn attached(&self) -> Option<&Datapath> {
        self.datapath.as_ref().filter(|_| self.is_attached())
    }

    /// Gives up what is loaded and not in force.
    pub fn drop_built(&mut self) {
        self.built = None;
    }

    /// Puts what is loaded in force, with the kernel's keys and `earlier` ones. It can still be taken back.
    pub fn enforce(&mut self, attach: AttachMode, earlier: &[Made]) -> Result<Enforced> {
        let interface =
            self.interface.as_ref().or(self.datapath.as_ref().map(|datapath| &datapath.interface));
        let (Some(interface), Some(mut built)) = (interface, self.built.take()) else {
            bail!("{}: nothing is loaded for it", self.name)
        };
        let live = match self.device {
            Device::Ours => {
                let before = self.datapath.as_ref().map(|datapath| datapath.info().attach);
                let before = before.or(interface.xdp.map(|xdp| xdp.attach as u32));
                Some(if before == Some(Attach::Generic as u32) { Attach::Generic } else { Attach::Native })
            }
            Device::Absent | Device::Bare | Device::Refused => None,
        };
        leaving_no_trace(|| {
            if let Some(ring) = built.key_ring_before()? {
                built.object().publish(&ring)?;
            }
            // Where they can't be read, the controller's next step says so. Confirmed at once: no SYN is to see a policy in
            // force of which a part does nothing yet.
            if let Ok(kernel) = KernelKeys::read() {
                built.object().hold(&self.name, Publish::Held(kernel.into()))?;
                built.object().confirm()?;
            }
            built.object().remember(&self.name, earlier)
        })?;
        built.enforce(&self.pins, interface, live, attach, self.orders.hidden())
    }

    /// Makes it so: what was enforced stays.
    pub fn settle(&mut self, enforced: Enforced, attach: AttachMode) {
        let interface = match (&self.interface, self.datapath.as_ref()) {
            (Some(interface), _) => interface.clone(),
            (None, Some(datapath)) => datapath.interface.clone(),
            (None, None) => return,
        };
        let is_new = self.datapath.is_none() || self.device != Device::Ours;
        let is_taken_over = self.device == Device::Ours;
        if let Err(why) = enforced.outcomes() {
            let has_once =
                enforced.program().services.named().iter().any(|named| named.guards.once.is_some());
            let replays = if has_once { ", and `once` protects nothing" } else { "" };
            warn!("{}: outcomes of connections are not counted{replays}: {why}", self.name);
        }
        let datapath = Datapath::settle(&self.pins, interface, enforced, self.datapath.take());
        let shown = datapath.attach();
        match (is_taken_over, is_new) {
            (true, true) => {
                info!("{}: took over the program that an earlier controller left, {shown} mode", self.name);
                if !attach.allows(shown) {
                    let name = &self.name;
                    warn!("{name}: it stays in {shown} mode: to change that, `tfo unload -i {name}` first");
                }
            }
            (true, false) => info!("{}: the program is replaced", self.name),
            (false, _) => info!("{}: attached in {shown} mode", self.name),
        }
        self.pins.keep();
        self.datapath = Some(datapath);
        self.hidden = self.orders.hidden().clone();
        self.device = Device::Ours;
        self.succeed();
    }

    /// Attaches what is in force once more, to the interface that is there now.
    pub fn attach(&mut self, attach: AttachMode) {
        let (Some(datapath), Some(interface)) = (&mut self.datapath, self.interface.take()) else { return };
        match datapath.attach_again(interface, attach) {
            Ok(()) => {
                info!("{}: the interface is back", self.name);
                self.device = Device::Ours;
                self.succeed();
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Writes what is hidden by order into the maps in force.
    pub fn hide(&mut self) -> Result<()> {
        let hidden = self.orders.hidden().clone();
        if let Some(datapath) = &mut self.datapath {
            datapath.set_hidden(&hidden)?;
        }
        self.hidden = hidden;
        Ok(())
    }

    /// Notes that a step has failed, and when it is tried again.
    pub fn fail(&mut self, error: &anyhow::Error) {
        let failure = format!("{error:#}");
        if self.failure.as_ref() != Some(&failure) && self.datapath.is_some() {
            warn!("{}: cannot apply the configuration, will retry: {failure}", self.name);
        }
        self.failure = Some(failure);
        self.retry = self.retry.later();
    }

    fn succeed(&mut self) {
        self.failure = None;
        self.retry = Retry::NOW;
    }

    /// Detaches the programs and removes all state, what is hidden by order with it.
    pub async fn unload(mut self) -> Result<()> {
        if let Some(datapath) = &mut self.datapath {
            datapath.flush_log();
        }
        dataplane::remove(&self.pins).await?;
        info!("{}: detached", self.name);
        self.orders.remove()
    }
}
