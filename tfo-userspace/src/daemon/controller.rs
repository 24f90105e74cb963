//! Controller of the program on one or more interfaces. It keeps the program's keys in step with the kernel's.

mod change;
mod requests;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
pub use change::FromFile;
use change::{Change, Desired};
use tfo_common::{counters::Counters, keyring::KeyRing, verdict::Mode};
use tokio::time::{error::Elapsed, timeout};
use tracing::{debug, info, warn};

use super::{
    enable::Enabler, flood::Floods, order_file::OrderFile, site::Site, special::Special, wake::Wake,
};
use crate::{
    control::{FOLDER, Reply},
    dataplane::{
        Datapath, KeyInfo, Publish, answering_in, confirm_keys, hidden_in, on_device,
        pins::{Bpffs, MountGuard},
        preflight,
    },
    fleet::feed::{Keys, Reporter, State},
    kernel::{
        interface::Interface, listeners::Walk, netns::netns_cookie, syncookies::Journal, sysctl::KernelKeys,
        tcp_ext::TcpExt,
    },
    keys::keeper::{Keeper, Maps, Source},
    model::{
        keys::{DatedKey, fingerprint},
        services::Services,
        settings::{AttachMode, Sizes},
    },
    util::{logging, secrecy::leaving_no_trace, time::unix_seconds},
    view::{counters::Report, history::History, metrics::Answering},
};

/// Interval between reads of the kernel's keys. A change may take one second to reach the maps: several reads fit in.
pub const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// Interval between confirmations of the keys in the maps: several fit into [`CONFIRMED_FOR_NS`].
///
/// [`CONFIRMED_FOR_NS`]: tfo_common::keyring::CONFIRMED_FOR_NS
const CONFIRM_EVERY: Duration = Duration::from_secs(1);

/// Controller of the program on one or more interfaces.
pub struct Controller {
    sites: Vec<Site>,
    /// Desired state of all sites.
    desired: Desired,
    /// Change of the desired state in progress.
    change: Option<Change>,
    /// Clients of a reload that was asked for during the change; none for one asked for by SIGHUP.
    waiting: Option<Vec<Reply>>,
    keeper: Keeper,
    retire: Retire,
    file: Option<FromFile>,
    history: History,
    wake: Wake,
    /// Time of the last confirmation of the keys in all maps; `None` if it failed.
    confirmed: Option<Instant>,
    floods: Floods,
    special: Special,
    enabler: Enabler,
    /// Reporter to the fleet, if the keys come from etcd.
    fleet: Option<Reporter>,
    /// The reader of listeners, while it is needed.
    walk: Option<Walk>,
    // The last field, so that it is dropped after the pins are gone.
    mount: MountGuard,
}

/// Options of a controller.
pub struct Options {
    /// Place in the receive path.
    pub attach: AttachMode,
    /// Source of the keys.
    pub source: Source,
    /// Rules for dropping retired keys.
    pub retire: Retire,
    /// Services with their modes and protections.
    pub services: Services,
    /// Configuration file, if there is one.
    pub file: Option<FromFile>,
    /// Folder in which orders of `tfo hide` outlive the controller.
    pub state: PathBuf,
    /// Reporter to the fleet, if the keys come from etcd.
    pub fleet: Option<Reporter>,
}

/// Rules for dropping retired keys before newer keys push them out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retire {
    /// Share of all valid cookies since the last rotation, from 0 to 1. A rotation drops keys with a smaller share.
    pub below: Option<f64>,
    /// Age at which a key is dropped.
    pub max_age: Option<Duration>,
}

