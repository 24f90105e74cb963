//! Orders for a running controller: `tfo keys rotate`, `tfo reload`, `tfo hide`, `tfo events` and so on.
//!
//! Each attachment has a Unix socket of its own below [`FOLDER`], which only root can enter, so nobody else can take its name or
//! give orders: not even root of a container, unless it is given the folder. The socket is named by the pin folder that is
//! commanded: an order reaches whoever controls that folder now, in whichever network namespace and BPF file system.

pub mod client;
pub mod protocol;
pub mod server;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::Result;
pub use client::give;
pub use protocol::Order;
pub use server::{Given, Reply, Server};

use crate::dataplane::pins::Pins;

/// Where the sockets are. The usual folder of a service called tfo (`RuntimeDirectory=`, systemd.exec(5)).
pub const FOLDER: &str = "/run/tfo";

/// Nothing runs that the command could speak of.
#[derive(Debug)]
pub struct NotRunning(pub String);

impl fmt::Display for NotRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotRunning {}

/// The socket of whoever controls `pins`.
pub fn socket(pins: &Pins) -> Result<PathBuf> {
    let (file_system, inode) = pins.identity()?;
    Ok(Path::new(FOLDER).join(format!("{file_system:x}-{inode:x}.sock")))
}
