//! The controller: the program on one or more interfaces, with keys that follow the kernel's.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use tfo_common::{counters::Counters, keyring::KeyRing, policy::HIDDEN, verdict::Mode};
use tracing::{debug, error, info, warn};

use super::{
    order_file::OrderFile,
    reconcile::Step,
    site::{Fate, Site},
    wake::Wake,
};
use crate::{
    config::Config,
    control::{Order, Reply},
    dataplane::{
        Datapath, KeyInfo, LoadOptions, Program, Publish, hidden_in, on_device,
        pins::{Bpffs, MountGuard},
        preflight,
    },
    kernel::{interface::Interface, netns::netns_cookie, sysctl::KernelKeys, tcp_ext::TcpExt},
    keys::keeper::{Keeper, Maps, Source},
    model::{
        guards::Hidden,
        keys::{fingerprint, parse_key},
        services::{OTHER_NAME, Services},
        settings::{AttachMode, Sizes},
    },
    util::{logging, secrecy::leaving_no_trace, time::unix_seconds},
    view::{counters::Report, history::History},
};

/// How often the kernel's keys are read: several times within the second that a change may take to arrive.
pub const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// How often the keys in the maps are confirmed: several times within [`CONFIRMED_FOR_NS`].
///
/// [`CONFIRMED_FOR_NS`]: tfo_common::keyring::CONFIRMED_FOR_NS
const CONFIRM_EVERY: Duration = Duration::from_secs(1);

/// The program on one or more interfaces, with keys that follow the kernel's.
pub struct Controller {
    sites: Vec<Site>,
    /// What all sites are to have.
    desired: Desired,
    /// A change of it that is under way.
    change: Option<Change>,
    /// Who has asked for one more meanwhile.
    waiting: Vec<Reply>,
    keeper: Keeper,
    retire: Retire,
    file: Option<FromFile>,
    history: History,
    wake: Wake,
    confirmed: Option<Instant>,
    // Last: unmounts after the pins are gone.
    _mount: MountGuard,
}

/// What all interfaces are to have.
#[derive(Clone, Debug, PartialEq)]
struct Desired {
    /// Where in the receive path the program is attached.
    attach: AttachMode,
    /// Up to which of aya's levels it logs its own events: 0 for none.
    log_level: u8,
    /// Which services it counts for, and protects.
    services: Services,
    /// How much it remembers.
    sizes: Sizes,
    /// The cookie of the network namespace whose connections are followed.
    netns_cookie: u64,
}

impl Desired {
    /// The program for `site`.
    fn program(&self, site: &Site) -> Program {
        // An order to hide outlives the mode in which it was given.
        let hides = !site.orders.hidden().is_empty();
        let mode = if hides { Mode::Shield } else { self.services.program() };
        site.desired(|link| Program {
            options: LoadOptions {
                link,
                mode,
                log_level: self.log_level,
                services: self.services.len(),
                netns_cookie: self.netns_cookie,
                sizes: self.sizes,
                seed: 0,
            },
            services: self.services.clone(),
        })
    }
}

/// A change of what is desired, which all interfaces make, or none.
struct Change {
    /// What was desired before; `None` at the start.
    former: Option<Desired>,
    /// What the configuration file says now.
    file: Option<FromFile>,
    /// Who is told what has come of it.
    replies: Vec<Reply>,
    /// What has come of it, once that is known.
    outcome: Option<Result<()>>,
}

/// What a controller does.
pub struct Options {
    /// Where in the receive path the program is attached.
    pub attach: AttachMode,
    /// Where keys come from.
    pub source: Source,
    /// When retired keys are given up.
    pub retire: Retire,
    /// By which services is counted, and what is done to their packets.
    pub services: Services,
    /// The file that says all this, where one does.
    pub file: Option<FromFile>,
    /// The folder in which orders outlive it.
    pub state: PathBuf,
}

