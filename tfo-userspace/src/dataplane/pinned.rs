//! Pinned maps of a program that another process attached.

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use aya::{
    maps::{Array, Map, MapData},
    programs::ProgramInfo,
};
use tfo_common::{
    client::{Attempts, Client, Network},
    counters::Counters,
    info::{Info, LAYOUT_VERSION},
    keyring::KeyRing,
    names,
    observed::{Prefix, PrefixTally, Watch},
    policy::Policy,
    service::OTHER,
};

use super::{
    orders::OrderMaps,
    tables::{Entries, ServiceCounters, Tables, read_info},
};
use crate::{
    dataplane::pins::{Generation, MAPS, Pins},
    model::guards::Hidden,
};

/// Error for pinned maps that have another layout, from another version of tfo.
#[derive(Debug)]
pub struct OtherVersion(PathBuf);

impl fmt::Display for OtherVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.0.display();
        write!(
            f,
            "the maps in {dir} are of another version of tfo: use that one, or start `tfo run` of this one"
        )
    }
}

impl std::error::Error for OtherVersion {}

/// The maps of a program that another process attached, opened from their pins.
pub struct Pinned {
    tables: Tables,
    /// The maps of newer generations than the one in force. In the middle of a change, their program counts already.
    next: Vec<Tables>,
    orders: OrderMaps,
    info: Info,
    follows_clients: bool,
}

impl Pinned {
    /// Opens the maps in force under `pins`; fails with [`OtherVersion`] if they have another layout.
    pub fn open(pins: &Pins) -> Result<Self> {
        in_force(pins, |generation| Self::of(pins, generation))
    }

    fn of(pins: &Pins, generation: &Generation) -> Result<Self> {
        let open = |name| open(generation, name);
        // Comes first: if the generation is gone meanwhile, so are its maps, and that is an error.
        let follows_clients = generation.outcomes_link().exists()
            && ProgramInfo::from_pin(generation.outcomes_program())
                .is_ok_and(|program| program.name_as_str() == Some(names::BOTH_ENDS_PROGRAM));
        let other = || OtherVersion(pins.dir().to_owned());
        let info = read_info(&Array::try_from(Map::Array(open(names::INFO)?)).with_context(other)?)?;
        if info.layout_version != LAYOUT_VERSION {
            bail!(other());
        }
        let take = |name| Map::from_map_data(open(name)?).with_context(other);
        let mut next = pins.generations()?;
        next.retain(|other| other.number() > generation.number());
        // An incomplete generation is just being made, so it is left out.
        let next = next.iter().filter_map(|next| {
            Tables::new(|name| Ok(Map::from_map_data(MapData::from_pin(next.map(name))?)?)).ok()
        });
        Ok(Self {
            tables: Tables::new(take)?,
            next: next.collect(),
            orders: OrderMaps::new(take)?,
            info,
            follows_clients,
        })
    }

    /// Returns the content of the info map of the program in force, whatever the layout of its other maps. The layout
    /// of the info map has not changed since tfo 0.1.
    pub fn info_of(pins: &Pins) -> Result<Info> {
        let path = pins.current()?.map(names::INFO);
        let map = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        read_info(&Array::try_from(Map::Array(map))?)
    }

    /// Returns the memory that the kernel has set aside for all maps in force under `pins`, in bytes: `memlock` of
    /// `bpf_map_show_fdinfo` (kernel/bpf/syscall.c). Before Linux 6.4 the kernel computes it from the maps' sizes.
    pub fn memory(pins: &Pins) -> Result<u64> {
        in_force(pins, |generation| MAPS.iter().map(|name| memory_of(&open(generation, name)?)).sum())
    }

    /// Returns the counters, summed over all services and CPUs.
    pub fn counters(&self) -> Result<Counters> {
        let mut sum = self.tables.counters()?;
        for next in &self.next {
            (OTHER..next.capacity()).try_for_each(|place| {
                sum.add_cell(&next.counted_here(place)?.cell);
                anyhow::Ok(())
            })?;
        }
        Ok(sum)
    }

