//! The program on an interface: attaching, taking over, letting go. [`Object`] is what is loaded, with its maps.

mod object;
mod outcomes;
mod plan;
mod serve;
mod tables;
mod whole;

use std::{
    collections::HashMap,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::programs::{
    ProgramError, ProgramType, XdpMode,
    links::{FdLink, PinnedLink},
    loaded_programs,
    xdp::XdpLink,
};
use aya_log::EbpfLogger;
use jiff::Timestamp;
use log::{Log, debug, info, warn};
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
pub use object::{LoadOptions, Object, OtherVersion, Pinned, Sizes};
use tables::Shared;
pub use tables::{Entries, OTHER_NAME, REMOVED_NAME, ServiceCounters};
use tfo_common::{
    counters::Counters,
    info::{Attach, Info, KeySource, LAYOUT_VERSION},
    keyring::{CURRENT, KeyRing, NEWEST, SLOTS, TRACKS},
    names,
    observed::Watch,
    verdict::Mode,
};

use crate::{
    cli::AttachMode,
    counters::Report,
    events::{AT_ONCE, EventLog, Explainer},
    guards::Hidden,
    interface::{self, Interface, XdpOnInterface},
    kernel,
    keys::{attestation::Attestation, keeper::Publish},
    pins::{Bpffs, Locked, MAPS, Pins, remove_if_there},
    secrecy::leaving_no_trace,
    services::Services,
};

/// Says why this kernel or this user cannot run the program at all, before anything is touched.
pub fn preflight() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("loading an XDP program needs root: run it with sudo");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!(
            "this kernel has no BTF (/sys/kernel/btf/vmlinux): it needs CONFIG_DEBUG_INFO_BTF=y, as the kernels of \
             all large distributions have"
        );
    }
    match aya::sys::is_program_supported(ProgramType::Xdp) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("this kernel has no XDP: it needs CONFIG_BPF_SYSCALL=y and Linux 5.10 or later"),
        Err(error) => Err(error).context("this kernel does not let us load XDP programs"),
    }
}

/// The kernel's id of the program that the pinned link attaches; `None` where no link is pinned.
pub fn linked_program(pins: &Pins) -> Result<Option<u32>> {
    if !pins.has_link()? {
        return Ok(None);
    }
    let path = pins.link();
    let context = || format!("cannot open the pinned link {}", path.display());
    let link = PinnedLink::from_pin(&path).with_context(context)?;
    Ok(Some(FdLink::from(link).info().with_context(context)?.program_id()))
}

/// Whether the program behind the pinned link is on the interface that it was attached to, which may have been renamed
/// since. A link attaches nothing any more once its interface is gone. Where the interface is in another network namespace
/// it can't be asked: `None`.
pub async fn is_attached(pins: &Pins) -> Result<Option<bool>> {
    let Some(program) = linked_program(pins)? else { return Ok(Some(false)) };
    let pinned = Pinned::open(pins)?;
    if pinned.info().netns != kernel::netns()? {
        return Ok(None);
    }
    Ok(Some(runs_at(pinned.info().ifindex, program).await))
}

async fn runs_at(index: u32, program: u32) -> bool {
    interface::xdp_at(index).await.is_ok_and(|xdp| xdp.is_some_and(|xdp| xdp.program_id == program))
}

/// Detaches the program behind `pins` and removes them. A controller that runs there sees it and lets go.
pub async fn unload(pins: &Pins) -> Result<()> {
    detach(pins).await?;
    let pins = pins.lock(Duration::from_secs(2)).with_context(|| {
        format!("detached, but the controller does not let go of {}: end it first", pins.dir().display())
    })?;
    pins.remove()
}

