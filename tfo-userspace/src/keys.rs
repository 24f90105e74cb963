//! Sources of the keys, and the keeper that brings them into the kernel and the maps.

pub mod feed;
pub mod keeper;
pub mod schedule;
pub mod secret;
pub mod state;
pub mod succession;
