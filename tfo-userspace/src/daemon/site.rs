//! Site: the state of one interface, and the steps to the desired state.

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
        self, Built, Datapath, Enforced, NOT_HANDED_OUT, OnDevice, Presence, Program, Publish, name_of,
        on_device, pins::Locked,
    },
    kernel::{
        interface::{Interface, answers_as},
        syncookies,
        sysctl::KernelKeys,
    },
    model::{
        guards::{Orders, SpecialPorts},
        keys::{DatedKey, PortKeys},
        settings::AttachMode,
    },
    util::secrecy::leaving_no_trace,
    view::events::{Event, EventLog},
};

/// Interface whose controller we are.
pub struct Site {
    name: String,
    pins: Locked,
    /// Program in force. It is kept while the interface is gone.
    pub(super) datapath: Option<Datapath>,
    /// The last events.
    events: EventLog,
    /// Orders of `tfo hide` that are desired.
    pub(super) orders: OrderFile,
    /// Services whose SYNs are to be answered.
    pub(super) answering: BTreeSet<String>,
    /// Ports whose listeners are special.
    pub(super) special: SpecialPorts,
    /// Orders in the maps in force.
    ordered: Orders,
    device: Device,
    /// Place of the program of ours on the interface, if there is one.
    live: Option<Attach>,
    /// The interface, unless it is gone.
    interface: Option<Interface>,
    /// Program that is loaded and not in force.
    built: Option<Built>,
    /// Channel of the thread that loads a program.
    building: Option<Receiver<Result<Built>>>,
    /// Reason why the last step failed. The same reason is logged once.
    failure: Option<String>,
    retry: Retry,
}

/// Retry state of the steps, with growing pauses between failed ones.
#[derive(Clone, Copy, Debug)]
struct Retry {
    /// Time of the next try; `None` means now.
    at: Option<Instant>,
    /// Pause after the next failure.
    pause: Duration,
}

impl Retry {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(10);
    const NOW: Self = Self { at: None, pause: Self::FIRST };

    fn is_due(self) -> bool {
        self.at.is_none_or(|at| Instant::now() >= at)
    }

    /// Returns the state after a failure: the next pause is twice as long.
    fn later(self) -> Self {
        Self { at: Some(Instant::now() + self.pause), pause: (self.pause * 2).min(Self::LONGEST) }
    }
}

/// Result of looking at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The site stays ours.
    Stays,
    /// Somebody has removed its pins, so it is not ours any more.
    Unloaded,
}

impl Site {
    /// Makes the site of `interface`, whose pins are locked. An earlier controller has left the services in `answering`
    /// engaged.
    pub fn new(interface: Interface, pins: Locked, orders: OrderFile, answering: BTreeSet<String>) -> Self {
        Self {
            name: interface.name.clone(),
            pins,
            datapath: None,
            events: EventLog::default(),
            orders,
            answering,
            special: SpecialPorts::default(),
            ordered: Orders::default(),
            device: Device::Bare,
            live: None,
            interface: Some(interface),
            built: None,
            building: None,
            failure: None,
            retry: Retry::NOW,
        }
    }

    /// Returns the name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the pins of the interface.
    pub fn pins(&self) -> &Locked {
        &self.pins
    }

    /// Whether the program sees the packets of the interface.
    pub fn is_attached(&self) -> bool {
        self.datapath.is_some() && self.device == Device::Ours
    }

    /// Whether the interface is gone.
    pub fn is_absent(&self) -> bool {
        self.device == Device::Absent
    }

    /// Returns the reason if the last step failed.
    pub fn failure(&self) -> Option<anyhow::Error> {
        self.failure.as_ref().map(|failure| anyhow!("{failure}"))
    }

    /// Ends the pause after a failed step, so that it is tried again at once.
    pub fn retry_now(&mut self) {
        self.failure = None;
        self.retry = Retry::NOW;
    }

    /// Returns the desired program, which `program` makes for the link layer of the interface.
    pub fn desired(&self, program: impl FnOnce(tfo_common::parse::LinkLayer) -> Program) -> Program {
        let link = self.interface.as_ref().map(|interface| interface.link_layer);
        let link = link.or(self.datapath.as_ref().map(|datapath| datapath.program().options.link));
        program(link.unwrap_or(tfo_common::parse::LinkLayer::Ethernet))
    }

