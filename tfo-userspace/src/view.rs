//! What people and programs read of an interface: tables, JSON, metrics, a page, a screen.

// Whoever adds a class, a verdict or a reason is led to all that shows one.
#![warn(clippy::wildcard_enum_match_arm)]

pub mod attestation;
pub mod counters;
pub mod events;
pub mod history;
pub mod html;
pub mod key_listing;
pub mod listeners;
pub mod metrics;
pub mod rtt_saved;
pub mod table;
pub mod tui;