/// Removes the link and waits until the program is detached.
async fn detach(pins: &Pins) -> Result<()> {
    // What can't be opened can still be removed.
    let attached = is_attached(pins).await.ok().flatten() == Some(true);
    let program = linked_program(pins).ok().flatten().filter(|_| attached);
    let index = Pinned::open(pins).map_or(0, |pinned| pinned.info().ifindex);
    pins.remove_link()?;
    // The kernel lets go of an unpinned link in the background (bpf_link_put).
    let patience = Instant::now() + Duration::from_secs(2);
    while let Some(program) = program
        && runs_at(index, program).await
    {
        if Instant::now() > patience {
            warn!("{}: somebody else holds the link and keeps the program attached", pins.interface());
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// The program attached to one interface, of which we are the controller.
pub struct Datapath {
    /// The interface.
    pub interface: Interface,
    pins: Locked,
    object: Object,
    options: LoadOptions,
    info: Info,
    logger: Option<EbpfLogger<&'static dyn Log>>,
    taken_over: bool,
    events: EventLog,
    /// Where the hits of keys stood when the current key last changed.
    last_hits: [u64; TRACKS],
}

/// What the commands are told of the source of the keys: see [`Info`].
#[derive(Clone, Copy, Debug)]
pub struct KeyInfo {
    /// Which it is.
    pub source: KeySource,
    /// How often keys change.
    pub rotate_seconds: u64,
    /// How old a retired key may get.
    pub max_age_seconds: u64,
    /// The fingerprints of the keys that the kernel is to hold.
    pub wanted: [u64; 2],
    /// What went wrong.
    pub failures: u64,
}

/// How a program is attached.
#[derive(Clone, Debug)]
pub struct How {
    /// Where in the receive path.
    pub attach: AttachMode,
    /// Up to which of aya's levels it logs its own events: 0 for none.
    pub log_level: u8,
    /// Which services it counts for, and protects.
    pub services: Services,
    /// How much it remembers.
    pub sizes: Sizes,
}

/// What has become of an attached program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// All is as it was.
    Attached,
    /// Somebody has removed its pins.
    Unloaded,
    /// Its interface is gone, or somebody has detached the link by force.
    Detached,
}

impl Datapath {
    /// Attaches the program to the interface called `name`, or takes over the one that an earlier controller left there:
    /// its maps, hence its counters and keys, are used on, and the program is replaced in one step. `fill` puts keys into
    /// the map before the program sees a packet.
    ///
    /// On failure, all is as it was before.
    pub async fn attach(
        name: &str,
        bpffs: &Bpffs,
        how: &How,
        fill: impl FnOnce(&mut Object) -> Result<()>,
    ) -> Result<Self> {
        // A status command that asks whether a controller runs holds the lock for an instant.
        let mut pins = bpffs.pins(name).lock(Duration::from_millis(500))?;
        // With the lock held: until then, another controller may have come or gone.
        let interface = Interface::find(name).await?;
        let left_behind = left_behind(&interface, &pins).await?;
        let netns_cookie = kernel::netns_cookie().unwrap_or_else(|error| {
            debug!("{name}: no cookie of the network namespace: {error}");
            0
        });
        let options = LoadOptions {
            link: interface.link_layer,
            mode: Mode::Observe,
            log_level: how.log_level,
            services: how.services.len(),
            netns_cookie,
            sizes: how.sizes,
            seed: 0,
        };
        let known = Known::of(&pins, &options)?;
        let options = LoadOptions { seed: known.seed()?, ..options };
        let aside = match known {
            Known::Other => Some(pins.set_maps_aside()?),
            Known::Nothing | Known::Ours { .. } => None,
        };

        let (mut object, options) = Object::load_for(&how.services, options, &pins)?;
        leaving_no_trace(|| fill(&mut object))?;
        object.serve(&how.services)?;
        let logger = logger(&mut object, how.log_level)?;
        let (attach, new_link) = match left_behind {
            Some(attach) => (attach, None),
            None => object.attach_new(&interface, how.attach).map(|(attach, link)| (attach, Some(link)))?,
        };
        let info = Info {
            layout_version: LAYOUT_VERSION,
            mode: how.services.mode() as u32,
            attach: attach as u32,
            ifindex: interface.index,
            netns: kernel::netns()?,
            since_unix_ns: known.since(),
            seed: options.seed,
            ..Info::default()
        };
        // Before the link: whoever finds that finds the rest complete.
        let earlier = object.info.get(&0, 0).context("cannot read the info map")?;
        object.info.set(0, Shared(info), 0).context("cannot write the info map")?;
        let taken_over = new_link.is_none();
        let in_force = match new_link {
            Some(link) => {
                let path = pins.link();
                let pinned = link.pin(&path).map(drop);
                pinned.with_context(|| format!("cannot pin the link at {}", path.display()))
            }
            None => {
                object.take_over(&pins).with_context(|| format!("cannot take over the program on {name}"))
            }
        };
        if let Err(error) = in_force {
            // The map goes on to describe what is there.
            if let Err(error) = object.info.set(0, earlier, 0) {
                warn!("{name}: cannot write the info map: {error}");
            }
            return Err(error);
        }
        if taken_over {
            info!("{name}: took over the program that an earlier controller left, {attach} mode");
            if !how.attach.allows(attach) {
                warn!("{name}: it stays in {attach} mode: to change that, `tfo unload -i {name}` first");
            }
        } else {
            info!("{name}: attached in {attach} mode");
        }
        if let Some(aside) = aside {
            // What follows connections has the old maps.
            remove_if_there(&pins.outcomes_link())?;
            aside.replace()?;
        }
        pins.keep();
        if let Err(error) = object.follow_connections(&pins) {
            let replays = match how.services.named().iter().any(|named| named.guards.once.is_some()) {
                true => ", and `once` protects nothing",
                false => "",
            };
            warn!("{name}: what becomes of connections will not be known{replays}: {error:#}");
        }
        Ok(Self {
            interface,
            pins,
            object,
            options,
            info,
            logger,
            taken_over,
            events: EventLog::default(),
            last_hits: [0; TRACKS],
        })
    }

    /// Makes the keys of `publish` those of the map. Where the current key changes, retired ones that hardly anybody has
    /// used since the last change are given up: those with a share of all valid cookies below `retire_below`.
    pub fn publish(&mut self, publish: Publish, retire_below: Option<f64>) -> Result<()> {
        let before = self.object.key_ring()?;
        if matches!(publish, Publish::Held(held) if held == before.held()) {
            return Ok(());
        }
        // The evidence is that of the time before: whoever comes with the new keys in force says nothing about it.
        let hits = self.object.counters()?.hits;
        self.object.hold(&self.interface.name, publish)?;
        let after = self.object.key_ring()?;
        if let (Publish::Held(_), Some(limit)) = (publish, retire_below)
            && before.get(CURRENT) != after.get(CURRENT)
        {
            let last_hits = std::mem::replace(&mut self.last_hits, hits);
            let since_then = |ring: &KeyRing, slot: usize| {
                let track = usize::from(ring.tracks[slot]);
                hits[track].saturating_sub(last_hits[track].max(ring.base[slot]))
            };
            let all: u64 =
                (0..SLOTS).filter(|slot| after.holds(*slot)).map(|slot| since_then(&after, slot)).sum();
            let was_retired = |slot: usize| {
                after.get(slot).and_then(|key| before.find(key)).is_some_and(|slot| slot >= NEWEST)
            };
            // Nobody came at all: that is evidence of nothing.
            let keep = |slot: usize| {
                all == 0 || !was_retired(slot) || since_then(&after, slot) as f64 >= limit * all as f64
            };
            self.object.prune(&self.interface.name, keep)?;
        }
        Ok(())
    }

    /// Lets go of retired keys that have been in the map for longer than `max_age` seconds.
    pub fn forget_older(&mut self, max_age: u64) -> Result<()> {
        let (ring, now) = (self.object.key_ring()?, unix_seconds());
        let is_old = |slot: usize| now.saturating_sub(ring.since[slot]) > max_age;
        if (NEWEST..SLOTS).any(|slot| ring.holds(slot) && is_old(slot)) {
            self.object.prune(&self.interface.name, |slot| !is_old(slot))?;
        }
        Ok(())
    }

    /// Tells the commands what is to be known about the source of the keys.
    pub fn describe_keys(&mut self, keys: &KeyInfo) -> Result<()> {
        let info = Info {
            key_source: keys.source as u64,
            rotate_seconds: keys.rotate_seconds,
            max_age_seconds: keys.max_age_seconds,
            wanted: keys.wanted,
            key_failures: keys.failures,
            ..self.info
        };
        if info != self.info {
            self.object.info.set(0, Shared(info), 0).context("cannot write the info map")?;
            self.info = info;
        }
        Ok(())
    }

    /// What was counted.
    pub fn counters(&self) -> Result<Counters> {
        self.object.counters()
    }

    /// The same as users see it.
    pub fn report(&self) -> Result<Report> {
        let outcomes = self.pins.has_outcomes()?;
        Ok(Report::new(&self.interface.name, &self.info, &self.by_service()?, outcomes))
    }

    /// Every service with what was counted for it; first what no service names.
    pub fn by_service(&self) -> Result<Vec<ServiceCounters>> {
        self.object.by_service()
    }

    /// What the commands are told of the program.
    pub const fn info(&self) -> &Info {
        &self.info
    }

    /// Takes the events that have come, and explains them.
    pub fn take_events(&mut self) {
        let Self { interface, object, events: log, .. } = self;
        let (mut events, mut of_kind) = (Vec::new(), HashMap::<_, usize>::new());
        while let Some(event) = object.next_event() {
            let count = of_kind.entry((event.subject.kind, event.subject.detail)).or_default();
            *count += 1;
            if *count <= AT_ONCE { events.push(event) } else { log.lose(event.weight) }
        }
        if events.is_empty() {
            return;
        }
        let own: Vec<_> = getifaddrs().into_iter().flatten().filter_map(|own| ip(own.address?)).collect();
        leaving_no_trace(|| {
            let ring = match object.key_ring() {
                Ok(ring) => ring,
                Err(error) => return warn!("{}: events go unexplained: {error:#}", interface.name),
            };
            let explainer = Explainer {
                interface: &interface.name,
                link: interface.link_layer,
                ring: &ring,
                own: &own,
                service: &|index| object.service_name(index),
                lately: &|prefix| object.lately(prefix),
            };
            events.iter().for_each(|event| log.add(explainer.explain(event)));
        });
    }

    /// The events behind number `after`, or the newest `most` of them, as JSON: see [`EventLog::json`].
    pub fn events(&self, after: u64, most: usize) -> Result<String> {
        self.events.json(after, most, self.object.watch()?.events_lost)
    }

    /// What was observed besides counters.
    pub fn watch(&self) -> Result<Watch> {
        self.object.watch()
    }

    /// For how many packets there was an event that could not be kept.
    pub fn dropped_events(&self) -> u64 {
        self.events.lost()
    }

    /// Where its state lies.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The keys in the map, and whether they are where they should be.
    pub fn keys(&self) -> Result<(KeyRing, Attestation)> {
        let ring = self.object.key_ring()?;
        Ok((ring, Attestation::of(&self.pins, &ring, &self.info)?))
    }

    /// Passes the events that the program itself has logged on to our log.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Whether the program is still where we attached it.
    pub async fn presence(&self) -> Presence {
        // By its index, since it may have been renamed; and another one may have come in its place, even with that.
        let xdp = interface::xdp_at(self.interface.index).await;
        // Then the pins: `tfo unload` removes the link first. Where something can't be told, such as with another file system
        // mounted over the pins, we go on.
        if self.pins.has_link().is_ok_and(|has_link| !has_link || !self.pins.is_current()) {
            return Presence::Unloaded;
        }
        let linked = linked_program(&self.pins).ok().flatten();
        let is_not_ours = |xdp: XdpOnInterface| linked.is_some_and(|program| xdp.program_id != program);
        if xdp.is_ok_and(|xdp| xdp.is_none_or(is_not_ours)) { Presence::Detached } else { Presence::Attached }
    }

    /// Whether there is room for `services`.
    pub fn has_room(&self, services: &Services) -> Result<()> {
        self.object.plan(services).map(drop)
    }

    /// Makes `services` those that are served, as [`Object::serve`] does; where that fails, all stays as it is. Where it takes
    /// another program, that takes the place of this one in one step.
    pub fn serve(&mut self, services: &Services, former: &Services) -> Result<()> {
        let mode = self.object.program_for(services)?;
        let options = LoadOptions { mode, services: services.len(), ..self.options };
        let mut next = if options.is_same_program(&self.options) {
            None
        } else {
            Some(Object::load(&options, Some(&self.pins))?)
        };
        let object = next.as_mut().unwrap_or(&mut self.object);
        let served = object.serve(services).and_then(|()| match &mut next {
            Some(object) => object.take_over(&self.pins),
            None => Ok(()),
        });
        if let Err(error) = served {
            if let Err(error) = self.object.reread().and_then(|()| self.object.serve(former)) {
                warn!("{}: cannot go back to the services before: {error:#}", self.interface.name);
            }
            return Err(error);
        }
        if let Some(object) = next {
            self.object = object;
            self.logger = logger(&mut self.object, options.log_level)?;
        }
        self.options = options;
        let info = Info { mode: services.mode() as u32, ..self.info };
        self.object.info.set(0, Shared(info), 0).context("cannot write the info map")?;
        self.info = info;
        Ok(())
    }

    /// Hides Fast Open from the stack, or hides it no longer.
    pub fn hide(&mut self, what: &Hidden, on: bool) -> Result<()> {
        self.object.hide(what, on)
    }

    /// What is hidden.
    pub fn hidden(&self) -> Result<Vec<Hidden>> {
        self.object.hidden()
    }

    /// Undoes [`attach`](Self::attach): what was taken over is left to run on, what is new is detached.
    pub async fn give_back(self) -> Result<()> {
        if self.taken_over { Ok(()) } else { self.detach().await }
    }

    /// Detaches the program and removes its state.
    pub async fn detach(mut self) -> Result<()> {
        self.flush_log();
        detach(&self.pins).await?;
        self.pins.remove()?;
        info!("{}: detached", self.interface.name);
        Ok(())
    }
}

/// What passes the program's own log on, where there is one.
fn logger(object: &mut Object, level: u8) -> Result<Option<EbpfLogger<&'static dyn Log>>> {
    match level {
        0 => Ok(None),
        _ => EbpfLogger::init(&mut object.ebpf).context("cannot read the program's own log").map(Some),
    }
}

impl Object {
    /// Replaces the program behind the pinned link by this one, without a packet in between that sees neither.
    fn take_over(&mut self, pins: &Pins) -> Result<()> {
        let link: FdLink = PinnedLink::from_pin(pins.link())?.into();
        let program = self.program()?;
        let id = program.attach_to_link(XdpLink::try_from(link)?)?;
        // The pin keeps it attached; we need no descriptor of it.
        drop(program.take_link(id)?);
        Ok(())
    }

    /// Attaches to `interface`, on which there is nothing yet, for as long as the link lives.
    fn attach_new(&mut self, interface: &Interface, mode: AttachMode) -> Result<(Attach, FdLink)> {
        let name = &interface.name;
        let program = self.program()?;
        let mut attempt = |attach| {
            let xdp_mode = match attach {
                Attach::Native => XdpMode::Driver,
                Attach::Generic => XdpMode::Skb,
            };
            program.attach_to_if_index(interface.index, xdp_mode).map(|link| (attach, link))
        };
        let attached = match mode {
            AttachMode::Native => attempt(Attach::Native),
            AttachMode::Generic => attempt(Attach::Generic),
            AttachMode::Auto => match attempt(Attach::Native) {
                // Not EBUSY and the like: then the other mode would fail as well, and say less.
                Err(error) if driver_has_none(&error) => {
                    debug!("{name}: no native mode: {}", cause(&error));
                    attempt(Attach::Generic)
                }
                other => other,
            },
        };
        let (attach, link) = attached.map_err(|error| {
            let hint = if mode == AttachMode::Native {
                " (the driver may have none: try --attach auto)"
            } else {
                ""
            };
            anyhow::anyhow!("cannot attach to {name} in {} mode{hint}: {}", mode.name(), cause(&error))
        })?;
        let link = program.take_link(link)?.try_into();
        let link =
            link.with_context(|| format!("no XDP link for {name}: this kernel is older than Linux 5.10"))?;
        Ok((attach, link))
    }
}

impl AttachMode {
    const fn name(self) -> &'static str {
        match self {
            Self::Auto => "native or generic",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    fn allows(self, attach: Attach) -> bool {
        match self {
            Self::Auto => true,
            Self::Native => attach == Attach::Native,
            Self::Generic => attach == Attach::Generic,
        }
    }
}

/// Whether an attachment failed because the driver has no XDP, or none for the interface as it is set up (MTU, channels).
fn driver_has_none(error: &ProgramError) -> bool {
    let code = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        // aya's second try over netlink, after EINVAL.
        _ => Some(libc::EINVAL),
    };
    !matches!(code, Some(libc::EBUSY | libc::EEXIST | libc::EPERM | libc::EACCES | libc::ENODEV))
}

/// What an attachment failed of, in the kernel's own words.
fn cause(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(error) => error.io_error.to_string(),
        other => format!("{other:#}"),
    }
}

