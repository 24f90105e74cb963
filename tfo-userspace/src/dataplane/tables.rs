//! Maps that user space reads. The controller has them loaded, and the commands open their pins.

use std::borrow::Borrow;

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
};
use tfo_common::{
    answer::Host,
    carried::Carried,
    client::{Attempts, Client, Network},
    counters::{Cell, Counters},
    filter::SourceFilter,
    info::Info,
    keyring::{KeyRing, KeyStore},
    names,
    observed::{Connection, Outcomes, Pending, Prefix, PrefixTally, Watch},
    policy::Policy,
    sample::Samplers,
    service::{OTHER, Service},
};

use super::batch::BatchReader;

use crate::model::services::OTHER_NAME;

/// A struct that kernel and user space share through a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Shared<T>(pub(super) T);

/// Implements [`Pod`] for structs of `tfo_common` in [`Shared`].
macro_rules! shared {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `tfo_common::layout` asserts that these structs are repr(C), made of integers, without padding,
            // so any bytes are a value and every byte is initialised.
            unsafe impl Pod for Shared<$type> {}
        )+
    };
}
shared!(
    Attempts,
    Carried,
    Cell,
    Client,
    Connection,
    Info,
    KeyStore,
    Network,
    Outcomes,
    Pending,
    Policy,
    Prefix,
    PrefixTally,
    Samplers,
    Service,
    SourceFilter,
    Watch,
    Host
);

/// Maps that user space reads.
pub(super) struct Tables {
    pub(super) cells: PerCpuArray<MapData, Shared<Cell>>,
    pub(super) keys: Array<MapData, Shared<KeyStore>>,
    pub(super) services: Array<MapData, Shared<Service>>,
    pub(super) outcomes: Array<MapData, Shared<Outcomes>>,
    carried: Array<MapData, Shared<Carried>>,
    pub(super) prefixes: HashMap<MapData, Shared<Prefix>, Shared<PrefixTally>>,
    pub(super) pending: HashMap<MapData, Shared<Connection>, Shared<Pending>>,
    watch: PerCpuArray<MapData, Shared<Watch>>,
    client: Array<MapData, Shared<Client>>,
    pub(super) networks: HashMap<MapData, Shared<Network>, Shared<Attempts>>,
    all_cells: BatchReader<Shared<Cell>>,
    all_services: BatchReader<Shared<Service>>,
    all_outcomes: BatchReader<Shared<Outcomes>>,
    all_carried: BatchReader<Shared<Carried>>,
}

/// Counters of one service.
#[derive(Clone, Debug)]
pub struct ServiceCounters {
    /// Name of the service.
    pub name: String,
    /// Counters of its SYNs and frames.
    pub counters: Counters,
    /// Outcomes of its connections.
    pub outcomes: Outcomes,
}

/// Numbers of entries in the maps of prefixes and pending SYNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    /// Number of prefixes of sources.
    pub prefixes: u64,
    /// Number of SYNs with a good cookie that have not become a connection yet.
    pub pending: u64,
}

impl Tables {
    /// Takes the maps from `take`, which is given their names.
    pub(super) fn new(mut take: impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        let [cells, services, outcomes, carried] =
            [names::COUNTERS, names::SERVICES, names::OUTCOMES, names::CARRIED].map(&mut take);
        let (cells, services, outcomes, carried) = (cells?, services?, outcomes?, carried?);
        Ok(Self {
            all_cells: BatchReader::of(&cells, Shared(Cell::EMPTY))?,
            all_services: BatchReader::of(&services, Shared(Service::default()))?,
            all_outcomes: BatchReader::of(&outcomes, Shared(Outcomes::default()))?,
            all_carried: BatchReader::of(&carried, Shared(Carried::EMPTY))?,
            cells: cells.try_into()?,
            keys: take(names::KEYS)?.try_into()?,
            services: services.try_into()?,
            outcomes: outcomes.try_into()?,
            carried: carried.try_into()?,
            prefixes: take(names::PREFIXES)?.try_into()?,
            pending: take(names::PENDING)?.try_into()?,
            watch: take(names::WATCH)?.try_into()?,
            client: take(names::CLIENT)?.try_into()?,
            networks: take(names::NETWORKS)?.try_into()?,
        })
    }

