//! The counts of earlier maps, which user space carries into new ones.

use crate::{
    client::Client,
    counters::Cell,
    observed::{Outcomes, Watch},
};

/// Counts from earlier maps for one service. Only user space writes them; the program leaves them alone.
///
/// Fields that are not counts, such as [`Sampled::due`](crate::counters::Sampled::due), [`Outcomes::event_budget`] and
/// [`Watch::budget`], are never added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Carried {
    /// SYNs and frames, summed over CPUs.
    pub cell: Cell,
    /// Outcomes of connections.
    pub outcomes: Outcomes,
    /// Counts of observing, summed over CPUs. They belong to no service and stand in the first entry.
    pub watch: Watch,
    /// Connections from here. They belong to no service and stand in the first entry.
    pub client: Client,
}

impl Carried {
    /// Counts that are all zero.
    pub const EMPTY: Self =
        Self { cell: Cell::EMPTY, outcomes: Outcomes::EMPTY, watch: Watch::EMPTY, client: Client::EMPTY };

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        self.cell.add(&other.cell);
        self.outcomes.add(&other.outcomes);
        self.watch.add(&other.watch);
        self.client.add(&other.client);
    }
}
