//! Where keys come from, and how the kernel's and the maps' are kept in step with that.

pub mod keeper;
pub mod schedule;
pub mod secret;
pub mod state;
