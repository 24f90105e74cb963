//! Services, their policies, and what is hidden by order: carried into the maps while the program runs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::maps::{PerCpuValues, lpm_trie::Key};
use tfo_common::{
    carried::Carried,
    counters::{Cell, Counters},
    observed::Outcomes,
    policy::Policy,
    sample::Samplers,
    service::{OTHER, Service},
};

use super::{
    Object,
    object::wait_for_running_programs,
    plan::Plan,
    tables::{REMOVED_NAME, Shared},
};
use crate::{guards::Hidden, kernel, services::Services};

impl Object {
    /// Makes `services` those that are served and counted for. One that was there before keeps its counters; what one has
    /// counted that is no more goes to [`REMOVED_NAME`]. What is hidden by order stays hidden.
    ///
    /// Nothing is changed where they don't fit into the maps.
    pub fn serve(&mut self, services: &Services) -> Result<()> {
        let (before, plan) = self.plan(services)?;
        let capacity = self.tables.capacity();
        let stays = |index: u32| {
            let name = plan.places[index as usize].and_then(|service| service.name().map(str::to_owned));
            index == OTHER || name.is_some() && name == before[index as usize]
        };
        // First nothing is counted any more where another name is to stand, or none.
        let rests = |entry: u32| if stays(entry & !FLAGS) { entry } else { OTHER | entry & FLAGS };
        self.route(plan.ports.iter().map(|entry| rests(*entry)), &plan.addresses, &rests)?;
        let inner = || OTHER + 1..capacity - 1;
        let gone: Vec<_> =
            inner().filter(|index| before[*index as usize].is_some() && !stays(*index)).collect();
        if !gone.is_empty() {
            wait_for_running_programs();
            for index in gone {
                self.retire(index, capacity - 1)?;
            }
        }
        let ordered = self.orders.policy(OTHER)?.flags & ORDERS_FOR_ALL;
        for (index, policy) in (0..).zip(&plan.policies) {
            let former = self.orders.policy(index)?;
            let own = if stays(index) { former.flags & Policy::HIDDEN_SERVICE } else { 0 };
            let policy = Policy { flags: policy.flags | ordered | own, ..*policy };
            if policy != former {
                self.set_policy(index, &policy)?;
            }
        }
        for index in inner().filter(|index| !stays(*index)) {
            let service = plan.places[index as usize];
            if service.is_some() {
                self.clear(index)?;
            }
            if service.is_some() || before[index as usize].is_some() {
                self.name(index, service.unwrap_or_default())?;
            }
        }
        // All is there: now they may come.
        self.route(plan.ports.iter().copied(), &plan.addresses, &|entry| entry)
    }

    /// The services that stand in the maps, and what these are to hold for `services`; an error where there is no room.
    pub(super) fn plan(&self, services: &Services) -> Result<(Vec<Option<String>>, Plan)> {
        let places = 0..self.tables.capacity();
        let before: Vec<_> = places.map(|index| self.tables.service(index)).collect::<Result<_>>()?;
        let plan = Plan::new(services, &before, kernel::jiffies_per_second()?)?;
        Ok((before, plan))
    }

    /// Has ports, and addresses where they decide, lead to services: to those of `ports` and `addresses`, as `leads` says. A port
    /// never leads to the service of an address that is not there yet.
    fn route(
        &mut self,
        ports: impl Iterator<Item = u32>,
        addresses: &BTreeMap<(u32, [u32; 5]), u32>,
        leads: &impl Fn(u32) -> u32,
    ) -> Result<()> {
        for ((bits, key), service) in addresses {
            let (key, service) = (Key::new(*bits, *key), leads(*service));
            if self.addresses.get(&key, 0).ok() != Some(service) {
                self.addresses.insert(&key, service, 0).context("cannot write the map of addresses")?;
            }
        }
        for (port, entry) in (0_u32..).zip(ports) {
            let now = &mut self.routes[port as usize];
            if *now != entry {
                self.ports.set(port, entry, 0).context("cannot write the map of ports")?;
                *now = entry;
            }
        }
        let known: Vec<_> =
            self.addresses.keys().collect::<Result<_, _>>().context("cannot read the map of addresses")?;
        for key in known {
            if !addresses.contains_key(&(key.prefix_len(), key.data())) {
                self.addresses.remove(&key).context("cannot write the map of addresses")?;
            }
        }
        Ok(())
    }

    /// Adds what was counted at `index`, where nobody counts any more, to what stands at `to`, where nobody ever does.
    fn retire(&mut self, index: u32, to: u32) -> Result<()> {
        let counted = self.tables.total(index)?;
        let mut sum = self.tables.carried(to)?;
        sum.add(&counted);
        self.tables.carry(to, &sum)?;
        self.clear(index)?;
        self.name(index, Service::default())?;
        let has_counted = counted.cell.counters() != Counters::EMPTY;
        if has_counted { self.name(to, Service::new(REMOVED_NAME).unwrap_or_default()) } else { Ok(()) }
    }

    /// Begins anew to count at `index`.
    fn clear(&mut self, index: u32) -> Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let cells = PerCpuValues::try_from(vec![Shared(Cell::EMPTY); cpus])?;
        let samplers = PerCpuValues::try_from(vec![Shared(Samplers::NEW); cpus])?;
        self.tables.cells.set(index, cells, 0).context("cannot clear counters")?;
        self.samplers.set(index, samplers, 0).context("cannot clear samplers")?;
        self.tables.outcomes.set(index, Shared(Outcomes::default()), 0).context("cannot clear outcomes")?;
        self.tables.carry(index, &Carried::EMPTY)?;
        self.unknown.set(index, 0, 0).context("cannot clear a limit")
    }

    fn name(&mut self, index: u32, service: Service) -> Result<()> {
        self.tables.services.set(index, Shared(service), 0).context("cannot write the map of services")
    }

    /// Makes `policy` that of the service at `index`.
    pub fn set_policy(&mut self, index: u32, policy: &Policy) -> Result<()> {
        self.orders.set_policy(index, policy)
    }

    /// Hides Fast Open from the stack, or hides it no longer.
    pub fn hide(&mut self, what: &Hidden, on: bool) -> Result<()> {
        self.orders.hide(&self.tables, what, on)
    }

    /// What is hidden by order.
    pub(super) fn hidden(&self) -> Result<Vec<Hidden>> {
        self.orders.hidden(&self.tables)
    }
}

/// What is in the entry of a port besides a service.
const FLAGS: u32 = tfo_common::service::BY_ADDRESS;
/// What is ordered for every service.
const ORDERS_FOR_ALL: u64 = Policy::HIDDEN_ALL | Policy::HIDES_SOURCES;
