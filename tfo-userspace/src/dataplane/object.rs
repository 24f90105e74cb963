//! The loaded programs and their maps, and the publication of keys in them.

use std::{borrow::Cow, collections::BTreeSet, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, MapData, RingBuf, lpm_trie::LpmTrie},
    programs::{Program, SchedClassifier, SockOps, Xdp},
};
use nix::time::{ClockId, clock_gettime};
use tfo_common::{
    answer::Host,
    client::Client,
    counters::Counters,
    info::Info,
    keyring::{Held, Key, KeyRing, KeyStore, Moment, NEWEST, SLOTS, STORES, SYSCTL, TRACKS},
    listener::Places,
    names,
    observed::{Event, Prefix, Watch},
    table::{SEED_WORDS, Seed},
    verdict::Mode,
};
use tracing::{debug, info};

use super::{
    ingress::Ingress,
    options::LoadOptions,
    orders::OrderMaps,
    special::SpecialMap,
    tables::{Entries, ServiceCounters, Shared, Tables},
    unpinned::Unpinned,
};
use crate::util::time::unix_seconds;
use crate::{
    dataplane::{Publish, pins::Generation},
    kernel::{
        clock::jiffies_per_second,
        listeners::{places, shows_clients, shows_multi_buffers},
        locked_memory,
    },
    model::{
        guards::{Hidden, Orders},
        keys::{DatedKey, PortKeys, describe},
    },
    util::secrecy::leaving_no_trace,
};

/// Maps that a program shares with an existing generation. Maps that it lacks are created and pinned there.
#[derive(Clone, Copy, Debug)]
pub struct SharedMaps<'a> {
    /// Generation in which they are pinned.
    pub generation: &'a Generation,
    /// Names of the maps.
    pub maps: &'a [&'static str],
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tfo-ebpf"));
/// The same code, with programs for tcx.
static TCX_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcx"));

/// Section of the XDP programs, which tells the kernel that they may get frames in several buffers.
const MULTI_BUFFER_SECTION: &[u8] = b"xdp.frags\0";
/// Length of the name of a section whose programs get whole frames only, as before Linux 5.18. It begins like the other.
const SECTION: usize = b"xdp".len();

/// Returns the object, with XDP programs that get frames in several buffers if `multi_buffer`. aya takes that from the name of
/// their section, and has no other way to say so.
fn object(multi_buffer: bool) -> Cow<'static, [u8]> {
    let mut object = Cow::Borrowed(OBJECT);
    if !multi_buffer {
        let len = MULTI_BUFFER_SECTION.len();
        let found: Vec<_> =
            OBJECT.windows(len).enumerate().filter(|(_, name)| *name == MULTI_BUFFER_SECTION).collect();
        found.into_iter().for_each(|(at, _)| object.to_mut()[at + SECTION..at + len].fill(0));
    }
    object
}

/// Maps with an entry for each service.
const OF_SERVICES: [&str; 7] = [
    names::COUNTERS,
    names::SAMPLERS,
    names::SERVICES,
    names::OUTCOMES,
    names::CARRIED,
    names::POLICIES,
    names::UNKNOWN,
];

