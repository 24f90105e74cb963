//! What is hidden by order, and where that is kept: in the policies of services, and in the map of hidden sources.

use std::ops::Range;

use anyhow::{Context as _, Result, bail};
use aya::maps::{
    Array, Map, MapData,
    lpm_trie::{Key, LpmTrie},
};
use tfo_common::{
    names,
    policy::{FAMILY_BITS, HIDDEN, Policy, hidden_key},
    service::OTHER,
};

use super::{
    plan::{prefix, words},
    tables::{OTHER_NAME, Shared, Tables},
};
use crate::guards::Hidden;

/// The value of an entry that says no more than that it is there.
const THERE: u32 = 1;

/// The maps with policies and orders.
pub(super) struct Orders {
    policies: Array<MapData, Shared<Policy>>,
    sources: LpmTrie<MapData, [u32; 5], u32>,
}

impl Orders {
    /// The maps that `take` gives by their names.
    pub(super) fn new(mut take: impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        Ok(Self { policies: take(names::POLICIES)?.try_into()?, sources: take(names::HIDDEN)?.try_into()? })
    }

    /// The policy of the service at `index`.
    pub(super) fn policy(&self, index: u32) -> Result<Policy> {
        let Shared(policy) = self.policies.get(&index, 0).context("cannot read the map of policies")?;
        Ok(policy)
    }

    /// Makes `policy` that of the service at `index`.
    pub(super) fn set_policy(&mut self, index: u32, policy: &Policy) -> Result<()> {
        self.policies.set(index, Shared(*policy), 0).context("cannot write the map of policies")
    }

    /// Hides Fast Open from the stack, or hides it no longer; services are those of `tables`.
    pub(super) fn hide(&mut self, tables: &Tables, what: &Hidden, on: bool) -> Result<()> {
        match what {
            Hidden::All => self.order(0..tables.capacity(), Policy::HIDDEN_ALL, on),
            Hidden::Service(name) => {
                let mut places = 0..tables.capacity();
                let is_its =
                    |index: &u32| tables.service(*index).is_ok_and(|service| service.as_ref() == Some(name));
                let index = places.find(is_its).with_context(|| format!("there is no service {name}"))?;
                self.order(index..index + 1, Policy::HIDDEN_SERVICE, on)
            }
            Hidden::Source(source) => {
                let (family, len, address) = words(*source);
                let key = Key::new(FAMILY_BITS + len, hidden_key(family, address));
                let count = self.sources.keys().count();
                if !on {
                    if self.sources.remove(&key).is_err() {
                        bail!("{source} is not hidden: `tfo hide --list` shows what is");
                    }
                } else if count < HIDDEN {
                    self.sources.insert(&key, THERE, 0).context("cannot write the map of hidden sources")?;
                } else {
                    bail!("{HIDDEN} sources are hidden, and there may be no more: hide a shorter prefix");
                }
                let is_any = self.sources.keys().next().is_some();
                self.order(0..tables.capacity(), Policy::HIDES_SOURCES, is_any)
            }
        }
    }

    /// Sets `flag` in the policies at `places`, or clears it.
    fn order(&mut self, places: Range<u32>, flag: u64, on: bool) -> Result<()> {
        for index in places {
            let mut policy = self.policy(index)?;
            policy.flags = if on { policy.flags | flag } else { policy.flags & !flag };
            self.set_policy(index, &policy)?;
        }
        Ok(())
    }

    /// What is hidden.
    pub(super) fn hidden(&self, tables: &Tables) -> Result<Vec<Hidden>> {
        let mut all = Vec::new();
        for index in 0..tables.capacity() {
            let policy = self.policy(index)?;
            if index == OTHER && policy.has(Policy::HIDDEN_ALL) {
                all.push(Hidden::All);
            }
            if policy.has(Policy::HIDDEN_SERVICE) {
                all.push(Hidden::Service(tables.service(index)?.unwrap_or_else(|| OTHER_NAME.to_owned())));
            }
        }
        for key in self.sources.keys() {
            let key = key.context("cannot read the map of hidden sources")?;
            let [family, address @ ..] = key.data();
            all.extend(prefix(family, key.prefix_len() - FAMILY_BITS, address).map(Hidden::Source));
        }
        Ok(all)
    }
}
