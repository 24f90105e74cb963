//! Carries the contents of earlier generations' maps over into the next one.
//!
//! Counters stay exact, even if a controller dies in between. The counts of all earlier generations are written into a
//! map of the next one that no program writes ([`names::CARRIED`]), and once more after their programs have stopped
//! counting. They are totals, not differences, so they may be written any number of times.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, HashMap, Map, MapData, lpm_trie::LpmTrie};
use tfo_common::{
    carried::Carried,
    client::{Attempts, Client, Network},
    counters::{Cell, Counters},
    info::{Info, LAYOUT_VERSION, RELEASED_LAYOUT},
    keyring::{Held, KeyRing, KeyStore, Moment, STORES, SYSCTL, TRACKS},
    names,
    observed::{Connection, Outcomes, Pending, Prefix, PrefixTally, Watch},
    policy::Policy,
    service::{OTHER, Service},
    table::SEATS,
};
use tracing::{debug, warn};

use super::{
    Object,
    batch::BatchReader,
    layout_0_1,
    object::{monotonic_ns, wait_for_running_programs},
    orders::OrderMaps,
    tables::{Shared, read_info},
};
use crate::{
    dataplane::pins::{Generation, Locked, MAPS},
    model::guards::Hidden,
};
use crate::{
    model::services::{OTHER_NAME, REMOVED_NAME},
    util::time::unix_seconds,
};

/// Layouts of maps whose contents are taken over, the newest first.
pub const LAYOUTS: &[u32] = match LAYOUT_VERSION {
    RELEASED_LAYOUT => &[LAYOUT_VERSION, layout_0_1::VERSION],
    _ => &[LAYOUT_VERSION, RELEASED_LAYOUT, layout_0_1::VERSION],
};

/// Maps that tfo 0.1 did not have.
const SINCE_0_2: [&str; 7] = [
    names::CARRIED,
    names::HIDE_FILTER,
    names::CHILDREN,
    names::REQUESTS,
    names::CLIENT,
    names::NETWORKS,
    names::CALLERS,
];

/// Maps that generations can share, so that their contents need not be carried over.
const COMMON: [&str; 13] = [
    names::KEYS,
    names::WATCH,
    names::PREFIXES,
    names::PENDING,
    names::CHILDREN,
    names::CLIENT,
    names::NETWORKS,
    names::CALLERS,
    names::EVENTS,
    names::SOURCES,
    names::FORGERS,
    names::REPLAYS,
    names::REQUESTS,
];

/// Entry of a guard's table (`Row` in `tfo_common::policy`), as words: a tag and a value for each seat.
type RowWords = [u64; 2 * SEATS];

/// Reader of the counters of each service and CPU, in one of the layouts.
enum Cells {
    Now(Box<BatchReader<Shared<Cell>>>),
    V0_1(Box<BatchReader<layout_0_1::CellWords>>),
}

impl Cells {
    fn of(map: &Map, is_now: bool) -> Result<Self> {
        Ok(match is_now {
            true => Self::Now(Box::new(BatchReader::of(map, Shared(Cell::EMPTY))?)),
            false => Self::V0_1(Box::new(BatchReader::of(map, layout_0_1::CellWords::EMPTY)?)),
        })
    }

    /// Passes the counts of each service and CPU to `see`.
    fn each(&self, mut see: impl FnMut(u32, &Cell)) -> io::Result<()> {
        match self {
            Self::Now(all) => all.each(|index, cpus| cpus.iter().for_each(|Shared(cell)| see(index, cell))),
            Self::V0_1(all) => {
                all.each(|index, cpus| cpus.iter().for_each(|words| see(index, &words.cell())))
            }
        }
    }
}

/// The maps of an earlier generation.
pub(super) struct EarlierGeneration {
    generation: Generation,
    info: Info,
    names: Vec<Option<String>>,
    cells: Cells,
    outcomes: BatchReader<Shared<Outcomes>>,
    carried: Option<BatchReader<Shared<Carried>>>,
}