/// Values of the globals of the programs.
struct Globals {
    places: Option<Places>,
    /// Values of one byte, with their names. Booleans are 0 and 1.
    bytes: [(&'static str, u8); 7],
    multi_buffer: u8,
    words: [(&'static str, u32); 5],
    netns: u64,
    seed: [u64; SEED_WORDS],
}

impl Globals {
    fn of(options: &LoadOptions) -> Result<Self> {
        let Seed(seed) = Seed::new(options.seed);
        let [last_source_row, last_replay_row, last_request_row] = options.rows().map(|rows| rows - 1);
        Ok(Self {
            places: if options.answers { Some(places()?) } else { places().ok() },
            bytes: [
                (names::LINK_LAYER, options.link as u8),
                (names::MODE, options.mode as u8),
                (names::COMPARES_DATA, options.compares_data.into()),
                (names::ANSWERS, options.answers.into()),
                (names::HAS_PORTABLE, options.portable.into()),
                (names::HAS_SERVICES, (options.services > 0).into()),
                (names::LOG_LEVEL, options.log_level),
            ],
            multi_buffer: shows_multi_buffers().into(),
            words: [
                (names::HZ, jiffies_per_second()? as u32),
                (names::SEARCHES_PER_JIFFY, options.searches),
                (names::LAST_SOURCE_ROW, last_source_row),
                (names::LAST_REPLAY_ROW, last_replay_row),
                (names::LAST_REQUEST_ROW, last_request_row),
            ],
            netns: options.netns_cookie,
            seed,
        })
    }

    fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        if let Some(places) = &self.places {
            loader.override_global(names::PLACES, places, true);
        }
        for (name, byte) in &self.bytes {
            loader.override_global(name, byte, true);
        }
        for (name, word) in &self.words {
            loader.override_global(name, word, true);
        }
        loader
            .override_global(names::MULTI_BUFFER, &self.multi_buffer, true)
            .override_global(names::NETNS, &self.netns, true)
            .override_global(names::SEED, &self.seed, true);
    }
}

/// The loaded programs and their maps.
pub struct Object {
    pub(super) ebpf: Ebpf,
    unpinned: Option<Unpinned>,
    tcx: bool,
    mode: Mode,
    seed: u64,
    /// Name of the program that follows connections.
    outcomes: &'static str,
    pub(super) tables: Tables,
    pub(super) ports: Array<MapData, u32>,
    pub(super) orders: OrderMaps,
    host: Array<MapData, Shared<Host>>,
    special: SpecialMap,
    pub(super) addresses: LpmTrie<MapData, [u32; 5], u32>,
    events: RingBuf<MapData>,
    pub(super) info: Array<MapData, Shared<Info>>,
}

impl Object {
    /// Loads the program for packets that arrive. It uses the pinned maps in `shared`, and new ones for the rest.
    pub fn load(options: &LoadOptions, shared: Option<SharedMaps<'_>>) -> Result<Self> {
        let mut object = Self::prepare(options, shared)?;
        object.verify()?;
        Ok(object)
    }

    /// Loads the prepared program into the kernel, as the second half of [`load`](Self::load).
    pub(super) fn verify(&mut self) -> Result<()> {
        let name = if self.tcx { "program at tcx" } else { "XDP program" };
        self.ingress()?.load().with_context(|| format!("the kernel refused the {name}"))
    }

    /// Creates the maps, as the first half of [`load`](Self::load). The verifier has not seen the program yet.
    pub fn prepare(options: &LoadOptions, shared: Option<SharedMaps<'_>>) -> Result<Self> {
        locked_memory::lift_limit();
        let globals = Globals::of(options)?;
        let follows_clients = shows_clients().unwrap_or_else(|error| {
            debug!("connections from here are not followed: {error:#}");
            false
        });
        let outcomes = if follows_clients { names::BOTH_ENDS_PROGRAM } else { names::OUTCOMES_PROGRAM };
        let mut loader = EbpfLoader::new();
        globals.set(&mut loader);
        loader.verifier_log_level(VerifierLogLevel::STATS);
        let [source_rows, replay_rows, request_rows] = options.rows();
        for name in OF_SERVICES {
            loader.map_max_entries(name, options.capacity());
        }
        for name in [names::SOURCES, names::FORGERS] {
            loader.map_max_entries(name, source_rows);
        }
        loader.map_max_entries(names::REPLAYS, replay_rows);
        loader.map_max_entries(names::REQUESTS, request_rows);
        if let Some(SharedMaps { generation, maps }) = shared {
            for name in maps {
                loader.map_pin_path(name, generation.map(name));
            }
        }
        let mut ebpf = loader
            .load(&if options.tcx { TCX_OBJECT.into() } else { object(globals.multi_buffer != 0) })
            .context("cannot create the maps of the XDP program")?;
        let unpinned = Some(Unpinned::of(&ebpf)?);
        let mut take = |name| ebpf.take_map(name).with_context(|| format!("the program has no map {name}"));
        Ok(Self {
            unpinned,
            ports: take(names::PORTS)?.try_into()?,
            addresses: take(names::ADDRESSES)?.try_into()?,
            events: take(names::EVENTS)?.try_into()?,
            info: take(names::INFO)?.try_into()?,
            orders: OrderMaps::new(&mut take)?,
            host: take(names::HOST)?.try_into()?,
            special: SpecialMap::new(take(names::LISTENING)?.try_into()?),
            tables: Tables::new(take)?,
            tcx: options.tcx,
            mode: options.mode,
            seed: options.seed,
            outcomes,
            ebpf,
        })
    }

    /// Returns the XDP program for the mode. Fails if the programs are for tcx.
    pub fn program(&mut self) -> Result<&mut Xdp> {
        Ok(self.arriving()?.try_into()?)
    }

    /// Returns the program at tcx for the mode. Fails if the programs are for XDP.
    pub fn tcx_program(&mut self) -> Result<&mut SchedClassifier> {
        Ok(self.arriving()?.try_into()?)
    }

    /// Returns the program for the mode, for packets that arrive.
    pub(super) fn ingress(&mut self) -> Result<Ingress<'_>> {
        let is_tcx = self.tcx;
        let program = self.arriving()?;
        Ok(if is_tcx { Ingress::Tcx(program.try_into()?) } else { Ingress::Xdp(program.try_into()?) })
    }

    /// Pins that program at `path`.
    pub(super) fn pin_ingress(&mut self, path: &Path) -> Result<()> {
        let pinned = self.ingress()?.pin(path);
        pinned.with_context(|| format!("cannot pin the program at {}", path.display()))
    }

    fn arriving(&mut self) -> Result<&mut Program> {
        let name = match self.mode {
            Mode::Observe | Mode::Accelerate => names::PROGRAM,
            Mode::Shield => names::SHIELD_PROGRAM,
        };
        self.ebpf.program_mut(name).with_context(|| format!("there is no program {name}"))
    }

    /// Returns the program that follows connections.
    pub(super) fn outcomes_program(&mut self) -> Result<&mut SockOps> {
        let program = self.ebpf.program_mut(self.outcomes);
        let program = program.with_context(|| format!("there is no program {}", self.outcomes))?;
        Ok(program.try_into()?)
    }

    /// Returns whether that program is the one that also follows connections from here.
    pub(super) fn follows_clients(&self) -> bool {
        self.outcomes == names::BOTH_ENDS_PROGRAM
    }

    /// Gives up connections from here. Returns whether they were to be followed.
    pub(super) fn forgo_clients(&mut self) -> bool {
        std::mem::replace(&mut self.outcomes, names::OUTCOMES_PROGRAM) == names::BOTH_ENDS_PROGRAM
    }

    /// Returns the program that hands out portable cookies.
    pub fn egress_program(&mut self) -> Result<&mut SchedClassifier> {
        let program = self.ebpf.program_mut(names::EGRESS_PROGRAM);
        let program = program.with_context(|| format!("there is no program {}", names::EGRESS_PROGRAM))?;
        Ok(program.try_into()?)
    }

    /// Pins the maps in `generation`. Later calls do nothing.
    pub(super) fn pin(&mut self, generation: &Generation) -> Result<()> {
        self.unpinned.take().map_or(Ok(()), |unpinned| unpinned.pin(generation))
    }

    /// Returns the hash seed of all [`Tag`](tfo_common::table::Tag)s.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Replaces the orders in the maps by `orders`.
    pub fn set_orders(&mut self, orders: &Orders) -> Result<()> {
        let tables = &self.tables;
        self.orders.set(tables.capacity(), |index| tables.service(index), orders)?;
        let domains = match orders.special.known.is_empty() {
            true => [0; STORES],
            false => leaving_no_trace(|| self.domains())?,
        };
        let domain = |port| domains.iter().position(|known| *known == port).map_or(SYSCTL, |at| at as u32);
        self.special.set(&orders.special, domain)
    }

    /// Returns the counts of SYNs of each service that `is_wanted`, without those of earlier maps.
    pub(super) fn counted(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Counters)>> {
        self.tables.counted(is_wanted)
    }

    /// Returns the orders of `tfo hide` in the maps.
    pub(super) fn hidden(&self) -> Result<Vec<Hidden>> {
        self.orders.hidden(self.tables.capacity(), |index| self.tables.service(index))
    }

    /// Returns the services whose SYNs are answered.
    pub(super) fn answering(&self) -> Result<BTreeSet<String>> {
        self.orders.answering(self.tables.capacity(), |index| self.tables.service(index))
    }

    /// Returns the counters, summed over all services and CPUs.
    pub fn counters(&self) -> Result<Counters> {
        self.tables.counters()
    }

    /// Returns the counters of each service. The first entry is for ports that no service names.
    pub fn by_service(&self) -> Result<Vec<ServiceCounters>> {
        self.tables.by_service()
    }

    /// Returns the counters of events, prefixes and forgotten sources.
    pub fn watch(&self) -> Result<Watch> {
        self.tables.watch()
    }

    /// Returns the counts of connections from here.
    pub(super) fn client(&self) -> Result<Client> {
        self.tables.client()
    }

    /// Returns the numbers of entries in the maps.
    pub fn entries(&self) -> Entries {
        self.tables.entries()
    }

    /// Returns the name of the service at `index`, or "unknown".
    pub(super) fn service_name(&self, index: u32) -> String {
        self.tables.service(index).ok().flatten().unwrap_or_else(|| "unknown".to_owned())
    }

    /// Returns the last 64 bits of some recent IPv6 sources of `prefix`.
    pub(super) fn recent_sources(&self, prefix: Prefix) -> Vec<u64> {
        self.tables.recent_sources(prefix)
    }

    /// Returns the key ring in force.
    pub fn key_ring(&self) -> Result<KeyRing> {
        self.tables.key_ring()
    }

    /// Takes the next event from the ring buffer, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        let item = self.events.next()?;
        // The program writes whole events only.
        if item.len() < size_of::<Event>() {
            return None;
        }
        // SAFETY: the item has at least the size of an event, any bytes are a valid one (integers without padding, see
        // `Shared`), and the read needs no alignment.
        Some(unsafe { item.as_ptr().cast::<Event>().read_unaligned() })
    }

    /// Puts `ring` in force in one step, for every packet from now on.
    ///
    /// No program ever sees half a ring. The new ring is written over the spare one, then one aligned word is flipped.
    /// The ring that was in force stays unchanged until every program that could still read it has ended. (Each write
    /// covers the whole entry, but changes only bytes of the spare ring and the low byte of that word.) The keys are
    /// not confirmed, which [`confirm`](Self::confirm) does.
    pub fn publish(&mut self, ring: &KeyRing) -> Result<()> {
        let mut store = self.store(SYSCTL)?;
        let confirmed_ns = store.confirmed_ns;
        self.put_in_force(SYSCTL, &mut store, ring, confirmed_ns)
    }

    /// Puts `ring` in force at `index` of the key map, whose entry is `store`, as confirmed at `confirmed_ns`. The rest of `store`
    /// is written, too.
    fn put_in_force(
        &mut self,
        index: u32,
        store: &mut KeyStore,
        ring: &KeyRing,
        confirmed_ns: u64,
    ) -> Result<()> {
        let spare = KeyStore::index(store.active + 1);
        store.rings[spare] = *ring;
        self.set_store(index, store)?;
        wait_for_running_programs();
        (store.active, store.confirmed_ns) = (spare as u64, confirmed_ns);
        self.set_store(index, store)?;
        wait_for_running_programs();
        Ok(())
    }

    fn store(&self, index: u32) -> Result<KeyStore> {
        let Shared(store) = self.tables.keys.get(&index, 0).context("cannot read the key map")?;
        Ok(store)
    }

    /// Writes an entry of the key map. Keys that do not change must be in it, since the kernel takes whole entries only.
    pub(super) fn set_store(&mut self, index: u32, store: &KeyStore) -> Result<()> {
        self.tables.keys.set(index, Shared(*store), 0).context("cannot write the key map")
    }
}

/// Keys of listeners that have their own, each port in a key domain: an entry of the key map.
///
/// A domain stays when its listener goes, so that a server which starts again with another key has its clients' cookies
/// recognised. It makes room for another port if all are taken.
impl Object {
    /// Returns the port of each key domain, by its index in the key map; 0 for none.
    fn domains(&self) -> Result<[u16; STORES]> {
        let mut ports = [0; STORES];
        if self.store(SYSCTL)?.domains != 0 {
            for (index, port) in (SYSCTL + 1..).zip(&mut ports[1..]) {
                *port = self.store(index)?.port as u16;
            }
        }
        Ok(ports)
    }