    /// Returns the number of entries for services, including [`OTHER`].
    pub(super) fn capacity(&self) -> u32 {
        self.services.len()
    }

    /// Returns the counters, summed over all services and CPUs, with the counts of earlier maps.
    pub(super) fn counters(&self) -> Result<Counters> {
        let mut sum = Counters::default();
        let add = |_, cells: &[Shared<Cell>]| cells.iter().for_each(|Shared(cell)| sum.add_cell(cell));
        self.all_cells.each(add).context("cannot read the counters")?;
        self.each_carried(|_, carried| sum.add_cell(&carried.cell))?;
        Ok(sum)
    }

    /// Returns the name of the service at `index`, if there is one.
    pub(super) fn service(&self, index: u32) -> Result<Option<String>> {
        let Shared(service) = self.services.get(&index, 0).context("cannot read the map of services")?;
        Ok(name_of(index, &service).map(str::to_owned))
    }

    /// Returns the counters of each service, [`OTHER`] first, with the counts of earlier maps.
    pub(super) fn by_service(&self) -> Result<Vec<ServiceCounters>> {
        let mut places = Vec::with_capacity(self.capacity() as usize);
        let mut named = Vec::with_capacity(self.capacity() as usize);
        let place = |index, service: &[Shared<Service>]| {
            let name = service.first().and_then(|Shared(service)| name_of(index, service));
            places.push(name.map(|_| named.len()));
            named.extend(name.map(|name| ServiceCounters {
                name: name.to_owned(),
                counters: Counters::EMPTY,
                outcomes: Outcomes::default(),
            }));
        };
        self.all_services.each(place).context("cannot read the map of services")?;
        let add = |index, cells: &[Shared<Cell>]| {
            if let Some(place) = places[index as usize] {
                cells.iter().for_each(|Shared(cell)| named[place].counters.add_cell(cell));
            }
        };
        self.all_cells.each(add).context("cannot read the counters")?;
        let set = |index, outcomes: &[Shared<Outcomes>]| {
            if let (Some(place), [Shared(outcomes)]) = (places[index as usize], outcomes) {
                named[place].outcomes = *outcomes;
            }
        };
        self.all_outcomes.each(set).context("cannot read the outcomes")?;
        self.each_carried(|index, carried| {
            if let Some(place) = places[index as usize] {
                named[place].counters.add_cell(&carried.cell);
                named[place].outcomes.add(&carried.outcomes);
            }
        })?;
        Ok(named)
    }

    /// Returns the counts of SYNs of each service that `is_wanted`, without those of earlier maps.
    pub(super) fn counted(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Counters)>> {
        let mut wanted = Vec::new();
        let place = |index, service: &[Shared<Service>]| {
            let name = service.first().and_then(|Shared(service)| service.name());
            wanted.extend(name.filter(|name| is_wanted(name)).map(|name| (index, name.to_owned())));
        };
        self.all_services.each(place).context("cannot read the map of services")?;
        let counted =
            wanted.into_iter().map(|(index, name)| Ok((name, self.counted_here(index)?.cell.counters())));
        counted.collect()
    }

    /// Returns the counters of events, prefixes and forgotten sources, summed over all CPUs, with the counts of earlier
    /// maps. Refusals without an event count as skipped events. The budget is left out, since it is no count.
    pub(super) fn watch(&self) -> Result<Watch> {
        let mut sum = Watch::EMPTY;
        let all = self.watch.get(&0, 0).context("cannot read the counters of events")?;
        all.iter().for_each(|Shared(watch)| sum.add(watch));
        let add = |_, outcomes: &[Shared<Outcomes>]| {
            outcomes.iter().for_each(|Shared(outcomes)| sum.events_skipped += outcomes.events_skipped);
        };
        self.all_outcomes.each(add).context("cannot read the outcomes")?;
        self.each_carried(|index, carried| {
            if index == OTHER {
                sum.add(&carried.watch);
            }
            sum.events_skipped += carried.outcomes.events_skipped;
        })?;
        Ok(sum)
    }

