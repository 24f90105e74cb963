//! The loaded program and its maps: what is in them, and how it is published.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, MapData, RingBuf, lpm_trie::LpmTrie},
    programs::{SockOps, Xdp},
};
use nix::{
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
    time::{ClockId, clock_gettime},
};
use tfo_common::{
    counters::Counters,
    info::Info,
    keyring::{Held, Key, KeyRing, KeyStore, Moment},
    names,
    observed::{Event, Prefix, Watch},
    verdict::Mode,
};
use tracing::{info, trace};

use super::{
    options::LoadOptions,
    orders::Orders,
    tables::{Entries, ServiceCounters, Shared, Tables},
    unpinned::Unpinned,
};
use crate::util::time::unix_seconds;
use crate::{
    dataplane::{Publish, pins::Generation},
    model::{
        guards::Hidden,
        keys::{Made, describe},
    },
    util::secrecy::leaving_no_trace,
};

/// Maps that a program takes from a generation that is there already. Those of them that are not there yet are made and pinned.
#[derive(Clone, Copy, Debug)]
pub struct SharedMaps<'a> {
    /// Where they are pinned.
    pub generation: &'a Generation,
    /// Their names.
    pub maps: &'a [&'static str],
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tfo-ebpf"));

/// The loaded program and its maps.
pub struct Object {
    pub(super) ebpf: Ebpf,
    unpinned: Option<Unpinned>,
    mode: Mode,
    seed: u64,
    pub(super) tables: Tables,
    pub(super) ports: Array<MapData, u32>,
    pub(super) orders: Orders,
    pub(super) addresses: LpmTrie<MapData, [u32; 5], u32>,
    events: RingBuf<MapData>,
    pub(super) info: Array<MapData, Shared<Info>>,
}

impl Object {
    /// Loads the XDP program; with `shared`, on maps that are pinned already.
    pub fn load(options: &LoadOptions, shared: Option<SharedMaps<'_>>) -> Result<Self> {
        let mut object = Self::prepare(options, shared)?;
        object.verify()?;
        Ok(object)
    }

    /// The second half of [`load`](Self::load).
    pub(super) fn verify(&mut self) -> Result<()> {
        self.program()?.load().context("the kernel refused the XDP program")
    }

