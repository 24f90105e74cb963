//! The program on an interface: attaching, taking over, letting go. [`Object`] is what is loaded, with its maps.

mod batch;
mod carry;
mod change;
mod device;
mod link;
mod object;
mod options;
mod orders;
mod pinned;
pub mod pins;
mod plan;
mod services;
mod syscall;
mod tables;
mod unpinned;

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result, bail};
use aya::programs::ProgramType;
use aya_log::EbpfLogger;
pub use carry::forget_keys;
pub use change::{Built, Enforced, Program, hidden_in};
pub use device::{OnDevice, on_device};
use link::detach;
pub use link::{is_attached, linked_program, unload};
use log::Log;
pub use object::{Object, SharedMaps};
pub use options::LoadOptions;
pub use pinned::{OtherVersion, Pinned};
use tables::Shared;
pub use tables::{Entries, ServiceCounters};
use tfo_common::{
    counters::Counters,
    info::{Attach, Info, KeySource},
    keyring::{CURRENT, Held, KeyRing, NEWEST, SLOTS, TRACKS},
    observed::{Event, Prefix, Watch},
};
use tracing::warn;

use crate::{
    dataplane::pins::{Generation, Locked, Pins, remove_if_there, rename_if_there},
    kernel::interface::{self, Interface, XdpOnInterface},
    model::{guards::Hidden, settings::AttachMode},
    util::time::unix_seconds,
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

/// The program of one interface, of which we are the controller. The interface may be gone, and come back.
pub struct Datapath {
    /// The interface, as it was when the program was last attached.
    pub interface: Interface,
    pins: Pins,
    generation: Generation,
    object: Object,
    program: Program,
    info: Info,
    logger: Option<EbpfLogger<&'static dyn Log>>,
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

/// What a map is to hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// These keys, and as retired ones all that it held before.
    Held(Held),
    /// The kernel's keys, and besides what it held before also these, which are about to become the kernel's.
    Learn {
        /// The kernel's keys now.
        kernel: Held,
        /// Its keys in a moment.
        wanted: Held,
    },
    /// These keys and no others: what was held before has leaked.
    Only(Held),
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
    /// Has `enforced` settle on `interface`, and takes the place of the datapath before, if there was one.
    pub fn settle(pins: &Locked, interface: Interface, mut enforced: Enforced, before: Option<Self>) -> Self {
        let name = &interface.name;
        if let Err(error) = enforced.settle(pins) {
            warn!("{name}: not all state of the earlier program could be taken over: {error:#}");
        }
        let logger =
            logger(&mut enforced.object, enforced.program.options.log_level).unwrap_or_else(|error| {
                warn!("{name}: {error:#}");
                None
            });
        let Enforced { program, object, generation, info, .. } = enforced;
        let last_hits = before.map_or([0; TRACKS], |mut before| {
            before.flush_log();
            before.last_hits
        });
        Self { interface, pins: (**pins).clone(), generation, object, program, info, logger, last_hits }
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
        if info == self.info { Ok(()) } else { self.set_info(info) }
    }

    /// What was counted.
    pub fn counters(&self) -> Result<Counters> {
        self.object.counters()
    }

    /// Every service with what was counted for it; first what no service names.
    pub fn by_service(&self) -> Result<Vec<ServiceCounters>> {
        self.object.by_service()
    }

    /// What the commands are told of the program.
    pub const fn info(&self) -> &Info {
        &self.info
    }

    /// The next event that the program has reported, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        self.object.next_event()
    }

    /// The name of the service with this index.
    pub fn service_name(&self, index: u32) -> String {
        self.object.service_name(index)
    }

    /// The last words of sources of `prefix` that came lately.
    pub fn lately(&self, prefix: Prefix) -> Vec<u64> {
        self.object.lately(prefix)
    }

    /// What was observed besides counters.
    pub fn watch(&self) -> Result<Watch> {
        self.object.watch()
    }

    /// Where its state lies.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The keys in the map.
    pub fn key_ring(&self) -> Result<KeyRing> {
        self.object.key_ring()
    }

    /// Passes the events that the program itself has logged on to our log.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Whether the program is still where we attached it.
    pub async fn presence(&self, pins: &Locked) -> Presence {
        // By its index, since it may have been renamed; and another one may have come in its place, even with that.
        let xdp = interface::xdp_at(self.interface.index).await;
        // Then the pins: `tfo unload` removes the link first. Where something can't be told, such as with another file system
        // mounted over the pins, we go on.
        if pins.has_link().is_ok_and(|has_link| !has_link || !pins.is_current()) {
            return Presence::Unloaded;
        }
        let linked = linked_program(pins).ok().flatten();
        let is_not_ours = |xdp: XdpOnInterface| linked.is_some_and(|program| xdp.program_id != program);
        if xdp.is_ok_and(|xdp| xdp.is_none_or(is_not_ours)) { Presence::Detached } else { Presence::Attached }
    }

    /// Where in the receive path it is attached.
    pub fn attach(&self) -> Attach {
        if self.info.attach == Attach::Generic as u32 { Attach::Generic } else { Attach::Native }
    }

    /// What its program was made from.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Makes `hidden` all that is hidden by order.
    pub fn set_hidden(&mut self, hidden: &BTreeSet<Hidden>) -> Result<()> {
        self.object.set_hidden(hidden)
    }

    /// What is hidden by order, as the maps say.
    pub fn hidden(&self) -> Result<Vec<Hidden>> {
        self.object.hidden()
    }

    /// Says that the keys in the map are the kernel's now.
    pub fn confirm_keys(&mut self) -> Result<()> {
        self.object.confirm()
    }

    /// Attaches the program that is loaded to `interface`, which has come in the place of the one that is gone.
    pub fn attach_again(&mut self, interface: Interface, attach: AttachMode) -> Result<()> {
        let (attach, link) = self.object.attach_new(&interface, attach)?;
        let info = Info { attach: attach as u32, ifindex: interface.index, ..self.info };
        self.set_info(info)?;
        let (next, path) = (self.generation.next_link(), self.generation.link());
        remove_if_there(&next)?;
        link.pin(&next).with_context(|| format!("cannot pin the link at {}", next.display()))?;
        rename_if_there(&next, &path)?;
        self.interface = interface;
        Ok(())
    }

    fn set_info(&mut self, info: Info) -> Result<()> {
        self.object.info.set(0, Shared(info), 0).context("cannot write the info map")?;
        self.info = info;
        Ok(())
    }
}

/// Detaches the programs behind `pins` and removes all state.
pub async fn remove(pins: &Locked) -> Result<()> {
    detach(pins).await?;
    pins.remove()
}

/// What passes the program's own log on, where there is one.
fn logger(object: &mut Object, level: u8) -> Result<Option<EbpfLogger<&'static dyn Log>>> {
    match level {
        0 => Ok(None),
        _ => EbpfLogger::init(&mut object.ebpf).context("cannot read the program's own log").map(Some),
    }
}