    /// Writes the number of domains, so that the program looks at them.
    pub(super) fn count_domains(&mut self, number: usize) -> Result<()> {
        let mut store = self.store(SYSCTL)?;
        if store.domains != number as u64 {
            store.domains = number as u64;
            self.set_store(SYSCTL, &store)?;
        }
        Ok(())
    }

    /// Applies the keys in `own`, which listeners have now, to their domains, and confirms them. Earlier keys of a domain are
    /// retired. Where listeners on a port differ, the keys of all are known, and none is confirmed.
    pub fn hold_own_keys(&mut self, interface: &str, own: &[PortKeys]) -> Result<()> {
        if own.is_empty() {
            return Ok(());
        }
        let mut ports = self.domains()?;
        for keys in own {
            let is_unused = |port: &u16| !own.iter().any(|keys| keys.port == *port);
            let place = |is: &dyn Fn(&u16) -> bool| (1..STORES).find(|index| is(&ports[*index]));
            let place = place(&|port| *port == keys.port).or(place(&|port| *port == 0)).or(place(&is_unused));
            let index = place.context("there is no room for the keys of another port")?;
            ports[index] = keys.port;
            self.hold_domain(interface, index as u32, keys)?;
        }
        self.count_domains(ports.iter().filter(|port| **port != 0).count())
    }