/// Where an earlier controller's program runs on `interface`; `None` where there is no program at all, an error where
/// there is somebody else's.
async fn left_behind(interface: &Interface, pins: &Pins) -> Result<Option<Attach>> {
    match (interface.xdp, linked_program(pins)?) {
        (Some(xdp), Some(program)) if xdp.program_id == program => Ok(Some(xdp.attach)),
        (Some(xdp), _) => bail!(refusal(&interface.name, xdp)),
        (None, Some(program)) => forget_stale_link(pins, program).await.map(|()| None),
        (None, None) => Ok(None),
    }
}

/// The maps that an earlier controller left.
#[derive(Clone, Copy)]
enum Known {
    /// None.
    Nothing,
    /// Maps of our layout, which count since then.
    Ours { since_unix_ns: u64, seed: u64 },
    /// Maps of another layout, or not all of them.
    Other,
}

impl Known {
    fn of(pins: &Pins, options: &LoadOptions) -> Result<Self> {
        let maps = pins.maps()?;
        if maps == 0 {
            return Ok(Self::Nothing);
        }
        let reason = if maps < MAPS.len() {
            format!("some of the maps in {} are missing", pins.dir().display())
        } else {
            match Pinned::open(pins) {
                Ok(pinned) if (pinned.capacity() as usize) < options.services + 2 => {
                    format!("the maps in {} have room for fewer services", pins.dir().display())
                }
                Ok(_) if !options.sizes.are_those_of(pins)? => {
                    format!("the maps in {} have another size", pins.dir().display())
                }
                Ok(pinned) => {
                    let Info { since_unix_ns, seed, .. } = *pinned.info();
                    return Ok(Self::Ours { since_unix_ns, seed });
                }
                Err(error) if error.is::<OtherVersion>() => error.to_string(),
                Err(error) => return Err(error),
            }
        };
        warn!("{}: counting starts anew: {reason}", pins.interface());
        Ok(Self::Other)
    }