impl Controller {
    /// Makes the controller of `interfaces`, and locks their pins against other controllers. It attaches nothing yet.
    pub async fn new(interfaces: &[String], bpffs: &Bpffs, options: Options) -> Result<Self> {
        let Options { attach, source, retire, services, file, state, fleet } = options;
        preflight()?;
        let mut found = Vec::new();
        for name in interfaces {
            let interface = Interface::find(name).await?;
            if !found.iter().any(|before: &Interface| before.name == *name) {
                found.push(interface);
            }
        }
        restore_syncookies();
        let mount = bpffs.mount()?;
        let mut sites = Vec::new();
        let mut answering = BTreeSet::new();
        for interface in found {
            // A status command takes the lock for a moment to find out whether a controller runs.
            let pins = bpffs.pins(&interface.name).lock(Duration::from_millis(500))?;
            // The interface is read again under the lock, since another controller may have changed it until then.
            let interface = Interface::find(&interface.name).await?;
            on_device(&interface, &pins, attach).await?;
            let earlier = answering_in(&pins)?;
            answering.extend(earlier.iter().cloned());
            let orders = OrderFile::open(&state, bpffs, &interface.name, hidden_in(&pins)?)?;
            sites.push(Site::new(interface, pins, orders, earlier));
        }
        let netns_cookie = netns_cookie().unwrap_or_else(|error| {
            debug!("no cookie of the network namespace: {error}");
            0
        });
        let wake = Wake::default();
        if let Some(fleet) = &fleet {
            let wake = wake.clone();
            fleet.wake_by(move || wake.up());
        }
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
            waiting: None,
            keeper: Keeper::new(source),
            retire,
            file,
            history: History::default(),
            wake,
            confirmed: None,
            floods: Floods::new(answering),
            special: Special::default(),
            enabler: Enabler::default(),
            fleet,
            walk: None,
            mount,
        })
    }

    /// Attaches to all interfaces or to none. Each program has the kernel's keys before it sees a packet.
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
            self.confirm_earlier_keys();
            // The wake-up that is missed after the timeout is that of the next turn.
            let _: Result<(), Elapsed> = timeout(CONFIRM_EVERY, self.wake.wait()).await;
        }
        self.step().await;
        Ok(())
    }

    /// Confirms the keys in the maps of the controller before, so that its program translates cookies until ours are loaded,
    /// which takes seconds on a busy host.
    fn confirm_earlier_keys(&self) {
        leaving_no_trace(|| {
            let Ok(kernel) = KernelKeys::read() else { return };
            for site in &self.sites {
                if let Err(error) = confirm_keys(site.pins(), kernel.into()) {
                    debug!("{}: earlier keys cannot be confirmed: {error:#}", site.name());
                }
            }
        });
    }

    /// Returns the handle that wakes the controller. Call [`step`](Self::step) after each wake-up.
    pub fn wake(&self) -> Wake {
        self.wake.clone()
    }

    /// Brings keys and attachments to the desired state, and reads the program's log and events. Call it every
    /// [`FOLLOW_EVERY`], and after a wake-up by [`wake`](Self::wake). A failure is logged and tried again.
    pub async fn step(&mut self) {
        let now = unix_seconds();
        leaving_no_trace(|| {
            self.keeper.step(now, &mut AllMaps { sites: &mut self.sites, retire: self.retire });
            self.describe_keys(now);
            self.confirm_keys();
            self.report_to_fleet(now);
        });
        self.watch_floods();
        self.reconcile().await;
        self.enable_fast_open();
        self.sites.iter_mut().for_each(Site::take_events);
    }

    /// Keeps Fast Open on at the listeners of services that ask for it. During a change the listeners stay as they are, since it
    /// may fail.
    fn enable_fast_open(&mut self) {
        if self.change.is_none() {
            let interfaces = self.sites.iter().map(|site| site.name().to_owned()).collect();
            self.enabler.step(&self.desired.services, interfaces, &mut self.walk, &self.wake);
        }
    }

    /// Decides for which services SYNs are answered. The steps that follow carry it out.
    fn watch_floods(&mut self) {
        let datapaths = self.sites.iter_mut().filter_map(|site| site.datapath.as_mut());
        let answering = self.floods.step(&self.desired.services, &mut self.walk, datapaths);
        let changes = self.floods.take_changes();
        for site in &mut self.sites {
            changes.iter().for_each(|(service, is_engaged)| site.note_answering(service, *is_engaged));
            site.answering.clone_from(&answering);
        }
    }

    /// Looks for listeners that are special. Their keys get into the maps at once, and the steps that follow tell the programs
    /// their ports.
    async fn watch_listeners(&mut self) {
        let shields = self.sites.iter().any(|site| self.desired.mode(site) == Mode::Shield);
        if self.special.look(&self.desired.services, &mut self.walk, shields).await {
            leaving_no_trace(|| self.hold_own_keys());
        }
        let ports = self.special.ports();
        for site in &mut self.sites {
            if site.special != *ports {
                site.special.clone_from(ports);
            }
        }
    }

    /// Puts the keys of listeners that have their own into all maps.
    fn hold_own_keys(&mut self) {
        let own = self.special.keys(self.walk.as_mut());
        for datapath in self.sites.iter_mut().filter_map(|site| site.datapath.as_mut()) {
            if let Err(error) = datapath.hold_own_keys(&own) {
                debug!("{}: keys of listeners: {error:#}", datapath.interface.name);
            }
        }
    }

    /// Confirms the keys in each map that has the kernel's keys. If a map has others, for example during a rotation,
    /// the next step tries again.
    fn confirm_keys(&mut self) {
        if self.confirmed.is_some_and(|at| at.elapsed() < CONFIRM_EVERY) {
            return;
        }
        let Ok(kernel) = KernelKeys::read() else { return };
        let mut are_all_confirmed = true;
        for datapath in self.datapaths_mut() {
            let is_kernels = |ring: &KeyRing| KernelKeys::from(ring.held()) == kernel;
            let confirmed = match datapath.key_ring() {
                Ok(ring) if is_kernels(&ring) => datapath.confirm_keys().map(|()| true),
                Ok(_) => Ok(false),
                Err(error) => Err(error),
            };
            are_all_confirmed &= confirmed.unwrap_or_else(|error| {
                debug!("{}: keys cannot be confirmed: {error:#}", datapath.interface.name);
                false
            });
        }
        self.confirmed = are_all_confirmed.then(Instant::now);
    }

    /// Tells the fleet which keys kernel and maps have.
    fn report_to_fleet(&self, now: u64) {
        let Some(fleet) = &self.fleet else { return };
        let kernel = KernelKeys::read();
        let is_installed =
            kernel.as_ref().is_ok_and(|keys| keys.fingerprints() == self.keeper.wanted_fingerprints(now));
        let fault = match (self.keeper.failure(), &kernel) {
            (Some(failure), _) => Some(failure.to_owned()),
            (None, Err(error)) => Some(format!("{error:#}")),
            (None, Ok(_)) if !is_installed => Some(
                "somebody else has set net.ipv4.tcp_fastopen_key there (`tfo keys rotate` takes it back)"
                    .to_owned(),
            ),
            (None, Ok(_)) if self.keeper.is_purging() => Some("leaked keys are being removed".to_owned()),
            (None, Ok(_)) => None,
        };
        let kernel = kernel.unwrap_or_default();
        let keys = Keys {
            current: kernel.current.map(fingerprint),
            backup: kernel.backup.map(fingerprint),
            interfaces: self.datapaths().map(|datapath| datapath.interface.name.clone()).collect(),
        };
        fleet.tell(keys, fault);
    }

    /// Returns the state of this host in its fleet; `None` if the keys do not come from etcd.
    pub fn fleet(&self) -> Option<State> {
        self.fleet.as_ref().map(Reporter::state)
    }

    /// Writes the state of the key source into all maps, drops keys that are too old, and passes the program's log on.
    fn describe_keys(&mut self, now: u64) {
        let info = KeyInfo {
            source: self.keeper.source(),
            rotate_seconds: self.keeper.rotate_seconds(),
            max_age_seconds: self.retire.max_age.map_or(0, |age| age.as_secs()),
            wanted: self.keeper.wanted_fingerprints(now),
            failures: self.keeper.failures(),
            next_secret: self.keeper.next_secret(now),
        };
        for datapath in self.sites.iter_mut().filter_map(|site| site.datapath.as_mut()) {
            let described = datapath.describe_keys(&info);
            let forgotten = self.retire.max_age.map_or(Ok(()), |age| datapath.forget_older(age.as_secs()));
            if let Err(error) = described.and(forgotten) {
                warn!("{}: {error:#}", datapath.interface.name);
            }
            datapath.flush_log();
        }
    }

    /// Whether no interface is left, because all were unloaded.
    pub fn is_idle(&self) -> bool {
        self.sites.is_empty()
    }

    /// Whether a reload is in progress.
    pub fn is_changing(&self) -> bool {
        self.change.is_some()
    }

    /// Whether the end of this controller unmounts the BPF file system.
    pub fn will_unmount(&self) -> bool {
        self.mount.is_ours()
    }

    /// Returns the sites of all interfaces, present or gone.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Returns the programs that were attached at the last step.
    pub fn datapaths(&self) -> impl Iterator<Item = &Datapath> {
        self.sites.iter().filter_map(Site::attached)
    }

    /// Returns all programs, including those whose interface is gone.
    fn datapaths_mut(&mut self) -> impl Iterator<Item = &mut Datapath> {
        self.sites.iter_mut().filter_map(|site| site.datapath.as_mut())
    }

    /// Returns the keeper of the keys.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Returns the name of the network namespace, if `--netns` named it.
    pub fn netns(&self) -> Option<String> {
        self.sites.first()?.pins().netns().map(str::to_owned)
    }

    /// Returns the state of the protection `answer` of each service that has it.
    pub fn answering(&self) -> Vec<Answering> {
        self.floods.states()
    }

    /// Returns the counters of each interface.
    pub fn counters(&self) -> Result<Vec<Counters>> {
        self.datapaths().map(Datapath::counters).collect()
    }

    /// Returns the counters of each interface as a report for users.
    pub fn reports(&self) -> Result<Vec<Report>> {
        self.datapaths().map(Report::of).collect()
    }

    /// Adds a sample of the counters to the history. Call it every [`history::SAMPLE_INTERVAL`](crate::view::history::SAMPLE_INTERVAL). An
    /// interface whose counters can't be read gets no sample.
    pub fn sample(&mut self) {
        let (now, kernel) = (Instant::now(), TcpExt::read().ok());
        for datapath in self.sites.iter().filter_map(|site| site.datapath.as_ref()) {
            match Report::of(datapath) {
                Ok(report) => self.history.add(now, &report, kernel),
                Err(error) => debug!("{}: no sample: {error:#}", datapath.interface.name),
            }
        }
    }

    /// Leaves the programs attached, for the next controller.
    pub fn leave(&mut self) {
        for site in self.sites.drain(..) {
            info!(
                "{}: the program stays attached, and nobody follows the keys until the next `tfo run`; `tfo unload` \
                 detaches it",
                site.name()
            );
        }
    }

    /// Detaches all programs and removes their state. A failure on one interface does not stop the others.
    pub async fn stop(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for site in self.sites.drain(..) {
            outcome = outcome.and(site.unload().await);
        }
        self.enabler.undo();
        outcome
    }
}