impl EarlierGeneration {
    /// Opens the maps of `generation`. The inner error says why they can't be carried over: some are missing, or their
    /// layout is unknown.
    pub(super) fn open(generation: &Generation) -> Result<Result<Self, String>> {
        let is_there = |name: &&str| generation.map(name).exists();
        if !is_there(&names::INFO) {
            return Ok(Err("some of them are missing".to_owned()));
        }
        let open = |name| open(generation, name);
        let Ok(info) = Array::<_, Shared<Info>>::try_from(open(names::INFO)?) else {
            return Ok(Err("they are of another layout".to_owned()));
        };
        let info = read_info(&info)?;
        let has_carried = match info.layout_version {
            layout_0_1::VERSION => false,
            known if LAYOUTS.contains(&known) => true,
            other => {
                let known: Vec<_> = LAYOUTS.iter().rev().map(u32::to_string).collect();
                return Ok(Err(format!(
                    "they are of layout {other}, and this tfo knows {}",
                    known.join(" and ")
                )));
            }
        };
        let needed = MAPS.iter().filter(|name| has_carried || !SINCE_0_2.contains(name));
        if !needed.into_iter().all(is_there) {
            return Ok(Err("some of them are missing".to_owned()));
        }
        let carried = match has_carried {
            true => Some(BatchReader::of(&open(names::CARRIED)?, Shared(Carried::EMPTY))?),
            false => None,
        };
        let mut names = Vec::new();
        let services = BatchReader::of(&open(names::SERVICES)?, Shared(Service::default()))?;
        services
            .each(|index, service| {
                let name = service.first().and_then(|Shared(service)| service.name());
                names.push(if index == OTHER { Some(OTHER_NAME) } else { name }.map(str::to_owned));
            })
            .context("cannot read the map of services")?;
        Ok(Ok(Self {
            generation: generation.clone(),
            info,
            names,
            cells: Cells::of(&open(names::COUNTERS)?, has_carried)?,
            outcomes: BatchReader::of(&open(names::OUTCOMES)?, Shared(Outcomes::default()))?,
            carried,
        }))
    }

    /// Whether a tfo after 0.1 made these maps. Their contents are then laid out as now.
    fn is_since_0_2(&self) -> bool {
        self.carried.is_some()
    }

    /// Returns the pins of the maps.
    pub(super) fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Returns the content of the info map.
    pub(super) fn info(&self) -> &Info {
        &self.info
    }

    /// Returns the name of the service at each index.
    pub(super) fn names(&self) -> &[Option<String>] {
        &self.names
    }

