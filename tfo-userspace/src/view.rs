//! Output about an interface, for people and programs: tables, JSON, metrics, an HTML page, a terminal screen.

// A new class, verdict or reason then gives a warning at each `match` that has to show it.
#![warn(clippy::wildcard_enum_match_arm)]

pub mod attestation;
pub mod client;
pub mod counters;
pub mod enable;
pub mod events;
pub mod fleet;
pub mod history;
pub mod html;
pub mod key_listing;
pub mod listeners;
pub mod metrics;
pub mod network;
pub mod rtt_saved;
pub mod table;
pub mod tui;
