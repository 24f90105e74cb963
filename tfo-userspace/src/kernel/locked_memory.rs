//! The limit of locked memory.

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tracing::trace;

/// Lifts the limit of locked memory, if we may. Before Linux 5.11 maps count as locked memory.
pub fn lift_limit() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        trace!("cannot lift the limit of locked memory: {error}");
    }
}
