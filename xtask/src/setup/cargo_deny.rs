//! cargo-deny, which checks licences, sources and duplicates of all crates by the rules of `deny.toml`.
//!
//! `cargo xtask lint` alone needs it, so a build does not bring it.

use anyhow::Result;

use super::{Stamp, cargo_install, lock};
use crate::workspace::{command, run, step, tools};

const VERSION: &str = "0.20.2";

/// Checks all crates of Cargo.lock, and first builds cargo-deny if it is missing.
pub(crate) fn check() -> Result<()> {
    let program = tools().join("bin/cargo-deny");
    let stamp = Stamp::new("cargo-deny", format!("cargo-deny {VERSION}\n"));
    if !(program.is_file() && stamp.is_current()) {
        let _lock = lock()?;
        step(&format!("building cargo-deny {VERSION} into target/tools (once, some minutes)"));
        cargo_install("cargo-deny", VERSION, &stamp, |cargo| {
            // It runs for a second, and optimizing it would take longer than all else that lint does.
            cargo.arg("--debug");
        })?;
    }
    run(command(program).args(["--locked", "check", "--deny", "warnings", "licenses", "bans", "sources"]))
}
