//! The maps that are read: by the controller, which has loaded them, and by the commands, which open their pins.

use std::borrow::Borrow;

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
};
use tfo_common::{
    carried::Carried,
    counters::{Cell, Counters},
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

/// Structs of `tfo_common` that are fit for a map.
macro_rules! shared {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `tfo_common::layout` asserts that these structs are repr(C), made of integers, without padding, so any
            // bytes are a value and every byte is initialised.
            unsafe impl Pod for Shared<$type> {}
        )+
    };
}
shared!(
    Carried,
    Cell,
    Connection,
    Info,
    KeyStore,
    Outcomes,
    Pending,
    Policy,
    Prefix,
    PrefixTally,
    Samplers,
    Service,
    Watch
);

/// The maps that are read.
pub(super) struct Tables {
    pub(super) cells: PerCpuArray<MapData, Shared<Cell>>,
    pub(super) keys: Array<MapData, Shared<KeyStore>>,
    pub(super) services: Array<MapData, Shared<Service>>,
    pub(super) outcomes: Array<MapData, Shared<Outcomes>>,
    carried: Array<MapData, Shared<Carried>>,
    pub(super) prefixes: HashMap<MapData, Shared<Prefix>, Shared<PrefixTally>>,
    pub(super) pending: HashMap<MapData, Shared<Connection>, Shared<Pending>>,
    watch: PerCpuArray<MapData, Shared<Watch>>,
    all_cells: BatchReader<Shared<Cell>>,
    all_services: BatchReader<Shared<Service>>,
    all_outcomes: BatchReader<Shared<Outcomes>>,
    all_carried: BatchReader<Shared<Carried>>,
}

/// One service, by its name, and what was counted for it.
#[derive(Clone, Debug)]
pub struct ServiceCounters {
    /// Its name.
    pub name: String,
    /// What the program counted.
    pub counters: Counters,
    /// What became of its connections.
    pub outcomes: Outcomes,
}

/// How many entries the maps of remembered things have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    /// Prefixes of sources.
    pub prefixes: u64,
    /// SYNs with a good cookie that have not become a connection yet.
    pub pending: u64,
}

impl Tables {
    /// The maps that `take` gives by their names.
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
        })
    }

    /// For how many services there is room, [`OTHER`] among them.
    pub(super) fn capacity(&self) -> u32 {
        self.services.len()
    }

    /// What was counted, summed over all services and CPUs.
    pub(super) fn counters(&self) -> Result<Counters> {
        let mut sum = Counters::default();
        let add = |_, cells: &[Shared<Cell>]| cells.iter().for_each(|Shared(cell)| sum.add_cell(cell));
        self.all_cells.each(add).context("cannot read the counters")?;
        self.each_carried(|_, carried| sum.add_cell(&carried.cell))?;
        Ok(sum)
    }

    /// The name of the service at `index`, if there is one.
    pub(super) fn service(&self, index: u32) -> Result<Option<String>> {
        let Shared(service) = self.services.get(&index, 0).context("cannot read the map of services")?;
        Ok(name_of(index, &service).map(str::to_owned))
    }

    /// Every service with what was counted for it, [`OTHER`] first.
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

    /// What was observed, summed over all CPUs, with the refusals that were not told; the budget is no sum and left out.
    pub(super) fn watch(&self) -> Result<Watch> {
        let mut sum = Watch::EMPTY;
        let all = self.watch.get(&0, 0).context("cannot read the state of observing")?;
        all.iter().for_each(|Shared(watch)| sum.add(watch));
        let add = |_, outcomes: &[Shared<Outcomes>]| {
            outcomes.iter().for_each(|Shared(outcomes)| sum.events_skipped += outcomes.untold);
        };
        self.all_outcomes.each(add).context("cannot read the outcomes")?;
        self.each_carried(|index, carried| {
            if index == OTHER {
                sum.add(&carried.watch);
            }
            sum.events_skipped += carried.outcomes.untold;
        })?;
        Ok(sum)
    }

    /// Shows the counts of earlier maps at each place to `see`.
    fn each_carried(&self, mut see: impl FnMut(u32, &Carried)) -> Result<()> {
        let each = |index, carried: &[Shared<Carried>]| carried.iter().for_each(|Shared(it)| see(index, it));
        self.all_carried.each(each).context("cannot read the counts of earlier maps")
    }

    /// The counts of SYNs and connections at the place `index` of all CPUs, without those of earlier maps.
    pub(super) fn counted_here(&self, index: u32) -> Result<Carried> {
        let mut sum = Carried::EMPTY;
        let cells = self.cells.get(&index, 0).context("cannot read the counters")?;
        cells.iter().for_each(|Shared(cell)| sum.cell.add(cell));
        let Shared(outcomes) = self.outcomes.get(&index, 0).context("cannot read the outcomes")?;
        sum.outcomes.add(&outcomes);
        Ok(sum)
    }

    /// Makes `carried` the counts of earlier maps at `index`.
    pub(super) fn carry(&mut self, index: u32, carried: &Carried) -> Result<()> {
        self.carried.set(index, Shared(*carried), 0).context("cannot write the counts of earlier maps")
    }

    /// The prefixes of sources. One that comes or goes meanwhile may be left out.
    pub(super) fn prefixes(&self) -> Vec<(Prefix, PrefixTally)> {
        self.prefixes.iter().flatten().map(|(Shared(prefix), Shared(tally))| (prefix, tally)).collect()
    }

    /// The last words of sources of `prefix` that came lately.
    pub(super) fn lately(&self, prefix: Prefix) -> Vec<u64> {
        let Ok(Shared(tally)) = self.prefixes.get(&Shared(prefix), 0) else { return Vec::new() };
        tally.lately[..tally.lately.len().min(tally.seen as usize)].to_vec()
    }

    /// How many entries there are.
    pub(super) fn entries(&self) -> Entries {
        Entries { prefixes: count(self.prefixes.keys()), pending: count(self.pending.keys()) }
    }

    /// The key ring in force.
    pub(super) fn key_ring(&self) -> Result<KeyRing> {
        let Shared(store) = self.keys.get(&0, 0).context("cannot read the key map")?;
        Ok(*store.current())
    }
}

/// The name of `service`, which stands at `index`.
fn name_of(index: u32, service: &Service) -> Option<&str> {
    if index == OTHER { Some(OTHER_NAME) } else { service.name() }
}

fn count<T, E>(entries: impl Iterator<Item = Result<T, E>>) -> u64 {
    entries.flatten().count() as u64
}

/// A map of the info alone: to be read before any other, since it tells the layout of all.
pub(super) fn read_info(map: &Array<impl Borrow<MapData>, Shared<Info>>) -> Result<Info> {
    let Shared(info) = map.get(&0, 0).context("cannot read the info map")?;
    Ok(info)
}