    fn hold_domain(&mut self, interface: &str, index: u32, keys: &PortKeys) -> Result<()> {
        let mut store = self.store(index)?;
        let is_new = store.port != u64::from(keys.port);
        let before = if is_new { KeyRing::EMPTY } else { *store.current() };
        let moment = Moment { seconds: unix_seconds(), hits: &[0; TRACKS] };
        let next = before.follow(keys.held, moment);
        let next = keys.others().fold(next, |ring, key| ring.with_newest(key, moment));
        let confirmed_ns = if keys.is_uniform { monotonic_ns()? } else { 0 };
        if !is_new && has_same_keys(&next, &before) {
            store.confirmed_ns = confirmed_ns;
            return self.set_store(index, &store);
        }
        if is_new {
            store = KeyStore::default();
            store.port = keys.port.into();
        }
        // The listeners do not have the keys of the ring that is still in force.
        store.confirmed_ns = 0;
        self.put_in_force(index, &mut store, &next, confirmed_ns)?;
        info!("{interface}: keys of the listeners on port {}: {}", keys.port, describe(&next));
        Ok(())
    }

    /// Drops the retired keys of all domains for which `keep`, given the time since which they are known, returns false.
    pub(super) fn prune_domains(&mut self, keep: impl Fn(u64) -> bool) -> Result<()> {
        for (index, port) in (0..).zip(self.domains()?).filter(|(_, port)| *port != 0) {
            let mut store = self.store(index)?;
            let ring = *store.current();
            if (NEWEST..SLOTS).any(|slot| ring.holds(slot) && !keep(ring.since[slot])) {
                let next = ring.without_retired(|slot| keep(ring.since[slot]));
                // The spare ring has the dropped keys, so it is overwritten, too.
                let confirmed_ns = store.confirmed_ns;
                self.put_in_force(index, &mut store, &next, confirmed_ns)?;
                self.put_in_force(index, &mut store, &next, confirmed_ns)?;
                debug!("keys of the listeners on port {port}: {}", describe(&next));
            }
        }
        Ok(())
    }
}

impl Object {
    /// Writes the facts about the host that decide on answers.
    pub fn set_host(&mut self, host: Host) -> Result<()> {
        self.host.set(0, Shared(host), 0).context("cannot write the facts about the host")
    }

