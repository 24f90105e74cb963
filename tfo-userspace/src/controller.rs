//! The controller: the program on one or more interfaces, with keys that follow the kernel's.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use log::{LevelFilter, debug, info, warn};
use tfo_common::{counters::Counters, verdict::Mode};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::{
    cli::AttachMode,
    config::Config,
    control::Order,
    counters::Report,
    datapath::{
        Datapath, How, KeyInfo, OTHER_NAME, Object, Presence, Sizes, preflight, unix_seconds, unload,
    },
    guards::Hidden,
    history::History,
    interface::Interface,
    kernel::TcpExt,
    keys::{
        KernelKeys, fingerprint,
        keeper::{Keeper, Maps, Publish, Source},
        parse_key,
    },
    pins::{Bpffs, MountGuard},
    secrecy::leaving_no_trace,
    services::Services,
};

/// How often the kernel's keys are read: several times within the second that a change may take to arrive.
pub const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// The program on one or more interfaces, with keys that follow the kernel's.
pub struct Controller {
    datapaths: Vec<Datapath>,
    /// Interfaces that are gone, and may come back.
    gone: Vec<Gone>,
    keeper: Keeper,
    retire: Retire,
    bpffs: Bpffs,
    how: How,
    file: Option<FromFile>,
    history: History,
    // Last: unmounts after the pins are gone.
    _mount: MountGuard,
}

struct Gone {
    name: String,
    /// Why the last try to attach again failed, so that it is said once.
    failure: Option<String>,
    /// The maps that it left have keys that must not be taken any more.
    has_leaked_keys: bool,
}

impl Gone {
    /// Removes the maps, where keys in them have leaked.
    fn forget_leaked_keys(&mut self, bpffs: &Bpffs) -> Result<()> {
        if self.has_leaked_keys {
            let pins = bpffs.pins(&self.name).lock(Duration::from_millis(500));
            pins.and_then(|pins| pins.remove()).context("leaked keys are in the maps left behind")?;
            self.has_leaked_keys = false;
        }
        Ok(())
    }
}

/// What a controller does.
pub struct Options {
    /// Where in the receive path the program is attached.
    pub attach: AttachMode,
    /// Up to which level its own events are logged.
    pub log_level: LevelFilter,
    /// Where keys come from.
    pub source: Source,
    /// When retired keys are given up.
    pub retire: Retire,
    /// By which services is counted, and what is done to their packets.
    pub services: Services,
    /// The file that says all this, where one does.
    pub file: Option<FromFile>,
}

/// A configuration, and the file that it is from.
#[derive(Debug)]
pub struct FromFile {
    /// Its path.
    pub path: PathBuf,
    /// What was last read there that was right.
    pub config: Config,
}

/// When retired keys are given up, besides when newer ones push them out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retire {
    /// At a rotation, where their share of all valid cookies since the last one is below this.
    pub below: Option<f64>,
    /// At this age.
    pub max_age: Option<Duration>,
}

impl Controller {
    /// Attaches to every one of `interfaces`, or to none; each has the kernel's keys before it sees a packet.
    pub async fn start(interfaces: &[String], bpffs: &Bpffs, options: Options) -> Result<Self> {
        let Options { attach, log_level, source, retire, services, file } = options;
        preflight()?;
        for name in interfaces {
            Interface::find(name).await?;
        }
        // aya numbers levels as log does: 0 is off, and the program's rare events are at debug.
        let log_level = if log_level >= LevelFilter::Debug { log_level as u8 } else { 0 };
        let sizes = file.as_ref().map_or_else(Sizes::default, |file| file.config.maps);
        let mut controller = Self {
            _mount: bpffs.mount()?,
            datapaths: Vec::new(),
            gone: Vec::new(),
            keeper: Keeper::new(source),
            retire,
            bpffs: bpffs.clone(),
            how: How { attach, log_level, services, sizes },
            file,
            history: History::default(),
        };
        for name in interfaces {
            if controller.datapaths.iter().any(|datapath| datapath.interface.name == *name) {
                continue;
            }
            if let Err(error) = controller.attach(name).await {
                controller.give_back().await;
                return Err(error);
            }
        }
        Ok(controller)
    }

    /// Undoes [`start`](Self::start): what was taken over is left to run on, what is new is detached.
    pub async fn give_back(&mut self) {
        for datapath in self.datapaths.drain(..) {
            if let Err(error) = datapath.give_back().await {
                warn!("{error:#}");
            }
        }
    }