    /// The first half of [`load`](Self::load): the maps are there, and the verifier has not seen the program yet.
    pub fn prepare(options: &LoadOptions, shared: Option<SharedMaps<'_>>) -> Result<Self> {
        // Before Linux 5.11 maps count as locked memory.
        if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
            trace!("cannot lift the limit of locked memory: {error}");
        }
        let (link, mode, has_services) =
            (options.link as u8, options.mode as u8, u8::from(options.services > 0));
        let [source_rows, replay_rows] = options.sizes.rows();
        let [last_source_row, last_replay_row] = [source_rows, replay_rows].map(|rows| rows - 1);
        let mut loader = EbpfLoader::new();
        loader
            .override_global(names::LINK_LAYER, &link, true)
            .override_global(names::MODE, &mode, true)
            .override_global(names::HAS_SERVICES, &has_services, true)
            .override_global(names::NETNS, &options.netns_cookie, true)
            .override_global(names::SEED, &options.seed, true)
            .override_global(names::LAST_SOURCE_ROW, &last_source_row, true)
            .override_global(names::LAST_REPLAY_ROW, &last_replay_row, true)
            .override_global(names::LOG_LEVEL, &options.log_level, true)
            .verifier_log_level(VerifierLogLevel::STATS);
        let of_services = [
            names::COUNTERS,
            names::SAMPLERS,
            names::SERVICES,
            names::OUTCOMES,
            names::CARRIED,
            names::POLICIES,
            names::UNKNOWN,
        ];
        let capacity = options.capacity();
        for name in of_services {
            loader.map_max_entries(name, capacity);
        }
        for name in [names::SOURCES, names::FORGERS] {
            loader.map_max_entries(name, source_rows);
        }
        loader.map_max_entries(names::REPLAYS, replay_rows);
        if let Some(SharedMaps { generation, maps }) = shared {
            for name in maps {
                loader.map_pin_path(name, generation.map(name));
            }
        }
        let mut ebpf = loader.load(OBJECT).context("cannot create the maps of the XDP program")?;
        let unpinned = Some(Unpinned::of(&ebpf)?);
        let mut take = |name| ebpf.take_map(name).with_context(|| format!("the program has no map {name}"));
        Ok(Self {
            unpinned,
            ports: take(names::PORTS)?.try_into()?,
            addresses: take(names::ADDRESSES)?.try_into()?,
            events: take(names::EVENTS)?.try_into()?,
            info: take(names::INFO)?.try_into()?,
            orders: Orders::new(&mut take)?,
            tables: Tables::new(take)?,
            mode: options.mode,
            seed: options.seed,
            ebpf,
        })
    }

    /// The XDP program.
    pub fn program(&mut self) -> Result<&mut Xdp> {
        let name = match self.mode {
            Mode::Observe | Mode::Accelerate => names::PROGRAM,
            Mode::Shield => names::SHIELD_PROGRAM,
        };
        let program = self.ebpf.program_mut(name);
        let program = program.with_context(|| format!("there is no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// The program that follows connections.
    pub(super) fn outcomes_program(&mut self) -> Result<&mut SockOps> {
        let program = self.ebpf.program_mut(names::OUTCOMES_PROGRAM);
        let program = program.with_context(|| format!("there is no program {}", names::OUTCOMES_PROGRAM))?;
        Ok(program.try_into()?)
    }

    /// Pins its maps in `generation`.
    pub(super) fn pin(&mut self, generation: &Generation) -> Result<()> {
        self.unpinned.take().map_or(Ok(()), |unpinned| unpinned.pin(generation))
    }

    /// What tags of all that is remembered are made with.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Makes `hidden` all that is hidden by order.
    pub fn set_hidden(&mut self, hidden: &BTreeSet<Hidden>) -> Result<()> {
        let tables = &self.tables;
        self.orders.set(tables.capacity(), |index| tables.service(index), hidden)
    }

    /// What is hidden by order.
    pub(super) fn hidden(&self) -> Result<Vec<Hidden>> {
        self.orders.hidden(self.tables.capacity(), |index| self.tables.service(index))
    }

    /// What was counted, summed over all services and CPUs.
    pub fn counters(&self) -> Result<Counters> {
        self.tables.counters()
    }

    /// Every service with what was counted for it; first what no service names.
    pub fn by_service(&self) -> Result<Vec<ServiceCounters>> {
        self.tables.by_service()
    }

    /// What was observed besides counters.
    pub fn watch(&self) -> Result<Watch> {
        self.tables.watch()
    }

    /// How many entries the maps have.
    pub fn entries(&self) -> Entries {
        self.tables.entries()
    }

    /// The name of the service at `index`.
    pub(super) fn service_name(&self, index: u32) -> String {
        self.tables.service(index).ok().flatten().unwrap_or_else(|| "unknown".to_owned())
    }

    /// The last words of sources of `prefix` that came lately.
    pub(super) fn lately(&self, prefix: Prefix) -> Vec<u64> {
        self.tables.lately(prefix)
    }

    /// The key ring in force.
    pub fn key_ring(&self) -> Result<KeyRing> {
        self.tables.key_ring()
    }

    /// The next event that nobody has taken yet.
    pub fn next_event(&mut self) -> Option<Event> {
        let item = self.events.next()?;
        // The program writes nothing else.
        if item.len() < size_of::<Event>() {
            return None;
        }
        // SAFETY: there are that many bytes, any of which make an event (see `Shared`); they are copied from wherever they are.
        Some(unsafe { item.as_ptr().cast::<Event>().read_unaligned() })
    }

    /// Puts `ring` in force for every packet from now on, whole.
    ///
    /// No program ever sees half of it: the ring is written where nobody reads, one aligned word is flipped, and the
    /// other ring gets no other bytes before every program that could still read it has ended. (Each write covers the
    /// whole entry, but writes the bytes that were there, save in the spare ring and in the low byte of that word.) It confirms
    /// nothing: see [`confirm`](Self::confirm).
    pub fn publish(&mut self, ring: &KeyRing) -> Result<()> {
        let Shared(mut store) = self.tables.keys.get(&0, 0).context("cannot read the key map")?;
        let spare = KeyStore::index(store.active + 1);
        store.rings[spare] = *ring;
        self.tables.keys.set(0, Shared(store), 0).context("cannot write the key map")?;
        wait_for_running_programs();
        store.active = spare as u64;
        self.tables.keys.set(0, Shared(store), 0).context("cannot write the key map")?;
        wait_for_running_programs();
        Ok(())
    }
}

impl Object {
    /// Confirms that the keys in the map are the kernel's, for [`CONFIRMED_FOR_NS`] from now on.
    ///
    /// [`CONFIRMED_FOR_NS`]: tfo_common::keyring::CONFIRMED_FOR_NS
    pub fn confirm(&mut self) -> Result<()> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the clock")?;
        self.confirm_at(Duration::from(now).as_nanos() as u64)
    }

    /// Confirms them as of `confirmed_ns`, CLOCK_MONOTONIC in nanoseconds: for good where that is the far future. A test's.
    pub fn confirm_at(&mut self, confirmed_ns: u64) -> Result<()> {
        // The kernel takes whole entries only: the keys are read for it, and written back as they are.
        leaving_no_trace(|| {
            let Shared(mut store) = self.tables.keys.get(&0, 0).context("cannot read the key map")?;
            store.confirmed_ns = confirmed_ns;
            self.tables.keys.set(0, Shared(store), 0).context("cannot write the key map")
        })
    }
}

/// Whether both have the same keys in the same roles.
fn has_same_keys(one: &KeyRing, other: &KeyRing) -> bool {
    one.slots == other.slots && one.present == other.present
}

/// What a map that translates is to hold while the kernel goes from `kernel` to `wanted`: whatever moment it is, a cookie is
/// translated into one that the kernel takes before and after, or not at all. A key in the place of the next one is known,
/// and leaves room for one more among the retired.
fn in_between(kernel: Held, wanted: Held) -> Held {
    let stays = |key: &Key| [wanted.current, wanted.backup].contains(&Some(*key));
    let kernels = [kernel.current, kernel.backup];
    let common = kernels.into_iter().flatten().find(stays);
    let other = kernels.into_iter().flatten().find(|key| Some(*key) != common);
    Held { current: common, backup: None, next: other }
}

/// Waits until every XDP program that now runs has ended, and orders our writes before what comes after.
pub(super) fn wait_for_running_programs() {
    // Programs run inside an RCU read-side section, and MEMBARRIER_CMD_GLOBAL is synchronize_rcu (on one CPU it does
    // nothing: there, no program is under way while we run).
    // SAFETY: this command takes no pointer and changes nothing in the process.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Kernels with nohz_full CPUs don't have it. A program runs for less than a microsecond, unless its virtual CPU
        // is taken away; then it could see a torn ring if two more were published meanwhile.
        thread::sleep(Duration::from_millis(10));
    }
}