    /// Returns the maps that a program of this layout may go on using, with so many rows for sources, replays and
    /// requests.
    pub(super) fn shareable(&self, [sources, replays, requests]: [u32; 3]) -> Result<Vec<&'static str>> {
        let mut shareable = Vec::new();
        for name in COMMON {
            let entries_now = match name {
                names::KEYS => Some(STORES as u32),
                names::SOURCES | names::FORGERS => Some(sources),
                names::REPLAYS => Some(replays),
                names::REQUESTS => Some(requests),
                _ => None,
            };
            if self.info.layout_version != LAYOUT_VERSION {
                continue;
            }
            let data = MapData::from_pin(self.generation.map(name));
            let data = data.with_context(|| format!("cannot open the map {name}"))?;
            let entries = data.info().context("cannot ask for the size of a map")?.max_entries();
            if entries_now.is_none_or(|now| now == entries) {
                shareable.push(name);
            }
        }
        Ok(shareable)
    }

    /// Adds the counts of this generation to `sums`, by the name of the service. With `with_carried`, that includes the
    /// counts that were carried over from generations before it.
    fn add_counts(&self, sums: &mut BTreeMap<String, Carried>, with_carried: bool) -> Result<()> {
        let name = |index: u32| self.names.get(index as usize).cloned().flatten();
        let mut sum = |index: u32, add: &mut dyn FnMut(&mut Carried)| {
            // An index without a name was never used.
            if let Some(name) = name(index) {
                add(sums.entry(name).or_insert(Carried::EMPTY));
            }
        };
        self.cells
            .each(|index, cell| sum(index, &mut |sum| sum.cell.add(cell)))
            .context("cannot read the counters")?;
        self.outcomes
            .each(|index, outcomes| {
                sum(index, &mut |sum| {
                    outcomes.iter().for_each(|Shared(outcomes)| sum.outcomes.add(outcomes))
                });
            })
            .context("cannot read the outcomes")?;
        if let Some(carried) = self.carried.as_ref().filter(|_| with_carried) {
            carried
                .each(|index, carried| {
                    sum(index, &mut |sum| carried.iter().for_each(|Shared(carried)| sum.add(carried)));
                })
                .context("cannot read the counts of earlier maps")?;
        }
        Ok(())
    }

    /// Returns the counters of events, prefixes and forgotten sources.
    fn watch(&self) -> Result<Watch> {
        let map = open(&self.generation, names::WATCH)?;
        let mut sum = Watch::EMPTY;
        if self.is_since_0_2() {
            let all = BatchReader::of(&map, Shared(Watch::default()))?;
            all.each(|_, cpus| cpus.iter().for_each(|Shared(watch)| sum.add(watch)))
                .context("cannot read the counters of events")?;
        } else {
            let all = BatchReader::of(&map, layout_0_1::WatchWords::default())?;
            all.each(|_, cpus| cpus.iter().for_each(|words| layout_0_1::add_watch(&mut sum, words)))
                .context("cannot read the counters of events")?;
        }
        Ok(sum)
    }

    /// Returns the counts of connections from here, without those of generations before it.
    fn client(&self) -> Result<Client> {
        if !self.is_since_0_2() {
            return Ok(Client::EMPTY);
        }
        let map = Array::<_, Shared<Client>>::try_from(open(&self.generation, names::CLIENT)?)?;
        let Shared(client) = map.get(&0, 0).context("cannot read the counts of connections from here")?;
        Ok(client)
    }

    /// Returns the key ring in force in these maps.
    pub(super) fn key_ring(&self) -> Result<KeyRing> {
        let keys = Array::<_, Shared<KeyStore>>::try_from(open(&self.generation, names::KEYS)?)?;
        let Shared(store) = keys.get(&0, 0).context("cannot read the key map")?;
        Ok(*store.current())
    }

    /// Writes the key domains in these maps into those of `object`. Maps of other versions have fewer or none.
    pub(super) fn carry_domains(&self, object: &mut Object) -> Result<()> {
        let keys = Array::<_, Shared<KeyStore>>::try_from(open(&self.generation, names::KEYS)?)?;
        let mut number = 0;
        for index in SYSCTL + 1..keys.len().min(STORES as u32) {
            let Shared(store) = keys.get(&index, 0).context("cannot read the key map")?;
            if store.port != 0 {
                object.set_store(index, &store)?;
                number += 1;
            }
        }
        object.count_domains(number)
    }

    /// Returns the services whose SYNs are answered.
    pub(super) fn answering(&self) -> Result<BTreeSet<String>> {
        if !self.is_since_0_2() {
            return Ok(BTreeSet::new());
        }
        let orders = OrderMaps::new(|name| open(&self.generation, name))?;
        orders.answering(self.names.len() as u32, |index| Ok(self.names[index as usize].clone()))
    }

    /// Returns the orders of `tfo hide` in these maps.
    pub(super) fn hidden(&self) -> Result<Vec<Hidden>> {
        if self.is_since_0_2() {
            let orders = OrderMaps::new(|name| open(&self.generation, name))?;
            return orders.hidden(self.names.len() as u32, |index| Ok(self.names[index as usize].clone()));
        }
        let mut hidden = Vec::new();
        let policies = BatchReader::of(&open(&self.generation, names::POLICIES)?, Shared(Policy::default()))?;
        policies
            .each(|index, policy| {
                let has = |flag| policy.first().is_some_and(|Shared(policy)| policy.has(flag));
                if index == OTHER && has(Policy::HIDDEN_ALL) {
                    hidden.push(Hidden::All);
                }
                if has(Policy::HIDDEN_SERVICE) {
                    hidden.extend(self.names[index as usize].clone().map(Hidden::Service));
                }
            })
            .context("cannot read the policies")?;
        // tfo 0.1 stored addresses without their family, IPv4 as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
        let sources = LpmTrie::<_, [u32; 4], u32>::try_from(open(&self.generation, names::HIDDEN)?)?;
        for key in sources.keys() {
            let key = key.context("cannot read the map of hidden sources")?;
            hidden.extend(super::plan::prefix_0_1(key.prefix_len(), key.data()).map(Hidden::Source));
        }
        Ok(hidden)
    }
}