    async fn attach(&mut self, name: &str) -> Result<()> {
        let fill = |object: &mut Object| {
            // Where they can't be read, the next step says so.
            if let Ok(kernel) = KernelKeys::read() {
                object.hold(name, Publish::Held(kernel.into()))?;
            }
            object.remember(name, &self.keeper.earlier(unix_seconds(), self.retire.max_age))
        };
        self.datapaths.push(Datapath::attach(name, &self.bpffs, &self.how, fill).await?);
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
                Presence::Detached => {
                    warn!(
                        "{name}: the interface is gone, or was detached by force; it is attached again when it is there"
                    );
                    self.gone.push(Gone { name: name.clone(), failure: None, has_leaked_keys: false });
                }
            }
        }
        self.datapaths.iter_mut().for_each(Datapath::take_events);
        let now = unix_seconds();
        leaving_no_trace(|| {
            self.keeper.step(now, &mut AllMaps { datapaths: &mut self.datapaths, retire: self.retire });
            self.describe_keys(now);
        });
    }

    /// Carries out an order, and says what has been done.
    pub async fn obey(&mut self, order: Order) -> Result<String> {
        match order {
            Order::Rotate { emergency } => {
                if emergency {
                    self.forget_leaked_keys();
                }
                self.keep(|keeper, now, maps| keeper.rotate(emergency, now, maps))
            }
            Order::Forget => {
                self.forget_leaked_keys();
                self.keep(|keeper, now, maps| keeper.forget(now, maps))
            }
            Order::Import { key } => self.keep(|keeper, now, maps| {
                let Some(key) = parse_key(key.trim_end()).filter(|key| !key.is_zero()) else {
                    bail!("this is no key: it takes xxxxxxxx-xxxxxxxx-xxxxxxxx-xxxxxxxx, not all zeros");
                };
                keeper.import(key, now, maps)
            }),
            Order::Events { interface, after, most } => {
                let datapath = self.datapath(&interface)?;
                datapath.take_events();
                datapath.events(after, most)
            }
            Order::History { interface } => {
                self.sample();
                self.history.json(&interface, Instant::now())
            }
            Order::Reload => self.reload().await,
            Order::Hide { interface, what, on } => self.hide(&interface, &what, on),
            Order::HideList { interface } => {
                Ok(serde_json::to_string(&self.datapath(&interface)?.hidden()?)?)
            }
        }
    }

    /// The maps that wait for an interface to come back hold leaked keys, too. Counts are worth less.
    fn forget_leaked_keys(&mut self) {
        for gone in &mut self.gone {
            gone.has_leaked_keys = true;
            // Whatever becomes of them, the key that has leaked must leave the kernel.
            if let Err(error) = gone.forget_leaked_keys(&self.bpffs) {
                warn!("{}: {error:#}; it is tried again before they are used", gone.name);
            }
        }
    }

    /// Has the keeper carry out an order, and says which keys are in force.
    fn keep(
        &mut self,
        order: impl FnOnce(&mut Keeper, u64, &mut AllMaps<'_>) -> Result<()>,
    ) -> Result<String> {
        leaving_no_trace(|| {
            let now = unix_seconds();
            let mut maps = AllMaps { datapaths: &mut self.datapaths, retire: self.retire };
            let outcome = order(&mut self.keeper, now, &mut maps);
            self.describe_keys(now);
            outcome?;
            // What is there, not what the source wants: whose keys they are may have changed.
            let KernelKeys { current, backup } = KernelKeys::read()?;
            let [current, backup] =
                [current, backup].map(|key| key.map_or_else(|| "none".to_owned(), fingerprint));
            Ok(format!("the kernel and the maps hold current {current}, backup {backup}"))
        })
    }

    fn datapath(&mut self, interface: &str) -> Result<&mut Datapath> {
        let mut all = self.datapaths.iter_mut();
        let found = all.find(|datapath| datapath.interface.name == interface);
        found.with_context(|| format!("{interface} is not there now"))
    }

    /// Reads the configuration again, and says what is in it. Where anything is wrong, nothing is changed.
    pub async fn reload(&mut self) -> Result<String> {
        let Some(FromFile { path, config }) = &self.file else {
            bail!("this tfo runs without --config: there is no file to read again");
        };
        let path = path.clone();
        let new = Config::read(&path)?;
        let fixed = config.fixed(&new);
        if !fixed.is_empty() {
            bail!(
                "{}: while tfo runs, these can't be changed: {}; put them back, or end tfo and start it again",
                path.display(),
                fixed.join(", ")
            );
        }
        self.serve(&new.services)?;
        let said = format!("{}: {}", path.display(), new.services.summary());
        info!("read again {said}");
        self.file = Some(FromFile { path, config: new });
        Ok(said)
    }

    /// Has every interface serve `services`, or none.
    fn serve(&mut self, services: &Services) -> Result<()> {
        // First of all of them: to go back would be to begin anew to count for what was there before.
        self.datapaths.iter().try_for_each(|datapath| datapath.has_room(services))?;
        for served in 0..self.datapaths.len() {
            let Err(error) = self.datapaths[served].serve(services, &self.how.services) else { continue };
            for datapath in &mut self.datapaths[..served] {
                if let Err(error) = datapath.serve(&self.how.services, services) {
                    warn!("{}: cannot go back to the services before: {error:#}", datapath.interface.name);
                }
            }
            return Err(error);
        }
        // An interface that comes back is to have them, too.
        self.how.services = services.clone();
        Ok(())
    }

    /// Hides Fast Open on an interface, or hides it no longer.
    fn hide(&mut self, interface: &str, what: &Hidden, on: bool) -> Result<String> {
        let services = &self.how.services;
        let (whose, mode) = match what {
            Hidden::Service(name) => {
                let mode = services.mode_of(name).with_context(|| {
                    let names = services.named().iter().map(|named| named.name.as_str());
                    let names: Vec<_> = names.chain([OTHER_NAME]).collect();
                    format!("there is no service {name}: there are {}", names.join(", "))
                })?;
                (format!("service {name}"), mode)
            }
            Hidden::All | Hidden::Source(_) => ("tfo".to_owned(), services.mode()),
        };
        // What is hidden can be shown again in any mode.
        if on && mode != Mode::Shield {
            bail!(
                "hiding changes packets and {whose} runs in mode {} here: give a service mode = \"shield\" and `tfo \
                 reload`, or start with --mode shield",
                mode.name()
            );
        }
        self.datapath(interface)?.hide(what, on)?;
        Ok(format!("{what}: {}", if on { "hidden" } else { "shown" }))
    }

    fn describe_keys(&mut self, now: u64) {
        let info = KeyInfo {
            source: self.keeper.source(),
            rotate_seconds: self.keeper.rotate_seconds(),
            max_age_seconds: self.retire.max_age.map_or(0, |age| age.as_secs()),
            wanted: self.keeper.wanted_fingerprints(now),
            failures: self.keeper.failures(),
        };
        for datapath in &mut self.datapaths {
            let told = datapath.describe_keys(&info);
            let forgotten = self.retire.max_age.map_or(Ok(()), |age| datapath.forget_older(age.as_secs()));
            if let Err(error) = told.and(forgotten) {
                warn!("{}: {error:#}", datapath.interface.name);
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
            let attached = match gone.forget_leaked_keys(&self.bpffs) {
                Ok(()) => self.attach(&gone.name).await,
                Err(error) => Err(error),
            };
            match attached {
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

    /// The programs that are attached, as of the last step.
    pub fn datapaths(&self) -> &[Datapath] {
        &self.datapaths
    }

    /// The keeper of their keys.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// What was counted on each interface.
    pub fn counters(&self) -> Result<Vec<Counters>> {
        self.datapaths.iter().map(Datapath::counters).collect()
    }

    /// The same as users see it.
    pub fn reports(&self) -> Result<Vec<Report>> {
        self.datapaths.iter().map(Datapath::report).collect()
    }

    /// Remembers how the counters stand; to be called every [`history::EVERY`](crate::history::EVERY). What can't be read
    /// is missing there, and no reason for anything else.
    pub fn sample(&mut self) {
        let (now, kernel) = (Instant::now(), TcpExt::read().ok());
        for datapath in &self.datapaths {
            match datapath.report() {
                Ok(report) => self.history.add(now, &report, kernel),
                Err(error) => debug!("{}: no sample: {error:#}", datapath.interface.name),
            }
        }
    }

    /// Detaches everything and removes its state; where that fails for one, still for the others.
    pub async fn stop(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(datapath) = self.datapaths.pop() {
            outcome = outcome.and(datapath.detach().await);
        }
        for gone in self.gone.drain(..) {
            outcome = outcome.and(unload(&self.bpffs.pins(&gone.name)).await);
        }
        outcome
    }
}

/// The maps of all interfaces.
struct AllMaps<'a> {
    datapaths: &'a mut [Datapath],
    retire: Retire,
}

impl Maps for AllMaps<'_> {
    fn publish(&mut self, publish: Publish) -> Result<()> {
        // Every map is tried, whatever becomes of the others.
        let mut outcome = Ok(());
        for datapath in &mut *self.datapaths {
            let published = datapath.publish(publish, self.retire.below);
            let context = || format!("{}: cannot publish keys", datapath.interface.name);
            outcome = outcome.and(published.with_context(context));
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
