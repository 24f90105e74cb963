//! Attaches, takes over and detaches the XDP program of an interface. [`Object`] holds the loaded programs and their
//! maps.

mod batch;
mod carry;
mod change;
mod device;
mod ingress;
mod layout_0_1;
mod link;
mod object;
mod options;
mod orders;
mod pinned;
pub mod pins;
mod plan;
mod services;
mod special;
mod syscall;
mod tables;
mod tc;
mod unpinned;

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result, bail};
use aya::programs::ProgramType;
use aya_log::EbpfLogger;
pub use carry::{LAYOUTS, confirm_keys, forget_keys};
pub use change::{Built, Enforced, Program, answering_in, check_answers, hidden_in};
pub use device::{OnDevice, name_of, on_device};
use link::detach;
pub use link::{Linked, is_attached, linked, unload};
use log::Log;
pub use object::{Object, SharedMaps};
pub use options::LoadOptions;
pub use pinned::{OtherVersion, Pinned};
use tables::Shared;
pub use tables::{Entries, ServiceCounters};
use tfo_common::{
    answer::Host,
    client::Client,
    counters::Counters,
    info::{Attach, Info, KeySource},
    keyring::{CURRENT, Held, KeyRing, NEWEST, SLOTS, TRACKS},
    observed::{Event, Prefix, Watch},
};
use tracing::warn;

use crate::{
    dataplane::pins::{Generation, Locked, Pins, remove_if_there, rename_if_there},
    kernel::interface::{self, Interface, XdpOnInterface},
    model::{
        guards::{Hidden, Orders},
        keys::{DatedKey, PortKeys},
        settings::AttachMode,
    },
    util::{privileges, time::unix_seconds},
};

/// Warning about services with portable cookies whose program for packets that leave is not attached.
pub const NOT_HANDED_OUT: &str = "portable cookies are translated, but not handed out: clients get ordinary ones, which hold at one destination only";

/// Checks that this user and this kernel can run the program, before anything is changed. The error says why not.
pub fn preflight() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("loading an XDP program needs root: run it with sudo");
    }
    privileges::check()?;
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

/// The program of one interface that this process controls. The interface may disappear and come back.
pub struct Datapath {
    /// The interface, as it was when the program was last attached.
    pub interface: Interface,
    pins: Pins,
    generation: Generation,
    object: Object,
    program: Program,
    info: Info,
    logger: Option<EbpfLogger<&'static dyn Log>>,
    /// Result of attaching the program that hands out portable cookies, if any service has them.
    egress: Option<Result<(), String>>,
    /// Values of [`Counters::hits`] when the current key last changed.
    last_hits: [u64; TRACKS],
}

/// State of the source of the keys, which the commands read from [`Info`].
#[derive(Clone, Copy, Debug)]
pub struct KeyInfo {
    /// Kind of source.
    pub source: KeySource,
    /// Time between rotations, in seconds; 0 if tfo does not decide on them.
    pub rotate_seconds: u64,
    /// Maximum age of a retired key, in seconds; 0 for no limit.
    pub max_age_seconds: u64,
    /// Fingerprints of the primary and the backup key that the kernel should hold; 0 for no key.
    pub wanted: [u64; 2],
    /// Number of times that the kernel's keys could not be read or written, or were changed by somebody else.
    pub failures: u64,
    /// Time from which a secret that is known will be in force, in seconds since 1970; 0 for none, `u64::MAX` if it waits
    /// for a word.
    pub next_secret: u64,
}

/// Change of the keys in a map.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// Gives these keys their roles, and retires the other keys in the map.
    Held(Held),
    /// Gives the kernel's keys their roles, and adds the keys that are about to replace them. The other keys are
    /// retired.
    Learn {
        /// Present keys of the kernel.
        kernel: Held,
        /// Next keys of the kernel.
        wanted: Held,
    },
    /// Makes these keys the only ones, since the keys before have leaked.
    Only(Held),
}

/// State of a program that was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The program is attached and its link is pinned.
    Attached,
    /// The pins have been removed, for example by `tfo unload`.
    Unloaded,
    /// The interface is gone, or the link has been detached by force.
    Detached,
}