    /// Since when is counted, in nanoseconds since 1970.
    fn since(self) -> u64 {
        match self {
            Self::Ours { since_unix_ns, .. } => since_unix_ns,
            Self::Nothing | Self::Other => Timestamp::now().as_nanosecond().try_into().unwrap_or(0),
        }
    }
}

impl Known {
    /// What tags are made with: nobody who sends packets is to know it.
    fn seed(self) -> Result<u64> {
        match self {
            Self::Ours { seed, .. } => Ok(seed),
            Self::Nothing | Self::Other => getrandom::u64().context("no random number"),
        }
    }
}

/// Removes a link that attaches nothing any more because its interface is gone; not one whose interface was renamed, nor
/// one of another namespace, nor one of which that can't be told.
async fn forget_stale_link(pins: &Pins, program: u32) -> Result<()> {
    let name = pins.interface();
    let info = Pinned::open(pins).map(|pinned| *pinned.info()).ok();
    let Some(info) = info.filter(|info| kernel::netns().is_ok_and(|here| info.netns == here)) else {
        bail!(
            "{} seems to belong to an interface {name} of another network namespace: if that is gone, run \
             `tfo unload -i {name}`; if it isn't, give one of the two a BPF file system of its own (--bpffs)",
            pins.dir().display()
        );
    };
    let index = info.ifindex;
    if interface::xdp_at(index).await?.is_some_and(|xdp| xdp.program_id == program) {
        bail!(
            "{} belongs to an interface that was called {name} and has been renamed (number {index} in `ip link`): the \
             program still runs there; to detach it, run `tfo unload -i {name}`",
            pins.dir().display()
        );
    }
    debug!("{name}: removing the link to an earlier interface of that name");
    pins.remove_link()
}

fn refusal(name: &str, xdp: XdpOnInterface) -> String {
    let XdpOnInterface { program_id, attach } = xdp;
    let program = loaded_programs().flatten().find(|program| program.id() == program_id);
    let program = program.as_ref().and_then(|program| program.name_as_str()).unwrap_or("?");
    let hint = match program {
        names::PROGRAM | names::SHIELD_PROGRAM => {
            "a tfo that sees another BPF file system has attached it (--bpffs, or `ip netns exec`): end that tfo; or \
             the interface was renamed: run `tfo unload -i OLDNAME`"
        }
        _ => "have whoever attached it detach it first",
    };
    format!(
        "{name} already has an XDP program: {program} (id {program_id}, {attach} mode). tfo leaves alone what is not \
         pinned in its own folder: {hint}"
    )
}

/// The IP address in `address`, if it is one.
fn ip(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// Seconds since 1970 (UTC).
pub(crate) fn unix_seconds() -> u64 {
    Timestamp::now().as_second().try_into().unwrap_or(0)
}
