//! The program on an interface: attaching, taking over, letting go. [`Object`] is what is loaded, with its maps.

mod earlier;
mod link;
mod object;
mod options;
mod orders;
mod outcomes;
mod pinned;
mod plan;
mod serve;
mod tables;
mod whole;

use std::{collections::HashMap, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use aya::programs::ProgramType;
use aya_log::EbpfLogger;
use earlier::{Known, left_behind};
use jiff::Timestamp;
use link::detach;
pub use link::{is_attached, linked_program, unload};
use log::{Log, debug, info, warn};
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
pub use object::Object;
pub use options::{LoadOptions, Sizes};
pub use pinned::{OtherVersion, Pinned};
use tables::Shared;
pub use tables::{Entries, OTHER_NAME, REMOVED_NAME, ServiceCounters};
use tfo_common::{
    counters::Counters,
    info::{Info, KeySource, LAYOUT_VERSION},
    keyring::{CURRENT, KeyRing, NEWEST, SLOTS, TRACKS},
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
    pins::{Bpffs, Locked, Pins, remove_if_there},
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

/// The IP address in `address`, if it is one.
fn ip(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// Seconds since 1970 (UTC).
pub(crate) fn unix_seconds() -> u64 {
    Timestamp::now().as_second().try_into().unwrap_or(0)
}
