//! Writes services and their policies into new maps, before any program uses these.

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use tfo_common::{
    policy::Policy,
    service::{OTHER, Service},
};

use super::{Object, plan::Plan, tables::Shared};
use crate::{kernel::clock, model::services::Services};

impl Object {
    /// Writes `services` and their policies into maps that have none yet.
    pub fn serve(&mut self, services: &Services) -> Result<()> {
        self.serve_after(services, &[])
    }

    /// Does the same as [`serve`](Self::serve). A service that is named in `before` keeps its index.
    pub(super) fn serve_after(&mut self, services: &Services, before: &[Option<String>]) -> Result<()> {
        let mut before = before.to_vec();
        before.resize(self.tables.capacity() as usize, None);
        let plan = Plan::new(services, &before, clock::jiffies_per_second()?)?;
        for (index, service) in (OTHER..).zip(&plan.places) {
            if let Some(service) = service {
                self.name(index, *service)?;
            }
        }
        for (index, policy) in (OTHER..).zip(&plan.policies) {
            self.set_policy(index, policy)?;
        }
        for ((bits, key), service) in &plan.addresses {
            let key = Key::new(*bits, *key);
            self.addresses.insert(&key, service, 0).context("cannot write the map of addresses")?;
        }
        for (port, entry) in (0..).zip(&plan.ports) {
            if *entry != OTHER {
                self.ports.set(port, entry, 0).context("cannot write the map of ports")?;
            }
        }
        Ok(())
    }

    pub(super) fn name(&mut self, index: u32, service: Service) -> Result<()> {
        self.tables.services.set(index, Shared(service), 0).context("cannot write the map of services")
    }

    /// Sets the policy of the service at `index`.
    pub fn set_policy(&mut self, index: u32, policy: &Policy) -> Result<()> {
        self.orders.set_policy(index, policy)
    }
}