    /// Returns the counts of connections from here, with those of earlier maps.
    pub(super) fn client(&self) -> Result<Client> {
        let Shared(mut sum) =
            self.client.get(&0, 0).context("cannot read the counts of connections from here")?;
        self.each_carried(|index, carried| {
            if index == OTHER {
                sum.add(&carried.client);
            }
        })?;
        Ok(sum)
    }

    /// Returns the destinations of connections from here. One that is added or removed meanwhile may be left out.
    pub(super) fn networks(&self) -> Vec<(Network, Attempts)> {
        self.networks
            .iter()
            .flatten()
            .map(|(Shared(network), Shared(attempts))| (network, attempts))
            .collect()
    }

    /// Passes the counts of earlier maps at each index to `see`.
    fn each_carried(&self, mut see: impl FnMut(u32, &Carried)) -> Result<()> {
        let each = |index, carried: &[Shared<Carried>]| carried.iter().for_each(|Shared(it)| see(index, it));
        self.all_carried.each(each).context("cannot read the counts of earlier maps")
    }

    /// Returns the counts of SYNs and connections at `index`, summed over all CPUs, without those of earlier maps.
    pub(super) fn counted_here(&self, index: u32) -> Result<Carried> {
        let mut sum = Carried::EMPTY;
        let cells = self.cells.get(&index, 0).context("cannot read the counters")?;
        cells.iter().for_each(|Shared(cell)| sum.cell.add(cell));
        let Shared(outcomes) = self.outcomes.get(&index, 0).context("cannot read the outcomes")?;
        sum.outcomes.add(&outcomes);
        Ok(sum)
    }

    /// Writes `carried` as the counts of earlier maps at `index`.
    pub(super) fn carry(&mut self, index: u32, carried: &Carried) -> Result<()> {
        self.carried.set(index, Shared(*carried), 0).context("cannot write the counts of earlier maps")
    }

    /// Returns the prefixes of sources. A prefix that is added or removed meanwhile may be left out.
    pub(super) fn prefixes(&self) -> Vec<(Prefix, PrefixTally)> {
        self.prefixes.iter().flatten().map(|(Shared(prefix), Shared(tally))| (prefix, tally)).collect()
    }

    /// Returns the last 64 bits of some recent IPv6 sources of `prefix`.
    pub(super) fn recent_sources(&self, prefix: Prefix) -> Vec<u64> {
        let Ok(Shared(tally)) = self.prefixes.get(&Shared(prefix), 0) else { return Vec::new() };
        tally.recent_sources[..tally.recent_sources.len().min(tally.seen as usize)].to_vec()
    }

    /// Returns the numbers of entries.
    pub(super) fn entries(&self) -> Entries {
        Entries { prefixes: count(self.prefixes.keys()), pending: count(self.pending.keys()) }
    }

    /// Returns the key ring in force.
    pub(super) fn key_ring(&self) -> Result<KeyRing> {
        let Shared(store) = self.keys.get(&0, 0).context("cannot read the key map")?;
        Ok(*store.current())
    }
}

/// Returns the name of `service`, which is at `index`, if it has one.
fn name_of(index: u32, service: &Service) -> Option<&str> {
    if index == OTHER { Some(OTHER_NAME) } else { service.name() }
}

fn count<T, E>(entries: impl Iterator<Item = Result<T, E>>) -> u64 {
    entries.flatten().count() as u64
}

/// Reads the info map. It is read before any other map, since it has the layout version of all.
pub(super) fn read_info(map: &Array<impl Borrow<MapData>, Shared<Info>>) -> Result<Info> {
    let Shared(info) = map.get(&0, 0).context("cannot read the info map")?;
    Ok(info)
}