impl Object {
    /// Makes the keys of `publish` those of the map, unless they are already.
    pub(crate) fn hold(&mut self, interface: &str, publish: Publish) -> Result<()> {
        let ring = self.key_ring()?;
        let hits = self.counters()?.hits;
        let moment = Moment { seconds: unix_seconds(), hits: &hits };
        let next = match publish {
            Publish::Held(held) => ring.follow(held, moment),
            // The wanted ones first, then the kernel's: so those have their roles, and these are known.
            Publish::Learn { kernel, wanted } => {
                let known = ring.follow(wanted, moment).follow(kernel, moment);
                match self.mode {
                    Mode::Observe => known,
                    Mode::Accelerate | Mode::Shield => known.follow(in_between(kernel, wanted), moment),
                }
            }
            Publish::Only(held) => {
                KeyRing { generation: ring.generation, ..KeyRing::EMPTY }.follow(held, moment)
            }
        };
        if let Publish::Only(_) = publish
            && self.holds_only(&next)?
        {
            return Ok(());
        }
        self.replace(interface, &ring, next)?;
        if let Publish::Only(_) = publish {
            // Over the other ring, too, which nobody reads and which has the leaked keys still.
            self.publish(&KeyRing { generation: next.generation + 1, ..next })?;
        }
        Ok(())
    }

    /// Whether no other keys than those of `ring` are anywhere in the map.
    fn holds_only(&self, ring: &KeyRing) -> Result<bool> {
        let Shared(store) = self.tables.keys.get(&0, 0).context("cannot read the key map")?;
        Ok(store.rings.iter().all(|other| has_same_keys(other, ring)))
    }

    /// Lets go of the retired keys for which `keep`, given their slot, says no.
    pub(super) fn prune(&mut self, interface: &str, keep: impl FnMut(usize) -> bool) -> Result<()> {
        let ring = self.key_ring()?;
        let next = ring.without_retired(keep);
        self.replace(interface, &ring, next)
    }

    /// Makes `earlier` keys, newest first, retired ones, each as old as it is, as far as there is room.
    pub(crate) fn remember(&mut self, interface: &str, earlier: &[Made]) -> Result<()> {
        let ring = self.key_ring()?;
        let hits = self.counters()?.hits;
        let next = earlier.iter().fold(ring, |ring, Made { key, made }| {
            ring.with_oldest(*key, Moment { seconds: *made, hits: &hits })
        });
        self.replace(interface, &ring, next)
    }

    fn replace(&mut self, interface: &str, ring: &KeyRing, next: KeyRing) -> Result<()> {
        if !has_same_keys(&next, ring) {
            self.publish(&next)?;
            info!("{interface}: keys in the map: {}", describe(&next));
        }
        Ok(())
    }
}
