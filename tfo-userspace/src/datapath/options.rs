//! What is fixed when the program is loaded.

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use tfo_common::{names, parse::LinkLayer, policy::SEATS, verdict::Mode};

use crate::pins::Pins;

/// What is fixed when the program is loaded; the verifier removes what is not needed.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// What frames begin with.
    pub link: LinkLayer,
    /// What the program may do.
    pub mode: Mode,
    /// Up to which of aya's levels the program logs its own events: 0 for none.
    pub log_level: u8,
    /// How many services there are to be counted for.
    pub services: usize,
    /// The cookie of the network namespace whose connections are followed.
    pub netns_cookie: u64,
    /// How much is remembered.
    pub sizes: Sizes,
    /// What the tags of all that is remembered are made with: with another one it is forgotten.
    pub seed: u64,
}

/// How many entries the tables of the protections have; what has no room pushes out what was not used for longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Sources that have sent good cookies, and as many that have sent unknown ones.
    pub sources: u32,
    /// SYNs that have become connections.
    pub replays: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Sizes {
    const DEFAULT: Self = Self { sources: 1 << 16, replays: 1 << 16 };

    /// Whether the maps under `pins` are as large.
    pub(super) fn are_those_of(self, pins: &Pins) -> Result<bool> {
        let [sources, replays] = self.rows();
        for (name, rows) in [(names::SOURCES, sources), (names::FORGERS, sources), (names::REPLAYS, replays)]
        {
            if entries(pins, name)? != rows {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The rows of either table.
    pub(super) fn rows(self) -> [u32; 2] {
        [self.sources, self.replays].map(|entries| entries.div_ceil(SEATS as u32).next_power_of_two())
    }
}

/// How many entries the map `name` under `pins` has.
pub(super) fn entries(pins: &Pins, name: &str) -> Result<u32> {
    let map = MapData::from_pin(pins.map(name)).with_context(|| format!("cannot open the map {name}"))?;
    Ok(map.info().context("cannot ask for the size of a map")?.max_entries())
}

impl LoadOptions {
    const DEFAULT: Self = Self {
        link: LinkLayer::Ethernet,
        mode: Mode::Observe,
        log_level: 0,
        services: 0,
        netns_cookie: 0,
        sizes: Sizes::DEFAULT,
        seed: 0,
    };

    /// For frames that begin like `link`, in `mode`, without services.
    pub const fn new(link: LinkLayer, mode: Mode) -> Self {
        Self { link, mode, ..Self::DEFAULT }
    }

    /// Whether both take the same program, once it is loaded.
    pub(super) fn is_same_program(&self, other: &Self) -> bool {
        self.mode == other.mode && (self.services > 0) == (other.services > 0)
    }

    /// For how many services there is to be room: some more than there are, so that more can be
    /// added to the same maps, and one for what was counted for those that are no more.
    pub(super) fn capacity(&self) -> u32 {
        const LEAST: usize = 16;
        (self.services + 2).next_power_of_two().max(LEAST) as u32
    }
}
