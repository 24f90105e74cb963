//! The maps of a program that somebody else attached.

use std::{fmt, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, Map, MapData};
use tfo_common::{
    counters::Counters,
    info::{Info, LAYOUT_VERSION},
    keyring::KeyRing,
    names,
    observed::{Prefix, PrefixTally, Watch},
};

use super::{
    orders::Orders,
    tables::{Entries, ServiceCounters, Shared, Tables, read_info},
};
use crate::{guards::Hidden, pins::Pins};

/// The pinned maps are those of a tfo with another layout.
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

/// The maps of a program that somebody else attached, opened from their pins.
pub struct Pinned {
    tables: Tables,
    orders: Orders,
    info: Info,
}

impl Pinned {
    /// Opens the maps under `pins`; fails with [`OtherVersion`] where they are of another layout.
    pub fn open(pins: &Pins) -> Result<Self> {
        let open = |name| {
            let path = pins.map(name);
            MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
        };
        let other = || OtherVersion(pins.dir().to_owned());
        let info = Array::<_, Shared<Info>>::try_from(Map::Array(open(names::INFO)?));
        let info = read_info(&info.with_context(other)?)?;
        if info.layout_version != LAYOUT_VERSION {
            bail!(other());
        }
        let take = |name| Map::from_map_data(open(name)?).with_context(other);
        Ok(Self { tables: Tables::new(take)?, orders: Orders::new(take)?, info })
    }

    /// For how many services there is room.
    pub(super) fn capacity(&self) -> u32 {
        self.tables.capacity()
    }

    /// What was counted, summed over all services and CPUs.
    pub fn counters(&self) -> Result<Counters> {
        self.tables.counters()
    }

    /// Every service with what was counted for it; first what no service names.
    pub fn by_service(&self) -> Result<Vec<ServiceCounters>> {
        self.tables.by_service()
    }

    /// What was observed besides counters.
    pub fn watch(&self) -> Result<Watch> {
        self.tables.watch()
    }

    /// How many entries the maps have.
    pub fn entries(&self) -> Entries {
        self.tables.entries()
    }

    /// The prefixes of sources. One that comes or goes meanwhile may be left out.
    pub fn prefixes(&self) -> Vec<(Prefix, PrefixTally)> {
        self.tables.prefixes()
    }

    /// The key ring in force.
    pub fn key_ring(&self) -> Result<KeyRing> {
        self.tables.key_ring()
    }

    /// What is hidden by order.
    pub fn hidden(&self) -> Result<Vec<Hidden>> {
        self.orders.hidden(&self.tables)
    }

    /// What its controller said of it.
    pub fn info(&self) -> &Info {
        &self.info
    }
}