    /// Whether the program belongs at tcx. What is attached stays where it is. Else, `attach` decides, and the XDP program of
    /// somebody else.
    pub fn is_for_tcx(&self, attach: AttachMode) -> bool {
        let is_occupied = || self.interface.as_ref().is_some_and(|interface| interface.xdp.is_some());
        match (self.live, attach) {
            (Some(live), _) => live == Attach::Tcx,
            (None, AttachMode::Auto) => is_occupied(),
            (None, _) => attach == AttachMode::Tcx,
        }
    }

    /// Reads the actual state of the interface.
    pub async fn observe(&mut self, attach: AttachMode) -> Fate {
        let before = self.device;
        if let Some(datapath) = &self.datapath {
            match datapath.presence(&self.pins).await {
                Presence::Attached => {
                    self.device = Device::Ours;
                    self.live = Some(datapath.attach());
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
                self.live = None;
                self.device = match on_device(&interface, &self.pins, attach).await {
                    Ok(OnDevice::Nothing) => Device::Bare,
                    Ok(OnDevice::Ours(live)) => {
                        self.live = Some(live);
                        Device::Ours
                    }
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
                // The program is kept for when the interface is back.
                self.live = self.datapath.as_ref().map(Datapath::attach);
            }
        }
        if before == Device::Ours && self.device != Device::Ours && self.datapath.is_some() {
            warn!(
                "{}: the interface is gone, or was detached by force; it is attached again when it is back",
                self.name
            );
        }
        if before != self.device {
            self.retry = Retry::NOW;
        }
        Fate::Stays
    }

    /// Takes the program that the thread has loaded, if it is ready.
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

    /// Returns the next step towards `program`, or `None` if there is nothing to do now.
    pub fn next_step(&self, program: &Program) -> Option<Step> {
        let orders = &self.desired_orders();
        let desired = Desired { program, orders };
        let actual = Actual {
            device: self.device,
            in_force: self.datapath.as_ref().map(Datapath::program),
            orders: &self.ordered,
            built: self.built.as_ref().map(|built| &built.program),
            is_building: self.building.is_some(),
        };
        next_step(desired, actual).filter(|step| *step == Step::Order || self.retry.is_due())
    }

    /// Whether `program` is in force, or loaded and ready to be put in force.
    pub fn is_ready(&self, program: &Program) -> bool {
        let in_force = self.datapath.as_ref().map(Datapath::program);
        in_force == Some(program) || self.built.as_ref().is_some_and(|built| built.program == *program)
    }

    /// Begins to load `program` on a thread, which signals `wake` in the end.
    pub fn build(&mut self, program: Program, wake: &Wake) {
        let begin = || {
            let (name, generations, wake) = (self.name.clone(), self.pins.generations()?, wake.clone());
            let (sender, receiver) = channel();
            let work = move || {
                // The result is dropped if the site does not wait for it any more.
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

    /// Takes and explains the program's events.
    pub fn take_events(&mut self) {
        if let Some(datapath) = &mut self.datapath {
            events::take(datapath, &mut self.events);
        }
    }

    /// Adds the event that the protection `answer` of `service` has engaged, or has let go.
    pub fn note_answering(&mut self, service: &str, is_engaged: bool) {
        self.events.add(Event::of_answering(&self.name, service, is_engaged));
    }

    /// Returns the events after number `after` as JSON, at most the newest `most` of them: see [`EventLog::json`].
    pub fn events(&self, after: u64, most: usize) -> Result<String> {
        let lost =
            self.datapath.as_ref().map_or(Ok(0), |datapath| anyhow::Ok(datapath.watch()?.events_lost))?;
        self.events.json(after, most, lost)
    }

    /// Returns the number of packets whose event could not be kept.
    pub fn dropped_events(&self) -> u64 {
        self.events.lost()
    }

    /// Returns the program in force if it is attached.
    pub fn attached(&self) -> Option<&Datapath> {
        self.datapath.as_ref().filter(|_| self.is_attached())
    }

    /// Discards the program that is loaded and not in force.
    pub fn discard_built(&mut self) {
        self.built = None;
    }

    /// Puts the loaded program in force, with the kernel's keys, the `earlier` keys, and the `own` ones of listeners. The result
    /// can undo that.
    pub fn enforce(
        &mut self,
        attach: AttachMode,
        earlier: &[DatedKey],
        own: &[PortKeys],
    ) -> Result<Enforced> {
        let interface =
            self.interface.as_ref().or(self.datapath.as_ref().map(|datapath| &datapath.interface));
        let (Some(interface), Some(mut built)) = (interface, self.built.take()) else {
            bail!("{}: nothing is loaded for it", self.name)
        };
        let live = self.live.filter(|_| self.device == Device::Ours);
        leaving_no_trace(|| {
            built.carry_keys()?;
            // If the kernel's keys can't be read, the controller's next step logs that. They are confirmed at once,
            // since `shed` and the translation of cookies do nothing without a confirmation.
            if let Ok(kernel) = KernelKeys::read() {
                built.object().hold(&self.name, Publish::Held(kernel.into()))?;
                built.object().confirm()?;
            }
            built.object().remember(&self.name, earlier)?;
            built.object().hold_own_keys(&self.name, own)
        })?;
        if built.program.options.answers {
            built.object().set_host(syncookies::host().at(answers_as(interface)))?;
        }
        built.enforce(&self.pins, interface, live, attach, &self.desired_orders())
    }

    /// Completes a change after [`enforce`](Self::enforce).
    pub fn settle(&mut self, enforced: Enforced, attach: AttachMode) {
        let interface = match (&self.interface, self.datapath.as_ref()) {
            (Some(interface), _) => interface.clone(),
            (None, Some(datapath)) => datapath.interface.clone(),
            (None, None) => return,
        };
        let is_new = self.datapath.is_none() || self.device != Device::Ours;
        let is_taken_over = self.device == Device::Ours;
        if let Err(why) = enforced.outcomes() {
            let services = &enforced.program().services;
            let has_once = services.named().iter().any(|named| named.guards.once.is_some());
            let replays = match (has_once, services.compare_data()) {
                (false, _) => "",
                (true, false) => ", and `once` protects nothing",
                (true, true) => ", and `once` compares nothing but data",
            };
            warn!("{}: outcomes of connections are not counted{replays}: {why}", self.name);
        }
        if let Some(Err(why)) = enforced.egress() {
            warn!("{}: {NOT_HANDED_OUT}: {why}", self.name);
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
            (false, _) => match self.interface.as_ref().and_then(|interface| interface.xdp) {
                Some(xdp) if shown == Attach::Tcx => info!(
                    "{}: attached in tcx mode, behind the XDP program that is there: {} (id {})",
                    self.name,
                    name_of(xdp),
                    xdp.program_id
                ),
                _ => info!("{}: attached in {shown} mode", self.name),
            },
        }
        self.pins.keep();
        self.datapath = Some(datapath);
        self.ordered = self.desired_orders();
        self.device = Device::Ours;
        self.live = Some(shown);
        self.succeed();
    }

    /// Attaches the program in force to an interface that has come back.
    pub fn attach(&mut self, attach: AttachMode) {
        let (Some(datapath), Some(interface)) = (&mut self.datapath, self.interface.take()) else { return };
        match datapath.attach_again(interface, attach) {
            Ok(()) => {
                info!("{}: the interface is back", self.name);
                self.device = Device::Ours;
                self.live = Some(datapath.attach());
                self.succeed();
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Writes the orders into the maps in force.
    pub fn order(&mut self) -> Result<()> {
        let orders = self.desired_orders();
        if let Some(datapath) = &mut self.datapath {
            datapath.set_orders(&orders)?;
        }
        self.ordered = orders;
        Ok(())
    }

    /// Returns the orders that are desired.
    fn desired_orders(&self) -> Orders {
        Orders {
            hidden: self.orders.hidden().clone(),
            answering: self.answering.clone(),
            special: self.special.clone(),
        }
    }

    /// Notes that a step has failed, and sets the time of its next try.
    pub fn fail(&mut self, error: &anyhow::Error) {
        let failure = format!("{error:#}");
        if self.failure.as_ref() != Some(&failure) && self.datapath.is_some() {
            warn!("{}: cannot apply the configuration, will retry: {failure}", self.name);
        }
        self.failure = Some(failure);
        self.retry = self.retry.later();
    }

    /// Notes that a step has succeeded.
    fn succeed(&mut self) {
        self.failure = None;
        self.retry = Retry::NOW;
    }

    /// Detaches the programs and removes all state, including the orders of `tfo hide`.
    pub async fn unload(mut self) -> Result<()> {
        if let Some(datapath) = &mut self.datapath {
            datapath.flush_log();
        }
        dataplane::remove(&self.pins).await?;
        info!("{}: detached", self.name);
        self.orders.remove()
    }
}