    /// Returns the counters of each service. The first entry is for ports that no service names.
    pub fn by_service(&self) -> Result<Vec<ServiceCounters>> {
        let mut services = self.tables.by_service()?;
        for next in &self.next {
            for place in OTHER..next.capacity() {
                let Some(name) = next.service(place)? else { continue };
                let counted = next.counted_here(place)?;
                if let Some(service) = services.iter_mut().find(|service| service.name == name) {
                    service.counters.add_cell(&counted.cell);
                    service.outcomes.add(&counted.outcomes);
                } else {
                    let (counters, outcomes) = (counted.cell.counters(), counted.outcomes);
                    services.push(ServiceCounters { name, counters, outcomes });
                }
            }
        }
        Ok(services)
    }

    /// Returns the counters of events, prefixes and forgotten sources.
    pub fn watch(&self) -> Result<Watch> {
        self.tables.watch()
    }

    /// Returns the numbers of entries in the maps.
    pub fn entries(&self) -> Entries {
        self.tables.entries()
    }

    /// Returns the prefixes of sources. A prefix that is added or removed meanwhile may be left out.
    pub fn prefixes(&self) -> Vec<(Prefix, PrefixTally)> {
        self.tables.prefixes()
    }

    /// Returns the counts of connections from here; `None` if they are not followed.
    pub fn client(&self) -> Result<Option<Client>> {
        self.follows_clients.then(|| self.tables.client()).transpose()
    }

    /// Returns the destinations of connections from here. One that is added or removed meanwhile may be left out.
    pub fn networks(&self) -> Vec<(Network, Attempts)> {
        self.tables.networks()
    }

    /// Returns the key ring in force.
    pub fn key_ring(&self) -> Result<KeyRing> {
        self.tables.key_ring()
    }

    /// Returns the services whose SYNs are answered.
    pub fn answering(&self) -> Result<BTreeSet<String>> {
        self.orders.answering(self.tables.capacity(), |index| self.tables.service(index))
    }

    /// Returns the orders of `tfo hide`.
    pub fn hidden(&self) -> Result<Vec<Hidden>> {
        self.orders.hidden(self.tables.capacity(), |index| self.tables.service(index))
    }

    /// Returns the name and the policy of each service. The first entry is for ports that no service names.
    pub fn policies(&self) -> Result<Vec<(String, Policy)>> {
        let places = OTHER..self.tables.capacity();
        let named = places.filter_map(|index| Some((index, self.tables.service(index).transpose()?)));
        named.map(|(index, name)| Ok((name?, self.orders.policy(index)?))).collect()
    }

    /// Returns the services with portable cookies.
    pub fn portable(&self) -> Result<BTreeSet<String>> {
        let policies = self.policies()?.into_iter();
        Ok(policies.filter_map(|(name, policy)| (policy.portable != 0).then_some(name)).collect())
    }

    /// Returns the content of the info map.
    pub fn info(&self) -> &Info {
        &self.info
    }
}

/// Calls `read` with the generation in force under `pins`. If another one came into force meanwhile, calls it again: a
/// change removes the maps before it.
fn in_force<T>(pins: &Pins, read: impl Fn(&Generation) -> Result<T>) -> Result<T> {
    const TRIES: usize = 5;

    let mut generation = pins.current()?;
    for _ in 1..TRIES {
        match read(&generation) {
            Err(error) if !error.is::<OtherVersion>() => {
                let now = pins.current()?;
                if now == generation {
                    return Err(error);
                }
                generation = now;
            }
            outcome => return outcome,
        }
    }
    read(&generation)
}

/// Opens the pinned map called `name`.
fn open(generation: &Generation, name: &str) -> Result<MapData> {
    let path = generation.map(name);
    MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
}

/// Returns the memory of `map`, in bytes.
fn memory_of(map: &MapData) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let memory = text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
    memory.with_context(|| format!("{path} has no memlock"))
}