impl EarlierGeneration {
    /// Adds the counts of `next`, which was in force for a while, to these maps, which come into force again.
    pub(super) fn take_back(&self, next: &Object) -> Result<()> {
        if self.carried.is_none() {
            bail!(
                "{}: what was counted meanwhile is lost: tfo 0.1 has no place for it",
                self.generation.dir().display()
            );
        }
        let mut map = Array::<_, Shared<Carried>>::try_from(open(&self.generation, names::CARRIED)?)?;
        let mut services = Array::<_, Shared<Service>>::try_from(open(&self.generation, names::SERVICES)?)?;
        let removed = (self.names.len() - 1) as u32;
        for place in OTHER..next.tables.capacity() {
            let counted = next.tables.counted_here(place)?;
            let name = next.tables.service(place)?;
            let index = self.names.iter().position(|index| name.is_some() && *index == name);
            // The counts of a service that is not in these maps go to the entry for removed services.
            let index = index.map_or(removed, |index| index as u32);
            let Shared(mut carried) = map.get(&index, 0).context("cannot read the counts of earlier maps")?;
            carried.add(&counted);
            map.set(index, Shared(carried), 0).context("cannot write the counts of earlier maps")?;
            if index == removed && counted != Carried::EMPTY {
                // Readers skip an entry without a name.
                let service = Service::new(REMOVED_NAME).unwrap_or_default();
                services.set(index, Shared(service), 0).context("cannot write the map of services")?;
            }
        }
        Ok(())
    }
}

/// Makes `held` the only keys in all maps under `pins`, in force or not, since the keys before have leaked.
pub fn forget_keys(pins: &Locked, held: Held) -> Result<()> {
    for generation in pins.generations()?.iter().filter(|generation| generation.map(names::KEYS).exists()) {
        let mut keys = Array::<_, Shared<KeyStore>>::try_from(open(generation, names::KEYS)?)?;
        // The retired keys of listeners may have leaked, too. Whoever follows the listeners next begins their domains anew.
        for index in SYSCTL + 1..keys.len() {
            keys.set(index, Shared(KeyStore::default()), 0).context("cannot write the key map")?;
        }
        let Shared(mut store) = keys.get(&0, 0).context("cannot read the key map")?;
        store.domains = 0;
        let moment = Moment { seconds: unix_seconds(), hits: &[0; TRACKS] };
        let ring = KeyRing { generation: store.current().generation, ..KeyRing::EMPTY }.follow(held, moment);
        // The steps are those of `Object::publish`, for one ring after the other.
        for _ in 0..store.rings.len() {
            let spare = KeyStore::index(store.active + 1);
            store.rings[spare] = ring;
            keys.set(0, Shared(store), 0).context("cannot write the key map")?;
            wait_for_running_programs();
            store.active = spare as u64;
            keys.set(0, Shared(store), 0).context("cannot write the key map")?;
            wait_for_running_programs();
        }
    }
    Ok(())
}

/// Confirms the keys in all maps under `pins` that have the kernel's keys `held`, on behalf of the controller that is about to
/// replace their programs.
pub fn confirm_keys(pins: &Locked, held: Held) -> Result<()> {
    for generation in pins.generations()?.iter().filter(|generation| generation.map(names::KEYS).exists()) {
        let mut keys = Array::<_, Shared<KeyStore>>::try_from(open(generation, names::KEYS)?)?;
        let Shared(mut store) = keys.get(&0, 0).context("cannot read the key map")?;
        let known = store.current().held();
        if (known.current, known.backup) == (held.current, held.backup) {
            store.confirmed_ns = monotonic_ns()?;
            keys.set(0, Shared(store), 0).context("cannot write the key map")?;
        }
    }
    Ok(())
}

fn open(generation: &Generation, name: &str) -> Result<Map> {
    let path = generation.map(name);
    let data = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Map::from_map_data(data)?)
}