    /// Confirms that the keys in the map are the kernel's, for [`CONFIRMED_FOR_NS`] from now on.
    ///
    /// [`CONFIRMED_FOR_NS`]: tfo_common::keyring::CONFIRMED_FOR_NS
    pub fn confirm(&mut self) -> Result<()> {
        self.confirm_at(monotonic_ns()?)
    }

    /// Confirms the keys as of `confirmed_ns`, in nanoseconds of CLOCK_MONOTONIC. Tests give a time in the far future,
    /// which confirms them for good.
    pub fn confirm_at(&mut self, confirmed_ns: u64) -> Result<()> {
        // The kernel takes whole entries only, so the keys are read and written back unchanged.
        leaving_no_trace(|| {
            let mut store = self.store(SYSCTL)?;
            store.confirmed_ns = confirmed_ns;
            self.set_store(SYSCTL, &store)
        })
    }
}

/// Returns CLOCK_MONOTONIC in nanoseconds, as the program reads it (bpf_ktime_get_ns).
pub(super) fn monotonic_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the clock")?;
    Ok(Duration::from(now).as_nanos() as u64)
}

/// Whether both rings have the same keys in the same roles.
fn has_same_keys(one: &KeyRing, other: &KeyRing) -> bool {
    one.slots == other.slots && one.present == other.present
}

