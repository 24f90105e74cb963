//! Plain values that several layers share.

pub mod fleet;
pub mod guards;
pub mod keys;
pub mod services;
pub mod settings;