/// Earlier generations of an interface.
#[derive(Default)]
pub(super) struct EarlierGenerations {
    /// The generation that has the link of the XDP program.
    pub(super) linked: Option<Generation>,
    /// The maps of that generation, if they can be carried over.
    pub(super) in_force: Option<EarlierGeneration>,
    /// Generations that were made after it and have no link, since their controller died. Their programs may be
    /// attached all the same, and count there.
    unfinished: Vec<EarlierGeneration>,
    /// The pinned link of the program that follows connections, wherever a controller that died has left it: it is moved
    /// before the link of the XDP program. There must not be a second one, since both would count.
    pub(super) outcomes_link: Option<PathBuf>,
    /// The pinned link of the program that hands out portable cookies, likewise.
    pub(super) egress_link: Option<PathBuf>,
    /// Pin of that program where a filter attaches it, likewise.
    pub(super) egress_filter: Option<PathBuf>,
}

impl EarlierGenerations {
    /// Opens the earlier generations among `all`, the oldest first. Maps that can't be carried over are logged.
    pub(super) fn open(interface: &str, all: &[Generation]) -> Result<Self> {
        let newest = |path: fn(&Generation) -> PathBuf| all.iter().rev().map(path).find(|pin| pin.exists());
        let outcomes_link = newest(Generation::outcomes_link);
        let egress_link = newest(Generation::egress_link);
        let egress_filter = newest(Generation::egress_filter);
        let Some(at) = all.iter().rposition(|generation| generation.has_link().unwrap_or(false)) else {
            return Ok(Self { outcomes_link, egress_link, egress_filter, ..Self::default() });
        };
        let in_force = match EarlierGeneration::open(&all[at])? {
            Ok(earlier) => Some(earlier),
            Err(why) => {
                warn!(
                    "{interface}: counting starts anew, and sources are forgotten: the maps in {} can't be carried over: {why}",
                    all[at].dir().display()
                );
                None
            }
        };
        let mut unfinished = Vec::new();
        for generation in &all[at + 1..] {
            match EarlierGeneration::open(generation)? {
                Ok(earlier) => unfinished.push(earlier),
                // An incomplete generation never counted anything.
                Err(why) => debug!("{interface}: {} is incomplete: {why}", generation.dir().display()),
            }
        }
        let linked = Some(all[at].clone());
        Ok(Self { linked, in_force, unfinished, outcomes_link, egress_link, egress_filter })
    }

    /// Returns the counts of all these generations until now, by the name of the service.
    fn counts(&self) -> Result<BTreeMap<String, Carried>> {
        let mut sums = BTreeMap::new();
        if let Some(in_force) = &self.in_force {
            in_force.add_counts(&mut sums, true)?;
        }
        // Counts that were carried over into these are left out: the generation in force has newer ones.
        self.unfinished.iter().try_for_each(|earlier| earlier.add_counts(&mut sums, false))?;
        Ok(sums)
    }

    /// Returns the generations whose maps can be carried over, the newest first.
    fn newest_first(&self) -> impl Iterator<Item = &EarlierGeneration> {
        self.unfinished.iter().rev().chain(&self.in_force)
    }
}

impl Object {
    /// Writes the counts of earlier generations into these maps.
    pub(super) fn carry_counts(&mut self, past: &EarlierGenerations, shared: &[&str]) -> Result<()> {
        let last = self.tables.capacity() - 1;
        let mut counts = past.counts()?;
        let mut removed = counts.remove(REMOVED_NAME).unwrap_or(Carried::EMPTY);
        let mut places = Vec::new();
        for index in OTHER..last {
            let name = self.tables.service(index)?;
            places.push((index, name.and_then(|name| counts.remove(&name)).unwrap_or(Carried::EMPTY)));
        }
        counts.values().for_each(|gone| removed.add(gone));
        if removed.cell.counters() != Counters::EMPTY || removed.outcomes != Outcomes::default() {
            self.name(last, Service::new(REMOVED_NAME).unwrap_or_default())?;
        }
        places.push((last, removed));
        if !shared.contains(&names::WATCH) {
            for earlier in past.newest_first() {
                places[OTHER as usize].1.watch.add(&earlier.watch()?);
            }
        }
        if !shared.contains(&names::CLIENT) {
            for earlier in past.newest_first() {
                places[OTHER as usize].1.client.add(&earlier.client()?);
            }
        }
        for (index, carried) in places {
            self.tables.carry(index, &carried)?;
        }
        Ok(())
    }