/// Returns the keys for a map that translates cookies, while the kernel changes its keys from `kernel` to `wanted`.
/// Cookies are translated only into a key that the kernel holds before and after, or not at all. The kernel's other key
/// takes the role of the next one. So it stays known and leaves room for one more retired key.
fn in_between(kernel: Held, wanted: Held) -> Held {
    let stays = |key: &Key| [wanted.current, wanted.backup].contains(&Some(*key));
    let kernels = [kernel.current, kernel.backup];
    let common = kernels.into_iter().flatten().find(stays);
    let other = kernels.into_iter().flatten().find(|key| Some(*key) != common);
    Held { current: common, backup: None, next: other }
}

/// Waits until every XDP program that now runs has ended, and orders earlier writes before later ones.
pub(super) fn wait_for_running_programs() {
    // Programs run inside an RCU read-side section, and MEMBARRIER_CMD_GLOBAL is synchronize_rcu. (With one CPU it does
    // nothing, but then no program is running while we run.)
    // SAFETY: this command takes no pointer and changes nothing in the process.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Kernels with nohz_full CPUs lack the command. A program runs for less than a microsecond, unless its virtual
        // CPU is descheduled. Then it could see a torn ring if two more were published meanwhile.
        thread::sleep(Duration::from_millis(10));
    }
}

impl Object {
    /// Applies `publish` to the keys in the map, unless it has these keys already.
    pub(crate) fn hold(&mut self, interface: &str, publish: Publish) -> Result<()> {
        let ring = self.key_ring()?;
        let hits = self.counters()?.hits;
        let moment = Moment { seconds: unix_seconds(), hits: &hits };
        let next = match publish {
            Publish::Held(held) => ring.follow(held, moment),
            // The kernel's keys come second, so they have their roles, and the wanted keys are only known.
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
        if let Publish::Only(_) = publish {
            self.prune_domains(|_| false)?;
            if self.holds_only(&next)? {
                return Ok(());
            }
        }
        self.replace(interface, &ring, next)?;
        if let Publish::Only(_) = publish {
            // The spare ring still has the leaked keys, so it is overwritten, too.
            self.publish(&KeyRing { generation: next.generation + 1, ..next })?;
        }
        Ok(())
    }

    /// Returns whether both rings in the map have exactly the keys of `ring`.
    fn holds_only(&self, ring: &KeyRing) -> Result<bool> {
        let store = self.store(SYSCTL)?;
        Ok(store.rings.iter().all(|other| has_same_keys(other, ring)))
    }

    /// Drops the retired keys for which `keep`, given their slot, returns false.
    pub(super) fn prune(&mut self, interface: &str, keep: impl FnMut(usize) -> bool) -> Result<()> {
        let ring = self.key_ring()?;
        let next = ring.without_retired(keep);
        self.replace(interface, &ring, next)
    }

    /// Adds the `earlier` keys, newest first, as retired keys with the times at which they were made, while there is
    /// room.
    pub(crate) fn remember(&mut self, interface: &str, earlier: &[DatedKey]) -> Result<()> {
        let ring = self.key_ring()?;
        let hits = self.counters()?.hits;
        let next = earlier.iter().fold(ring, |ring, DatedKey { key, made }| {
            ring.with_oldest(*key, Moment { seconds: *made, hits: &hits })
        });
        self.replace(interface, &ring, next)
    }

    /// Adds `keys`, newest first, as the newest retired ones. The oldest make room.
    pub(super) fn know(&mut self, interface: &str, keys: &[DatedKey]) -> Result<()> {
        let ring = self.key_ring()?;
        if keys.iter().all(|known| ring.find(known.key).is_some()) {
            return Ok(());
        }
        let hits = self.counters()?.hits;
        let moment = Moment { seconds: unix_seconds(), hits: &hits };
        let next = keys.iter().rev().fold(ring, |ring, known| ring.with_newest(known.key, moment));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_for_whole_frames_have_the_other_section() {
        let [with, without] = [true, false].map(object);
        let sections = |object: &[u8]| {
            object.windows(MULTI_BUFFER_SECTION.len()).filter(|name| *name == MULTI_BUFFER_SECTION).count()
        };
        assert_eq!(*with, *OBJECT);
        assert!(sections(&with) > 0);
        assert_eq!((sections(&without), without.len()), (0, with.len()));
    }
}
