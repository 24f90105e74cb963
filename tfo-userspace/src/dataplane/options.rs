//! What is fixed when the program is loaded.

use tfo_common::{parse::LinkLayer, verdict::Mode};

use crate::model::settings::Sizes;

/// What is fixed when the program is loaded; the verifier removes what is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// Number of places for services in the maps: one for what no service names, and one for what services have counted that
    /// are no more.
    pub(super) fn capacity(&self) -> u32 {
        const LEAST: usize = 16;
        (self.services + 2).next_power_of_two().max(LEAST) as u32
    }
}
