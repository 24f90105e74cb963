//! Options that are fixed when the program is loaded.

use tfo_common::{keyring::SEARCHES_PER_JIFFY, parse::LinkLayer, verdict::Mode};

use crate::model::settings::Sizes;

/// Options that are fixed when the program is loaded. The verifier removes code that they make unreachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Whether the program for packets that arrive is one for tcx, and not for XDP.
    pub tcx: bool,
    /// Link layer of the frames.
    pub link: LinkLayer,
    /// Mode of the program.
    pub mode: Mode,
    /// Highest of aya's log levels at which the program writes messages; 0 for none.
    pub log_level: u8,
    /// Whether the SYNs of some service may be answered. It needs Linux 6.0 and Ethernet frames.
    pub answers: bool,
    /// Number of services in the configuration.
    pub services: usize,
    /// The cookie of the network namespace whose connections are followed.
    pub netns_cookie: u64,
    /// Sizes of the guards' tables.
    pub sizes: Sizes,
    /// Whether any service compares the data of SYNs. The table for it has one row otherwise.
    pub compares_data: bool,
    /// Whether any service has portable cookies.
    pub portable: bool,
    /// Number of cookies in a jiffy that a CPU may compare in vain with the keys that the kernel does not hold.
    pub searches: u32,
    /// Hash seed of the tags of remembered sources and SYNs. With another seed, they are not found again.
    pub seed: u64,
}

impl LoadOptions {
    const DEFAULT: Self = Self {
        tcx: false,
        link: LinkLayer::Ethernet,
        mode: Mode::Observe,
        log_level: 0,
        answers: false,
        services: 0,
        netns_cookie: 0,
        sizes: Sizes::DEFAULT,
        compares_data: false,
        portable: false,
        searches: SEARCHES_PER_JIFFY,
        seed: 0,
    };

    /// Returns the options for frames of `link`, in `mode`, without services.
    pub const fn new(link: LinkLayer, mode: Mode) -> Self {
        Self { link, mode, ..Self::DEFAULT }
    }

    /// Returns the number of rows of the tables for sources, replays and requests, each a power of two.
    pub(super) fn rows(&self) -> [u32; 3] {
        let [sources, replays] = self.sizes.rows();
        [sources, replays, if self.compares_data { replays } else { 1 }]
    }

    /// Returns the number of entries for services in the maps. Two more than there are services are needed: one for
    /// ports that no service names, and one for the counts of removed services.
    pub(super) fn capacity(&self) -> u32 {
        const LEAST: usize = 16;
        (self.services + 2).next_power_of_two().max(LEAST) as u32
    }
}
