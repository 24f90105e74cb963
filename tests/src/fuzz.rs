//! Fuzz targets: a module for each, with one function that takes any bytes and panics on a fault.
//!
//! `fuzz/` gives them to libFuzzer. `tests/host/corpus.rs` gives them every file of `corpus/`, so a fault that was
//! found once stays covered.

pub mod cli;
pub mod config;
pub mod decide;
pub mod fleet;
pub mod frame;
pub mod keyring;
pub mod keys;
pub mod options;
pub mod rewrite;
pub mod state;

/// A fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of the target, and of its folder in `corpus/`.
    pub name: &'static str,
    /// Function that panics on a fault.
    pub check: fn(&[u8]),
    /// Function that returns inputs to begin with, besides the corpus.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Fuzz targets by name.
pub const TARGETS: [Target; 10] = [
    Target { name: "cli", check: cli::check, seeds: cli::seeds },
    Target { name: "config", check: config::check, seeds: config::seeds },
    Target { name: "decide", check: decide::check, seeds: Vec::new },
    Target { name: "fleet", check: fleet::check, seeds: fleet::seeds },
    Target { name: "frame", check: frame::check, seeds: frame::seeds },
    Target { name: "keyring", check: keyring::check, seeds: Vec::new },
    Target { name: "keys", check: keys::check, seeds: keys::seeds },
    Target { name: "options", check: options::check, seeds: options::seeds },
    Target { name: "rewrite", check: rewrite::check, seeds: Vec::new },
    Target { name: "state", check: state::check, seeds: state::seeds },
];
