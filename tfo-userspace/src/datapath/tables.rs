//! The maps that are read: by the controller, which has loaded them, and by the commands, which open their pins.

use std::borrow::Borrow;

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
};
use tfo_common::{
    counters::{Cell, Counters},
    info::Info,
    keyring::{KeyRing, KeyStore},
    names,
    observed::{Connection, Outcomes, Pending, Prefix, PrefixTally, Watch},
    service::{OTHER, Service},
};

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
shared!(Cell, Connection, Info, KeyStore, Outcomes, Pending, Prefix, PrefixTally, Service, Watch);

/// The maps that are read.
pub(super) struct Tables {
    pub(super) cells: PerCpuArray<MapData, Shared<Cell>>,
    pub(super) keys: Array<MapData, Shared<KeyStore>>,
    pub(super) services: Array<MapData, Shared<Service>>,
    pub(super) outcomes: Array<MapData, Shared<Outcomes>>,
    prefixes: HashMap<MapData, Shared<Prefix>, Shared<PrefixTally>>,
    pending: HashMap<MapData, Shared<Connection>, Shared<Pending>>,
    watch: PerCpuArray<MapData, Shared<Watch>>,
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

/// The name of what no service names.
pub const OTHER_NAME: &str = "other";

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
        Ok(Self {
            cells: take(names::COUNTERS)?.try_into()?,
            keys: take(names::KEYS)?.try_into()?,
            services: take(names::SERVICES)?.try_into()?,
            outcomes: take(names::OUTCOMES)?.try_into()?,
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
        for index in 0..self.capacity() {
            sum.add(&self.counters_of(index)?);
        }
        Ok(sum)
    }

    fn counters_of(&self, index: u32) -> Result<Counters> {
        let mut sum = Counters::default();
        for Shared(cell) in self.cells.get(&index, 0).context("cannot read the counters")?.iter() {
            sum.add(&cell.counters);
        }
        Ok(sum)
    }

    /// The name of the service at `index`, if there is one.
    pub(super) fn service(&self, index: u32) -> Result<Option<String>> {
        let Shared(service) = self.services.get(&index, 0).context("cannot read the map of services")?;
        Ok(if index == OTHER { Some(OTHER_NAME.to_owned()) } else { service.name().map(str::to_owned) })
    }

    /// Every service with what was counted for it, [`OTHER`] first.
    pub(super) fn by_service(&self) -> Result<Vec<ServiceCounters>> {
        let mut services = Vec::new();
        for index in 0..self.capacity() {
            if let Some(name) = self.service(index)? {
                let Shared(outcomes) = self.outcomes.get(&index, 0).context("cannot read the outcomes")?;
                services.push(ServiceCounters { name, counters: self.counters_of(index)?, outcomes });
            }
        }
        Ok(services)
    }

    /// What was observed, summed over all CPUs; the budget is no sum and left out.
    pub(super) fn watch(&self) -> Result<Watch> {
        let mut sum = Watch::default();
        let all = self.watch.get(&0, 0).context("cannot read the state of observing")?;
        for Shared(Watch { budget: _, events, events_lost, events_skipped, prefixes }) in all.iter() {
            sum.events += events;
            sum.events_lost += events_lost;
            sum.events_skipped += events_skipped;
            sum.prefixes += prefixes;
        }
        Ok(sum)
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

fn count<T, E>(entries: impl Iterator<Item = Result<T, E>>) -> u64 {
    entries.flatten().count() as u64
}

/// A map of the info alone: to be read before any other, since it tells the layout of all.
pub(super) fn read_info(map: &Array<impl Borrow<MapData>, Shared<Info>>) -> Result<Info> {
    let Shared(info) = map.get(&0, 0).context("cannot read the info map")?;
    Ok(info)
}
