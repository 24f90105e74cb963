//! Sources of the keys, and the keeper that brings them into the kernel and the maps.

pub mod keeper;
pub mod schedule;
pub mod secret;
pub mod state;