/// A configuration, and the file that it is from.
#[derive(Clone, Debug)]
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
    /// The controller of `interfaces`, on which it has nothing yet: whoever else wants them is refused from now on.
    pub async fn new(interfaces: &[String], bpffs: &Bpffs, options: Options) -> Result<Self> {
        let Options { attach, source, retire, services, file, state } = options;
        preflight()?;
        let mut found = Vec::new();
        for name in interfaces {
            let interface = Interface::find(name).await?;
            if !found.iter().any(|before: &Interface| before.name == *name) {
                found.push(interface);
            }
        }
        let mount = bpffs.mount()?;
        let mut sites = Vec::new();
        for interface in found {
            // A status command that asks whether a controller runs holds the lock for an instant.
            let pins = bpffs.pins(&interface.name).lock(Duration::from_millis(500))?;
            // With the lock held: until then, another controller may have come or gone.
            let interface = Interface::find(&interface.name).await?;
            on_device(&interface, &pins).await?;
            let orders = OrderFile::open(&state, bpffs, &interface.name, hidden_in(&pins)?)?;
            sites.push(Site::new(interface, pins, orders));
        }
        let netns_cookie = netns_cookie().unwrap_or_else(|error| {
            debug!("no cookie of the network namespace: {error}");
            0
        });
        let wake = Wake::default();
        if let Err(error) = wake.at_link_changes() {
            warn!("{error:#}: interfaces that come back are noticed by polling");
        }
        Ok(Self {
            sites,
            desired: Desired {
                attach,
                log_level: logging::program_level(),
                services,
                sizes: file.as_ref().map_or_else(Sizes::default, |file| file.config.maps),
                netns_cookie,
            },
            change: Some(Change { former: None, file: file.clone(), replies: Vec::new(), outcome: None }),
            waiting: Vec::new(),
            keeper: Keeper::new(source),
            retire,
            file,
            history: History::default(),
            wake,
            confirmed: None,
            _mount: mount,
        })
    }

    /// Attaches to every interface, or to none; each has the kernel's keys before it sees a packet.
    pub async fn start(&mut self) -> Result<()> {
        loop {
            self.reconcile().await;
            match self.change.take() {
                Some(Change { outcome: Some(outcome), .. }) => {
                    outcome?;
                    break;
                }
                change => self.change = change,
            }
            self.wake.wait().await;
        }
        self.step().await;
        Ok(())
    }

    /// What wakes it: to be followed by a [`step`](Self::step).
    pub fn wake(&self) -> Wake {
        self.wake.clone()
    }

    /// Keeps keys and attachments as they should be, and passes the program's own log on; to be called every
    /// [`FOLLOW_EVERY`], and when [`wake`](Self::wake) says so. What fails is said and tried again; it ends nothing.
    pub async fn step(&mut self) {
        let now = unix_seconds();
        leaving_no_trace(|| {
            self.keeper.step(now, &mut AllMaps { sites: &mut self.sites, retire: self.retire });
            self.describe_keys(now);
            self.confirm_keys();
        });
        self.reconcile().await;
        self.sites.iter_mut().for_each(Site::take_events);
    }

    /// Makes the next steps from what is there to what is desired.
    async fn reconcile(&mut self) {
        for mut site in std::mem::take(&mut self.sites) {
            if site.observe().await == Fate::Stays {
                site.take_built();
                self.sites.push(site);
            }
        }
        let mut ready = Vec::new();
        for index in 0..self.sites.len() {
            let program = self.desired.program(&self.sites[index]);
            let site = &mut self.sites[index];
            match site.next_step(&program) {
                Some(Step::Hide) => {
                    if let Err(error) = site.hide() {
                        site.fail(&error);
                    }
                }
                Some(Step::Build) => site.build(program, &self.wake),
                Some(Step::Attach) => site.attach(self.desired.attach),
                Some(Step::Enforce) => ready.push(index),
                None => {}
            }
        }
        self.finish_change(ready);
    }

    /// Puts in force what is `ready`: all of a change at once.
    fn finish_change(&mut self, ready: Vec<usize>) {
        let Some(mut change) = self.change.take() else {
            for index in ready {
                if let Err(error) = self.enforce(&[index]) {
                    self.sites[index].fail(&error);
                }
            }
            return;
        };
        // One that is not there is not waited for, but at the start.
        let waits = |site: &Site| !site.is_ready(&self.desired.program(site)) && !site.is_absent();
        let failed = self.sites.iter().filter(|site| waits(site)).find_map(Site::take_failure);
        let outcome = match failed {
            Some(failure) => Some(Err(failure)),
            None if self.sites.iter().any(waits) => None,
            None => Some(self.enforce(&ready)),
        };
        match outcome {
            None => {}
            // At the start there is nothing to go back to: whoever waits is told.
            Some(outcome) if change.former.is_none() => change.outcome = Some(outcome),
            Some(outcome) => return self.end_change(change, outcome),
        }
        self.change = Some(change);
    }

    /// Tells everybody what has come of a change, and begins the next one that somebody waits for.
    fn end_change(&mut self, change: Change, outcome: Result<()>) {
        let said = match (&outcome, change.file, change.former) {
            (Ok(()), Some(file), _) => {
                let said = format!("{}: {}", file.path.display(), file.config.services.summary());
                info!("read again {said}");
                self.file = Some(file);
                said
            }
            (Err(_), _, Some(former)) => {
                self.desired = former;
                self.sites.iter_mut().for_each(Site::drop_built);
                String::new()
            }
            _ => String::new(),
        };
        if let Err(error) = &outcome
            && change.replies.is_empty()
        {
            error!("the configuration is not changed: {error:#}");
        }
        for reply in change.replies {
            let outcome = outcome.as_ref().map(|()| said.clone()).map_err(|error| anyhow!("{error:#}"));
            reply.send(outcome);
        }
        let waiting = std::mem::take(&mut self.waiting);
        if !waiting.is_empty() {
            self.reload(waiting);
        }
    }

    /// Puts what is loaded for the sites at `ready` in force, on all or on none.
    fn enforce(&mut self, ready: &[usize]) -> Result<()> {
        let (attach, now) = (self.desired.attach, unix_seconds());
        let earlier = self.keeper.earlier(now, self.retire.max_age);
        let mut enforced = Vec::new();
        for index in ready {
            match self.sites[*index].enforce(attach, &earlier) {
                Ok(one) => enforced.push((*index, one)),
                Err(error) => {
                    for (index, one) in enforced.into_iter().rev() {
                        if let Err(error) = one.undo() {
                            warn!(
                                "{}: cannot restore the previous configuration: {error:#}",
                                self.sites[index].name()
                            );
                        }
                    }
                    return Err(error);
                }
            }
        }
        for (index, one) in enforced {
            self.sites[index].settle(one, attach);
        }
        self.describe_keys(now);
        Ok(())
    }

    /// Carries out an order, and says what has been done to whoever gave it, at once or when it is done.
    pub fn obey(&mut self, order: Order, reply: Reply) {
        let outcome = match order {
            Order::Reload => return self.reload(vec![reply]),
            Order::Rotate { emergency } => self.keep(|keeper, now, maps| keeper.rotate(emergency, now, maps)),
            Order::Forget => self.keep(|keeper, now, maps| keeper.forget(now, maps)),
            Order::Import { key } => self.keep(|keeper, now, maps| {
                let Some(key) = parse_key(key.trim_end()).filter(|key| !key.is_zero()) else {
                    bail!("this is no key: it takes xxxxxxxx-xxxxxxxx-xxxxxxxx-xxxxxxxx, not all zeros");
                };
                keeper.import(key, now, maps)
            }),
            Order::Events { interface, after, most } => self.site(&interface).and_then(|site| {
                site.take_events();
                site.events(after, most)
            }),
            Order::History { interface } => {
                self.sample();
                self.history.json(&interface, Instant::now())
            }
            Order::Hide { interface, what, on } => self.hide(&interface, what, on),
            Order::HideList { interface } => {
                self.site(&interface).and_then(|site| Ok(serde_json::to_string(site.orders.hidden())?))
            }
        };
        reply.send(outcome);
    }

    /// Has the keeper carry out an order, and says which keys are in force.
    fn keep(
        &mut self,
        order: impl FnOnce(&mut Keeper, u64, &mut AllMaps<'_>) -> Result<()>,
    ) -> Result<String> {
        leaving_no_trace(|| {
            let now = unix_seconds();
            let mut maps = AllMaps { sites: &mut self.sites, retire: self.retire };
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

    fn site(&mut self, interface: &str) -> Result<&mut Site> {
        let found = self.sites.iter_mut().find(|site| site.name() == interface);
        found.with_context(|| format!("{interface} is not there now"))
    }

    /// Reads the configuration again. Where anything is wrong, nothing is changed. Whoever asked is told when it is done.
    pub fn reload(&mut self, replies: Vec<Reply>) {
        if self.change.is_some() {
            return self.waiting.extend(replies);
        }
        match self.read_again() {
            Ok((services, file)) => {
                let desired = Desired { services, ..self.desired.clone() };
                let former = Some(std::mem::replace(&mut self.desired, desired));
                self.sites.iter_mut().for_each(Site::retry_now);
                self.change = Some(Change { former, file: Some(file), replies, outcome: None });
                // What is the same already is over by then.
                self.wake.up();
            }
            Err(error) => {
                // Whoever gave an order is told; a signal has no answer.
                if replies.is_empty() {
                    error!("the configuration is not changed: {error:#}");
                }
                replies.into_iter().for_each(|reply| reply.send(Err(anyhow!("{error:#}"))));
            }
        }
    }

    /// What the file says now.
    fn read_again(&self) -> Result<(Services, FromFile)> {
        let Some(FromFile { path, config }) = &self.file else {
            bail!("this tfo runs without --config: there is no file to read again");
        };
        let new = Config::read(path)?;
        let fixed = config.fixed(&new);
        if !fixed.is_empty() {
            bail!(
                "{}: while tfo runs, these can't be changed: {}; put them back, or end tfo and start it again",
                path.display(),
                fixed.join(", ")
            );
        }
        Ok((new.services.clone(), FromFile { path: path.clone(), config: new }))
    }

    /// Hides Fast Open on an interface until it is shown again.
    fn hide(&mut self, interface: &str, what: Hidden, on: bool) -> Result<String> {
        let services = &self.desired.services;
        let (whose, mode) = match &what {
            Hidden::Service(name) => (format!("service {name}"), services.mode_of(name)),
            Hidden::All | Hidden::Source(_) => ("tfo".to_owned(), Some(services.mode())),
        };
        let names = || {
            let names = services.named().iter().map(|named| named.name.as_str());
            names.chain([OTHER_NAME]).collect::<Vec<_>>().join(", ")
        };
        // What is hidden can be shown again in any mode, and also where there is no such service any more.
        match mode {
            None if on => bail!("there is no {whose}: there are {}", names()),
            Some(mode) if on && mode != Mode::Shield => bail!(
                "hiding changes packets and {whose} runs in mode {} here: give a service mode = \"shield\" and `tfo \
                 reload`, or start with --mode shield",
                mode.name()
            ),
            _ => {}
        }
        let (is_service, names) = (mode.is_some(), names());
        let site = self.site(interface)?;
        let mut hidden = site.orders.hidden().clone();
        if on {
            let sources = hidden.iter().filter(|hidden| matches!(hidden, Hidden::Source(_))).count();
            if matches!(what, Hidden::Source(_)) && sources >= HIDDEN && !hidden.contains(&what) {
                bail!("{HIDDEN} sources are hidden, which is the maximum: hide a shorter prefix instead");
            }
            hidden.insert(what.clone());
        } else if !hidden.remove(&what) {
            match &what {
                Hidden::Service(name) if !is_service => {
                    bail!("there is no service {name}: there are {names}")
                }
                Hidden::Source(source) => bail!("{source} is not hidden: `tfo hide --list` shows what is"),
                Hidden::Service(_) | Hidden::All => {}
            }
        }
        let before = site.orders.set(hidden);
        // The packets first: an order is not to wait for a disk.
        if let Err(error) = site.hide() {
            site.orders.set(before);
            return Err(error);
        }
        let done = if on { "hidden" } else { "shown" };
        let stored = site.orders.store();
        // Nothing is left to hide: another program may do.
        self.wake.up();
        stored.with_context(|| {
            format!("{what}: {done}, but the order could not be saved and may be lost at a restart")
        })?;
        Ok(format!("{what}: {done}"))
    }

    /// Says in the maps that their keys are the kernel's, where they are. Where one has others, as between two writes of the
    /// kernel's keys, the next step looks again.
    fn confirm_keys(&mut self) {
        if self.confirmed.is_some_and(|at| at.elapsed() < CONFIRM_EVERY) {
            return;
        }
        let Ok(kernel) = KernelKeys::read() else { return };
        let mut are_all = true;
        for datapath in self.all_mut() {
            let is_kernels = |ring: &KeyRing| KernelKeys::from(ring.held()) == kernel;
            let confirmed = match datapath.key_ring() {
                Ok(ring) if is_kernels(&ring) => datapath.confirm_keys().map(|()| true),
                Ok(_) => Ok(false),
                Err(error) => Err(error),
            };
            are_all &= confirmed.unwrap_or_else(|error| {
                debug!("{}: keys cannot be confirmed: {error:#}", datapath.interface.name);
                false
            });
        }
        self.confirmed = are_all.then(Instant::now);
    }

    fn describe_keys(&mut self, now: u64) {
        let info = KeyInfo {
            source: self.keeper.source(),
            rotate_seconds: self.keeper.rotate_seconds(),
            max_age_seconds: self.retire.max_age.map_or(0, |age| age.as_secs()),
            wanted: self.keeper.wanted_fingerprints(now),
            failures: self.keeper.failures(),
        };
        for datapath in self.sites.iter_mut().filter_map(|site| site.datapath.as_mut()) {
            let told = datapath.describe_keys(&info);
            let forgotten = self.retire.max_age.map_or(Ok(()), |age| datapath.forget_older(age.as_secs()));
            if let Err(error) = told.and(forgotten) {
                warn!("{}: {error:#}", datapath.interface.name);
            }
            datapath.flush_log();
        }
    }

    /// Whether it controls nothing any more, and will not again.
    pub fn is_idle(&self) -> bool {
        self.sites.is_empty()
    }

    /// The interfaces that it controls, whether they are there or not.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The programs that are attached, as of the last step.
    pub fn datapaths(&self) -> impl Iterator<Item = &Datapath> {
        self.sites.iter().filter_map(Site::attached)
    }

    /// All programs, those whose interface is gone among them.
    fn all_mut(&mut self) -> impl Iterator<Item = &mut Datapath> {
        self.sites.iter_mut().filter_map(|site| site.datapath.as_mut())
    }

    /// The keeper of their keys.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// What was counted on each interface.
    pub fn counters(&self) -> Result<Vec<Counters>> {
        self.datapaths().map(Datapath::counters).collect()
    }

    /// The same as users see it.
    pub fn reports(&self) -> Result<Vec<Report>> {
        self.datapaths().map(Report::of).collect()
    }

    /// Remembers how the counters stand; to be called every [`history::EVERY`](crate::view::history::EVERY). What can't be read
    /// is missing there, and no reason for anything else.
    pub fn sample(&mut self) {
        let (now, kernel) = (Instant::now(), TcpExt::read().ok());
        for datapath in self.sites.iter().filter_map(|site| site.datapath.as_ref()) {
            match Report::of(datapath) {
                Ok(report) => self.history.add(now, &report, kernel),
                Err(error) => debug!("{}: no sample: {error:#}", datapath.interface.name),
            }
        }
    }

    /// Leaves everything as it is, for the next controller.
    pub fn leave(&mut self) {
        for site in self.sites.drain(..) {
            info!(
                "{}: the program stays attached, and nobody follows the keys until the next `tfo run`; `tfo unload` detaches it",
                site.name()
            );
        }
    }

    /// Detaches everything and removes its state; where that fails for one, still for the others.
    pub async fn stop(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for site in self.sites.drain(..) {
            outcome = outcome.and(site.unload().await);
        }
        outcome
    }
}

/// The maps of all interfaces.
struct AllMaps<'a> {
    sites: &'a mut [Site],
    retire: Retire,
}

impl Maps for AllMaps<'_> {
    fn publish(&mut self, publish: Publish) -> Result<()> {
        // Every map is tried, whatever becomes of the others.
        let mut outcome = Ok(());
        for datapath in self.sites.iter_mut().filter_map(|site| site.datapath.as_mut()) {
            let published = datapath.publish(publish, self.retire.below);
            let context = || format!("{}: cannot publish keys", datapath.interface.name);
            outcome = outcome.and(published.with_context(context));
        }
        outcome
    }
}