/// Writes the value of `tcp_syncookies` back that an earlier controller had when it died, if it and its guardian did so at
/// the worst moment.
fn restore_syncookies() {
    let restored = Journal::new(FOLDER.as_ref()).and_then(|journal| journal.restore());
    match restored {
        Ok(true) => warn!("net.ipv4.tcp_syncookies is what it was before an earlier `tfo run` died"),
        Ok(false) => {}
        Err(error) => debug!("no journal of net.ipv4.tcp_syncookies: {error:#}"),
    }
}

/// Key maps of all interfaces.
struct AllMaps<'a> {
    sites: &'a mut [Site],
    retire: Retire,
}

impl Maps for AllMaps<'_> {
    fn publish(&mut self, publish: Publish) -> Result<()> {
        // A failure of one map does not stop the others.
        let mut outcome = Ok(());
        for datapath in self.sites.iter_mut().filter_map(|site| site.datapath.as_mut()) {
            let published = datapath.publish(publish, self.retire.below);
            let context = || format!("{}: cannot publish keys", datapath.interface.name);
            outcome = outcome.and(published.with_context(context));
        }
        outcome
    }

    fn know(&mut self, keys: &[DatedKey]) -> Result<()> {
        let mut outcome = Ok(());
        for datapath in self.sites.iter_mut().filter_map(|site| site.datapath.as_mut()) {
            let known = datapath.know(keys);
            let context = || format!("{}: cannot publish keys of the fleet", datapath.interface.name);
            outcome = outcome.and(known.with_context(context));
        }
        outcome
    }
}
