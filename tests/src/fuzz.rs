//! What the fuzz targets check: a module for each, with one function that takes any bytes and panics where something is
//! wrong.
//!
//! `fuzz/` gives them to libFuzzer, and `tests/host_corpus.rs` gives them every file of `corpus/`: what was found once stays
//! found.

pub mod cli;
pub mod config;
pub mod decide;
pub mod frame;
pub mod keyring;
pub mod keys;
pub mod options;
pub mod rewrite;
pub mod state;

/// A fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `corpus/`.
    pub name: &'static str,
    /// Panics where something is wrong.
    pub check: fn(&[u8]),
    /// What to begin with, besides its corpus.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 9] = [
    Target { name: "cli", check: cli::check, seeds: cli::seeds },
    Target { name: "config", check: config::check, seeds: config::seeds },
    Target { name: "decide", check: decide::check, seeds: Vec::new },
    Target { name: "frame", check: frame::check, seeds: frame::seeds },
    Target { name: "keyring", check: keyring::check, seeds: Vec::new },
    Target { name: "keys", check: keys::check, seeds: keys::seeds },
    Target { name: "options", check: options::check, seeds: options::seeds },
    Target { name: "rewrite", check: rewrite::check, seeds: Vec::new },
    Target { name: "state", check: state::check, seeds: state::seeds },
];