impl Datapath {
    /// Completes the change to `enforced` on `interface`, and replaces the datapath `before`. Failures are logged.
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
        let Enforced { program, object, generation, info, egress, .. } = enforced;
        let last_hits = before.map_or([0; TRACKS], |mut before| {
            before.flush_log();
            before.last_hits
        });
        let pins = (**pins).clone();
        Self { interface, pins, generation, object, program, info, logger, egress, last_hits }
    }

    /// Applies `publish` to the keys in the map. If [`Publish::Held`] changes the current key, keys that were retired
    /// before are dropped if their share of the valid cookies since the last change is below `retire_below`.
    pub fn publish(&mut self, publish: Publish, retire_below: Option<f64>) -> Result<()> {
        let before = self.object.key_ring()?;
        if matches!(publish, Publish::Held(held) if held == before.held()) {
            return Ok(());
        }
        // The counters are read before the new keys are in force: later cookies say nothing about the time before.
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
            // Without any valid cookie, there is no evidence against a key.
            let keep = |slot: usize| {
                all == 0 || !was_retired(slot) || since_then(&after, slot) as f64 >= limit * all as f64
            };
            self.object.prune(&self.interface.name, keep)?;
        }
        Ok(())
    }

    /// Makes the map know `keys`, newest first, with which other hosts make cookies.
    pub fn know(&mut self, keys: &[DatedKey]) -> Result<()> {
        if keys.is_empty() { Ok(()) } else { self.object.know(&self.interface.name, keys) }
    }

    /// Applies the keys that listeners have of their own: see [`Object::hold_own_keys`].
    pub fn hold_own_keys(&mut self, own: &[PortKeys]) -> Result<()> {
        self.object.hold_own_keys(&self.interface.name, own)
    }

    /// Drops retired keys that have been in the map for longer than `max_age` seconds.
    pub fn forget_older(&mut self, max_age: u64) -> Result<()> {
        let (ring, now) = (self.object.key_ring()?, unix_seconds());
        self.object.prune_domains(|since| now.saturating_sub(since) <= max_age)?;
        let is_old = |slot: usize| now.saturating_sub(ring.since[slot]) > max_age;
        if (NEWEST..SLOTS).any(|slot| ring.holds(slot) && is_old(slot)) {
            self.object.prune(&self.interface.name, |slot| !is_old(slot))?;
        }
        Ok(())
    }

    /// Writes the state of the source of the keys into the info map, for the commands.
    pub fn describe_keys(&mut self, keys: &KeyInfo) -> Result<()> {
        let info = Info {
            key_source: keys.source as u64,
            rotate_seconds: keys.rotate_seconds,
            max_age_seconds: keys.max_age_seconds,
            wanted: keys.wanted,
            key_failures: keys.failures,
            next_secret: keys.next_secret,
            ..self.info
        };
        if info == self.info { Ok(()) } else { self.set_info(info) }
    }

    /// Returns the counters, summed over all services and CPUs.
    pub fn counters(&self) -> Result<Counters> {
        self.object.counters()
    }

    /// Returns the counters of each service. The first entry is for ports that no service names.
    pub fn by_service(&self) -> Result<Vec<ServiceCounters>> {
        self.object.by_service()
    }

    /// Returns the content of the info map.
    pub const fn info(&self) -> &Info {
        &self.info
    }

    /// Takes the next event that the program has reported, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        self.object.next_event()
    }

    /// Returns the name of the service at `index`, or "unknown".
    pub fn service_name(&self, index: u32) -> String {
        self.object.service_name(index)
    }

    /// Returns the last 64 bits of some recent IPv6 sources of `prefix`.
    pub fn recent_sources(&self, prefix: Prefix) -> Vec<u64> {
        self.object.recent_sources(prefix)
    }

    /// Returns the counters of events, prefixes and forgotten sources.
    pub fn watch(&self) -> Result<Watch> {
        self.object.watch()
    }

    /// Returns the counts of connections from here; `None` if they are not followed.
    pub fn client(&self) -> Result<Option<Client>> {
        if self.object.follows_clients() && self.pins.has_outcomes()? {
            self.object.client().map(Some)
        } else {
            Ok(None)
        }
    }

    /// Returns the pins of the interface.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Returns the key ring in force.
    pub fn key_ring(&self) -> Result<KeyRing> {
        self.object.key_ring()
    }

    /// Writes the program's own log messages to our log.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Returns whether the program is still attached and pinned.
    pub async fn presence(&self, pins: &Locked) -> Presence {
        // The interface may have been renamed, so it is looked up by index. A new interface can have the same index, so
        // the program's id is compared below.
        let xdp = interface::xdp_at(self.interface.index).await;
        // The pins are read after that, because `tfo unload` removes the link first. If something can't be read, for
        // example because another file system is mounted over the pins, we go on.
        if pins.has_link().is_ok_and(|has_link| !has_link || !pins.is_current()) {
            return Presence::Unloaded;
        }
        let linked = linked(pins).ok().flatten();
        if self.attach() == Attach::Tcx {
            let is_elsewhere = linked.is_some_and(|linked| !linked.is_at_tcx_of(self.interface.index));
            return if is_elsewhere { Presence::Detached } else { Presence::Attached };
        }
        let is_not_ours =
            |xdp: XdpOnInterface| linked.is_some_and(|linked| xdp.program_id != linked.program_id);
        if xdp.is_ok_and(|xdp| xdp.is_none_or(is_not_ours)) { Presence::Detached } else { Presence::Attached }
    }

    /// Returns the place in the receive path where the program is attached.
    pub fn attach(&self) -> Attach {
        attach_of(&self.info)
    }

    /// Returns the options and services from which the program was built.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Replaces the orders in the maps by `orders`.
    pub fn set_orders(&mut self, orders: &Orders) -> Result<()> {
        self.object.set_orders(orders)
    }

    /// Returns the counts of SYNs of each service that `is_wanted`, without those of earlier maps.
    pub fn counted(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Counters)>> {
        self.object.counted(is_wanted)
    }

    /// Writes the facts about the host that decide on answers.
    pub fn set_host(&mut self, host: Host) -> Result<()> {
        self.object.set_host(host)
    }

    /// Returns the orders of `tfo hide` in the maps.
    pub fn hidden(&self) -> Result<Vec<Hidden>> {
        self.object.hidden()
    }

    /// Returns the services whose SYNs are answered.
    pub fn answering(&self) -> Result<BTreeSet<String>> {
        self.object.answering()
    }

    /// Confirms that the keys in the map are the kernel's now.
    pub fn confirm_keys(&mut self) -> Result<()> {
        self.object.confirm()
    }

    /// Attaches the loaded program to `interface`, which has replaced the one that is gone.
    pub fn attach_again(&mut self, interface: Interface, attach: AttachMode) -> Result<()> {
        let (attach, attached) = self.object.attach_new(&interface, attach)?;
        let info = Info { attach: attach as u32, ifindex: interface.index, ..self.info };
        self.set_info(info)?;
        let (next, filter) = (self.generation.next_link(), self.generation.ingress_filter());
        remove_if_there(&next)?;
        remove_if_there(&filter)?;
        tc::pin(attached, &next, || self.object.pin_ingress(&filter))?;
        rename_if_there(&next, &self.generation.link())?;
        if let Some(Ok(())) = self.egress {
            remove_if_there(&self.generation.egress_link())?;
            remove_if_there(&self.generation.egress_filter())?;
            if let Err(error) = self.object.attach_egress(&interface, &self.generation, false) {
                warn!("{}: {NOT_HANDED_OUT}: {error:#}", interface.name);
            }
        }
        self.interface = interface;
        Ok(())
    }

    fn set_info(&mut self, info: Info) -> Result<()> {
        self.object.info.set(0, Shared(info), 0).context("cannot write the info map")?;
        self.info = info;
        Ok(())
    }
}

/// Returns the place in the receive path that `info` names.
pub fn attach_of(info: &Info) -> Attach {
    Attach::ALL.get(info.attach as usize).copied().unwrap_or(Attach::Native)
}

/// Detaches the programs behind `pins` and removes all state.
pub async fn remove(pins: &Locked) -> Result<()> {
    detach(pins).await?;
    pins.remove()
}

/// Returns the reader of the program's own log, or `None` at level 0.
fn logger(object: &mut Object, level: u8) -> Result<Option<EbpfLogger<&'static dyn Log>>> {
    match level {
        0 => Ok(None),
        _ => EbpfLogger::init(&mut object.ebpf).context("cannot read the program's own log").map(Some),
    }
}