    /// Copies remembered sources, connections and prefixes of earlier generations into these maps, except the `shared`
    /// ones.
    pub(super) fn carry_memory(&mut self, past: &EarlierGenerations, shared: &[&str]) -> Result<()> {
        for earlier in past.newest_first() {
            for name in [names::SOURCES, names::FORGERS, names::REPLAYS, names::REQUESTS] {
                let is_there = earlier.is_since_0_2() || !SINCE_0_2.contains(&name);
                if is_there && !shared.contains(&name) {
                    self.carry_rows(earlier, name)?;
                }
            }
            if !shared.contains(&names::PENDING) {
                let from: HashMap<_, Shared<Connection>, Shared<Pending>> =
                    open(&earlier.generation, names::PENDING)?.try_into()?;
                for (connection, pending) in from.iter().flatten() {
                    self.tables
                        .pending
                        .insert(connection, pending, 0)
                        .context("cannot write the map of pending SYNs")?;
                }
            }
            if !shared.contains(&names::PREFIXES) {
                let from: HashMap<_, Shared<Prefix>, Shared<PrefixTally>> =
                    open(&earlier.generation, names::PREFIXES)?.try_into()?;
                for (prefix, tally) in from.iter().flatten() {
                    self.tables.prefixes.insert(prefix, tally, 0).context("cannot write the prefixes")?;
                }
            }
            if !shared.contains(&names::NETWORKS) && earlier.is_since_0_2() {
                let from: HashMap<_, Shared<Network>, Shared<Attempts>> =
                    open(&earlier.generation, names::NETWORKS)?.try_into()?;
                for (network, attempts) in from.iter().flatten() {
                    let written = self.tables.networks.insert(network, attempts, 0);
                    written.context("cannot write the destinations of connections from here")?;
                }
            }
        }
        Ok(())
    }

    /// Copies a guard's table of any size. The upper half of a tag determines the entry.
    fn carry_rows(&mut self, earlier: &EarlierGeneration, name: &'static str) -> Result<()> {
        let context = || format!("cannot carry over the map {name}");
        let map = self.ebpf.map_mut(name).with_context(context)?;
        let mut rows = Vec::new();
        BatchReader::of(map, RowWords::default())?
            .each(|_, row| rows.extend(row.iter().map(|row| (*row, false))))
            .with_context(context)?;
        let last = rows.len() as u64 - 1;
        BatchReader::of(&open(&earlier.generation, name)?, RowWords::default())?
            .each(|_, row| {
                for seat in row.iter().flatten().copied().collect::<Vec<_>>().chunks_exact(2) {
                    if seat[0] != 0 {
                        let (row, changed) = &mut rows[((seat[0] >> 32) & last) as usize];
                        *changed |= take_seat(row, [seat[0], seat[1]]);
                    }
                }
            })
            .with_context(context)?;
        let mut table = Array::<_, RowWords>::try_from(map)?;
        for (index, (row, changed)) in (0..).zip(rows) {
            if changed {
                table.set(index, row, 0).with_context(context)?;
            }
        }
        Ok(())
    }
}

/// Puts a tag and its value into `row`, unless the values there are newer, as `Row::seat` does. Returns whether `row`
/// changed.
fn take_seat(row: &mut RowWords, [tag, value]: [u64; 2]) -> bool {
    let (seats, _) = row.as_chunks_mut::<2>();
    if let Some(seat) = seats.iter_mut().find(|seat| seat[0] == tag) {
        let is_newer = value > seat[1];
        seat[1] = seat[1].max(value);
        return is_newer;
    }
    match seats.iter_mut().min_by_key(|seat| seat[1]) {
        Some(oldest) if oldest[1] < value => {
            *oldest = [tag, value];
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_row_stay() {
        let mut row = RowWords::default();
        assert!(take_seat(&mut row, [1, 10]) && take_seat(&mut row, [2, 20]));
        assert_eq!(row, [1, 10, 2, 20]);
        assert!(!take_seat(&mut row, [2, 5]) && take_seat(&mut row, [2, 21]));
        assert!(!take_seat(&mut row, [3, 9]), "older than both seats");
        assert!(take_seat(&mut row, [3, 11]));
        assert_eq!(row, [3, 11, 2, 21]);
    }
}
