//! Orders in the maps: of `tfo hide`, and of the controller for the protection `answer`. They are kept in the policies of
//! services, in the map of hidden sources and in the filter in front of it.

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context as _, Result};
use aya::maps::{
    Array, Map, MapData,
    lpm_trie::{Key, LpmTrie},
};
use tfo_common::{
    filter::SourceFilter,
    names,
    policy::{FAMILY_BITS, Policy, hidden_key},
    segment::Family,
    service::OTHER,
};

use super::{
    plan::{prefix, words},
    tables::Shared,
};
use crate::model::guards::{Hidden, Orders};
use crate::model::services::OTHER_NAME;

/// Value of every entry in the map of hidden sources. Only the key matters.
const PRESENT: u32 = 1;

/// The maps of policies and of hidden sources, and the filter for the latter.
pub(super) struct OrderMaps {
    policies: Array<MapData, Shared<Policy>>,
    sources: LpmTrie<MapData, [u32; 5], u32>,
    filter: Array<MapData, Shared<SourceFilter>>,
}

impl OrderMaps {
    /// Takes the maps from `take`, which is given their names.
    pub(super) fn new(mut take: impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            policies: take(names::POLICIES)?.try_into()?,
            sources: take(names::HIDDEN)?.try_into()?,
            filter: take(names::HIDE_FILTER)?.try_into()?,
        })
    }

    /// Returns the policy of the service at `index`.
    pub(super) fn policy(&self, index: u32) -> Result<Policy> {
        let Shared(policy) = self.policies.get(&index, 0).context("cannot read the map of policies")?;
        Ok(policy)
    }

    /// Sets the policy of the service at `index`.
    pub(super) fn set_policy(&mut self, index: u32, policy: &Policy) -> Result<()> {
        self.policies.set(index, Shared(*policy), 0).context("cannot write the map of policies")
    }

    /// Replaces all orders in the maps by `orders`. `name` returns the service at an index below `places`. Orders for
    /// services that do not exist are left out.
    pub(super) fn set(
        &mut self,
        places: u32,
        name: impl Fn(u32) -> Result<Option<String>>,
        orders: &Orders,
    ) -> Result<()> {
        let Orders { hidden, answering, special: _ } = orders;
        let sources: HashSet<_> = hidden.iter().filter_map(source).collect();
        let there = self.sources()?;
        // At each moment the filter has all sources in the map. The kernel copies it byte by byte at worst, and each
        // byte has the bits that stay both before and after.
        self.set_filter(sources.union(&there))?;
        // New sources are written before a policy refers to them, so that an order is in force at once.
        for (len, address) in sources.difference(&there) {
            let inserted = self.sources.insert(&Key::new(*len, *address), PRESENT, 0);
            inserted.context("cannot write the map of hidden sources")?;
        }
        for index in 0..places {
            let mut flags = 0;
            if hidden.contains(&Hidden::All) {
                flags |= Policy::HIDDEN_ALL;
            }
            if !sources.is_empty() {
                flags |= Policy::HIDES_SOURCES;
            }
            if let Some(name) = name(index)? {
                if answering.contains(&name) {
                    flags |= Policy::ANSWERS;
                }
                if hidden.contains(&Hidden::Service(name)) {
                    flags |= Policy::HIDDEN_SERVICE;
                }
            }
            let policy = self.policy(index)?;
            let ordered = Policy { flags: policy.flags & !ORDERS | flags, ..policy };
            if ordered != policy {
                self.set_policy(index, &ordered)?;
            }
        }
        for (len, address) in there.difference(&sources) {
            let removed = self.sources.remove(&Key::new(*len, *address));
            removed.context("cannot write the map of hidden sources")?;
        }
        self.set_filter(&sources)
    }

    /// Writes the filter for `sources`.
    fn set_filter<'a>(&mut self, sources: impl IntoIterator<Item = &'a SourceKey>) -> Result<()> {
        let mut filter = SourceFilter::EMPTY;
        for (len, [family, address @ ..]) in sources {
            if let Some(family) = Family::from_index(*family) {
                filter.add(family, len - FAMILY_BITS, *address);
            }
        }
        self.filter.set(0, Shared(filter), 0).context("cannot write the filter of hidden sources")
    }

    /// Returns the keys in the map of hidden sources.
    fn sources(&self) -> Result<HashSet<SourceKey>> {
        let keys = self.sources.keys().map(|key| key.map(|key| (key.prefix_len(), key.data())));
        keys.collect::<Result<_, _>>().context("cannot read the map of hidden sources")
    }

    /// Returns the services whose SYNs are answered. `name` returns the service at an index below `places`.
    pub(super) fn answering(
        &self,
        places: u32,
        name: impl Fn(u32) -> Result<Option<String>>,
    ) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for index in 0..places {
            if self.policy(index)?.has(Policy::ANSWERS) {
                all.extend(name(index)?);
            }
        }
        Ok(all)
    }

    /// Returns all orders of `tfo hide` in the maps, sorted. `name` returns the service at an index below `places`.
    pub(super) fn hidden(
        &self,
        places: u32,
        name: impl Fn(u32) -> Result<Option<String>>,
    ) -> Result<Vec<Hidden>> {
        let mut all = Vec::new();
        for index in 0..places {
            let policy = self.policy(index)?;
            if index == OTHER && policy.has(Policy::HIDDEN_ALL) {
                all.push(Hidden::All);
            }
            if policy.has(Policy::HIDDEN_SERVICE) {
                all.push(Hidden::Service(name(index)?.unwrap_or_else(|| OTHER_NAME.to_owned())));
            }
        }
        for (len, [family, address @ ..]) in self.sources()? {
            all.extend(prefix(family, len - FAMILY_BITS, address).map(Hidden::Source));
        }
        all.sort();
        Ok(all)
    }
}

/// Length in bits of a key's prefix, and the key.
type SourceKey = (u32, [u32; 5]);

/// Returns the key in the map of hidden sources, if `hidden` is a source.
fn source(hidden: &Hidden) -> Option<SourceKey> {
    match hidden {
        Hidden::Source(source) => {
            let (family, len, address) = words(*source);
            Some((FAMILY_BITS + len, hidden_key(family, address)))
        }
        Hidden::All | Hidden::Service(_) => None,
    }
}

/// Flags of a policy that orders set.
const ORDERS: u64 = Policy::HIDDEN_ALL | Policy::HIDDEN_SERVICE | Policy::HIDES_SOURCES | Policy::ANSWERS;
